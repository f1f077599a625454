//! Bad input, as a table: each gets a clear error, harms nobody, and the gateway goes on.

use crate::support::{Gateway, infer_body, onnx};
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

fn gateway(config: &str) -> Gateway {
    Gateway::start_with(config, |models| {
        onnx::install(models, "scale", 1, &onnx::scaling(2.0));
        onnx::install(models, "broken", 1, b"this is no ONNX model");
        onnx::install(models, "empty", 1, b"");
        onnx::install(models, "strange", 1, &onnx::unknown_operator());
    })
}

fn still_serves(gateway: &Gateway) {
    let answer = gateway.post("/v2/models/scale/infer", infer_body(&[1, 2], &[1.0, 2.0]));
    assert_eq!(answer.status, 200, "what served goes on serving: {answer:?}");
}

struct Case {
    what: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: Vec<u8>,
    status: u16,
    code: &'static str,
    /// Each must stand in the error or its details.
    says: &'static [&'static str],
}

fn case(what: &'static str, body: &str, code: &'static str, says: &'static [&'static str]) -> Case {
    Case { what, path: "/v2/models/scale/infer", headers: &[], body: body.as_bytes().to_vec(), status: 400, code, says }
}

fn one_input(members: &str) -> String {
    format!("{{\"inputs\":[{{\"name\":\"x\",{members}}}]}}")
}

#[test]
fn each_bad_request_is_answered_in_words() {
    let gateway = gateway("[server]\nmax_body = \"1MiB\"\n");
    let nested = format!(
        "{{\"inputs\":[{{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":{}{}}}]}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let elsewhere = format!("{{\"ignored\":{}{},\"inputs\":[]}}", "[".repeat(100_000), "]".repeat(100_000));
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&vec![b' '; 64 << 20]).unwrap();
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 1 << 20, "a bomb is small before it goes off");
    let binary_head =
        r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}"#;
    let cases = vec![
        case("nothing", "", "INVALID_REQUEST", &["empty"]),
        case("broken JSON", "{\"inputs\": [", "INVALID_REQUEST", &[]),
        case("not an object", "[1,2]", "INVALID_REQUEST", &[]),
        case("not UTF-8", "", "INVALID_REQUEST", &[]),
        case(
            "wrong count",
            &one_input(r#""shape":[1,2],"datatype":"FP32","data":[1,2,3]"#),
            "INVALID_TENSOR",
            &["x", "2", "3"],
        ),
        case(
            "wrong shape",
            &one_input(r#""shape":[1,3],"datatype":"FP32","data":[1,2,3]"#),
            "INVALID_TENSOR",
            &["x", "dimension 1", "2", "3"],
        ),
        case(
            "overflowing shape",
            &one_input(r#""shape":[4294967296,4294967296,4],"datatype":"FP32","data":[1]"#),
            "INVALID_TENSOR",
            &["x"],
        ),
        case(
            "negative shape",
            &one_input(r#""shape":[-1,2],"datatype":"FP32","data":[1,2]"#),
            "INVALID_TENSOR",
            &["x"],
        ),
        case(
            "huge shape",
            &one_input(r#""shape":[1000000000000,2],"datatype":"FP32","data":[1,2]"#),
            "INVALID_TENSOR",
            &["x"],
        ),
        case("no datatype", &one_input(r#""shape":[1,2],"data":[1,2]"#), "INVALID_REQUEST", &["datatype"]),
        case(
            "unknown datatype",
            &one_input(r#""shape":[1,2],"datatype":"FP31","data":[1,2]"#),
            "INVALID_REQUEST",
            &["FP31"],
        ),
        case(
            "another datatype",
            &one_input(r#""shape":[1,2],"datatype":"INT64","data":[1,2]"#),
            "INVALID_TENSOR",
            &["FP32", "INT64"],
        ),
        case(
            "a boolean among floats",
            &one_input(r#""shape":[1,2],"datatype":"FP32","data":[1,true]"#),
            "INVALID_TENSOR",
            &["x"],
        ),
        case(
            "a bare NaN",
            &one_input(r#""shape":[1,2],"datatype":"FP32","data":[1,NaN]"#),
            "INVALID_REQUEST",
            &["NaN", "null"],
        ),
        case(
            "a float too large",
            &one_input(r#""shape":[1,2],"datatype":"FP32","data":[1,1e39]"#),
            "INVALID_TENSOR",
            &["x"],
        ),
        case(
            "unknown input",
            r#"{"inputs":[{"name":"q","shape":[1,2],"datatype":"FP32","data":[1,2]}]}"#,
            "INVALID_TENSOR",
            &["q", "x"],
        ),
        case("no inputs", r#"{"inputs":[]}"#, "INVALID_TENSOR", &["x", "missing"]),
        case(
            "an id that is no string",
            r#"{"id":7,"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}"#,
            "INVALID_REQUEST",
            &["id"],
        ),
        case(
            "unknown output",
            r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}],"outputs":[{"name":"z"}]}"#,
            "INVALID_REQUEST",
            &["z", "y"],
        ),
        case("100,000 brackets in data", &nested, "INVALID_REQUEST", &[]),
        case("100,000 brackets elsewhere", &elsewhere, "", &[]),
        Case {
            what: "a truncated binary tensor",
            path: "/v2/models/scale/infer",
            headers: &[("inference-header-content-length", "93")],
            body: [binary_head.as_bytes(), &[0u8; 5]].concat(),
            status: 400,
            code: "",
            says: &["8", "5"],
        },
        Case {
            what: "a header length past the end",
            path: "/v2/models/scale/infer",
            headers: &[("inference-header-content-length", "9999")],
            body: binary_head.into(),
            status: 400,
            code: "INVALID_REQUEST",
            says: &["9999"],
        },
        Case {
            what: "a header length that is no number",
            path: "/v2/models/scale/infer",
            headers: &[("inference-header-content-length", "-1")],
            body: binary_head.into(),
            status: 400,
            code: "INVALID_REQUEST",
            says: &["-1"],
        },
        Case {
            what: "a gzip bomb",
            path: "/v2/models/scale/infer",
            headers: &[("content-encoding", "gzip")],
            body: bomb,
            status: 413,
            code: "BODY_TOO_LARGE",
            says: &["1048576"],
        },
        Case {
            what: "no gzip",
            path: "/v2/models/scale/infer",
            headers: &[("content-encoding", "gzip")],
            body: b"plain".to_vec(),
            status: 400,
            code: "INVALID_REQUEST",
            says: &["gzip"],
        },
        Case {
            what: "an unknown encoding",
            path: "/v2/models/scale/infer",
            headers: &[("content-encoding", "br")],
            body: b"x".to_vec(),
            status: 415,
            code: "UNSUPPORTED_MEDIA_TYPE",
            says: &["br"],
        },
        Case {
            what: "a type that is no JSON",
            path: "/v2/models/scale/infer",
            headers: &[("content-type", "text/xml")],
            body: b"<x/>".to_vec(),
            status: 415,
            code: "UNSUPPORTED_MEDIA_TYPE",
            says: &["text/xml"],
        },
        Case {
            what: "an answer type that is not given",
            path: "/v2/models/scale/infer",
            headers: &[("accept", "text/html")],
            body: infer_body(&[1, 2], &[1.0, 2.0]).into(),
            status: 406,
            code: "NOT_ACCEPTABLE",
            says: &[],
        },
        Case {
            what: "too large",
            path: "/v2/models/scale/infer",
            headers: &[],
            body: vec![b' '; (1 << 20) + 1],
            status: 413,
            code: "BODY_TOO_LARGE",
            says: &["1048576"],
        },
        Case {
            what: "a deadline that is no number",
            path: "/v2/models/scale/infer",
            headers: &[("x-request-timeout-ms", "soon")],
            body: infer_body(&[1, 2], &[1.0, 2.0]).into(),
            status: 400,
            code: "INVALID_REQUEST",
            says: &["soon"],
        },
        Case {
            what: "an unknown model and no body",
            path: "/v2/models/nope/infer",
            headers: &[],
            body: Vec::new(),
            status: 404,
            code: "MODEL_NOT_FOUND",
            says: &["nope"],
        },
        Case {
            what: "an unknown model",
            path: "/v2/models/nope/infer",
            headers: &[],
            body: infer_body(&[1, 2], &[1.0, 2.0]).into(),
            status: 404,
            code: "MODEL_NOT_FOUND",
            says: &["nope"],
        },
        Case {
            what: "dots for a name",
            path: "/v2/models/..%2f..%2fetc/infer",
            headers: &[],
            body: infer_body(&[1, 2], &[1.0, 2.0]).into(),
            status: 404,
            code: "MODEL_NOT_FOUND",
            says: &[".."],
        },
        Case {
            what: "a version that is no number",
            path: "/v2/models/scale/versions/latest/infer",
            headers: &[],
            body: infer_body(&[1, 2], &[1.0, 2.0]).into(),
            status: 404,
            code: "VERSION_NOT_FOUND",
            says: &["latest"],
        },
        Case {
            what: "a model whose only version is broken",
            path: "/v2/models/broken/infer",
            headers: &[],
            body: infer_body(&[1, 2], &[1.0, 2.0]).into(),
            status: 503,
            code: "NOT_READY",
            says: &["broken"],
        },
        Case {
            what: "an unknown path",
            path: "/v3/models",
            headers: &[],
            body: Vec::new(),
            status: 404,
            code: "NOT_FOUND",
            says: &["/v3/models"],
        },
    ];
    for Case { what, path, headers, body, status, code, says } in cases {
        let body = if what == "not UTF-8" { vec![b'{', 0xff, 0xfe, b'}'] } else { body };
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(n, v)| (*n, if *v == "93" { Box::leak(binary_head.len().to_string().into_boxed_str()) } else { *v }))
            .collect();
        let answer = gateway.post_with(path, &headers, body);
        assert_eq!(answer.status, status, "{what}: {}", String::from_utf8_lossy(&answer.body));
        let found = answer.code();
        assert!(code.is_empty() || found == code, "{what}: expected {code}, got {found}: {}", answer.json());
        let text = answer.json().to_string();
        for words in says {
            assert!(text.contains(words), "{what}: {words:?} should stand in {text}");
        }
        assert!(answer.header("x-request-id").is_some(), "{what}: every answer carries an id");
        if matches!(status, 429 | 503) {
            assert!(answer.header("retry-after").is_some(), "{what}: says when to try again");
        }
    }
    still_serves(&gateway);
}

#[test]
fn broken_versions_say_why_and_what_would_help() {
    let gateway = gateway("");
    for (model, says) in [("broken", "ONNX"), ("empty", "empty"), ("strange", "FrobnicateTwice")] {
        let version = gateway.admin_get(&format!("/api/v1/models/{model}/versions/1")).json();
        assert_eq!(version["state"], "failed", "{version}");
        assert_eq!(version["stage"], "load", "{version}");
        assert!(version["reason"].as_str().unwrap().contains(says), "{says:?} in {version}");
    }
    still_serves(&gateway);
}

#[test]
fn a_method_that_does_not_fit_says_which_do() {
    let gateway = gateway("");
    let answer = gateway.get("/v2/models/scale/infer");
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    assert_eq!(answer.code(), "METHOD_NOT_ALLOWED");
    let answer = gateway.post("/v2/health/live", "");
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")));
}

#[test]
fn slow_and_endless_senders_are_cut_off() {
    let gateway = gateway("[server]\nheader_timeout = \"300ms\"\nbody_timeout = \"300ms\"\nmax_headers = \"8KiB\"\n");
    let slow_body = gateway
        .raw(b"POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{");
    assert!(slow_body.starts_with("HTTP/1.1 408") && slow_body.contains("BODY_TIMEOUT"), "{slow_body}");
    assert_eq!(gateway.raw(b"POST /v2/models/scale/in"), "", "half a head is closed without an answer");
    assert_eq!(gateway.raw(b""), "", "and so is no head at all");
    assert_eq!(gateway.raw(b"PR"), "", "and half an HTTP/2 preface");
    let long = format!("GET /v2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-long: {}\r\n\r\n", "a".repeat(16384));
    let long = gateway.raw(long.as_bytes());
    assert!(long.starts_with("HTTP/1.1 431") && long.contains("HEADERS_TOO_LARGE"), "{long}");
    for (bytes, status) in [
        ("garbage\r\n\r\n", "400"),
        ("GET /v2 HTTP/1.1\r\nHo st: x\r\n\r\n", "400"),
        ("GET /v2 HTTP/1.1\r\nconnection: close\r\n\r\n", "400"),
        ("POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "400"),
    ] {
        let answer = gateway.raw(bytes.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{bytes:?}: {answer}");
    }
    let endless = format!("GET /v2 HTTP/1.1\r\nhost: x\r\nx-long: {}", "a".repeat(1 << 20));
    let endless = gateway.raw(endless.as_bytes());
    assert!(endless.is_empty() || endless.starts_with("HTTP/1.1 431"), "{endless}");
    still_serves(&gateway);
}

#[test]
fn past_its_deadline_a_request_is_answered_504() {
    let gateway = gateway("");
    let started = std::time::Instant::now();
    let late = gateway.raw(
        b"POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-timeout-ms: 200\r\ncontent-length: 9\r\n\r\n{",
    );
    assert!(late.starts_with("HTTP/1.1 504") && late.contains("DEADLINE_EXCEEDED"), "{late}");
    assert!(started.elapsed() < Duration::from_secs(5), "the caller's deadline, not the configured one");
    let configured = self::gateway("[server]\nrequest_timeout = \"200ms\"\n");
    let late = configured
        .raw(b"POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9\r\n\r\n{");
    assert!(late.starts_with("HTTP/1.1 504"), "and without one of its own, the configured one: {late}");
}

#[test]
fn an_idle_connection_outlives_the_head_limit() {
    use std::io::Read;
    let gateway = gateway("[server]\nheader_timeout = \"100ms\"\n");
    let mut stream = TcpStream::connect(gateway.data()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut buffer = [0u8; 4096];
    for _ in 0..3 {
        stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let n = stream.read(&mut buffer).unwrap();
        assert!(buffer[..n].starts_with(b"HTTP/1.1 200"), "a kept connection is not closed for being idle");
        // Longer than the limit on a head: nothing to await here but time itself.
        std::thread::park_timeout(Duration::from_millis(350));
    }
}

#[test]
fn over_the_limit_in_flight_is_429_with_retry_after() {
    let gateway = gateway("[server]\nmax_in_flight = 1\n");
    // One request that has its place and does not finish its body holds the only place.
    let mut holder = TcpStream::connect(gateway.data()).unwrap();
    holder.write_all(b"POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{").unwrap();
    let app = gateway.app.as_ref().unwrap();
    crate::support::eventually("the first request has the only place", || (app.in_flight() == 1).then_some(()));
    let refused = gateway.post("/v2/models/scale/infer", infer_body(&[1, 2], &[1.0, 2.0]));
    assert_eq!(refused.status, 429, "{refused:?}");
    assert_eq!(refused.code(), "TOO_MANY_REQUESTS");
    assert!(refused.header("retry-after").is_some());
    drop(holder);
    crate::support::eventually("the place is given back when the client leaves", || {
        let answer = gateway.post("/v2/models/scale/infer", infer_body(&[1, 2], &[1.0, 2.0]));
        (answer.status == 200).then_some(())
    });
}
