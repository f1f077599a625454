//! What is known about a request that is traced.

use super::Shared;
use super::context::Context;
use crate::model::Code;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A request that is traced. Dropping it hands what it knows to the thread that sends spans.
#[derive(Debug)]
pub struct Trace {
    shared: Arc<Shared>,
    /// Taken when it is dropped.
    facts: Option<Box<Facts>>,
}

/// The times and facts of one request.
#[derive(Debug)]
pub(super) struct Facts {
    pub context: Context,
    pub scheme: &'static str,
    pub received: Instant,
    /// When its body had been read.
    pub read: Option<Instant>,
    pub run: Option<Run>,
    /// When its answer was ready, or when it was given up.
    pub ended: Instant,
    pub call: Option<Call>,
    pub client: Option<IpAddr>,
    pub model: Option<String>,
    pub version: Option<String>,
    pub arm: Option<String>,
    pub fallback: Option<&'static str>,
    pub request_id: Option<String>,
    /// The stable code of its failure.
    pub code: Option<Code>,
    pub outcome: Option<Outcome>,
}

/// How the request was sent. Texts from a client are cut by whoever makes this.
#[derive(Debug)]
pub enum Call {
    Http {
        method: String,
        path: String,
        /// The path with names in the place of values: `/v2/models/{model}/infer`.
        route: String,
        /// `1.1` or `2`.
        protocol: &'static str,
        /// From the header `host`.
        host: Option<String>,
        user_agent: Option<String>,
    },
    Grpc {
        service: String,
        method: String,
        host: Option<String>,
        user_agent: Option<String>,
    },
}

/// A run inside the engine.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub ended: Instant,
    /// The wait for a worker.
    pub queue: Duration,
    pub infer: Duration,
    /// Rows and requests that ran together.
    pub batch_rows: usize,
    pub requests: usize,
}

/// The status that a client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Of HTTP, or of gRPC in a gRPC call.
    pub status: u16,
    /// The server is to blame, by OpenTelemetry's conventions.
    pub is_error: bool,
}

impl Trace {
    pub(super) fn new(shared: Arc<Shared>, context: Context, received: Instant) -> Trace {
        let scheme = shared.scheme;
        let facts = Facts {
            context,
            scheme,
            received,
            read: None,
            run: None,
            ended: received,
            call: None,
            client: None,
            model: None,
            version: None,
            arm: None,
            fallback: None,
            request_id: None,
            code: None,
            outcome: None,
        };
        Trace { shared, facts: Some(Box::new(facts)) }
    }

    fn change(&mut self, change: impl FnOnce(&mut Facts)) {
        if let Some(facts) = &mut self.facts {
            change(facts);
        }
    }

    pub fn called(&mut self, call: Call, client: IpAddr) {
        self.change(|facts| (facts.call, facts.client) = (Some(call), Some(client)));
    }

    /// The body had been read at this time.
    pub fn read(&mut self, at: Instant) {
        self.change(|facts| facts.read = Some(at));
    }

    pub fn ran(&mut self, run: Run) {
        self.change(|facts| facts.run = Some(run));
    }

    /// The version that answers.
    pub fn served_by(&mut self, model: &str, version: &str, arm: &str, fallback: Option<&'static str>) {
        self.change(|facts| {
            facts.model = Some(model.to_owned());
            facts.version = Some(version.to_owned());
            facts.arm = Some(arm.to_owned());
            facts.fallback = fallback;
        });
    }

    pub fn failed(&mut self, code: Code) {
        self.change(|facts| facts.code = Some(code));
    }

    /// Why it fails, if it does.
    #[must_use]
    pub fn failure(&self) -> Option<Code> {
        self.facts.as_ref()?.code
    }

    /// The request was answered now.
    pub fn answered(&mut self, request_id: &str, outcome: Outcome) {
        self.change(|facts| {
            facts.request_id = Some(request_id.to_owned());
            facts.outcome = Some(outcome);
        });
    }

    /// The id of the trace, in hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> String {
        self.facts.as_ref().map(|facts| facts.context.trace.to_string()).unwrap_or_default()
    }

    /// The context of the request's span, in the form of `traceparent`.
    #[must_use]
    pub fn context(&self) -> String {
        self.facts.as_ref().map(|facts| facts.context.to_string()).unwrap_or_default()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let Some(mut facts) = self.facts.take() else { return };
        facts.ended = Instant::now();
        if facts.outcome.is_none() {
            // A request is dropped before its answer when its client disconnects, or when its task panics.
            facts.code = Some(if std::thread::panicking() { Code::Internal } else { Code::ClientClosed });
        }
        self.shared.offer(facts);
    }
}
