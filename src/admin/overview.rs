//! Handler of the overview: one row for each model, what is wrong first, a page at a time.
//!
//! The list of models has every version and document, and the figures of all models have an hour of each: megabytes for 2,000 models, of which a screen
//! shows eighty. Here only the rows that are asked for are made.

use super::Admin;
use super::caller::Caller;
use super::error::ErrorResponse;
use super::extract::Parameters;
use super::figures::{MINUTE, MINUTES, Now};
use super::responses::models::{AnsweringArm, answering, why_not_served};
use super::schemas::Problem;
use crate::access::{Action, Identity};
use crate::alerts::Rule;
use crate::history::{History, Point, Recent, seconds_now};
use crate::model::{ModelName, Version};
use crate::registry::{Entry, Snapshot, State as VersionState};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use utoipa::ToSchema;

/// The rows of an answer, where nothing is asked for, and at most.
const ROWS: usize = 80;
const MOST_ROWS: usize = 1000;
/// The most bytes of a filter: names have at most 128.
const MAX_FILTER: usize = 128;

/// Models as rows.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Overview {
    /// All that the caller may see.
    models: usize,
    /// Those of them whose name contains `filter`.
    found: usize,
    /// Those of the found ones that need attention.
    wrong: usize,
    /// The found ones from `offset` on, at most `limit`.
    rows: Vec<Row>,
}

/// A model with what an operator looks at first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OverviewRow)]
struct Row {
    #[schema(value_type = String)]
    name: ModelName,
    /// Whether requests that name no version are answered.
    ready: bool,
    /// Why they are not.
    reason: Option<String>,
    /// An operator retired the model.
    retired: bool,
    /// How urgent it is. 3: it does not answer; 2: an alert fires; 1: a version failed; 0: nothing is wrong, or it is retired.
    attention: u8,
    /// The arms that answer requests that name no version.
    answers: Vec<AnsweringArm>,
    /// The number of its versions.
    versions: usize,
    /// Those of them that failed.
    #[schema(value_type = Vec<String>)]
    failed_versions: Vec<Version>,
    /// The rules of the alerts that fire and are not silenced, each once.
    alerts: Vec<&'static str>,
    /// Null without requests in the last hour.
    figures: Option<Now>,
}

/// The order of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Attention,
    Name,
    Requests,
    P99,
    Failed,
    Versions,
    Alerts,
}

impl Sort {
    const ALL: [(&str, Sort); 7] = [
        ("attention", Sort::Attention),
        ("name", Sort::Name),
        ("requests", Sort::Requests),
        ("p99", Sort::P99),
        ("failed", Sort::Failed),
        ("versions", Sort::Versions),
        ("alerts", Sort::Alerts),
    ];
}

/// The overview of all models
///
/// One row for each model: whether it answers, with which versions, what is wrong with it, and its figures. A page at a time.
#[utoipa::path(
    get, path = "/api/v1/overview", operation_id = "overview", tag = "models",
    params(
        ("filter" = Option<String>, Query, description = "Only models whose name contains this, whatever its case"),
        ("sort" = Option<String>, Query, description = "attention (the most urgent first; absent: this), name, or the largest first: requests, p99, failed, versions, alerts"),
        ("offset" = Option<usize>, Query, description = "Rows that are left out before the first one; absent: 0"),
        ("limit" = Option<usize>, Query, minimum = 0, maximum = 1000, description = "The largest number of rows; absent: 80"),
    ),
    responses(
        (status = 200, description = "Of models that the caller may see", body = Overview),
        (status = 400, description = "A parameter is wrong; the error names it", body = Problem),
    )
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    Caller(caller): Caller,
    mut parameters: Parameters,
) -> Result<Json<Overview>, ErrorResponse> {
    let filter = parameters.take("filter", |text| {
        if text.len() <= MAX_FILTER { Ok(text.to_lowercase()) } else { Err(format!("at most {MAX_FILTER} bytes")) }
    });
    let sort = parameters.take("sort", |text| {
        let known = Sort::ALL.into_iter().find(|(name, _)| *name == text).map(|(_, sort)| sort);
        known.ok_or_else(|| Sort::ALL.map(|(name, _)| name).join(", "))
    });
    let number = |text: &str, most: usize| {
        let number = text.parse().ok().filter(|number| *number <= most);
        number.ok_or_else(|| format!("a number from 0 to {most}"))
    };
    let offset = parameters.take("offset", |text| number(text, 1_000_000));
    let limit = parameters.take("limit", |text| number(text, MOST_ROWS));
    parameters.finish()?;
    let snapshot = admin.reader.snapshot();
    let alerts = admin.alerts.firing_rules();
    let all = Candidate::all(&snapshot, &alerts, &caller);
    let models = all.len();
    let filter = filter.unwrap_or_default();
    let mut found: Vec<Candidate> = all.into_iter().filter(|one| one.lower.contains(&filter)).collect();
    sorted(&mut found, sort.unwrap_or(Sort::Attention), &admin.history);
    let wrong = found.iter().filter(|one| one.attention > 0).count();
    let shown: Vec<&Candidate> = found.iter().skip(offset.unwrap_or(0)).take(limit.unwrap_or(ROWS)).collect();
    let mut recent = recent(&admin.history, &shown);
    let rows = shown.iter().map(|one| one.row(recent.remove(one.entry.name()))).collect();
    Ok(Json(Overview { models, found: found.len(), wrong, rows }))
}

/// A model before it is known whether it is shown.
struct Candidate<'a> {
    entry: &'a Entry,
    /// The name in lower case.
    lower: String,
    attention: u8,
    alerts: Option<&'a BTreeSet<Rule>>,
}

impl<'a> Candidate<'a> {
    fn all(
        snapshot: &'a Snapshot,
        alerts: &'a HashMap<ModelName, BTreeSet<Rule>>,
        caller: &Identity,
    ) -> Vec<Candidate<'a>> {
        let visible = snapshot.models().filter(|entry| caller.may(Action::View, Some(entry.name().as_str())));
        visible.map(|entry| Candidate::of(entry, alerts.get(entry.name()))).collect()
    }

    fn of(entry: &'a Entry, alerts: Option<&'a BTreeSet<Rule>>) -> Candidate<'a> {
        let failed = || entry.versions().values().any(|version| version.state == VersionState::Failed);
        let attention = match () {
            () if entry.retired().is_some() => 0,
            () if !entry.can_serve() => 3,
            () if alerts.is_some() => 2,
            () => u8::from(failed()),
        };
        Candidate { entry, lower: entry.name().as_str().to_lowercase(), attention, alerts }
    }

    fn row(&self, recent: Option<Recent>) -> Row {
        let Candidate { entry, attention, alerts, .. } = self;
        let failed = entry.versions().values().filter(|version| version.state == VersionState::Failed);
        let used = recent.filter(|recent| recent.rates.iter().any(|rate| *rate > 0.0));
        Row {
            name: entry.name().clone(),
            ready: entry.can_serve(),
            reason: why_not_served(entry),
            retired: entry.retired().is_some(),
            attention: *attention,
            answers: answering(entry),
            versions: entry.versions().len(),
            failed_versions: failed.map(|version| version.version).collect(),
            alerts: alerts.iter().flat_map(|rules| rules.iter()).map(|rule| rule.as_str()).collect(),
            figures: used.map(|Recent { rates, last }| Now::of(&last, rates)),
        }
    }
}

/// Sorts the rows. Those that are equal are sorted by how urgent they are, and then by name.
fn sorted(rows: &mut [Candidate], sort: Sort, history: &History) {
    rows.sort_unstable_by(|a, b| b.attention.cmp(&a.attention).then_with(|| a.lower.cmp(&b.lower)));
    let by_figure = |rows: &mut [Candidate], figure: fn(&Now) -> Option<f64>| {
        let last: HashMap<ModelName, Vec<Point>> = history.last(seconds_now(), MINUTE);
        rows.sort_by_cached_key(|row| {
            let figure = last.get(row.entry.name()).and_then(|last| figure(&Now::of(last, Vec::new())));
            // Figures are never negative, and the bits of such numbers have their order. Those without any come last.
            Reverse(figure.map_or(0, |figure| figure.to_bits() + 1))
        });
    };
    match sort {
        Sort::Attention => {}
        Sort::Name => rows.sort_by(|a, b| a.lower.cmp(&b.lower)),
        Sort::Requests => by_figure(rows, |now| Some(now.requests_per_s)),
        Sort::P99 => by_figure(rows, |now| now.p99_us.map(f64::from)),
        Sort::Failed => by_figure(rows, |now| now.failed),
        Sort::Versions => rows.sort_by_key(|row| Reverse(row.entry.versions().len())),
        Sort::Alerts => rows.sort_by_key(|row| Reverse(row.alerts.map_or(0, BTreeSet::len))),
    }
}

/// The last hour of the models that are shown.
fn recent(history: &History, shown: &[&Candidate]) -> HashMap<ModelName, Recent> {
    let names: BTreeSet<&ModelName> = shown.iter().map(|one| one.entry.name()).collect();
    history.recent(seconds_now(), MINUTE, MINUTES, |model| names.contains(model))
}
