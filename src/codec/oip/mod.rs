//! oip: the Open Inference Protocol v2, JSON and the binary tensor extension, as clients of
//! Triton, `KServe` and `MLServer` speak it.
//!
//! A request is JSON, alone or followed by the tensors that announce a `binary_data_size`, in the order of the inputs; how
//! long the JSON is stands in the header `Inference-Header-Content-Length`. Answers have the same two forms.
//!
//! What the specification leaves open is decided in `docs/INTERFACES.md`, section 3: `null` is NaN in floating-point
//! tensors, FP16 comes in binary form only (and is answered as numbers when JSON was asked for), unknown members are
//! ignored, `null` for `parameters` or `outputs` counts as absent.

mod answer;
mod binary;
mod parameters;
mod request;
mod tensor;
#[cfg(test)]
mod tests;

pub use answer::{AnswerHead, EncodedAnswer, encode};
pub use binary::decode_raw;
pub use request::{OipRequest, decode, header_length};

pub(super) use binary::Blobs;
pub(super) use request::request_body;
pub(super) use tensor::{Side, tensors};

/// Which outputs the caller wants in binary form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnswerForm {
    /// The request's `binary_data_output`.
    binary: bool,
    /// Where an output's own `binary_data` says otherwise, or the same.
    overrides: Vec<(String, bool)>,
}

impl AnswerForm {
    /// Every output as JSON.
    #[must_use]
    pub fn json() -> AnswerForm {
        AnswerForm::default()
    }

    /// Every output in binary form, as a raw binary request is answered.
    #[must_use]
    pub fn binary() -> AnswerForm {
        AnswerForm { binary: true, overrides: Vec::new() }
    }

    /// Whether an output is to be in binary form.
    #[must_use]
    pub fn is_binary(&self, output: &str) -> bool {
        self.overrides.iter().find(|(name, _)| name == output).map_or(self.binary, |(_, binary)| *binary)
    }
}
