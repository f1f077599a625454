//! A recorded tensor as it is shown: some of its elements as JSON, and why others are not there.

use crate::model::TensorSpec;
use crate::record::{About, Side};
use crate::tensor::DataType;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType as Arrow;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// How a tensor was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    AsIs,
    /// Its elements are keyed hashes.
    Hashed,
    /// Parts of its texts are overwritten.
    Masked,
    /// The configuration leaves it out.
    Dropped,
    /// It was not given, not requested, or too large.
    Absent,
}

impl Recorded {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Recorded::AsIs => "as_is",
            Recorded::Hashed => "hashed",
            Recorded::Masked => "masked",
            Recorded::Dropped => "dropped",
            Recorded::Absent => "absent",
        }
    }
}

/// A tensor of a logged request.
#[derive(Debug, Clone, PartialEq)]
pub struct ShownTensor {
    pub name: String,
    pub datatype: DataType,
    /// With all rows. `None` where it is not known.
    pub shape: Option<Vec<usize>>,
    pub recorded: Recorded,
    /// All that were recorded.
    pub elements: usize,
    /// The first of them. NaN and infinities are the texts `NaN`, `Infinity` and `-Infinity`; bytes that are not UTF-8 are `{"b64": …}`. Long texts are cut.
    pub data: Vec<Value>,
    /// How many texts are cut.
    pub cut_texts: usize,
}

/// The most bytes of a text that are shown.
const TEXT: usize = 4096;

/// How much more is shown.
#[derive(Debug)]
pub(super) struct Allowance {
    /// The most elements of one tensor.
    pub(super) elements: usize,
    /// Bytes of all tensors together, which are used up.
    pub(super) bytes: usize,
}

/// About the bytes of a number as JSON.
const NUMBER: usize = 12;

/// A tensor while its rows are read.
#[derive(Debug)]
pub(super) struct TensorRows(ShownTensor);

impl TensorRows {
    pub(super) fn new(about: &About, side: Side, spec: &TensorSpec) -> TensorRows {
        let column = format!("{}.{}", side.as_str(), spec.name);
        let recorded = if about.dropped.contains(&column) { Recorded::Dropped } else { Recorded::Absent };
        TensorRows(ShownTensor {
            name: spec.name.to_string(),
            datatype: spec.datatype,
            shape: None,
            recorded: if about.hashed.contains(&column) {
                Recorded::Hashed
            } else if about.masked().any(|masked| masked == column) {
                Recorded::Masked
            } else {
                recorded
            },
            elements: 0,
            data: Vec::new(),
            cut_texts: 0,
        })
    }

    /// Adds record `i` of a batch, as far as it may be shown.
    pub(super) fn add(&mut self, batch: &RecordBatch, side: Side, i: usize, left: &mut Allowance) {
        let tensor = &mut self.0;
        let tensors = batch.column_by_name(side.as_str()).and_then(|column| column.as_struct_opt());
        let Some(tensors) = tensors.filter(|tensors| tensors.is_valid(i)) else { return };
        let Some(list) = tensors.column_by_name(&tensor.name).and_then(|column| column.as_list_opt::<i32>()) else {
            return;
        };
        if !list.is_valid(i) {
            return;
        }
        if tensor.recorded == Recorded::Absent {
            tensor.recorded = Recorded::AsIs;
        }
        let values = list.value(i);
        tensor.elements += values.len();
        for at in 0..values.len().min(left.elements.saturating_sub(tensor.data.len())) {
            let (value, cut) = element(&values, at);
            let bytes = value.as_str().map_or(NUMBER, |text| NUMBER + text.len());
            if bytes > left.bytes {
                // Nothing after this element is shown, so that what is there has no holes.
                left.bytes = 0;
                break;
            }
            left.bytes -= bytes;
            tensor.data.push(value);
            tensor.cut_texts += usize::from(cut);
        }
    }

    /// `shape`: of the whole tensor, where it is known.
    pub(super) fn finish(self, shape: Option<Vec<usize>>) -> ShownTensor {
        ShownTensor { shape, ..self.0 }
    }
}

/// An element, and whether it is a text that was cut.
fn element(array: &dyn Array, i: usize) -> (Value, bool) {
    macro_rules! number {
        ($t:ty) => {
            array.as_primitive::<$t>().value(i).into()
        };
    }
    let value = match array.data_type() {
        Arrow::Boolean => array.as_boolean().value(i).into(),
        Arrow::UInt8 => number!(UInt8Type),
        Arrow::UInt16 => number!(UInt16Type),
        Arrow::UInt32 => number!(UInt32Type),
        Arrow::UInt64 => number!(UInt64Type),
        Arrow::Int8 => number!(Int8Type),
        Arrow::Int16 => number!(Int16Type),
        Arrow::Int32 => number!(Int32Type),
        Arrow::Int64 => number!(Int64Type),
        Arrow::Float16 => float(array.as_primitive::<Float16Type>().value(i).to_f32()),
        Arrow::Float32 => float(array.as_primitive::<Float32Type>().value(i)),
        Arrow::Float64 => float(array.as_primitive::<Float64Type>().value(i)),
        Arrow::Utf8 => return text(array.as_string::<i32>().value(i)),
        Arrow::Binary => {
            let bytes = array.as_binary::<i32>().value(i);
            if let Ok(utf8) = std::str::from_utf8(bytes) {
                return text(utf8);
            }
            return (json!({ "b64": STANDARD.encode(&bytes[..bytes.len().min(TEXT)]) }), bytes.len() > TEXT);
        }
        other => format!("({other})").into(),
    };
    (value, false)
}

fn text(text: &str) -> (Value, bool) {
    (text[..text.floor_char_boundary(TEXT)].into(), text.len() > TEXT)
}

/// The shortest digits that read back as the same number of its own type.
fn float<T: zmij::Float + Into<f64> + Copy>(number: T) -> Value {
    let wide: f64 = number.into();
    if wide.is_finite() {
        let digits = zmij::Buffer::new().format_finite(number).parse::<f64>();
        return digits.unwrap_or(wide).into();
    }
    if wide.is_nan() {
        "NaN".into()
    } else if wide > 0.0 {
        "Infinity".into()
    } else {
        "-Infinity".into()
    }
}
