//! HTTP requests of sources: each wait has a time limit, and each body that is kept has a limit in bytes.

use super::Config;
use super::bucket::{options, silent};
use super::offer::{Sink, Trouble};
use http::{HeaderMap, HeaderName, Method};
use http_body_util::BodyExt as _;
use object_store::client::{
    HttpClient, HttpConnector as _, HttpError, HttpRequest, HttpRequestBody, HttpResponse, ReqwestConnector,
};
use std::time::Duration;
use tokio::time::timeout;

/// Sends requests.
pub(super) struct Wire {
    http: HttpClient,
    timeout: Duration,
}

impl Wire {
    /// Without `allow_http` only TLS is spoken, also after a redirection.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub(super) fn open(config: &Config, allow_http: bool) -> Result<Wire, Trouble> {
        let http = ReqwestConnector::default().connect(&options(config, allow_http));
        let http = http.map_err(|error| Trouble::new(format!("the client cannot be made: {error}")))?;
        Ok(Wire { http, timeout: config.timeout })
    }

    /// The answer with any status; its body is not read yet.
    ///
    /// # Errors
    /// When the address is none, the server cannot be reached, or it sends nothing in time.
    pub(super) async fn send(&self, method: Method, url: &str, headers: HeaderMap) -> Result<HttpResponse, Trouble> {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.parse().map_err(|_| Trouble::new(format!("{url} is not an address")))?;
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        let sent = timeout(self.timeout, self.http.execute(request)).await.map_err(|_| silent(self.timeout))?;
        sent.map_err(|error| Trouble::new(format!("{url} cannot be reached: {}", chain(&error))))
    }

    /// A whole body. `what` names it in the error.
    ///
    /// # Errors
    /// When it is larger than `most` bytes, or breaks off.
    pub(super) async fn body(&self, response: HttpResponse, most: usize, what: &str) -> Result<Vec<u8>, Trouble> {
        let mut bytes = Vec::new();
        let mut keep = |piece: &[u8]| {
            if piece.len() > most - bytes.len() {
                return Err(Trouble::new(format!("{what} is larger than {most} bytes")));
            }
            bytes.extend_from_slice(piece);
            Ok(())
        };
        self.pour(response, 0, &mut keep).await?;
        Ok(bytes)
    }

    /// Gives a body to `to`, without its first `skip` bytes.
    ///
    /// # Errors
    /// When it breaks off, and what `to` returns.
    pub(super) async fn pour(&self, response: HttpResponse, skip: u64, to: &mut Sink<'_>) -> Result<(), Trouble> {
        let (mut body, mut skip) = (response.into_body(), skip);
        while let Some(frame) = timeout(self.timeout, body.frame()).await.map_err(|_| silent(self.timeout))? {
            let frame =
                frame.map_err(|error: HttpError| Trouble::new(format!("the connection broke: {}", chain(&error))))?;
            let Ok(mut data) = frame.into_data() else { continue };
            let skipped = data.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            skip -= skipped as u64;
            to(&data.split_off(skipped))?;
        }
        Ok(())
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    let all: Vec<String> = causes.collect();
    all.join(": ").chars().take(400).collect()
}

/// A header that is text.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
