//! Shadows: copies of live requests, whose answers are compared with the primary's.

use crate::support::{Gateway, eventually, infer_body, onnx};
use serde_json::{Value, json};

/// Version 1 returns its input; version 2 differs by 0.5 on a tenth of the requests below.
fn gateway() -> Gateway {
    let gateway = Gateway::start(|models| {
        onnx::install(models, "m", 1, &onnx::scaling(1.0));
        onnx::install(models, "m", 2, &onnx::off_above(89.5, 0.5));
    });
    assert_eq!(gateway.promote("m", 1).status, 200);
    gateway
}

fn shadowed(gateway: &Gateway, sample: f64) {
    let document = json!({
        "split": [{"version": "1", "weight": 1}],
        "labels": {"stable": "1"},
        "shadows": [{"version": "2", "sample": sample}],
    });
    let put = gateway.admin_send("PUT", "/api/v1/models/m/traffic", &[], &document);
    assert_eq!(put.status, 200, "{put:?}");
}

fn ask(gateway: &Gateway, path: &str, id: &str, i: f32) {
    let answer = gateway.post_with(path, &[("x-request-id", id)], infer_body(&[1, 2], &[i, i + 0.25]));
    assert_eq!((answer.status, answer.header("x-sluicegate-version")), (200, Some("1")), "{answer:?}");
}

fn compared(gateway: &Gateway, pairs: u64) -> Value {
    eventually(&format!("{pairs} pairs"), || {
        let shadow = gateway.admin_get("/api/v1/models/m/shadows/2").json();
        (shadow["compared"] == pairs).then_some(shadow)
    })
}

#[test]
fn a_version_that_differs_on_a_tenth_of_the_inputs_has_exact_figures() {
    let gateway = gateway();
    shadowed(&gateway, 1.0);
    for i in 0..100u8 {
        ask(&gateway, "/v2/models/m/infer", &format!("r{i}"), f32::from(i));
    }
    let shadow = compared(&gateway, 100);
    assert_eq!((&shadow["offered"], &shadow["sample"], &shadow["waiting"]), (&json!(100), &json!(1.0), &json!(0)));
    assert_eq!(shadow["disagreed"], 10);
    assert!(shadow["dropped"].as_object().unwrap().values().all(|n| n == 0), "{}", shadow["dropped"]);
    let pair = &shadow["primaries"][0];
    assert_eq!((&pair["primary"], &pair["pairs"], &pair["agreed"]), (&json!("1"), &json!(100), &json!(90)));
    assert_eq!(pair["agreement"], 0.9);
    let y = &pair["outputs"][0];
    assert_eq!((&y["name"], &y["elements"], &y["share_within"]), (&json!("y"), &json!(200), &json!(0.95)));
    assert_eq!((&y["largest_difference"], &y["nonfinite"]), (&json!(0.5), &json!(0)));
    // Ten of two hundred elements differ by 0.5.
    assert!((y["mean_difference"].as_f64().unwrap() - 0.025).abs() < 1e-12, "{y}");
    // x < x + 0.25 < x + 0.5: where it differs, another element of the row is the largest.
    assert_eq!((&y["top1_flipped"], &y["top1_rows"], &y["top1_flip_share"]), (&json!(10), &json!(100), &json!(0.1)));
    // The primary ran again for one copy in eight.
    let latency = &pair["latency"];
    assert!(latency["ratio_of_p50"].as_f64().unwrap() > 0.0, "{latency}");
    assert!((12..=14).contains(&latency["alternated"]["runs"].as_u64().unwrap()), "{latency}");
    let worst = pair["worst"].as_array().unwrap();
    let ids: std::collections::BTreeSet<&str> = worst.iter().map(|w| w["request_id"].as_str().unwrap()).collect();
    assert_eq!(ids, (90..100).map(|i| format!("r{i}")).collect::<Vec<_>>().iter().map(String::as_str).collect());
    let first = worst.iter().find(|w| w["request_id"] == "r90").unwrap();
    assert_eq!(first["primary"]["outputs"][0]["data"], json!([90.0, 90.25]));
    assert_eq!(first["shadow"]["outputs"][0]["data"], json!([90.5, 90.25]));
    assert!(first["words"].as_str().unwrap().contains("1 of 2 elements differ"), "{first}");

    let metrics = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    for line in [
        "sluicegate_shadow_offered_total{model=\"m\",version=\"2\"} 100",
        "sluicegate_shadow_compared_total{model=\"m\",version=\"2\"} 100",
        "sluicegate_shadow_disagreed_total{model=\"m\",version=\"2\"} 10",
        "sluicegate_shadow_dropped_total{model=\"m\",version=\"2\",reason=\"queue_full\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    // A copy does not count as a request of the shadow's version.
    assert!(!metrics.contains("sluicegate_requests_total{model=\"m\",version=\"2\""), "{metrics}");
}

#[test]
fn the_tolerance_comes_from_model_toml() {
    let gateway = Gateway::start(|models| {
        onnx::install(models, "m", 1, &onnx::scaling(1.0));
        onnx::install(models, "m", 2, &onnx::off_above(89.5, 0.5));
        std::fs::write(models.join("m/model.toml"), "[shadow]\nrtol = 0.0\natol = 0.5\n").unwrap();
    });
    assert_eq!(gateway.promote("m", 1).status, 200);
    shadowed(&gateway, 1.0);
    for i in 85..95u8 {
        ask(&gateway, "/v2/models/m/infer", "same-id", f32::from(i));
    }
    let shadow = compared(&gateway, 10);
    assert_eq!(shadow["tolerance"], json!({"rtol": 0.0, "atol": 0.5}));
    assert_eq!(shadow["primaries"][0]["agreement"], 1.0);
}

#[test]
fn a_sampled_shadow_gets_its_share_and_requests_by_version_or_label_are_not_copied() {
    let gateway = gateway();
    shadowed(&gateway, 0.25);
    for _ in 0..400 {
        ask(&gateway, "/v2/models/m/infer", "one-id-for-all", 1.0);
    }
    for _ in 0..50 {
        ask(&gateway, "/v2/models/m/versions/1/infer", "pinned", 1.0);
        let body = json!({"instances": [[1.0, 1.25]]}).to_string();
        assert_eq!(gateway.post("/v1/models/m/labels/stable:predict", body).status, 200);
    }
    let shadow = eventually("no copy is waiting", || {
        let shadow = gateway.admin_get("/api/v1/models/m/shadows/2").json();
        (shadow["waiting"] == 0 && shadow["offered"].as_u64() > Some(0)).then_some(shadow)
    });
    // 100 expected, ± 7 standard deviations; with the hundred requests by version or label it would be far outside.
    let offered = shadow["offered"].as_u64().unwrap();
    assert!((40..=160).contains(&offered), "{offered}");
    let dropped: u64 = shadow["dropped"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(offered, shadow["compared"].as_u64().unwrap() + dropped);
}

#[test]
fn a_shadow_follows_the_document_and_continues_after_a_restart() {
    let gateway = gateway();
    shadowed(&gateway, 1.0);
    assert_eq!(gateway.state("m", 2).as_deref(), Some("ready"), "a shadow is not serving");
    let unload = gateway.admin_send("POST", "/api/v1/models/m/versions/2:unload", &[], &json!({}));
    assert_eq!((unload.status, unload.code().as_str()), (409, "CONFLICT"), "the document names it");
    ask(&gateway, "/v2/models/m/infer", "before", 1.0);
    compared(&gateway, 1);

    let gateway = Gateway::start_in(gateway.stop(), "");
    gateway.wait_ready();
    assert_eq!(gateway.admin_get("/api/v1/models/m/traffic").json()["shadows"][0]["version"], "2");
    gateway.wait_state("m", 2, "ready");
    ask(&gateway, "/v2/models/m/infer", "after", 1.0);
    compared(&gateway, 1);

    let listed = gateway.admin_get("/api/v1/models/m/shadows").json();
    assert_eq!(listed["shadows"][0]["version"], "2");
    assert_eq!(gateway.promote("m", 2).status, 200);
    let traffic = gateway.admin_get("/api/v1/models/m/traffic").json();
    assert!(traffic.get("shadows").is_none(), "a promote removes it from the shadows: {traffic}");
    let shadow = gateway.admin_get("/api/v1/models/m/shadows/2").json();
    assert_eq!(
        (&shadow["sample"], &shadow["primaries"][0]["pairs"]),
        (&Value::Null, &json!(1)),
        "its figures are kept"
    );
    let back = gateway.admin_send("POST", "/api/v1/models/m:rollback", &[], &json!({"reason": "a test"}));
    assert_eq!(back.status, 200, "{back:?}");
    assert_eq!(gateway.admin_get("/api/v1/models/m/traffic").json()["shadows"][0]["version"], "2");
    assert_eq!(gateway.admin_get("/api/v1/models/m/shadows/9").status, 404);
    assert_eq!(gateway.admin_get("/api/v1/models/nope/shadows").status, 404);
}
