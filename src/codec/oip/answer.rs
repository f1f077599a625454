//! Encoding an answer: JSON, followed by the outputs that were requested in binary form.

use super::{AnswerForm, binary};
use crate::codec::text::{self, NotUtf8};
use crate::model::{Answer, Code, Failure};
use crate::tensor::{Data, DataType, Tensor};
use bytes::Bytes;

/// The members of an answer besides its outputs.
#[derive(Debug, Clone, Copy)]
pub struct AnswerHead<'a> {
    pub model_name: &'a str,
    /// The version that answered.
    pub model_version: &'a str,
    pub id: &'a str,
}

/// An encoded answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedAnswer {
    pub body: Bytes,
    /// The length of the JSON if binary tensors follow it, for the header `Inference-Header-Content-Length`.
    pub json_length: Option<usize>,
    /// The number of elements that are NaN or infinite: `null` in JSON, exact in binary form.
    pub nonfinite: usize,
}

/// Encodes an answer in the requested form.
///
/// # Errors
/// `INVALID_REQUEST` if an output requested as JSON is FP16, for which the protocol has only a binary form, or contains strings
/// that are not UTF-8. The caller has to request it in binary form.
pub fn encode(answer: &Answer, head: &AnswerHead<'_>, form: &AnswerForm) -> Result<EncodedAnswer, Failure> {
    let mut out = Vec::with_capacity(estimated_size(answer, head, form));
    let mut nonfinite = 0;
    text::plain(&mut out, "{\"model_name\":");
    text::string(&mut out, head.model_name);
    text::plain(&mut out, ",\"model_version\":");
    text::string(&mut out, head.model_version);
    text::plain(&mut out, ",\"id\":");
    text::string(&mut out, head.id);
    text::plain(&mut out, ",\"outputs\":[");
    for (i, (name, tensor)) in answer.outputs.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        describe(&mut out, name, tensor);
        if form.is_binary(name) {
            text::plain(&mut out, ",\"parameters\":{\"binary_data_size\":");
            text::integer(&mut out, binary::binary_size(tensor.data()));
            text::plain(&mut out, "}}");
            nonfinite += tensor.data().count_nonfinite();
        } else if tensor.datatype() == DataType::Fp16 {
            return Err(binary_only(name));
        } else {
            text::plain(&mut out, ",\"data\":[");
            let data = tensor.data();
            nonfinite += text::elements(&mut out, data, 0..data.len()).map_err(|e| not_utf8(name, e))?;
            text::plain(&mut out, "]}");
        }
    }
    text::plain(&mut out, "]}");
    let json_length = out.len();
    let mut binary = false;
    for (name, tensor) in answer.outputs.iter().filter(|(name, _)| form.is_binary(name)) {
        binary = true;
        binary::write(tensor.data(), &mut out)
            .map_err(|problem| Failure::new(Code::Internal, format!("output {name:?}: {problem}")))?;
    }
    Ok(EncodedAnswer { body: out.into(), json_length: binary.then_some(json_length), nonfinite })
}

/// Writes `{"name":…,"shape":…,"datatype":…`, without the closing brace.
fn describe(out: &mut Vec<u8>, name: &str, tensor: &Tensor) {
    text::plain(out, "{\"name\":");
    text::string(out, name);
    text::plain(out, ",\"shape\":[");
    for (i, extent) in tensor.shape().iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        text::integer(out, *extent);
    }
    text::plain(out, "],\"datatype\":\"");
    text::plain(out, tensor.datatype().as_str());
    out.push(b'"');
}

fn estimated_size(answer: &Answer, head: &AnswerHead<'_>, form: &AnswerForm) -> usize {
    let outputs: usize = answer
        .outputs
        .iter()
        .map(|(name, tensor)| {
            let values = match tensor.data() {
                data if form.is_binary(name) => binary::binary_size(data) + 40,
                Data::Bytes(strings) => strings.iter().map(|s| s.len() + 4).sum(),
                data => data.len() * text::estimated_width(data),
            };
            name.len() + 80 + values
        })
        .sum();
    outputs + 80 + head.model_name.len() + head.model_version.len() + head.id.len()
}

#[cold]
fn binary_only(name: &str) -> Failure {
    Failure::new(
        Code::InvalidRequest,
        format!(
            "output {name:?} is FP16, which has only a binary form: request this output in binary form \
             (\"parameters\":{{\"binary_data\":true}})"
        ),
    )
}

#[cold]
fn not_utf8(name: &str, NotUtf8(index): NotUtf8) -> Failure {
    Failure::new(
        Code::InvalidRequest,
        format!(
            "output {name:?}: element {index} is not UTF-8 text, which JSON cannot represent: request this output in binary form \
             (\"parameters\":{{\"binary_data\":true}})"
        ),
    )
}
