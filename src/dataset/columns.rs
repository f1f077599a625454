//! Typed access to the columns of a record batch.

use super::error::Error;
use arrow_array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, MapArray, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};

/// The columns that are needed to select and to join records.
#[derive(Debug)]
pub(super) struct KeyColumns<'b> {
    pub(super) request_id: &'b StringArray,
    pub(super) row: &'b Int32Array,
    pub(super) arm: &'b StringArray,
    pub(super) role: &'b StringArray,
}

impl<'b> KeyColumns<'b> {
    /// The names of these columns, and of the time.
    pub(super) const COLUMNS: [&'static str; 5] = ["request_id", "row", "ts", "arm", "role"];

    pub(super) fn of(batch: &'b RecordBatch) -> Result<KeyColumns<'b>, Error> {
        Ok(KeyColumns {
            request_id: texts(batch, "request_id")?,
            row: column(batch, "row", "int32")?,
            arm: texts(batch, "arm")?,
            role: texts(batch, "role")?,
        })
    }
}

pub(super) fn texts<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b StringArray, Error> {
    column(batch, name, "string")
}

pub(super) fn times<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b TimestampMicrosecondArray, Error> {
    column(batch, name, "timestamp(us, UTC)")
}

pub(super) fn int64s<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b Int64Array, Error> {
    column(batch, name, "int64")
}

pub(super) fn bools<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b BooleanArray, Error> {
    column(batch, name, "bool")
}

pub(super) fn doubles<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b Float64Array, Error> {
    column(batch, name, "double")
}

pub(super) fn maps<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b MapArray, Error> {
    column(batch, name, "map<string, double>")
}

pub(super) fn any<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b ArrayRef, Error> {
    batch.column_by_name(name).ok_or_else(|| Error::Failed(format!("the column {name} is missing")))
}

pub(super) fn column<'b, T: Array + 'static>(
    batch: &'b RecordBatch,
    name: &str,
    expected: &str,
) -> Result<&'b T, Error> {
    let found = any(batch, name)?;
    found.as_any().downcast_ref().ok_or_else(|| {
        Error::Failed(format!("the column {name} is expected to be {expected}, found {}", found.data_type()))
    })
}
