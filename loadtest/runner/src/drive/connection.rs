//! One HTTP/1.1 connection: sends requests, reads and checks the answers, and connects again after an error.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Outcome;
use crate::check;
use crate::plan::Kind;
use crate::wrong::{Result, While};

const VERSION: HeaderName = HeaderName::from_static("x-sluicegate-version");
const USER: HeaderName = HeaderName::from_static("x-user-id");

#[derive(Debug)]
pub struct Connection {
    address: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

/// The result of one request.
#[derive(Debug)]
pub struct Verdict {
    pub outcome: Outcome,
    pub version: u32,
    /// 0 without an answer.
    pub status: u16,
    /// The error message; empty for a good answer.
    pub complaint: String,
}

impl Verdict {
    pub fn failed(complaint: String) -> Self {
        Self { outcome: Outcome::Failed, version: 0, status: 0, complaint }
    }
}

impl Connection {
    /// Must run in a `LocalSet`.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.while_doing(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true).while_doing(|| format!("connecting to {address}"))?;
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.while_doing(|| format!("speaking HTTP with {address}"))?;
        // An error of the connection is also the error of the request that it interrupts.
        tokio::task::spawn_local(async move { drop(connection.await) });
        Ok(Self { address, sender })
    }

    /// Sends one of the prepared requests and checks the answer.
    pub async fn ask(&mut self, kind: &Kind, case: usize, user: Option<u32>) -> Verdict {
        let case = &kind.cases[case];
        let (version, number) = match self.answer(kind, kind.uri.clone(), case.body.clone(), user).await {
            Ok(answer) => answer,
            Err(verdict) => return verdict,
        };
        match check::expected(&case.answers, version, number) {
            Ok(()) => Verdict { outcome: Outcome::Good, version, status: 200, complaint: String::new() },
            Err(complaint) => Verdict::failed(complaint),
        }
    }

    /// Sends `body` to `uri`. Returns the version that answered and the first number of its output.
    pub async fn answer(
        &mut self,
        kind: &Kind,
        uri: Uri,
        body: Bytes,
        user: Option<u32>,
    ) -> std::result::Result<(u32, f32), Verdict> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = kind.headers.clone();
        if let Some(user) = user {
            request.headers_mut().insert(USER, HeaderValue::from(user));
        }
        let (head, body) = match self.exchange(request).await {
            Ok(answer) => answer,
            Err(broken) => {
                if let Ok(again) = Self::open(self.address).await {
                    *self = again;
                }
                return Err(Verdict::failed(format!("the connection broke: {broken}")));
            }
        };
        if head.status != StatusCode::OK {
            let status = head.status.as_u16();
            let outcome = match status {
                429 | 503 | 504 => Outcome::Refused,
                _ => Outcome::Failed,
            };
            let complaint = format!("{}: {}", head.status, check::start(&body));
            return Err(Verdict { outcome, version: 0, status, complaint });
        }
        let version = head.headers.get(VERSION).and_then(|v| v.to_str().ok()?.parse().ok()).unwrap_or(0);
        kind.shape.first_number(&head.headers, &body).map(|number| (version, number)).map_err(Verdict::failed)
    }

    async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<(hyper::http::response::Parts, Bytes)> {
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        Ok((head, body.collect().await?.to_bytes()))
    }
}
