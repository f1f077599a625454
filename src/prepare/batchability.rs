//! Finds out whether the rows of a version are independent. Only then may requests run together in one batch.
//!
//! A model may normalise over its batch, sort it or sum along it, and no signature shows that. The graph is asked first: an operator
//! that computes across the batch axis switches batching off. Then the test runs different rows alone and together, in several orders, and
//! compares the results within rounding. Batching stays off where the test shows nothing. It shows nothing where the axis could not be
//! followed through the graph and every output is discrete: a label stays the same while the numbers behind it change.

use super::files;
use super::inputs;
use crate::backend::RowAnalysis;
use crate::codec::golden::{Golden, parse_warmup};
use crate::compare::{Tolerance, compare_answers};
use crate::execute::{Batching, Runner};
use crate::machine;
use crate::model::{Answer, Checked, InferenceRequest};
use crate::model_settings::BatchingSettings;
use crate::registry::Stage;
use crate::tensor::DataType;
use std::path::Path;
use std::time::{Duration, Instant};

/// Number of test rows: from the author's own requests, and generated.
const ROWS: usize = 8;
/// Limit for the processor time of this thread over all runs.
const MAX_TIME: Duration = Duration::from_secs(15);
/// Limit for the elapsed time. It is eight times as long, because this thread has a low priority.
const MAX_WAIT: Duration = Duration::from_mins(2);

/// The result of the test.
#[derive(Debug, PartialEq, Eq)]
enum RowsAre {
    Independent,
    Dependent(String),
    /// The test could not tell, and why.
    Unknown(String),
}

/// Decides whether requests of a version may run together.
pub(super) fn decide(dir: &Path, runner: &Runner, settings: BatchingSettings) -> Batching {
    let max_rows = settings.max_rows.unwrap_or(Batching::MAX_ROWS);
    let off = |why: &str| Batching::Off { why: why.to_owned() };
    let on = |why: String| Batching::On { why, max_rows };
    if settings.enabled == Some(false) {
        return off("disabled in model.toml");
    }
    if !runner.signature().has_rows() {
        return off("requests are not lists of rows: an input or output has no free first dimension");
    }
    let found = match &runner.graph().rows {
        RowAnalysis::Mixed { operator, why } => RowsAre::Dependent(format!("operator {operator}: {why}")),
        RowAnalysis::Unknown { operator } if all_outputs_discrete(runner) => RowsAre::Unknown(format!(
            "the batch axis cannot be followed through operator {operator}, and discrete outputs hide what happens before them"
        )),
        RowAnalysis::Independent | RowAnalysis::Unknown { .. } => test_rows(dir, runner),
    };
    match found {
        RowsAre::Independent => on(format!("up to {ROWS} different rows gave the same results together as alone")),
        RowsAre::Dependent(why) if settings.enabled == Some(true) => {
            on(format!("enabled in model.toml, although {why}"))
        }
        RowsAre::Dependent(why) => Batching::Off { why },
        RowsAre::Unknown(why) if settings.enabled == Some(true) => {
            on(format!("enabled in model.toml, but not confirmed by a test: {why}"))
        }
        RowsAre::Unknown(why) => {
            Batching::Off { why: format!("the test could not show that rows are independent: {why}") }
        }
    }
}

/// Whether every output is of integers, booleans or text.
fn all_outputs_discrete(runner: &Runner) -> bool {
    let is_float = |datatype| matches!(datatype, DataType::Fp16 | DataType::Fp32 | DataType::Fp64);
    !runner.signature().outputs().iter().any(|spec| is_float(spec.datatype))
}

fn test_rows(dir: &Path, runner: &Runner) -> RowsAre {
    let too_slow = || RowsAre::Unknown("its runs take too long".to_owned());
    let (begun, cpu_begun) = (Instant::now(), machine::thread_time());
    let is_over = || machine::thread_time().saturating_sub(cpu_begun) > MAX_TIME || begun.elapsed() > MAX_WAIT;
    let mut rows: Vec<(Checked, Answer)> = Vec::new();
    for row in authored_rows(dir, runner).into_iter().chain(generated_rows(runner)) {
        if is_over() {
            return too_slow();
        }
        let stacks = rows.first().is_none_or(|(first, _)| first.stacks_with(&row));
        if rows.len() < ROWS
            && stacks
            && let Ok(ran) = runner.run_unmeasured(&row)
        {
            rows.push((row, ran.answer));
        }
    }
    let [(_, first), others @ ..] = rows.as_slice() else {
        return RowsAre::Unknown("the model refused every test row".to_owned());
    };
    let tolerance = Tolerance::of_rounding(runner.signature().outputs().iter().map(|spec| spec.datatype));
    // Results of different rows must differ by more than the tolerance below. Two NaN count as equal.
    let coarse = Tolerance { rtol: 10.0 * tolerance.rtol, atol: 10.0 * tolerance.atol };
    let all_equal = others.iter().all(|(_, answer)| compare_answers(first, answer, coarse).agrees());
    // All rows, reversed, rotated, and two rows: each order gives a row other neighbours or another batch size.
    let reversed: Vec<&(Checked, Answer)> = rows.iter().rev().collect();
    let rotated: Vec<&(Checked, Answer)> = rows[1..].iter().chain(&rows[..1]).collect();
    for order in [rows.iter().collect(), reversed, rotated, vec![&rows[rows.len() - 1], &rows[0]]] {
        if is_over() {
            return too_slow();
        }
        if let Some(why) = find_dependence(runner, &order, tolerance) {
            return RowsAre::Dependent(why);
        }
    }
    if all_equal {
        // Swapped rows would not be noticed.
        return RowsAre::Unknown("every test row gave the same result".to_owned());
    }
    RowsAre::Independent
}

/// Runs the rows together. Returns why a result differs from the row's run alone, where one does.
fn find_dependence(runner: &Runner, rows: &[&(Checked, Answer)], tolerance: Tolerance) -> Option<String> {
    let n = rows.len();
    let requests: Vec<&Checked> = rows.iter().map(|(request, _)| request).collect();
    let Some(whole) = Checked::stack(&requests) else { return Some("its rows cannot be stacked".to_owned()) };
    // This run also gives the cost model its first measurement of a larger batch.
    let together = match runner.run(&whole) {
        Ok(ran) => ran.answer,
        Err(failure) => return Some(format!("a run of {n} rows failed: {}", failure.operator_text())),
    };
    let Some(answers) = together.split_rows(&vec![1; n]) else {
        return Some(format!("a run of {n} rows returned a different number of rows"));
    };
    rows.iter().zip(&answers).find_map(|((_, alone), together)| {
        let comparison = compare_answers(alone, together, tolerance);
        (!comparison.agrees()).then(|| format!("a row gave another result in a batch of {n} than alone: {comparison}"))
    })
}

/// Rows of the requests in `golden.json` and `warmup.json`.
fn authored_rows(dir: &Path, runner: &Runner) -> Vec<Checked> {
    let read = |name| files::read_beside(dir, name, files::MAX_REQUESTS_BYTES, Stage::Verify).ok().flatten();
    let golden = read("golden.json").and_then(|bytes| Golden::parse(&bytes).ok());
    let golden = golden.into_iter().flat_map(|golden| golden.cases).map(|case| case.request);
    let warmup = read("warmup.json").and_then(|bytes| parse_warmup(&bytes).ok()).into_iter().flatten();
    let rows = |request: InferenceRequest| {
        let request = InferenceRequest { outputs: None, ..request };
        runner.signature().check(request).ok()?.single_rows(ROWS)
    };
    // Only half of the test rows: an author may have chosen rows that are all alike.
    golden.chain(warmup).filter_map(rows).flatten().take(ROWS / 2).collect()
}

fn generated_rows(runner: &Runner) -> Vec<Checked> {
    let signature = runner.signature();
    let request = inputs::generate(signature, ROWS, inputs::varied).ok();
    let rows = request.and_then(|request| signature.check(request).ok()?.single_rows(ROWS));
    rows.unwrap_or_default()
}
