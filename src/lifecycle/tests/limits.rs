//! Loads and runs that do not end: they hold nobody else, fail after their time limit, and what they return later is dropped.

use super::super::{Config, LoadOutcome, Patience, TimeLimits};
use super::fixture::*;
use crate::model::Code;
use crate::registry::{Stage, State};
use std::path::Path;
use std::time::Duration;

const SHORT: Duration = Duration::from_millis(300);
const PATIENCE: Patience =
    Patience { slow: Duration::from_millis(50), long: Duration::from_millis(100), grace: Duration::from_millis(50) };

fn limits(load: Duration, others: Duration) -> TimeLimits {
    TimeLimits { load, verify: others, warm: others }
}

/// A manager that gives up soon.
fn impatient(workspace: Workspace) -> Fixture {
    let config = Config { patience: PATIENCE, time_limits: limits(SHORT, SHORT), ..workspace.config() };
    workspace.start_with(config)
}

/// A manager that never gives up, but lets others go on.
fn patient(workspace: Workspace) -> Fixture {
    let config = Config { patience: PATIENCE, ..workspace.config() };
    workspace.start_with(config)
}

const NOWHERE: &str = "/nowhere";

fn endless(workspace: &Workspace, model: &str, v: u64) {
    workspace.gate.close(Path::new(NOWHERE));
    workspace.put(model, v, &format!("runs_wait_for {NOWHERE}\n{}", answers(v)));
}

fn gauge(fixture: &Fixture, value: u64) -> bool {
    fixture.telemetry.render().contains(&format!("sluicegate_loads_left_behind {value}"))
}

#[test]
fn a_load_that_does_not_end_fails_after_its_limit_and_its_late_result_is_dropped() {
    let workspace = Workspace::new();
    workspace.put("bad", 1, &answers(1));
    workspace.gate.close(&workspace.version_dir("bad", 1));
    let fixture = impatient(workspace);
    let failed = fixture.wait_state("bad", 1, State::Failed);
    assert_eq!(failed.stage, Some(Stage::Load));
    assert_eq!(failed.reason.as_deref(), Some("took longer than 0.3 s; models.load_timeout sets the limit"));
    assert!(failed.notes.iter().any(|n| n.contains("its memory stays reserved")), "{failed:?}");
    assert!(gauge(&fixture, 1));
    fixture.wait_ready();

    fixture.workspace.put("good", 1, &answers(5));
    fixture.wait_state("good", 1, State::Serving);
    fixture.workspace.gate.open();
    eventually("the thread ends", || gauge(&fixture, 0));
    eventually("the note goes", || fixture.status("bad", 1).unwrap().notes.is_empty());
    assert_eq!(fixture.state("bad", 1), Some(State::Failed), "the late result is dropped");
    assert_eq!(fixture.load("bad", 1).unwrap(), LoadOutcome::Done, "an operator may try again");
    assert_eq!(fixture.predict("bad").unwrap(), 1);
}

#[test]
fn a_run_that_does_not_end_fails_the_stage_it_happens_in() {
    let workspace = Workspace::new();
    endless(&workspace, "bad", 1);
    let fixture = impatient(workspace);
    let failed = fixture.wait_state("bad", 1, State::Failed);
    assert_eq!(failed.stage, Some(Stage::Verify));
    assert_eq!(failed.reason.as_deref(), Some("took longer than 0.3 s; models.verify_timeout sets the limit"));
    fixture.workspace.gate.open();
}

#[test]
fn memory_stays_reserved_for_a_load_that_was_given_up_until_it_ends() {
    let workspace = Workspace::new();
    let padded = |n: u64| format!("{}\n{}", answers(n), "#".repeat(600));
    workspace.put("bad", 1, &padded(1));
    workspace.gate.close(&workspace.version_dir("bad", 1));
    let config =
        Config { patience: PATIENCE, time_limits: limits(SHORT, SHORT), memory_budget: 1000, ..workspace.config() };
    let fixture = workspace.start_with(config);
    fixture.wait_state("bad", 1, State::Failed);
    fixture.workspace.put("good", 1, &padded(2));
    let waits = fixture.wait_state("good", 1, State::Failed);
    assert!(waits.reason.unwrap().contains("memory budget"));
    fixture.workspace.gate.open();
    fixture.wait_state("good", 1, State::Serving);
}

#[test]
fn a_version_that_takes_long_holds_neither_others_nor_readiness_nor_pushes_nor_the_first_document() {
    let workspace = Workspace::new();
    endless(&workspace, "bad", 1);
    workspace.put("mixed", 1, &answers(1));
    endless(&workspace, "mixed", 2);
    let fixture = patient(workspace);
    fixture.wait_ready();
    fixture.wait_state("mixed", 1, State::Serving);
    assert_eq!((fixture.state("bad", 1), fixture.state("mixed", 2)), (Some(State::Verifying), Some(State::Verifying)));
    fixture.workspace.put("good", 1, &answers(3));
    fixture.wait_state("good", 1, State::Serving);
    let staged = fixture.workspace.dir.path().join("staged");
    std::fs::write(&staged, answers(4)).unwrap();
    wait(fixture.handle.push(name("good"), Some(version(2)), staged, None, ann())).unwrap();
    fixture.wait_state("good", 2, State::Ready);
    fixture.workspace.gate.open();
    fixture.wait_state("bad", 1, State::Serving);
    fixture.wait_state("mixed", 2, State::Ready);
}

#[test]
fn a_version_that_a_document_names_holds_readiness_until_its_limit() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    let fixture = workspace.start();
    fixture.wait_state("m", 1, State::Serving);
    let workspace = fixture.close();
    workspace.gate.close(&workspace.version_dir("m", 1));
    workspace.put("n", 1, &answers(2));
    let fixture = patient(workspace);
    fixture.wait_state("n", 1, State::Serving);
    assert!(!fixture.snapshot().ready, "m/1 is still being loaded");
    fixture.workspace.gate.open();
    fixture.wait_ready();
}

#[test]
fn an_unload_and_a_removed_directory_do_not_wait_for_a_load_in_progress() {
    let workspace = Workspace::new();
    endless(&workspace, "bad", 1);
    endless(&workspace, "gone", 1);
    workspace.put("good", 1, &answers(1));
    let fixture = patient(workspace);
    fixture.wait_state("bad", 1, State::Verifying);
    assert_eq!(fixture.unload("bad", 1).unwrap(), LoadOutcome::Done);
    let unloaded = fixture.status("bad", 1).unwrap();
    assert!(unloaded.state == State::Unloaded && unloaded.notes[0].contains("its load has not ended"), "{unloaded:?}");
    fixture.wait_state("gone", 1, State::Verifying);
    std::fs::remove_dir_all(fixture.workspace.version_dir("gone", 1)).unwrap();
    eventually("it is gone", || matches!(fixture.state("gone", 1), None | Some(State::Unloaded)));
    fixture.wait_state("good", 1, State::Serving);

    wait(fixture.handle.load(name("bad"), version(1), false, None, ann())).unwrap();
    eventually("it waits for the load that has not ended", || {
        fixture.status("bad", 1).unwrap().reason.is_some_and(|r| r.contains("an earlier load of it has not ended"))
    });
    fixture.workspace.gate.open();
    fixture.wait_state("bad", 1, State::Serving);
    assert_eq!(fixture.loads("bad", 1), 2, "what the first load returned was dropped");
}

#[test]
fn a_push_whose_load_does_not_end_is_refused_after_the_limit_and_leaves_nothing_behind() {
    let workspace = Workspace::new();
    let fixture = impatient(workspace);
    let staged = fixture.workspace.dir.path().join("staged");
    std::fs::write(&staged, "load_waits\nend").unwrap();
    fixture.workspace.gate.close(Path::new(NOWHERE));
    let refused = wait(fixture.handle.push(name("m"), Some(version(1)), staged, None, ann())).unwrap_err();
    assert_eq!(refused.code, Code::InvalidRequest);
    assert!(refused.message.contains("took longer than 0.3 s"), "{refused:?}");
    assert!(gauge(&fixture, 1));
    fixture.workspace.gate.open();
    eventually("the thread ends", || gauge(&fixture, 0));
    eventually("nothing is left", || std::fs::read_dir(fixture.workspace.models()).unwrap().count() == 0);
}

#[test]
fn a_stop_does_not_wait_for_loads_that_do_not_end() {
    let workspace = Workspace::new();
    endless(&workspace, "bad", 1);
    let fixture = patient(workspace);
    fixture.wait_state("bad", 1, State::Verifying);
    let begun = std::time::Instant::now();
    let workspace = fixture.close();
    assert!(begun.elapsed() < Duration::from_secs(20));
    workspace.gate.open();
}
