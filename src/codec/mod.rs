//! codec: bytes ↔ tensors, one file per wire format.
//!
//! - [`oip`]: the Open Inference Protocol v2, JSON and the binary tensor extension. [`tfs`]: TensorFlow Serving's REST API.
//!   [`grpc`]: the messages of both over gRPC. [`triton`]: Triton's configuration and statistics. [`metadata`]: the metadata of a server and of a model for OIP.
//!   [`frames`]: tables, as MLflow's scoring server takes them, and CSV. [`golden`]: `golden.json` and `warmup.json`, which contain
//!   OIP bodies. [`feedback`]: feedback bodies. [`inflate`]: compression and decompression of bodies.
//! - JSON is parsed in one pass, directly into typed buffers: [`json`] is the parser, [`elements`] parses one value, [`nested`]
//!   lists of values. There is no tree and no recursion. Memory is not reserved only because the sender announced a size.
//! - Memory that grows with the request is counted on its [`Hold`](crate::budget::Hold), and is refused where it is not there. A large
//!   answer is encoded in [`pieces`], as its reader takes them.
//! - Each error is a [`Failure`](crate::model::Failure) that names the input and the element, what was expected and what was
//!   found. No input makes this room panic.
//!
//! Uses: budget, columns (names of elements), model, tensor.
//!
//! Invariant: this room does not know which model will run, nor HTTP. Headers are passed in as values, bodies as bytes.
//!
//! To add a wire format: a new file that produces an [`InferenceRequest`](crate::model::InferenceRequest) and writes an
//! [`Answer`](crate::model::Answer). Use [`nested`] to parse typed values and [`text`] to write them
//! (`docs/how-to-add/wire-format.md`).

mod decimal;
mod elements;
pub(crate) mod feedback;
pub(crate) mod frames;
pub(crate) mod golden;
pub(crate) mod grpc;
pub(crate) mod inflate;
mod json;
pub(crate) mod metadata;
mod nested;
pub mod oip;
pub(crate) mod pieces;
#[cfg(test)]
mod tests;
mod text;
pub(crate) mod tfs;
pub(crate) mod triton;
