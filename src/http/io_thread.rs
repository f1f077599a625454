//! The I/O threads: each serves its connections on a runtime of its own. Which one gets a connection.

use super::connection::{self, Limits};
use super::connections::OpenConnection;
use super::data_plane::{DataPlane, Task};
use super::handle::{Caller, handle};
use super::handshake::Secure;
use super::io_health::Heart;
use super::rest;
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tokio::runtime::Builder;
use tokio::sync::mpsc;

/// Where all threads are held by runs, more are started: at most this many times the configured number in all.
const MOST_THREADS: usize = 2;

type Handed = (TcpStream, OpenConnection);

/// The acceptor's side of all I/O threads.
pub(super) struct IoThreadPool {
    threads: Vec<IoThread>,
    most: usize,
    plane: Arc<DataPlane>,
    limits: Limits,
    secure: Option<Arc<Secure>>,
    /// Each thread holds a clone until it ends.
    running: crossbeam_channel::Sender<()>,
    handles: Handles,
}

/// The threads that were started, to be joined.
pub(super) type Handles = Arc<Mutex<Vec<JoinHandle<()>>>>;

/// The acceptor's side of one I/O thread.
struct IoThread {
    /// Unbounded, but the acceptor keeps at most [`super::Config::max_connections`] open.
    connections: mpsc::UnboundedSender<Handed>,
    /// The other end. The acceptor takes connections back from a thread that does not look at them.
    incoming: Arc<Mutex<mpsc::UnboundedReceiver<Handed>>>,
    open_connections: Arc<AtomicUsize>,
    heart: Arc<Heart>,
}

impl IoThreadPool {
    /// Starts this many threads.
    ///
    /// # Errors
    /// When a thread or runtime cannot be created.
    pub(super) fn start(
        threads: usize,
        plane: &Arc<DataPlane>,
        limits: Limits,
        secure: Option<Arc<Secure>>,
        running: crossbeam_channel::Sender<()>,
    ) -> io::Result<(IoThreadPool, Handles)> {
        let (plane, handles) = (Arc::clone(plane), Handles::default());
        let most = threads * MOST_THREADS;
        let mut pool =
            IoThreadPool { threads: Vec::new(), most, plane, limits, secure, running, handles: Arc::clone(&handles) };
        for _ in 0..threads {
            pool.start_thread()?;
        }
        Ok((pool, handles))
    }

    fn start_thread(&mut self) -> io::Result<()> {
        let name = format!("io-{}", self.threads.len());
        let (connections, incoming) = mpsc::unbounded_channel();
        let (incoming, open_connections) = (Arc::new(Mutex::new(incoming)), Arc::default());
        let runtime = Builder::new_current_thread().enable_all().on_thread_park(rest::rest).build()?;
        let heart = self.plane.io_threads().add(name.clone());
        let beating = Beating { plane: Arc::clone(&self.plane), heart: Arc::clone(&heart) };
        let turns = self.plane.gateway.executor().end_turns();
        let (plane, secure) = (Arc::clone(&self.plane), self.secure.clone());
        let run =
            serve(Arc::clone(&incoming), plane, Arc::clone(&open_connections), self.limits, secure, Arc::clone(&heart));
        let running = self.running.clone();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let heart = Arc::clone(&beating.heart);
            runtime.block_on(async {
                // Ends with the runtime.
                tokio::spawn(async move { heart.beat().await });
                // So does this one.
                tokio::spawn(turns);
                run.await;
            });
            drop((beating, running));
        })?;
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        self.threads.push(IoThread { connections, incoming, open_connections, heart });
        Ok(())
    }

    /// Gives a connection to the thread that has the fewest, of those that answer. Where none does, starts another thread.
    pub(super) fn hand_over(&mut self, stream: TcpStream, open: OpenConnection) {
        if self.threads.len() < self.most && self.threads.iter().all(|thread| thread.heart.is_silent()) {
            match self.start_thread() {
                Ok(()) => tracing::warn!("every I/O thread is held, and another one was started"),
                Err(error) => tracing::error!(%error, "every I/O thread is held, and no other could be started"),
            }
        }
        let load = |thread: &&IoThread| (thread.heart.is_silent(), thread.open_connections.load(Ordering::Relaxed));
        let Some(thread) = self.threads.iter().min_by_key(load) else { return };
        thread.open_connections.fetch_add(1, Ordering::Relaxed);
        // The thread has ended only if it panicked. Then the connection is closed.
        let _ = thread.connections.send((stream, open));
    }

    /// Gives connections that a silent thread has not looked at to another one.
    pub(super) fn take_back_from_silent(&mut self) {
        let mut taken = Vec::new();
        for thread in self.threads.iter().filter(|thread| thread.heart.is_silent()) {
            let mut incoming = lock(&thread.incoming);
            while let Ok(handed) = incoming.try_recv() {
                thread.open_connections.fetch_sub(1, Ordering::Relaxed);
                taken.push(handed);
            }
        }
        for (stream, open) in taken {
            self.hand_over(stream, open);
        }
    }
}

/// The thread counts among those that should answer until this is dropped.
struct Beating {
    plane: Arc<DataPlane>,
    heart: Arc<Heart>,
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.plane.io_threads().remove(&self.heart);
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the connections of one I/O thread, until the acceptor has ended and all connections have closed.
async fn serve(
    incoming: Arc<Mutex<mpsc::UnboundedReceiver<Handed>>>,
    plane: Arc<DataPlane>,
    open_connections: Arc<AtomicUsize>,
    limits: Limits,
    secure: Option<Arc<Secure>>,
    heart: Arc<Heart>,
) {
    let mut running = tokio::task::JoinSet::new();
    loop {
        let next = std::future::poll_fn(|cx| lock(&incoming).poll_recv(cx));
        tokio::select! {
            stream = next => {
                let Some((stream, open)) = stream else { break };
                let guard = OnThread(Arc::clone(&open_connections));
                let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { continue };
                // The client has closed already if it has no address.
                let Ok(peer) = stream.peer_addr() else { continue };
                let caller = Arc::new(Caller::new(&plane, &open, peer.ip(), &heart));
                let secure = secure.clone();
                running.spawn(async move {
                    let answer = move |request, received| handle(Arc::clone(&caller), request, received);
                    connection::serve(stream, open, limits, secure, answer).await;
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
