//! Predictions as Arrow columns.

use super::about::{About, Column, Side};
use super::view::{self, PredictionView, TensorView};
use crate::tensor::DataType;
use arrow_array::builder::StringBuilder;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{
    ArrayRef, ArrowPrimitiveType, BinaryArray, BooleanArray, Float64Array, Int32Array, Int64Array, ListArray,
    NullArray, PrimitiveArray, RecordBatch, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow_buffer::{Buffer, MutableBuffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType as Arrow, Field, Fields, Schema, SchemaRef, TimeUnit};
use smallvec::SmallVec;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The type of every time in the files: microseconds since 1970, UTC.
#[must_use]
pub(crate) fn timestamp() -> Arrow {
    Arrow::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The column that exists only in the files of a model of which some version has shapes that do not follow from lengths.
pub(crate) const SHAPES: &str = "shapes";

/// The columns of a file: the documented ones, and those that its records make necessary.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    about: Arc<About>,
    inputs: Vec<Column>,
    outputs: Vec<Column>,
    /// BYTES columns with an element that is not UTF-8.
    binary: BTreeSet<(&'static str, usize)>,
    shapes: bool,
}

/// A column of a tensor in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TensorColumn {
    pub side: Side,
    /// Its place among the columns of its side.
    pub at: usize,
    /// Its place among the leaves of the schema, which are Parquet's columns.
    pub leaf: usize,
    /// The type of its elements; `None` for hashes.
    pub datatype: Option<DataType>,
}

/// The number of columns before the tensors.
const HEADS: usize = 14;

impl Layout {
    #[must_use]
    pub fn new(about: &Arc<About>) -> Layout {
        let (inputs, outputs) = (about.columns(Side::Inputs), about.columns(Side::Outputs));
        Layout { about: Arc::clone(about), inputs, outputs, binary: BTreeSet::new(), shapes: false }
    }

    /// Adds the column `shapes`, also where no record needs it.
    pub(super) fn require_shapes(&mut self) {
        self.shapes = true;
    }

    /// The tensor columns in the frames of this stream.
    #[must_use]
    pub(super) fn columns(&self) -> (&[Column], &[Column]) {
        (&self.inputs, &self.outputs)
    }

    /// The columns of tensors, inputs first.
    pub(super) fn tensors(&self) -> impl Iterator<Item = TensorColumn> {
        // Before the inputs there are columns of one leaf each; a side without tensors is one leaf.
        let before = HEADS + self.inputs.len().max(1);
        let column = |side, first, (at, column): (usize, &Column)| {
            let datatype = Some(column.spec.datatype).filter(|_| !column.hashed);
            TensorColumn { side, at, leaf: first + at, datatype }
        };
        let inputs = self.inputs.iter().enumerate().map(move |c| column(Side::Inputs, HEADS, c));
        inputs.chain(self.outputs.iter().enumerate().map(move |c| column(Side::Outputs, before, c)))
    }

    /// Adds the columns and types that a record needs. Call it with every record of a file before the first batch.
    pub fn allow(&mut self, view: &PredictionView) {
        let outputs = view.outputs.as_deref().unwrap_or_default();
        for (side, columns, tensors) in
            [(Side::Inputs, &self.inputs, view.inputs.as_slice()), (Side::Outputs, &self.outputs, outputs)]
        {
            for (i, (column, tensor)) in columns.iter().zip(tensors).enumerate() {
                let Some(tensor) = tensor else { continue };
                if view::element_width(column).is_none() && !self.binary.contains(&(side.as_str(), i)) {
                    let is_text = tensor.texts().all(|text| std::str::from_utf8(text).is_ok());
                    if !is_text {
                        self.binary.insert((side.as_str(), i));
                    }
                }
                self.shapes |= !is_shape_implied(&self.about, column, tensor, view.rows);
            }
        }
    }

    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        let text = |name: &str, nullable| Field::new(name, Arrow::Utf8, nullable);
        let mut fields = vec![
            text("request_id", false),
            Field::new("row", Arrow::Int32, false),
            Field::new("ts", timestamp(), false),
            text("version", false),
            text("arm", false),
            text("role", false),
            text("route_key", true),
            text("status", false),
            Field::new("latency_us", Arrow::Int64, false),
            Field::new("infer_us", Arrow::Int64, false),
            Field::new("batch_rows", Arrow::Int32, false),
            text("traceparent", true),
            Field::new("sample_rate", Arrow::Float64, false),
            Field::new("truncated", Arrow::Boolean, false),
            Field::new(Side::Inputs.as_str(), self.side_type(Side::Inputs), true),
            Field::new(Side::Outputs.as_str(), self.side_type(Side::Outputs), true),
        ];
        if self.shapes {
            fields.push(text(SHAPES, true));
        }
        Arc::new(Schema::new(fields))
    }

    /// Parquet has no struct without fields, so such a side has the type null.
    fn side_type(&self, side: Side) -> Arrow {
        let fields = self.fields(side);
        if fields.is_empty() { Arrow::Null } else { Arrow::Struct(fields) }
    }

    fn fields(&self, side: Side) -> Fields {
        let columns = if side == Side::Inputs { &self.inputs } else { &self.outputs };
        let field = |(i, column): (usize, &Column)| {
            let elements = Field::new_list_field(self.element_type(side, i, column), false);
            Field::new(&*column.spec.name, Arrow::List(Arc::new(elements)), true)
        };
        columns.iter().enumerate().map(field).collect()
    }

    fn element_type(&self, side: Side, i: usize, column: &Column) -> Arrow {
        if column.hashed {
            return Arrow::Utf8;
        }
        match column.spec.datatype {
            DataType::Bool => Arrow::Boolean,
            DataType::Uint8 => Arrow::UInt8,
            DataType::Uint16 => Arrow::UInt16,
            DataType::Uint32 => Arrow::UInt32,
            DataType::Uint64 => Arrow::UInt64,
            DataType::Int8 => Arrow::Int8,
            DataType::Int16 => Arrow::Int16,
            DataType::Int32 => Arrow::Int32,
            DataType::Int64 => Arrow::Int64,
            DataType::Fp16 => Arrow::Float16,
            DataType::Fp32 => Arrow::Float32,
            DataType::Fp64 => Arrow::Float64,
            DataType::Bytes if self.binary.contains(&(side.as_str(), i)) => Arrow::Binary,
            DataType::Bytes => Arrow::Utf8,
        }
    }
}

/// Whether the tensor's shape in a record follows from its number of elements.
fn is_shape_implied(about: &About, column: &Column, tensor: &TensorView, rows: Option<u32>) -> bool {
    let shape = tensor.shape.iter().copied();
    let of_a_record = |(i, extent)| if i == 0 && rows.is_some() { 1 } else { extent };
    let mut shape = shape.enumerate().map(of_a_record);
    // A damaged frame may have extents whose product is larger than any number of elements.
    let elements = shape.clone().try_fold(1, usize::checked_mul);
    let implied = elements.and_then(|elements| about.shape_of(&column.spec, elements));
    implied.is_some_and(|implied| shape.by_ref().eq(implied.iter().copied()))
}

/// Collects records into batches.
#[derive(Debug)]
pub(crate) struct Builder {
    layout: Layout,
    schema: SchemaRef,
    version: String,
    heads: Heads,
    inputs: Vec<TensorBuilder>,
    outputs: Vec<TensorBuilder>,
    has_inputs: Vec<bool>,
    has_outputs: Vec<bool>,
    shapes: Vec<Option<String>>,
    /// Columns that get no elements here, because they are written another way.
    without: Vec<(Side, usize)>,
}

/// All columns but the tensors.
#[derive(Debug, Default)]
struct Heads {
    request_id: StringBuilder,
    row: Vec<i32>,
    ts: Vec<i64>,
    arm: StringBuilder,
    role: StringBuilder,
    route_key: StringBuilder,
    status: StringBuilder,
    latency_us: Vec<i64>,
    infer_us: Vec<i64>,
    batch_rows: Vec<i32>,
    traceparent: StringBuilder,
    sample_rate: Vec<f64>,
    truncated: Vec<bool>,
}

/// The largest number of records and bytes of tensors in a batch, so that it fits a processor's cache.
const BATCH_ROWS: usize = 8192;
const BATCH_BYTES: usize = 8 << 20;

impl Builder {
    #[must_use]
    pub fn new(layout: Layout) -> Builder {
        let tensors = |columns: &[Column]| columns.iter().map(TensorBuilder::new).collect();
        Builder {
            schema: layout.schema(),
            version: layout.about.version.to_string(),
            heads: Heads::default(),
            inputs: tensors(&layout.inputs),
            outputs: tensors(&layout.outputs),
            has_inputs: Vec::new(),
            has_outputs: Vec::new(),
            shapes: Vec::new(),
            without: Vec::new(),
            layout,
        }
    }

    /// Leaves these columns empty. Whether a side of a record has tensors is not affected.
    #[must_use]
    pub(super) fn without(mut self, columns: &[TensorColumn]) -> Builder {
        self.without = columns.iter().map(|column| (column.side, column.at)).collect();
        self
    }

    /// Adds a prediction's records and passes each full batch to `full`.
    ///
    /// # Errors
    /// The error of `full`.
    pub fn push<E>(
        &mut self,
        view: &PredictionView,
        full: &mut dyn FnMut(RecordBatch) -> Result<(), E>,
    ) -> Result<(), E> {
        let records = view.records();
        let mut inputs = rows_of(&view.inputs, &self.layout.inputs, records);
        let mut outputs = view.outputs.as_deref().map(|outputs| rows_of(outputs, &self.layout.outputs, records));
        let (has_inputs, has_outputs) = (view.has(Side::Inputs), view.has(Side::Outputs));
        for (side, at) in &self.without {
            match (side, &mut outputs) {
                (Side::Inputs, _) => inputs[*at] = None,
                (Side::Outputs, Some(outputs)) => outputs[*at] = None,
                (Side::Outputs, None) => {}
            }
        }
        for row in 0..records {
            self.heads.push(view, row);
            self.has_inputs.push(has_inputs);
            for (builder, rows) in self.inputs.iter_mut().zip(&inputs) {
                builder.push(rows.as_ref(), row);
            }
            self.has_outputs.push(has_outputs);
            for (i, builder) in self.outputs.iter_mut().enumerate() {
                builder.push(outputs.as_ref().and_then(|outputs| outputs[i].as_ref()), row);
            }
            if self.layout.shapes {
                self.shapes.push(self.layout.shapes_of(view));
            }
            let bytes: usize = self.inputs.iter().chain(&self.outputs).map(TensorBuilder::bytes).sum();
            if self.heads.row.len() >= BATCH_ROWS || bytes >= BATCH_BYTES {
                full(self.batch())?;
            }
        }
        Ok(())
    }

    /// The records since the last full batch; `None` where there are none.
    #[cfg(test)]
    #[must_use]
    pub fn finish(mut self) -> Option<RecordBatch> {
        (!self.heads.row.is_empty()).then(|| self.batch())
    }

    /// Passes the records since the last full batch to `full`, where there are any.
    ///
    /// # Errors
    /// The error of `full`.
    pub(super) fn flush<E>(&mut self, full: &mut dyn FnMut(RecordBatch) -> Result<(), E>) -> Result<(), E> {
        if self.heads.row.is_empty() { Ok(()) } else { full(self.batch()) }
    }

    fn batch(&mut self) -> RecordBatch {
        let heads = std::mem::take(&mut self.heads);
        let n = heads.row.len();
        let texts = |mut texts: StringBuilder| -> ArrayRef { Arc::new(texts.finish()) };
        let inputs = side(self.layout.fields(Side::Inputs), &mut self.inputs, &mut self.has_inputs, n);
        let outputs = side(self.layout.fields(Side::Outputs), &mut self.outputs, &mut self.has_outputs, n);
        let mut columns: Vec<ArrayRef> = vec![
            texts(heads.request_id),
            Arc::new(Int32Array::from(heads.row)),
            Arc::new(TimestampMicrosecondArray::from(heads.ts).with_timezone("UTC")),
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(&self.version, n))),
            texts(heads.arm),
            texts(heads.role),
            texts(heads.route_key),
            texts(heads.status),
            Arc::new(Int64Array::from(heads.latency_us)),
            Arc::new(Int64Array::from(heads.infer_us)),
            Arc::new(Int32Array::from(heads.batch_rows)),
            texts(heads.traceparent),
            Arc::new(Float64Array::from(heads.sample_rate)),
            Arc::new(BooleanArray::from(heads.truncated)),
            inputs,
            outputs,
        ];
        if self.layout.shapes {
            columns.push(Arc::new(StringArray::from(std::mem::take(&mut self.shapes))));
        }
        RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .expect("the columns were made for this schema, of one length")
    }
}

impl Heads {
    fn push(&mut self, view: &PredictionView, row: usize) {
        let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        self.request_id.append_value(view.request_id);
        self.row.push(i32::try_from(row).unwrap_or(i32::MAX));
        self.ts.push(view.ts);
        self.arm.append_value(view.arm);
        self.role.append_value(view.role.as_str());
        self.route_key.append_option(view.route_key);
        self.status.append_value(view.status);
        self.latency_us.push(view.latency_us);
        self.infer_us.push(view.infer_us);
        self.batch_rows.push(number(view.batch_rows));
        self.traceparent.append_option(view.traceparent);
        self.sample_rate.push(view.sample_rate);
        self.truncated.push(view.truncated);
    }
}

impl Layout {
    /// The shapes that do not follow from their lengths, as JSON.
    fn shapes_of(&self, view: &PredictionView) -> Option<String> {
        let mut shapes = serde_json::Map::new();
        let outputs = view.outputs.as_deref().unwrap_or_default();
        for (side, columns, tensors) in
            [(Side::Inputs, &self.inputs, view.inputs.as_slice()), (Side::Outputs, &self.outputs, outputs)]
        {
            let mut of_side = serde_json::Map::new();
            for (column, tensor) in columns.iter().zip(tensors) {
                if let Some(tensor) =
                    tensor.as_ref().filter(|tensor| !is_shape_implied(&self.about, column, tensor, view.rows))
                {
                    let mut shape: Vec<usize> = tensor.shape.to_vec();
                    if let (Some(first), Some(_)) = (shape.first_mut(), view.rows) {
                        *first = 1;
                    }
                    of_side.insert(column.spec.name.to_string(), shape.into());
                }
            }
            if !of_side.is_empty() {
                shapes.insert(side.as_str().to_owned(), of_side.into());
            }
        }
        (!shapes.is_empty()).then(|| serde_json::Value::from(shapes).to_string())
    }
}

fn side(fields: Fields, tensors: &mut [TensorBuilder], present: &mut Vec<bool>, n: usize) -> ArrayRef {
    let present = std::mem::take(present);
    if fields.is_empty() {
        return Arc::new(NullArray::new(n));
    }
    let arrays = fields.iter().zip(tensors).map(|(field, tensor)| tensor.array(field)).collect();
    Arc::new(StructArray::new(fields, arrays, Some(NullBuffer::from(present))))
}

/// A tensor of several records, ready to be split.
enum Rows<'f> {
    /// Numbers: `each` bytes per record, `width` bytes per element.
    Fixed {
        bytes: &'f [u8],
        each: usize,
        width: usize,
    },
    Texts {
        texts: Vec<&'f [u8]>,
        each: usize,
    },
}

fn rows_of<'f>(
    tensors: &[Option<TensorView<'f>>],
    columns: &[Column],
    records: usize,
) -> SmallVec<[Option<Rows<'f>>; 4]> {
    let rows = |(tensor, column): (&Option<TensorView<'f>>, &Column)| {
        let tensor = tensor.as_ref()?;
        Some(if let Some(width) = view::element_width(column) {
            Rows::Fixed { bytes: tensor.bytes, each: tensor.bytes.len() / records, width }
        } else {
            let texts: Vec<&[u8]> = tensor.texts().collect();
            Rows::Texts { each: texts.len() / records, texts }
        })
    };
    tensors.iter().zip(columns).map(rows).collect()
}

/// The column of one tensor: lists of its elements.
#[derive(Debug)]
struct TensorBuilder {
    datatype: DataType,
    offsets: Vec<i32>,
    present: Vec<bool>,
    /// Numbers as they are in memory, or texts one after the other.
    bytes: MutableBuffer,
    /// The end of each text.
    ends: Vec<i32>,
    elements: i32,
}

impl TensorBuilder {
    fn new(column: &Column) -> TensorBuilder {
        let datatype = if column.hashed { DataType::Bytes } else { column.spec.datatype };
        TensorBuilder {
            datatype,
            offsets: vec![0],
            present: Vec::new(),
            bytes: MutableBuffer::new(0),
            ends: vec![0],
            elements: 0,
        }
    }

    fn bytes(&self) -> usize {
        self.bytes.len() + 4 * self.ends.len()
    }

    fn push(&mut self, rows: Option<&Rows>, row: usize) {
        let int = |n: usize| i32::try_from(n).expect("a frame has at most 1 GiB, and a batch ends at 8 MiB more");
        self.present.push(rows.is_some());
        match rows {
            None => {}
            Some(Rows::Fixed { bytes, each, width }) => {
                self.bytes.extend_from_slice(&bytes[row * each..(row + 1) * each]);
                self.elements += int(each / width);
            }
            Some(Rows::Texts { texts, each }) => {
                for text in &texts[row * each..(row + 1) * each] {
                    self.bytes.extend_from_slice(text);
                    self.ends.push(int(self.bytes.len()));
                }
                self.elements += int(*each);
            }
        }
        self.offsets.push(self.elements);
    }

    fn array(&mut self, field: &Field) -> ArrayRef {
        let Arrow::List(element) = field.data_type() else { unreachable!("tensors are lists") };
        let bytes: Buffer = std::mem::replace(&mut self.bytes, MutableBuffer::new(0)).into();
        let ends = std::mem::replace(&mut self.ends, vec![0]);
        let values: ArrayRef = match self.datatype {
            DataType::Bool => Arc::new(bytes.iter().map(|b| Some(*b != 0)).collect::<BooleanArray>()),
            DataType::Uint8 => numbers::<UInt8Type>(bytes),
            DataType::Uint16 => numbers::<UInt16Type>(bytes),
            DataType::Uint32 => numbers::<UInt32Type>(bytes),
            DataType::Uint64 => numbers::<UInt64Type>(bytes),
            DataType::Int8 => numbers::<Int8Type>(bytes),
            DataType::Int16 => numbers::<Int16Type>(bytes),
            DataType::Int32 => numbers::<Int32Type>(bytes),
            DataType::Int64 => numbers::<Int64Type>(bytes),
            DataType::Fp16 => numbers::<Float16Type>(bytes),
            DataType::Fp32 => numbers::<Float32Type>(bytes),
            DataType::Fp64 => numbers::<Float64Type>(bytes),
            DataType::Bytes => {
                let ends = OffsetBuffer::new(ScalarBuffer::from(ends));
                if element.data_type() == &Arrow::Binary {
                    Arc::new(BinaryArray::new(ends, bytes, None))
                } else {
                    Arc::new(StringArray::new(ends, bytes, None))
                }
            }
        };
        self.elements = 0;
        let offsets = OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(&mut self.offsets, vec![0])));
        let present = NullBuffer::from(std::mem::take(&mut self.present));
        Arc::new(ListArray::new(Arc::clone(element), offsets, values, Some(present)))
    }
}

fn numbers<T: ArrowPrimitiveType>(bytes: Buffer) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::new(ScalarBuffer::from(bytes), None))
}
