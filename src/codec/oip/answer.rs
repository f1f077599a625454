//! An answer → bytes: JSON, with the outputs that were wanted in binary form after it.

use super::{AnswerForm, binary};
use crate::codec::text::{self, NotText};
use crate::model::{Answer, Code, Failure};
use crate::tensor::{Data, DataType, Tensor};
use bytes::Bytes;

/// What an answer says besides its outputs.
#[derive(Debug, Clone, Copy)]
pub struct AnswerHead<'a> {
    pub model_name: &'a str,
    /// The version that really answered.
    pub model_version: &'a str,
    pub id: &'a str,
}

/// An answer ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedAnswer {
    pub body: Bytes,
    /// How long the JSON is when tensors follow it: the header `Inference-Header-Content-Length` of the answer.
    pub json_length: Option<usize>,
    /// Elements that are NaN or infinite: `null` in JSON, exact in binary form.
    pub nonfinite: usize,
}

/// Encodes an answer in the form its caller wants.
///
/// # Errors
/// `INVALID_REQUEST` when an output wanted as JSON is FP16, which the protocol has in binary form only, or holds strings that
/// are not UTF-8: the caller has to ask for it in binary form.
pub fn encode(answer: &Answer, head: &AnswerHead<'_>, form: &AnswerForm) -> Result<EncodedAnswer, Failure> {
    let mut out = Vec::with_capacity(size_guess(answer, head, form));
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
            nonfinite += text::elements(&mut out, data, 0..data.len()).map_err(|e| not_text(name, e))?;
            text::plain(&mut out, "]}");
        }
    }
    text::plain(&mut out, "]}");
    let json_length = out.len();
    let mut binary = false;
    for (name, tensor) in answer.outputs.iter().filter(|(name, _)| form.is_binary(name)) {
        binary = true;
        binary::write(tensor.data(), &mut out)
            .map_err(|why| Failure::new(Code::Internal, format!("output {name:?}: {why}")))?;
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

fn size_guess(answer: &Answer, head: &AnswerHead<'_>, form: &AnswerForm) -> usize {
    let outputs: usize = answer
        .outputs
        .iter()
        .map(|(name, tensor)| {
            let values = match tensor.data() {
                data if form.is_binary(name) => binary::binary_size(data) + 40,
                Data::Bytes(strings) => strings.iter().map(|s| s.len() + 4).sum(),
                data => data.len() * text::width_guess(data),
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
            "output {name:?} is FP16, which goes in binary form only: ask for this output so \
             (\"parameters\":{{\"binary_data\":true}})"
        ),
    )
}

#[cold]
fn not_text(name: &str, NotText(index): NotText) -> Failure {
    Failure::new(
        Code::InvalidRequest,
        format!(
            "output {name:?}: element {index} is not UTF-8 text, which JSON cannot carry: ask for this output in binary form \
             (\"parameters\":{{\"binary_data\":true}})"
        ),
    )
}
