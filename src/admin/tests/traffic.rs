//! The document, promote, rollback.

use super::bench::{Bench, document, name, promotion, version};
use crate::lifecycle::fake::{Asked, Told};
use crate::lifecycle::{Actor, Published};
use crate::model::{Code, Failure};
use crate::registry::State;
use crate::route::Document;
use serde_json::{Value, json};
use std::time::Duration;

const PATH: &str = "/api/v1/models/fraud/traffic";

fn whole() -> Value {
    json!({
        "split": [{"version": "1", "weight": 90.0, "arm": "control"}, {"version": "2", "weight": 10.0, "arm": "challenger"}],
        "sticky_by": {"header": "x-user-id"},
        "rules": [{"header": "x-cohort", "equals": "beta", "version": "2"}],
        "shadows": [{"version": "3", "sample": 0.25}],
        "labels": {"stable": "1", "canary": "2"},
        "salt": "s",
        "reason": "why not",
    })
}

fn served() -> Bench {
    let mut bench = Bench::new();
    let versions = (1..=3).map(|n| bench.loaded(n, State::Serving)).collect();
    bench.publish(versions, Some(document(&whole())));
    bench
}

#[test]
fn the_document_is_shown_with_its_shares_and_can_be_put_back_whole() {
    let bench = served();
    let snapshot = bench.reader.snapshot();
    for (arm, requests) in snapshot.model("fraud").unwrap().arms().iter().zip([3, 1]) {
        for _ in 0..requests {
            arm.metrics.ended(None, Duration::ZERO, true);
        }
    }
    let answer = bench.get(PATH);
    assert_eq!((answer.status.as_u16(), answer.header("etag")), (200, "\"7\""));
    let json = answer.json();
    for (member, value) in whole().as_object().unwrap() {
        assert_eq!(&json[member], value, "{member} stands at the top, as it was put");
    }
    let shares = json!([
        {"arm": "control", "version": "1", "configured": 0.9, "observed": 0.75, "requests": 3},
        {"arm": "challenger", "version": "2", "configured": 0.1, "observed": 0.25, "requests": 1},
    ]);
    assert_eq!((&json["shares"], &json["revision"], &json["model"]), (&shares, &json!(7), &json!("fraud")));

    let put = bench.send("PUT", PATH, &[("if-match", answer.header("etag"))], answer.bytes.clone());
    assert_eq!((put.status.as_u16(), put.header("etag")), (200, "\"8\""), "{put:?}");
    assert_eq!(put.json()["split"], whole()["split"]);
    assert_eq!(put.json()["shares"][0]["observed"], json!(null), "the new revision has answered nobody yet");
    let [Asked::PutTraffic { proposal, if_match, .. }] = &bench.asked()[..] else { panic!("one put") };
    assert_eq!((&proposal.document, if_match), (&document(&whole()), &Some(vec![7])));
    assert!(!proposal.allow_signature_change);
}

#[test]
fn no_model_and_no_document_are_told_apart() {
    let mut bench = Bench::new();
    bench.get(PATH).refused(404, "MODEL_NOT_FOUND", "fraud");
    let one = bench.loaded(1, State::Ready);
    bench.publish(vec![one], None);
    bench.get(PATH).refused(404, "NOT_FOUND", "no traffic document yet");
    let any = bench.send("PUT", PATH, &[("if-match", "*")], whole().to_string());
    any.refused(412, "PRECONDITION_FAILED", "has none yet");
}

#[test]
fn if_match_is_a_list_of_etags() {
    let bench = served();
    let table: [(&[&str], Option<Vec<u64>>); 9] = [
        (&[], None),
        (&["*"], None),
        (&["\"7\""], Some(vec![7])),
        (&["\"6\", \"7\""], Some(vec![6, 7])),
        (&["\"6\"", "\"7\",\"8\""], Some(vec![6, 7, 8])),
        (&["7"], Some(vec![7])),
        (&["W/\"7\""], Some(vec![])),
        (&["\"abc\""], Some(vec![])),
        (&["\"-7\""], Some(vec![])),
    ];
    for (headers, expected) in table {
        let headers: Vec<(&str, &str)> = headers.iter().map(|value| ("if-match", *value)).collect();
        let answer = bench.send("PUT", PATH, &headers, whole().to_string());
        assert_eq!(answer.status, 200, "{headers:?}: {answer:?}");
        let [Asked::PutTraffic { if_match, .. }] = &bench.asked()[..] else { panic!("one put") };
        assert_eq!(if_match, &expected, "{headers:?}");
    }
    let empty = bench.send("PUT", PATH, &[("if-match", " , ")], whole().to_string());
    empty.refused(400, "INVALID_REQUEST", "if-match");
}

#[test]
fn a_wrong_document_is_refused_with_every_complaint() {
    let bench = served();
    let put = |body: Value| bench.send("PUT", PATH, &[], body.to_string());
    let wrong = put(json!({"split": [{"version": 1, "weight": -1}], "speed": 3, "status": {}}));
    wrong.refused(400, "INVALID_REQUEST", "speed: unknown member");
    assert!(wrong.json()["details"].as_array().unwrap().len() >= 4, "{}", wrong.json());
    put(json!([])).refused(400, "INVALID_REQUEST", "a traffic document is a JSON object");
    bench.send("PUT", PATH, &[], "").refused(400, "INVALID_REQUEST", "the body is empty");
    assert!(bench.asked().is_empty(), "nothing of it reached the manager");
    let allowed = put(json!({"split": [{"version": "1", "weight": 1}], "allow_signature_change": true}));
    assert_eq!(allowed.status, 200, "{allowed:?}");
    let [Asked::PutTraffic { proposal, .. }] = &bench.asked()[..] else { panic!("one put") };
    assert!(proposal.allow_signature_change);
}

#[test]
fn what_stands_against_a_document_is_409_or_412() {
    let bench = Bench::answering(|asked| match asked {
        Asked::PutTraffic { if_match: Some(_), .. } => {
            Told::Refused(Failure::new(Code::PreconditionFailed, "revision 9 is in force"))
        }
        Asked::PutTraffic { model, .. } if model.as_str() == "x" => {
            Told::Refused(Failure::new(Code::ModelNotFound, "no model is named \"x\""))
        }
        _ => Told::Refused(Failure::new(Code::Conflict, "version 2 is failed")),
    });
    let body = whole().to_string();
    bench.send("PUT", PATH, &[("if-match", "\"7\"")], body.clone()).refused(412, "PRECONDITION_FAILED", "revision 9");
    bench.send("PUT", PATH, &[], body.clone()).refused(409, "CONFLICT", "version 2 is failed");
    bench.send("PUT", "/api/v1/models/x/traffic", &[], body).refused(404, "MODEL_NOT_FOUND", "x");
}

#[test]
fn a_promote_says_from_to_and_revision() {
    let bench = Bench::new();
    let answer = bench.post("/api/v1/models/fraud:promote", r#"{"version":"2","reason":"better","dry_run":false}"#);
    let expected = json!({"model": "fraud", "from": "9", "to": "2", "revision": 8});
    assert_eq!((answer.status.as_u16(), answer.json()), (200, expected));
    let asked = |dry_run, allow_signature_change| Asked::Promote {
        model: name("fraud"),
        version: version(2),
        reason: "better".to_owned(),
        dry_run,
        allow_signature_change,
        actor: Actor("local".to_owned()),
    };
    assert_eq!(bench.asked(), [asked(false, false)]);
    let body = r#"{"version":"2","reason":"better","dry_run":true,"allow_signature_change":true}"#;
    bench.post("/api/v1/models/fraud:promote", body);
    assert_eq!(bench.asked(), [asked(true, true)]);
}

#[test]
fn a_dry_run_shows_the_document_there_would_be() {
    let bench = Bench::answering(|asked| {
        let Asked::Promote { model, version, .. } = asked else { panic!("a promote") };
        let would_be = Some(Document::single(*version));
        Told::Promoted(crate::lifecycle::Promotion {
            from: None,
            would_be,
            changed: false,
            ..promotion(model, *version)
        })
    });
    let body = r#"{"version":"2","reason":"better","dry_run":true}"#;
    let json = bench.post("/api/v1/models/fraud:promote", body).json();
    assert_eq!((&json["from"], &json["would_be"]["split"][0]["version"]), (&json!(null), &json!("2")));
}

#[test]
fn promote_and_rollback_need_a_reason_and_nothing_unknown() {
    let bench = Bench::new();
    let (promote, rollback) = ("/api/v1/models/fraud:promote", "/api/v1/models/fraud:rollback");
    let table = [
        (promote, r#"{"version":"2"}"#, "reason: expected a reason, which is required"),
        (promote, r#"{"version":"2","reason":"  "}"#, "a reason, which is required"),
        (promote, r#"{"version":"2","reason":7}"#, "got 7"),
        (promote, r#"{"reason":"r"}"#, "version: expected a version as a string, such as \"3\", got nothing"),
        (promote, r#"{"version":2,"reason":"r"}"#, "got 2"),
        (promote, r#"{"version":"02","reason":"r"}"#, "version: expected"),
        (promote, r#"{"version":"2","reason":"r","dry_run":"yes"}"#, "dry_run: expected true or false, got \"yes\""),
        (
            promote,
            r#"{"version":"2","reason":"r","dryrun":true}"#,
            "dryrun: unknown member; known here: version, reason",
        ),
        (promote, "", "version: expected"),
        (promote, "7", "expected a JSON object such as {\"version\":\"2\""),
        (rollback, "", "a reason, which is required"),
        (rollback, r#"{"reason":""}"#, "a reason, which is required"),
        (rollback, r#"{"reason":"r","dry_run":true}"#, "dry_run: unknown member; known here: reason"),
    ];
    for (path, body, words) in table {
        let answer = bench.post(path, body);
        answer.refused(400, "INVALID_REQUEST", "");
        let json = answer.json();
        let said = format!("{} {}", json["error"].as_str().unwrap(), json["details"]).replace("\\\"", "\"");
        assert!(said.contains(words), "{body}: {said:?} should say {words:?}");
    }
    let both = bench.post(promote, "{}").json();
    assert_eq!(both["details"].as_array().unwrap().len(), 2, "every complaint at once: {both}");
    bench.post("/api/v1/models/-x:promote", "{}").refused(404, "MODEL_NOT_FOUND", "-x");
    assert!(bench.asked().is_empty(), "nothing of it reached the manager");
    let back = bench.post(rollback, r#"{"reason":"it was worse"}"#);
    assert_eq!(back.json(), json!({"model": "fraud", "from": "9", "to": "1", "revision": 8}));
}

#[test]
fn shares_are_of_the_revision_that_is_answered() {
    let mut bench = Bench::answering(|asked| {
        let Asked::PutTraffic { proposal, .. } = asked else { panic!("a put") };
        Told::Published(Published { revision: 7, document: proposal.document.clone() })
    });
    let one = bench.loaded(1, State::Serving);
    bench.publish(vec![one], Some(Document::single(version(1))));
    let snapshot = bench.reader.snapshot();
    snapshot.model("fraud").unwrap().arms()[0].metrics.ended(None, Duration::ZERO, true);
    let put = bench.send("PUT", PATH, &[], json!({"split": [{"version": "1", "weight": 1}]}).to_string());
    assert_eq!(put.json()["shares"][0]["requests"], 1, "the same revision keeps its counts");
}
