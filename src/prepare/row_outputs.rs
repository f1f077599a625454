//! Corrects what a file declares about rows, by trial runs: outputs with a fixed first dimension that answer one element per row, and outputs
//! with a free first dimension that is not the number of rows.
//!
//! Exporters write such files: `onnxmltools` declares the label of a `LightGBM` classifier as `[1]`, and it has as many elements as the request
//! has rows. Believed as it stands, such a version would have no rows: no batching, one record per request, and feedback for single rows
//! would find no prediction.
//!
//! The other way round, a detection model answers as many boxes as it finds. Where their number happens to be that of the images, a record per
//! row would join each image with a box.

use super::inputs;
use crate::backend::RowAnalysis;
use crate::execute::Runner;
use crate::model::{Dim, Signature, TensorSpec};

/// Rows of the two trial requests. No usual model declares both.
const TRIAL_ROWS: [usize; 2] = [3, 5];

/// A signature that trial runs have corrected.
struct Corrected {
    signature: Signature,
    /// What was corrected, for operators.
    note: String,
}

/// The runner with its signature corrected by trial runs, and a note that says what was corrected.
pub(super) fn corrected(runner: Runner) -> (Runner, Option<String>) {
    match correct(&runner).or_else(|| find_other_counts(&runner)) {
        Some(Corrected { signature, note }) => (runner.with_signature(signature), Some(note)),
        None => (runner, None),
    }
}

/// Compares the declared first dimensions of outputs with trial runs. `None` where the declaration holds, where it could not be tried, and
/// where an output does not have one element per row.
fn correct(runner: &Runner) -> Option<Corrected> {
    let declared = runner.signature();
    let is_fixed = |spec: &&TensorSpec| matches!(spec.dims.as_deref(), Some([Dim::Fixed(_), ..]));
    if declared.has_rows() || !declared.outputs().iter().any(|spec| is_fixed(&spec)) {
        return None;
    }
    let freed = |spec: &TensorSpec| {
        let mut spec = spec.clone();
        if let Some([first @ Dim::Fixed(_), ..]) = spec.dims.as_deref_mut() {
            *first = Dim::Free(None);
        }
        spec
    };
    let outputs = declared.outputs().iter().map(freed).collect();
    let signature = declared.with_outputs(outputs);
    let fits = |rows: usize| {
        let request = inputs::generate(&signature, rows, inputs::ones).ok()?;
        let answer = runner.run_unmeasured(&signature.check(request).ok()?).ok()?.answer;
        answer.outputs.iter().all(|(_, tensor)| tensor.shape().first() == Some(&rows)).then_some(())
    };
    if !signature.has_rows() || !TRIAL_ROWS.iter().all(|rows| fits(*rows).is_some()) {
        return None;
    }
    let corrected: Vec<String> = declared
        .outputs()
        .iter()
        .filter(is_fixed)
        .map(|spec| format!("{:?} as {:?}", &*spec.name, spec.wire_shape()))
        .collect();
    let note = format!(
        "the file declares {}, and trial runs gave one element per row: the first dimension is taken as free",
        corrected.join(", ")
    );
    Some(Corrected { signature, note })
}

/// Finds outputs whose first dimension is free and is not the number of rows. `None` where there are none, or where the graph shows the rows.
fn find_other_counts(runner: &Runner) -> Option<Corrected> {
    let declared = runner.signature();
    if !declared.has_rows() || runner.graph().rows == RowAnalysis::Independent {
        return None;
    }
    let other_count = |rows: usize| {
        let request = inputs::generate(declared, rows, inputs::varied).ok()?;
        let answer = runner.run_unmeasured(&declared.check(request).ok()?).ok()?.answer;
        let (name, tensor) = answer.outputs.iter().find(|(_, tensor)| tensor.shape().first() != Some(&rows))?;
        Some(format!("output {name:?} has the shape {} for a request of {rows} rows", tensor.shape()))
    };
    let found = TRIAL_ROWS.iter().find_map(|rows| other_count(*rows))?;
    let note = format!("{found}: its first dimension is taken as another count, so that requests have no rows");
    Some(Corrected { signature: declared.without_rows(), note })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::fake::Fake;
    use crate::tensor::{Data, DataType, Shape, Tensor};
    use std::sync::Arc;

    fn spec(name: &str, dims: &[Option<usize>]) -> TensorSpec {
        let dims = dims.iter().map(|d| d.map_or(Dim::Free(None), Dim::Fixed)).collect();
        TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: Some(dims) }
    }

    /// A version that declares `[declared]` and answers with as many elements as `answered` gives for the rows of a request.
    fn runner(declared: usize, answered: fn(usize) -> usize) -> Runner {
        let signature = Signature::new(vec![spec("x", &[None, Some(2)])], vec![spec("label", &[Some(declared)])]);
        let compute = move |request: &crate::model::Checked| {
            let n = answered(request.inputs()[0].shape()[0]);
            vec![Tensor::new(Shape::new(&[n]), Data::zeros(DataType::Fp32, n)).unwrap()]
        };
        Runner::new(Arc::new(Fake::new(signature, compute)))
    }

    #[test]
    fn a_declared_number_gives_way_to_one_element_per_row() {
        for declared in [1, 3, 800] {
            let corrected = correct(&runner(declared, |rows| rows)).expect("one element per row");
            assert!(corrected.signature.has_rows());
            assert_eq!(corrected.signature.outputs()[0].wire_shape(), [-1]);
            assert!(corrected.note.contains(&format!("\"label\" as [{declared}]")), "{}", corrected.note);
        }
    }

    #[test]
    fn a_free_first_dimension_that_is_another_count_takes_the_rows_away() {
        let of = |answered: fn(usize) -> usize| {
            let signature = Signature::new(vec![spec("x", &[None, Some(2)])], vec![spec("boxes", &[None])]);
            let compute = move |request: &crate::model::Checked| {
                let n = answered(request.inputs()[0].shape()[0]);
                vec![Tensor::new(Shape::new(&[n]), Data::zeros(DataType::Fp32, n)).unwrap()]
            };
            corrected(Runner::new(Arc::new(Fake::new(signature, compute))))
        };
        let (runner, note) = of(|_| 3);
        assert!(!runner.signature().has_rows());
        assert!(note.unwrap().contains("\"boxes\" has the shape [3] for a request of 5 rows"));
        let (runner, note) = of(|rows| rows);
        assert!(runner.signature().has_rows() && note.is_none());
    }

    #[test]
    fn a_declared_number_that_holds_stays() {
        assert!(correct(&runner(1, |_| 1)).is_none());
        assert!(correct(&runner(3, |_| 3)).is_none(), "also where one trial has as many rows");
        assert!(correct(&runner(4, |rows| rows + 1)).is_none());
    }
}
