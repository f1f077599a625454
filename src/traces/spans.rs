//! Spans of a request, with the names and attributes of OpenTelemetry's semantic conventions. docs/TRACING.md has the list.

use super::context::new_span;
use super::request::{Call, Facts, Run};
use crate::model::Code;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use std::borrow::Cow;
use std::time::{Instant, SystemTime};

/// One moment on both clocks, to tell the time of day of others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    pub(super) fn now() -> Clock {
        Clock { instant: Instant::now(), time: SystemTime::now() }
    }

    fn time_of(&self, at: Instant) -> SystemTime {
        let ago = self.instant.saturating_duration_since(at);
        self.time.checked_sub(ago).unwrap_or(self.time)
    }
}

/// The program that made the spans.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("sluicegate").with_version(env!("CARGO_PKG_VERSION")).build()
}

/// This server. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` override and complete it.
pub(super) fn resource() -> Resource {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let own = Resource::builder_empty().with_service_name("sluicegate").with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", uuid::Uuid::now_v7().to_string()),
        KeyValue::new("host.name", host.trim().to_owned()),
        KeyValue::new("process.pid", i64::from(std::process::id())),
    ]);
    let named = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
    let own = own.with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())]);
    match named {
        Some(name) => own.with_service_name(name).build(),
        None => own.build(),
    }
}

/// The spans of one request: its own, and one for each of its parts.
pub(super) fn of(facts: &Facts, clock: &Clock, scope: &InstrumentationScope) -> Vec<SpanData> {
    let times = Times { facts, clock, scope };
    let mut spans = times.parts();
    spans.push(times.own());
    spans
}

struct Times<'a> {
    facts: &'a Facts,
    clock: &'a Clock,
    scope: &'a InstrumentationScope,
}

impl Times<'_> {
    fn own(&self) -> SpanData {
        let facts = self.facts;
        let context = &facts.context;
        let (name, call) = described(facts);
        let mut attributes = call;
        attributes.extend(own_attributes(facts));
        let span = self.span(name, SpanKind::Server, facts.received, facts.ended, attributes);
        SpanData {
            span_context: SpanContext::new(
                context.trace,
                context.span,
                TraceFlags::new(context.flags),
                false,
                context.state.clone(),
            ),
            parent_span_id: context.parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: context.parent.is_some(),
            status: status(facts),
            ..span
        }
    }

    fn parts(&self) -> Vec<SpanData> {
        let facts = self.facts;
        let mut parts = Vec::with_capacity(6);
        let part =
            |name: &'static str, from, to, attributes| self.span(name.into(), SpanKind::Internal, from, to, attributes);
        parts.push(part("read", facts.received, facts.read.unwrap_or(facts.ended), Vec::new()));
        let (Some(read), Some(run)) = (facts.read, facts.run) else { return parts };
        let Run { ended, queue, infer, batch_rows, requests } = run;
        let began = ended.checked_sub(infer).unwrap_or(read).max(read);
        let queued = began.checked_sub(queue).unwrap_or(read).max(read);
        parts.push(part("decode", read, queued, Vec::new()));
        if !queue.is_zero() {
            parts.push(part("queue", queued, began, Vec::new()));
        }
        let attributes = vec![
            KeyValue::new("sluicegate.batch.rows", integer(batch_rows)),
            KeyValue::new("sluicegate.batch.requests", integer(requests)),
        ];
        parts.push(part("run", began, ended, attributes));
        parts.push(part("encode", ended, facts.ended, Vec::new()));
        parts
    }

    /// A child of the request's span.
    fn span(
        &self,
        name: Cow<'static, str>,
        span_kind: SpanKind,
        from: Instant,
        to: Instant,
        attributes: Vec<KeyValue>,
    ) -> SpanData {
        let context = &self.facts.context;
        let flags = TraceFlags::new(context.flags);
        SpanData {
            span_context: SpanContext::new(context.trace, new_span(), flags, false, context.state.clone()),
            parent_span_id: context.span,
            parent_span_is_remote: false,
            span_kind,
            name,
            start_time: self.clock.time_of(from),
            end_time: self.clock.time_of(to.max(from)),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

/// The name of the request's span, and the attributes of its protocol.
fn described(facts: &Facts) -> (Cow<'static, str>, Vec<KeyValue>) {
    let Some(call) = &facts.call else { return ("request".into(), Vec::new()) };
    let (name, mut attributes, host, user_agent) = match call {
        Call::Http { method, path, route, protocol, host, user_agent } => {
            let mut attributes = vec![
                KeyValue::new("http.request.method", method.clone()),
                KeyValue::new("url.path", path.clone()),
                KeyValue::new("url.scheme", facts.scheme),
                KeyValue::new("http.route", route.clone()),
                KeyValue::new("network.protocol.name", "http"),
                KeyValue::new("network.protocol.version", *protocol),
            ];
            if let Some(outcome) = facts.outcome {
                attributes.push(KeyValue::new("http.response.status_code", i64::from(outcome.status)));
            }
            (format!("{method} {route}"), attributes, host, user_agent)
        }
        Call::Grpc { service, method, host, user_agent } => {
            let mut attributes = vec![
                KeyValue::new("rpc.system", "grpc"),
                KeyValue::new("rpc.service", service.clone()),
                KeyValue::new("rpc.method", method.clone()),
            ];
            if let Some(outcome) = facts.outcome {
                attributes.push(KeyValue::new("rpc.grpc.status_code", i64::from(outcome.status)));
            }
            (format!("{service}/{method}"), attributes, host, user_agent)
        }
    };
    if let Some((address, port)) = host.as_deref().map(address_and_port) {
        attributes.push(KeyValue::new("server.address", address.to_owned()));
        attributes.extend(port.map(|port| KeyValue::new("server.port", i64::from(port))));
    }
    attributes.extend(user_agent.clone().map(|agent| KeyValue::new("user_agent.original", agent)));
    attributes.extend(facts.client.map(|client| KeyValue::new("client.address", client.to_string())));
    (name.into(), attributes)
}

fn own_attributes(facts: &Facts) -> Vec<KeyValue> {
    let texts: [(&'static str, Option<&str>); 6] = [
        ("sluicegate.model", facts.model.as_deref()),
        ("sluicegate.version", facts.version.as_deref()),
        ("sluicegate.arm", facts.arm.as_deref()),
        ("sluicegate.fallback", facts.fallback),
        ("sluicegate.request_id", facts.request_id.as_deref()),
        ("sluicegate.code", facts.code.map(Code::as_str)),
    ];
    let texts = texts.into_iter().filter_map(|(key, text)| Some(KeyValue::new(key, text?.to_owned())));
    // The conventions set it for failures that are the server's, and for requests without an answer.
    let failed = facts.outcome.is_none_or(|outcome| outcome.is_error).then_some(facts.code).flatten();
    texts.chain(failed.map(|code| KeyValue::new("error.type", code.as_str()))).collect()
}

/// An error only where the server is to blame: what a client did wrong is not a fault of this span.
fn status(facts: &Facts) -> Status {
    match (facts.outcome, facts.code) {
        (Some(outcome), code) if outcome.is_error => Status::error(code.map_or("", Code::as_str)),
        (None, Some(Code::ClientClosed)) => Status::error("the client disconnected before the answer"),
        (None, _) => Status::error("the request was not answered"),
        _ => Status::Unset,
    }
}

/// The parts of a `host` header.
fn address_and_port(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        Some((address, port)) if !address.is_empty() && !port.ends_with(']') => (address, port.parse().ok()),
        _ => (host, None),
    }
}

fn integer(n: usize) -> Value {
    Value::I64(i64::try_from(n).unwrap_or(i64::MAX))
}
