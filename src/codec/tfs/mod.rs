//! tfs: the REST API of `TensorFlow` Serving: predict in rows and columns, status, metadata.
//!
//! A request has no datatypes, so it is parsed in two steps. [`parse`] finds its form before a model is chosen.
//! [`TfsRequest::decode`] parses the values with the datatypes of the chosen model's signature. The nesting of the lists gives the
//! shapes.
//!
//! Dimensions at the end that are fixed at 1 may be left out: a number is a row of an input with the shape `[-1,1]`.
//!
//! The room `frames` reads and writes some of `MLflow`'s forms with the code of this one.
//!
//! Unlike `TensorFlow` Serving, this accepts and writes only valid JSON: bare `NaN` and `Infinity` are rejected, `null` is NaN in
//! floating-point inputs, and non-finite outputs are written as `null`.

mod answer;
mod describe;
mod request;
#[cfg(test)]
mod tests;

pub(super) use answer::TfsPieces;
pub use answer::{encode_predict, is_large, predict_in_pieces};
pub use describe::{VersionStatus, metadata_json, models_json, status_json};
pub(super) use request::{Column, RULES, instances, tensors};
pub use request::{TfsRequest, parse};

/// The layout of the values in a request and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `instances` → `predictions`: one entry per example. The number of examples.
    Rows(usize),
    /// `inputs` → `outputs`: one entry per tensor.
    Columns,
    /// The answer of `MLflow` to a table: `predictions` with one object per row. The number of rows.
    Records(usize),
    /// The answer of `MLflow` to tensors: `predictions` with one entry per tensor.
    Named,
}
