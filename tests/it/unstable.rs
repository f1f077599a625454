//! The alert `unstable`: a version that gives other answers to the same bytes than were logged.

use crate::support::process::Served;
use crate::support::receiver::{Receiver, Reply};
use crate::support::{eventually, library, onnx};
use serde_json::{Value, json};
use std::path::Path;

fn configure(dir: &Path, receiver: &Receiver) {
    let url = receiver.url("/hook");
    let text = format!(
        "[engines]\ncustom_ops_dir = \"{}\"\n[prediction_log]\nreproduce_every = \"300ms\"\n\
         [alerts]\ncheck_interval = \"100ms\"\nend_after = \"300ms\"\noff = [\"disk_full\", \"memory_full\"]\n\
         [[alerts.targets]]\nname = \"ops\"\nkind = \"webhook\"\nurl = \"{url}\"\n",
        dir.join("ops").display()
    );
    std::fs::create_dir_all(dir.join("config")).unwrap();
    std::fs::write(dir.join("config/sluicegate.toml"), text).unwrap();
}

/// Installs the custom operator, which multiplies by this number. A running server keeps the file that it has loaded.
fn operator(dir: &Path, times: u32) {
    let fresh = dir.join("fresh.so");
    library::compile("twice.c", &fresh, &[&format!("-DTIMES={times}")]);
    std::fs::create_dir_all(dir.join("ops")).unwrap();
    std::fs::rename(fresh, dir.join("ops/libtwice.so")).unwrap();
}

fn send(served: &Served, model: &str, from: usize) {
    for i in from..from + 30 {
        let body = json!({"id": format!("{model}{i}"), "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [i, 1]}]});
        let url = format!("http://{}/v2/models/{model}/infer", served.data);
        assert_eq!(ureq::post(&url).send(body.to_string()).unwrap().status(), 200);
    }
}

fn get(served: &Served, path: &str) -> Value {
    serde_json::from_str(&served.admin_get(path)).unwrap()
}

/// The last sample of the only version of a model that was run again.
fn ran(served: &Served, model: &str) -> Value {
    get(served, &format!("/api/v1/models/{model}/figures"))["reproduced"][0].clone()
}

fn firing(served: &Served) -> Vec<Value> {
    let list = get(served, "/api/v1/alerts?state=firing");
    let of = list["alerts"].as_array().unwrap().iter();
    of.filter(|alert| alert["rule"] == "unstable").map(|alert| alert["model"].clone()).collect()
}

#[test]
fn another_library_of_an_operator_is_told_stays_told_over_a_restart_and_ends_when_it_is_put_back() {
    let receiver = Receiver::start(Reply::Status(204));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    configure(path, &receiver);
    operator(path, 2);
    onnx::install(&path.join("models"), "double", 1, &onnx::twice());
    std::fs::write(path.join("models/double/model.toml"), "[engine]\ncustom_ops = [\"libtwice.so\"]\n").unwrap();
    let mut served = Served::start(path);
    served.wait_state("double", 1, "serving");
    send(&served, "double", 0);
    // The process that runs them again loads the operator too, from the directory of the configuration file.
    let same = eventually("a sample was run again", || {
        Some(ran(&served, "double")).filter(|ran| ran["ran"]["answered"] == 30)
    });
    assert_eq!(
        (&same["ran"]["equal"], &same["ran"]["different"], &same["error"]),
        (&json!(20), &json!(0), &Value::Null)
    );
    assert_eq!(receiver.alerts(), [""; 0]);

    operator(path, 3);
    eventually("the alert is told", || (receiver.alerts() == ["+unstable double/1"]).then_some(()));
    let told = receiver.got()[0].json()["alerts"][0].clone();
    let summary = told["summary"].as_str().unwrap();
    let words = "version 1 of double gives other answers than were logged: 20 of 20 logged predictions that were run again, such as double";
    assert!(summary.starts_with(words), "{told}");
    assert!(told["what_to_do"].as_str().unwrap().starts_with("`sluicegate reproduce double"), "{told}");
    let metrics = served.admin_get("/metrics");
    let counted = "sluicegate_reproduced_total{model=\"double\",version=\"1\",result=\"different\"}";
    assert!(metrics.contains(counted), "{metrics}");

    // What is known is known after a restart too: for as long as nothing was run again, the alert does not end.
    served.stop();
    let file = std::fs::read_to_string(path.join("config/sluicegate.toml")).unwrap();
    std::fs::write(path.join("config/sluicegate.toml"), file.replace("\"300ms\"\n[alerts]", "\"1h\"\n[alerts]"))
        .unwrap();
    let mut served = Served::start(path);
    served.wait_state("double", 1, "serving");
    let kept = ran(&served, "double");
    assert_eq!(kept["ran"]["different"], 20, "{kept}");
    onnx::install(&path.join("models"), "broken", 1, b"this is no model");
    let mut expected = vec!["+unstable double/1", "+version_failed broken/1"];
    eventually("another alert begins", || (receiver.alerts() == expected).then_some(()));
    std::fs::remove_dir_all(path.join("models/broken")).unwrap();
    expected.push("-version_failed broken/1");
    eventually("and ends, as one of `unstable` would by now", || (receiver.alerts() == expected).then_some(()));
    assert_eq!(firing(&served), ["double"]);
    served.stop();

    // The server has the right library again, and its newest answers are the logged ones.
    operator(path, 2);
    std::fs::write(path.join("config/sluicegate.toml"), file).unwrap();
    let mut served = Served::start(path);
    served.wait_state("double", 1, "serving");
    expected.push("-unstable double/1");
    eventually("the alert ends", || (receiver.alerts() == expected).then_some(()));
    let now = ran(&served, "double");
    assert_eq!(now["ran"]["equal"], 20, "{now}");
    served.stop();
}

#[test]
fn a_model_that_draws_random_numbers_is_told_until_another_version_answers() {
    let receiver = Receiver::start(Reply::Status(204));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    configure(path, &receiver);
    std::fs::create_dir_all(path.join("ops")).unwrap();
    onnx::install(&path.join("models"), "dice", 1, &onnx::random());
    onnx::install(&path.join("models"), "sure", 1, &onnx::scaling(2.0));
    let mut served = Served::start(path);
    for model in ["dice", "sure"] {
        served.wait_state(model, 1, "serving");
        send(&served, model, 0);
    }
    eventually("the alert is told", || (receiver.alerts() == ["+unstable dice/1"]).then_some(()));
    eventually("the other model was run again", || (ran(&served, "sure")["ran"]["answered"] == 30).then_some(()));
    assert_eq!((firing(&served), &ran(&served, "sure")["ran"]["different"]), (vec![json!("dice")], &json!(0)));
    onnx::install(&path.join("models"), "dice", 2, &onnx::scaling(2.0));
    served.wait_state("dice", 2, "ready");
    served.admin_post("/api/v1/models/dice:promote", &json!({"version": "2", "reason": "without chance"}));
    eventually("the alert ends", || (receiver.alerts() == ["+unstable dice/1", "-unstable dice/1"]).then_some(()));
    served.stop();
}
