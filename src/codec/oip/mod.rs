//! oip: the Open Inference Protocol v2, JSON and the binary tensor extension, compatible with clients of Triton, `KServe` and
//! `MLServer`.
//!
//! A request is JSON. The tensors with a `binary_data_size` follow after it, in the order of the inputs. The header
//! `Inference-Header-Content-Length` has the length of the JSON. Answers have the same two forms.
//!
//! Where the specification is open: `null` is NaN in floating-point tensors, FP16 is accepted and answered in binary form only,
//! unknown members are ignored, `null` for `parameters` or `outputs` counts as absent.

mod answer;
mod binary;
mod parameters;
mod request;
mod tensor;
#[cfg(test)]
mod tests;

pub use answer::{AnswerHead, EncodedAnswer, LargeAnswer, encode, encode_in_pieces, is_large};
pub use binary::decode_raw;
pub use request::{OipRequest, decode, decode_counted, header_length};

pub(super) use answer::OipPieces;
pub(super) use binary::{Blobs, binary_size, check_lengths, copied_bytes, tensor_data, write as write_binary};
pub(super) use parameters::repeated;
pub(super) use request::request_body;
pub(super) use tensor::{STRING, Side, tensors};

/// Which outputs are requested in binary form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnswerForm {
    /// The request's `binary_data_output`.
    binary: bool,
    /// The `binary_data` of single outputs. It takes precedence.
    overrides: Vec<(String, bool)>,
}

impl AnswerForm {
    /// All outputs as JSON.
    #[must_use]
    pub fn json() -> AnswerForm {
        AnswerForm::default()
    }

    /// All outputs in binary form, as for a raw binary request.
    #[must_use]
    pub fn binary() -> AnswerForm {
        AnswerForm { binary: true, overrides: Vec::new() }
    }

    /// Whether an output is requested in binary form.
    #[must_use]
    pub fn is_binary(&self, output: &str) -> bool {
        self.overrides.iter().find(|(name, _)| name == output).map_or(self.binary, |(_, binary)| *binary)
    }
}
