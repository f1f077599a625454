//! Accepts connections, within the limit on their number.

use super::activity::Activity;
use super::connections::Connections;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

/// How often an acceptor that waits for room looks for it.
const ROOM_TIME: Duration = Duration::from_millis(20);
/// How long a connection that was asked to close has to take note, before the next one is asked.
const EVICTION_TIME: Duration = Duration::from_secs(1);
/// How long one that has taken note has to close, likewise.
const CLOSE_TIME: Duration = Duration::from_millis(300);
/// The pause after an error, most likely because file descriptors are used up. Retrying at once would only use CPU.
const ERROR_PAUSE: Duration = Duration::from_millis(50);
/// At most one message about errors in this time.
const ERROR_LOG: Duration = Duration::from_secs(10);

/// Accepts connections. At the limit it closes the longest idle one, so that idle connections do not keep others out.
#[derive(Debug)]
pub(crate) struct Acceptor {
    listener: TcpListener,
    plane: &'static str,
    max: usize,
    connections: Arc<Connections>,
    /// A connection that waits for room.
    held: Option<TcpStream>,
    /// The connection that was asked to make room, and when.
    evicted: Option<(Arc<Activity>, Instant)>,
    logged: Option<Instant>,
}

impl Acceptor {
    /// The listener is non-blocking. Must be called inside a runtime.
    pub(crate) fn new(
        listener: std::net::TcpListener,
        plane: &'static str,
        max: usize,
        connections: Arc<Connections>,
    ) -> io::Result<Acceptor> {
        let listener = TcpListener::from_std(listener)?;
        Ok(Acceptor { listener, plane, max, connections, held: None, evicted: None, logged: None })
    }

    /// The next connection, once there is room for it. No connection is lost if the future is dropped.
    pub(crate) async fn next(&mut self) -> TcpStream {
        loop {
            if self.held.is_none() {
                match self.listener.accept().await {
                    Ok((stream, _)) => self.held = Some(stream),
                    Err(error) => {
                        self.pause_after(&error).await;
                        continue;
                    }
                }
            }
            self.make_room().await;
            if let Some(stream) = self.held.take() {
                return stream;
            }
        }
    }

    /// Returns once there are fewer connections than the limit. The longest idle one is closed. If all are in use, the newcomer waits,
    /// and others wait in the kernel's backlog.
    async fn make_room(&mut self) {
        while self.connections.count() >= self.max {
            let waits = self.evicted.as_ref().is_some_and(|(activity, at)| {
                // One that was asked and is still open is in use again, or its thread is busy.
                at.elapsed() < if activity.is_evicted() { EVICTION_TIME } else { CLOSE_TIME }
            });
            if !waits {
                self.evicted = self.connections.evict_longest_idle().map(|activity| (activity, Instant::now()));
            }
            self.connections.one_ended(ROOM_TIME).await;
        }
        self.evicted = None;
    }

    async fn pause_after(&mut self, error: &io::Error) {
        // The client closed before it was accepted.
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
            return;
        }
        if self.logged.is_none_or(|at| at.elapsed() >= ERROR_LOG) {
            self.logged = Some(Instant::now());
            tracing::warn!(%error, plane = self.plane, "cannot accept a connection; the longest idle one is closed");
        }
        self.connections.evict_longest_idle();
        tokio::time::sleep(ERROR_PAUSE).await;
    }

    /// Stops listening. Returns the connections that were established before.
    pub(crate) fn close(mut self) -> Vec<TcpStream> {
        let mut last = Vec::from_iter(self.held.take());
        // The kernel resets what is left in the backlog when the socket stops listening.
        while let Ok((socket, _)) = socket2::SockRef::from(&self.listener).accept() {
            let stream = socket.set_nonblocking(true).and_then(|()| TcpStream::from_std(socket.into()));
            last.extend(stream.ok());
        }
        last
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // A supervisor holds the socket too, so that closing it here would not refuse new connections.
        if let Err(error) = socket2::SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both) {
            tracing::debug!(%error, plane = self.plane, "the socket did not listen any more");
        }
    }
}
