//! Encoding an answer: JSON, followed by the outputs that were requested in binary form.

use super::{AnswerForm, binary};
use crate::budget::Hold;
use crate::codec::pieces::{self, Form, Lists, Pieces, estimated_json};
use crate::codec::text::{self, NotUtf8};
use crate::model::{Answer, Code, Failure};
use crate::tensor::{Data, DataType, Tensor};
use bytes::Bytes;

/// The members of an answer besides its outputs.
#[derive(Debug, Clone, Copy)]
pub struct AnswerHead<'a> {
    pub model_name: &'a str,
    /// The version that answered. `None` leaves the member out, which the protocol allows.
    pub model_version: Option<&'a str>,
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
    let nonfinite = write_json(&mut out, answer, head, form)?;
    let json_length = out.len();
    let mut binary = false;
    for (name, tensor) in answer.outputs.iter().filter(|(name, _)| form.is_binary(name)) {
        binary = true;
        binary::write(tensor.data(), &mut out)
            .map_err(|problem| Failure::new(Code::Internal, format!("output {name:?}: {problem}")))?;
    }
    Ok(EncodedAnswer { body: out.into(), json_length: binary.then_some(json_length), nonfinite })
}

/// Writes the JSON of an answer. Returns the number of elements that are not finite.
fn write_json(out: &mut Vec<u8>, answer: &Answer, head: &AnswerHead<'_>, form: &AnswerForm) -> Result<usize, Failure> {
    let mut nonfinite = 0;
    begin(out, head);
    for (i, (name, tensor)) in answer.outputs.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        describe(out, name, tensor);
        if form.is_binary(name) {
            text::plain(out, ",\"parameters\":{\"binary_data_size\":");
            text::integer(out, binary::binary_size(tensor.data()));
            text::plain(out, "}}");
            nonfinite += tensor.data().count_nonfinite();
        } else if tensor.datatype() == DataType::Fp16 {
            return Err(binary_only(name));
        } else {
            text::plain(out, ",\"data\":[");
            let data = tensor.data();
            nonfinite += text::elements(out, data, 0..data.len()).map_err(|e| not_utf8(name, e))?;
            text::plain(out, "]}");
        }
    }
    text::plain(out, "]}");
    Ok(nonfinite)
}

/// Writes the members before the outputs.
fn begin(out: &mut Vec<u8>, head: &AnswerHead<'_>) {
    text::plain(out, "{\"model_name\":");
    text::string(out, head.model_name);
    if let Some(version) = head.model_version {
        text::plain(out, ",\"model_version\":");
        text::string(out, version);
    }
    text::plain(out, ",\"id\":");
    text::string(out, head.id);
    text::plain(out, ",\"outputs\":[");
}

/// Whether an answer is encoded in pieces, because its text is large.
#[must_use]
pub fn is_large(answer: &Answer, head: &AnswerHead<'_>, form: &AnswerForm) -> bool {
    estimated_size(answer, head, form) > 4 * pieces::PIECE
}

/// A large answer, ready to be encoded in pieces.
#[derive(Debug)]
pub struct LargeAnswer {
    pub pieces: Pieces,
    /// As in [`EncodedAnswer`].
    pub json_length: Option<usize>,
    pub nonfinite: usize,
}

/// Prepares to encode an answer in pieces, with the errors of [`encode`]. Where an output is in binary form, the JSON is written here, as
/// its length comes before it; `hold` counts it.
///
/// # Errors
/// As [`encode`], and those of [`Hold::room`].
pub fn encode_in_pieces(
    answer: Answer,
    head: &AnswerHead<'_>,
    form: AnswerForm,
    hold: &Hold,
) -> Result<LargeAnswer, Failure> {
    let mut nonfinite = 0;
    let (mut json_bytes, mut binary_bytes) = (0usize, None);
    for (name, tensor) in answer.outputs.iter() {
        let data = tensor.data();
        if form.is_binary(name) {
            *binary_bytes.get_or_insert(0usize) += binary::binary_size(data);
            binary::check_lengths(data)
                .map_err(|problem| Failure::new(Code::Internal, format!("output {name:?}: {problem}")))?;
        } else if tensor.datatype() == DataType::Fp16 {
            return Err(binary_only(name));
        } else if let Some(index) = pieces::first_not_utf8(data) {
            return Err(not_utf8(name, NotUtf8(index)));
        } else {
            json_bytes = json_bytes.saturating_add(estimated_json(tensor));
        }
        nonfinite += data.count_nonfinite();
    }
    let mut text = Vec::new();
    let (next, json_length, length) = if let Some(binary_bytes) = binary_bytes {
        hold.room(&mut text, json_bytes + 256 + 128 * answer.outputs.len(), usize::MAX)?;
        write_json(&mut text, &answer, head, &form)?;
        let (json_length, length) = (text.len(), text.len() as u64 + binary_bytes as u64);
        (Next::Binary(0), Some(json_length), Some(length))
    } else {
        begin(&mut text, head);
        (Next::Output(0), None, None)
    };
    let state = OipPieces { answer, form, text, written: 0, lists: None, blob: binary::Blob::default(), next, length };
    Ok(LargeAnswer { pieces: Pieces(Form::Oip(state)), json_length, nonfinite })
}

/// The state between two pieces.
#[derive(Debug)]
pub(in crate::codec) struct OipPieces {
    answer: Answer,
    form: AnswerForm,
    /// Text to be written before anything else, and how much of it is written.
    text: Vec<u8>,
    written: usize,
    /// The values that are being written.
    lists: Option<Lists>,
    blob: binary::Blob,
    next: Next,
    length: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
enum Next {
    /// The JSON of this output, or the end of the JSON.
    Output(usize),
    /// The bytes of this output, if it is in binary form.
    Binary(usize),
    End,
}

impl OipPieces {
    pub(in crate::codec) fn held(&self) -> usize {
        self.answer.size().saturating_add(self.text.capacity())
    }

    pub(in crate::codec) fn length(&self) -> Option<u64> {
        self.length
    }

    /// Appends to a piece until it is full or everything is written.
    pub(in crate::codec) fn write(&mut self, out: &mut Vec<u8>) {
        while !pieces::is_full(out) {
            if self.written < self.text.len() {
                let n = (self.text.len() - self.written).min(pieces::PIECE - out.len());
                out.extend_from_slice(&self.text[self.written..self.written + n]);
                self.written += n;
                if self.written == self.text.len() {
                    (self.text, self.written) = (Vec::new(), 0);
                }
                continue;
            }
            match self.next {
                Next::End => return,
                Next::Output(i) => self.output(out, i),
                Next::Binary(i) => match self.answer.outputs.get(i) {
                    None => self.next = Next::End,
                    Some((name, tensor)) => {
                        if !self.form.is_binary(name) || self.blob.write(tensor.data(), out, pieces::PIECE) {
                            (self.next, self.blob) = (Next::Binary(i + 1), binary::Blob::default());
                        }
                    }
                },
            }
        }
    }

    fn output(&mut self, out: &mut Vec<u8>, i: usize) {
        let Some((name, tensor)) = self.answer.outputs.get(i) else {
            text::plain(out, "]}");
            self.next = Next::End;
            return;
        };
        let lists = self.lists.get_or_insert_with(|| {
            if i > 0 {
                out.push(b',');
            }
            describe(out, name, tensor);
            text::plain(out, ",\"data\":");
            Lists::new(&[tensor.data().len()], 0, false)
        });
        if lists.write(out, tensor.data()) {
            out.push(b'}');
            (self.lists, self.next) = (None, Next::Output(i + 1));
        }
    }
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
    outputs + 80 + head.model_name.len() + head.model_version.map_or(0, str::len) + head.id.len()
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
