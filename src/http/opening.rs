//! The start of a connection: TLS, and which protocol it speaks.

use super::activity::Activity;
use super::connection::Limits;
use super::handshake::{Outcome, Secure, Secured};
use super::socket::{Socket, Stream};
use super::wire::Wire;
use crate::access::ClientCertificate;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// The first byte of a TLS connection: a record with a handshake message (RFC 8446, section 5.1).
const TLS_RECORD: u8 = 22;
/// How long the answer to a client with the wrong protocol may take.
const TELL_TIME: Duration = Duration::from_secs(2);
/// At most one message about such clients in this time.
const TELL_LOG: Duration = Duration::from_mins(1);

/// A connection on which requests can arrive.
pub(super) struct Opened {
    pub socket: Socket,
    pub is_http2: bool,
    /// Who the client is, if it proved that.
    pub client: Option<Arc<ClientCertificate>>,
}

/// What a connection begins with.
enum Start {
    Http1,
    Http2,
    Tls,
}

/// Opens a connection. `None` when the client has closed it, or has not said what the plane expects.
pub(super) async fn open(
    stream: TcpStream,
    activity: &Arc<Activity>,
    limits: Limits,
    secure: Option<&Secure>,
) -> Option<Opened> {
    let start = start(&stream).await.ok()?;
    let wire = Wire::new(stream, Arc::clone(activity), limits.write);
    let (stream, is_http2, client) = match (secure, start) {
        (None, Start::Http1) => (Stream::Plain(wire), false, None),
        (None, Start::Http2) => (Stream::Plain(wire), true, None),
        (Some(secure), Start::Tls) => {
            let Secured { stream, is_http2, client } = secure.handshake(wire).await.ok()?;
            (Stream::Tls(stream), is_http2, client)
        }
        (None, Start::Tls) => {
            tell(wire, "this port speaks plain HTTP, and the client began TLS: use http://, or configure TLS here")
                .await;
            return None;
        }
        (Some(secure), Start::Http1 | Start::Http2) => {
            secure.count(Outcome::NotTls);
            tell(wire, "this port speaks TLS, and the client sent plain HTTP: use https://").await;
            return None;
        }
    };
    Some(Opened { socket: Socket::new(stream, Arc::clone(activity), is_http2), is_http2, client })
}

/// Answers a client that speaks another protocol, so that whoever looks at the bytes reads why.
async fn tell(mut wire: Wire, message: &str) {
    log_sometimes(message);
    let body = serde_json::json!({"error": message, "code": "INVALID_REQUEST"}).to_string();
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let telling = async {
        wire.write_all(answer.as_bytes()).await?;
        wire.shutdown().await
    };
    // The client may have gone.
    let _ = tokio::time::timeout(TELL_TIME, telling).await;
}

fn log_sometimes(message: &str) {
    static LOGGED: Mutex<Option<Instant>> = Mutex::new(None);
    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    if logged.is_none_or(|at| at.elapsed() >= TELL_LOG) {
        *logged = Some(Instant::now());
        tracing::warn!("{message}");
    }
}

/// Whether the connection starts with TLS, or with the HTTP/2 preface ("PRI * HTTP/2.0…"). No HTTP/1 method starts with "PRI".
async fn start(stream: &TcpStream) -> io::Result<Start> {
    const PREFACE: &[u8] = b"PRI";
    let mut start = [0u8; 3];
    loop {
        let n = stream.peek(&mut start).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if start[0] == TLS_RECORD {
            return Ok(Start::Tls);
        }
        if start[..n] != PREFACE[..n] {
            return Ok(Start::Http1);
        }
        if n == PREFACE.len() {
            return Ok(Start::Http2);
        }
        // One or two bytes of the preface have arrived. Those keep the socket readable, so only polling finds the third.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
