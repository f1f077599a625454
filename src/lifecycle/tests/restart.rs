//! What survives: restarts, full disks, files that went meanwhile.

use super::super::Journal;
use super::house::*;
use crate::ledger::{self, Change, Committed, LedgerError, LedgerWriter, ModelState, Revision};
use crate::model::{Code, ModelName};
use crate::registry::State;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn what_serves_is_the_same_after_a_restart() {
    let ground = Ground::new();
    for v in 1..=3 {
        ground.put("m", v, &answers(v));
        ground.put("n", v, &answers(v));
    }
    let house = ground.start();
    house.wait_ready();
    house.put("m", &json!({"split": [{"version": "1", "weight": 3, "arm": "a"}, {"version": "2", "weight": 1}], "labels": {"x": "2"}, "salt": "s"})).unwrap();
    house.promote("n", 1).unwrap();
    house.unload("n", 2).unwrap();
    let documents = |house: &House| {
        ["m", "n"].map(|m| house.entry(m).map(|e| (e.document().cloned().unwrap(), e.revision())).unwrap())
    };
    let before = documents(&house);
    let ground = house.close();
    ground.put("n", 9, &answers(9));
    let house = ground.start();
    house.wait_ready();
    assert_eq!(documents(&house), before);
    assert_eq!(house.predict("n").unwrap(), 1, "a new version takes no traffic");
    let unloaded = house.wait_state("n", 2, State::Unloaded);
    assert!(unloaded.reason.unwrap().contains("operator"));
    assert_eq!(house.loads("n", 2), 0, "what an operator unloaded stays so");
    house.load("n", 2).unwrap();
    let house = house.close().start();
    house.wait_state("n", 2, State::Ready);
}

#[test]
fn what_documents_name_is_loaded_first() {
    let ground = Ground::new();
    for v in 1..=4 {
        ground.put("m", v, &answers(v));
    }
    let house = ground.start();
    house.wait_ready();
    house.promote("m", 2).unwrap();
    let ground = house.close();
    ground.gate.close(&ground.version_dir("m", 4));
    let house = ground.start();
    house.wait_state("m", 2, State::Serving);
    assert_eq!(house.predict("m").unwrap(), 2, "it serves while others load");
    house.wait_state("m", 4, State::Loading);
    assert!(!house.snapshot().ready, "but for readiness all are waited for");
    house.ground.gate.open();
    house.wait_ready();
}

#[test]
fn a_version_that_serves_and_whose_files_went_holds_back_its_model_alone() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    ground.put("m", 2, &answers(2));
    ground.put("n", 1, &answers(1));
    let house = ground.start();
    house.wait_ready();
    let ground = house.close();
    std::fs::remove_dir_all(ground.version_dir("m", 2)).unwrap();
    let house = ground.start();
    let failed = house.wait_state("m", 2, State::Failed);
    assert!(failed.reason.unwrap().contains("not in the models directory"));
    house.wait_state("m", 1, State::Ready);
    house.wait_state("n", 1, State::Serving);
    assert_eq!(house.predict("m").unwrap_err().code, Code::NotReady);
    assert_eq!(house.predict("n").unwrap(), 1);
    assert!(!house.snapshot().ready, "a document that cannot be served");
    house.promote("m", 1).unwrap();
    assert_eq!(house.predict("m").unwrap(), 1);
    house.wait_ready();
}

#[test]
fn files_that_come_back_serve_again() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    let house = ground.start();
    house.wait_ready();
    let ground = house.close();
    let aside = ground.dir.path().join("aside");
    std::fs::rename(ground.models().join("m"), &aside).unwrap();
    let house = ground.start();
    house.wait_state("m", 1, State::Failed);
    std::fs::rename(&aside, house.ground.models().join("m")).unwrap();
    house.wait_ready();
    assert_eq!(house.predict("m").unwrap(), 1);
}

#[test]
fn other_bytes_under_a_known_number_are_loaded_and_said() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    let house = ground.start();
    house.wait_ready();
    let ground = house.close();
    ground.put("m", 1, &answers(5));
    let house = ground.start();
    house.wait_ready();
    let serving = house.wait_state("m", 1, State::Serving);
    assert!(serving.notes[0].contains("not those that came ready"), "{:?}", serving.notes);
}

/// A ledger whose disk can be filled.
struct Filled {
    ledger: LedgerWriter,
    full: Arc<AtomicBool>,
}

impl Journal for Filled {
    fn load(&self) -> Result<Vec<ModelState>, LedgerError> {
        self.ledger.load()
    }

    fn previous_document(&self, model: &ModelName) -> Result<Option<Revision>, LedgerError> {
        self.ledger.previous_document(model)
    }

    fn commit(&mut self, change: Change) -> Result<Committed, LedgerError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(LedgerError::Full { file: "/data/ledger.sqlite3".into() });
        }
        self.ledger.commit(change)
    }
}

#[test]
fn a_full_disk_refuses_changes_and_changes_nothing() {
    let ground = Ground::new();
    for v in 1..=3 {
        ground.put("m", v, &answers(v));
    }
    let (ledger, reader) = ledger::open(&ground.dir.path().join("data")).unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let config = ground.config();
    let house = ground.start_on(config, Box::new(Filled { ledger, full: Arc::clone(&full) }));
    house.wait_ready();
    house.promote("m", 1).unwrap();
    full.store(true, Ordering::SeqCst);
    let refused = house.promote("m", 2).unwrap_err();
    assert!(refused.code == Code::Internal && refused.message.contains("no space is left"), "{refused:?}");
    assert!(!refused.message.contains("/data"), "paths are for the log");
    assert!(house.rollback("m").is_err() && house.unload("m", 2).is_err());
    assert!(ask(house.handle.unload_model(name("m"), ann())).is_err());
    assert_eq!((house.predict("m").unwrap(), house.state("m", 2)), (1, Some(State::Ready)));
    house.ground.put("m", 4, &answers(4));
    house.wait_state("m", 4, State::Ready);
    house.ground.put("fresh", 1, &answers(1));
    house.wait_state("fresh", 1, State::Ready);
    full.store(false, Ordering::SeqCst);
    house.promote("m", 4).unwrap();
    house.wait_state("fresh", 1, State::Serving);
    let actions: Vec<String> = reader.history(&name("m")).unwrap().into_iter().map(|e| e.action).collect();
    assert_eq!(actions, ["promote", "promote", "first_document"]);
}

#[test]
fn the_audit_trail_says_who_did_what() {
    let ground = Ground::new();
    for v in 1..=2 {
        ground.put("m", v, &answers(v));
    }
    let (writer, reader) = ledger::open(&ground.dir.path().join("data")).unwrap();
    let config = ground.config();
    let house = ground.start_on(config, Box::new(writer));
    house.wait_ready();
    house.promote("m", 1).unwrap();
    house.rollback("m").unwrap();
    house.unload("m", 1).unwrap();
    house.load("m", 1).unwrap();
    ask(house.handle.unload_model(name("m"), ann())).unwrap();
    ask(house.handle.load_model(name("m"), ann())).unwrap();
    let events = reader.audit(&ledger::AuditQuery { model: None, since: None, limit: 100 }).unwrap();
    let told: Vec<(&str, &str)> = events.iter().rev().map(|e| (e.actor.as_str(), e.action.as_str())).collect();
    let expected = [
        ("system", "first_document"),
        ("ann", "promote"),
        ("ann", "rollback"),
        ("ann", "unload"),
        ("ann", "load"),
        ("ann", "unload_model"),
        ("ann", "load_model"),
    ];
    assert_eq!(told, expected);
    assert_eq!(events.last().unwrap().before, None);
    assert_eq!(events[5].reason.as_deref(), Some("why"));
}

#[test]
fn a_stopped_manager_says_so_and_leaves_nothing_loaded() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    let mut house = ground.start();
    house.wait_ready();
    let loaded = Arc::downgrade(&house.entry("m").unwrap().pinned(version(1)).unwrap().loaded);
    house.stop.take().unwrap().stop(std::time::Duration::from_secs(20));
    assert_eq!(loaded.strong_count(), 0);
    assert!(!house.snapshot().ready);
    assert_eq!(house.promote("m", 1).unwrap_err().code, Code::Draining);
}
