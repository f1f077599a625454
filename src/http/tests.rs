use super::answer::{self, HttpResponse};
use super::config::Config;
use super::data_plane::{Claim, DataPlane, InFlight, RequestKind};
use super::door::Doors;
use super::endpoint::{Endpoint, VersionPart};
use super::handle::or_500;
use super::server::Server;
use crate::access::{self, Access};
use crate::backend::fake::Fake;
use crate::budget::Budget;
use crate::callers;
use crate::execute::{self, Executor};
use crate::model::{Code, Dim, Failure, RequestId, Signature, TensorSpec};
use crate::registry::tests::fixture::{entry, loaded};
use crate::registry::{self, Snapshot};
use crate::route::Document;
use crate::serve::Gateway;
use crate::shadow::{self, Figures, Shadows};
use crate::telemetry::Telemetry;
use crate::tensor::DataType;
use crate::traces::Traces;
use http::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn parsed(method: &Method, path: &str) -> String {
    match Endpoint::parse(method, path) {
        Ok(endpoint) => format!("{endpoint:?}"),
        Err(refused) => refused.failure.code.to_string(),
    }
}

#[test]
fn each_documented_path_has_its_endpoint() {
    let target =
        |kind: &str, model: &str, version: &str| format!("{kind}(Target {{ model: {model:?}, version: {version} }})");
    let pinned = "Version(Version(3))";
    let get = [
        ("/v2", "ServerMetadata".to_owned()),
        ("/v2/", "ServerMetadata".to_owned()),
        ("/v2/health/live", "Live".to_owned()),
        ("/v2/health/ready", "Ready".to_owned()),
        ("/v2/models/m", target("Metadata", "m", "Any")),
        ("/v2/models/m/versions/3", target("Metadata", "m", pinned)),
        ("/v2/models/m/ready", target("ModelReady", "m", "Any")),
        ("/v2/models/m/versions/3/ready", target("ModelReady", "m", pinned)),
        ("/v1/models/m", target("TfsStatus", "m", "Any")),
        ("/v1/models/m/versions/3", target("TfsStatus", "m", pinned)),
        ("/v1/models/m/versions/0", target("TfsStatus", "m", "Any")),
        ("/v1/models/m/labels/stable", target("TfsStatus", "m", "Label(\"stable\")")),
        ("/v1/models/m/metadata", target("TfsMetadata", "m", "Any")),
        ("/v1/models/m/versions/3/metadata", target("TfsMetadata", "m", pinned)),
        ("/v2/models/a%2Eb", target("Metadata", "a.b", "Any")),
        ("/", "Alive".to_owned()),
        ("/v1/models", "Models".to_owned()),
        ("/ping", "Ping".to_owned()),
        ("/health", "Ping".to_owned()),
        ("/version", "Version".to_owned()),
    ];
    for (path, endpoint) in get {
        assert_eq!(parsed(&Method::GET, path), endpoint, "GET {path}");
        assert_eq!(parsed(&Method::HEAD, path), endpoint, "HEAD {path}");
        assert_eq!(parsed(&Method::POST, path), "METHOD_NOT_ALLOWED", "POST {path}");
    }
    let post = [
        ("/invocations", "Invocations".to_owned()),
        ("/v2/repository/index", "RepositoryIndex".to_owned()),
        ("/v2/models/m/infer", target("Infer", "m", "Any")),
        ("/v2/models/m/versions/3/infer", target("Infer", "m", pinned)),
        ("/v1/models/m:predict", target("TfsPredict", "m", "Any")),
        ("/v1/models/m/versions/3:predict", target("TfsPredict", "m", pinned)),
        ("/v1/models/m/labels/canary:predict", target("TfsPredict", "m", "Label(\"canary\")")),
    ];
    for (path, endpoint) in post {
        assert_eq!(parsed(&Method::POST, path), endpoint, "POST {path}");
        assert_eq!(parsed(&Method::DELETE, path), "METHOD_NOT_ALLOWED", "DELETE {path}");
    }
}

#[test]
fn every_other_path_is_refused() {
    for path in [
        "",
        "//",
        "/v2x",
        "/v2/models",
        "/v2/models/m/infer/x",
        "/v2/models/m/versions",
        "/v2/models/m/nope",
        "/v1/models/m/",
        "/invocations/m",
        "/v1/models/m:classify",
        "/v1/models/m/labels/:predict",
        "/v1/models/m/x/y/z",
        "/metrics",
    ] {
        assert_eq!(parsed(&Method::GET, path), "NOT_FOUND", "{path}");
    }
    for path in
        ["/v2/models/m/versions/latest/infer", "/v2/models/m/versions/0/infer", "/v1/models/m/versions/x:predict"]
    {
        assert_eq!(parsed(&Method::POST, path), "VERSION_NOT_FOUND", "{path}");
    }
    assert!(
        matches!(Endpoint::parse(&Method::GET, "/v2/models/..%2f/ready"), Ok(Endpoint::ModelReady(t)) if t.model == "../" && t.version == VersionPart::Any),
        "a strange name is a valid path, for a model that does not exist"
    );
}

#[test]
fn settings_of_triton_that_this_server_lacks_are_refused_as_by_a_triton_without_them() {
    for path in [
        "/v2/logging",
        "/v2/trace/setting",
        "/v2/models/m/trace/setting",
        "/inference.GRPCInferenceService/TraceSetting",
        "/inference.GRPCInferenceService/LogSettings",
    ] {
        for method in [Method::GET, Method::POST] {
            assert_eq!(parsed(&method, path), "UNSUPPORTED", "{method} {path}");
        }
    }
    for path in ["/v2/models//trace/setting", "/v2/models/m/x/trace/setting", "/v2/logging/x"] {
        assert_eq!(parsed(&Method::GET, path), "NOT_FOUND", "{path}");
    }
    let response = super::problem::response(&Failure::new(Code::Unsupported, "no"));
    assert_eq!((response.status().as_u16(), response.headers().get("retry-after")), (503, None));
}

#[test]
fn any_id_fits_into_a_header() {
    let header = |id: &str| {
        let mut headers = HeaderMap::new();
        answer::set_request_id(&mut headers, &RequestId::from_caller(id.to_owned()).unwrap());
        headers[answer::X_REQUEST_ID].to_str().unwrap().to_owned()
    };
    assert_eq!(header("order-17/a%20b"), "order-17/a%20b", "an id that a header can carry is unchanged");
    assert_eq!(header("a b%"), "a%20b%25");
    assert_eq!(header("é\n"), "%C3%A9%0A");
    assert_eq!(header(""), "");
}

#[test]
fn an_error_answer_has_the_documented_members_and_no_internal_text() {
    let failure = Failure::several(Code::InvalidTensor, vec!["a".into(), "b".into()]).with_internal("/secret/path");
    let response = super::problem::response(&failure);
    assert_eq!(response.status().as_u16(), 400);
    let json: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(
        json,
        serde_json::json!({"error": "a (and 1 more, see details)", "code": "INVALID_TENSOR", "details": ["a", "b"]})
    );
    let busy = super::problem::response(&Failure::new(Code::Overloaded, "busy"));
    assert_eq!((busy.status().as_u16(), busy.headers()["retry-after"].to_str().unwrap()), (503, "1"));
}

#[test]
fn an_error_answer_is_at_most_64_kib() {
    let huge = "\"\u{1}\\é".repeat(1 << 18);
    let mut grown = Failure::new(Code::InvalidRequest, "short");
    grown.message = huge.clone();
    grown.details = vec![huge.clone(); 1000];
    for failure in [
        grown,
        Failure::new(Code::NotFound, huge.clone()),
        Failure::several(Code::InvalidTensor, vec![huge; 100]),
        Failure::several(Code::InvalidTensor, vec!["\"".into(); 100_000]),
    ] {
        let response = super::problem::response(&failure);
        assert!(response.body().len() <= 64 * 1024, "{} bytes", response.body().len());
        let json: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        let text = json["error"].as_str().unwrap();
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}

#[test]
fn unknown_paths_and_methods_are_quoted_and_cut() {
    let long = format!("/v2/{}", "x".repeat(100_000));
    for (method, path) in [(Method::GET, long.as_str()), (Method::GET, "/\u{1b}[31m"), (Method::DELETE, "/v2")] {
        let refused = Endpoint::parse(&method, path).unwrap_err();
        let message = refused.failure.message;
        assert!(message.len() < 300 && !message.contains('\u{1b}'), "{message:?}");
    }
}

/// The limits of a data plane with one I/O thread.
fn config(max_in_flight: usize) -> Config {
    let second = Duration::from_secs(1);
    Config {
        max_in_flight,
        max_unfinished: 8,
        max_unfinished_per_peer: 4,
        max_connections: 1,
        max_streams: 8,
        max_body: 1 << 20,
        max_headers: 1 << 16,
        header_timeout: second,
        body_timeout: second,
        idle_timeout: second,
        write_timeout: second,
        request_timeout: second,
        max_request_timeout: second,
        version_headers: true,
        version_in_body: true,
        default_model: None,
        io_threads: NonZeroUsize::MIN,
    }
}

/// Every caller may send what there is room for.
fn doors() -> Doors {
    let limits = callers::Limits { max_in_flight: usize::MAX, rate: None, burst: None };
    Doors {
        access: Access::start(access::Config::default(), &[]).unwrap(),
        require_token: false,
        callers: callers::Callers::new(callers::Config { limits, rules: Vec::new() }),
    }
}

/// A data plane without models. Every run that was measured happens at once.
fn data_plane(max_in_flight: usize) -> (Arc<DataPlane>, Telemetry, registry::Writer) {
    let (writer, reader) = registry::new();
    let shadows = shadow::Config { threads: NonZeroUsize::MIN, queue: 1, queue_bytes: 1 };
    let shadows = Shadows::start(shadows, Figures::default(), reader.clone(), None).unwrap();
    let execution = execute::Config { inline_below: Duration::MAX, queue: 1, ..execute::Config::default() };
    let gateway = Gateway::new(reader, Executor::start(&execution).unwrap(), shadows, None);
    let telemetry = Telemetry::new();
    (
        DataPlane::new(gateway, &config(max_in_flight), doors(), Budget::new(1 << 20), Traces::default(), &telemetry)
            .unwrap(),
        telemetry,
        writer,
    )
}

#[test]
fn a_panic_is_answered_with_500_and_the_connection_stays_open() {
    use http_body_util::{BodyExt, Empty};
    let (plane, telemetry, _writer) = data_plane(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (client_io, server_io) = tokio::io::duplex(1 << 16);
    let shared = Arc::clone(&plane);
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let plane = Arc::clone(&shared);
        async move {
            let answering = async {
                let permit = plane.admit(RequestKind::Predict, Claim::Interactive).unwrap();
                tokio::task::yield_now().await;
                assert!(request.uri().path() != "/panics", "a fault in a handler");
                drop(permit);
                answer::json("{}")
            };
            let response: HttpResponse = or_500(&plane, request.headers(), std::pin::pin!(answering)).await;
            Ok::<_, Infallible>(response)
        }
    });
    runtime.block_on(async {
        let server = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server_io), service);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client_io)).await.unwrap();
        let requests = async {
            for (path, status) in [("/panics", 500), ("/works", 200), ("/panics", 500), ("/works", 200)] {
                let request = Request::get(path).header("x-request-id", "r-1").body(Empty::<bytes::Bytes>::new());
                let response = sender.send_request(request.unwrap()).await.unwrap();
                assert_eq!(response.status(), status, "{path}");
                if status == 500 {
                    assert_eq!(response.headers()["x-request-id"], "r-1");
                    let body = response.into_body().collect().await.unwrap().to_bytes();
                    assert!(body.starts_with(b"{\"error\":\"an internal error"), "{body:?}");
                }
            }
            drop(sender);
        };
        let ((), ended, _) = tokio::join!(requests, server, connection);
        ended.unwrap();
    });
    assert_eq!(plane.in_flight(), 0, "a panic gives its permit back");
    let metrics = telemetry.render();
    assert!(metrics.contains("sluicegate_panics_total{task=\"request\"} 2"), "{metrics}");
}

#[test]
fn threads_at_the_limit_get_exactly_the_places_there_are() {
    const LIMIT: usize = 7;
    for _ in 0..200 {
        let in_flight = InFlight::default();
        let admitted = AtomicUsize::new(0);
        let start = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    admitted.fetch_add(usize::from(in_flight.enter(LIMIT)), Ordering::Relaxed);
                });
            }
        });
        assert_eq!(admitted.into_inner(), LIMIT, "eight threads, seven places");
        assert!(!in_flight.enter(LIMIT));
        in_flight.leave();
        assert!(in_flight.enter(LIMIT));
    }
}

#[test]
fn feedback_and_predictions_have_limits_of_their_own() {
    let (plane, _telemetry, _writer) = data_plane(1);
    let feedback: Vec<_> =
        std::iter::from_fn(|| plane.admit(RequestKind::Feedback, Claim::Interactive).ok()).take(10_000).collect();
    assert_eq!(feedback.len(), 256, "feedback is bounded");
    let refused = plane.admit(RequestKind::Feedback, Claim::Interactive).unwrap_err();
    assert_eq!(refused.code, Code::TooManyRequests);
    assert!(refused.message.contains("256 feedback requests"), "{refused}");
    let permit = plane.admit(RequestKind::Predict, Claim::Interactive).unwrap();
    assert!(plane.admit(RequestKind::Predict, Claim::Interactive).is_err());
    let modest = plane.admit(RequestKind::Predict, Claim::Modest).expect("some places are for callers that hold few");
    assert!(plane.admit(RequestKind::Predict, Claim::Modest).is_err());
    drop(modest);
    drop((permit, feedback));
    assert!(
        plane.admit(RequestKind::Predict, Claim::Interactive).is_ok()
            && plane.admit(RequestKind::Feedback, Claim::Interactive).is_ok()
    );
}

/// Sends a request on a new connection, and reads the answer until the server closes or ten seconds have passed.
fn asked(address: std::net::SocketAddr, request: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn liveness_is_answered_while_every_io_thread_is_in_a_run_that_does_not_end() {
    let spec =
        |name: &str| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: Some(vec![Dim::Free(None)]) };
    let fake = Fake::echo(Signature::new(vec![spec("x")], vec![spec("y")]));
    let (plane, telemetry, mut writer) = data_plane(100);
    let version = loaded(1, fake.model(), "");
    let document = Some(Document::single("1".parse().unwrap()));
    writer.publish(Snapshot::default().with(entry("m", &[version], document, 1).unwrap()));
    let limits = Config { max_connections: 100, body_timeout: Duration::from_secs(20), ..config(100) };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = Server::start(listener, &limits, &plane, &telemetry, None).unwrap();
    let address = server.address();
    let body = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1.5]}]}"#;
    let predict = format!(
        "POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let live = "GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    // The first run is measured on a worker, the second happens on the I/O thread.
    for _ in 0..2 {
        assert!(asked(address, &predict).starts_with("HTTP/1.1 200"));
    }
    fake.block();
    fake.ignore_interrupts();
    std::thread::scope(|scope| {
        let held = scope.spawn(|| asked(address, &predict));
        fake.wait_for_waiting(1);
        // This one is given to the held thread, which does not look at it, and then to another.
        let early = scope.spawn(|| asked(address, live));
        let mut stuck = Vec::new();
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while stuck.is_empty() {
            assert!(std::time::Instant::now() < until, "the held thread is reported");
            assert!(asked(address, live).starts_with("HTTP/1.1 200"), "a new connection is answered");
            assert!(plane.io_threads().add_stuck_to(&mut stuck), "a thread answers");
        }
        assert!(stuck.iter().all(|thread| thread.starts_with("thread io-0: ")), "{stuck:?}");
        assert!(early.join().unwrap().starts_with("HTTP/1.1 200"));
        fake.unblock();
        assert!(held.join().unwrap().starts_with("HTTP/1.1 "), "the run ended, and so did its thread's pause");
    });
    let end = std::time::Instant::now() + Duration::from_secs(10);
    assert!(server.finish(end, end), "both threads end");
}
