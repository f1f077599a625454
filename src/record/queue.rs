//! From the threads that answer callers to the writer: bytes in buffers, a shard per thread.

use super::frame::TooLarge;
use super::gaps::Why;
use crate::model::Failure;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use tokio::sync::watch;

/// What becomes of frames that were taken in: `None` until it is known.
type Outcome = Option<Result<(), Failure>>;

/// A claim on frames being on the disk.
#[derive(Debug)]
#[must_use = "the frames are on the disk only once it has been waited for"]
pub struct Ticket(watch::Receiver<Outcome>);

impl Ticket {
    /// Waits until the frames are on the disk.
    ///
    /// # Errors
    /// `LOG_UNAVAILABLE` when they could not be written.
    pub async fn durable(mut self) -> Result<(), Failure> {
        match self.0.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(super::unavailable("the log was closed"))),
            Err(_) => Err(super::unavailable("the log was closed")),
        }
    }
}

/// The shards. Full, it drops the newest, which [`Queue::append`] says.
#[derive(Debug)]
pub struct Queue {
    shards: Box<[Shard]>,
    /// Bytes of a shard; a frame beyond is refused.
    most: usize,
    /// Set while nothing is taken in, and why.
    closed: Mutex<Option<Why>>,
    is_closed: AtomicBool,
    dropped: [AtomicU64; Why::ALL.len()],
    /// Somebody waits for the writer.
    wanted: AtomicBool,
    writer: OnceLock<Thread>,
}

/// A cache line of its own, and the one beside it that processors fetch with it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    /// Held for as long as it takes to copy a frame in, or to swap the buffers: never across a system call.
    filling: Mutex<Filling>,
    /// Of all its frames, for those who only look.
    bytes: AtomicUsize,
}

#[derive(Debug, Default)]
struct Filling {
    current: Vec<u8>,
    full: Vec<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    bytes: usize,
    records: u64,
    streams: Vec<u32>,
    waiting: Option<watch::Sender<Outcome>>,
}

/// What a shard held when the writer came by.
#[derive(Debug)]
pub struct Filled {
    shard: usize,
    pub chunks: Vec<Vec<u8>>,
    pub records: u64,
    /// The streams its predictions belong to, each once.
    pub streams: Vec<u32>,
    waiting: Option<watch::Sender<Outcome>>,
}

/// Buffers are handed over at this size: large enough for one write, small enough to be filled again from the cache.
const CHUNK: usize = 256 << 10;
/// Empty buffers a shard keeps.
const SPARE: usize = 8;

thread_local! {
    static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
}
/// Threads get their shards in turn, so that as many threads as shards have one each.
static TURN: AtomicUsize = AtomicUsize::new(0);

impl Queue {
    /// `bytes`: over all shards.
    pub fn new(shards: usize, bytes: usize) -> Queue {
        let shards: Box<[Shard]> = (0..shards.max(1)).map(|_| Shard::default()).collect();
        Queue {
            most: bytes / shards.len(),
            shards,
            closed: Mutex::new(None),
            is_closed: AtomicBool::new(false),
            dropped: Why::ALL.map(|_| AtomicU64::new(0)),
            wanted: AtomicBool::new(false),
            writer: OnceLock::new(),
        }
    }

    /// Who is woken when somebody waits. Once, by the writer itself.
    pub fn serve(&self, writer: Thread) {
        let _ = self.writer.set(writer);
    }

    /// Takes in one frame, which `encode` appends to what it is given; it answers how many records that is. `wait`: give a ticket.
    ///
    /// # Errors
    /// Why it was not taken in; `encode`'s records are then counted as dropped.
    pub fn append(
        &self,
        wait: bool,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(usize, Option<u32>), TooLarge>,
    ) -> Result<Option<Ticket>, Why> {
        if self.is_closed.load(Ordering::Acquire)
            && let Some(why) = *self.closed.lock().unwrap_or_else(PoisonError::into_inner)
        {
            self.count_dropped(why, 1);
            return Err(why);
        }
        let shard = &self.shards[self.shard()];
        let mut filling = shard.lock();
        if filling.current.capacity() == 0 {
            filling.current = filling.spare.pop().unwrap_or_else(|| Vec::with_capacity(CHUNK));
        }
        let start = filling.current.len();
        let encoded = encode(&mut filling.current);
        let added = filling.current.len() - start;
        let refused = match encoded {
            Err(TooLarge) => Some((Why::TooLarge, 1)),
            Ok((records, _)) if added > self.most => Some((Why::TooLarge, records)),
            Ok((records, _)) if filling.bytes + added > self.most => Some((Why::QueueFull, records)),
            Ok(_) => None,
        };
        if let Some((why, records)) = refused {
            filling.current.truncate(start);
            // A buffer that had to grow for it is not kept.
            filling.current.shrink_to(CHUNK);
            drop(filling);
            self.count_dropped(why, records as u64);
            return Err(why);
        }
        let Ok((records, stream)) = encoded else { unreachable!("a failure was refused above") };
        filling.bytes += added;
        filling.records += records as u64;
        if let Some(stream) = stream.filter(|stream| !filling.streams.contains(stream)) {
            filling.streams.push(stream);
        }
        if filling.current.len() >= CHUNK {
            let next = filling.spare.pop().unwrap_or_default();
            let full = std::mem::replace(&mut filling.current, next);
            filling.full.push(full);
        }
        shard.bytes.store(filling.bytes, Ordering::Relaxed);
        let ticket = (wait && added > 0)
            .then(|| Ticket(filling.waiting.get_or_insert_with(|| watch::channel(None).0).subscribe()));
        let hurry = ticket.is_some() || filling.bytes > self.most / 2;
        drop(filling);
        if hurry {
            self.wake();
        }
        Ok(ticket)
    }

    fn shard(&self) -> usize {
        SHARD.with(|shard| {
            let mine = shard.get().unwrap_or_else(|| {
                let mine = TURN.fetch_add(1, Ordering::Relaxed);
                shard.set(Some(mine));
                mine
            });
            mine % self.shards.len()
        })
    }

    /// Bytes of the largest frame that is taken.
    pub const fn most(&self) -> usize {
        self.most
    }

    /// Wakes the writer, unless it was woken and has not looked yet.
    pub fn wake(&self) {
        if !self.wanted.swap(true, Ordering::AcqRel)
            && let Some(writer) = self.writer.get()
        {
            writer.unpark();
        }
    }

    /// Whether somebody woke the writer since it looked last; asked by the writer, before it looks.
    pub fn look(&self) -> bool {
        self.wanted.swap(false, Ordering::AcqRel)
    }

    /// Empties every shard.
    pub fn take(&self) -> Vec<Filled> {
        let take = |(i, shard): (usize, &Shard)| {
            let mut filling = shard.lock();
            if filling.bytes == 0 {
                return None;
            }
            let next = filling.spare.pop().unwrap_or_default();
            let last = std::mem::replace(&mut filling.current, next);
            let mut chunks = std::mem::take(&mut filling.full);
            chunks.push(last);
            let filled = Filled {
                shard: i,
                chunks,
                records: std::mem::take(&mut filling.records),
                streams: std::mem::take(&mut filling.streams),
                waiting: filling.waiting.take(),
            };
            filling.bytes = 0;
            shard.bytes.store(0, Ordering::Relaxed);
            Some(filled)
        };
        self.shards.iter().enumerate().filter_map(take).collect()
    }

    /// Tells those who wait what became of it, and gives the buffers back.
    pub fn done(&self, filled: Filled, outcome: Result<(), Failure>) {
        let Filled { shard, mut chunks, waiting, .. } = filled;
        if let Some(waiting) = waiting {
            waiting.send_replace(Some(outcome));
        }
        chunks.retain(|chunk| chunk.capacity() > 0 && chunk.capacity() <= 2 * CHUNK);
        chunks.iter_mut().for_each(Vec::clear);
        let mut filling = self.shards[shard].lock();
        while filling.spare.len() < SPARE
            && let Some(chunk) = chunks.pop()
        {
            filling.spare.push(chunk);
        }
        drop(filling);
        // What is left is freed here, on the writer's thread, without the lock.
        drop(chunks);
    }

    /// Takes in nothing from now on, or again everything.
    pub fn close(&self, why: Option<Why>) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = why;
        self.is_closed.store(why.is_some(), Ordering::Release);
    }

    /// What waits now, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.bytes.load(Ordering::Relaxed)).sum()
    }

    pub fn count_dropped(&self, why: Why, records: u64) {
        self.dropped[why as usize].fetch_add(records, Ordering::Relaxed);
    }

    /// Records dropped since the start, for this reason.
    #[must_use]
    pub fn dropped(&self, why: Why) -> u64 {
        self.dropped[why as usize].load(Ordering::Relaxed)
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Filling> {
        self.filling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
