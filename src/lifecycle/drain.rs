//! Draining: waits until no request holds a version, frees it on a thread of its own, and reports the freed memory.

use super::loaders::Report;
use super::memory;
use crate::machine::resident_bytes;
use crate::marks::Kind;
use crate::model::VersionId;
use crate::registry::Loaded;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A version that is being drained.
#[derive(Debug)]
struct Drain {
    /// Distinguishes this drain of a version from a later one.
    serial: u64,
    id: VersionId,
    loaded: Arc<Loaded>,
    since: Instant,
    deadline: Instant,
    /// The deadline has passed and was reported.
    late: bool,
}

/// A version that requests still hold after its deadline.
#[derive(Debug)]
pub(super) struct Late {
    pub serial: u64,
    pub id: VersionId,
    pub in_flight: u64,
}

/// A version whose memory was freed.
#[derive(Debug)]
pub(super) struct Freed {
    pub serial: u64,
    pub id: VersionId,
    /// The size of its files, which the budget gets back.
    pub bytes: u64,
    /// From the begin of the drain to the end of the last request.
    pub drained: Duration,
    /// Resident memory of the process before and after, for all versions that were freed together.
    pub resident: Option<(u64, u64)>,
}

/// All versions that are being drained. The freeing thread always drops the last reference to a version.
#[derive(Debug)]
pub(super) struct Drains {
    draining: Vec<Drain>,
    last_serial: u64,
    /// Not bounded by itself. It holds at most the versions that were loaded.
    to_free: Option<Sender<Unused>>,
    /// The size of the versions that were sent to the freeing thread and are not reported yet.
    freeing: u64,
    thread: Option<JoinHandle<()>>,
}

/// A version that no request holds any more.
#[derive(Debug)]
struct Unused {
    serial: u64,
    id: VersionId,
    loaded: Arc<Loaded>,
    drained: Duration,
}

/// How often to look whether requests still hold a version. Requests do not report their end, because that would cost each of them.
const LOOK: Duration = Duration::from_millis(5);
/// The same after the deadline.
const LATE_LOOK: Duration = Duration::from_millis(100);

impl Drains {
    /// Starts the freeing thread.
    ///
    /// # Errors
    /// When the system refuses a new thread.
    pub(super) fn start(report: Report<Freed>) -> std::io::Result<Drains> {
        let (to_free, unused) = unbounded();
        let thread = std::thread::Builder::new().name("free".to_owned()).spawn(move || run(&unused, &*report))?;
        Ok(Drains { draining: Vec::new(), last_serial: 0, to_free: Some(to_free), freeing: 0, thread: Some(thread) })
    }

    /// Begins to drain a version. It must not be in the snapshot that is published next. Returns the drain's serial.
    pub(super) fn begin(&mut self, id: VersionId, loaded: Arc<Loaded>, timeout: Duration) -> u64 {
        self.last_serial += 1;
        let since = Instant::now();
        let deadline = since.checked_add(timeout).unwrap_or(since + Duration::from_hours(24));
        self.draining.push(Drain { serial: self.last_serial, id, loaded, since, deadline, late: false });
        self.last_serial
    }

    /// Sends the versions that nobody holds to the freeing thread. Returns those that have just passed their deadline.
    ///
    /// The published snapshot, and each replaced one that a request still holds, hold their versions. So call
    /// [`crate::registry::Writer::collect`] first.
    pub(super) fn look(&mut self, now: Instant) -> Vec<Late> {
        // A request, or a worker that runs for one, may hold only the runner.
        let is_held = |l: &Arc<Loaded>| Arc::strong_count(l) > 1 || Arc::strong_count(&l.runner) > 1;
        let (held, unused): (Vec<Drain>, Vec<Drain>) =
            std::mem::take(&mut self.draining).into_iter().partition(|d| is_held(&d.loaded));
        self.draining = held;
        for Drain { serial, id, loaded, since, .. } in unused {
            if let Some(to_free) = &self.to_free {
                self.freeing += loaded.facts.bytes;
                // Fails only when the thread died. Its loop catches panics, so it does not. The version would be freed here then.
                let _ = to_free.send(Unused { serial, id, loaded, drained: now.saturating_duration_since(since) });
            }
        }
        let mut late = Vec::new();
        for drain in self.draining.iter_mut().filter(|d| !d.late && now >= d.deadline) {
            drain.late = true;
            late.push(Late { serial: drain.serial, id: drain.id.clone(), in_flight: drain.loaded.metrics.in_flight() });
        }
        late
    }

    /// The freeing thread reported a version.
    pub(super) fn freed(&mut self, bytes: u64) {
        self.freeing = self.freeing.saturating_sub(bytes);
    }

    /// Bytes that will be freed soon. Versions past their deadline do not count, because nobody knows when their requests end.
    #[must_use]
    pub(super) fn bytes(&self) -> u64 {
        let draining = self.draining.iter().filter(|d| !d.late).map(|d| d.loaded.facts.bytes);
        draining.fold(self.freeing, u64::saturating_add)
    }

    /// Whether nothing is worth waiting for. Versions past their deadline are not: a run that does not end may hold one for ever.
    #[must_use]
    pub(super) fn is_over(&self) -> bool {
        self.draining.iter().all(|drain| drain.late)
    }

    /// When to look again.
    #[must_use]
    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        let late = self.draining.iter().all(|d| d.late);
        (!self.draining.is_empty()).then(|| now + if late { LATE_LOOK } else { LOOK })
    }

    /// Waits until everything that was sent to the freeing thread is freed.
    pub(super) fn finish(&mut self) {
        self.to_free = None;
        if let Some(thread) = self.thread.take() {
            // An error means that it panicked: there is nothing to wait for.
            let _ = thread.join();
        }
    }
}

fn run(unused: &Receiver<Unused>, report: &(dyn Fn(Freed) -> bool + Send + Sync)) {
    while let Ok(first) = unused.recv() {
        let before = resident_bytes();
        let mut freed = Vec::new();
        // Trimming walks the whole heap, so it is done once for all versions that are freed together.
        for Unused { serial, id, loaded, drained } in std::iter::once(first).chain(unused.try_iter()) {
            let bytes = loaded.facts.bytes;
            // The mark outlives the version, so that its name is still in the table while the engine frees it.
            let mark = loaded.runner.mark().clone();
            let inside = mark.enter(Kind::Free);
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(loaded))).is_err() {
                tracing::error!(model = %id.model, version = %id.version, "the engine panicked while the version was freed");
            }
            drop(inside);
            freed.push(Freed { serial, id, bytes, drained, resident: None });
        }
        memory::trim();
        let resident = before.zip(resident_bytes());
        for freed in freed {
            // Fails only when the manager has ended.
            report(Freed { resident, ..freed });
        }
    }
}
