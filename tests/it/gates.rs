//! Refused traffic documents, gates of promotes, and rollbacks, through the admin API.

use crate::support::{Answer, Gateway, eventually, infer_body, onnx};
use serde_json::{Value, json};

const TRAFFIC: &str = "/api/v1/models/m/traffic";

fn gateway(model_toml: &str) -> Gateway {
    Gateway::start(|models| {
        onnx::install(models, "m", 1, &onnx::scaling(1.0));
        onnx::install(models, "m", 2, &onnx::scaling(1.0));
        onnx::install(models, "m", 3, &onnx::scaling(2.0));
        std::fs::write(models.join("m/model.toml"), model_toml).unwrap();
    })
}

fn put(gateway: &Gateway, text: &str) -> Answer {
    gateway.admin_put_bytes(TRAFFIC, text.as_bytes())
}

fn promote(gateway: &Gateway, body: &Value) -> Answer {
    gateway.admin_send("POST", "/api/v1/models/m:promote", &[], body)
}

/// The error message and its details as one text.
#[track_caller]
fn refused(answer: &Answer, status: u16) -> String {
    assert_eq!(answer.status, status, "{answer:?}");
    answer.code();
    let json = answer.json();
    let details = json["details"].as_array().into_iter().flatten();
    let all = std::iter::once(&json["error"]).chain(details).map(|words| words.as_str().unwrap());
    all.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_bad_document_is_refused_with_all_complaints() {
    let gateway = gateway("");
    let before = gateway.admin_get(TRAFFIC);
    let alone = [
        (r#"{"split": []}"#, "split: expected at least one arm"),
        (r"{}", "split: expected at least one arm"),
        (
            r#"{"split": [{"version": "1", "weight": 0}, {"version": "2", "weight": 0}]}"#,
            "split: the weights are all 0",
        ),
        (r#"{"split": [{"version": "1", "weight": NaN}]}"#, "split[0].weight: the body is not JSON"),
        (r#"{"split": [{"version": "1", "weight": NaN}]}"#, "JSON has no NaN"),
        (r#"{"split": [{"version": "1", "weight": 1}], "labels": {"a": "1", "a": "2"}}"#, "labels.a: duplicate member"),
        (
            r#"{"split": [{"version": "1", "weight": 1e308}, {"version": "2", "weight": 1e308}]}"#,
            "the sum of the weights",
        ),
    ];
    for (text, words) in alone {
        let said = refused(&put(&gateway, text), 400);
        assert!(said.contains(words), "{text}: {said}");
    }
    let together = r#"{
        "split": [{"version": "1", "weight": -1, "arm": "a"}, {"version": "2", "weight": "NaN", "arm": "b"},
                  {"version": 3, "weight": 1, "arms": "c"}, {"version": "1", "weight": 1, "arm": "pinned"},
                  {"version": "1", "weight": 1}, {"version": "2", "weight": 1, "arm": "1"}],
        "sticky_by": {"cookie": "x"},
        "rules": [{"header": "x y", "equals": 1, "version": "0"}],
        "shadows": [{"version": "2", "sample": 1.5}, {"version": "3", "sample": 0}, {"version": "2"}, {"version": "2"}],
        "labels": {"stable": "1", "canary": "x", "stable": "2", "sp ace": "1"},
        "salt": 7,
        "speed": 9
    }"#;
    let said = refused(&put(&gateway, together), 400);
    for words in [
        "split[0].weight: expected a number of 0 or more, got -1",
        "split[1].weight: expected a number of 0 or more, got \"NaN\"",
        "split[2].version: ",
        "split[2].arms: unknown member; known here: version, weight, arm",
        "split[3].arm: \"pinned\" is the gateway's own name",
        "\"1\" is there more than once; arm names are unique",
        "sticky_by: expected {\"header\"",
        "rules[0].header: expected a header name",
        "rules[0].equals: expected a string, got 1",
        "rules[0].version: ",
        "shadows[0].sample: expected a number above 0 and at most 1, got 1.5",
        "shadows[1].sample: expected a number above 0 and at most 1, got 0",
        "2 is a shadow already",
        "labels.stable: duplicate member",
        "labels.canary: ",
        "labels.sp ace: a label is",
        "salt: expected a string, got 7",
        "speed: unknown member",
    ] {
        assert!(said.contains(words), "{words:?} in\n{said}");
    }
    let unknown = r#"{"split": [{"version": "8", "weight": 1}, {"version": "1", "weight": 1}], "labels": {"a": "9"},
        "rules": [{"header": "h", "equals": "e", "version": "10"}], "shadows": [{"version": "11"}]}"#;
    let said = refused(&put(&gateway, unknown), 409);
    for version in ["8", "9", "10", "11"] {
        assert!(said.contains(&format!("no version {version};")), "{version} in\n{said}");
    }
    let after = gateway.admin_get(TRAFFIC);
    assert_eq!((after.header("etag"), &after.json()["split"]), (before.header("etag"), &before.json()["split"]));
}

#[test]
fn a_version_is_promoted_when_its_answers_as_a_shadow_agree() {
    let gateway = gateway("[gates]\nshadow_agreement = 0.95\nshadow_pairs = 20\nsignature = true\n");
    let shadows = json!({"split": [{"version": "1", "weight": 1}], "shadows": [{"version": "2"}, {"version": "3"}]});
    assert_eq!(gateway.admin_send("PUT", TRAFFIC, &[], &shadows).status, 200);
    let to = |v: &str, dry_run: bool| json!({"version": v, "reason": "a test", "dry_run": dry_run});
    let early = refused(&promote(&gateway, &to("2", false)), 409);
    assert!(early.contains("shadow_pairs: requires at least 20 pairs") && early.contains("version 1"), "{early}");

    let dry = |v: &str| {
        let answer = promote(&gateway, &to(v, true));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    eventually("both shadows have enough pairs", || {
        let answer = gateway.post("/v2/models/m/infer", infer_body(&[1, 2], &[1.0, 2.0]));
        assert_eq!(answer.status, 200, "{answer:?}");
        ["2", "3"].iter().all(|v| dry(v)["gates"][0]["passed"] == true).then_some(())
    });
    let other = dry("3");
    assert_eq!(other["would_pass"], false, "its answers are twice the primary's: {other}");
    assert_eq!(other["would_be"]["split"][0]["version"], "3");
    assert!(other["gates"][1]["found"].as_str().unwrap().starts_with("0 (0 of "), "{other}");
    let said = refused(&promote(&gateway, &to("3", false)), 409);
    assert!(said.contains("shadow_agreement: requires at least 0.95 of the pairs in agreement"), "{said}");
    assert!(!said.contains("signature:"), "a gate that passes is not in the error: {said}");

    let done = promote(&gateway, &to("2", false));
    assert_eq!(done.status, 200, "{done:?}");
    let gates: Vec<Value> = done.json()["gates"].as_array().unwrap().clone();
    assert!(gates.len() == 3 && gates.iter().all(|gate| gate["passed"] == true), "{gates:?}");
    let off = json!({"version": "3", "reason": "a test", "gates": {}});
    assert_eq!(promote(&gateway, &off).status, 200, "a promote may ask for no gates");
    let audit = gateway.admin_get("/api/v1/audit?model=m&limit=2").json();
    let kept = |i: usize| audit["events"][i]["after"]["gates"].clone();
    assert_eq!(kept(0)["instead_of"], json!({"shadow_agreement": 0.95, "shadow_pairs": 20, "signature": true}));
    assert_eq!(
        (&kept(1)["from"], &kept(1)["verdicts"]),
        (&json!("model.toml"), &json!(gates)),
        "the audit trail has the verdicts"
    );
    let wrong = json!({"version": "2", "reason": "", "gates": {"golden": 1, "agreement": 0.5}});
    let said = refused(&promote(&gateway, &wrong), 400);
    for words in ["reason: expected", "gates.golden: expected true or false", "gates.agreement: unknown gate"] {
        assert!(said.contains(words), "{words:?} in {said}");
    }
}

#[test]
fn a_rollback_needs_no_load_while_the_version_is_warm_and_lists_loaded_versions_otherwise() {
    let gateway = gateway("versions = { latest = 1 }\nkeep_warm = \"1h\"\n");
    let rollback = || {
        let body = json!({"reason": "a test"});
        let answer = gateway.admin_send("POST", "/api/v1/models/m:rollback", &[], &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    onnx::install(&gateway.models(), "m", 4, &onnx::scaling(4.0));
    gateway.wait_state("m", 4, "ready");
    assert_eq!(gateway.promote("m", 4).status, 200);
    let version = |v: u64| gateway.admin_get(&format!("/api/v1/models/m/versions/{v}")).json();
    let note = version(3)["notes"][0].as_str().unwrap().to_owned();
    assert!(version(3)["state"] == "ready" && note.starts_with("kept warm for a rollback until "), "{note}");
    let back = rollback();
    assert_eq!((&back["to"], &back["loaded"]), (&json!("3"), &json!([])));
    assert_eq!(rollback()["to"], "4");
    let unload = gateway.admin_send("POST", "/api/v1/models/m/versions/3:unload", &[], &json!({}));
    assert_eq!(unload.status, 200, "{unload:?}");
    let back = rollback();
    assert_eq!((&back["to"], &back["loaded"]), (&json!("3"), &json!(["3"])));
    let answer = gateway.post("/v2/models/m/infer", infer_body(&[1, 2], &[1.0, 2.0]));
    assert_eq!(answer.json()["outputs"][0]["data"], json!([2.0, 4.0]));
}
