//! The data plane's settings.

use std::num::NonZeroUsize;
use std::time::Duration;

/// The data plane's settings; `config/sluicegate.toml` says why each default is what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Predict requests in flight; one more is refused with `TOO_MANY_REQUESTS`.
    pub max_in_flight: usize,
    /// Open connections; one more waits in the kernel's backlog.
    pub max_connections: usize,
    /// Bytes of a body, compressed and decompressed alike.
    pub max_body: usize,
    /// Bytes of a request's headers.
    pub max_headers: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub idle_timeout: Duration,
    /// The deadline of a request that brings none.
    pub request_timeout: Duration,
    /// The most a request may ask for.
    pub max_request_timeout: Duration,
    pub io_threads: NonZeroUsize,
}
