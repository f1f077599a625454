//! Handlers of model quality (from feedback) and of the prediction log's status.

use super::Admin;
use super::error::ErrorResponse;
use super::extract::{Parameters, Target};
use super::outcomes::{EvidenceOfFleet, Query, WindowedQuality, whole, windowed};
use super::schemas::Problem;
use crate::ledger::rfc3339;
use crate::model::{ModelName, Version};
use crate::quality::history::ArmOf;
use crate::quality::{ByUnit, Figures, ModelQuality, Moments, Whole, of_rows};
use crate::upload;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// The quality of a model: feedback joined with recent predictions, within a bounded window. `sluicegate export` joins all of them
/// offline.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Quality {
    #[schema(value_type = String)]
    model: ModelName,
    /// Feedback entries received since the server started; in a fleet, on all gateways since each started.
    feedback: u64,
    /// Entries whose prediction is not in the window: it is unknown, too old, or comes later. In a fleet: rows that entries are about and that no gateway has.
    unmatched: u64,
    /// Entries about requests outside the share that is kept.
    left_out: u64,
    /// From 0 to 1: the share of requests kept for the join. Below 1 when more rows arrive within the window than may wait.
    share: f64,
    /// By version and arm, for primary and pinned requests; since the server started, over the share that is kept. In a fleet: over the rows of all
    /// gateways that their histories keep, for as long as `prediction_log.quality_history` says.
    arms: Vec<ArmQuality>,
    /// Whose rows these are; null in no fleet.
    fleet: Option<EvidenceOfFleet>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ArmQuality {
    #[schema(value_type = String)]
    version: Version,
    arm: String,
    /// Rows that were answered and kept for the join.
    predictions: u64,
    /// Rows with any feedback, and rows with a label.
    told: u64,
    labelled: u64,
    /// Labels that cannot be compared with any output.
    unfit: u64,
    /// From 0 to 1: the share of labels that equal the predicted class; null before the first comparison.
    accuracy: Option<f64>,
    classified: u64,
    /// Null before the first label was compared with a number.
    mean_absolute_error: Option<f64>,
    measured: u64,
    label_delay: LabelDelay,
    /// Business values, by name.
    values: BTreeMap<String, ValueQuality>,
}

/// Seconds from a prediction to the `ts` of its first feedback; null before the first.
#[derive(Debug, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "JSON members carry their unit")]
pub(super) struct LabelDelay {
    mean_s: Option<f64>,
    p50_s: Option<f64>,
    p95_s: Option<f64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ValueQuality {
    count: u64,
    mean: f64,
    /// The sample variance over rows; null for fewer than two values.
    variance: Option<f64>,
    /// `key`: the standard error comes from the differences of sticky keys; `request`: from those of requests.
    unit: &'static str,
    /// Sticky keys, or requests, with a value.
    units: u64,
    /// From 0 to 1: the share of them that is kept, chosen by their hash: an arm keeps at most 16,384.
    followed: f64,
    /// Of the mean; rows of one unit are taken for related. Null for fewer than two units.
    standard_error: Option<f64>,
}

/// The quality of a model
///
/// For each version and arm: labels compared with the answers, label delay, and business values. With any parameter: figures over a window of
/// time, each with its 95 % interval, from the sample of rows that the history keeps.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/quality", operation_id = "show_quality", tag = "quality",
    params(
        ("model" = String, Path),
        ("window" = Option<String>, Query, description = "How far back, such as 7d (the default if another parameter is given) or 12h"),
        ("step" = Option<String>, Query, description = "The length of each period, such as 1d; absent: one period"),
        ("by" = Option<String>, Query, description = "The input to group rows by, such as inputs.sex, in any form that docs/MONITORING.md allows; at most 256 columns of inputs are kept"),
    ),
    responses(
        (status = 200, description = "Without arms before the first recorded prediction", body = QualityAnswer),
        (status = 400, description = "A parameter is wrong, or rows cannot be grouped by this input", body = Problem),
        (status = 503, description = "Too many figures are being computed", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
    )
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    target: Target,
    parameters: Parameters,
) -> Result<Json<QualityAnswer>, ErrorResponse> {
    let entry = Arc::clone(target.entry(&admin.reader.snapshot())?);
    Ok(Json(match Query::read(parameters, admin.quality.history().keep())? {
        None if admin.fleet.is_some() => {
            let (name, of) = (entry.name().clone(), admin.quality.of(entry.name()));
            let found = whole(&admin, entry.name(), move |whole| of_whole(&name, &of, whole));
            let (quality, fleet) = found.await?;
            QualityAnswer::Recent(Quality { fleet, ..quality })
        }
        None => QualityAnswer::Recent(quality_of(&admin, entry.name())),
        Some(query) => QualityAnswer::Windows(windowed(&admin, &entry, query).await?),
    }))
}

/// Without parameters the recent quality, else quality over windows.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum QualityAnswer {
    Recent(Quality),
    Windows(WindowedQuality),
}

/// The quality of a model.
pub(super) fn quality_of(admin: &Admin, model: &ModelName) -> Quality {
    let of = admin.quality.of(model);
    if let Some(fleet) = &admin.fleet {
        let whole = admin.quality.history().whole(model, i64::MIN);
        let together = whole.fleet.clone().map(|together| EvidenceOfFleet::of(fleet.node(), together));
        return Quality { fleet: together, ..of_whole(model, &of, &whole) };
    }
    shown(model, of)
}

/// The same of the rows of all gateways of a fleet. `own`: what this one has received.
fn of_whole(model: &ModelName, own: &ModelQuality, whole: &Whole) -> Quality {
    let (feedback, left_out) = whole.fleet.as_ref().map_or((0, 0), |fleet| (fleet.feedback, fleet.left_out));
    let share = whole.snapshot.arms().iter().map(ArmOf::share).fold(1.0, f64::min);
    shown(
        model,
        ModelQuality {
            arms: of_rows(&whole.snapshot),
            feedback: own.feedback + feedback,
            unmatched: whole.unmatched,
            left_out: own.left_out + left_out,
            share,
        },
    )
}

fn shown(model: &ModelName, of: ModelQuality) -> Quality {
    let arm = |((version, arm), figures): ((Version, String), Figures)| ArmQuality {
        version,
        arm,
        predictions: figures.predictions,
        told: figures.with_feedback,
        labelled: figures.labelled,
        unfit: figures.unfit,
        accuracy: figures.accuracy(),
        classified: figures.classified,
        mean_absolute_error: figures.mean_absolute_error(),
        measured: figures.error.count,
        label_delay: LabelDelay {
            mean_s: figures.mean_delay(),
            p50_s: figures.delay_quantile(0.5),
            p95_s: figures.delay_quantile(0.95),
        },
        values: figures
            .known_values()
            .map(|(name, moments)| (name.clone(), ValueQuality::of(moments, figures.by_unit.get(name))))
            .collect(),
    };
    Quality {
        model: model.clone(),
        feedback: of.feedback,
        unmatched: of.unmatched,
        left_out: of.left_out,
        share: of.share,
        arms: of.arms.into_iter().map(arm).collect(),
        fleet: None,
    }
}

impl ValueQuality {
    fn of(moments: &Moments, by_unit: Option<&ByUnit>) -> ValueQuality {
        ValueQuality {
            count: moments.count,
            mean: moments.mean,
            variance: moments.variance(),
            unit: if by_unit.is_some_and(|by_unit| by_unit.is_key) { "key" } else { "request" },
            units: by_unit.map_or(0, |by_unit| by_unit.units),
            followed: by_unit.map_or(1.0, |by_unit| by_unit.followed),
            standard_error: by_unit.and_then(|by_unit| by_unit.standard_error),
        }
    }
}

/// The status of the prediction log.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LogAnswer)]
pub(super) struct LogStatus {
    /// Records written and synced since the server started.
    records: u64,
    /// Records lost since then, by reason: `queue_full`, `disk`, `too_large`, `budget`, `stopping`.
    dropped: BTreeMap<&'static str, u64>,
    /// The share of the offered records that the log kept lately; 1 while it keeps up.
    kept_share: f64,
    /// Since when only a share of the records is kept, because the log cannot keep up; null while all are kept.
    #[schema(format = DateTime)]
    sampling_since: Option<String>,
    /// Records left out for this reason since the start. `sample_rate` of the others accounts for them.
    left_out: u64,
    /// Bytes of records waiting to be written.
    queue_bytes: usize,
    /// Bytes on the disk of records that are not converted to Parquet yet.
    segment_bytes: u64,
    /// Bytes of the Parquet files.
    sealed_bytes: u64,
    /// The most bytes that both may take together.
    disk_budget: u64,
    #[schema(format = DateTime)]
    last_written: Option<String>,
    /// Since when writing fails; null while it works.
    #[schema(format = DateTime)]
    failing_since: Option<String>,
    last_error: Option<String>,
    /// Why a segment cannot be converted to Parquet; it is kept and retried.
    seal_error: Option<String>,
    /// The uploads of Parquet files; null where nothing is uploaded.
    upload: Option<UploadStatus>,
}

/// Uploads of the prediction log to a bucket.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UploadStatus {
    /// The address of the bucket.
    to: String,
    /// This gateway in the names of objects.
    node: String,
    /// Files that arrived since the server started.
    files: u64,
    /// Bytes that were sent for them.
    bytes: u64,
    #[schema(format = DateTime)]
    last_uploaded: Option<String>,
    /// Files that are not in the bucket.
    waiting_files: u64,
    waiting_bytes: u64,
    /// When the file was written that waits longest.
    #[schema(format = DateTime)]
    oldest_waiting: Option<String>,
    /// Files that were deleted before they were uploaded, since the server started, because `disk_budget` was full.
    lost_files: u64,
    /// Since when no file can be uploaded; null while it works.
    #[schema(format = DateTime)]
    failing_since: Option<String>,
    last_error: Option<String>,
}

impl UploadStatus {
    fn of(report: upload::Report) -> UploadStatus {
        let upload::Report { to, node, files, bytes, last_uploaded, failing_since, last_error, waiting } = report;
        UploadStatus {
            to,
            node,
            files,
            bytes,
            last_uploaded: last_uploaded.map(rfc3339),
            waiting_files: waiting.files,
            waiting_bytes: waiting.bytes,
            oldest_waiting: waiting.oldest.map(rfc3339),
            lost_files: waiting.lost_files,
            failing_since: failing_since.map(rfc3339),
            last_error,
        }
    }
}

/// The status of the prediction log
///
/// Records written, records lost, and current errors.
#[utoipa::path(
    get, path = "/api/v1/log", operation_id = "show_log", tag = "quality",
    responses((status = 200, description = "Since the server started", body = LogStatus))
)]
pub(super) async fn log(State(admin): State<Arc<Admin>>) -> Json<LogStatus> {
    let (status, disk) = (admin.log.status(), admin.log.disk_bytes());
    Json(LogStatus {
        records: status.records,
        dropped: admin.log.dropped().map(|(why, records)| (why.as_str(), records)).collect(),
        kept_share: status.kept_share,
        sampling_since: status.sampling_since.map(rfc3339),
        left_out: admin.log.left_out(),
        queue_bytes: admin.log.queue_bytes(),
        segment_bytes: disk.segments,
        sealed_bytes: disk.sealed,
        disk_budget: disk.budget,
        last_written: status.last_written.map(rfc3339),
        failing_since: status.failing_since.map(rfc3339),
        last_error: status.last_error,
        seal_error: status.seal_error,
        upload: admin.uploads.as_ref().map(|uploads| UploadStatus::of(uploads.report())),
    })
}
