//! Whole rows in a profile: what explanations compare a row with.

use super::format::Profile;
use crate::columns::{self, Column, ElementNames, Side};
use crate::model::{InferenceRequest, NamedTensor, Signature, quoted};
use crate::tensor::{Data, DataType, Shape, Tensor};
use half::f16;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Rows that were drawn at random from those that the profile is of.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// The names of the columns, in any form that docs/MONITORING.md allows.
    pub columns: Vec<String>,
    /// For each row a value for each column; `null` where it has none.
    pub rows: Vec<Vec<Option<SampleValue>>>,
}

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SampleValue {
    Bool(bool),
    Number(f64),
    Text(String),
}

impl Sample {
    /// Limits of a sample.
    pub const MAX_ROWS: usize = 100;
    pub const MAX_COLUMNS: usize = 500;

    pub(super) fn check(&self) -> Result<(), String> {
        let (rows, columns) = (self.rows.len(), self.columns.len());
        if rows > Sample::MAX_ROWS || columns > Sample::MAX_COLUMNS {
            return Err(format!(
                "the sample has {rows} rows of {columns} columns: expected at most {} rows of {} columns",
                Sample::MAX_ROWS,
                Sample::MAX_COLUMNS
            ));
        }
        if let Some((at, row)) = self.rows.iter().enumerate().find(|(_, row)| row.len() != columns) {
            return Err(format!("row {at} of the sample has {} values for {columns} columns", row.len()));
        }
        let texts = self.rows.iter().flatten().filter_map(|value| match value {
            Some(SampleValue::Text(text)) => Some(text),
            _ => None,
        });
        match texts.chain(&self.columns).find(|text| text.len() > Profile::MAX_TEXT) {
            Some(text) => {
                Err(format!("a text of {} bytes in the sample: expected at most {}", text.len(), Profile::MAX_TEXT))
            }
            None => Ok(()),
        }
    }

    /// The rows as a request to a version. Rows with values that its inputs cannot have are left out.
    ///
    /// # Errors
    /// In words, where the sample does not have all columns of the inputs, or no row fits.
    pub fn request(&self, signature: &Signature, names: &ElementNames) -> Result<InferenceRequest, String> {
        let inputs = inputs(signature, names)?;
        let mut places = BTreeMap::new();
        for (place, name) in self.columns.iter().enumerate() {
            if let Ok(column) = columns::resolve(signature, names, name)
                && column.side == Side::Inputs
            {
                places.entry((column.tensor, column.element)).or_insert(place);
            }
        }
        let mut at = Vec::with_capacity(inputs.len());
        for column in &inputs {
            let place = places.get(&(column.tensor, column.element));
            at.push(*place.ok_or_else(|| format!("its rows have no column {}", quoted(column.shown())))?);
        }
        let fits = |row: &&Vec<Option<SampleValue>>| {
            inputs
                .iter()
                .zip(&at)
                .all(|(column, place)| fits(column.datatype, row.get(*place).and_then(Option::as_ref)))
        };
        let rows: Vec<&Vec<Option<SampleValue>>> = self.rows.iter().filter(fits).collect();
        if rows.is_empty() {
            return Err(format!("none of its {} rows has values that fit all inputs", self.rows.len()));
        }
        let mut tensors = Vec::new();
        for (tensor, spec) in signature.inputs().iter().enumerate() {
            let of_tensor: Vec<usize> =
                inputs.iter().zip(&at).filter(|(column, _)| column.tensor == tensor).map(|(_, place)| *place).collect();
            let values: Vec<Option<&SampleValue>> =
                rows.iter().flat_map(|row| of_tensor.iter().map(|place| row[*place].as_ref())).collect();
            let rest = spec.dims.iter().flatten().skip(1).filter_map(|dim| match dim {
                crate::model::Dim::Fixed(n) => Some(*n),
                crate::model::Dim::Free(_) => None,
            });
            let shape: Shape = std::iter::once(rows.len()).chain(rest).collect();
            let tensor = Tensor::new(shape, data(spec.datatype, &values)).map_err(|e| format!("{}: {e}", spec.name))?;
            tensors.push(NamedTensor { name: spec.name.to_string(), tensor });
        }
        Ok(InferenceRequest { inputs: tensors, ..InferenceRequest::default() })
    }
}

/// The columns of the inputs that a request must give, in the order of their elements.
fn inputs(signature: &Signature, names: &ElementNames) -> Result<Vec<Column>, String> {
    let (all, _) = columns::all(signature, names, Sample::MAX_COLUMNS + 1);
    let required = signature.inputs().len();
    let of_inputs = |column: &Column| column.side == Side::Inputs && column.tensor < required;
    let inputs: Vec<Column> = all.into_iter().filter(of_inputs).collect();
    if inputs.len() > Sample::MAX_COLUMNS {
        return Err(format!("the inputs have more than {} columns in a row", Sample::MAX_COLUMNS));
    }
    for (tensor, spec) in signature.inputs().iter().enumerate() {
        let fixed = spec.dims.as_deref().and_then(|dims| dims.split_first()).is_some_and(|(first, rest)| {
            matches!(first, crate::model::Dim::Free(_))
                && rest.iter().all(|dim| matches!(dim, crate::model::Dim::Fixed(_)))
        });
        if !fixed || !inputs.iter().any(|column| column.tensor == tensor) {
            return Err(format!("the input {} has no fixed number of columns in a row", quoted(&spec.name)));
        }
    }
    Ok(inputs)
}

/// Whether a type can hold a value.
fn fits(datatype: DataType, value: Option<&SampleValue>) -> bool {
    match (datatype, value) {
        (DataType::Bytes, Some(_)) | (DataType::Bool, Some(SampleValue::Bool(_))) => true,
        (DataType::Bytes | DataType::Bool, _) => false,
        // NaN stands for a missing number.
        (of, None) => of.is_float(),
        (of, Some(value)) => number(value).is_some_and(|n| of.is_float() || is_in_range(of, n)),
    }
}

fn number(value: &SampleValue) -> Option<f64> {
    match value {
        SampleValue::Number(number) => Some(*number),
        SampleValue::Bool(bool) => Some(f64::from(u8::from(*bool))),
        SampleValue::Text(text) => text.trim().parse().ok(),
    }
}

/// Whether a whole number is in the range of an integer type.
fn is_in_range(datatype: DataType, number: f64) -> bool {
    let (low, high) = match datatype {
        DataType::Uint8 => (0.0, f64::from(u8::MAX)),
        DataType::Uint16 => (0.0, f64::from(u16::MAX)),
        DataType::Uint32 => (0.0, f64::from(u32::MAX)),
        DataType::Int8 => (f64::from(i8::MIN), f64::from(i8::MAX)),
        DataType::Int16 => (f64::from(i16::MIN), f64::from(i16::MAX)),
        DataType::Int32 => (f64::from(i32::MIN), f64::from(i32::MAX)),
        // Larger ones are not exact in a 64-bit floating-point number.
        DataType::Uint64 => (0.0, 2_f64.powi(53)),
        _ => (-(2_f64.powi(53)), 2_f64.powi(53)),
    };
    number.fract() == 0.0 && (low..=high).contains(&number)
}

/// The elements of a tensor, from values that fit its type.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the numbers are in the range of the type; floating-point ones are rounded to its precision"
)]
fn data(datatype: DataType, values: &[Option<&SampleValue>]) -> Data {
    let numbers = || values.iter().map(|value| value.and_then(number).unwrap_or(f64::NAN));
    macro_rules! integers {
        ($kind:ident, $type:ty) => {
            Data::$kind(numbers().map(|n| n as $type).collect::<Vec<_>>().into())
        };
    }
    match datatype {
        DataType::Bool => Data::Bool(values.iter().map(|v| matches!(v, Some(SampleValue::Bool(true)))).collect()),
        DataType::Uint8 => integers!(Uint8, u8),
        DataType::Uint16 => integers!(Uint16, u16),
        DataType::Uint32 => integers!(Uint32, u32),
        DataType::Uint64 => integers!(Uint64, u64),
        DataType::Int8 => integers!(Int8, i8),
        DataType::Int16 => integers!(Int16, i16),
        DataType::Int32 => integers!(Int32, i32),
        DataType::Int64 => integers!(Int64, i64),
        DataType::Fp16 => Data::Fp16(numbers().map(f16::from_f64).collect::<Vec<_>>().into()),
        DataType::Fp32 => Data::Fp32(numbers().map(|n| n as f32).collect::<Vec<_>>().into()),
        DataType::Fp64 => Data::Fp64(numbers().collect::<Vec<_>>().into()),
        DataType::Bytes => Data::Bytes(values.iter().map(|value| text(*value).into()).collect()),
    }
}

fn text(value: Option<&SampleValue>) -> String {
    match value {
        Some(SampleValue::Text(text)) => text.clone(),
        Some(SampleValue::Number(number)) => number.to_string(),
        Some(SampleValue::Bool(bool)) => bool.to_string(),
        None => String::new(),
    }
}
