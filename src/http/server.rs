//! The sockets and threads of the data plane: one acceptor, and one runtime per I/O thread.

use super::accept::Acceptor;
use super::config::Config;
use super::connection::{self, Limits};
use super::connections::{Connections, OpenConnection};
use super::data_plane::{DataPlane, Task};
use super::handle::{Caller, handle};
use crate::telemetry::{Telemetry, names};
use crossbeam_channel::RecvTimeoutError;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};

/// The running data plane.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    /// True: accept no more connections.
    close: watch::Sender<bool>,
    connections: Arc<Connections>,
    io_threads: Vec<JoinHandle<()>>,
    /// Disconnected once all I/O threads have ended: each holds a sender.
    ended: crossbeam_channel::Receiver<()>,
    acceptor: Option<JoinHandle<()>>,
}

/// The acceptor's side of one I/O thread.
struct IoThread {
    /// Unbounded, but the acceptor keeps at most [`Config::max_connections`] open.
    connections: mpsc::UnboundedSender<(TcpStream, OpenConnection)>,
    open_connections: Arc<AtomicUsize>,
}

impl Server {
    /// Starts the threads. The listener is bound and non-blocking.
    ///
    /// # Errors
    /// When a thread or runtime cannot be created.
    pub fn start(
        listener: std::net::TcpListener,
        config: &Config,
        plane: &Arc<DataPlane>,
        telemetry: &Telemetry,
    ) -> io::Result<Server> {
        let address = listener.local_addr()?;
        let (close, closing) = watch::channel(false);
        let (running, ended) = crossbeam_channel::bounded::<()>(0);
        let gauge = telemetry.process().gauge(&names::CONNECTIONS, &[("plane", "data")]);
        let connections = Arc::new(Connections::new(gauge));
        let limits = Limits {
            head: config.header_timeout,
            idle: config.idle_timeout,
            write: config.write_timeout,
            max_streams: config.max_streams,
        };
        let mut io_threads = Vec::new();
        let mut targets = Vec::new();
        for i in 0..config.io_threads.get() {
            let (sender, incoming) = mpsc::unbounded_channel();
            let open_connections = Arc::new(AtomicUsize::new(0));
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let run = io_thread(incoming, Arc::clone(plane), Arc::clone(&open_connections), limits);
            let running = running.clone();
            let thread = std::thread::Builder::new().name(format!("io-{i}"));
            io_threads.push(thread.spawn(move || {
                runtime.block_on(run);
                drop(running);
            })?);
            targets.push(IoThread { connections: sender, open_connections });
        }
        let (max, runtime) = (config.max_connections, Builder::new_current_thread().enable_all().build()?);
        let open = Arc::clone(&connections);
        let acceptor = std::thread::Builder::new().name("accept".to_owned()).spawn(move || {
            runtime.block_on(async {
                match Acceptor::new(listener, "data", max, Arc::clone(&open)) {
                    Ok(acceptor) => accept(acceptor, targets, &open, closing).await,
                    Err(error) => tracing::error!(%error, "cannot accept connections"),
                }
            });
        })?;
        Ok(Server { address, close, connections, io_threads, ended, acceptor: Some(acceptor) })
    }

    /// The bound address. If the configured port is 0, this has the port that the system chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The first step of a stop. From now on each answer says that its connection closes, and HTTP/2 connections announce their end.
    /// New connections are accepted, idle ones stay open.
    pub fn announce_stop(&self) {
        self.connections.announce();
    }

    /// The second step of a stop: accepts no more connections. Those that the kernel has established are served.
    pub fn close_listener(&mut self) {
        self.close.send_replace(true);
        if let Some(acceptor) = self.acceptor.take() {
            // It ends at once. The panic hook has logged a panic there.
            let _ = acceptor.join();
        }
    }

    /// The last step of a stop: lets running requests finish. Connections without a request stay open until `close_idle`, so that a
    /// client that uses one learns from its answer that it closes. Returns true if all connections ended before `until`, with all
    /// their answers delivered. The others are cut off when the process ends.
    #[must_use]
    pub fn finish(mut self, close_idle: Instant, until: Instant) -> bool {
        self.close_listener();
        let mut ended = self.ended.recv_deadline(close_idle.min(until));
        if ended == Err(RecvTimeoutError::Timeout) {
            self.connections.close_idle();
            ended = self.ended.recv_deadline(until);
        }
        let all_ended = ended == Err(RecvTimeoutError::Disconnected);
        if all_ended {
            for thread in self.io_threads {
                let _ = thread.join();
            }
        }
        all_ended
    }
}

/// Gives each new connection to the I/O thread with the fewest, to spread the work.
async fn accept(
    mut acceptor: Acceptor,
    threads: Vec<IoThread>,
    connections: &Arc<Connections>,
    mut closing: watch::Receiver<bool>,
) {
    let hand_over = |stream: tokio::net::TcpStream| {
        let least = threads.iter().min_by_key(|t| t.open_connections.load(Ordering::Relaxed));
        let (Some(thread), Ok(stream)) = (least, stream.into_std()) else { return };
        thread.open_connections.fetch_add(1, Ordering::Relaxed);
        // The thread has ended only if it panicked. Then the connection is closed.
        let _ = thread.connections.send((stream, connections.open()));
    };
    loop {
        tokio::select! {
            stream = acceptor.next() => hand_over(stream),
            _ = closing.wait_for(|c| *c) => break,
        }
    }
    for stream in acceptor.close() {
        hand_over(stream);
    }
}

/// Runs the connections of one I/O thread, until the acceptor has ended and all connections have closed.
async fn io_thread(
    mut incoming: mpsc::UnboundedReceiver<(TcpStream, OpenConnection)>,
    plane: Arc<DataPlane>,
    open_connections: Arc<AtomicUsize>,
    limits: Limits,
) {
    let mut running = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            stream = incoming.recv() => {
                let Some((stream, open)) = stream else { break };
                let guard = OnThread(Arc::clone(&open_connections));
                let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { continue };
                // The client has closed already if it has no address.
                let Ok(peer) = stream.peer_addr() else { continue };
                let caller = Arc::new(Caller::new(&plane, &open, peer.ip()));
                running.spawn(async move {
                    let answer = move |request, received| handle(Arc::clone(&caller), request, received);
                    connection::serve(stream, open, limits, answer).await;
                    drop(guard);
                });
            }
            Some(ended) = running.join_next() => report_panic(&plane, ended),
        }
    }
    while let Some(ended) = running.join_next().await {
        report_panic(&plane, ended);
    }
}

fn report_panic(plane: &DataPlane, ended: Result<(), tokio::task::JoinError>) {
    if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
        plane.report_panic(Task::Connection, &*panic);
    }
}

/// Counted among the open connections of an I/O thread until it is dropped.
struct OnThread(Arc<AtomicUsize>);

impl Drop for OnThread {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
