use super::context::{Context, Parent};
use super::request::Facts;
use super::spans::{self, Clock};
use super::*;
use crate::model::Code;
use http::HeaderValue;
use opentelemetry::trace::{SpanKind, Status};
use opentelemetry_sdk::trace::SpanData;
use std::time::Duration;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn traces(rate: f64) -> (Traces, Arc<Shared>, Telemetry) {
    let telemetry = Telemetry::new();
    let shared = Shared::new(rate, "http", &telemetry);
    (Traces(Some(Arc::clone(&shared))), shared, telemetry)
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

fn context(pairs: &[(&'static str, &str)]) -> Context {
    let headers = headers(pairs);
    Parent::of(&headers).unwrap().child(&headers)
}

#[test]
fn a_traceparent_is_read_as_the_standard_says() {
    let valid = format!("00-{TRACE}-{SPAN}-01");
    let parent = Parent::parse(valid.as_bytes()).unwrap();
    assert_eq!((parent.trace.to_string(), parent.span.to_string()), (TRACE.to_owned(), SPAN.to_owned()));
    assert!(parent.sampled);
    for (text, sampled) in [
        (format!("00-{TRACE}-{SPAN}-00"), false),
        (format!("00-{TRACE}-{SPAN}-02"), false),
        (format!("00-{TRACE}-{SPAN}-ff"), true),
        // Later versions.
        (format!("01-{TRACE}-{SPAN}-01"), true),
        (format!("cc-{TRACE}-{SPAN}-01-what-comes-then"), true),
    ] {
        assert_eq!(Parent::parse(text.as_bytes()).map(|parent| parent.sampled), Some(sampled), "{text}");
    }
    let zeros = "0".repeat(32);
    for text in [
        String::new(),
        "00".to_owned(),
        "-".repeat(55),
        format!("ff-{TRACE}-{SPAN}-01"),
        format!("00-{TRACE}-{SPAN}-01-more"),
        format!("01-{TRACE}-{SPAN}-01more"),
        format!("00-{TRACE}-{SPAN}-1"),
        format!("00-{TRACE}-{SPAN}-0g"),
        format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        format!("00-{zeros}-{SPAN}-01"),
        format!("00-{TRACE}-{}-01", &zeros[..16]),
        format!("00_{TRACE}_{SPAN}_01"),
        format!(" 00-{TRACE}-{SPAN}-01"),
        format!("00-{TRACE}-{SPAN}-é"),
    ] {
        assert_eq!(Parent::parse(text.as_bytes()), None, "{text}");
    }
    assert_eq!(Parent::of(&headers(&[("traceparent", &valid), ("traceparent", &valid)])), None, "two are one too many");
}

#[test]
fn a_tracestate_is_passed_on_within_limits_and_only_if_it_is_valid() {
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let state = |values: &[&str]| {
        let mut pairs = vec![("traceparent", parent.as_str())];
        pairs.extend(values.iter().map(|value| ("tracestate", *value)));
        context(&pairs).state.header()
    };
    assert_eq!(state(&["a=1, b=2", "c=3,,"]), "a=1,b=2,c=3");
    assert_eq!(state(&["a=1,B=2"]), "", "a key in upper case is not valid");
    assert_eq!(state(&["no member"]), "");
    let many: Vec<String> = (0..40).map(|n| format!("k{n}=v")).collect();
    assert_eq!(state(&[&many.join(",")]).split(',').count(), 32);
    let long: Vec<String> = (0..10).map(|n| format!("k{n}={}", "v".repeat(100))).collect();
    let kept = state(&[&long.join(",")]);
    assert!(kept.len() <= 512 && kept.ends_with('v') && kept.split(',').count() == 4, "{kept}");
}

#[test]
fn the_callers_flag_decides_and_without_it_the_rate() {
    let now = Instant::now();
    let with = |flags: &str| headers(&[("traceparent", &format!("00-{TRACE}-{SPAN}-{flags}"))]);
    let none = HeaderMap::new();
    assert!(Traces::default().begin(&with("01"), now).is_none(), "nothing is traced without a collector");
    let (never, ..) = traces(0.0);
    assert_eq!(never.begin(&with("01"), now).unwrap().id(), TRACE);
    assert!(never.begin(&none, now).is_none() && never.begin(&with("xx"), now).is_none());
    let (always, ..) = traces(1.0);
    assert!(always.begin(&with("00"), now).is_none());
    let made = always.begin(&none, now).unwrap();
    let context = made.context();
    assert!(Parent::parse(context.as_bytes()).unwrap().sampled && !context.contains(TRACE), "{context}");
    assert!(always.begin(&with("xx"), now).is_some(), "a header that is not valid counts as none");
    always.set_sample_rate(0.25);
    let traced = (0..20_000).filter(|_| always.begin(&none, now).is_some()).count();
    assert!((4500..5500).contains(&traced), "a quarter of 20,000 is traced: {traced}");
    always.set_sample_rate(0.0);
    assert!(always.begin(&none, now).is_none());
}

#[test]
fn a_full_queue_drops_and_counts() {
    let (traces, shared, telemetry) = traces(1.0);
    for _ in 0..QUEUE + 3 {
        drop(traces.begin(&HeaderMap::new(), Instant::now()).unwrap());
    }
    assert_eq!(shared.queue.len(), QUEUE);
    let text = telemetry.render();
    assert!(text.contains("sluicegate_traced_requests_dropped_total{reason=\"queue_full\"} 3"), "{text}");
}

/// The spans of a request, by name.
fn spans_of(shared: &Shared) -> Vec<SpanData> {
    let facts: Box<Facts> = shared.queue.pop().unwrap();
    spans::of(&facts, &Clock::now(), &spans::scope())
}

fn attribute(span: &SpanData, key: &str) -> Option<String> {
    span.attributes.iter().find(|pair| pair.key.as_str() == key).map(|pair| pair.value.to_string())
}

#[test]
fn a_request_has_a_span_and_one_for_each_part() {
    let (traces, shared, _) = traces(0.0);
    let received = Instant::now().checked_sub(Duration::from_millis(100)).unwrap();
    let at = |ms| received + Duration::from_millis(ms);
    let parent = headers(&[("traceparent", &format!("00-{TRACE}-{SPAN}-01")), ("tracestate", "a=1")]);
    let mut trace = traces.begin(&parent, received).unwrap();
    let call = Call::Http {
        method: "POST".into(),
        path: "/v2/models/m/infer".into(),
        route: "/v2/models/{model}/infer".into(),
        protocol: "1.1",
        host: Some("[::1]:8080".into()),
        user_agent: None,
    };
    trace.called(call, [127, 0, 0, 1].into());
    trace.read(at(10));
    let (queue, infer) = (Duration::from_millis(20), Duration::from_millis(30));
    trace.ran(Run { ended: at(70), queue, infer, batch_rows: 8, requests: 3 });
    trace.served_by("m", "2", "stable", None);
    trace.answered("r-1", Outcome { status: 200, is_error: false });
    drop(trace);
    let spans = spans_of(&shared);
    let names: Vec<&str> = spans.iter().map(|span| &*span.name).collect();
    assert_eq!(names, ["read", "decode", "queue", "run", "encode", "POST /v2/models/{model}/infer"]);
    let own = spans.last().unwrap();
    assert_eq!((own.parent_span_id.to_string(), own.parent_span_is_remote), (SPAN.to_owned(), true));
    assert_eq!((own.span_kind.clone(), own.status.clone()), (SpanKind::Server, Status::Unset));
    let times: Vec<u128> =
        spans.iter().map(|span| span.end_time.duration_since(span.start_time).unwrap().as_millis()).collect();
    assert_eq!(times[..4], [10, 10, 20, 30]);
    assert!(times[4] >= 30 && times[5] >= 100, "{times:?}");
    for pair in spans[..5].windows(2) {
        assert_eq!(pair[0].end_time, pair[1].start_time, "the parts follow each other");
    }
    for span in &spans {
        assert_eq!(span.span_context.trace_id().to_string(), TRACE);
        assert_eq!(span.span_context.trace_state().header(), "a=1");
        assert!(span.start_time >= own.start_time && span.end_time <= own.end_time, "{span:?}");
    }
    assert!(spans[..5].iter().all(|span| span.parent_span_id == own.span_context.span_id()));
    let run = &spans[3];
    assert_eq!(attribute(run, "sluicegate.batch.rows").as_deref(), Some("8"));
    assert_eq!(attribute(run, "sluicegate.batch.requests").as_deref(), Some("3"));
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("http.route", "/v2/models/{model}/infer"),
        ("url.path", "/v2/models/m/infer"),
        ("url.scheme", "http"),
        ("server.address", "[::1]"),
        ("server.port", "8080"),
        ("client.address", "127.0.0.1"),
        ("sluicegate.model", "m"),
        ("sluicegate.version", "2"),
        ("sluicegate.arm", "stable"),
        ("sluicegate.request_id", "r-1"),
    ] {
        assert_eq!(attribute(own, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(attribute(own, "error.type"), None);
}

#[test]
fn only_the_servers_own_failures_are_errors() {
    let (traces, shared, _) = traces(1.0);
    let ended = |code, outcome: Option<Outcome>| {
        let mut trace = traces.begin(&HeaderMap::new(), Instant::now()).unwrap();
        if let Some(code) = code {
            trace.failed(code);
        }
        if let Some(outcome) = outcome {
            trace.answered("r", outcome);
        }
        drop(trace);
        spans_of(&shared).pop().unwrap()
    };
    let refused = ended(Some(Code::InvalidTensor), Some(Outcome { status: 400, is_error: false }));
    assert_eq!((refused.status.clone(), attribute(&refused, "error.type")), (Status::Unset, None));
    assert_eq!(attribute(&refused, "sluicegate.code").as_deref(), Some("INVALID_TENSOR"));
    let failed = ended(Some(Code::EngineFailed), Some(Outcome { status: 500, is_error: true }));
    assert_eq!(failed.status, Status::error("ENGINE_FAILED"));
    assert_eq!(attribute(&failed, "error.type").as_deref(), Some("ENGINE_FAILED"));
    let gone = ended(None, None);
    assert_eq!(attribute(&gone, "error.type").as_deref(), Some("CLIENT_CLOSED"));
    assert!(matches!(&gone.status, Status::Error { .. }), "{:?}", gone.status);
}

#[test]
fn an_endpoint_is_an_address_without_secrets() {
    for right in ["http://c:4317", "https://collector.example", "http://[::1]:4318/v1/traces", "http://127.0.0.1:1/"] {
        assert!(Config::is_endpoint(right), "{right}");
    }
    for wrong in ["", "c:4317", "ftp://c", "http://", "http://user:secret@c", "http://c/?key=1", "http://a b"] {
        assert!(!Config::is_endpoint(wrong), "{wrong}");
    }
}
