//! One logged prediction, run again by the same bytes.

use super::bits;
use super::error::Error;
use super::pick::Pick;
use super::replay::run;
use super::requests::{Logged, Requests};
use super::source::{self, Sources};
use super::walk::{Budget, Way, walk};
use crate::compare::{Comparison, Tolerance, compare_answers};
use crate::model::{Answer, ModelName, Role, Version};
use crate::prepare::{Loader, load_offline, model_sha256, version_dir, versions_of};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// A logged prediction, and what became of it now.
#[derive(Debug)]
pub struct Reproduced {
    pub model: ModelName,
    /// That answered.
    pub version: Version,
    pub role: String,
    pub at: Timestamp,
    /// Of the bytes that answered.
    pub sha256: String,
    /// How many records it is.
    pub records: usize,
    /// How many rows ran together then, its own among them.
    pub batch_rows: usize,
    /// The version that has those bytes now, and the engine that ran them.
    pub ran: Option<(Version, &'static str)>,
    pub outcome: Outcome,
}

#[derive(Debug)]
pub enum Outcome {
    /// Every output that was logged is the same to the bit.
    Equal {
        outputs: usize,
    },
    Apart(Comparison),
    /// Why it could not be run again.
    Not(String),
}

impl Reproduced {
    #[must_use]
    pub fn is_equal(&self) -> bool {
        matches!(self.outcome, Outcome::Equal { .. })
    }
}

/// Runs every logged prediction of an id again: of one model, or of all.
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
    let candidates: BTreeSet<ModelName> = match model {
        Some(model) => [model.clone()].into(),
        // One that was first asked a moment ago is in the segments alone, and has a directory.
        None => source::models(data)?.into_iter().chain(source::models_in(models)).collect(),
    };
    let pick = Pick { roles: Role::ALL.to_vec(), request_id: Some(request_id.to_owned()), ..Pick::default() };
    let mut found = Vec::new();
    for model in &candidates {
        found.extend(logged(data, model, &pick)?);
    }
    if found.is_empty() {
        let of = model.map(|model| format!(" of {model}")).unwrap_or_default();
        let words = format!("{} has no prediction{of} with the id {request_id:?}", data.display());
        return Err(Error::Failed(words));
    }
    Ok(found.iter().map(|logged| again(engines, models, logged)).collect())
}

fn logged(data: &Path, model: &ModelName, pick: &Pick) -> Result<Vec<Logged>, Error> {
    let sources = Sources::open(data, model, pick)?;
    let mut requests = Requests::default();
    let mut found = Vec::new();
    let way = Way { pick, labels: false, budget: Budget::default(), first: None, progress: &|_, _, _| {} };
    walk(&sources, &way, &mut |step| {
        found.extend(requests.push(&step).map_err(|error| step.source.stored.named(error))?);
        Ok(ControlFlow::Continue(()))
    })?;
    found.extend(requests.finish());
    Ok(found)
}

fn again(engines: &dyn Loader, models: &Path, logged: &Logged) -> Reproduced {
    let mut reproduced = Reproduced {
        model: logged.model().clone(),
        version: logged.version(),
        role: logged.role.clone(),
        at: Timestamp::from_microsecond(logged.ts).unwrap_or_default(),
        sha256: logged.about.sha256.clone(),
        records: logged.records,
        batch_rows: logged.batch_rows,
        ran: None,
        outcome: Outcome::Not(String::new()),
    };
    reproduced.outcome = try_again(engines, models, logged, &mut reproduced.ran).unwrap_or_else(Outcome::Not);
    reproduced
}

fn try_again(
    engines: &dyn Loader,
    models: &Path,
    logged: &Logged,
    ran: &mut Option<(Version, &'static str)>,
) -> Result<Outcome, String> {
    let why = |unfit: super::requests::Unfit| match &logged.trouble {
        Some(trouble) => format!("{}: {trouble}", unfit.words()),
        None if logged.status != super::requests::OK => format!("it was answered with {}", logged.status),
        None => unfit.words().to_owned(),
    };
    let expected = Answer { outputs: logged.outputs().map_err(why)? };
    let inputs = logged.inputs().map_err(why)?;
    let (number, dir) = with_bytes(models, logged)?;
    let version = load_offline(engines, &dir)?;
    *ran = Some((number, version.runner.engine()));
    let (got, _) = run(&version, &inputs, &expected).map_err(|failure| {
        let internal = failure.internal.map(|words| format!(" ({words})")).unwrap_or_default();
        format!("it failed: {}{internal}", failure.message)
    })?;
    let same = |(name, tensor): &(std::sync::Arc<str>, crate::tensor::Tensor)| {
        got.outputs.iter().any(|(other, got)| other == name && bits::equal(tensor, got))
    };
    if expected.outputs.iter().all(same) {
        return Ok(Outcome::Equal { outputs: expected.outputs.len() });
    }
    Ok(Outcome::Apart(compare_answers(&expected, &got, Tolerance::default())))
}

/// The version whose model has the logged bytes: the one that answered, else any other.
fn with_bytes(models: &Path, logged: &Logged) -> Result<(Version, PathBuf), String> {
    let (model, version, wanted) = (logged.model(), logged.version(), &logged.about.sha256);
    let own = version_dir(models, model, version);
    let now = match model_sha256(&own) {
        Ok(sum) if sum == *wanted => return Ok((version, own)),
        Ok(sum) => format!("{} holds other bytes now, {sum}", own.display()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => format!("{} is not there any more", own.display()),
        Err(e) => format!("{} cannot be read: {e}", own.display()),
    };
    let others = versions_of(models, model).unwrap_or_default().into_iter();
    let mut others = others.filter(|(number, _)| *number != version);
    let found = others.find(|(_, dir)| model_sha256(dir).is_ok_and(|sum| sum == *wanted));
    found.ok_or_else(|| format!("no version of {model} has the bytes that answered, sha256 {wanted}: {now}"))
}
