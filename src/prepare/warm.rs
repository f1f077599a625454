//! Warm-up: runs requests through the path that real ones use, until latency is stable.
//!
//! The first runs of a model load its weights into memory, plan its buffers and measure its cost. No caller should wait for that.

use super::failure::StageFailure;
use super::files;
use super::inputs;
use crate::backend::OUT_OF_MEMORY;
use crate::codec::golden::parse_warmup;
use crate::execute::Runner;
use crate::model::{Checked, Code, Failure, InferenceRequest};
use crate::registry::Stage;
use crate::tensor::{Data, DataType, Tensor};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Limit for the runs of one request.
const MAX_RUNS: usize = 200;
/// Time limit for all requests together. Each is run once in any case.
const MAX_TIME: Duration = Duration::from_secs(2);
/// Limit for the requests of a `warmup.json`.
const MAX_REQUESTS: usize = 10_000;
/// Latency is stable when this many runs in a row …
const STABLE_RUNS: usize = 5;
/// … took at most this many times as long as the best run.
const NEAR_BEST: f64 = 1.5;
/// Rows of the batch in a generated warm-up, which also has a single row.
const BATCH_ROWS: usize = 8;

/// The largest request that is kept as the known good one, in bytes of its tensors.
const MAX_KNOWN_GOOD: usize = 1 << 20;

/// What a warm-up found.
#[derive(Debug, Default)]
pub(super) struct Warmed {
    /// A remark, where there is one.
    pub note: Option<String>,
    /// A request that the version answered, where it is small.
    pub known_good: Option<Arc<Checked>>,
}

/// Warms a version up with its `warmup.json`, else with generated requests.
///
/// # Errors
/// When a request of `warmup.json` fails, because its author expected it to work.
pub(super) fn warm(dir: &Path, runner: &Runner) -> Result<Warmed, StageFailure> {
    let begun = Instant::now();
    if let Some(bytes) = files::read_beside(dir, "warmup.json", files::MAX_REQUESTS_BYTES, Stage::Warm)? {
        let failed = |reason: String| StageFailure::permanent(Stage::Warm, format!("warmup.json: {reason}"));
        let requests = parse_warmup(&bytes).map_err(|f| failed(f.operator_text()))?;
        if requests.len() > MAX_REQUESTS {
            return Err(failed(format!("it has {} requests, the limit is {MAX_REQUESTS}", requests.len())));
        }
        let mut known_good = None;
        for (number, request) in requests.iter().enumerate() {
            let in_request = |f: Failure| failed(format!("request {number}: {}", f.operator_text()));
            let checked = run_until_stable(runner, request, begun).map_err(in_request)?;
            known_good = known_good.or_else(|| small(checked));
        }
        return Ok(Warmed { note: None, known_good });
    }
    match warm_with_generated(runner, begun) {
        Ok(known_good) => Ok(Warmed { note: None, known_good }),
        Err(NoWarmUp::OutOfMemory(reason)) => {
            let reason = format!("the generated warm-up request failed: {reason}");
            Err(StageFailure { stage: Stage::Warm, reason, retryable: true })
        }
        Err(NoWarmUp::Refused(why)) => {
            let note = Some(format!("the generated warm-up request failed: {why}"));
            Ok(Warmed { note, known_good: None })
        }
    }
}

/// The request, where it is small enough to be kept.
fn small(request: Checked) -> Option<Arc<Checked>> {
    let bytes: usize = request.inputs().iter().map(Tensor::size).sum();
    (bytes <= MAX_KNOWN_GOOD).then(|| Arc::new(request))
}

/// Why a generated request did not warm a version up.
enum NoWarmUp {
    /// Real requests would fail as well.
    OutOfMemory(String),
    /// The model refused it, which says little about real requests.
    Refused(String),
}

impl From<Failure> for NoWarmUp {
    fn from(failure: Failure) -> NoWarmUp {
        let is_memory = failure.code == Code::EngineFailed && failure.message == OUT_OF_MEMORY;
        let words = failure.operator_text();
        if is_memory { NoWarmUp::OutOfMemory(words) } else { NoWarmUp::Refused(words) }
    }
}

/// Runs one row, and a batch where the model takes rows: of zeros, or of ones where it refuses zeros.
fn warm_with_generated(runner: &Runner, begun: Instant) -> Result<Option<Arc<Checked>>, NoWarmUp> {
    let signature = runner.signature();
    let sizes: &[usize] = if signature.has_rows() { &[1, BATCH_ROWS] } else { &[1] };
    let mut known_good = None;
    for rows in sizes {
        let attempt = |fill: fn(DataType, usize) -> Data| {
            let request = inputs::generate(signature, *rows, fill).map_err(NoWarmUp::Refused)?;
            run_until_stable(runner, &request, begun).map_err(NoWarmUp::from)
        };
        let checked = attempt(Data::zeros).or_else(|zeros| match zeros {
            NoWarmUp::Refused(_) => attempt(inputs::ones).map_err(|_| zeros),
            NoWarmUp::OutOfMemory(_) => Err(zeros),
        })?;
        known_good = known_good.or_else(|| small(checked));
    }
    Ok(known_good)
}

/// The median time of a generated request with `rows` rows, in microseconds. `None` where the model refuses it.
pub(super) fn median_us(runner: &Runner, rows: usize) -> Option<f64> {
    const RUNS: usize = 51;
    let begun = Instant::now();
    let request = inputs::generate(runner.signature(), rows, Data::zeros).ok()?;
    let checked = runner.signature().check(request).ok()?;
    let mut times = Vec::with_capacity(RUNS);
    while times.len() < RUNS && (times.is_empty() || begun.elapsed() < MAX_TIME) {
        times.push(runner.run(&checked).ok()?.infer);
    }
    times.sort();
    times.get(times.len() / 2).map(|t| t.as_secs_f64() * 1e6)
}

/// Runs a request until its latency is stable, or a limit is reached.
fn run_until_stable(runner: &Runner, request: &InferenceRequest, begun: Instant) -> Result<Checked, Failure> {
    let checked = runner.signature().check(request.clone())?;
    let mut best = f64::INFINITY;
    let mut near_best = 0;
    for _ in 0..MAX_RUNS {
        let seconds = runner.run(&checked)?.infer.as_secs_f64();
        best = best.min(seconds);
        near_best = if seconds <= best * NEAR_BEST { near_best + 1 } else { 0 };
        if near_best >= STABLE_RUNS || begun.elapsed() >= MAX_TIME {
            break;
        }
    }
    Ok(checked)
}
