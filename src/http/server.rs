//! The sockets and threads of the data plane: one acceptor, and one runtime per I/O thread.

use super::config::Config;
use super::connection::{self, Timeouts};
use super::data_plane::{DataPlane, Task};
use crate::telemetry::{Telemetry, names};
use crossbeam_channel::RecvTimeoutError;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};

/// The running data plane.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    /// True: accept no more connections.
    close: watch::Sender<bool>,
    /// True: close each connection after its current request.
    finish: watch::Sender<bool>,
    io_threads: Vec<JoinHandle<()>>,
    /// Disconnected once all I/O threads have ended: each holds a sender.
    ended: crossbeam_channel::Receiver<()>,
    plane: Arc<DataPlane>,
    acceptor: Option<JoinHandle<()>>,
}

/// The acceptor's side of one I/O thread.
struct IoThread {
    /// Unbounded, but the acceptor keeps at most [`Config::max_connections`] open.
    connections: mpsc::UnboundedSender<TcpStream>,
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
        let (finish, finishing) = watch::channel(false);
        let (running, ended) = crossbeam_channel::bounded::<()>(0);
        let timeouts = Timeouts { head: config.header_timeout, idle: config.idle_timeout };
        let mut io_threads = Vec::new();
        let mut targets = Vec::new();
        for i in 0..config.io_threads.get() {
            let (connections, incoming) = mpsc::unbounded_channel();
            let open_connections = Arc::new(AtomicUsize::new(0));
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let run =
                io_thread(incoming, Arc::clone(plane), Arc::clone(&open_connections), timeouts, finishing.clone());
            let running = running.clone();
            let thread = std::thread::Builder::new().name(format!("io-{i}"));
            io_threads.push(thread.spawn(move || {
                runtime.block_on(run);
                drop(running);
            })?);
            targets.push(IoThread { connections, open_connections });
        }
        let gauge = telemetry.process().gauge(&names::CONNECTIONS, &[("plane", "data")]);
        let (max_connections, runtime) = (config.max_connections, Builder::new_current_thread().enable_all().build()?);
        let acceptor = std::thread::Builder::new().name("accept".to_owned()).spawn(move || {
            runtime.block_on(accept(listener, targets, max_connections, gauge, closing));
        })?;
        Ok(Server { address, close, finish, io_threads, ended, plane: Arc::clone(plane), acceptor: Some(acceptor) })
    }

    /// The bound address. If the configured port is 0, this has the port that the system chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more connections and lets running requests finish. Returns true if all connections ended before the timeout.
    /// The others are cut off when the process ends.
    #[must_use]
    pub fn stop(mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        self.plane.begin_closing();
        self.close.send_replace(true);
        if let Some(acceptor) = self.acceptor.take() {
            // It ends at once. The panic hook has logged a panic there.
            let _ = acceptor.join();
        }
        self.finish.send_replace(true);
        let left = deadline.saturating_duration_since(Instant::now());
        let all_ended = self.ended.recv_timeout(left) == Err(RecvTimeoutError::Disconnected);
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
    listener: std::net::TcpListener,
    threads: Vec<IoThread>,
    max_connections: usize,
    gauge: metrics::Gauge,
    mut closing: watch::Receiver<bool>,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot accept connections");
            return;
        }
    };
    loop {
        let open: usize = threads.iter().map(|t| t.open_connections.load(Ordering::Relaxed)).sum();
        gauge.set(open as f64);
        if open >= max_connections {
            // New connections wait in the kernel's backlog until one closes.
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(20)) => continue,
                _ = closing.wait_for(|c| *c) => return,
            }
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closing.wait_for(|c| *c) => return,
        };
        match accepted.and_then(|(stream, _)| stream.into_std()) {
            Ok(stream) => {
                let least = threads.iter().min_by_key(|t| t.open_connections.load(Ordering::Relaxed));
                let Some(thread) = least else { return };
                thread.open_connections.fetch_add(1, Ordering::Relaxed);
                if thread.connections.send(stream).is_err() {
                    return;
                }
            }
            Err(error) => {
                // Most likely the file descriptors are used up. Retrying at once would only use CPU.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Runs the connections of one I/O thread, until the acceptor has ended and all connections have closed.
async fn io_thread(
    mut incoming: mpsc::UnboundedReceiver<TcpStream>,
    plane: Arc<DataPlane>,
    open_connections: Arc<AtomicUsize>,
    timeouts: Timeouts,
    finishing: watch::Receiver<bool>,
) {
    let mut running = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            stream = incoming.recv() => {
                let Some(stream) = stream else { break };
                let guard = OpenConnection(Arc::clone(&open_connections));
                let (plane, finishing) = (Arc::clone(&plane), finishing.clone());
                let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { continue };
                running.spawn(async move {
                    connection::serve(stream, plane, timeouts, finishing).await;
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
struct OpenConnection(Arc<AtomicUsize>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
