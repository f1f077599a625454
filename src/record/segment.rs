//! Segments on the disk: their names and their contents.

use super::about::About;
use super::columns::{Builder, Layout};
use super::feedback;
use super::frame::{self, Frames, Kind, MAGIC};
use super::gaps::{self, Gap};
use super::view::{self, PredictionView};
use crate::machine::open_regular;
use arrow_array::RecordBatch;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::Offset;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A segment's number: the microsecond of its beginning, or the previous number plus one. It orders segments across restarts.
pub(super) type Number = u64;

/// The directory of the segments.
#[must_use]
pub(super) fn dir(data: &Path) -> PathBuf {
    data.join("log")
}

#[must_use]
pub(super) fn path(data: &Path, number: Number) -> PathBuf {
    dir(data).join(format!("{number:020}.seg"))
}

/// Whether a name in a directory may be one of a regular file. Where a link leads is seen when it is opened.
pub(super) fn may_be_regular(kind: std::fs::FileType) -> bool {
    kind.is_file() || kind.is_symlink()
}

/// The existing segments, oldest first; none where there is no directory yet.
pub(super) fn list(data: &Path) -> io::Result<Vec<Number>> {
    let entries = match std::fs::read_dir(dir(data)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let entry = entry?;
        // A directory, or a pipe that somebody made.
        if !entry.file_type().is_ok_and(may_be_regular) {
            continue;
        }
        let name = entry.file_name();
        let number: Option<Number> = name.to_str().and_then(|name| name.strip_suffix(".seg")?.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The bytes of a segment.
#[derive(Debug)]
pub(super) struct Segment {
    bytes: Vec<u8>,
}

/// The bodies of a segment's frames, grouped by the file their records belong in.
#[derive(Debug, Default)]
pub(super) struct Contents<'s> {
    /// By index into `abouts` and day of the prediction; in the order of arrival.
    pub predictions: BTreeMap<(usize, Day), Vec<&'s [u8]>>,
    pub abouts: Vec<Arc<About>>,
    /// By model and day of receipt.
    pub feedback: BTreeMap<(String, Day), Vec<&'s [u8]>>,
    pub gaps: Vec<Gap>,
    /// The time of the latest prediction.
    pub last: Option<i64>,
    /// Whether it was closed in order.
    pub ended: bool,
    /// The number of bytes that can be read.
    pub valid: usize,
    /// Complete frames that cannot be read: another program wrote them, or this one is wrong.
    pub unreadable: usize,
}

impl Segment {
    pub fn read(path: &Path) -> io::Result<Segment> {
        Segment::read_into(path, Vec::new())
    }

    /// Reads a segment into memory that may have held another one.
    pub fn read_into(path: &Path, mut bytes: Vec<u8>) -> io::Result<Segment> {
        let mut file = open_regular(path)?;
        bytes.clear();
        // Exactly as much as the file has: growing would copy.
        bytes.reserve_exact(usize::try_from(file.metadata()?.len()).unwrap_or(0));
        io::Read::read_to_end(&mut file, &mut bytes)?;
        Ok(Segment { bytes })
    }

    /// The memory, for the next segment.
    #[must_use]
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }

    /// Its length, including bytes that cannot be read.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Reads up to the first incomplete frame.
    #[must_use]
    pub fn contents(&self) -> Contents<'_> {
        let mut contents = Contents::default();
        if !self.bytes.starts_with(MAGIC) {
            return contents;
        }
        let mut streams: HashMap<u32, usize> = HashMap::new();
        let mut frames = Frames::new(&self.bytes, MAGIC.len());
        for (kind, body) in frames.by_ref() {
            let read = match kind {
                Kind::Stream => frame::read_stream(body).map(|(id, about)| {
                    let known = contents.abouts.iter().position(|a| *a == about);
                    let at = known.unwrap_or(contents.abouts.len());
                    if known.is_none() {
                        contents.abouts.push(about);
                    }
                    streams.insert(id, at);
                }),
                Kind::Prediction => view::read_head(body).and_then(|(stream, ts)| {
                    let at = *streams.get(&stream)?;
                    contents.last = contents.last.max(Some(ts));
                    contents.predictions.entry((at, Day::of(ts))).or_default().push(body);
                    Some(())
                }),
                Kind::Feedback => feedback::read_head(body).map(|(model, received)| {
                    contents.feedback.entry((model.to_owned(), Day::of(received))).or_default().push(body);
                }),
                Kind::Gap => gaps::read(body).map(|gap| contents.gaps.push(gap)),
                Kind::End => {
                    contents.ended = true;
                    Some(())
                }
            };
            contents.unreadable += usize::from(read.is_none());
        }
        contents.valid = frames.at();
        contents
    }
}

/// A day in UTC, written as `2026-01-31`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Day(Date);

impl Day {
    /// The day of a time in microseconds since 1970. A time outside the calendar (a wrong clock) gives 1970-01-01.
    pub fn of(ts: i64) -> Day {
        Day(Offset::UTC.to_datetime(Timestamp::from_microsecond(ts).unwrap_or_default()).date())
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Decodes predictions of one stream into batches.
#[must_use]
pub(super) fn batches(about: &Arc<About>, bodies: &[&[u8]]) -> Vec<RecordBatch> {
    let mut layout = Layout::new(about);
    for body in bodies {
        if let Some(view) = read_view(&layout, body) {
            layout.allow(&view);
        }
    }
    let mut batches = Vec::new();
    let mut keep = |batch| {
        batches.push(batch);
        Ok::<_, Infallible>(())
    };
    let mut builder = Builder::new(layout.clone());
    for body in bodies {
        if let Some(view) = read_view(&layout, body) {
            builder.push(&view, &mut keep).unwrap_or_else(|never| match never {});
        }
    }
    builder.flush(&mut keep).unwrap_or_else(|never| match never {});
    batches
}

/// Reads a prediction for the columns of a file.
pub(super) fn read_view<'f>(layout: &Layout, body: &'f [u8]) -> Option<PredictionView<'f>> {
    let (inputs, outputs) = layout.columns();
    view::read_prediction(body, inputs, outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_in_utc_and_an_impossible_time_is_1970() {
        let written = |ts| Day::of(ts).to_string();
        assert_eq!(written(1_795_000_000_000_000), "2026-11-18");
        assert_eq!((written(0), written(-1)), ("1970-01-01".to_owned(), "1969-12-31".to_owned()));
        assert_eq!(Day::of(i64::MAX), Day::of(0));
    }
}
