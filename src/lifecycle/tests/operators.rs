//! Operator requests and their answers.

use super::fixture::*;
use crate::ledger::Action;
use crate::lifecycle::{LoadOutcome, Promote, Rollback, RolloutCommit};
use crate::model::{Code, Version};
use crate::registry::State;
use crate::route::{Document, Proposal, Selector};
use serde_json::json;

fn three_versions() -> Fixture {
    let workspace = Workspace::new();
    for v in 1..=3 {
        workspace.put("m", v, &answers(v));
    }
    let fixture = workspace.start();
    fixture.wait_ready();
    fixture
}

#[test]
fn a_promotion_reports_both_versions_and_repeating_it_changes_nothing() {
    let fixture = three_versions();
    let done = fixture.promote("m", 1).unwrap();
    assert_eq!((done.from, done.to, done.revision, done.changed), (Some(version(3)), version(1), 2, true));
    assert_eq!(fixture.predict("m").unwrap(), 1);
    let again = fixture.promote("m", 1).unwrap();
    assert_eq!((again.from, again.to, again.revision, again.changed), (Some(version(1)), version(1), 2, false));
    assert_eq!(fixture.entry("m").unwrap().document().unwrap().reason.as_deref(), Some("why"));
}

#[test]
fn a_dry_run_reports_the_result_and_changes_nothing() {
    let fixture = three_versions();
    let dry = |v| fixture.promote_as("m", Promote { dry_run: true, ..promote(v) });
    let result = dry(1).unwrap();
    assert_eq!((result.from, result.to, result.revision, result.changed), (Some(version(3)), version(1), 1, false));
    assert!(result.after.serves_alone(version(1)));
    assert_eq!((fixture.predict("m").unwrap(), fixture.entry("m").unwrap().revision()), (3, 1));
    assert_eq!(dry(9).unwrap_err().code, Code::VersionNotFound);
}

#[test]
fn failed_unknown_and_breaking_versions_cannot_be_promoted() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.put("m", 2, "unsupported");
    let fixture = workspace.start();
    fixture.wait_ready();
    fixture.workspace.put("m", 3, "wide\nend");
    fixture.wait_state("m", 3, State::Ready);
    let refused = |v| {
        let failure = fixture.promote("m", v).unwrap_err();
        (failure.code, failure.message)
    };
    let (code, words) = refused(2);
    assert!(code == Code::Conflict && words.contains("failed in load") && words.contains("Frobnicate"), "{words}");
    let (code, words) = refused(3);
    assert!(code == Code::Conflict && words.contains("extra") && words.contains("allow_signature_change"), "{words}");
    assert_eq!(refused(9).0, Code::VersionNotFound);
    assert_eq!(fixture.promote("nobody", 1).unwrap_err().code, Code::ModelNotFound);
    fixture.promote_as("m", Promote { allow_signature_change: true, ..promote(3) }).unwrap();
}

#[test]
fn a_document_is_put_as_a_whole_or_not_at_all() {
    let fixture = three_versions();
    let split =
        json!({"split": [{"version": "1", "weight": 1}, {"version": "2", "weight": 3}], "labels": {"canary": "3"}});
    let put = fixture.put("m", &split).unwrap();
    assert_eq!(put.revision, 2);
    for (v, state) in [(1, State::Serving), (2, State::Serving), (3, State::Serving)] {
        assert_eq!(fixture.state("m", v), Some(state));
    }
    assert_eq!(fixture.predict_as("m", Selector::Label("canary")).unwrap(), 3);
    assert_eq!(fixture.put("m", &split).unwrap().revision, 2, "an equal document is no change");
    let done = fixture.promote("m", 1).unwrap();
    assert_eq!(done.from, Some(version(2)), "the heaviest before");
    assert_eq!(fixture.predict_as("m", Selector::Label("canary")).unwrap(), 3, "a promotion keeps the rest");
    let failure = fixture.put("m", &json!({"split": [{"version": "1", "weight": 1}, {"version": "8", "weight": 3}, {"version": "9", "weight": 3}]}),
    );
    let failure = failure.unwrap_err();
    assert_eq!((failure.code, failure.details.len()), (Code::Conflict, 2), "{failure:?}");
    assert_eq!(fixture.entry("m").unwrap().revision(), 3);
    let shadow = json!({"split": [{"version": "1", "weight": 1}], "shadows": [{"version": "2"}]});
    assert_eq!(fixture.put("m", &shadow).unwrap().revision, 4);
    assert_eq!(fixture.state("m", 2), Some(State::Ready), "a shadow answers no request");
    let shadows: Vec<_> = fixture.entry("m").unwrap().shadows().iter().map(|s| s.served.loaded.version).collect();
    assert_eq!(shadows, [version(2)]);
    let unready = json!({"split": [{"version": "1", "weight": 1}], "shadows": [{"version": "9"}]});
    assert_eq!(fixture.put("m", &unready).unwrap_err().code, Code::Conflict);
}

#[test]
fn a_stale_etag_is_refused() {
    let fixture = three_versions();
    let put = |if_match: Option<Vec<u64>>, v: &str| {
        let proposal = Proposal::parse(&json!({"split": [{"version": v, "weight": 1}]})).unwrap();
        wait(fixture.handle.put_traffic(name("m"), proposal, if_match, ann()))
    };
    assert_eq!(put(Some(vec![7]), "1").unwrap_err().code, Code::PreconditionFailed);
    assert_eq!(put(Some(vec![]), "1").unwrap_err().code, Code::PreconditionFailed);
    assert_eq!(put(Some(vec![9, 1]), "1").unwrap().revision, 2);
    assert_eq!(put(Some(vec![1]), "2").unwrap_err().code, Code::PreconditionFailed);
    assert_eq!(put(None, "2").unwrap().revision, 3);
}

#[test]
fn a_rollback_goes_back_one_change_and_two_cancel_each_other() {
    let fixture = three_versions();
    assert_eq!(fixture.rollback("m").unwrap_err().code, Code::Conflict, "there is nothing before the first document");
    fixture.promote("m", 1).unwrap();
    fixture.promote("m", 2).unwrap();
    let back = fixture.rollback("m").unwrap();
    assert_eq!((back.from, back.to, back.revision), (Some(version(2)), version(1), 4));
    assert_eq!(fixture.predict("m").unwrap(), 1);
    assert_eq!(fixture.rollback("m").unwrap().to, version(2));
    assert_eq!(fixture.predict("m").unwrap(), 2);
}

fn back() -> Rollback {
    Rollback {
        to_revision: None,
        reason: "back".to_owned(),
        dry_run: false,
        break_glass: false,
        if_match: None,
        actor: ann(),
    }
}

#[test]
fn a_rollback_to_a_revision_puts_that_document_in_force() {
    let fixture = three_versions();
    fixture.promote("m", 1).unwrap();
    fixture.promote("m", 2).unwrap();
    let dry = fixture.roll_back("m", Some(1), true).unwrap();
    assert_eq!((dry.from, dry.to, dry.revision, dry.restored), (Some(version(2)), version(3), 3, 1));
    let differences = dry.before.unwrap().differences(&dry.after);
    assert_eq!(differences, ["split: 2=1 → 3=1"]);
    assert_eq!((fixture.predict("m").unwrap(), fixture.entry("m").unwrap().revision()), (2, 3), "nothing was changed");
    let done = fixture.roll_back("m", Some(1), false).unwrap();
    assert_eq!((done.to, done.revision, done.restored), (version(3), 4, 1));
    assert_eq!(fixture.predict("m").unwrap(), 3);
    for dry_run in [true, false] {
        let unknown = fixture.roll_back("m", Some(9), dry_run).unwrap_err();
        let words = "model m has no traffic document with revision 9; it has 1 to 4";
        assert_eq!((unknown.code, &*unknown.message), (Code::NotFound, words));
        let same = fixture.roll_back("m", Some(1), dry_run).unwrap_err();
        assert!(same.code == Code::Conflict && same.message.contains("is in force already, as revision 4"), "{same:?}");
    }
    let dry = fixture.roll_back("m", None, true).unwrap();
    assert_eq!((dry.to, dry.restored, dry.revision), (version(2), 3, 4), "the document before the last change");
}

#[test]
fn a_dry_rollback_names_what_would_be_loaded_and_loads_nothing() {
    let fixture = three_versions();
    fixture.promote("m", 1).unwrap();
    fixture.unload("m", 3).unwrap();
    let dry = fixture.roll_back("m", None, true).unwrap();
    assert_eq!((dry.to, dry.loaded), (version(3), vec![version(3)]));
    assert_eq!(fixture.state("m", 3), Some(State::Unloaded));
}

#[test]
fn what_a_rollout_has_undone_is_not_undone_again() {
    let fixture = three_versions();
    fixture.promote("m", 1).unwrap();
    fixture.promote("m", 2).unwrap();
    let before = fixture.entry("m").unwrap().document().unwrap().clone();
    for (revision, action, how) in [(3, Action::RolloutTakeBack, "taken back"), (5, Action::RolloutAbort, "aborted")] {
        let commit = |at, document: &Document, action| {
            let commit = RolloutCommit {
                at: Some(at),
                document: Some(document.clone()),
                candidate: version(3),
                state: "{}".to_owned(),
                allow_signature_change: false,
                break_glass: false,
                action,
                reason: Some("a test".to_owned()),
            };
            wait(fixture.handle.commit_rollout(name("m"), commit, ann())).unwrap()
        };
        let mut step = before.clone();
        step.split.extend(Document::single(version(3)).split);
        commit(revision, &step, Action::RolloutStart);
        assert_eq!(fixture.roll_back("m", None, true).unwrap().restored, revision, "a rollout is one change");
        commit(revision + 1, &before, action);
        for dry_run in [true, false] {
            let refused = fixture.roll_back("m", None, dry_run).unwrap_err();
            let now = revision + 2;
            let words = format!(
                "already undone: the rollout of model m was {how}, and revision {now} is the traffic document from before it; to go \
                 back further, name the revision, such as --to-revision 2"
            );
            assert_eq!((refused.code, refused.message), (Code::Conflict, words));
        }
        assert_eq!(fixture.predict("m").unwrap(), 2);
    }
    let back = fixture.roll_back("m", Some(2), false).unwrap();
    assert_eq!((back.to, fixture.predict("m").unwrap()), (version(1), 1), "a named revision is put in force");
    assert_eq!(fixture.rollback("m").unwrap().to, version(2), "and two rollbacks cancel each other again");
}

#[test]
fn a_rollback_loads_the_versions_it_needs() {
    let fixture = three_versions();
    fixture.promote("m", 1).unwrap();
    fixture.unload("m", 3).unwrap();
    fixture.workspace.gate.close(&fixture.workspace.version_dir("m", 3));
    let back = {
        let handle = fixture.handle.clone();
        std::thread::spawn(move || wait(handle.rollback(name("m"), back())))
    };
    fixture.wait_state("m", 3, State::Loading);
    assert_eq!(fixture.predict("m").unwrap(), 1, "the serving version goes on meanwhile");
    assert_eq!(fixture.unload("m", 3).unwrap_err().code, Code::Conflict, "a pending rollback needs it");
    fixture.workspace.gate.open();
    let back = back.join().unwrap().unwrap();
    assert_eq!((back.to, back.loaded), (version(3), vec![version(3)]), "it reports what it loaded");
    assert_eq!(fixture.predict("m").unwrap(), 3);
    assert_eq!(fixture.rollback("m").unwrap().loaded, [], "a loaded version is not loaded again");
}

#[test]
fn a_rollback_to_a_version_that_cannot_be_loaded_changes_nothing() {
    let fixture = three_versions();
    fixture.promote("m", 1).unwrap();
    fixture.unload("m", 3).unwrap();
    fixture.workspace.put("m", 3, "unsupported");
    let refused = fixture.rollback("m").unwrap_err();
    assert!(refused.code == Code::Conflict && refused.message.contains("Frobnicate"), "{refused:?}");
    assert_eq!((fixture.predict("m").unwrap(), fixture.entry("m").unwrap().revision()), (1, 2));
    let status = fixture.wait_state("m", 3, State::Unloaded);
    assert!(status.reason.unwrap().contains("operator"), "it is as it was before");
}

#[test]
fn a_promotion_cancels_a_rollback_that_is_still_loading() {
    let fixture = three_versions();
    fixture.promote("m", 1).unwrap();
    fixture.unload("m", 3).unwrap();
    fixture.workspace.gate.close(&fixture.workspace.version_dir("m", 3));
    let back = {
        let handle = fixture.handle.clone();
        std::thread::spawn(move || wait(handle.rollback(name("m"), back())))
    };
    fixture.wait_state("m", 3, State::Loading);
    fixture.promote("m", 2).unwrap();
    assert_eq!(back.join().unwrap().unwrap_err().code, Code::Conflict);
    fixture.workspace.gate.open();
    fixture.wait_state("m", 3, State::Unloaded);
    assert_eq!(fixture.predict("m").unwrap(), 2);
}

#[test]
fn loads_and_unloads_are_answered_when_done_and_can_be_repeated() {
    let fixture = three_versions();
    assert_eq!(fixture.unload("m", 3).unwrap_err().code, Code::Conflict, "it serves");
    assert_eq!(fixture.unload("m", 1).unwrap(), LoadOutcome::Done);
    assert_eq!(fixture.state("m", 1), Some(State::Unloaded));
    assert_eq!(fixture.unload("m", 1).unwrap(), LoadOutcome::Done, "repeating it is fine");
    assert_eq!(fixture.load("m", 1).unwrap(), LoadOutcome::Done);
    assert_eq!(fixture.state("m", 1), Some(State::Ready));
    assert_eq!(fixture.load("m", 1).unwrap(), LoadOutcome::Done);
    assert_eq!(fixture.loads("m", 1), 2);
    assert_eq!(fixture.load("m", 9).unwrap_err().code, Code::VersionNotFound);
    assert_eq!(fixture.unload("m", 9).unwrap_err().code, Code::VersionNotFound);
    let accepted = wait(fixture.handle.unload(name("m"), version(1), false, None, ann())).unwrap();
    assert_eq!(accepted, LoadOutcome::Accepted);
    fixture.wait_state("m", 1, State::Unloaded);
    fixture.workspace.put("m", 4, "unsupported");
    fixture.wait_state("m", 4, State::Failed);
    let refused = fixture.load("m", 4).unwrap_err();
    assert!(refused.code == Code::Conflict && refused.message.contains("Frobnicate"), "{refused:?}");
    assert_eq!(fixture.loads("m", 4), 2, "an operator's request tries once more");
}

#[test]
fn two_requests_for_one_version_load_it_once() {
    let fixture = three_versions();
    fixture.unload("m", 1).unwrap();
    fixture.workspace.gate.close(&fixture.workspace.version_dir("m", 1));
    let both: Vec<_> = (0..2)
        .map(|_| {
            let handle = fixture.handle.clone();
            std::thread::spawn(move || wait(handle.load(name("m"), version(1), true, None, ann())))
        })
        .collect();
    fixture.wait_state("m", 1, State::Loading);
    fixture.workspace.gate.open();
    for one in both {
        assert_eq!(one.join().unwrap().unwrap(), LoadOutcome::Done);
    }
    assert_eq!(fixture.loads("m", 1), 2, "once at start, once for both requests");
}

#[test]
fn a_load_in_progress_is_dropped_when_it_is_no_longer_wanted() {
    let fixture = three_versions();
    fixture.unload("m", 1).unwrap();
    fixture.workspace.gate.close(&fixture.workspace.version_dir("m", 1));
    assert_eq!(wait(fixture.handle.load(name("m"), version(1), false, None, ann())).unwrap(), LoadOutcome::Accepted);
    fixture.wait_state("m", 1, State::Loading);
    let unloading = {
        let handle = fixture.handle.clone();
        std::thread::spawn(move || wait(handle.unload(name("m"), version(1), true, None, ann())))
    };
    fixture.workspace.gate.open();
    assert_eq!(unloading.join().unwrap().unwrap(), LoadOutcome::Done);
    assert_eq!(fixture.state("m", 1), Some(State::Unloaded));
}

#[test]
fn an_unloaded_model_keeps_its_document() {
    let fixture = three_versions();
    fixture.promote("m", 2).unwrap();
    wait(fixture.handle.unload_model(name("m"), ann())).unwrap();
    for v in 1..=3 {
        assert_eq!(fixture.state("m", v), Some(State::Unloaded), "{v}");
    }
    assert_eq!(fixture.predict("m").unwrap_err().code, Code::NotReady);
    assert!(fixture.snapshot().ready, "an unloaded model does not affect readiness");
    assert_eq!(fixture.promote("m", 1).unwrap_err().code, Code::Conflict);
    assert_eq!(fixture.load("m", 1).unwrap_err().code, Code::Conflict);
    wait(fixture.handle.unload_model(name("m"), ann())).unwrap();
    let (workspace, revision) = (fixture.close(), 2);
    let fixture = workspace.start();
    fixture.wait_ready();
    eventually("the model is known", || fixture.state("m", 2) == Some(State::Unloaded));
    wait(fixture.handle.load_model(name("m"), ann())).unwrap();
    assert_eq!(fixture.predict("m").unwrap(), 2);
    assert_eq!(fixture.entry("m").unwrap().revision(), revision);
    fixture.wait_state("m", 3, State::Ready);
}

#[test]
fn a_model_that_cannot_be_loaded_stays_unloaded() {
    let fixture = three_versions();
    wait(fixture.handle.unload_model(name("m"), ann())).unwrap();
    fixture.workspace.put("m", 3, "unsupported");
    eventually("it is seen", || {
        wait(fixture.handle.load_model(name("m"), ann())).is_err_and(|e| e.message.contains("Frobnicate"))
    });
    assert!(fixture.entry("m").unwrap().taken_out());
    fixture.wait_state("m", 1, State::Unloaded);
    fixture.workspace.put("m", 3, &answers(33));
    eventually("it comes back", || wait(fixture.handle.load_model(name("m"), ann())).is_ok());
    assert_eq!(fixture.predict("m").unwrap(), 33);
}

#[test]
fn a_push_lands_whole_or_not_at_all() {
    let fixture = three_versions();
    let push = |model: &str, v: u64, text: &str| {
        let staged = fixture.workspace.dir.path().join("staged");
        std::fs::write(&staged, text).unwrap();
        let result = wait(fixture.handle.push(name(model), Some(version(v)), staged.clone(), None, ann()));
        assert!(!staged.exists(), "the file is moved or removed, whatever the result is");
        result
    };
    push("m", 4, &answers(4)).unwrap();
    fixture.wait_state("m", 4, State::Ready);
    assert_eq!(push("m", 4, &answers(5)).unwrap_err().code, Code::Conflict);
    let refused = push("m", 5, "unsupported").unwrap_err();
    assert!(refused.code == Code::InvalidRequest && refused.message.contains("Frobnicate"), "{refused:?}");
    push("fresh", 1, &answers(8)).unwrap();
    fixture.wait_state("fresh", 1, State::Serving);
    let mut names: Vec<String> = std::fs::read_dir(fixture.workspace.models().join("m"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["1", "2", "3", "4"], "nothing is left of the refused push");
}

#[test]
fn a_push_without_a_number_gets_the_next_one_that_was_never_used() {
    let fixture = three_versions();
    let staged = |i: usize| {
        let dir = fixture.workspace.dir.path().join(format!("staged-{i}"));
        std::fs::create_dir_all(dir.join("weights")).unwrap();
        std::fs::write(dir.join("model.onnx"), answers(4)).unwrap();
        std::fs::write(dir.join("weights/w.bin"), "w").unwrap();
        dir
    };
    // Eight pushers at the same time.
    let handles: Vec<_> = (0..8)
        .map(|i| {
            let (handle, dir) = (fixture.handle.clone(), staged(i));
            std::thread::spawn(move || wait(handle.push(name("m"), None, dir.clone(), None, ann())).map(|v| (v, dir)))
        })
        .collect();
    let mut pushed: Vec<u64> = handles
        .into_iter()
        .map(|pushing| {
            let (version, dir) = pushing.join().unwrap().unwrap();
            assert!(!dir.exists(), "the directory is moved");
            version.number()
        })
        .collect();
    pushed.sort_unstable();
    assert_eq!(pushed, (4..=11).collect::<Vec<u64>>());
    fixture.wait_state("m", 11, State::Ready);
    assert_eq!(std::fs::read(fixture.workspace.models().join("m/11/weights/w.bin")).unwrap(), b"w");

    // A number is not used again after its directory is gone; one in the directory that is not a version yet counts too.
    std::fs::remove_dir_all(fixture.workspace.models().join("m/11")).unwrap();
    let push = |i: usize| wait(fixture.handle.push(name("m"), None, staged(i), None, ann())).map(Version::number);
    assert_eq!(push(0).unwrap(), 12);
    std::fs::create_dir(fixture.workspace.models().join("m/40")).unwrap();
    assert_eq!(push(1).unwrap(), 41);
    std::fs::create_dir(fixture.workspace.models().join(format!("m/{}", u64::MAX))).unwrap();
    let refused = push(2).unwrap_err();
    assert!(refused.code == Code::Conflict && refused.message.contains("no larger number"), "{refused:?}");
    assert!(!fixture.workspace.dir.path().join("staged-2").exists());

    let first = wait(fixture.handle.push(name("fresh"), None, staged(3), None, ann())).unwrap();
    assert_eq!(first.number(), 1);
    let broken = staged(4);
    std::fs::write(broken.join("model.onnx"), "unsupported").unwrap();
    wait(fixture.handle.push(name("fresh"), None, broken.clone(), None, ann())).unwrap_err();
    assert!(!broken.exists());
    assert_eq!(wait(fixture.handle.push(name("fresh"), None, staged(5), None, ann())).unwrap().number(), 2, "no gap");
}

#[test]
fn leftovers_of_pushes_are_removed_at_start() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.write("m/.2.tmp-99-0", "model.onnx", "half");
    workspace.write("m/.mine", "notes", "not from a push");
    let fixture = workspace.start();
    fixture.wait_ready();
    assert!(!fixture.workspace.models().join("m/.2.tmp-99-0").exists());
    assert!(fixture.workspace.models().join("m/.mine").exists());
}
