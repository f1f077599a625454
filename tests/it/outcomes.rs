//! Figures over windows, experiments, and what is known of them after a restart.

use crate::support::{Gateway, eventually, onnx};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Two versions whose outputs `y` are their inputs: two probabilities.
fn start(model_toml: &str) -> Gateway {
    let gateway = Gateway::start(|models| {
        onnx::install(models, "m", 1, &onnx::scaling(1.0));
        onnx::install(models, "m", 2, &onnx::scaling(1.0));
        std::fs::write(models.join("m/model.toml"), model_toml).unwrap();
    });
    assert_eq!(gateway.promote("m", 1).status, 200);
    let document = json!({
        "split": [{"version": "1", "weight": 1, "arm": "control"}, {"version": "2", "weight": 1, "arm": "treatment"}],
        "sticky_by": {"header": "x-user"}, "salt": "s",
    });
    let put = gateway.admin_send("PUT", "/api/v1/models/m/traffic", &[], &document);
    assert_eq!(put.status, 200, "{put:?}");
    gateway
}

/// Sends a request of several rows, each with a probability of the label 1. Returns the arm that answered.
fn send(gateway: &Gateway, id: &str, user: &str, p: &[f32]) {
    let data: Vec<f32> = p.iter().flat_map(|p| [1.0 - p, *p]).collect();
    let body = json!({"id": id, "inputs": [{"name": "x", "shape": [p.len(), 2], "datatype": "FP32", "data": data}]});
    let answer = gateway.post_with("/v2/models/m/infer", &[("x-user", user)], body.to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn feedback(gateway: &Gateway, entries: &[Value]) {
    for entries in entries.chunks(1000) {
        let answer = gateway.post("/v1/models/m:feedback", json!({"feedback": entries}).to_string());
        assert_eq!(answer.status, 202, "{answer:?}");
    }
}

fn quality(gateway: &Gateway, query: &str) -> Value {
    let answer = gateway.admin_get(&format!("/api/v1/models/m/quality?{query}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// Waits until all rows are in the history.
fn rows(gateway: &Gateway, expected: u64) -> Value {
    eventually("all rows are in the history", || {
        let found = quality(gateway, "window=1d");
        let rows: u64 = found["groups"].as_array().unwrap().iter().map(|g| g["rows"].as_u64().unwrap()).sum();
        assert!(rows <= expected, "{rows} of {expected}");
        (rows == expected && found["history"] == "complete").then_some(found)
    })
}

/// Requests of users, and feedback about them that is late, doubled, corrected, partial, early and retracted. Returns the rows.
fn traffic(gateway: &Gateway, requests: u64) -> u64 {
    let rng = &mut fastrand::Rng::with_seed(1);
    let (mut rows, mut all) = (0, Vec::new());
    let ts = |rng: &mut fastrand::Rng| format!("2026-11-01T00:00:{:02}Z", rng.u8(0..60));
    for request in 0..requests {
        let user = format!("u{}", rng.u64(0..=requests / 8));
        let p: Vec<f32> = (0..rng.usize(1..4)).map(|_| rng.f32()).collect();
        let id = format!("r{request}");
        let mut entries = Vec::new();
        for (row, p) in p.iter().enumerate() {
            let label = i32::from(rng.f32() < *p);
            let entry = |ts: String| json!({"request_id": id, "row": row, "ts": ts});
            for _ in 0..rng.u8(0..4) {
                let mut entry = entry(ts(rng));
                match rng.u8(0..8) {
                    0 => entry["label"] = Value::Null,
                    1 => entry["label"] = json!(1 - label),
                    2 => entry["label"] = json!(label.to_string()),
                    3..6 => entry["label"] = json!(label),
                    _ => {}
                }
                match rng.u8(0..4) {
                    0 => entry["values"] = json!({"revenue": rng.u8(0..50)}),
                    1 => entry["values"] = json!({"revenue": rng.f64() * 9.0, "clicked": u8::from(rng.bool())}),
                    2 => entry["values"] = json!({"clicked": null}),
                    _ => entry["label"] = json!(label),
                }
                entries.push(entry.clone());
                if rng.u8(0..4) == 0 {
                    entries.push(entry);
                }
            }
        }
        rows += p.len() as u64;
        if request % 7 == 0 {
            // Before its prediction.
            feedback(gateway, &entries);
            entries.clear();
        }
        send(gateway, &id, &user, &p);
        all.extend(entries);
    }
    rng.shuffle(&mut all);
    feedback(gateway, &all);
    rows
}

#[test]
fn live_figures_are_those_of_the_files() {
    let requests = if std::env::var_os("SLUICEGATE_LONG_SIMULATIONS").is_some() { 12_500 } else { 700 };
    let gateway = start("");
    let expected = traffic(&gateway, requests);
    let live = rows(&gateway, expected);
    let by = quality(&gateway, "window=1d&by=inputs.x[1]");
    let segments: Vec<&str> = by["groups"].as_array().unwrap().iter().filter_map(|g| g["segment"].as_str()).collect();
    assert_eq!(segments.len(), 8, "four quarters on each arm: {segments:?}");
    assert!(by["smallest_segment"]["rows"].as_u64().unwrap() > 0, "{by}");
    let experiment = gateway.admin_get("/api/v1/models/m/experiment").json();
    let dir = gateway.stop();
    let file = dir.path().join("answer.json");
    std::fs::write(&file, live.to_string()).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| root.join(".venv/bin/python").display().to_string());
    let output = Command::new(&python)
        .arg(root.join("tests/python/outcomes.py"))
        .arg(dir.path().join("data"))
        .args(["m".as_ref(), file.as_os_str()])
        .output()
        .unwrap_or_else(|e| panic!("{python} should run (make venv makes it): {e}"));
    let printed = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && printed.contains("ok: "), "{printed}");
    println!("{printed}");
    assert_eq!(experiment["unit"], "key");
}

#[test]
fn wrong_questions_are_answered_in_words() {
    let gateway = start("[metrics.accuracy]\nkind = \"accuracy\"\n");
    for (query, words) in [
        ("window=7", "window: expected a duration with a unit"),
        ("window=1000d", "at most the 840 h of prediction_log.quality_history"),
        ("window=7d&step=1s", "at most 400 periods"),
        ("windows=7d", "windows: unknown parameter"),
        ("window=1d&window=2d", "given more than once"),
    ] {
        let answer = gateway.admin_get(&format!("/api/v1/models/m/quality?{query}"));
        assert!(answer.status == 400 && String::from_utf8_lossy(&answer.body).contains(words), "{query}: {answer:?}");
    }
    assert_eq!(gateway.admin_get("/api/v1/models/nobody/experiment").status, 404);
    assert_eq!(gateway.admin_get("/api/v1/models/m/experiment?x=1").status, 400);
    let experiment = gateway.admin_get("/api/v1/models/m/experiment");
    assert_eq!(experiment.json()["metrics"][0]["comparisons"][0]["verdict"], "too_few", "{experiment:?}");
    assert_eq!(gateway.promote("m", 2).status, 200);
    assert_eq!(gateway.admin_get("/api/v1/models/m/experiment").status, 409, "one arm is no experiment");
    send(&gateway, "r", "u", &[0.5]);
    rows(&gateway, 1);
    let answer = gateway.admin_get("/api/v1/models/m/quality?by=inputs.sex");
    assert!(
        answer.status == 400 && String::from_utf8_lossy(&answer.body).contains("inputs.x[0], inputs.x[1]"),
        "{answer:?}"
    );
}
