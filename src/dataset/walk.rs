//! The way through everything there is to read: a stretch of predictions at a time, with the feedback that belongs to it.
//!
//! Predictions are wide and many, feedback is narrow and comes late: so the predictions are walked once in their order, and for each
//! stretch of them the feedback is read through, which keeps only what the stretch asks for. Joining the other way round would read
//! the predictions several times, and give them out of order.

use super::columns::Heads;
use super::error::Error;
use super::labels::{self, Labels};
use super::pick::Pick;
use super::source::{Source, Sources, choose};
use arrow_array::RecordBatch;
use std::ops::ControlFlow;

/// What a stretch may be: with feedback of usual size its index takes about 150 bytes for each row.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Predictions; one row group is taken at least.
    pub rows: usize,
    /// Texts and values of their feedback; a stretch that has more is begun again, half as long.
    pub bytes: usize,
}

impl Default for Budget {
    fn default() -> Budget {
        // As many as fit a table of 2^22 places.
        Budget { rows: 3_600_000, bytes: 256 << 20 }
    }
}

/// Told what is done, and of how many predictions it is done with how many.
pub type Progress<'p> = &'p dyn Fn(&'static str, usize, usize);

/// How to go.
#[derive(Clone, Copy)]
pub struct Way<'w> {
    pub pick: &'w Pick,
    /// Whether feedback is wanted.
    pub labels: bool,
    pub budget: Budget,
    /// A first stretch this long may be enough; each later one is longer.
    pub first: Option<usize>,
    pub progress: Progress<'w>,
}

impl std::fmt::Debug for Way<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Way").field("pick", &self.pick).field("budget", &self.budget).finish_non_exhaustive()
    }
}

/// A batch of records on the way: all wanted, and of one source.
#[derive(Debug)]
pub struct Step<'s> {
    /// Its place among the sources.
    pub number: usize,
    pub source: &'s Source,
    pub batch: RecordBatch,
    pub labels: &'s Labels,
}

/// One part of one source.
#[derive(Debug, Clone, Copy)]
struct Unit {
    source: usize,
    part: usize,
    rows: usize,
}

/// Gives every record that is wanted to `each`, batch by batch in the order they were made, until it breaks.
///
/// # Errors
/// When something cannot be read, and what `each` gives.
pub fn walk(
    sources: &Sources,
    way: &Way,
    each: &mut dyn FnMut(Step) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let parts = |(source, s): (usize, &Source)| {
        let parts = s.stored.parts.iter().enumerate();
        parts.map(move |(part, p)| Unit { source, part, rows: p.rows }).collect::<Vec<_>>()
    };
    let units: Vec<Unit> = sources.predictions.iter().enumerate().flat_map(parts).collect();
    let joins = way.labels && !sources.feedback.is_empty();
    let mut tally = Tally { done: 0, of: sources.rows() };
    let mut most = way.budget.rows;
    let mut wanted = way.first.map_or(most, |first| first.clamp(1, most));
    let mut at = 0;
    while at < units.len() {
        let stretch = &units[at..end_of_stretch(&units, at, wanted)];
        // A single prediction is looked for where it can be before anything else of it is read.
        let looks = joins || way.pick.request_id.is_some();
        let (mut labels, live) =
            if looks { look(sources, way, stretch, joins, tally)? } else { (Labels::default(), stretch.to_vec()) };
        if labels.wants_any() && !join(sources, way, &mut labels, stretch.len() == 1, tally)? {
            most = (stretch.iter().map(|unit| unit.rows).sum::<usize>() / 2).max(1);
            wanted = most;
            continue;
        }
        if give(sources, way, &live, &labels, tally, each)?.is_break() {
            return Ok(());
        }
        at += stretch.len();
        tally.done += stretch.iter().map(|unit| unit.rows).sum::<usize>();
        wanted = wanted.saturating_mul(2).min(most);
    }
    Ok(())
}

/// For the progress: predictions that were walked past, of all.
#[derive(Debug, Clone, Copy)]
struct Tally {
    done: usize,
    of: usize,
}

/// One unit, and those after it as long as they hold no more rows than this together.
fn end_of_stretch(units: &[Unit], at: usize, rows: usize) -> usize {
    let mut sum = 0;
    let fits = units[at..].iter().take_while(|unit| {
        sum += unit.rows;
        sum <= rows
    });
    at + fits.count().max(1)
}

/// Notes which predictions of a stretch are wanted (for `joins`), and which units have any.
fn look(sources: &Sources, way: &Way, units: &[Unit], joins: bool, tally: Tally) -> Result<(Labels, Vec<Unit>), Error> {
    let rows = units.iter().map(|unit| unit.rows).sum();
    let mut labels = if joins { Labels::for_rows(rows) } else { Labels::default() };
    let mut live = Vec::new();
    for unit in units {
        let stored = &sources.predictions[unit.source].stored;
        (way.progress)("looking at predictions", tally.done, tally.of);
        let mut any = false;
        for batch in stored.read(&[unit.part], Some(&Heads::COLUMNS))? {
            let chosen = batch.and_then(|batch| choose(&batch, way.pick)).map_err(|error| stored.named(error))?;
            any |= chosen.num_rows() > 0;
            if joins {
                let heads = Heads::of(&chosen)?;
                (0..chosen.num_rows()).for_each(|i| labels.want(heads.request_id.value(i), heads.row.value(i)));
            }
        }
        if any {
            live.push(*unit);
        }
    }
    Ok((labels, live))
}

/// Reads the feedback through; whether it fits the budget, or has to, as the stretch cannot be made shorter.
fn join(sources: &Sources, way: &Way, labels: &mut Labels, has_to: bool, tally: Tally) -> Result<bool, Error> {
    for stored in &sources.feedback {
        (way.progress)("looking for feedback", tally.done, tally.of);
        if !labels::read(stored, labels, |labels| has_to || labels.bytes() <= way.budget.bytes)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn give(
    sources: &Sources,
    way: &Way,
    units: &[Unit],
    labels: &Labels,
    tally: Tally,
    each: &mut dyn FnMut(Step) -> Result<ControlFlow<()>, Error>,
) -> Result<ControlFlow<()>, Error> {
    let mut done = tally.done;
    for of_one in units.chunk_by(|a, b| a.source == b.source) {
        let number = of_one[0].source;
        let source = &sources.predictions[number];
        let parts: Vec<usize> = of_one.iter().map(|unit| unit.part).collect();
        for batch in source.stored.read(&parts, None)? {
            let batch = batch?;
            (way.progress)("reading", done, tally.of);
            done += batch.num_rows();
            let batch = choose(&batch, way.pick).map_err(|error| source.stored.named(error))?;
            if batch.num_rows() > 0 && each(Step { number, source, batch, labels })?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}
