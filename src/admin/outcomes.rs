//! Handlers of quality over windows and of experiments.

use super::Admin;
use super::error::ErrorResponse;
use super::extract::{Parameters, Target};
use super::history::read;
use super::schemas::Problem;
use crate::columns::resolve;
use crate::ledger::{HistoryEntry, rfc3339};
use crate::model::{Code, Failure, ModelName};
use crate::outcomes::Metrics;
use crate::outcomes::experiment::{Experiment, Setup, SetupArm, experiment};
use crate::outcomes::windows::{Ask, Windows, windows};
use crate::quality::Whole;
use crate::quality::exchange::Together;
use crate::registry::Entry;
use crate::route::{self, Document};
use crate::settings::parse_duration;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use utoipa::ToSchema;

/// The quality of a model over a window, from the sample of rows that the history keeps.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WindowedQuality {
    #[schema(value_type = String)]
    model: ModelName,
    /// `complete`; or `reading` while the history before the start of the server is still read from the log: figures may grow then.
    history: &'static str,
    /// Whose rows these are; null in no fleet.
    fleet: Option<EvidenceOfFleet>,
    #[serde(flatten)]
    windows: Windows,
}

/// Whose rows, or counts, the figures are from. Each row counts once.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EvidenceOfFleet {
    gateways: Vec<EvidenceOfGateway>,
    /// Gateways that are there and answer for the model, and whose rows or counts are not in the figures.
    missing: Vec<String>,
    /// Why the newest rows of other gateways are not in the figures; null where they are.
    waits: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EvidenceOfGateway {
    name: String,
    /// When it gave something new for the last time, by its clock; null where that is not known.
    #[schema(format = DateTime)]
    as_of: Option<String>,
}

impl EvidenceOfFleet {
    /// `own`: the gateway that answers, whose rows are as they are now.
    pub(super) fn of(own: &str, together: Together) -> EvidenceOfFleet {
        let time = |micros: i64| jiff::Timestamp::from_microsecond(micros).ok().map(rfc3339);
        let others = together.gateways.into_iter().map(|(name, as_of)| EvidenceOfGateway { name, as_of: time(as_of) });
        let own = EvidenceOfGateway { name: own.to_owned(), as_of: time(crate::record::now()) };
        let mut gateways: Vec<EvidenceOfGateway> = std::iter::once(own).chain(others).collect();
        gateways.sort_by(|a, b| a.name.cmp(&b.name));
        EvidenceOfFleet { gateways, missing: together.missing, waits: together.waits }
    }

    /// Those whose counts are in an hour that was closed for all.
    pub(super) fn of_hour(
        gateways: impl IntoIterator<Item = String>,
        missing: impl IntoIterator<Item = String>,
    ) -> EvidenceOfFleet {
        let gateways = gateways.into_iter().map(|name| EvidenceOfGateway { name, as_of: None });
        EvidenceOfFleet { gateways: gateways.collect(), missing: missing.into_iter().collect(), waits: None }
    }
}

/// The rows of a model, of all gateways of the fleet.
pub(super) async fn whole<T: Send + 'static>(
    admin: &Admin,
    model: &ModelName,
    work: impl FnOnce(&Whole) -> T + Send + 'static,
) -> Result<(T, Option<EvidenceOfFleet>), ErrorResponse> {
    if let Some(fleet) = &admin.fleet {
        fleet.newest(model).await;
    }
    let (history, name) = (admin.quality.history().clone(), model.clone());
    let done = compute(move || {
        let whole = history.whole(&name, i64::MIN);
        (work(&whole), whole.fleet)
    });
    let (found, together) = done.await?;
    let own = admin.fleet.as_ref().map_or("", |fleet| fleet.node());
    Ok((found, together.map(|together| EvidenceOfFleet::of(own, together))))
}

/// The experiment that the traffic document in force is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ExperimentAnswer {
    #[schema(value_type = String)]
    model: ModelName,
    /// The revision of the traffic document that began this split. Later ones changed neither arms, weights, key nor salt.
    began_at_revision: u64,
    /// `complete`; or `reading` while the history before the start of the server is still read from the log.
    history: &'static str,
    /// Whose rows these are; null in no fleet.
    fleet: Option<EvidenceOfFleet>,
    #[serde(flatten)]
    experiment: Experiment,
}

/// The query of quality over windows.
#[derive(Debug)]
pub(super) struct Query {
    window: Option<Duration>,
    step: Option<Duration>,
    by: Option<String>,
}

/// Figures read all rows of a model, so only this many are computed at once.
static COMPUTING: Semaphore = Semaphore::const_new(2);
/// And others wait this long.
const WAIT: Duration = Duration::from_secs(20);
/// The most periods in a window.
const MAX_PERIODS: u128 = 400;
/// The window if only `step` or `by` is given.
const DEFAULT_WINDOW: Duration = Duration::from_hours(7 * 24);

impl Query {
    /// `None` where the request has none of the parameters.
    pub(super) fn read(mut parameters: Parameters, keep: Duration) -> Result<Option<Query>, ErrorResponse> {
        let least = Duration::from_secs(1);
        let duration = |text: &str| {
            let expected = format!(
                "a duration with a unit, such as 12h or 7d, of at least a second and at most the {} h of prediction_log.quality_history",
                keep.as_secs() / 3600
            );
            parse_duration(text).filter(|found| (least..=keep).contains(found)).ok_or(expected)
        };
        let window = parameters.take("window", duration);
        let step = parameters.take("step", duration);
        let by = parameters.take("by", |text| Ok(text.to_owned()));
        parameters.finish()?;
        if let Some(step) = step {
            let periods = window.unwrap_or(DEFAULT_WINDOW.min(keep)).as_nanos().div_ceil(step.as_nanos());
            if periods > MAX_PERIODS {
                let message = format!("step: expected at most {MAX_PERIODS} periods in the window, got {periods}");
                return Err(Failure::new(Code::InvalidRequest, message).into());
            }
        }
        let any = window.is_some() || step.is_some() || by.is_some();
        Ok(any.then_some(Query { window, step, by }))
    }
}

/// Computes on a thread that may take its time.
async fn compute<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ErrorResponse> {
    let busy = || Failure::new(Code::Overloaded, "other figures are being computed; try again shortly");
    let permit = tokio::time::timeout(WAIT, COMPUTING.acquire()).await.map_err(|_| busy())?;
    let done = tokio::task::spawn_blocking(work).await;
    drop(permit);
    done.map_err(|e| Failure::new(Code::Internal, "the figures cannot be computed").with_internal(e.to_string()).into())
}

fn us(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Quality over windows.
pub(super) async fn windowed(admin: &Admin, entry: &Entry, query: Query) -> Result<WindowedQuality, ErrorResponse> {
    let Query { window, step, by } = query;
    let history = admin.quality.history().clone();
    let to = crate::record::now();
    let from = to.saturating_sub(us(window.unwrap_or(DEFAULT_WINDOW.min(history.keep()))));
    let step = step.map(us);
    let from = step.map_or(from, |step| from.div_euclid(step) * step);
    let by = by.map(|by| full_name(entry, by));
    let (model, metrics) = (entry.name().clone(), Arc::clone(entry.metrics()));
    let state = history.state();
    let ask = Ask { from, to, step, by };
    let (found, fleet) = whole(admin, &model, move |whole| windows(&whole.snapshot, &metrics, &ask)).await?;
    let windows = found.map_err(|words| Failure::new(Code::InvalidRequest, words))?;
    Ok(WindowedQuality { model, history: state, fleet, windows })
}

/// The full name of the column that a short form means. A name that means none stays, and is refused where it is used.
fn full_name(entry: &Entry, by: String) -> String {
    let signature = entry.representative().map(|served| &served.loaded.facts.signature);
    let column = signature.and_then(|signature| resolve(signature, entry.features(), &by).ok());
    column.map_or(by, |column| column.name)
}

/// The experiment of a model
///
/// Compares the arms of the split in force for each metric of `model.toml`, counting from the revision that began the split. The intervals hold
/// however often one looks at them, and over all comparisons together.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/experiment", operation_id = "show_experiment", tag = "quality",
    params(("model" = String, Path)),
    responses(
        (status = 200, description = "The comparison of the arms", body = ExperimentAnswer),
        (status = 404, description = "No model has this name", body = Problem),
        (status = 409, description = "The split in force has fewer than two arms with a weight", body = Problem),
        (status = 503, description = "Too many figures are being computed", body = Problem),
    )
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    target: Target,
    parameters: Parameters,
) -> Result<Json<ExperimentAnswer>, ErrorResponse> {
    parameters.finish()?;
    let snapshot = admin.reader.snapshot();
    let entry = Arc::clone(target.entry(&snapshot)?);
    drop(snapshot);
    let model = entry.name().clone();
    let no_split = |words: String| Failure::new(Code::Conflict, words);
    let document = entry.document().ok_or_else(|| no_split(format!("model {model} has no traffic document yet")))?;
    let name = model.clone();
    let entries = read(&admin.ledger, move |ledger| ledger.history(&name)).await?;
    let (revision, began) = began(&entries, document).unwrap_or((entry.revision(), crate::record::now()));
    let hash = document.split_hash();
    let arms = document.split.iter().filter(|arm| arm.weight > 0.0);
    let arms = arms.map(|arm| SetupArm { name: arm.arm.to_string(), version: arm.version, weight: arm.weight });
    let mut setup = Setup { arms: arms.collect(), began, now: crate::record::now(), alpha: ALPHA };
    let (metrics, state): (Arc<Metrics>, _) = (Arc::clone(entry.metrics()), admin.quality.history().state());
    let found = whole(&admin, &model, move |whole| {
        // A gateway that joined later, or that was away, has had the split for a shorter time than the fleet.
        let splits = whole.fleet.iter().flat_map(|fleet| &fleet.splits).filter(|(of, _)| *of == hash);
        setup.began = splits.map(|(_, began)| *began).fold(setup.began, i64::min);
        experiment(&whole.snapshot, &metrics, &setup)
    });
    let (found, fleet) = found.await?;
    let experiment = found.map_err(no_split)?;
    Ok(Json(ExperimentAnswer { model, began_at_revision: revision, history: state, fleet, experiment }))
}

/// The probability of any error in an experiment.
const ALPHA: f64 = 0.05;

/// The oldest revision since which the split has been as it is now, and its time in microseconds since 1970. `history` is newest first.
fn began(history: &[HistoryEntry], now: &Document) -> Option<(u64, i64)> {
    let history = history.iter().map(|entry| (entry.revision, entry.ts.as_microsecond(), entry.document.as_str()));
    route::began(history, now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Proposal;
    use jiff::Timestamp;
    use serde_json::json;

    fn entry(revision: u64, document: &serde_json::Value) -> HistoryEntry {
        let document = Proposal::parse(document).unwrap().document;
        let ts = Timestamp::from_second(i64::try_from(revision).unwrap() * 10).unwrap();
        let (actor, action) = ("a".to_owned(), "traffic".to_owned());
        HistoryEntry { revision, ts, actor, action, reason: None, document: document.to_json() }
    }

    #[test]
    fn an_experiment_begins_with_its_arms_weights_key_and_salt() {
        let split = |weight: f64, label: &str, salt: &str| {
            json!({"split": [{"version": "1", "weight": 1}, {"version": "2", "weight": weight}], "sticky_by": {"header": "x-user"},
                   "labels": {"l": label}, "salt": salt})
        };
        let history = [
            entry(9, &split(1.0, "2", "s")),
            entry(8, &split(1.0, "1", "s")),
            entry(7, &split(2.0, "1", "s")),
            entry(6, &split(1.0, "1", "s")),
        ];
        let now = Document::from_json(&history[0].document).unwrap();
        assert_eq!(began(&history, &now), Some((8, 80_000_000)), "a label moves nobody, a weight does");
        let salted = Proposal::parse(&split(1.0, "2", "t")).unwrap().document;
        assert_eq!(began(&history, &salted), None);
    }
}
