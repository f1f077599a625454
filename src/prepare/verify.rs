//! Holding a version against what its maker said of it, before it may serve.

use super::bring_up::Trouble;
use crate::codec::golden::{Golden, GoldenCase};
use crate::compare::{Tolerance, compare};
use crate::execute::Runner;
use crate::model::{Failure, Signature, TensorSpec};
use crate::registry::Stage;
use crate::settings::Table;
use crate::tensor::Tensor;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

/// What `version.toml` says.
#[derive(Debug, Default)]
pub struct About {
    /// Lower-case hex of `model.onnx`, where the file gives one.
    pub sha256: Option<String>,
    /// The whole file as JSON; `null` where there is none.
    pub metadata: serde_json::Value,
    /// Why the file says nothing: it describes a version rather than decides about it, so one that is no TOML is a remark.
    pub remark: Option<String>,
}

/// Reads `version.toml`: its keys are free, but for `sha256`.
///
/// # Errors
/// When it is there and cannot be read, or `sha256` is not one: a check that somebody asked for and that cannot be made.
pub fn about(dir: &Path) -> Result<About, Trouble> {
    let Some(bytes) = read(dir, "version.toml")? else { return Ok(About::default()) };
    let unreadable = |why: String| Ok(About { remark: Some(format!("version.toml: {why}")), ..About::default() });
    let Ok(text) = String::from_utf8(bytes) else { return unreadable("not UTF-8".to_owned()) };
    if let Err(error) = text.parse::<toml::Table>() {
        return unreadable(error.to_string());
    }
    let mut table = Table::parse("version.toml", &text);
    let sha256 = table.custom("sha256", "64 hexadecimal digits", |value| {
        let text = value.as_str()?;
        (text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| text.to_ascii_lowercase())
    });
    table.rest();
    table.finish().map_err(|complaints| Trouble::final_(Stage::Verify, complaints.to_string()))?;
    match serde_json::to_value(Table::parse("version.toml", &text).rest()) {
        Ok(metadata) => Ok(About { sha256, metadata, remark: None }),
        Err(error) => unreadable(error.to_string()),
    }
}

/// Checks the bytes, the signature and every golden answer; answers how many golden cases there were.
///
/// # Errors
/// The first thing that is not as it was said to be.
pub fn verify(dir: &Path, about: &About, sha256: &str, runner: &Runner) -> Result<usize, Trouble> {
    if let Some(expected) = about.sha256.as_deref().filter(|expected| *expected != sha256) {
        let reason = format!("the sha256 of model.onnx is {sha256}, where version.toml says {expected}");
        return Err(Trouble::final_(Stage::Verify, reason));
    }
    sane(runner.signature()).map_err(|reason| Trouble::final_(Stage::Verify, reason))?;
    let Some(bytes) = read(dir, "golden.json")? else { return Ok(0) };
    golden(&bytes, runner).map_err(|reason| Trouble::final_(Stage::Verify, reason))
}

/// Asks what `golden.json` asks, and holds each answer against the one it gives; answers how many cases there were.
fn golden(bytes: &[u8], runner: &Runner) -> Result<usize, String> {
    let Golden { rtol, atol, cases } =
        Golden::parse(bytes).map_err(|f| format!("golden.json: {}", f.operator_text()))?;
    for (number, GoldenCase { mut request, outputs }) in cases.iter().cloned().enumerate() {
        let in_case = |f: Failure| format!("golden.json: case {number}: {}", f.operator_text());
        // Outputs the case does not name are not compared, so they need not be computed.
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

/// Whether callers can speak to it at all: outputs, and names that tell its tensors apart.
fn sane(signature: &Signature) -> Result<(), String> {
    if signature.outputs().is_empty() {
        return Err("the model has no output".to_owned());
    }
    for (side, specs) in [("input", signature.inputs()), ("output", signature.outputs())] {
        let mut names = BTreeSet::new();
        let name = |spec: &TensorSpec| spec.name.to_string();
        if let Some(twice) = specs.iter().map(name).find(|name| name.is_empty() || !names.insert(name.clone())) {
            return Err(format!("the model has an {side} without a name of its own: {twice:?}"));
        }
    }
    Ok(())
}

/// Reads a file beside the model; `None` where there is none.
///
/// # Errors
/// When it is there and cannot be read.
pub fn read(dir: &Path, name: &str) -> Result<Option<Vec<u8>>, Trouble> {
    match std::fs::read(dir.join(name)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Trouble::io(Stage::Verify, &format!("read {name}"), &e)),
    }
}
