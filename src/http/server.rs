//! The sockets and threads of the data plane: one acceptor, and one runtime per I/O thread.

use super::accept::Acceptor;
use super::config::Config;
use super::connection::Limits;
use super::connections::Connections;
use super::data_plane::DataPlane;
use super::handshake::Secure;
use super::io_health::SILENT;
use super::io_thread::{Handles, IoThreadPool};
use crate::telemetry::Telemetry;
use crate::tls::Tls;
use crossbeam_channel::RecvTimeoutError;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::runtime::Builder;
use tokio::sync::watch;

/// The running data plane.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    /// True: accept no more connections.
    close: watch::Sender<bool>,
    connections: Arc<Connections>,
    io_threads: Handles,
    /// Disconnected once all I/O threads have ended: each holds a sender.
    ended: crossbeam_channel::Receiver<()>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts the threads. The listener is bound and non-blocking. With `tls` every connection begins with a handshake.
    ///
    /// # Errors
    /// When a thread or runtime cannot be created.
    pub fn start(
        listener: std::net::TcpListener,
        config: &Config,
        plane: &Arc<DataPlane>,
        telemetry: &Telemetry,
        tls: Option<Arc<Tls>>,
    ) -> io::Result<Server> {
        let address = listener.local_addr()?;
        let (close, closing) = watch::channel(false);
        let (running, ended) = crossbeam_channel::bounded::<()>(0);
        let connections = Arc::new(Connections::new(telemetry.process(), "data"));
        let limits = Limits {
            head: config.header_timeout,
            idle: config.idle_timeout,
            write: config.write_timeout,
            max_streams: config.max_streams,
            memory: plane.budget().limit(),
        };
        let secure = tls.map(|tls| Secure::new(tls, "data", telemetry.process(), config.max_connections));
        let (pool, io_threads) = IoThreadPool::start(config.io_threads.get(), plane, limits, secure, running)?;
        let (max, runtime) = (config.max_connections, Builder::new_current_thread().enable_all().build()?);
        let open = Arc::clone(&connections);
        let acceptor = std::thread::Builder::new().name("accept".to_owned()).spawn(move || {
            runtime.block_on(async {
                match Acceptor::new(listener, "data", max, Arc::clone(&open)) {
                    Ok(acceptor) => accept(acceptor, pool, &open, closing).await,
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
            let threads = std::mem::take(&mut *self.io_threads.lock().unwrap_or_else(PoisonError::into_inner));
            for thread in threads {
                let _ = thread.join();
            }
        }
        all_ended
    }
}

/// Gives each new connection to an I/O thread. A connection that its thread has not looked at within a second goes to another one.
async fn accept(
    mut acceptor: Acceptor,
    mut pool: IoThreadPool,
    connections: &Arc<Connections>,
    mut closing: watch::Receiver<bool>,
) {
    let hand_over = |pool: &mut IoThreadPool, stream: tokio::net::TcpStream| {
        if let Ok(stream) = stream.into_std() {
            pool.hand_over(stream, connections.open());
        }
    };
    let mut look = tokio::time::interval(SILENT / 4);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            stream = acceptor.next() => hand_over(&mut pool, stream),
            _ = look.tick() => pool.take_back_from_silent(),
            _ = closing.wait_for(|c| *c) => break,
        }
    }
    for stream in acceptor.close() {
        hand_over(&mut pool, stream);
    }
}
