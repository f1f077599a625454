//! Makes a `golden.json` from arrays of inputs and of the outputs that are expected for them.

use super::Loader;
use super::files::MAX_REQUESTS_BYTES;
use super::offline::{OfflineVersion, load_offline};
use super::verify::{GoldenResult, MAX_CASES, check_golden};
use crate::arrays::{self, Wanted};
use crate::codec::golden::{Golden, GoldenCase, write_golden};
use crate::columns::Side;
use crate::model::{InferenceRequest, NamedTensor, Signature};
use std::path::Path;

/// The rows of one case. One run of so many rows costs little more than one of a single row, and a case that fails is still easy to find.
const ROWS_OF_A_CASE: usize = 100;

/// What a `golden.json` is made of.
#[derive(Debug, Clone, Copy)]
pub struct GoldenSource<'a> {
    /// The directory of the version.
    pub version: &'a Path,
    /// The file with the inputs, and that with the expected outputs: `.npz`, `.npy`, `.parquet` or `.csv`.
    pub inputs: &'a Path,
    pub expected: &'a Path,
    pub rtol: f64,
    pub atol: f64,
    pub min_agree: f64,
}

/// A `golden.json` that is not written yet.
#[derive(Debug, Clone)]
pub struct MadeGolden {
    pub text: Vec<u8>,
    pub cases: usize,
    /// The rows of all cases. `None` where the model has no rows.
    pub rows: Option<usize>,
    pub engine: &'static str,
    pub notes: Vec<String>,
    /// What the version did with it, or why it would fail.
    pub verdict: Result<GoldenResult, String>,
}

/// Reads both files, makes the cases, and runs them on the version.
///
/// # Errors
/// In words, when the version does not load, a file does not fit its signature, or the result has more bytes or cases than a `golden.json` may have.
pub fn make_golden(engines: &dyn Loader, source: &GoldenSource) -> Result<MadeGolden, String> {
    let version = load_offline(engines, source.version)?.with_corrected_rows();
    let OfflineVersion { runner, features, .. } = &version;
    let signature = runner.signature();
    // The names of the elements of an only input.
    let names = match signature.inputs() {
        [only] => features.of(signature, Side::Inputs, only),
        _ => &[],
    };
    let inputs = Wanted {
        side: "input",
        specs: signature.all_inputs(),
        required: signature.inputs().len(),
        element_names: names,
    };
    let outputs = Wanted { side: "output", specs: signature.outputs(), required: 0, element_names: &[] };
    let read_inputs = arrays::read(source.inputs, &inputs)?;
    let read_outputs = arrays::read(source.expected, &outputs)?;
    let notes = read_inputs.notes.into_iter().chain(read_outputs.notes).collect();
    let (inputs, outputs) = (read_inputs.tensors, read_outputs.tensors);
    check_size(inputs.iter().chain(&outputs))?;
    let rows = rows_of(signature, &inputs, &outputs)?;
    let cases = match rows {
        Some(rows) => cases_of_rows(rows, &inputs, &outputs)?,
        None => vec![case(inputs, outputs)],
    };
    if let Some(number) = cases.iter().position(|case| !case.is_json()) {
        let rows = rows.map_or_else(String::new, |_| format!(" (rows from {})", number * ROWS_OF_A_CASE));
        return Err(format!(
            "case {number}{rows} has an infinite number, or a text that is not UTF-8, which golden.json cannot represent"
        ));
    }
    let golden = Golden { rtol: source.rtol, atol: source.atol, min_agree: source.min_agree, cases };
    let text = write_golden(&golden);
    if text.len() as u64 > MAX_REQUESTS_BYTES {
        return Err(too_large(text.len() as u64));
    }
    let verdict = check_golden(&golden, runner);
    Ok(MadeGolden { text, cases: golden.cases.len(), rows, engine: runner.engine(), notes, verdict })
}

/// Refuses what is surely too large, before its text is made: an element takes at least two bytes of it.
fn check_size<'t>(tensors: impl Iterator<Item = &'t NamedTensor>) -> Result<(), String> {
    let elements: usize = tensors.map(|named| named.tensor.data().len()).sum();
    let least = 2 * elements as u64;
    if least > MAX_REQUESTS_BYTES { Err(too_large(least)) } else { Ok(()) }
}

fn too_large(bytes: u64) -> String {
    format!("golden.json would have {bytes} bytes or more, the limit is {MAX_REQUESTS_BYTES}: use fewer rows")
}

/// The number of rows. `None` where the model has none.
fn rows_of(signature: &Signature, inputs: &[NamedTensor], outputs: &[NamedTensor]) -> Result<Option<usize>, String> {
    // An optional input counts for all rows of a request.
    let is_optional = |name: &str| signature.optional_inputs().iter().any(|spec| *spec.name == *name);
    if !signature.has_rows() || inputs.iter().any(|input| is_optional(&input.name)) {
        return Ok(None);
    }
    let counts = |side: &'static str, tensors: &[NamedTensor]| {
        let count =
            |named: &NamedTensor| (side, named.name.clone(), named.tensor.shape().first().copied().unwrap_or(0));
        tensors.iter().map(count).collect::<Vec<_>>()
    };
    let all: Vec<_> = [counts("input", inputs), counts("output", outputs)].concat();
    let Some((side, name, rows)) = all.first() else { return Ok(None) };
    if let Some((other_side, other, count)) = all.iter().find(|(_, _, count)| count != rows) {
        return Err(format!(
            "{other_side} {other:?} has {count} rows, but {side} {name:?} has {rows}; expected the same number"
        ));
    }
    if *rows == 0 {
        return Err(format!("{side} {name:?} has no rows"));
    }
    let most = MAX_CASES * ROWS_OF_A_CASE;
    if *rows > most { Err(format!("there are {rows} rows, the limit is {most}")) } else { Ok(Some(*rows)) }
}

fn cases_of_rows(rows: usize, inputs: &[NamedTensor], outputs: &[NamedTensor]) -> Result<Vec<GoldenCase>, String> {
    let slice = |tensors: &[NamedTensor], from: usize, n: usize| {
        let one = |named: &NamedTensor| {
            let tensor =
                named.tensor.slice_rows(from, n).ok_or_else(|| format!("there is no memory for rows from {from}"))?;
            Ok(NamedTensor { name: named.name.clone(), tensor })
        };
        tensors.iter().map(one).collect::<Result<Vec<_>, String>>()
    };
    (0..rows)
        .step_by(ROWS_OF_A_CASE)
        .map(|from| {
            let n = ROWS_OF_A_CASE.min(rows - from);
            Ok(case(slice(inputs, from, n)?, slice(outputs, from, n)?))
        })
        .collect()
}

fn case(inputs: Vec<NamedTensor>, outputs: Vec<NamedTensor>) -> GoldenCase {
    GoldenCase { request: InferenceRequest { inputs, ..InferenceRequest::default() }, outputs }
}
