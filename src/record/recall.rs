//! Reads stored records into the history of outcomes after a start, with the code that live records take.

use super::about::{About, Column, Side};
use super::hash::HashKey;
use super::segment::{self, Segment};
use super::stream::{Choice, Stream};
use super::view::{self, TensorView};
use super::{feedback, learn};
use crate::quality::{History, Seen};
use crate::tensor::{DataType, Shape};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch, StructArray};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Reads the records of one version.
#[derive(Debug)]
pub(crate) struct Recall(Stream);

/// Which records of the segments are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Predictions,
    Feedback,
}

impl Recall {
    #[must_use]
    pub(crate) fn new(about: &Arc<About>) -> Recall {
        let mut stream = Stream::new(0, Arc::clone(about), Choice::default(), Arc::new(HashKey::none()));
        let masked: Vec<String> = about.masked().map(str::to_owned).collect();
        // What is masked is not as it was, just as what is hashed. The frames of both hold texts.
        for (side, columns) in [(Side::Inputs, &mut stream.inputs), (Side::Outputs, &mut stream.outputs)] {
            for column in columns.iter_mut().filter(|column| masked.contains(&side.column(&column.spec))) {
                column.hashed = true;
            }
        }
        stream.kept = super::kept::Kept::new(&stream.inputs, &stream.outputs);
        Recall(stream)
    }

    /// Adds the answered rows of a batch of a prediction file. `now` is in microseconds since 1970. Rows that cannot be read are left out.
    pub(crate) fn add(&self, batch: &RecordBatch, history: &History, now: i64) {
        let _ = self.add_rows(batch, history, now);
    }

    /// `None` where a column is missing or of another type.
    fn add_rows(&self, batch: &RecordBatch, history: &History, now: i64) -> Option<()> {
        let column = |name: &str| batch.column_by_name(name);
        let text = |name: &str| column(name)?.as_string_opt::<i32>();
        let (ids, arms, keys) = (text("request_id")?, text("arm")?, text("route_key")?);
        let rows = column("row")?.as_primitive_opt::<Int32Type>()?;
        let times = column("ts")?.as_primitive_opt::<TimestampMicrosecondType>()?;
        let rates = column("sample_rate")?.as_primitive_opt::<Float64Type>()?;
        let side = |side: Side| column(side.as_str())?.as_struct_opt();
        let (inputs, outputs) = (side(Side::Inputs), side(Side::Outputs)?);
        let stream = &self.0;
        for i in 0..batch.num_rows() {
            if !outputs.is_valid(i) || rates.value(i) <= 0.0 {
                continue;
            }
            let seen = Seen {
                model: &stream.about.model,
                version: stream.about.version,
                arm: arms.value(i),
                request_id: ids.value(i),
                route_key: keys.is_valid(i).then(|| keys.value(i)),
                row: rows.value(i).cast_unsigned(),
                ts: times.value(i),
            };
            let contents = || {
                let empty = Vec::new();
                let inputs = inputs.map_or(empty, |inputs| tensors(inputs, &stream.inputs, i));
                let outputs = tensors(outputs, &stream.outputs, i);
                let (inputs, outputs) = (views(&inputs), views(&outputs));
                let columns = (&stream.inputs[..], &stream.outputs[..]);
                let texts = stream.kept.texts(columns.0, &inputs);
                let contents = stream.kept.contents(columns, (&inputs, &outputs), &texts, 0, 1);
                (learn::predicted(stream, &outputs, 0, 1), contents)
            };
            history.record_prediction(&seen, &stream.kept.layout, now, contents);
        }
        Some(())
    }
}

/// The elements of row `i` of each column, as a frame holds them, and how many they are.
fn tensors(of: &StructArray, columns: &[Column], i: usize) -> Vec<Option<(usize, Vec<u8>)>> {
    let tensor = |column: &Column| {
        let list = of.column_by_name(&column.spec.name)?.as_list_opt::<i32>().filter(|list| list.is_valid(i))?;
        elements(&list.value(i), column)
    };
    columns.iter().map(|column| if of.is_valid(i) { tensor(column) } else { None }).collect()
}

fn views(tensors: &[Option<(usize, Vec<u8>)>]) -> Vec<Option<TensorView<'_>>> {
    tensors
        .iter()
        .map(|tensor| tensor.as_ref().map(|(n, bytes)| TensorView { shape: Shape::new(&[*n]), bytes }))
        .collect()
}

fn elements(values: &dyn Array, column: &Column) -> Option<(usize, Vec<u8>)> {
    let n = values.len();
    let mut bytes = Vec::new();
    macro_rules! numbers {
        ($t:ty) => {
            bytes.extend_from_slice(bytemuck::cast_slice(values.as_primitive_opt::<$t>()?.values()))
        };
    }
    if view::element_width(column).is_none() {
        let mut push = |text: &[u8]| {
            bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend_from_slice(text);
        };
        if let Some(texts) = values.as_string_opt::<i32>() {
            (0..n).for_each(|i| push(texts.value(i).as_bytes()));
        } else {
            let texts = values.as_binary_opt::<i32>()?;
            (0..n).for_each(|i| push(texts.value(i)));
        }
        return Some((n, bytes));
    }
    match column.spec.datatype {
        DataType::Bool => {
            let bools = values.as_boolean_opt()?;
            bytes.extend((0..n).map(|i| u8::from(bools.value(i))));
        }
        DataType::Uint8 => numbers!(UInt8Type),
        DataType::Uint16 => numbers!(UInt16Type),
        DataType::Uint32 => numbers!(UInt32Type),
        DataType::Uint64 => numbers!(UInt64Type),
        DataType::Int8 => numbers!(Int8Type),
        DataType::Int16 => numbers!(Int16Type),
        DataType::Int32 => numbers!(Int32Type),
        DataType::Int64 => numbers!(Int64Type),
        DataType::Fp16 => numbers!(Float16Type),
        DataType::Fp32 => numbers!(Float32Type),
        DataType::Fp64 => numbers!(Float64Type),
        DataType::Bytes => return None,
    }
    Some((n, bytes))
}

/// Adds what is in segments that are not sealed yet, also while a server writes and seals them. Stops when `go_on` returns false.
///
/// # Errors
/// When an existing segment cannot be read.
pub(crate) fn recall_segments(
    data: &Path,
    what: What,
    history: &History,
    now: i64,
    go_on: &dyn Fn() -> bool,
) -> io::Result<()> {
    for number in segment::list(data)? {
        let segment = match Segment::read(&segment::path(data, number)) {
            // It was sealed after the listing, and its files are read later.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            segment => segment?,
        };
        if !go_on() {
            return Ok(());
        }
        let contents = segment.contents();
        match what {
            What::Predictions => {
                for ((at, _), bodies) in &contents.predictions {
                    for batch in segment::batches(&contents.abouts[*at], bodies) {
                        Recall::new(&contents.abouts[*at]).add(&batch, history, now);
                    }
                }
            }
            What::Feedback => {
                for ((model, _), bodies) in &contents.feedback {
                    let Ok(model) = model.parse() else { continue };
                    for body in bodies {
                        let received_at = feedback::read_head(body).map_or(0, |(_, received_at)| received_at);
                        history.record_feedback(&model, &feedback::read(body).unwrap_or_default(), received_at);
                    }
                }
            }
        }
    }
    Ok(())
}
