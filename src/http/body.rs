//! Reading a request's body under its limits.

use crate::model::{Code, Failure};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::EXPECT;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

/// Bytes of a refused body that are still read, and the time for it: a client that is cut off while it sends never reads why.
const DISCARDED: usize = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// Reads and drops what is left of a body that is refused, so that its sender comes to read the answer. One that asked first
/// (`Expect: 100-continue`) has not begun to send.
pub async fn discard(headers: &HeaderMap, mut body: Incoming) {
    if headers.contains_key(EXPECT) {
        return;
    }
    let reading = async {
        let mut left = DISCARDED;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    // Whoever takes longer is cut off after all.
    let _ = tokio::time::timeout(DISCARD_TIME, reading).await;
}

/// Reads a whole body of at most `cap` bytes.
///
/// # Errors
/// `BODY_TOO_LARGE` as soon as it is known, `BODY_TIMEOUT` when it is not all there `within` the time, `DEADLINE_EXCEEDED` when
/// the request's own deadline is sooner, `INVALID_REQUEST` when the connection breaks in the middle.
pub async fn read(
    headers: &HeaderMap,
    mut body: Incoming,
    cap: usize,
    within: Duration,
    deadline: Instant,
) -> Result<Bytes, Failure> {
    let too_large = |size: Option<u64>| {
        let got = size.map_or_else(|| "more".to_owned(), |n| n.to_string());
        Failure::new(Code::BodyTooLarge, format!("the body may have at most {cap} bytes, got {got}"))
    };
    if body.size_hint().lower() > cap as u64 {
        let size = body.size_hint().lower();
        discard(headers, body).await;
        return Err(too_large(Some(size)));
    }
    // Most bodies came in the same packet as their headers: then no timer is made at all.
    let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
    let mut limit: Option<Pin<Box<tokio::time::Sleep>>> = None;
    let body_limit = Instant::now() + within;
    let mut whole: Option<Bytes> = None;
    let mut grown = BytesMut::new();
    let mut next = match first {
        Poll::Ready(frame) => Some(frame),
        Poll::Pending => None,
    };
    loop {
        let frame = if let Some(frame) = next.take() {
            frame
        } else {
            let limit =
                limit.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(body_limit.min(deadline).into())));
            tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = limit.as_mut() => return Err(late(within, deadline)),
            }
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|e| {
            Failure::new(Code::InvalidRequest, "the body ended before its announced length")
                .with_internal(e.to_string())
        })?;
        let Ok(data) = frame.into_data() else { continue };
        let so_far = whole.as_ref().map_or(grown.len(), Bytes::len);
        if so_far + data.len() > cap {
            discard(headers, body).await;
            return Err(too_large(None));
        }
        match whole.take() {
            None if grown.is_empty() => whole = Some(data),
            None => grown.extend_from_slice(&data),
            Some(start) => {
                // Reserving what was announced could be made to cost memory nothing is sent for; growing costs a copy.
                grown.reserve(start.len() + data.len());
                grown.extend_from_slice(&start);
                grown.extend_from_slice(&data);
            }
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok(whole.unwrap_or_else(|| grown.freeze()))
}

fn late(within: Duration, deadline: Instant) -> Failure {
    if Instant::now() >= deadline {
        return Failure::new(Code::DeadlineExceeded, "the deadline passed before the body had been read");
    }
    Failure::new(Code::BodyTimeout, format!("the body was not all there after {} ms", within.as_millis()))
}
