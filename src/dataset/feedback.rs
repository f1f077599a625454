//! The feedback for a chunk of predictions: of each field, the latest.

use super::columns::{column, doubles, maps, texts, times};
use super::error::Error;
use super::sources::Stored;
use crate::model::{Feedback as Entry, Label, Update};
use crate::record::{feedback_schema, stored_update, timestamp};
use arrow_array::builder::{Float64Builder, MapBuilder, MapFieldNames, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::Float64Type;
use arrow_array::{Array, ArrayRef, Float64Array, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_schema::{DataType, Field, FieldRef};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// Feedback by request id and row, for predictions that were registered before the feedback is read.
#[derive(Debug, Default)]
pub(super) struct FeedbackIndex {
    /// The index in `found` of a prediction's feedback. [`NONE`] if there is none yet.
    index: HashMap<Key, u32, BuildHasherDefault<KeyHasher>>,
    found: Vec<Feedback>,
    /// The names of business values. There are few, so entries refer to them by number.
    names: Vec<Box<str>>,
    name_numbers: HashMap<Box<str>, u32>,
    /// The approximate size of labels and values.
    bytes: usize,
}

/// What is known about one row: of each field, the latest.
#[derive(Debug, Default)]
pub(super) struct Feedback {
    label: Option<(Time, Update<Label>)>,
    /// Each name once.
    values: Vec<(u32, Time, Update<f64>)>,
}

/// The `ts` and the `received_at` of an entry. The later counts.
type Time = (i64, i64);

const NONE: u32 = u32::MAX;

/// The hash of a request id and a row. With 128 bits, collisions do not matter. Two halves need less alignment than one `u128`.
type Key = (u64, u64);

fn key(request_id: &str, row: i32) -> Key {
    // Not the row as the seed: the hash of a short id depends only on the id xor the seed, so "r1" of row 0 and "r0" of row 1 may be one key.
    let row = u64::from(row.cast_unsigned()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = xxh3_128(request_id.as_bytes()) ^ u128::from(row);
    #[expect(clippy::cast_possible_truncation, reason = "takes the two halves")]
    (hash as u64, (hash >> 64) as u64)
}

/// Uses the keys as they are, because they are hashes already.
#[derive(Debug, Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a key is two numbers")
    }

    fn write_u64(&mut self, half: u64) {
        self.0 ^= half;
    }
}

impl FeedbackIndex {
    /// Reserves memory for this many predictions.
    #[must_use]
    pub(super) fn for_rows(rows: usize) -> FeedbackIndex {
        FeedbackIndex {
            index: HashMap::with_capacity_and_hasher(rows, BuildHasherDefault::default()),
            ..FeedbackIndex::default()
        }
    }

    /// Registers a prediction.
    pub(super) fn register(&mut self, request_id: &str, row: i32) {
        self.index.insert(key(request_id, row), NONE);
    }

    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The memory for labels and values, without the fixed part per prediction.
    #[must_use]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds feedback of registered predictions. The latest for a field of a row counts: by `ts`, then by `received_at`, then the last one
    /// read.
    ///
    /// # Errors
    /// When a column is missing or of another type.
    pub(super) fn add(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        let (request_id, row) = (texts(batch, "request_id")?, column::<Int32Array>(batch, "row", "int32")?);
        let (ts, received_at) = (times(batch, "ts")?, times(batch, "received_at")?);
        let (number, text) = (doubles(batch, "label_num")?, texts(batch, "label_str")?);
        let values = maps(batch, "values")?;
        for i in 0..batch.num_rows() {
            let Some(at) = self.index.get_mut(&key(request_id.value(i), row.value(i))) else { continue };
            let time = (ts.value(i), received_at.value(i));
            let label = label(number, text, i);
            let values = read_values(&values.value(i), &mut self.names, &mut self.name_numbers)?;
            if self.found.get(*at as usize).is_none() {
                *at = u32::try_from(self.found.len()).unwrap_or(NONE);
                self.found.push(Feedback::default());
            }
            let Some(known) = self.found.get_mut(*at as usize) else { continue };
            self.bytes -= known.size();
            known.merge(time, label, &values);
            self.bytes += known.size();
        }
        Ok(())
    }

    /// The latest feedback for a prediction.
    #[must_use]
    pub(super) fn get(&self, request_id: &str, row: i32) -> Option<&Feedback> {
        // There is no entry at index NONE.
        self.index.get(&key(request_id, row)).and_then(|at| self.found.get(*at as usize))
    }

    /// The business values that hold, by name.
    #[must_use]
    pub(super) fn values_of(&self, feedback: &Feedback) -> Vec<(String, f64)> {
        feedback.values().map(|(name, value)| (self.names[name as usize].to_string(), value)).collect()
    }

    /// The feedback columns of an export.
    #[must_use]
    pub(super) fn fields() -> Vec<FieldRef> {
        let values = feedback_schema().field_with_name("values").map(|field| field.data_type().clone());
        vec![
            Arc::new(Field::new("label_num", DataType::Float64, true)),
            Arc::new(Field::new("label_str", DataType::Utf8, true)),
            Arc::new(Field::new("values", values.expect("the feedback schema has the column"), true)),
            Arc::new(Field::new("label_ts", timestamp(), true)),
        ]
    }

    /// The feedback columns for these rows.
    #[must_use]
    pub(super) fn columns(&self, rows: &[Option<&Feedback>]) -> Vec<ArrayRef> {
        let number = |row: Option<&Feedback>| match row?.label()? {
            Label::Number(n) => Some(*n),
            Label::Text(_) => None,
        };
        let text = |row: Option<&Feedback>| match row?.label()? {
            Label::Text(text) => Some(text.clone()),
            Label::Number(_) => None,
        };
        let names = MapFieldNames { entry: "key_value".to_owned(), key: "key".to_owned(), value: "value".to_owned() };
        let mut values = MapBuilder::new(Some(names), StringBuilder::new(), Float64Builder::new())
            .with_values_field(Field::new("value", DataType::Float64, false));
        for row in rows {
            for (name, value) in row.iter().flat_map(|row| row.values()) {
                values.keys().append_value(&self.names[name as usize]);
                values.values().append_value(value);
            }
            values.append(row.is_some()).expect("each name has a value");
        }
        let ts: TimestampMicrosecondArray = rows.iter().map(|row| row.and_then(Feedback::ts)).collect();
        vec![
            Arc::new(rows.iter().copied().map(number).collect::<Float64Array>()),
            Arc::new(rows.iter().copied().map(text).collect::<StringArray>()),
            Arc::new(values.finish()),
            Arc::new(ts.with_timezone("UTC")),
        ]
    }
}

impl Feedback {
    fn merge(&mut self, time: Time, label: Option<Update<Label>>, values: &[(u32, Update<f64>)]) {
        if let Some(label) = label
            && self.label.as_ref().is_none_or(|(known, _)| *known <= time)
        {
            self.label = Some((time, label));
        }
        if self.values.is_empty() {
            // Most rows get one entry.
            self.values.reserve_exact(values.len());
        }
        for (name, value) in values {
            match self.values.iter_mut().find(|(known, ..)| known == name) {
                None => self.values.push((*name, time, *value)),
                Some((_, known, _)) if *known > time => {}
                Some(known) => *known = (*name, time, *value),
            }
        }
    }

    /// The label. `None` where none came or the latest entry retracts it.
    #[must_use]
    pub(super) fn label(&self) -> Option<&Label> {
        self.label.as_ref().and_then(|(_, label)| label.value())
    }

    /// The values that hold, by the number of their name.
    fn values(&self) -> impl Iterator<Item = (u32, f64)> {
        self.values.iter().filter_map(|(name, _, value)| Some((*name, *value.value()?)))
    }

    /// The time of the label. Without a label, the time of the latest entry that counts.
    pub(super) fn ts(&self) -> Option<i64> {
        let of_label = self.label.as_ref().map(|((ts, _), _)| *ts);
        let of_any = || self.values.iter().map(|(_, (ts, _), _)| *ts).chain(of_label).max();
        of_label.filter(|_| self.label().is_some()).or_else(of_any)
    }

    fn size(&self) -> usize {
        let text = if let Some((_, Update::Set(Label::Text(text)))) = &self.label { text.len() } else { 0 };
        text + self.values.capacity() * size_of::<(u32, Time, Update<f64>)>()
    }
}

fn read_values(
    entries: &arrow_array::StructArray,
    names: &mut Vec<Box<str>>,
    name_numbers: &mut HashMap<Box<str>, u32>,
) -> Result<Vec<(u32, Update<f64>)>, Error> {
    let wrong_type = || Error::Failed("the column values is expected to be map<string, double>".to_owned());
    let [keys, values] = entries.columns() else { return Err(wrong_type()) };
    let keys = keys.as_string_opt::<i32>().ok_or_else(wrong_type)?;
    let values = values.as_primitive_opt::<Float64Type>().ok_or_else(wrong_type)?;
    let mut number = |name: &str| {
        name_numbers.get(name).copied().unwrap_or_else(|| {
            let number = u32::try_from(names.len()).unwrap_or(NONE);
            names.push(name.into());
            name_numbers.insert(name.into(), number);
            number
        })
    };
    Ok((0..entries.len()).map(|i| (number(keys.value(i)), stored_update(values.value(i)))).collect())
}

/// The entries of a batch, each with its `received_at`.
///
/// # Errors
/// When a column is missing or of another type.
pub(super) fn entries(batch: &RecordBatch) -> Result<Vec<(i64, Entry)>, Error> {
    let (request_id, row) = (texts(batch, "request_id")?, column::<Int32Array>(batch, "row", "int32")?);
    let (ts, received_at) = (times(batch, "ts")?, times(batch, "received_at")?);
    let (number, text) = (doubles(batch, "label_num")?, texts(batch, "label_str")?);
    let values = maps(batch, "values")?;
    let (mut names, mut numbers) = (Vec::new(), HashMap::new());
    let mut found = Vec::with_capacity(batch.num_rows());
    for i in 0..batch.num_rows() {
        let read = read_values(&values.value(i), &mut names, &mut numbers)?;
        found.push((
            received_at.value(i),
            Entry {
                request_id: request_id.value(i).to_owned(),
                row: row.value(i).cast_unsigned(),
                ts: ts.value(i),
                label: label(number, text, i),
                values: read.into_iter().map(|(name, value)| (names[name as usize].to_string(), value)).collect(),
            },
        ));
    }
    Ok(found)
}

fn label(number: &Float64Array, text: &StringArray, i: usize) -> Option<Update<Label>> {
    if number.is_valid(i) {
        return Some(match stored_update(number.value(i)) {
            Update::Set(number) => Update::Set(Label::Number(number)),
            Update::Retract => Update::Retract,
        });
    }
    text.is_valid(i).then(|| Update::Set(Label::Text(text.value(i).to_owned())))
}

/// The feedback columns that are read.
pub(super) const COLUMNS: [&str; 7] = ["request_id", "row", "ts", "received_at", "label_num", "label_str", "values"];

/// Reads the feedback in `stored` into `index`. Stops and returns false as soon as `go_on` returns false.
pub(super) fn read(
    stored: &Stored,
    index: &mut FeedbackIndex,
    go_on: impl Fn(&FeedbackIndex) -> bool,
) -> Result<bool, Error> {
    let parts: Vec<usize> = (0..stored.parts.len()).collect();
    for batch in stored.read(&parts, Some(&COLUMNS))? {
        index.add(&batch?).map_err(|error| stored.locate(error))?;
        if !go_on(index) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::BuildHasher;

    #[test]
    fn keys_of_ids_and_rows_have_distinct_hashes() {
        let hash = |i: i32| BuildHasherDefault::<KeyHasher>::default().hash_one(key(&format!("r{}", i / 8), i % 8));
        let distinct: std::collections::HashSet<u64> = (0..80_000).map(hash).collect();
        assert_eq!(distinct.len(), 80_000);
    }
}
