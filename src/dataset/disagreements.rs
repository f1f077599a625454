//! Finds the shadows' answers that differ from the primary's: the log has both, and says nothing about the difference.

use super::assemble::Assembler;
use super::columns::{texts, times};
use super::error::Error;
use super::feedback::FeedbackIndex;
use super::filter::Filter;
use super::logged::LoggedRequest;
use super::scan::ScannedBatch;
use super::sources::{Source, select};
use super::units::{Missing, Number, Units};
use crate::compare::{Comparison, Tolerance, compare_answers};
use crate::model::{Answer, Role, Version};
use crate::record::{About, PredictionView, SHAPES, Side};
use crate::tensor::Tensor;
use arrow_array::BooleanArray;
use arrow_select::filter::filter_record_batch;
use std::collections::HashMap;

/// The columns that are needed to compare answers: all but the inputs.
const COLUMNS: [&str; 11] = [
    "request_id",
    "row",
    "ts",
    "arm",
    "role",
    "status",
    "truncated",
    "infer_us",
    "batch_rows",
    Side::Outputs.as_str(),
    SHAPES,
];

/// Shadows' answers that differ, in words. The key is the request's id, its time and the shadow's version.
pub(super) type Differences = HashMap<(String, i64, Version), String>;

/// Compares the shadows' answers in `shadows`, which are those of a unit that match `filter`, with the answers to callers. A shadow answers after the caller
/// was answered, so the caller's answer is in the same unit or in the one before. A damaged file is noted in `missing`.
///
/// # Errors
/// When records in memory cannot be read.
pub(super) fn differences(
    units: &Units,
    number: Number,
    shadows: &[Source],
    filter: &Filter,
    tolerance: Tolerance,
    missing: &mut Missing,
) -> Result<Differences, Error> {
    let mut found = Differences::new();
    let mut compare = |answers: &Answers, missing: &mut Missing| -> Result<(), Error> {
        for unit in std::iter::once(number).chain(units.before(number)) {
            compare_with(units, unit, answers, tolerance, &mut found, missing)?;
        }
        Ok(())
    };
    for source in shadows {
        let (mut answers, mut held) = (Answers::new(), 0);
        // What goes wrong with the answers to callers is no fault of this source.
        let mut failed = Ok(());
        let whole = read(source, filter, &|_, _| true, &mut |logged| {
            held += OF_REQUEST + logged.outputs.iter().flatten().map(Tensor::size).sum::<usize>();
            answers.entry(logged.request_id.clone()).or_default().push(logged);
            if held >= HELD {
                failed = compare(&answers, missing);
                (answers, held) = (Answers::new(), 0);
                // An error ends the reading here.
                failed.clone()?;
            }
            Ok(())
        });
        failed?;
        if let Err(error) = whole {
            units.without(&source.stored, error, missing)?;
        }
        if !answers.is_empty() {
            compare(&answers, missing)?;
        }
    }
    Ok(found)
}

/// Shadows' answers by request id.
type Answers = HashMap<String, Vec<LoggedRequest>>;

/// Bytes of answers that are in memory until they are compared, and those of a request besides its outputs.
const HELD: usize = 64 << 20;
const OF_REQUEST: usize = 600;

/// Compares these answers with those to callers in one unit.
fn compare_with(
    units: &Units,
    unit: Number,
    answers: &Answers,
    tolerance: Tolerance,
    found: &mut Differences,
    missing: &mut Missing,
) -> Result<(), Error> {
    // Without roles, a filter matches the answers to callers.
    let to_callers = Filter::default();
    let has = |id: &str, ts: i64| answers.get(id).is_some_and(|of_id| of_id.iter().any(|logged| logged.ts == ts));
    let keep = |_: &About, view: &PredictionView| view.role != Role::Shadow && has(view.request_id, view.ts);
    for source in &units.open(unit, &to_callers, None, &keep, missing)? {
        let whole = read(source, &to_callers, &has, &mut |primary| {
            let of_id = answers.get(&primary.request_id).into_iter().flatten();
            for shadow in of_id.filter(|shadow| shadow.ts == primary.ts) {
                if let Some(comparison) = compared(&primary, shadow, tolerance).filter(|c| !c.agrees()) {
                    let key = (shadow.request_id.clone(), shadow.ts, shadow.version());
                    found.insert(key, comparison.to_string());
                }
            }
            Ok(())
        });
        if let Err(error) = whole {
            units.without(&source.stored, error, missing)?;
        }
    }
    Ok(())
}

/// Compares two recorded answers. `None` where one of them has no outputs as they were.
pub(super) fn compared(primary: &LoggedRequest, shadow: &LoggedRequest, tolerance: Tolerance) -> Option<Comparison> {
    let (expected, got) = (Answer::from(primary.outputs().ok()?), Answer::from(shadow.outputs().ok()?));
    Some(compare_answers(&expected, &got, tolerance))
}

/// Assembles the requests that match, by id and time too.
fn read(
    source: &Source,
    filter: &Filter,
    wanted: &dyn Fn(&str, i64) -> bool,
    each: &mut dyn FnMut(LoggedRequest) -> Result<(), Error>,
) -> Result<(), Error> {
    let columns: Vec<&str> = COLUMNS.into_iter().chain(filter.more_columns()).collect();
    let (mut assembler, feedback) = (Assembler::default(), FeedbackIndex::default());
    let parts: Vec<usize> = (0..source.stored.parts.len()).collect();
    for batch in source.stored.read(&parts, Some(&columns))? {
        let batch = batch?;
        let batch = select(&batch, filter)?;
        let (ids, ts) = (texts(&batch, "request_id")?, times(&batch, "ts")?);
        let mask: BooleanArray = (0..batch.num_rows()).map(|i| Some(wanted(ids.value(i), ts.value(i)))).collect();
        let failed = |e| Error::Failed(format!("cannot select records: {e}"));
        let batch = filter_record_batch(&batch, &mask).map_err(failed)?;
        let scanned = ScannedBatch { source_index: 0, source, batch, feedback: &feedback };
        assembler.push(&scanned)?.into_iter().try_for_each(&mut *each)?;
    }
    assembler.finish().into_iter().try_for_each(each)
}
