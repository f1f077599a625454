//! Retired models, and readiness where documents cannot be served.

use super::fixture::*;
use crate::ledger::AuditQuery;
use crate::lifecycle::Retired;
use crate::model::{Code, Failure};
use crate::registry::State;
use crate::route::Selector;
use serde_json::json;

fn retire(fixture: &Fixture, model: &str) -> Result<Retired, Failure> {
    wait(fixture.handle.retire(name(model), "replaced by other".to_owned(), ann()))
}

fn started(versions: &[(&str, u64)]) -> Fixture {
    let workspace = Workspace::new();
    for (model, v) in versions {
        workspace.put(model, *v, &answers(*v));
    }
    let fixture = workspace.start();
    fixture.wait_ready();
    fixture
}

#[test]
fn a_retired_model_answers_404_with_the_reason_also_after_a_restart_until_a_version_is_promoted() {
    let fixture = started(&[("old", 1), ("old", 2), ("other", 1)]);
    fixture.promote("old", 1).unwrap();
    let retired = retire(&fixture, "old").unwrap();
    assert_eq!((retired.changed, retired.revision, retired.retirement.reason.as_str()), (true, 3, "replaced by other"));
    let again = retire(&fixture, "old").unwrap();
    assert_eq!((again.changed, &again.retirement), (false, &retired.retirement), "the first reason stays");
    for v in [1, 2] {
        let status = fixture.wait_state("old", v, State::Unloaded);
        assert!(status.reason.unwrap().contains("retired"));
    }
    let workspace = fixture.close();
    let fixture = workspace.start();
    fixture.wait_ready();
    fixture.wait_state("old", 1, State::Unloaded);
    assert_eq!((fixture.loads("old", 1), fixture.loads("old", 2)), (0, 0));
    assert_eq!(fixture.predict("other").unwrap(), 1);
    for selector in [Selector::Traffic, Selector::Version(version(1))] {
        let refused = fixture.predict_as("old", selector).unwrap_err();
        assert_eq!(refused.code, Code::ModelNotFound);
        assert!(refused.message.starts_with("model old was retired at 2"), "{refused:?}");
        assert!(refused.message.ends_with(": replaced by other"), "{refused:?}");
    }
    let document = json!({"split": [{"version": "2", "weight": 1}]});
    for refused in [
        fixture.load("old", 1).map(drop),
        fixture.rollback("old").map(drop),
        fixture.put("old", &document).map(drop),
        wait(fixture.handle.load_model(name("old"), ann())),
    ] {
        let refused = refused.unwrap_err();
        assert!(refused.code == Code::Conflict && refused.message.contains("promote a version"), "{refused:?}");
    }
    fixture.workspace.put("old", 3, &answers(3));
    fixture.wait_state("old", 3, State::Unloaded);
    let missing = fixture.promote("old", 9).unwrap_err();
    assert_eq!(missing.code, Code::VersionNotFound);

    // The version that served before: its document would not change, but it has to serve again.
    let back = fixture.promote("old", 1).unwrap();
    assert_eq!((back.changed, back.revision, back.to), (true, 4, version(1)));
    assert_eq!(fixture.predict("old").unwrap(), 1);
    fixture.wait_state("old", 3, State::Ready);
    let workspace = fixture.close();
    let (_, reader) = crate::ledger::open(&workspace.dir.path().join("data")).unwrap();
    let history: Vec<_> = reader.history(&name("old")).unwrap().into_iter().map(|h| (h.revision, h.action)).collect();
    let expected = [(4, "promote"), (3, "retire"), (2, "promote"), (1, "first_document")];
    assert_eq!(history, expected.map(|(revision, action)| (revision, action.to_owned())));
    let events = reader.audit(&AuditQuery { model: Some(name("old")), since: None, limit: 50 }).unwrap();
    let event = events.iter().find(|e| e.action == "retire").unwrap();
    assert_eq!((event.actor.as_str(), event.reason.as_deref()), ("ann", Some("replaced by other")));
    let fixture = workspace.start();
    fixture.wait_ready();
    assert_eq!(fixture.predict("old").unwrap(), 1, "it stays back after a restart");
}

#[test]
fn a_promotion_of_a_retired_model_that_fails_or_is_a_dry_run_leaves_it_retired() {
    let fixture = started(&[("m", 1)]);
    retire(&fixture, "m").unwrap();
    fixture.wait_state("m", 1, State::Unloaded);
    fixture.workspace.put("m", 2, "unsupported");
    fixture.wait_state("m", 2, State::Unloaded);
    let refused = fixture.promote("m", 2).unwrap_err();
    assert!(refused.code == Code::Conflict && refused.message.contains("Frobnicate"), "{refused:?}");
    let dry = fixture.promote_as("m", super::super::Promote { dry_run: true, ..promote(1) }).unwrap();
    assert!(!dry.changed && dry.before.is_none() && dry.after.serves_alone(version(1)));
    fixture.wait_state("m", 1, State::Unloaded);
    assert_eq!(fixture.predict("m").unwrap_err().code, Code::ModelNotFound);
}

#[test]
fn a_retired_model_without_a_directory_disappears_from_readiness() {
    let workspace = started(&[("m", 1), ("good", 1)]).close();
    std::fs::remove_dir_all(workspace.models().join("m")).unwrap();
    let fixture = workspace.start();
    fixture.wait_ready();
    let unserved = fixture.entry("m").unwrap().unserved().unwrap();
    assert_eq!(unserved.versions, [version(1)]);
    assert_eq!(unserved.reason, "version 1 is failed in load: its files are not in the models directory");
    assert!(unserved.advice.contains("sluicegate retire m --reason"), "{unserved:?}");
    assert!(fixture.telemetry.render().contains("sluicegate_models_unserved 1"));
    assert_eq!(fixture.predict("m").unwrap_err().code, Code::NotReady);

    retire(&fixture, "m").unwrap();
    assert_eq!(fixture.entry("m").unwrap().unserved(), None);
    assert!(fixture.telemetry.render().contains("sluicegate_models_unserved 0"));
    let fixture = fixture.close().start();
    fixture.wait_ready();
    assert_eq!(fixture.entry("m").unwrap().unserved(), None);
    assert_eq!(fixture.predict("m").unwrap_err().code, Code::ModelNotFound, "it is still known");
}

#[test]
fn a_pruned_version_does_not_hold_readiness_and_another_ready_one_is_named() {
    let fixture = started(&[("m", 1), ("m", 2), ("good", 1)]);
    fixture.promote("m", 1).unwrap();
    let workspace = fixture.close();
    std::fs::remove_dir_all(workspace.version_dir("m", 1)).unwrap();
    let fixture = workspace.start();
    fixture.wait_ready();
    fixture.wait_state("m", 2, State::Ready);
    let unserved = fixture.entry("m").unwrap().unserved().unwrap();
    assert!(unserved.advice.contains("`sluicegate promote m 2 --reason TEXT`"), "{unserved:?}");
    fixture.promote("m", 2).unwrap();
    assert_eq!(fixture.predict("m").unwrap(), 2);
    assert_eq!(fixture.entry("m").unwrap().unserved(), None);
}

#[test]
fn a_server_that_can_serve_none_of_its_documents_is_not_ready() {
    let workspace = started(&[("m", 1), ("n", 1)]).close();
    let aside = workspace.dir.path().join("aside");
    std::fs::rename(workspace.models(), &aside).unwrap();
    std::fs::create_dir(workspace.models()).unwrap();
    workspace.put("unrelated", 1, "unsupported");
    let fixture = workspace.start();
    fixture.wait_state("m", 1, State::Failed);
    fixture.wait_state("unrelated", 1, State::Failed);
    assert!(!fixture.snapshot().ready, "the directory may not be mounted");
    std::fs::rename(aside.join("n"), fixture.workspace.models().join("n")).unwrap();
    fixture.wait_ready();
    assert_eq!(fixture.predict("n").unwrap(), 1);
}

#[test]
fn a_failure_that_may_pass_holds_readiness_only_for_a_while() {
    let workspace = started(&[("m", 1), ("good", 1)]).close();
    workspace.put("m", 1, "io");
    let fixture = workspace.start();
    fixture.wait_state("good", 1, State::Serving);
    fixture.wait_state("m", 1, State::Failed);
    assert!(!fixture.snapshot().ready, "it is tried again first");
    fixture.wait_ready();
    assert!(fixture.loads("m", 1) >= 3, "{}", fixture.loads("m", 1));
}
