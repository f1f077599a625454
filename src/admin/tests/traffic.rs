//! The traffic document, promote, rollback.

use super::fixture::{Fixture, document, name, promotion, version};
use crate::lifecycle::fake::{Asked, Told};
use crate::lifecycle::{Actor, Promote, Published};
use crate::model::{Code, Failure};
use crate::model_settings::{Gates, Verdict};
use crate::registry::State;
use crate::route::Document;
use crate::telemetry::Ended;
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

fn served() -> Fixture {
    let mut fixture = Fixture::new();
    let versions = (1..=3).map(|n| fixture.loaded(n, State::Serving)).collect();
    fixture.publish(versions, Some(document(&whole())));
    fixture
}

#[test]
fn the_document_is_shown_with_its_shares_and_can_be_sent_back() {
    let fixture = served();
    let snapshot = fixture.reader.snapshot();
    for (arm, requests) in snapshot.model("fraud").unwrap().arms().iter().zip([3, 1]) {
        for _ in 0..requests {
            arm.metrics.ended(&Ended::of(None, Duration::ZERO, true));
        }
    }
    let answer = fixture.get(PATH);
    assert_eq!((answer.status.as_u16(), answer.header("etag")), (200, "\"7\""));
    let json = answer.json();
    for (member, value) in whole().as_object().unwrap() {
        assert_eq!(&json[member], value, "{member} is at the top level, as it was put");
    }
    let shares = json!([
        {"arm": "control", "version": "1", "configured": 0.9, "observed": 0.75, "requests": 3, "breaker": "closed"},
        {"arm": "challenger", "version": "2", "configured": 0.1, "observed": 0.25, "requests": 1, "breaker": "closed"},
    ]);
    assert_eq!((&json["shares"], &json["revision"], &json["model"]), (&shares, &json!(7), &json!("fraud")));

    let put = fixture.send("PUT", PATH, &[("if-match", answer.header("etag"))], answer.bytes.clone());
    assert_eq!((put.status.as_u16(), put.header("etag")), (200, "\"8\""), "{put:?}");
    assert_eq!(put.json()["split"], whole()["split"]);
    assert_eq!(put.json()["shares"][0]["observed"], json!(null), "the new revision has had no requests yet");
    let [Asked::PutTraffic { proposal, if_match, .. }] = &fixture.asked()[..] else { panic!("one put") };
    assert_eq!((&proposal.document, if_match), (&document(&whole()), &Some(vec![7])));
    assert!(!proposal.allow_signature_change);
}

#[test]
fn a_missing_model_and_a_missing_document_are_different_errors() {
    let mut fixture = Fixture::new();
    fixture.get(PATH).refused(404, "MODEL_NOT_FOUND", "fraud");
    let one = fixture.loaded(1, State::Ready);
    fixture.publish(vec![one], None);
    fixture.get(PATH).refused(404, "NOT_FOUND", "no traffic document yet");
    let any = fixture.send("PUT", PATH, &[("if-match", "*")], whole().to_string());
    any.refused(412, "PRECONDITION_FAILED", "has none yet");
}

#[test]
fn if_match_is_a_list_of_etags() {
    let fixture = served();
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
        let answer = fixture.send("PUT", PATH, &headers, whole().to_string());
        assert_eq!(answer.status, 200, "{headers:?}: {answer:?}");
        let [Asked::PutTraffic { if_match, .. }] = &fixture.asked()[..] else { panic!("one put") };
        assert_eq!(if_match, &expected, "{headers:?}");
    }
    let empty = fixture.send("PUT", PATH, &[("if-match", " , ")], whole().to_string());
    empty.refused(400, "INVALID_REQUEST", "if-match");
}

#[test]
fn a_wrong_document_is_refused_with_all_complaints() {
    let fixture = served();
    let put = |body: Value| fixture.send("PUT", PATH, &[], body.to_string());
    let wrong = put(json!({"split": [{"version": 1, "weight": -1}], "speed": 3, "status": {}}));
    wrong.refused(400, "INVALID_REQUEST", "speed: unknown member");
    assert!(wrong.json()["details"].as_array().unwrap().len() >= 4, "{}", wrong.json());
    put(json!([])).refused(400, "INVALID_REQUEST", "a traffic document is a JSON object");
    fixture.send("PUT", PATH, &[], "").refused(400, "INVALID_REQUEST", "the body is empty");
    assert!(fixture.asked().is_empty(), "no command reached the manager");
    let allowed = put(json!({"split": [{"version": "1", "weight": 1}], "allow_signature_change": true}));
    assert_eq!(allowed.status, 200, "{allowed:?}");
    let [Asked::PutTraffic { proposal, .. }] = &fixture.asked()[..] else { panic!("one put") };
    assert!(proposal.allow_signature_change);
}

#[test]
fn a_document_refused_by_the_manager_is_409_or_412() {
    let fixture = Fixture::answering(|asked| match asked {
        Asked::PutTraffic { if_match: Some(_), .. } => {
            Told::Refused(Failure::new(Code::PreconditionFailed, "revision 9 is in force"))
        }
        Asked::PutTraffic { model, .. } if model.as_str() == "x" => {
            Told::Refused(Failure::new(Code::ModelNotFound, "no model is named \"x\""))
        }
        _ => Told::Refused(Failure::new(Code::Conflict, "version 2 is failed")),
    });
    let body = whole().to_string();
    fixture.send("PUT", PATH, &[("if-match", "\"7\"")], body.clone()).refused(412, "PRECONDITION_FAILED", "revision 9");
    fixture.send("PUT", PATH, &[], body.clone()).refused(409, "CONFLICT", "version 2 is failed");
    fixture.send("PUT", "/api/v1/models/x/traffic", &[], body).refused(404, "MODEL_NOT_FOUND", "x");
}

#[test]
fn a_promote_returns_from_to_and_revision() {
    let fixture = Fixture::new();
    let answer = fixture.post("/api/v1/models/fraud:promote", r#"{"version":"2","reason":"better","dry_run":false}"#);
    let expected = json!({
        "model": "fraud", "from": "9", "to": "2", "revision": 8, "gates": [], "difference": ["split: 9=1 → 2=1"],
        "from_split": [{"version": "9", "weight": 1.0, "arm": "9"}],
    });
    assert_eq!((answer.status.as_u16(), answer.json()), (200, expected));
    let asked = |dry_run, allow_signature_change| Asked::Promote {
        model: name("fraud"),
        ask: Promote {
            version: version(2),
            reason: "better".to_owned(),
            dry_run,
            allow_signature_change,
            gates: None,
            break_glass: false,
            if_match: None,
            label: None,
            quorum: None,
            actor: Actor("local".to_owned()),
        },
    };
    assert_eq!(fixture.asked(), [asked(false, false)]);
    let endless = json!({"version": "2", "reason": "é".repeat(1001)}).to_string();
    fixture.post("/api/v1/models/fraud:promote", endless).refused(400, "INVALID_REQUEST", "at most 1000 characters");
    let document = json!({"split": [{"version": "2", "weight": 1}], "reason": "r".repeat(1001)}).to_string();
    let put = fixture.send("PUT", "/api/v1/models/fraud/traffic", &[("content-type", "application/json")], document);
    put.refused(400, "INVALID_REQUEST", "at most 1000 characters");
    let plan = json!({"to": "2", "reason": "r".repeat(1001)}).to_string();
    fixture.post("/api/v1/models/fraud:rollout", plan).refused(400, "INVALID_REQUEST", "at most 1000 characters");
    fixture.asked();
    let body = r#"{"version":"2","reason":"better","dry_run":true,"allow_signature_change":true}"#;
    fixture.post("/api/v1/models/fraud:promote", body);
    assert_eq!(fixture.asked(), [asked(true, true)]);
}

#[test]
fn gates_are_read_and_their_verdicts_returned() {
    let fixture = Fixture::answering(|asked| {
        let Asked::Promote { model, ask } = asked else { panic!("a promote") };
        let verdict = |gate, passed| Verdict { gate, asked: "much".to_owned(), found: "little".to_owned(), passed };
        let gates = vec![verdict("golden", true), verdict("shadow_pairs", false)];
        Told::Promoted(crate::lifecycle::Promotion { gates, ..promotion(model, ask.version) })
    });
    let promote = |body: &str| fixture.post("/api/v1/models/fraud:promote", body.to_owned());
    let gates = r#"{"shadow_agreement":0.99,"shadow_pairs":50,"golden":true,"signature":false}"#;
    let dry = promote(&format!(r#"{{"version":"2","reason":"r","dry_run":true,"gates":{gates}}}"#)).json();
    assert_eq!(dry["would_pass"], false, "{dry}");
    let second = json!({"gate": "shadow_pairs", "asked": "much", "found": "little", "passed": false});
    assert_eq!((dry["gates"].as_array().unwrap().len(), &dry["gates"][1]), (2, &second));
    let asked = |fixture: &Fixture| {
        let [Asked::Promote { ask, .. }] = &fixture.asked()[..] else { panic!("one promote") };
        ask.gates.clone()
    };
    let read = Gates { shadow_agreement: Some(0.99), shadow_pairs: Some(50), golden: true, ..Gates::default() };
    assert_eq!(asked(&fixture), Some(read));
    let done = promote(r#"{"version":"2","reason":"r","gates":{}}"#).json();
    assert!(done["would_pass"].is_null() && done["gates"][0]["passed"] == true, "{done}");
    assert_eq!(
        asked(&fixture),
        Some(Gates::default()),
        "an empty object asks for no gates; absent asks for those of model.toml"
    );
    promote(r#"{"version":"2","reason":"r","gates":null}"#);
    assert_eq!(asked(&fixture), None);

    let wrong = r#"{"shadow_agreement":1.5,"shadow_pairs":0,"golden":"yes","signatur":true,"signature":1}"#;
    let wrong = promote(&format!(r#"{{"version":"2","dry_run":7,"gates":{wrong}}}"#));
    let details = wrong.json()["details"].to_string();
    for words in [
        "gates.signatur: unknown gate; known here: shadow_agreement, shadow_pairs, golden, signature",
        "gates.golden: expected true or false",
        "gates.signature: expected true or false, got 1",
        "gates.shadow_agreement: expected a share from 0 to 1, got 1.5",
        "gates.shadow_pairs: expected a whole number from 1",
        "reason: expected",
        "dry_run: expected",
    ] {
        wrong.refused(400, "INVALID_REQUEST", "");
        assert!(details.contains(words), "{words:?} in {details}");
    }
    promote(r#"{"version":"2","reason":"r","gates":true}"#).refused(
        400,
        "INVALID_REQUEST",
        "gates: expected an object",
    );
    assert!(fixture.asked().is_empty(), "no command reached the manager");
}

#[test]
fn duplicate_members_are_reported_with_all_other_complaints() {
    let fixture = served();
    let put = |text: &str| fixture.send("PUT", PATH, &[], text.to_owned());
    let twice = put(r#"{"split": [{"version": "1", "weight": 1, "weight": 2}, {"version": "2", "weight": -1}],
            "labels": {"stable": "1", "canary": "2", "stable": "2", "stable": "1"}, "salt": "a", "salt": "b"}"#);
    twice.refused(400, "INVALID_REQUEST", "labels.stable: duplicate member");
    let details = twice.json()["details"].clone();
    for words in [
        "split[0].weight: duplicate member",
        "salt: duplicate member",
        "split[1].weight: expected a number of 0 or more",
    ] {
        assert!(details.to_string().contains(words), "{words:?} in {details}");
    }
    assert_eq!(details.as_array().unwrap().len(), 4, "each member once: {details}");
    let alone = put(r#"{"split": [{"version": "1", "weight": 1}], "labels": {"a": "1", "a": "1"}}"#);
    alone.refused(400, "INVALID_REQUEST", "labels.a: duplicate member");
    let promote = fixture.post("/api/v1/models/fraud:promote", r#"{"version":"1","reason":"r","version":"2","x":1}"#);
    promote.refused(400, "INVALID_REQUEST", "version: duplicate member");
    promote.refused(400, "INVALID_REQUEST", "x: unknown member");
    assert!(fixture.asked().is_empty(), "no command reached the manager");
}

#[test]
fn a_syntax_error_names_the_member_it_is_in() {
    let fixture = served();
    let table = [
        (r#"{"split": [{"version": "1", "weight": NaN}]}"#, "split[0].weight: the body is not JSON", "JSON has no NaN"),
        (
            "{\"split\": [\n {\"version\": \"1\",\n \"weight\": -Infinity}]}",
            "split[0].weight: ",
            "JSON has no -Infinity",
        ),
        (r#"{"split": [{"version": "1", "weight": nan}]}"#, "split[0].weight: ", "JSON has no nan"),
        (r#"{"shadows": [{"version": "1", "sample": +inf}]}"#, "shadows[0].sample: ", "JSON has no +inf"),
        (r#"{"split": [{"version": "1", "weight": 1e999}]}"#, "split[0].weight: ", "number out of range"),
        (r#"{"split": [{"version": "1" "weight": 1}]}"#, "split[0]: the body is not JSON", "column"),
        (r#"{"split": []} x"#, "the body is not JSON", "trailing"),
        ("{\"split\": ", "split: the body is not JSON", "EOF"),
    ];
    for (text, place, words) in table {
        let answer = fixture.send("PUT", PATH, &[], text.to_owned());
        answer.refused(400, "INVALID_REQUEST", place);
        answer.refused(400, "INVALID_REQUEST", words);
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    fixture.send("PUT", PATH, &[], deep).refused(400, "INVALID_REQUEST", "recursion limit");
    let json = r#"{"s":"a\u0000\"","n":[0,-1,1.5,18446744073709551615,1e300,null,true],"o":{"":{}}}"#;
    let read = crate::admin::json::parse(json.as_bytes()).unwrap();
    assert_eq!(
        read.value,
        serde_json::from_str::<Value>(json).unwrap(),
        "valid JSON is read like any other parser reads it"
    );
    assert!(read.complaints.is_empty());
}

#[test]
fn a_dry_run_shows_the_new_document() {
    let fixture = Fixture::answering(|asked| {
        let Asked::Promote { model, ask } = asked else { panic!("a promote") };
        let before = document(&json!({"split": [{"version": "1", "weight": 70}, {"version": "2", "weight": 30}]}));
        Told::Promoted(crate::lifecycle::Promotion {
            from: None,
            before: Some(before),
            changed: false,
            ..promotion(model, ask.version)
        })
    });
    let body = r#"{"version":"2","reason":"better","dry_run":true}"#;
    let json = fixture.post("/api/v1/models/fraud:promote", body).json();
    assert_eq!((&json["from"], &json["would_be"]["split"][0]["version"]), (&json!(null), &json!("2")));
    assert_eq!(json["difference"], json!(["split: 1=70, 2=30 → 2=1"]));
    let arm = |version: &str, weight: f64| json!({"version": version, "weight": weight, "arm": version});
    assert_eq!(
        json["from_split"],
        json!([arm("1", 70.0), arm("2", 30.0)]),
        "the split is named, not its heaviest version"
    );
    assert_eq!(json.get("ends_rollout"), None, "there is no rollout");
}

#[test]
fn promote_and_rollback_require_a_reason_and_refuse_unknown_members() {
    let fixture = Fixture::new();
    let (promote, rollback) = ("/api/v1/models/fraud:promote", "/api/v1/models/fraud:rollback");
    let table = [
        (promote, r#"{"version":"2"}"#, "reason: expected a reason for the audit trail (required)"),
        (promote, r#"{"version":"2","reason":"  "}"#, "a reason for the audit trail (required)"),
        (promote, r#"{"version":"2","reason":7}"#, "got 7"),
        (promote, r#"{"reason":"r"}"#, "version: expected a version as a string, such as \"3\", got nothing"),
        (promote, r#"{"version":2,"reason":"r"}"#, "got 2"),
        (promote, r#"{"version":"02","reason":"r"}"#, "version: expected"),
        (promote, r#"{"version":"2","reason":"r","dry_run":"yes"}"#, "dry_run: expected true or false, got \"yes\""),
        (
            promote,
            r#"{"version":"2","reason":"r","dryrun":true}"#,
            "dryrun: unknown member; known members: version, reason",
        ),
        (promote, "", "version: expected"),
        (promote, "7", "expected a JSON object such as {\"version\":\"2\""),
        (rollback, "", "a reason for the audit trail (required)"),
        (rollback, r#"{"reason":""}"#, "a reason for the audit trail (required)"),
        (
            rollback,
            r#"{"reason":"r","version":"1"}"#,
            "version: unknown member; known members: reason, dry_run, break_glass, to_revision",
        ),
        (
            rollback,
            r#"{"reason":"r","to_revision":0}"#,
            "to_revision: expected a revision of the history, such as 3, got 0",
        ),
        (
            rollback,
            r#"{"reason":"r","to_revision":"3"}"#,
            "to_revision: expected a revision of the history, such as 3, got ",
        ),
    ];
    for (path, body, words) in table {
        let answer = fixture.post(path, body);
        answer.refused(400, "INVALID_REQUEST", "");
        let json = answer.json();
        let said = format!("{} {}", json["error"].as_str().unwrap(), json["details"]).replace("\\\"", "\"");
        assert!(said.contains(words), "{body}: {said:?} should contain {words:?}");
    }
    let both = fixture.post(promote, "{}").json();
    assert_eq!(both["details"].as_array().unwrap().len(), 2, "all complaints at once: {both}");
    fixture.post("/api/v1/models/-x:promote", "{}").refused(404, "MODEL_NOT_FOUND", "-x");
    assert!(fixture.asked().is_empty(), "no command reached the manager");
    let back = fixture.post(rollback, r#"{"reason":"it was worse"}"#);
    let arm = |version: &str| json!([{"version": version, "weight": 1.0, "arm": version}]);
    let expected = json!({
        "model": "fraud", "from": "9", "to": "1", "revision": 8, "restored": 5, "loaded": ["1"],
        "from_split": arm("9"), "to_split": arm("1"), "difference": ["split: 9=1 → 1=1"],
    });
    assert_eq!(back.json(), expected);
    let dry = fixture.post(rollback, r#"{"reason":"it was worse","to_revision":5,"dry_run":true}"#).json();
    assert_eq!((&dry["would_be"]["split"], &dry["difference"]), (&arm("1"), &expected["difference"]));
    let [.., Asked::Rollback { ask, .. }] = &fixture.asked()[..] else { panic!("a rollback") };
    assert_eq!((ask.to_revision, ask.dry_run), (Some(5), true));
}

#[test]
fn shares_belong_to_the_revision_in_the_response() {
    let mut fixture = Fixture::answering(|asked| {
        let Asked::PutTraffic { proposal, .. } = asked else { panic!("a put") };
        Told::Published(Published { revision: 7, document: proposal.document.clone() })
    });
    let one = fixture.loaded(1, State::Serving);
    fixture.publish(vec![one], Some(Document::single(version(1))));
    let snapshot = fixture.reader.snapshot();
    snapshot.model("fraud").unwrap().arms()[0].metrics.ended(&Ended::of(None, Duration::ZERO, true));
    let put = fixture.send("PUT", PATH, &[], json!({"split": [{"version": "1", "weight": 1}]}).to_string());
    assert_eq!(put.json()["shares"][0]["requests"], 1, "the same revision keeps its counts");
}
