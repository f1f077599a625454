//! The columns of a batch under their names and types.

use super::error::Error;
use arrow_array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, MapArray, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};

/// What is looked at to choose records, and to join them.
#[derive(Debug)]
pub struct Heads<'b> {
    pub request_id: &'b StringArray,
    pub row: &'b Int32Array,
    pub arm: &'b StringArray,
    pub role: &'b StringArray,
}

impl<'b> Heads<'b> {
    /// The columns to read for them, with that of the time.
    pub const COLUMNS: [&'static str; 5] = ["request_id", "row", "ts", "arm", "role"];

    pub fn of(batch: &'b RecordBatch) -> Result<Heads<'b>, Error> {
        Ok(Heads {
            request_id: texts(batch, "request_id")?,
            row: column(batch, "row", "int32")?,
            arm: texts(batch, "arm")?,
            role: texts(batch, "role")?,
        })
    }
}

pub fn texts<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b StringArray, Error> {
    column(batch, name, "string")
}

pub fn times<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b TimestampMicrosecondArray, Error> {
    column(batch, name, "timestamp(us, UTC)")
}

pub fn int64s<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b Int64Array, Error> {
    column(batch, name, "int64")
}

pub fn bools<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b BooleanArray, Error> {
    column(batch, name, "bool")
}

pub fn doubles<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b Float64Array, Error> {
    column(batch, name, "double")
}

pub fn maps<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b MapArray, Error> {
    column(batch, name, "map<string, double>")
}

pub fn any<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b ArrayRef, Error> {
    batch.column_by_name(name).ok_or_else(|| Error::Failed(format!("the column {name} is missing")))
}

pub fn column<'b, T: Array + 'static>(batch: &'b RecordBatch, name: &str, expected: &str) -> Result<&'b T, Error> {
    let found = any(batch, name)?;
    found.as_any().downcast_ref().ok_or_else(|| {
        Error::Failed(format!("the column {name} is expected to be {expected}, found {}", found.data_type()))
    })
}
