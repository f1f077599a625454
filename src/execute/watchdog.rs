//! Ends runs: a thread looks at every run in progress, and interrupts those whose time is over or whose callers went away.
//!
//! Each thread that runs models has a [`Slot`], made by its first run. A run writes its limit there when it begins and takes it back
//! when it ends: two atomic operations on memory that only this thread writes, no lock and no system call. The watchdog looks at all
//! slots every [`LOOK`] while something runs.
//!
//! An engine notices an interrupt between two nodes of the graph. A run that is still going [`IGNORED`] later is counted as lost: its
//! thread is replaced, where it said how ([`replace_when_lost`]), and its version is refused after [`MAX_LOST_RUNS`] of them.
//!
//! A run that takes far longer than expected goes on with a lower priority, where its thread said who takes its place
//! ([`step_aside_when_slow`]): the threads that answer in microseconds would wait for its time slices.
//!
//! There is one watchdog in a process, as threads of all rooms run models.

use crate::backend::Interrupt;
use crate::machine;
use crate::model::panic_message;
use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How often the watchdog looks while something runs: a run is interrupted at most this long after its limit.
const LOOK: Duration = Duration::from_millis(25);
/// How often it looks where nothing ran since the last time: the first run after a pause is interrupted at most this long after its limit.
const LOOK_IDLE: Duration = Duration::from_millis(200);
/// A run that goes on for this long after its interrupt has ignored it. One node of a graph rarely takes as long.
const IGNORED: Duration = Duration::from_secs(2);
/// A version is refused after this many lost runs within [`LOST_WINDOW`].
pub(super) const MAX_LOST_RUNS: u32 = 3;
const LOST_WINDOW: Duration = Duration::from_mins(10);
/// No more threads than this are replaced while they are lost. Each uses a core, and the memory of its run.
const MAX_LOST_THREADS: usize = 64;
/// The nice value of a replaced thread: it gets a tenth of a core where all cores are busy. It cannot be raised again without a privilege, so
/// such a thread ends after its run.
pub(super) const LOST_NICE: i32 = 10;

/// No run. Any other value below [`UNLIMITED`] is the time when the run is interrupted, in nanoseconds since [`EPOCH`].
const IDLE: u64 = 0;
/// A run without a limit.
const UNLIMITED: u64 = u64::MAX - 2;
/// The run was interrupted, and has not ended yet.
const INTERRUPTED: u64 = u64::MAX - 1;
/// The watchdog works on this slot. The run cannot end meanwhile, so an interrupt never reaches the next run.
const HELD: u64 = u64::MAX;

/// Before every run.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
static WATCHDOG: LazyLock<Watchdog> = LazyLock::new(Watchdog::default);

fn nanos(at: Instant) -> u64 {
    let since = at.saturating_duration_since(*EPOCH).as_nanos();
    u64::try_from(since).unwrap_or(u64::MAX).clamp(1, UNLIMITED - 1)
}

/// The callers that wait for a run.
pub(super) trait Callers: Send + Sync + std::fmt::Debug {
    /// Whether nobody waits any more.
    fn all_left(&self) -> bool;
}

/// When a run is interrupted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limit<'c> {
    /// At this time.
    pub(super) until: Option<Instant>,
    /// When all of them left.
    pub(super) callers: Option<&'c Arc<dyn Callers>>,
    /// Not interrupted, but slower than expected: from this time on it has a lower priority.
    pub(super) slow_from: Option<Instant>,
}

// === the runs of a version ===

/// What the watchdog knows about the runs of one version.
#[derive(Debug)]
pub(super) struct RunWatch {
    /// Identifies the version in slots. Never 0, never used again.
    id: u64,
    interrupted: AtomicU64,
    lost: AtomicU64,
    recently_lost: Mutex<Recent>,
    stuck: AtomicBool,
}

/// Lost runs within the last [`LOST_WINDOW`].
#[derive(Debug)]
struct Recent {
    since: Instant,
    count: u32,
}

impl RunWatch {
    pub(super) fn new() -> Arc<RunWatch> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let watch = Arc::new(RunWatch {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            interrupted: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            recently_lost: Mutex::new(Recent { since: Instant::now(), count: 0 }),
            stuck: AtomicBool::new(false),
        });
        WATCHDOG.versions().insert(watch.id, Arc::downgrade(&watch));
        watch
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Runs that were interrupted.
    pub(super) fn interrupted(&self) -> u64 {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Runs that ignored their interrupt.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether so many runs were lost that the version must not run any more.
    pub(super) fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }

    fn lose(&self, now: Instant) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        let mut recent = self.recently_lost.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(recent.since) > LOST_WINDOW {
            *recent = Recent { since: now, count: 0 };
        }
        recent.count += 1;
        if recent.count >= MAX_LOST_RUNS && !self.stuck.swap(true, Ordering::Relaxed) {
            WATCHDOG.stuck_versions.fetch_add(1, Ordering::Release);
        }
    }
}

impl Drop for RunWatch {
    fn drop(&mut self) {
        WATCHDOG.versions().remove(&self.id);
    }
}

// === the runs of a thread ===

/// The runs of one thread, one at a time.
struct Slot {
    thread: String,
    #[cfg(target_os = "linux")]
    id: rustix::process::Pid,
    interrupt: Interrupt,
    /// [`IDLE`], the limit of the run in progress, [`INTERRUPTED`] or [`HELD`].
    run: AtomicU64,
    /// The version that runs, and since when.
    version: AtomicU64,
    began: AtomicU64,
    /// [`Limit::slow_from`], [`UNLIMITED`] without one and after it was dealt with.
    slow_from: AtomicU64,
    /// Runs begun. Only this thread writes it.
    runs: AtomicU64,
    callers: Mutex<Option<Arc<dyn Callers>>>,
    /// The run in progress ignored its interrupt.
    lost: AtomicBool,
    /// A thread was started in its place.
    replaced: AtomicBool,
    replace: OnceLock<Replace>,
    /// The thread has a lower priority, and another one does its work.
    aside: AtomicBool,
    step_aside: OnceLock<Replace>,
    /// Only the watchdog uses it.
    seen: Seen,
}

type Replace = Box<dyn Fn() -> bool + Send + Sync>;

/// What the watchdog saw when it last looked.
#[derive(Debug, Default)]
struct Seen {
    runs: AtomicU64,
    /// When it interrupted the run in progress.
    interrupted: AtomicU64,
}

/// A thread's slot, taken off the list when the thread ends.
struct OwnSlot {
    slot: Arc<Slot>,
    /// The limit of [`limit_runs`], [`UNLIMITED`] without one.
    limit: Cell<u64>,
}

thread_local! {
    static OWN: OwnSlot = OwnSlot::register();
}

impl OwnSlot {
    fn register() -> OwnSlot {
        let slot = Arc::new(Slot {
            thread: std::thread::current().name().unwrap_or("unnamed").to_owned(),
            #[cfg(target_os = "linux")]
            id: rustix::thread::gettid(),
            interrupt: Interrupt::new(),
            run: AtomicU64::new(IDLE),
            version: AtomicU64::new(0),
            began: AtomicU64::new(0),
            slow_from: AtomicU64::new(UNLIMITED),
            runs: AtomicU64::new(0),
            callers: Mutex::new(None),
            lost: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
            replace: OnceLock::new(),
            aside: AtomicBool::new(false),
            step_aside: OnceLock::new(),
            seen: Seen::default(),
        });
        WATCHDOG.slots().push(Arc::clone(&slot));
        WATCHDOG.start();
        OwnSlot { slot, limit: Cell::new(UNLIMITED) }
    }
}

impl Drop for OwnSlot {
    fn drop(&mut self) {
        WATCHDOG.slots().retain(|slot| !Arc::ptr_eq(slot, &self.slot));
    }
}

/// Runs something on this thread that looks at the interrupt it is given. It is interrupted at `limit`, and at that of [`limit_runs`].
/// `None` where the limit had passed before, and nothing was run.
pub(super) fn watched<T>(
    version: &RunWatch,
    limit: Limit<'_>,
    started: Instant,
    run: impl FnOnce(&Interrupt) -> T,
) -> Option<T> {
    OWN.with(|own| {
        let slot = &*own.slot;
        let until = limit.until.map_or(UNLIMITED, nanos).min(own.limit.get());
        let now = nanos(started);
        if until <= now {
            return None;
        }
        slot.version.store(version.id, Ordering::Relaxed);
        slot.began.store(now, Ordering::Relaxed);
        slot.slow_from.store(limit.slow_from.map_or(UNLIMITED, nanos), Ordering::Relaxed);
        slot.runs.store(slot.runs.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        if let Some(callers) = limit.callers {
            *slot.callers() = Some(Arc::clone(callers));
        }
        slot.run.store(until, Ordering::Release);
        let in_progress = InProgress { slot, until, has_callers: limit.callers.is_some() };
        let returned = run(&slot.interrupt);
        in_progress.end();
        Some(returned)
    })
}

/// A run in progress. Dropping it ends it, also on a panic.
struct InProgress<'s> {
    slot: &'s Slot,
    until: u64,
    has_callers: bool,
}

impl InProgress<'_> {
    fn end(self) {
        self.finish();
        std::mem::forget(self);
    }

    fn finish(&self) {
        let slot = self.slot;
        let interrupted = loop {
            let (expected, next) = (self.until, IDLE);
            match slot.run.compare_exchange(expected, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break false,
                // The watchdog is about to be done.
                Err(HELD) => std::thread::yield_now(),
                Err(_) if slot.run.compare_exchange(INTERRUPTED, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() => {
                    break true;
                }
                Err(_) => {}
            }
        };
        if self.has_callers {
            *slot.callers() = None;
        }
        if interrupted {
            slot.interrupt.clear();
            if slot.lost.swap(false, Ordering::Relaxed) {
                tracing::warn!(
                    thread = slot.thread,
                    "a run that had ignored its interrupt came back after {:.1} s",
                    slot.age(Instant::now()).as_secs_f64()
                );
            }
        }
    }
}

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Interrupts every run that this thread begins while the guard lives, once `until` has passed. A run that would begin later does not
/// start. Both fail with `DEADLINE_EXCEEDED`. A scope inside another one ends with the outer one at the latest.
///
/// For runs that no caller waits for: verification, warm-up, trial runs, shadows.
#[must_use = "the limit ends when the guard is dropped"]
pub fn limit_runs(until: Instant) -> RunLimit {
    let before = OWN.with(|own| own.limit.replace(own.limit.get().min(nanos(until))));
    RunLimit { before, not_send: std::marker::PhantomData }
}

/// The scope of [`limit_runs`]. Dropping it restores the limit from before.
#[derive(Debug)]
pub struct RunLimit {
    before: u64,
    /// It belongs to one thread.
    not_send: std::marker::PhantomData<*const ()>,
}

impl Drop for RunLimit {
    fn drop(&mut self) {
        // The thread is ending where this fails.
        let _ = OWN.try_with(|own| own.limit.set(self.before));
    }
}

/// Says how this thread is replaced when a run on it is lost: `replace` starts another thread, and returns whether it did. Afterwards
/// [`is_replaced`] is true, and this thread should end when its run has.
pub fn replace_when_lost(replace: impl Fn() -> bool + Send + Sync + 'static) {
    OWN.with(|own| {
        // A thread says it once, when it starts.
        let _ = own.slot.replace.set(Box::new(replace));
    });
}

/// Says how this thread steps aside when a run on it takes far longer than expected: `start` starts another thread for its work, and returns
/// whether it did. Afterwards [`is_aside`] is true, and this thread should end when its run has.
pub(super) fn step_aside_when_slow(start: impl Fn() -> bool + Send + Sync + 'static) {
    OWN.with(|own| {
        // A thread says it once, when it starts.
        let _ = own.slot.step_aside.set(Box::new(start));
    });
}

/// Whether this thread has stepped aside.
#[must_use]
pub(super) fn is_aside() -> bool {
    OWN.with(|own| own.slot.aside.load(Ordering::Acquire))
}

/// Whether another thread was started in place of this one.
#[must_use]
pub fn is_replaced() -> bool {
    OWN.with(|own| own.slot.replaced.load(Ordering::Acquire))
}

impl Slot {
    fn callers(&self) -> MutexGuard<'_, Option<Arc<dyn Callers>>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn age(&self, now: Instant) -> Duration {
        Duration::from_nanos(nanos(now).saturating_sub(self.began.load(Ordering::Relaxed)))
    }

    /// The version of the run in progress, which must not end meanwhile.
    fn version(&self) -> Option<Arc<RunWatch>> {
        WATCHDOG.versions().get(&self.version.load(Ordering::Relaxed)).and_then(Weak::upgrade)
    }

    fn is_over(&self, until: u64, now: u64) -> bool {
        // The lock is free, or held for as long as it takes to store a pointer.
        until <= now || self.callers().as_ref().is_some_and(|callers| callers.all_left())
    }

    /// Interrupts the run with this limit, if it is over.
    fn interrupt_if_over(&self, until: u64, now: u64) {
        if !self.is_over(until, now) || !self.hold(until) {
            return;
        }
        // Looked at again, because the slot may have belonged to an earlier run a moment ago.
        if self.is_over(until, now) {
            self.interrupt.request();
            WATCHDOG.interrupted.fetch_add(1, Ordering::Relaxed);
            if let Some(version) = self.version() {
                version.interrupted.fetch_add(1, Ordering::Relaxed);
            }
            self.seen.interrupted.store(now, Ordering::Relaxed);
            self.run.store(INTERRUPTED, Ordering::Release);
        } else {
            self.run.store(until, Ordering::Release);
        }
    }

    /// Keeps the run in progress from ending. False where it is not in this state any more.
    fn hold(&self, state: u64) -> bool {
        self.run.compare_exchange(state, HELD, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Gives the run in progress a lower priority, if it is slow.
    #[cfg(target_os = "linux")]
    fn step_aside_if_slow(&self, until: u64, now: u64) {
        if self.slow_from.load(Ordering::Relaxed) > now || !self.hold(until) {
            return;
        }
        // Looked at again, because the slot may have belonged to an earlier run a moment ago.
        if self.slow_from.load(Ordering::Relaxed) <= now {
            self.slow_from.store(UNLIMITED, Ordering::Relaxed);
            if self.step_aside.get().is_some_and(|start| start()) {
                self.aside.store(true, Ordering::Release);
                machine::lower_priority_of(self.id, &self.thread, LOST_NICE);
                tracing::debug!(
                    thread = self.thread,
                    "a run takes far longer than expected: it goes on with a lower priority"
                );
            }
        }
        self.run.store(until, Ordering::Release);
    }

    /// Threads have no priorities of their own here.
    #[cfg(not(target_os = "linux"))]
    fn step_aside_if_slow(&self, _until: u64, _now: u64) {}

    /// Counts an interrupted run as lost, and replaces its thread.
    fn lose(&self, now: Instant) {
        if !self.hold(INTERRUPTED) {
            return;
        }
        self.lost.store(true, Ordering::Relaxed);
        WATCHDOG.lost.fetch_add(1, Ordering::Relaxed);
        let version = self.version();
        let age = self.age(now);
        let replace = self.replace.get().filter(|_| WATCHDOG.replaced_threads() < MAX_LOST_THREADS);
        let replaced = replace.is_some_and(|replace| replace());
        if replaced {
            self.replaced.store(true, Ordering::Release);
            #[cfg(target_os = "linux")]
            machine::lower_priority_of(self.id, &self.thread, LOST_NICE);
        }
        if let Some(version) = &version {
            version.lose(now);
        }
        tracing::error!(
            thread = self.thread,
            replaced,
            runs_lost = version.as_ref().map(|version| version.lost()),
            "a run that began {:.1} s ago does not end although it was interrupted: its thread is lost until it does",
            age.as_secs_f64()
        );
        self.run.store(INTERRUPTED, Ordering::Release);
    }
}

// === the watchdog ===

#[derive(Default)]
struct Watchdog {
    slots: Mutex<Vec<Arc<Slot>>>,
    versions: Mutex<HashMap<u64, Weak<RunWatch>>>,
    watched: Mutex<Vec<Weak<dyn OnLook>>>,
    started: AtomicBool,
    interrupted: AtomicU64,
    lost: AtomicU64,
    stuck_versions: AtomicU64,
    /// Interrupt everything: the process is about to end.
    end_all: AtomicU32,
}

/// Called at each look while something runs, on the watchdog's thread.
pub(super) trait OnLook: Send + Sync {
    fn look(self: Arc<Self>, now: Instant);
}

/// Calls `on_look` until it is dropped.
pub(super) fn also_look_at(on_look: Weak<dyn OnLook>) {
    WATCHDOG.watched.lock().unwrap_or_else(PoisonError::into_inner).push(on_look);
    WATCHDOG.start();
}

impl Watchdog {
    fn slots(&self) -> MutexGuard<'_, Vec<Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn versions(&self) -> MutexGuard<'_, HashMap<u64, Weak<RunWatch>>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replaced_threads(&self) -> usize {
        self.slots().iter().filter(|slot| slot.replaced.load(Ordering::Relaxed)).count()
    }

    fn start(&'static self) {
        LazyLock::force(&EPOCH);
        if self.started.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Err(error) = std::thread::Builder::new().name("watchdog".to_owned()).spawn(|| self.watch()) {
            // The next thread that runs a model tries again.
            self.started.store(false, Ordering::Relaxed);
            tracing::error!(%error, "the watchdog could not be started: no run is ended before it ends itself");
        }
    }

    fn watch(&self) {
        loop {
            // Unwind safety: what it looks at is atomic, and a lock that a panic poisoned is used as it is. Without this thread no run ends.
            let looked = catch_unwind(AssertUnwindSafe(|| self.look(Instant::now())));
            if let Err(panic) = &looked {
                tracing::error!(panic = panic_message(&**panic), "the watchdog panicked; it goes on");
            }
            std::thread::park_timeout(if looked.unwrap_or(true) { LOOK } else { LOOK_IDLE });
        }
    }

    /// Looks at every run. Returns whether something runs, or ran since the last look.
    fn look(&self, now: Instant) -> bool {
        // A copy, so that a thread that registers does not wait for what follows.
        let slots = self.slots().clone();
        // Counted, so that every slot is looked at.
        let busy = slots.iter().filter(|slot| self.look_at(slot, now)).count() > 0;
        if busy {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            watched.retain(|on_look| on_look.strong_count() > 0);
            let alive: Vec<Arc<dyn OnLook>> = watched.iter().filter_map(Weak::upgrade).collect();
            drop(watched);
            for on_look in alive {
                on_look.look(now);
            }
        }
        busy
    }

    fn look_at(&self, slot: &Slot, now: Instant) -> bool {
        let at = nanos(now);
        let runs = slot.runs.load(Ordering::Relaxed);
        let ran = slot.seen.runs.swap(runs, Ordering::Relaxed) != runs;
        match slot.run.load(Ordering::Acquire) {
            IDLE => ran,
            INTERRUPTED => {
                let since = at.saturating_sub(slot.seen.interrupted.load(Ordering::Relaxed));
                if Duration::from_nanos(since) >= IGNORED && !slot.lost.load(Ordering::Relaxed) {
                    slot.lose(now);
                }
                true
            }
            until => {
                let until_now = if self.end_all.load(Ordering::Relaxed) > 0 { u64::MAX } else { at };
                slot.interrupt_if_over(until, until_now);
                slot.step_aside_if_slow(until, at);
                true
            }
        }
    }
}

// === what others read ===

/// Counts since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchCounts {
    /// Runs that were interrupted.
    pub interrupted: u64,
    /// Runs that ignored their interrupt.
    pub lost: u64,
    /// Versions with so many lost runs that they are refused.
    pub stuck_versions: u64,
}

/// A thread in a run that ignores its interrupt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StuckThread {
    pub thread: String,
    /// As [`super::Runner::run_id`].
    pub run_id: u64,
    /// Since the run began.
    pub age: Duration,
    /// Whether another thread does its work.
    pub replaced: bool,
}

#[must_use]
pub fn watch_counts() -> WatchCounts {
    WatchCounts {
        interrupted: WATCHDOG.interrupted.load(Ordering::Relaxed),
        lost: WATCHDOG.lost.load(Ordering::Relaxed),
        stuck_versions: WATCHDOG.stuck_versions.load(Ordering::Acquire),
    }
}

/// The threads that are lost now.
#[must_use]
pub fn stuck_threads() -> Vec<StuckThread> {
    let now = Instant::now();
    let slots = WATCHDOG.slots();
    let lost = slots.iter().filter(|slot| slot.lost.load(Ordering::Relaxed));
    lost.map(|slot| StuckThread {
        thread: slot.thread.clone(),
        run_id: slot.version.load(Ordering::Relaxed),
        age: slot.age(now),
        replaced: slot.replaced.load(Ordering::Relaxed),
    })
    .collect()
}

/// Whether lost threads are still replaced.
#[must_use]
pub fn can_replace_threads() -> bool {
    WATCHDOG.replaced_threads() < MAX_LOST_THREADS
}

/// Interrupts every run, for the end of the process, and waits until they have ended. False where a run goes on after `within`: then
/// the engine's memory must not be torn down.
#[must_use]
pub fn end_all_runs(within: Duration) -> bool {
    let until = Instant::now() + within;
    WATCHDOG.end_all.fetch_add(1, Ordering::Relaxed);
    let ended = loop {
        let running = WATCHDOG.slots().iter().any(|slot| slot.run.load(Ordering::Acquire) != IDLE);
        if !running || Instant::now() >= until {
            break !running;
        }
        // Not only the watchdog's own thread: it may be asleep.
        WATCHDOG.look(Instant::now());
        std::thread::park_timeout(Duration::from_millis(2));
    };
    WATCHDOG.end_all.fetch_sub(1, Ordering::Relaxed);
    ended
}
