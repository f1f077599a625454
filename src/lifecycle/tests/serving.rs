//! The first document, automatic promotions, readiness, and many promotions in a row.

use super::fixture::*;
use crate::model::Code;
use crate::registry::{Stage, State};
use crate::route::Selector;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
fn a_model_seen_for_the_first_time_serves_its_highest_ready_version() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.put("m", 2, &answers(2));
    workspace.put("m", 10, "unsupported");
    let fixture = workspace.start();
    fixture.wait_ready();
    assert_eq!(fixture.state("m", 1), Some(State::Ready));
    assert_eq!(fixture.state("m", 2), Some(State::Serving));
    let failed = fixture.status("m", 10).unwrap();
    assert_eq!((failed.state, failed.stage), (State::Failed, Some(Stage::Load)), "a failed version delays nothing");
    assert!(failed.reason.unwrap().contains("Frobnicate"));
    assert_eq!(fixture.predict("m").unwrap(), 2);
    assert_eq!(
        fixture.predict_as("m", Selector::Version(version(1))).unwrap(),
        1,
        "a ready version answers requests that name it"
    );
    assert_eq!(fixture.entry("m").unwrap().revision(), 1);
}

#[test]
fn it_waits_until_all_its_versions_are_ready_or_failed() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.put("m", 2, &answers(2));
    workspace.gate.close(&workspace.version_dir("m", 1));
    let fixture = workspace.start();
    fixture.wait_state("m", 2, State::Ready);
    assert!(!fixture.snapshot().ready);
    assert_eq!(fixture.predict("m").unwrap_err().code, Code::NotReady);
    fixture.workspace.gate.open();
    fixture.wait_state("m", 2, State::Serving);
    fixture.wait_ready();
}

#[test]
fn where_no_version_is_ready_the_first_ready_one_serves() {
    let workspace = Workspace::new();
    workspace.put("m", 1, "unsupported");
    let fixture = workspace.start();
    fixture.wait_state("m", 1, State::Failed);
    fixture.wait_ready();
    fixture.workspace.put("m", 3, &answers(3));
    fixture.wait_state("m", 3, State::Serving);
    fixture.workspace.put("m", 4, &answers(4));
    fixture.wait_state("m", 4, State::Ready);
    assert_eq!(fixture.predict("m").unwrap(), 3, "a later version gets no traffic automatically");
}

#[test]
fn a_directory_without_a_model_delays_nothing() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    std::fs::create_dir_all(workspace.version_dir("m", 2)).unwrap();
    let fixture = workspace.start();
    fixture.wait_state("m", 1, State::Serving);
    fixture.wait_ready();
    let pending = fixture.status("m", 2).unwrap();
    assert_eq!(pending.state, State::Pending);
    assert!(pending.reason.unwrap().contains("no model.onnx"));
}

#[test]
fn the_server_is_ready_once_each_version_is_ready_or_failed_and_stays_ready() {
    let workspace = Workspace::new();
    workspace.put("a", 1, &answers(1));
    workspace.put("b", 1, &answers(1));
    workspace.gate.close(&workspace.version_dir("b", 1));
    let fixture = workspace.start();
    fixture.wait_state("a", 1, State::Serving);
    fixture.wait_state("b", 1, State::Loading);
    assert!(!fixture.snapshot().ready);
    fixture.workspace.gate.open();
    fixture.wait_ready();
    fixture.workspace.put("a", 2, "unsupported");
    fixture.workspace.put("c", 1, "unsupported");
    fixture.wait_state("a", 2, State::Failed);
    fixture.wait_state("c", 1, State::Failed);
    assert!(fixture.snapshot().ready, "a later failure does not change readiness");
}

#[test]
fn an_empty_directory_is_ready_and_a_missing_one_is_not() {
    let empty = Workspace::new().start();
    empty.wait_ready();
    let workspace = Workspace::new();
    std::fs::remove_dir(workspace.models()).unwrap();
    let missing = workspace.start();
    assert_eq!(missing.promote("m", 1).unwrap_err().code, Code::ModelNotFound);
    assert!(!missing.snapshot().ready);
    std::fs::create_dir(missing.workspace.models()).unwrap();
    missing.wait_ready();
    missing.workspace.put("m", 1, &answers(1));
    missing.wait_state("m", 1, State::Serving);
}

#[test]
fn auto_promote_promotes_each_version_once_and_only_upwards() {
    let workspace = Workspace::new();
    workspace.write("m", "model.toml", "auto_promote = true");
    workspace.put("m", 3, &answers(3));
    let fixture = workspace.start();
    fixture.wait_state("m", 3, State::Serving);
    fixture.workspace.put("m", 2, &answers(2));
    fixture.wait_state("m", 2, State::Ready);
    fixture.workspace.put("m", 5, &answers(5));
    fixture.wait_state("m", 5, State::Serving);
    assert_eq!(fixture.predict("m").unwrap(), 5);
    assert_eq!(fixture.state("m", 2), Some(State::Ready), "a lower one is not promoted");

    fixture.promote("m", 3).unwrap();
    fixture.workspace.put("m", 4, &answers(4));
    fixture.wait_state("m", 4, State::Ready);
    assert_eq!(fixture.predict("m").unwrap(), 3, "4 is below 5, which served, and 5 was promoted before");
    let workspace = fixture.close();
    let fixture = workspace.start();
    fixture.wait_ready();
    assert_eq!(fixture.predict("m").unwrap(), 3, "a restart does not promote it again");
}

#[test]
fn auto_promote_stops_at_a_signature_that_breaks_callers() {
    let workspace = Workspace::new();
    workspace.write("m", "model.toml", "auto_promote = true");
    workspace.put("m", 1, &answers(1));
    let fixture = workspace.start();
    fixture.wait_state("m", 1, State::Serving);
    fixture.workspace.put("m", 2, "wide\nend");
    let ready = fixture.wait_state("m", 2, State::Ready);
    eventually("the note is there", || !fixture.status("m", 2).unwrap().notes.is_empty());
    let _ = ready;
    let note = fixture.status("m", 2).unwrap().notes.remove(0);
    assert!(note.contains("extra"), "{note}");
    assert_eq!(fixture.predict("m").unwrap(), 1);
}

#[test]
fn two_hundred_promotions_and_no_request_fails() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.put("m", 2, &answers(2));
    let fixture = workspace.start();
    fixture.wait_ready();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut answered = 0u32;
                    while !stop.load(Ordering::Relaxed) {
                        let y = fixture.predict("m").expect("no request fails");
                        assert!(y == 1 || y == 2, "{y}");
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        for i in 0..200 {
            let to = 1 + i % 2;
            fixture.promote("m", to).unwrap();
            assert_eq!(fixture.predict("m").unwrap(), to, "an answer after the promotion is by the new version");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(callers.into_iter().map(|c| c.join().unwrap()).sum::<u32>() > 0);
    });
    eventually("no replaced snapshot is left", || {
        fixture.telemetry.render().lines().any(|line| line == "sluicegate_snapshots_retired 0")
    });
    // The first document put 2 in force, so each of the 200 promotions was a change.
    assert_eq!(fixture.entry("m").unwrap().revision(), 201);
}

#[test]
fn three_hundred_models_are_loaded() {
    let workspace = Workspace::new();
    let n = 300;
    for i in 0..n {
        workspace.put(&format!("m{i}"), 1, &answers(i));
    }
    let config = super::super::Config { load_threads: 2, rescan: Duration::from_secs(5), ..workspace.config() };
    let fixture = workspace.start_with(config);
    fixture.wait_ready();
    for i in 0..n {
        assert_eq!(fixture.predict(&format!("m{i}")).unwrap(), i);
    }
}
