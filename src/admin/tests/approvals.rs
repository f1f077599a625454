//! What there is to look at, and reviews.

use super::fixture::{Fixture, loaded_two};
use crate::access::Role;
use crate::lifecycle::fake::Asked;
use serde_json::{Value, json};

const PLACE: &str = "/api/v1/models/fraud/versions/2";

fn post(fixture: &Fixture, secret: &str, path: &str, body: &Value) -> super::fixture::Answer {
    let bearer = format!("Bearer {secret}");
    fixture.send("POST", path, &[("authorization", &bearer), ("content-type", "application/json")], body.to_string())
}

#[test]
fn what_there_is_to_look_at_is_shown_and_kept_with_the_review() {
    let (mut fixture, secrets) = Fixture::closed(&[(Role::Approver, "*")]);
    loaded_two(&mut fixture);
    let bearer = format!("Bearer {}", secrets[0]);
    let seen = fixture.send("GET", &format!("{PLACE}/approval"), &[("authorization", &bearer)], "").json();
    assert_eq!(
        (&seen["required"], &seen["status"], &seen["proposers"]),
        (&json!(true), &json!("none"), &json!(["ann"]))
    );
    let version = &seen["evidence"]["version"];
    assert_eq!((&version["golden_cases"], &version["metadata"]["metrics"]["auc"]), (&json!(4), &json!(0.99)));
    assert!(
        seen["evidence"]["shadow"]["primaries"].is_array() && seen["evidence"]["quality"]["arms"].is_array(),
        "{seen}"
    );

    let body =
        json!({"reason": "fine", "artifact": seen["artifact"], "attachments": {"replay.json": {"agreement": 1}}});
    let answer = post(&fixture, &secrets[0], &format!("{PLACE}:approve"), &body);
    assert_eq!((answer.status.as_u16(), &answer.json()["by"]), (200, &json!("approver-0")), "{answer:?}");
    let asked = fixture.asked();
    let Some(Asked::Review { ask, .. }) = asked.last() else { panic!("{asked:?}") };
    assert!(ask.approved && ask.artifact == Some("cd".repeat(32)), "{ask:?}");
    assert_eq!(ask.evidence["attachments"]["replay.json"]["agreement"], 1);
    assert_eq!(ask.evidence["version"]["golden_cases"], 4);

    let answer = post(&fixture, &secrets[0], &format!("{PLACE}:reject"), &json!({"reason": "no"}));
    assert_eq!(answer.json()["approved"], false);
}

#[test]
fn a_review_needs_credentials_and_a_whole_body() {
    let open = Fixture::new();
    let answer =
        open.send("POST", &format!("{PLACE}:approve"), &[("content-type", "application/json")], r#"{"reason":"r"}"#);
    answer.refused(403, "FORBIDDEN", "tell two people apart");
    let (mut fixture, secrets) = Fixture::closed(&[(Role::Approver, "*"), (Role::Operator, "*")]);
    loaded_two(&mut fixture);
    let place = format!("{PLACE}:approve");
    let wrong = post(&fixture, &secrets[0], &place, &json!({"artifact": "abc", "attachments": [1], "more": 1}));
    for words in ["reason: expected", "artifact: expected", "attachments: expected", "more: unknown member"] {
        wrong.refused(400, "INVALID_REQUEST", words);
    }
    let large = json!({"reason": "r", "attachments": {"a": "x".repeat(300_000)}});
    post(&fixture, &secrets[0], &place, &large).refused(400, "INVALID_REQUEST", "at most 262144 bytes");
    post(&fixture, &secrets[1], &place, &json!({"reason": "r"})).refused(403, "FORBIDDEN", "approver or admin");
    post(&fixture, &secrets[0], "/api/v1/models/fraud/versions/7:approve", &json!({"reason": "r"})).refused(
        404,
        "VERSION_NOT_FOUND",
        "",
    );
    assert_eq!(fixture.asked(), []);
}

#[test]
fn only_an_admin_of_the_model_breaks_the_glass() {
    let (mut fixture, secrets) =
        Fixture::closed(&[(Role::Operator, "*"), (Role::Admin, "iris"), (Role::Admin, "fraud")]);
    loaded_two(&mut fixture);
    let promote = json!({"version": "2", "reason": "r", "break_glass": true});
    let document = json!({"split": [{"version": "2", "weight": 1}], "break_glass": true});
    let rollback = json!({"reason": "r", "break_glass": true});
    let rollout = json!({"to": "2", "reason": "r", "break_glass": true});
    for secret in &secrets[..2] {
        for (verb, body) in [("promote", &promote), ("rollback", &rollback), ("rollout", &rollout)] {
            post(&fixture, secret, &format!("/api/v1/models/fraud:{verb}"), body).refused(403, "FORBIDDEN", "");
        }
        let bearer = format!("Bearer {secret}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        fixture.send("PUT", "/api/v1/models/fraud/traffic", &headers, document.to_string()).refused(
            403,
            "FORBIDDEN",
            "",
        );
    }
    assert_eq!(fixture.asked(), []);
    assert_eq!(post(&fixture, &secrets[2], "/api/v1/models/fraud:promote", &promote).status, 200);
    assert_eq!(post(&fixture, &secrets[2], "/api/v1/models/fraud:rollback", &rollback).status, 200);
    let begun = post(&fixture, &secrets[2], "/api/v1/models/fraud:rollout", &rollout);
    assert_ne!(begun.status, 403, "{begun:?}");
    let asked = fixture.asked();
    assert!(asked.len() >= 2, "{asked:?}");
    for one in asked {
        assert!(format!("{one:?}").contains("break_glass: true"), "{one:?}");
    }
}
