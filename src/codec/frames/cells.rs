//! The text of a field as an element of a tensor.

use super::csv::Field;
use crate::codec::elements::FromJson;
use crate::codec::json::Reader;
use crate::codec::nested::Buffer;
use crate::model::Failure;
use bytes::Bytes;
use half::f16;
use std::borrow::Cow;

/// Why a field is not an element.
#[derive(Debug)]
pub(super) enum Error {
    /// What was expected.
    Wrong(&'static str),
    NoMemory(Failure),
}

/// Appends a field to the values of its column.
pub(super) fn push(buffer: &mut Buffer, field: &Field<'_>, reader: &Reader<'_>) -> Result<(), Error> {
    let text = field.trim();
    match buffer {
        Buffer::Bool(values) => append(values, boolean(text), reader),
        Buffer::Uint8(values) => append(values, integer(text), reader),
        Buffer::Uint16(values) => append(values, integer(text), reader),
        Buffer::Uint32(values) => append(values, integer(text), reader),
        Buffer::Uint64(values) => append(values, integer(text), reader),
        Buffer::Int8(values) => append(values, integer(text), reader),
        Buffer::Int16(values) => append(values, integer(text), reader),
        Buffer::Int32(values) => append(values, integer(text), reader),
        Buffer::Int64(values) => append(values, integer(text), reader),
        Buffer::Fp16(values) => append(values, float(text, f16::is_infinite), reader),
        Buffer::Fp32(values) => append(values, float(text, f32::is_infinite), reader),
        Buffer::Fp64(values) => append(values, float(text, f64::is_infinite), reader),
        Buffer::Bytes(values) => {
            let bytes = match field {
                Cow::Borrowed(text) => reader.view(text),
                Cow::Owned(text) => {
                    reader.grow(text.len() + 32).map_err(|syntax| Error::NoMemory(syntax.into()))?;
                    Bytes::from(text.clone())
                }
            };
            append(values, Some(bytes), reader)
        }
    }
}

fn append<T: FromJson>(values: &mut Vec<T>, value: Option<T>, reader: &Reader<'_>) -> Result<(), Error> {
    let value = value.ok_or(Error::Wrong(T::EXPECTED))?;
    reader.room(values, 1).map_err(|syntax| Error::NoMemory(syntax.into()))?;
    values.push(value);
    Ok(())
}

/// As pandas and Python write them.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "1" => Some(true),
        "false" | "False" | "FALSE" | "0" => Some(false),
        _ => None,
    }
}

/// An integer, or a number with a fraction of zeros: pandas writes those for a column that had missing values.
fn integer<T: std::str::FromStr>(text: &str) -> Option<T> {
    let whole = text.split_once('.').filter(|(_, fraction)| fraction.bytes().all(|digit| digit == b'0'));
    whole.map_or(text, |(whole, _)| whole).parse().ok()
}

/// A number. A missing value is NaN, as pandas reads it. A number that is too large is refused, and infinity is not.
fn float<T: std::str::FromStr + Copy>(text: &str, is_infinite: fn(T) -> bool) -> Option<T> {
    const MISSING: [&str; 16] = [
        "", "NA", "N/A", "n/a", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None", "<NA>", "#N/A", "#NA",
        "#N/A N/A", "1.#QNAN",
    ];
    if MISSING.contains(&text) {
        return "nan".parse().ok();
    }
    let value: T = text.parse().ok()?;
    let is_word = !text.bytes().any(|byte| byte.is_ascii_digit());
    (is_word || !is_infinite(value)).then_some(value)
}
