//! Admitting a request and reading its body, under the limits.

use super::answer::Dialect;
use super::body;
use super::data_plane::{DataPlane, RequestKind};
use super::door::{self, Admitted, Arrived};
use super::endpoint::Target;
use super::grpc;
use super::negotiation::{check_accepted, check_media_types};
use super::workers::LARGE;
use crate::budget::Hold;
use crate::codec::grpc::frame;
use crate::codec::inflate::{self, Encoding};
use crate::model::{Code, Failure, quoted};
use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;
use std::time::{Duration, Instant};

const X_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// The body of an admitted request.
#[derive(Debug)]
pub(super) struct AdmittedBody {
    /// Held until the request is answered.
    pub _admitted: Admitted,
    pub deadline: Instant,
    /// The body, or the message of a gRPC call.
    pub body: Bytes,
    /// How the message of a gRPC call was compressed.
    pub encoding: Option<Encoding>,
    /// Counts the body, and everything that is made of it.
    pub hold: Hold,
}

/// Reads the body of a request and admits it. A request takes its place among those in flight only when its body is complete, so
/// that senders of slow or endless bodies take no place from others.
pub(super) async fn admit_and_read(
    plane: &Arc<DataPlane>,
    kind: RequestKind,
    request: Arrived<'_>,
    target: Option<&Target<'_>>,
    dialect: Dialect,
) -> Result<AdmittedBody, Failure> {
    // A body that would be refused now is not read.
    let checked = timeout(plane, request.headers, dialect).and_then(|timeout| {
        let deadline = request.received + timeout;
        door::enter(plane, &request.body.caller.heart, request.sender, request.received, kind, target, deadline)?;
        match dialect {
            Dialect::Http => check_media_types(request.headers)?,
            // Its own media types were checked with the path.
            Dialect::Invocations => check_accepted(request.headers)?,
            Dialect::Grpc => {}
        }
        Ok((deadline, Hold::open(&plane.budget, &request.body.caller.account)?))
    });
    let Arrived { headers, body, received, sender } = request;
    let (deadline, hold) = match checked {
        Ok(checked) => checked,
        Err(failure) => {
            body::discard_request(headers, body).await;
            return Err(failure);
        }
    };
    let max = plane.limits.max_body();
    let framed = if dialect == Dialect::Grpc { max.saturating_add(frame::HEAD) } else { max };
    let body = body::read(headers, body, dialect, framed, plane.limits.body_timeout(), deadline, &hold).await?;
    let admitted = door::admit(plane, kind, sender, received)?;
    if dialect == Dialect::Grpc {
        let (compressed, message) = frame::only_message(body)?;
        let (body, encoding, hold) = inflate_message(plane, headers, compressed, message, hold, deadline).await?;
        return Ok(AdmittedBody { _admitted: admitted, deadline, body, encoding, hold });
    }
    let (body, hold) = match headers.get(CONTENT_ENCODING) {
        None => (body, hold),
        Some(encoding) => {
            inflate_body(plane, &String::from_utf8_lossy(encoding.as_bytes()), body, max, hold, deadline).await?
        }
    };
    Ok(AdmittedBody { _admitted: admitted, deadline, body, encoding: None, hold })
}

/// Inflates a message of gRPC where its frame says that it is compressed.
pub(super) async fn inflate_message(
    plane: &DataPlane,
    headers: &HeaderMap,
    compressed: bool,
    message: Bytes,
    hold: Hold,
    deadline: Instant,
) -> Result<(Bytes, Option<Encoding>, Hold), Failure> {
    if !compressed {
        return Ok((message, None, hold));
    }
    let encoding = frame::encoding(headers.get(grpc::ENCODING).map(HeaderValue::as_bytes))?;
    let max = plane.limits.max_body();
    let (message, hold) = inflate_body(plane, encoding.as_str(), message, max, hold, deadline).await?;
    Ok((message, Some(encoding), hold))
}

/// Inflates a body. What turns out to be large is inflated again on another thread: how much comes out of it is not known before.
async fn inflate_body(
    plane: &DataPlane,
    encoding: &str,
    body: Bytes,
    max: usize,
    hold: Hold,
    deadline: Instant,
) -> Result<(Bytes, Hold), Failure> {
    if body.len() <= LARGE / 4 {
        let most = max.min(LARGE);
        match inflate::inflate_up_to(encoding, &body, most, &hold)? {
            Some(plain) => return Ok((plain, hold)),
            None if most == max => return Err(inflate::too_large(encoding, max)),
            None => {}
        }
    }
    let encoding = encoding.to_owned();
    let inflate = move || inflate::inflate(&encoding, body, max, &hold).map(|plain| (plain, hold));
    plane.workers.run(deadline, inflate).await?
}

/// The timeout that the header `x-request-timeout-ms` asks for, or `grpc-timeout` in a gRPC call, up to the configured maximum. Without
/// the header, the configured default.
pub(super) fn timeout(plane: &DataPlane, headers: &HeaderMap, dialect: Dialect) -> Result<Duration, Failure> {
    if dialect == Dialect::Grpc
        && let Some(timeout) = grpc::timeout(headers)?
    {
        return Ok(timeout.min(plane.limits.max_request_timeout()));
    }
    let Some(value) = headers.get(X_TIMEOUT) else {
        return Ok(plane.limits.request_timeout());
    };
    let text = value.to_str().unwrap_or_default().trim();
    match text.parse::<u64>() {
        Ok(millis) if millis > 0 => Ok(Duration::from_millis(millis).min(plane.limits.max_request_timeout())),
        _ => Err(Failure::new(
            Code::InvalidRequest,
            format!("{X_TIMEOUT}: expected a positive number of milliseconds, got {}", quoted(text)),
        )),
    }
}
