//! The state that all connections of the data plane share: the gateway, the limits, the counters.

use super::config::Config;
use super::door::{Doors, Shed};
use super::endpoint::Endpoint;
use super::grpc::StreamPlaces;
use super::io_health::IoThreads;
use super::peers::Peers;
use super::workers::Workers;
use crate::access::{Action, ClientCertificate, Identity, Permission, Remembered, Scope, credentials_needed};
use crate::budget::Budget;
use crate::callers::Callers;
use crate::explain::Explainer;
use crate::model::{Code, Failure, ModelName, panic_message, quoted};
use crate::serve::Gateway;
use crate::telemetry::{Telemetry, names};
use crate::traces::Traces;
use http::header::{HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, Version};
use metrics::Counter;
use std::any::Any;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// The settings that can change while the server runs.
#[derive(Debug)]
pub struct Limits {
    max_in_flight: AtomicUsize,
    max_body: AtomicUsize,
    body_timeout_ms: AtomicU64,
    request_timeout_ms: AtomicU64,
    max_request_timeout_ms: AtomicU64,
    version_headers: AtomicBool,
    version_in_body: AtomicBool,
    /// Read by `/invocations` and `/ping` only.
    default_model: RwLock<Option<ModelName>>,
}

impl Limits {
    fn new(config: &Config) -> Limits {
        let limits = Limits {
            max_in_flight: AtomicUsize::new(0),
            max_body: AtomicUsize::new(0),
            body_timeout_ms: AtomicU64::new(0),
            request_timeout_ms: AtomicU64::new(0),
            max_request_timeout_ms: AtomicU64::new(0),
            version_headers: AtomicBool::new(true),
            version_in_body: AtomicBool::new(true),
            default_model: RwLock::new(None),
        };
        limits.apply(config);
        limits
    }

    /// Sets new limits. Requests that are already running keep the ones they have read.
    pub fn apply(&self, config: &Config) {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        self.max_in_flight.store(config.max_in_flight, Ordering::Relaxed);
        self.max_body.store(config.max_body, Ordering::Relaxed);
        self.body_timeout_ms.store(millis(config.body_timeout), Ordering::Relaxed);
        self.request_timeout_ms.store(millis(config.request_timeout), Ordering::Relaxed);
        self.max_request_timeout_ms.store(millis(config.max_request_timeout), Ordering::Relaxed);
        self.version_headers.store(config.version_headers, Ordering::Relaxed);
        self.version_in_body.store(config.version_in_body, Ordering::Relaxed);
        self.default_model.write().unwrap_or_else(PoisonError::into_inner).clone_from(&config.default_model);
    }

    /// In bytes, for the compressed and for the decompressed body.
    pub(super) fn max_body(&self) -> usize {
        self.max_body.load(Ordering::Relaxed)
    }

    pub(super) fn body_timeout(&self) -> Duration {
        Duration::from_millis(self.body_timeout_ms.load(Ordering::Relaxed))
    }

    pub(super) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms.load(Ordering::Relaxed))
    }

    pub(super) fn max_request_timeout(&self) -> Duration {
        Duration::from_millis(self.max_request_timeout_ms.load(Ordering::Relaxed))
    }

    pub(super) fn version_headers(&self) -> bool {
        self.version_headers.load(Ordering::Relaxed)
    }

    pub(super) fn version_in_body(&self) -> bool {
        self.version_in_body.load(Ordering::Relaxed)
    }

    pub(super) fn default_model(&self) -> Option<ModelName> {
        self.default_model.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The requests that have a body and are limited in number. Each kind has a limit of its own, so that feedback, which waits for
/// the disk, takes no permit from a prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestKind {
    Predict,
    Feedback,
}

/// The most feedback requests in flight. One sync of the log serves all that wait for it, so this limits memory, not
/// throughput.
const MAX_FEEDBACK_IN_FLIGHT: usize = 256;

/// How many of the places a request may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    Interactive,
    /// An interactive request of a caller that holds less than its share of the places.
    Modest,
    Batch,
}

/// Where a panic was caught, as the label `task` of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    Request,
    Connection,
    ShadowCopies,
}

impl Task {
    const ALL: [Task; 3] = [Task::Request, Task::Connection, Task::ShadowCopies];

    fn as_str(self) -> &'static str {
        match self {
            Task::Request => "request",
            Task::Connection => "connection",
            Task::ShadowCopies => "shadow_copies",
        }
    }
}

/// The state that all connections of the data plane share.
#[derive(Debug)]
pub struct DataPlane {
    pub(super) gateway: Gateway,
    pub(super) limits: Limits,
    pub(super) budget: Budget,
    doors: Doors,
    pub(super) shed: Shed,
    /// For large bodies.
    pub(super) workers: Workers,
    pub(super) explainer: Explainer,
    pub(super) traces: Traces,
    max_headers: usize,
    predict_in_flight: InFlight,
    feedback_in_flight: InFlight,
    pub(super) peers: Arc<Peers>,
    pub(super) io_threads: IoThreads,
    /// The streams of gRPC that are open.
    pub(super) streams: Arc<StreamPlaces>,
    /// Those that only watch.
    pub(super) watches: Arc<StreamPlaces>,
    /// The server is about to stop: readiness is 503.
    stopping: AtomicBool,
    refused: [Counter; Code::ALL.len()],
    panics: [Counter; Task::ALL.len()],
}

impl DataPlane {
    /// Starts the threads for large bodies.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(
        gateway: Gateway,
        config: &Config,
        doors: Doors,
        budget: Budget,
        traces: Traces,
        telemetry: &Telemetry,
    ) -> io::Result<Arc<DataPlane>> {
        let process = telemetry.process();
        let workers = Workers::start(config.io_threads.get())?;
        Ok(Arc::new(DataPlane {
            gateway,
            limits: Limits::new(config),
            budget,
            doors,
            shed: Shed::new(process),
            workers,
            explainer: Explainer::start()?,
            traces,
            max_headers: config.max_headers,
            predict_in_flight: InFlight::default(),
            feedback_in_flight: InFlight::default(),
            peers: Peers::new(config.max_unfinished, config.max_unfinished_per_peer),
            io_threads: IoThreads::default(),
            streams: StreamPlaces::of_requests(),
            watches: StreamPlaces::of_watches(),
            stopping: AtomicBool::new(false),
            refused: Code::ALL.map(|code| process.counter(&names::REFUSED, &[("code", code.as_str())])),
            panics: Task::ALL.map(|task| process.counter(&names::PANICS, &[("task", task.as_str())])),
        }))
    }

    #[must_use]
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// The heartbeats of the I/O threads.
    #[must_use]
    pub fn io_threads(&self) -> &IoThreads {
        &self.io_threads
    }

    /// The memory that requests hold.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// What each caller has in flight.
    #[must_use]
    pub fn callers(&self) -> &Arc<Callers> {
        &self.doors.callers
    }

    /// Which requests are traced.
    #[must_use]
    pub fn traces(&self) -> &Traces {
        &self.traces
    }

    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Sets readiness to 503, as the first step of a stop. Requests are answered as before.
    pub fn announce_stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The server is about to stop, and says so.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Whether new requests should be sent to this server (`/v2/health/ready`).
    #[must_use]
    pub fn ready(&self) -> bool {
        !self.is_stopping() && self.gateway.snapshot().ready
    }

    /// Predict requests that are admitted and not answered yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.predict_in_flight.0.load(Ordering::Relaxed)
    }

    /// Whether the caller may use the endpoint, and who it is where it proved that. `remembered`: what its connection proved last.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` without credentials or with wrong ones; `FORBIDDEN` when they do not allow it. Neither where no credentials are
    /// needed: then wrong ones name nobody, as they may be meant for a proxy.
    pub(super) fn check_caller(
        &self,
        endpoint: &Endpoint<'_>,
        parts: &Parts,
        remembered: &Remembered,
    ) -> Result<Option<Arc<Identity>>, Failure> {
        let (permission, model) = endpoint.permission();
        self.check_permission(permission, model, parts, remembered)
    }

    /// The same for a permission.
    ///
    /// # Errors
    /// As [`DataPlane::check_caller`].
    pub(super) fn check_permission(
        &self,
        permission: Permission,
        model: Option<&str>,
        parts: &Parts,
        remembered: &Remembered,
    ) -> Result<Option<Arc<Identity>>, Failure> {
        let Doors { access, require_token, .. } = &self.doors;
        if permission == Permission::Open {
            return Ok(None);
        }
        let certificate = parts.extensions.get::<Arc<ClientCertificate>>().map(AsRef::as_ref);
        if !require_token {
            return Ok(access.name_of(&parts.headers, certificate, remembered));
        }
        let identity = access
            .identify(&parts.headers, certificate, Some(remembered))?
            .ok_or_else(|| credentials_needed(certificate))?;
        match permission {
            Permission::Open | Permission::AnyIdentity => Ok(()),
            Permission::To(action, Scope::Model) => identity.check(action, model),
            Permission::To(action, Scope::Listed) => identity.check_somewhere(action),
            Permission::To(action, Scope::Everything) => identity.check(action, None),
        }
        .map(|()| Some(identity))
    }

    /// Whether a caller that was let in may use the model that its message names.
    ///
    /// # Errors
    /// `FORBIDDEN`, and `UNAUTHENTICATED` for a caller without a name, where credentials are needed.
    pub(super) fn check_model(&self, identity: Option<&Identity>, model: &str) -> Result<(), Failure> {
        if !self.doors.require_token {
            return Ok(());
        }
        identity.ok_or_else(|| credentials_needed(None))?.check(Action::Predict, Some(model))
    }

    /// Admits one request, or refuses it at once.
    pub(super) fn admit(self: &Arc<Self>, kind: RequestKind, claim: Claim) -> Result<Permit, Failure> {
        let limit = self.limit_of(kind, claim);
        if self.in_flight_of(kind).enter(limit) {
            return Ok(Permit { plane: Arc::clone(self), kind });
        }
        Err(too_many(kind, limit))
    }

    /// Refuses a request whose body has not been read if it could not be admitted now.
    pub(super) fn has_room(&self, kind: RequestKind, claim: Claim) -> Result<(), Failure> {
        let limit = self.limit_of(kind, claim);
        if self.in_flight_of(kind).0.load(Ordering::Relaxed) < limit { Ok(()) } else { Err(too_many(kind, limit)) }
    }

    /// How many requests may be in flight for one more to be let in. The upper half is for interactive requests only, and some more places
    /// are for callers that hold less than their share, so that one caller cannot keep all others out.
    fn limit_of(&self, kind: RequestKind, claim: Claim) -> usize {
        let places = match kind {
            RequestKind::Predict => self.limits.max_in_flight.load(Ordering::Relaxed),
            RequestKind::Feedback => MAX_FEEDBACK_IN_FLIGHT,
        };
        match claim {
            Claim::Interactive => places,
            Claim::Modest => places.saturating_add((places / 16).max(1)),
            Claim::Batch => (places / 2).max(1),
        }
    }

    fn in_flight_of(&self, kind: RequestKind) -> &InFlight {
        match kind {
            RequestKind::Predict => &self.predict_in_flight,
            RequestKind::Feedback => &self.feedback_in_flight,
        }
    }

    /// Counts a request that was refused before it reached a version.
    pub(super) fn count_refusal(&self, code: Code) {
        self.refused[code as usize].increment(1);
    }

    /// Counts and logs a panic that was caught.
    pub(super) fn report_panic(&self, task: Task, panic: &(dyn Any + Send)) {
        self.panics[task as usize].increment(1);
        tracing::error!(task = task.as_str(), panic = panic_message(panic), "a task of the data plane panicked");
    }

    /// Checks what every request must have: a host, and headers within the limit.
    pub(super) fn check_head(&self, version: Version, headers: &HeaderMap) -> Result<(), Failure> {
        let mut hosts = headers.get_all(HOST).iter();
        match (hosts.next(), hosts.next()) {
            (None, _) if version == Version::HTTP_11 => {
                return Err(Failure::new(
                    Code::InvalidRequest,
                    "the header \"host\" is missing: HTTP/1.1 requires it (RFC 9112, section 3.2)",
                ));
            }
            (None, _) => {}
            (Some(host), None) if is_host(host.as_bytes()) => {}
            (Some(host), None) => {
                let got = quoted(&String::from_utf8_lossy(host.as_bytes()));
                return Err(Failure::new(
                    Code::InvalidRequest,
                    format!("the header \"host\" is expected to be a host with an optional port, got {got}"),
                ));
            }
            (Some(_), Some(_)) => {
                return Err(Failure::new(
                    Code::InvalidRequest,
                    "the header \"host\" is given more than once: proxies could read different hosts (RFC 9112, section 3.2)",
                ));
            }
        }
        if !framing_is_clear(headers) {
            let message = "the header \"transfer-encoding\" is expected to be \"chunked\", once: proxies could read different bodies \
                           (RFC 9112, section 6.1)";
            return Err(Failure::new(Code::InvalidRequest, message));
        }
        // The size on the wire: 4 more bytes per header, for ": " and the line break.
        let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        if size <= self.max_headers {
            return Ok(());
        }
        let message = format!("the headers may have at most {} bytes, got {size}", self.max_headers);
        Err(Failure::new(Code::HeadersTooLarge, message))
    }
}

/// Whether all parsers find the same end of a request's body. hyper checks everything else.
pub(super) fn framing_is_clear(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    encodings.next().is_none_or(is_chunked) && encodings.next().is_none()
}

/// Whether a `host` header has the form of RFC 9110, section 7.2: a name or an address, and an optional port. It may be empty.
fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value {
        [b'[', rest @ ..] => {
            let Some(end) = rest.iter().position(|b| *b == b']') else { return false };
            let is_address = |b: &u8| b.is_ascii_hexdigit() || b":.".contains(b);
            if end == 0 || !rest[..end].iter().all(is_address) {
                return false;
            }
            (&[][..], &rest[end + 1..])
        }
        _ => value.split_at(value.iter().position(|b| *b == b':').unwrap_or(value.len())),
    };
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(b);
    let is_port = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    host.iter().all(is_name) && is_port
}

fn too_many(kind: RequestKind, limit: usize) -> Failure {
    let what = match kind {
        RequestKind::Predict => "predict requests",
        RequestKind::Feedback => "feedback requests",
    };
    Failure::new(Code::TooManyRequests, format!("{limit} {what} are in flight, which is the limit: try again shortly"))
}

/// A count of running requests that never exceeds the limit it is given.
#[derive(Debug, Default)]
pub(super) struct InFlight(AtomicUsize);

impl InFlight {
    /// Counts one request in if there are fewer than `limit`. A single atomic step: of several callers at the limit, exactly as
    /// many succeed as there are places.
    pub(super) fn enter(&self, limit: usize) -> bool {
        let enter = |count: usize| (count < limit).then_some(count + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).is_ok()
    }

    pub(super) fn leave(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One place among the requests in flight. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Permit {
    plane: Arc<DataPlane>,
    kind: RequestKind,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.plane.in_flight_of(self.kind).leave();
    }
}
