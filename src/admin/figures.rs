//! Handlers of figures over time: requests, latency and failures of each arm.

use super::Admin;
use super::caller::Caller;
use super::error::ErrorResponse;
use super::extract::{Parameters, Target};
use super::schemas::Problem;
use crate::access::Action;
use crate::history::{Compared, FirstDay, LIMIT, Percentiles, Point, Recent, SeriesOf, seconds_now};
use crate::ledger::rfc3339;
use crate::model::Version;
use crate::settings::parse_duration;
use crate::stability::{Checked, Ran};
use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// A point of the last hour is a minute.
pub(super) const MINUTE: u32 = 60;
pub(super) const MINUTES: usize = 60;
const LONGEST_S: u64 = 14 * 86_400;

/// The figures of all models.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AllFigures {
    /// By name; those that the caller may see and that had requests in the last hour.
    models: BTreeMap<String, Now>,
}

/// What a model or an arm does now.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FiguresNow)]
pub(super) struct Now {
    /// In the last ten seconds with requests, not older than a minute; 0 without any.
    pub(super) requests_per_s: f64,
    /// From 0 to 1, of the same requests; null without any.
    pub(super) failed: Option<f64>,
    /// Percentiles of the latency in microseconds; of several arms the slowest. Null without requests.
    p50_us: Option<u32>,
    pub(super) p99_us: Option<u32>,
    /// Requests per second in each minute of the last hour, the oldest first.
    last_hour: Vec<f64>,
}

/// The figures of a model over time.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelFigures {
    model: String,
    #[schema(format = DateTime)]
    from: String,
    #[schema(format = DateTime)]
    to: String,
    /// One for each version and arm that had requests.
    series: Vec<Series>,
    /// Of each version whose first day is over, and that had requests in the last two weeks: the last 24 hours against it, whatever the window.
    first_days: Vec<AgainstFirstDay>,
    /// Of each version that traffic goes to: logged predictions that the server ran again last.
    reproduced: Vec<Reproduced>,
}

/// A random sample of logged predictions of a version, run again with the same model file.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Reproduced {
    #[schema(value_type = String)]
    version: Version,
    #[schema(format = DateTime)]
    at: String,
    /// Answered requests of the last hour that the sample was drawn from, and what came of it; null where nothing was run.
    #[schema(value_type = Option<RanAgain>)]
    ran: Option<Ran>,
    /// Why nothing was run.
    error: Option<String>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a type of another room")]
pub(super) struct RanAgain {
    answered: u64,
    /// Bit for bit as logged.
    equal: u64,
    /// The same within rounding, where the request had run together with others.
    close: u64,
    different: u64,
    /// Requests whose inputs are not recorded as they were.
    not_run: u64,
    /// The id of a request with another answer, and how far it is off.
    first_different: Option<String>,
    words: Option<String>,
    why_not_run: Option<String>,
}

/// A version against its first day.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AgainstFirstDay {
    #[schema(value_type = String)]
    version: Version,
    /// The first day, or as much longer as it took until 72 spans of five minutes had enough requests.
    #[schema(format = DateTime)]
    from: String,
    #[schema(format = DateTime)]
    to: String,
    /// A measure is slower when its median is this many times that of the first day: `[first_day] limit` of model.toml (docs/MONITORING.md says when
    /// exactly).
    limit: f64,
    measures: Vec<MeasureOf>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MeasureOf {
    /// `p50_us`, `p99_us` (of the latency) or `engine_us_per_row` (the time in the engine for each row).
    measure: &'static str,
    /// The median over spans of five minutes, in microseconds.
    first_day: f64,
    /// The same of the last 24 hours; null where they have too few requests.
    now: Option<f64>,
    ratio: Option<f64>,
    slower: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FiguresSeries)]
pub(super) struct Series {
    #[schema(value_type = String)]
    version: Version,
    arm: String,
    #[serde(flatten)]
    now: Now,
    latency: Latency,
    /// Spans with requests, the oldest first: ten seconds each for the last hours, five minutes each before.
    points: Vec<PointOf>,
}

/// How long requests took since the counts of the arm began: a change of the traffic document begins new ones.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FiguresLatency)]
pub(super) struct Latency {
    requests: u64,
    /// Rising; only those that so many requests can tell, and the longest. Empty without requests.
    percentiles: Vec<PercentileOf>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FiguresPercentile)]
pub(super) struct PercentileOf {
    /// The share of the requests that took at most so long; 1 is the longest.
    share: f64,
    us: u32,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FiguresPoint)]
pub(super) struct PointOf {
    /// The end of the span.
    #[schema(format = DateTime)]
    ts: String,
    span_s: u32,
    requests_per_s: f64,
    failed: Option<f64>,
    p50_us: Option<u32>,
    p99_us: Option<u32>,
}

impl Now {
    pub(super) fn of(last: &[Point], last_hour: Vec<f64>) -> Now {
        let (requests, failed) = last.iter().fold((0, 0), |(r, f), point| (r + point.requests, f + point.failed));
        let slowest = |of: fn(&Point) -> u32| last.iter().map(of).max().filter(|us| *us > 0);
        Now {
            // The sum of nothing is -0.
            requests_per_s: last.iter().map(Point::requests_per_s).sum::<f64>() + 0.0,
            failed: (requests > 0).then(|| f64::from(failed) / f64::from(requests)),
            p50_us: slowest(|point| point.p50_us),
            p99_us: slowest(|point| point.p99_us),
            last_hour,
        }
    }
}

/// The figures of all models
///
/// Requests per second, latency and failures now, and requests over the last hour.
#[utoipa::path(
    get, path = "/api/v1/figures", operation_id = "list_figures", tag = "models",
    responses((status = 200, description = "Of models that the caller may see", body = AllFigures))
)]
pub(super) async fn list(State(admin): State<Arc<Admin>>, Caller(caller): Caller) -> Json<AllFigures> {
    let (snapshot, now) = (admin.reader.snapshot(), seconds_now());
    let visible = snapshot.models().filter(|entry| caller.may(Action::View, Some(entry.name().as_str())));
    let mut recent = admin.history.recent(now, MINUTE, MINUTES, |_| true);
    let figures = visible.filter_map(|entry| {
        let Recent { rates, last } = recent.remove(entry.name())?;
        let used = rates.iter().any(|rate| *rate > 0.0);
        used.then(|| (entry.name().to_string(), Now::of(&last, rates)))
    });
    Json(AllFigures { models: figures.collect() })
}

/// The figures of a model
///
/// Requests, latency and failures of each version and arm over time. They are kept for two weeks, also over a restart. And each version's latency and time
/// in the engine against its first day.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/figures", operation_id = "show_figures", tag = "models",
    params(
        ("model" = String, Path),
        ("window" = Option<String>, Query, description = "How far back, such as 15m or 7d; up to 14d. Default 1h"),
    ),
    responses(
        (status = 200, description = "The figures; without series before the first request", body = ModelFigures),
        (status = 400, description = "The query is wrong", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
    )
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    target: Target,
    mut parameters: Parameters,
) -> Result<Json<ModelFigures>, ErrorResponse> {
    let expected = "a time from 1s to 14d, such as 15m";
    let window = parameters.take("window", |text| {
        let window = parse_duration(text).ok_or_else(|| expected.to_owned())?.as_secs();
        if (1..=LONGEST_S).contains(&window) { Ok(window) } else { Err(expected.to_owned()) }
    });
    parameters.finish()?;
    let snapshot = admin.reader.snapshot();
    let entry = target.entry(&snapshot)?;
    let model = entry.name();
    let now = seconds_now();
    let from = now.saturating_sub(u32::try_from(window.unwrap_or(3600)).unwrap_or(u32::MAX));
    let series = admin.history.of(model, from).into_iter().filter(|of| !of.points.is_empty());
    let series = series.map(|SeriesOf { version, arm, points, latency }| {
        let mut last_hour = vec![0.0; MINUTES];
        for point in &points {
            let age = (now.saturating_sub(point.ts) / MINUTE) as usize;
            if age < MINUTES {
                last_hour[MINUTES - 1 - age] += f64::from(point.requests) / f64::from(MINUTE);
            }
        }
        let last = points.last().filter(|point| now.saturating_sub(point.ts) <= MINUTE);
        let now = Now::of(last.map(std::slice::from_ref).unwrap_or_default(), last_hour);
        let latency = Latency::of(latency);
        Series { version, arm, now, latency, points: points.iter().map(PointOf::of).collect() }
    });
    let (from, to) = (time(from), time(now));
    let limit = entry.first_day_limit();
    let first_days = admin.history.against_first_day(model, now, limit);
    let first_days = first_days.into_iter().map(|of| AgainstFirstDay::of(of, limit.unwrap_or(LIMIT))).collect();
    let reproduced = admin.stability.of(model).into_iter().map(Reproduced::of).collect();
    Ok(Json(ModelFigures { model: model.to_string(), from, to, series: series.collect(), first_days, reproduced }))
}

impl Reproduced {
    fn of((version, checked): (Version, Checked)) -> Reproduced {
        let (ran, error) = match checked.ran {
            Ok(ran) => (Some(ran), None),
            Err(error) => (None, Some(error)),
        };
        Reproduced { version, at: rfc3339(checked.at), ran, error }
    }
}

impl AgainstFirstDay {
    fn of((version, day, compared): (Version, FirstDay, Vec<Compared>), limit: f64) -> AgainstFirstDay {
        let measure = |Compared { measure, first, now, slower }: Compared| MeasureOf {
            measure: measure.as_str(),
            first_day: first.median,
            now,
            ratio: now.map(|now| now / first.median),
            slower,
        };
        let measures = compared.into_iter().map(measure).collect();
        AgainstFirstDay { version, from: time(day.from), to: time(day.to), limit, measures }
    }
}

impl Latency {
    fn of(latency: Percentiles) -> Latency {
        let Percentiles { requests, of } = latency;
        Latency { requests, percentiles: of.into_iter().map(|(share, us)| PercentileOf { share, us }).collect() }
    }
}

impl PointOf {
    fn of(point: &Point) -> PointOf {
        let known = |us: u32| Some(us).filter(|us| *us > 0);
        PointOf {
            ts: time(point.ts),
            span_s: point.span,
            requests_per_s: point.requests_per_s(),
            failed: point.failed_share(),
            p50_us: known(point.p50_us),
            p99_us: known(point.p99_us),
        }
    }
}

fn time(seconds: u32) -> String {
    rfc3339(Timestamp::from_second(seconds.into()).unwrap_or_default())
}
