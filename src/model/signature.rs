//! The inputs and outputs of a version, and the check of a request against them.

use super::request::Wanted;
use super::{Checked, Complaints, Failure, InferenceRequest, NamedTensor, quoted};
use crate::tensor::{DataType, Shape, Tensor};
use smallvec::{SmallVec, smallvec};
use std::fmt;
use std::sync::Arc;

/// One dimension, as the model declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    Fixed(usize),
    /// Any extent. Dimensions with the same symbol have the same extent within one request.
    Free(Option<Arc<str>>),
}

impl Dim {
    /// `-1` for free dimensions, as the protocols write them.
    #[must_use]
    pub fn as_i64(&self) -> i64 {
        match self {
            Dim::Fixed(n) => i64::try_from(*n).unwrap_or(i64::MAX),
            Dim::Free(_) => -1,
        }
    }
}

/// A named input or output: its type and dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: Arc<str>,
    pub datatype: DataType,
    /// `None` if the model does not declare the number of dimensions. Any shape fits then.
    pub dims: Option<Vec<Dim>>,
}

impl TensorSpec {
    /// The shape as the protocols write it: `[-1,30]`. Empty for a scalar, and if the rank is unknown.
    #[must_use]
    pub fn wire_shape(&self) -> Vec<i64> {
        self.dims.iter().flatten().map(Dim::as_i64).collect()
    }

    fn first_dim_is_free(&self) -> bool {
        matches!(self.dims.as_deref(), Some([Dim::Free(_), ..]))
    }

    fn first_symbol(&self) -> Option<&Arc<str>> {
        match self.dims.as_deref() {
            Some([Dim::Free(Some(symbol)), ..]) => Some(symbol),
            _ => None,
        }
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.name, self.datatype)?;
        match &self.dims {
            None => f.write_str("[...]"),
            Some(dims) => {
                f.write_str("[")?;
                for (i, d) in dims.iter().enumerate() {
                    if i > 0 {
                        f.write_str(",")?;
                    }
                    match d {
                        Dim::Fixed(n) => write!(f, "{n}")?,
                        Dim::Free(Some(s)) => f.write_str(s)?,
                        Dim::Free(None) => f.write_str("-1")?,
                    }
                }
                f.write_str("]")
            }
        }
    }
}

/// The inputs and outputs of one version, in the model's order. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature(Arc<Sides>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Sides {
    /// Those that a request must give, then the optional ones.
    inputs: Vec<TensorSpec>,
    /// The number of inputs that a request must give.
    required: usize,
    outputs: Vec<TensorSpec>,
    has_rows: bool,
}

impl Signature {
    #[must_use]
    pub fn new(inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>) -> Signature {
        let (has_rows, required) = (has_rows(&inputs, &outputs), inputs.len());
        Signature(Arc::new(Sides { inputs, required, outputs, has_rows }))
    }

    /// The same signature with these inputs that a request may leave out: the model has a value for each.
    #[must_use]
    pub fn with_optional_inputs(&self, optional: Vec<TensorSpec>) -> Signature {
        let mut sides = Sides::clone(&self.0);
        sides.inputs.truncate(sides.required);
        sides.inputs.extend(optional);
        Signature(Arc::new(sides))
    }

    /// The same inputs with other outputs.
    #[must_use]
    pub fn with_outputs(&self, outputs: Vec<TensorSpec>) -> Signature {
        Signature::new(self.inputs().to_vec(), outputs).with_optional_inputs(self.optional_inputs().to_vec())
    }

    /// The inputs that a request must give.
    #[must_use]
    pub fn inputs(&self) -> &[TensorSpec] {
        &self.0.inputs[..self.0.required]
    }

    /// The inputs that a request may give. Without them the model uses its own values. A request that gives one runs alone: the
    /// value counts for all of its rows.
    #[must_use]
    pub fn optional_inputs(&self) -> &[TensorSpec] {
        &self.0.inputs[self.0.required..]
    }

    /// [`Signature::inputs`], then [`Signature::optional_inputs`].
    #[must_use]
    pub fn all_inputs(&self) -> &[TensorSpec] {
        &self.0.inputs
    }

    #[must_use]
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.0.outputs
    }

    /// Whether requests are lists of examples: each input and output has at least one dimension, and the first is free and
    /// has the same symbol everywhere or none.
    #[must_use]
    pub fn has_rows(&self) -> bool {
        self.0.has_rows
    }

    /// The same signature without rows: an output's first dimension is another count, although it is declared alike.
    #[must_use]
    pub fn without_rows(&self) -> Signature {
        Signature(Arc::new(Sides { has_rows: false, ..Sides::clone(&self.0) }))
    }

    /// Checks a request against this signature.
    ///
    /// # Errors
    /// `INVALID_TENSOR` or `INVALID_REQUEST` with all complaints: inputs that are missing, unknown or given twice, datatypes
    /// and dimensions that do not fit (which, expected, got), outputs that do not exist.
    pub fn check(&self, request: InferenceRequest) -> Result<Checked, Failure> {
        let mut complaints = Complaints::default();
        // Most models have few inputs. Then this allocates nothing.
        let mut slots: SmallVec<[Option<Tensor>; 4]> = smallvec![None; self.0.inputs.len()];
        let mut symbols = Symbols::new();
        for given in request.inputs {
            if complaints.is_full() {
                break;
            }
            let Some(i) = self.0.inputs.iter().position(|spec| *spec.name == *given.name) else {
                let known = names(&self.0.inputs);
                complaints.tensor(format!("unknown input {}: this model takes {known}", quoted(&given.name)));
                continue;
            };
            let spec = &self.0.inputs[i];
            if slots[i].is_some() {
                complaints.tensor(format!("input {} is given more than once", quoted(&given.name)));
                continue;
            }
            if given.tensor.datatype() != spec.datatype {
                complaints.tensor(format!(
                    "input {}: expected datatype {}, got {}",
                    quoted(&given.name),
                    spec.datatype,
                    given.tensor.datatype()
                ));
            }
            check_dims(spec, given.tensor.shape(), &mut symbols, &mut complaints);
            slots[i] = Some(given.tensor);
        }
        for (spec, _) in self.inputs().iter().zip(&slots).filter(|(_, slot)| slot.is_none()) {
            complaints.tensor(format!("input {} is missing: expected {spec}", quoted(&spec.name)));
        }
        complaints.into_result(())?;
        let wanted = self.wanted(request.outputs)?;
        let mut slots = slots.into_iter();
        let mut inputs = Vec::with_capacity(self.0.required);
        inputs.extend(slots.by_ref().take(self.0.required).flatten());
        let optional = slots.enumerate().filter_map(|(i, slot)| Some((i, slot?))).collect();
        let rows = self.rows_of(&inputs);
        Ok(Checked { inputs, optional, wanted, rows })
    }

    /// Checks a request that was checked against `other` against this signature. If it fits unchanged (the same names in the
    /// same places), the result is the same request, not a copy.
    ///
    /// # Errors
    /// As [`Signature::check`].
    pub fn recheck(&self, other: &Signature, request: &Arc<Checked>) -> Result<Arc<Checked>, Failure> {
        if self == other || self.fits_in_place(other, request) {
            return Ok(Arc::clone(request));
        }
        let inputs = other.given(request);
        let inputs = inputs.map(|(spec, tensor)| NamedTensor { name: spec.name.to_string(), tensor: tensor.clone() });
        let outputs = request.wanted.iter().map(|i| other.0.outputs[*i].name.to_string()).collect();
        let again =
            InferenceRequest { id: None, parameters: Vec::new(), inputs: inputs.collect(), outputs: Some(outputs) };
        self.check(again).map(Arc::new)
    }

    /// The inputs of a request that was checked against this signature, each with its tensor.
    pub fn given<'r>(&'r self, request: &'r Checked) -> impl Iterator<Item = (&'r TensorSpec, &'r Tensor)> {
        let optional =
            request.optional.iter().filter_map(|(i, tensor)| Some((self.optional_inputs().get(*i)?, tensor)));
        self.inputs().iter().zip(&request.inputs).chain(optional)
    }

    fn fits_in_place(&self, other: &Signature, request: &Checked) -> bool {
        let names = |specs: &[TensorSpec]| specs.iter().map(|spec| Arc::clone(&spec.name)).collect::<Vec<_>>();
        let (mut symbols, mut complaints) = (Symbols::new(), Complaints::default());
        let mut inputs = self.given(request);
        self.0.has_rows == other.0.has_rows
            && self.0.required == other.0.required
            && names(&self.0.inputs) == names(&other.0.inputs)
            && names(&self.0.outputs) == names(&other.0.outputs)
            && inputs.all(|(spec, tensor)| {
                check_dims(spec, tensor.shape(), &mut symbols, &mut complaints);
                spec.datatype == tensor.datatype() && complaints.is_empty()
            })
    }

    /// The changes that would break callers of `self` if `other` answered them: inputs added or removed, optional inputs removed or
    /// made necessary, outputs removed, datatypes or fixed dimensions changed. Empty if each request that fits `self` also fits `other`.
    #[must_use]
    pub fn breaking_changes(&self, other: &Signature) -> Vec<String> {
        let mut changes = Vec::new();
        side_changes("input", self.inputs(), other.all_inputs(), &mut changes);
        side_changes("optional input", self.optional_inputs(), other.all_inputs(), &mut changes);
        for new in other.inputs() {
            if self.optional_inputs().iter().any(|old| old.name == new.name) {
                changes.push(format!("input {:?} is not optional any more", &*new.name));
            } else if !self.inputs().iter().any(|old| old.name == new.name) {
                changes.push(format!("input {:?} is new: {new}", &*new.name));
            }
        }
        side_changes("output", &self.0.outputs, &other.0.outputs, &mut changes);
        changes
    }

    /// The indices of the requested outputs.
    fn wanted(&self, requested: Option<Vec<String>>) -> Result<Wanted, Failure> {
        let Some(requested) = requested.filter(|names| !names.is_empty()) else {
            return Ok((0..self.0.outputs.len()).collect());
        };
        let mut wanted = Wanted::with_capacity(requested.len().min(self.0.outputs.len()));
        let mut complaints = Complaints::default();
        for name in requested {
            if complaints.is_full() {
                break;
            }
            match self.0.outputs.iter().position(|spec| *spec.name == *name) {
                Some(i) if wanted.contains(&i) => {
                    complaints.request(format!("output {} is requested more than once", quoted(&name)));
                }
                Some(i) => wanted.push(i),
                None => {
                    let known = names(&self.0.outputs);
                    complaints.request(format!("unknown output {}: this model gives {known}", quoted(&name)));
                }
            }
        }
        complaints.into_result(wanted)
    }

    fn rows_of(&self, inputs: &[Tensor]) -> Option<usize> {
        if !self.0.has_rows {
            return None;
        }
        let first = *inputs.first()?.shape().first()?;
        inputs.iter().all(|t| t.shape().first() == Some(&first)).then_some(first)
    }
}

fn has_rows(inputs: &[TensorSpec], outputs: &[TensorSpec]) -> bool {
    let mut symbol = None;
    let mut sides = inputs.iter().chain(outputs);
    !inputs.is_empty()
        && !outputs.is_empty()
        && sides.all(|spec| {
            spec.first_dim_is_free()
                && match (symbol, spec.first_symbol()) {
                    (Some(a), Some(b)) => a == b,
                    (None, found) => {
                        symbol = found;
                        true
                    }
                    (Some(_), None) => true,
                }
        })
}

/// The symbols of free dimensions found so far: the symbol, its extent, and the input where it was found first.
type Symbols<'s> = SmallVec<[(&'s str, usize, &'s str); 4]>;

fn check_dims<'s>(spec: &'s TensorSpec, shape: &Shape, symbols: &mut Symbols<'s>, complaints: &mut Complaints) {
    let Some(dims) = &spec.dims else { return };
    if dims.len() != shape.len() {
        complaints.tensor(format!(
            "input {:?}: expected {} dimensions ({spec}), got {} in shape {shape}",
            &*spec.name,
            dims.len(),
            shape.len()
        ));
        return;
    }
    for (axis, (dim, got)) in dims.iter().zip(shape.iter()).enumerate() {
        match dim {
            Dim::Fixed(expected) if expected != got => complaints.tensor(format!(
                "input {:?}: dimension {axis} is fixed at {expected}, got {got} in shape {shape}",
                &*spec.name
            )),
            Dim::Free(Some(symbol)) => match symbols.iter().find(|(known, _, _)| known == &&**symbol) {
                Some((_, extent, first)) if extent != got => complaints.tensor(format!(
                    "input {:?}: dimension {axis} ({symbol}) is {got} in shape {shape}, but {symbol} is {extent} in input {first:?}",
                    &*spec.name
                )),
                Some(_) => {}
                None => symbols.push((symbol, *got, &spec.name)),
            },
            Dim::Fixed(_) | Dim::Free(None) => {}
        }
    }
}

fn side_changes(side: &str, old: &[TensorSpec], new: &[TensorSpec], changes: &mut Vec<String>) {
    for was in old {
        let Some(is) = new.iter().find(|spec| spec.name == was.name) else {
            changes.push(format!("{side} {:?} is removed", &*was.name));
            continue;
        };
        let dims_fit = match (&was.dims, &is.dims) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(was), Some(is)) => {
                was.len() == is.len()
                    && was.iter().zip(is).all(|(was, is)| match (was, is) {
                        (Dim::Fixed(a), Dim::Fixed(b)) => a == b,
                        // An input that accepted any extent and now accepts only one breaks callers. An output that was
                        // free and is now fixed does not.
                        (Dim::Free(_), Dim::Fixed(_)) => side == "output",
                        (Dim::Fixed(_), Dim::Free(_)) => side != "output",
                        (Dim::Free(_), Dim::Free(_)) => true,
                    })
            }
        };
        if was.datatype != is.datatype || !dims_fit {
            changes.push(format!("{side} {:?} changes from {was} to {is}", &*was.name));
        }
    }
}

/// The names of inputs or outputs, for a message.
pub(crate) fn names(specs: &[TensorSpec]) -> String {
    const SHOWN: usize = 20;
    let mut list: Vec<String> = specs.iter().take(SHOWN).map(|spec| quoted(&spec.name)).collect();
    if specs.len() > SHOWN {
        list.push(format!("and {} more", specs.len() - SHOWN));
    }
    if list.is_empty() { "none".to_owned() } else { list.join(", ") }
}
