//! Segments on the disk: their names, and what stands in them.

use super::about::About;
use super::columns::{Builder, Layout};
use super::feedback;
use super::frame::{self, Frames, Kind, MAGIC, PredictionView};
use super::gaps::{self, Gap};
use arrow_array::RecordBatch;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::Offset;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A segment's number: the microsecond it was begun in, or one more than the one before. It orders segments over restarts.
pub type Number = u64;

/// Where segments lie.
#[must_use]
pub fn dir(data: &Path) -> PathBuf {
    data.join("log")
}

#[must_use]
pub fn path(data: &Path, number: Number) -> PathBuf {
    dir(data).join(format!("{number:020}.seg"))
}

/// The segments there are, oldest first; none where there is no directory yet.
pub fn list(data: &Path) -> io::Result<Vec<Number>> {
    let entries = match std::fs::read_dir(dir(data)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let number: Option<Number> = name.to_str().and_then(|name| name.strip_suffix(".seg")?.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A segment's bytes, and what they are.
#[derive(Debug)]
pub struct Segment {
    bytes: Vec<u8>,
}

/// Where each frame's body lies, sorted by where its records go.
#[derive(Debug, Default)]
pub struct Contents<'s> {
    /// By what they have in common and the day they were made; in the order they came in.
    pub predictions: BTreeMap<(usize, Day), Vec<&'s [u8]>>,
    /// What the first part of the key above is an index of.
    pub abouts: Vec<Arc<About>>,
    /// By model and the day they were received.
    pub feedback: BTreeMap<(String, Day), Vec<&'s [u8]>>,
    pub gaps: Vec<Gap>,
    /// The latest prediction's time.
    pub last: Option<i64>,
    /// It was closed in order.
    pub ended: bool,
    /// Up to where it can be read.
    pub valid: usize,
    /// Frames that are whole and cannot be read: of another program, or a mistake of this one.
    pub unreadable: usize,
}

impl Segment {
    pub fn read(path: &Path) -> io::Result<Segment> {
        Ok(Segment { bytes: std::fs::read(path)? })
    }

    /// How long it is, with whatever stands behind what can be read.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Reads up to the first frame that is not whole.
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
                Kind::Prediction => frame::head(body).and_then(|(stream, ts)| {
                    let at = *streams.get(&stream)?;
                    contents.last = contents.last.max(Some(ts));
                    contents.predictions.entry((at, Day::of(ts))).or_default().push(body);
                    Some(())
                }),
                Kind::Feedback => feedback::head(body).map(|(model, received)| {
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

/// A day in UTC. Written `2026-01-31`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(Date);

impl Day {
    /// Of microseconds since 1970. Times that no calendar has, of a clock gone wrong, are of that year's first day.
    pub fn of(ts: i64) -> Day {
        Day(Offset::UTC.to_datetime(Timestamp::from_microsecond(ts).unwrap_or_default()).date())
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Gives predictions of one stream, batch by batch.
///
/// # Errors
/// What `full` gives.
pub fn batches<E>(
    about: &Arc<About>,
    bodies: &[&[u8]],
    begin: impl FnOnce(&Layout) -> Result<(), E>,
    full: &mut dyn FnMut(RecordBatch) -> Result<(), E>,
) -> Result<(), E> {
    let mut layout = Layout::new(about);
    for body in bodies {
        if let Some(view) = view(&layout, body) {
            layout.allow(&view);
        }
    }
    begin(&layout)?;
    let mut builder = Builder::new(layout.clone());
    for body in bodies {
        if let Some(view) = view(&layout, body) {
            builder.push(&view, full)?;
        }
    }
    builder.finish().map_or(Ok(()), full)
}

fn view<'f>(layout: &Layout, body: &'f [u8]) -> Option<PredictionView<'f>> {
    let (inputs, outputs) = layout.columns();
    frame::read_prediction(body, inputs, outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_of_utc_and_a_broken_clock_has_one_too() {
        let written = |ts| Day::of(ts).to_string();
        assert_eq!(written(1_795_000_000_000_000), "2026-11-18");
        assert_eq!((written(0), written(-1)), ("1970-01-01".to_owned(), "1969-12-31".to_owned()));
        assert_eq!(Day::of(i64::MAX), Day::of(0));
    }
}
