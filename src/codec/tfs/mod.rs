//! tfs: `TensorFlow` Serving's REST, as its clients speak it: predict in rows and columns, status, metadata.
//!
//! A request says no datatypes, so it is read in two steps: [`parse`] finds out which form it has before any model is chosen,
//! [`TfsRequest::decode`] reads the values as the chosen model's signature has them. Shapes are what the brackets spell.
//!
//! Where `TensorFlow` Serving leaves JSON, this does not: bare `NaN` and `Infinity` are refused, `null` is NaN in floating-point
//! inputs, and non-finite outputs are answered as `null`.

mod answer;
mod describe;
mod request;
#[cfg(test)]
mod tests;

pub use answer::{EncodedPredict, encode_predict};
pub use describe::{VersionStatus, metadata_json, status_json};
pub use request::{TfsRequest, parse};

/// How a request lays its values out, and its answer with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `instances` → `predictions`: one entry per example; how many there were.
    Rows(usize),
    /// `inputs` → `outputs`: one entry per tensor.
    Columns,
}
