//! Encoding `inference.ModelInferResponse`, alone or in a `ModelStreamInferResponse`.

use super::frame::{self, HEAD};
use super::generated::inference::{ModelInferResponse, ModelStreamInferResponse};
use super::infer::field_of;
use super::values::{bytes_len, write, write_bytes, write_head, written_len};
use crate::budget::Hold;
use crate::codec::oip::{AnswerHead, binary_size, check_lengths, write_binary};
use crate::model::{Answer, Code, Failure, RequestId};
use crate::tensor::{Data, DataType, Tensor};
use bytes::Bytes;
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InferForm {
    /// The outputs as raw bytes, and not as typed contents.
    pub(crate) raw: bool,
    /// As a message of a stream.
    pub(crate) in_stream: bool,
}

/// An encoded answer.
#[derive(Debug)]
pub(crate) struct EncodedMessage {
    /// [`HEAD`] bytes for the frame, and the message.
    pub(crate) framed: Vec<u8>,
    /// The number of elements that are NaN or infinite.
    pub(crate) nonfinite: usize,
}

/// Encodes an answer. Where an output is FP16, which has no typed form, all outputs are raw. `hold` counts the message.
///
/// # Errors
/// `INTERNAL` for a string over 4 GiB, and those of [`Hold::room`].
pub(crate) fn encode(
    answer: &Answer,
    head: &AnswerHead<'_>,
    form: InferForm,
    hold: &Hold,
) -> Result<EncodedMessage, Failure> {
    let raw = form.raw || answer.outputs.iter().any(|(_, tensor)| tensor.datatype() == DataType::Fp16);
    let outputs: Vec<Output<'_>> =
        answer.outputs.iter().map(|(name, tensor)| Output::new(name, tensor, raw)).collect::<Result<_, _>>()?;
    let texts = [(1, head.model_name), (2, head.model_version.unwrap_or_default()), (3, head.id)];
    let texts = || texts.iter().filter(|(_, text)| !text.is_empty());
    let length = texts().map(|(field, text)| bytes_len(*field, text.len())).sum::<usize>()
        + outputs.iter().map(|output| bytes_len(5, output.length)).sum::<usize>()
        + outputs.iter().filter(|_| raw).map(|output| bytes_len(6, output.raw_length)).sum::<usize>();
    let whole = HEAD + if form.in_stream { bytes_len(2, length) } else { length };
    let mut out = Vec::new();
    hold.room(&mut out, whole, whole)?;
    out.extend_from_slice(&[0; HEAD]);
    if form.in_stream {
        write_head(2, length, &mut out);
    }
    for (field, text) in texts() {
        write_bytes(*field, text.as_bytes(), &mut out);
    }
    for output in &outputs {
        output.write(raw, &mut out);
    }
    for output in outputs.iter().filter(|_| raw) {
        write_head(6, output.raw_length, &mut out);
        // Checked when the output was measured.
        write_binary(output.tensor.data(), &mut out).map_err(|problem| internal(output.name, &problem))?;
    }
    debug_assert_eq!(out.len(), whole, "the length was computed before");
    let nonfinite = answer.outputs.iter().map(|(_, tensor)| tensor.data().count_nonfinite()).sum();
    Ok(EncodedMessage { framed: out, nonfinite })
}

/// A message of a stream, with its frame, that says why a request failed. The client knows the request by its id.
pub(crate) fn failed(failure: &Failure, id: Option<&RequestId>) -> Bytes {
    let infer_response =
        id.map(|id| ModelInferResponse { id: id.as_str().to_owned(), ..ModelInferResponse::default() });
    let message = ModelStreamInferResponse { error_message: failure.message.clone(), infer_response };
    let mut out = vec![0; HEAD];
    message.encode(&mut out).expect("a vector grows");
    frame::finish(out, None).expect("a failure's message has at most some kilobytes")
}

/// An output and the lengths of its parts.
struct Output<'a> {
    name: &'a str,
    tensor: &'a Tensor,
    shape_length: usize,
    /// Of the contents, where they are typed.
    contents_length: usize,
    /// Of the message.
    length: usize,
    raw_length: usize,
}

impl<'a> Output<'a> {
    fn new(name: &'a str, tensor: &'a Tensor, raw: bool) -> Result<Output<'a>, Failure> {
        let data: &Data = tensor.data();
        check_lengths(data).map_err(|problem| internal(name, &problem))?;
        let shape_length = tensor.shape().iter().map(|extent| encoded_len_varint(*extent as u64)).sum();
        let typed = field_of(tensor.datatype()).filter(|_| !raw);
        let contents_length = typed.map_or(0, |field| written_len(field, data));
        let mut length = bytes_len(1, name.len()) + bytes_len(2, tensor.datatype().as_str().len());
        if shape_length > 0 {
            length += bytes_len(3, shape_length);
        }
        if !raw {
            length += bytes_len(5, contents_length);
        }
        let raw_length = if raw { binary_size(data) } else { 0 };
        Ok(Output { name, tensor, shape_length, contents_length, length, raw_length })
    }

    fn write(&self, raw: bool, out: &mut Vec<u8>) {
        write_head(5, self.length, out);
        write_bytes(1, self.name.as_bytes(), out);
        write_bytes(2, self.tensor.datatype().as_str().as_bytes(), out);
        if self.shape_length > 0 {
            write_head(3, self.shape_length, out);
            for extent in self.tensor.shape().iter() {
                encode_varint(*extent as u64, out);
            }
        }
        if !raw {
            write_head(5, self.contents_length, out);
            if let Some(field) = field_of(self.tensor.datatype()) {
                write(field, self.tensor.data(), out);
            }
        }
    }
}

#[cold]
fn internal(name: &str, problem: &str) -> Failure {
    Failure::new(Code::Internal, format!("output {name:?}: {problem}"))
}
