//! The settings of the data plane.

use std::num::NonZeroUsize;
use std::time::Duration;

/// The settings of the data plane. `config/sluicegate.toml` explains the defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The most predict requests in flight. One more is refused with `TOO_MANY_REQUESTS`.
    pub max_in_flight: usize,
    /// The most open connections. One more waits in the kernel's backlog.
    pub max_connections: usize,
    /// The most bytes of a body, compressed and decompressed.
    pub max_body: usize,
    /// The most bytes of a request's headers.
    pub max_headers: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub idle_timeout: Duration,
    /// The timeout of a request that sets none.
    pub request_timeout: Duration,
    /// The longest timeout that a request may set.
    pub max_request_timeout: Duration,
    pub io_threads: NonZeroUsize,
}
