//! The collector: OTLP over gRPC, or in its binary form over HTTP.

use super::config::Protocol;
use super::spans;
use crate::outbound::{Client, certificates, system_authorities};
use bytes::Bytes;
use http::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

const GRPC_PORT: u16 = 4317;
const HTTP_PORT: u16 = 4318;
/// The path for spans, where the endpoint has none.
const HTTP_PATH: &str = "v1/traces";
const CONNECT: Duration = Duration::from_secs(3);
/// The time limit of one try. That of a send is never longer.
const REQUEST: Duration = Duration::from_secs(5);
/// The most bytes of an answer.
const MAX_ANSWER: u64 = 1 << 20;

/// A connection to the collector, with a runtime of its own: it makes progress only while something is sent.
pub(super) struct Collector {
    runtime: Runtime,
    /// The ways to send. The first one is tried first.
    ways: Vec<(&'static str, SpanExporter)>,
}

impl Collector {
    /// Connects with the first spans.
    ///
    /// # Errors
    /// When the endpoint is not an address, or the authorities that `https://` needs cannot be read.
    pub(super) fn new(endpoint: &str, protocol: Protocol, ca: Option<&Path>) -> Result<Collector, String> {
        let address = Address::parse(endpoint)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        let (grpc, http) = match protocol {
            Protocol::Grpc => (true, false),
            Protocol::Http => (false, true),
            Protocol::Auto => (address.port != HTTP_PORT && !address.has_path(), address.port != GRPC_PORT),
        };
        let mut ways = Vec::new();
        {
            // A channel needs the runtime on which it will run.
            let _inside = runtime.enter();
            if grpc {
                ways.push(("gRPC", over_grpc(&address, ca)?));
            }
            if http {
                ways.push(("HTTP", over_http(&address, ca)?));
            }
        }
        let resource = spans::resource();
        for (_, exporter) in &mut ways {
            exporter.set_resource(&resource);
        }
        Ok(Collector { runtime, ways })
    }

    /// Sends spans. Blocks, for `within` at most for each way that is tried. The way that works is kept.
    ///
    /// # Errors
    /// Why the collector did not take them, for each way.
    pub(super) fn send(&mut self, spans: &[SpanData], within: Duration) -> Result<(), String> {
        let mut reasons = Vec::new();
        let works = self.ways.iter().position(|(name, exporter)| {
            let export = async { tokio::time::timeout(within, exporter.export(spans.to_vec())).await };
            match self.runtime.block_on(export) {
                Ok(Ok(())) => return true,
                Ok(Err(error)) => reasons.push(format!("over {name}: {error}")),
                Err(_) => reasons.push(format!("over {name}: no answer within {} ms", within.as_millis())),
            }
            false
        });
        let Some(works) = works else { return Err(reasons.join("; ")) };
        self.ways.swap(0, works);
        self.ways.truncate(1);
        Ok(())
    }
}

/// The parts of an endpoint.
struct Address {
    uri: Uri,
    is_secure: bool,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
}

impl Address {
    fn parse(endpoint: &str) -> Result<Address, String> {
        let wrong = || "tracing.otlp_endpoint is not an address with a scheme and a host".to_owned();
        let uri: Uri = endpoint.parse().map_err(|_| wrong())?;
        let is_secure = uri.scheme_str() == Some("https");
        let host = uri.host().ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        Ok(Address { uri, is_secure, host, port })
    }

    fn has_path(&self) -> bool {
        !matches!(self.uri.path(), "" | "/")
    }

    fn authority(&self) -> &str {
        self.uri.authority().map_or("", |authority| authority.as_str())
    }
}

fn over_grpc(address: &Address, ca: Option<&Path>) -> Result<SpanExporter, String> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_channel(channel(address, ca)?)
        .with_timeout(REQUEST)
        .with_retry_policy(RetryPolicy::disabled());
    exporter.build().map_err(|e| e.to_string())
}

/// A channel that connects when it is used, and again after the collector was restarted.
fn channel(address: &Address, ca: Option<&Path>) -> Result<Channel, String> {
    // TLS is made by the connector below, so that tonic sees a plain connection.
    let endpoint = Endpoint::from_shared(format!("http://{}", address.authority())).map_err(|e| e.to_string())?;
    let endpoint = endpoint.connect_timeout(CONNECT);
    if !address.is_secure {
        return Ok(endpoint.connect_lazy());
    }
    let origin: Uri = format!("https://{}", address.authority()).parse().map_err(|_| "not an address".to_owned())?;
    let name = ServerName::try_from(address.host.clone()).map_err(|_| "the host has no valid name".to_owned())?;
    let tls = TlsConnector::from(Arc::new(tls(ca)?));
    let (host, port) = (address.host.clone(), address.port);
    let connector = tower::service_fn(move |_: Uri| {
        let (tls, name, host) = (tls.clone(), name.clone(), host.clone());
        async move {
            let socket = TcpStream::connect((host.as_str(), port)).await?;
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, socket).await?))
        }
    });
    Ok(endpoint.origin(origin).connect_with_connector_lazy(connector))
}

/// # Errors
/// When the authorities cannot be read.
fn tls(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let file: Option<&Path> = match ca {
        Some(file) => Some(file),
        None => system_authorities(),
    };
    let file = file.ok_or("this system has no list of trusted authorities: set tracing.ca")?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file).map_err(|e| e.to_string())? {
        // One that cannot be used is left out, as by other clients.
        let _ = roots.add(CertificateDer::from(certificate.der().to_vec()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|e| e.to_string())?.with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn over_http(address: &Address, ca: Option<&Path>) -> Result<SpanExporter, String> {
    let url = if address.has_path() {
        address.uri.to_string()
    } else {
        format!("{}/{HTTP_PATH}", address.uri.to_string().trim_end_matches('/'))
    };
    let client = Client::new(url.clone(), ca.map(Path::to_owned)).map_err(|e| e.to_string())?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Posting(Mutex::new(client)))
        .with_endpoint(url)
        .with_timeout(REQUEST)
        .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
        .with_retry_policy(RetryPolicy::disabled());
    exporter.build().map_err(|e| e.to_string())
}

/// Posts by the client that all of this server's own requests use: with deadlines, without redirections and proxies.
#[derive(Debug)]
struct Posting(Mutex<Client>);

type Posted<'f> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>;

impl HttpClient for Posting {
    /// Blocks: nothing else runs on this runtime.
    fn send_bytes<'s, 'f>(&'s self, request: Request<Bytes>) -> Posted<'f>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let headers = parts.headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
            let headers: Vec<(&str, &str)> = headers.collect();
            let mut client = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = client.post(body.into(), &headers, REQUEST, MAX_ANSWER)?;
            Ok(Response::new(answer.into()))
        })
    }
}
