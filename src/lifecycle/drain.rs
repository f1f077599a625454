//! Taking versions out of memory: wait until no request holds one, free it on a thread of its own, give the memory back.

use super::manager::Event;
use super::memory;
use crate::model::VersionId;
use crate::registry::Loaded;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A version on its way out.
#[derive(Debug)]
struct Drain {
    /// Tells one draining of a version from a later one.
    serial: u64,
    id: VersionId,
    loaded: Arc<Loaded>,
    since: Instant,
    deadline: Instant,
    /// The deadline has passed, and the manager was told.
    late: bool,
}

/// A version whose deadline passed while requests still held it.
#[derive(Debug)]
pub struct Late {
    pub serial: u64,
    pub id: VersionId,
    pub in_flight: u64,
}

/// A version whose memory was given back.
#[derive(Debug)]
pub struct Freed {
    pub serial: u64,
    pub id: VersionId,
    /// Of its files: what the budget gets back.
    pub bytes: u64,
    /// From the draining's begin to the last request's end.
    pub drained: Duration,
    /// Resident memory of the process, before and after; of all versions freed at once.
    pub resident: Option<(u64, u64)>,
}

/// Everything that drains. A version's last reference is dropped on the freeing thread, whoever held it longest.
#[derive(Debug)]
pub struct Drains {
    draining: Vec<Drain>,
    last_serial: u64,
    /// Not bounded by itself: holds at most the versions that were loaded.
    free: Option<Sender<Condemned>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Condemned {
    serial: u64,
    id: VersionId,
    loaded: Arc<Loaded>,
    drained: Duration,
}

/// Between looks at what drains: requests do not tell when they end, as that would cost each of them.
const LOOK: Duration = Duration::from_millis(5);
/// The same for those past their deadline.
const LATE_LOOK: Duration = Duration::from_millis(100);

impl Drains {
    /// Starts the freeing thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(events: mpsc::Sender<Event>) -> std::io::Result<Drains> {
        let (free, condemned) = unbounded();
        let thread = std::thread::Builder::new().name("free".to_owned()).spawn(move || run(&condemned, &events))?;
        Ok(Drains { draining: Vec::new(), last_serial: 0, free: Some(free), thread: Some(thread) })
    }

    /// Takes a version that is no longer published, or will not be once the manager has published. Answers its serial.
    pub fn begin(&mut self, id: VersionId, loaded: Arc<Loaded>, timeout: Duration) -> u64 {
        self.last_serial += 1;
        let since = Instant::now();
        let deadline = since.checked_add(timeout).unwrap_or(since + Duration::from_hours(24));
        self.draining.push(Drain { serial: self.last_serial, id, loaded, since, deadline, late: false });
        self.last_serial
    }

    /// Sends off to be freed what nobody holds any more; answers what has just passed its deadline.
    ///
    /// The published snapshot, and every replaced one that a request still holds, hold what they name: so the manager collects
    /// those first ([`crate::registry::Writer::collect`]).
    pub fn look(&mut self, now: Instant) -> Vec<Late> {
        // A request, or a worker that runs for one, may hold the runner alone.
        let is_held = |l: &Arc<Loaded>| Arc::strong_count(l) > 1 || Arc::strong_count(&l.runner) > 1;
        let mut late = Vec::new();
        let (held, free): (Vec<Drain>, Vec<Drain>) =
            std::mem::take(&mut self.draining).into_iter().partition(|d| is_held(&d.loaded));
        self.draining = held;
        for Drain { serial, id, loaded, since, .. } in free {
            if let Some(free) = &self.free {
                // Fails only when the thread died, which its loop does not do; then the version is freed here.
                let _ = free.send(Condemned { serial, id, loaded, drained: now.saturating_duration_since(since) });
            }
        }
        for drain in self.draining.iter_mut().filter(|d| !d.late && now >= d.deadline) {
            drain.late = true;
            late.push(Late { serial: drain.serial, id: drain.id.clone(), in_flight: drain.loaded.metrics.in_flight() });
        }
        late
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.draining.is_empty()
    }

    /// When to look again.
    #[must_use]
    pub fn next_look(&self, now: Instant) -> Option<Instant> {
        let late = self.draining.iter().all(|d| d.late);
        (!self.draining.is_empty()).then(|| now + if late { LATE_LOOK } else { LOOK })
    }

    /// Waits until everything that was sent off is freed.
    pub fn finish(&mut self) {
        self.free = None;
        if let Some(thread) = self.thread.take() {
            // It panicked: nothing is left to wait for.
            let _ = thread.join();
        }
    }
}

fn run(condemned: &Receiver<Condemned>, events: &mpsc::Sender<Event>) {
    while let Ok(first) = condemned.recv() {
        let before = memory::resident();
        let mut freed = Vec::new();
        // Trimming looks through the whole heap: once for all that go together.
        for Condemned { serial, id, loaded, drained } in std::iter::once(first).chain(condemned.try_iter()) {
            let bytes = loaded.facts.bytes;
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(loaded))).is_err() {
                tracing::error!(model = %id.model, version = %id.version, "the engine panicked while the version was freed");
            }
            freed.push(Freed { serial, id, bytes, drained, resident: None });
        }
        memory::trim();
        let resident = before.zip(memory::resident());
        for freed in freed {
            // Fails only when the manager has stopped.
            let _ = events.blocking_send(Event::Freed(Freed { resident, ..freed }));
        }
    }
}
