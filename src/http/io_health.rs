//! Heartbeats of the I/O threads. A thread whose heart does not beat is held by a run or by a long piece of work: it answers nothing, so
//! it gets no new connections, and those that it has not looked at yet go to another one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time between two beats.
const BEAT: Duration = Duration::from_millis(250);
/// The time between two beats of a thread that was late, to see soon when it has caught up.
const BEAT_WHILE_LATE: Duration = Duration::from_millis(25);
/// A beat is late from here on. Timers have a resolution of a millisecond.
const LATE: Duration = Duration::from_millis(5);
/// A thread that was silent for this long gets no new connections. Shorter pauses happen on a busy machine.
pub(super) const SILENT: Duration = Duration::from_secs(1);
/// Where every thread was silent for this long, the data plane answers nobody.
const DEAD: Duration = Duration::from_secs(5);

/// The heartbeats of all I/O threads.
#[derive(Debug, Default)]
pub struct IoThreads(Mutex<Vec<Arc<Heart>>>);

/// One thread's heart.
#[derive(Debug)]
pub(super) struct Heart {
    thread: String,
    since: Instant,
    /// The last beat, in nanoseconds since `since`.
    last: AtomicU64,
    /// How late the last two beats were, the smaller of both, in nanoseconds.
    late: AtomicU64,
}

impl Heart {
    /// Beats for as long as it is polled.
    pub(super) async fn beat(&self) {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let mut late_before = Duration::ZERO;
        let mut due = tokio::time::Instant::now();
        loop {
            tokio::time::sleep_until(due).await;
            let now = tokio::time::Instant::now();
            self.last.store(nanos(self.since.elapsed()), Ordering::Relaxed);
            let late = now.saturating_duration_since(due);
            // The smaller of two, because a single pause of the machine is over when it is noticed.
            self.late.store(nanos(late.min(late_before)), Ordering::Relaxed);
            late_before = late;
            due = now + if late > LATE { BEAT_WHILE_LATE } else { BEAT };
        }
    }

    /// How long a task of this thread waits until it is run: what a request waits for before it is read. It is measured every 250 ms, and
    /// every 25 ms while the thread is late.
    pub(super) fn late(&self) -> Duration {
        Duration::from_nanos(self.late.load(Ordering::Relaxed))
    }

    fn silent_for(&self) -> Duration {
        self.since.elapsed().saturating_sub(Duration::from_nanos(self.last.load(Ordering::Relaxed)))
    }

    pub(super) fn is_silent(&self) -> bool {
        self.silent_for() >= SILENT
    }
}

impl IoThreads {
    /// Adds a thread. It counts until [`IoThreads::remove`].
    pub(super) fn add(&self, thread: String) -> Arc<Heart> {
        let heart = Arc::new(Heart { thread, since: Instant::now(), last: AtomicU64::new(0), late: AtomicU64::new(0) });
        self.lock().push(Arc::clone(&heart));
        heart
    }

    pub(super) fn remove(&self, heart: &Arc<Heart>) {
        self.lock().retain(|other| !Arc::ptr_eq(other, heart));
    }

    /// Adds a sentence for each thread that answers nothing now. Returns false where no thread answers.
    pub fn add_stuck_to(&self, stuck: &mut Vec<String>) -> bool {
        let hearts = self.lock();
        for heart in hearts.iter().filter(|heart| heart.silent_for() >= 2 * SILENT) {
            let seconds = heart.silent_for().as_secs_f64();
            stuck.push(format!("thread {}: its connections have waited for {seconds:.0} s", heart.thread));
        }
        hearts.is_empty() || hearts.iter().any(|heart| heart.silent_for() < DEAD)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Heart>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
