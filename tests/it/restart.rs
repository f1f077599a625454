//! What serves survives a restart, also one nobody announced.

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
    assert_eq!(gateway.state("self", 3).as_deref(), Some("unloaded"), "what an operator unloaded stays unloaded");
    let answer = gateway.post("/v2/models/self/infer", infer_body(&[1, 4], &[0.0; 4]));
    assert_eq!(answer.json()["model_version"], "2", "not the highest, but the promoted one");
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
        // The command has answered, so the change is durable: nothing may undo it, not even this.
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
fn kill_9_in_the_middle_of_a_rollout_leaves_it_where_it_was() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("models")).unwrap();
    for v in 1..=2 {
        onnx::install(&dir.path().join("models"), "self", v, &onnx::answering(v as f32, 4, 0));
    }
    let shown = |served: &Served, arguments: &[&str]| -> serde_json::Value {
        let output = served.cli(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let mut served = Served::start(dir.path());
    served.ready();
    assert!(served.cli(&["promote", "self", "1", "--reason", "a test"]).status.success());
    let plan = ["rollout", "self", "--to", "2", "--steps", "20,40,60,80", "--hold", "0s", "--min-requests", "15"];
    assert!(served.cli(&[&plan[..], &["--reason", "a test"]].concat()).status.success());
    let mut before = shown(&served, &["rollout", "self"]);
    for _ in 0..2 {
        // Killed as soon as it has moved once more: what was shown was durable.
        let step = before["step"].as_u64().unwrap();
        before = eventually("the next step", || {
            (0..20).for_each(|_| drop(served.ask(&[])));
            let rollout = shown(&served, &["rollout", "self"]);
            (rollout["step"].as_u64() > Some(step)).then_some(rollout)
        });
        served.child.kill().unwrap();
        served.child.wait().unwrap();
        served = Served::start(dir.path());
        served.ready();
        let after = shown(&served, &["rollout", "self"]);
        assert_eq!(after["state"], "running", "{after}");
        // It may have moved between what was shown and the kill, and never back.
        assert!(after["step"].as_u64() >= before["step"].as_u64(), "{before} and then {after}");
        let moves = |rollout: &serde_json::Value| rollout["moves"].as_array().unwrap().clone();
        assert!(moves(&after).starts_with(&moves(&before)), "{before} and then {after}");
        let traffic = shown(&served, &["traffic", "self"]);
        assert_eq!(traffic["split"][1]["weight"], after["percent"], "the document is the step's");
        assert_eq!(traffic["revision"], after["revision"]);
        before = after;
    }
    let done = eventually("it finishes", || {
        (0..20).for_each(|_| drop(served.ask(&[])));
        let rollout = shown(&served, &["rollout", "self"]);
        (rollout["state"] == "finished").then_some(rollout)
    });
    assert_eq!(done["percent"], 80.0);
    let audit = shown(&served, &["audit", "--model", "self"]);
    let mut actions: Vec<&str> =
        audit["events"].as_array().unwrap().iter().map(|event| event["action"].as_str().unwrap()).collect();
    actions.reverse();
    let step = "rollout_step";
    assert_eq!(actions, ["first_document", "promote", "rollout_start", step, step, step, "rollout_finish"]);
}
