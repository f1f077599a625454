//! The handler of drift.

use super::Admin;
use super::error::ErrorResponse;
use super::extract::{Parameters, Target};
use super::outcomes::EvidenceOfFleet;
use super::schemas::Problem;
use crate::drift::{ArmReport, Bins, ColumnReport, Look, Reference, Trouble, VersionReport, What, together};
use crate::ledger::rfc3339;
use crate::model::{ModelName, Version};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// How the values of a model's rows differ from those in training.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DriftAnswer)]
pub(super) struct DriftOfModel {
    #[schema(value_type = String)]
    model: ModelName,
    /// One sentence.
    summary: String,
    /// What is wrong now.
    troubles: Vec<TroubleAnswer>,
    versions: Vec<DriftOfVersion>,
    /// Whose counts are in the last hour that was closed for all gateways of the fleet; null in no fleet, and before the first.
    fleet: Option<EvidenceOfFleet>,
    /// The end of that hour.
    #[schema(format = DateTime)]
    closed_until: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DriftTrouble)]
pub(super) struct TroubleAnswer {
    #[schema(value_type = String)]
    version: Version,
    arm: String,
    column: String,
    /// `drift`: the column is different, and it matters; `stuck`: an output has one value; `non_finite`: an output is NaN or infinite.
    what: &'static str,
    /// The beginning of the window that showed it first.
    #[schema(format = DateTime)]
    since: Option<String>,
    words: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DriftOfVersion {
    #[schema(value_type = String)]
    version: Version,
    /// `profile`: its profile.json; `first_day`: the rows of its own first day; null: no reference yet.
    reference: Option<&'static str>,
    reference_rows: u64,
    /// The time of the reference's rows, where it is known.
    #[schema(format = DateTime)]
    reference_from: Option<String>,
    #[schema(format = DateTime)]
    reference_to: Option<String>,
    /// Without a reference: rows so far of its first day; 1000 rows and 24 hours make a reference. Null where none is made.
    first_day_rows: Option<u64>,
    /// From 0 to 1: the share of the model's requests that is counted at the moment.
    counted_share: f64,
    /// Records that were not counted, because there are too many arms or too little memory.
    left_out: u64,
    notes: Vec<String>,
    arms: Vec<DriftOfArm>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DriftOfArm {
    arm: String,
    /// Rows that came since `since`, and those of them that were counted.
    rows: u64,
    counted: u64,
    #[schema(format = DateTime)]
    since: Option<String>,
    /// Whether hours are compared with the same hours of other days, which needs 14 of them. Before, an hour must differ five times as much to
    /// alarm, as it may be a part of a daily cycle; unless missing or new values begin.
    like_with_like: bool,
    columns: Vec<DriftOfColumn>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DriftOfColumn {
    column: String,
    /// The name of the element in `model.toml`.
    name: Option<String>,
    /// Whether it alarms: it is different, and it matters.
    alarm: bool,
    /// The beginning of the window that alarmed first, and its end.
    #[schema(format = DateTime)]
    since: Option<String>,
    #[schema(format = DateTime)]
    told: Option<String>,
    /// The least distance that matters.
    floor: f64,
    /// The last hour, day, week and four weeks that have ended.
    windows: Vec<DriftOfWindow>,
    /// One sentence.
    words: String,
    /// With `?bins=N`, of the N columns of an arm that moved most: reference and live rows by bin. Null of the others.
    bins: Option<DriftBins>,
}

/// Reference and live rows of a column by bin, in the window that alarms, else in the last one that ended.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DriftBins {
    /// `hour`, `day`, `week` or `four_weeks`.
    window: &'static str,
    /// How many of the first bins are intervals of numbers, in their order.
    ordered: usize,
    bins: Vec<DriftBin>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DriftBin {
    name: String,
    /// From 0 to 1: the share of the rows of the reference, and of the window.
    reference: f64,
    live: f64,
}

/// The most columns of an arm with their bins.
const MAX_BINS: usize = 100;

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DriftOfWindow {
    /// `hour`, `day`, `week` or `four_weeks`.
    window: &'static str,
    #[schema(format = DateTime)]
    from: Option<String>,
    #[schema(format = DateTime)]
    to: Option<String>,
    /// Rows that were counted.
    rows: u64,
    /// Is it different: the decimal logarithm of the e-value is at least the needed one.
    different: bool,
    evidence: f64,
    needed: f64,
    /// Does it matter: the Jensen-Shannon distance, from 0 to 1, is at least the floor of this window.
    matters: bool,
    distance: f64,
    floor: f64,
    /// `reference`, or `same_hours` of the last weeks.
    compared_with: &'static str,
    /// How many related rows count as one.
    dispersion: f64,
    mean: Option<f64>,
    /// How far the mean moved, in standard deviations of the reference.
    mean_moved: Option<f64>,
}

/// The drift of a model
///
/// For each version, arm and column: is it different from the reference, and does it matter.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/drift", operation_id = "show_drift", tag = "quality",
    params(
        ("model" = String, Path),
        ("bins" = Option<u32>, Query, maximum = 100, description = "Of so many columns of each arm, those that moved most, also reference and live rows by bin; absent: 0"),
    ),
    responses(
        (status = 200, description = "Without versions where nothing is recorded", body = DriftOfModel),
        (status = 400, description = "A parameter is wrong; the error names it", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
    )
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    target: Target,
    mut parameters: Parameters,
) -> Result<Json<DriftOfModel>, ErrorResponse> {
    let count = |text: &str| {
        let count = text.parse::<usize>().ok().filter(|count| *count <= MAX_BINS);
        count.ok_or_else(|| format!("a number from 0 to {MAX_BINS}"))
    };
    let bins = parameters.take("bins", count).unwrap_or(0);
    parameters.finish()?;
    let snapshot = admin.reader.snapshot();
    let model = target.entry(&snapshot)?.name().clone();
    let drift = admin.log.drift();
    let versions: Vec<DriftOfVersion> =
        drift.report(&model, bins).versions.into_iter().map(DriftOfVersion::of).collect();
    let troubles = drift.troubles().into_iter().filter(|trouble| trouble.model == model);
    let troubles: Vec<TroubleAnswer> = troubles.map(TroubleAnswer::of).collect();
    let closed = drift.closed(&model).filter(|_| admin.fleet.is_some());
    let closed_until = closed.as_ref().and_then(|closed| time(together::begins(closed.hour + 1)));
    let fleet = closed.map(|closed| EvidenceOfFleet::of_hour(closed.gateways, closed.missing));
    let summary = summary(&model, &versions, &troubles);
    Ok(Json(DriftOfModel { model, summary, troubles, versions, fleet, closed_until }))
}

fn summary(model: &ModelName, versions: &[DriftOfVersion], troubles: &[TroubleAnswer]) -> String {
    if let Some(first) = troubles.first() {
        let more = match troubles.len() - 1 {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        return format!("version {} of {model}: {}{more}", first.version, first.words);
    }
    let referenced = versions.iter().filter(|version| version.reference.is_some()).count();
    let judged = versions.iter().flat_map(|version| &version.arms).flat_map(|arm| &arm.columns);
    let judged = judged.filter(|column| !column.windows.is_empty()).count();
    match (versions.len(), referenced, judged) {
        (0, _, _) => format!("no version of {model} is recorded, so its drift is not known"),
        (_, 0, _) => format!("no reference: no version of {model} has a profile.json, and none has a first day yet"),
        (_, _, 0) => format!("no window has ended yet for {model}"),
        (_, _, 1) => format!("no drift that matters in the one column of {model} that is watched"),
        (_, _, judged) => format!("no drift that matters in {judged} columns of {model}"),
    }
}

fn time(micros: i64) -> Option<String> {
    jiff::Timestamp::from_microsecond(micros).ok().map(rfc3339)
}

impl TroubleAnswer {
    fn of(trouble: Trouble) -> TroubleAnswer {
        TroubleAnswer {
            version: trouble.version,
            arm: trouble.arm,
            column: trouble.column,
            what: match trouble.what {
                What::Drift => "drift",
                What::Stuck => "stuck",
                What::NonFinite => "non_finite",
            },
            since: time(trouble.since),
            words: trouble.words,
        }
    }
}

impl DriftOfVersion {
    fn of(version: VersionReport) -> DriftOfVersion {
        DriftOfVersion {
            version: version.version,
            reference: version.reference.map(|reference| match reference {
                Reference::Profile => "profile",
                Reference::FirstDay => "first_day",
            }),
            reference_rows: version.reference_rows,
            reference_from: version.from.map(rfc3339),
            reference_to: version.to.map(rfc3339),
            first_day_rows: version.first_day_rows,
            counted_share: version.share,
            left_out: version.left_out,
            notes: version.notes,
            arms: version.arms.into_iter().map(DriftOfArm::of).collect(),
        }
    }
}

impl DriftOfArm {
    fn of(arm: ArmReport) -> DriftOfArm {
        DriftOfArm {
            arm: arm.arm,
            rows: arm.offered,
            counted: arm.rows,
            since: arm.since.and_then(time),
            like_with_like: arm.alike,
            columns: arm.columns.into_iter().map(DriftOfColumn::of).collect(),
        }
    }
}

impl DriftOfColumn {
    fn of(column: ColumnReport) -> DriftOfColumn {
        DriftOfColumn {
            bins: column.bins.map(DriftBins::of),
            column: column.name,
            name: column.element_name,
            alarm: column.alarm.is_some(),
            since: column.alarm.and_then(|(_, since, _)| time(since)),
            told: column.alarm.and_then(|(_, _, told)| time(told)),
            floor: column.floor,
            windows: column.looks.into_iter().map(DriftOfWindow::of).collect(),
            words: column.words,
        }
    }
}

impl DriftBins {
    fn of(bins: Bins) -> DriftBins {
        let Bins { window, ordered, bins } = bins;
        let bin = |bin: crate::drift::Bin| DriftBin { name: bin.name, reference: bin.reference, live: bin.live };
        DriftBins { window: window.as_str(), ordered, bins: bins.into_iter().map(bin).collect() }
    }
}

impl DriftOfWindow {
    fn of(look: Look) -> DriftOfWindow {
        DriftOfWindow {
            window: look.window.as_str(),
            from: time(look.from),
            to: time(look.to),
            rows: look.rows,
            different: look.different,
            evidence: look.evidence,
            needed: look.needed,
            matters: look.matters,
            distance: look.distance,
            floor: look.floor,
            compared_with: if look.alike { "same_hours" } else { "reference" },
            dispersion: look.dispersion,
            mean: look.mean,
            mean_moved: look.moved,
        }
    }
}
