//! The frame of a prediction: its size is known before anything is encoded or hashed.

use super::about::{Column, Side};
use super::frame::{HEAD, Kind, Reader, cut_text, write_frame, write_text};
use super::hash::HashKey;
use super::stream::Stream;
use super::view::{ANSWERED, NO_TENSOR, ROUTE_KEY, TRACEPARENT, TRUNCATED};
use crate::model::{Answer, Checked, Code, Role};
use crate::quality::{Predicted, Quality, Seen};
use crate::tensor::{Data, Tensor};
use std::fmt::{Display, Write as _};

/// One request and its outcome, before it is encoded.
#[derive(Debug, Clone, Copy)]
pub struct Prediction<'a> {
    pub request_id: &'a str,
    /// When the body had been read; microseconds since 1970, UTC.
    pub ts: i64,
    pub role: Role,
    pub arm: &'a str,
    /// The key that the traffic split uses, as the caller sent it.
    pub route_key: Option<&'a str>,
    pub traceparent: Option<&'a str>,
    pub request: &'a Checked,
    pub outcome: Result<&'a Answer, Code>,
    /// From the body read to the answer ready, microseconds.
    pub latency_us: i64,
    pub infer_us: i64,
    /// Rows that ran together, including this request's own.
    pub batch_rows: usize,
    /// The probability with which such a record is kept; 0 for a record that must not count in estimates.
    pub sample_rate: f64,
}

/// Bytes of a body before its texts: what [`Planned::write`] writes for every prediction.
const FIXED: usize = 4 + 3 * 8 + 2 * 4 + 8 + 2;
/// A prediction's frame, ready to be written: which tensors it holds, and how long it is.
#[derive(Debug)]
pub(super) struct Planned<'a> {
    stream: &'a Stream,
    prediction: &'a Prediction<'a>,
    rows: Option<usize>,
    records: usize,
    sample_rate: f64,
    truncated: Truncation,
    route_key: Option<&'a str>,
    traceparent: Option<&'a str>,
    bytes: usize,
}

/// The keyed hashes of one prediction, made before its frame is written.
#[derive(Debug, Default)]
pub(super) struct Hashes {
    route_key: Option<[u8; HashKey::HEX]>,
    /// The elements of all hashed tensors in the order of the frame, as they are stored.
    elements: Vec<u8>,
}

impl<'a> Planned<'a> {
    /// `None` for a request without rows, which has no record.
    pub fn new(stream: &'a Stream, p: &'a Prediction<'a>) -> Option<Planned<'a>> {
        let rows = p.request.rows().filter(|rows| answer_has_rows(p.outcome, *rows));
        let records = rows.unwrap_or(1);
        if records == 0 {
            return None;
        }
        let choice = &stream.choice;
        let is_kept = |column: &str| choice.drop.is_empty() || !choice.drop.contains(column);
        let mut planned = Planned {
            stream,
            prediction: p,
            rows,
            records,
            sample_rate: p.sample_rate,
            truncated: Truncation::new(stream, p, records),
            route_key: p.route_key.filter(|_| is_kept("route_key")),
            traceparent: p.traceparent.filter(|_| is_kept("traceparent")),
            bytes: 0,
        };
        planned.bytes = planned.size();
        Some(planned)
    }

    /// Leaves out more tensors until the frame has at most `most` bytes, so that a request of many rows is recorded without them and not lost.
    /// Inputs go first, as what was answered is worth more.
    pub fn within(mut self, most: usize) -> Planned<'a> {
        if self.bytes > most {
            self.truncated.leave_out(self.stream, self.prediction, self.bytes - most);
            self.bytes = self.size();
        }
        self
    }

    pub fn records(&self) -> usize {
        self.records
    }

    pub fn stream(&self) -> &'a Stream {
        self.stream
    }

    /// Notes that such a prediction is only kept with this probability, beyond what its `sample_rate` says already.
    pub fn sampled(mut self, probability: f64) -> Planned<'a> {
        self.sample_rate *= probability;
        self
    }

    /// The exact size of the frame.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn size(&self) -> usize {
        let p = self.prediction;
        let text = |text: &str| 2 + cut_text(text).len();
        let route_key = |key| if self.stream.choice.hash_route_key { 2 + HashKey::HEX } else { text(key) };
        let tensors: usize = self.tensors().map(|(column, tensor)| tensor_size(column, tensor)).sum();
        HEAD + 1
            + FIXED
            + text(p.request_id)
            + text(p.arm)
            + text(status(p))
            + self.route_key.map_or(0, route_key)
            + self.traceparent.map_or(0, text)
            + tensors
    }

    /// The columns of the frame in order, with the tensors it holds.
    fn tensors(&self) -> impl Iterator<Item = (&'a Column, Option<&'a Tensor>)> {
        let (stream, p) = (self.stream, self.prediction);
        let inputs = stream.inputs.iter().enumerate().map(move |(i, column)| {
            let tensor = p.request.input(column.index);
            (column, tensor.filter(|_| !self.truncated.leaves_out(Side::Inputs, i)))
        });
        let outputs = p.outcome.ok().into_iter().flat_map(move |answer| {
            stream.outputs.iter().enumerate().map(move |(i, column)| {
                let tensor = output(p.request, answer, column.index);
                (column, tensor.filter(|_| !self.truncated.leaves_out(Side::Outputs, i)))
            })
        });
        inputs.chain(outputs)
    }

    /// Computes the hashes that the frame needs. This may take long, so no lock must be held.
    pub fn hash(&self) -> Hashes {
        let key = &self.stream.key;
        let route_key = self.route_key.filter(|_| self.stream.choice.hash_route_key);
        let mut hashes = Hashes { route_key: route_key.map(|text| key.hash(text.as_bytes())), elements: Vec::new() };
        for (column, tensor) in self.tensors() {
            if let Some(tensor) = tensor.filter(|_| column.hashed) {
                hashes.elements.reserve(elements_size(column, tensor));
                write_hashes(&mut hashes.elements, key, tensor.data());
            }
        }
        hashes
    }

    /// Joins the answer with feedback before its outputs are hidden. Other answers are joined when they are on the disk.
    pub fn join(&self, quality: &Quality) {
        let (stream, p) = (self.stream, self.prediction);
        let Ok(answer) = p.outcome else { return };
        if !stream.hides_outputs || p.role == Role::Shadow {
            return;
        }
        for row in 0..self.records {
            let seen = Seen {
                model: &stream.about.model,
                version: stream.about.version,
                arm: p.arm,
                request_id: p.request_id,
                route_key: self.route_key,
                row: as_u32(row),
                ts: p.ts,
            };
            quality.record_prediction(&seen, || predicted(stream, p.request, answer, row, self.records));
        }
    }

    /// Appends the frame.
    pub fn write(&self, out: &mut Vec<u8>, hashes: &Hashes) {
        let p = self.prediction;
        let mut flags = 0;
        for (flag, set) in [
            (TRUNCATED, !self.truncated.is_empty()),
            (ANSWERED, p.outcome.is_ok()),
            (ROUTE_KEY, self.route_key.is_some()),
            (TRACEPARENT, self.traceparent.is_some()),
        ] {
            flags |= if set { flag } else { 0 };
        }
        let written = write_frame(out, Kind::Prediction, |out| {
            out.extend_from_slice(&self.stream.id.to_le_bytes());
            out.extend_from_slice(&p.ts.to_le_bytes());
            out.extend_from_slice(&p.latency_us.to_le_bytes());
            out.extend_from_slice(&p.infer_us.to_le_bytes());
            out.extend_from_slice(&as_u32(p.batch_rows).to_le_bytes());
            out.extend_from_slice(&self.rows.map_or(0, as_u32).to_le_bytes());
            out.extend_from_slice(&self.sample_rate.to_le_bytes());
            out.push(p.role as u8);
            out.push(flags);
            write_text(out, p.request_id);
            write_text(out, p.arm);
            write_text(out, status(p));
            if let Some(key) = self.route_key {
                let hash = hashes.route_key.as_ref();
                write_text(out, hash.map_or(key, |hash| std::str::from_utf8(hash).expect("hex digits are ASCII")));
            }
            if let Some(parent) = self.traceparent {
                write_text(out, parent);
            }
            let mut made = Reader(&hashes.elements);
            for (column, tensor) in self.tensors() {
                write_tensor(out, column, tensor, &mut made);
            }
        });
        debug_assert!(written.is_ok(), "the queue refuses frames of 4 GiB");
    }
}

/// The outputs of one row, as a label is compared with them.
fn predicted(stream: &Stream, request: &Checked, answer: &Answer, row: usize, records: usize) -> Predicted {
    let mut predicted = Predicted::default();
    let outputs = 0..stream.about.specs(Side::Outputs).len();
    for tensor in outputs.filter_map(|index| output(request, answer, index)) {
        match tensor.data() {
            Data::Bytes(texts) if texts.len() == records => predicted.add_text(&texts[row]),
            Data::Bytes(_) => {}
            numbers => {
                let bytes = numbers.le_bytes().unwrap_or_default();
                let each = bytes.len() / records;
                predicted.add(numbers.datatype(), &bytes[row * each..(row + 1) * each]);
            }
        }
    }
    predicted
}

fn status(p: &Prediction) -> &'static str {
    p.outcome.err().map_or("ok", Code::as_str)
}

fn as_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Whether every output has one row for each row of the request; true where there is no answer.
fn answer_has_rows(outcome: Result<&Answer, Code>, rows: usize) -> bool {
    outcome.map_or(true, |answer| answer.outputs.iter().all(|(_, t)| t.shape().first() == Some(&rows)))
}

fn output<'a>(request: &Checked, answer: &'a Answer, index: usize) -> Option<&'a Tensor> {
    let at = request.wanted().iter().position(|wanted| *wanted == index)?;
    answer.outputs.get(at).map(|(_, tensor)| tensor)
}

/// The columns that are left out because the record would be too large.
#[derive(Debug)]
struct Truncation(Vec<(Side, usize)>);

impl Truncation {
    fn new(stream: &Stream, p: &Prediction, records: usize) -> Truncation {
        let limit = stream.choice.max_record_bytes.saturating_mul(records);
        let mut total: usize = sizes(stream, p).map(|(_, _, size)| size).sum();
        if total <= limit {
            return Truncation(Vec::new());
        }
        let mut sizes: Vec<(Side, usize, usize)> = sizes(stream, p).collect();
        sizes.sort_by_key(|(_, _, size)| std::cmp::Reverse(*size));
        let mut left_out = Vec::new();
        for (side, i, size) in sizes {
            if total <= limit {
                break;
            }
            total -= size;
            left_out.push((side, i));
        }
        Truncation(left_out)
    }

    /// Leaves out further tensors with at least this many bytes together: inputs where they are enough, the largest first.
    fn leave_out(&mut self, stream: &Stream, p: &Prediction, bytes: usize) {
        let kept = sizes(stream, p).filter(|(side, i, _)| !self.leaves_out(*side, *i));
        let mut kept: Vec<(Side, usize, usize)> = kept.collect();
        let inputs: usize = kept.iter().filter(|(side, _, _)| *side == Side::Inputs).map(|(_, _, size)| size).sum();
        if inputs >= bytes {
            kept.retain(|(side, _, _)| *side == Side::Inputs);
        }
        kept.sort_by_key(|(_, _, size)| std::cmp::Reverse(*size));
        let mut left = bytes;
        for (side, i, size) in kept {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(size);
            self.0.push((side, i));
        }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn leaves_out(&self, side: Side, i: usize) -> bool {
        !self.0.is_empty() && self.0.contains(&(side, i))
    }
}

/// The bytes of each tensor of a prediction that the log stores.
fn sizes<'p>(stream: &'p Stream, p: &'p Prediction<'p>) -> impl Iterator<Item = (Side, usize, usize)> {
    let inputs = stream.inputs.iter().enumerate();
    let inputs = inputs.filter_map(move |(i, c)| Some((Side::Inputs, i, elements_size(c, p.request.input(c.index)?))));
    let outputs = p.outcome.into_iter().flat_map(move |answer| {
        let columns = stream.outputs.iter().enumerate();
        columns
            .filter_map(move |(i, c)| Some((Side::Outputs, i, elements_size(c, output(p.request, answer, c.index)?))))
    });
    inputs.chain(outputs)
}

/// Bytes of a tensor's elements as they are stored.
fn elements_size(column: &Column, tensor: &Tensor) -> usize {
    match tensor.data() {
        data if column.hashed => data.len().saturating_mul(4 + HashKey::HEX),
        Data::Bytes(texts) => texts.iter().map(|text| 4 + text.len()).sum(),
        _ => tensor.size(),
    }
}

/// Bytes of a tensor as [`write_tensor`] writes it.
fn tensor_size(column: &Column, tensor: Option<&Tensor>) -> usize {
    match tensor.filter(|tensor| has_storable_rank(tensor)) {
        Some(tensor) => 1 + 4 * tensor.shape().len() + 4 + elements_size(column, tensor),
        None => 1,
    }
}

fn has_storable_rank(tensor: &Tensor) -> bool {
    tensor.shape().len() < usize::from(NO_TENSOR)
}

/// Appends a tensor: [`NO_TENSOR`], or its rank, its extents (u32) and its elements after their length in bytes (u32).
fn write_tensor(out: &mut Vec<u8>, column: &Column, tensor: Option<&Tensor>, hashed: &mut Reader) {
    // The rank fits, as larger ones are left out.
    let Some(tensor) = tensor.filter(|tensor| has_storable_rank(tensor)) else {
        if let Some(tensor) = tensor.filter(|_| column.hashed) {
            let _ = hashed.bytes(elements_size(column, tensor));
        }
        out.push(NO_TENSOR);
        return;
    };
    out.push(u8::try_from(tensor.shape().len()).unwrap_or(NO_TENSOR));
    for extent in tensor.shape().iter() {
        // An extent past u32 belongs to a tensor without elements; others are too large for a frame.
        out.extend_from_slice(&as_u32(*extent).to_le_bytes());
    }
    let size = elements_size(column, tensor);
    out.extend_from_slice(&as_u32(size).to_le_bytes());
    if column.hashed {
        out.extend_from_slice(hashed.bytes(size).unwrap_or_default());
    } else if let (Data::Bytes(texts), false) = (tensor.data(), column.masks.is_empty()) {
        for text in texts {
            write_bytes(out, text);
            let start = out.len() - text.len();
            for mask in &column.masks {
                mask.apply(&mut out[start..]);
            }
        }
    } else {
        write_elements(out, tensor.data());
    }
}

fn write_elements(out: &mut Vec<u8>, data: &Data) {
    match data {
        Data::Bool(e) => out.extend(e.iter().map(|b| u8::from(*b))),
        Data::Uint8(e) => out.extend_from_slice(e),
        Data::Uint16(e) => out.extend_from_slice(e.as_bytes()),
        Data::Uint32(e) => out.extend_from_slice(e.as_bytes()),
        Data::Uint64(e) => out.extend_from_slice(e.as_bytes()),
        Data::Int8(e) => out.extend_from_slice(e.as_bytes()),
        Data::Int16(e) => out.extend_from_slice(e.as_bytes()),
        Data::Int32(e) => out.extend_from_slice(e.as_bytes()),
        Data::Int64(e) => out.extend_from_slice(e.as_bytes()),
        Data::Fp16(e) => out.extend_from_slice(e.as_bytes()),
        Data::Fp32(e) => out.extend_from_slice(e.as_bytes()),
        Data::Fp64(e) => out.extend_from_slice(e.as_bytes()),
        Data::Bytes(e) => e.iter().for_each(|text| write_bytes(out, text)),
    }
}

/// Appends the keyed hash of each element's text.
pub(super) fn write_hashes(out: &mut Vec<u8>, key: &HashKey, data: &Data) {
    fn of_numbers<T: Display>(out: &mut Vec<u8>, key: &HashKey, elements: &[T]) {
        let mut text = String::new();
        for element in elements {
            text.clear();
            // Writing to a String cannot fail.
            let _ = write!(text, "{element}");
            write_bytes(out, &key.hash(text.as_bytes()));
        }
    }
    match data {
        Data::Bytes(e) => e.iter().for_each(|text| write_bytes(out, &key.hash(text))),
        Data::Bool(e) => of_numbers(out, key, e),
        Data::Uint8(e) => of_numbers(out, key, e),
        Data::Uint16(e) => of_numbers(out, key, e),
        Data::Uint32(e) => of_numbers(out, key, e),
        Data::Uint64(e) => of_numbers(out, key, e),
        Data::Int8(e) => of_numbers(out, key, e),
        Data::Int16(e) => of_numbers(out, key, e),
        Data::Int32(e) => of_numbers(out, key, e),
        Data::Int64(e) => of_numbers(out, key, e),
        Data::Fp16(e) => of_numbers(out, key, e),
        Data::Fp32(e) => of_numbers(out, key, e),
        Data::Fp64(e) => of_numbers(out, key, e),
    }
}

fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // A frame of 4 GiB is refused before, and with it every text that long.
    out.extend_from_slice(&as_u32(bytes.len()).to_le_bytes());
    out.extend_from_slice(bytes);
}
