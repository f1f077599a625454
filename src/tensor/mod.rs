//! tensor: typed arrays in memory, with a shape.
//!
//! - A [`Tensor`] always has exactly as many elements as its [`Shape`] says. Its constructor checks this.
//! - Elements are row-major (the last dimension varies fastest), little-endian in memory and on the wire.
//! - Numeric elements are either owned or a view into received bytes. Both are read in the same way.
//!
//! Uses: nothing.
//!
//! Invariant: no names, no JSON, no models. A tensor does not know what it is used for.
//!
//! To add a datatype: a variant in [`DataType`] and in [`Data`], then fix what the compiler reports.

mod elements;
mod rows;
mod shape;
#[cfg(test)]
mod tests;

pub use elements::{Element, Elements};
pub use shape::Shape;

use bytes::Bytes;
use half::f16;

/// The element types of the Open Inference Protocol v2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DataType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bytes,
}

impl DataType {
    pub const ALL: [DataType; 13] = [
        DataType::Bool,
        DataType::Uint8,
        DataType::Uint16,
        DataType::Uint32,
        DataType::Uint64,
        DataType::Int8,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::Fp16,
        DataType::Fp32,
        DataType::Fp64,
        DataType::Bytes,
    ];

    /// The name on the wire: `FP32`, `INT64`, `BYTES`, …
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            DataType::Bool => "BOOL",
            DataType::Uint8 => "UINT8",
            DataType::Uint16 => "UINT16",
            DataType::Uint32 => "UINT32",
            DataType::Uint64 => "UINT64",
            DataType::Int8 => "INT8",
            DataType::Int16 => "INT16",
            DataType::Int32 => "INT32",
            DataType::Int64 => "INT64",
            DataType::Fp16 => "FP16",
            DataType::Fp32 => "FP32",
            DataType::Fp64 => "FP64",
            DataType::Bytes => "BYTES",
        }
    }

    /// Parses a wire name. `None` if it is unknown. Case matters, as in the protocol.
    #[must_use]
    pub fn parse(name: &str) -> Option<DataType> {
        DataType::ALL.into_iter().find(|d| d.as_str() == name)
    }

    /// Bytes per element, in memory and in the binary tensor extension. `None` for [`DataType::Bytes`], whose elements have
    /// different lengths.
    #[must_use]
    pub const fn width(self) -> Option<usize> {
        match self {
            DataType::Bool | DataType::Uint8 | DataType::Int8 => Some(1),
            DataType::Uint16 | DataType::Int16 | DataType::Fp16 => Some(2),
            DataType::Uint32 | DataType::Int32 | DataType::Fp32 => Some(4),
            DataType::Uint64 | DataType::Int64 | DataType::Fp64 => Some(8),
            DataType::Bytes => None,
        }
    }

    /// Whether the type is one of the floating-point types.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, DataType::Fp16 | DataType::Fp32 | DataType::Fp64)
    }
}

impl std::fmt::Display for DataType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The elements of a tensor, row-major, one variant per [`DataType`].
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    Bool(Vec<bool>),
    Uint8(Elements<u8>),
    Uint16(Elements<u16>),
    Uint32(Elements<u32>),
    Uint64(Elements<u64>),
    Int8(Elements<i8>),
    Int16(Elements<i16>),
    Int32(Elements<i32>),
    Int64(Elements<i64>),
    Fp16(Elements<f16>),
    Fp32(Elements<f32>),
    Fp64(Elements<f64>),
    /// BYTES: strings or raw bytes, one per element. Not necessarily UTF-8.
    Bytes(Vec<Bytes>),
}

/// Evaluates one expression for the elements of a [`Data`], whatever their type: `each_data!(data, |e| e.len())`.
#[macro_export]
macro_rules! each_data {
    ($data:expr, |$e:ident| $body:expr) => {
        match $data {
            $crate::tensor::Data::Bool($e) => $body,
            $crate::tensor::Data::Uint8($e) => $body,
            $crate::tensor::Data::Uint16($e) => $body,
            $crate::tensor::Data::Uint32($e) => $body,
            $crate::tensor::Data::Uint64($e) => $body,
            $crate::tensor::Data::Int8($e) => $body,
            $crate::tensor::Data::Int16($e) => $body,
            $crate::tensor::Data::Int32($e) => $body,
            $crate::tensor::Data::Int64($e) => $body,
            $crate::tensor::Data::Fp16($e) => $body,
            $crate::tensor::Data::Fp32($e) => $body,
            $crate::tensor::Data::Fp64($e) => $body,
            $crate::tensor::Data::Bytes($e) => $body,
        }
    };
}
pub use each_data;

impl Data {
    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        each_data!(self, |e| e.len())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[must_use]
    pub fn datatype(&self) -> DataType {
        match self {
            Data::Bool(_) => DataType::Bool,
            Data::Uint8(_) => DataType::Uint8,
            Data::Uint16(_) => DataType::Uint16,
            Data::Uint32(_) => DataType::Uint32,
            Data::Uint64(_) => DataType::Uint64,
            Data::Int8(_) => DataType::Int8,
            Data::Int16(_) => DataType::Int16,
            Data::Int32(_) => DataType::Int32,
            Data::Int64(_) => DataType::Int64,
            Data::Fp16(_) => DataType::Fp16,
            Data::Fp32(_) => DataType::Fp32,
            Data::Fp64(_) => DataType::Fp64,
            Data::Bytes(_) => DataType::Bytes,
        }
    }

    /// `n` zeros of a type (`false` for booleans, empty strings for BYTES). Generated warm-up requests use them.
    #[must_use]
    pub fn zeros(datatype: DataType, n: usize) -> Data {
        match datatype {
            DataType::Bool => Data::Bool(vec![false; n]),
            DataType::Uint8 => Data::Uint8(vec![0; n].into()),
            DataType::Uint16 => Data::Uint16(vec![0; n].into()),
            DataType::Uint32 => Data::Uint32(vec![0; n].into()),
            DataType::Uint64 => Data::Uint64(vec![0; n].into()),
            DataType::Int8 => Data::Int8(vec![0; n].into()),
            DataType::Int16 => Data::Int16(vec![0; n].into()),
            DataType::Int32 => Data::Int32(vec![0; n].into()),
            DataType::Int64 => Data::Int64(vec![0; n].into()),
            DataType::Fp16 => Data::Fp16(vec![f16::ZERO; n].into()),
            DataType::Fp32 => Data::Fp32(vec![0.0; n].into()),
            DataType::Fp64 => Data::Fp64(vec![0.0; n].into()),
            DataType::Bytes => Data::Bytes(vec![Bytes::new(); n]),
        }
    }

    /// The elements as little-endian bytes, as the binary tensor extension sends them (a boolean is the byte 0 or 1). `None`
    /// for [`Data::Bytes`], whose elements have no fixed width.
    #[must_use]
    pub fn le_bytes(&self) -> Option<&[u8]> {
        Some(match self {
            Data::Bool(e) => bytemuck::cast_slice(e),
            Data::Uint8(e) => e.as_bytes(),
            Data::Uint16(e) => e.as_bytes(),
            Data::Uint32(e) => e.as_bytes(),
            Data::Uint64(e) => e.as_bytes(),
            Data::Int8(e) => e.as_bytes(),
            Data::Int16(e) => e.as_bytes(),
            Data::Int32(e) => e.as_bytes(),
            Data::Int64(e) => e.as_bytes(),
            Data::Fp16(e) => e.as_bytes(),
            Data::Fp32(e) => e.as_bytes(),
            Data::Fp64(e) => e.as_bytes(),
            Data::Bytes(_) => return None,
        })
    }

    /// The number of floating-point elements that are NaN or infinite. 0 for the other types.
    #[must_use]
    pub fn count_nonfinite(&self) -> usize {
        match self {
            Data::Fp16(e) => e.iter().filter(|v| !v.is_finite()).count(),
            Data::Fp32(e) => e.iter().filter(|v| !v.is_finite()).count(),
            Data::Fp64(e) => e.iter().filter(|v| !v.is_finite()).count(),
            _ => 0,
        }
    }
}

/// A shape does not match the number of elements.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    #[error("shape {shape} holds {expected} elements, got {got}")]
    Count { shape: Shape, expected: usize, got: usize },
    #[error("shape {shape} has more elements than this machine can address")]
    Overflow { shape: Shape },
}

/// A shape, and its elements in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Shape,
    data: Data,
}

impl Tensor {
    /// Combines a shape with its elements.
    ///
    /// # Errors
    /// When the product of the extents is not the number of elements, or overflows `usize`.
    pub fn new(shape: Shape, data: Data) -> Result<Tensor, ShapeError> {
        match shape.elements() {
            None => Err(ShapeError::Overflow { shape }),
            Some(expected) if expected != data.len() => Err(ShapeError::Count { expected, got: data.len(), shape }),
            Some(_) => Ok(Tensor { shape, data }),
        }
    }

    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    #[must_use]
    pub fn data(&self) -> &Data {
        &self.data
    }

    #[must_use]
    pub fn datatype(&self) -> DataType {
        self.data.datatype()
    }

    /// The size of the elements in memory, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        match &self.data {
            Data::Bytes(e) => e.iter().map(|b| b.len() + size_of::<Bytes>()).sum(),
            other => each_data!(other, |e| size_of_val(&e[..])),
        }
    }

    #[must_use]
    pub fn into_data(self) -> Data {
        self.data
    }
}
