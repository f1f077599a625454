//! Reads the prediction log and its feedback into the history of outcomes, after a start.

use super::error::Error;
use super::feedback::{COLUMNS, entries};
use super::filter::Filter;
use super::sources::{Sources, models};
use crate::quality::History;
use crate::record::{Recall, What, recall_segments};
use std::path::Path;

/// Reads what the history keeps: first all predictions, then all feedback, so that no feedback waits for its row. Records that are there already
/// are not read twice, so a server may go on meanwhile. Memory is bounded: one segment, or a few thousand rows of a file, and the history's own
/// limit. Stops when `go_on` returns false. `now` is in microseconds since 1970.
///
/// # Errors
/// The first error. Everything else was read.
pub fn recall(data: &Path, history: &History, now: i64, go_on: &dyn Fn() -> bool) -> Result<(), Error> {
    let keep = i64::try_from(history.keep().as_micros()).unwrap_or(i64::MAX);
    let filter = Filter { from: Some(now.saturating_sub(keep)), ..Filter::default() };
    let mut first_error = Ok(());
    let mut note = |result: Result<(), Error>| {
        if first_error.is_ok() {
            first_error = result;
        }
    };
    let segments = |what| {
        recall_segments(data, what, history, now, go_on)
            .map_err(|e| Error::at("read the segments in", &data.join("log"), e))
    };
    for what in [What::Predictions, What::Feedback] {
        note(segments(what));
        for model in models(data)? {
            if !go_on() {
                return Ok(());
            }
            let read = Sources::sealed(data, &model, &filter).and_then(|sources| match what {
                What::Predictions => predictions(&sources, history, now, go_on),
                What::Feedback => sources.feedback.iter().try_for_each(|stored| {
                    let parts: Vec<usize> = (0..stored.parts.len()).collect();
                    for batch in stored.read(&parts, Some(&COLUMNS))? {
                        for (received_at, entry) in entries(&batch?).map_err(|error| stored.locate(error))? {
                            history.record_feedback(&model, std::slice::from_ref(&entry), received_at);
                        }
                        if !go_on() {
                            return Ok(());
                        }
                    }
                    Ok(())
                }),
            });
            note(read);
        }
    }
    first_error
}

fn predictions(sources: &Sources, history: &History, now: i64, go_on: &dyn Fn() -> bool) -> Result<(), Error> {
    for source in &sources.predictions {
        let recall = Recall::new(&source.about);
        let parts: Vec<usize> = (0..source.stored.parts.len()).collect();
        for batch in source.stored.read(&parts, None)? {
            let batch = super::sources::select(&batch?, &Filter::default()).map_err(|e| source.stored.locate(e))?;
            recall.add(&batch, history, now);
            if !go_on() {
                return Ok(());
            }
        }
    }
    Ok(())
}
