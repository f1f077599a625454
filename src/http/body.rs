//! Reading a request's body under its limits.

use super::answer::{Dialect, HEADER_LENGTH};
use super::handle::Caller;
use super::joined::Joined;
use super::peers::PROMPT;
use crate::budget::Hold;
use crate::model::{Code, Failure};
use bytes::Bytes;
use http::HeaderMap;
use http::header::EXPECT;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// The body of a request, and who sends it.
#[derive(Debug)]
pub(super) struct UnreadBody<'a> {
    pub incoming: Incoming,
    pub caller: &'a Arc<Caller>,
}

/// How much of a refused body is still read, and for how long.
const MAX_DISCARDED: usize = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// Reads and drops the rest of a refused body, up to a limit. A client whose connection closes while it still sends does not read
/// the answer.
pub(crate) async fn discard<B: Body<Data = Bytes> + Unpin>(body: &mut B) {
    let reading = async {
        let mut left = MAX_DISCARDED;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    // After the time limit the connection closes while the client sends.
    let _ = tokio::time::timeout(DISCARD_TIME, reading).await;
}

/// Discards the body of a request. A client that sent `Expect: 100-continue` has not sent it yet.
pub(super) async fn discard_request(headers: &HeaderMap, mut body: UnreadBody<'_>) {
    if !headers.contains_key(EXPECT) {
        discard(&mut body.incoming).await;
    }
}

/// Reads a whole body of at most `max` bytes.
///
/// # Errors
/// `BODY_TOO_LARGE` as soon as the size is known to exceed `max`, `BODY_TIMEOUT` if the body is not complete after `timeout`,
/// `TOO_MANY_REQUESTS` if it is not complete soon and too many others are not complete either, `DEADLINE_EXCEEDED` if the request's own deadline comes first, those of
/// [`Hold::room`] if there is no memory for it, `INVALID_REQUEST` if the
/// connection ends too early or the transfer encoding is broken.
pub(super) async fn read(
    headers: &HeaderMap,
    mut unread: UnreadBody<'_>,
    dialect: Dialect,
    max: usize,
    timeout: Duration,
    deadline: Instant,
    hold: &Hold,
) -> Result<Bytes, Failure> {
    let too_large = |size: Option<u64>| {
        let got = size.map_or_else(|| "more".to_owned(), |n| n.to_string());
        Failure::new(Code::BodyTooLarge, format!("the body may have at most {max} bytes, got {got}"))
    };
    let announced = unread.incoming.size_hint().lower();
    if announced > max as u64 {
        discard_request(headers, unread).await;
        return Err(too_large(Some(announced)));
    }
    // Memory is counted as it arrives and not as it is announced: the client may never send that much. A body that certainly does not fit is
    // refused before it is sent.
    let exact = unread.incoming.size_hint().exact().is_some();
    let most = if exact { usize::try_from(announced).unwrap_or(max) } else { max };
    if announced > 0 {
        let fits = hold.grow(usize::try_from(announced).unwrap_or(usize::MAX));
        hold.shrink_to(0);
        if let Err(failure) = fits {
            discard_request(headers, unread).await;
            return Err(failure);
        }
    }
    let caller = unread.caller;
    let body = &mut unread.incoming;
    // Most bodies arrive in the same packet as their headers. Those need no timer.
    let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut *body).poll_frame(cx))).await;
    let mut next = match first {
        Poll::Ready(frame) => Some(frame),
        Poll::Pending => None,
    };
    let began = Instant::now();
    let time_limit = (began + timeout).min(deadline);
    // Taken when the body is not complete soon.
    let mut unfinished = None;
    let mut timer: Option<Pin<Box<tokio::time::Sleep>>> = None;
    let mut joined = match dialect {
        Dialect::Http | Dialect::Invocations => Joined::new(most, headers.get(HEADER_LENGTH)),
        Dialect::Grpc => Joined::of_frame(most),
    };
    loop {
        let frame = if let Some(frame) = next.take() {
            frame
        } else {
            let first_limit = time_limit.min(began + PROMPT);
            let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(first_limit.into())));
            tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = timer.as_mut() => {
                    if Instant::now() >= time_limit {
                        return Err(too_slow(timeout, deadline));
                    }
                    if unfinished.is_none() {
                        match caller.peer.unfinished() {
                            Ok(place) => unfinished = Some(place),
                            Err(failure) => {
                                discard_request(headers, unread).await;
                                return Err(failure);
                            }
                        }
                    }
                    timer.as_mut().reset(time_limit.into());
                    continue;
                }
            }
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|e| {
            Failure::new(Code::InvalidRequest, "the body is incomplete, or its transfer encoding is broken")
                .with_internal(e.to_string())
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if joined.len() + data.len() > max {
            discard_request(headers, unread).await;
            return Err(too_large(None));
        }
        if let Err(failure) = joined.push(data, hold) {
            drop(joined);
            hold.shrink_to(0);
            discard_request(headers, unread).await;
            return Err(failure);
        }
        if body.is_end_stream() {
            break;
        }
    }
    caller.body_is_read();
    Ok(joined.finish())
}

fn too_slow(timeout: Duration, deadline: Instant) -> Failure {
    if Instant::now() >= deadline {
        return Failure::new(Code::DeadlineExceeded, "the deadline passed before the body was complete");
    }
    Failure::new(Code::BodyTimeout, format!("the body was not complete after {} ms", timeout.as_millis()))
}
