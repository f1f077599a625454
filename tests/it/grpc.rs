//! gRPC on the data plane: real clients, with and without TLS, frames that clients rarely send, limits, credentials and stops.

use crate::support::http2::{DATA, END_HEADERS, END_STREAM, HEADERS, Http2, RST_STREAM, head};
use crate::support::tls::Certificates;
use crate::support::{Gateway, copy, eventually, onnx};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll};
use std::time::Duration;
use tempfile::TempDir;

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const LIVE: &str = "/inference.GRPCInferenceService/ServerLive";
const READY: &str = "/inference.GRPCInferenceService/ModelReady";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

const OK: u16 = 0;
const INVALID_ARGUMENT: u16 = 3;
const DEADLINE_EXCEEDED: u16 = 4;
const PERMISSION_DENIED: u16 = 7;
const RESOURCE_EXHAUSTED: u16 = 8;
const UNIMPLEMENTED: u16 = 12;
const UNAUTHENTICATED: u16 = 16;

/// What the tests need of `inference.ModelInferRequest`.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(message, repeated, tag = "5")]
    inputs: Vec<Input>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    raw: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Input {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(bytes = "vec", repeated, tag = "6")]
    raw: Vec<Vec<u8>>,
}

/// A request for the model, with the values as one row of `x`.
fn infer(model: &str, values: &[f32]) -> Vec<u8> {
    let shape = vec![1, i64::try_from(values.len()).unwrap()];
    let input = Input { name: "x".into(), datatype: "FP32".into(), shape };
    let raw = vec![values.iter().flat_map(|value| value.to_le_bytes()).collect()];
    Request { model_name: model.into(), inputs: vec![input], raw }.encode_to_vec()
}

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    [&[flag][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

/// A body that is sent in these parts, and may never end.
struct Parts(VecDeque<Bytes>, bool);

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.pop_front() {
            Some(part) => Poll::Ready(Some(Ok(Frame::data(part)))),
            None if self.1 => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

#[derive(Debug)]
struct Ended {
    http: u16,
    /// The status, of the trailers or, without a message, of the headers.
    status: Option<u16>,
    text: String,
    code: Option<String>,
    body: Vec<u8>,
}

/// One call on a connection of its own.
fn call(address: SocketAddr, path: &str, headers: &[(&str, &str)], parts: Vec<Vec<u8>>) -> Ended {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let io = TokioIo::new(tokio::net::TcpStream::connect(address).await.unwrap());
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let mut request = http::Request::post(format!("http://localhost{path}")).header("te", "trailers");
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Parts(parts.into_iter().map(Bytes::from).collect(), true);
        let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().cloned().unwrap_or_else(|| head.headers.clone());
        let value = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ended {
            http: head.status.as_u16(),
            status: value("grpc-status").and_then(|status| status.parse().ok()),
            text: value("grpc-message").unwrap_or_default(),
            code: value("x-sluicegate-code"),
            body: collected.to_bytes().to_vec(),
        }
    })
}

fn scale() -> Gateway {
    Gateway::start_with("[server]\nmax_body = \"1MiB\"\n", |models| {
        onnx::install(models, "scale", 1, &onnx::scaling(2.0));
    })
}

/// The numbers of the only output of an answer.
fn numbers(ended: &Ended) -> Vec<f32> {
    assert_eq!((ended.http, ended.status), (200, Some(OK)), "{ended:?}");
    let response = Response::decode(&ended.body[5..]).unwrap();
    let (values, rest) = response.raw[0].as_chunks::<4>();
    assert!(rest.is_empty());
    values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn python(gateway: &Gateway, more: &[String]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| root.join(".venv/bin/python").display().to_string());
    let output = Command::new(&python)
        .arg(root.join("tests/python/grpc_clients.py"))
        .arg(format!("localhost:{}", gateway.data().port()))
        .args(more)
        .output()
        .unwrap_or_else(|e| panic!("{python} does not run (`make venv` creates it): {e}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("ok"), "{text}");
}

#[test]
fn clients_of_grpc_work_unchanged() {
    python(&Gateway::start(|models| copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models"), models)), &[]);
}

#[test]
fn clients_of_grpc_work_over_tls() {
    let dir = TempDir::new().unwrap();
    let certificates = Certificates::make(dir.path());
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models"), &dir.path().join("models"));
    let gateway = Gateway::start_in(dir, &certificates.section("server.tls"));
    eventually("the gateway is ready", || (gateway.admin_get("/readyz").status == 200).then_some(()));
    python(&gateway, &[certificates.path("server.crt")]);
}

#[test]
fn a_message_may_arrive_in_any_parts() {
    let gateway = scale();
    let message = framed(0, &infer("scale", &[1.5, -2.0]));
    for size in [1, 4, 5, 7, 1000] {
        let parts = message.chunks(size).map(<[u8]>::to_vec).collect();
        assert_eq!(numbers(&call(gateway.data(), INFER, &[], parts)), [3.0, -4.0], "in parts of {size}");
    }
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&infer("scale", &[1.0, 2.0])).unwrap();
    let zipped = framed(1, &gzip.finish().unwrap());
    assert_eq!(numbers(&call(gateway.data(), INFER, &[("grpc-encoding", "gzip")], vec![zipped])), [2.0, 4.0]);
}

/// What is sent, its headers and its body, and what is answered: the status and some words.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Vec<u8>, u16, &'a str);

#[test]
fn bodies_that_are_not_one_message_are_refused_in_words() {
    let gateway = scale();
    let one = framed(0, &infer("scale", &[1.0, 2.0]));
    let bomb = {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(&vec![0; 64 << 20]).unwrap();
        framed(1, &gzip.finish().unwrap())
    };
    let gzip = [("grpc-encoding", "gzip")];
    let cases: [Case; 10] = [
        ("nothing", &[], vec![], INVALID_ARGUMENT, "no message"),
        ("two messages", &[], [&one[..], &one].concat(), INVALID_ARGUMENT, "bytes follow"),
        ("a message that is cut off", &[], one[..one.len() - 1].to_vec(), INVALID_ARGUMENT, "arrived"),
        ("another flag", &[], framed(7, b""), INVALID_ARGUMENT, "got 7"),
        ("not a message", &[], framed(0, b"\xff\xff"), INVALID_ARGUMENT, "not Protocol Buffers"),
        ("a large announcement", &[], vec![0, 0xff, 0xff, 0xff, 0xff, 1], INVALID_ARGUMENT, "only 1 arrived"),
        ("a large body", &[], framed(0, &vec![0; 2 << 20]), RESOURCE_EXHAUSTED, "1048581"),
        ("a bomb", &gzip, bomb, RESOURCE_EXHAUSTED, "after gzip decompression"),
        ("bytes that are not gzip", &gzip, framed(1, b"zzz"), INVALID_ARGUMENT, "gzip"),
        ("an unknown coding", &[("grpc-encoding", "br")], framed(1, b"zzz"), UNIMPLEMENTED, "gzip or deflate"),
    ];
    for (what, headers, body, status, words) in cases {
        let ended = call(gateway.data(), INFER, headers, vec![body]);
        assert_eq!((ended.http, ended.status), (200, Some(status)), "{what}: {ended:?}");
        let text = percent_encoding::percent_decode_str(&ended.text).decode_utf8_lossy();
        assert!(text.contains(words), "{what}: {text}");
        assert!(ended.code.is_some(), "{what}: the stable code is there");
        assert_eq!(numbers(&call(gateway.data(), INFER, &[], vec![one.clone()])), [2.0, 4.0], "after {what}");
    }
}

#[test]
fn what_is_not_a_call_gets_an_answer_of_http() {
    let gateway = scale();
    let json = call(gateway.data(), INFER, &[("content-type", "application/json")], vec![b"{}".to_vec()]);
    assert_eq!((json.http, json.status), (415, None), "{json:?}");
    let unknown = call(gateway.data(), "/inference.GRPCInferenceService/Nothing", &[], vec![framed(0, b"")]);
    assert_eq!((unknown.http, unknown.status), (200, Some(UNIMPLEMENTED)), "{unknown:?}");
    let first = gateway.post_with(LIVE, &[("content-type", "application/grpc")], framed(0, b""));
    assert_eq!((first.status, first.code().as_str()), (400, "INVALID_REQUEST"), "over HTTP/1");
    assert_eq!(gateway.get(LIVE).status, 405);
}

#[test]
fn a_call_ends_at_its_deadline() {
    let gateway = Gateway::start(|models| onnx::install(models, "loops", 1, &onnx::looping()));
    let long = || vec![framed(0, &infer("loops", &[100_000_000.0, 0.0]))];
    let ended = call(gateway.data(), INFER, &[("grpc-timeout", "100m")], long());
    assert_eq!(
        (ended.status, ended.code.as_deref()),
        (Some(DEADLINE_EXCEEDED), Some("DEADLINE_EXCEEDED")),
        "{ended:?}"
    );
    for wrong in ["100", "m", "123456789m", "-1S", "1x"] {
        let ended = call(gateway.data(), INFER, &[("grpc-timeout", wrong)], long());
        assert_eq!(ended.status, Some(INVALID_ARGUMENT), "{wrong}: {ended:?}");
    }
}

/// The header block of a call.
fn block(path: &str) -> Vec<u8> {
    let mut block = head(true, path);
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

#[test]
fn a_client_that_resets_a_call_disturbs_no_other() {
    let gateway = scale();
    let mut connection = Http2::connect(gateway.data(), 1 << 20);
    let message = framed(0, &infer("scale", &[1.0, 2.0]));
    for (i, path) in [INFER, STREAM, WATCH, LIVE].into_iter().enumerate() {
        let stream = 1 + 4 * u32::try_from(i).unwrap();
        connection.send(HEADERS, END_HEADERS, stream, &block(path));
        connection.send(DATA, 0, stream, &message[..3]);
        connection.send(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
        // The next call on the same connection is answered.
        connection.send(HEADERS, END_HEADERS, stream + 2, &block(LIVE));
        connection.send(DATA, END_STREAM, stream + 2, &framed(0, b""));
        loop {
            let frame = connection.next_of(DATA).unwrap();
            if frame.stream == stream + 2 {
                assert_eq!(frame.payload, framed(0, &[8, 1]), "live");
                break;
            }
        }
    }
    eventually("nothing is in flight", || {
        let metrics = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
        metrics.lines().all(|line| !line.starts_with("sluicegate_in_flight") || line.ends_with(" 0")).then_some(())
    });
}

#[test]
fn a_stop_ends_streams_that_wait() {
    let gateway = scale();
    let address = gateway.data();
    // One waits for a change, one for a message; both are open when the stop begins.
    let (told, opened) = std::sync::mpsc::channel();
    let waiting: Vec<_> = [(WATCH, framed(0, b"\x0a\x05scale")), (STREAM, framed(0, &infer("scale", &[1.0, 2.0])))]
        .into_iter()
        .map(|(path, first)| {
            let told = told.clone();
            std::thread::spawn(move || {
                let mut connection = Http2::connect(address, 1 << 20);
                connection.send(HEADERS, END_HEADERS, 1, &block(path));
                let flags = if path == WATCH { END_STREAM } else { 0 };
                connection.send(DATA, flags, 1, &first);
                connection.next_of(DATA).expect("the first answer");
                told.send(()).unwrap();
                // The trailers end the stream, and the server closes the connection.
                let mut ended = false;
                while let Some(frame) = connection.next() {
                    ended |= frame.kind == HEADERS && frame.flags & END_STREAM != 0;
                }
                ended
            })
        })
        .collect();
    for _ in &waiting {
        opened.recv_timeout(Duration::from_secs(30)).unwrap();
    }
    // `stop` asserts that it ends within its grace period.
    drop(gateway.stop());
    for thread in waiting {
        assert!(thread.join().unwrap(), "the stream ended with a status");
    }
}

#[test]
fn calls_need_what_requests_need_where_tokens_are_required() {
    let dir = TempDir::new().unwrap();
    for model in ["self", "other"] {
        onnx::install(&dir.path().join("models"), model, 1, &onnx::scaling(2.0));
    }
    let create = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(["token", "create", "--name", "a", "--role", "predict", "--models", "se*", "--data-dir"])
        .arg(dir.path().join("data"))
        .output()
        .unwrap();
    assert!(create.status.success(), "{create:?}");
    let bearer = format!("Bearer {}", String::from_utf8(create.stdout).unwrap().trim());
    let gateway = Gateway::start_in(dir, "[server]\nrequire_token = true\n");
    gateway.wait_ready();
    let with = [("authorization", bearer.as_str())];
    let status = |path: &str, headers: &[(&str, &str)], message: &[u8]| {
        call(gateway.data(), path, headers, vec![framed(0, message)]).status.unwrap()
    };
    let (own, other) = (infer("self", &[1.0, 2.0]), infer("other", &[1.0, 2.0]));
    assert_eq!(status(INFER, &[], &own), UNAUTHENTICATED);
    assert_eq!(status(INFER, &with, &own), OK);
    assert_eq!(status(INFER, &with, &other), PERMISSION_DENIED);
    assert_eq!(status(READY, &with, b"\x0a\x05other"), PERMISSION_DENIED);
    assert_eq!(status(READY, &with, b"\x0a\x04self"), OK);
    // Probes carry no credentials; what a model's state is they do not learn.
    assert_eq!(status(LIVE, &[], b""), OK);
    assert_eq!(status("/grpc.health.v1.Health/Check", &[], b""), OK);
    assert_eq!(status("/grpc.health.v1.Health/Check", &[], b"\x0a\x04self"), UNAUTHENTICATED);
    assert_eq!(status("/grpc.health.v1.Health/Check", &with, b"\x0a\x04self"), OK);
    let stream = call(gateway.data(), STREAM, &with, vec![framed(0, &other), framed(0, &own)]);
    assert_eq!(stream.status, Some(OK), "a refused message does not end a stream");
}
