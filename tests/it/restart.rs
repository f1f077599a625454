//! What serves survives a restart and a kill.

use crate::support::process::Served;
use crate::support::{Gateway, eventually, infer_body, onnx};
use serde_json::json;

#[test]
fn promotions_and_unloads_survive_a_clean_restart() {
    let gateway = Gateway::start(|models| {
        for v in 1..=3 {
            onnx::install(models, "self", v, &onnx::answering(v as f32, 4, 0));
        }
    });
    assert_eq!(gateway.promote("self", 2).status, 200);
    let unload = gateway.admin_send("POST", "/api/v1/models/self/versions/3:unload", &[], &json!({}));
    assert_eq!(unload.status, 200, "{unload:?}");
    let before = gateway.admin_get("/api/v1/models/self/traffic");
    let dir = gateway.stop();
    let gateway = Gateway::start_in(dir, "");
    gateway.wait_ready();
    let after = gateway.admin_get("/api/v1/models/self/traffic");
    assert_eq!(after.json()["split"], before.json()["split"]);
    assert_eq!(after.header("etag"), before.header("etag"), "the revision is the same");
    assert_eq!(gateway.state("self", 3).as_deref(), Some("unloaded"), "an unloaded version stays unloaded");
    let answer = gateway.post("/v2/models/self/infer", infer_body(&[1, 4], &[0.0; 4]));
    assert_eq!(answer.json()["model_version"], "2", "the promoted version, not the highest one");
    let audit = gateway.admin_get("/api/v1/audit?model=self").json();
    let actions: Vec<&str> =
        audit["events"].as_array().unwrap().iter().map(|e| e["action"].as_str().unwrap()).collect();
    assert!(actions.contains(&"promote") && actions.contains(&"unload"), "{actions:?}");
}

#[test]
fn after_kill_9_the_same_version_serves() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("models")).unwrap();
    for v in 1..=2 {
        onnx::install(&dir.path().join("models"), "self", v, &onnx::answering(v as f32, 4, 0));
    }
    let mut expected = "2".to_owned();
    for round in 0..4 {
        let mut served = Served::start(dir.path());
        served.ready();
        assert_eq!(served.version_serving(), expected, "round {round}");
        expected = if expected == "2" { "1".to_owned() } else { "2".to_owned() };
        let promoted = served.cli(&["promote", "self", &expected, "--reason", "a test"]);
        assert!(promoted.status.success(), "{promoted:?}");
        // The command has succeeded, so that the change is durable.
        served.child.kill().unwrap();
        served.child.wait().unwrap();
    }
}

#[test]
fn sigterm_ends_with_exit_code_0() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("models")).unwrap();
    onnx::install(&dir.path().join("models"), "self", 1, &onnx::answering(1.0, 4, 0));
    let mut served = Served::start(dir.path());
    served.ready();
    let pid = rustix::process::Pid::from_child(&served.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_rollout_continues_after_kill_9() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("models")).unwrap();
    for v in 1..=2 {
        onnx::install(&dir.path().join("models"), "self", v, &onnx::answering(v as f32, 4, 0));
    }
    let json = |served: &Served, arguments: &[&str]| -> serde_json::Value {
        let output = served.cli(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let mut served = Served::start(dir.path());
    served.ready();
    assert!(served.cli(&["promote", "self", "1", "--reason", "a test"]).status.success());
    let plan = ["rollout", "self", "--to", "2", "--steps", "20,40,60,80", "--hold", "0s", "--min-requests", "15"];
    assert!(served.cli(&[&plan[..], &["--reason", "a test"]].concat()).status.success());
    let mut before = json(&served, &["rollout", "self"]);
    for _ in 0..2 {
        // Killed right after another step: a step that is shown is durable.
        let step = before["step"].as_u64().unwrap();
        before = eventually("the next step", || {
            (0..20).for_each(|_| drop(served.ask(&[])));
            let rollout = json(&served, &["rollout", "self"]);
            (rollout["step"].as_u64() > Some(step)).then_some(rollout)
        });
        served.child.kill().unwrap();
        served.child.wait().unwrap();
        served = Served::start(dir.path());
        served.ready();
        let after = json(&served, &["rollout", "self"]);
        assert_eq!(after["state"], "running", "{after}");
        // It may have moved on before the kill, and must not have moved back.
        assert!(after["step"].as_u64() >= before["step"].as_u64(), "before the kill {before}, after it {after}");
        let moves = |rollout: &serde_json::Value| rollout["moves"].as_array().unwrap().clone();
        assert!(moves(&after).starts_with(&moves(&before)), "before the kill {before}, after it {after}");
        let traffic = json(&served, &["traffic", "self"]);
        assert_eq!(traffic["split"][1]["weight"], after["percent"], "the traffic document is that of the step");
        assert_eq!(traffic["revision"], after["revision"]);
        before = after;
    }
    let done = eventually("the rollout finishes", || {
        (0..20).for_each(|_| drop(served.ask(&[])));
        let rollout = json(&served, &["rollout", "self"]);
        (rollout["state"] == "finished").then_some(rollout)
    });
    assert_eq!(done["percent"], 80.0);
    let audit = json(&served, &["audit", "--model", "self"]);
    let mut actions: Vec<&str> =
        audit["events"].as_array().unwrap().iter().map(|event| event["action"].as_str().unwrap()).collect();
    actions.reverse();
    let step = "rollout_step";
    assert_eq!(actions, ["first_document", "promote", "rollout_start", step, step, step, "rollout_finish"]);
}
