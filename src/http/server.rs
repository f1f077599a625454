//! Sockets and threads: one acceptor, one runtime per I/O thread.

use super::config::Config;
use super::connection::{self, Patience};
use super::door::DataPlane;
use crate::telemetry::{Telemetry, names};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};

/// The running data plane.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    /// True: take no more connections.
    close: watch::Sender<bool>,
    /// True: finish what is under way on each connection and end it.
    finish: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    door: Arc<DataPlane>,
    acceptor: Option<JoinHandle<()>>,
}

/// A lane of connections: one I/O thread.
struct Lane {
    /// Bounded by [`Config::max_connections`] in all: the acceptor takes no more than that.
    connections: mpsc::UnboundedSender<TcpStream>,
    open: Arc<AtomicUsize>,
}

impl Server {
    /// Starts the threads on a bound, non-blocking listener.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        listener: std::net::TcpListener,
        config: &Config,
        door: &Arc<DataPlane>,
        telemetry: &Telemetry,
    ) -> io::Result<Server> {
        let address = listener.local_addr()?;
        let (close, closing) = watch::channel(false);
        let (finish, finishing) = watch::channel(false);
        let patience = Patience { head: config.header_timeout, idle: config.idle_timeout };
        let mut threads = Vec::new();
        let mut lanes = Vec::new();
        for i in 0..config.io_threads.get() {
            let (connections, incoming) = mpsc::unbounded_channel();
            let open = Arc::new(AtomicUsize::new(0));
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let run = lane(incoming, Arc::clone(door), Arc::clone(&open), patience, finishing.clone());
            threads.push(std::thread::Builder::new().name(format!("io-{i}")).spawn(move || runtime.block_on(run))?);
            lanes.push(Lane { connections, open });
        }
        let gauge = telemetry.process().gauge(&names::CONNECTIONS, &[("plane", "data")]);
        let (most, runtime) = (config.max_connections, Builder::new_current_thread().enable_all().build()?);
        let acceptor = std::thread::Builder::new().name("accept".to_owned()).spawn(move || {
            runtime.block_on(accept(listener, lanes, most, gauge, closing));
        })?;
        Ok(Server { address, close, finish, threads, door: Arc::clone(door), acceptor: Some(acceptor) })
    }

    /// The address that was bound; the port the system chose where the configuration said 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, lets requests under way finish, and answers when all connections have ended; what has not
    /// ended `within` the time is cut off.
    pub fn stop(mut self, within: Duration) -> bool {
        let until = std::time::Instant::now() + within;
        self.door.begin_closing();
        self.close.send_replace(true);
        if let Some(acceptor) = self.acceptor.take() {
            // It ends at once and holds nothing; a panic there was logged by the panic hook.
            let _ = acceptor.join();
        }
        self.finish.send_replace(true);
        while self.threads.iter().any(|t| !t.is_finished()) && std::time::Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let all = self.threads.iter().all(JoinHandle::is_finished);
        for thread in self.threads.drain(..).filter(JoinHandle::is_finished) {
            let _ = thread.join();
        }
        all
    }
}

/// Gives each new connection to the lane with the fewest, so that no thread has all the work by chance.
async fn accept(
    listener: std::net::TcpListener,
    lanes: Vec<Lane>,
    most: usize,
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
        let open: usize = lanes.iter().map(|l| l.open.load(Ordering::Relaxed)).sum();
        gauge.set(open as f64);
        if open >= most {
            // Full: the kernel's backlog holds newcomers until somebody leaves.
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
                let Some(lane) = lanes.iter().min_by_key(|l| l.open.load(Ordering::Relaxed)) else { return };
                lane.open.fetch_add(1, Ordering::Relaxed);
                if lane.connections.send(stream).is_err() {
                    return;
                }
            }
            Err(error) => {
                // Out of file descriptors, most likely: accepting again at once would only spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// One I/O thread: runs its connections until the acceptor is gone and the last of them has ended.
async fn lane(
    mut incoming: mpsc::UnboundedReceiver<TcpStream>,
    door: Arc<DataPlane>,
    open: Arc<AtomicUsize>,
    patience: Patience,
    finishing: watch::Receiver<bool>,
) {
    let mut running = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            stream = incoming.recv() => {
                let Some(stream) = stream else { break };
                let guard = Leave(Arc::clone(&open));
                let (door, finishing) = (Arc::clone(&door), finishing.clone());
                let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { continue };
                running.spawn(async move {
                    connection::serve(stream, door, patience, finishing).await;
                    drop(guard);
                });
            }
            Some(_) = running.join_next() => {}
        }
    }
    while running.join_next().await.is_some() {}
}

/// Counts a connection out of its lane, however it ends.
struct Leave(Arc<AtomicUsize>);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
