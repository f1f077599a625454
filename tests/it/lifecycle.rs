//! Versions that do not end, models that cannot be served, and models that are retired, on the real gateway.

use crate::support::process::Served;
use crate::support::{Gateway, eventually, infer_body, onnx};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

fn infer(gateway: &Gateway, model: &str) -> u16 {
    gateway.post(&format!("/v2/models/{model}/infer"), infer_body(&[1, 4], &[0.0; 4])).status
}

fn version(gateway: &Gateway, model: &str, v: u64) -> Value {
    gateway.admin_get(&format!("/api/v1/models/{model}/versions/{v}")).json()
}

#[test]
fn a_version_whose_runs_never_end_fails_in_its_time_limit_and_holds_nobody_else() {
    let limits = "[models]\nverify_timeout = \"2s\"\nload_timeout = \"20s\"\n";
    let gateway = Gateway::start_with(limits, |models| {
        onnx::install(models, "bad", 1, &onnx::never_ending());
        onnx::install(models, "good", 1, &onnx::answering(1.0, 4, 0));
    });
    gateway.wait_ready();
    onnx::install(&gateway.models(), "good", 2, &onnx::answering(2.0, 4, 0));
    gateway.wait_state("good", 2, "ready");
    let pushed = gateway.admin_put_bytes("/api/v1/models/good/versions/3", &onnx::answering(3.0, 4, 0));
    assert_eq!(pushed.status, 201, "{pushed:?}");
    gateway.wait_state("bad", 1, "failed");
    let bad = version(&gateway, "bad", 1);
    assert_eq!(
        (&bad["stage"], &bad["reason"]),
        (&json!("verify"), &json!("took longer than 2 s; models.verify_timeout sets the limit"))
    );
    let metrics = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    assert!(metrics.contains("sluicegate_loads_left_behind 0"), "its runs were interrupted: {metrics}");
    assert_eq!(infer(&gateway, "good"), 200);
    let begun = Instant::now();
    gateway.stop();
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_version_that_is_still_being_verified_holds_neither_a_push_nor_an_unload_nor_a_stop() {
    let gateway = Gateway::start(|models| install(models, "other"));
    onnx::install(&gateway.models(), "bad", 1, &onnx::never_ending());
    gateway.wait_state("bad", 1, "verifying");
    // After 5 s in one stage, another version is loaded beside it.
    onnx::install(&gateway.models(), "good", 1, &onnx::answering(1.0, 4, 0));
    gateway.wait_state("good", 1, "serving");
    let pushed = gateway.admin_put_bytes("/api/v1/models/good/versions/2", &onnx::answering(2.0, 4, 0));
    assert_eq!(pushed.status, 201, "{pushed:?}");
    let unloaded = gateway.admin_send("POST", "/api/v1/models/bad/versions/1:unload", &[], &json!({}));
    assert_eq!((unloaded.status, &unloaded.json()["state"]), (200, &json!("unloaded")));
    let begun = Instant::now();
    gateway.stop();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn what_cannot_be_served_at_a_start_is_listed_and_the_rest_is_ready() {
    let gateway = Gateway::start(|models| {
        for model in ["fraud", "old", "pruned"] {
            onnx::install(models, model, 1, &onnx::answering(1.0, 4, 0));
        }
        onnx::install(models, "pruned", 2, &onnx::answering(2.0, 4, 0));
    });
    gateway.wait_ready();
    assert_eq!(gateway.promote("pruned", 1).status, 200);
    let dir = gateway.stop();
    std::fs::remove_dir_all(dir.path().join("models/old")).unwrap();
    std::fs::remove_dir_all(dir.path().join("models/pruned/1")).unwrap();

    let gateway = Gateway::start_in(dir, "");
    gateway.wait_ready();
    let unserved = gateway.admin_get("/readyz").json()["unserved"].clone();
    let listed: Vec<&str> = unserved.as_array().unwrap().iter().map(|u| u["model"].as_str().unwrap()).collect();
    assert_eq!(listed, ["old", "pruned"], "{unserved}");
    assert!(unserved[1]["advice"].as_str().unwrap().contains("sluicegate promote pruned 2"), "{unserved}");
    assert_eq!((infer(&gateway, "fraud"), infer(&gateway, "old"), infer(&gateway, "pruned")), (200, 503, 503));
    assert_eq!(gateway.promote("pruned", 2).status, 200);
    let retired = gateway.admin_send("DELETE", "/api/v1/models/old", &[], &json!({"reason": "replaced by fraud"}));
    assert_eq!(retired.status, 200, "{retired:?}");
    let dir = gateway.stop();

    let gateway = Gateway::start_in(dir, "");
    gateway.wait_ready();
    assert_eq!(gateway.admin_get("/readyz").json(), json!({"ready": true, "unserved": []}));
    assert_eq!((infer(&gateway, "old"), infer(&gateway, "pruned")), (404, 200));
    let answer = gateway.post("/v2/models/old/infer", infer_body(&[1, 4], &[0.0; 4]));
    assert!(answer.json()["error"].as_str().unwrap().ends_with(": replaced by fraud"), "{answer:?}");
}

fn cli(served: &Served, line: &[&str]) -> String {
    let output = served.cli(line);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line:?}: {text}");
    text
}

#[test]
fn a_model_is_retired_and_brought_back_from_the_command_line() {
    let dir = tempfile::TempDir::new().unwrap();
    let models = dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    install(&models, "self");
    install(&models, "other");
    let mut served = Served::start(dir.path());
    served.ready();
    let text = cli(&served, &["retire", "self", "--reason", "replaced by other"]);
    assert!(text.starts_with("self is retired (") && text.contains("replaced by other"), "{text}");
    served.kill();
    let served = Served::start(dir.path());
    served.ready();
    let history = cli(&served, &["history", "self"]);
    assert!(history.contains("retire ") && history.contains("replaced by other"), "{history}");
    served.wait_state("self", 1, "unloaded");
    let text = cli(&served, &["promote", "self", "1", "--reason", "needed again"]);
    assert!(text.contains("to version 1, revision 3"), "{text}");
    assert_eq!(eventually("it serves", || Some(served.version_serving())), "1");
}

fn install(models: &Path, model: &str) {
    onnx::install(models, model, 1, &onnx::answering(1.0, 4, 0));
}
