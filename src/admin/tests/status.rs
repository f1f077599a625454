//! Handlers that show shadows, execution, quality and the prediction log.

use super::fixture::{Fixture, bare, document, name, version};
use crate::quality::{Predicted, Seen};
use crate::registry::State;
use crate::route::Document;
use crate::shadow::Agreement;
use serde_json::json;

fn served() -> Fixture {
    let mut fixture = Fixture::new();
    let versions = vec![fixture.loaded(1, State::Serving), fixture.loaded(2, State::Ready), bare(3, State::Failed)];
    let traffic = json!({"split": [{"version": "1", "weight": 1}], "shadows": [{"version": "2", "sample": 0.5}]});
    fixture.publish(versions, Some(document(&traffic)));
    fixture
}

#[test]
fn shadows_are_shown_with_their_pairs() {
    let fixture = served();
    let path = "/api/v1/models/fraud/shadows";
    let list = fixture.get(path).json();
    assert_eq!((&list["model"], list["shadows"].as_array().unwrap().len()), (&json!("fraud"), 1));
    let shadow = fixture.get(&format!("{path}/2")).json();
    assert_eq!(list["shadows"][0], shadow, "a shadow looks the same in the list");
    assert_eq!((&shadow["sample"], &shadow["offered"], &shadow["primaries"]), (&json!(0.5), &json!(0), &json!([])));
    let figures = Agreement { pairs: 10, agreed: 9 };
    let bytes = || ("ab".repeat(32), "ab".repeat(32));
    fixture.figures.pretend(&name("fraud"), (version(1), version(2)), bytes(), figures);
    fixture.figures.pretend(&name("fraud"), (version(1), version(3)), bytes(), figures);
    let pair = &fixture.get(&format!("{path}/2")).json()["primaries"][0];
    assert_eq!((&pair["primary"], &pair["pairs"], &pair["agreed"]), (&json!("1"), &json!(10), &json!(9)));
    assert_eq!((&pair["agreement"], &pair["latency"]["ratio_of_p99"]), (&json!(0.9), &json!(null)));
    let list = fixture.get(path).json();
    let third = &list["shadows"][1];
    assert_eq!((&third["version"], &third["sample"]), (&json!("3"), &json!(null)), "an earlier shadow with figures");
    let never = fixture.get(&format!("{path}/1")).json();
    assert_eq!((&never["sample"], &never["primaries"]), (&json!(null), &json!([])));
    fixture.get(&format!("{path}/9")).refused(404, "VERSION_NOT_FOUND", "its versions: 1, 2, 3");
    fixture.get(&format!("{path}/x")).refused(404, "VERSION_NOT_FOUND", "\"x\"");
    fixture.get("/api/v1/models/nobody/shadows").refused(404, "MODEL_NOT_FOUND", "nobody");
    fixture.get("/api/v1/models/nobody/shadows/1").refused(404, "MODEL_NOT_FOUND", "nobody");
}

#[test]
fn execution_is_shown_for_loaded_versions_only() {
    let fixture = served();
    let shown = fixture.get("/api/v1/models/fraud/execution").json();
    assert_eq!((&shown["model"], &shown["at_once_below_us"]), (&json!("fraud"), &json!(200.0)));
    let versions: Vec<_> = shown["versions"].as_array().unwrap().iter().map(|v| &v["version"]).collect();
    assert_eq!(versions, ["1", "2"]);
    let first = &shown["versions"][0];
    assert_eq!((&first["engine"], &first["cost"]), (&json!("tract"), &json!([])));
    assert_eq!((&first["batching"]["enabled"], &first["batching"]["max_rows"]), (&json!(false), &json!(null)));
    assert_eq!((&first["runs"]["alone"], &first["runs"]["together"]), (&json!(0), &json!([])));
    fixture.get("/api/v1/models/nobody/execution").refused(404, "MODEL_NOT_FOUND", "nobody");
}

#[test]
fn quality_is_empty_before_the_first_prediction_and_shows_every_arm_after_it() {
    let fixture = served();
    let path = "/api/v1/models/fraud/quality";
    let empty = json!({"model": "fraud", "feedback": 0, "unmatched": 0, "left_out": 0, "share": 1.0, "arms": [], "fleet": null});
    assert_eq!(fixture.get(path).json(), empty);
    let model = name("fraud");
    for request_id in ["a", "b"] {
        let seen =
            Seen { model: &model, version: version(1), arm: "1", request_id, route_key: None, row: 0, ts: 1_000_000 };
        fixture.quality.record_prediction(&seen, Predicted::default);
    }
    let shown = fixture.get(path).json();
    let arm = &shown["arms"][0];
    assert_eq!((&arm["version"], &arm["arm"], &arm["predictions"]), (&json!("1"), &json!("1"), &json!(2)));
    assert_eq!(
        (&arm["accuracy"], &arm["label_delay"]["mean_s"], &arm["values"]),
        (&json!(null), &json!(null), &json!({}))
    );
    fixture.get("/api/v1/models/nobody/quality").refused(404, "MODEL_NOT_FOUND", "nobody");
}

#[test]
fn the_status_of_the_log_lists_every_reason_for_lost_records() {
    let fixture = Fixture::new();
    let log = fixture.get("/api/v1/log").json();
    assert_eq!((&log["records"], &log["queue_bytes"], &log["failing_since"]), (&json!(0), &json!(0), &json!(null)));
    let dropped = log["dropped"].as_object().unwrap();
    assert!(dropped.contains_key("queue_full") && dropped.values().all(|n| n == 0), "{log}");
}

#[test]
fn a_model_without_a_document_has_no_shadows() {
    let mut fixture = Fixture::new();
    fixture.publish(vec![bare(1, State::Pending)], None::<Document>);
    assert_eq!(fixture.get("/api/v1/models/fraud/shadows").json(), json!({"model": "fraud", "shadows": []}));
    assert_eq!(fixture.get("/api/v1/models/fraud/execution").json()["versions"], json!([]));
}
