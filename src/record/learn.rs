//! Passes written frames to the live quality figures, and to the counts of drift.

use super::about::Column;
use super::feedback;
use super::frame::Kind;
use super::now;
use super::stream::Stream;
use super::view::{self, PredictionView, TensorView};
use crate::drift::{self, Drift};
use crate::model::Role;
use crate::quality::{Predicted, Quality, Seen};
use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;

/// Updates the live figures with one frame.
pub(super) fn update(quality: &Quality, drift: &Drift, streams: &HashMap<u32, Arc<Stream>>, kind: Kind, body: &[u8]) {
    match kind {
        Kind::Feedback => {
            let model = feedback::read_head(body).and_then(|(model, _)| model.parse().ok());
            // Feedback that is not stored as it is was joined before.
            if let (Some(model), Some(entries)) = (model, feedback::read(body).filter(|_| !feedback::is_joined(body))) {
                quality.record_feedback(&model, entries, now());
            }
        }
        Kind::Prediction => {
            let stream = view::read_head(body).and_then(|(id, _)| streams.get(&id));
            if let Some(stream) = stream
                && let Some(view) = view::read_prediction(body, &stream.inputs, &stream.outputs)
                && view.role != Role::Shadow
                && view.outputs.is_some()
            {
                count(drift, stream, &view);
                predictions(quality, stream, &view);
            }
        }
        Kind::Stream | Kind::Gap | Kind::End => {}
    }
}

/// Counts the values of the rows. A record that must not count in estimates (`sample_rate` 0) is left out.
fn count(drift: &Drift, stream: &Stream, view: &PredictionView) {
    if view.sample_rate <= 0.0 {
        return;
    }
    let seen = drift::Seen {
        model: &stream.about.model,
        version: stream.about.version,
        arm: view.arm,
        request_id: view.request_id,
        ts: view.ts,
        records: view.records(),
    };
    drift.observe(&seen, |columns, row, each| stream.cells(view, columns, row, each));
}

fn predictions(quality: &Quality, stream: &Stream, view: &PredictionView) {
    let Some(outputs) = view.outputs.as_deref() else { return };
    let records = view.records();
    let columns = (&stream.inputs[..], &stream.outputs[..]);
    let texts = OnceCell::new();
    for row in 0..records {
        let seen = Seen {
            model: &stream.about.model,
            version: stream.about.version,
            arm: view.arm,
            request_id: view.request_id,
            row: u32::try_from(row).unwrap_or(u32::MAX),
            route_key: view.route_key,
            ts: view.ts,
        };
        let predicted = || predicted(stream, outputs, row, records);
        // Hidden outputs were joined before they were hidden.
        if !stream.hides_outputs {
            quality.record_prediction(&seen, predicted);
        }
        // A record with rate 0 was kept to be looked at, and does not count in estimates.
        if view.sample_rate > 0.0 {
            let contents = || {
                let texts = texts.get_or_init(|| stream.kept.texts(columns.0, &view.inputs));
                stream.kept.contents(columns, (&view.inputs, outputs), texts, row, records)
            };
            quality.history().record_prediction(&seen, &stream.kept.layout, view.ts, || (predicted(), contents()));
        }
    }
}

/// The outputs of one row that are stored as they were.
pub(super) fn predicted(stream: &Stream, outputs: &[Option<TensorView>], row: usize, records: usize) -> Predicted {
    let mut predicted = Predicted::default();
    let as_they_were = |(column, _): &(&Column, _)| !column.hashed && column.masks.is_empty();
    for (column, tensor) in stream.outputs.iter().zip(outputs).filter(as_they_were) {
        let Some(tensor) = tensor else { continue };
        if view::element_width(column).is_some() {
            let each = tensor.bytes.len() / records;
            predicted.add(column.spec.datatype, &tensor.bytes[row * each..(row + 1) * each]);
        } else {
            let each = tensor.shape.elements().unwrap_or(0) / records;
            if each == 1
                && let Some(text) = tensor.texts().nth(row)
            {
                predicted.add_text(text);
            }
        }
    }
    predicted
}
