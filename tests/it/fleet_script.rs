//! `make fleet`: the script brings up a fleet from nothing, and leaves nothing behind.

use crate::fleet::Nats;
use crate::support::eventually;
use crate::support::process::{binary, onnxruntime};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The script while it runs.
struct Script(Child);

impl Drop for Script {
    fn drop(&mut self) {
        // A test that failed leaves nothing behind either.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

fn get(url: &str) -> Value {
    serde_json::from_str(&ureq::get(url).call().unwrap().body_mut().read_to_string().unwrap()).unwrap()
}

#[test]
fn a_fleet_is_started_from_nothing_follows_a_promotion_and_is_cleaned_up() {
    let Some(nats) = Nats::program() else { return };
    let script = Command::new("bash")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/fleet.sh"))
        .env("SLUICEGATE", binary())
        .env("NATS_SERVER", nats)
        .env("ORT_DYLIB_PATH", onnxruntime())
        .stdout(Stdio::piped())
        .spawn();
    let mut script = Script(script.unwrap());
    let mut lines = BufReader::new(script.0.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    while said.last().is_none_or(|line: &String| !line.starts_with("Ctrl-C")) {
        let line = lines.next().unwrap_or_else(|| panic!("the script ended: {said:?}"));
        said.push(line.unwrap());
    }
    let words = |start: &str| -> Vec<Vec<String>> {
        let lines = said.iter().filter(|line| line.starts_with(start));
        lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    let after = |line: &[String], word: &str| {
        let at = line.iter().position(|found| found == word).unwrap_or_else(|| panic!("{word}: {line:?}"));
        line[at + 1].clone()
    };
    let (gateways, servers) = (words("gateway-"), words("nats-"));
    assert_eq!((gateways.len(), servers.len()), (3, 3), "{said:?}");
    let admins: Vec<String> = gateways.iter().map(|line| after(line, "admin")).collect();

    let promote = json!({"version": "1", "reason": "a test"}).to_string();
    let url = format!("{}/api/v1/models/iris:promote", admins[0]);
    let promoted = ureq::post(&url).content_type("application/json").send(promote).unwrap();
    assert_eq!(promoted.status(), 200);
    for line in &gateways {
        let traffic = format!("{}/api/v1/models/iris/traffic", after(line, "admin"));
        eventually("the promotion is followed", || (get(&traffic)["split"][0]["version"] == "1").then_some(()));
        let body = r#"{"inputs":[{"name":"features","shape":[1,4],"datatype":"FP32","data":[6.7,3.0,5.2,2.3]}]}"#;
        let answer = ureq::post(format!("{}/v2/models/iris/infer", after(line, "data"))).send(body).unwrap();
        assert_eq!(answer.headers()["x-sluicegate-version"], "1");
    }
    let pid = |line: &Vec<String>| Pid::from_raw(after(line, "process").parse().unwrap()).unwrap();
    let processes: Vec<Pid> = gateways.iter().chain(&servers).map(pid).collect();
    let models = PathBuf::from(after(&gateways[0], "models"));
    assert!(models.join("iris").is_dir() && processes.iter().all(|pid| test_kill_process(*pid).is_ok()));

    // As Ctrl-C does; but a shell that was started in the background ignores that signal for good.
    kill_process(Pid::from_child(&script.0), Signal::TERM).unwrap();
    assert!(script.0.wait().unwrap().success(), "a signal is how it ends");
    let left: Vec<&Pid> = processes.iter().filter(|pid| test_kill_process(**pid).is_ok()).collect();
    assert!(left.is_empty(), "{left:?} still run");
    assert!(!models.exists(), "{} is still there", models.display());
}
