//! Models, versions, load and unload.

use super::fixture::{self, Fixture, bare, document, failed, name, version};
use crate::lifecycle::Actor;
use crate::lifecycle::fake::{Asked, Told};
use crate::model::{Code, Failure};
use crate::registry::{Entry, Retired, Snapshot, Stage, State, VersionStatus};
use crate::route::Document;
use serde_json::json;
use std::collections::BTreeMap;

#[test]
fn models_are_listed_by_name_with_the_arms_that_answer() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.get("/api/v1/models").json(), json!({"models": []}));
    let (one, two) = (fixture.loaded(1, State::Serving), fixture.loaded(2, State::Serving));
    let held = two.loaded.as_ref().unwrap().metrics.enter();
    let split = json!({"split": [{"version": "1", "weight": 3, "arm": "a"}, {"version": "2", "weight": 1, "arm": "b"},
                                 {"version": "2", "weight": 0, "arm": "c"}]});
    fixture.publish(vec![one, two, failed(3, Stage::Verify, "golden case 2 is off")], Some(document(&split)));
    fixture.publish_as("churn", vec![bare(1, State::Pending)], None, false);
    let json = fixture.get("/api/v1/models").json();
    let names: Vec<&str> = json["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["churn", "fraud"]);
    let churn = &json["models"][0];
    assert_eq!((&churn["ready"], &churn["revision"], &churn["answers"]), (&json!(false), &json!(0), &json!([])));
    assert_eq!(churn["reason"], "model churn has no version ready yet");
    let fraud = fixture.get("/api/v1/models/fraud").json();
    assert_eq!(fraud, json["models"][1], "a model looks the same in the list");
    assert_eq!(fraud["document"]["split"][0], json!({"version": "1", "weight": 3.0, "arm": "a"}));
    assert_eq!((&fraud["ready"], &fraud["revision"], &fraud["reason"]), (&json!(true), &json!(7), &json!(null)));
    let answers = json!([{"arm": "a", "version": "1", "share": 0.75}, {"arm": "b", "version": "2", "share": 0.25}]);
    assert_eq!(fraud["answers"], answers, "an arm without weight answers no requests");
    assert_eq!(fraud["versions"][1]["in_flight"], 1);
    let three = json!({"version": "3", "state": "failed", "stage": "verify", "reason": "golden case 2 is off", "notes": [],
                       "engine": null, "bytes": null, "in_flight": 0});
    assert_eq!(fraud["versions"][2], three);
    drop(held);
    fixture.get("/api/v1/models/nobody").refused(404, "MODEL_NOT_FOUND", "no model is named \"nobody\"");
}

#[test]
fn an_unloaded_model_is_shown_as_unloaded() {
    let mut fixture = Fixture::new();
    let one = fixture.loaded(1, State::Ready);
    fixture.publish_as("fraud", vec![one], Some(Document::single(version(1))), true);
    let fraud = fixture.get("/api/v1/models/fraud").json();
    assert_eq!((&fraud["taken_out"], &fraud["ready"], &fraud["answers"]), (&json!(true), &json!(false), &json!([])));
    assert!(fraud["reason"].as_str().unwrap().contains("unloaded"), "{fraud}");
    assert_eq!(fraud["document"]["split"][0]["version"], "1", "its document is kept");
}

#[test]
fn a_version_is_shown_with_all_details() {
    let mut fixture = Fixture::new();
    let one = VersionStatus { notes: vec!["a remark".to_owned()], ..fixture.loaded(1, State::Serving) };
    fixture.publish(vec![one, failed(2, Stage::Load, "no such operator")], Some(Document::single(version(1))));
    let one = fixture.get("/api/v1/models/fraud/versions/1").json();
    let expected = json!({
        "model": "fraud", "version": "1", "state": "serving", "stage": null, "reason": null, "notes": ["a remark"],
        "signature": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 30]}],
                      "optional_inputs": [],
                      "outputs": [{"name": "label", "datatype": "INT64", "shape": [-1]},
                                  {"name": "any", "datatype": "FP32", "shape": null}]},
        "sha256": "ab".repeat(32), "engine": "tract", "bytes": 1234, "load_ms": 1.5, "verify_ms": 2.0, "warm_ms": 3.0,
        "golden_cases": 4, "metadata": {"git": "abc", "metrics": {"auc": 0.99}}, "in_flight": 0,
    });
    assert_eq!(one, expected);
    let two = fixture.get("/api/v1/models/fraud/versions/2").json();
    assert_eq!((&two["state"], &two["stage"]), (&json!("failed"), &json!("load")));
    assert_eq!((&two["reason"], &two["signature"]), (&json!("no such operator"), &json!(null)));
    fixture.get("/api/v1/models/fraud/versions/3").refused(
        404,
        "VERSION_NOT_FOUND",
        "no version 3; its versions: 1, 2",
    );
    fixture.get("/api/v1/models/nobody/versions/1").refused(404, "MODEL_NOT_FOUND", "nobody");
}

#[test]
fn a_draining_version_shows_its_requests_in_flight() {
    let mut fixture = Fixture::new();
    let one = fixture.loaded(1, State::Ready);
    let (metrics, facts) = (one.loaded.unwrap().metrics.clone(), one.facts);
    let held = metrics.enter();
    fixture.publish(vec![VersionStatus { facts, ..bare(1, State::Draining) }], None);
    assert_eq!(fixture.get("/api/v1/models/fraud/versions/1").json()["in_flight"], 1);
    drop(held);
}

#[test]
fn load_and_unload_return_when_done_or_at_once() {
    let mut fixture = Fixture::new();
    let ready = fixture.loaded(1, State::Ready);
    fixture.publish(vec![ready, bare(2, State::Unloaded)], Some(Document::single(version(1))));
    let load = |wait| Asked::Load {
        model: name("fraud"),
        version: version(1),
        wait,
        reason: None,
        actor: Actor("local".to_owned()),
    };
    let unload = |wait| Asked::Unload {
        model: name("fraud"),
        version: version(2),
        wait,
        reason: None,
        actor: Actor("local".to_owned()),
    };
    let done = json!({"model": "fraud", "version": "1", "state": "ready"});
    for (path, body) in [("1:load", ""), ("1:load?wait=true", "{}"), ("1:load?wait=", "")] {
        let answer = fixture.post(&format!("/api/v1/models/fraud/versions/{path}"), body);
        assert_eq!((answer.status.as_u16(), answer.json()), (200, done.clone()), "{path}");
        assert_eq!(fixture.asked(), [load(true)]);
    }
    let answer = fixture.post("/api/v1/models/fraud/versions/1:load?wait=false", "");
    assert_eq!((answer.status.as_u16(), fixture.asked()), (202, vec![load(false)]));
    let answer = fixture.post("/api/v1/models/fraud/versions/2:unload", "");
    assert_eq!((answer.status.as_u16(), &answer.json()["state"]), (200, &json!("unloaded")));
    assert_eq!(fixture.asked(), [unload(true)]);
    let answer = fixture.post("/api/v1/models/fraud/versions/2:unload?wait=false", "");
    assert_eq!((answer.status.as_u16(), fixture.asked()), (202, vec![unload(false)]));

    let path = "/api/v1/models/fraud/versions/1:load";
    fixture.post(&format!("{path}?wait=no"), "").refused(
        400,
        "INVALID_REQUEST",
        "wait: expected true or false, got \"no\"",
    );
    fixture.post(&format!("{path}?wat=1"), "").refused(
        400,
        "INVALID_REQUEST",
        "wat: unknown parameter; known parameters: wait",
    );
    fixture.post(&format!("{path}?wait=true&wait=false"), "").refused(400, "INVALID_REQUEST", "more than once");
    fixture.post(path, r#"{"force":true}"#).refused(400, "INVALID_REQUEST", "force: unknown member");
    fixture.post("/api/v1/models/fraud/versions/x:load", "").refused(404, "VERSION_NOT_FOUND", "\"x\"");
    fixture.post("/api/v1/models/.x/versions/1:load", "").refused(404, "MODEL_NOT_FOUND", "\".x\"");
    assert!(fixture.asked().is_empty(), "no command reached the manager");
}

#[test]
fn errors_of_the_manager_are_returned_unchanged() {
    let fixture = Fixture::answering(|asked| {
        Told::Refused(match asked {
            Asked::Unload { .. } => Failure::new(Code::Conflict, "the traffic document names it"),
            Asked::Load { .. } => Failure::new(Code::VersionNotFound, "no such version"),
            _ => Failure::new(Code::Draining, "the server is stopping"),
        })
    });
    fixture.post("/api/v1/models/fraud/versions/1:unload", "").refused(409, "CONFLICT", "names it");
    fixture.post("/api/v1/models/fraud/versions/1:load", "").refused(404, "VERSION_NOT_FOUND", "no such version");
    fixture.post("/v2/repository/models/fraud/load", "").refused(503, "DRAINING", "stopping");
}

#[test]
fn a_model_is_retired_with_a_reason_and_shown_as_retired() {
    let mut fixture = Fixture::new();
    let one = fixture.loaded(1, State::Serving);
    fixture.publish(vec![one], Some(Document::single(version(1))));
    let path = "/api/v1/models/fraud";
    let retired = fixture.send("DELETE", path, &[("x-sluicegate-actor", "ann")], r#"{"reason":"replaced"}"#).json();
    let expected = json!({"model": "fraud", "revision": 8, "changed": true,
                          "retired": {"at": "1970-01-01T00:00:00.000000Z", "by": "ann", "reason": "replaced"}});
    assert_eq!(retired, expected);
    let ask = Asked::Retire { model: name("fraud"), reason: "replaced".to_owned(), actor: Actor("ann".to_owned()) };
    assert_eq!(fixture.asked(), [ask]);
    fixture.send("DELETE", path, &[], "{}").refused(400, "INVALID_REQUEST", "reason");

    let entry = Entry::new(name("old"), BTreeMap::new(), Some(Document::single(version(1))), 7, true, false).unwrap();
    let by_ann = Retired { at: jiff::Timestamp::UNIX_EPOCH, by: "ann".to_owned(), reason: "replaced".to_owned() };
    let mut writer = fixture.writer.lock().unwrap();
    let next = Snapshot::clone(&writer.snapshot()).with(entry.with_retired(Some(by_ann)));
    writer.publish(next);
    drop(writer);
    let old = fixture.get("/api/v1/models/old").json();
    assert_eq!((&old["retired"], &old["taken_out"]), (&expected["retired"], &json!(true)));
    assert_eq!(old["reason"], "model old was retired at 1970-01-01T00:00:00Z: replaced");
}

#[test]
fn readiness_lists_models_that_cannot_be_served_with_what_can_be_done() {
    let mut fixture = Fixture::new();
    let two = fixture.loaded(2, State::Ready);
    let gone = failed(1, Stage::Load, "its files are not in the models directory");
    fixture.publish_incomplete(vec![gone, two], Document::single(version(1)));
    let expected = json!({"ready": true, "unserved": [{
        "model": "fraud",
        "versions": ["1"],
        "reason": "version 1 is failed in load: its files are not in the models directory",
        "advice": "version 2 is ready: `sluicegate promote fraud 2 --reason TEXT` sends all requests to it",
    }], "memory": fixture::memory()});
    assert_eq!(fixture.get("/readyz").json(), expected);
}
