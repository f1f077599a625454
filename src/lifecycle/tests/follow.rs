//! States that other gateways of a fleet have: what is put in force here, what waits, and for what.

use super::fixture::*;
use crate::ledger::{self, Retirement, Review, SharedModel};
use crate::lifecycle::{Config, FollowOutcome, Followed};
use crate::registry::State;
use jiff::Timestamp;
use serde_json::json;

fn shared(v: u64) -> SharedModel {
    let document = json!({"split": [{"version": v.to_string(), "weight": 1}]}).to_string();
    SharedModel { document: Some(document), ..SharedModel::default() }
}

fn follow_as(fixture: &Fixture, model: &str, state: &SharedModel) -> FollowOutcome {
    let followed = Followed {
        state: state.clone(),
        actor: "anna".to_owned(),
        action: "promote".to_owned(),
        reason: "promote on b".to_owned(),
    };
    wait(fixture.handle.follow(name(model), followed)).unwrap()
}

fn follow(fixture: &Fixture, state: &SharedModel) -> FollowOutcome {
    follow_as(fixture, "m", state)
}

#[expect(clippy::unnecessary_wraps, reason = "as a state holds it")]
fn retired() -> Option<Retirement> {
    Some(Retirement { ts: Timestamp::now(), actor: "anna".to_owned(), reason: "old".to_owned() })
}

/// What is stored, after a restart.
fn stored(fixture: &Fixture) -> Vec<(String, SharedModel)> {
    let states = wait(fixture.handle.shared_states()).unwrap();
    states.into_iter().map(|(model, state)| (model.to_string(), state)).collect()
}

#[test]
fn a_version_that_the_settings_leave_out_is_loaded_for_the_fleets_document() {
    let workspace = Workspace::new();
    workspace.write("m", "model.toml", "versions = { latest = 1 }\nkeep_warm = \"0s\"");
    for v in [1, 2] {
        workspace.put("m", v, &answers(v));
    }
    let fixture = workspace.start();
    fixture.wait_state("m", 2, State::Serving);
    fixture.wait_state("m", 1, State::Unloaded);
    assert!(
        matches!(follow(&fixture, &shared(1)), FollowOutcome::Waits(why) if why.contains("version 1 of model m is"))
    );
    fixture.wait_state("m", 1, State::Ready);
    assert_eq!(fixture.predict("m").unwrap(), 2, "until then the document from before serves");
    assert_eq!(follow(&fixture, &shared(1)), FollowOutcome::InForce);
    assert_eq!(fixture.predict("m").unwrap(), 1);
    assert_eq!(follow(&fixture, &shared(1)), FollowOutcome::InForce, "twice is once");
    assert_eq!(fixture.entry("m").unwrap().revision(), 2);
    assert!(
        matches!(follow(&fixture, &shared(9)), FollowOutcome::Waits(_)),
        "a version without files is not waited for"
    );
    assert_eq!(fixture.state("m", 9), None);
}

#[test]
fn marks_come_into_force_before_the_document_and_a_retired_model_comes_back_with_it() {
    let workspace = Workspace::new();
    for v in [1, 2] {
        workspace.put("m", v, &answers(v));
    }
    let fixture = workspace.start();
    fixture.wait_state("m", 2, State::Serving);
    // Version 3 is not here: its document waits, and the rest does not.
    let proposers = [(version(3), ["ben".to_owned()].into())].into();
    let next = SharedModel { operator_unloaded: [version(1)].into(), proposers, ..shared(3) };
    assert!(matches!(follow(&fixture, &next), FollowOutcome::Waits(_)));
    fixture.wait_state("m", 1, State::Unloaded);
    assert_eq!(fixture.predict("m").unwrap(), 2);
    let loaded = SharedModel { proposers: next.proposers.clone(), ..shared(2) };
    assert_eq!(follow(&fixture, &loaded), FollowOutcome::InForce);
    fixture.wait_state("m", 1, State::Ready);

    assert_eq!(follow(&fixture, &SharedModel { retired: retired(), ..shared(2) }), FollowOutcome::InForce);
    fixture.wait_state("m", 2, State::Unloaded);
    assert!(fixture.predict("m").unwrap_err().message.contains("was retired"), "by another gateway");
    let workspace = fixture.close();
    let fixture = workspace.start();
    fixture.wait_ready();
    assert_eq!(fixture.loads("m", 2), 0, "also after a restart");
    let (_, kept) = stored(&fixture).remove(0);
    assert_eq!(kept.proposers, next.proposers, "who pushed it is not forgotten");
    // It comes back when the version is loaded, and answers nothing until then.
    assert!(matches!(follow(&fixture, &shared(1)), FollowOutcome::Waits(_)));
    fixture.wait_state("m", 1, State::Ready);
    assert!(fixture.predict("m").unwrap_err().message.contains("was retired"));
    assert_eq!(follow(&fixture, &shared(1)), FollowOutcome::InForce);
    assert_eq!(fixture.predict("m").unwrap(), 1);

    assert_eq!(follow(&fixture, &SharedModel { unloaded: true, ..shared(1) }), FollowOutcome::InForce);
    fixture.wait_state("m", 1, State::Unloaded);
    assert!(matches!(follow(&fixture, &shared(1)), FollowOutcome::Waits(_)), "its version is loaded first");
    fixture.wait_state("m", 1, State::Ready);
    assert_eq!(follow(&fixture, &shared(1)), FollowOutcome::InForce);
    assert_eq!(fixture.predict("m").unwrap(), 1);
}

#[test]
fn a_model_that_is_not_here_keeps_its_marks_until_its_files_come() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    let fixture = workspace.start();
    fixture.wait_state("m", 1, State::Serving);
    assert!(
        matches!(follow_as(&fixture, "n", &shared(1)), FollowOutcome::Waits(why) if why.contains("no model is named"))
    );
    assert_eq!(stored(&fixture).len(), 1, "nothing is stored of it");
    let marks = SharedModel { retired: retired(), ..shared(1) };
    assert_eq!(follow_as(&fixture, "n", &marks), FollowOutcome::InForce);
    fixture.workspace.put("n", 1, &answers(1));
    fixture.wait_state("n", 1, State::Unloaded);
    assert!(fixture.predict("n").unwrap_err().message.contains("was retired"));
}

#[test]
fn files_that_are_not_the_approved_ones_get_no_traffic() {
    let workspace = Workspace::new();
    for v in [1, 2] {
        workspace.put("m", v, &answers(v));
    }
    let fixture = workspace.start();
    fixture.wait_state("m", 2, State::Serving);
    let workspace = fixture.close();
    let (writer, _) = ledger::open(&workspace.dir.path().join("data")).unwrap();
    let config = Config { approval_required: true, ..workspace.config() };
    let fixture = workspace.start_on(config, Box::new(writer));
    fixture.wait_state("m", 1, State::Ready);
    fixture.wait_state("m", 2, State::Serving);
    let review = |artifact: &str| Review {
        artifact: artifact.to_owned(),
        approved: true,
        actor: "ben".to_owned(),
        ts: Timestamp::now(),
        reason: "looked".to_owned(),
    };
    let approved = |artifact: &str| SharedModel { reviews: [(version(1), review(artifact))].into(), ..shared(1) };
    let FollowOutcome::Waits(why) = follow(&fixture, &approved("other")) else { panic!("it does not wait") };
    assert!(why.contains("has other files here than those that were approved: expected other, found "), "{why}");
    assert_eq!(fixture.predict("m").unwrap(), 2);
    let found = why.rsplit(' ').next().unwrap();
    assert_eq!(follow(&fixture, &approved(found)), FollowOutcome::InForce);
    assert_eq!(fixture.predict("m").unwrap(), 1);
    let approval = wait(fixture.handle.approval(name("m"), version(1))).unwrap();
    assert_eq!(approval.review.unwrap().actor, "ben");
}
