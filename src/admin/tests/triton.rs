//! Triton's repository extension.

use super::bench::{Bench, bare, failed, name, version};
use crate::lifecycle::Actor;
use crate::lifecycle::fake::Asked;
use crate::registry::{Stage, State};
use crate::route::Document;
use serde_json::{Value, json};

#[test]
fn the_index_spells_states_as_triton_does() {
    let mut bench = Bench::new();
    let (ready, serving) = (bench.loaded(1, State::Ready), bench.loaded(2, State::Serving));
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
    bench.publish(versions, Some(Document::single(version(2))));
    bench.publish_as("empty", Vec::new(), None, false);
    let out = bench.loaded_as("out", 1, State::Ready);
    bench.publish_as("out", vec![out], Some(Document::single(version(1))), true);
    let index = bench.post("/v2/repository/index", "").json();
    let entry = |version: &str, state: &str, reason: &str| json!({"name": "fraud", "version": version, "state": state, "reason": reason});
    let expected = json!([
        {"name": "empty", "state": "UNAVAILABLE", "reason": "no version of it was found"},
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
    let ready = bench.post("/v2/repository/index", r#"{"ready":true,"new_in_triton":1}"#).json();
    assert_eq!(ready, json!([entry("1", "READY", ""), entry("2", "READY", "")]));
    assert_eq!(bench.post("/v2/repository/index", "{}").json(), index);
    bench.post("/v2/repository/index", r#"{"ready":1}"#).refused(
        400,
        "INVALID_REQUEST",
        "ready: expected true or false",
    );
    bench.post("/v2/repository/index", "[]").refused(400, "INVALID_REQUEST", "a JSON object");
}

#[test]
fn load_and_unload_take_what_tritons_clients_send() {
    let bench = Bench::new();
    let (model, actor) = (name("fraud"), Actor("local".to_owned()));
    for body in ["", "{}", r#"{"parameters":{}}"#] {
        let answer = bench.post("/v2/repository/models/fraud/load", body);
        assert_eq!((answer.status.as_u16(), answer.bytes.len()), (200, 0), "{body}");
        assert_eq!(bench.asked(), [Asked::LoadModel { model: model.clone(), actor: actor.clone() }]);
    }
    for body in ["", r#"{"parameters":{"unload_dependents":false}}"#] {
        assert_eq!(bench.post("/v2/repository/models/fraud/unload", body).status, 200, "{body}");
        assert_eq!(bench.asked(), [Asked::UnloadModel { model: model.clone(), actor: actor.clone() }]);
    }
}

#[test]
fn overrides_are_refused_in_words() {
    let bench = Bench::new();
    let load = |parameters: Value| {
        bench.post("/v2/repository/models/fraud/load", json!({"parameters": parameters}).to_string())
    };
    load(json!({"config": "{}"})).refused(400, "INVALID_REQUEST", "model.toml");
    load(json!({"file:1/model.onnx": "AAAA"})).refused(400, "INVALID_REQUEST", "other bytes are a new version");
    load(json!({"speed": 1})).refused(400, "INVALID_REQUEST", "not known here");
    load(json!([])).refused(400, "INVALID_REQUEST", "parameters: expected a JSON object");
    let unload = bench.post("/v2/repository/models/fraud/unload", r#"{"parameters":{"x":1}}"#);
    unload.refused(400, "INVALID_REQUEST", "not known here");
    bench.post("/v2/repository/models/%2e%2e/load", "").refused(404, "MODEL_NOT_FOUND", "..");
    assert!(bench.asked().is_empty(), "nothing of it reached the manager");
}
