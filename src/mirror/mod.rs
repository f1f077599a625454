//! mirror: reads versions from buckets, web servers and registries into the data directory.
//!
//! - [`Mirror::start`] starts one thread for each [`Source`], at low priority. It lists the source, reads what is new, checks it, and gives each version its
//!   directory by one rename when all its files are there. The server watches that directory like the models directory.
//! - A kind of source lists and reads, and nothing else. Resuming, digests, the cache, precedence, back-off and reports are the same for all.
//! - What a source cannot give is told on the version, and changes nothing that is stored. Every wait has a deadline; sizes and numbers are bounded.
//! - What is stored follows from a plan (`plan.rs`), which is a pure function of what the sources have and what the traffic documents name.
//! - Each step can be killed: a version is there or not, and a download goes on where it stopped.
//!
//! Uses: archive (layers of images), bucket (clients), machine (files, priority, disk space), model, source (what is told about a version), telemetry.
//!
//! Invariant: nothing here knows which versions are loaded.
//!
//! To add a kind of source: an implementation of [`Source`], and its address in `address.rs`.

mod address;
mod bucket;
mod counts;
mod download;
#[cfg(test)]
mod hostile;
mod layout;
mod login;
mod oci;
mod offer;
mod plan;
mod registry;
mod report;
mod state;
mod store;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_registry;
mod unpack;
mod web;
mod wire;
mod worker;

pub use address::Address;
pub(crate) use offer::{Content, Listing, Offer, Place, RemoteFile, Sink, Source, Trouble};
pub(crate) use report::{Report, SourceReport, Unfinished, VersionReport};

use crate::model::VersionId;
use crate::source::Awaited;
use crate::telemetry::Telemetry;
use address::Kind;
use counts::Counts;
use crossbeam_channel::{Sender, bounded};
use state::{Rules, State};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::Store;
use worker::Worker;

/// `[models.sources]`: where versions come from beside the models directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The sources, the first one that has a version gives it. Default none.
    pub uris: Vec<Address>,
    /// The time between two listings of a source. Default 30 s: a release is found within a minute, and a listing costs a cent per ten thousand or less.
    pub interval: Duration,
    /// The most bytes in the data directory. Default 20 GiB: dozens of usual models. A disk that is smaller bounds it too.
    pub cache: u64,
    /// How many of the newest versions of each model are read. Default 10: enough to go back, and not a whole history.
    pub versions: usize,
    /// The time limit of each wait for a source. Default 30 s: longer than a busy server takes, and a dead one is noticed.
    pub timeout: Duration,
    /// Whether the metadata service of the cloud's machine is asked for credentials. Default false: where there is none, every read waits for it.
    pub instance_metadata: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            uris: Vec::new(),
            interval: Duration::from_secs(30),
            cache: 20 << 30,
            versions: 10,
            timeout: Duration::from_secs(30),
            instance_metadata: false,
        }
    }
}

/// Opens a source, on the source's thread. It is called again after an error.
pub(crate) type Make = Box<dyn Fn() -> Result<Box<dyn Source>, Trouble> + Send>;

/// A source that is not one of the addresses.
pub(crate) struct Other {
    /// What operators read.
    pub name: String,
    pub make: Make,
}

/// What the mirror needs beside its settings.
pub(crate) struct Beside {
    /// The directory of the mirror.
    pub dir: PathBuf,
    /// What is there already is not read.
    pub models_dir: PathBuf,
    /// How long two equal listings of a version must be apart.
    pub settle: Duration,
    /// Before all addresses.
    pub first: Vec<Other>,
    /// After all addresses.
    pub others: Vec<Other>,
    /// The versions that the traffic documents name.
    pub named: Box<dyn Fn() -> BTreeSet<VersionId> + Send + Sync>,
    /// Ended when every source that nothing is stored of was read once, or could not be.
    pub awaited: Awaited,
    pub telemetry: Telemetry,
}

/// The running mirror, for reports. Clones are cheap.
#[derive(Clone, Default)]
pub(crate) struct Mirror(Option<Arc<Shared>>);

/// Stops the mirror.
#[derive(Default)]
pub(crate) struct Stop {
    shared: Option<Arc<Shared>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    rules: Rules,
    stopping: AtomicBool,
    wakes: Vec<Sender<()>>,
    /// For each source, the bytes that are here of the version that is being read.
    arrived: Vec<AtomicU64>,
    /// Sources whose first round the start waits for.
    first_rounds: Mutex<BTreeSet<usize>>,
    first_round_within: Duration,
    awaited: Awaited,
}

/// The longest time that a server is not ready because a source is read for the first time.
const FIRST_ROUND: Duration = Duration::from_mins(15);

/// The directory with the versions of a mirror in `dir`.
#[must_use]
pub(crate) fn models_in(dir: &Path) -> PathBuf {
    store::models_in(dir)
}

// === impl Mirror ===

impl Mirror {
    /// Starts the threads. Without sources only what is stored is looked after.
    ///
    /// # Errors
    /// When the directory cannot be used, or the system refuses a thread.
    pub(crate) fn start(config: &Config, beside: Beside) -> io::Result<(Mirror, Stop)> {
        use_ring();
        let addresses =
            config.uris.iter().map(|address| Other { name: address.to_string(), make: make(address, config) });
        let sources: Vec<Other> = beside.first.into_iter().chain(addresses).chain(beside.others).collect();
        let rules = Rules {
            store: Store::open(beside.dir)?,
            models_dir: beside.models_dir,
            newest: config.versions,
            limit: config.cache,
            interval: config.interval,
            named: beside.named,
        };
        let mut state = State::new(sources.iter().map(|source| source.name.clone()).collect(), &rules)?;
        let first_rounds: BTreeSet<usize> = (0..sources.len()).filter(|source| !state.has_stored(*source)).collect();
        if sources.is_empty() {
            state.without_sources(&rules)?;
        }
        if first_rounds.is_empty() {
            beside.awaited.end();
        }
        let (wakes, waiting): (Vec<_>, Vec<_>) = sources.iter().map(|_| bounded(1)).unzip();
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            rules,
            stopping: AtomicBool::new(false),
            wakes,
            arrived: sources.iter().map(|_| AtomicU64::new(0)).collect(),
            first_rounds: Mutex::new(first_rounds),
            first_round_within: FIRST_ROUND,
            awaited: beside.awaited,
        });
        let mut stop = Stop { shared: Some(Arc::clone(&shared)), threads: Vec::new() };
        for (number, (Other { name, make }, wake)) in sources.into_iter().zip(waiting).enumerate() {
            let worker = Worker {
                shared: Arc::clone(&shared),
                source: number,
                counts: Counts::new(&beside.telemetry, &name),
                name,
                make,
                opened: None,
                is_first: true,
                settle: beside.settle,
                seen: BTreeMap::new(),
            };
            let thread = std::thread::Builder::new().name(format!("source-{number}")).spawn(move || worker.run(&wake));
            match thread {
                Ok(thread) => stop.threads.push(thread),
                Err(error) => {
                    stop.stop(Duration::ZERO);
                    return Err(error);
                }
            }
        }
        Ok((Mirror(Some(shared)), stop))
    }

    /// What operators read.
    #[must_use]
    pub(crate) fn report(&self) -> Report {
        let Some(shared) = &self.0 else { return Report::default() };
        let sources = shared.state().reports();
        Report { sources, cache: (shared.rules.store.used(), shared.rules.limit) }
    }

    /// What readiness waits for: sources that are read for the first time, in words.
    #[must_use]
    pub(crate) fn awaited(&self) -> Vec<String> {
        let Some(shared) = &self.0 else { return Vec::new() };
        let first_rounds = shared.first_rounds.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let state = shared.state();
        let names = first_rounds.iter().filter_map(|source| state.sources.get(*source));
        names.map(|source| format!("the source {} is read for the first time", source.name)).collect()
    }

    /// The versions of a source that are to be read and are not there. None where there is no such source.
    #[must_use]
    pub(crate) fn unfinished(&self, source: &str) -> Vec<Unfinished> {
        let Some(shared) = &self.0 else { return Vec::new() };
        let state = shared.state();
        let Some(number) = state.sources.iter().position(|known| known.name == source) else { return Vec::new() };
        state.unfinished(number, shared.arrived[number].load(Ordering::Relaxed))
    }

    /// Keeps a synced file, so that a version that has it need not be read. The file is moved, or stays where it is when it cannot be kept.
    pub(crate) fn adopt(&self, file: &Path) {
        let Some(shared) = &self.0 else { return };
        let (store, limit) = (&shared.rules.store, shared.rules.limit);
        let fits = |meta: std::fs::Metadata| store.used().saturating_add(meta.len()) <= limit;
        if std::fs::metadata(file).is_ok_and(fits)
            && let Err(error) = store.adopt(file)
        {
            tracing::debug!(%error, "a pushed file cannot be kept in the cache: it is fetched");
        }
    }

    /// Has one source listed now.
    pub(crate) fn read_source(&self, source: &str) {
        let Some(shared) = &self.0 else { return };
        let number = shared.state().sources.iter().position(|known| known.name == source);
        if let Some(wake) = number.and_then(|number| shared.wakes.get(number)) {
            // Full: it is being woken already.
            let _ = wake.try_send(());
        }
    }

    /// Has every source listed now.
    pub(crate) fn read_now(&self) {
        for wake in self.0.iter().flat_map(|shared| &shared.wakes) {
            // Full: it is being woken already.
            let _ = wake.try_send(());
        }
    }
}

impl Stop {
    /// Ends the threads. One that waits for a source longer than `within` is left behind: what it does can be killed at any point.
    pub(crate) fn stop(&mut self, within: Duration) {
        let Some(shared) = self.shared.take() else { return };
        shared.stopping.store(true, Ordering::Release);
        Mirror(Some(shared)).read_now();
        let until = Instant::now() + within;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            if thread.is_finished() && thread.join().is_err() {
                tracing::error!("the thread of a source panicked while it ended");
            }
        }
    }
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirror").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stop").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn first_round_over(&self, source: usize) {
        let mut first_rounds = self.first_rounds.lock().unwrap_or_else(PoisonError::into_inner);
        if first_rounds.remove(&source) && first_rounds.is_empty() {
            self.awaited.end();
        }
    }
}

fn make(address: &Address, config: &Config) -> Make {
    let (address, config) = (address.clone(), config.clone());
    Box::new(move || -> Result<Box<dyn Source>, Trouble> {
        Ok(match address.kind() {
            Kind::S3 | Kind::Gcs | Kind::Azure => Box::new(bucket::Bucket::open(&address, &config)?),
            Kind::Http | Kind::Https => Box::new(web::Web::open(&address, &config)?),
            Kind::Oci => Box::new(oci::Oci::open(&address, &config)?),
        })
    })
}

/// The clients of the clouds take the process's provider of cryptography.
fn use_ring() {
    crate::bucket::use_ring();
}
