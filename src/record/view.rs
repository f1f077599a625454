//! A prediction read from its frame, without copying.

use super::about::{About, Column, Side};
use super::frame::Reader;
use crate::model::Role;
use crate::tensor::{DataType, Shape};
use smallvec::SmallVec;

/// A prediction as it is stored in a frame.
#[derive(Debug)]
pub(crate) struct PredictionView<'f> {
    pub ts: i64,
    pub latency_us: i64,
    pub infer_us: i64,
    pub batch_rows: u32,
    pub sample_rate: f64,
    pub role: Role,
    pub truncated: bool,
    /// The number of records, one per row; `None`: one record for the whole request.
    pub rows: Option<u32>,
    pub request_id: &'f str,
    pub arm: &'f str,
    pub status: &'f str,
    pub route_key: Option<&'f str>,
    pub traceparent: Option<&'f str>,
    /// One per column of the stream; `None` where the tensor was left out.
    pub inputs: Tensors<'f>,
    /// The same for the outputs; `None` as a whole where there was no answer.
    pub outputs: Option<Tensors<'f>>,
}

impl<'f> PredictionView<'f> {
    /// The number of records.
    #[must_use]
    pub fn records(&self) -> usize {
        self.rows.map_or(1, |rows| rows as usize)
    }

    /// The tensors of one side; empty where there was no answer.
    #[must_use]
    pub(super) fn side(&self, side: Side) -> &[Option<TensorView<'f>>] {
        match side {
            Side::Inputs => &self.inputs,
            Side::Outputs => self.outputs.as_deref().unwrap_or_default(),
        }
    }

    /// Whether a side has any tensor.
    #[must_use]
    pub(super) fn has(&self, side: Side) -> bool {
        self.side(side).iter().any(Option::is_some)
    }
}

impl PredictionView<'_> {
    /// Whether an output that is stored as it is has NaN or an infinity.
    #[must_use]
    pub(crate) fn has_non_finite(&self, about: &About) -> bool {
        let columns = about.columns(Side::Outputs);
        columns.iter().zip(self.side(Side::Outputs)).any(|(column, tensor)| {
            let bytes = tensor.as_ref().filter(|_| !column.hashed).map_or(&[][..], |tensor| tensor.bytes);
            match column.spec.datatype {
                DataType::Fp16 => bytes.as_chunks().0.iter().any(|b| !half::f16::from_le_bytes(*b).is_finite()),
                DataType::Fp32 => bytes.as_chunks().0.iter().any(|b| !f32::from_le_bytes(*b).is_finite()),
                DataType::Fp64 => bytes.as_chunks().0.iter().any(|b| !f64::from_le_bytes(*b).is_finite()),
                _ => false,
            }
        })
    }
}

/// A tensor as it is stored in a frame: numbers little-endian one after the other, texts each after its length (u32).
#[derive(Debug, Clone)]
pub(crate) struct TensorView<'f> {
    pub shape: Shape,
    pub bytes: &'f [u8],
}

/// The tensors of one side.
pub(crate) type Tensors<'f> = SmallVec<[Option<TensorView<'f>>; 4]>;

// The bits of a prediction's flags.
pub(super) const TRUNCATED: u8 = 1;
pub(super) const ANSWERED: u8 = 2;
pub(super) const ROUTE_KEY: u8 = 4;
pub(super) const TRACEPARENT: u8 = 8;

/// The rank that stands for "no tensor".
pub(super) const NO_TENSOR: u8 = u8::MAX;

/// The number of the stream that a prediction belongs to, and its time.
pub(super) fn read_head(body: &[u8]) -> Option<(u32, i64)> {
    let mut reader = Reader(body);
    Some((reader.u32()?, reader.i64()?))
}

/// Reads a prediction's body. `None` where it cannot be read; as its checksum is right, another program wrote it or this one is wrong.
pub(super) fn read_prediction<'f>(body: &'f [u8], inputs: &[Column], outputs: &[Column]) -> Option<PredictionView<'f>> {
    let mut reader = Reader(body.get(4..)?);
    let (ts, latency_us, infer_us) = (reader.i64()?, reader.i64()?, reader.i64()?);
    let (batch_rows, rows, sample_rate) = (reader.u32()?, reader.u32()?, f64::from_le_bytes(reader.array()?));
    let role = reader.u8()?;
    let role = Role::ALL.into_iter().find(|r| *r as u8 == role)?;
    let flags = reader.u8()?;
    let (request_id, arm, status) = (reader.text()?, reader.text()?, reader.text()?);
    let route_key = if flags & ROUTE_KEY != 0 { Some(reader.text()?) } else { None };
    let traceparent = if flags & TRACEPARENT != 0 { Some(reader.text()?) } else { None };
    let inputs = read_tensors(&mut reader, inputs)?;
    let outputs = if flags & ANSWERED != 0 { Some(read_tensors(&mut reader, outputs)?) } else { None };
    // A request of no rows has no frame, so 0 stands for "no rows".
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

/// The tensors of one side; `None` where they are incomplete.
fn read_tensors<'f>(reader: &mut Reader<'f>, columns: &[Column]) -> Option<Tensors<'f>> {
    let mut tensors = Tensors::with_capacity(columns.len());
    for _ in columns {
        let rank = reader.u8()?;
        tensors.push(if rank == NO_TENSOR { None } else { Some(read_tensor(reader, rank)?) });
    }
    Some(tensors)
}

fn read_tensor<'f>(reader: &mut Reader<'f>, rank: u8) -> Option<TensorView<'f>> {
    let shape = (0..rank).map(|_| reader.u32().map(|extent| extent as usize)).collect::<Option<Shape>>()?;
    let length = reader.u32()? as usize;
    Some(TensorView { shape, bytes: reader.bytes(length)? })
}

impl<'f> TensorView<'f> {
    /// The elements of a tensor of texts.
    pub fn texts(&self) -> impl Iterator<Item = &'f [u8]> + use<'f> {
        texts(self.bytes)
    }
}

/// The texts in the bytes of a tensor.
pub(super) fn texts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut reader = Reader(bytes);
    std::iter::from_fn(move || {
        let length = reader.u32()? as usize;
        reader.bytes(length)
    })
}

/// The bytes of an element of a column in a frame; `None` for texts.
pub(super) fn element_width(column: &Column) -> Option<usize> {
    if column.hashed { None } else { column.spec.datatype.width() }
}
