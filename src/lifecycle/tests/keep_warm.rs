//! A rollback soon after a promotion needs no load.

use super::super::{Config, Policy};
use super::fixture::*;
use crate::registry::State;
use crate::route::Selector;
use serde_json::json;
use std::time::Duration;

const LATEST: &str = "versions = { latest = 1 }";

/// Version 2 serves after version 1 did. `versions` leaves 1 out.
fn promoted(config: impl FnOnce(Config) -> Config, model_toml: &str) -> Fixture {
    let workspace = Workspace::new();
    workspace.write("m", "model.toml", model_toml);
    workspace.put("m", 1, &answers(1));
    let config = config(workspace.config());
    let fixture = workspace.start_with(config);
    fixture.wait_state("m", 1, State::Serving);
    fixture.workspace.put("m", 2, &answers(2));
    fixture.wait_state("m", 2, State::Ready);
    fixture.promote("m", 2).unwrap();
    fixture
}

fn note(fixture: &Fixture, v: u64) -> String {
    fixture.status("m", v).unwrap().notes.join(" ")
}

#[test]
fn a_rollback_while_it_is_warm_loads_nothing() {
    let fixture = promoted(|config| config, LATEST);
    assert_eq!(fixture.state("m", 1), Some(State::Ready));
    assert!(note(&fixture, 1).starts_with("kept warm for a rollback until 2"), "{}", note(&fixture, 1));
    assert_eq!(fixture.predict_as("m", Selector::Version(version(1))).unwrap(), 1, "it answers requests that name it");
    let back = fixture.rollback("m").unwrap();
    assert_eq!((back.to, back.loaded, fixture.loads("m", 1)), (version(1), Vec::new(), 1));
    assert_eq!((fixture.predict("m").unwrap(), note(&fixture, 1)), (1, String::new()));
    assert_eq!(fixture.state("m", 2), Some(State::Ready), "the latest is kept anyway");
    assert_eq!(note(&fixture, 2), "");
}

#[test]
fn it_is_unloaded_after_its_time_and_a_rollback_loads_it() {
    let short = |config| Config { keep_warm: Duration::from_millis(300), ..config };
    let fixture = promoted(short, LATEST);
    let begun = std::time::Instant::now();
    let gone = fixture.wait_state("m", 1, State::Unloaded);
    assert!(begun.elapsed() >= Duration::from_millis(250), "it was kept for its time");
    assert!(gone.reason.unwrap().contains("`versions`") && gone.notes.is_empty());
    let back = fixture.rollback("m").unwrap();
    assert_eq!((back.to, back.loaded, fixture.loads("m", 1)), (version(1), vec![version(1)], 2));
}

#[test]
fn model_toml_sets_the_time() {
    let fixture = promoted(|config| config, "versions = { latest = 1 }\nkeep_warm = \"0s\"");
    fixture.wait_state("m", 1, State::Unloaded);
    fixture.rollback("m").unwrap();
    fixture.workspace.write("m", "model.toml", "versions = { latest = 1 }\nkeep_warm = \"1h\"");
    fixture.workspace.put("m", 3, &answers(3));
    fixture.wait_state("m", 3, State::Ready);
    assert_eq!(fixture.state("m", 2), Some(State::Unloaded), "it served before, but not when it was left out");
    fixture.promote("m", 3).unwrap();
    assert!(note(&fixture, 1).contains("kept warm"), "{}", note(&fixture, 1));
    fixture.workspace.write("m", "model.toml", "versions = { latest = 1 }\nkeep_warm = \"1ms\"");
    fixture.wait_state("m", 1, State::Unloaded);
}

#[test]
fn a_shadow_is_kept_warm_and_a_version_no_document_named_is_not() {
    let fixture = promoted(|config| config, "");
    for v in 3..=4 {
        fixture.workspace.put("m", v, &answers(v));
        fixture.wait_state("m", v, State::Ready);
    }
    fixture.put("m", &json!({"split": [{"version": "2", "weight": 1}], "shadows": [{"version": "3"}]})).unwrap();
    fixture.put("m", &json!({"split": [{"version": "2", "weight": 1}]})).unwrap();
    fixture.workspace.write("m", "model.toml", "versions = [\"2\"]");
    fixture.wait_state("m", 4, State::Unloaded);
    assert_eq!(fixture.state("m", 3), Some(State::Ready), "a rollback needs the shadow");
    assert_eq!(fixture.rollback("m").unwrap().loaded, []);
    let shadows = fixture.entry("m").unwrap().shadows().len();
    assert_eq!(shadows, 1);
}

#[test]
fn an_operator_can_unload_it_at_once() {
    let fixture = promoted(|config| config, LATEST);
    fixture.unload("m", 1).unwrap();
    let status = fixture.status("m", 1).unwrap();
    assert!(status.state == State::Unloaded && status.notes.is_empty(), "{status:?}");
    assert!(status.reason.unwrap().contains("operator"));
    assert_eq!(fixture.rollback("m").unwrap().loaded, [version(1)]);
}

#[test]
fn it_is_unloaded_when_its_memory_is_needed() {
    for policy in [Policy::KeepServing, Policy::MakeRoom] {
        let workspace = Workspace::new();
        let padded = |n: u64| format!("{}\n{}", answers(n), "#".repeat(600));
        workspace.write("m", "model.toml", LATEST);
        workspace.put("m", 1, &padded(1));
        let config = Config { memory_budget: 1500, policy, ..workspace.config() };
        let fixture = workspace.start_with(config);
        fixture.wait_state("m", 1, State::Serving);
        fixture.workspace.put("m", 2, &padded(2));
        fixture.wait_state("m", 2, State::Ready);
        fixture.promote("m", 2).unwrap();
        assert!(note(&fixture, 1).contains("kept warm"));
        fixture.workspace.put("m", 3, &padded(3));
        fixture.wait_state("m", 3, State::Ready);
        let gone = fixture.wait_state("m", 1, State::Unloaded);
        assert!(gone.reason.unwrap().contains("`versions`"), "`versions` leaves it out anyway");
        assert_eq!((fixture.predict("m").unwrap(), fixture.loads("m", 3)), (2, 1), "3 never failed");
    }
}

#[test]
fn a_restart_keeps_nothing_warm() {
    let workspace = promoted(|config| config, LATEST).close();
    let fixture = workspace.start();
    fixture.wait_ready();
    fixture.wait_state("m", 1, State::Unloaded);
    assert_eq!(fixture.loads("m", 1), 0);
}
