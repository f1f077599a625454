//! Reproduce: runs a logged prediction again with the same model file.

use super::assemble::Assembler;
use super::bits;
use super::error::Error;
use super::filter::Filter;
use super::logged::{LoggedRequest, SkipReason};
use super::replay::run;
use super::scan::{Budget, ScanOptions, scan};
use super::sources::{self, Sources};
use crate::compare::{Comparison, Tolerance, compare_answers};
use crate::model::{Answer, ModelName, Role, Version};
use crate::prepare::{Loader, load_offline, model_sha256, version_dir, versions_of};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// A logged prediction, and the result of running it again.
#[derive(Debug)]
pub struct Reproduced {
    pub model: ModelName,
    /// The version that answered.
    pub version: Version,
    pub role: String,
    pub at: Timestamp,
    /// The SHA-256 of the model file that answered.
    pub sha256: String,
    /// The number of its records.
    pub records: usize,
    /// The rows of the batch in which it ran, including its own.
    pub batch_rows: usize,
    /// The version that has this model file now, and the engine that ran it.
    pub ran: Option<(Version, &'static str)>,
    pub outcome: Outcome,
}

#[derive(Debug)]
pub enum Outcome {
    /// Every recorded output is bitwise equal.
    Equal {
        outputs: usize,
    },
    /// The request ran together with others or in parts, now it ran alone and whole, and every output is the same within rounding
    /// ([`Tolerance::of_rounding`]).
    Close(Comparison),
    Different(Comparison),
    /// Why it could not be run again.
    NotRun(String),
}

impl Reproduced {
    /// Whether the outputs are what the version gives for this request: bit for bit, or within rounding where it did not run alone.
    #[must_use]
    pub fn is_reproduced(&self) -> bool {
        matches!(self.outcome, Outcome::Equal { .. } | Outcome::Close(_))
    }
}

/// Runs all logged predictions with a request id again, of one model or of all.
///
/// # Errors
/// When there is none, or something cannot be read.
pub fn reproduce(
    engines: &dyn Loader,
    data: &Path,
    models: &Path,
    model: Option<&ModelName>,
    request_id: &str,
) -> Result<Vec<Reproduced>, Error> {
    let found = find_logged(data, models, model, request_id)?;
    Ok(found.iter().map(|logged| run_again(engines, models, logged)).collect())
}

/// All logged predictions with a request id, of one model or of all.
///
/// # Errors
/// When there is none, or something cannot be read.
pub(super) fn find_logged(
    data: &Path,
    models: &Path,
    model: Option<&ModelName>,
    request_id: &str,
) -> Result<Vec<LoggedRequest>, Error> {
    let candidates: BTreeSet<ModelName> = match model {
        Some(model) => [model.clone()].into(),
        // A new model may have records only in segments, but it has a directory in the models directory.
        None => sources::models(data)?.into_iter().chain(sources::models_in(models)).collect(),
    };
    let filter = Filter { roles: Role::ALL.to_vec(), request_id: Some(request_id.to_owned()), ..Filter::default() };
    let mut found = Vec::new();
    for model in &candidates {
        found.extend(find_requests(data, model, &filter)?);
    }
    if found.is_empty() {
        let of = model.map(|model| format!(" of {model}")).unwrap_or_default();
        let message = format!("{} has no prediction{of} with the id {request_id:?}", data.display());
        return Err(Error::Failed(message));
    }
    Ok(found)
}

fn find_requests(data: &Path, model: &ModelName, filter: &Filter) -> Result<Vec<LoggedRequest>, Error> {
    let sources = Sources::open(data, model, filter)?;
    let mut assembler = Assembler::default();
    let mut found = Vec::new();
    let options = ScanOptions {
        filter,
        join_feedback: false,
        budget: Budget::default(),
        first_chunk: None,
        progress: &|_, _, _| {},
    };
    scan(&sources, &options, &mut |scanned| {
        found.extend(assembler.push(&scanned).map_err(|error| scanned.source.stored.locate(error))?);
        Ok(ControlFlow::Continue(()))
    })?;
    found.extend(assembler.finish());
    Ok(found)
}

fn run_again(engines: &dyn Loader, models: &Path, logged: &LoggedRequest) -> Reproduced {
    let mut reproduced = Reproduced {
        model: logged.model().clone(),
        version: logged.version(),
        role: logged.role.clone(),
        at: Timestamp::from_microsecond(logged.ts).unwrap_or_default(),
        sha256: logged.about.sha256.clone(),
        records: logged.records,
        batch_rows: logged.batch_rows,
        ran: None,
        outcome: Outcome::NotRun(String::new()),
    };
    reproduced.outcome = try_to_run(engines, models, logged, &mut reproduced.ran).unwrap_or_else(Outcome::NotRun);
    reproduced
}

fn try_to_run(
    engines: &dyn Loader,
    models: &Path,
    logged: &LoggedRequest,
    ran: &mut Option<(Version, &'static str)>,
) -> Result<Outcome, String> {
    let why = |reason: SkipReason| match &logged.read_error {
        Some(error) => format!("{}: {error}", reason.message()),
        None if logged.status != LoggedRequest::OK => format!("it was answered with {}", logged.status),
        None => reason.message().to_owned(),
    };
    let expected = Answer::from(logged.outputs().map_err(why)?);
    let inputs = logged.inputs().map_err(why)?;
    let (number, dir) = find_version(models, logged)?;
    let version = load_offline(engines, &dir)?;
    *ran = Some((number, version.runner.engine()));
    let (got, _) = run(&version, &inputs, &expected).map_err(|failure| {
        let internal = failure.internal.map(|text| format!(" ({text})")).unwrap_or_default();
        format!("it failed: {}{internal}", failure.message)
    })?;
    let same = |(name, tensor): &(std::sync::Arc<str>, crate::tensor::Tensor)| {
        got.outputs.iter().any(|(other, got)| other == name && bits::equal(tensor, got))
    };
    if expected.outputs.iter().all(same) {
        return Ok(Outcome::Equal { outputs: expected.outputs.len() });
    }
    if logged.batch_rows != logged.records {
        let rounding = Tolerance::of_rounding(expected.outputs.iter().map(|(_, tensor)| tensor.datatype()));
        let compared = compare_answers(&expected, &got, rounding);
        return Ok(if compared.agrees() { Outcome::Close(compared) } else { Outcome::Different(compared) });
    }
    Ok(Outcome::Different(compare_answers(&expected, &got, Tolerance::default())))
}

/// The version whose model file has the logged digest: the one that answered, else any other.
pub(super) fn find_version(models: &Path, logged: &LoggedRequest) -> Result<(Version, PathBuf), String> {
    let (model, version, wanted) = (logged.model(), logged.version(), &logged.about.sha256);
    let own = version_dir(models, model, version);
    let own_state = match model_sha256(&own) {
        Ok(digest) if digest == *wanted => return Ok((version, own)),
        Ok(digest) => format!("{} has another model file now, with sha256 {digest}", own.display()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => format!("{} does not exist any more", own.display()),
        Err(e) => format!("{} cannot be read: {e}", own.display()),
    };
    let others = versions_of(models, model).unwrap_or_default().into_iter();
    let mut others = others.filter(|(number, _)| *number != version);
    let found = others.find(|(_, dir)| model_sha256(dir).is_ok_and(|digest| digest == *wanted));
    found.ok_or_else(|| {
        format!("no version of {model} has the model file that answered, with sha256 {wanted}: {own_state}")
    })
}
