//! One connection: which HTTP it speaks, and its limits on time.

use super::door::DataPlane;
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

/// From the start of a stop to the end of a connection on which nothing is asked: for the last bytes of an answer to leave, not
/// for a peer that is silent or half-way through a request.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Limits on how long a connection may take over things.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For the first byte, and for a whole head once its first byte came.
    pub head: Duration,
    /// Without any request.
    pub idle: Duration,
}

/// What the watchdog reads of a connection, and the connection writes without looking at a clock.
#[derive(Debug, Default)]
struct Pulse {
    /// Bytes came since the last request's head was complete.
    unfinished: AtomicBool,
    /// Requests whose answer is not ready.
    open: AtomicU32,
    /// Requests so far.
    requests: AtomicU64,
}

/// Serves a connection until it ends, breaks its limits, or the server stops.
pub(super) async fn serve(stream: TcpStream, door: Arc<DataPlane>, patience: Patience, stop: watch::Receiver<bool>) {
    // Small answers leave at once. A socket that refuses the option still works.
    let _ = stream.set_nodelay(true);
    let pulse = Arc::new(Pulse::default());
    let mut stopping = stop.clone();
    let is_h2 = tokio::select! {
        spoken = tokio::time::timeout(patience.head, speaks_h2(&stream)) => match spoken {
            Ok(Ok(is_h2)) => is_h2,
            _ => return,
        },
        // Nothing was asked yet, so nothing is owed.
        _ = stopping.wait_for(|stop| *stop) => return,
    };
    let io = TokioIo::new(Watched { stream, pulse: Arc::clone(&pulse) });
    let counted = Arc::clone(&pulse);
    let service = service_fn(move |request| {
        counted.requests.fetch_add(1, Ordering::Relaxed);
        let open = Open::new(Arc::clone(&counted));
        let door = Arc::clone(&door);
        async move {
            let response = handle(door, request).await;
            drop(open);
            Ok::<_, Infallible>(response)
        }
    });
    if is_h2 {
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(256)
            .max_header_list_size(128 * 1024)
            .serve_connection(io, service);
        watch(connection, hyper::server::conn::http2::Connection::graceful_shutdown, &pulse, patience, true, stop)
            .await;
    } else {
        let connection = hyper::server::conn::http1::Builder::new()
            // The watchdog does this, without a timer per request, and does not close idle connections with it.
            .header_read_timeout(None)
            .serve_connection(io, service);
        watch(connection, hyper::server::conn::http1::Connection::graceful_shutdown, &pulse, patience, false, stop)
            .await;
    }
}

/// Runs a connection under its watchdog. An error of the connection is its peer's business: it went away or spoke no HTTP.
async fn watch<C: Future>(
    connection: C,
    finish: impl Fn(Pin<&mut C>),
    pulse: &Pulse,
    patience: Patience,
    is_h2: bool,
    mut stop: watch::Receiver<bool>,
) {
    let mut connection = pin!(connection);
    let every = (patience.head.min(patience.idle) / 2).max(Duration::from_millis(10));
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
                tick.reset_after(LAST_WORDS);
            }
            _ = tick.tick() => {
                let (now, requests) = (Instant::now(), pulse.requests.load(Ordering::Relaxed));
                if stopping && pulse.open.load(Ordering::Relaxed) == 0 {
                    return;
                }
                if pulse.open.load(Ordering::Relaxed) > 0 || requests != idle_since.0 {
                    (head_since, idle_since) = (None, (requests, now));
                    continue;
                }
                // HTTP/2 sends frames of its own between requests, so bytes need not be a request's head; its first request is due
                // like any other.
                let due = if is_h2 { requests == 0 } else { pulse.unfinished.load(Ordering::Relaxed) };
                if due && now.duration_since(*head_since.get_or_insert(now)) >= patience.head {
                    return;
                }
                if now.duration_since(idle_since.1) >= patience.idle {
                    return;
                }
            }
        }
    }
}

/// Whether the first bytes are HTTP/2's preface ("PRI * HTTP/2.0…"); no HTTP/1 method begins with "PRI".
async fn speaks_h2(stream: &TcpStream) -> io::Result<bool> {
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
        // A peer that sent one or two bytes of the preface: readiness does not tell when the rest is there.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A request without its answer yet; also when its client goes away.
struct Open(Arc<Pulse>);

impl Open {
    fn new(pulse: Arc<Pulse>) -> Open {
        pulse.open.fetch_add(1, Ordering::Relaxed);
        Open(pulse)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // What came so far was this request's; what comes now is the next one's head.
        self.0.unfinished.store(false, Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that tells the pulse when bytes come.
struct Watched {
    stream: TcpStream,
    pulse: Arc<Pulse>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.pulse.unfinished.store(true, Ordering::Relaxed);
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
