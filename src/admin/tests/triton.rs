//! Triton's model repository extension.

use super::fixture::{Fixture, bare, failed, name, version};
use crate::lifecycle::Actor;
use crate::lifecycle::fake::Asked;
use crate::registry::{Stage, State};
use crate::route::Document;
use serde_json::{Value, json};

#[test]
fn the_index_has_tritons_names_of_states() {
    let mut fixture = Fixture::new();
    let (ready, serving) = (fixture.loaded(1, State::Ready), fixture.loaded(2, State::Serving));
    let others = [
        bare(3, State::Pending),
        bare(4, State::Loading),
        bare(5, State::Verifying),
        bare(6, State::Warming),
        bare(7, State::Draining),
        bare(8, State::Unloaded),
        failed(9, Stage::Warm, "a reason"),
    ];
    let versions = [ready, serving].into_iter().chain(others).collect();
    fixture.publish(versions, Some(Document::single(version(2))));
    fixture.publish_as("empty", Vec::new(), None, false);
    let out = fixture.loaded_as("out", 1, State::Ready);
    fixture.publish_as("out", vec![out], Some(Document::single(version(1))), true);
    let index = fixture.post("/v2/repository/index", "").json();
    let entry = |version: &str, state: &str, reason: &str| json!({"name": "fraud", "version": version, "state": state, "reason": reason});
    let expected = json!([
        {"name": "empty", "state": "UNAVAILABLE", "reason": "no version was found"},
        entry("1", "READY", ""),
        entry("2", "READY", ""),
        entry("3", "LOADING", ""),
        entry("4", "LOADING", ""),
        entry("5", "LOADING", ""),
        entry("6", "LOADING", ""),
        entry("7", "UNLOADING", ""),
        entry("8", "UNAVAILABLE", "unloaded"),
        entry("9", "UNAVAILABLE", "a reason"),
        {"name": "out", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"},
    ]);
    assert_eq!(index, expected);
    let ready = fixture.post("/v2/repository/index", r#"{"ready":true,"new_in_triton":1}"#).json();
    assert_eq!(ready, json!([entry("1", "READY", ""), entry("2", "READY", "")]));
    assert_eq!(fixture.post("/v2/repository/index", "{}").json(), index);
    fixture.post("/v2/repository/index", r#"{"ready":1}"#).refused(
        400,
        "INVALID_REQUEST",
        "ready: expected true or false",
    );
    fixture.post("/v2/repository/index", "[]").refused(400, "INVALID_REQUEST", "a JSON object");
}

#[test]
fn load_and_unload_accept_what_tritons_clients_send() {
    let fixture = Fixture::new();
    let (model, actor) = (name("fraud"), Actor("local".to_owned()));
    for body in
        ["", "null", "{}", r#"{"parameters":{}}"#, r#"{"parameters":null}"#, r#"{"parameters":{"config":null}}"#]
    {
        let answer = fixture.post("/v2/repository/models/fraud/load", body);
        assert_eq!((answer.status.as_u16(), answer.bytes.len()), (200, 0), "{body}");
        assert_eq!(fixture.asked(), [Asked::LoadModel { model: model.clone(), actor: actor.clone() }]);
    }
    for body in ["", r#"{"parameters":{"unload_dependents":false}}"#] {
        assert_eq!(fixture.post("/v2/repository/models/fraud/unload", body).status, 200, "{body}");
        assert_eq!(fixture.asked(), [Asked::UnloadModel { model: model.clone(), actor: actor.clone() }]);
    }
}

#[test]
fn overrides_are_refused_with_a_reason() {
    let fixture = Fixture::new();
    let load = |parameters: Value| {
        fixture.post("/v2/repository/models/fraud/load", json!({"parameters": parameters}).to_string())
    };
    load(json!({"config": "{}"})).refused(400, "INVALID_REQUEST", "model.toml");
    load(json!({"file:1/model.onnx": "AAAA"})).refused(400, "INVALID_REQUEST", "push other bytes as a new version");
    load(json!({"speed": 1})).refused(400, "INVALID_REQUEST", "is unknown");
    load(json!([])).refused(400, "INVALID_REQUEST", "parameters: expected a JSON object");
    let repeated = r#"{"parameters":{},"parameters":{"config":"{}"}}"#;
    fixture.post("/v2/repository/models/fraud/load", repeated).refused(
        400,
        "INVALID_REQUEST",
        "parameters: duplicate member",
    );
    fixture.post("/v2/repository/index", r#"{"ready":true,"ready":false}"#).refused(
        400,
        "INVALID_REQUEST",
        "ready: duplicate",
    );
    let unload = fixture.post("/v2/repository/models/fraud/unload", r#"{"parameters":{"x":1}}"#);
    unload.refused(400, "INVALID_REQUEST", "is unknown");
    fixture.post("/v2/repository/models/%2e%2e/load", "").refused(404, "MODEL_NOT_FOUND", "..");
    assert!(fixture.asked().is_empty(), "no command reached the manager");
}
