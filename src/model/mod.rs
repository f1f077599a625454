//! model: the types that every room shares: names, versions, signatures, the inference request and answer, the failure.
//!
//! - A [`ModelName`], [`Version`] or [`RequestId`] is always valid: its constructor checks it.
//! - A [`Checked`] request fits the [`Signature`] it was checked against: the right inputs, in the model's order, with the
//!   shapes and datatypes that the model declares. Engines accept nothing else.
//! - A [`Failure`] holds the text that the caller reads. Text for the operator only is in its `internal` field. The text for
//!   the caller has a maximum size and no raw control characters, whatever it quotes.
//!
//! Uses: tensor.
//!
//! Invariant: nothing here knows HTTP, JSON, engines or batching.
//!
//! To add an error code: a variant of [`Code`], its stable name in `as_str`, its HTTP status in `http/problem.rs`.

mod complaints;
mod failure;
mod feedback;
mod name;
mod reason;
mod request;
mod requester;
mod signature;
#[cfg(test)]
mod tests;

pub(crate) use complaints::Complaints;
pub use failure::{Code, Failure};
pub(crate) use failure::{panic_message, quoted};
pub use feedback::{Feedback, Label, Update};
pub use name::{ArmName, ModelName, NameError, RequestId, Version, VersionId};
pub use reason::{MAX_REASON, REASON, is_reason};
pub use request::{Answer, Checked, InferenceRequest, NamedTensor, Parameter, Parameters, Role};
pub use requester::{CallerId, Priority, Requester};
pub(crate) use signature::names;
pub use signature::{Dim, Signature, TensorSpec};
