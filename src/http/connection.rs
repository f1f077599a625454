//! One connection: its protocol, its time limits, and its end.

use super::activity::{Activity, Stage, Stream};
use super::connections::{OpenConnection, Reason};
use super::data_plane::framing_is_clear;
use super::handshake::{Outcome, Secure};
use super::opening::{self, Opened};
use super::written::Written;
use crate::machine;
use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::{Future, poll_fn};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// A reader that takes fewer bytes than this within the write time limit makes no progress. Bytes for a slow link, but too few to keep
/// a large answer in memory.
const MIN_PROGRESS: u64 = 16 << 10;
/// The longest time until a connection closes after it was asked to, while no request is in progress. With HTTP/2 it takes a round trip.
const CLOSE_TIME: Duration = Duration::from_secs(1);
/// At the end of a stop, a connection that was opened or used within this time is not closed yet.
const LAST_CALL: Duration = Duration::from_millis(500);
/// The most bytes of a request that HTTP/1 holds before they are parsed or taken, as hyper has it today.
const MAX_BUFFER: usize = 408 << 10;
/// How often a connection that is about to close looks whether it is idle.
const CLOSE_TICK: Duration = Duration::from_millis(50);

/// The limits of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For the first byte and TLS, and from the first byte of a request's headers to their end.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// For a part of an answer that the client takes. A client that takes too little in this time is disconnected.
    pub write: Duration,
    /// The most requests at the same time on a connection of HTTP/2.
    pub max_streams: u32,
    /// The bytes that all requests together may hold.
    pub memory: usize,
}

/// What a client of HTTP/2 may send before it was read. Nobody counts these bytes, so they are a small part of the memory for requests. Bodies
/// are read as they arrive: only a thread that is held for long leaves them there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Windows {
    connection: u32,
    /// Half of the connection's, so that one stream that is not read does not stop the others.
    stream: u32,
}

impl Windows {
    /// The protocol's own, which a connection cannot go below.
    const LEAST: u32 = 65_535;
    /// A client at a distance of 50 ms can send 20 MB/s.
    const MOST: u32 = 1 << 20;
    /// A connection may send this part of the memory.
    const PART: usize = 16;

    fn of(memory: usize) -> Windows {
        let part = u32::try_from(memory / Windows::PART).unwrap_or(Windows::MOST);
        let connection = part.clamp(Windows::LEAST, Windows::MOST);
        Windows { connection, stream: (connection / 2).max(Windows::LEAST) }
    }
}

/// The smallest that the protocol allows, so that frames of several streams alternate.
const FRAME: u32 = 16 << 10;
/// More than `max_headers` by default, so that a request with larger headers reads an error in words. The protocol itself refuses it beyond
/// this.
const HEADERS: u32 = 128 << 10;
/// A client that does not answer a ping in this time is gone, and so are its requests. The system would notice after a quarter of an hour.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How often clients are asked: at most this.
const PING_EVERY: Duration = Duration::from_mins(1);

tokio::task_local! {
    /// The stream of HTTP/2 that the current task answers.
    static STREAM: Arc<Stream>;
}

/// Serves a connection until it ends, breaks its limits, or the server stops. With `secure` it begins with a TLS handshake. `answer` answers
/// one request; it is given the time at which the request arrived. A client that proved its identity stands as an
/// `Arc<access::ClientCertificate>` among the extensions of each request.
pub(crate) async fn serve<A, F, B>(
    stream: TcpStream,
    open: OpenConnection,
    limits: Limits,
    secure: Option<Arc<Secure>>,
    answer: A,
) where
    A: Fn(Request<Incoming>, Instant) -> F + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let activity = &open.activity;
    // Small answers are sent at once. If setting the option fails, the connection still works.
    let _ = stream.set_nodelay(true);
    let closed = async {
        // There is no request yet, so there is nothing to finish.
        while activity.stage() != Stage::CloseIdle && !activity.take_eviction() {
            activity.told().await;
        }
        // The first bytes of a new connection may be on their way.
        let opened = activity.idle_for(Instant::now());
        tokio::time::sleep(LAST_CALL.saturating_sub(opened)).await;
    };
    let socket = stream.as_raw_fd();
    // Without an address the client has closed already.
    let slot = secure.as_ref().and_then(|secure| Some(secure.slot(stream.peer_addr().ok()?.ip())));
    let crowded_out = async {
        match &slot {
            Some(slot) => slot.closed().await,
            None => std::future::pending().await,
        }
    };
    let opening = opening::open(stream, activity, limits, secure.as_deref());
    let reason = tokio::select! {
        opened = tokio::time::timeout(limits.head, opening) => match opened {
            Ok(Some(opened)) => Ok(opened),
            Ok(None) => return,
            Err(_) if secure.is_some() => Err(Reason::Handshake),
            Err(_) => Err(Reason::Headers),
        },
        () = crowded_out => Err(Reason::Handshake),
        () = closed => {
            if activity.stage() == Stage::CloseIdle {
                return;
            }
            Err(Reason::Room)
        }
    };
    drop(slot);
    let Opened { socket: io, is_http2: is_h2, client } = match reason {
        Ok(opened) => opened,
        Err(reason) => {
            open.connections.count_closed(reason);
            if let Some(secure) = &secure {
                secure.count(Outcome::Closed);
            }
            return;
        }
    };
    let finds_end = io.finds_end();
    let io = TokioIo::new(io);
    let counted = Arc::clone(activity);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let received = Instant::now();
        if let Some(client) = &client {
            request.extensions_mut().insert(Arc::clone(client));
        }
        let guard = counted.begin(!request.body().is_end_stream(), received);
        let activity = Arc::clone(&counted);
        let is_http1 = request.version() < Version::HTTP_2;
        // What follows a body of two readings is not read as a request.
        let must_close = is_http1 && !framing_is_clear(request.headers());
        let answering = answer(request, received);
        async move {
            let mut response = answering.await;
            // HTTP/2 has no such header. There a frame announces the end of the connection.
            if must_close || is_http1 && (activity.is_half_closed() || activity.stage() != Stage::Open) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            let stream = if is_http1 { None } else { STREAM.try_with(Arc::clone).ok() };
            let guard = guard.answer(stream);
            Ok::<_, Infallible>(response.map(|body| Written::new(body, guard)))
        }
    });
    let watch = Watch { open: &open, activity, limits, is_h2, socket };
    if is_h2 {
        activity.set_http2();
        let windows = Windows::of(limits.memory);
        let ping = PING_EVERY.min(limits.idle / 2);
        let connection = http2::Builder::new(Streams)
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.max_streams)
            .max_header_list_size(HEADERS)
            // Each of these is the default of today: a version of hyper with others should not change what strangers can do.
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(1024)
            .header_table_size(4 << 10)
            .max_send_buf_size(400 << 10)
            .max_frame_size(FRAME)
            .initial_connection_window_size(windows.connection)
            .initial_stream_window_size(windows.stream)
            .keep_alive_interval(ping)
            .keep_alive_timeout(PING_TIMEOUT.min(ping))
            .serve_connection(io, service);
        watch.run(connection, http2::Connection::graceful_shutdown).await;
    } else {
        let connection = http1::Builder::new()
            // The watch enforces this limit. It needs no timer per request, and treats idle connections differently.
            .header_read_timeout(None)
            // The number of headers has hyper's limit of 100: another one would cost an allocation for each request.
            .max_buf_size(MAX_BUFFER)
            // Otherwise hyper makes a new buffer to look for the end of the connection while a request, which still uses the old one, is
            // answered.
            .half_close(finds_end)
            .serve_connection(io, service);
        watch.run(connection, http1::Connection::graceful_shutdown).await;
    }
}

/// Runs each stream of HTTP/2 as a task that knows its [`Stream`].
#[derive(Debug, Clone, Copy)]
struct Streams;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, future: F) {
        let stream = Arc::new(Stream::default());
        let task = tokio::spawn(STREAM.scope(Arc::clone(&stream), future));
        // It is set once, here.
        let _ = stream.task.set(task.abort_handle());
    }
}

/// Runs a connection and enforces its time limits.
struct Watch<'a> {
    open: &'a OpenConnection,
    activity: &'a Activity,
    limits: Limits,
    is_h2: bool,
    /// Open as long as the connection is.
    socket: RawFd,
}

/// Why the watch looks at the connection.
enum Event {
    Ended,
    /// A condition for closing holds.
    Look,
    Tick,
}

impl Watch<'_> {
    /// An error of the connection is ignored: the client has closed it or does not speak HTTP. `finish` begins to close it: HTTP/1
    /// closes at once if it is idle, HTTP/2 announces the end and closes after the last stream.
    async fn run<C: Future>(&self, connection: C, finish: impl Fn(Pin<&mut C>)) {
        let mut connection = pin!(connection);
        let activity = self.activity;
        let every = (self.limits.head.min(self.limits.idle).min(self.limits.write) / 2).max(Duration::from_millis(10));
        let mut timer = pin!(tokio::time::sleep(every));
        let mut progress = Progress::default();
        // The end of an HTTP/2 connection is announced.
        let mut announced = false;
        // Since when the connection is to close as soon as it is idle, and since when it is closing.
        let (mut closing, mut finished): (Option<Instant>, Option<Instant>) = (None, None);
        // The connection was idle and yet not closed, because a request is arriving. It is looked at again at the next tick.
        let mut held_back = false;
        loop {
            let looks = || {
                let closes = closing.is_some() || activity.is_half_closed();
                let must_finish = closes && finished.is_none() && !held_back && activity.is_idle();
                must_finish || (self.is_h2 && !announced && self.must_announce())
            };
            let event = tokio::select! {
                biased;
                event = poll_fn(|cx| loop {
                    activity.begin_turn();
                    match connection.as_mut().poll(cx) {
                        Poll::Ready(_) => return Poll::Ready(Event::Ended),
                        // The protocol must be told.
                        Poll::Pending if activity.cut_off_request() => {}
                        Poll::Pending if looks() => return Poll::Ready(Event::Look),
                        Poll::Pending => return Poll::Pending,
                    }
                }) => event,
                () = activity.told() => Event::Look,
                () = timer.as_mut() => Event::Tick,
            };
            let now = Instant::now();
            match event {
                Event::Ended => {
                    if activity.is_flooded() {
                        self.open.connections.count_closed(Reason::Flood);
                    }
                    return;
                }
                Event::Look => {}
                Event::Tick => {
                    if let Some(reason) = self.over_a_limit(now, &mut progress) {
                        self.open.connections.count_closed(reason);
                        return;
                    }
                    held_back = false;
                    let is_stale = activity.is_idle() && activity.idle_for(now) >= self.limits.idle;
                    if is_stale && closing.is_none() {
                        self.open.connections.count_closed(Reason::Idle);
                        closing = Some(now);
                    }
                }
            }
            if self.is_h2 && !announced && self.must_announce() {
                announced = true;
                finish(connection.as_mut());
            }
            if closing.is_none() && activity.take_eviction() && activity.is_idle() {
                self.open.connections.count_closed(Reason::Room);
                closing = Some(now);
            }
            if activity.stage() == Stage::CloseIdle {
                closing.get_or_insert(now);
            }
            if (closing.is_some() || activity.is_half_closed()) && activity.is_idle() {
                match finished {
                    Some(since) if now.duration_since(since) >= CLOSE_TIME => return,
                    Some(_) => {}
                    None if closing.is_some_and(|since| self.is_request_likely(now, since)) => held_back = true,
                    None => {
                        finished = Some(now);
                        // With TLS, bytes of an answer may also wait in front of the socket.
                        if machine::undelivered(self.socket) == 0 && !activity.is_write_blocked() {
                            activity.set_closes_at_once();
                        }
                        finish(connection.as_mut());
                    }
                }
            }
            let next = if closing.is_some() { CLOSE_TICK.min(every) } else { every };
            timer.as_mut().reset((now + next).into());
        }
    }

    /// Whether HTTP/2 must announce the end of the connection. A client that has just connected may send its first request: it could
    /// not use a connection that is announced to end.
    fn must_announce(&self) -> bool {
        match self.activity.stage() {
            Stage::Open => false,
            Stage::Announce => self.activity.requests() > 0,
            Stage::CloseIdle => true,
        }
    }

    /// Whether an idle connection that is about to close since `closing` should wait, because a request is arriving or likely.
    fn is_request_likely(&self, now: Instant, closing: Instant) -> bool {
        let activity = self.activity;
        let idle_for = activity.idle_for(now);
        // The client of an answer that had begun before the stop was not told. It may have sent its next request.
        let is_untold = activity.stage() == Stage::CloseIdle && idle_for < LAST_CALL;
        let is_arriving = activity.partial_head() != 0 || machine::unread(self.socket) > 0;
        is_untold || (is_arriving && idle_for.min(now.duration_since(closing)) < CLOSE_TIME)
    }

    /// The time limit because of which the connection must be closed. A stream of HTTP/2 that makes no progress is reset here.
    fn over_a_limit(&self, now: Instant, progress: &mut Progress) -> Option<Reason> {
        if self.head_is_late(now, progress) {
            return Some(Reason::Headers);
        }
        let activity = self.activity;
        if activity.is_write_blocked() {
            progress.streams.clear();
            let done = activity.written().saturating_sub(machine::undelivered(self.socket) as u64);
            match &mut progress.writing {
                Some((before, since)) if done >= *before + MIN_PROGRESS => (*before, *since) = (done, now),
                Some((_, since)) if now.duration_since(*since) >= self.limits.write => {
                    activity.set_reset();
                    return Some(Reason::Reader);
                }
                Some(_) => {}
                None => progress.writing = Some((done, now)),
            }
            return None;
        }
        progress.writing = None;
        if !self.is_h2 {
            return None;
        }
        // The client's window is closed for streams that make no progress here.
        let before = std::mem::take(&mut progress.streams);
        for stream in activity.waiting_streams() {
            let taken = stream.taken();
            let known = before.iter().find(|(known, _, _)| Arc::ptr_eq(known, &stream));
            match known {
                Some((_, before, since)) if taken < *before + MIN_PROGRESS => {
                    let stalled = now.duration_since(*since);
                    if stalled >= self.limits.write * 2 {
                        // The last bytes of an answer wait inside the protocol, where only the end of the connection frees them.
                        activity.set_reset();
                        return Some(Reason::Reader);
                    }
                    if stalled >= self.limits.write && stream.reset() {
                        self.open.connections.count_closed(Reason::Stream);
                    }
                    progress.streams.push((stream, *before, *since));
                }
                _ => progress.streams.push((stream, taken, now)),
            }
        }
        None
    }

    /// Whether the first bytes of a request's headers arrived too long ago.
    fn head_is_late(&self, now: Instant, progress: &mut Progress) -> bool {
        let activity = self.activity;
        let number = match (self.is_h2, activity.requests(), activity.partial_head()) {
            // The first request, with all frames of HTTP/2 that come before it.
            (true, 0, _) => u64::MAX,
            (false, 0, _) if activity.is_idle() => u64::MAX,
            (true, _, number) => number,
            (false, _, 0) => 0,
            // The bytes belong to the current request's body or to the next request.
            (false, _, _) if !activity.is_idle() => 0,
            (false, requests, _) => requests + 1,
        };
        match progress.head {
            _ if number == 0 => progress.head = None,
            Some((before, since)) if before == number => return now.duration_since(since) >= self.limits.head,
            _ => progress.head = Some((number, now)),
        }
        false
    }
}

/// What the time limits of a connection are measured from: the last number that changed, and when it was first seen.
#[derive(Default)]
struct Progress {
    head: Option<(u64, Instant)>,
    writing: Option<(u64, Instant)>,
    streams: Vec<(Arc<Stream>, u64, Instant)>,
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_windows_of_a_connection_are_a_part_of_the_memory() {
        let of = |memory| Windows::of(memory);
        assert_eq!(of(usize::MAX), Windows { connection: 1 << 20, stream: 1 << 19 });
        assert_eq!(of(4 << 20), Windows { connection: 1 << 18, stream: 1 << 17 });
        assert_eq!(of(1 << 20), Windows { connection: 65_536, stream: 65_535 });
        assert_eq!(of(0), Windows { connection: 65_535, stream: 65_535 });
    }
}
