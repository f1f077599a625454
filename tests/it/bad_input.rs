//! Invalid requests: each gets a clear error, and the gateway continues to serve.

use crate::support::{Gateway, infer_body, onnx};
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::Duration;

fn gateway(config: &str) -> Gateway {
    Gateway::start_with(config, |models| {
        onnx::install(models, "scale", 1, &onnx::scaling(2.0));
        onnx::install(models, "broken", 1, b"this is not an ONNX model");
        onnx::install(models, "empty", 1, b"");
        onnx::install(models, "strange", 1, &onnx::unknown_operator());
    })
}

fn still_serves(gateway: &Gateway) {
    let answer = gateway.post("/v2/models/scale/infer", infer_body(&[1, 2], &[1.0, 2.0]));
    assert_eq!(answer.status, 200, "the gateway still serves: {answer:?}");
}

struct Case {
    what: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: Vec<u8>,
    status: u16,
    code: &'static str,
    /// Each must be in the error or its details.
    contains: &'static [&'static str],
}

fn case(what: &'static str, body: &str, code: &'static str, contains: &'static [&'static str]) -> Case {
    Case {
        what,
        path: "/v2/models/scale/infer",
        headers: &[],
        body: body.as_bytes().to_vec(),
        status: 400,
        code,
        contains,
    }
}

/// A placeholder for the length of `binary_head` in the table below.
const BINARY_HEAD_LENGTH: &str = "LENGTH";

fn one_input(members: &str) -> String {
    format!("{{\"inputs\":[{{\"name\":\"x\",{members}}}]}}")
}

#[test]
fn each_invalid_request_gets_a_clear_error() {
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
    assert!(bomb.len() < 1 << 20, "the compressed body is small");
    let binary_head =
        r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}"#;
    let cases = vec![
        case("an empty body", "", "INVALID_REQUEST", &["empty"]),
        case("incomplete JSON", "{\"inputs\": [", "INVALID_REQUEST", &[]),
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
            "a datatype the model does not take",
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
            "a float that is too large",
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
            "an id that is not a string",
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
            headers: &[("inference-header-content-length", BINARY_HEAD_LENGTH)],
            body: [binary_head.as_bytes(), &[0u8; 5]].concat(),
            status: 400,
            code: "",
            contains: &["8", "5"],
        },
        Case {
            what: "a JSON length past the end of the body",
            path: "/v2/models/scale/infer",
            headers: &[("inference-header-content-length", "9999")],
            body: binary_head.into(),
            status: 400,
            code: "INVALID_REQUEST",
            contains: &["9999"],
        },
        Case {
            what: "a JSON length that is not a number",
            path: "/v2/models/scale/infer",
            headers: &[("inference-header-content-length", "-1")],
            body: binary_head.into(),
            status: 400,
            code: "INVALID_REQUEST",
            contains: &["-1"],
        },
        Case {
            what: "a gzip bomb",
            path: "/v2/models/scale/infer",
            headers: &[("content-encoding", "gzip")],
            body: bomb,
            status: 413,
            code: "BODY_TOO_LARGE",
            contains: &["1048576"],
        },
        Case {
            what: "a body that is not gzip",
            path: "/v2/models/scale/infer",
            headers: &[("content-encoding", "gzip")],
            body: b"plain".to_vec(),
            status: 400,
            code: "INVALID_REQUEST",
            contains: &["gzip"],
        },
        Case {
            what: "an unknown encoding",
            path: "/v2/models/scale/infer",
            headers: &[("content-encoding", "br")],
            body: b"x".to_vec(),
            status: 415,
            code: "UNSUPPORTED_MEDIA_TYPE",
            contains: &["br"],
        },
        Case {
            what: "a media type that is not supported",
            path: "/v2/models/scale/infer",
            headers: &[("content-type", "text/xml")],
            body: b"<x/>".to_vec(),
            status: 415,
            code: "UNSUPPORTED_MEDIA_TYPE",
            contains: &["text/xml"],
        },
        Case {
            what: "an answer type that is not supported",
            path: "/v2/models/scale/infer",
            headers: &[("accept", "text/html")],
            body: infer_body(&[1, 2], &[1.0, 2.0]).into(),
            status: 406,
            code: "NOT_ACCEPTABLE",
            contains: &[],
        },
        Case {
            what: "a body that is too large",
            path: "/v2/models/scale/infer",
            headers: &[],
            body: vec![b' '; (1 << 20) + 1],
            status: 413,
            code: "BODY_TOO_LARGE",
            contains: &["1048576"],
        },
        Case {
            what: "a timeout that is not a number",
            path: "/v2/models/scale/infer",
            headers: &[("x-request-timeout-ms", "soon")],
            body: infer_body(&[1, 2], &[1.0, 2.0]).into(),
            status: 400,
            code: "INVALID_REQUEST",
            contains: &["soon"],
        },
        Case {
            what: "an unknown model and an empty body",
            path: "/v2/models/nope/infer",
            headers: &[],
            body: Vec::new(),
            status: 404,
            code: "MODEL_NOT_FOUND",
            contains: &["nope"],
        },
        Case {
            what: "an unknown model",
            path: "/v2/models/nope/infer",
            headers: &[],
            body: infer_body(&[1, 2], &[1.0, 2.0]).into(),
            status: 404,
            code: "MODEL_NOT_FOUND",
            contains: &["nope"],
        },
        Case {
            what: "a model name with a path",
            path: "/v2/models/..%2f..%2fetc/infer",
            headers: &[],
            body: infer_body(&[1, 2], &[1.0, 2.0]).into(),
            status: 404,
            code: "MODEL_NOT_FOUND",
            contains: &[".."],
        },
        Case {
            what: "a version that is not a number",
            path: "/v2/models/scale/versions/latest/infer",
            headers: &[],
            body: infer_body(&[1, 2], &[1.0, 2.0]).into(),
            status: 404,
            code: "VERSION_NOT_FOUND",
            contains: &["latest"],
        },
        Case {
            what: "a model whose only version failed",
            path: "/v2/models/broken/infer",
            headers: &[],
            body: infer_body(&[1, 2], &[1.0, 2.0]).into(),
            status: 503,
            code: "NOT_READY",
            contains: &["broken"],
        },
        Case {
            what: "an unknown path",
            path: "/v3/models",
            headers: &[],
            body: Vec::new(),
            status: 404,
            code: "NOT_FOUND",
            contains: &["/v3/models"],
        },
    ];
    for Case { what, path, headers, body, status, code, contains } in cases {
        let body = if what == "not UTF-8" { vec![b'{', 0xff, 0xfe, b'}'] } else { body };
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(n, v)| {
                (
                    *n,
                    if *v == BINARY_HEAD_LENGTH {
                        Box::leak(binary_head.len().to_string().into_boxed_str())
                    } else {
                        *v
                    },
                )
            })
            .collect();
        let answer = gateway.post_with(path, &headers, body);
        assert_eq!(answer.status, status, "{what}: {}", String::from_utf8_lossy(&answer.body));
        let found = answer.code();
        assert!(code.is_empty() || found == code, "{what}: expected {code}, got {found}: {}", answer.json());
        let text = answer.json().to_string();
        for part in contains {
            assert!(text.contains(part), "{what}: {part:?} is not in {text}");
        }
        assert!(answer.header("x-request-id").is_some(), "{what}: every answer has an id");
        if matches!(status, 429 | 503) {
            assert!(answer.header("retry-after").is_some(), "{what}: the answer has a retry-after header");
        }
    }
    still_serves(&gateway);
}

#[test]
fn a_failed_version_has_a_stage_and_a_reason() {
    let gateway = gateway("");
    for (model, reason) in [("broken", "ONNX"), ("empty", "empty"), ("strange", "FrobnicateTwice")] {
        let version = gateway.admin_get(&format!("/api/v1/models/{model}/versions/1")).json();
        assert_eq!(version["state"], "failed", "{version}");
        assert_eq!(version["stage"], "load", "{version}");
        assert!(version["reason"].as_str().unwrap().contains(reason), "{reason:?} is not in {version}");
    }
    still_serves(&gateway);
}

#[test]
fn a_wrong_method_is_405_with_the_allowed_methods() {
    let gateway = gateway("");
    let answer = gateway.get("/v2/models/scale/infer");
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    assert_eq!(answer.code(), "METHOD_NOT_ALLOWED");
    let answer = gateway.post("/v2/health/live", "");
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")));
}

#[test]
fn slow_and_endless_senders_are_disconnected() {
    let gateway = gateway("[server]\nheader_timeout = \"300ms\"\nbody_timeout = \"300ms\"\nmax_headers = \"8KiB\"\n");
    let slow_body = gateway
        .raw(b"POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{");
    assert!(slow_body.starts_with("HTTP/1.1 408") && slow_body.contains("BODY_TIMEOUT"), "{slow_body}");
    assert_eq!(
        gateway.raw(b"POST /v2/models/scale/in"),
        "",
        "a connection with incomplete headers is closed without an answer"
    );
    assert_eq!(gateway.raw(b""), "", "so is a connection without any bytes");
    assert_eq!(gateway.raw(b"PR"), "", "and one with an incomplete HTTP/2 preface");
    let long = format!("GET /v2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-long: {}\r\n\r\n", "a".repeat(16384));
    let long = gateway.raw(long.as_bytes());
    assert!(long.starts_with("HTTP/1.1 431") && long.contains("HEADERS_TOO_LARGE"), "{long}");
    for (bytes, status) in [
        ("garbage\r\n\r\n", "400"),
        ("GET /v2 HTTP/1.1\r\nHo st: x\r\n\r\n", "400"),
        ("GET /v2 HTTP/1.1\r\nconnection: close\r\n\r\n", "400"),
        ("GET /v2 HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n", "400"),
        ("GET /v2 HTTP/1.1\r\nhost: a\r\nhost: a\r\nconnection: close\r\n\r\n", "400"),
        ("GET /v2 HTTP/1.1\r\nhost: a/b\r\nconnection: close\r\n\r\n", "400"),
        ("GET /v2 HTTP/1.1\r\nhost: user@a\r\nconnection: close\r\n\r\n", "400"),
        ("GET /v2 HTTP/1.1\r\nhost: a:8o\r\nconnection: close\r\n\r\n", "400"),
        ("GET /v2 HTTP/1.1\r\nhost: [::1\r\nconnection: close\r\n\r\n", "400"),
        ("GET /v2 HTTP/1.1\r\nhost: a b\r\nconnection: close\r\n\r\n", "400"),
        ("GET /v2 HTTP/1.1\r\nhost: my-host.example:8080\r\nconnection: close\r\n\r\n", "200"),
        ("GET /v2 HTTP/1.1\r\nhost: [2001:db8::1]:80\r\nconnection: close\r\n\r\n", "200"),
        ("GET /v2 HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n", "200"),
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
fn a_request_past_its_deadline_gets_504() {
    let gateway = gateway("");
    let started = std::time::Instant::now();
    let late = gateway.raw(
        b"POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-timeout-ms: 200\r\ncontent-length: 9\r\n\r\n{",
    );
    assert!(late.starts_with("HTTP/1.1 504") && late.contains("DEADLINE_EXCEEDED"), "{late}");
    assert!(started.elapsed() < Duration::from_secs(5), "the deadline is the caller's, not the configured one");
    let configured = self::gateway("[server]\nrequest_timeout = \"200ms\"\n");
    let late = configured
        .raw(b"POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9\r\n\r\n{");
    assert!(
        late.starts_with("HTTP/1.1 504"),
        "without a deadline of its own, a request has the configured one: {late}"
    );
}

#[test]
fn an_idle_connection_stays_open_longer_than_the_header_timeout() {
    use std::io::Read;
    let gateway = gateway("[server]\nheader_timeout = \"100ms\"\n");
    let mut stream = TcpStream::connect(gateway.data()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut buffer = [0u8; 4096];
    for _ in 0..3 {
        stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let n = stream.read(&mut buffer).unwrap();
        assert!(buffer[..n].starts_with(b"HTTP/1.1 200"), "an idle connection stays open");
        // Waits for longer than the limit on headers, or until the server closes the connection.
        stream.set_read_timeout(Some(Duration::from_millis(350))).unwrap();
        let closed = stream.read(&mut buffer);
        assert!(closed.is_err_and(|e| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)));
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
}

#[test]
fn requests_over_max_in_flight_get_429_and_feedback_is_not_affected() {
    // Each run is handed to a worker, and keeps the only place until it is answered.
    let gateway = gateway("[server]\nmax_in_flight = 1\n[execute]\ninline_below = \"0s\"\n");
    let refused = std::sync::Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                crate::support::eventually("a request is refused", || {
                    let answer = gateway.post("/v2/models/scale/infer", infer_body(&[1, 2], &[1.0, 2.0]));
                    let mut refused = refused.lock().unwrap();
                    match answer.status {
                        200 => {}
                        _ => *refused = Some(answer),
                    }
                    refused.as_ref().map(drop)
                });
            });
        }
        // Feedback has permits of its own.
        let feedback = gateway.post("/v1/models/scale:feedback", r#"{"feedback":[{"request_id":"a","label":1}]}"#);
        assert_eq!(feedback.status, 202, "{feedback:?}");
    });
    let refused = refused.into_inner().unwrap().unwrap();
    assert_eq!(refused.status, 429, "{refused:?}");
    assert_eq!(refused.code(), "TOO_MANY_REQUESTS");
    assert!(refused.header("retry-after").is_some());
    still_serves(&gateway);
}

#[test]
fn feedback_takes_no_place_from_predictions() {
    let gateway = gateway("[server]\nmax_in_flight = 1\n");
    let holders: Vec<TcpStream> = (0..3)
        .map(|_| {
            let mut holder = TcpStream::connect(gateway.data()).unwrap();
            holder
                .write_all(b"POST /v1/models/scale:feedback HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
                .unwrap();
            holder
        })
        .collect();
    for _ in 0..20 {
        let answer = gateway.post("/v2/models/scale/infer", infer_body(&[1, 2], &[1.0, 2.0]));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    drop(holders);
}

#[test]
fn an_error_answer_stays_small_for_thousands_of_unknown_outputs() {
    let gateway = gateway("");
    let outputs = (0..8000).map(|i| format!("{{\"name\":\"o{i}\"}}")).collect::<Vec<_>>().join(",");
    let body = format!(
        "{{\"inputs\":[{{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1,2]}}],\"outputs\":[{outputs}]}}"
    );
    let answer = gateway.post("/v2/models/scale/infer", body);
    assert_eq!((answer.status, answer.code().as_str()), (400, "INVALID_REQUEST"));
    assert!(answer.body.len() < 64 * 1024, "{} bytes", answer.body.len());
    assert!(answer.json()["details"].as_array().unwrap().last().unwrap().as_str().unwrap().contains("more"));
    still_serves(&gateway);
}
