//! Behaviour that all endpoints share, and the probes.

use super::fixture::{self, Fixture, bare, name, version};
use crate::admin::Threads;
use crate::lifecycle::fake::{Asked, Told};
use crate::lifecycle::{Actor, Rollback};
use crate::model::{Code, Failure};
use crate::registry::{Snapshot, State};
use crate::route::Document;
use serde_json::json;
use std::sync::atomic::Ordering;

#[test]
fn unknown_paths_verbs_and_methods_are_refused() {
    let fixture = Fixture::new();
    for path in ["/", "/api/v1/nothing", "/api/v1/models/", "/v2/models/fraud/infer", "/api/v1/models/fraud/traffic/x"]
    {
        fixture.get(path).refused(404, "NOT_FOUND", path);
    }
    fixture.post("/api/v1/models/fraud:frob", "").refused(404, "NOT_FOUND", "known verbs: promote, rollback");
    fixture.get("/api/v1/models/fraud:").refused(404, "NOT_FOUND", "promote");
    fixture.post("/api/v1/models/fraud/versions/1:promote", "").refused(404, "NOT_FOUND", "known verbs: load, unload");
    let table = [
        ("POST", "/healthz", "GET,HEAD"),
        ("DELETE", "/api/v1/models", "GET,HEAD"),
        ("POST", "/api/v1/models/fraud", "GET,HEAD,DELETE"),
        ("GET", "/api/v1/models/fraud:promote", "POST"),
        ("PUT", "/api/v1/models/fraud:rollback", "POST"),
        ("POST", "/api/v1/models/fraud/versions/1", "GET,HEAD,PUT"),
        ("GET", "/api/v1/models/fraud/versions/1:load", "POST"),
        ("POST", "/api/v1/models/fraud/traffic", "GET,HEAD,PUT"),
        ("GET", "/v2/repository/index", "POST"),
    ];
    for (method, path, allowed) in table {
        let answer = fixture.send(method, path, &[], "");
        answer.refused(405, "METHOD_NOT_ALLOWED", method);
        assert_eq!(answer.header("allow"), allowed, "{method} {path}");
    }
    assert!(fixture.asked().is_empty(), "no command reached the manager");
}

#[test]
fn head_is_get_without_a_body() {
    let answer = Fixture::new().send("HEAD", "/healthz", &[], "");
    assert_eq!((answer.status.as_u16(), answer.bytes.len()), (200, 0));
}

#[test]
fn invalid_names_are_unknown_and_escapes_are_decoded() {
    let mut fixture = Fixture::new();
    fixture.publish(vec![bare(1, State::Pending)], None);
    for path in
        ["/api/v1/models/..", "/api/v1/models/%2e%2e%2fetc", "/api/v1/models/a%20b", "/api/v1/models/fra%C3%BCd"]
    {
        fixture.get(path).refused(404, "MODEL_NOT_FOUND", "no model is named");
    }
    fixture.get("/api/v1/models/%ff").refused(404, "NOT_FOUND", "UTF-8");
    fixture.get("/api/v1/models/fraud/versions/01").refused(404, "VERSION_NOT_FOUND", "a positive integer");
    fixture.get("/api/v1/models/fraud/versions/%2e%2e").refused(404, "VERSION_NOT_FOUND", "a positive integer");
    let long = "m".repeat(5000);
    fixture.get(&format!("/api/v1/models/{long}")).refused(404, "MODEL_NOT_FOUND", "mmm");
    assert_eq!(fixture.get("/api/v1/models/fr%61ud").json()["name"], "fraud");
    let escaped = fixture.post("/api/v1/models/fraud%3Arollback", r#"{"reason":"because"}"#);
    assert_eq!(escaped.status, 200, "an escaped colon counts as a colon: {escaped:?}");
}

#[test]
fn bodies_must_be_uncompressed_json_below_the_size_limit() {
    let fixture = Fixture::new();
    let path = "/api/v1/models/fraud:rollback";
    fixture.post(path, "{").refused(400, "INVALID_REQUEST", "not JSON");
    fixture.post(path, vec![0xff, 0xfe]).refused(400, "INVALID_REQUEST", "not JSON");
    fixture.post(path, "[".repeat(100_000)).refused(400, "INVALID_REQUEST", "not JSON");
    fixture.post(path, "[1]").refused(400, "INVALID_REQUEST", "expected a JSON object");
    fixture.post(path, vec![b' '; (1 << 20) + 1]).refused(413, "BODY_TOO_LARGE", "1048576");
    let packed = fixture.send("POST", path, &[("content-encoding", "gzip")], "{}");
    packed.refused(415, "UNSUPPORTED_MEDIA_TYPE", "gzip");
    // What a form of a web page can send, and what no JSON is.
    for media in
        ["application/x-www-form-urlencoded", "text/plain;charset=UTF-8", "multipart/form-data; boundary=x", "", "json"]
    {
        let form = fixture.send("POST", path, &[("content-type", media)], r#"{"reason":"r"}"#);
        form.refused(415, "UNSUPPORTED_MEDIA_TYPE", "expected application/json");
    }
    let twice = [("content-type", "application/json"), ("content-type", "text/plain")];
    fixture.send("POST", path, &twice, r#"{"reason":"r"}"#).refused(415, "UNSUPPORTED_MEDIA_TYPE", "");
    for media in ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"] {
        assert_eq!(fixture.send("POST", path, &[("content-type", media)], r#"{"reason":"r"}"#).status, 200, "{media}");
    }
    assert_eq!(fixture.asked().len(), 3);
    // No form sends these.
    let form = [("content-type", "application/x-www-form-urlencoded")];
    fixture.send("PUT", "/api/v1/models/fraud/traffic", &form, "{").refused(400, "INVALID_REQUEST", "not JSON");
    assert_eq!(fixture.send("PUT", "/api/v1/models/fraud/versions/9", &form, "file").status, 201);
    let parts = [("content-type", "multipart/form-data; boundary=x")];
    let push = fixture.send("PUT", "/api/v1/models/fraud/versions/9", &parts, "x");
    push.refused(415, "UNSUPPORTED_MEDIA_TYPE", "application/octet-stream");
}

#[test]
fn every_answer_tells_browsers_to_do_nothing_with_it() {
    let (fixture, _) = Fixture::closed(&[]);
    for (method, path, host, status) in [
        ("GET", "/healthz", "localhost", 200),
        ("GET", "/api/v1/models", "localhost", 401),
        ("GET", "/nowhere", "localhost", 404),
        ("PATCH", "/api/v1/models", "localhost", 405),
        ("OPTIONS", "/api/v1/models", "localhost", 405),
        ("GET", "/openapi.json", "evil.example", 403),
    ] {
        let headers = [("host", host), ("origin", "https://evil.example"), ("access-control-request-method", "GET")];
        let answer = fixture.send(method, path, &headers[..], "");
        let expected = if method == "GET" || status == 403 { status } else { 403 };
        assert_eq!(answer.status, expected, "{method} {path}");
        assert!(answer.header("content-security-policy").contains("frame-ancestors 'none'"), "{answer:?}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("x-frame-options"), "DENY");
        assert_eq!(answer.header("referrer-policy"), "no-referrer");
        assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin");
        assert_eq!(answer.header("cache-control"), "no-store");
        let cors = answer.headers.keys().find(|name| name.as_str().starts_with("access-control-"));
        assert_eq!(cors, None, "no other site reads an answer");
    }
    let preflight = fixture.send("OPTIONS", "/api/v1/models", &[("host", "localhost")], "");
    assert_eq!(preflight.status, 405, "there is no preflight");
}

#[test]
fn the_actor_comes_from_the_header_and_is_local_without_it() {
    let fixture = Fixture::new();
    let actor = |headers: &[(&str, &str)]| {
        let answer = fixture.send("POST", "/api/v1/models/fraud:rollback", headers, r#"{"reason":"r"}"#);
        (answer.status.as_u16(), fixture.asked().pop())
    };
    let asked = |actor: &str| {
        let rollback = {
            let actor = Actor(actor.to_owned());
            let ask = Rollback {
                to_revision: None,
                reason: "r".to_owned(),
                dry_run: false,
                break_glass: false,
                if_match: None,
                actor,
            };
            Asked::Rollback { model: name("fraud"), ask }
        };
        (200, Some(rollback))
    };
    assert_eq!(actor(&[]), asked("local"));
    assert_eq!(actor(&[("x-sluicegate-actor", " ann@ci ")]), asked("ann@ci"));
    assert_eq!(actor(&[("x-sluicegate-actor", &"a".repeat(129))]), (400, None));
    assert_eq!(actor(&[("x-sluicegate-actor", "")]), (400, None));
    for ours in ["system", "rollout"] {
        assert_eq!(actor(&[("x-sluicegate-actor", ours)]), (400, None), "nobody acts as the server");
    }
}

#[test]
fn readiness_comes_from_the_snapshot_until_the_server_stops() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.get("/healthz").json(), json!({"live": true}));
    fixture.publish(vec![bare(1, State::Loading)], None);
    let mut next = Snapshot::clone(&fixture.writer.lock().unwrap().snapshot());
    next.ready = false;
    fixture.writer.lock().unwrap().publish(next);
    let answer = fixture.get("/readyz");
    answer.refused(503, "NOT_READY", "model fraud, version 1: loading");
    assert_eq!(answer.header("retry-after"), "1");
    let ready = vec![fixture.loaded(1, State::Ready)];
    fixture.publish(ready, Some(Document::single(version(1))));
    assert_eq!(
        (fixture.get("/readyz").status.as_u16(), fixture.get("/readyz").json()),
        (200, json!({"ready": true, "unserved": [], "memory": fixture::memory()}))
    );
    let held = "thread infer-0: a run of model fraud, version 1, does not end";
    *fixture.threads.lock().unwrap() = Threads { stuck: vec![held.to_owned()], serving: true };
    let expected = json!({"ready": true, "unserved": [], "stuck_threads": [held], "memory": fixture::memory()});
    assert_eq!(fixture.get("/readyz").json(), expected);
    assert_eq!(fixture.get("/healthz").status, 200);
    fixture.threads.lock().unwrap().serving = false;
    fixture.get("/readyz").refused(503, "NOT_READY", held);
    fixture.get("/healthz").refused(503, "NOT_READY", held);
    fixture.threads.lock().unwrap().serving = true;
    fixture.stopping.store(true, Ordering::Relaxed);
    fixture.get("/readyz").refused(503, "NOT_READY", "stopping");
    assert_eq!(fixture.get("/healthz").status, 200, "still alive");
}

#[test]
fn metrics_show_requests_in_flight() {
    let mut fixture = Fixture::new();
    let one = fixture.loaded(1, State::Ready);
    let held = one.loaded.as_ref().unwrap().metrics.enter();
    fixture.publish(vec![one], Some(Document::single(version(1))));
    let answer = fixture.get("/metrics");
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4");
    let text = String::from_utf8(answer.bytes).unwrap();
    assert!(text.contains(r#"sluicegate_in_flight_requests{model="fraud",version="1"} 1"#), "{text}");
    drop(held);
}

#[test]
fn internal_details_are_logged_and_not_returned() {
    let fixture = Fixture::answering(|_| {
        Told::Refused(Failure::new(Code::Internal, "the change was not kept").with_internal("/secret/path is full"))
    });
    let answer = fixture.post("/api/v1/models/fraud:rollback", r#"{"reason":"r"}"#);
    answer.refused(500, "INTERNAL", "the change was not kept");
    assert!(!String::from_utf8_lossy(&answer.bytes).contains("secret"), "{answer:?}");
}
