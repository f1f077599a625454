//! The value of a column in one row.

use crate::tensor::DataType;
use half::f16;

/// The value of a column in one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell<'a> {
    /// The row has no such element, or its tensor was left out of the record.
    Missing,
    /// The column is not recorded as it is: it is dropped, or its values are hashed.
    Hidden,
    /// NaN stands for a missing value in inputs, as JSON's null becomes NaN.
    Number(f64),
    Bool(bool),
    /// As it was sent, which may be no UTF-8. A masked text is as it is stored.
    Text(&'a [u8]),
}

impl Cell<'_> {
    /// A cell of numbers or booleans, from the little-endian bytes of its element.
    #[must_use]
    pub fn of_bytes(datatype: DataType, bytes: &[u8]) -> Cell<'static> {
        match datatype {
            DataType::Bool => bytes.first().map_or(Cell::Missing, |byte| Cell::Bool(*byte != 0)),
            datatype => number(datatype, bytes).map_or(Cell::Missing, Cell::Number),
        }
    }

    /// The value as a number: a boolean is 0 or 1. `None` where it is no number, or NaN.
    #[must_use]
    pub fn as_number(self) -> Option<f64> {
        match self {
            Cell::Number(number) => Some(number).filter(|number| !number.is_nan()),
            Cell::Bool(bool) => Some(f64::from(u8::from(bool))),
            Cell::Missing | Cell::Hidden | Cell::Text(_) => None,
        }
    }

    /// The value as a text, for segments and categories: `3`, `2.5`, `true`, `female`. `None` where there is none, or NaN.
    #[must_use]
    pub fn as_text(self) -> Option<String> {
        match self {
            Cell::Number(number) => Some(number).filter(|number| !number.is_nan()).map(|number| number.to_string()),
            Cell::Bool(bool) => Some(bool.to_string()),
            Cell::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
            Cell::Missing | Cell::Hidden => None,
        }
    }
}

/// A number or boolean from its little-endian bytes. Integers beyond 2^53 are rounded. `None` where the bytes do not have the width of the
/// type, and for strings.
#[must_use]
pub fn number(datatype: DataType, bytes: &[u8]) -> Option<f64> {
    macro_rules! read {
        ($t:ty) => {
            bytes.try_into().ok().map(|bytes| <$t>::from_le_bytes(bytes).into())
        };
        (wide $t:ty) => {
            bytes.try_into().ok().map(|bytes| <$t>::from_le_bytes(bytes) as f64)
        };
    }
    match datatype {
        DataType::Bool | DataType::Uint8 => read!(u8),
        DataType::Uint16 => read!(u16),
        DataType::Uint32 => read!(u32),
        DataType::Uint64 => read!(wide u64),
        DataType::Int8 => read!(i8),
        DataType::Int16 => read!(i16),
        DataType::Int32 => read!(i32),
        DataType::Int64 => read!(wide i64),
        DataType::Fp16 => read!(f16),
        DataType::Fp32 => read!(f32),
        DataType::Fp64 => read!(f64),
        DataType::Bytes => None,
    }
}
