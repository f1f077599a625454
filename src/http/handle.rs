//! One request, from its headers to its answer.

use super::activity::Activity;
use super::answer::{self, Dialect, HttpResponse};
use super::body::UnreadBody;
use super::connections::OpenConnection;
use super::data_plane::{DataPlane, Task};
use super::door::{Arrived, Sender};
use super::endpoint::{Endpoint, Refused};
use super::io_health::Heart;
use super::peers::{Peer, network};
use super::predict::Protocol;
use super::{explain, feedback, grpc, info, invocations, predict, traced, triton};
use crate::access::{Identity, Remembered};
use crate::budget::{Account, Hold};
use crate::callers;
use crate::model::{Code, Failure, RequestId};
use bytes::Bytes;
use http::header::{ALLOW, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Request, Version};
use hyper::body::Incoming;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Instant;

/// The sender of a connection's requests.
#[derive(Debug)]
pub(super) struct Caller {
    plane: Arc<DataPlane>,
    activity: Arc<Activity>,
    pub(super) address: IpAddr,
    pub(super) peer: Peer,
    /// What the connection's requests hold of the memory for requests.
    pub(super) account: Account,
    /// The heartbeat of the connection's thread.
    pub(super) heart: Arc<Heart>,
    /// The caller of requests that do not prove a name.
    by_address: Arc<callers::Caller>,
    /// The caller of the last request that proved a name: most connections have one.
    by_name: Mutex<Option<(Arc<Identity>, Arc<callers::Caller>)>>,
    /// What the credentials of the last request proved.
    pub(super) remembered: Remembered,
}

impl Caller {
    pub(super) fn new(
        plane: &Arc<DataPlane>,
        connection: &OpenConnection,
        address: IpAddr,
        heart: &Arc<Heart>,
    ) -> Caller {
        let (plane, activity) = (Arc::clone(plane), Arc::clone(&connection.activity));
        let account = plane.budget.connection(Some(address));
        let by_address = plane.callers().get(callers::Key::Address(network(address)), Instant::now());
        let (heart, by_name) = (Arc::clone(heart), Mutex::new(None));
        let remembered = Remembered::default();
        Caller {
            address,
            peer: plane.peers.of(address),
            account,
            heart,
            by_address,
            by_name,
            remembered,
            plane,
            activity,
        }
    }

    /// The caller of a request, by name where it proved one.
    fn caller_of(&self, identity: Option<&Arc<Identity>>, now: Instant) -> Arc<callers::Caller> {
        let Some(identity) = identity else { return Arc::clone(&self.by_address) };
        let mut last = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, caller)) = &*last
            && (Arc::ptr_eq(known, identity) || known.name == identity.name)
        {
            return Arc::clone(caller);
        }
        let caller = self.plane.callers().get(callers::Key::Name(identity.name.as_str().into()), now);
        *last = Some((Arc::clone(identity), Arc::clone(&caller)));
        caller
    }

    /// The body of the current request is complete.
    pub(super) fn body_is_read(&self) {
        self.activity.body_is_read();
    }
}

/// Answers one request. A panic in it is answered with 500, and the connection stays open.
pub(super) async fn handle(caller: Arc<Caller>, request: Request<Incoming>, received: Instant) -> HttpResponse {
    let (parts, incoming) = request.into_parts();
    let body = UnreadBody { incoming, caller: &caller };
    let mut response = or_500(&caller.plane, &parts.headers, pin!(answer(&caller.plane, &parts, body, received))).await;
    if !caller.plane.limits.version_headers() {
        answer::hide_served_by(response.headers_mut());
    }
    response
}

/// Awaits the answer to a request. If it panics, the panic is counted and logged, and the answer is 500.
///
/// The future is pinned by the caller, so this neither moves nor allocates it. What it shares with other requests is safe to use
/// after a panic: atomics, channels, and guards that are released while the stack unwinds.
pub(super) async fn or_500(
    plane: &DataPlane,
    headers: &HeaderMap,
    mut answering: Pin<&mut impl Future<Output = HttpResponse>>,
) -> HttpResponse {
    poll_fn(|cx| {
        catch_unwind(AssertUnwindSafe(|| answering.as_mut().poll(cx))).unwrap_or_else(|panic| {
            plane.report_panic(Task::Request, &*panic);
            let failure = Failure::new(Code::Internal, "an internal error; the server's log has the cause");
            let mut response = dialect_of(headers).error(&failure);
            answer::set_request_id(response.headers_mut(), &id_or_new(headers));
            Poll::Ready(response)
        })
    })
    .await
}

async fn answer(plane: &Arc<DataPlane>, parts: &Parts, body: UnreadBody<'_>, received: Instant) -> HttpResponse {
    let parsed = plane
        .check_head(parts.version, &parts.headers)
        .map_err(Refused::from)
        .and_then(|()| Endpoint::parse(&parts.method, parts.uri.path()))
        .and_then(|endpoint| {
            if matches!(endpoint, Endpoint::Grpc(_)) {
                grpc::check(parts)?;
            }
            let identity = plane.check_caller(&endpoint, parts, &body.caller.remembered)?;
            let sender = Sender::new(body.caller.caller_of(identity.as_ref(), received), &parts.headers)?;
            Ok((endpoint, sender, identity))
        });
    let headers = &parts.headers;
    match parsed {
        Ok((Endpoint::Infer(target), sender, _)) => {
            let trace = traced::begin(plane, parts, body.caller.address, received);
            let arrived = Arrived { headers, body, received, sender: &sender };
            predict::predict(plane, arrived, Protocol::Oip, Some(&target), None, trace).await
        }
        Ok((Endpoint::TfsPredict(target), sender, _)) => {
            let trace = traced::begin(plane, parts, body.caller.address, received);
            let arrived = Arrived { headers, body, received, sender: &sender };
            predict::predict(plane, arrived, Protocol::Tfs, Some(&target), None, trace).await
        }
        Ok((Endpoint::Explain(target), sender, _)) => {
            explain::explain(plane, Arrived { headers, body, received, sender: &sender }, &target).await
        }
        Ok((Endpoint::Feedback(model), sender, _)) => {
            let mut response =
                feedback::feedback(plane, Arrived { headers, body, received, sender: &sender }, &model).await;
            answer::set_request_id(response.headers_mut(), &id_or_new(&parts.headers));
            response
        }
        Ok((Endpoint::Invocations, sender, identity)) => {
            let trace = traced::begin(plane, parts, body.caller.address, received);
            let arrived = Arrived { headers, body, received, sender: &sender };
            invocations::invocations(plane, arrived, identity.as_deref(), trace).await
        }
        Ok((Endpoint::RepositoryIndex, _, identity)) => {
            let account = &body.caller.account;
            let mut response = triton::repository_index(plane, headers, body, received, identity.as_deref())
                .await
                .unwrap_or_else(|failure| {
                    plane.count_refusal(failure.code);
                    answer::error(&failure)
                });
            hold_answer(plane, account, &mut response);
            answer::set_request_id(response.headers_mut(), &id_or_new(&parts.headers));
            response
        }
        Ok((Endpoint::Grpc(call), sender, identity)) => {
            let UnreadBody { incoming, caller } = body;
            grpc::answer(plane, call, grpc::Asked { caller, parts, incoming, sender, identity, received }).await
        }
        Ok((endpoint, _, identity)) => {
            let mut response =
                info::answer(plane, &endpoint, identity.as_deref()).unwrap_or_else(|failure| answer::error(&failure));
            hold_answer(plane, &body.caller.account, &mut response);
            answer::set_request_id(response.headers_mut(), &id_or_new(&parts.headers));
            response
        }
        Err(Refused { failure, allow }) => {
            plane.count_refusal(failure.code);
            super::body::discard_request(&parts.headers, body).await;
            let is_http2 = parts.version >= Version::HTTP_2;
            let dialect = if is_http2 { dialect_of(&parts.headers) } else { Dialect::Http };
            let mut response = dialect.error(&failure);
            if let Some(allow) = allow {
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
            }
            answer::set_request_id(response.headers_mut(), &id_or_new(&parts.headers));
            response
        }
    }
}

/// Counts an answer until it is written. A short one is sent whether or not there is memory: probes must be answered.
fn hold_answer(plane: &DataPlane, account: &Account, response: &mut HttpResponse) {
    const SHORT: usize = 4 << 10;
    let bytes = response.body().whole().map_or(0, Bytes::len);
    let counted = Hold::open(&plane.budget, account).and_then(|hold| hold.grow(bytes).map(|()| hold));
    match counted {
        Ok(hold) => response.body_mut().hold(hold),
        Err(_) if bytes <= SHORT => {}
        Err(failure) => {
            plane.count_refusal(failure.code);
            *response = answer::error(&failure);
        }
    }
}

/// How failures are told before the endpoint is known.
fn dialect_of(headers: &HeaderMap) -> Dialect {
    if grpc::is_call(headers) { Dialect::Grpc } else { Dialect::Http }
}

fn id_or_new(headers: &HeaderMap) -> RequestId {
    answer::caller_id(headers).unwrap_or_else(RequestId::generate)
}
