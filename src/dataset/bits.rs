//! Access to the raw bytes of tensors, and bitwise equality.

use crate::tensor::{Data, Tensor};
use std::borrow::Cow;

/// The elements as they are in memory. `None` for strings, which have no fixed width.
pub(super) fn of(data: &Data) -> Option<Cow<'_, [u8]>> {
    Some(match data {
        Data::Bool(e) => Cow::Owned(e.iter().map(|b| u8::from(*b)).collect()),
        Data::Uint8(e) => Cow::Borrowed(e.as_bytes()),
        Data::Uint16(e) => Cow::Borrowed(e.as_bytes()),
        Data::Uint32(e) => Cow::Borrowed(e.as_bytes()),
        Data::Uint64(e) => Cow::Borrowed(e.as_bytes()),
        Data::Int8(e) => Cow::Borrowed(e.as_bytes()),
        Data::Int16(e) => Cow::Borrowed(e.as_bytes()),
        Data::Int32(e) => Cow::Borrowed(e.as_bytes()),
        Data::Int64(e) => Cow::Borrowed(e.as_bytes()),
        Data::Fp16(e) => Cow::Borrowed(e.as_bytes()),
        Data::Fp32(e) => Cow::Borrowed(e.as_bytes()),
        Data::Fp64(e) => Cow::Borrowed(e.as_bytes()),
        Data::Bytes(_) => return None,
    })
}

/// Whether two tensors are bitwise equal. NaN payloads and the sign of 0 count.
#[must_use]
pub(super) fn equal(a: &Tensor, b: &Tensor) -> bool {
    a.datatype() == b.datatype()
        && a.shape() == b.shape()
        && match (of(a.data()), of(b.data())) {
            (Some(a), Some(b)) => a == b,
            _ => a.data() == b.data(),
        }
}
