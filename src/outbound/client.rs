//! The client of one address.

use super::authorities::{Untrusted, certificates, system_authorities};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::tls::{RootCerts, TlsConfig};

/// A client of one address.
pub struct Client {
    url: String,
    /// The file with the authorities to trust. `None`: those of the system.
    ca: Option<PathBuf>,
    /// `None` after a failure: the authorities are read again for the next request.
    agent: Option<ureq::Agent>,
}

/// Why a request has no answer that can be used. The address is never shown.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    #[error("there was no complete answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("the host is not known")]
    HostNotFound,
    #[error("it cannot be reached: {0}")]
    Unreachable(std::io::Error),
    #[error("its certificate is not accepted: {0}")]
    Certificate(&'static str),
    #[error("the answer has the status {0}")]
    Status(u16),
    #[error("the answer has the status {0}, and redirections are not followed")]
    Redirection(u16),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(u64),
    #[error("the other side does not speak HTTP, or not the right version of TLS")]
    Protocol,
    #[error("the authorities to trust cannot be used: {0}")]
    Untrusted(#[from] Untrusted),
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("ca", &self.ca).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of `url`, which begins with `http://` or `https://`.
    ///
    /// # Errors
    /// When the authorities that `https://` needs cannot be read.
    pub fn new(url: String, ca: Option<PathBuf>) -> Result<Client, Untrusted> {
        let mut client = Client { url, ca, agent: None };
        client.agent = Some(client.connect()?);
        Ok(client)
    }

    /// The body of the answer to a GET.
    ///
    /// # Errors
    /// When there is no answer with the status 200 and at most `most` bytes `within` this time.
    pub fn get(&mut self, within: Duration, most: u64) -> Result<Vec<u8>, OutboundError> {
        self.send("GET", None, &[], within, most)
    }

    /// Posts JSON. What the answer holds is not read.
    ///
    /// # Errors
    /// When there is no answer with a status of success `within` this time. Nothing is known then about whether the request arrived.
    pub fn post_json(&mut self, body: String, within: Duration) -> Result<(), OutboundError> {
        self.post_json_with(body, &[], within)
    }

    /// The same, with more headers. One that is not valid is [`OutboundError::Protocol`].
    ///
    /// # Errors
    /// As [`Client::post_json`].
    pub fn post_json_with(
        &mut self,
        body: String,
        headers: &[(&str, &str)],
        within: Duration,
    ) -> Result<(), OutboundError> {
        self.send("POST", Some(Body { bytes: body.into_bytes(), is_json: true }), headers, within, 0).map(drop)
    }

    /// Posts bytes with these headers, of which one is `content-type`, and returns the body of the answer.
    ///
    /// # Errors
    /// When there is no answer with a status of success and at most `most` bytes `within` this time.
    pub fn post(
        &mut self,
        bytes: Vec<u8>,
        headers: &[(&str, &str)],
        within: Duration,
        most: u64,
    ) -> Result<Vec<u8>, OutboundError> {
        self.send("POST", Some(Body { bytes, is_json: false }), headers, within, most)
    }

    fn send(
        &mut self,
        method: &str,
        body: Option<Body>,
        headers: &[(&str, &str)],
        within: Duration,
        most: u64,
    ) -> Result<Vec<u8>, OutboundError> {
        let began = Instant::now();
        let agent = match self.agent.take() {
            Some(agent) => agent,
            None => self.connect()?,
        };
        // Reading the authorities is a part of the time.
        let left = within.saturating_sub(began.elapsed()).max(Duration::from_millis(1));
        let answer =
            exchange(&agent, method, &self.url, (body, headers), left, most).map_err(|error| reason(error, within))?;
        let (status, body) = answer;
        let ok = if method == "GET" { status == 200 } else { (200..300).contains(&status) };
        if !ok {
            return Err(if (300..400).contains(&status) {
                OutboundError::Redirection(status)
            } else {
                OutboundError::Status(status)
            });
        }
        self.agent = Some(agent);
        match body {
            Ok(body) if body.len() as u64 <= most => Ok(body),
            Ok(_) | Err(ureq::Error::BodyExceedsLimit(_)) => Err(OutboundError::TooLarge(most)),
            Err(error) => Err(reason(error, within)),
        }
    }

    fn connect(&self) -> Result<ureq::Agent, Untrusted> {
        agent(&self.url, self.ca.as_deref())
    }
}

/// An agent for one address, with the authorities that `https://` needs.
pub(super) fn agent(url: &str, ca: Option<&Path>) -> Result<ureq::Agent, Untrusted> {
    let mut config = ureq::Agent::config_builder()
        .max_redirects(0)
        .http_status_as_error(false)
        .proxy(None)
        // Requests are seconds or minutes apart: a kept connection would mostly be closed by the other side.
        .max_idle_connections(0);
    if url.starts_with("https://") {
        let file = match ca {
            Some(file) => file,
            None => system_authorities().ok_or(Untrusted::NoSystemList)?,
        };
        let roots = RootCerts::new_with_certs(&certificates(file)?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder().root_certs(roots).unversioned_rustls_crypto_provider(provider);
        config = config.https_only(true).tls_config(tls.build());
    }
    Ok(config.build().into())
}

/// The body of a request.
struct Body {
    bytes: Vec<u8>,
    is_json: bool,
}

/// The status and the body of an answer. Without a limit in bytes the body is not read.
type Exchanged = (u16, Result<Vec<u8>, ureq::Error>);

fn exchange(
    agent: &ureq::Agent,
    method: &str,
    url: &str,
    (body, headers): (Option<Body>, &[(&str, &str)]),
    within: Duration,
    most: u64,
) -> Result<Exchanged, ureq::Error> {
    let request = ureq::http::Request::builder().method(method).uri(url);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let mut answer = match body {
        None => agent.run(agent.configure_request(request.body(())?).timeout_global(Some(within)).build())?,
        Some(body) => {
            let request = if body.is_json { request.header("content-type", "application/json") } else { request };
            let request = request.body(body.bytes)?;
            agent.run(agent.configure_request(request).timeout_global(Some(within)).build())?
        }
    };
    let status = answer.status().as_u16();
    // One byte more shows that there are too many.
    let body = if most == 0 { Ok(Vec::new()) } else { answer.body_mut().with_config().limit(most + 1).read_to_vec() };
    Ok((status, body))
}

/// An error in words that do not show the address.
pub(super) fn reason(error: ureq::Error, within: Duration) -> OutboundError {
    match error {
        ureq::Error::Timeout(_) => OutboundError::Timeout(within),
        ureq::Error::HostNotFound => OutboundError::HostNotFound,
        ureq::Error::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => of_tls(tls),
            None => OutboundError::Unreachable(error),
        },
        ureq::Error::ConnectionFailed => OutboundError::Unreachable(std::io::ErrorKind::NotConnected.into()),
        ureq::Error::Rustls(tls) => of_tls(&tls),
        _ => OutboundError::Protocol,
    }
}

/// The words of rustls name hosts, so these are other ones.
fn of_tls(error: &rustls::Error) -> OutboundError {
    use rustls::CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, UnknownIssuer,
    };
    let rustls::Error::InvalidCertificate(error) = error else { return OutboundError::Protocol };
    OutboundError::Certificate(match error {
        // An authority with the same name and another key.
        UnknownIssuer | BadSignature => "none of the authorities to trust has signed it",
        NotValidForName | NotValidForNameContext { .. } => "it is for another name",
        Expired | ExpiredContext { .. } => "it has expired",
        NotValidYet | NotValidYetContext { .. } => "it is not valid yet",
        _ => "it is not one for a server",
    })
}
