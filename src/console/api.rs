//! The admin API, asked in process with the credentials of the person who looks at the page.

use super::Console;
use crate::access::ClientCertificate;
use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, IF_MATCH};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, Request, StatusCode};
use axum::response::Response;
use futures_util::StreamExt as _;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::Arc;
use tower::ServiceExt as _;

/// The longest answer that is read. That about 2,000 models has about 2 MB.
const MAX_ANSWER: usize = 64 << 20;

/// The longest line of an answer.
const MAX_LINE: usize = 2 << 20;
/// The form of an answer that comes while it is made.
const LINES: &str = "application/x-ndjson";
const NO_REASON: &str = "the server gave no reason";

/// The admin API.
#[derive(Debug, Clone)]
pub(super) struct Api(Router);

/// What proves who the person is.
#[derive(Debug, Clone, Default)]
pub(super) struct Credentials {
    authorization: Option<HeaderValue>,
    certificate: Option<Arc<ClientCertificate>>,
}

/// An answer of the API that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) error: String,
    pub(super) details: Vec<String>,
}

/// A request to the API.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ApiRequest {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Option<Value>,
    /// The revision that must be in force.
    pub(super) if_match: Option<u64>,
}

impl Credentials {
    pub(super) fn of_token(token: &str) -> Option<Credentials> {
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
        authorization.set_sensitive(true);
        Some(Credentials { authorization: Some(authorization), certificate: None })
    }

    /// Whether they are those of one token.
    pub(super) fn is_same(&self, other: &Credentials) -> bool {
        self.authorization == other.authorization
    }
}

impl Console {
    /// Those of a session, else those of the request itself: a client certificate, or the header of a proxy that signs people in.
    pub(super) fn credentials(&self, parts: &Parts, session: Option<&str>) -> Credentials {
        if let Some(credentials) = session.and_then(|session| self.sessions.credentials(session)) {
            return credentials;
        }
        let authorization = parts.headers.get(AUTHORIZATION).cloned();
        Credentials { authorization, certificate: parts.extensions.get().cloned() }
    }
}

impl Api {
    pub(super) fn new(router: Router) -> Api {
        Api(router)
    }

    pub(super) async fn get(&self, who: &Credentials, path: &str) -> Result<Value, Problem> {
        let request = ApiRequest { method: Method::GET, path: path.to_owned(), body: None, if_match: None };
        self.send(who, request).await
    }

    /// What is found as lines of JSON, while it is found. Dropping it ends what the API does.
    ///
    /// # Errors
    /// The API's own, where nothing was sent yet.
    pub(super) async fn lines(&self, who: &Credentials, path: &str) -> Result<Lines, Problem> {
        let request = ApiRequest { method: Method::GET, path: path.to_owned(), body: None, if_match: None };
        let response = self.ask(who, request, LINES).await?;
        if response.status().is_success() {
            return Ok(Lines {
                body: response.into_body().into_data_stream(),
                rest: Vec::new(),
                ready: VecDeque::new(),
            });
        }
        Err(read(response).await.map_or_else(|problem| problem, |_| Problem::of(StatusCode::BAD_GATEWAY, NO_REASON)))
    }

    /// # Errors
    /// The API's own, or that its answer cannot be read.
    pub(super) async fn send(&self, who: &Credentials, request: ApiRequest) -> Result<Value, Problem> {
        read(self.ask(who, request, "application/json").await?).await
    }

    async fn ask(&self, who: &Credentials, request: ApiRequest, accept: &'static str) -> Result<Response, Problem> {
        let ApiRequest { method, path, body, if_match } = request;
        let mut builder = Request::builder().method(method).uri(&path).header(ACCEPT, accept);
        if let Some(authorization) = &who.authorization {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        if let Some(certificate) = &who.certificate {
            builder = builder.extension(Arc::clone(certificate));
        }
        if let Some(revision) = if_match {
            builder = builder.header(IF_MATCH, format!("\"{revision}\""));
        }
        let body = match body {
            None => Body::empty(),
            Some(body) => {
                builder = builder.header(CONTENT_TYPE, "application/json");
                Body::from(body.to_string())
            }
        };
        let request = builder.body(body).map_err(|_| Problem::of(StatusCode::NOT_FOUND, "there is no such page"))?;
        // A router never fails.
        let Ok(response) = self.0.clone().oneshot(request).await;
        Ok(response)
    }
}

async fn read(response: Response) -> Result<Value, Problem> {
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), MAX_ANSWER).await;
    let bytes = bytes.map_err(|e| Problem::of(StatusCode::BAD_GATEWAY, &format!("the answer is cut: {e}")))?;
    let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    // `/readyz` says why it is not ready in an answer that is not an error's.
    if status.is_success() || (status == StatusCode::SERVICE_UNAVAILABLE && value["error"].is_null()) {
        return Ok(value);
    }
    let details = value["details"].as_array().into_iter().flatten().filter_map(|d| d.as_str().map(str::to_owned));
    let error = value["error"].as_str().unwrap_or(NO_REASON);
    Err(Problem { status, error: error.to_owned(), details: details.collect() })
}

/// Lines of JSON as they come.
pub(super) struct Lines {
    body: BodyDataStream,
    /// The begin of a line.
    rest: Vec<u8>,
    ready: VecDeque<Result<Value, String>>,
}

impl Lines {
    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// In words, where the answer breaks off, or has what is no line.
    pub(super) async fn next(&mut self) -> Option<Result<Value, String>> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            let bytes = match self.body.next().await {
                None if self.rest.is_empty() => return None,
                None => return Some(Err("the answer is cut".to_owned())),
                Some(Err(error)) => return Some(Err(format!("the answer is cut: {error}"))),
                Some(Ok(bytes)) => bytes,
            };
            self.rest.extend_from_slice(&bytes);
            let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            for line in self.rest[..end].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let line = serde_json::from_slice(line);
                self.ready.push_back(line.map_err(|error| format!("the answer cannot be read: {error}")));
            }
            self.rest.drain(..end);
            if self.rest.len() > MAX_LINE {
                return Some(Err(format!("a line of the answer has more than {MAX_LINE} bytes")));
            }
        }
    }
}

impl Problem {
    pub(super) fn of(status: StatusCode, error: &str) -> Problem {
        Problem { status, error: error.to_owned(), details: Vec::new() }
    }
}
