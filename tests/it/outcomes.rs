//! Figures over windows, experiments, and what is known of them after a restart.

use crate::support::{Gateway, copy, eventually, onnx};
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
fn live_figures_are_those_of_the_files_and_survive_a_restart() {
    let requests = if std::env::var_os("SLUICEGATE_LONG_SIMULATIONS").is_some() { 25_000 } else { 700 };
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
    let compared = dir.path().join("experiment.json");
    std::fs::write(&compared, experiment.to_string()).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| root.join(".venv/bin/python").display().to_string());
    let output = Command::new(&python)
        .arg(root.join("tests/python/outcomes.py"))
        .arg(dir.path().join("data"))
        .args(["m".as_ref(), file.as_os_str(), compared.as_os_str()])
        .output()
        .unwrap_or_else(|e| panic!("{python} should run (make venv makes it): {e}"));
    let printed = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && printed.contains("ok: "), "{printed}");
    println!("{printed}");
    // A restart reads the files, and after a crash what is not sealed yet.
    let restarted = Gateway::start_in(dir, "");
    restarted.wait_ready();
    let again = rows(&restarted, expected);
    assert_eq!(without_times(&again), without_times(&live));
    let experiment_again = restarted.admin_get("/api/v1/models/m/experiment").json();
    assert_eq!(without_times(&experiment_again), without_times(&experiment));
    let traffic = restarted.admin_get("/api/v1/models/m/traffic").json();
    assert_eq!((&experiment["unit"], &experiment["began_at_revision"]), (&json!("key"), &traffic["revision"]));
}

/// An answer without the times that depend on when it was asked for.
fn without_times(answer: &Value) -> Value {
    let mut answer = answer.clone();
    for member in ["from", "to", "until"] {
        answer.as_object_mut().unwrap().remove(member);
    }
    for group in answer["groups"].as_array_mut().into_iter().flatten() {
        for member in ["from", "to"] {
            group.as_object_mut().unwrap().remove(member);
        }
    }
    answer
}

#[test]
fn figures_survive_a_crash_before_anything_is_sealed() {
    let gateway = start("");
    let expected = traffic(&gateway, 60);
    let live = rows(&gateway, expected);
    // What a server finds that was started on the disk of one that was killed.
    let dir = tempfile::TempDir::new().unwrap();
    copy(gateway.dir.path(), dir.path());
    std::fs::remove_file(dir.path().join("data/lock")).ok();
    assert!(std::fs::read_dir(dir.path().join("data/predictions")).is_err(), "nothing is sealed yet");
    let restarted = Gateway::start_in(dir, "");
    restarted.wait_ready();
    assert_eq!(without_times(&rows(&restarted, expected)), without_times(&live));
}

/// Users send one request each and click with a probability that depends on the arm.
fn users(gateway: &Gateway, from: u32, n: u32, clicks: impl Fn(&str) -> f64) {
    let rng = &mut fastrand::Rng::with_seed(u64::from(from));
    let mut entries = Vec::new();
    for user in from..from + n {
        let (id, user) = (format!("user {user}"), format!("u{user}"));
        send(gateway, &id, &user, &[0.5]);
        let arm = gateway.admin_get(&format!("/api/v1/models/m/assignment?key={user}")).json()["arm"].clone();
        let clicked = rng.f64() < clicks(arm.as_str().unwrap());
        entries.push(json!({"request_id": id, "values": {"clicked": u8::from(clicked)}}));
    }
    feedback(gateway, &entries);
}

const CLICKED: &str =
    "[metrics.clicked]\nkind = \"proportion\"\nvalue = \"clicked\"\n[metrics.bias]\nkind = \"bias\"\n";

/// A gateway whose version 1 serves alone, by sticky key.
fn before_a_rollout() -> Gateway {
    let gateway = start(CLICKED);
    let document = json!({"split": [{"version": "1", "weight": 1}], "sticky_by": {"header": "x-user"}});
    assert_eq!(gateway.admin_send("PUT", "/api/v1/models/m/traffic", &[], &document).status, 200);
    gateway
}

fn plan(guardrails: &Value, goal: &Value) -> Value {
    // Only business metrics decide: machines differ in speed.
    let mut all = json!({"p99_latency_ratio": null, "engine_time_ratio": null, "constant_output_ratio": null});
    all.as_object_mut().unwrap().extend(guardrails.as_object().unwrap().clone());
    json!({"to": "2", "steps": [50, 80, 100], "hold": "1s", "min_requests": 20, "reason": "a test", "guardrails": all, "goal": goal})
}

fn begin(gateway: &Gateway, plan: &Value) {
    let answer = gateway.admin_send("POST", "/api/v1/models/m:rollout", &[], plan);
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn rollout(gateway: &Gateway, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || {
        let rollout = gateway.admin_get("/api/v1/models/m/rollout").json();
        is(&rollout).then_some(rollout)
    })
}

#[test]
fn a_rollout_is_taken_back_when_a_business_metric_is_worse_beyond_doubt() {
    let gateway = before_a_rollout();
    begin(&gateway, &plan(&json!({"metrics": {"clicked": {"not_worse_than": -0.05}}}), &Value::Null));
    users(&gateway, 0, 60, |_| 0.5);
    let waiting =
        rollout(&gateway, "the rollout waits for outcomes", |r| r["why"].as_str().unwrap().contains("outcomes"));
    assert_eq!((&waiting["percent"], &waiting["metrics"][0]["metric"]), (&json!(50.0), &json!("clicked")));
    users(&gateway, 1000, 300, |arm| if arm == "2" { 0.1 } else { 0.7 });
    let ended = rollout(&gateway, "the rollout is taken back", |r| r["state"] != "running");
    let why = ended["why"].as_str().unwrap();
    assert!(ended["state"] == "taken_back" && why.starts_with("clicked is worse beyond doubt"), "{ended}");
    assert!(ended["metrics"][0]["high"].as_f64().unwrap() < -0.05, "{ended}");
}

#[test]
fn a_rollout_goes_on_when_no_worse_and_ends_early_when_its_goal_is_better() {
    let gateway = before_a_rollout();
    let goal = json!({"metric": "clicked"});
    begin(&gateway, &plan(&json!({"metrics": {"clicked": {"not_worse_than": -0.4}}}), &goal));
    users(&gateway, 0, 300, |_| 0.5);
    rollout(&gateway, "the second step has begun", |r| r["percent"] == 80.0 && r["state"] == "running");
    users(&gateway, 1000, 400, |arm| if arm == "2" { 0.9 } else { 0.2 });
    let ended = rollout(&gateway, "the rollout has ended early", |r| r["state"] != "running");
    assert!(ended["state"] == "finished" && ended["percent"] == 100.0, "{ended}");
    assert!(
        ended["why"].as_str().unwrap().starts_with("the goal is reached: clicked is better beyond doubt"),
        "{ended}"
    );
}

#[test]
fn a_rollout_on_metrics_that_do_not_exist_is_refused_in_words() {
    let gateway = before_a_rollout();
    let metrics = json!({"metrics": {"revenue": {"not_worse_than": -1}, "bias": {"not_worse_than": -1}}});
    let answer = gateway.admin_send("POST", "/api/v1/models/m:rollout", &[], &plan(&metrics, &json!({"metric": "x"})));
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status, 400, "{text}");
    for words in [
        "guardrails.metrics.revenue: expected a metric of model.toml (bias, clicked)",
        "goal.metric",
        "guardrails.metrics.bias",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }
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
