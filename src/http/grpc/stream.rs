//! `ModelStreamInfer`: predictions one after another on one stream. Each is a prediction of its own, with its own deadline, place and record. One
//! that fails is answered with a message that says so, and the stream goes on.

use super::super::admission::{self, AdmittedBody};
use super::super::answer::{self, Dialect, HttpResponse};
use super::super::answer_body::AnswerBody;
use super::super::data_plane::{DataPlane, RequestKind};
use super::super::door::{self, Sender as Requester};
use super::super::handle::Caller;
use super::super::joined::Joined;
use super::super::peers::PROMPT;
use super::super::predict::{self, Call, Known, Protocol};
use super::super::traced;
use super::messages::{Messages, Sender};
use super::{Asked, set_headers, timeout};
use crate::access::{Identity, Permission};
use crate::budget::Hold;
use crate::codec::grpc::frame::{self, HEAD};
use crate::model::{Code, Failure, RequestId};
use bytes::{Buf as _, Bytes, BytesMut};
use http::Response;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest time without a message. A client that has nothing to ask may open a new stream later.
const MOST_IDLE: Duration = Duration::from_mins(5);
/// How often a waiting stream looks whether the server stops.
const LOOK: Duration = Duration::from_millis(250);

/// Answers with the stream of answers.
pub(super) fn open(plane: &Arc<DataPlane>, asked: Asked<'_>) -> HttpResponse {
    let Asked { caller, parts, incoming, sender, received, .. } = asked;
    let id = answer::caller_id(&parts.headers).unwrap_or_else(RequestId::generate);
    let opened = plane.streams.enter(caller.address).and_then(|held| {
        // Without a timeout a stream has no end. With one it is the client's choice: each message has a limit of its own.
        Ok((held, timeout(&parts.headers)?.map(|timeout| received + timeout)))
    });
    let mut response = match opened {
        Err(failure) => {
            plane.count_refusal(failure.code);
            Dialect::Grpc.error(&failure)
        }
        Ok((held, until)) => {
            let mut stream = Stream {
                plane: Arc::clone(plane),
                caller: Arc::clone(caller),
                parts: parts.clone(),
                requester: sender,
                incoming,
                rest: Bytes::new(),
                until,
            };
            let messages = Messages::new(plane, |sender| async move {
                let _held = held;
                stream.run(&sender).await
            });
            let mut response = Response::new(AnswerBody::of_messages(messages));
            set_headers(response.headers_mut());
            response
        }
    };
    answer::set_request_id(response.headers_mut(), &id);
    response
}

/// Returns when the server stops.
pub(super) async fn stopped(plane: &DataPlane) {
    while !plane.is_stopping() {
        tokio::time::sleep(LOOK).await;
    }
}

struct Stream {
    plane: Arc<DataPlane>,
    caller: Arc<Caller>,
    /// Those of the stream count for each of its requests.
    parts: http::request::Parts,
    requester: Requester,
    incoming: Incoming,
    /// Bytes after the last message.
    rest: Bytes,
    /// The deadline of the stream.
    until: Option<Instant>,
}

/// A message as it came.
struct Arrived {
    compressed: bool,
    message: Bytes,
    hold: Hold,
    /// When its first byte was there.
    received: Instant,
}

impl Stream {
    async fn run(&mut self, sender: &Sender) -> Result<(), Failure> {
        while let Some(arrived) = self.next().await? {
            let response = self.answer(arrived).await;
            if sender.send(response.into_body().into_bytes()).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Answers one message, also where it fails.
    async fn answer(&self, arrived: Arrived) -> HttpResponse {
        let trace = traced::begin(&self.plane, &self.parts, self.caller.address, arrived.received);
        let mut known = Known { id: None, trace };
        let response = match self.admit(arrived).await {
            Ok((admitted, received, identity)) => {
                let call = Call {
                    headers: &self.parts.headers,
                    received,
                    sender: &self.requester,
                    protocol: Protocol::GrpcStream,
                    target: None,
                    identity: identity.as_deref(),
                };
                predict::answer_admitted(&self.plane, &call, admitted, &mut known).await
            }
            Err(failure) => {
                self.plane.count_refusal(failure.code);
                Err(failure)
            }
        };
        let Known { id, mut trace } = known;
        let mut response = response.unwrap_or_else(|failure| {
            traced::failed(&mut trace, &failure);
            Protocol::GrpcStream.error(&failure, id.as_ref())
        });
        if let Some(trace) = trace {
            let id = id.unwrap_or_else(RequestId::generate);
            traced::end(trace, Protocol::GrpcStream.dialect(), &id, &mut response);
        }
        response
    }

    async fn admit(&self, arrived: Arrived) -> Result<(AdmittedBody, Instant, Option<Arc<Identity>>), Failure> {
        let Stream { plane, parts, requester, .. } = self;
        // As for each request over HTTP: a token may have been revoked or expired since the last message.
        let identity = plane.check_permission(Permission::AnyIdentity, None, parts, &self.caller.remembered)?;
        let Arrived { compressed, message, hold, received } = arrived;
        let timeout = plane.limits.request_timeout();
        let deadline = self.until.map_or(received + timeout, |until| until.min(received + timeout));
        let heart = &self.caller.heart;
        door::enter(plane, heart, requester, received, RequestKind::Predict, None, deadline)?;
        let admitted = door::admit(plane, RequestKind::Predict, requester, received)?;
        let (body, encoding, hold) =
            admission::inflate_message(plane, &parts.headers, compressed, message, hold, deadline).await?;
        Ok((AdmittedBody { _admitted: admitted, deadline, body, encoding, hold }, received, identity))
    }

    /// Reads the next message. `None` when the client has sent its last one.
    ///
    /// # Errors
    /// Those that end the stream: bytes that are not frames, a message that is too large or too slow, no message for long, the stream's
    /// deadline, a stop of the server.
    async fn next(&mut self) -> Result<Option<Arrived>, Failure> {
        if self.rest.is_empty() {
            match self.first_part().await? {
                Some(part) => self.rest = part,
                None => return Ok(None),
            }
        }
        let received = Instant::now();
        let Stream { plane, caller, incoming, rest, until, .. } = self;
        let hold = Hold::open(&plane.budget, &caller.account)?;
        let timeout = plane.limits.body_timeout();
        let limit = until.map_or(received + timeout, |until| until.min(received + timeout));
        let mut parts = Parts { incoming, limit, timeout };
        // Taken when the message is not complete soon.
        let mut unfinished = None;
        let prompt = received + PROMPT;
        let mut beginning = BytesMut::new();
        let head = loop {
            if beginning.is_empty()
                && let Some(head) = frame::head(rest)?
            {
                break head;
            }
            // Few clients split the five bytes.
            beginning.extend_from_slice(&std::mem::take(rest));
            if let Some(head) = frame::head(&beginning)? {
                *rest = std::mem::take(&mut beginning).freeze();
                break head;
            }
            *rest = parts.next().await?;
        };
        let max = plane.limits.max_body();
        if head.length > max {
            let message = format!("a message may have at most {max} bytes, got {}", head.length);
            return Err(Failure::new(Code::BodyTooLarge, message));
        }
        let whole = head.length + HEAD;
        let mut joined = Joined::of_frame(whole);
        loop {
            let missing = whole - joined.len();
            let part = rest.split_to(missing.min(rest.len()));
            joined.push(part, &hold)?;
            if joined.len() == whole {
                break;
            }
            if unfinished.is_none() && Instant::now() >= prompt {
                unfinished = Some(caller.peer.unfinished()?);
            }
            *rest = if unfinished.is_some() {
                parts.next().await?
            } else {
                match tokio::time::timeout_at(prompt.into(), parts.next()).await {
                    Ok(part) => part?,
                    // Looks again whether it takes a place.
                    Err(_) => Bytes::new(),
                }
            };
        }
        let mut message = joined.finish();
        message.advance(HEAD);
        Ok(Some(Arrived { compressed: head.compressed, message, hold, received }))
    }

    /// Waits for the first bytes of a message.
    async fn first_part(&mut self) -> Result<Option<Bytes>, Failure> {
        let began = Instant::now();
        let limit = self.until.map_or(began + MOST_IDLE, |until| until.min(began + MOST_IDLE));
        let reading = async {
            loop {
                match self.incoming.frame().await {
                    None => return Ok(None),
                    Some(Err(error)) => return Err(cut_off(&error)),
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) if !data.is_empty() => return Ok(Some(data)),
                        _ => {}
                    },
                }
            }
        };
        tokio::select! {
            biased;
            part = reading => part,
            () = stopped(&self.plane) => Err(Failure::new(Code::Draining, "the server is stopping")),
            () = tokio::time::sleep_until(limit.into()) => Err(if self.until.is_some_and(|until| until <= limit) {
                Failure::new(Code::DeadlineExceeded, "the deadline of the stream passed")
            } else {
                let seconds = MOST_IDLE.as_secs();
                Failure::new(Code::NotReady, format!("the stream had no message for {seconds} s, which is the limit: open another one"))
            }),
        }
    }
}

/// The parts of a message that has begun.
struct Parts<'a> {
    incoming: &'a mut Incoming,
    limit: Instant,
    timeout: Duration,
}

impl Parts<'_> {
    async fn next(&mut self) -> Result<Bytes, Failure> {
        loop {
            let Ok(next) = tokio::time::timeout_at(self.limit.into(), self.incoming.frame()).await else {
                let millis = self.timeout.as_millis();
                return Err(Failure::new(Code::BodyTimeout, format!("a message was not complete after {millis} ms")));
            };
            match next {
                None => return Err(Failure::new(Code::InvalidRequest, "the stream ended within a message")),
                Some(Err(error)) => return Err(cut_off(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(data);
                    }
                }
            }
        }
    }
}

fn cut_off(error: &hyper::Error) -> Failure {
    Failure::new(Code::ClientClosed, "the stream broke off").with_internal(error.to_string())
}
