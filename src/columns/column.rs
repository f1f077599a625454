//! The columns of a signature.

use crate::model::{Dim, Signature, TensorSpec};
use crate::tensor::DataType;
use std::collections::BTreeMap;

/// One of the two sides of a row, and the struct columns of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    Inputs,
    Outputs,
}

/// The kind of values that a column has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Integer,
    Float,
    Bool,
    Text,
}

/// One scalar column of a model's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub side: Side,
    /// The index of its tensor: among [`Signature::all_inputs`] or [`Signature::outputs`].
    pub tensor: usize,
    /// The index of its element in the tensor of one row, row-major.
    pub element: usize,
    pub kind: Kind,
    pub datatype: DataType,
    /// Whether each row has its own value. An optional input has one value for all rows of a request.
    pub per_row: bool,
    /// The full name: `inputs.NAME` or `inputs.NAME[i]`.
    pub name: String,
    /// The name that `model.toml` gives to the element.
    pub element_name: Option<String>,
}

/// The names of elements of tensors, from `model.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ElementNames {
    /// `[features]`: a list of names for each tensor. An output may be named too, and where both sides have the tensor, both get the names.
    pub by_tensor: BTreeMap<String, Vec<String>>,
    /// `feature_names`: for a model with one input that a request must give.
    pub of_only_input: Vec<String>,
}

// === impl Side ===

impl Side {
    pub const ALL: [Side; 2] = [Side::Inputs, Side::Outputs];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Side::Inputs => "inputs",
            Side::Outputs => "outputs",
        }
    }

    /// The name of a tensor's column: `inputs.NAME`, `outputs.NAME`.
    #[must_use]
    pub fn column(self, spec: &TensorSpec) -> String {
        format!("{}.{}", self.as_str(), spec.name)
    }

    /// The tensors of this side, optional inputs included.
    #[must_use]
    pub fn specs(self, signature: &Signature) -> &[TensorSpec] {
        match self {
            Side::Inputs => signature.all_inputs(),
            Side::Outputs => signature.outputs(),
        }
    }
}

// === impl ElementNames ===

impl ElementNames {
    /// Limits for the names of one model.
    pub const MAX_TENSORS: usize = 1000;
    pub const MAX_NAMES: usize = 10_000;
    pub const MAX_BYTES: usize = 200;

    /// The names of a tensor's elements; empty where there are none.
    #[must_use]
    pub fn of(&self, signature: &Signature, side: Side, spec: &TensorSpec) -> &[String] {
        if let Some(names) = self.by_tensor.get(&*spec.name) {
            return names;
        }
        match (side, signature.inputs()) {
            (Side::Inputs, [only]) if only.name == spec.name => &self.of_only_input,
            _ => &[],
        }
    }

    /// What does not fit a signature, in words: tensors that do not exist, and lists of another length than the tensor.
    #[must_use]
    pub fn complaints(&self, signature: &Signature) -> Vec<String> {
        let mut complaints = Vec::new();
        for name in self.by_tensor.keys() {
            let known = Side::ALL.iter().any(|side| side.specs(signature).iter().any(|spec| *spec.name == **name));
            if !known {
                complaints.push(format!("[features] names the elements of {name:?}, which this version does not have"));
            }
        }
        if !self.of_only_input.is_empty() && signature.inputs().len() != 1 {
            let inputs = signature.inputs().len();
            complaints
                .push(format!("feature_names is for a model with one input, and this has {inputs}: use [features]"));
        }
        for side in Side::ALL {
            for (index, spec) in side.specs(signature).iter().enumerate() {
                let names = self.of(signature, side, spec).len();
                let elements = elements_per_row(signature, side, index);
                if let Some(elements) = elements.filter(|elements| names > 0 && *elements != names) {
                    let column = side.column(spec);
                    complaints
                        .push(format!("{names} names for the elements of {column}, which has {elements} per row"));
                }
            }
        }
        complaints
    }
}

// === impl Column ===

impl Column {
    /// The column of an element. `alone`: the tensor has one element per row.
    pub(super) fn of(
        signature: &Signature,
        names: &ElementNames,
        (side, tensor): (Side, usize),
        element: usize,
        alone: bool,
    ) -> Column {
        let spec = &side.specs(signature)[tensor];
        let whole = side.column(spec);
        Column {
            side,
            tensor,
            element,
            kind: Kind::of(spec.datatype),
            datatype: spec.datatype,
            per_row: has_rows(signature, side, tensor),
            name: if alone { whole } else { format!("{whole}[{element}]") },
            element_name: names.of(signature, side, spec).get(element).cloned(),
        }
    }

    /// The name of its tensor's column, as `[prediction_log]` spells it: `inputs.NAME`.
    #[must_use]
    pub fn tensor_column(&self, signature: &Signature) -> String {
        self.side.specs(signature).get(self.tensor).map_or_else(String::new, |spec| self.side.column(spec))
    }

    /// The name for people: that of the element, else the full name.
    #[must_use]
    pub fn shown(&self) -> &str {
        self.element_name.as_deref().unwrap_or(&self.name)
    }
}

impl Kind {
    fn of(datatype: DataType) -> Kind {
        match datatype {
            DataType::Bool => Kind::Bool,
            DataType::Bytes => Kind::Text,
            datatype if datatype.is_float() => Kind::Float,
            _ => Kind::Integer,
        }
    }
}

fn has_rows(signature: &Signature, side: Side, tensor: usize) -> bool {
    let is_optional = side == Side::Inputs && tensor >= signature.inputs().len();
    signature.has_rows() && !is_optional
}

/// The number of elements of a tensor in one row (in one request, where requests have no rows). `None` where the signature leaves it open.
#[must_use]
pub(super) fn elements_per_row(signature: &Signature, side: Side, tensor: usize) -> Option<usize> {
    let dims = side.specs(signature).get(tensor)?.dims.as_deref()?;
    let of_row = if has_rows(signature, side, tensor) { dims.get(1..)? } else { dims };
    of_row.iter().try_fold(1usize, |product, dim| match dim {
        Dim::Fixed(n) => product.checked_mul(*n),
        Dim::Free(_) => None,
    })
}

/// The columns of a signature in its order, inputs first: at most `most` of them, and how many there are in all. A tensor whose number of
/// elements per row is open has as many columns as `names` has names for it.
#[must_use]
pub fn all(signature: &Signature, names: &ElementNames, most: usize) -> (Vec<Column>, usize) {
    let (mut columns, mut total) = (Vec::new(), 0usize);
    for side in Side::ALL {
        for (tensor, spec) in side.specs(signature).iter().enumerate() {
            let fixed = elements_per_row(signature, side, tensor);
            let elements = fixed.unwrap_or_else(|| names.of(signature, side, spec).len());
            let taken = elements.min(most.saturating_sub(columns.len()));
            let alone = fixed == Some(1);
            columns.extend((0..taken).map(|e| Column::of(signature, names, (side, tensor), e, alone)));
            total = total.saturating_add(elements);
        }
    }
    (columns, total)
}
