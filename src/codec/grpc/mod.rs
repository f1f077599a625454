//! grpc: messages of the gRPC services: the Open Inference Protocol (as Triton has it) and `TensorFlow` Serving.
//!
//! - [`frame`]: the five bytes before each message. [`wire`]: the fields of a message.
//! - [`infer`]: `ModelInferRequest`. [`answer`]: `ModelInferResponse`. [`predict`]: `TensorFlow` Serving's Predict, whose tensors are in
//!   [`tensor_proto`]. [`values`]: typed values of both protocols.
//! - [`generated`] has the types of all other messages, which are small, and the descriptors of the services. `make proto` writes it from `proto/`.
//!
//! Requests with tensors are not decoded into generated types: an empty input takes two bytes on the wire and some hundred in memory. They are
//! read field by field, into typed buffers, with their memory counted. Raw tensors are views into the body.

pub(crate) mod answer;
pub(crate) mod frame;
#[rustfmt::skip]
#[allow(clippy::all, clippy::pedantic, missing_debug_implementations, dead_code, reason = "generated code")]
pub(crate) mod generated;
pub(crate) mod infer;
pub(crate) mod predict;
mod tensor_proto;
#[cfg(test)]
mod tests;
mod values;
mod wire;

/// The descriptors of the services and of their messages, as a `google.protobuf.FileDescriptorSet`.
pub(crate) const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");

/// The model and version that a request names in its message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Named {
    pub(crate) model: String,
    pub(crate) version: NamedVersion,
}

/// The version that a message names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum NamedVersion {
    #[default]
    Any,
    /// As text, because a message may name any. It is checked where versions are found.
    Version(String),
    Label(String),
}

/// Why a request was not decoded.
#[derive(Debug)]
pub(crate) struct Undecoded {
    /// The model it names, as far as that could be read: an unknown model is reported first.
    pub(crate) named: Option<Box<Named>>,
    pub(crate) failure: crate::model::Failure,
}

impl From<crate::model::Failure> for Undecoded {
    fn from(failure: crate::model::Failure) -> Undecoded {
        Undecoded { named: None, failure }
    }
}
