//! The writer: one thread that appends queued records to the open segment and syncs it.

use super::disk::{Appender, Disk};
use super::frame::{self, Kind, MAGIC};
use super::gaps::{self, DropReason, Gap, Gaps};
use super::log::Shared;
use super::queue::Filled;
use super::sampling::Control;
use super::segment::{self, Number};
use super::{now, unavailable};
use crate::quality::Quality;
use std::collections::HashSet;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Time between attempts to begin a segment after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// The longest time that live figures are computed at a stretch. Short beside a request, long beside the call that gives way.
const LEARN_SLICE: Duration = Duration::from_micros(100);

#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    disk: Box<dyn Disk>,
    quality: Quality,
    open: Option<Open>,
    gaps: Gaps,
    /// The drops that were counted at the last check, and its time.
    dropped: [u64; DropReason::ALL.len()],
    checked: i64,
    /// After a failure, the time of the next attempt.
    not_before: Option<Instant>,
    control: Control,
    /// Bytes after which a segment is sealed.
    segment_bytes: u64,
    /// Bytes that may wait to be sealed.
    backlog: u64,
}

/// Segments that may wait to be sealed before records are sampled.
const BACKLOG: u64 = 8;

/// The segment that is being written.
#[derive(Debug)]
struct Open {
    number: Number,
    file: Box<dyn Appender>,
    /// Bytes that are synced.
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
        let config = &shared.config;
        // Segments are small against the budget, so that old records can be deleted in small steps.
        let segment_bytes = config.segment_bytes.min(config.disk_budget / 16);
        Writer {
            segment_bytes,
            backlog: (BACKLOG * segment_bytes).min(config.disk_budget / 4).max(1),
            control: Control::new(),
            shared,
            disk,
            quality,
            open: None,
            gaps,
            dropped: [0; DropReason::ALL.len()],
            checked: now(),
            not_before: None,
        }
    }

    /// Writes until the log stops, and then everything that is still queued.
    pub fn run(mut self) {
        self.shared.queue.set_writer(std::thread::current());
        // Half of the interval, so that a record that came just after a check is on the disk in time.
        let every = self.shared.config.flush_interval / 2;
        let mut next = Instant::now() + every;
        while !self.shared.stopping.load(Ordering::Acquire) {
            if !self.shared.queue.was_woken() {
                std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
                if Instant::now() < next && !self.shared.queue.was_woken() {
                    continue;
                }
            }
            if Instant::now() >= next {
                next = Instant::now() + every;
            }
            self.control.found(self.shared.queue.full());
            let filled = self.shared.queue.take();
            self.flush(filled, false);
        }
        // From here on new records are refused. Records queued before are all in `filled`.
        let filled = self.shared.queue.close();
        self.flush(filled, true);
        self.close(true);
    }

    /// Writes these records, and the gaps that are due; with `last` also the gaps that may still grow.
    fn flush(&mut self, filled: Vec<Filled>, last: bool) {
        self.shared.metrics.queue_bytes.set(self.shared.queue.bytes() as f64);
        self.count_drops();
        self.adjust_sampling();
        if self.shared.queue.is_over_budget() && self.shared.space.make_room(1, &self.shared.metrics) {
            self.shared.queue.set_over_budget(false);
        }
        let gaps = self.gaps.take_due(self.checked, last);
        if filled.is_empty() && gaps.is_empty() {
            self.roll();
            return;
        }
        let begun = Instant::now();
        let bytes: u64 = filled.iter().map(|filled| filled.bytes).sum();
        let records: u64 = filled.iter().map(|filled| filled.records).sum();
        if !self.shared.space.make_room(bytes, &self.shared.metrics) {
            self.shared.queue.set_over_budget(true);
            self.shared.queue.count_dropped(DropReason::Budget, records);
            self.gaps.put_back(gaps);
            let failure = unavailable(DropReason::Budget.as_str());
            for filled in filled {
                self.shared.queue.done(filled, Err(failure.clone()));
            }
            self.roll();
            return;
        }
        let outcome = self.write(&filled, &gaps);
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
        self.control.wrote(bytes, records);
        self.shared.status().worked(records);
        self.shared.metrics.failing.set(0.0);
        self.shared.space.show(&self.shared.metrics);
        for filled in filled {
            // Live figures first, so that they include everything that was acknowledged.
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
                self.shared.space.wrote(length - open.length);
                open.length = length;
                self.shared.open_length.store(length, Ordering::Release);
                self.open = Some(open);
                self.not_before = None;
                Ok(())
            }
            Err(error) => {
                // After a failed sync it is unknown what is on the disk, and a second sync would not tell. So this segment ends
                // where it was synced last. An error of the truncation changes nothing.
                let _ = open.file.truncate(open.length);
                self.open = Some(open);
                self.close(false);
                Err(error)
            }
        }
    }

    fn begin(&mut self) -> io::Result<Open> {
        let number = self.shared.next_number();
        let path = segment::path(&self.shared.config.data, number);
        // Set before the file exists, so that the sealer never takes it.
        self.shared.open_segment.store(number, Ordering::Release);
        let mut file = self.disk.create(&path).inspect_err(|_| {
            self.shared.open_segment.store(0, Ordering::Release);
        })?;
        if let Err(error) = file.append(MAGIC) {
            self.shared.open_segment.store(0, Ordering::Release);
            return Err(error);
        }
        let length = MAGIC.len() as u64;
        self.shared.space.wrote(length);
        Ok(Open { number, file, length, begun: Instant::now(), streams: HashSet::new() })
    }

    /// Ends the open segment and wakes the sealer. `in_order`: write the frame that marks its end.
    fn close(&mut self, in_order: bool) {
        let Some(mut open) = self.open.take() else { return };
        if in_order {
            let mut end = Vec::new();
            // An empty frame is never too large. A segment without it is complete too, but looks like one of a killed server.
            let _ = frame::write_frame(&mut end, Kind::End, |_| {});
            let ended = open.file.append(&end).and_then(|()| open.file.sync());
            if ended.is_ok() {
                self.shared.space.wrote(end.len() as u64);
            }
            if let Err(error) = ended {
                tracing::warn!(segment = open.number, %error, "the end marker of a segment could not be written");
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
            let requested = self.shared.seal_now.swap(false, Ordering::AcqRel);
            open.length >= self.segment_bytes || open.begun.elapsed() >= config.seal_after || requested
        };
        if self.open.as_ref().is_some_and(is_due) {
            self.close(true);
        }
    }

    /// Lets in as many records as the log can keep up with.
    fn adjust_sampling(&mut self) {
        let shared = &self.shared;
        let waiting = shared.space.backlog(shared.open_length.load(Ordering::Acquire));
        let speed = f64::from_bits(shared.seal_speed.load(Ordering::Acquire));
        let speed = Some(speed).filter(|speed| *speed > 0.0);
        let backlog = waiting as f64 / self.backlog as f64;
        let Some(kept) = self.control.adjust(&shared.sampling, backlog, speed) else { return };
        shared.metrics.kept_share.set(kept.share);
        let left_out = shared.sampling.left_out();
        shared.metrics.left_out.absolute(left_out);
        let changed = shared.status().kept(kept);
        if changed == Some(true) {
            tracing::warn!("the prediction log cannot keep up: records are sampled, and their sample_rate says so");
        } else if changed == Some(false) {
            tracing::info!(left_out, "the prediction log keeps up again: all records are kept");
        }
    }

    fn failed(&mut self, error: &io::Error, records: u64, gaps: Vec<Gap>) {
        let first = self.not_before.is_none();
        if self.not_before.is_none_or(|at| Instant::now() >= at) {
            self.not_before = Some(Instant::now() + RETRY);
            self.shared.status().failed(error);
        }
        if first {
            tracing::error!(%error, "the prediction log cannot be written; records are dropped and counted until it works again");
        }
        self.shared.metrics.failing.set(1.0);
        self.shared.queue.count_dropped(DropReason::Disk, records);
        self.gaps.put_back(gaps);
    }

    /// Turns the queue's new drops into gaps and metrics.
    fn count_drops(&mut self) {
        let now = now();
        for (reason, known) in DropReason::ALL.into_iter().zip(&mut self.dropped) {
            let dropped = self.shared.queue.dropped(reason);
            if dropped > *known {
                self.gaps.dropped(reason, dropped - *known, self.checked, now);
                self.shared.metrics.dropped(reason.as_str(), dropped - *known);
                *known = dropped;
            }
        }
        self.checked = now;
    }

    /// Passes records that are on the disk to the live figures.
    fn learn(&self, filled: &Filled) {
        let mut since = Instant::now();
        for chunk in &filled.chunks {
            for (kind, body) in frame::own_frames(chunk) {
                // Held for one frame: the manager needs it to publish a change.
                let streams = self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner);
                super::learn::update(&self.quality, &self.shared.drift, &streams, kind, body);
                drop(streams);
                // A thread that answers requests may wait for this core, and the system would let this one run on for milliseconds.
                if since.elapsed() >= LEARN_SLICE {
                    std::thread::yield_now();
                    since = Instant::now();
                }
            }
        }
    }
}

/// Appends and syncs. Returns the segment's new length.
fn append(open: &mut Open, shared: &Shared, filled: &[Filled], gaps: &[Gap]) -> io::Result<u64> {
    let mut before = Vec::new();
    {
        let streams = shared.streams.lock().unwrap_or_else(PoisonError::into_inner);
        for id in filled.iter().flat_map(|filled| &filled.streams) {
            if open.streams.insert(*id)
                && let Some(stream) = streams.get(id)
            {
                frame::write_stream(&mut before, *id, stream.about())
                    .map_err(|_| io::Error::other("the signature is too large"))?;
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
