//! The queue from the threads that answer callers to the writer: frames in byte buffers, one shard per thread.
//!
//! All shards share one budget of bytes, so that the largest record does not depend on the number of shards.

use super::gaps::DropReason;
use super::unavailable;
use crate::model::Failure;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Instant;
use tokio::sync::watch;

/// The result of writing frames; `None` until it is known.
type Outcome = Option<Result<(), Failure>>;

/// Resolves when the frames it was given for are on the disk, or could not be written.
#[derive(Debug, Clone)]
#[must_use = "the frames are on the disk only once the ticket has resolved"]
pub struct Ticket(watch::Receiver<Outcome>);

impl Ticket {
    /// Waits until the frames are on the disk, at most until the deadline.
    ///
    /// # Errors
    /// `LOG_UNAVAILABLE` when they could not be written, or were not on the disk before the deadline. In the second case they may
    /// still be written later.
    pub(super) async fn durable(mut self, deadline: Instant) -> Result<(), Failure> {
        let written = self.0.wait_for(Option::is_some);
        match tokio::time::timeout_at(deadline.into(), written).await {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or_else(|| Err(closed())),
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(super::not_in_time()),
        }
    }
}

fn closed() -> Failure {
    unavailable("the log was closed before the record was written")
}

/// The shards. When the budget is used up, new records are dropped.
#[derive(Debug)]
pub(super) struct Queue {
    shards: Box<[Shard]>,
    /// Bytes that may wait, over all shards; a larger record never fits.
    max_bytes: usize,
    /// Bytes that wait or are reserved, over all shards.
    bytes: AtomicUsize,
    /// Set while the directory is over its budget.
    over_budget: AtomicBool,
    dropped: [AtomicU64; DropReason::ALL.len()],
    /// The writer was woken and has not looked yet.
    woken: AtomicBool,
    writer: OnceLock<Thread>,
}

/// Aligned to two cache lines, as processors fetch them in pairs: no other data shares them.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    /// Locked while a frame is copied in or the buffers are swapped: never during a system call or a hash.
    filling: Mutex<Filling>,
}

#[derive(Debug, Default)]
struct Filling {
    current: Vec<u8>,
    full: Vec<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    /// Empty buffers of large frames, kept while such frames come: a new buffer costs more than the copy into it.
    large: Vec<Vec<u8>>,
    bytes: usize,
    records: u64,
    streams: Vec<u32>,
    waiting: Option<watch::Sender<Outcome>>,
    /// The writer has emptied this shard for the last time.
    closed: bool,
}

/// What the writer took out of a shard.
#[derive(Debug)]
pub(super) struct Filled {
    shard: usize,
    pub chunks: Vec<Vec<u8>>,
    pub bytes: u64,
    pub records: u64,
    /// The streams its predictions belong to, each once.
    pub streams: Vec<u32>,
    waiting: Option<watch::Sender<Outcome>>,
}

/// Budget set aside for a frame; given back when dropped without [`Reservation::append`].
#[derive(Debug)]
#[must_use = "a frame is only queued by append"]
pub(super) struct Reservation<'q> {
    queue: &'q Queue,
    bytes: usize,
    records: usize,
}

/// Buffers are handed to the writer at this size: large enough for one write, small enough to stay in the cache.
const CHUNK: usize = 256 << 10;
/// Bytes. Lists in Parquet files have offsets of 31 bits, and a batch may hold a little more than one frame.
const MAX_FRAME: usize = 1 << 30;
/// Empty buffers that a shard keeps.
const SPARE: usize = 8;
/// Bytes of empty buffers of large frames that a shard keeps.
const LARGE: usize = 8 << 20;

thread_local! {
    static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
}
/// Threads get shards in turn, so that each thread has its own where there are as many shards as threads.
static NEXT_SHARD: AtomicUsize = AtomicUsize::new(0);

impl Queue {
    /// `max_bytes`: over all shards.
    pub fn new(shards: usize, max_bytes: usize) -> Queue {
        Queue {
            shards: (0..shards.max(1)).map(|_| Shard::default()).collect(),
            max_bytes,
            bytes: AtomicUsize::new(0),
            over_budget: AtomicBool::new(false),
            dropped: DropReason::ALL.map(|_| AtomicU64::new(0)),
            woken: AtomicBool::new(false),
            writer: OnceLock::new(),
        }
    }

    /// Sets the thread to wake when somebody waits. Called once, by the writer itself.
    pub fn set_writer(&self, writer: Thread) {
        let _ = self.writer.set(writer);
    }

    /// Sets budget aside for a frame of exactly `bytes` bytes, with this many records.
    ///
    /// # Errors
    /// Why the frame cannot be queued; its records are then counted as dropped.
    pub fn reserve(&self, bytes: usize, records: usize) -> Result<Reservation<'_>, DropReason> {
        self.reserved(bytes, records).inspect_err(|reason| self.count_dropped(*reason, records as u64))
    }

    fn reserved(&self, bytes: usize, records: usize) -> Result<Reservation<'_>, DropReason> {
        if self.over_budget.load(Ordering::Acquire) {
            return Err(DropReason::Budget);
        }
        if bytes > self.max_frame() {
            return Err(DropReason::TooLarge);
        }
        // One step, so that two frames that do not fit together never refuse each other.
        let add = |waiting: usize| waiting.checked_add(bytes).filter(|sum| *sum <= self.max_bytes);
        let added = self.bytes.fetch_update(Ordering::AcqRel, Ordering::Relaxed, add);
        added.map(|_| Reservation { queue: self, bytes, records }).map_err(|_| DropReason::QueueFull)
    }

    fn shard(&self) -> usize {
        SHARD.with(|shard| {
            let mine = shard.get().unwrap_or_else(|| {
                let mine = NEXT_SHARD.fetch_add(1, Ordering::Relaxed);
                shard.set(Some(mine));
                mine
            });
            mine % self.shards.len()
        })
    }

    /// Bytes of the largest frame that can be queued.
    pub fn max_frame(&self) -> usize {
        self.max_bytes.min(MAX_FRAME)
    }

    /// Wakes the writer, unless it was woken and has not looked yet.
    pub fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel)
            && let Some(writer) = self.writer.get()
        {
            writer.unpark();
        }
    }

    /// Whether the writer was woken since the last call. The writer calls it before it empties the shards.
    pub fn was_woken(&self) -> bool {
        self.woken.swap(false, Ordering::AcqRel)
    }

    /// Empties every shard.
    pub fn take(&self) -> Vec<Filled> {
        self.take_from_all(false)
    }

    /// Closes every shard for good and empties it. A frame is either in the result or was counted as dropped.
    pub fn close(&self) -> Vec<Filled> {
        self.take_from_all(true)
    }

    fn take_from_all(&self, close: bool) -> Vec<Filled> {
        let take = |(i, shard): (usize, &Shard)| {
            let mut filling = shard.lock();
            filling.closed |= close;
            if filling.bytes == 0 {
                let unused = std::mem::take(&mut filling.large);
                drop(filling);
                drop(unused);
                return None;
            }
            let next = filling.spare.pop().unwrap_or_default();
            let last = std::mem::replace(&mut filling.current, next);
            let mut chunks = std::mem::take(&mut filling.full);
            chunks.push(last);
            let bytes = std::mem::take(&mut filling.bytes);
            let filled = Filled {
                shard: i,
                chunks,
                bytes: bytes as u64,
                records: std::mem::take(&mut filling.records),
                streams: std::mem::take(&mut filling.streams),
                waiting: filling.waiting.take(),
            };
            self.bytes.fetch_sub(bytes, Ordering::AcqRel);
            Some(filled)
        };
        self.shards.iter().enumerate().filter_map(take).collect()
    }

    /// Resolves the tickets of frames that were taken, and gives their buffers back.
    pub fn done(&self, filled: Filled, outcome: Result<(), Failure>) {
        let Filled { shard, mut chunks, waiting, .. } = filled;
        if let Some(waiting) = waiting {
            waiting.send_replace(Some(outcome));
        }
        chunks.retain(|chunk| chunk.capacity() > 0);
        chunks.iter_mut().for_each(Vec::clear);
        let mut filling = self.shards[shard].lock();
        let mut large: usize = filling.large.iter().map(Vec::capacity).sum();
        let keep = |chunk: Vec<u8>| {
            if chunk.capacity() > 2 * CHUNK {
                large += chunk.capacity();
                if large > LARGE {
                    Some(chunk)
                } else {
                    filling.large.push(chunk);
                    None
                }
            } else if filling.spare.len() < SPARE {
                filling.spare.push(chunk);
                None
            } else {
                Some(chunk)
            }
        };
        let left: Vec<Vec<u8>> = chunks.into_iter().filter_map(keep).collect();
        drop(filling);
        // The remaining buffers are freed here, on the writer's thread and without the lock.
        drop(left);
    }

    /// Drops new records while the directory is over its budget.
    pub fn set_over_budget(&self, over: bool) {
        self.over_budget.store(over, Ordering::Release);
    }

    #[must_use]
    pub fn is_over_budget(&self) -> bool {
        self.over_budget.load(Ordering::Acquire)
    }

    /// Bytes that wait to be written.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The share of the queue that is in use.
    #[must_use]
    pub fn full(&self) -> f64 {
        self.bytes() as f64 / self.max_bytes.max(1) as f64
    }

    /// The share of the queue that is in use; `None` where `bytes` more do not fit.
    #[must_use]
    pub fn full_for(&self, bytes: usize) -> Option<f64> {
        let fits = self.bytes().checked_add(bytes).is_some_and(|sum| sum <= self.max_bytes);
        fits.then(|| self.full())
    }

    pub fn count_dropped(&self, reason: DropReason, records: u64) {
        self.dropped[reason as usize].fetch_add(records, Ordering::Relaxed);
    }

    /// Records dropped for this reason since the start.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize].load(Ordering::Relaxed)
    }
}

impl Reservation<'_> {
    /// Queues the frame that `write` appends, which must have the size that was reserved. `stream`: the one that it belongs to. With `wait`
    /// there is a ticket.
    ///
    /// # Errors
    /// When the queue was closed meanwhile; the records are then counted as dropped.
    pub fn append(
        mut self,
        wait: bool,
        stream: Option<u32>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Option<Ticket>, DropReason> {
        let queue = self.queue;
        let mut filling = queue.shards[queue.shard()].lock();
        if filling.closed {
            drop(filling);
            queue.count_dropped(DropReason::Stopping, self.records as u64);
            return Err(DropReason::Stopping);
        }
        filling.make_current(self.bytes);
        let start = filling.current.len();
        write(&mut filling.current);
        let written = filling.current.len() - start;
        debug_assert_eq!(written, self.bytes, "a frame has the size that was reserved for it");
        // Now the shard accounts for these bytes.
        filling.bytes += std::mem::take(&mut self.bytes);
        filling.records += self.records as u64;
        if let Some(stream) = stream.filter(|stream| !filling.streams.contains(stream)) {
            filling.streams.push(stream);
        }
        if filling.current.len() >= CHUNK {
            let next = filling.spare.pop().unwrap_or_default();
            let full = std::mem::replace(&mut filling.current, next);
            filling.full.push(full);
        }
        let ticket = wait.then(|| Ticket(filling.waiting.get_or_insert_with(|| watch::channel(None).0).subscribe()));
        drop(filling);
        if ticket.is_some() || queue.bytes() > queue.max_bytes / 2 {
            queue.wake();
        }
        Ok(ticket)
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.queue.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        }
    }
}

impl Filling {
    /// Makes `current` a buffer for a frame of this size. A large frame gets a buffer that need not grow.
    fn make_current(&mut self, bytes: usize) {
        if bytes > CHUNK && self.current.capacity() < self.current.len() + bytes {
            let fits = self.large.iter().position(|spare| spare.capacity() >= bytes);
            let buffer = fits.map_or_else(|| Vec::with_capacity(bytes), |at| self.large.swap_remove(at));
            let before = std::mem::replace(&mut self.current, buffer);
            if before.is_empty() {
                self.spare.extend((before.capacity() > 0).then_some(before));
            } else {
                self.full.push(before);
            }
        } else if self.current.capacity() == 0 {
            self.current = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(CHUNK));
        }
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Filling> {
        self.filling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
