//! The admin API of a running gateway.

use crate::support::{Gateway, infer_body, onnx};
use serde_json::json;

fn gateway() -> Gateway {
    Gateway::start(|models| {
        onnx::install(models, "self", 1, &onnx::answering(1.0, 4, 0));
        onnx::install(models, "self", 2, &onnx::answering(2.0, 4, 0));
        onnx::install(models, "self", 3, &onnx::scaling(3.0));
    })
}

#[test]
fn a_dry_run_changes_nothing_and_a_promote_returns_what_it_changed() {
    let gateway = gateway();
    let to = |v: &str, dry| json!({"version": v, "reason": "a test", "dry_run": dry});
    let before = gateway.admin_get("/api/v1/models/self/traffic");
    let serving = before.json()["split"][0]["version"].as_str().unwrap().to_owned();
    assert_eq!(serving, "3", "the highest ready version serves first");
    // Version 1 has other inputs than version 3, so callers would break.
    let breaks = gateway.admin_send("POST", "/api/v1/models/self:promote", &[], &to("1", false));
    assert_eq!((breaks.status, breaks.code().as_str()), (409, "CONFLICT"));
    assert!(breaks.json().to_string().contains('x'), "the error names the difference: {}", breaks.json());
    let allowed = json!({"version": "2", "reason": "callers are ready", "allow_signature_change": true});
    let promoted = gateway.admin_send("POST", "/api/v1/models/self:promote", &[], &allowed);
    assert_eq!(promoted.status, 200, "{promoted:?}");
    assert_eq!(promoted.json()["from"], "3");
    let now = gateway.admin_get("/api/v1/models/self/traffic");
    let dry = gateway.admin_send("POST", "/api/v1/models/self:promote", &[], &to("1", true));
    assert_eq!(dry.status, 200, "{dry:?}");
    let after = gateway.admin_get("/api/v1/models/self/traffic");
    assert_eq!(after.header("etag"), now.header("etag"), "a dry run changes nothing");
    let real = gateway.admin_send("POST", "/api/v1/models/self:promote", &[], &to("1", false));
    assert_eq!(real.json()["to"], "1");
    let again = gateway.admin_send("POST", "/api/v1/models/self:promote", &[], &to("1", false));
    assert_eq!((again.status, &again.json()["revision"]), (200, &real.json()["revision"]), "no new revision");
}

#[test]
fn a_stale_if_match_is_412_and_a_current_one_is_accepted() {
    let gateway = gateway();
    let etag = gateway.admin_get("/api/v1/models/self/traffic").header("etag").unwrap().to_owned();
    let document = json!({"split": [{"version": "3", "weight": 1}], "reason": "a test"});
    let fresh = gateway.admin_send("PUT", "/api/v1/models/self/traffic", &[("if-match", &etag)], &document);
    assert_eq!(fresh.status, 200, "{fresh:?}");
    let stale = gateway.admin_send("PUT", "/api/v1/models/self/traffic", &[("if-match", &etag)], &document);
    assert_eq!((stale.status, stale.code().as_str()), (412, "PRECONDITION_FAILED"));
    let unready = json!({"split": [{"version": "9", "weight": 1}]});
    let unready = gateway.admin_send("PUT", "/api/v1/models/self/traffic", &[], &unready);
    assert_eq!((unready.status, unready.code().as_str()), (409, "CONFLICT"));
}

#[test]
fn a_pushed_version_is_stored_and_an_existing_one_is_409() {
    let gateway = gateway();
    let bytes = onnx::scaling(4.0);
    let pushed = gateway.admin_put_bytes("/api/v1/models/self/versions/4", &bytes);
    assert!(matches!(pushed.status, 200 | 201), "{pushed:?}");
    assert!(gateway.state("self", 4).is_some(), "a pushed version is listed at once");
    let load = gateway.admin_send("POST", "/api/v1/models/self/versions/4:load", &[], &json!({}));
    assert_eq!(load.status, 200, "a load waits for it: {load:?}");
    gateway.wait_state("self", 4, "ready");
    let answer = gateway.post("/v2/models/self/versions/4/infer", infer_body(&[1, 2], &[1.0, 2.0]));
    assert_eq!(answer.json()["outputs"][0]["data"], json!([4.0, 8.0]));
    let again = gateway.admin_put_bytes("/api/v1/models/self/versions/4", &bytes);
    assert_eq!((again.status, again.code().as_str()), (409, "CONFLICT"));
    let junk = gateway.admin_put_bytes("/api/v1/models/self/versions/5", b"not a model");
    assert_eq!(junk.status, 400, "{junk:?}");
    assert_eq!(gateway.state("self", 5), None, "nothing was stored");
}

#[test]
fn limits_of_a_model_apply_to_its_callers() {
    let gateway = Gateway::start(|models| {
        onnx::install(models, "scale", 1, &onnx::scaling(2.0));
        std::fs::write(models.join("scale/model.toml"), "[limits]\nmax_rows = 2\nmax_in_flight = 8\n").unwrap();
    });
    let two = gateway.post("/v2/models/scale/infer", infer_body(&[2, 2], &[0.0; 4]));
    assert_eq!(two.status, 200, "{two:?}");
    let three = gateway.post("/v2/models/scale/infer", infer_body(&[3, 2], &[0.0; 6]));
    assert_eq!((three.status, three.code().as_str()), (400, "INVALID_TENSOR"));
    assert!(three.json()["error"].as_str().unwrap().contains("at most 2 rows"), "{three:?}");
}

#[test]
fn tritons_repository_extension_unloads_and_loads_a_model() {
    let gateway = gateway();
    let index = gateway.admin_send("POST", "/v2/repository/index", &[], &json!({}));
    assert!(index.json().as_array().unwrap().iter().any(|m| m["name"] == "self" && m["state"] == "READY"), "{index:?}");
    let out = gateway.admin_send("POST", "/v2/repository/models/self/unload", &[], &json!({}));
    assert_eq!(out.status, 200, "{out:?}");
    let refused = gateway.post("/v2/models/self/infer", infer_body(&[1, 2], &[1.0, 2.0]));
    assert_eq!((refused.status, refused.code().as_str()), (503, "NOT_READY"));
    let back = gateway.admin_send("POST", "/v2/repository/models/self/load", &[], &json!({}));
    assert_eq!(back.status, 200, "{back:?}");
    let answer = gateway.post("/v2/models/self/infer", infer_body(&[1, 2], &[1.0, 2.0]));
    assert_eq!((answer.status, &answer.json()["model_version"]), (200, &json!("3")), "its traffic document was kept");
    // The data port tells which versions there are, and changes nothing.
    let listed = gateway.post("/v2/repository/index", "{\"ready\": true}").json();
    let versions = listed.as_array().unwrap();
    assert!(versions.contains(&json!({"name": "self", "version": "3", "state": "READY"})), "{listed}");
    assert!(versions.iter().all(|version| version["state"] == "READY"), "{listed}");
    assert!(gateway.post("/v2/repository/index", "").json().as_array().unwrap().len() >= versions.len());
    for wrong in ["[]", "{\"ready\": 1}", "{"] {
        assert_eq!(gateway.post("/v2/repository/index", wrong).code(), "INVALID_REQUEST", "{wrong}");
    }
    for change in ["load", "unload"] {
        assert_eq!(gateway.post(&format!("/v2/repository/models/self/{change}"), "").status, 404, "{change}");
    }
}
