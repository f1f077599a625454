//! The writer: one thread that appends what waits to the open segment, and syncs it.

use super::disk::{Appender, Disk};
use super::frame::{self, Kind, MAGIC};
use super::gaps::{self, Gap, Gaps, Why};
use super::queue::Filled;
use super::segment::{self, Number};
use super::{Acknowledge, Shared, now, unavailable};
use crate::quality::Quality;
use std::collections::HashSet;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Between tries to begin a segment after a failure.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    disk: Box<dyn Disk>,
    quality: Quality,
    open: Option<Open>,
    gaps: Gaps,
    /// What had been dropped at the last look, and when that was.
    dropped: [u64; Why::ALL.len()],
    looked: i64,
    /// After a failure, when to try again.
    not_before: Option<Instant>,
}

/// The segment that grows.
#[derive(Debug)]
struct Open {
    number: Number,
    file: Box<dyn Appender>,
    /// Up to here it is synced.
    length: u64,
    begun: Instant,
    streams: HashSet<u32>,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, disk: Box<dyn Disk>, quality: Quality, known: Vec<Gap>) -> Writer {
        let mut gaps = Gaps::default();
        for gap in known {
            gaps.add(gap);
        }
        Writer {
            shared,
            disk,
            quality,
            open: None,
            gaps,
            dropped: [0; Why::ALL.len()],
            looked: now(),
            not_before: None,
        }
    }

    /// Writes until told to stop, and then everything that waits.
    pub fn run(mut self) {
        self.shared.queue.serve(std::thread::current());
        // Half of it, so that what came just after a look is on the disk in time.
        let every = self.shared.config.flush_interval / 2;
        let mut next = Instant::now() + every;
        loop {
            let stopping = self.shared.stopping.load(Ordering::Acquire);
            if !stopping && !self.shared.queue.look() {
                std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
                let due = Instant::now() >= next;
                if !due && !self.shared.queue.look() {
                    continue;
                }
            }
            if Instant::now() >= next {
                next = Instant::now() + every;
            }
            self.flush(stopping);
            if stopping {
                break;
            }
        }
        // Whoever comes now is refused, and what came between the last two lines is written.
        self.shared.queue.close(Some(Why::Stopping));
        self.flush(true);
        self.close(true);
    }

    /// Writes what waits now. `last`: the gaps that are still open too.
    pub fn flush(&mut self, last: bool) {
        self.shared.metrics.queue_bytes.set(self.shared.queue.bytes() as f64);
        self.count_drops();
        let gaps = self.gaps.due(self.looked, last);
        let filled = self.shared.queue.take();
        if filled.is_empty() && gaps.is_empty() {
            self.roll();
            return;
        }
        let begun = Instant::now();
        let outcome = self.write(&filled, &gaps);
        let records: u64 = filled.iter().map(|filled| filled.records).sum();
        if let Err(error) = outcome {
            self.failed(&error, records, gaps);
            let failure = unavailable(&error.to_string());
            for filled in filled {
                self.shared.queue.done(filled, Err(failure.clone()));
            }
            return;
        }
        self.shared.metrics.sync.record(begun.elapsed());
        self.shared.metrics.records.increment(records);
        self.shared.status().worked(records);
        self.shared.metrics.failing.set(0.0);
        self.shared.metrics.segment_bytes.set(self.shared.segment_bytes() as f64);
        for filled in filled {
            // Figures first: who reads them after an acknowledgement finds what was acknowledged.
            self.learn(&filled);
            self.shared.queue.done(filled, Ok(()));
        }
        self.roll();
    }

    fn write(&mut self, filled: &[Filled], gaps: &[Gap]) -> io::Result<()> {
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            let last = self.shared.status().last_error.clone().unwrap_or_default();
            return Err(io::Error::other(last));
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin()?,
        };
        let written = append(&mut open, &self.shared, filled, gaps);
        match written {
            Ok(length) => {
                open.length = length;
                self.shared.open_length.store(length, Ordering::Release);
                self.open = Some(open);
                self.not_before = None;
                Ok(())
            }
            Err(error) => {
                // Nobody can say what of it is on the disk, and a second sync would not tell: so this segment ends where it was
                // synced last. That it cannot even be cut is the disk's last word.
                let _ = open.file.cut(open.length);
                self.open = Some(open);
                self.close(false);
                Err(error)
            }
        }
    }

    fn begin(&mut self) -> io::Result<Open> {
        let number = self.shared.next_number();
        let path = segment::path(&self.shared.config.data, number);
        // Said before the file is there, so that nobody seals it.
        self.shared.open_segment.store(number, Ordering::Release);
        let mut file = self.disk.create(&path).inspect_err(|_| {
            self.shared.open_segment.store(0, Ordering::Release);
        })?;
        if let Err(error) = file.append(MAGIC) {
            self.shared.open_segment.store(0, Ordering::Release);
            return Err(error);
        }
        let length = MAGIC.len() as u64;
        Ok(Open { number, file, length, begun: Instant::now(), streams: HashSet::new() })
    }

    /// Ends the open segment and gives it to the sealer. `in_order`: as its last frame says.
    fn close(&mut self, in_order: bool) {
        let Some(mut open) = self.open.take() else { return };
        if in_order {
            let mut end = Vec::new();
            // An empty frame is never too large. Without it the segment is as good, and looks like one of a server that was killed.
            let _ = frame::frame(&mut end, Kind::End, |_| {});
            if let Err(error) = open.file.append(&end).and_then(|()| open.file.sync()) {
                tracing::warn!(segment = open.number, %error, "the segment's end could not be written");
            }
        }
        drop(open.file);
        self.shared.open_segment.store(0, Ordering::Release);
        self.shared.open_length.store(0, Ordering::Release);
        self.shared.mark_running();
        self.shared.wake_sealer();
    }

    fn roll(&mut self) {
        let config = &self.shared.config;
        let is_due = |open: &Open| {
            let asked = self.shared.seal_now.swap(false, Ordering::AcqRel);
            open.length >= config.segment_bytes || open.begun.elapsed() >= config.seal_after || asked
        };
        if self.open.as_ref().is_some_and(is_due) {
            self.close(true);
        }
    }

    fn failed(&mut self, error: &io::Error, records: u64, gaps: Vec<Gap>) {
        let first = self.not_before.is_none();
        if self.not_before.is_none_or(|at| Instant::now() >= at) {
            self.not_before = Some(Instant::now() + AGAIN);
            self.shared.status().failed(error);
        }
        if first {
            tracing::error!(%error, "the prediction log cannot be written; records are dropped and counted until it can");
        }
        self.shared.metrics.failing.set(1.0);
        self.shared.queue.count_dropped(Why::Disk, records);
        self.gaps.put_back(gaps);
    }

    /// Turns what the queue counted as dropped into gaps.
    fn count_drops(&mut self) {
        let now = now();
        for (why, known) in Why::ALL.into_iter().zip(&mut self.dropped) {
            let dropped = self.shared.queue.dropped(why);
            if dropped > *known {
                self.gaps.dropped(why, dropped - *known, self.looked, now);
                self.shared.metrics.dropped(why.as_str(), dropped - *known);
                *known = dropped;
            }
        }
        self.looked = now;
    }

    /// Tells the live figures what is on the disk now.
    fn learn(&self, filled: &Filled) {
        let streams = self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in &filled.chunks {
            for (kind, body) in frame::own(chunk) {
                super::learn::learn(&self.quality, &streams, kind, body);
            }
        }
    }
}

/// Appends and syncs; answers the segment's new length.
fn append(open: &mut Open, shared: &Shared, filled: &[Filled], gaps: &[Gap]) -> io::Result<u64> {
    let mut before = Vec::new();
    {
        let streams = shared.streams.lock().unwrap_or_else(PoisonError::into_inner);
        for id in filled.iter().flat_map(|filled| &filled.streams) {
            if open.streams.insert(*id)
                && let Some(stream) = streams.get(id)
            {
                frame::stream(&mut before, *id, stream.about())
                    .map_err(|_| io::Error::other("a signature of gigabytes"))?;
            }
        }
    }
    for gap in gaps {
        gaps::write(&mut before, gap);
    }
    let mut length = open.length;
    for bytes in std::iter::once(&before).chain(filled.iter().flat_map(|filled| &filled.chunks)) {
        if !bytes.is_empty() {
            open.file.append(bytes)?;
            length += bytes.len() as u64;
        }
    }
    open.file.sync()?;
    Ok(length)
}

impl Shared {
    fn segment_bytes(&self) -> u64 {
        self.closed_bytes.load(Ordering::Acquire) + self.open_length.load(Ordering::Acquire)
    }

    /// Whether an answer waits for its record.
    pub(super) fn waits(&self) -> bool {
        self.config.acknowledge == Acknowledge::Disk
    }
}
