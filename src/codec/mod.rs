//! codec: bytes ↔ tensors, one file per wire format.
//!
//! - [`oip`]: the Open Inference Protocol v2, JSON and the binary tensor extension. [`tfs`]: TensorFlow Serving's REST.
//!   [`metadata`]: what a model takes and gives, in OIP's words. [`golden`]: `golden.json` and `warmup.json`, which hold
//!   OIP bodies. [`feedback`]: what really happened. [`inflate`]: compressed bodies, both
//!   ways.
//! - JSON is read in one pass straight into typed buffers ([`json`] is the cursor, [`elements`] one value, [`nested`] lists
//!   of them): no tree, no recursion, and nothing is reserved on the word of the sender alone.
//! - Every refusal is a [`Failure`](crate::model::Failure) that names the input and the element, what was expected and what
//!   was found. Bytes from outside never make this room panic.
//!
//! Uses: model, tensor.
//!
//! Invariant: nothing here knows which model will run, or HTTP: headers come in as values, bodies as bytes.
//!
//! To add a wire format: a file beside these that makes an [`InferenceRequest`](crate::model::InferenceRequest) and writes
//! an [`Answer`](crate::model::Answer); typed values come from [`nested`] and go through [`text`]
//! (`docs/how-to-add/wire-format.md`).

mod decimal;
mod elements;
pub mod feedback;
pub mod golden;
pub mod inflate;
mod json;
pub mod metadata;
mod nested;
pub mod oip;
#[cfg(test)]
mod tests;
mod text;
pub mod tfs;
