//! A client of the admin API. It opens a connection for every call, because these calls are not measured.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::wrong::{Result, While, Wrong};

/// A server's admin plane.
#[derive(Debug, Clone, Copy)]
pub struct Admin(pub SocketAddr);

impl Admin {
    pub async fn promote(&self, model: &str, version: u32) -> Result<()> {
        let body = json!({"version": version.to_string(), "reason": "load test"});
        self.call(Method::POST, &format!("/api/v1/models/{model}:promote"), Some(&body)).await
    }

    pub async fn traffic(&self, model: &str, document: &Value) -> Result<()> {
        self.call(Method::PUT, &format!("/api/v1/models/{model}/traffic"), Some(document)).await
    }

    pub async fn load(&self, model: &str) -> Result<()> {
        self.call(Method::POST, &format!("/v2/repository/models/{model}/load"), None).await
    }

    pub async fn unload(&self, model: &str) -> Result<()> {
        self.call(Method::POST, &format!("/v2/repository/models/{model}/unload"), None).await
    }

    pub async fn ready(&self) -> Result<()> {
        self.call(Method::GET, "/readyz", None).await
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<()> {
        let what = || format!("{method} {path}");
        let stream = TcpStream::connect(self.0).await.while_doing(what)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.while_doing(what)?;
        let connection = tokio::spawn(connection);
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method.clone())
            .uri(path)
            // The admin port refuses names that it does not know, and takes any address.
            .header(HOST, self.0.to_string())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .while_doing(what)?;
        let answer = sender.send_request(request).await.while_doing(what)?;
        let status = answer.status();
        let body = answer.into_body().collect().await.while_doing(what)?.to_bytes();
        connection.abort();
        if status.is_success() {
            return Ok(());
        }
        Err(Wrong::new(format!("{}: {status}: {}", what(), crate::check::start(&body))))
    }
}
