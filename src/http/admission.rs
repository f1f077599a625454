//! Admitting a request and reading its body, under the limits.

use super::body;
use super::data_plane::{DataPlane, RequestKind};
use super::door::{self, Admitted, Arrived};
use super::endpoint::Target;
use super::negotiation::check_media_types;
use super::workers::LARGE;
use crate::budget::Hold;
use crate::codec::inflate;
use crate::model::{Code, Failure, quoted};
use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, HeaderName};
use std::sync::Arc;
use std::time::{Duration, Instant};

const X_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// The body of an admitted request.
#[derive(Debug)]
pub(super) struct AdmittedBody {
    /// Held until the request is answered.
    pub _admitted: Admitted,
    pub deadline: Instant,
    pub body: Bytes,
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
) -> Result<AdmittedBody, Failure> {
    // A body that would be refused now is not read.
    let checked = timeout(plane, request.headers).and_then(|timeout| {
        let deadline = request.received + timeout;
        door::enter(plane, &request, kind, target, deadline)?;
        check_media_types(request.headers)?;
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
    let body = body::read(headers, body, max, plane.limits.body_timeout(), deadline, &hold).await?;
    let admitted = door::admit(plane, kind, sender, received)?;
    let (body, hold) = match headers.get(CONTENT_ENCODING) {
        None => (body, hold),
        Some(encoding) => {
            inflate_body(plane, &String::from_utf8_lossy(encoding.as_bytes()), body, max, hold, deadline).await?
        }
    };
    Ok(AdmittedBody { _admitted: admitted, deadline, body, hold })
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

/// The timeout that the header `x-request-timeout-ms` asks for, up to the configured maximum. Without the header, the configured
/// default.
fn timeout(plane: &DataPlane, headers: &HeaderMap) -> Result<Duration, Failure> {
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
