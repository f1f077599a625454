//! Whether a version answers the same request in the same way.
//!
//! Operators that draw random numbers and nodes in training mode do not. Shadows, golden answers, replay and reproduction compare answers, so
//! operators should know.

use super::inputs;
use crate::compare::{Tolerance, compare_answers};
use crate::execute::Runner;
use crate::model::Answer;

/// How often the request is run.
const RUNS: usize = 3;
/// Equal, bit for bit; two NaN are equal.
const EXACT: Tolerance = Tolerance { rtol: 0.0, atol: 0.0 };

/// A remark, where the same request has different answers.
pub(super) fn remark(runner: &Runner) -> Option<String> {
    if let Some(operator) = &runner.graph().random {
        return Some(format!("operator {operator} draws random numbers: the same request may have different answers"));
    }
    let request = inputs::generate(runner.signature(), 1, inputs::varied).ok()?;
    let request = runner.signature().check(request).ok()?;
    let run = |_| runner.run_unmeasured(&request).ok().map(|output| output.answer);
    let answers: Vec<Answer> = (0..RUNS).map_while(run).collect();
    let (first, others) = answers.split_first()?;
    let differs = others.iter().any(|other| !compare_answers(first, other, EXACT).agrees());
    differs.then(|| "the same request had different answers in trial runs: a node may be in training mode".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::fake::Fake;
    use crate::model::{Dim, Signature, TensorSpec};
    use crate::tensor::{Data, DataType, Shape, Tensor};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU16, Ordering};

    #[test]
    fn answers_that_change_are_remarked_upon() {
        let spec =
            |name: &str| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: Some(vec![Dim::Fixed(1)]) };
        let runner = |step: u16| {
            let count = AtomicU16::new(0);
            let compute = move |_: &crate::model::Checked| {
                let value = f32::from(count.fetch_add(step, Ordering::Relaxed));
                vec![Tensor::new(Shape::new(&[1]), Data::Fp32(vec![value].into())).unwrap()]
            };
            Runner::new(Arc::new(Fake::new(Signature::new(vec![spec("x")], vec![spec("y")]), compute)))
        };
        assert!(remark(&runner(1)).unwrap().contains("different answers"));
        assert_eq!(remark(&runner(0)), None);
    }
}
