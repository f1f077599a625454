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
use crate::prepare::{Loader, ModelDirs, OfflineVersion, load_offline, model_sha256};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

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
    models: &ModelDirs,
    model: Option<&ModelName>,
    request_id: &str,
) -> Result<Vec<Reproduced>, Error> {
    let found = find_logged(data, models, model, request_id)?;
    let mut loaded = Loaded::default();
    Ok(found.iter().map(|logged| run_again(engines, models, logged, &mut loaded)).collect())
}

/// Which predictions to run again.
#[derive(Debug, Clone)]
pub struct ReproduceSample<'a> {
    pub data: &'a Path,
    pub models: &'a ModelDirs,
    pub model: &'a ModelName,
    pub version: Version,
    /// Only of this time on, in microseconds since 1970.
    pub from: i64,
    /// How many requests.
    pub requests: usize,
    /// No request begins after it.
    pub deadline: Instant,
}

/// A sample of predictions, run again.
#[derive(Debug)]
pub struct ReproducedSample {
    pub model: ModelName,
    pub version: Version,
    /// Answered requests of that time; at most [`MAX_READ`] are looked at.
    pub answered: usize,
    /// With their request ids.
    pub ran: Vec<(String, Reproduced)>,
}

/// The most answered requests that a sample is drawn from.
pub const MAX_READ: usize = 10_000;
/// The most requests of a sample.
pub const MAX_SAMPLE: usize = 1000;

/// Runs a random sample of the answers that a version gave to callers again.
///
/// # Errors
/// When something cannot be read.
pub fn reproduce_sample(engines: &dyn Loader, what: &ReproduceSample) -> Result<ReproducedSample, Error> {
    let filter = Filter { from: Some(what.from), versions: vec![what.version], ..Filter::default() };
    let sources = Sources::open(what.data, what.model, &filter)?;
    let mut assembler = Assembler::default();
    let (mut drawn, mut answered): (Vec<LoggedRequest>, usize) = (Vec::new(), 0);
    let mut draw = |logged: LoggedRequest| {
        if logged.status == LoggedRequest::OK {
            answered += 1;
            let place = fastrand::usize(..answered);
            if drawn.len() < what.requests {
                drawn.push(logged);
            } else if let Some(other) = drawn.get_mut(place) {
                *other = logged;
            }
        }
        answered < MAX_READ
    };
    let options = ScanOptions {
        filter: &filter,
        join_feedback: false,
        budget: Budget { rows: 100_000, bytes: 16 << 20 },
        first_chunk: None,
        progress: &|_, _, _| {},
    };
    scan(&sources, &options, &mut |scanned| {
        let complete = assembler.push(&scanned).map_err(|error| scanned.source.stored.locate(error))?;
        let mut go_on = true;
        for logged in complete {
            go_on &= draw(logged);
        }
        Ok(if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    if let Some(last) = assembler.finish() {
        draw(last);
    }
    let mut loaded = Loaded::default();
    let in_time = drawn.into_iter().take_while(|_| Instant::now() < what.deadline);
    let ran = in_time.map(|logged| {
        let reproduced = run_again(engines, what.models, &logged, &mut loaded);
        (logged.request_id, reproduced)
    });
    let ran = ran.collect();
    Ok(ReproducedSample { model: what.model.clone(), version: what.version, answered, ran })
}

/// All logged predictions with a request id, of one model or of all.
///
/// # Errors
/// When there is none, or something cannot be read.
pub(super) fn find_logged(
    data: &Path,
    models: &ModelDirs,
    model: Option<&ModelName>,
    request_id: &str,
) -> Result<Vec<LoggedRequest>, Error> {
    let candidates: BTreeSet<ModelName> = match model {
        Some(model) => [model.clone()].into(),
        // A new model may have records only in segments, but it has a directory in the models directory.
        None => sources::models(data)?.into_iter().chain(models.models()).collect(),
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

/// The version that ran last, so that many predictions of one version load it once.
#[derive(Debug, Default)]
struct Loaded(Option<(String, Version, OfflineVersion)>);

fn run_again(engines: &dyn Loader, models: &ModelDirs, logged: &LoggedRequest, loaded: &mut Loaded) -> Reproduced {
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
    reproduced.outcome =
        try_to_run(engines, models, logged, loaded, &mut reproduced.ran).unwrap_or_else(Outcome::NotRun);
    reproduced
}

fn try_to_run(
    engines: &dyn Loader,
    models: &ModelDirs,
    logged: &LoggedRequest,
    loaded: &mut Loaded,
    ran: &mut Option<(Version, &'static str)>,
) -> Result<Outcome, String> {
    let why = |reason: SkipReason| match &logged.read_error {
        Some(error) => format!("{}: {error}", reason.message()),
        None if logged.status != LoggedRequest::OK => format!("it was answered with {}", logged.status),
        None => reason.message().to_owned(),
    };
    let expected = Answer::from(logged.outputs().map_err(why)?);
    let inputs = logged.inputs().map_err(why)?;
    let (number, version) = loaded.load(engines, models, logged)?;
    *ran = Some((number, version.runner.engine()));
    let (got, _) = run(version, &inputs, &expected).map_err(|failure| {
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

impl Loaded {
    /// The version with the model file that answered, loaded where it is not yet.
    fn load(
        &mut self,
        engines: &dyn Loader,
        models: &ModelDirs,
        logged: &LoggedRequest,
    ) -> Result<(Version, &OfflineVersion), String> {
        let wanted = &logged.about.sha256;
        if self.0.as_ref().is_none_or(|(sha256, ..)| sha256 != wanted) {
            let (number, dir) = find_version(models, logged)?;
            // One version is in memory at a time.
            self.0 = None;
            self.0 = Some((wanted.clone(), number, load_offline(engines, &dir)?));
        }
        let (_, number, version) = self.0.as_ref().ok_or("no version is loaded")?;
        Ok((*number, version))
    }
}

/// The version whose model file has the logged digest: the one that answered, else any other.
pub(super) fn find_version(models: &ModelDirs, logged: &LoggedRequest) -> Result<(Version, PathBuf), String> {
    let (model, version, wanted) = (logged.model(), logged.version(), &logged.about.sha256);
    let own = models.version(model, version);
    let own_state = match model_sha256(&own) {
        Ok(digest) if digest == *wanted => return Ok((version, own)),
        Ok(digest) => format!("{} has another model file now, with sha256 {digest}", own.display()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => format!("{} does not exist any more", own.display()),
        Err(e) => format!("{} cannot be read: {e}", own.display()),
    };
    let mut others = models.versions(model).into_iter().filter(|(_, dir)| *dir != own);
    let found = others.find(|(_, dir)| model_sha256(dir).is_ok_and(|digest| digest == *wanted));
    found.ok_or_else(|| {
        format!("no version of {model} has the model file that answered, with sha256 {wanted}: {own_state}")
    })
}
