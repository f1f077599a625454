//! The settings of the data plane.

use crate::model::ModelName;
use std::num::NonZeroUsize;
use std::time::Duration;

/// The settings of the data plane. `config/sluicegate.toml` explains the defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The most predict requests in flight. One more is refused with `TOO_MANY_REQUESTS`.
    pub max_in_flight: usize,
    /// The most requests whose bodies are not complete, and how many of them may come from one peer.
    pub max_unfinished: usize,
    pub max_unfinished_per_peer: usize,
    /// The most open connections. For one more, the longest idle one is closed.
    pub max_connections: usize,
    /// The most requests at the same time on a connection of HTTP/2.
    pub max_streams: u32,
    /// The most bytes of a body, compressed and decompressed.
    pub max_body: usize,
    /// The most bytes of a request's headers.
    pub max_headers: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub idle_timeout: Duration,
    /// For a client that takes nothing of its answer.
    pub write_timeout: Duration,
    /// The timeout of a request that sets none.
    pub request_timeout: Duration,
    /// The longest timeout that a request may set.
    pub max_request_timeout: Duration,
    /// Whether answers name the version, the arm and the fallback in headers, and the version in the body (Open Inference Protocol).
    pub version_headers: bool,
    pub version_in_body: bool,
    /// The model of `/invocations`.
    pub default_model: Option<ModelName>,
    pub io_threads: NonZeroUsize,
}
