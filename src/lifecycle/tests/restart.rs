//! Restarts, full disks, and files that were removed meanwhile.

use super::fixture::*;
use crate::ledger;
use crate::model::Code;
use crate::registry::State;
use serde_json::json;
use std::sync::Arc;

#[test]
fn a_restart_restores_documents_and_unloaded_versions() {
    let workspace = Workspace::new();
    for v in 1..=3 {
        workspace.put("m", v, &answers(v));
        workspace.put("n", v, &answers(v));
    }
    let fixture = workspace.start();
    fixture.wait_ready();
    fixture.put("m", &json!({"split": [{"version": "1", "weight": 3, "arm": "a"}, {"version": "2", "weight": 1}], "labels": {"x": "2"}, "salt": "s"})).unwrap();
    fixture.promote("n", 1).unwrap();
    fixture.unload("n", 2).unwrap();
    let documents = |fixture: &Fixture| {
        ["m", "n"].map(|m| fixture.entry(m).map(|e| (e.document().cloned().unwrap(), e.revision())).unwrap())
    };
    let before = documents(&fixture);
    let workspace = fixture.close();
    workspace.put("n", 9, &answers(9));
    let fixture = workspace.start();
    fixture.wait_ready();
    assert_eq!(documents(&fixture), before);
    assert_eq!(fixture.predict("n").unwrap(), 1, "a new version takes no traffic");
    let unloaded = fixture.wait_state("n", 2, State::Unloaded);
    assert!(unloaded.reason.unwrap().contains("operator"));
    assert_eq!(fixture.loads("n", 2), 0, "a version that an operator unloaded stays unloaded");
    fixture.load("n", 2).unwrap();
    let fixture = fixture.close().start();
    fixture.wait_state("n", 2, State::Ready);
}

#[test]
fn versions_that_documents_name_are_loaded_first() {
    let workspace = Workspace::new();
    for v in 1..=4 {
        workspace.put("m", v, &answers(v));
    }
    let fixture = workspace.start();
    fixture.wait_ready();
    fixture.promote("m", 2).unwrap();
    let workspace = fixture.close();
    workspace.gate.close(&workspace.version_dir("m", 4));
    let fixture = workspace.start();
    fixture.wait_state("m", 2, State::Serving);
    assert_eq!(fixture.predict("m").unwrap(), 2, "it serves while others load");
    fixture.wait_state("m", 4, State::Loading);
    assert!(!fixture.snapshot().ready, "readiness waits for all versions");
    fixture.workspace.gate.open();
    fixture.wait_ready();
}

#[test]
fn a_serving_version_without_files_makes_only_its_model_unavailable() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.put("m", 2, &answers(2));
    workspace.put("n", 1, &answers(1));
    let fixture = workspace.start();
    fixture.wait_ready();
    let workspace = fixture.close();
    std::fs::remove_dir_all(workspace.version_dir("m", 2)).unwrap();
    let fixture = workspace.start();
    let failed = fixture.wait_state("m", 2, State::Failed);
    assert!(failed.reason.unwrap().contains("not in the models directory"));
    fixture.wait_state("m", 1, State::Ready);
    fixture.wait_state("n", 1, State::Serving);
    assert_eq!(fixture.predict("m").unwrap_err().code, Code::NotReady);
    assert_eq!(fixture.predict("n").unwrap(), 1);
    fixture.wait_ready();
    fixture.promote("m", 1).unwrap();
    assert_eq!(fixture.predict("m").unwrap(), 1);
}

#[test]
fn a_version_whose_files_come_back_serves_again() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    let fixture = workspace.start();
    fixture.wait_ready();
    let workspace = fixture.close();
    let aside = workspace.dir.path().join("aside");
    std::fs::rename(workspace.models().join("m"), &aside).unwrap();
    let fixture = workspace.start();
    fixture.wait_state("m", 1, State::Failed);
    std::fs::rename(&aside, fixture.workspace.models().join("m")).unwrap();
    fixture.wait_ready();
    assert_eq!(fixture.predict("m").unwrap(), 1);
}

#[test]
fn other_bytes_under_a_known_number_are_loaded_and_reported() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    let fixture = workspace.start();
    fixture.wait_ready();
    let workspace = fixture.close();
    workspace.put("m", 1, &answers(5));
    let fixture = workspace.start();
    fixture.wait_ready();
    let serving = fixture.wait_state("m", 1, State::Serving);
    assert!(serving.notes[0].contains("not those that were ready"), "{:?}", serving.notes);
}

#[test]
fn a_full_disk_refuses_changes_and_changes_nothing() {
    let workspace = Workspace::new();
    for v in 1..=3 {
        workspace.put("m", v, &answers(v));
    }
    let (journal, fault) = FaultyJournal::new(&workspace);
    let reader = journal.reader.clone();
    let config = workspace.config();
    let fixture = workspace.start_on(config, Box::new(journal));
    fixture.wait_ready();
    fixture.promote("m", 1).unwrap();
    fault.set(Fault::Full);
    let refused = fixture.promote("m", 2).unwrap_err();
    assert!(refused.code == Code::Internal && refused.message.contains("no space is left"), "{refused:?}");
    assert!(!refused.message.contains("/data"), "paths are only in the log");
    assert!(fixture.rollback("m").is_err() && fixture.unload("m", 2).is_err());
    assert!(wait(fixture.handle.unload_model(name("m"), ann())).is_err());
    assert_eq!((fixture.predict("m").unwrap(), fixture.state("m", 2)), (1, Some(State::Ready)));
    fixture.workspace.put("m", 4, &answers(4));
    fixture.wait_state("m", 4, State::Ready);
    fixture.workspace.put("fresh", 1, &answers(1));
    fixture.wait_state("fresh", 1, State::Ready);
    fault.set(Fault::None);
    fixture.promote("m", 4).unwrap();
    fixture.wait_state("fresh", 1, State::Serving);
    let actions: Vec<String> = reader.history(&name("m")).unwrap().into_iter().map(|e| e.action).collect();
    assert_eq!(actions, ["promote", "promote", "first_document"]);
}

#[test]
fn the_audit_trail_has_every_change_with_its_actor() {
    let workspace = Workspace::new();
    for v in 1..=2 {
        workspace.put("m", v, &answers(v));
    }
    let (writer, reader) = ledger::open(&workspace.dir.path().join("data")).unwrap();
    let config = workspace.config();
    let fixture = workspace.start_on(config, Box::new(writer));
    fixture.wait_ready();
    fixture.promote("m", 1).unwrap();
    fixture.rollback("m").unwrap();
    fixture.unload("m", 1).unwrap();
    fixture.load("m", 1).unwrap();
    wait(fixture.handle.unload_model(name("m"), ann())).unwrap();
    wait(fixture.handle.load_model(name("m"), ann())).unwrap();
    let events = reader.audit(&ledger::AuditQuery { model: None, since: None, limit: 100 }).unwrap();
    let actions: Vec<(&str, &str)> = events.iter().rev().map(|e| (e.actor.as_str(), e.action.as_str())).collect();
    let expected = [
        ("system", "first_document"),
        ("ann", "promote"),
        ("ann", "rollback"),
        ("ann", "unload"),
        ("ann", "load"),
        ("ann", "unload_model"),
        ("ann", "load_model"),
    ];
    assert_eq!(actions, expected);
    assert_eq!(events.last().unwrap().before, None);
    assert_eq!(events[5].reason.as_deref(), Some("why"));
}

#[test]
fn a_stopped_manager_refuses_requests_and_leaves_nothing_loaded() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    let mut fixture = workspace.start();
    fixture.wait_ready();
    let loaded = Arc::downgrade(&fixture.entry("m").unwrap().pinned(version(1)).unwrap().loaded);
    fixture.stop.take().unwrap().stop(std::time::Duration::from_secs(20));
    assert_eq!(loaded.strong_count(), 0);
    assert!(!fixture.snapshot().ready);
    assert_eq!(fixture.promote("m", 1).unwrap_err().code, Code::Draining);
}
