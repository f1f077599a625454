//! Whether a version's rows interact: only where it is shown that they do not, requests may run together.
//!
//! A model may normalise over its batch, sort it or sum along it, and no signature says so. So different rows are run alone and
//! together, in several orders, and every answer has to be the same within what rounding may do. What cannot be shown is off.

use super::verify;
use super::warm;
use crate::codec::golden::{Golden, parse_warmup};
use crate::compare::{Tolerance, compare_answers};
use crate::execute::{Batching, Runner};
use crate::machine;
use crate::model::{Answer, Checked, InferenceRequest};
use crate::model_settings::BatchingSettings;
use crate::tensor::{Data, DataType};
use bytes::Bytes;
use half::f16;
use std::path::Path;
use std::time::{Duration, Instant};

/// Rows that are tried: of the maker's own requests, and made up.
const ROWS: usize = 8;
/// Of this thread's own time, for all runs; what takes longer is not shown. Time that goes by while others have the machine counts
/// an eighth: this thread comes after most of them.
const MAX_TIME: Duration = Duration::from_secs(15);
const MAX_WAIT: Duration = Duration::from_mins(2);
/// How far the same row may be from itself in other company: engines sum in another order where there are more rows.
const TOLERANCE: Tolerance = Tolerance { rtol: 1e-4, atol: 1e-5 };
/// The same for half floats, which have three digits.
const TOLERANCE_OF_HALVES: Tolerance = Tolerance { rtol: 1e-2, atol: 1e-3 };

/// What was shown.
#[derive(Debug, PartialEq, Eq)]
enum Shown {
    Apart,
    Interact(String),
    Nothing(String),
}

/// Whether requests of a version may run together.
#[must_use]
pub fn verdict(dir: &Path, runner: &Runner, settings: BatchingSettings) -> Batching {
    let max_rows = settings.max_rows.unwrap_or(Batching::MAX_ROWS);
    let off = |why: &str| Batching::Off { why: why.to_owned() };
    let on = |why: String| Batching::On { why, max_rows };
    if settings.enabled == Some(false) {
        return off("model.toml says so");
    }
    if !runner.signature().has_rows() {
        return off("its requests are no lists of rows: an input or output has no free first dimension");
    }
    match shown(dir, runner) {
        Shown::Apart => on(format!("up to {ROWS} different rows gave the same together as alone")),
        Shown::Interact(why) => Batching::Off { why },
        Shown::Nothing(why) if settings.enabled == Some(true) => {
            on(format!("model.toml says so; it was not shown: {why}"))
        }
        Shown::Nothing(why) => Batching::Off { why: format!("it was not shown that rows do not interact: {why}") },
    }
}

fn shown(dir: &Path, runner: &Runner) -> Shown {
    let (begun, used) = (Instant::now(), machine::thread_time());
    let is_over = || machine::thread_time().saturating_sub(used) > MAX_TIME || begun.elapsed() > MAX_WAIT;
    let mut rows: Vec<(Checked, Answer)> = Vec::new();
    for row in given(dir, runner).into_iter().chain(made_up(runner)) {
        if is_over() {
            return Shown::Nothing("its runs take too long to try".to_owned());
        }
        let stacks = rows.first().is_none_or(|(first, _)| first.stacks_with(&row));
        if rows.len() < ROWS
            && stacks
            && let Ok(ran) = runner.run_aside(&row)
        {
            rows.push((row, ran.answer));
        }
    }
    let [(_, first), others @ ..] = rows.as_slice() else {
        return Shown::Nothing("it refused every row that was tried".to_owned());
    };
    let halves = runner.signature().outputs().iter().any(|spec| spec.datatype == DataType::Fp16);
    let tolerance = if halves { TOLERANCE_OF_HALVES } else { TOLERANCE };
    // Rows must differ by more than what is let pass below; NaN is like NaN.
    let coarse = Tolerance { rtol: 10.0 * tolerance.rtol, atol: 10.0 * tolerance.atol };
    let alike = others.iter().all(|(_, answer)| compare_answers(first, answer, coarse).agrees());
    // All of them, backwards, and two: rows that look at their neighbours, or at how many there are, have other ones.
    let backwards: Vec<&(Checked, Answer)> = rows.iter().rev().collect();
    let turned: Vec<&(Checked, Answer)> = rows[1..].iter().chain(&rows[..1]).collect();
    for order in [rows.iter().collect(), backwards, turned, vec![&rows[rows.len() - 1], &rows[0]]] {
        if is_over() {
            return Shown::Nothing("its runs take too long to try".to_owned());
        }
        if let Some(why) = interact(runner, &order, tolerance) {
            return Shown::Interact(why);
        }
    }
    if alike {
        // Rows that were swapped would not be noticed.
        return Shown::Nothing("every row that was tried gave the same".to_owned());
    }
    Shown::Apart
}

/// Why rows are not the same together as alone, where they are not.
fn interact(runner: &Runner, rows: &[&(Checked, Answer)], tolerance: Tolerance) -> Option<String> {
    let n = rows.len();
    let requests: Vec<&Checked> = rows.iter().map(|(request, _)| request).collect();
    let Some(whole) = Checked::stack(&requests) else { return Some("its rows cannot be put together".to_owned()) };
    // Learnt from: it is the first that is known of larger runs.
    let together = match runner.run(&whole) {
        Ok(ran) => ran.answer,
        Err(failure) => return Some(format!("{n} rows together failed: {}", failure.operator_text())),
    };
    let Some(answers) = together.cut(&vec![1; n]) else {
        return Some(format!("{n} rows together gave another number of rows"));
    };
    rows.iter().zip(&answers).find_map(|((_, alone), together)| {
        let comparison = compare_answers(alone, together, tolerance);
        (!comparison.agrees()).then(|| format!("a row gave something else among {n} than alone: {comparison}"))
    })
}

/// Rows of the requests that the version's maker put beside it.
fn given(dir: &Path, runner: &Runner) -> Vec<Checked> {
    let read = |name| verify::read(dir, name).ok().flatten();
    let golden = read("golden.json").and_then(|bytes| Golden::parse(&bytes).ok());
    let golden = golden.into_iter().flat_map(|golden| golden.cases).map(|case| case.request);
    let warmup = read("warmup.json").and_then(|bytes| parse_warmup(&bytes).ok()).into_iter().flatten();
    let rows = |request: InferenceRequest| {
        let request = InferenceRequest { outputs: None, ..request };
        runner.signature().check(request).ok()?.singles(ROWS)
    };
    // Half of the places are for others: what somebody chose may be chosen alike.
    golden.chain(warmup).filter_map(rows).flatten().take(ROWS / 2).collect()
}

/// Rows of numbers that differ, small enough for tables they may be looked up in.
fn made_up(runner: &Runner) -> Vec<Checked> {
    let signature = runner.signature();
    let request = warm::request(signature, ROWS, different).ok();
    let rows = request.and_then(|request| signature.check(request).ok()?.singles(ROWS));
    rows.unwrap_or_default()
}

fn different(datatype: DataType, n: usize) -> Data {
    // The same for every version and every start.
    let mut random = fastrand::Rng::with_seed(0x51_u64);
    let mut small = || random.u8(0..4);
    macro_rules! integers {
        ($t:ty) => {
            (0..n).map(|_| <$t>::try_from(small()).unwrap_or_default()).collect::<Vec<_>>().into()
        };
    }
    match datatype {
        DataType::Bool => Data::Bool((0..n).map(|_| small() > 1).collect()),
        DataType::Uint8 => Data::Uint8(integers!(u8)),
        DataType::Uint16 => Data::Uint16(integers!(u16)),
        DataType::Uint32 => Data::Uint32(integers!(u32)),
        DataType::Uint64 => Data::Uint64(integers!(u64)),
        DataType::Int8 => Data::Int8(integers!(i8)),
        DataType::Int16 => Data::Int16(integers!(i16)),
        DataType::Int32 => Data::Int32(integers!(i32)),
        DataType::Int64 => Data::Int64(integers!(i64)),
        DataType::Fp16 => {
            Data::Fp16((0..n).map(|_| f16::from_f32(random.f32() * 4.0 - 2.0)).collect::<Vec<_>>().into())
        }
        DataType::Fp32 => Data::Fp32((0..n).map(|_| random.f32() * 4.0 - 2.0).collect::<Vec<_>>().into()),
        DataType::Fp64 => Data::Fp64((0..n).map(|_| random.f64() * 4.0 - 2.0).collect::<Vec<_>>().into()),
        DataType::Bytes => Data::Bytes((0..n).map(|_| Bytes::from(small().to_string())).collect()),
    }
}
