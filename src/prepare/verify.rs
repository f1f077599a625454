//! Checks a version before it may serve: its bytes, its signature and its golden answers.

use super::failure::StageFailure;
use super::files;
use super::version_toml::VersionToml;
use crate::codec::golden::{Golden, GoldenCase};
use crate::compare::{Outcome, Tolerance, compare};
use crate::execute::Runner;
use crate::model::{Failure, Signature, TensorSpec};
use crate::registry::Stage;
use crate::tensor::Tensor;
use std::collections::BTreeSet;
use std::path::Path;

/// Limit for the cases of a `golden.json`. Each is one run of the model.
pub(super) const MAX_CASES: usize = 100_000;

/// What a version did with its golden answers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GoldenResult {
    /// The cases of `golden.json`. 0 without one.
    pub cases: usize,
    /// The least share of the elements of an output that must agree.
    pub min_agree: f64,
    /// The outputs that were compared.
    pub outputs: Vec<GoldenOutput>,
}

/// One output over all cases.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenOutput {
    pub name: String,
    pub elements: u64,
    pub agreed: u64,
    /// The first case with an element that does not agree, and how it differs.
    pub first_difference: Option<String>,
}

impl GoldenOutput {
    /// The share of the elements that agree. 1 without elements.
    #[must_use]
    pub fn share(&self) -> f64 {
        if self.elements == 0 { 1.0 } else { self.agreed as f64 / self.elements as f64 }
    }
}

impl GoldenResult {
    /// The smallest share of an output. `None` without golden answers.
    #[must_use]
    pub fn agreement(&self) -> Option<f64> {
        self.outputs.iter().map(GoldenOutput::share).min_by(f64::total_cmp)
    }

    /// A sentence, where not all elements agree although enough do.
    #[must_use]
    pub fn remark(&self) -> Option<String> {
        let worst = self.outputs.iter().min_by(|a, b| a.share().total_cmp(&b.share()))?;
        (worst.agreed < worst.elements).then(|| {
            format!(
                "golden.json: {} of the {} elements of output {:?} agree ({:.6}; min_agree is {})",
                worst.agreed,
                worst.elements,
                worst.name,
                worst.share(),
                self.min_agree
            )
        })
    }

    fn output(&mut self, name: &str) -> &mut GoldenOutput {
        let index = self.outputs.iter().position(|output| output.name == name).unwrap_or_else(|| {
            let output = GoldenOutput { name: name.to_owned(), elements: 0, agreed: 0, first_difference: None };
            self.outputs.push(output);
            self.outputs.len() - 1
        });
        &mut self.outputs[index]
    }

    /// Why too few elements of an output agree.
    fn too_few(&self) -> Option<String> {
        let output = self.outputs.iter().find(|output| output.share() < self.min_agree)?;
        let first = output.first_difference.as_deref().unwrap_or_default();
        Some(format!(
            "golden.json: {} of the {} elements of output {:?} agree ({:.6}), expected a share of at least {}; the first that differs: {first}",
            output.agreed,
            output.elements,
            output.name,
            output.share(),
            self.min_agree
        ))
    }
}

/// Checks the digest, the signature and every golden answer.
///
/// # Errors
/// The first mismatch.
pub(super) fn verify(
    dir: &Path,
    version_toml: &VersionToml,
    sha256: &str,
    runner: &Runner,
) -> Result<GoldenResult, StageFailure> {
    let failed = |reason: String| StageFailure::permanent(Stage::Verify, reason);
    if let Some(expected) = version_toml.sha256.as_deref().filter(|expected| *expected != sha256) {
        return Err(failed(format!("the sha256 of model.onnx is {sha256}, but version.toml gives {expected}")));
    }
    check_names(runner.signature()).map_err(failed)?;
    let Some(bytes) = files::read_beside(dir, "golden.json", files::MAX_REQUESTS_BYTES, Stage::Verify)? else {
        return Ok(GoldenResult::default());
    };
    let golden = Golden::parse(&bytes).map_err(|f| failed(format!("golden.json: {}", f.operator_text())))?;
    check_golden(&golden, runner).map_err(failed)
}

/// Runs every request of golden answers and compares the outputs.
///
/// # Errors
/// A request that fails, an output with another type or shape, and more elements that differ than `min_agree` allows: all at once where it is 1, else
/// after the last case.
pub(super) fn check_golden(golden: &Golden, runner: &Runner) -> Result<GoldenResult, String> {
    let Golden { rtol, atol, min_agree, cases } = golden;
    if cases.len() > MAX_CASES {
        return Err(format!("golden.json: it has {} cases, the limit is {MAX_CASES}", cases.len()));
    }
    let mut result = GoldenResult { cases: cases.len(), min_agree: *min_agree, outputs: Vec::new() };
    for (number, GoldenCase { mut request, outputs }) in cases.iter().cloned().enumerate() {
        let in_case = |f: Failure| format!("golden.json: case {number}: {}", f.operator_text());
        // Outputs that the case does not name are not compared, so they need not be computed.
        request.outputs = Some(outputs.iter().map(|output| output.name.clone()).collect());
        let checked = runner.signature().check(request).map_err(in_case)?;
        let answer = runner.run(&checked).map_err(in_case)?.answer;
        let expected: Vec<(String, Tensor)> = outputs.into_iter().map(|o| (o.name, o.tensor)).collect();
        let comparison = compare(&expected, &answer.outputs, Tolerance { rtol: *rtol, atol: *atol });
        let same_shapes = comparison.outputs.iter().all(|output| matches!(output.outcome, Outcome::Elements(_)));
        if !comparison.agrees() && (*min_agree >= 1.0 || !same_shapes) {
            return Err(format!("golden.json: case {number}: {comparison}"));
        }
        let first_difference = (!comparison.agrees()).then(|| format!("case {number}: {comparison}"));
        for output in &comparison.outputs {
            let Outcome::Elements(elements) = &output.outcome else { continue };
            let sum = result.output(&output.name);
            sum.elements += elements.count as u64;
            sum.agreed += (elements.count - elements.outside) as u64;
            if elements.outside > 0 && sum.first_difference.is_none() {
                sum.first_difference.clone_from(&first_difference);
            }
        }
    }
    result.too_few().map_or(Ok(result), Err)
}

/// Checks that the model has an output, and that the names of its tensors are unique.
fn check_names(signature: &Signature) -> Result<(), String> {
    if signature.outputs().is_empty() {
        return Err("the model has no output".to_owned());
    }
    for (side, specs) in [("input", signature.all_inputs()), ("output", signature.outputs())] {
        let mut names = BTreeSet::new();
        let name = |spec: &TensorSpec| spec.name.to_string();
        if let Some(name) = specs.iter().map(name).find(|name| name.is_empty() || !names.insert(name.clone())) {
            return Err(format!("the model has an {side} with an empty or repeated name: {name:?}"));
        }
    }
    Ok(())
}
