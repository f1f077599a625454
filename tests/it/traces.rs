//! Traces: the spans that a collector gets over gRPC and HTTP, a collector that is not there, and exemplars (docs/TRACING.md).

use crate::support::tls::Certificates;
use crate::support::{Answer, Gateway, eventually, infer_body, onnx};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
/// As OTLP numbers them.
const SERVER: u64 = 2;
const ERROR: u64 = 2;

fn python() -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| root.join(".venv/bin/python").display().to_string());
    let mut command = Command::new(python);
    command.arg(root.join("tests/python/otlp_collector.py"));
    command
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("python does not run (`make venv` installs it): {e}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}

/// A collector in Python.
struct Collector {
    child: Child,
    port: u16,
    spans: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    fn start(protocol: &str, tls: Option<&Certificates>) -> Collector {
        let mut command = python();
        command.arg(protocol);
        if let Some(tls) = tls {
            command.args(["--certificate", &tls.path("server.crt"), "--key", &tls.path("server.key")]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("python runs (`make venv` installs it)");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.next().expect("the collector prints its port").unwrap().parse().unwrap();
        let spans = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&spans);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Collector { child, port, spans }
    }

    fn spans(&self) -> Vec<Value> {
        self.spans.lock().unwrap().clone()
    }

    /// Waits for the spans of so many requests, and returns those of requests.
    fn wait(&self, requests: usize) -> Vec<Value> {
        eventually(&format!("the collector has the spans of {requests} requests: {:?}", self.spans()), || {
            let servers: Vec<Value> = self.spans().into_iter().filter(|span| span["kind"] == SERVER).collect();
            (servers.len() >= requests).then_some(servers)
        })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gateway(lines: &str) -> Gateway {
    Gateway::start_with(&format!("[tracing]\n{lines}\n"), |models| {
        onnx::install(models, "self", 1, &onnx::answering(1.0, 4, 0));
        onnx::install(models, "hungry", 1, &onnx::out_of_memory_above(9));
    })
}

fn ask(gateway: &Gateway, headers: &[(&str, &str)]) -> Answer {
    gateway.post_with("/v2/models/self/infer", headers, infer_body(&[1, 4], &[0.0; 4]))
}

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{SPAN}-{flags}")
}

#[test]
fn a_collector_gets_the_spans_of_sampled_requests() {
    for protocol in ["grpc", "http"] {
        let collector = Collector::start(protocol, None);
        // Neither the port nor a setting tells which protocol it is.
        let gateway = gateway(&format!("otlp_endpoint = \"http://127.0.0.1:{}\"\nsample_rate = 0.0", collector.port));
        let unsampled = ask(&gateway, &[("traceparent", &traceparent("00"))]);
        assert_eq!(unsampled.header("traceresponse"), None, "{protocol}");
        for malformed in ["", "x", &traceparent("1"), &traceparent("01").to_uppercase()] {
            assert_eq!(ask(&gateway, &[("traceparent", malformed)]).status, 200, "{malformed:?} is ignored");
        }
        let sampled = ask(&gateway, &[("traceparent", &traceparent("01")), ("tracestate", "a=1, b=2")]);
        let response = sampled.header("traceresponse").unwrap().to_owned();
        assert!(response.starts_with(&format!("00-{TRACE}-")) && !response.contains(SPAN), "{response}");
        let missing = gateway.post_with("/v2/models/none/infer", &[("traceparent", &traceparent("01"))], b"{}");
        assert_eq!(missing.status, 404);
        let parent = [("traceparent", &*traceparent("01"))];
        let failed = gateway.post_with("/v2/models/hungry/infer", &parent, infer_body(&[1, 2], &[10.0; 2]));
        assert_eq!(failed.status, 500, "{failed:?}");
        let requests = collector.wait(3);
        assert_eq!(requests.len(), 3, "only sampled requests have spans: {requests:#?}");

        let own = &requests[0];
        assert_eq!(own["name"], "POST /v2/models/{model}/infer");
        assert_eq!((&own["trace"], &own["parent"]), (&TRACE.into(), &SPAN.into()));
        assert_eq!(response, format!("00-{TRACE}-{}-01", own["span"].as_str().unwrap()));
        assert_eq!(own["state"], "a=1,b=2");
        let attributes = &own["attributes"];
        for (key, value) in [
            ("http.request.method", Value::from("POST")),
            ("http.response.status_code", 200.into()),
            ("url.path", "/v2/models/self/infer".into()),
            ("server.port", gateway.data().port().into()),
            ("sluicegate.model", "self".into()),
            ("sluicegate.version", "1".into()),
            ("sluicegate.request_id", sampled.header("x-request-id").unwrap().into()),
        ] {
            assert_eq!(attributes[key], value, "{key} in {attributes:#?}");
        }
        let resource = &own["resource"];
        assert_eq!(resource["service.name"], "sluicegate");
        for key in ["service.version", "service.instance.id", "host.name", "process.pid", "telemetry.sdk.name"] {
            assert!(!resource[key].is_null(), "{key} in {resource:#?}");
        }
        let spans = collector.spans();
        let parts: Vec<&Value> = spans.iter().filter(|span| span["parent"] == own["span"]).collect();
        let names: Vec<&str> = parts.iter().map(|part| part["name"].as_str().unwrap()).collect();
        for name in ["read", "decode", "run", "encode"] {
            assert!(names.contains(&name), "{name} in {names:?}");
        }
        let run = parts.iter().find(|part| part["name"] == "run").unwrap();
        assert_eq!(run["attributes"]["sluicegate.batch.rows"], 1);
        let sum: u64 = parts.iter().map(|part| part["nanos"].as_u64().unwrap()).sum();
        assert!(sum <= own["nanos"].as_u64().unwrap() + 1000, "the parts fit into the request: {parts:#?}");

        assert_eq!((&requests[1]["status"], &requests[1]["attributes"]["error.type"]), (&0.into(), &Value::Null));
        assert_eq!(requests[1]["attributes"]["sluicegate.code"], "MODEL_NOT_FOUND");
        assert_eq!(requests[2]["status"], ERROR, "{:#?}", requests[2]);
        assert_eq!(requests[2]["attributes"]["error.type"], failed.code());
        let metrics = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
        assert!(metrics.contains("sluicegate_traced_requests_sent_total 3"), "{metrics}");
        gateway.stop();
    }
}

#[test]
fn calls_over_grpc_and_messages_of_a_stream_have_spans() {
    let collector = Collector::start("grpc", None);
    let gateway = gateway(&format!("otlp_endpoint = \"http://127.0.0.1:{}\"\nprotocol = \"grpc\"", collector.port));
    run(python().args(["call", &gateway.data().to_string(), &traceparent("01")]));
    let requests = collector.wait(2);
    let named = |method: &str| {
        let name = format!("inference.GRPCInferenceService/{method}");
        requests.iter().find(|span| span["name"] == name).unwrap_or_else(|| panic!("{name} in {requests:#?}"))
    };
    for method in ["ModelInfer", "ModelStreamInfer"] {
        let span = named(method);
        assert_eq!((&span["trace"], &span["parent"]), (&TRACE.into(), &SPAN.into()));
        let attributes = &span["attributes"];
        assert_eq!(attributes["rpc.system"], "grpc");
        assert_eq!(attributes["rpc.service"], "inference.GRPCInferenceService");
        assert_eq!(attributes["rpc.method"], method);
        assert_eq!(attributes["rpc.grpc.status_code"], 0);
        assert_eq!(attributes["sluicegate.model"], "self");
    }
    gateway.stop();
}

#[test]
fn spans_reach_a_collector_over_tls_that_the_named_authority_has_signed() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path());
    for protocol in ["grpc", "http"] {
        let collector = Collector::start(protocol, Some(&certificates));
        let endpoint = format!("otlp_endpoint = \"https://localhost:{}\"\nsample_rate = 1.0", collector.port);
        let gateway =
            gateway(&format!("{endpoint}\nprotocol = {protocol:?}\nca = {:?}", certificates.path("server.crt")));
        assert_eq!(ask(&gateway, &[]).status, 200);
        let requests = collector.wait(1);
        assert_eq!(requests[0]["parent"], "", "a request without a caller's span begins a trace: {requests:#?}");
        gateway.stop();
    }
}

#[test]
fn a_collector_that_is_gone_or_silent_disturbs_nothing() {
    // One port nobody listens on, and one where nobody reads.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for port in [gone, silent.local_addr().unwrap().port()] {
        let gateway = gateway(&format!("otlp_endpoint = \"http://127.0.0.1:{port}\"\nsample_rate = 1.0"));
        let began = Instant::now();
        for _ in 0..200 {
            assert_eq!(ask(&gateway, &[]).status, 200);
        }
        assert!(began.elapsed() < Duration::from_secs(10), "requests do not wait: {:?}", began.elapsed());
        if port == gone {
            eventually("the failure is counted", || {
                let metrics = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
                metrics.contains("sluicegate_trace_exports_failed_total 1").then_some(())
            });
        }
        let began = Instant::now();
        gateway.stop();
        assert!(began.elapsed() < Duration::from_secs(15), "a stop does not wait for it: {:?}", began.elapsed());
    }
}

#[test]
fn the_latency_histogram_has_exemplars_in_openmetrics() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = gateway(&format!("otlp_endpoint = \"http://{gone}\"\nsample_rate = 0.0"));
    assert_eq!(ask(&gateway, &[]).status, 200);
    assert_eq!(ask(&gateway, &[("traceparent", &traceparent("01"))]).status, 200);
    let scrape = |accept: &str| gateway.admin_send("GET", "/metrics", &[("accept", accept)], &Value::Null);
    let plain = scrape("text/plain;version=0.0.4;q=1,application/openmetrics-text;q=0");
    assert_eq!(plain.header("content-type"), Some("text/plain; version=0.0.4"));
    assert!(!String::from_utf8(plain.body).unwrap().contains(TRACE));
    // As Prometheus 3 asks.
    let answer = scrape("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1");
    assert!(answer.header("content-type").unwrap().starts_with("application/openmetrics-text"), "{answer:?}");
    let text = String::from_utf8(answer.body).unwrap();
    assert!(text.ends_with("# EOF\n") && text.contains(&format!("# {{trace_id=\"{TRACE}\"}} ")), "{text}");
    let file: PathBuf = gateway.dir.path().join("openmetrics.txt");
    std::fs::write(&file, &text).unwrap();
    run(python().arg("openmetrics").arg(&file).arg(TRACE));
    prometheus_reads_it(&gateway);
}

/// Scraped by the real Prometheus where it is installed (Debian package `prometheus`).
fn prometheus_reads_it(gateway: &Gateway) {
    if Command::new("prometheus").arg("--version").output().is_err() {
        eprintln!("prometheus is not installed (Debian package prometheus): no scrape by it is tested");
        return;
    }
    let dir = gateway.dir.path().join("prometheus");
    std::fs::create_dir(&dir).unwrap();
    let config = dir.join("prometheus.yml");
    let target = gateway.admin();
    let text = format!(
        "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\nscrape_configs:\n- job_name: s\n  static_configs:\n  - targets: ['{target}']\n"
    );
    std::fs::write(&config, text).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--enable-feature=exemplar-storage")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let query = "sluicegate_request_duration_seconds_bucket";
    let url = format!("http://127.0.0.1:{port}/api/v1/query_exemplars?query={query}&start=0&end=9999999999");
    let found = std::panic::catch_unwind(|| {
        eventually("Prometheus has the exemplar", || {
            let mut text = String::new();
            let mut answer = ureq::get(&url).call().ok()?;
            answer.body_mut().as_reader().read_to_string(&mut text).ok()?;
            text.contains(TRACE).then_some(())
        });
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(found.is_ok(), "Prometheus scraped {target} and has no exemplar");
}
