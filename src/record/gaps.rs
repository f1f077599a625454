//! Gaps: which records are missing, from when to when, how many and why.

use super::columns::timestamp;
use super::frame::{self, Kind, Reader};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_schema::{DataType, Field, Schema};
use std::sync::Arc;

/// Why records are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropReason {
    /// The queue was full: the writer was too slow, or waited for the disk.
    QueueFull,
    /// The disk was full or failed.
    Disk,
    /// The record is larger than the whole queue.
    TooLarge,
    /// The directory is over its budget and no sealed file is left to delete.
    Budget,
    /// The record came while the server stopped.
    Stopping,
    /// The previous server was killed or crashed.
    UncleanStop,
    /// A segment could not be read to its end.
    Damaged,
}

impl DropReason {
    pub(super) const ALL: [DropReason; 7] = [
        DropReason::QueueFull,
        DropReason::Disk,
        DropReason::TooLarge,
        DropReason::Budget,
        DropReason::Stopping,
        DropReason::UncleanStop,
        DropReason::Damaged,
    ];

    /// The name in files, metrics and the admin API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            DropReason::QueueFull => "queue_full",
            DropReason::Disk => "disk",
            DropReason::TooLarge => "too_large",
            DropReason::Budget => "budget",
            DropReason::Stopping => "stopping",
            DropReason::UncleanStop => "unclean_stop",
            DropReason::Damaged => "damaged",
        }
    }
}

/// A period with missing records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    /// Microseconds since 1970, UTC.
    pub from: i64,
    pub to: i64,
    /// `None` where the number is not known.
    pub records: Option<u64>,
    pub reason: DropReason,
}

/// Microseconds. Drops for one reason that are closer together than this are one gap.
const QUIET: i64 = 1_000_000;
/// Microseconds. A gap that goes on is written this often.
const LONGEST: i64 = 60_000_000;

/// Gaps that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// Gaps that may still grow, at most one per reason.
    open: Vec<Gap>,
    /// Complete gaps.
    closed: Vec<Gap>,
}

impl Gaps {
    /// Notes that records were dropped between `since` and `now`.
    pub fn dropped(&mut self, reason: DropReason, records: u64, since: i64, now: i64) {
        match self.open.iter_mut().find(|gap| gap.reason == reason) {
            Some(gap) => {
                gap.to = now;
                gap.records = gap.records.map(|n| n + records);
            }
            None => self.open.push(Gap { from: since, to: now, records: Some(records), reason }),
        }
    }

    /// Adds a complete gap.
    pub fn add(&mut self, gap: Gap) {
        self.closed.push(gap);
    }

    /// Removes and returns the gaps to write now; with `all` also those that may still grow.
    pub fn take_due(&mut self, now: i64, all: bool) -> Vec<Gap> {
        let is_due = |gap: &Gap| all || now - gap.to >= QUIET || now - gap.from >= LONGEST;
        let (due, open): (Vec<Gap>, Vec<Gap>) = std::mem::take(&mut self.open).into_iter().partition(is_due);
        self.open = open;
        let mut closed = std::mem::take(&mut self.closed);
        closed.extend(due);
        closed
    }

    /// Puts back gaps that could not be written.
    pub fn put_back(&mut self, gaps: Vec<Gap>) {
        self.closed.extend(gaps);
    }
}

/// Appends a gap's frame.
pub(super) fn write(out: &mut Vec<u8>, gap: &Gap) {
    let records = gap.records.and_then(|n| i64::try_from(n).ok()).unwrap_or(-1);
    // Fifty bytes are never too large for a frame.
    let _ = frame::write_frame(out, Kind::Gap, |out| {
        for number in [gap.from, gap.to, records] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        frame::write_text(out, gap.reason.as_str());
    });
}

/// Reads the body of a gap's frame.
pub(super) fn read(body: &[u8]) -> Option<Gap> {
    let mut reader = Reader(body);
    let (from, to, records) = (reader.i64()?, reader.i64()?, reader.i64()?);
    let name = reader.text()?;
    let reason = DropReason::ALL.into_iter().find(|known| known.as_str() == name)?;
    Some(Gap { from, to, records: u64::try_from(records).ok(), reason })
}

pub(super) fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![
        Field::new("from", timestamp(), false),
        Field::new("to", timestamp(), false),
        Field::new("records", DataType::Int64, true),
        Field::new("reason", DataType::Utf8, false),
    ]))
}

pub(super) fn batch(gaps: &[&Gap]) -> RecordBatch {
    let time = |of: fn(&Gap) -> i64| -> ArrayRef {
        let times = gaps.iter().map(|gap| of(gap));
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
    };
    let records = gaps.iter().map(|gap| gap.records.and_then(|n| i64::try_from(n).ok()));
    let columns: Vec<ArrayRef> = vec![
        time(|gap| gap.from),
        time(|gap| gap.to),
        Arc::new(records.collect::<Int64Array>()),
        Arc::new(StringArray::from_iter_values(gaps.iter().map(|gap| gap.reason.as_str()))),
    ];
    RecordBatch::try_new(schema(), columns).expect("the columns were made for this schema, of one length")
}
