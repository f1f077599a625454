//! shadow: copies of live requests for versions whose answers no caller sees, and the comparison with the primary's answers.
//!
//! - [`Shadows::admit`] decides whether a shadow takes one more copy. [`Shadows::offer`] then takes the request with its primary's
//!   answer ([`Original`]). Neither waits: the queue is bounded and has no lock and no system call. A copy that does not fit is
//!   dropped and counted by reason: offered = compared + dropped + waiting.
//! - Each shadow has a bounded lane of its own, and the lanes take turns. So too many copies for one shadow do not push out those
//!   of another. A few threads at the lowest priority run the copies.
//! - [`Figures`] keeps running figures and the worst pairs for every primary and shadow.
//!
//! Uses: compare, execute (limits of runs), machine (priority), marks, record (offers), registry (reader, and through it what is loaded), model, tensor, telemetry.
//!
//! Invariant: a caller never waits for anything in this room.
//!
//! To add a figure: a field in `compare/pairs.rs`, updated where a pair is recorded, and shown by the admin plane.

mod figures;
mod lanes;
mod original;
mod records;
#[cfg(test)]
mod tests;
mod worker;

pub use crate::compare::{Agreement, Alternated, Latency, OutputFigures, PairFigures, Side, WorstPair};
pub use figures::Figures;
pub use original::Original;

use crate::model::{Answer, Checked, Failure};
use crate::record::{Log, Stream};
use crate::registry::{Reader, Served};
use crate::telemetry::Dropped;
use crossbeam_queue::ArrayQueue;
use lanes::Lanes;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The limits on what shadows may use.
#[derive(Debug, Clone)]
pub struct Config {
    /// Threads that run copies, at the lowest priority.
    pub threads: NonZeroUsize,
    /// Copies of one shadow that may wait or run at once. One more is dropped.
    pub queue: usize,
    /// Bytes of tensors, inputs and the primary's outputs, that all waiting copies may hold. A copy beyond this is dropped.
    pub queue_bytes: usize,
}

/// Takes copies and runs them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shadows(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Config,
    /// Copies on their way from the threads that answer callers to the sorting thread, which polls. Full: the copy is dropped.
    intake: ArrayQueue<ShadowCopy>,
    /// Bytes of all copies that are not finished.
    waiting_bytes: AtomicUsize,
    lanes: Lanes,
    figures: Figures,
    reader: Reader,
    log: Option<Log>,
    stopping: AtomicBool,
}

/// A shadow that gets a copy of a request.
#[derive(Debug, Clone)]
pub struct Target {
    pub served: Arc<Served>,
    /// The shadow's record stream; `None` where it is not recorded.
    pub stream: Option<Arc<Stream>>,
}

/// A request's copy for one shadow.
#[derive(Debug)]
struct ShadowCopy {
    original: Arc<Original>,
    shadow: Arc<Served>,
    stream: Option<Arc<Stream>>,
    bytes: usize,
}

/// A copy that ran.
#[derive(Debug)]
struct FinishedCopy {
    copy: ShadowCopy,
    /// The request, checked against the shadow's signature; `None` where it does not fit.
    request: Option<Arc<Checked>>,
    outcome: Result<(Answer, Duration), Failure>,
    /// Both sides answered, and the answers agree.
    agrees: bool,
}

/// Copies between two polls of the sorting thread: 20 ms of 100,000 requests a second.
const INTAKE: usize = 2048;
/// The polling interval while copies come. Waking a thread for each copy would cost the thread that answers callers microseconds, and a
/// shorter interval would cost this one as much.
const BUSY_POLL: Duration = Duration::from_millis(2);
/// The polling interval while no copies come.
const IDLE_POLL: Duration = Duration::from_millis(20);

impl Shadows {
    /// Starts the threads. `log`: where shadows' answers are recorded.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(config: Config, figures: Figures, reader: Reader, log: Option<Log>) -> std::io::Result<Shadows> {
        let threads = config.threads.get();
        let shared = Arc::new(Shared {
            config,
            intake: ArrayQueue::new(INTAKE),
            waiting_bytes: AtomicUsize::new(0),
            lanes: Lanes::default(),
            figures,
            reader,
            log,
            stopping: AtomicBool::new(false),
        });
        let sorting = Arc::clone(&shared);
        std::thread::Builder::new().name("shadow-sort".to_owned()).spawn(move || sort(&sorting))?;
        for number in 0..threads {
            worker::start(&shared, number)?;
        }
        Ok(Shadows(shared))
    }

    /// Whether a shadow takes one more copy. The copy is counted as offered in any case, and as dropped where this returns false.
    /// Called before a copy is built, because a shadow slower than its sample refuses most copies. `busy`: callers' requests wait
    /// for a worker, so shadows get nothing. An admitted copy has to be given to [`Shadows::offer`].
    #[must_use]
    pub fn admit(&self, shadow: &Served, busy: bool) -> bool {
        let counts = shadow.loaded.metrics.shadow();
        let waiting = counts.offered();
        let refused = if self.0.is_stopping() {
            Dropped::Stopping
        } else if busy {
            Dropped::Busy
        } else if waiting > self.0.config.queue as u64 {
            Dropped::QueueFull
        } else {
            return true;
        };
        counts.dropped(refused);
        false
    }

    /// Bytes of the copies that wait or run. At most [`Config::queue_bytes`].
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.0.waiting_bytes.load(Ordering::Relaxed)
    }

    /// Offers a request to the shadows that admitted it. Never waits.
    pub fn offer(&self, original: Original, to: impl IntoIterator<Item = Target>) {
        let Shared { config, intake, waiting_bytes, .. } = &*self.0;
        let bytes = original.bytes();
        let original = Arc::new(original);
        for Target { served, stream } in to {
            let fits = waiting_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes <= config.queue_bytes;
            let copy = ShadowCopy { original: Arc::clone(&original), shadow: served, stream, bytes };
            if !fits {
                self.0.drop_copy(copy, Dropped::QueueBytes);
            } else if let Err(copy) = intake.push(copy) {
                self.0.drop_copy(copy, Dropped::QueueFull);
            }
        }
    }

    /// The figures of all pairs.
    #[must_use]
    pub fn figures(&self) -> &Figures {
        &self.0.figures
    }

    /// Takes no more copies and drops those that wait. Runs in progress end by themselves.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
        self.0.lanes.close();
    }
}

impl Shared {
    fn drop_copy(&self, copy: ShadowCopy, reason: Dropped) {
        let ShadowCopy { shadow, bytes, .. } = copy;
        self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
        shadow.loaded.metrics.shadow().dropped(reason);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Moves new copies to their lanes, all at once. Returns whether there were any.
    fn sort_intake(&self, copies: &mut Vec<ShadowCopy>) -> bool {
        copies.extend(std::iter::from_fn(|| self.intake.pop()).take(INTAKE));
        let any = !copies.is_empty();
        self.lanes.push_all(copies);
        any
    }

    /// Records and frees the copies that ran. Returns whether there were any.
    fn release_finished(&self) -> bool {
        let finished = self.lanes.take_finished();
        let any = !finished.is_empty();
        for finished in finished {
            if let Some(log) = &self.log {
                records::offer(log, &finished);
            }
            self.waiting_bytes.fetch_sub(finished.copy.bytes, Ordering::AcqRel);
        }
        any
    }

    /// Drops the copies for versions that are not shadows any more.
    fn drop_removed_shadows(&self) {
        let snapshot = self.reader.snapshot();
        let is_shadow = |served: &Served| {
            let entry = snapshot.model(served.loaded.model.as_str());
            entry.is_some_and(|e| e.shadows().iter().any(|s| Arc::ptr_eq(&s.served.loaded, &served.loaded)))
        };
        for copy in self.lanes.retain(is_shadow) {
            self.drop_copy(copy, Dropped::Gone);
        }
    }
}

/// The sorting thread moves copies from the intake to the lanes, and records and frees the finished ones. It runs at normal priority,
/// so that a thread without a core never holds memory or locks of the threads that answer callers.
fn sort(shared: &Shared) {
    let mut last_copy = Instant::now();
    let mut last_look = last_copy;
    let mut copies = Vec::new();
    while !shared.is_stopping() {
        let now = Instant::now();
        let came = shared.sort_intake(&mut copies);
        let finished = shared.release_finished();
        if now - last_look >= IDLE_POLL {
            shared.drop_removed_shadows();
            last_look = now;
        }
        if came || finished {
            last_copy = now;
        }
        std::thread::park_timeout(if now - last_copy < IDLE_POLL * 5 { BUSY_POLL } else { IDLE_POLL });
    }
    shared.release_finished();
    while let Some(copy) = shared.intake.pop() {
        shared.drop_copy(copy, Dropped::Stopping);
    }
    for copy in shared.lanes.retain(|_| false) {
        shared.drop_copy(copy, Dropped::Stopping);
    }
}
