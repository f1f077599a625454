//! The table of endpoints, the `OpenAPI` document and its file agree.

use super::fixture::Fixture;
use crate::admin::openapi::TEXT;
use crate::admin::routes::endpoints;
use crate::registry::State;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

fn document() -> Value {
    serde_json::from_str(&TEXT).unwrap()
}

#[test]
fn the_document_lists_every_route_and_no_other() {
    let json = document();
    let paths = json["paths"].as_object().unwrap();
    let described: BTreeSet<(String, String)> = paths
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(move |method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let routed: BTreeSet<(String, String)> =
        endpoints().into_iter().map(|e| (e.method.to_string(), e.path.to_owned())).collect();
    assert_eq!(described, routed);
    assert_eq!(json["openapi"], "3.1.0");
}

#[test]
fn every_operation_has_a_unique_name_and_its_parameters() {
    let json = document();
    let mut names = BTreeSet::new();
    for (path, methods) in json["paths"].as_object().unwrap() {
        for operation in methods.as_object().unwrap().values() {
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} is unique");
            let given: BTreeSet<&str> = operation["parameters"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|p| p["in"] == "path")
                .map(|p| p["name"].as_str().unwrap())
                .collect();
            let wanted: BTreeSet<&str> = path.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
            assert_eq!(given, wanted, "{path}");
        }
    }
}

#[test]
fn schemas_of_other_rooms_match_their_types() {
    let json = document();
    let schema = |name: &str| &json["components"]["schemas"][name];
    let states: Vec<&str> =
        schema("VersionState")["enum"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    assert_eq!(states, State::ALL.map(State::as_str));
    let whole = serde_json::json!({
        "split": [{"version": "1", "weight": 1.0, "arm": "a"}],
        "sticky_by": {"header": "x-user-id"},
        "rules": [{"header": "h", "equals": "e", "version": "1"}],
        "shadows": [{"version": "2", "sample": 0.5}],
        "labels": {"stable": "1"},
        "fallback": {"version": "1"},
        "salt": "s",
        "reason": "r",
    });
    let members = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<String>>();
    let read = super::fixture::document(&whole);
    assert_eq!(members(&serde_json::to_value(&read).unwrap()), members(&whole), "these are all members");
    for (name, value) in [
        ("TrafficDocument", &whole),
        ("TrafficArm", &whole["split"][0]),
        ("TrafficRule", &whole["rules"][0]),
        ("TrafficShadow", &whole["shadows"][0]),
        ("TrafficFallback", &whole["fallback"]),
    ] {
        assert_eq!(members(&schema(name)["properties"]), members(value), "{name}");
    }
}

/// `UPDATE_OPENAPI=1 cargo test --lib openapi` writes the file.
#[test]
fn the_committed_file_matches_the_document() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&file, TEXT.as_str()).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap();
    assert!(committed == *TEXT, "docs/openapi.json is out of date: run UPDATE_OPENAPI=1 cargo test --lib openapi");
    let served = Fixture::new().get("/openapi.json");
    assert_eq!((served.header("content-type"), &served.bytes[..]), ("application/json", committed.as_bytes()));
}
