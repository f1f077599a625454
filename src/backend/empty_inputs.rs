//! Which inputs without elements a version may be given.
//!
//! Some kernels of ONNX Runtime end the process on legal inputs that have an extent of 0. A trial in another process finds out which
//! extents a version takes (`prepare/trial`).

use crate::model::{Checked, Code, Dim, Failure, Signature};
use crate::tensor::Tensor;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The free axes of a signature that have the extent 0 in one request. Bit `n` stands for the `n`-th free axis of all inputs, in order.
/// An input whose rank is not declared has one bit: it has no elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct EmptyAxes(pub u128);

/// One free axis of a signature: the index of the input, and the axis. `None`: the input's rank is not declared.
pub type FreeAxis = (usize, Option<usize>);

/// The most free axes that [`EmptyAxes`] can tell apart.
pub const MAX_FREE_AXES: usize = 128;

/// The free axes of a signature's inputs, in order: bit `n` of [`EmptyAxes`] is element `n`.
#[must_use]
pub fn free_axes(signature: &Signature) -> Vec<FreeAxis> {
    let axes_of = |(input, spec): (usize, &crate::model::TensorSpec)| -> Vec<FreeAxis> {
        match spec.dims.as_deref() {
            None => vec![(input, None)],
            Some(dims) => {
                let is_free = |(_, dim): &(usize, &Dim)| matches!(dim, Dim::Free(_));
                dims.iter().enumerate().filter(is_free).map(|(axis, _)| (input, Some(axis))).collect()
            }
        }
    };
    signature.inputs().iter().enumerate().flat_map(axes_of).collect()
}

impl EmptyAxes {
    /// The empty axes of inputs that fit a signature with these free axes. `None` where there are more than [`MAX_FREE_AXES`].
    #[must_use]
    pub fn of(free: &[FreeAxis], inputs: &[Tensor]) -> Option<EmptyAxes> {
        if free.len() > MAX_FREE_AXES {
            return None;
        }
        let is_empty = |(input, axis): &FreeAxis| {
            let shape = inputs.get(*input).map(Tensor::shape);
            match axis {
                Some(axis) => shape.and_then(|shape| shape.get(*axis)) == Some(&0),
                None => shape.is_some_and(|shape| shape.contains(&0)),
            }
        };
        let bits = free.iter().enumerate().filter(|(_, axis)| is_empty(axis)).map(|(bit, _)| 1_u128 << bit);
        Some(EmptyAxes(bits.fold(0, |all, bit| all | bit)))
    }

    #[must_use]
    pub fn contains(self, other: EmptyAxes) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Which inputs without elements a version may be given.
#[derive(Debug, Clone)]
pub enum EmptyInputs {
    /// All: the engine does not end the process on any, or the process is not one that serves.
    Any,
    /// Those that a trial has shown to be safe.
    Tried(Arc<Tried>),
    /// None, as no trial was made. The reason, for the caller.
    Untried(Arc<str>),
}

/// The results of trial runs with empty inputs.
#[derive(Debug, Default)]
pub struct Tried {
    pub axes: Vec<FreeAxis>,
    /// The runs with these empty axes ended in order, with an answer or an error.
    pub safe: BTreeSet<EmptyAxes>,
    /// The runs with these empty axes ended the trial process.
    pub fatal: BTreeSet<EmptyAxes>,
}

impl EmptyInputs {
    /// Refuses a request with an empty input that was not shown to be safe.
    ///
    /// # Errors
    /// `INVALID_TENSOR`, which names the input, its shape and what is known.
    pub fn check(&self, signature: &Signature, request: &Checked) -> Result<(), Failure> {
        let mut given = signature.given(request);
        let Some((spec, empty)) = given.find(|(_, tensor)| tensor.data().is_empty()) else { return Ok(()) };
        let why = match self {
            EmptyInputs::Any => return Ok(()),
            EmptyInputs::Untried(why) => why.to_string(),
            EmptyInputs::Tried(_) if request.optional().iter().any(|(_, tensor)| tensor.data().is_empty()) => {
                "no trial run was made with empty optional inputs".to_owned()
            }
            EmptyInputs::Tried(tried) => match EmptyAxes::of(&tried.axes, request.inputs()) {
                Some(axes) if axes == EmptyAxes::default() || tried.safe.contains(&axes) => return Ok(()),
                Some(axes) if tried.fatal.iter().any(|fatal| axes.contains(*fatal)) => {
                    "a trial run with such an input ended the engine's process".to_owned()
                }
                _ => "no trial run showed that the engine can take it".to_owned(),
            },
        };
        let (name, shape) = (&*spec.name, empty.shape());
        Err(Failure::new(
            Code::InvalidTensor,
            format!(
                "input {name:?} has the shape {shape}, which has no elements: {why}; expected every dimension to be at least 1"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InferenceRequest, NamedTensor, TensorSpec};
    use crate::tensor::{Data, DataType, Shape};

    fn signature() -> Signature {
        let spec =
            |name: &str, dims: Option<Vec<Dim>>| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims };
        let free = || Dim::Free(None);
        Signature::new(vec![spec("a", Some(vec![free(), Dim::Fixed(4), free()])), spec("b", None)], vec![])
    }

    fn request(a: &[usize], b: &[usize]) -> Checked {
        let tensor = |name: &str, shape: &[usize]| NamedTensor {
            name: name.to_owned(),
            tensor: Tensor::new(Shape::new(shape), Data::zeros(DataType::Fp32, shape.iter().product())).unwrap(),
        };
        let inputs = vec![tensor("a", a), tensor("b", b)];
        signature().check(InferenceRequest { inputs, ..InferenceRequest::default() }).unwrap()
    }

    #[test]
    fn every_free_axis_has_a_bit_and_an_unknown_rank_has_one() {
        let axes = free_axes(&signature());
        assert_eq!(axes, [(0, Some(0)), (0, Some(2)), (1, None)]);
        let of = |a: &[usize], b: &[usize]| EmptyAxes::of(&axes, request(a, b).inputs()).unwrap().0;
        assert_eq!(of(&[1, 4, 1], &[2]), 0);
        assert_eq!(of(&[0, 4, 1], &[2]), 0b001);
        assert_eq!(of(&[0, 4, 0], &[3, 0]), 0b111);
    }

    #[test]
    fn only_what_was_shown_to_be_safe_passes() {
        let tried = Tried {
            axes: free_axes(&signature()),
            safe: BTreeSet::from([EmptyAxes(0b001)]),
            fatal: BTreeSet::from([EmptyAxes(0b010)]),
        };
        let known = EmptyInputs::Tried(Arc::new(tried));
        let check = |a: &[usize], b: &[usize]| known.check(&signature(), &request(a, b)).map_err(|f| f.to_string());
        assert!(check(&[1, 4, 1], &[2]).is_ok());
        assert!(check(&[0, 4, 1], &[2]).is_ok());
        let fatal = check(&[2, 4, 0], &[2]).unwrap_err();
        assert!(
            fatal.contains("\"a\"") && fatal.contains("[2,4,0]") && fatal.contains("ended the engine's process"),
            "{fatal}"
        );
        assert!(
            check(&[0, 4, 0], &[2]).unwrap_err().contains("ended the engine's process"),
            "a fatal axis and another one"
        );
        assert!(check(&[1, 4, 1], &[0]).unwrap_err().contains("no trial run"));
        let untried = EmptyInputs::Untried("the trial took too long".into());
        assert!(untried.check(&signature(), &request(&[0, 4, 1], &[1])).is_err());
        assert!(untried.check(&signature(), &request(&[1, 4, 1], &[1])).is_ok());
        assert!(EmptyInputs::Any.check(&signature(), &request(&[0, 4, 0], &[0])).is_ok());
    }
}
