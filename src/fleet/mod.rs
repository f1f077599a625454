//! fleet: several gateways that share versions, what was decided about their models, tokens, and evidence, through NATS `JetStream` (docs/FLEET.md).
//!
//! - A change of a model or a token becomes one compare-and-set in the fleet's buckets before it is stored here ([`Peers`]).
//! - A thread follows the buckets: what another gateway changed is put in force here, whatever was missed meanwhile.
//! - Every second the gateway reports what it has. A document can only give traffic to versions that are ready on every gateway that should have them.
//! - Evidence is the fleet's: rows with their outcomes and hours of drift are given to all, each counted once (`evidence.rs`, `rows.rs`, `hours.rs`).
//! - The audit trails of all gateways are appended to one chain (`audit.rs`).
//! - A rollout has one driver, which judges the sums of what all gateways counted (`rollouts.rs`, `shares.rs`).
//! - A push puts a version into the fleet's store; every gateway that should have it fetches it, as from any source of versions.
//! - Cut off from NATS, a gateway serves what it has, says so, and refuses changes.
//!
//! Uses: access (patterns), drift (hours), ledger (what is shared, tokens, histories), lifecycle (handle), machine (durable files), mirror (what it lists and reads), model, profile (first days), quality (rows), record (the key of its hashes), registry (reader), rollout (what it needs of other gateways), route, settings (addresses without logins), telemetry.
//!
//! Invariant: a request never waits for another machine, and the clock decides nothing: revisions of the bucket do.
//!
//! To share something else of a model: a field of [`crate::ledger::SharedModel`]. Something that belongs to no model: a bucket in `session.rs`, and a file with
//! its form and a future beside the session that follows it, as `tokens.rs`.

mod audit;
mod board;
mod catalogue;
mod change;
mod evidence;
mod export;
mod gateways;
mod give;
mod hash_key;
mod hours;
mod identity;
mod own;
mod placement;
mod places;
mod push;
mod rollouts;
mod rows;
mod seed;
mod session;
mod shares;
mod source;
mod state;
mod store;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_evidence;
#[cfg(test)]
mod tests_followers;
#[cfg(test)]
mod tests_gateways;
#[cfg(test)]
mod tests_placement;
#[cfg(test)]
mod tests_rollouts;
mod tokens;
mod versions;
mod wire;

pub use board::{NodeView, RolloutView, Troubles, View};
pub(crate) use evidence::Counted;
pub use export::FleetState;
pub(crate) use hash_key::agree as agree_on_hash_key;
pub use placement::{Labels, Rule};
pub(crate) use push::Pushing;
pub(crate) use seed::{Seeded, seed};
pub(crate) use tokens::{Place, Reload};
pub use wire::{Fetching, NodeModel};

use crate::drift::Drift;
use crate::lifecycle::{Handle, Peers};
use crate::mirror::{Mirror, Other};
use crate::model::{ModelName, VersionId};
use crate::quality::Quality;
use crate::registry::Reader;
use crate::rollout::Fellows;
use crate::telemetry::Telemetry;
use board::Board;
use catalogue::Catalogue;
use change::Changes;
use evidence::Evidence;
use rollouts::Rollouts;
use session::Puts;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokens::TokenTable;
use tokio::sync::{Semaphore, mpsc, watch};
use versions::Versions;

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
    /// What this gateway is, such as `region = "eu"`.
    pub labels: Labels,
    /// Where models are: the first rule that fits a model. A model without a rule is on every gateway. The same on all gateways.
    pub placement: Vec<Rule>,
}

/// What the admin plane shows of the fleet. Clones share it.
#[derive(Debug, Clone)]
pub struct Fleet {
    board: Board,
    sharing: Arc<Sharing>,
    rollouts: Rollouts,
    evidence: Evidence,
}

/// What pushes and fetches share.
#[derive(Debug)]
struct Sharing {
    config: Config,
    catalogue: Catalogue,
    /// Pushes that are being stored. More are refused: each holds a few chunks in memory, and they share one network.
    pushes: Arc<Semaphore>,
}

/// The name of the fleet's store among the sources of versions.
const SOURCE: &str = "fleet";
/// How long somebody who asks for all gateways waits for their reports.
const LISTED: Duration = Duration::from_secs(3);
/// The most pushes that one gateway stores at the same time.
const PUSHES: usize = 4;

/// A member that has not begun to follow. It refuses changes until then.
#[derive(Debug)]
pub struct Joining {
    config: Config,
    id: String,
    board: Board,
    rollouts: Rollouts,
    evidence: Evidence,
    tokens: TokenTable,
    puts: Puts,
    catalogue: Catalogue,
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
        Config {
            urls: Vec::new(),
            name,
            node: String::new(),
            credentials: None,
            ca: None,
            replicas: 1,
            labels: Labels::new(),
            placement: Vec::new(),
        }
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
        let ((puts, states), (token_puts, token_changes)) = (mpsc::channel(1), mpsc::channel(1));
        let (tokens, node) = (TokenTable::default(), config.node.clone());
        let rollouts = Rollouts::new(board.clone(), node.clone());
        let changes = Changes {
            board: board.clone(),
            rollouts: rollouts.clone(),
            tokens: tokens.clone(),
            puts,
            token_puts,
            node,
        };
        let puts = Puts { states, tokens: token_changes };
        let catalogue = Catalogue::default();
        let pushes = Arc::new(Semaphore::new(PUSHES));
        let sharing = Arc::new(Sharing { config: config.clone(), catalogue: catalogue.clone(), pushes });
        let evidence = Evidence::new(board.clone(), config.node.clone(), id.clone());
        let fleet = Fleet { board: board.clone(), sharing, rollouts: rollouts.clone(), evidence: evidence.clone() };
        Ok((fleet, Joining { config, id, board, rollouts, evidence, tokens, puts, catalogue }, Box::new(changes)))
    }

    /// The fleet as this gateway sees it. In a large fleet the reports of all gateways are read first, for at most 3 s.
    ///
    /// # Errors
    /// In words, when they could not be read in that time. A gateway that is cut off shows what it knew.
    pub async fn view(&self) -> Result<View, String> {
        if !self.board.all_known(LISTED).await && self.board.is_following() {
            return Err("the reports of the fleet's gateways are being read: try again in a moment".to_owned());
        }
        Ok(View { rollouts: self.rollouts.views(), ..self.board.view() })
    }

    /// What rollouts need of the other gateways.
    pub(crate) fn fellows(&self) -> Arc<dyn Fellows> {
        Arc::new(self.rollouts.clone())
    }

    /// Makes rows and counts of drift those of the fleet. Before anything is counted, and before what was counted earlier is read.
    /// `key`: tells the key that route keys are hashed with apart from those of others.
    pub(crate) fn share(&self, quality: &Quality, drift: &Drift, key: String) {
        self.evidence.set_key(key);
        quality.history().share_with(Arc::new(self.evidence.clone()));
        drift.share();
    }

    /// Waits until the rows of other gateways are as new as they can be, at most 3 s.
    pub(crate) async fn newest(&self, model: &ModelName) {
        self.evidence.newest(model).await;
    }

    /// The name of this gateway.
    #[must_use]
    pub(crate) fn node(&self) -> &str {
        &self.sharing.config.node
    }

    /// Whether this gateway is the one that tells what is wrong with the fleet as a whole: the first by name of those that are there. `None` while it is
    /// cut off.
    #[must_use]
    pub fn tells(&self) -> Option<bool> {
        self.board.tells()
    }

    /// What is wrong, for alerts.
    #[must_use]
    pub fn troubles(&self) -> Troubles {
        self.board.troubles()
    }

    /// All that the fleet shares, without its tokens.
    ///
    /// # Errors
    /// In words, when this gateway is cut off, or cannot read some of it.
    pub fn state(&self) -> Result<FleetState, String> {
        self.board.all()
    }

    /// The fleet's store as a source of versions.
    #[must_use]
    pub(crate) fn source(&self, reader: Reader) -> Other {
        let Sharing { config, catalogue, .. } = &*self.sharing;
        source::source(config.clone(), catalogue.clone(), self.board.clone(), reader)
    }

    /// Whether this gateway is to have a model, or still has to serve it.
    #[must_use]
    pub(crate) fn keeps(&self, model: &ModelName, reader: &Reader) -> bool {
        self.board.keeps(model, reader)
    }

    /// Whether this gateway is one of those that should have a model.
    #[must_use]
    pub fn is_here(&self, model: &ModelName) -> bool {
        self.board.is_here(model)
    }

    /// Whether a version that this gateway lacks is on its way from the fleet's store, in words.
    #[must_use]
    pub(crate) fn comes(&self, id: &VersionId) -> Option<String> {
        let is_listed = self.sharing.catalogue.has(id) && self.board.is_here(&id.model);
        is_listed.then(|| {
            format!("version {} is in the fleet's store, and is being fetched here: try again shortly", id.version)
        })
    }

    /// Where a model is that this gateway should not have, in a sentence. `None` where it should have it, or the fleet does not know it.
    #[must_use]
    pub fn elsewhere(&self, model: &str) -> Option<String> {
        self.board.elsewhere(model, || self.sharing.catalogue.has_model(model))
    }

    /// What an operator should know, in a sentence. `None` when all is well.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let waits = || "this gateway waits for what its fleet says of its models".to_owned();
        self.board.trouble().or_else(|| (!self.board.has_begun()).then(waits))
    }
}

impl Joining {
    /// Starts to follow the fleet, on a thread of its own. `place`: where it has its tokens.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn start(
        self,
        handle: Handle,
        reader: Reader,
        (place, mirror, counted): (Place, Mirror, Counted),
        telemetry: &Telemetry,
    ) -> io::Result<Stop> {
        let (asked, stop) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let Joining { config, id, board, rollouts, evidence, tokens, puts, catalogue } = self;
        board.count_with(telemetry);
        let versions = Versions { catalogue, board: board.clone(), mirror };
        let stranger = std::cell::Cell::new(None);
        let follower = session::Member {
            config,
            id,
            board,
            rollouts,
            evidence,
            counted,
            handle,
            reader,
            versions,
            tokens,
            place,
            stranger,
        };
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
