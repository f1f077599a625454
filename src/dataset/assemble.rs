//! Assembles logged requests, with their tensors, from records.

use super::columns::{KeyColumns, bools, column, int64s, texts, times};
use super::error::Error;
use super::logged::LoggedRequest;
use super::scan::ScannedBatch;
use crate::model::{Label, TensorSpec};
use crate::record::{About, SHAPES, Side};
use crate::tensor::{Data, DataType, Elements, Shape, Tensor};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ListArray, RecordBatch, StructArray};
use arrow_schema::DataType as Arrow;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// Joins consecutive records of one request: same id and time, with increasing row numbers.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    current: Option<Partial>,
}

/// A request of which more rows may follow.
#[derive(Debug)]
struct Partial {
    source_index: usize,
    next_row: i32,
    logged: LoggedRequest,
    inputs: Vec<TensorBuilder>,
    outputs: Vec<TensorBuilder>,
}

/// Builds one tensor, record by record.
#[derive(Debug)]
struct TensorBuilder {
    spec: TensorSpec,
    /// Whether the values were recorded as they are: neither dropped, nor hashed, nor masked.
    recorded: bool,
    /// The shape of the first record.
    shape: Option<Shape>,
    /// The number of elements of each record.
    elements: usize,
    records: usize,
    numbers: Vec<u8>,
    texts: Vec<Bytes>,
    error: Option<String>,
}

impl Assembler {
    /// Adds a batch, and returns the requests that are complete now.
    ///
    /// # Errors
    /// When a column is missing or of another type.
    pub(super) fn push(&mut self, scanned: &ScannedBatch) -> Result<Vec<LoggedRequest>, Error> {
        let columns = RecordColumns::of(&scanned.batch)?;
        let mut complete = Vec::new();
        for i in 0..scanned.batch.num_rows() {
            let (id, row, ts) = (columns.keys.request_id.value(i), columns.keys.row.value(i), columns.ts.value(i));
            let continues = |partial: &Partial| {
                let logged = &partial.logged;
                partial.source_index == scanned.source_index
                    && partial.next_row == row
                    && (&*logged.request_id, logged.ts) == (id, ts)
            };
            let label = scanned.feedback.get(id, row).and_then(|feedback| feedback.label().cloned());
            if let Some(partial) = self.current.as_mut().filter(|partial| row > 0 && continues(partial)) {
                partial.next_row += 1;
                partial.logged.records += 1;
                partial.logged.labels.push(label);
                columns.add_tensors(partial, i);
            } else {
                let mut partial = columns.begin(scanned, i, label);
                columns.add_tensors(&mut partial, i);
                complete.extend(self.current.replace(partial).map(Partial::finish));
            }
        }
        Ok(complete)
    }

    /// Returns the last request.
    #[must_use]
    pub(super) fn finish(&mut self) -> Option<LoggedRequest> {
        self.current.take().map(Partial::finish)
    }
}

/// The columns of a batch.
struct RecordColumns<'b> {
    keys: KeyColumns<'b>,
    ts: &'b arrow_array::TimestampMicrosecondArray,
    status: &'b arrow_array::StringArray,
    truncated: &'b arrow_array::BooleanArray,
    infer_us: &'b arrow_array::Int64Array,
    batch_rows: &'b arrow_array::Int32Array,
    inputs: Option<&'b StructArray>,
    outputs: Option<&'b StructArray>,
    shapes: Option<&'b arrow_array::StringArray>,
}

impl<'b> RecordColumns<'b> {
    fn of(batch: &'b RecordBatch) -> Result<RecordColumns<'b>, Error> {
        let side = |side: Side| batch.column_by_name(side.as_str()).and_then(|column| column.as_struct_opt());
        Ok(RecordColumns {
            keys: KeyColumns::of(batch)?,
            ts: times(batch, "ts")?,
            status: texts(batch, "status")?,
            truncated: bools(batch, "truncated")?,
            infer_us: int64s(batch, "infer_us")?,
            batch_rows: column::<arrow_array::Int32Array>(batch, "batch_rows", "int32")?,
            inputs: side(Side::Inputs),
            outputs: side(Side::Outputs),
            shapes: if batch.column_by_name(SHAPES).is_some() { Some(texts(batch, SHAPES)?) } else { None },
        })
    }

    /// Starts a request with record `i`.
    fn begin(&self, scanned: &ScannedBatch, i: usize, label: Option<Label>) -> Partial {
        let about = &scanned.source.about;
        let builders = |side: Side| {
            let name = |spec: &TensorSpec| format!("{}.{}", side.as_str(), spec.name);
            let recorded = |spec: &TensorSpec| {
                let name = name(spec);
                !about.hashed.contains(&name)
                    && !about.dropped.contains(&name)
                    && !about.masked().any(|masked| masked == name)
            };
            about.specs(side).iter().map(|spec| TensorBuilder::new(spec, recorded(spec))).collect()
        };
        let micros = u64::try_from(self.infer_us.value(i)).unwrap_or_default();
        Partial {
            source_index: scanned.source_index,
            next_row: self.keys.row.value(i).saturating_add(1),
            logged: LoggedRequest {
                about: Arc::clone(about),
                request_id: self.keys.request_id.value(i).to_owned(),
                first_row: self.keys.row.value(i),
                records: 1,
                ts: self.ts.value(i),
                arm: self.keys.arm.value(i).to_owned(),
                role: self.keys.role.value(i).to_owned(),
                status: self.status.value(i).to_owned(),
                truncated: self.truncated.value(i),
                infer: Duration::from_micros(micros),
                batch_rows: usize::try_from(self.batch_rows.value(i)).unwrap_or_default(),
                inputs: Vec::new(),
                outputs: Vec::new(),
                labels: vec![label],
                read_error: None,
            },
            inputs: builders(Side::Inputs),
            outputs: builders(Side::Outputs),
        }
    }

    /// Adds the tensors of record `i`.
    fn add_tensors(&self, partial: &mut Partial, i: usize) {
        let shapes = self.shapes.filter(|shapes| shapes.is_valid(i)).map(|shapes| shapes.value(i));
        let shapes = shapes.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        let about = Arc::clone(&partial.logged.about);
        for (side, columns, builders) in
            [(Side::Inputs, self.inputs, &mut partial.inputs), (Side::Outputs, self.outputs, &mut partial.outputs)]
        {
            let Some(columns) = columns.filter(|columns| columns.is_valid(i)) else { continue };
            for builder in builders.iter_mut().filter(|builder| builder.recorded) {
                let Some(column) = columns.column_by_name(&builder.spec.name) else { continue };
                let Some(column) = column.as_list_opt::<i32>().filter(|column| column.is_valid(i)) else { continue };
                let recorded_shape =
                    shapes.as_ref().and_then(|shapes| parse_shape(&shapes[side.as_str()][&*builder.spec.name]));
                builder.add(&about, column, i, recorded_shape);
            }
        }
    }
}

fn parse_shape(json: &serde_json::Value) -> Option<Shape> {
    json.as_array()?.iter().map(|extent| usize::try_from(extent.as_u64()?).ok()).collect()
}

impl Partial {
    fn finish(self) -> LoggedRequest {
        let Partial { mut logged, inputs, outputs, .. } = self;
        let records = logged.records;
        let mut read_error = None;
        let mut tensors = |builders: Vec<TensorBuilder>| {
            let tensor = |builder: TensorBuilder| match builder.finish(records) {
                Ok(tensor) => tensor,
                Err(message) => {
                    read_error.get_or_insert(message);
                    None
                }
            };
            builders.into_iter().map(tensor).collect()
        };
        logged.inputs = tensors(inputs);
        logged.outputs = tensors(outputs);
        logged.read_error = read_error;
        logged
    }
}

impl TensorBuilder {
    fn new(spec: &TensorSpec, recorded: bool) -> TensorBuilder {
        TensorBuilder {
            spec: spec.clone(),
            recorded,
            shape: None,
            elements: 0,
            records: 0,
            numbers: Vec::new(),
            texts: Vec::new(),
            error: None,
        }
    }

    /// Adds the elements of record `i`. Without a recorded shape, the shape follows from the signature.
    fn add(&mut self, about: &About, column: &ListArray, i: usize, recorded_shape: Option<Shape>) {
        let offsets = column.value_offsets();
        let range =
            usize::try_from(offsets[i]).unwrap_or_default()..usize::try_from(offsets[i + 1]).unwrap_or_default();
        if self.records == 0 {
            self.elements = range.len();
            self.shape = recorded_shape.or_else(|| about.shape_of(&self.spec, range.len()));
        } else if self.elements != range.len() {
            self.error = Some(format!("{:?} has rows of different lengths", &*self.spec.name));
        }
        self.records += 1;
        let values = column.values();
        if self.append(values, range).is_none() {
            let (name, datatype) = (&*self.spec.name, self.spec.datatype);
            self.error = Some(format!("{name:?} has type {datatype}, but was recorded as {}", values.data_type()));
        }
    }

    /// Appends elements. `None` if they have another type.
    fn append(&mut self, values: &dyn Array, range: std::ops::Range<usize>) -> Option<()> {
        macro_rules! numbers {
            ($t:ty) => {{
                let numbers = values.as_primitive_opt::<$t>()?;
                self.numbers.extend_from_slice(bytemuck::cast_slice(&numbers.values()[range]));
            }};
        }
        match self.spec.datatype {
            DataType::Bool => {
                let bools = values.as_boolean_opt()?;
                self.numbers.extend(range.map(|i| u8::from(bools.value(i))));
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
            DataType::Bytes => match values.data_type() {
                Arrow::Utf8 => {
                    let texts = values.as_string::<i32>();
                    self.texts.extend(range.map(|i| Bytes::copy_from_slice(texts.value(i).as_bytes())));
                }
                Arrow::Binary => {
                    let texts = values.as_binary::<i32>();
                    self.texts.extend(range.map(|i| Bytes::copy_from_slice(texts.value(i))));
                }
                _ => return None,
            },
        }
        Some(())
    }

    /// Joins all records to one tensor, along the first dimension. `None` if nothing was recorded.
    fn finish(self, records: usize) -> Result<Option<Tensor>, String> {
        let name = Arc::clone(&self.spec.name);
        if let Some(error) = self.error {
            return Err(error);
        }
        if self.records == 0 {
            return Ok(None);
        }
        if self.records != records {
            return Err(format!("{:?} is missing in some rows", &*name));
        }
        let Some(record_shape) = self.shape else {
            return Err(format!("the shape of {:?} cannot be derived from its {} elements", &*name, self.elements));
        };
        let mut extents: Vec<usize> = record_shape.to_vec();
        match extents.first_mut() {
            Some(first) if records > 1 => *first = first.saturating_mul(records),
            None if records > 1 => return Err(format!("{:?} has no rows", &*name)),
            _ => {}
        }
        let data = data(self.spec.datatype, self.numbers, self.texts);
        let data = data.ok_or_else(|| format!("{:?} ends in the middle of an element", &*name))?;
        Tensor::new(Shape::new(&extents), data).map(Some).map_err(|e| format!("{:?}: {e}", &*name))
    }
}

fn data(datatype: DataType, numbers: Vec<u8>, texts: Vec<Bytes>) -> Option<Data> {
    let bytes = Bytes::from(numbers);
    Some(match datatype {
        DataType::Bool => Data::Bool(bytes.iter().map(|b| *b != 0).collect()),
        DataType::Uint8 => Data::Uint8(Elements::view(bytes)?),
        DataType::Uint16 => Data::Uint16(Elements::view(bytes)?),
        DataType::Uint32 => Data::Uint32(Elements::view(bytes)?),
        DataType::Uint64 => Data::Uint64(Elements::view(bytes)?),
        DataType::Int8 => Data::Int8(Elements::view(bytes)?),
        DataType::Int16 => Data::Int16(Elements::view(bytes)?),
        DataType::Int32 => Data::Int32(Elements::view(bytes)?),
        DataType::Int64 => Data::Int64(Elements::view(bytes)?),
        DataType::Fp16 => Data::Fp16(Elements::view(bytes)?),
        DataType::Fp32 => Data::Fp32(Elements::view(bytes)?),
        DataType::Fp64 => Data::Fp64(Elements::view(bytes)?),
        DataType::Bytes => Data::Bytes(texts),
    })
}
