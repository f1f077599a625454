//! The elements of an array as a file has them, and their conversion to the datatype of a tensor.

use crate::tensor::{Data, DataType};
use bytes::Bytes;
use half::f16;

/// A named array, row-major.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Array {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) values: Values,
}

/// Elements.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    Bools(Vec<bool>),
    Signed(Vec<i64>),
    Unsigned(Vec<u64>),
    Floats(Vec<f64>),
    Texts(Vec<Bytes>),
    /// Text that is also read as a number or a boolean. An empty cell is a missing value.
    Cells(Cells),
}

/// Many short texts in one buffer.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Cells {
    text: String,
    ends: Vec<usize>,
}

/// An element that has no value in the datatype of its tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unfit {
    pub(super) index: usize,
    pub(super) found: String,
}

impl Cells {
    pub(super) fn push(&mut self, cell: &str) {
        self.text.push_str(cell);
        self.ends.push(self.text.len());
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.text[start..*end])
    }
}

impl Values {
    pub(super) fn len(&self) -> usize {
        match self {
            Values::Bools(v) => v.len(),
            Values::Signed(v) => v.len(),
            Values::Unsigned(v) => v.len(),
            Values::Floats(v) => v.len(),
            Values::Texts(v) => v.len(),
            Values::Cells(cells) => cells.ends.len(),
        }
    }

    /// The elements in this datatype.
    ///
    /// Floating-point numbers are rounded to it, as numpy does. Every other conversion keeps the value or is an error. Missing values are NaN in
    /// floating-point tensors, and errors in others.
    ///
    /// # Errors
    /// The first element that has no value in it.
    pub(super) fn convert(&self, datatype: DataType) -> Result<Data, Unfit> {
        Ok(match datatype {
            DataType::Bool => Data::Bool(self.map(boolean)?),
            DataType::Uint8 => Data::Uint8(self.integers()?.into()),
            DataType::Uint16 => Data::Uint16(self.integers()?.into()),
            DataType::Uint32 => Data::Uint32(self.integers()?.into()),
            DataType::Uint64 => Data::Uint64(self.integers()?.into()),
            DataType::Int8 => Data::Int8(self.integers()?.into()),
            DataType::Int16 => Data::Int16(self.integers()?.into()),
            DataType::Int32 => Data::Int32(self.integers()?.into()),
            DataType::Int64 => Data::Int64(self.integers()?.into()),
            DataType::Fp16 => Data::Fp16(self.floats(f16::from_f64, f16::is_infinite)?.into()),
            DataType::Fp32 => Data::Fp32(self.floats(rounded, f32::is_infinite)?.into()),
            DataType::Fp64 => Data::Fp64(self.floats(|x| x, f64::is_infinite)?.into()),
            DataType::Bytes => Data::Bytes(self.map(|value| match value {
                Value::Text(bytes) => Some(Bytes::clone(bytes)),
                Value::Cell(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
                _ => None,
            })?),
        })
    }

    fn integers<T: TryFrom<i128>>(&self) -> Result<Vec<T>, Unfit> {
        self.map(|value| integer(value).and_then(|n| T::try_from(n).ok()))
    }

    /// A finite number must not become infinite.
    fn floats<T: Copy>(&self, round: fn(f64) -> T, is_infinite: fn(T) -> bool) -> Result<Vec<T>, Unfit> {
        self.map(|value| {
            let number = float(value)?;
            let nearest = round(number);
            (number.is_infinite() || !is_infinite(nearest)).then_some(nearest)
        })
    }

    fn map<T>(&self, convert: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>, Unfit> {
        let one = |(index, value): (usize, Value)| convert(&value).ok_or_else(|| Unfit { index, found: value.shown() });
        match self {
            Values::Bools(v) => v.iter().map(|b| Value::Bool(*b)).enumerate().map(one).collect(),
            Values::Signed(v) => v.iter().map(|n| Value::Integer((*n).into())).enumerate().map(one).collect(),
            Values::Unsigned(v) => v.iter().map(|n| Value::Integer((*n).into())).enumerate().map(one).collect(),
            Values::Floats(v) => v.iter().map(|x| Value::Float(*x)).enumerate().map(one).collect(),
            Values::Texts(v) => v.iter().map(Value::Text).enumerate().map(one).collect(),
            Values::Cells(cells) => cells.iter().map(Value::Cell).enumerate().map(one).collect(),
        }
    }
}

/// One element.
enum Value<'v> {
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(&'v Bytes),
    Cell(&'v str),
}

impl Value<'_> {
    fn shown(&self) -> String {
        const MAX_CHARS: usize = 40;
        match self {
            Value::Bool(b) => b.to_string(),
            Value::Integer(n) => n.to_string(),
            Value::Float(x) => x.to_string(),
            Value::Text(bytes) => {
                format!("{:?}", String::from_utf8_lossy(bytes).chars().take(MAX_CHARS).collect::<String>())
            }
            Value::Cell("") => "an empty cell".to_owned(),
            Value::Cell(text) => format!("{:?}", text.chars().take(MAX_CHARS).collect::<String>()),
        }
    }
}

/// The nearest FP32.
#[expect(clippy::cast_possible_truncation, reason = "rounding is what is asked for")]
fn rounded(x: f64) -> f32 {
    x as f32
}

fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::Cell("true" | "True" | "TRUE") => Some(true),
        Value::Cell("false" | "False" | "FALSE") => Some(false),
        other => match integer(other)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        },
    }
}

#[expect(clippy::cast_possible_truncation, reason = "whole numbers of this range are converted exactly")]
fn integer(value: &Value) -> Option<i128> {
    // All 64-bit integers are in this range, and the conversion is exact within it.
    let whole = |x: &f64| (x.fract() == 0.0 && x.abs() < 2f64.powi(65)).then_some(*x as i128);
    match value {
        Value::Bool(b) => Some((*b).into()),
        Value::Integer(n) => Some(*n),
        Value::Float(x) => whole(x),
        Value::Cell(text) => {
            let text = text.trim();
            text.parse().ok().or_else(|| text.parse().ok().as_ref().and_then(whole))
        }
        Value::Text(_) => None,
    }
}

fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(b) => Some(f64::from(u8::from(*b))),
        Value::Integer(n) => Some(*n as f64),
        Value::Float(x) => Some(*x),
        Value::Cell(text) => match text.trim() {
            "" => Some(f64::NAN),
            text => text.parse().ok(),
        },
        Value::Text(_) => None,
    }
}
