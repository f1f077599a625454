//! What is missing: from when to when, how many, why.

use super::columns::timestamp;
use super::frame::{self, Kind, Take};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_schema::{DataType, Field, Schema};
use std::sync::Arc;

/// Why records are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The writer was too slow, or waited for the disk.
    QueueFull,
    /// The disk was full or failed.
    Disk,
    /// A record larger than the queue.
    TooLarge,
    /// The directory is over its budget and nothing is left to delete.
    Budget,
    /// They came while the server stopped.
    Stopping,
    /// The server before this one did not stop in order.
    UncleanStop,
    /// A segment could not be read to its end.
    Damaged,
}

impl Why {
    pub const ALL: [Why; 7] =
        [Why::QueueFull, Why::Disk, Why::TooLarge, Why::Budget, Why::Stopping, Why::UncleanStop, Why::Damaged];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Why::QueueFull => "queue_full",
            Why::Disk => "disk",
            Why::TooLarge => "too_large",
            Why::Budget => "budget",
            Why::Stopping => "stopping",
            Why::UncleanStop => "unclean_stop",
            Why::Damaged => "damaged",
        }
    }
}

/// Records that are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Microseconds since 1970, UTC.
    pub from: i64,
    pub to: i64,
    /// `None` where nobody knows.
    pub records: Option<u64>,
    pub why: Why,
}

/// Drops of one reason that come this close together are one gap.
const QUIET: i64 = 1_000_000;
/// And a gap that goes on is written down this often.
const LONGEST: i64 = 60_000_000;

/// The gaps that are still open, one per reason.
#[derive(Debug, Default)]
pub struct Gaps {
    open: Vec<Gap>,
    closed: Vec<Gap>,
}

impl Gaps {
    /// Records were dropped between two looks.
    pub fn dropped(&mut self, why: Why, records: u64, since: i64, now: i64) {
        match self.open.iter_mut().find(|gap| gap.why == why) {
            Some(gap) => {
                gap.to = now;
                gap.records = gap.records.map(|n| n + records);
            }
            None => self.open.push(Gap { from: since, to: now, records: Some(records), why }),
        }
    }

    /// A gap that is known as a whole.
    pub fn add(&mut self, gap: Gap) {
        self.closed.push(gap);
    }

    /// Those to be written now; all of them with `all`.
    pub fn due(&mut self, now: i64, all: bool) -> Vec<Gap> {
        let is_due = |gap: &Gap| all || now - gap.to >= QUIET || now - gap.from >= LONGEST;
        let (due, open): (Vec<Gap>, Vec<Gap>) = std::mem::take(&mut self.open).into_iter().partition(is_due);
        self.open = open;
        let mut closed = std::mem::take(&mut self.closed);
        closed.extend(due);
        closed
    }

    /// Takes back what could not be written.
    pub fn put_back(&mut self, gaps: Vec<Gap>) {
        self.closed.extend(gaps);
    }
}

pub(super) fn write(out: &mut Vec<u8>, gap: &Gap) {
    let records = gap.records.and_then(|n| i64::try_from(n).ok()).unwrap_or(-1);
    // Thirty bytes are never too large.
    let _ = frame::frame(out, Kind::Gap, |out| {
        for number in [gap.from, gap.to, records] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        frame::short(out, gap.why.as_str());
    });
}

pub(super) fn read(body: &[u8]) -> Option<Gap> {
    let mut take = Take(body);
    let (from, to, records) = (take.i64()?, take.i64()?, take.i64()?);
    let why = take.short()?;
    let why = Why::ALL.into_iter().find(|known| known.as_str() == why)?;
    Some(Gap { from, to, records: u64::try_from(records).ok(), why })
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
        Arc::new(StringArray::from_iter_values(gaps.iter().map(|gap| gap.why.as_str()))),
    ];
    RecordBatch::try_new(schema(), columns).expect("the columns were made for this schema, of one length")
}
