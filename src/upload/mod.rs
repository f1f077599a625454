//! upload: copies sealed files of the prediction log into object storage, or a directory (`docs/UPLOAD.md`).
//!
//! - [`Uploads::start`] starts one thread at low priority. It takes the files that wait from the log, one after the other, and tells the log which of them are
//!   in the bucket. Only then may they be deleted here before their time.
//! - An upload that a kill ended goes on where it was, with the same object. A file whose object is there already is not sent.
//! - [`Place`] says where the files of a data directory are uploaded to, also to commands that run without a server.
//! - Every request has a deadline, bandwidth and memory are bounded, and failures are told in words and tried again later and later.
//!
//! Uses: bucket (clients), machine (durable files, priority), model (messages of panics), record (the files that wait), telemetry.
//!
//! Invariant: nobody waits for this thread: not a request, not the writer, not the sealer.
//!
//! To upload something else: what waits comes from `record`; names are made in `place.rs`.

mod begun;
mod counts;
mod place;
mod transfer;
mod worker;

pub use begun::end_begun;
pub use place::Place;

use crate::bucket::{self, Address, Settings};
use crate::record::{Log, Waiting};
use crate::telemetry::Telemetry;
use counts::Counts;
use crossbeam_channel::Receiver;
use jiff::Timestamp;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use worker::Worker;

/// How files are uploaded. The keys of `[prediction_log]` have `upload_` before these names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The bucket and prefix, or a directory. Default none: nothing is uploaded.
    pub to: Option<Address>,
    /// This gateway in the names of objects. Empty: `fleet.node`, else the name of the host.
    pub node: String,
    /// The bandwidth, on average; 0 is no limit. Default 16 MiB/s: an eighth of a gigabit.
    pub bytes_per_second: u64,
    /// Uploaded files that are older are deleted here. Default `None`: when `keep_for` or `disk_budget` want it.
    pub keep_local: Option<Duration>,
    /// The longest time for one request, with up to 8 MiB. Default 2 min: 70 KB/s.
    pub timeout: Duration,
    /// Whether to ask the metadata service of the cloud's machine for credentials. Default false: where there is none, every request waits for it.
    pub instance_metadata: bool,
}

/// The uploads of this gateway. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Uploads(Arc<Shared>);

/// Ends the thread.
#[derive(Debug)]
pub struct Stop {
    /// When the thread must have ended.
    stopping: watch::Sender<Option<Instant>>,
    ended: Receiver<()>,
    thread: JoinHandle<()>,
}

/// What operators read of uploads.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    /// The address of the configuration.
    pub to: String,
    pub node: String,
    /// Files that arrived since the start, and the bytes that were sent for them.
    pub files: u64,
    pub bytes: u64,
    pub last_uploaded: Option<Timestamp>,
    /// Since when no file could be uploaded, and why; both `None` while it works.
    pub failing_since: Option<Timestamp>,
    pub last_error: Option<String>,
    pub waiting: Waiting,
}

#[derive(Debug)]
struct Shared {
    place: Place,
    log: Log,
    state: Mutex<State>,
}

/// Since the start.
#[derive(Debug, Default)]
struct State {
    files: u64,
    bytes: u64,
    last_uploaded: Option<Timestamp>,
    failing_since: Option<Timestamp>,
    last_error: Option<String>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            to: None,
            node: String::new(),
            bytes_per_second: 16 << 20,
            keep_local: None,
            timeout: Duration::from_mins(2),
            instance_metadata: false,
        }
    }
}

impl Uploads {
    /// Starts the thread, where the configuration names a bucket. `node`: the name of this gateway where the configuration has none. The log must know the
    /// address too.
    ///
    /// # Errors
    /// When the environment has settings that cannot be used, the data directory or a directory of uploads cannot be written, or the thread cannot be
    /// started.
    pub(crate) fn start(
        config: &Config,
        data: PathBuf,
        node: &str,
        log: Log,
        telemetry: &Telemetry,
    ) -> io::Result<Option<(Uploads, Stop)>> {
        let Some(to) = &config.to else { return Ok(None) };
        let node = if config.node.is_empty() { node } else { &config.node };
        bucket::check_writable(to, &data)?;
        let place = Place::make(&data, to, node)?;
        let settings = Settings { timeout: config.timeout, retries: 0, instance_metadata: config.instance_metadata };
        let client = bucket::open(to.scheme, &to.name, &settings);
        let client = client.map_err(|words| io::Error::other(format!("{to}: {words}")))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
        let shared = Arc::new(Shared { place, log, state: Mutex::default() });
        let (stopping, stop) = watch::channel(None);
        let (alive, ended) = crossbeam_channel::bounded::<()>(0);
        let worker = Worker {
            shared: Arc::clone(&shared),
            data,
            to: to.clone(),
            client,
            timeout: config.timeout,
            pace: transfer::Pace::new(config.bytes_per_second),
            counts: Counts::new(telemetry),
            tries: std::collections::BTreeMap::new(),
            failures: 0,
            stop,
        };
        let thread = std::thread::Builder::new().name("upload".to_owned()).spawn(move || {
            let _alive = alive;
            worker.run(&runtime);
            // A call of a network file system may never end.
            runtime.shutdown_background();
        })?;
        Ok(Some((Uploads(shared), Stop { stopping, ended, thread })))
    }

    /// What was uploaded, what waits, and what is wrong.
    #[must_use]
    pub(crate) fn report(&self) -> Report {
        let Shared { place, log, .. } = &*self.0;
        let waiting = log.waiting();
        let state = self.0.state();
        Report {
            to: place.to.clone(),
            node: place.node.clone(),
            files: state.files,
            bytes: state.bytes,
            last_uploaded: state.last_uploaded,
            failing_since: state.failing_since,
            last_error: state.last_error.clone(),
            waiting,
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stop {
    /// Uploads what waits while that works, within `limit`. The next start goes on.
    pub fn stop(self, limit: Duration) {
        let until = Instant::now() + limit;
        self.stopping.send_replace(Some(until));
        // Nothing is ever sent: the channel is disconnected when the thread ends. It notices the deadline itself.
        let ended = self.ended.recv_deadline(until + Duration::from_millis(500));
        if matches!(ended, Err(crossbeam_channel::RecvTimeoutError::Timeout)) {
            tracing::warn!("the thread that uploads files did not end in time; the next start goes on");
            return;
        }
        let _ = self.thread.join();
    }
}
