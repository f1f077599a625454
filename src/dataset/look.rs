//! Look: all that the log has about one request: inputs, the answer, the shadows' answers and the feedback.

use super::assemble::Assembler;
use super::columns::{column, texts};
use super::disagreements::compared;
use super::error::Error;
use super::feedback::{self, FeedbackIndex};
use super::filter::Filter;
use super::hits::{Heads, Hit};
use super::logged::LoggedRequest;
use super::scan::ScannedBatch;
use super::shown::{Allowance, ShownTensor, TensorRows};
use super::sources::{NotRead, OpenError, Source, Stored, sealed_files, select};
use super::units::{Missing, Units};
use crate::compare::Tolerance;
use crate::model::{Label, ModelName, Role};
use crate::record::{About, PredictionView, Side};
use arrow_array::{Int32Array, RecordBatch};
use parquet::arrow::arrow_reader::RowSelection;
use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

/// Which request, and how much of it.
#[derive(Debug, Clone)]
pub struct Look<'a> {
    pub model: &'a ModelName,
    pub data: &'a Path,
    pub request_id: &'a str,
    /// The most elements of a tensor.
    pub elements: usize,
    /// How far a shadow's answer may differ.
    pub tolerance: Tolerance,
}

/// What the log has about a request id.
#[derive(Debug)]
pub struct Looked {
    /// The newest first; the answer of each version, and of each request where the id was used again.
    pub predictions: Vec<LookedPrediction>,
    /// Whether there are more with this id.
    pub more: bool,
    /// By row; only rows that have any.
    pub feedback: Vec<RowFeedback>,
    pub deleted_files: usize,
    /// Files that are damaged. What they hold is not in the answer.
    pub not_read: NotRead,
}

/// One answer, or the failure that was answered.
#[derive(Debug)]
pub struct LookedPrediction {
    pub head: Hit,
    pub inputs: Vec<ShownTensor>,
    pub outputs: Vec<ShownTensor>,
    /// Of a shadow: whether it agrees with the answer to the caller, and how it differs. `None` where the log has not both as they were.
    pub compared: Option<(bool, String)>,
}

/// What was told about one row: of each field the latest.
#[derive(Debug, Clone, PartialEq)]
pub struct RowFeedback {
    pub row: i32,
    pub label: Option<Label>,
    pub values: Vec<(String, f64)>,
    /// Microseconds since 1970.
    pub ts: Option<i64>,
}

/// The most answers with one id that are shown.
const MOST: usize = 20;
/// The most rows whose feedback is shown.
const FEEDBACK_ROWS: usize = 1000;
/// The most bytes of all elements that are shown; further ones are only counted.
const SHOWN_BYTES: usize = 16 << 20;
/// The most bytes of a request whose answers are compared.
const COMPARED_BYTES: usize = 64 << 20;

/// A request while its rows are read.
#[derive(Debug)]
struct Partial {
    head: Hit,
    inputs: Vec<TensorRows>,
    outputs: Vec<TensorRows>,
}

/// Which rows of a part to read.
#[derive(Debug)]
enum Rows {
    None,
    All,
    Some(RowSelection),
}

/// Finds all records with a request id; there may be none. Sealed files are ruled out by their Bloom filters.
///
/// # Errors
/// When a segment or a directory cannot be read. A damaged file is left out, and named.
pub fn look(what: &Look) -> Result<Looked, Error> {
    let units = Units::list(what.data, what.model)?;
    let filter =
        Filter { roles: Role::ALL.to_vec(), request_id: Some(what.request_id.to_owned()), ..Filter::default() };
    let (mut predictions, mut missing) = (Vec::new(), Missing::default());
    let mut answers: Vec<Option<LoggedRequest>> = Vec::new();
    let mut left = Allowance { elements: what.elements, bytes: SHOWN_BYTES };
    for number in units.newest_first() {
        let keep = |about: &About, view: &PredictionView| filter.matches_view(about.version, view);
        for source in &units.open(number, &filter, Some(MOST + 1), &keep, &mut missing)? {
            if let Err(error) = read(source, &filter, &mut left, &mut predictions, &mut answers) {
                units.without(&source.stored, error, &mut missing)?;
            }
        }
        if predictions.len() > MOST {
            break;
        }
    }
    compare(&mut predictions, &answers, what.tolerance);
    // The answer to the caller comes before those of shadows.
    predictions
        .sort_by_key(|of| (std::cmp::Reverse(of.head.ts), of.head.role == Role::Shadow.as_str(), of.head.version));
    let more = predictions.len() > MOST;
    predictions.truncate(MOST);
    let feedback = feedback_of(what, &units, &predictions, &mut missing)?;
    let Missing { deleted: deleted_files, not_read } = missing;
    Ok(Looked { predictions, more, feedback, deleted_files, not_read })
}

/// Reads the matching requests of a source.
fn read(
    source: &Source,
    filter: &Filter,
    left: &mut Allowance,
    predictions: &mut Vec<LookedPrediction>,
    answers: &mut Vec<Option<LoggedRequest>>,
) -> Result<(), Error> {
    let (mut assembler, none) = (Assembler::default(), FeedbackIndex::default());
    let mut current: Option<Partial> = None;
    let (mut logged, mut found, mut bytes) = (Vec::new(), Vec::new(), 0);
    for part in 0..source.stored.parts.len() {
        let id = filter.request_id.as_deref().unwrap_or_default();
        let rows = match rows_with_id(&source.stored, part, id)? {
            Rows::None => continue,
            Rows::All => None,
            Rows::Some(rows) => Some(rows),
        };
        for batch in source.stored.read_rows(&[part], None, rows)? {
            let batch = select(&batch?, filter)?;
            found.extend(push(&source.about, &batch, left, &mut current)?);
            bytes += batch.get_array_memory_size();
            if bytes <= COMPARED_BYTES {
                let scanned = ScannedBatch { source_index: 0, source, batch, feedback: &none };
                logged.extend(assembler.push(&scanned)?);
            }
        }
    }
    found.extend(current);
    logged.extend(assembler.finish());
    // Where a request was too large, nothing of this source is compared.
    let complete = bytes <= COMPARED_BYTES && logged.len() == found.len();
    let mut logged = logged.into_iter();
    for partial in found {
        answers.push(if complete { logged.next() } else { None });
        predictions.push(partial.finish(answers.last().and_then(Option::as_ref)));
    }
    Ok(())
}

/// The places of a part's rows with a request id: of more requests than are shown, the newest. No rows of a part in memory are
/// selected: all of them are taken.
fn rows_with_id(stored: &Stored, part: usize, id: &str) -> Result<Rows, Error> {
    if stored.is_in_memory() {
        return Ok(Rows::All);
    }
    let (mut rows, mut begins, mut at): (Vec<usize>, VecDeque<usize>, usize) = (Vec::new(), VecDeque::new(), 0);
    for batch in stored.read(&[part], Some(&["request_id", "row"]))? {
        let batch = batch?;
        let (ids, numbers) = (texts(&batch, "request_id")?, column::<Int32Array>(&batch, "row", "int32")?);
        for i in (0..batch.num_rows()).filter(|i| ids.value(*i) == id) {
            if numbers.value(i) == 0 {
                begins.push_back(at + i);
            }
            rows.push(at + i);
        }
        at += batch.num_rows();
        // The log has them in the order of their time.
        while begins.len() > MOST + 1 {
            begins.pop_front();
        }
        if begins.len() > MOST {
            let first = begins.front().copied().unwrap_or_default();
            rows.drain(..rows.partition_point(|row| *row < first));
        }
    }
    let ranges = rows.into_iter().map(|row| row..row + 1);
    let selection = RowSelection::from_consecutive_ranges(ranges, at);
    Ok(if selection.selects_any() { Rows::Some(selection) } else { Rows::None })
}

/// Adds a batch to the current request. Returns the requests that are complete now.
fn push(
    about: &Arc<About>,
    batch: &RecordBatch,
    left: &mut Allowance,
    current: &mut Option<Partial>,
) -> Result<Vec<Partial>, Error> {
    let heads = Heads::of(batch)?;
    let mut complete = Vec::new();
    for i in 0..batch.num_rows() {
        if let Some(partial) = current.as_mut().filter(|partial| heads.continues(&partial.head, i)) {
            partial.head.rows += 1;
        } else {
            let rows = |side: Side| about.specs(side).iter().map(|spec| TensorRows::new(about, side, spec)).collect();
            let partial =
                Partial { head: heads.begin(about, i), inputs: rows(Side::Inputs), outputs: rows(Side::Outputs) };
            complete.extend(current.replace(partial));
        }
        let Some(partial) = current else { continue };
        for (side, rows) in [(Side::Inputs, &mut partial.inputs), (Side::Outputs, &mut partial.outputs)] {
            for rows in rows {
                rows.add(batch, side, i, left);
            }
        }
    }
    Ok(complete)
}

impl Partial {
    fn finish(self, logged: Option<&LoggedRequest>) -> LookedPrediction {
        let shapes = |tensors: Option<&Vec<Option<crate::tensor::Tensor>>>, at: usize| {
            tensors.and_then(|tensors| Some(tensors.get(at)?.as_ref()?.shape().to_vec()))
        };
        let finish = |rows: Vec<TensorRows>, tensors: Option<&Vec<_>>| {
            rows.into_iter().enumerate().map(|(at, rows)| rows.finish(shapes(tensors, at))).collect()
        };
        LookedPrediction {
            head: self.head,
            inputs: finish(self.inputs, logged.map(|logged| &logged.inputs)),
            outputs: finish(self.outputs, logged.map(|logged| &logged.outputs)),
            compared: None,
        }
    }
}

/// Compares each shadow's answer with the answer to the same request that the caller got.
fn compare(predictions: &mut [LookedPrediction], answers: &[Option<LoggedRequest>], tolerance: Tolerance) {
    let is_shadow = |logged: &LoggedRequest| logged.role == Role::Shadow.as_str();
    for (prediction, shadow) in predictions.iter_mut().zip(answers) {
        let Some(shadow) = shadow.as_ref().filter(|logged| is_shadow(logged)) else { continue };
        let primary = answers.iter().flatten().find(|logged| !is_shadow(logged) && logged.ts == shadow.ts);
        let comparison = primary.and_then(|primary| compared(primary, shadow, tolerance));
        prediction.compared = comparison.map(|comparison| (comparison.agrees(), comparison.to_string()));
    }
}

/// The feedback about the rows of these predictions.
fn feedback_of(
    what: &Look,
    units: &Units,
    predictions: &[LookedPrediction],
    missing: &mut Missing,
) -> Result<Vec<RowFeedback>, Error> {
    let rows = predictions.iter().map(|of| of.head.rows).max().unwrap_or_default().min(FEEDBACK_ROWS);
    let rows = i32::try_from(rows).unwrap_or_default();
    let mut index = FeedbackIndex::default();
    (0..rows).for_each(|row| index.register(what.request_id, row));
    let mut read_already = BTreeSet::new();
    for number in units.open_numbers() {
        if let Some(segment) = units.segment(number)? {
            read_already.insert(number);
            for batch in segment.feedback(what.model) {
                index.add(&batch)?;
            }
        }
    }
    for file in sealed_files(&what.data.join("feedback"), what.model, &read_already)? {
        match Stored::file(&*file.path, |_| true, &[("request_id", vec![what.request_id])]) {
            Ok((stored, _)) => {
                if let Err(error) = feedback::read(&stored, &mut index, |_| true) {
                    units.without(&stored, error, missing)?;
                }
            }
            Err(OpenError::Deleted) => {}
            Err(OpenError::Failed(error)) => missing.not_read.add(what.data, &file.path, &error),
        }
    }
    let of_row = |row: i32| {
        let feedback = index.get(what.request_id, row)?;
        let (label, values) = (feedback.label().cloned(), index.values_of(feedback));
        (label.is_some() || !values.is_empty()).then(|| RowFeedback { row, label, values, ts: feedback.ts() })
    };
    Ok((0..rows).filter_map(of_row).collect())
}
