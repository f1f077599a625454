//! One connection: its protocol and its time limits.

use super::data_plane::DataPlane;
use super::handle::handle;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// When the server stops, the time until a connection without a running request is closed. It lets the last bytes of an answer be
/// sent. It is not meant for a client that is idle or in the middle of a request.
const CLOSE_DELAY: Duration = Duration::from_millis(500);

/// The time limits of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// For the first byte, and from the first byte of a request's headers to their end.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
}

/// What a connection is doing. The connection writes it without reading a clock, the watchdog reads it.
#[derive(Debug, Default)]
struct ConnActivity {
    /// Bytes have arrived that belong to no complete headers yet.
    partial_head: AtomicBool,
    /// Requests that are not answered yet.
    active: AtomicU32,
    /// All requests so far.
    requests: AtomicU64,
}

/// Serves a connection until it ends, breaks its limits, or the server stops.
pub(super) async fn serve(stream: TcpStream, plane: Arc<DataPlane>, timeouts: Timeouts, stop: watch::Receiver<bool>) {
    // Small answers are sent at once. If setting the option fails, the connection still works.
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(ConnActivity::default());
    let mut stopping = stop.clone();
    let is_h2 = tokio::select! {
        detected = tokio::time::timeout(timeouts.head, is_http2(&stream)) => match detected {
            Ok(Ok(is_h2)) => is_h2,
            _ => return,
        },
        // There is no request yet, so there is nothing to finish.
        _ = stopping.wait_for(|stop| *stop) => return,
    };
    let io = TokioIo::new(Watched { stream, activity: Arc::clone(&activity) });
    let counted = Arc::clone(&activity);
    let service = service_fn(move |request| {
        counted.requests.fetch_add(1, Ordering::Relaxed);
        let active = ActiveGuard::new(Arc::clone(&counted));
        let plane = Arc::clone(&plane);
        async move {
            let response = handle(plane, request).await;
            drop(active);
            Ok::<_, Infallible>(response)
        }
    });
    if is_h2 {
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(256)
            .max_header_list_size(128 * 1024)
            .serve_connection(io, service);
        watch(connection, hyper::server::conn::http2::Connection::graceful_shutdown, &activity, timeouts, true, stop)
            .await;
    } else {
        let connection = hyper::server::conn::http1::Builder::new()
            // The watchdog enforces this limit. It needs no timer per request, and treats idle connections differently.
            .header_read_timeout(None)
            .serve_connection(io, service);
        watch(connection, hyper::server::conn::http1::Connection::graceful_shutdown, &activity, timeouts, false, stop)
            .await;
    }
}

/// Runs a connection, and closes it when it exceeds a time limit. An error of the connection is ignored: the client has closed it
/// or does not speak HTTP.
async fn watch<C: Future>(
    connection: C,
    finish: impl Fn(Pin<&mut C>),
    activity: &ConnActivity,
    timeouts: Timeouts,
    is_h2: bool,
    mut stop: watch::Receiver<bool>,
) {
    let mut connection = pin!(connection);
    let every = (timeouts.head.min(timeouts.idle) / 2).max(Duration::from_millis(10));
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut stopping = false;
    let mut head_since: Option<Instant> = None;
    let mut idle_since: (u64, Instant) = (0, Instant::now());
    loop {
        tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            _ = stop.wait_for(|stop| *stop), if !stopping => {
                stopping = true;
                finish(connection.as_mut());
                tick.reset_after(CLOSE_DELAY);
            }
            _ = tick.tick() => {
                let (now, requests) = (Instant::now(), activity.requests.load(Ordering::Relaxed));
                if stopping && activity.active.load(Ordering::Relaxed) == 0 {
                    return;
                }
                if activity.active.load(Ordering::Relaxed) > 0 || requests != idle_since.0 {
                    (head_since, idle_since) = (None, (requests, now));
                    continue;
                }
                // With HTTP/2, bytes between requests can be frames of other kinds. There the limit applies to the first request.
                let waiting_for_head = if is_h2 { requests == 0 } else { activity.partial_head.load(Ordering::Relaxed) };
                if waiting_for_head && now.duration_since(*head_since.get_or_insert(now)) >= timeouts.head {
                    return;
                }
                if now.duration_since(idle_since.1) >= timeouts.idle {
                    return;
                }
            }
        }
    }
}

/// Whether the connection starts with the HTTP/2 preface ("PRI * HTTP/2.0…"). No HTTP/1 method starts with "PRI".
async fn is_http2(stream: &TcpStream) -> io::Result<bool> {
    const PREFACE: &[u8] = b"PRI";
    let mut start = [0u8; 3];
    loop {
        let n = stream.peek(&mut start).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if start[..n] != PREFACE[..n] {
            return Ok(false);
        }
        if n == PREFACE.len() {
            return Ok(true);
        }
        // One or two bytes of the preface have arrived. Those keep the socket readable, so only polling finds the third.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Counts a request as active until it is dropped, also if the client disconnects.
struct ActiveGuard(Arc<ConnActivity>);

impl ActiveGuard {
    fn new(activity: Arc<ConnActivity>) -> ActiveGuard {
        activity.active.fetch_add(1, Ordering::Relaxed);
        ActiveGuard(activity)
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        // The bytes so far belonged to this request. The next ones belong to the next request's headers.
        self.0.partial_head.store(false, Ordering::Relaxed);
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that notes arriving bytes in the connection's activity.
struct Watched {
    stream: TcpStream,
    activity: Arc<ConnActivity>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.partial_head.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
