//! The overview: rows, their order, and what a caller may see of them.

use super::fixture::{Fixture, bare, document, failed, name, version};
use crate::access::Role;
use crate::history::{Arm, Point, seconds_now};
use crate::registry::{Stage, State};
use serde_json::{Value, json};

/// `quiet` does not answer, `Busy` has a failed version, `slow` is well.
fn models() -> Fixture {
    let mut fixture = Fixture::new();
    let one = || document(&json!({"split": [{"version": "1", "weight": 1}]}));
    fixture.publish_as("quiet", vec![bare(1, State::Pending)], None, false);
    let busy = fixture.loaded_as("Busy", 1, State::Serving);
    fixture.publish_as("Busy", vec![busy, failed(2, Stage::Load, "no model")], Some(one()), false);
    let slow = fixture.loaded_as("slow", 1, State::Serving);
    fixture.publish_as("slow", vec![slow], Some(one()), false);
    let point = |model: &str, requests, failed, p99_us| {
        let arm = Arm { model: name(model), version: version(1), name: "1".to_owned() };
        let point = Point { ts: seconds_now(), span: 10, requests, failed, p50_us: 1, p99_us, engine_ns_per_row: 1 };
        fixture.history.restore(arm, true, point);
    };
    point("Busy", 9000, 0, 500);
    point("slow", 20, 5, 90_000);
    fixture
}

fn names(answer: &Value) -> Vec<&str> {
    answer["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect()
}

#[test]
fn rows_have_what_is_wrong_first_and_can_be_sorted() {
    let fixture = models();
    let all = fixture.get("/api/v1/overview").json();
    assert_eq!((&all["models"], &all["found"], &all["wrong"]), (&json!(3), &json!(3), &json!(2)));
    for (query, expected) in [
        ("", ["quiet", "Busy", "slow"]),
        ("?sort=attention", ["quiet", "Busy", "slow"]),
        ("?sort=name", ["Busy", "quiet", "slow"]),
        ("?sort=requests", ["Busy", "slow", "quiet"]),
        ("?sort=p99", ["slow", "Busy", "quiet"]),
        ("?sort=failed", ["slow", "Busy", "quiet"]),
        ("?sort=versions", ["Busy", "quiet", "slow"]),
        ("?sort=alerts", ["quiet", "Busy", "slow"]),
    ] {
        assert_eq!(names(&fixture.get(&format!("/api/v1/overview{query}")).json()), expected, "{query}");
    }
    let busy = &all["rows"][1];
    assert_eq!(
        (&busy["attention"], &busy["versions"], &busy["failed_versions"]),
        (&json!(1), &json!(2), &json!(["2"]))
    );
    assert_eq!(busy["answers"], json!([{"arm": "1", "version": "1", "share": 1.0}]));
    assert_eq!((&busy["figures"]["requests_per_s"], &busy["figures"]["p99_us"]), (&json!(900.0), &json!(500)));
    assert_eq!(busy["figures"]["last_hour"].as_array().unwrap().len(), 60);
    let quiet = &all["rows"][0];
    assert_eq!((&quiet["ready"], &quiet["figures"], &quiet["attention"]), (&json!(false), &json!(null), &json!(3)));
    assert!(quiet["reason"].as_str().unwrap().contains("no version ready"), "{quiet}");
}

#[test]
fn rows_are_filtered_and_come_a_page_at_a_time() {
    let fixture = models();
    let of = |query: &str| fixture.get(&format!("/api/v1/overview?{query}")).json();
    let found = of("filter=S&limit=1&offset=1&sort=name");
    assert_eq!((&found["models"], &found["found"], names(&found)), (&json!(3), &json!(2), vec!["slow"]));
    assert_eq!(names(&of("limit=0")), [""; 0]);
    assert_eq!(names(&of("offset=3")), [""; 0]);
    assert_eq!(of("filter=none")["found"], 0);
    for (query, words) in [
        ("sort=size", "sort: expected attention, name, requests, p99, failed, versions, alerts"),
        ("limit=1001", "limit: expected a number from 0 to 1000"),
        ("offset=-1", "offset: expected a number from 0 to 1000000"),
        ("order=up", "order: unknown parameter"),
        (&format!("filter={}", "a".repeat(129)), "filter: expected at most 128 bytes"),
    ] {
        fixture.get(&format!("/api/v1/overview?{query}")).refused(400, "INVALID_REQUEST", words);
    }
}

#[test]
fn a_caller_sees_the_rows_of_its_models_alone() {
    let (mut fixture, secrets) = Fixture::closed(&[(Role::Viewer, "fr*")]);
    for model in ["fraud", "iris"] {
        fixture.publish_as(model, vec![bare(1, State::Failed)], None, false);
    }
    let secret = format!("Bearer {}", secrets[0]);
    let seen = fixture.send("GET", "/api/v1/overview", &[("authorization", &secret)], "").json();
    assert_eq!((&seen["models"], &seen["wrong"], names(&seen)), (&json!(1), &json!(1), vec!["fraud"]));
}
