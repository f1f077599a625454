//! Writes an export as CSV. A tensor is a JSON list in one cell, in which `NaN`, `Infinity` and `-Infinity` are allowed.

use super::atomic_file::AtomicFile;
use super::error::Error;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrowPrimitiveType, RecordBatch};
use arrow_schema::{DataType, Schema};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use std::fmt::Write as _;

pub(super) struct CsvWriter {
    writer: csv::Writer<AtomicFile>,
    cell: String,
}

impl std::fmt::Debug for CsvWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CsvWriter(…)")
    }
}

impl CsvWriter {
    pub(super) fn begin(file: AtomicFile, schema: &Schema) -> Result<CsvWriter, Error> {
        let mut csv = CsvWriter { writer: csv::Writer::from_writer(file), cell: String::new() };
        for field in schema.fields() {
            match field.data_type() {
                DataType::Struct(inner) => {
                    for tensor in inner {
                        csv.field(&format!("{}.{}", field.name(), tensor.name()))?;
                    }
                }
                // Inputs or outputs without tensors have no columns.
                DataType::Null => {}
                _ => csv.field(field.name())?,
            }
        }
        csv.end_of_row()?;
        Ok(csv)
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        for row in 0..batch.num_rows() {
            for column in batch.columns() {
                if let Some(tensors) = column.as_struct_opt() {
                    for tensor in tensors.columns() {
                        self.cell(tensor, row, tensors.is_valid(row))?;
                    }
                } else if column.data_type() != &DataType::Null {
                    self.cell(column, row, true)?;
                }
            }
            self.end_of_row()?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<u64, Error> {
        self.writer.into_inner().map_err(|e| Error::Failed(format!("cannot write the file: {}", e.error())))?.finish()
    }

    /// Null is an empty cell.
    fn cell(&mut self, column: &dyn Array, row: usize, valid: bool) -> Result<(), Error> {
        let mut cell = std::mem::take(&mut self.cell);
        cell.clear();
        if valid && column.is_valid(row) {
            value(&mut cell, column, row)?;
        }
        self.field(&cell)?;
        self.cell = cell;
        Ok(())
    }

    fn field(&mut self, text: &str) -> Result<(), Error> {
        self.writer.write_field(text).map_err(write_error)
    }

    fn end_of_row(&mut self) -> Result<(), Error> {
        self.writer.write_record(None::<&[u8]>).map_err(write_error)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used with map_err")]
fn write_error(error: csv::Error) -> Error {
    Error::Failed(format!("cannot write the file: {error}"))
}

/// Writes a value as a cell. Strings have no quotes.
fn value(out: &mut String, column: &dyn Array, row: usize) -> Result<(), Error> {
    match column.data_type() {
        DataType::Utf8 => out.push_str(column.as_string::<i32>().value(row)),
        DataType::Timestamp(..) => {
            let at = Timestamp::from_microsecond(column.as_primitive::<TimestampMicrosecondType>().value(row));
            // A time outside of the calendar is written as a number.
            let number = || column.as_primitive::<TimestampMicrosecondType>().value(row).to_string();
            out.push_str(&at.map_or_else(|_| number(), |at| at.to_string()));
        }
        DataType::List(_) => {
            let elements = column.as_list::<i32>().value(row);
            out.push('[');
            for i in 0..elements.len() {
                if i > 0 {
                    out.push(',');
                }
                element(out, &elements, i)?;
            }
            out.push(']');
        }
        DataType::Map(..) => {
            let entries = column.as_map().value(row);
            out.push('{');
            for i in 0..entries.len() {
                if i > 0 {
                    out.push(',');
                }
                element(out, entries.column(0), i)?;
                out.push(':');
                element(out, entries.column(1), i)?;
            }
            out.push('}');
        }
        _ => element(out, column, row)?,
    }
    Ok(())
}

/// Writes an element as JSON, as far as JSON can express it.
fn element(out: &mut String, array: &dyn Array, i: usize) -> Result<(), Error> {
    fn integer<T: ArrowPrimitiveType<Native: std::fmt::Display>>(out: &mut String, array: &dyn Array, i: usize) {
        // Writing to a String cannot fail.
        let _ = write!(out, "{}", array.as_primitive::<T>().value(i));
    }
    match array.data_type() {
        DataType::Boolean => out.push_str(if array.as_boolean().value(i) { "true" } else { "false" }),
        DataType::UInt8 => integer::<UInt8Type>(out, array, i),
        DataType::UInt16 => integer::<UInt16Type>(out, array, i),
        DataType::UInt32 => integer::<UInt32Type>(out, array, i),
        DataType::UInt64 => integer::<UInt64Type>(out, array, i),
        DataType::Int8 => integer::<Int8Type>(out, array, i),
        DataType::Int16 => integer::<Int16Type>(out, array, i),
        DataType::Int32 => integer::<Int32Type>(out, array, i),
        DataType::Int64 => integer::<Int64Type>(out, array, i),
        DataType::Float16 => float(out, array.as_primitive::<Float16Type>().value(i).to_f32()),
        DataType::Float32 => float(out, array.as_primitive::<Float32Type>().value(i)),
        DataType::Float64 => float(out, array.as_primitive::<Float64Type>().value(i)),
        DataType::Utf8 => string(out, array.as_string::<i32>().value(i)),
        DataType::Binary => match std::str::from_utf8(array.as_binary::<i32>().value(i)) {
            Ok(text) => string(out, text),
            Err(_) => {
                let _ = write!(out, "{{\"b64\":\"{}\"}}", STANDARD.encode(array.as_binary::<i32>().value(i)));
            }
        },
        other => return Err(Error::Failed(format!("a column of {other} cannot be written as CSV"))),
    }
    Ok(())
}

fn string(out: &mut String, text: &str) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

/// Writes the shortest text that reads back as the same number.
fn float<T: zmij::Float + Into<f64> + Copy>(out: &mut String, number: T) {
    let wide: f64 = number.into();
    if wide.is_finite() {
        out.push_str(zmij::Buffer::new().format_finite(number));
    } else if wide.is_nan() {
        out.push_str("NaN");
    } else {
        out.push_str(if wide > 0.0 { "Infinity" } else { "-Infinity" });
    }
}
