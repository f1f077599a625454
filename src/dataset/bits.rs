//! Bitwise equality of tensors.

use crate::tensor::Tensor;

/// Whether two tensors are bitwise equal. NaN payloads and the sign of 0 count.
#[must_use]
pub(super) fn equal(a: &Tensor, b: &Tensor) -> bool {
    a.datatype() == b.datatype()
        && a.shape() == b.shape()
        && match (a.data().le_bytes(), b.data().le_bytes()) {
            (Some(a), Some(b)) => a == b,
            _ => a.data() == b.data(),
        }
}
