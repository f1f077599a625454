//! What holds for every endpoint, and the probes.

use super::bench::{Bench, bare, name, version};
use crate::lifecycle::Actor;
use crate::lifecycle::fake::{Asked, Told};
use crate::model::{Code, Failure};
use crate::registry::{Snapshot, State};
use crate::route::Document;
use serde_json::json;
use std::sync::atomic::Ordering;

#[test]
fn unknown_paths_verbs_and_methods_are_refused_in_words() {
    let bench = Bench::new();
    for path in ["/", "/api/v1/nothing", "/api/v1/models/", "/v2/models/fraud/infer", "/api/v1/models/fraud/traffic/x"]
    {
        bench.get(path).refused(404, "NOT_FOUND", path);
    }
    bench.post("/api/v1/models/fraud:frob", "").refused(404, "NOT_FOUND", "there are promote, rollback");
    bench.get("/api/v1/models/fraud:").refused(404, "NOT_FOUND", "promote");
    bench.post("/api/v1/models/fraud/versions/1:promote", "").refused(404, "NOT_FOUND", "there are load, unload");
    let table = [
        ("POST", "/healthz", "GET,HEAD"),
        ("DELETE", "/api/v1/models", "GET,HEAD"),
        ("POST", "/api/v1/models/fraud", "GET,HEAD"),
        ("GET", "/api/v1/models/fraud:promote", "POST"),
        ("PUT", "/api/v1/models/fraud:rollback", "POST"),
        ("POST", "/api/v1/models/fraud/versions/1", "GET,HEAD,PUT"),
        ("GET", "/api/v1/models/fraud/versions/1:load", "POST"),
        ("POST", "/api/v1/models/fraud/traffic", "GET,HEAD,PUT"),
        ("GET", "/v2/repository/index", "POST"),
    ];
    for (method, path, allowed) in table {
        let answer = bench.send(method, path, &[], "");
        answer.refused(405, "METHOD_NOT_ALLOWED", method);
        assert_eq!(answer.header("allow"), allowed, "{method} {path}");
    }
    assert!(bench.asked().is_empty(), "nothing of it reached the manager");
}

#[test]
fn head_is_get_without_a_body() {
    let answer = Bench::new().send("HEAD", "/healthz", &[], "");
    assert_eq!((answer.status.as_u16(), answer.bytes.len()), (200, 0));
}

#[test]
fn names_that_cannot_be_are_unknown_and_escapes_are_read() {
    let mut bench = Bench::new();
    bench.publish(vec![bare(1, State::Pending)], None);
    for path in
        ["/api/v1/models/..", "/api/v1/models/%2e%2e%2fetc", "/api/v1/models/a%20b", "/api/v1/models/fra%C3%BCd"]
    {
        bench.get(path).refused(404, "MODEL_NOT_FOUND", "no model is named");
    }
    bench.get("/api/v1/models/%ff").refused(404, "NOT_FOUND", "UTF-8");
    bench.get("/api/v1/models/fraud/versions/01").refused(404, "VERSION_NOT_FOUND", "a positive integer");
    bench.get("/api/v1/models/fraud/versions/%2e%2e").refused(404, "VERSION_NOT_FOUND", "a positive integer");
    let long = "m".repeat(5000);
    bench.get(&format!("/api/v1/models/{long}")).refused(404, "MODEL_NOT_FOUND", "mmm");
    assert_eq!(bench.get("/api/v1/models/fr%61ud").json()["name"], "fraud");
    let escaped = bench.post("/api/v1/models/fraud%3Arollback", r#"{"reason":"because"}"#);
    assert_eq!(escaped.status, 200, "an escaped colon is a colon: {escaped:?}");
}

#[test]
fn bodies_are_json_under_a_cap_and_as_they_are() {
    let bench = Bench::new();
    let path = "/api/v1/models/fraud:rollback";
    bench.post(path, "{").refused(400, "INVALID_REQUEST", "not JSON");
    bench.post(path, vec![0xff, 0xfe]).refused(400, "INVALID_REQUEST", "not JSON");
    bench.post(path, "[".repeat(100_000)).refused(400, "INVALID_REQUEST", "not JSON");
    bench.post(path, "[1]").refused(400, "INVALID_REQUEST", "expected a JSON object");
    bench.post(path, vec![b' '; (1 << 20) + 1]).refused(413, "BODY_TOO_LARGE", "1048576");
    let packed = bench.send("POST", path, &[("content-encoding", "gzip")], "{}");
    packed.refused(415, "UNSUPPORTED_MEDIA_TYPE", "gzip");
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let curled = bench.send("POST", path, &form, r#"{"reason":"curl -d says form"}"#);
    assert_eq!(curled.status, 200, "{curled:?}");
}

#[test]
fn the_actor_is_what_the_header_says_else_local() {
    let bench = Bench::new();
    let actor = |headers: &[(&str, &str)]| {
        let answer = bench.send("POST", "/api/v1/models/fraud:rollback", headers, r#"{"reason":"r"}"#);
        (answer.status.as_u16(), bench.asked().pop())
    };
    let asked = |actor: &str| {
        let rollback = Asked::Rollback { model: name("fraud"), reason: "r".to_owned(), actor: Actor(actor.to_owned()) };
        (200, Some(rollback))
    };
    assert_eq!(actor(&[]), asked("local"));
    assert_eq!(actor(&[("x-sluicegate-actor", " ann@ci ")]), asked("ann@ci"));
    assert_eq!(actor(&[("x-sluicegate-actor", &"a".repeat(129))]), (400, None));
    assert_eq!(actor(&[("x-sluicegate-actor", "")]), (400, None));
}

#[test]
fn a_page_of_another_origin_may_not_change_anything() {
    let bench = Bench::new();
    let body = r#"{"reason":"r"}"#;
    for origin in
        ["https://evil.example", "null", "http://localhost.evil.example:8081", "http://127.0.0.1.evil.example"]
    {
        let answer = bench.send("POST", "/api/v1/models/fraud:rollback", &[("origin", origin)], body);
        answer.refused(403, "FORBIDDEN", "web page");
    }
    assert!(bench.asked().is_empty(), "nothing of it reached the manager");
    assert_eq!(bench.send("GET", "/healthz", &[("origin", "https://evil.example")], "").status, 200);
    for origin in ["http://localhost:8081", "http://127.0.0.1:3000", "http://[::1]:8081"] {
        let answer = bench.send("POST", "/api/v1/models/fraud:rollback", &[("origin", origin)], body);
        assert_eq!(answer.status, 200, "{origin}: {answer:?}");
    }
}

#[test]
fn readiness_is_the_snapshots_until_a_stop_begins() {
    let mut bench = Bench::new();
    assert_eq!(bench.get("/healthz").json(), json!({"live": true}));
    bench.publish(vec![bare(1, State::Loading)], None);
    let mut next = Snapshot::clone(&bench.writer.snapshot());
    next.ready = false;
    bench.writer.publish(next);
    let answer = bench.get("/readyz");
    answer.refused(503, "NOT_READY", "model fraud, version 1: loading");
    assert_eq!(answer.header("retry-after"), "1");
    let ready = vec![bench.loaded(1, State::Ready)];
    bench.publish(ready, Some(Document::single(version(1))));
    assert_eq!((bench.get("/readyz").status.as_u16(), bench.get("/readyz").json()), (200, json!({"ready": true})));
    bench.stopping.store(true, Ordering::Relaxed);
    bench.get("/readyz").refused(503, "NOT_READY", "stopping");
    assert_eq!(bench.get("/healthz").status, 200, "alive all the same");
}

#[test]
fn metrics_show_what_is_in_flight_now() {
    let mut bench = Bench::new();
    let one = bench.loaded(1, State::Ready);
    let held = one.loaded.as_ref().unwrap().metrics.enter();
    bench.publish(vec![one], Some(Document::single(version(1))));
    let answer = bench.get("/metrics");
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4");
    let text = String::from_utf8(answer.bytes).unwrap();
    assert!(text.contains(r#"sluicegate_in_flight_requests{model="fraud",version="1"} 1"#), "{text}");
    drop(held);
}

#[test]
fn what_only_the_log_may_say_is_not_answered() {
    let bench = Bench::answering(|_| {
        Told::Refused(Failure::new(Code::Internal, "the change was not kept").with_internal("/secret/path is full"))
    });
    let answer = bench.post("/api/v1/models/fraud:rollback", r#"{"reason":"r"}"#);
    answer.refused(500, "INTERNAL", "the change was not kept");
    assert!(!String::from_utf8_lossy(&answer.bytes).contains("secret"), "{answer:?}");
}
