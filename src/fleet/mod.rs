//! fleet: several gateways that serve the same traffic documents, kept in NATS `JetStream` (docs/FLEET.md).
//!
//! - A change of a traffic document becomes one compare-and-set in the fleet's bucket before it is stored here ([`Peers`]).
//! - A thread follows the bucket: what another gateway changed is put in force here, whatever was missed meanwhile.
//! - Every second the gateway reports what it has. A document can only give traffic to versions that are ready on every gateway.
//! - Cut off from NATS, a gateway serves what it has, says so, and refuses changes of traffic.
//!
//! Uses: ledger (actions), lifecycle (handle), machine (durable files), model, registry (reader), route, telemetry.
//!
//! Invariant: a request never waits for another machine, and the clock decides nothing: revisions of the bucket do.
//!
//! To share something else: a bucket or a key of its own in `session.rs`, its form in `wire.rs`, and what follows it.

mod board;
mod change;
mod identity;
mod own;
mod session;
#[cfg(test)]
mod tests;
mod wire;

pub use board::{NodeView, View};
pub use wire::NodeModel;

use crate::lifecycle::{Handle, Peers};
use crate::registry::Reader;
use crate::telemetry::Telemetry;
use board::Board;
use change::{Changes, Put};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How a gateway joins a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The NATS servers: `nats://host:port` or `tls://host:port`. None: the gateway is in no fleet.
    pub urls: Vec<String>,
    /// The fleet. Several fleets can share a NATS cluster.
    pub name: String,
    /// This gateway in the fleet. Unique there. Empty: the name of this machine.
    pub node: String,
    /// A credentials file of NATS (a JWT and an nkey seed).
    pub credentials: Option<PathBuf>,
    /// PEM file with the authorities that signed the certificates of the NATS servers; by default those of the system.
    pub ca: Option<PathBuf>,
    /// How many NATS servers keep each value, from 1 to 5. Only the first gateway of a fleet decides it.
    pub replicas: usize,
}

/// What the admin plane shows of the fleet. Clones share it.
#[derive(Debug, Clone)]
pub struct Fleet {
    board: Board,
}

/// A member that has not begun to follow. It refuses changes until then.
#[derive(Debug)]
pub struct Joining {
    config: Config,
    id: String,
    board: Board,
    puts: mpsc::Receiver<Put>,
}

/// Ends the thread, and takes the gateway out of the fleet's list.
#[derive(Debug)]
pub struct Stop {
    asked: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Default for Config {
    fn default() -> Config {
        let name = "sluicegate".to_owned();
        Config { urls: Vec::new(), name, node: String::new(), credentials: None, ca: None, replicas: 1 }
    }
}

impl Config {
    /// Whether a name can be part of the names of buckets and keys.
    #[must_use]
    pub fn is_name(text: &str) -> bool {
        (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    }

    /// The name of this machine, in the form of a name.
    #[must_use]
    pub fn host() -> String {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.trim();
        let host: String =
            host.chars().take(64).map(|c| if Config::is_name(c.encode_utf8(&mut [0; 4])) { c } else { '-' }).collect();
        if host.is_empty() { "gateway".to_owned() } else { host }
    }
}

impl Fleet {
    /// Prepares to join. The second value is for the manager, which asks it before each change.
    ///
    /// # Errors
    /// When the identity of this gateway cannot be stored in the data directory.
    pub(crate) fn prepare(mut config: Config, data: &Path) -> io::Result<(Fleet, Joining, Box<dyn Peers>)> {
        let id = identity::read_or_make(data)?;
        if config.node.is_empty() {
            config.node = Config::host();
        }
        let board = Board::new(&config);
        // The manager sends one change at a time.
        let (sender, puts) = mpsc::channel(1);
        let changes = Changes::new(board.clone(), sender, config.node.clone());
        Ok((Fleet { board: board.clone() }, Joining { config, id, board, puts }, Box::new(changes)))
    }

    /// The fleet as this gateway sees it.
    #[must_use]
    pub fn view(&self) -> View {
        self.board.view()
    }

    /// What an operator should know, in a sentence. `None` when all is well.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.board.trouble()
    }
}

impl Joining {
    /// Starts to follow the fleet, on a thread of its own.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(self, handle: Handle, reader: Reader, telemetry: &Telemetry) -> io::Result<Stop> {
        let (asked, stop) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let Joining { config, id, board, puts } = self;
        board.count_with(telemetry);
        let follower = session::Member { config, id, board, handle, reader };
        let thread = std::thread::Builder::new().name("fleet".to_owned()).spawn(move || {
            runtime.block_on(follower.run(puts, stop));
        })?;
        Ok(Stop { asked, thread })
    }
}

impl Stop {
    /// Ends the thread, within `within`.
    pub fn stop(self, within: Duration) {
        self.asked.send_replace(true);
        let until = std::time::Instant::now() + within;
        while !self.thread.is_finished() && std::time::Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}
