//! model: the nouns every room speaks: names, versions, signatures, the inference request and answer, the failure.
//!
//! - A [`ModelName`], [`Version`] or [`RequestId`] that exists is valid: they are checked where they are made.
//! - A [`Checked`] request fits the [`Signature`] it was checked against: the right inputs, in the model's order, with
//!   shapes and types the model declared. Engines take nothing else.
//! - A [`Failure`] is what a caller may read; what only an operator should read travels in its `detail`.
//!
//! Uses: tensor.
//!
//! Invariant: nothing here knows HTTP, JSON, engines or batching.
//!
//! To add an error code: a variant of [`Code`], its stable name beside it, its HTTP status in `http/problem.rs`.

mod failure;
mod feedback;
mod name;
mod request;
mod signature;
#[cfg(test)]
mod tests;

pub use failure::{Code, Failure, panic_message};
pub use feedback::{Feedback, Label};
pub use name::{ArmName, ModelName, NameError, RequestId, Version, VersionId};
pub use request::{Answer, Checked, InferenceRequest, NamedTensor, Parameter, Parameters, Role};
pub use signature::{Dim, Signature, TensorSpec};
