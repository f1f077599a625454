//! shadow: copies of live requests, for versions that answer nobody, and what comes of comparing.
//!
//! - [`Shadows::admit`] says whether a shadow takes one more copy; [`Shadows::offer`] then takes the request as its primary answered
//!   it ([`Original`]). Neither waits: a bounded queue without a lock, no system call. What does not fit is dropped and counted by
//!   reason: offered = compared + dropped + waiting.
//! - Each shadow has a bounded lane of its own, and the lanes take turns: a flood to one pushes out no other's copies. A few threads
//!   at the lowest priority run them.
//! - [`Figures`] is what is known of every pair of a primary and a shadow: running figures and the worst pairs.
//!
//! Uses: compare, record (offers), registry (reader, and through it what is loaded), model, tensor, telemetry.
//!
//! Invariant: nothing a caller waits for waits for anything here.
//!
//! To add a figure: a field in `compare/pairs.rs`, recorded where a pair is, shown by the admin plane.

mod figures;
mod lanes;
mod original;
mod remember;
#[cfg(test)]
mod tests;
mod work;

pub use crate::compare::{Agreement, Latency, OutputFigures, PairFigures, Side, WorstPair};
pub use figures::Figures;
pub use original::{Original, Recording};

use crate::model::{Answer, Checked, Failure};
use crate::record::{Log, Stream};
use crate::registry::{Reader, Served};
use crate::telemetry::Dropped;
use crossbeam_queue::ArrayQueue;
use lanes::Lanes;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// What shadows may cost.
#[derive(Debug, Clone)]
pub struct Config {
    /// Threads that run copies, at the lowest priority.
    pub threads: NonZeroUsize,
    /// Copies that may wait for one shadow, the one under way included.
    pub queue: usize,
    /// Bytes of tensors, of inputs and of the primary's outputs, that may wait together.
    pub queue_bytes: usize,
}

/// Takes copies in and runs them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shadows(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Config,
    /// From the threads that answer callers to the sorting thread. Nobody waits on it: the sorting thread looks from time to time.
    intake: ArrayQueue<Copied>,
    /// Of all copies that wait, wherever they do.
    waiting_bytes: AtomicUsize,
    lanes: Lanes,
    figures: Figures,
    reader: Reader,
    log: Option<Log>,
    stopping: AtomicBool,
}

/// A shadow that a request was drawn for.
#[derive(Debug, Clone)]
pub struct Target {
    pub served: Arc<Served>,
    /// Where its records go; `None` where they are not wanted.
    pub stream: Option<Arc<Stream>>,
}

/// One shadow's copy of a request.
#[derive(Debug)]
struct Copied {
    original: Arc<Original>,
    shadow: Arc<Served>,
    stream: Option<Arc<Stream>>,
    bytes: usize,
}

/// A copy that was run.
#[derive(Debug)]
struct Done {
    copied: Copied,
    /// As the shadow takes it; `None` where it does not.
    request: Option<Arc<Checked>>,
    outcome: Result<(Answer, Duration), Failure>,
    /// With the primary's answer; two failures do not.
    agrees: bool,
}

/// Copies between two looks of the sorting thread: 20 ms of 100,000 requests a second.
const INTAKE: usize = 2048;
/// Between looks while copies come. Waking a thread for each copy would cost the thread that answers callers some microseconds.
const BUSY_LOOK: Duration = Duration::from_millis(1);
/// Between looks while none come.
const IDLE_LOOK: Duration = Duration::from_millis(20);

impl Shadows {
    /// Starts the threads. `log`: where what shadows answer is remembered.
    ///
    /// # Errors
    /// When the system gives no thread.
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
        for i in 0..threads {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("shadow-{i}")).spawn(move || work::run(&shared))?;
        }
        Ok(Shadows(shared))
    }

    /// Whether a shadow takes one more copy; counted as offered either way, and as dropped where it does not. Asked before anything
    /// is put together for it, as a shadow that is slower than its sample refuses most. `busy`: callers' requests wait for a worker,
    /// so there is nothing to spare. What was admitted has to be given to [`Shadows::offer`].
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

    /// Gives a request to each of the shadows that admitted it. Never waits.
    pub fn offer(&self, original: Original, to: impl IntoIterator<Item = Target>) {
        let Shared { config, intake, waiting_bytes, .. } = &*self.0;
        let bytes = original.bytes();
        let original = Arc::new(original);
        for Target { served, stream } in to {
            let fits = waiting_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes <= config.queue_bytes;
            let copied = Copied { original: Arc::clone(&original), shadow: served, stream, bytes };
            if !fits {
                self.0.drop_copy(copied, Dropped::QueueBytes);
            } else if let Err(copied) = intake.push(copied) {
                self.0.drop_copy(copied, Dropped::QueueFull);
            }
        }
    }

    /// What is known of the pairs.
    #[must_use]
    pub fn figures(&self) -> &Figures {
        &self.0.figures
    }

    /// Takes no more copies and drops those that wait; a run under way ends by itself.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
        self.0.lanes.close();
    }
}

impl Shared {
    fn drop_copy(&self, copied: Copied, why: Dropped) {
        let Copied { shadow, bytes, .. } = copied;
        self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
        shadow.loaded.metrics.shadow().dropped(why);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// The sorting thread: moves copies from the intake to their shadows' lanes, and records and frees those that were run; at normal
/// priority, so that nothing of the threads that answer callers is ever held by one that the system does not let run.
fn sort(shared: &Shared) {
    let mut last_copy = std::time::Instant::now();
    while !shared.is_stopping() {
        let now = std::time::Instant::now();
        let mut came = false;
        while let Some(copied) = shared.intake.pop() {
            came = true;
            shared.lanes.push(copied);
        }
        for done in shared.lanes.take_done() {
            came = true;
            if let Some(log) = &shared.log {
                remember::remember(log, &done);
            }
            shared.waiting_bytes.fetch_sub(done.copied.bytes, Ordering::AcqRel);
        }
        let snapshot = shared.reader.snapshot();
        let is_shadow = |served: &Served| {
            let entry = snapshot.model(served.loaded.model.as_str());
            entry.is_some_and(|e| e.shadows().iter().any(|s| Arc::ptr_eq(&s.served.loaded, &served.loaded)))
        };
        for copied in shared.lanes.retain(is_shadow) {
            shared.drop_copy(copied, Dropped::Gone);
        }
        drop(snapshot);
        if came {
            last_copy = now;
        }
        std::thread::park_timeout(if now - last_copy < IDLE_LOOK * 5 { BUSY_LOOK } else { IDLE_LOOK });
    }
    for done in shared.lanes.take_done() {
        if let Some(log) = &shared.log {
            remember::remember(log, &done);
        }
    }
    while let Some(copied) = shared.intake.pop() {
        shared.drop_copy(copied, Dropped::Stopping);
    }
    for copied in shared.lanes.retain(|_| false) {
        shared.drop_copy(copied, Dropped::Stopping);
    }
}
