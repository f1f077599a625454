//! Faults around the manager: unreadable stored documents, a removed data directory, panics, callers that go away, links that leave the
//! models directory.

use super::super::{Config, Policy, RolloutCommit};
use super::fixture::*;
use crate::ledger::{Action, AuditQuery};
use crate::lifecycle::{LoadOutcome, Rollback};
use crate::model::Code;
use crate::registry::State;
use crate::route::{Document, Proposal, Selector};
use serde_json::json;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// Two models with two versions each; version 1 of both serves, after version 2 did.
fn two_models() -> Fixture {
    let workspace = Workspace::new();
    for model in ["m", "n"] {
        workspace.put(model, 1, &answers(1));
        workspace.put(model, 2, &answers(2));
    }
    let fixture = workspace.start();
    fixture.wait_ready();
    fixture.promote("m", 1).unwrap();
    fixture.promote("n", 1).unwrap();
    fixture
}

// === stored documents ===

/// Replaces the stored current document of a model.
fn overwrite_document(workspace: &Workspace, model: &str, text: &str) {
    let connection = rusqlite::Connection::open(workspace.dir.path().join("data/ledger.sqlite3")).unwrap();
    let sql = "UPDATE documents SET document = ?2
               WHERE model = ?1 AND revision = (SELECT revision FROM models WHERE model = ?1)";
    assert_eq!(connection.execute(sql, [model, text]).unwrap(), 1);
}

const UNREADABLE: [&str; 3] =
    ["not JSON", "{\"split\":[]}", "{\"split\":[{\"version\":\"1\",\"weight\":1}],\"newer\":true}"];

#[test]
fn a_stored_document_that_cannot_be_read_disables_its_own_model_only() {
    for text in UNREADABLE {
        let workspace = two_models().close();
        overwrite_document(&workspace, "m", text);
        let fixture = workspace.start();
        fixture.wait_ready();
        assert_eq!(fixture.predict("n").unwrap(), 1, "another model serves");
        fixture.wait_state("m", 2, State::Ready);
        let refused = fixture.predict("m").unwrap_err();
        assert!(refused.code == Code::NotReady && refused.message.contains("cannot be read"), "{text}: {refused:?}");
        assert_eq!(fixture.predict_as("m", Selector::Version(version(2))).unwrap(), 2);
        let status = fixture.status("m", 1).unwrap();
        assert!(status.notes.iter().any(|n| n.contains("traffic document cannot be read")), "{text}: {status:?}");
        assert_eq!(fixture.entry("m").unwrap().revision(), 2);
        let refused = fixture.promote("m", 2).unwrap_err();
        assert!(refused.code == Code::Conflict && refused.message.contains("cannot be read"), "{refused:?}");

        let put = fixture.put("m", &json!({"split": [{"version": "2", "weight": 1}]})).unwrap();
        assert_eq!((put.revision, fixture.predict("m").unwrap()), (3, 2), "a new document repairs the model");
        assert!(fixture.status("m", 1).unwrap().notes.is_empty());
    }
}

#[test]
fn a_rollback_repairs_a_document_that_cannot_be_read() {
    let workspace = two_models().close();
    overwrite_document(&workspace, "m", "not JSON");
    let fixture = workspace.start();
    fixture.wait_ready();
    let back = fixture.rollback("m").unwrap();
    assert_eq!((back.from, back.to, back.revision), (None, version(2), 3));
    assert_eq!(fixture.predict("m").unwrap(), 2);
    let refused = fixture.rollback("m").unwrap_err();
    assert!(refused.code == Code::Internal && refused.message.contains("cannot be read"), "{refused:?}");
}

#[test]
fn a_disabled_model_can_be_unloaded_and_loaded_and_outlives_its_directory() {
    let workspace = two_models().close();
    overwrite_document(&workspace, "m", "{}");
    let fixture = workspace.start();
    fixture.wait_ready();
    wait(fixture.handle.unload_model(name("m"), ann())).unwrap();
    assert_eq!(fixture.state("m", 1), Some(State::Unloaded));
    wait(fixture.handle.load_model(name("m"), ann())).unwrap();
    assert_eq!(fixture.predict("m").unwrap_err().code, Code::NotReady, "nothing is promoted automatically");
    std::fs::remove_dir_all(fixture.workspace.models().join("m")).unwrap();
    eventually("its versions are gone", || fixture.state("m", 1) == Some(State::Unloaded));
    assert!(fixture.predict("m").unwrap_err().message.contains("cannot be read"));
}

#[test]
fn a_document_that_could_not_be_read_back_is_refused() {
    let fixture = two_models();
    let document = Document { split: Vec::new(), ..Document::single(version(1)) };
    let proposal =
        Proposal { document, allow_signature_change: false, break_glass: false, dry_run: false, quorum: None };
    let refused = wait(fixture.handle.put_traffic(name("m"), proposal, None, ann())).unwrap_err();
    assert!(refused.code == Code::InvalidRequest && refused.message.contains("read back"), "{refused:?}");
    let document = Document { split: Vec::new(), ..Document::single(version(1)) };
    let step = RolloutCommit {
        candidate: version(2),
        at: Some(2),
        document: Some(document),
        state: "{}".to_owned(),
        allow_signature_change: false,
        break_glass: false,
        action: Action::RolloutStep,
        reason: None,
    };
    let refused = wait(fixture.handle.commit_rollout(name("m"), step, ann())).unwrap_err();
    assert_eq!(refused.code, Code::InvalidRequest);
    assert_eq!((fixture.predict("m").unwrap(), fixture.entry("m").unwrap().revision()), (1, 2));
}

// === the data directory ===

#[test]
fn changes_are_refused_once_the_data_directory_was_removed() {
    let fixture = two_models();
    std::fs::remove_dir_all(fixture.workspace.dir.path().join("data")).unwrap();
    let refused = fixture.promote("m", 2).unwrap_err();
    assert!(refused.code == Code::Internal && refused.message.contains("removed or replaced"), "{refused:?}");
    assert!(fixture.unload("m", 2).is_err() && fixture.rollback("m").is_err());
    assert_eq!((fixture.predict("m").unwrap(), fixture.entry("m").unwrap().revision()), (1, 2), "nothing is published");
}

// === memory ===

#[test]
fn memory_that_is_being_freed_is_not_freed_twice() {
    let workspace = Workspace::new();
    let padded = |n: u64| format!("{}\n{}", answers(n), "#".repeat(600));
    for v in 1..=3 {
        workspace.put("m", v, &padded(v));
    }
    let config = Config { memory_budget: 2000, policy: Policy::MakeRoom, ..workspace.config() };
    let fixture = workspace.start_with(config);
    fixture.wait_ready();
    let held = Arc::clone(fixture.snapshot().model("m").unwrap().pinned(version(1)).unwrap());
    assert_eq!(wait(fixture.handle.unload(name("m"), version(1), false, None, ann())).unwrap(), LoadOutcome::Accepted);
    fixture.wait_state("m", 1, State::Draining);
    fixture.workspace.put("m", 4, &padded(4));
    eventually("version 4 waits", || {
        fixture.status("m", 4).and_then(|s| s.reason).is_some_and(|reason| reason.contains("waiting for memory"))
    });
    assert_eq!(fixture.state("m", 2), Some(State::Ready), "version 1 frees enough");
    drop(held);
    fixture.wait_state("m", 4, State::Ready);
    assert_eq!((fixture.state("m", 2), fixture.loads("m", 2)), (Some(State::Ready), 1));
}

#[test]
fn memory_that_is_held_after_the_drain_timeout_is_not_waited_for() {
    let workspace = Workspace::new();
    let padded = |n: u64| format!("{}\n{}", answers(n), "#".repeat(600));
    for v in 1..=3 {
        workspace.put("m", v, &padded(v));
    }
    let config = Config {
        memory_budget: 2000,
        policy: Policy::MakeRoom,
        drain_timeout: Duration::from_millis(300),
        ..workspace.config()
    };
    let fixture = workspace.start_with(config);
    fixture.wait_ready();
    let held = Arc::clone(fixture.snapshot().model("m").unwrap().pinned(version(1)).unwrap());
    wait(fixture.handle.unload(name("m"), version(1), false, None, ann())).unwrap();
    fixture.workspace.put("m", 4, &padded(4));
    fixture.wait_state("m", 4, State::Ready);
    assert_eq!(fixture.state("m", 2), Some(State::Unloaded), "version 2 made room instead");
    drop(held);
}

#[test]
fn an_endless_keep_warm_time_is_no_fault() {
    let workspace = Workspace::new();
    workspace.write("m", "model.toml", "versions = { latest = 1 }");
    workspace.put("m", 1, &answers(1));
    let config = Config { keep_warm: Duration::MAX, ..workspace.config() };
    let fixture = workspace.start_with(config);
    fixture.wait_state("m", 1, State::Serving);
    fixture.workspace.put("m", 2, &answers(2));
    fixture.wait_state("m", 2, State::Ready);
    fixture.promote("m", 2).unwrap();
    assert_eq!((fixture.rollback("m").unwrap().loaded, fixture.snapshot().ready), (vec![], true));
}

// === panics ===

#[test]
fn a_manager_that_panicked_is_not_ready_and_refuses_changes() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.put("m", 2, &answers(2));
    let (journal, fault) = FaultyJournal::new(&workspace);
    let config = workspace.config();
    let fixture = workspace.start_on(config, Box::new(journal));
    fixture.wait_ready();
    fault.set(Fault::Panic);
    let refused = fixture.promote("m", 1).unwrap_err();
    assert!(refused.code == Code::Internal && refused.message.contains("the manager ended"), "{refused:?}");
    eventually("the server is not ready", || !fixture.snapshot().ready);
    assert_eq!(fixture.predict("m").unwrap(), 2, "loaded versions go on answering");
    fault.set(Fault::None);
    assert_eq!(fixture.promote("m", 1).unwrap_err().code, Code::Internal, "the table cannot be trusted any more");
    fixture.close();
}

// === callers that go away ===

/// Sends a request and drops its future before the answer.
fn send_and_leave<F: Future>(request: F) {
    wait(async {
        let mut request = pin!(request);
        tokio::select! {
            biased;
            _ = &mut request => {}
            () = async {} => {}
        }
    });
}

#[test]
fn a_request_is_carried_out_when_its_caller_is_gone() {
    let fixture = two_models();
    let handle = &fixture.handle;
    let revision = || fixture.entry("m").unwrap().revision();
    send_and_leave(handle.promote(name("m"), promote(2)));
    eventually("the promotion is made", || revision() == 3 && fixture.predict("m").unwrap() == 2);
    let proposal = Proposal::parse(&json!({"split": [{"version": "1", "weight": 1}]})).unwrap();
    send_and_leave(handle.put_traffic(name("m"), proposal, None, ann()));
    eventually("the document is put", || revision() == 4 && fixture.predict("m").unwrap() == 1);
    let step = RolloutCommit {
        candidate: version(2),
        at: Some(4),
        document: Some(Document::single(version(2))),
        state: "{}".to_owned(),
        allow_signature_change: false,
        break_glass: false,
        action: Action::RolloutFinish,
        reason: None,
    };
    send_and_leave(handle.commit_rollout(name("m"), step, ann()));
    eventually("the rollout step is made", || revision() == 5 && fixture.predict("m").unwrap() == 2);
    send_and_leave(handle.unload(name("m"), version(1), true, None, ann()));
    fixture.wait_state("m", 1, State::Unloaded);
    send_and_leave(handle.load(name("m"), version(1), true, None, ann()));
    fixture.wait_state("m", 1, State::Ready);

    // A rollback that waits for its version.
    fixture.unload("m", 1).unwrap();
    fixture.workspace.gate.close(&fixture.workspace.version_dir("m", 1));
    send_and_leave(handle.rollback(
        name("m"),
        Rollback {
            to_revision: None,
            reason: String::new(),
            dry_run: false,
            break_glass: false,
            if_match: None,
            actor: ann(),
        },
    ));
    fixture.wait_state("m", 1, State::Loading);
    fixture.workspace.gate.open();
    eventually("the rollback is made", || revision() == 6 && fixture.predict("m").unwrap() == 1);

    send_and_leave(handle.unload_model(name("m"), ann()));
    eventually("the model is unloaded", || {
        fixture.predict("m").is_err() && fixture.state("m", 1) == Some(State::Unloaded)
    });
    send_and_leave(handle.load_model(name("m"), ann()));
    eventually("the model is loaded", || fixture.predict("m").is_ok());
    let file = fixture.workspace.dir.path().join("pushed");
    std::fs::write(&file, answers(9)).unwrap();
    send_and_leave(handle.push(name("m"), Some(version(9)), file.clone(), None, ann()));
    fixture.wait_state("m", 9, State::Ready);
    assert!(!file.exists());
}

#[test]
fn requests_that_wait_are_refused_when_the_server_stops() {
    let mut fixture = two_models();
    fixture.unload("m", 2).unwrap();
    fixture.workspace.gate.close(&fixture.workspace.version_dir("m", 2));
    let handle = fixture.handle.clone();
    let waiting = [
        std::thread::spawn({
            let handle = handle.clone();
            move || {
                wait(handle.rollback(
                    name("m"),
                    Rollback {
                        to_revision: None,
                        reason: String::new(),
                        dry_run: false,
                        break_glass: false,
                        if_match: None,
                        actor: ann(),
                    },
                ))
                .unwrap_err()
                .code
            }
        }),
        std::thread::spawn(move || wait(handle.load(name("m"), version(2), true, None, ann())).unwrap_err().code),
    ];
    fixture.wait_state("m", 2, State::Loading);
    let stop = fixture.stop.take().unwrap();
    let stopping = std::thread::spawn(move || stop.stop(Duration::from_millis(50)));
    for request in waiting {
        assert_eq!(request.join().unwrap(), Code::Draining);
    }
    stopping.join().unwrap();
    fixture.workspace.gate.open();
}

// === pushes ===

fn push(fixture: &Fixture, model: &str, v: u64, text: &str) -> Result<(), crate::model::Failure> {
    let staged = fixture.workspace.dir.path().join("staged");
    std::fs::write(&staged, text).unwrap();
    let result = wait(fixture.handle.push(name(model), Some(version(v)), staged.clone(), None, ann()));
    assert!(!staged.exists(), "the file is moved or removed, whatever the result is");
    result.map(drop)
}

fn entries(fixture: &Fixture) -> Vec<String> {
    let names = std::fs::read_dir(fixture.workspace.models()).unwrap();
    let mut names: Vec<String> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_push_that_fails_leaves_no_directory_and_no_audit_event() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    let (journal, fault) = FaultyJournal::new(&workspace);
    let audit = journal.reader.clone();
    let config = workspace.config();
    let fixture = workspace.start_on(config, Box::new(journal));
    fixture.wait_ready();
    let pushes = || {
        let events = audit.audit(&AuditQuery { model: None, since: None, limit: 100 }).unwrap();
        events.iter().filter(|e| e.action == "push").count()
    };
    for text in ["unsupported", "panic", "io", ""] {
        push(&fixture, "fresh", 1, text).unwrap_err();
        assert_eq!((entries(&fixture), pushes()), (vec!["m".to_owned()], 0), "{text:?}");
    }
    fault.set(Fault::Full);
    let refused = push(&fixture, "fresh", 1, &answers(1)).unwrap_err();
    assert!(refused.message.contains("no space is left"), "{refused:?}");
    push(&fixture, "m", 2, &answers(1)).unwrap_err();
    assert_eq!((entries(&fixture), pushes()), (vec!["m".to_owned()], 0), "a version without an event is removed again");
    assert!(!fixture.workspace.version_dir("m", 2).exists());
    fault.set(Fault::None);
    push(&fixture, "fresh", 1, &answers(1)).unwrap();
    fixture.wait_state("fresh", 1, State::Serving);
    assert_eq!((entries(&fixture), pushes()), (vec!["fresh".to_owned(), "m".to_owned()], 1));
    assert_eq!(push(&fixture, "fresh", 1, &answers(1)).unwrap_err().code, Code::Conflict);
    assert_eq!(pushes(), 1);
}

#[test]
fn leftovers_of_pushes_of_new_models_are_removed_at_start() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.write(".2.tmp-99-0", "model.onnx", "half");
    workspace.write(".git", "config", "not from a push");
    let fixture = workspace.start();
    fixture.wait_ready();
    assert_eq!(entries(&fixture), [".git", "m"]);
}

// === links ===

#[test]
fn links_out_of_the_models_directory_are_not_loaded() {
    use std::os::unix::fs::symlink;
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    let outside = workspace.dir.path().join("outside");
    std::fs::create_dir_all(outside.join("1")).unwrap();
    std::fs::write(outside.join("1/model.onnx"), answers(7)).unwrap();
    symlink(outside.join("1"), workspace.models().join("m/2")).unwrap();
    symlink(&outside, workspace.models().join("linked")).unwrap();
    std::fs::create_dir(workspace.version_dir("m", 3)).unwrap();
    symlink(outside.join("1/model.onnx"), workspace.models().join("m/3/model.onnx")).unwrap();
    symlink("1", workspace.models().join("m/4")).unwrap();
    let fixture = workspace.start();
    fixture.wait_ready();
    assert_eq!(fixture.predict("m").unwrap(), 1, "a link inside the models directory is followed");
    fixture.wait_state("m", 4, State::Serving);
    for (model, v) in [("m", 2), ("m", 3), ("linked", 1)] {
        let status = fixture.status(model, v).unwrap();
        let reason = status.reason.clone().unwrap_or_default();
        assert!(status.state == State::Pending && reason.contains("leads out of the models directory"), "{status:?}");
        assert_eq!(fixture.load(model, v).unwrap_err().code, Code::Conflict);
        assert_eq!(fixture.loads(model, v), 0);
    }
    let refused = push(&fixture, "linked", 2, &answers(2)).unwrap_err();
    assert!(refused.code == Code::Conflict && refused.message.contains("leads out"), "{refused:?}");
    assert!(!outside.join("2").exists());

    // A loaded version whose files are replaced by a link goes on serving.
    let file = fixture.workspace.version_dir("m", 1).join("model.onnx");
    std::fs::remove_file(&file).unwrap();
    symlink(outside.join("1/model.onnx"), &file).unwrap();
    let notes = || fixture.status("m", 1).unwrap().notes;
    eventually("it is reported", || notes().iter().any(|n| n.contains("leads out of the models directory")));
    assert_eq!(fixture.predict("m").unwrap(), 1);
}
