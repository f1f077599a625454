//! The settings of traces.

use std::path::PathBuf;

/// `[tracing]`: spans of requests for an OpenTelemetry collector.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `otlp_endpoint`: the collector's address, `http://…` or `https://…`. Default none: nothing is traced.
    pub endpoint: Option<String>,
    /// The share of requests that are traced where the caller sends no `traceparent`; with one, its flag decides. Default 0.01: enough to see
    /// where time goes, at a cost that cannot be measured.
    pub sample_rate: f64,
    /// How spans are sent. Default [`Protocol::Auto`].
    pub protocol: Protocol,
    /// The file with the authorities that sign the collector's certificate. Default none: those that the system trusts.
    pub ca: Option<PathBuf>,
}

/// How spans are sent to the collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// By the endpoint: port 4317 is gRPC, port 4318 or a path is HTTP. For another port gRPC is tried first, then HTTP, and the one that works
    /// is kept.
    #[default]
    Auto,
    Grpc,
    /// OTLP's binary form over HTTP.
    Http,
}

impl Default for Config {
    fn default() -> Config {
        Config { endpoint: None, sample_rate: 0.01, protocol: Protocol::Auto, ca: None }
    }
}

impl Config {
    /// Whether a text can be an endpoint: a scheme, a host, perhaps a port and a path. No user name: credentials belong in the headers that
    /// `OTEL_EXPORTER_OTLP_HEADERS` names.
    #[must_use]
    pub fn is_endpoint(text: &str) -> bool {
        let Ok(uri) = text.parse::<http::Uri>() else { return false };
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        let has_host = uri.host().is_some_and(|host| !host.is_empty());
        let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        is_web && has_host && !has_user && uri.query().is_none()
    }
}
