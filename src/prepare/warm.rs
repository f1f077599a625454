//! Warming a version up: requests through the path that real ones take, until latency settles.
//!
//! The first runs of a model page its weights in, plan its memory and teach the executor what it costs; no caller should pay
//! for that.

use super::bring_up::Trouble;
use super::verify;
use crate::codec::golden::parse_warmup;
use crate::execute::Runner;
use crate::model::{Dim, Failure, InferenceRequest, NamedTensor, Signature, TensorSpec};
use crate::registry::Stage;
use crate::tensor::{Data, DataType, Shape, Tensor};
use bytes::Bytes;
use half::f16;
use std::path::Path;
use std::time::{Duration, Instant};

/// Runs of one request at most.
const MAX_RUNS: usize = 200;
/// For all requests together; each is run once in any case.
const MAX_TIME: Duration = Duration::from_secs(2);
/// Latency has settled when so many runs in a row …
const IN_A_ROW: usize = 5;
/// … took at most so many times as long as the best.
const NEAR_BEST: f64 = 1.5;
/// Rows of the batch a generated warm-up sends beside the single row.
const BATCH_ROWS: usize = 8;
/// Inputs of more elements are not made up.
const MAX_ELEMENTS: usize = 1 << 24;

/// Warms a version up, by its `warmup.json` or by requests made from its signature. Answers a remark, where there is one.
///
/// # Errors
/// When a request of `warmup.json` fails: somebody meant it to work.
pub fn warm(dir: &Path, runner: &Runner) -> Result<Option<String>, Trouble> {
    let begun = Instant::now();
    if let Some(bytes) = verify::read(dir, "warmup.json")? {
        let failed = |reason: String| Trouble::final_(Stage::Warm, format!("warmup.json: {reason}"));
        let requests = parse_warmup(&bytes).map_err(|f| failed(f.operator_text()))?;
        for (number, request) in requests.iter().enumerate() {
            let in_request = |f: Failure| failed(format!("request {number}: {}", f.operator_text()));
            until_settled(runner, request, begun).map_err(in_request)?;
        }
        return Ok(None);
    }
    match generated(runner, begun) {
        Ok(()) => Ok(None),
        Err(words) => Ok(Some(format!("the warm-up made from the signature was refused: {words}"))),
    }
}

/// One row, and a batch where the model takes rows; of zeros, or of ones where it refuses those.
fn generated(runner: &Runner, begun: Instant) -> Result<(), String> {
    let signature = runner.signature();
    let sizes: &[usize] = if signature.has_rows() { &[1, BATCH_ROWS] } else { &[1] };
    for rows in sizes {
        let attempt = |fill: fn(DataType, usize) -> Data| {
            let request = request(signature, *rows, fill)?;
            until_settled(runner, &request, begun).map_err(|failure| failure.operator_text())
        };
        attempt(Data::zeros).or_else(|zeros| attempt(ones).map_err(|_| zeros))?;
    }
    Ok(())
}

/// The median time of a generated request of so many rows, in microseconds; `None` where the model refuses it.
#[must_use]
pub fn time(runner: &Runner, rows: usize) -> Option<f64> {
    const RUNS: usize = 51;
    let begun = Instant::now();
    let request = request(runner.signature(), rows, Data::zeros).ok()?;
    let checked = runner.signature().check(request).ok()?;
    let mut times = Vec::with_capacity(RUNS);
    while times.len() < RUNS && (times.is_empty() || begun.elapsed() < MAX_TIME) {
        times.push(runner.run(&checked).ok()?.infer);
    }
    times.sort();
    times.get(times.len() / 2).map(|t| t.as_secs_f64() * 1e6)
}

/// Runs a request until its latency settles, or the cap.
fn until_settled(runner: &Runner, request: &InferenceRequest, begun: Instant) -> Result<(), Failure> {
    let checked = runner.signature().check(request.clone())?;
    let mut best = f64::INFINITY;
    let mut near = 0;
    for _ in 0..MAX_RUNS {
        let took = runner.run(&checked)?.infer.as_secs_f64();
        best = best.min(took);
        near = if took <= best * NEAR_BEST { near + 1 } else { 0 };
        if near >= IN_A_ROW || begun.elapsed() >= MAX_TIME {
            break;
        }
    }
    Ok(())
}

pub(super) fn request(
    signature: &Signature,
    rows: usize,
    fill: fn(DataType, usize) -> Data,
) -> Result<InferenceRequest, String> {
    let row_symbol = signature.inputs().iter().find_map(|spec| match spec.dims.as_deref() {
        Some([Dim::Free(Some(symbol)), ..]) if signature.has_rows() => Some(symbol.clone()),
        _ => None,
    });
    let extent = |axis: usize, dim: &Dim| match dim {
        Dim::Fixed(n) => *n,
        Dim::Free(Some(symbol)) if Some(symbol) == row_symbol.as_ref() => rows,
        Dim::Free(_) if axis == 0 && signature.has_rows() => rows,
        Dim::Free(_) => 1,
    };
    let tensor = |spec: &TensorSpec| {
        let shape: Shape = match &spec.dims {
            None => Shape::new(&[1]),
            Some(dims) => dims.iter().enumerate().map(|(axis, dim)| extent(axis, dim)).collect(),
        };
        let elements = shape.elements().filter(|n| *n <= MAX_ELEMENTS);
        let elements = elements.ok_or_else(|| format!("input {:?} is too large to make up: {shape}", &*spec.name))?;
        let tensor = Tensor::new(shape, fill(spec.datatype, elements)).map_err(|e| e.to_string())?;
        Ok(NamedTensor { name: spec.name.to_string(), tensor })
    };
    let inputs = signature.inputs().iter().map(tensor).collect::<Result<_, String>>()?;
    Ok(InferenceRequest { inputs, ..InferenceRequest::default() })
}

/// `n` ones (`true`, the text `1`) of a type: some models divide by what they are given.
fn ones(datatype: DataType, n: usize) -> Data {
    match datatype {
        DataType::Bool => Data::Bool(vec![true; n]),
        DataType::Uint8 => Data::Uint8(vec![1; n].into()),
        DataType::Uint16 => Data::Uint16(vec![1; n].into()),
        DataType::Uint32 => Data::Uint32(vec![1; n].into()),
        DataType::Uint64 => Data::Uint64(vec![1; n].into()),
        DataType::Int8 => Data::Int8(vec![1; n].into()),
        DataType::Int16 => Data::Int16(vec![1; n].into()),
        DataType::Int32 => Data::Int32(vec![1; n].into()),
        DataType::Int64 => Data::Int64(vec![1; n].into()),
        DataType::Fp16 => Data::Fp16(vec![f16::ONE; n].into()),
        DataType::Fp32 => Data::Fp32(vec![1.0; n].into()),
        DataType::Fp64 => Data::Fp64(vec![1.0; n].into()),
        DataType::Bytes => Data::Bytes(vec![Bytes::from_static(b"1"); n]),
    }
}
