//! The bytes of a segment: frames, each with its length and checksum.
//!
//! Little-endian throughout: length of kind and body (u32), CRC-32 of them (u32), kind (u8), body.

use super::about::{About, Column, Side};
use super::stream::Stream;
use crate::model::{Answer, Checked, Code, Role};
use crate::tensor::{Data, Shape, Tensor};
use smallvec::SmallVec;
use std::sync::Arc;

/// How a segment begins.
pub const MAGIC: &[u8; 8] = b"SLUICE01";
/// Before the kind: length and checksum.
const HEAD: usize = 8;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Stream = 1,
    Prediction = 2,
    Feedback = 3,
    Gap = 4,
    End = 5,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Stream, Kind::Prediction, Kind::Feedback, Kind::Gap, Kind::End];
}

/// One request and what came of it, before it is encoded.
#[derive(Debug, Clone, Copy)]
pub struct Prediction<'a> {
    pub request_id: &'a str,
    /// When the body had been read; microseconds since 1970, UTC.
    pub ts: i64,
    pub role: Role,
    pub arm: &'a str,
    /// What the split goes by, as the caller sent it.
    pub route_key: Option<&'a str>,
    pub traceparent: Option<&'a str>,
    pub request: &'a Checked,
    pub outcome: Result<&'a Answer, Code>,
    /// Body read to answer ready, microseconds.
    pub latency_us: i64,
    pub infer_us: i64,
    /// Rows that ran together, this request's own among them.
    pub batch_rows: usize,
    /// The probability with which such a record is kept; 0 for one that is no part of an estimate.
    pub sample_rate: f64,
}

/// A prediction as it stands in a frame.
#[derive(Debug)]
pub struct PredictionView<'f> {
    pub ts: i64,
    pub latency_us: i64,
    pub infer_us: i64,
    pub batch_rows: u32,
    pub sample_rate: f64,
    pub role: Role,
    pub truncated: bool,
    /// How many records it is, one per row; `None`: one, of the whole request.
    pub rows: Option<u32>,
    pub request_id: &'f str,
    pub arm: &'f str,
    pub status: &'f str,
    pub route_key: Option<&'f str>,
    pub traceparent: Option<&'f str>,
    /// One for each column of the stream; `None` where it was cut.
    pub inputs: Tensors<'f>,
    /// The same; `None` as a whole where there was no answer.
    pub outputs: Option<Tensors<'f>>,
}

impl PredictionView<'_> {
    /// How many records it is.
    #[must_use]
    pub fn records(&self) -> usize {
        self.rows.map_or(1, |rows| rows as usize)
    }
}

/// A tensor as it stands in a frame: numbers little-endian one after the other; texts each behind its length (u32).
#[derive(Debug, Clone)]
pub struct TensorView<'f> {
    pub shape: Shape,
    pub bytes: &'f [u8],
}

/// The tensors of one side.
pub type Tensors<'f> = SmallVec<[Option<TensorView<'f>>; 4]>;

/// What does not fit is refused as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

const TRUNCATED: u8 = 1;
const ANSWERED: u8 = 2;
const ROUTE_KEY: u8 = 4;
const TRACEPARENT: u8 = 8;

/// Appends a frame whose body `fill` writes. What is in `out` before stays as it is also when the frame turns out too large.
pub(super) fn frame(out: &mut Vec<u8>, kind: Kind, fill: impl FnOnce(&mut Vec<u8>)) -> Result<(), TooLarge> {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    out.push(kind as u8);
    fill(out);
    let Ok(length) = u32::try_from(out.len() - start - HEAD) else {
        out.truncate(start);
        return Err(TooLarge);
    };
    let sum = crc32fast::hash(&out[start + HEAD..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + HEAD].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

/// Walks frames. Ends at the first that is cut short or whose checksum does not fit; [`Frames::at`] is then where that one begins.
#[derive(Debug, Clone)]
pub struct Frames<'f> {
    bytes: &'f [u8],
    at: usize,
}

impl<'f> Frames<'f> {
    /// `at`: where the first begins.
    pub fn new(bytes: &'f [u8], at: usize) -> Frames<'f> {
        Frames { bytes, at }
    }

    pub fn at(&self) -> usize {
        self.at
    }
}

impl<'f> Iterator for Frames<'f> {
    type Item = (Kind, &'f [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.bytes.get(self.at..self.at + HEAD)?;
        let length = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
        let sum = u32::from_le_bytes(head[4..].try_into().ok()?);
        let start = self.at + HEAD;
        let content = self.bytes.get(start..start.checked_add(length)?)?;
        let (kind, body) = content.split_first()?;
        let kind = Kind::ALL.into_iter().find(|k| *k as u8 == *kind)?;
        if crc32fast::hash(content) != sum {
            return None;
        }
        self.at = start + length;
        Some((kind, body))
    }
}

/// The frames of a buffer that was filled here: whole, so nothing is checked.
pub(super) fn own(bytes: &[u8]) -> impl Iterator<Item = (Kind, &[u8])> {
    let mut take = Take(bytes);
    std::iter::from_fn(move || {
        let (length, _sum) = (take.u32()?, take.u32()?);
        let (kind, body) = take.bytes(length as usize)?.split_first()?;
        Some((Kind::ALL.into_iter().find(|k| *k as u8 == *kind)?, body))
    })
}

// === predictions ===

/// Appends a prediction's frame and answers how many records it is; of no rows, none, and nothing is appended.
pub(super) fn prediction(out: &mut Vec<u8>, stream: &Stream, p: &Prediction) -> Result<usize, TooLarge> {
    let rows = p.request.rows().filter(|rows| answer_has_rows(p.outcome, *rows));
    let records = rows.unwrap_or(1);
    if records == 0 {
        return Ok(0);
    }
    let cut = Cut::new(stream, p, records);
    let choice = &stream.choice;
    let kept = |column: &str| !choice.drop.contains(column);
    let route_key = p.route_key.filter(|_| choice.drop.is_empty() || kept("route_key"));
    let traceparent = p.traceparent.filter(|_| choice.drop.is_empty() || kept("traceparent"));
    let mut flags = 0;
    for (flag, set) in [
        (TRUNCATED, !cut.is_nothing()),
        (ANSWERED, p.outcome.is_ok()),
        (ROUTE_KEY, route_key.is_some()),
        (TRACEPARENT, traceparent.is_some()),
    ] {
        flags |= if set { flag } else { 0 };
    }
    frame(out, Kind::Prediction, |out| {
        out.extend_from_slice(&stream.id.to_le_bytes());
        out.extend_from_slice(&p.ts.to_le_bytes());
        out.extend_from_slice(&p.latency_us.to_le_bytes());
        out.extend_from_slice(&p.infer_us.to_le_bytes());
        let batch_rows = u32::try_from(p.batch_rows).unwrap_or(u32::MAX);
        out.extend_from_slice(&batch_rows.to_le_bytes());
        let rows = rows.map_or(Ok(0), u32::try_from).unwrap_or(u32::MAX);
        out.extend_from_slice(&rows.to_le_bytes());
        out.extend_from_slice(&p.sample_rate.to_le_bytes());
        out.push(p.role as u8);
        out.push(flags);
        short(out, p.request_id);
        short(out, p.arm);
        short(out, p.outcome.err().map_or("ok", Code::as_str));
        if let Some(key) = route_key {
            if choice.hash_route_key {
                short(out, &stream.key.hash(key.as_bytes()));
            } else {
                short(out, key);
            }
        }
        if let Some(parent) = traceparent {
            short(out, parent);
        }
        for (i, column) in stream.inputs.iter().enumerate() {
            tensor(out, stream, column, p.request.inputs().get(column.index).filter(|_| !cut.takes(Side::Inputs, i)));
        }
        if let Ok(answer) = p.outcome {
            for (i, column) in stream.outputs.iter().enumerate() {
                let found = output(p.request, answer, column.index);
                tensor(out, stream, column, found.filter(|_| !cut.takes(Side::Outputs, i)));
            }
        }
    })?;
    Ok(records)
}

/// Whether every output has one row for each row sent; without an answer there is nothing that says otherwise.
fn answer_has_rows(outcome: Result<&Answer, Code>, rows: usize) -> bool {
    outcome.map_or(true, |answer| answer.outputs.iter().all(|(_, t)| t.shape().first() == Some(&rows)))
}

fn output<'a>(request: &Checked, answer: &'a Answer, index: usize) -> Option<&'a Tensor> {
    let at = request.wanted().iter().position(|wanted| *wanted == index)?;
    answer.outputs.get(at).map(|(_, tensor)| tensor)
}

/// Which columns are left out because a record would be too large.
struct Cut(Vec<(Side, usize)>);

impl Cut {
    fn new(stream: &Stream, p: &Prediction, records: usize) -> Cut {
        let most = stream.choice.max_record_bytes.saturating_mul(records);
        let inputs = stream.inputs.iter().enumerate();
        let inputs = inputs.filter_map(|(i, c)| Some((Side::Inputs, i, p.request.inputs().get(c.index)?.size())));
        let outputs = p.outcome.iter().flat_map(|answer| {
            let columns = stream.outputs.iter().enumerate();
            columns.filter_map(|(i, c)| Some((Side::Outputs, i, output(p.request, answer, c.index)?.size())))
        });
        let mut left: usize = inputs.clone().chain(outputs.clone()).map(|(_, _, size)| size).sum();
        if left <= most {
            return Cut(Vec::new());
        }
        let mut sizes: Vec<(Side, usize, usize)> = inputs.chain(outputs).collect();
        sizes.sort_by_key(|(_, _, size)| std::cmp::Reverse(*size));
        let mut cut = Vec::new();
        for (side, i, size) in sizes {
            if left <= most {
                break;
            }
            left -= size;
            cut.push((side, i));
        }
        Cut(cut)
    }

    fn is_nothing(&self) -> bool {
        self.0.is_empty()
    }

    fn takes(&self, side: Side, i: usize) -> bool {
        !self.0.is_empty() && self.0.contains(&(side, i))
    }
}

/// A text of at most 64 KiB behind its length; a longer one is cut, which request ids and arms never are.
pub(super) fn short(out: &mut Vec<u8>, text: &str) {
    let text = &text.as_bytes()[..text.floor_char_boundary(usize::from(u16::MAX))];
    let length = u16::try_from(text.len()).expect("it was cut to this");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text);
}

fn long(out: &mut Vec<u8>, text: &[u8]) {
    // A frame is refused past 4 GiB, and so is every text in one.
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(text);
}

/// A tensor: 255 where there is none, else its rank, its extents (u32) and its elements behind their length in bytes (u32).
fn tensor(out: &mut Vec<u8>, stream: &Stream, column: &Column, tensor: Option<&Tensor>) {
    let rank = tensor.and_then(|tensor| u8::try_from(tensor.shape().len()).ok().filter(|rank| *rank < u8::MAX));
    let (Some(tensor), Some(rank)) = (tensor, rank) else {
        out.push(u8::MAX);
        return;
    };
    out.push(rank);
    for extent in tensor.shape().iter() {
        // An extent past u32 belongs to a tensor without elements or to one that is too large for a frame.
        out.extend_from_slice(&u32::try_from(*extent).unwrap_or(u32::MAX).to_le_bytes());
    }
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    if column.hashed {
        hashed(out, stream, tensor.data());
    } else {
        elements(out, tensor.data());
    }
    let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

fn elements(out: &mut Vec<u8>, data: &Data) {
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
        Data::Bytes(e) => e.iter().for_each(|text| long(out, text)),
    }
}

fn hashed(out: &mut Vec<u8>, stream: &Stream, data: &Data) {
    let mut one = |text: &[u8]| long(out, stream.key.hash(text).as_bytes());
    let texts: Vec<String> = match data {
        Data::Bytes(e) => return e.iter().for_each(|text| one(text)),
        Data::Bool(e) => e.iter().map(ToString::to_string).collect(),
        Data::Uint8(e) => e.iter().map(ToString::to_string).collect(),
        Data::Uint16(e) => e.iter().map(ToString::to_string).collect(),
        Data::Uint32(e) => e.iter().map(ToString::to_string).collect(),
        Data::Uint64(e) => e.iter().map(ToString::to_string).collect(),
        Data::Int8(e) => e.iter().map(ToString::to_string).collect(),
        Data::Int16(e) => e.iter().map(ToString::to_string).collect(),
        Data::Int32(e) => e.iter().map(ToString::to_string).collect(),
        Data::Int64(e) => e.iter().map(ToString::to_string).collect(),
        Data::Fp16(e) => e.iter().map(ToString::to_string).collect(),
        Data::Fp32(e) => e.iter().map(ToString::to_string).collect(),
        Data::Fp64(e) => e.iter().map(ToString::to_string).collect(),
    };
    for text in &texts {
        one(text.as_bytes());
    }
}

/// The number of the stream a prediction belongs to, and when it was made.
pub(super) fn head(body: &[u8]) -> Option<(u32, i64)> {
    let mut take = Take(body);
    Some((take.u32()?, take.i64()?))
}

/// Reads a prediction's body. `None` where it is none: a checksum that fits says it is whole, so only a mistake or another format.
pub fn read_prediction<'f>(body: &'f [u8], inputs: &[Column], outputs: &[Column]) -> Option<PredictionView<'f>> {
    let mut take = Take(body.get(4..)?);
    let (ts, latency_us, infer_us) = (take.i64()?, take.i64()?, take.i64()?);
    let (batch_rows, rows, sample_rate) = (take.u32()?, take.u32()?, f64::from_le_bytes(take.array()?));
    let role = take.u8()?;
    let role = Role::ALL.into_iter().find(|r| *r as u8 == role)?;
    let flags = take.u8()?;
    let (request_id, arm, status) = (take.short()?, take.short()?, take.short()?);
    let route_key = if flags & ROUTE_KEY != 0 { Some(take.short()?) } else { None };
    let traceparent = if flags & TRACEPARENT != 0 { Some(take.short()?) } else { None };
    let inputs = take.tensors(inputs)?;
    let outputs = if flags & ANSWERED != 0 { Some(take.tensors(outputs)?) } else { None };
    // A request of no rows leaves no frame.
    let rows = (rows > 0).then_some(rows);
    let truncated = flags & TRUNCATED != 0;
    Some(PredictionView {
        ts,
        latency_us,
        infer_us,
        batch_rows,
        sample_rate,
        role,
        truncated,
        rows,
        request_id,
        arm,
        status,
        route_key,
        traceparent,
        inputs,
        outputs,
    })
}

impl<'f> TensorView<'f> {
    /// The texts, where they are.
    pub fn texts(&self) -> impl Iterator<Item = &'f [u8]> + use<'f> {
        let mut take = Take(self.bytes);
        std::iter::from_fn(move || {
            let length = take.u32()? as usize;
            take.bytes(length)
        })
    }
}

/// How elements of a column stand in a frame: numbers of so many bytes, or texts.
pub(super) fn width_of(column: &Column) -> Option<usize> {
    if column.hashed { None } else { column.spec.datatype.width() }
}

// === the others ===

/// The frame that says what a stream's number stands for.
pub(super) fn stream(out: &mut Vec<u8>, id: u32, about: &About) -> Result<(), TooLarge> {
    frame(out, Kind::Stream, |out| {
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(about.to_json().to_string().as_bytes());
    })
}

pub(super) fn read_stream(body: &[u8]) -> Option<(u32, Arc<About>)> {
    let mut take = Take(body);
    let id = take.u32()?;
    let about = serde_json::from_slice(take.0).ok()?;
    Some((id, Arc::new(About::from_json(about).ok()?)))
}

/// Reads a body from its front.
pub(super) struct Take<'f>(pub &'f [u8]);

impl<'f> Take<'f> {
    pub fn bytes(&mut self, n: usize) -> Option<&'f [u8]> {
        let (front, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(front)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    pub fn short(&mut self) -> Option<&'f str> {
        let length = u16::from_le_bytes(self.array()?);
        std::str::from_utf8(self.bytes(usize::from(length))?).ok()
    }

    /// The tensors of one side; `None` where they are not whole.
    fn tensors(&mut self, columns: &[Column]) -> Option<Tensors<'f>> {
        let mut tensors = Tensors::with_capacity(columns.len());
        for _ in columns {
            let rank = self.u8()?;
            tensors.push(if rank == u8::MAX { None } else { Some(self.tensor(rank)?) });
        }
        Some(tensors)
    }

    fn tensor(&mut self, rank: u8) -> Option<TensorView<'f>> {
        let shape = (0..rank).map(|_| self.u32().map(|extent| extent as usize)).collect::<Option<Shape>>()?;
        let length = self.u32()? as usize;
        Some(TensorView { shape, bytes: self.bytes(length)? })
    }
}
