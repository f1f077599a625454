//! The facts that all records of a stream share, and how a tensor's shape follows from its length.

use super::mask::Mask;
pub(crate) use crate::columns::Side;
use crate::model::{Dim, ModelName, Signature, TensorSpec, Version};
use crate::tensor::{DataType, Shape};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The facts that all records of a stream share. A sealed file holds records of one stream and has these facts in its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    pub model: ModelName,
    pub version: Version,
    /// Of `model.onnx`, lower-case hex.
    pub sha256: String,
    pub signature: Signature,
    /// Columns whose elements are replaced by their keyed hashes: `inputs.NAME`, `outputs.NAME`. And with the prefix [`MASK`] columns in whose
    /// texts patterns are overwritten.
    pub hashed: BTreeSet<String>,
    /// Columns that are left out: `inputs.NAME`, `outputs.NAME`.
    pub dropped: BTreeSet<String>,
}

/// What stands in [`About::hashed`] before a column with masks.
const MASK: &str = "mask:";

/// A tensor's column: a field of one of the two struct columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    /// Its index among the signature's tensors of its side.
    pub index: usize,
    pub spec: TensorSpec,
    pub hashed: bool,
    /// What is overwritten in its texts. Empty where a record is read.
    pub masks: Vec<Mask>,
}

impl About {
    #[must_use]
    pub(crate) fn specs(&self, side: Side) -> &[TensorSpec] {
        side.specs(&self.signature)
    }

    /// The columns of a side that are kept, in the signature's order.
    #[must_use]
    pub(super) fn columns(&self, side: Side) -> Vec<Column> {
        let specs = self.specs(side).iter().enumerate();
        let kept = specs.filter(|(_, spec)| !self.dropped.contains(&side.column(spec)));
        let column = |(index, spec): (usize, &TensorSpec)| {
            let hashed = self.hashed.contains(&side.column(spec));
            Column { index, spec: spec.clone(), hashed, masks: Vec::new() }
        };
        kept.map(column).collect()
    }

    /// Whether the lengths of some recorded tensors do not determine their shapes, for some requests.
    #[must_use]
    pub(super) fn may_need_shapes(&self) -> bool {
        let needs = |column: &Column| {
            let Some(dims) = column.spec.dims.as_deref() else { return true };
            let free = dims.iter().filter(|dim| matches!(dim, Dim::Free(_))).count();
            free > 1 + usize::from(self.signature.has_rows())
        };
        [Side::Inputs, Side::Outputs].into_iter().any(|side| self.columns(side).iter().any(needs))
    }

    /// The columns in whose texts patterns are overwritten.
    pub(crate) fn masked(&self) -> impl Iterator<Item = &str> {
        self.hashed.iter().filter_map(|column| column.strip_prefix(MASK))
    }

    /// Adds columns in whose texts patterns are overwritten.
    #[must_use]
    pub(crate) fn with_masked(mut self, columns: impl IntoIterator<Item = String>) -> About {
        self.hashed.extend(columns.into_iter().map(|column| format!("{MASK}{column}")));
        self
    }

    /// The key-value metadata of a prediction file, without their prefix `sluicegate.`.
    #[must_use]
    pub(crate) fn file_metadata(&self) -> [(&'static str, String); 7] {
        let hashed: Vec<&String> = self.hashed.iter().filter(|column| !column.starts_with(MASK)).collect();
        let masked: Vec<&str> = self.masked().collect();
        [
            ("model", self.model.to_string()),
            ("version", self.version.to_string()),
            ("sha256", self.sha256.clone()),
            ("signature", self.signature_json().to_string()),
            ("hashed", serde_json::json!(hashed).to_string()),
            ("dropped", serde_json::json!(self.dropped).to_string()),
            ("masked", serde_json::json!(masked).to_string()),
        ]
    }

    /// The signature as JSON, for a file's metadata.
    #[must_use]
    pub(crate) fn signature_json(&self) -> serde_json::Value {
        let side = |specs: &[TensorSpec]| specs.iter().map(SpecJson::of).collect();
        let json = SidesJson {
            inputs: side(self.signature.inputs()),
            optional_inputs: side(self.signature.optional_inputs()),
            outputs: side(self.signature.outputs()),
        };
        serde_json::to_value(json).expect("names and numbers are JSON")
    }

    /// Reads a signature from the JSON of a file's metadata.
    ///
    /// # Errors
    /// Words, when it is not a signature.
    pub(crate) fn signature_of(json: serde_json::Value) -> Result<Signature, String> {
        let sides: SidesJson = serde_json::from_value(json).map_err(|e| format!("the signature: {e}"))?;
        let side = |specs: Vec<SpecJson>| specs.into_iter().map(SpecJson::into_spec).collect::<Result<Vec<_>, _>>();
        let signature = Signature::new(side(sides.inputs)?, side(sides.outputs)?);
        Ok(signature.with_optional_inputs(side(sides.optional_inputs)?))
    }

    pub(super) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "model": self.model, "version": self.version, "sha256": self.sha256, "signature": self.signature_json(),
            "hashed": self.hashed, "dropped": self.dropped,
        })
    }

    pub(super) fn from_json(mut json: serde_json::Value) -> Result<About, String> {
        // Not `json["signature"]`, which panics when the value is not an object.
        let signature = json.get_mut("signature").map(serde_json::Value::take).unwrap_or_default();
        let signature = About::signature_of(signature)?;
        let rest: AboutJson = serde_json::from_value(json).map_err(|e| e.to_string())?;
        let AboutJson { model, version, sha256, hashed, dropped } = rest;
        Ok(About { model, version, sha256, signature, hashed, dropped })
    }

    /// The shape of a tensor with this number of elements. Where the signature has rows and another dimension is free too, it is the
    /// shape of one row. `None` where the length does not determine the shape.
    #[must_use]
    pub(crate) fn shape_of(&self, spec: &TensorSpec, elements: usize) -> Option<Shape> {
        let dims = spec.dims.as_deref()?;
        let mut extents = dims.iter().map(|d| if let Dim::Fixed(n) = d { *n } else { 1 });
        let fixed = extents.try_fold(1, usize::checked_mul)?;
        let mut free = dims.iter().filter(|d| matches!(d, Dim::Free(_))).count();
        // The tensor has one row where the first dimension is not the only free one.
        let one_row = self.signature.has_rows() && free > 1;
        free -= usize::from(one_row);
        let rest = match free {
            0 => (fixed == elements).then_some(1)?,
            1 => (fixed > 0 && elements.is_multiple_of(fixed)).then(|| elements / fixed)?,
            _ => return None,
        };
        let extent = |(i, dim): (usize, &Dim)| match dim {
            Dim::Fixed(n) => *n,
            Dim::Free(_) if one_row && i == 0 => 1,
            Dim::Free(_) => rest,
        };
        Some(dims.iter().enumerate().map(extent).collect())
    }
}

#[derive(Serialize, Deserialize)]
struct AboutJson {
    model: ModelName,
    version: Version,
    sha256: String,
    hashed: BTreeSet<String>,
    dropped: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
struct SidesJson {
    inputs: Vec<SpecJson>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    optional_inputs: Vec<SpecJson>,
    outputs: Vec<SpecJson>,
}

/// A tensor's name, type and dimensions. A dimension is a number, a symbol, or null for a free one without a symbol; `dims` is null
/// where the rank is free.
#[derive(Serialize, Deserialize)]
struct SpecJson {
    name: String,
    datatype: String,
    dims: Option<Vec<Option<DimJson>>>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum DimJson {
    Fixed(usize),
    Symbol(String),
}

impl SpecJson {
    fn of(spec: &TensorSpec) -> SpecJson {
        let dim = |dim: &Dim| match dim {
            Dim::Fixed(n) => Some(DimJson::Fixed(*n)),
            Dim::Free(symbol) => symbol.as_ref().map(|s| DimJson::Symbol(s.to_string())),
        };
        SpecJson {
            name: spec.name.to_string(),
            datatype: spec.datatype.as_str().to_owned(),
            dims: spec.dims.as_ref().map(|dims| dims.iter().map(dim).collect()),
        }
    }

    fn into_spec(self) -> Result<TensorSpec, String> {
        let datatype = DataType::parse(&self.datatype).ok_or_else(|| format!("{} is not a datatype", self.datatype))?;
        let dim = |dim| match dim {
            Some(DimJson::Fixed(n)) => Dim::Fixed(n),
            Some(DimJson::Symbol(symbol)) => Dim::Free(Some(symbol.into())),
            None => Dim::Free(None),
        };
        let dims = self.dims.map(|dims| dims.into_iter().map(dim).collect());
        Ok(TensorSpec { name: self.name.into(), datatype, dims })
    }
}
