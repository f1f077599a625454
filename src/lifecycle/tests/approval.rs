//! Approvals: which changes need one, whose counts, and what happens to files that change.

use super::fixture::*;
use crate::ledger::{self, AuditQuery, LedgerReader};
use crate::lifecycle::{Actor, Config, Promote, ReviewRequest, Reviewed, Rollback, RolloutCommit};
use crate::model::{Code, Failure};
use crate::registry::{Stage, State};
use crate::route::{Document, Proposal};
use serde_json::json;

/// Version 1 served before approvals were required; 2 is ready.
fn two_versions() -> (Fixture, LedgerReader) {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    let fixture = workspace.start();
    fixture.wait_state("m", 1, State::Serving);
    let workspace = fixture.close();
    workspace.put("m", 2, &answers(2));
    start(workspace)
}

/// Starts where approvals are required.
fn start(workspace: Workspace) -> (Fixture, LedgerReader) {
    let (fixture, ledger) = start_again(workspace);
    fixture.wait_state("m", 1, State::Serving);
    fixture.wait_state("m", 2, State::Ready);
    (fixture, ledger)
}

/// The same, without waiting for versions.
fn start_again(workspace: Workspace) -> (Fixture, LedgerReader) {
    let (writer, ledger) = ledger::open(&workspace.dir.path().join("data")).unwrap();
    let config = Config { approval_required: true, ..workspace.config() };
    (workspace.start_on(config, Box::new(writer)), ledger)
}

fn by(name: &str) -> Promote {
    Promote { actor: Actor(name.to_owned()), ..promote(2) }
}

fn review(fixture: &Fixture, name: &str, approved: bool, artifact: Option<&str>) -> Result<Reviewed, Failure> {
    let request = ReviewRequest {
        version: version(2),
        artifact: artifact.map(str::to_owned),
        approved,
        reason: "looked at it".to_owned(),
        evidence: json!({"seen": true}),
        actor: Actor(name.to_owned()),
    };
    wait(fixture.handle.review(super::fixture::name("m"), request))
}

fn approve(fixture: &Fixture, name: &str) -> Result<Reviewed, Failure> {
    review(fixture, name, true, None)
}

#[track_caller]
fn needs_approval<T: std::fmt::Debug>(result: Result<T, Failure>, words: &str) {
    let failure = result.unwrap_err();
    assert_eq!(failure.code, Code::Conflict, "{failure:?}");
    let text = format!("{} {:?}", failure.message, failure.details);
    assert!(text.contains("version 2 of model m needs an approval") && text.contains(words), "{words:?} in {text}");
}

#[test]
fn no_way_leads_to_traffic_without_an_approval() {
    let (fixture, _) = two_versions();
    needs_approval(fixture.promote_as("m", by("ann")), "nobody has approved its files");
    let one = json!({"version": "1", "weight": 1});
    for document in [
        json!({"split": [one, {"version": "2", "weight": 1}]}),
        json!({"split": [one, {"version": "2", "weight": 0}]}),
        json!({"split": [one], "rules": [{"header": "h", "equals": "x", "version": "2"}]}),
        json!({"split": [one], "labels": {"canary": "2"}}),
    ] {
        needs_approval(fixture.put("m", &document), "nobody has approved");
    }
    let commit = RolloutCommit {
        at: Some(1),
        document: Some(
            Document::from_json(&json!({"split": [one], "shadows": [{"version": "2", "sample": 1}]}).to_string())
                .unwrap(),
        ),
        candidate: version(2),
        state: "{}".to_owned(),
        allow_signature_change: false,
        break_glass: false,
        action: ledger::Action::RolloutStart,
        reason: None,
    };
    needs_approval(wait(fixture.handle.commit_rollout(name("m"), commit.clone(), ann())), "nobody has approved");
    let step = RolloutCommit { action: ledger::Action::RolloutStep, ..commit };
    needs_approval(
        wait(fixture.handle.commit_rollout(name("m"), step, Actor("rollout".to_owned()))),
        "nobody has approved",
    );
    assert_eq!(fixture.predict("m").unwrap(), 1);
    // A shadow answers nobody.
    fixture.put("m", &json!({"split": [one], "shadows": [{"version": "2", "sample": 1}]})).unwrap();
    assert_eq!(fixture.state("m", 2), Some(State::Ready));
    let state = wait(fixture.handle.approval(name("m"), version(2))).unwrap();
    assert!(state.required && state.review.is_none() && state.proposers == ["ann".to_owned()].into(), "{state:?}");
}

#[test]
fn a_second_person_approves_and_the_first_one_releases() {
    let (fixture, ledger) = two_versions();
    needs_approval(fixture.promote_as("m", by("ann")), "nobody");
    let own = approve(&fixture, "ann").unwrap_err();
    assert!(own.code == Code::Forbidden && own.message.contains("somebody else has to approve"), "{own:?}");
    let approved = approve(&fixture, "bob").unwrap().review;
    assert!(approved.approved && approved.artifact.len() == 64, "{approved:?}");
    needs_approval(fixture.promote_as("m", by("bob")), "bob approved it, so somebody else has to ask");
    let dry = fixture.promote_as("m", Promote { dry_run: true, ..by("bob") }).unwrap();
    assert!(dry.gates.iter().any(|gate| gate.gate == "approval" && !gate.passed), "{:?}", dry.gates);
    assert!(fixture.promote_as("m", by("ann")).unwrap().changed);
    assert_eq!(fixture.predict("m").unwrap(), 2);
    let events = ledger.audit(&AuditQuery { model: None, since: None, limit: 10 }).unwrap();
    let approval = events.iter().find(|event| event.action == "approve").expect("the approval is in the audit trail");
    assert!(approval.actor == "bob" && approval.after.as_ref().unwrap().contains("\"seen\":true"), "{approval:?}");
    // The approval survives a restart.
    drop(ledger);
    let (fixture, _) = start_again(fixture.close());
    fixture.wait_state("m", 2, State::Serving);
    let state = wait(fixture.handle.approval(name("m"), version(2))).unwrap();
    assert_eq!(state.review, Some(approved));
}

#[test]
fn a_rejection_withdraws_an_approval_and_other_files_need_another() {
    let (fixture, _) = two_versions();
    let found = approve(&fixture, "bob").unwrap().review.artifact;
    let other = review(&fixture, "bob", true, Some(&"0".repeat(64))).unwrap_err();
    assert!(other.code == Code::Conflict && other.message.contains(&found), "{other:?}");
    review(&fixture, "eve", false, Some(&found)).unwrap();
    needs_approval(fixture.promote_as("m", by("ann")), "eve rejected it");
    approve(&fixture, "bob").unwrap();
    assert!(fixture.promote_as("m", by("carol")).unwrap().changed);
    // Back to version 1, which nobody approved: it served before, but it does not now.
    let back = fixture.rollback("m").unwrap_err();
    assert!(format!("{back:?}").contains("version 1 of model m needs an approval"), "{back:?}");
}

#[test]
fn an_admin_breaks_the_glass_and_everybody_sees_it() {
    let (fixture, ledger) = two_versions();
    let broken = fixture.promote_as("m", Promote { break_glass: true, ..by("root") }).unwrap();
    assert!(broken.changed);
    assert_eq!(fixture.predict("m").unwrap(), 2);
    let event = ledger.audit(&AuditQuery { model: None, since: None, limit: 1 }).unwrap().remove(0);
    assert!(event.after.as_ref().unwrap().contains("\"break_glass\":[\"2\"]"), "{event:?}");
    assert!(fixture.telemetry.render().contains("sluicegate_break_glass_total{action=\"promote\"} 1"));
    let document = Document::from_json(&json!({"split": [{"version": "1", "weight": 1}]}).to_string()).unwrap();
    let proposal =
        Proposal { document, allow_signature_change: false, break_glass: true, dry_run: false, quorum: None };
    wait(fixture.handle.put_traffic(name("m"), proposal, None, Actor("root".to_owned()))).unwrap();
    assert_eq!(fixture.predict("m").unwrap(), 1);

    // Back to version 2.
    let refused = fixture.rollback("m").unwrap_err();
    assert!(format!("{refused:?}").contains("version 2 of model m needs an approval"), "{refused:?}");
    assert_eq!(fixture.predict("m").unwrap(), 1);
    let (reason, actor) = ("fire".to_owned(), Actor("root".to_owned()));
    let request = Rollback { to_revision: None, reason, dry_run: true, break_glass: true, if_match: None, actor };
    wait(fixture.handle.rollback(name("m"), request.clone())).unwrap();
    assert_eq!(fixture.predict("m").unwrap(), 1, "a dry run changes nothing");
    wait(fixture.handle.rollback(name("m"), Rollback { dry_run: false, ..request })).unwrap();
    assert_eq!(fixture.predict("m").unwrap(), 2);
    let event = ledger.audit(&AuditQuery { model: None, since: None, limit: 1 }).unwrap().remove(0);
    assert!(
        event.action == "rollback" && event.after.as_ref().unwrap().contains("\"break_glass\":[\"2\"]"),
        "{event:?}"
    );
    assert!(fixture.telemetry.render().contains("sluicegate_break_glass_total{action=\"rollback\"} 1"));
}

#[test]
fn a_rollout_that_began_with_broken_glass_goes_on_to_its_end() {
    let (fixture, ledger) = two_versions();
    let one = json!({"version": "1", "weight": 1});
    let document = |json: &serde_json::Value| Some(Document::from_json(&json.to_string()).unwrap());
    let commit = RolloutCommit {
        at: Some(1),
        document: document(&json!({"split": [one], "shadows": [{"version": "2", "sample": 1}]})),
        candidate: version(2),
        state: "{}".to_owned(),
        allow_signature_change: false,
        break_glass: true,
        action: ledger::Action::RolloutStart,
        reason: Some("fire".to_owned()),
    };
    wait(fixture.handle.commit_rollout(name("m"), commit.clone(), Actor("root".to_owned()))).unwrap();
    let newest = || ledger.audit(&AuditQuery { model: None, since: None, limit: 1 }).unwrap().remove(0);
    assert!(newest().after.unwrap().contains("\"break_glass\":[\"2\"]"), "{:?}", newest());
    let split = document(&json!({"split": [one, {"version": "2", "weight": 1}]}));
    let step = RolloutCommit { at: Some(2), document: split, action: ledger::Action::RolloutStep, ..commit };
    wait(fixture.handle.commit_rollout(name("m"), step.clone(), Actor("rollout".to_owned()))).unwrap();
    assert!(newest().after.unwrap().contains("\"break_glass\":[\"2\"]"), "each step shows it: {:?}", newest());
    // Somebody approves it on the way.
    approve(&fixture, "bob").unwrap();
    let all = document(&json!({"split": [{"version": "2", "weight": 1}]}));
    let last = RolloutCommit { at: Some(3), document: all, action: ledger::Action::RolloutFinish, ..step };
    wait(fixture.handle.commit_rollout(name("m"), last, Actor("rollout".to_owned()))).unwrap();
    assert!(!newest().after.unwrap().contains("break_glass"), "{:?}", newest());
    assert_eq!(fixture.predict("m").unwrap(), 2);
}

#[test]
fn a_new_model_waits_for_the_approval_of_its_first_version() {
    let workspace = Workspace::new();
    workspace.write("m", "model.toml", "auto_promote = true\n[approval]\nrequired = true\n");
    workspace.put("m", 2, &answers(2));
    let fixture = workspace.start();
    fixture.wait_state("m", 2, State::Ready);
    eventually("the version says what it waits for", || {
        fixture.status("m", 2).unwrap().notes.iter().any(|note| note.contains("it needs an approval"))
    });
    assert!(fixture.predict("m").is_err(), "it has no traffic");
    fixture.wait_ready();
    approve(&fixture, "bob").unwrap();
    fixture.wait_state("m", 2, State::Serving);
    assert_eq!(fixture.predict("m").unwrap(), 2);
}

#[test]
fn files_that_changed_while_the_server_was_stopped_do_not_serve() {
    let (fixture, _) = two_versions();
    approve(&fixture, "bob").unwrap();
    fixture.promote_as("m", by("ann")).unwrap();
    let workspace = fixture.close();
    workspace.put("m", 2, &answers(9));
    let (fixture, _) = start_again(workspace);
    let failed = fixture.wait_state("m", 2, State::Failed);
    assert_eq!(failed.stage, Some(Stage::Verify));
    assert!(failed.reason.unwrap().contains("not those that were approved"), "the reason says why");
    assert!(fixture.predict("m").is_err());
    // The files that were approved serve again.
    fixture.workspace.put("m", 2, &answers(2));
    fixture.wait_state("m", 2, State::Serving);
    assert_eq!(fixture.predict("m").unwrap(), 2);
}

#[test]
fn who_pushes_a_version_cannot_approve_it() {
    let (fixture, _) = two_versions();
    let staged = fixture.workspace.models().join(".push-test.onnx");
    std::fs::write(&staged, answers(3)).unwrap();
    wait(fixture.handle.push(name("m"), Some(version(3)), staged, None, ann())).unwrap();
    fixture.wait_state("m", 3, State::Ready);
    let request = |actor: &str| ReviewRequest {
        version: version(3),
        artifact: None,
        approved: true,
        reason: "r".to_owned(),
        evidence: json!({}),
        actor: Actor(actor.to_owned()),
    };
    assert_eq!(wait(fixture.handle.review(name("m"), request("ann"))).unwrap_err().code, Code::Forbidden);
    wait(fixture.handle.review(name("m"), request("bob"))).unwrap();
    let promoted = fixture.promote_as("m", Promote { version: version(3), ..by("ann") });
    assert!(promoted.unwrap().changed, "who pushed it may release what somebody else approved");
    let rejected = wait(fixture.handle.review(name("m"), ReviewRequest { approved: false, ..request("ann") }));
    assert!(rejected.is_ok(), "everybody may reject");
}
