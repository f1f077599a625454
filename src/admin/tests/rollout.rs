//! Rollouts: clients that disconnect, stored states, refusals.

use super::fixture::{Fixture, accept, bare, failed, name, version};
use crate::ledger::{self, Change, Effect};
use crate::lifecycle::RolloutCommit;
use crate::lifecycle::fake::{Asked, Told};
use crate::model::Code;
use crate::registry::{Entry, Retired, Snapshot, Stage, State, Writer};
use crate::route::Document;
use crate::telemetry::Ended;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

const ROLLOUT: &str = "/api/v1/models/fraud/rollout";
const BEGIN: &str = "/api/v1/models/fraud:rollout";

/// Holds the manager while it is closed.
#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    arrived: AtomicU64,
}

impl Gate {
    fn pass(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        let closed = self.closed.lock().unwrap();
        drop(self.opened.wait_while(closed, |closed| *closed).unwrap());
    }

    fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }
}

/// A model that serves version 1 at revision 7, and a manager that publishes what a rollout commits.
fn served(dir: tempfile::TempDir) -> (Fixture, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    // The fixture makes the writer after it has got the manager.
    let writer: Arc<OnceLock<Arc<Mutex<Writer>>>> = Arc::default();
    let (passed, publishing) = (Arc::clone(&gate), Arc::clone(&writer));
    let mut fixture = Fixture::start(dir, move |asked| {
        let Asked::RolloutCommit { steer, .. } = asked else { return accept(asked) };
        passed.pass();
        publish(&mut publishing.get().unwrap().lock().unwrap(), steer)
    });
    assert!(writer.set(Arc::clone(&fixture.writer)).is_ok());
    let versions = vec![fixture.loaded(1, State::Serving), fixture.loaded(2, State::Ready), bare(3, State::Failed)];
    fixture.publish(versions, Some(Document::single(version(1))));
    (fixture, gate)
}

fn publish(writer: &mut Writer, commit: &RolloutCommit) -> Told {
    let snapshot = writer.snapshot();
    let entry = snapshot.model("fraud").unwrap();
    let Some(document) = &commit.document else { return Told::Steered(entry.revision()) };
    assert_eq!(commit.at, Some(entry.revision()), "a rollout moves the traffic of its own revision only");
    let revision = entry.revision() + 1;
    let versions = entry.versions().clone();
    let next = Entry::new(name("fraud"), versions, Some(document.clone()), revision, false, false).unwrap();
    writer.publish(Snapshot::clone(&snapshot).with(next));
    Told::Steered(revision)
}

fn new() -> (Fixture, Arc<Gate>) {
    served(tempfile::tempdir().unwrap())
}

fn plan() -> String {
    json!({"to": "2", "steps": [50, 100], "hold": "1h", "reason": "a test"}).to_string()
}

fn show(fixture: &Fixture) -> Value {
    let answer = fixture.get(ROLLOUT);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn verb(fixture: &Fixture, verb: &str) -> super::fixture::Answer {
    fixture.post(&format!("{ROLLOUT}:{verb}"), r#"{"reason":"a test"}"#)
}

/// Sends a request and disconnects while the manager works on its commit.
fn send_and_disconnect(fixture: &Fixture, gate: &Gate, path: &str, body: &str) {
    gate.close();
    let before = gate.arrived.load(Ordering::SeqCst);
    fixture.send_and_disconnect("POST", path, body.to_owned(), || gate.arrived.load(Ordering::SeqCst) > before);
    gate.open();
}

fn revision_and_versions(fixture: &Fixture) -> (u64, Vec<String>) {
    let snapshot = fixture.reader.snapshot();
    let entry = snapshot.model("fraud").unwrap();
    (entry.revision(), entry.document().unwrap().split.iter().map(|arm| arm.version.to_string()).collect())
}

#[test]
fn a_rollout_whose_client_disconnects_can_be_paused_resumed_and_aborted() {
    let (fixture, gate) = new();
    send_and_disconnect(&fixture, &gate, BEGIN, &plan());
    let begun = show(&fixture);
    assert_eq!((&begun["state"], &begun["percent"], &begun["revision"]), (&json!("running"), &json!(50.0), &json!(8)));
    fixture.post(BEGIN, plan()).refused(409, "CONFLICT", "already active");
    assert_eq!(verb(&fixture, "pause").json()["state"], "paused");
    let pauses =
        |paused: &Value| paused["moves"].as_array().unwrap().iter().filter(|m| m["action"] == "rollout_pause").count();
    let again = verb(&fixture, "pause").json();
    assert_eq!((pauses(&again), &again["why"]), (1, &json!("paused: a test")), "the same request changes nothing");
    let again = fixture.post(&format!("{ROLLOUT}:pause"), r#"{"reason":"and the campaign"}"#).json();
    assert_eq!((pauses(&again), &again["why"]), (2, &json!("paused: and the campaign")), "another reason is kept");
    assert_eq!(verb(&fixture, "resume").json()["state"], "running");
    let ends = json!({"to": "2", "percent": 50.0, "by": "local", "revision": 8});
    for (change, body) in
        [("promote", r#"{"version":"2","reason":"r"}"#), ("rollback", r#"{"reason":"r","dry_run":true}"#)]
    {
        let answer = fixture.post(&format!("/api/v1/models/fraud:{change}"), body).json();
        assert_eq!(answer["ends_rollout"], ends, "a change says which rollout it ends: {answer}");
    }
    let aborted = verb(&fixture, "abort").json();
    assert_eq!((&aborted["state"], &aborted["why"]), (&json!("aborted"), &json!("aborted: a test")));
    assert_eq!(revision_and_versions(&fixture), (9, vec!["1".to_owned()]));
    verb(&fixture, "pause").refused(409, "CONFLICT", "the rollout of model fraud has ended (aborted): a test");
}

#[test]
fn a_rollout_whose_client_disconnects_is_watched_by_its_guardrails() {
    let (fixture, gate) = new();
    send_and_disconnect(&fixture, &gate, BEGIN, &plan());
    let until = Instant::now() + Duration::from_secs(20);
    let ended = loop {
        let snapshot = fixture.reader.snapshot();
        for arm in snapshot.model("fraud").unwrap().arms() {
            let failed = (arm.arm() == "2").then_some(Code::EngineFailed);
            (0..20).for_each(|_| arm.metrics.ended(&Ended::of(failed, Duration::from_millis(1), true)));
        }
        let rollout = show(&fixture);
        if rollout["state"] != "running" || Instant::now() > until {
            break rollout;
        }
    };
    assert_eq!(ended["state"], "taken_back", "{ended}");
    assert!(ended["why"].as_str().unwrap().starts_with("error_rate_ratio violated: "), "{ended}");
    assert_eq!(revision_and_versions(&fixture), (9, vec!["1".to_owned()]));
}

#[test]
fn a_change_whose_client_disconnects_is_carried_out() {
    let (fixture, gate) = new();
    assert_eq!(fixture.post(BEGIN, plan()).status, 200);
    let reason = r#"{"reason":"a test"}"#;
    for (verb, state) in [("pause", "paused"), ("resume", "running"), ("abort", "aborted")] {
        send_and_disconnect(&fixture, &gate, &format!("{ROLLOUT}:{verb}"), reason);
        assert_eq!(show(&fixture)["state"], state);
    }
    assert_eq!(revision_and_versions(&fixture), (9, vec!["1".to_owned()]));
    let moves: Vec<Value> = show(&fixture)["moves"].as_array().unwrap().iter().map(|m| m["action"].clone()).collect();
    assert_eq!(moves, ["rollout_start", "rollout_pause", "rollout_resume", "rollout_abort"]);
}

/// Writes states as the rollouts of these models into a new ledger.
fn stored(states: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _) = ledger::open(&dir.path().join("data")).unwrap();
    for (model, state) in states {
        writer
            .commit(Change {
                model: name(model),
                actor: "ann".to_owned(),
                action: ledger::Action::RolloutStep,
                reason: None,
                before: None,
                after: None,
                effect: Effect::SetRollout { state: (*state).to_owned(), document: None },
            })
            .unwrap();
    }
    dir
}

#[test]
fn a_stored_rollout_that_cannot_be_read_is_reported_for_its_model_only() {
    let ended = {
        let (fixture, _) = new();
        fixture.post(BEGIN, plan());
        verb(&fixture, "abort");
        let asked = fixture.asked();
        let [_, Asked::RolloutCommit { steer, .. }] = &asked[..] else { panic!("two commits: {asked:?}") };
        steer.state.clone()
    };
    let (mut fixture, _) = served(stored(&[("churn", &ended), ("fraud", r#"{"plan":null}"#)]));
    fixture.publish_as("churn", vec![bare(1, State::Ready)], None, false);
    let other = fixture.get("/api/v1/models/churn/rollout").json();
    assert_eq!((&other["state"], &other["why"]), (&json!("aborted"), &json!("aborted: a test")), "{other}");
    fixture.get(ROLLOUT).refused(500, "INTERNAL", "the stored rollout of model fraud cannot be read");
    verb(&fixture, "abort").refused(500, "INTERNAL", "a new rollout may be begun");
    assert_eq!(fixture.post(BEGIN, plan()).status, 200);
    assert_eq!(show(&fixture)["state"], "running");
}

#[test]
fn a_rollout_that_cannot_begin_is_refused_with_the_reason() {
    let (fixture, _) = new();
    fixture.get(ROLLOUT).refused(404, "NOT_FOUND", "model fraud has never had a rollout");
    verb(&fixture, "pause").refused(404, "NOT_FOUND", "never had a rollout");
    fixture.get("/api/v1/models/nobody/rollout").refused(404, "MODEL_NOT_FOUND", "nobody");
    let begin = |body: &str| fixture.post(BEGIN, body.to_owned());
    begin(r#"{"to":"9","reason":"r"}"#).refused(404, "VERSION_NOT_FOUND", "no version 9");
    fixture.post("/api/v1/models/nobody:rollout", plan()).refused(404, "MODEL_NOT_FOUND", "nobody");
    for body in ["", "null", "[]", "7", "{}", r#"{"to":null,"reason":null}"#, r#"{"to":"2","reason":"r","to":"2"}"#] {
        assert_eq!(begin(body).status, 400, "{body}");
    }
    let twice = begin(r#"{"to":"2","to":"1","reason":"r","guardrails":{"error_rate":1},"steps":[2,1]}"#);
    for words in ["to: duplicate member", "guardrails.error_rate: unknown member", "steps: expected ascending"] {
        twice.refused(400, "INVALID_REQUEST", words);
    }
    let long: Vec<f64> = (1..=101).map(|step| f64::from(step) / 2.0).collect();
    let long = begin(&json!({"to": "2", "reason": "r", "steps": long}).to_string());
    long.refused(400, "INVALID_REQUEST", "steps: expected at most 100 percentages, got 101");
    assert!(fixture.asked().is_empty(), "no command reached the manager");
}

#[test]
fn null_counts_as_absent_in_a_plan() {
    let (fixture, _) = new();
    let body = r#"{"to":"2","reason":"r","steps":null,"hold":null,"min_requests":null,"min_shadow_pairs":null,
                   "shadow_sample":null,"guardrails":null,"allow_signature_change":null,"break_glass":null}"#;
    let begun = fixture.post(BEGIN, body);
    assert_eq!(begun.status, 200, "{begun:?}");
    let begun = begun.json();
    assert_eq!((&begun["hold"], &begun["min_requests"]), (&json!("10m"), &json!(100)));
}

#[test]
fn a_rollout_is_shown_with_its_evidence_and_stops_when_somebody_else_changes_the_traffic() {
    let (fixture, _) = new();
    let begun = fixture.send("POST", BEGIN, &[("x-sluicegate-actor", "ann")], plan()).json();
    assert_eq!((&begun["model"], &begun["to"], &begun["from"]), (&json!("fraud"), &json!("2"), &json!(["1"])));
    assert_eq!((&begun["by"], &begun["reason"], &begun["held"]), (&json!("ann"), &json!("a test"), &json!("0s")));
    assert_eq!((&begun["step"], &begun["steps"]), (&json!(0), &json!([50.0, 100.0])));
    let names: Vec<&Value> = begun["guardrails"].as_array().unwrap().iter().map(|g| &g["name"]).collect();
    assert_eq!(
        names,
        ["error_rate_ratio", "nonfinite_ratio", "p99_latency_ratio", "engine_time_ratio", "constant_output_ratio"]
    );
    let first = &begun["guardrails"][0];
    assert_eq!((&first["interval"], &first["broken"]), (&json!([0.0, null]), &json!(false)));
    let empty = json!({"requests": 0, "failed": 0, "nonfinite": 0, "p99_us": null, "keys": null});
    assert_eq!((&begun["candidate"], &begun["control"]), (&empty, &empty));

    let mut writer = fixture.writer.lock().unwrap();
    let snapshot = writer.snapshot();
    let versions = snapshot.model("fraud").unwrap().versions().clone();
    let changed = Entry::new(name("fraud"), versions, Some(Document::single(version(1))), 9, false, false).unwrap();
    writer.publish(Snapshot::clone(&snapshot).with(changed));
    drop(writer);
    let stopped = show(&fixture);
    assert_eq!(stopped["state"], "stopped", "{stopped}");
    assert_eq!(stopped["why"], "the traffic document was changed; revision 9 stays in force");
    verb(&fixture, "resume").refused(409, "CONFLICT", "has ended (stopped)");
}

#[test]
fn a_failed_commit_begins_nothing() {
    let mut fixture = Fixture::answering(|_| Told::Refused(crate::model::Failure::new(Code::Conflict, "not ready")));
    let versions = vec![fixture.loaded(1, State::Serving), fixture.loaded(2, State::Ready)];
    fixture.publish(versions, Some(Document::single(version(1))));
    fixture.post(BEGIN, plan()).refused(409, "CONFLICT", "not ready");
    fixture.get(ROLLOUT).refused(404, "NOT_FOUND", "never had a rollout");
}

#[test]
fn a_rollout_to_a_version_that_is_set_aside_is_taken_back_with_its_reason() {
    let (fixture, _) = new();
    fixture.post(BEGIN, plan());
    let mut writer = fixture.writer.lock().unwrap();
    let snapshot = writer.snapshot();
    let entry = snapshot.model("fraud").unwrap();
    let mut versions = entry.versions().clone();
    versions.insert(version(2), failed(2, Stage::Stuck, "its runs do not end"));
    let without =
        Entry::new(name("fraud"), versions, entry.document().cloned(), entry.revision(), false, true).unwrap();
    writer.publish(Snapshot::clone(&snapshot).with(without));
    drop(writer);
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut back = show(&fixture);
    while back["state"] == "running" && Instant::now() < deadline {
        std::thread::park_timeout(Duration::from_millis(10));
        back = show(&fixture);
    }
    assert_eq!(
        (&back["state"], &back["why"]),
        (&json!("taken_back"), &json!("version 2 failed (stuck): its runs do not end"))
    );
}

#[test]
fn a_rollout_of_a_model_that_is_retired_stops_with_its_reason() {
    let (fixture, _) = new();
    fixture.post(BEGIN, plan());
    let mut writer = fixture.writer.lock().unwrap();
    let snapshot = writer.snapshot();
    let entry = snapshot.model("fraud").unwrap();
    let (versions, document) = (entry.versions().clone(), entry.document().cloned());
    let out = Entry::new(name("fraud"), versions, document, entry.revision(), true, false).unwrap();
    let retired = Retired { at: jiff::Timestamp::UNIX_EPOCH, by: "ann".to_owned(), reason: "replaced".to_owned() };
    writer.publish(Snapshot::clone(&snapshot).with(out.with_retired(Some(retired))));
    drop(writer);
    let stopped = show(&fixture);
    assert_eq!((&stopped["state"], &stopped["why"]), (&json!("stopped"), &json!("the model was retired: replaced")));
}
