//! Feedback: its frame and its columns.
//!
//! A retracted label or value is stored as NaN. JSON has no NaN, so no caller can send one, and the columns are the same with and without
//! retractions.

use super::columns::timestamp;
use super::frame::{Kind, Reader, TooLarge, write_frame, write_text};
use crate::model::{Feedback, Label, ModelName, Update};
use arrow_array::builder::{Float64Builder, MapBuilder, MapFieldNames, StringBuilder};
use arrow_array::{ArrayRef, Float64Array, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_schema::{DataType, Field, Schema};
use std::sync::Arc;

/// Set in the number of entries of a frame whose entries were joined with predictions before they were changed for storage. A request has
/// far fewer entries.
const JOINED: u32 = 1 << 31;

/// Appends the entries of one request in one frame, so that all of them are stored or none. `joined`: the live figures have them already.
pub(super) fn write(
    out: &mut Vec<u8>,
    model: &ModelName,
    received_at: i64,
    entries: &[Feedback],
    joined: bool,
) -> Result<(), TooLarge> {
    write_frame(out, Kind::Feedback, |out| {
        write_text(out, model.as_str());
        out.extend_from_slice(&received_at.to_le_bytes());
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX) & !JOINED;
        out.extend_from_slice(&(count | if joined { JOINED } else { 0 }).to_le_bytes());
        for entry in entries {
            write_text(out, &entry.request_id);
            out.extend_from_slice(&entry.row.to_le_bytes());
            out.extend_from_slice(&entry.ts.to_le_bytes());
            match &entry.label {
                None => out.push(0),
                Some(Update::Set(Label::Number(n))) => {
                    out.push(1);
                    out.extend_from_slice(&n.to_le_bytes());
                }
                Some(Update::Set(Label::Text(text))) => {
                    out.push(2);
                    write_text(out, text);
                }
                Some(Update::Retract) => {
                    out.push(1);
                    out.extend_from_slice(&RETRACTED.to_le_bytes());
                }
            }
            write_count(out, entry.values.len());
            for (name, value) in &entry.values {
                write_text(out, name);
                out.extend_from_slice(&stored(value).to_le_bytes());
            }
        }
    })
}

/// How a retracted label or value is stored.
const RETRACTED: f64 = f64::NAN;

fn stored(value: &Update<f64>) -> f64 {
    value.value().copied().unwrap_or(RETRACTED)
}

/// What a stored number says.
pub(crate) fn stored_update(number: f64) -> Update<f64> {
    if number.is_nan() { Update::Retract } else { Update::Set(number) }
}

fn write_count(out: &mut Vec<u8>, n: usize) {
    // A request with more entries is refused when its body is read.
    out.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes());
}

/// The model and the time of receipt.
pub(super) fn read_head(body: &[u8]) -> Option<(&str, i64)> {
    let mut reader = Reader(body);
    Some((reader.text()?, reader.i64()?))
}

/// The entries of a frame; `None` where they cannot be read.
pub(super) fn read(body: &[u8]) -> Option<Vec<Feedback>> {
    let mut reader = Reader(body);
    let (_model, _received_at, entries) = (reader.text()?, reader.i64()?, reader.u32()?);
    (0..entries & !JOINED).map(|_| read_entry(&mut reader)).collect()
}

/// Whether the live figures have the entries of a frame already.
pub(super) fn is_joined(body: &[u8]) -> bool {
    let mut reader = Reader(body);
    let count = reader.text().and_then(|_| reader.i64()).and_then(|_| reader.u32());
    count.is_some_and(|count| count & JOINED != 0)
}

fn read_entry(reader: &mut Reader) -> Option<Feedback> {
    let (request_id, row, ts) = (reader.text()?.to_owned(), reader.u32()?, reader.i64()?);
    let label = match reader.u8()? {
        0 => None,
        1 => Some(match stored_update(f64::from_le_bytes(reader.array()?)) {
            Update::Set(number) => Update::Set(Label::Number(number)),
            Update::Retract => Update::Retract,
        }),
        _ => Some(Update::Set(Label::Text(reader.text()?.to_owned()))),
    };
    let values = reader.u32()?;
    let mut value = |_| Some((reader.text()?.to_owned(), stored_update(f64::from_le_bytes(reader.array()?))));
    let values = (0..values).map(&mut value).collect::<Option<_>>()?;
    Some(Feedback { request_id, row, ts, label, values })
}

/// The columns of a feedback file.
#[must_use]
pub(crate) fn schema() -> Arc<Schema> {
    let entries = Field::new(
        "key_value",
        DataType::Struct(
            vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Float64, false)].into(),
        ),
        false,
    );
    Arc::new(Schema::new(vec![
        Field::new("request_id", DataType::Utf8, false),
        Field::new("row", DataType::Int32, false),
        Field::new("ts", timestamp(), false),
        Field::new("received_at", timestamp(), false),
        Field::new("label_num", DataType::Float64, true),
        Field::new("label_str", DataType::Utf8, true),
        Field::new("values", DataType::Map(Arc::new(entries), false), false),
    ]))
}

/// The entries of several frames as one batch.
pub(super) fn batch(bodies: &[&[u8]]) -> RecordBatch {
    let mut all: Vec<(i64, Feedback)> = Vec::new();
    for body in bodies {
        let received_at = read_head(body).map_or(0, |(_, received_at)| received_at);
        all.extend(read(body).into_iter().flatten().map(|entry| (received_at, entry)));
    }
    let names = MapFieldNames { entry: "key_value".to_owned(), key: "key".to_owned(), value: "value".to_owned() };
    let mut values = MapBuilder::new(Some(names), StringBuilder::new(), Float64Builder::new())
        .with_values_field(Field::new("value", DataType::Float64, false));
    for (_, entry) in &all {
        for (name, value) in &entry.values {
            values.keys().append_value(name);
            values.values().append_value(stored(value));
        }
        values.append(true).expect("each name was appended with a value");
    }
    let time = |of: fn(&(i64, Feedback)) -> i64| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from_iter_values(all.iter().map(of)).with_timezone("UTC"))
    };
    let number = |entry: &Feedback| match &entry.label {
        Some(Update::Set(Label::Number(n))) => Some(*n),
        Some(Update::Retract) => Some(RETRACTED),
        _ => None,
    };
    let text = |entry: &Feedback| match &entry.label {
        Some(Update::Set(Label::Text(text))) => Some(text.clone()),
        _ => None,
    };
    let row = |entry: &Feedback| i32::try_from(entry.row).unwrap_or(i32::MAX);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(all.iter().map(|(_, entry)| &entry.request_id))),
        Arc::new(Int32Array::from_iter_values(all.iter().map(|(_, entry)| row(entry)))),
        time(|(_, entry)| entry.ts),
        time(|(received_at, _)| *received_at),
        Arc::new(all.iter().map(|(_, entry)| number(entry)).collect::<Float64Array>()),
        Arc::new(all.iter().map(|(_, entry)| text(entry)).collect::<StringArray>()),
        Arc::new(values.finish()),
    ];
    RecordBatch::try_new(schema(), columns).expect("the columns were made for this schema, of one length")
}
