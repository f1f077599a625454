//! Versions that are set aside while they serve, before they are loaded, and before the start.

use super::super::{Config, SetAside};
use super::fixture::*;
use crate::ledger::AuditQuery;
use crate::model::{Code, VersionId};
use crate::registry::{Stage, State};
use crate::route::Selector;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn two_versions() -> Fixture {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.put("m", 2, &answers(2));
    let config = Config { drain_timeout: Duration::from_millis(50), ..workspace.config() };
    let fixture = workspace.start_with(config);
    fixture.wait_ready();
    fixture
}

fn set_aside(fixture: &Fixture, v: u64, stage: Stage) {
    assert!(fixture.handle.set_aside(name("m"), version(v), stage, "its runs take for ever".to_owned()));
}

#[test]
fn a_version_that_is_set_aside_answers_503_with_the_reason_and_the_other_arms_serve() {
    let fixture = two_versions();
    fixture
        .put("m", &json!({"split": [{"version": "1", "weight": 1}], "rules": [{"header": "x", "equals": "y", "version": "2"}], "labels": {"new": "2"}}))
        .unwrap();
    // A run that never ends.
    let held = Arc::clone(fixture.snapshot().model("m").unwrap().pinned(version(2)).unwrap());
    set_aside(&fixture, 2, Stage::Stuck);
    let status = fixture.wait_state("m", 2, State::Failed);
    assert_eq!((status.stage, status.reason.as_deref()), (Some(Stage::Stuck), Some("its runs take for ever")));
    for selector in [Selector::Version(version(2)), Selector::Label("new")] {
        let refused = fixture.predict_as("m", selector).unwrap_err();
        assert_eq!(refused.code, Code::NotReady);
        assert_eq!(refused.message, "version 2 of model m was set aside (stuck): its runs take for ever");
    }
    assert_eq!(fixture.predict("m").unwrap(), 1, "version 1 serves");
    assert!(fixture.snapshot().ready, "the server stays ready");
    eventually("the held memory is reported", || {
        fixture.status("m", 2).unwrap().notes.iter().any(|n| n.contains("still hold it after drain_timeout"))
    });

    fixture.load("m", 2).unwrap();
    assert_eq!(fixture.predict_as("m", Selector::Label("new")).unwrap(), 2, "an operator may try again");
    assert!(fixture.status("m", 2).unwrap().notes.is_empty());
    set_aside(&fixture, 2, Stage::Crashed);
    fixture.wait_state("m", 2, State::Failed);

    let begun = Instant::now();
    let workspace = fixture.close();
    assert!(begun.elapsed() < Duration::from_secs(20), "a stop does not wait for a run that does not end");
    drop(held);
    let (_, reader) = crate::ledger::open(&workspace.dir.path().join("data")).unwrap();
    let events = reader.audit(&AuditQuery { model: None, since: None, limit: 50 }).unwrap();
    let stages: Vec<_> =
        events.iter().filter(|e| e.action == "set_aside").map(|e| (e.reason.clone(), e.after.clone())).collect();
    assert_eq!(stages.len(), 2, "{events:?}");
    assert!(stages.iter().all(|(reason, _)| reason.as_deref() == Some("its runs take for ever")), "{stages:?}");
}

#[test]
fn a_model_whose_only_version_is_set_aside_serves_again_after_a_promotion_or_with_other_files() {
    let fixture = two_versions();
    set_aside(&fixture, 2, Stage::Stuck);
    fixture.wait_state("m", 2, State::Failed);
    assert!(fixture.predict("m").unwrap_err().message.contains("was set aside"));
    assert_eq!(fixture.predict_as("m", Selector::Version(version(1))).unwrap(), 1);
    let refused = fixture.promote("m", 2).unwrap_err();
    assert!(refused.message.contains("failed in stuck: its runs take for ever"), "{refused:?}");
    fixture.promote("m", 1).unwrap();
    assert_eq!(fixture.predict("m").unwrap(), 1);

    fixture.workspace.put("m", 2, &answers(7));
    fixture.wait_state("m", 2, State::Ready);
    assert_eq!(fixture.predict_as("m", Selector::Version(version(2))).unwrap(), 7);
}

#[test]
fn a_rollback_to_a_version_that_was_set_aside_loads_it_again() {
    let fixture = two_versions();
    fixture.promote("m", 1).unwrap();
    set_aside(&fixture, 2, Stage::Stuck);
    fixture.wait_state("m", 2, State::Failed);
    assert_eq!(fixture.rollback("m").unwrap().loaded, [version(2)]);
    assert_eq!(fixture.predict("m").unwrap(), 2);
}

#[test]
fn a_version_that_is_being_loaded_can_be_set_aside() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.gate.close(&workspace.version_dir("m", 1));
    let fixture = workspace.start();
    fixture.wait_state("m", 1, State::Loading);
    set_aside(&fixture, 1, Stage::Crashed);
    fixture.workspace.gate.open();
    let status = fixture.wait_state("m", 1, State::Failed);
    assert_eq!(status.stage, Some(Stage::Crashed));
    assert_eq!(fixture.loads("m", 1), 1);
}

#[test]
fn versions_that_are_set_aside_at_the_start_are_never_loaded() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.put("m", 2, &answers(2));
    let id = VersionId { model: name("m"), version: version(2) };
    let aside = SetAside {
        id,
        stage: Stage::Crashed,
        reason: "the process ended 3 times in its runs".to_owned(),
        recorded: false,
    };
    let config = Config { set_aside: vec![aside], ..workspace.config() };
    let fixture = workspace.start_with(config);
    let status = fixture.wait_state("m", 2, State::Failed);
    assert_eq!((status.stage, fixture.loads("m", 2)), (Some(Stage::Crashed), 0));
    fixture.wait_state("m", 1, State::Serving);
    fixture.wait_ready();
    fixture.load("m", 2).unwrap();
    assert_eq!(fixture.predict_as("m", Selector::Version(version(2))).unwrap(), 2);
}
