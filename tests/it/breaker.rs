//! A version whose engine fails is kept from requests until it answers again, and the traffic document's fallback answers meanwhile.

use crate::support::{Answer, Gateway, eventually, infer_body, onnx};
use serde_json::{Value, json};

const ASK: &str = "/v2/models/m/infer";
const PINNED: &str = "/v2/models/m/versions/2/infer";

/// The floats of a row: more than the 1 MiB of a request of the warm-up that is kept.
const WIDTH: usize = 270_000;

/// The engine of version 2 of `m` fails values above 9. No request that it answered is kept, so that its breaker opens without asking it again.
fn gateway() -> Gateway {
    let config = "[breaker]\nfailures = 3\npause = \"100ms\"\nprobes = 2\n";
    let gateway = Gateway::start_with(config, |models| {
        let width = i64::try_from(WIDTH).unwrap();
        onnx::install(models, "m", 1, &onnx::largest_or_out_of_memory_above(200, width));
        onnx::install(models, "m", 2, &onnx::largest_or_out_of_memory_above(9, width));
    });
    eventually("both versions can be asked", || {
        let answers = |version| matches!(gateway.state("m", version).as_deref(), Some("ready" | "serving"));
        (answers(1) && answers(2)).then_some(())
    });
    gateway
}

fn row_of(value: f32) -> String {
    infer_body(&[1, WIDTH], &vec![value; WIDTH])
}

fn set_traffic(gateway: &Gateway, document: &Value) {
    let put = gateway.admin_send("PUT", "/api/v1/models/m/traffic", &[], document);
    assert_eq!(put.status, 200, "{put:?}");
}

fn metric(gateway: &Gateway, name: &str) -> Option<u64> {
    let text = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    let line = format!("{name}{{model=\"m\",version=\"2\"}} ");
    text.lines().find_map(|l| l.strip_prefix(&line)?.parse().ok())
}

fn by(answer: &Answer) -> (u16, Option<&str>, Option<&str>) {
    (answer.status, answer.header("x-sluicegate-version"), answer.header("x-sluicegate-fallback"))
}

#[test]
fn a_version_that_fails_is_closed_answered_by_the_fallback_and_opened_by_probes_that_succeed() {
    let gateway = gateway();
    let (bad, good) = (row_of(12.0), row_of(1.0));
    set_traffic(&gateway, &json!({"split": [{"version": "2", "weight": 1}], "fallback": {"version": "1"}}));
    assert_eq!(by(&gateway.post(ASK, &good)), (200, Some("2"), None));
    assert_eq!(metric(&gateway, "sluicegate_breaker_open"), None, "it never opened");
    for _ in 0..3 {
        let failed = gateway.post(ASK, &bad);
        assert_eq!((failed.status, failed.code().as_str()), (500, "ENGINE_FAILED"));
    }
    assert_eq!(metric(&gateway, "sluicegate_breaker_open"), Some(1));
    // A request that comes after the pause tries the version, and fails. The pause grows, so that one soon does not.
    eventually("the fallback answers what the version would fail", || {
        (by(&gateway.post(ASK, &bad)) == (200, Some("1"), Some("breaker_open"))).then_some(())
    });
    let refused = eventually("who names the version is refused", || {
        Some(gateway.post(PINNED, &bad)).filter(|answer| answer.status == 503)
    });
    assert_eq!(refused.code(), "NOT_READY");
    assert!(refused.header("retry-after").is_some_and(|after| after.parse::<u64>().unwrap() >= 1), "{refused:?}");
    let words = String::from_utf8_lossy(&refused.body);
    assert!(words.contains("the engine fails the requests to version 2 of model m; it is tried again"), "{words}");
    assert!(metric(&gateway, "sluicegate_breaker_refused_total").unwrap() >= 2);

    // From here on the version answers what it is asked.
    eventually("probes close the breaker", || {
        let answer = gateway.post(ASK, &good);
        assert_eq!(answer.status, 200, "a probe and the fallback both answer: {answer:?}");
        (metric(&gateway, "sluicegate_breaker_open") == Some(0)).then_some(())
    });
    for _ in 0..5 {
        assert_eq!(by(&gateway.post(ASK, &good)), (200, Some("2"), None));
    }
}

#[test]
fn without_a_fallback_requests_to_a_closed_version_are_refused_in_words() {
    let gateway = gateway();
    let bad = row_of(12.0);
    set_traffic(&gateway, &json!({"split": [{"version": "2", "weight": 1}]}));
    for _ in 0..3 {
        assert_eq!(gateway.post(ASK, &bad).status, 500);
    }
    let refused = eventually("it is refused", || {
        let answer = gateway.post(ASK, &bad);
        // A try that fails.
        if answer.status == 500 { None } else { Some(answer) }
    });
    assert_eq!((refused.status, refused.code().as_str()), (503, "NOT_READY"), "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
}
