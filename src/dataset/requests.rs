//! Records → the requests they were, with their tensors.

use super::columns::{Heads, bools, column, int64s, texts, times};
use super::error::Error;
use super::walk::Step;
use crate::model::{Label, ModelName, TensorSpec, Version};
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

/// A request as it was logged: all its rows.
#[derive(Debug)]
pub struct Logged {
    pub about: Arc<About>,
    pub request_id: String,
    /// Of its first record; 0, or a part of it is missing.
    pub first_row: i32,
    /// How many records it is.
    pub records: usize,
    pub ts: i64,
    pub arm: String,
    pub role: String,
    pub status: String,
    pub truncated: bool,
    pub infer: Duration,
    /// Rows that ran together, its own among them.
    pub batch_rows: usize,
    /// One for each of the signature, in its order; none where it was dropped, cut or not asked for, or cannot be told.
    pub inputs: Vec<Option<Tensor>>,
    pub outputs: Vec<Option<Tensor>>,
    /// Of each record, what it should have been, as far as feedback was walked with.
    pub labels: Vec<Option<Label>>,
    /// Why a tensor that is there cannot be told.
    pub trouble: Option<String>,
}

/// Why a request cannot be run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unfit {
    NoAnswer,
    Truncated,
    Hashed,
    Dropped,
    Incomplete,
    Unreadable,
}

impl Unfit {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Unfit::NoAnswer => "no_answer",
            Unfit::Truncated => "truncated",
            Unfit::Hashed => "hashed",
            Unfit::Dropped => "dropped",
            Unfit::Incomplete => "incomplete",
            Unfit::Unreadable => "unreadable",
        }
    }

    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Unfit::NoAnswer => "no answer was logged, or none of its outputs",
            Unfit::Truncated => "its inputs were cut, as they are larger than max_record_bytes",
            Unfit::Hashed => "inputs are logged as their hashes",
            Unfit::Dropped => "inputs are not logged",
            Unfit::Incomplete => "some of its rows are missing",
            Unfit::Unreadable => "its tensors cannot be read",
        }
    }
}

impl Logged {
    #[must_use]
    pub fn version(&self) -> Version {
        self.about.version
    }

    #[must_use]
    pub fn model(&self) -> &ModelName {
        &self.about.model
    }

    /// All inputs under their names, where they are all there as they were sent.
    ///
    /// # Errors
    /// Why not.
    pub fn inputs(&self) -> Result<Vec<(Arc<str>, Tensor)>, Unfit> {
        if self.first_row != 0 {
            return Err(Unfit::Incomplete);
        }
        let named = |of: &std::collections::BTreeSet<String>| {
            let mut columns = self.about.signature.inputs().iter();
            columns.any(|spec| of.contains(&format!("{}.{}", Side::Inputs.as_str(), spec.name)))
        };
        if named(&self.about.dropped) {
            return Err(Unfit::Dropped);
        }
        if named(&self.about.hashed) {
            return Err(Unfit::Hashed);
        }
        let missing = if self.truncated && self.trouble.is_none() { Unfit::Truncated } else { Unfit::Unreadable };
        let specs = self.about.signature.inputs().iter();
        specs.zip(&self.inputs).map(|(spec, t)| Ok((Arc::clone(&spec.name), t.clone().ok_or(missing)?))).collect()
    }

    /// The outputs that were answered and are there as they were.
    ///
    /// # Errors
    /// Where there is none.
    pub fn outputs(&self) -> Result<Vec<(Arc<str>, Tensor)>, Unfit> {
        let specs = self.about.signature.outputs().iter().zip(&self.outputs);
        let there: Vec<_> = specs.filter_map(|(spec, t)| Some((Arc::clone(&spec.name), t.clone()?))).collect();
        if self.status != OK || there.is_empty() {
            let unreadable = self.status == OK && self.trouble.is_some();
            return Err(if unreadable { Unfit::Unreadable } else { Unfit::NoAnswer });
        }
        Ok(there)
    }
}

/// The status of an answer.
pub const OK: &str = "ok";

/// Puts requests together: consecutive records of one id and time, with rows that count up.
#[derive(Debug, Default)]
pub struct Requests {
    open: Option<Open>,
}

/// A request whose next row may come.
#[derive(Debug)]
struct Open {
    source: usize,
    next_row: i32,
    logged: Logged,
    inputs: Vec<Gather>,
    outputs: Vec<Gather>,
}

/// One tensor, record by record.
#[derive(Debug)]
struct Gather {
    spec: TensorSpec,
    /// Logged as they were: neither dropped nor hashed.
    plain: bool,
    /// Of the first record.
    shape: Option<Shape>,
    /// Of each record.
    elements: usize,
    records: usize,
    numbers: Vec<u8>,
    texts: Vec<Bytes>,
    trouble: Option<String>,
}

impl Requests {
    /// Takes in a batch, and gives the requests that are whole by then.
    ///
    /// # Errors
    /// When a column is missing or of another type.
    pub fn push(&mut self, step: &Step) -> Result<Vec<Logged>, Error> {
        let read = Reading::of(&step.batch)?;
        let mut whole = Vec::new();
        for i in 0..step.batch.num_rows() {
            let (id, row, ts) = (read.heads.request_id.value(i), read.heads.row.value(i), read.ts.value(i));
            let goes_on = |open: &Open| {
                let logged = &open.logged;
                open.source == step.number && open.next_row == row && (&*logged.request_id, logged.ts) == (id, ts)
            };
            let label = step.labels.of(id, row).and_then(|feedback| feedback.label.clone());
            if let Some(open) = self.open.as_mut().filter(|open| row > 0 && goes_on(open)) {
                open.next_row += 1;
                open.logged.records += 1;
                open.logged.labels.push(label);
                read.gather(open, i);
            } else {
                let mut open = read.begin(step, i, label);
                read.gather(&mut open, i);
                whole.extend(self.open.replace(open).map(Open::close));
            }
        }
        Ok(whole)
    }

    /// The last one.
    #[must_use]
    pub fn finish(&mut self) -> Option<Logged> {
        self.open.take().map(Open::close)
    }
}

/// A batch's columns.
struct Reading<'b> {
    heads: Heads<'b>,
    ts: &'b arrow_array::TimestampMicrosecondArray,
    status: &'b arrow_array::StringArray,
    truncated: &'b arrow_array::BooleanArray,
    infer_us: &'b arrow_array::Int64Array,
    batch_rows: &'b arrow_array::Int32Array,
    inputs: Option<&'b StructArray>,
    outputs: Option<&'b StructArray>,
    shapes: Option<&'b arrow_array::StringArray>,
}

impl<'b> Reading<'b> {
    fn of(batch: &'b RecordBatch) -> Result<Reading<'b>, Error> {
        let side = |side: Side| batch.column_by_name(side.as_str()).and_then(|column| column.as_struct_opt());
        Ok(Reading {
            heads: Heads::of(batch)?,
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

    fn begin(&self, step: &Step, i: usize, label: Option<Label>) -> Open {
        let about = &step.source.about;
        let gathers = |side: Side| {
            let name = |spec: &TensorSpec| format!("{}.{}", side.as_str(), spec.name);
            let plain = |spec: &TensorSpec| {
                let name = name(spec);
                !about.hashed.contains(&name) && !about.dropped.contains(&name)
            };
            about.specs(side).iter().map(|spec| Gather::new(spec, plain(spec))).collect()
        };
        let micros = u64::try_from(self.infer_us.value(i)).unwrap_or_default();
        Open {
            source: step.number,
            next_row: self.heads.row.value(i).saturating_add(1),
            logged: Logged {
                about: Arc::clone(about),
                request_id: self.heads.request_id.value(i).to_owned(),
                first_row: self.heads.row.value(i),
                records: 1,
                ts: self.ts.value(i),
                arm: self.heads.arm.value(i).to_owned(),
                role: self.heads.role.value(i).to_owned(),
                status: self.status.value(i).to_owned(),
                truncated: self.truncated.value(i),
                infer: Duration::from_micros(micros),
                batch_rows: usize::try_from(self.batch_rows.value(i)).unwrap_or_default(),
                inputs: Vec::new(),
                outputs: Vec::new(),
                labels: vec![label],
                trouble: None,
            },
            inputs: gathers(Side::Inputs),
            outputs: gathers(Side::Outputs),
        }
    }

    /// Adds one record's tensors.
    fn gather(&self, open: &mut Open, i: usize) {
        let shapes = self.shapes.filter(|shapes| shapes.is_valid(i)).map(|shapes| shapes.value(i));
        let shapes = shapes.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        let about = Arc::clone(&open.logged.about);
        for (side, columns, gathers) in
            [(Side::Inputs, self.inputs, &mut open.inputs), (Side::Outputs, self.outputs, &mut open.outputs)]
        {
            let Some(columns) = columns.filter(|columns| columns.is_valid(i)) else { continue };
            for gather in gathers.iter_mut().filter(|gather| gather.plain) {
                let Some(column) = columns.column_by_name(&gather.spec.name) else { continue };
                let Some(column) = column.as_list_opt::<i32>().filter(|column| column.is_valid(i)) else { continue };
                let said = shapes.as_ref().and_then(|shapes| shape(&shapes[side.as_str()][&*gather.spec.name]));
                gather.add(&about, column, i, said);
            }
        }
    }
}

fn shape(json: &serde_json::Value) -> Option<Shape> {
    json.as_array()?.iter().map(|extent| usize::try_from(extent.as_u64()?).ok()).collect()
}

impl Open {
    fn close(self) -> Logged {
        let Open { mut logged, inputs, outputs, .. } = self;
        let records = logged.records;
        let mut trouble = None;
        let mut tensors = |gathers: Vec<Gather>| {
            let tensor = |gather: Gather| match gather.tensor(records) {
                Ok(tensor) => tensor,
                Err(words) => {
                    trouble.get_or_insert(words);
                    None
                }
            };
            gathers.into_iter().map(tensor).collect()
        };
        logged.inputs = tensors(inputs);
        logged.outputs = tensors(outputs);
        logged.trouble = trouble;
        logged
    }
}

impl Gather {
    fn new(spec: &TensorSpec, plain: bool) -> Gather {
        Gather {
            spec: spec.clone(),
            plain,
            shape: None,
            elements: 0,
            records: 0,
            numbers: Vec::new(),
            texts: Vec::new(),
            trouble: None,
        }
    }

    fn add(&mut self, about: &About, column: &ListArray, i: usize, said: Option<Shape>) {
        let ends = column.value_offsets();
        let range = usize::try_from(ends[i]).unwrap_or_default()..usize::try_from(ends[i + 1]).unwrap_or_default();
        if self.records == 0 {
            self.elements = range.len();
            self.shape = said.or_else(|| about.shape_of(&self.spec, range.len()));
        } else if self.elements != range.len() {
            self.trouble = Some(format!("{:?} has rows of different lengths", &*self.spec.name));
        }
        self.records += 1;
        let values = column.values();
        if self.put(values, range).is_none() {
            let (name, datatype) = (&*self.spec.name, self.spec.datatype);
            self.trouble = Some(format!("{name:?} is {datatype}, and logged as {}", values.data_type()));
        }
    }

    /// Appends elements; `None` where they are of another type.
    fn put(&mut self, values: &dyn Array, range: std::ops::Range<usize>) -> Option<()> {
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

    /// All records as one tensor, along the first dimension; none where there is none.
    fn tensor(self, records: usize) -> Result<Option<Tensor>, String> {
        let name = Arc::clone(&self.spec.name);
        if let Some(trouble) = self.trouble {
            return Err(trouble);
        }
        if self.records == 0 {
            return Ok(None);
        }
        if self.records != records {
            return Err(format!("{:?} is not there in every row", &*name));
        }
        let Some(one) = self.shape else {
            return Err(format!("the shape of {:?} cannot be told from its {} elements", &*name, self.elements));
        };
        let mut extents: Vec<usize> = one.to_vec();
        match extents.first_mut() {
            Some(first) if records > 1 => *first *= records,
            None if records > 1 => return Err(format!("{:?} has no rows", &*name)),
            _ => {}
        }
        let data = data(self.spec.datatype, self.numbers, self.texts);
        let data = data.ok_or_else(|| format!("{:?} is cut inside an element", &*name))?;
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
