//! Reads predictions in chunks, each with its feedback, in bounded memory.
//!
//! Predictions are large, feedback is small and comes late. So the predictions are read once, in order. For each chunk all feedback is
//! read, and only that of the chunk is kept. The other way round, the predictions would be read several times and out of order.

use super::columns::KeyColumns;
use super::error::Error;
use super::feedback::{self, FeedbackIndex};
use super::filter::Filter;
use super::sources::{Source, Sources, select};
use arrow_array::RecordBatch;
use std::ops::ControlFlow;

/// Limits of a chunk. The index of its feedback takes about 150 bytes per row with typical feedback.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Limit for the predictions. A chunk has at least one row group.
    pub rows: usize,
    /// Limit for the labels and values. A chunk with more is read again with half the length.
    pub bytes: usize,
}

impl Default for Budget {
    fn default() -> Budget {
        // As many as fit into a hash table of 2^22 slots.
        Budget { rows: 3_600_000, bytes: 256 << 20 }
    }
}

/// Called with the current action, the number of predictions done, and the number of all predictions.
pub type Progress<'p> = &'p dyn Fn(&'static str, usize, usize);

/// Options of a scan.
#[derive(Clone, Copy)]
pub(super) struct ScanOptions<'w> {
    pub(super) filter: &'w Filter,
    /// Whether to join feedback.
    pub(super) join_feedback: bool,
    pub(super) budget: Budget,
    /// The length of the first chunk, if that many rows may be enough. Later chunks are longer.
    pub(super) first_chunk: Option<usize>,
    pub(super) progress: Progress<'w>,
}

impl std::fmt::Debug for ScanOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScanOptions")
            .field("filter", &self.filter)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

/// A batch of matching records from one source.
#[derive(Debug)]
pub(super) struct ScannedBatch<'s> {
    /// The index of the source.
    pub(super) source_index: usize,
    pub(super) source: &'s Source,
    pub(super) batch: RecordBatch,
    pub(super) feedback: &'s FeedbackIndex,
}

/// One part of one source, by their indices.
#[derive(Debug, Clone, Copy)]
struct Unit {
    source: usize,
    part: usize,
    rows: usize,
}

/// Calls `each` for every batch of matching records, in the order of the predictions, until it breaks.
///
/// # Errors
/// When something cannot be read, or `each` fails.
pub(super) fn scan(
    sources: &Sources,
    options: &ScanOptions,
    each: &mut dyn FnMut(ScannedBatch) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let parts = |(source, s): (usize, &Source)| {
        let parts = s.stored.parts.iter().enumerate();
        parts.map(move |(part, p)| Unit { source, part, rows: p.rows }).collect::<Vec<_>>()
    };
    let units: Vec<Unit> = sources.predictions.iter().enumerate().flat_map(parts).collect();
    let join = options.join_feedback && !sources.feedback.is_empty();
    let mut progress = ScanProgress { done: 0, of: sources.rows() };
    let mut max_rows = options.budget.rows;
    let mut rows = options.first_chunk.map_or(max_rows, |first| first.clamp(1, max_rows));
    let mut at = 0;
    while at < units.len() {
        let chunk = &units[at..chunk_end(&units, at, rows)];
        // To find a single request, first read only the key columns.
        let look_first = join || options.filter.request_id.is_some();
        let (mut feedback, matching) = if look_first {
            find_matching(sources, options, chunk, join, progress)?
        } else {
            (FeedbackIndex::default(), chunk.to_vec())
        };
        if !feedback.is_empty() && !read_feedback(sources, options, &mut feedback, chunk.len() == 1, progress)? {
            max_rows = (chunk.iter().map(|unit| unit.rows).sum::<usize>() / 2).max(1);
            rows = max_rows;
            continue;
        }
        if read_records(sources, options, &matching, &feedback, progress, each)?.is_break() {
            return Ok(());
        }
        at += chunk.len();
        progress.done += chunk.iter().map(|unit| unit.rows).sum::<usize>();
        rows = rows.saturating_mul(2).min(max_rows);
    }
    Ok(())
}

/// Predictions that are done, of all.
#[derive(Debug, Clone, Copy)]
struct ScanProgress {
    done: usize,
    of: usize,
}

/// The end of a chunk of at most `rows` rows that starts at `at`. A chunk has at least one unit.
fn chunk_end(units: &[Unit], at: usize, rows: usize) -> usize {
    let mut sum = 0;
    let fits = units[at..].iter().take_while(|unit| {
        sum += unit.rows;
        sum <= rows
    });
    at + fits.count().max(1)
}

/// Returns the units that have matching records. If `join` is true, also registers these records for feedback.
fn find_matching(
    sources: &Sources,
    options: &ScanOptions,
    units: &[Unit],
    join: bool,
    progress: ScanProgress,
) -> Result<(FeedbackIndex, Vec<Unit>), Error> {
    let rows = units.iter().map(|unit| unit.rows).sum();
    let mut feedback = if join { FeedbackIndex::for_rows(rows) } else { FeedbackIndex::default() };
    let mut matching = Vec::new();
    let columns: Vec<&str> = KeyColumns::COLUMNS.into_iter().chain(options.filter.more_columns()).collect();
    for unit in units {
        let stored = &sources.predictions[unit.source].stored;
        (options.progress)("finding predictions", progress.done, progress.of);
        let mut any = false;
        for batch in stored.read(&[unit.part], Some(&columns))? {
            let chosen =
                batch.and_then(|batch| select(&batch, options.filter)).map_err(|error| stored.locate(error))?;
            any |= chosen.num_rows() > 0;
            if join {
                let keys = KeyColumns::of(&chosen)?;
                (0..chosen.num_rows()).for_each(|i| feedback.register(keys.request_id.value(i), keys.row.value(i)));
            }
        }
        if any {
            matching.push(*unit);
        }
    }
    Ok((feedback, matching))
}

/// Reads all feedback. Returns false if it does not fit the budget. `force` ignores the budget, for a chunk that cannot be shorter.
fn read_feedback(
    sources: &Sources,
    options: &ScanOptions,
    index: &mut FeedbackIndex,
    force: bool,
    progress: ScanProgress,
) -> Result<bool, Error> {
    for stored in &sources.feedback {
        (options.progress)("reading feedback", progress.done, progress.of);
        if !feedback::read(stored, index, |index| force || index.bytes() <= options.budget.bytes)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read_records(
    sources: &Sources,
    options: &ScanOptions,
    units: &[Unit],
    feedback: &FeedbackIndex,
    progress: ScanProgress,
    each: &mut dyn FnMut(ScannedBatch) -> Result<ControlFlow<()>, Error>,
) -> Result<ControlFlow<()>, Error> {
    let mut done = progress.done;
    for of_source in units.chunk_by(|a, b| a.source == b.source) {
        let source_index = of_source[0].source;
        let source = &sources.predictions[source_index];
        let parts: Vec<usize> = of_source.iter().map(|unit| unit.part).collect();
        for batch in source.stored.read(&parts, None)? {
            let batch = batch?;
            (options.progress)("reading predictions", done, progress.of);
            done += batch.num_rows();
            let batch = select(&batch, options.filter).map_err(|error| source.stored.locate(error))?;
            if batch.num_rows() > 0 && each(ScannedBatch { source_index, source, batch, feedback })?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}
