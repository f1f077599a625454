//! Explains a logged prediction: which columns of its row the answer came from.

use super::assemble::Assembler;
use super::error::Error;
use super::filter::Filter;
use super::logged::LoggedRequest;
use super::reproduce::{find_logged, find_version};
use super::scan::{Budget, ScanOptions, scan};
use super::sources::Sources;
use crate::explain::{Explanation, MAX_BACKGROUND, Options, background_of_profile, shapley};
use crate::model::{Checked, Failure, InferenceRequest, ModelName, NamedTensor, Role, Signature, Version};
use crate::prepare::{Loader, ModelDirs, load_offline, read_profile};
use crate::tensor::Tensor;
use jiff::Timestamp;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How far back background rows are looked for, in microseconds: the first window with enough of them counts.
const WINDOWS: [(i64, &str); 4] =
    [(3_600_000_000, "hour"), (86_400_000_000, "day"), (7 * 86_400_000_000, "week"), (30 * 86_400_000_000, "month")];
/// The most requests of a window that are read.
const MAX_READ: usize = 10_000;
/// The longest time for the runs.
const LONGEST: Duration = Duration::from_mins(10);

/// The prediction to explain.
#[derive(Debug, Clone)]
pub struct Explain<'a> {
    pub data: &'a Path,
    pub models: &'a ModelDirs,
    /// `None`: of any model.
    pub model: Option<&'a ModelName>,
    pub request_id: &'a str,
    /// The row of the request.
    pub row: usize,
    pub options: Options,
}

/// A logged prediction with the explanation of its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    pub model: ModelName,
    /// The version that answered, and the one that has its model file now.
    pub version: Version,
    pub ran: Version,
    pub engine: &'static str,
    pub at: Timestamp,
    pub row: usize,
    pub explanation: Explanation,
    /// What the background rows are, in words.
    pub compared_with: String,
}

/// Explains the newest answer to a caller with this request id, against the rows in the profile of its version. Where it has none, against rows of requests
/// to the model in the hour, day, week or month before it.
///
/// # Errors
/// When there is none, its inputs were not recorded as they are, the model is not tabular, or there are no other rows.
pub fn explain(engines: &dyn Loader, what: &Explain) -> Result<Explained, Error> {
    let logged = find_logged(what.data, what.models, what.model, what.request_id)?;
    let answering = [Role::Primary.as_str(), Role::Pinned.as_str()];
    let logged =
        logged.into_iter().filter(|logged| answering.contains(&logged.role.as_str())).max_by_key(|logged| logged.ts);
    let logged =
        logged.ok_or_else(|| Error::Failed(format!("the id {:?} has only answers of shadows", what.request_id)))?;
    let inputs =
        logged.inputs().map_err(|reason| Error::Failed(format!("it cannot be explained: {}", reason.message())))?;
    let (ran, dir) = find_version(what.models, &logged).map_err(Error::Failed)?;
    let version = load_offline(engines, &dir).map_err(Error::Failed)?.with_corrected_rows();
    let signature = version.runner.signature();
    let row = one_row(signature, &inputs, what.row, logged.records)?;
    let profile = read_profile(&dir).0;
    let of_profile = background_of_profile(profile.as_deref(), ran, signature, &version.features);
    let (background, compared_with) = match of_profile.map_err(|failure| words(&failure))? {
        Some(of_profile) => of_profile,
        None => background(what.data, &logged, signature, &row)?,
    };
    let mut run = |request: &Checked| version.runner.run(request).map(|ran| ran.answer);
    let deadline = Instant::now() + LONGEST;
    let names = &version.features;
    let explanation = shapley(signature, &row, &background, names, &what.options, deadline, &mut run)
        .map_err(|failure| words(&failure))?;
    Ok(Explained {
        model: logged.model().clone(),
        version: logged.version(),
        ran,
        engine: version.runner.engine(),
        at: Timestamp::from_microsecond(logged.ts).unwrap_or_default(),
        row: what.row,
        explanation,
        compared_with,
    })
}

fn words(failure: &Failure) -> Error {
    Error::Failed(failure.operator_text())
}

fn one_row(signature: &Signature, inputs: &[(Arc<str>, Tensor)], row: usize, records: usize) -> Result<Checked, Error> {
    let slice = |(name, tensor): &(Arc<str>, Tensor)| {
        let tensor = tensor.slice_rows(row, 1)?;
        Some(NamedTensor { name: name.to_string(), tensor })
    };
    let inputs: Option<Vec<NamedTensor>> = inputs.iter().map(slice).collect();
    let inputs = inputs.ok_or_else(|| {
        Error::Usage(format!("--row {row}: the request has {records} rows, counted from 0, or its inputs have no rows"))
    })?;
    signature.check(InferenceRequest { inputs, ..InferenceRequest::default() }).map_err(|failure| words(&failure))
}

/// Rows of other requests to the model before this one, a sample of them where there are many.
fn background(
    data: &Path,
    logged: &LoggedRequest,
    signature: &Signature,
    row: &Checked,
) -> Result<(Checked, String), Error> {
    let (mut rows, mut before) = (Vec::new(), "");
    for (window, name) in WINDOWS {
        let filter = Filter { from: Some(logged.ts - window), to: Some(logged.ts), ..Filter::default() };
        let found = sampled(data, logged.model(), &filter, row)?;
        // A longer time without more rows is not worth naming.
        if found.len() > rows.len() {
            (rows, before) = (found, name);
        }
        if rows.len() >= MAX_BACKGROUND {
            break;
        }
    }
    let first = rows.first().map(Vec::len).unwrap_or_default();
    let stacked: Option<Vec<Tensor>> =
        (0..first).map(|input| Tensor::stack(&rows.iter().map(|row| &row[input]).collect::<Vec<_>>())).collect();
    let Some(stacked) = stacked.filter(|stacked| !stacked.is_empty()) else {
        return Err(Error::Failed(format!(
            "{} has no other rows of {} in the month before to compare with, whose inputs are recorded as they are",
            data.display(),
            logged.model()
        )));
    };
    let named = signature.inputs().iter().zip(stacked);
    let inputs = named.map(|(spec, tensor)| NamedTensor { name: spec.name.to_string(), tensor }).collect();
    let request = InferenceRequest { inputs, ..InferenceRequest::default() };
    let checked = signature.check(request).map_err(|failure| words(&failure))?;
    Ok((checked, format!("rows of other requests to {} in the {before} before", logged.model())))
}

/// At most [`MAX_BACKGROUND`] rows of requests that match, each with as many as its share (reservoir sampling).
fn sampled(data: &Path, model: &ModelName, filter: &Filter, like: &Checked) -> Result<Vec<Vec<Tensor>>, Error> {
    let sources = Sources::open(data, model, filter)?;
    let mut assembler = Assembler::default();
    let mut random = fastrand::Rng::with_seed(0);
    let (mut kept, mut seen, mut read): (Vec<Vec<Tensor>>, usize, usize) = (Vec::new(), 0, 0);
    let mut add = |logged: &LoggedRequest| {
        read += 1;
        let inputs = logged.inputs().unwrap_or_default();
        let fits = inputs.len() == like.inputs().len()
            && inputs.iter().zip(like.inputs()).all(|((_, tensor), other)| tensor.stacks_with(other));
        for row in 0..if fits { logged.records } else { 0 } {
            seen += 1;
            let place = if kept.len() < MAX_BACKGROUND { kept.len() } else { random.usize(..seen) };
            if place >= MAX_BACKGROUND {
                continue;
            }
            let tensors: Option<Vec<Tensor>> = inputs.iter().map(|(_, tensor)| tensor.slice_rows(row, 1)).collect();
            match tensors {
                Some(tensors) if place == kept.len() => kept.push(tensors),
                Some(tensors) => kept[place] = tensors,
                None => {}
            }
        }
        read < MAX_READ
    };
    let options = ScanOptions {
        filter,
        join_feedback: false,
        budget: Budget { rows: 100_000, bytes: 16 << 20 },
        first_chunk: None,
        progress: &|_, _, _| {},
    };
    scan(&sources, &options, &mut |scanned| {
        let complete = assembler.push(&scanned).map_err(|error| scanned.source.stored.locate(error))?;
        let go_on = complete.iter().all(&mut add);
        Ok(if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    if let Some(last) = assembler.finish() {
        add(&last);
    }
    Ok(kept)
}
