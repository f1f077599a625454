//! What every connection of the data plane shares: the gateway behind it, the limits, the counts.

use super::config::Config;
use crate::model::{Code, Failure};
use crate::serve::Gateway;
use crate::telemetry::{Telemetry, names};
use http::header::HOST;
use http::{HeaderMap, Version};
use metrics::Counter;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Limits that can change while the server runs.
#[derive(Debug)]
pub struct Limits {
    max_in_flight: AtomicUsize,
    max_body: AtomicUsize,
    body_timeout_ms: AtomicU64,
    request_timeout_ms: AtomicU64,
    max_request_timeout_ms: AtomicU64,
}

impl Limits {
    #[must_use]
    pub fn new(config: &Config) -> Limits {
        let limits = Limits {
            max_in_flight: AtomicUsize::new(0),
            max_body: AtomicUsize::new(0),
            body_timeout_ms: AtomicU64::new(0),
            request_timeout_ms: AtomicU64::new(0),
            max_request_timeout_ms: AtomicU64::new(0),
        };
        limits.apply(config);
        limits
    }

    /// Takes new limits over; requests under way keep the ones they read.
    pub fn apply(&self, config: &Config) {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        self.max_in_flight.store(config.max_in_flight, Ordering::Relaxed);
        self.max_body.store(config.max_body, Ordering::Relaxed);
        self.body_timeout_ms.store(millis(config.body_timeout), Ordering::Relaxed);
        self.request_timeout_ms.store(millis(config.request_timeout), Ordering::Relaxed);
        self.max_request_timeout_ms.store(millis(config.max_request_timeout), Ordering::Relaxed);
    }

    /// In bytes, compressed and decompressed alike.
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
}

/// What every connection of the data plane shares.
#[derive(Debug)]
pub struct DataPlane {
    pub(super) gateway: Gateway,
    pub(super) limits: Limits,
    max_headers: usize,
    in_flight: AtomicUsize,
    stopping: AtomicBool,
    /// Connections end with the answer under way.
    closing: AtomicBool,
    refused: [Counter; Code::ALL.len()],
}

impl DataPlane {
    #[must_use]
    pub fn new(gateway: Gateway, config: &Config, telemetry: &Telemetry) -> Arc<DataPlane> {
        let refused = Code::ALL.map(|code| telemetry.process().counter(&names::REFUSED, &[("code", code.as_str())]));
        Arc::new(DataPlane {
            gateway,
            limits: Limits::new(config),
            max_headers: config.max_headers,
            in_flight: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            refused,
        })
    }

    #[must_use]
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// From now on readiness is 503: the first step of a stop. Requests are answered as before.
    pub fn announce_stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// From now on each answer says that its connection ends with it: before any connection is refused, so that nobody who reads an
    /// answer asks again where nobody listens.
    pub(super) fn begin_closing(&self) {
        self.closing.store(true, Ordering::Release);
    }

    #[must_use]
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Whether new requests should come here: see INTERFACES, "Ready".
    #[must_use]
    pub fn ready(&self) -> bool {
        !self.stopping.load(Ordering::Acquire) && self.gateway.snapshot().ready
    }

    /// Predict requests between their head and their answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Lets one predict request in, or refuses it at once.
    pub(super) fn admit(self: &Arc<Self>) -> Result<Permit, Failure> {
        let most = self.limits.max_in_flight.load(Ordering::Relaxed);
        // Counted first, so that two requests cannot both see the last place; the permit gives it back either way.
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let permit = Permit(Arc::clone(self));
        if before < most {
            return Ok(permit);
        }
        Err(Failure::new(Code::TooManyRequests, format!("{most} requests are in flight already, the configured limit")))
    }

    /// Counts a refusal that no version was charged with.
    pub(super) fn count_refusal(&self, code: Code) {
        self.refused[code as usize].increment(1);
    }

    pub(super) fn check_head(&self, version: Version, headers: &HeaderMap) -> Result<(), Failure> {
        if version == Version::HTTP_11 && !headers.contains_key(HOST) {
            return Err(Failure::new(
                Code::InvalidRequest,
                "an HTTP/1.1 request names its host (RFC 9112, section 3.2)",
            ));
        }
        // 4 for ": " and the line's end: the size on the wire.
        let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        if size <= self.max_headers {
            return Ok(());
        }
        let words = format!("the headers may have at most {} bytes, got {size}", self.max_headers);
        Err(Failure::new(Code::HeadersTooLarge, words))
    }
}

/// A predict request's place; given back when it ends, however it ends.
#[derive(Debug)]
pub(super) struct Permit(Arc<DataPlane>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
