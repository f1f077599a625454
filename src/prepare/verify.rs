//! Checks a version before it may serve: its bytes, its signature and its golden answers.

use super::failure::StageFailure;
use super::files;
use super::version_toml::VersionToml;
use crate::codec::golden::{Golden, GoldenCase};
use crate::compare::{Tolerance, compare};
use crate::execute::Runner;
use crate::model::{Failure, Signature, TensorSpec};
use crate::registry::Stage;
use crate::tensor::Tensor;
use std::collections::BTreeSet;
use std::path::Path;

/// Limit for the cases of a `golden.json`. Each is one run of the model.
const MAX_CASES: usize = 100_000;

/// Checks the digest, the signature and every golden answer. Returns the number of golden cases.
///
/// # Errors
/// The first mismatch.
pub(super) fn verify(
    dir: &Path,
    version_toml: &VersionToml,
    sha256: &str,
    runner: &Runner,
) -> Result<usize, StageFailure> {
    let failed = |reason: String| StageFailure::permanent(Stage::Verify, reason);
    if let Some(expected) = version_toml.sha256.as_deref().filter(|expected| *expected != sha256) {
        return Err(failed(format!("the sha256 of model.onnx is {sha256}, but version.toml gives {expected}")));
    }
    check_names(runner.signature()).map_err(failed)?;
    let Some(bytes) = files::read_beside(dir, "golden.json", files::MAX_REQUESTS_BYTES, Stage::Verify)? else {
        return Ok(0);
    };
    check_golden(&bytes, runner).map_err(failed)
}

/// Runs every request of `golden.json` and compares the outputs. Returns the number of cases.
fn check_golden(bytes: &[u8], runner: &Runner) -> Result<usize, String> {
    let Golden { rtol, atol, cases } =
        Golden::parse(bytes).map_err(|f| format!("golden.json: {}", f.operator_text()))?;
    if cases.len() > MAX_CASES {
        return Err(format!("golden.json: it has {} cases, the limit is {MAX_CASES}", cases.len()));
    }
    for (number, GoldenCase { mut request, outputs }) in cases.iter().cloned().enumerate() {
        let in_case = |f: Failure| format!("golden.json: case {number}: {}", f.operator_text());
        // Outputs that the case does not name are not compared, so they need not be computed.
        request.outputs = Some(outputs.iter().map(|output| output.name.clone()).collect());
        let checked = runner.signature().check(request).map_err(in_case)?;
        let answer = runner.run(&checked).map_err(in_case)?.answer;
        let expected: Vec<(String, Tensor)> = outputs.into_iter().map(|o| (o.name, o.tensor)).collect();
        let comparison = compare(&expected, &answer.outputs, Tolerance { rtol, atol });
        if !comparison.agrees() {
            return Err(format!("golden.json: case {number}: {comparison}"));
        }
    }
    Ok(cases.len())
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
