//! What operators ask, and what they are answered.

use super::house::*;
use crate::lifecycle::{LoadOutcome, Promote};
use crate::model::Code;
use crate::registry::State;
use crate::route::{Proposal, Selector};
use serde_json::json;

fn three() -> House {
    let ground = Ground::new();
    for v in 1..=3 {
        ground.put("m", v, &answers(v));
    }
    let house = ground.start();
    house.wait_ready();
    house
}

#[test]
fn promoting_answers_from_and_to_and_changes_nothing_twice() {
    let house = three();
    let done = house.promote("m", 1).unwrap();
    assert_eq!((done.from, done.to, done.revision, done.changed), (Some(version(3)), version(1), 2, true));
    assert_eq!(house.predict("m").unwrap(), 1);
    let again = house.promote("m", 1).unwrap();
    assert_eq!((again.from, again.to, again.revision, again.changed), (Some(version(1)), version(1), 2, false));
    assert_eq!(house.entry("m").unwrap().document().unwrap().reason.as_deref(), Some("why"));
}

#[test]
fn a_dry_run_says_what_would_be_and_changes_nothing() {
    let house = three();
    let dry = |v| house.promote_as("m", Promote { dry_run: true, ..promote(v) });
    let told = dry(1).unwrap();
    assert_eq!((told.from, told.to, told.revision, told.changed), (Some(version(3)), version(1), 1, false));
    assert!(told.would_be.unwrap().serves_alone(version(1)));
    assert_eq!((house.predict("m").unwrap(), house.entry("m").unwrap().revision()), (3, 1));
    assert_eq!(dry(9).unwrap_err().code, Code::VersionNotFound);
}

#[test]
fn what_cannot_be_promoted() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    ground.put("m", 2, "unsupported");
    let house = ground.start();
    house.wait_ready();
    house.ground.put("m", 3, "wide\nend");
    house.wait_state("m", 3, State::Ready);
    let refused = |v| {
        let failure = house.promote("m", v).unwrap_err();
        (failure.code, failure.message)
    };
    let (code, words) = refused(2);
    assert!(code == Code::Conflict && words.contains("failed in load") && words.contains("Frobnicate"), "{words}");
    let (code, words) = refused(3);
    assert!(code == Code::Conflict && words.contains("extra") && words.contains("allow_signature_change"), "{words}");
    assert_eq!(refused(9).0, Code::VersionNotFound);
    assert_eq!(house.promote("nobody", 1).unwrap_err().code, Code::ModelNotFound);
    house.promote_as("m", Promote { allow_signature_change: true, ..promote(3) }).unwrap();
}

#[test]
fn a_document_is_put_whole_or_not_at_all() {
    let house = three();
    let split =
        json!({"split": [{"version": "1", "weight": 1}, {"version": "2", "weight": 3}], "labels": {"canary": "3"}});
    let put = house.put("m", &split).unwrap();
    assert_eq!(put.revision, 2);
    for (v, state) in [(1, State::Serving), (2, State::Serving), (3, State::Serving)] {
        assert_eq!(house.state("m", v), Some(state));
    }
    assert_eq!(house.predict_as("m", Selector::Label("canary")).unwrap(), 3);
    assert_eq!(house.put("m", &split).unwrap().revision, 2, "the same again is no change");
    let done = house.promote("m", 1).unwrap();
    assert_eq!(done.from, Some(version(2)), "the heaviest before");
    assert_eq!(house.predict_as("m", Selector::Label("canary")).unwrap(), 3, "a promotion keeps the rest");
    let failure = house.put("m", &json!({"split": [{"version": "1", "weight": 1}, {"version": "8", "weight": 3}, {"version": "9", "weight": 3}]}),
    );
    let failure = failure.unwrap_err();
    assert_eq!((failure.code, failure.details.len()), (Code::Conflict, 2), "{failure:?}");
    assert_eq!(house.entry("m").unwrap().revision(), 3);
    let shadow = json!({"split": [{"version": "1", "weight": 1}], "shadows": [{"version": "2"}]});
    assert_eq!(house.put("m", &shadow).unwrap().revision, 4);
    assert_eq!(house.state("m", 2), Some(State::Ready), "a shadow serves nobody");
    let shadows: Vec<_> = house.entry("m").unwrap().shadows().iter().map(|s| s.served.loaded.version).collect();
    assert_eq!(shadows, [version(2)]);
    let unready = json!({"split": [{"version": "1", "weight": 1}], "shadows": [{"version": "9"}]});
    assert_eq!(house.put("m", &unready).unwrap_err().code, Code::Conflict);
}

#[test]
fn a_stale_etag_is_refused() {
    let house = three();
    let put = |if_match: Option<Vec<u64>>, v: &str| {
        let proposal = Proposal::parse(&json!({"split": [{"version": v, "weight": 1}]})).unwrap();
        ask(house.handle.put_traffic(name("m"), proposal, if_match, ann()))
    };
    assert_eq!(put(Some(vec![7]), "1").unwrap_err().code, Code::PreconditionFailed);
    assert_eq!(put(Some(vec![]), "1").unwrap_err().code, Code::PreconditionFailed);
    assert_eq!(put(Some(vec![9, 1]), "1").unwrap().revision, 2);
    assert_eq!(put(Some(vec![1]), "2").unwrap_err().code, Code::PreconditionFailed);
    assert_eq!(put(None, "2").unwrap().revision, 3);
}

#[test]
fn a_rollback_goes_back_one_change_and_two_are_none() {
    let house = three();
    assert_eq!(house.rollback("m").unwrap_err().code, Code::Conflict, "there is nothing before the first document");
    house.promote("m", 1).unwrap();
    house.promote("m", 2).unwrap();
    let back = house.rollback("m").unwrap();
    assert_eq!((back.from, back.to, back.revision), (Some(version(2)), version(1), 4));
    assert_eq!(house.predict("m").unwrap(), 1);
    assert_eq!(house.rollback("m").unwrap().to, version(2));
    assert_eq!(house.predict("m").unwrap(), 2);
}

#[test]
fn a_rollback_loads_what_it_goes_back_to() {
    let house = three();
    house.promote("m", 1).unwrap();
    house.unload("m", 3).unwrap();
    house.ground.gate.close(&house.ground.version_dir("m", 3));
    let back = {
        let handle = house.handle.clone();
        std::thread::spawn(move || ask(handle.rollback(name("m"), "back".to_owned(), ann())))
    };
    house.wait_state("m", 3, State::Loading);
    assert_eq!(house.predict("m").unwrap(), 1, "what serves goes on meanwhile");
    assert_eq!(house.unload("m", 3).unwrap_err().code, Code::Conflict, "it may not go now");
    house.ground.gate.open();
    let back = back.join().unwrap().unwrap();
    assert_eq!((back.to, back.loaded), (version(3), vec![version(3)]), "it says what it loaded");
    assert_eq!(house.predict("m").unwrap(), 3);
    assert_eq!(house.rollback("m").unwrap().loaded, [], "what is still loaded is not loaded again");
}

#[test]
fn a_rollback_to_what_cannot_be_loaded_changes_nothing() {
    let house = three();
    house.promote("m", 1).unwrap();
    house.unload("m", 3).unwrap();
    house.ground.put("m", 3, "unsupported");
    let refused = house.rollback("m").unwrap_err();
    assert!(refused.code == Code::Conflict && refused.message.contains("Frobnicate"), "{refused:?}");
    assert_eq!((house.predict("m").unwrap(), house.entry("m").unwrap().revision()), (1, 2));
    let status = house.wait_state("m", 3, State::Unloaded);
    assert!(status.reason.unwrap().contains("operator"), "it is as it was before");
}

#[test]
fn a_promotion_overtakes_a_rollback_that_still_loads() {
    let house = three();
    house.promote("m", 1).unwrap();
    house.unload("m", 3).unwrap();
    house.ground.gate.close(&house.ground.version_dir("m", 3));
    let back = {
        let handle = house.handle.clone();
        std::thread::spawn(move || ask(handle.rollback(name("m"), "back".to_owned(), ann())))
    };
    house.wait_state("m", 3, State::Loading);
    house.promote("m", 2).unwrap();
    assert_eq!(back.join().unwrap().unwrap_err().code, Code::Conflict);
    house.ground.gate.open();
    house.wait_state("m", 3, State::Unloaded);
    assert_eq!(house.predict("m").unwrap(), 2);
}

#[test]
fn loading_and_unloading_answer_when_done_and_again() {
    let house = three();
    assert_eq!(house.unload("m", 3).unwrap_err().code, Code::Conflict, "it serves");
    assert_eq!(house.unload("m", 1).unwrap(), LoadOutcome::Done);
    assert_eq!(house.state("m", 1), Some(State::Unloaded));
    assert_eq!(house.unload("m", 1).unwrap(), LoadOutcome::Done, "repeating it is fine");
    assert_eq!(house.load("m", 1).unwrap(), LoadOutcome::Done);
    assert_eq!(house.state("m", 1), Some(State::Ready));
    assert_eq!(house.load("m", 1).unwrap(), LoadOutcome::Done);
    assert_eq!(house.loads("m", 1), 2);
    assert_eq!(house.load("m", 9).unwrap_err().code, Code::VersionNotFound);
    assert_eq!(house.unload("m", 9).unwrap_err().code, Code::VersionNotFound);
    let accepted = ask(house.handle.unload(name("m"), version(1), false, ann())).unwrap();
    assert_eq!(accepted, LoadOutcome::Accepted);
    house.wait_state("m", 1, State::Unloaded);
    house.ground.put("m", 4, "unsupported");
    house.wait_state("m", 4, State::Failed);
    let refused = house.load("m", 4).unwrap_err();
    assert!(refused.code == Code::Conflict && refused.message.contains("Frobnicate"), "{refused:?}");
    assert_eq!(house.loads("m", 4), 2, "an operator's wish tries once more");
}

#[test]
fn two_who_load_one_version_load_it_once() {
    let house = three();
    house.unload("m", 1).unwrap();
    house.ground.gate.close(&house.ground.version_dir("m", 1));
    let both: Vec<_> = (0..2)
        .map(|_| {
            let handle = house.handle.clone();
            std::thread::spawn(move || ask(handle.load(name("m"), version(1), true, ann())))
        })
        .collect();
    house.wait_state("m", 1, State::Loading);
    house.ground.gate.open();
    for one in both {
        assert_eq!(one.join().unwrap().unwrap(), LoadOutcome::Done);
    }
    assert_eq!(house.loads("m", 1), 2, "once at start, once for both");
}

#[test]
fn a_load_under_way_is_let_go_when_nobody_wants_it_any_more() {
    let house = three();
    house.unload("m", 1).unwrap();
    house.ground.gate.close(&house.ground.version_dir("m", 1));
    assert_eq!(ask(house.handle.load(name("m"), version(1), false, ann())).unwrap(), LoadOutcome::Accepted);
    house.wait_state("m", 1, State::Loading);
    let unloading = {
        let handle = house.handle.clone();
        std::thread::spawn(move || ask(handle.unload(name("m"), version(1), true, ann())))
    };
    house.ground.gate.open();
    assert_eq!(unloading.join().unwrap().unwrap(), LoadOutcome::Done);
    assert_eq!(house.state("m", 1), Some(State::Unloaded));
}

#[test]
fn a_whole_model_goes_and_comes_back_with_its_document() {
    let house = three();
    house.promote("m", 2).unwrap();
    ask(house.handle.unload_model(name("m"), ann())).unwrap();
    for v in 1..=3 {
        assert_eq!(house.state("m", v), Some(State::Unloaded), "{v}");
    }
    assert_eq!(house.predict("m").unwrap_err().code, Code::NotReady);
    assert!(house.snapshot().ready, "that is what the operator wanted");
    assert_eq!(house.promote("m", 1).unwrap_err().code, Code::Conflict);
    assert_eq!(house.load("m", 1).unwrap_err().code, Code::Conflict);
    ask(house.handle.unload_model(name("m"), ann())).unwrap();
    let (ground, revision) = (house.close(), 2);
    let house = ground.start();
    house.wait_ready();
    eventually("the model is known", || house.state("m", 2) == Some(State::Unloaded));
    ask(house.handle.load_model(name("m"), ann())).unwrap();
    assert_eq!(house.predict("m").unwrap(), 2);
    assert_eq!(house.entry("m").unwrap().revision(), revision);
    house.wait_state("m", 3, State::Ready);
}

#[test]
fn a_model_that_cannot_come_back_stays_out() {
    let house = three();
    ask(house.handle.unload_model(name("m"), ann())).unwrap();
    house.ground.put("m", 3, "unsupported");
    eventually("it is seen", || {
        ask(house.handle.load_model(name("m"), ann())).is_err_and(|e| e.message.contains("Frobnicate"))
    });
    assert!(house.entry("m").unwrap().taken_out());
    house.wait_state("m", 1, State::Unloaded);
    house.ground.put("m", 3, &answers(33));
    eventually("it comes back", || ask(house.handle.load_model(name("m"), ann())).is_ok());
    assert_eq!(house.predict("m").unwrap(), 33);
}

#[test]
fn a_push_lands_whole_or_not_at_all() {
    let house = three();
    let push = |model: &str, v: u64, text: &str| {
        let staged = house.ground.dir.path().join("staged");
        std::fs::write(&staged, text).unwrap();
        let result = ask(house.handle.push(name(model), version(v), staged.clone(), ann()));
        assert!(!staged.exists(), "the file is moved away, whatever becomes of it");
        result
    };
    push("m", 4, &answers(4)).unwrap();
    house.wait_state("m", 4, State::Ready);
    assert_eq!(push("m", 4, &answers(5)).unwrap_err().code, Code::Conflict);
    let refused = push("m", 5, "unsupported").unwrap_err();
    assert!(refused.code == Code::InvalidRequest && refused.message.contains("Frobnicate"), "{refused:?}");
    push("fresh", 1, &answers(8)).unwrap();
    house.wait_state("fresh", 1, State::Serving);
    let mut left: Vec<String> = std::fs::read_dir(house.ground.models().join("m"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["1", "2", "3", "4"], "nothing is left of what was refused");
}

#[test]
fn leftovers_of_pushes_are_removed_at_start() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    ground.write("m/.2.tmp-99-0", "model.onnx", "half");
    ground.write("m/.mine", "notes", "not ours");
    let house = ground.start();
    house.wait_ready();
    assert!(!house.ground.models().join("m/.2.tmp-99-0").exists());
    assert!(house.ground.models().join("m/.mine").exists());
}
