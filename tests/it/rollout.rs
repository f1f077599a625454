//! Rollouts: traffic that moves step by step, and back when a guardrail is violated.

use crate::support::{Answer, Gateway, eventually, infer_body, onnx};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

/// Version 1 accepts all rows; version 2 fails on rows that begin with more than 9. Both run on workers: version 2 always does, as values decide how
/// long its `Range` is, and a version 1 that runs at once would make it look slow.
fn gateway() -> Gateway {
    let gateway = Gateway::start(fill);
    assert_eq!(gateway.promote("m", 1).status, 200);
    gateway
}

fn fill(models: &std::path::Path) {
    onnx::install(models, "m", 1, &onnx::scaling(1.0));
    onnx::install(models, "m", 2, &onnx::out_of_memory_above(9));
    std::fs::write(models.join("m/model.toml"), "[execution]\nat_once = false\n").unwrap();
}

fn begin(gateway: &Gateway, plan: &Value) -> Answer {
    gateway.admin_send("POST", "/api/v1/models/m:rollout", &[], plan)
}

fn verb(gateway: &Gateway, verb: &str) -> Answer {
    gateway.admin_send("POST", &format!("/api/v1/models/m/rollout:{verb}"), &[], &json!({"reason": "a test"}))
}

fn rollout(gateway: &Gateway) -> Value {
    let answer = gateway.admin_get("/api/v1/models/m/rollout");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn until(gateway: &Gateway, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || {
        let rollout = rollout(gateway);
        assert!(rollout.get("trouble").is_none(), "{rollout}");
        holds(&rollout).then_some(rollout)
    })
}

fn split(gateway: &Gateway) -> Vec<(String, f64)> {
    let traffic = gateway.admin_get("/api/v1/models/m/traffic").json();
    let arms = traffic["split"].as_array().unwrap();
    arms.iter().map(|a| (a["version"].as_str().unwrap().to_owned(), a["weight"].as_f64().unwrap())).collect()
}

fn actions(gateway: &Gateway) -> Vec<String> {
    let events = gateway.admin_get("/api/v1/audit?model=m").json()["events"].clone();
    let mut actions: Vec<String> = events
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["action"].as_str().unwrap().to_owned())
        .filter(|action| action.starts_with("rollout"))
        .collect();
    actions.reverse();
    actions
}

/// Callers that send requests without a pause, each with a row that begins with `x`, until this is dropped.
struct Callers {
    done: Arc<AtomicBool>,
    /// Each request holds the read lock until it is answered.
    x: Arc<RwLock<f32>>,
    /// Requests that failed, and requests that version 2 answered.
    failed: Arc<AtomicU64>,
    of_candidate: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Callers {
    fn start(gateway: &Gateway) -> Callers {
        let (done, x, failed, of_candidate): (Arc<AtomicBool>, Arc<RwLock<f32>>, Arc<AtomicU64>, Arc<AtomicU64>) =
            Default::default();
        let url = format!("http://{}/v2/models/m/infer", gateway.data());
        let threads = (0..2)
            .map(|_| {
                let (done, x, url) = (Arc::clone(&done), Arc::clone(&x), url.clone());
                let (failed, of_candidate) = (Arc::clone(&failed), Arc::clone(&of_candidate));
                std::thread::spawn(move || {
                    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
                    while !done.load(Ordering::Relaxed) {
                        let x = x.read().unwrap();
                        let answer = agent.post(&url).send(infer_body(&[1, 2], &[*x, 1.0])).unwrap();
                        let version = answer.headers().get("x-sluicegate-version").and_then(|v| v.to_str().ok());
                        failed.fetch_add(u64::from(answer.status() != 200), Ordering::Relaxed);
                        of_candidate.fetch_add(u64::from(version == Some("2")), Ordering::Relaxed);
                        let _ = answer.into_body().read_to_vec();
                    }
                })
            })
            .collect();
        Callers { done, x, failed, of_candidate, threads }
    }

    /// Changes the rows. No request with the old row is in progress when this returns.
    fn send_rows_with(&self, x: f32) {
        *self.x.write().unwrap() = x;
    }

    fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[test]
fn a_working_version_gets_all_traffic_step_by_step() {
    let gateway = gateway();
    let callers = Callers::start(&gateway);
    let plan = json!({"to": "2", "steps": [20, 50, 100], "hold": "300ms", "min_requests": 20, "reason": "a test"});
    let begun = begin(&gateway, &plan);
    assert_eq!(begun.status, 200, "{begun:?}");
    let begun = begun.json();
    assert_eq!((&begun["state"], &begun["percent"], &begun["step"]), (&json!("running"), &json!(20.0), &json!(0)));
    assert_eq!(begun["from"], json!(["1"]));
    assert_eq!(split(&gateway), [("1".to_owned(), 80.0), ("2".to_owned(), 20.0)]);
    let again = begin(&gateway, &plan);
    assert_eq!((again.status, again.code().as_str()), (409, "CONFLICT"), "a model has one rollout at a time");

    let done = until(&gateway, "the rollout finishes", |rollout| rollout["state"] == "finished");
    assert_eq!(split(&gateway), [("2".to_owned(), 1.0)]);
    let moves: Vec<(&Value, &Value)> =
        done["moves"].as_array().unwrap().iter().map(|m| (&m["action"], &m["percent"])).collect();
    assert_eq!(
        moves,
        [
            (&json!("rollout_start"), &json!(20.0)),
            (&json!("rollout_step"), &json!(50.0)),
            (&json!("rollout_finish"), &json!(100.0)),
        ]
    );
    assert_eq!(actions(&gateway), ["rollout_start", "rollout_step", "rollout_finish"]);
    assert_eq!(callers.failed(), 0);
    assert_eq!(verb(&gateway, "pause").status, 409, "the rollout has ended");
    let metrics = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    assert!(metrics.contains("sluicegate_rollouts_ended_total{how=\"finished\"} 1"), "{metrics}");
}

#[test]
fn a_candidate_that_fails_from_step_two_on_is_moved_back() {
    let gateway = gateway();
    let before = gateway.admin_get("/api/v1/models/m/traffic").json()["split"].clone();
    let callers = Callers::start(&gateway);
    let plan = json!({"to": "2", "steps": [20, 30, 100], "hold": "500ms", "min_requests": 20, "reason": "a test"});
    assert_eq!(begin(&gateway, &plan).status, 200);
    until(&gateway, "step two", |rollout| rollout["step"] == 1);
    let at_step_two = callers.of_candidate.load(Ordering::Relaxed);
    // From now on callers send rows on which the candidate fails.
    callers.send_rows_with(12.0);
    let done = until(&gateway, "the traffic is moved back", |rollout| rollout["state"] == "taken_back");
    assert!(done["why"].as_str().unwrap().starts_with("error_rate_ratio violated: "), "{done}");
    let errors = &done["guardrails"][0];
    assert_eq!(
        (&errors["name"], &errors["broken"]),
        (&json!("error_rate_ratio"), &json!(true)),
        "the evidence is kept"
    );
    assert!(errors["interval"][0].as_f64().unwrap() >= 1.0, "{errors}");
    assert_eq!(gateway.admin_get("/api/v1/models/m/traffic").json()["split"], before);
    assert_eq!(actions(&gateway), ["rollout_start", "rollout_step", "rollout_take_back"]);
    let failed = callers.failed();
    let after = callers.of_candidate.load(Ordering::Relaxed) - at_step_two;
    assert!(failed > 0 && failed <= after, "{failed} of {after}");
    // docs/TRAFFIC.md: a candidate that fails every request is detected within 30, plus those until the next check a tenth of a second
    // later. Two callers that wait for each response cannot send more than a few hundred in that time. Requests after the decision may
    // fail while the ledger writes to the disk, so they are not counted.
    let seen = errors["candidate"]["bad"].as_u64().unwrap();
    assert!((1..2000).contains(&seen), "decided after {seen} failures");
    // A rollback has nothing to undo, and a document from before must be named. The only one sends all to the candidate, so it is no advice.
    let rollback = |body: &Value| gateway.admin_send("POST", "/api/v1/models/m:rollback", &[], body);
    for dry_run in [true, false] {
        let refused = rollback(&json!({"reason": "a test", "dry_run": dry_run}));
        let words = refused.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(
            refused.status == 409
                && words.starts_with("already undone: ")
                && words.contains("`sluicegate history m` lists them"),
            "{words}"
        );
    }
    let dry = rollback(&json!({"reason": "a test", "to_revision": 1, "dry_run": true})).json();
    assert_eq!((&dry["to"], &dry["difference"][0]), (&json!("2"), &json!("split: 1=1 → 2=1")), "{dry}");
    assert_eq!(gateway.admin_get("/api/v1/models/m/traffic").json()["split"], before, "a dry run changes nothing");
    let back = rollback(&json!({"reason": "a test", "to_revision": 1})).json();
    assert_eq!((&back["to"], &back["restored"]), (&json!("2"), &json!(1)), "the first document: {back}");
    assert_eq!(gateway.promote("m", 1).status, 200);
    // From now on no request fails.
    let until_now = callers.failed();
    let answered = gateway.post("/v2/models/m/infer", infer_body(&[1, 2], &[12.0, 1.0]));
    assert_eq!((answered.status, answered.header("x-sluicegate-version")), (200, Some("1")));
    drop(callers);
    assert!(until_now >= failed);
}

#[test]
fn a_rollout_of_sticky_users_counts_users() {
    let gateway = gateway();
    let document = json!({"split": [{"version": "1", "weight": 1}], "sticky_by": {"header": "x-user"}});
    assert_eq!(gateway.admin_send("PUT", "/api/v1/models/m/traffic", &[], &document).status, 200);
    let plan = json!({"to": "2", "steps": [50, 100], "hold": "1h", "reason": "a test"});
    assert_eq!(begin(&gateway, &plan).status, 200);
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let url = format!("http://{}/v2/models/m/infer", gateway.data());
    let send = |user: usize, x: f32| {
        let answer =
            agent.post(&url).header("x-user", format!("u{user}")).send(infer_body(&[1, 2], &[x, 1.0])).unwrap();
        let of_candidate = answer.headers().get("x-sluicegate-version").is_some_and(|version| version == "2");
        let _ = answer.into_body().read_to_vec();
        of_candidate
    };
    // One user whose every request the candidate fails, and no other.
    let heavy = (0..100).find(|user| send(*user, 1.0)).unwrap();
    for _ in 0..300 {
        send(heavy, 12.0);
    }
    let counted = until(&gateway, "the requests are counted", |rollout| rollout["candidate"]["failed"] == 300);
    assert_eq!(counted["state"], "running", "one user is not enough: {counted}");
    assert_eq!(counted["guardrails"][0]["unit"], "key");
    let keys = counted["candidate"]["keys"].as_u64().unwrap() + counted["control"]["keys"].as_u64().unwrap();
    assert_eq!(keys, heavy as u64 + 1, "every user once: {counted}");
    for user in 100..160 {
        send(user, 12.0);
    }
    let done = until(&gateway, "the traffic is moved back", |rollout| rollout["state"] == "taken_back");
    assert!(done["why"].as_str().unwrap().contains("candidate keys had a failed request"), "{done}");
}

#[test]
fn a_step_waits_for_the_evidence_that_it_requires() {
    let gateway = gateway();
    let require = json!({"max_error_rate": 0.1});
    let plan =
        json!({"to": "2", "steps": [50, 100], "hold": "0s", "min_requests": 5, "require": require, "reason": "a test"});
    let begun = begin(&gateway, &plan).json();
    assert_eq!(begun["require"], require, "{begun}");
    let send = || assert_eq!(gateway.post("/v2/models/m/infer", infer_body(&[1, 2], &[1.0, 1.0])).status, 200);
    // Both arms need enough requests before anything is judged, and chance divides them. Each is seen before the next one is sent, because many
    // requests would be the evidence that is missing.
    let seen = |rollout: &Value, arm: &str| rollout[arm]["requests"].as_u64().unwrap_or_default();
    for sent in 1.. {
        send();
        let counted = until(&gateway, "the request is counted", |r| seen(r, "candidate") + seen(r, "control") >= sent);
        if seen(&counted, "candidate").min(seen(&counted, "control")) >= 5 {
            break;
        }
    }
    let waits = until(&gateway, "the step waits", |rollout| {
        rollout["why"]
            .as_str()
            .is_some_and(|why| why.starts_with("waiting for evidence: the candidate's error rate is "))
    });
    assert_eq!(waits["state"], "running", "few requests do not show a rate below 10 %: {waits}");
    eventually("the rollout finishes", || {
        send();
        (rollout(&gateway)["state"] == "finished").then_some(())
    });
}

#[test]
fn a_version_compared_with_itself_shows_no_difference() {
    let gateway = gateway();
    let callers = Callers::start(&gateway);
    let plan = json!({"to": "1", "steps": [30, 50], "hold": "1s", "min_requests": 200, "reason": "A/A"});
    let begun = begin(&gateway, &plan).json();
    assert_eq!((&begun["arm"], &begun["from"]), (&json!("candidate"), &json!(["1"])));
    let done = until(&gateway, "the rollout finishes", |rollout| !matches!(rollout["state"].as_str(), Some("running")));
    assert_eq!(done["state"], "finished", "{}", done["why"]);
    for guardrail in done["guardrails"].as_array().unwrap() {
        assert_eq!(guardrail["broken"], false, "{guardrail}");
    }
    // The last step is 50 %: the sample-ratio check must find the arms as configured.
    let traffic = eventually("enough requests for the check", || {
        let traffic = gateway.admin_get("/api/v1/models/m/traffic").json();
        (traffic["sample_ratio"]["requests"].as_u64() > Some(300)).then_some(traffic)
    });
    let ratio = &traffic["sample_ratio"];
    assert!(ratio["p_value"].as_f64().unwrap() > 1e-6, "a working split deviates this much once in a million: {ratio}");
    assert_eq!(callers.failed(), 0);
}

#[test]
fn a_rollout_is_paused_resumed_and_aborted() {
    let gateway = gateway();
    let before = split(&gateway);
    let plan = json!({"to": "2", "steps": [10, 20], "hold": "0s", "min_requests": 5, "reason": "a test"});
    assert_eq!(begin(&gateway, &plan).status, 200);
    let paused = verb(&gateway, "pause").json();
    assert_eq!(paused["state"], "paused");
    assert_eq!(verb(&gateway, "pause").status, 200, "pausing a paused rollout changes nothing");
    // Five requests of the candidate would be enough for the next step, but it is paused.
    eventually("ten requests of the candidate", || {
        gateway.post("/v2/models/m/infer", infer_body(&[1, 2], &[1.0, 1.0]));
        (rollout(&gateway)["candidate"]["requests"].as_u64() >= Some(10)).then_some(())
    });
    assert_eq!(rollout(&gateway)["percent"], 10.0);
    assert_eq!(verb(&gateway, "resume").json()["state"], "running");
    until(&gateway, "the next step", |rollout| rollout["percent"] == 20.0);
    let aborted = verb(&gateway, "abort").json();
    assert_eq!((&aborted["state"], &aborted["why"]), (&json!("aborted"), &json!("aborted: a test")));
    assert_eq!(split(&gateway), before);
    assert_eq!(
        actions(&gateway),
        ["rollout_start", "rollout_pause", "rollout_resume", "rollout_step", "rollout_abort"]
    );
    assert_eq!(begin(&gateway, &plan).status, 200, "another rollout may begin");
}

#[test]
fn a_plan_with_a_single_step_of_100_percent_finishes_at_once() {
    let gateway = gateway();
    let done = begin(&gateway, &json!({"to": "2", "steps": [100], "hold": "1h", "reason": "a test"})).json();
    assert_eq!((&done["state"], &done["percent"]), (&json!("finished"), &json!(100.0)));
    assert_eq!(split(&gateway), [("2".to_owned(), 1.0)]);
    assert_eq!(actions(&gateway), ["rollout_finish"]);
}

#[test]
fn a_manual_change_stops_the_rollout_and_is_named() {
    let gateway = gateway();
    let plan = json!({"to": "2", "steps": [10, 100], "hold": "1h", "reason": "a test"});
    assert_eq!(begin(&gateway, &plan).status, 200);
    let body = json!({"split": [{"version": "1", "weight": 1}, {"version": "2", "weight": 1}]});
    let put = gateway.admin_send("PUT", "/api/v1/models/m/traffic", &[("x-sluicegate-actor", "ann")], &body);
    assert_eq!(put.status, 200, "{put:?}");
    // At once, not at the next check.
    let stopped = rollout(&gateway);
    assert_eq!(stopped["state"], "stopped");
    let why = stopped["why"].as_str().unwrap();
    assert!(why.contains("ann") && why.contains("put_traffic"), "{why}");
    assert_eq!(split(&gateway), [("1".to_owned(), 1.0), ("2".to_owned(), 1.0)], "the manual change stays");
    assert_eq!(actions(&gateway), ["rollout_start", "rollout_stop"]);
}

#[test]
fn the_candidate_is_a_shadow_before_the_first_step_if_a_guardrail_needs_it() {
    let gateway = gateway();
    let callers = Callers::start(&gateway);
    // Rows on which the candidate fails, so that every pair disagrees.
    callers.send_rows_with(12.0);
    let plan = |limit: f64| {
        json!({"to": "2", "steps": [10, 100], "hold": "0s", "min_requests": 1, "min_shadow_pairs": 50, "reason": "a test",
               "guardrails": {"shadow_disagreement": limit}})
    };
    let begun = begin(&gateway, &plan(0.1)).json();
    assert_eq!((&begun["state"], &begun["percent"]), (&json!("shadowing"), &json!(0.0)));
    let done = until(&gateway, "the traffic is moved back", |rollout| rollout["state"] != "shadowing");
    assert_eq!(done["state"], "taken_back");
    assert!(done["why"].as_str().unwrap().starts_with("shadow_disagreement violated: "), "{done}");
    assert_eq!(callers.failed(), 0, "a shadow answers no requests");
    assert_eq!(split(&gateway), [("1".to_owned(), 1.0)]);
    assert!(gateway.admin_get("/api/v1/models/m/traffic").json().get("shadows").is_none());

    callers.send_rows_with(1.0);
    assert_eq!(begin(&gateway, &plan(0.1)).status, 200);
    let done = until(&gateway, "the rollout ends", |rollout| {
        !matches!(rollout["state"].as_str(), Some("shadowing" | "running"))
    });
    assert_eq!(done["state"], "finished", "{}", done["why"]);
    assert_eq!(split(&gateway), [("2".to_owned(), 1.0)]);
    assert_eq!(callers.failed(), 0);
}

#[test]
fn a_rollout_continues_after_a_restart() {
    let gateway = gateway();
    let callers = Callers::start(&gateway);
    let plan = json!({"to": "2", "steps": [10, 40, 100], "hold": "200ms", "min_requests": 10, "reason": "a test"});
    assert_eq!(begin(&gateway, &plan).status, 200);
    until(&gateway, "step two", |rollout| rollout["step"] == 1);
    assert_eq!(verb(&gateway, "pause").status, 200);
    let before = rollout(&gateway);
    drop(callers);

    let gateway = Gateway::start_in(gateway.stop(), "");
    gateway.wait_ready();
    let after = rollout(&gateway);
    for key in ["state", "percent", "step", "revision", "why", "moves", "started_at", "by"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    assert_eq!(after["candidate"]["requests"], 0, "the evidence of the step begins again");
    let callers = Callers::start(&gateway);
    assert_eq!(verb(&gateway, "resume").status, 200);
    until(&gateway, "the rollout finishes", |rollout| rollout["state"] == "finished");
    assert_eq!(callers.failed(), 0);
}

#[test]
fn a_rollout_that_cannot_begin_is_refused_with_the_reason() {
    let gateway = gateway();
    let bad = begin(&gateway, &json!({"to": 2, "steps": [5, 1], "guardrail": {}}));
    assert_eq!((bad.status, bad.code().as_str()), (400, "INVALID_REQUEST"));
    let details = bad.json()["details"].to_string();
    for key in ["to:", "steps:", "guardrail: unknown", "reason:"] {
        assert!(details.contains(key), "{key} in {details}");
    }
    assert_eq!(begin(&gateway, &json!({"to": "9", "reason": "r"})).status, 404);
    assert_eq!(
        gateway.admin_send("POST", "/api/v1/models/nope:rollout", &[], &json!({"to": "1", "reason": "r"})).status,
        404
    );
    let none = gateway.admin_get("/api/v1/models/m/rollout");
    assert_eq!((none.status, none.code().as_str()), (404, "NOT_FOUND"));
    assert_eq!(verb(&gateway, "abort").status, 404);
    let unload = gateway.admin_send("POST", "/api/v1/models/m/versions/2:unload", &[], &json!({}));
    assert_eq!(unload.status, 200, "{unload:?}");
    let unready = begin(&gateway, &json!({"to": "2", "reason": "r"}));
    assert_eq!((unready.status, unready.code().as_str()), (409, "CONFLICT"), "{unready:?}");
    assert_eq!(gateway.admin_get("/api/v1/models/m/rollout").status, 404, "no rollout was begun");
}
