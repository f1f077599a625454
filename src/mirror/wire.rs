//! HTTP requests of sources: each wait has a time limit, and each body that is kept has a limit in bytes.

use super::Config;
use super::bucket::{options, silent};
use super::offer::{Sink, Trouble};
use http::{HeaderMap, HeaderName, Method};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService, ReqwestConnector,
};
use std::io;
use std::pin::Pin;
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

/// Makes the clients of buckets. Those of the crate `object_store` read a listing and what comes with a failure to its end; here both have a limit.
#[derive(Debug)]
pub(super) struct Bounded;

#[derive(Debug)]
struct BoundedService(HttpClient);

/// The largest page of a listing: a thousand names of a kilobyte, each with what belongs to it.
const MAX_PAGE: usize = 16 << 20;

impl HttpConnector for Bounded {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(BoundedService(ReqwestConnector::default().connect(options)?)))
    }
}

impl HttpService for BoundedService {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            // S3 and Google's storage, and Azure's.
            let is_listing =
                request.uri().query().is_some_and(|q| q.contains("list-type=2") || q.contains("comp=list"));
            let response = self.0.execute(request).await?;
            if response.status().is_success() && !is_listing {
                return Ok(response);
            }
            Ok(response.map(|body| HttpResponseBody::new(Limited::new(body, MAX_PAGE).map_err(too_large))))
        })
    }
}

fn too_large(error: Box<dyn std::error::Error + Send + Sync>) -> HttpError {
    match error.downcast::<HttpError>() {
        Ok(error) => *error,
        Err(error) if error.is::<LengthLimitError>() => {
            let words = format!("a page of its listing is larger than {MAX_PAGE} bytes");
            HttpError::new(HttpErrorKind::Decode, io::Error::other(words))
        }
        Err(error) => HttpError::new_boxed(HttpErrorKind::Unknown, error),
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
