//! Looks with a real audit trail and a real database: what is put into the outbox, once.

use super::finding::{About, Finding, Now, Source};
use super::rule::{Rule, Severity};
use super::run::Runner;
use super::store::Store;
use super::target::{Hidden, Kind, Send, Target};
use super::{Alerts, Config, EventKind, Inputs, Matcher, VersionState};
use crate::ledger::{self, Action, LedgerReader, LedgerWriter, Note};
use crate::telemetry::Telemetry;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// What the source finds, and the versions that there are.
#[derive(Default)]
struct World {
    findings: Vec<Finding>,
    versions: Option<Vec<VersionState>>,
}

struct Fixture {
    dir: TempDir,
    ledger: (LedgerWriter, LedgerReader),
    world: Arc<Mutex<World>>,
    runner: Runner,
    alerts: Alerts,
    now: Now,
}

fn config(outbox: usize) -> Config {
    let send = Send { alerts: true, events: EventKind::ALL.to_vec() };
    let target = Target {
        name: "ops".to_owned(),
        kind: Kind::Webhook,
        // Nothing is sent in these tests: no sender runs.
        url: Hidden::Here("http://127.0.0.1:1/".to_owned()),
        ca: None,
        secret: None,
        send,
        min_severity: Severity::Warning,
        timeout: Duration::from_secs(1),
    };
    Config { targets: vec![target], outbox, end_after: Duration::ZERO, name: "test".to_owned(), ..Config::default() }
}

fn runner(dir: &TempDir, ledger: &LedgerReader, world: &Arc<Mutex<World>>, outbox: usize) -> (Runner, Alerts) {
    const RULES: &[Rule] = &[Rule::Drift, Rule::Decay, Rule::VersionFailed];
    let telemetry = Telemetry::new();
    let config = config(outbox);
    let alerts = Alerts::open(&config, Store::open(dir.path()), &telemetry);
    let (found, known) = (Arc::clone(world), Arc::clone(world));
    let look = Box::new(move |_: Now| Some(Arc::new(found.lock().unwrap().findings.clone())));
    let inputs = Inputs {
        ledger: ledger.clone(),
        sources: vec![Source { rules: RULES, look }],
        versions: Box::new(move || known.lock().unwrap().versions.clone().map(Arc::new)),
    };
    (Runner::new(alerts.clone(), config, inputs, Vec::new(), telemetry.process()), alerts)
}

impl Fixture {
    fn new(outbox: usize) -> Fixture {
        let dir = TempDir::new().unwrap();
        let ledger = ledger::open(dir.path()).unwrap();
        let world = Arc::new(Mutex::new(World { versions: Some(Vec::new()), ..World::default() }));
        let (runner, alerts) = runner(&dir, &ledger.1, &world, outbox);
        let mut fixture = Fixture { dir, ledger, world, runner, alerts, now: Now::read() };
        fixture.look(0);
        fixture
    }

    /// Another process on the same data directory.
    fn restart(&mut self) {
        (self.runner, self.alerts) = runner(&self.dir, &self.ledger.1, &self.world, 10_000);
    }

    fn look(&mut self, seconds: u64) {
        let passed = Duration::from_secs(seconds);
        self.now = Now { ts: self.now.ts.checked_add(passed).unwrap(), at: self.now.at + passed };
        self.runner.look(self.now);
    }

    fn note(&mut self, action: Action, after: &Value) -> u64 {
        let note = Note {
            model: Some("m".parse().unwrap()),
            actor: "ann".to_owned(),
            action,
            reason: Some("a test".to_owned()),
            before: None,
            after: Some(after.to_string()),
        };
        self.ledger.0.note(note).unwrap()
    }

    /// Takes all messages out of the outbox, as if they were delivered.
    fn take(&self) -> Vec<Value> {
        let store = &self.alerts.0.store;
        let mut all = Vec::new();
        while let Some(waiting) = store.next("ops").unwrap() {
            all.push(serde_json::from_str(&waiting.body).unwrap());
            store.remove(waiting.id).unwrap();
        }
        all
    }

    fn events(&self) -> Vec<String> {
        let messages = self.take();
        let events = messages.iter().flat_map(|message| message["events"].as_array().unwrap().clone());
        events.map(|event| event["event"].as_str().unwrap().to_owned()).collect()
    }
}

fn finding(rule: Rule, model: &str) -> Finding {
    Finding {
        about: About::version(rule, &model.parse().unwrap(), "3".parse().unwrap()),
        severity: Severity::Warning,
        summary: "income moved".to_owned(),
        how_sure: "sure".to_owned(),
        what_to_do: "train".to_owned(),
        since: None,
        training: None,
    }
}

fn version(number: &str, what: Result<&str, &str>) -> VersionState {
    let what = what.map(str::to_owned).map_err(str::to_owned);
    VersionState { model: "m".parse().unwrap(), version: number.parse().unwrap(), what }
}

#[test]
fn each_change_of_the_audit_trail_is_one_event_over_restarts_and_those_before_the_first_start_are_none() {
    let mut fixture = Fixture::new(10_000);
    let split = json!({"split": [{"version": "2", "weight": 1.0}]});
    fixture.note(Action::Promote, &split);
    fixture.note(Action::Load, &json!(null));
    fixture.look(5);
    fixture.look(5);
    let messages = fixture.take();
    assert_eq!(messages.len(), 1);
    let event = &messages[0]["events"][0];
    assert_eq!(
        (&event["event"], &event["model"], &event["version"]),
        (&json!("version.promoted"), &json!("m"), &json!("2"))
    );
    assert_eq!(
        (&event["actor"], &event["reason"], &event["link"]),
        (&json!("ann"), &json!("a test"), &json!("/models/m"))
    );
    assert_eq!(event["summary"], "m: traffic was given to a version (split: nothing → 2=1), by ann");

    // While no server runs, changes come (of `sluicegate token`, say).
    for action in [Action::RolloutStep, Action::RolloutTakeBack, Action::Propose, Action::Rollback] {
        fixture.note(action, &split);
    }
    fixture.restart();
    fixture.look(5);
    fixture.restart();
    fixture.look(5);
    assert_eq!(fixture.events(), ["rollout.moved", "rollout.taken_back", "approval.wanted", "version.rolled_back"]);

    // A data directory with a past: the past is no news.
    let store = fixture.dir.path().join("alerts.sqlite3");
    drop(std::mem::replace(&mut fixture.alerts, Alerts::idle(&Telemetry::new())));
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{ending}", store.display()));
    }
    fixture.restart();
    fixture.look(5);
    assert_eq!(fixture.events(), [""; 0]);
}

#[test]
fn more_changes_than_one_look_takes_are_all_told_in_order() {
    let mut fixture = Fixture::new(10_000);
    for n in 0..1_203 {
        fixture.note(Action::RolloutStep, &json!({"split": [{"version": "2", "weight": n}]}));
    }
    for _ in 0..3 {
        fixture.look(5);
    }
    let messages = fixture.take();
    let events: Vec<Value> = messages.iter().flat_map(|m| m["events"].as_array().unwrap().clone()).collect();
    assert_eq!(events.len(), 1_203);
    let numbers: Vec<u64> =
        events.iter().map(|event| event["id"].as_str().unwrap().split('/').nth(1).unwrap().parse().unwrap()).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "each once and in order");
    assert!(messages.iter().all(|message| message["events"].as_array().unwrap().len() <= 50));
}

#[test]
fn an_override_of_an_approval_is_an_event_at_once_and_an_alert_for_a_day() {
    let mut fixture = Fixture::new(10_000);
    let id = fixture.note(Action::Promote, &json!({"split": [{"version": "2", "weight": 1.0}], "break_glass": ["2"]}));
    fixture.look(5);
    let told = |fixture: &Fixture| {
        let messages = fixture.take();
        let alerts = messages.iter().flat_map(|message| message["alerts"].as_array().unwrap().clone());
        alerts.map(|alert| format!("{} {}", alert["state"], alert["subject"])).collect::<Vec<_>>()
    };
    fixture.look(5);
    let messages = fixture.take();
    let events = messages[0]["events"].as_array().unwrap();
    assert_eq!(events.iter().map(|event| &event["event"]).collect::<Vec<_>>(), ["version.promoted", "break_glass"]);
    let alert = &messages[1]["alerts"][0];
    assert_eq!((&alert["rule"], &alert["severity"]), (&json!("break_glass"), &json!("critical")));
    assert_eq!(alert["subject"], format!("event {id}"));
    fixture.restart();
    fixture.look(3600);
    assert_eq!(told(&fixture), [""; 0], "a restart within the day changes nothing");
    fixture.look(24 * 3600);
    fixture.look(5);
    assert_eq!(told(&fixture), [format!("\"resolved\" \"event {id}\"")]);
}

#[test]
fn versions_are_announced_once_for_their_files_and_anew_after_they_worked_or_were_gone() {
    let mut fixture = Fixture::new(10_000);
    let mut step = |versions: Option<Vec<VersionState>>| {
        fixture.world.lock().unwrap().versions = versions;
        fixture.restart();
        fixture.look(5);
        fixture.look(5);
        fixture.events()
    };
    assert_eq!(step(Some(vec![version("1", Ok("a"))])), ["version.ready"]);
    assert_eq!(step(None), [""; 0], "while versions are loaded nothing is known");
    assert_eq!(step(Some(vec![version("1", Ok("a")), version("2", Err("no model"))])), ["version.failed"]);
    assert_eq!(step(Some(vec![version("1", Ok("a")), version("2", Err("after 3 s"))])), [""; 0], "another reason");
    assert_eq!(step(Some(vec![version("1", Ok("b")), version("2", Ok("c"))])), ["version.ready", "version.ready"]);
    assert_eq!(step(Some(vec![version("1", Ok("b")), version("2", Err("crashed"))])), ["version.failed"], "anew");
    assert_eq!(step(Some(vec![version("1", Ok("b")), version("2", Ok("c"))])), [""; 0], "with the same files");
    assert_eq!(step(Some(Vec::new())), [""; 0]);
    assert_eq!(step(Some(vec![version("2", Ok("c"))])), ["version.ready"], "it was gone");
}

#[test]
fn what_was_there_at_the_first_start_is_no_news() {
    let dir = TempDir::new().unwrap();
    let ledger = ledger::open(dir.path()).unwrap();
    let world = Arc::new(Mutex::new(World { versions: None, ..World::default() }));
    let (runner, alerts) = runner(&dir, &ledger.1, &world, 10_000);
    let mut fixture = Fixture { dir, ledger, world, runner, alerts, now: Now::read() };
    fixture.look(5);
    fixture.world.lock().unwrap().versions = Some(vec![version("1", Ok("a")), version("2", Err("x"))]);
    fixture.look(5);
    assert_eq!(fixture.events(), [""; 0]);
    fixture.world.lock().unwrap().versions = Some(vec![version("1", Ok("a")), version("3", Ok("b"))]);
    fixture.look(5);
    assert_eq!(fixture.events(), ["version.ready"]);
}

#[test]
fn retraining_is_asked_for_once_a_day_and_model_with_the_command_and_not_while_it_is_silenced() {
    let mut fixture = Fixture::new(10_000);
    let drift = finding(Rule::Drift, "m");
    let range = ("2026-11-01T00:00:00Z".parse().unwrap(), "2026-11-28T00:00:00Z".parse().unwrap());
    let decay = Finding { training: Some(range), ..finding(Rule::Decay, "m") };
    fixture.world.lock().unwrap().findings = vec![drift, decay, finding(Rule::VersionFailed, "other")];
    fixture.look(5);
    fixture.look(5);
    let messages = fixture.take();
    let retrain: Vec<&Value> = messages.iter().flat_map(|m| m["events"].as_array().unwrap()).collect();
    assert_eq!(retrain.len(), 1, "one for both rules, and none for a failed version: {messages:?}");
    assert_eq!((&retrain[0]["event"], &retrain[0]["model"]), (&json!("retrain"), &json!("m")));
    assert_eq!(retrain[0]["summary"], "m: a new version should be trained (decay, drift)");
    let training = &retrain[0]["training"];
    let command =
        "sluicegate export m --from 2026-11-01T00:00:00Z --to 2026-11-28T00:00:00Z --require-label -o m.parquet";
    assert_eq!(*training, json!({"from": "2026-11-01T00:00:00Z", "to": "2026-11-28T00:00:00Z", "command": command}));
    fixture.restart();
    fixture.look(23 * 3600);
    assert_eq!(fixture.events(), [""; 0]);
    let until = fixture.now.ts.checked_add(Duration::from_hours(2)).unwrap();
    let matcher = Matcher { model: Some("m".to_owned()), ..Matcher::default() };
    fixture.alerts.silence(matcher, until, "r".to_owned(), "ann".to_owned()).unwrap();
    fixture.look(3700);
    assert_eq!(fixture.events(), [""; 0], "it is silenced");
    fixture.look(3700);
    assert_eq!(fixture.events(), ["retrain"], "the day and the silence are over");
}

#[test]
fn two_thousand_failures_are_one_message_and_the_outbox_has_a_bound() {
    let mut fixture = Fixture::new(3);
    let all = (0..2_000).map(|n| finding(Rule::VersionFailed, &format!("m{n}"))).collect();
    fixture.world.lock().unwrap().findings = all;
    fixture.look(5);
    let messages = fixture.take();
    assert_eq!(messages.len(), 1);
    let message = &messages[0];
    assert_eq!((&message["firing"], &message["omitted"]), (&json!(2_000), &json!(1_950)));
    assert_eq!(message["alerts"].as_array().unwrap().len(), 50);
    for _ in 0..5 {
        fixture.note(Action::Rollback, &json!(null));
        fixture.look(5);
    }
    assert_eq!(fixture.alerts.targets()[0].waiting, Some(3));
    assert_eq!(fixture.alerts.targets()[0].status.dropped, 2);
    let numbers: Vec<Value> = fixture.take().iter().map(|message| message["events"][0]["id"].clone()).collect();
    assert!(numbers[0].as_str().unwrap().contains("/3/"), "the oldest are dropped: {numbers:?}");
}

#[test]
fn a_damaged_database_is_set_aside_and_the_server_goes_on() {
    let dir = TempDir::new().unwrap();
    std::fs::write(
        dir.path().join("alerts.sqlite3"),
        "this is no database, but a text that is long enough to be read as a header".repeat(50),
    )
    .unwrap();
    let store = Store::open(dir.path());
    assert_eq!(store.waiting("ops").unwrap(), 0);
    assert!(dir.path().join("alerts.sqlite3.damaged-1").exists());
    drop(store);
    assert!(dir.path().join("alerts.sqlite3").exists(), "a new one began");
    let nowhere = Store::open(std::path::Path::new("/nowhere/at/all"));
    assert_eq!(nowhere.waiting("ops").unwrap(), 0, "in memory");
}
