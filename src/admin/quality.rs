//! What feedback says of a model's versions, and how the log that keeps both is doing.

use super::Admin;
use super::ask::Target;
use super::refused::Refused;
use super::shapes::Problem;
use crate::ledger::rfc3339;
use crate::model::{ModelName, Version};
use crate::quality::{Figures, Moments};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// What feedback says of a model, joined live over a bounded recent window; everything there is, offline, by `sluicegate export`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Quality {
    #[schema(value_type = String)]
    model: ModelName,
    /// Entries of feedback taken since the server started.
    feedback: u64,
    /// Of them, those whose prediction is not in the window: unknown, too long ago, or still to come.
    unmatched: u64,
    /// And those about requests outside the share that is kept.
    left_out: u64,
    /// Of 1: the share of requests kept for the join. Below 1 where more rows come in the window than may wait.
    share: f64,
    /// By version and arm, `primary` and `pinned` alike; since the server started, over the share that is kept.
    arms: Vec<ArmQuality>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ArmQuality {
    #[schema(value_type = String)]
    version: Version,
    arm: String,
    /// Rows answered and kept for the join.
    predictions: u64,
    /// Of them, those that something was told about, and those with a label.
    told: u64,
    labelled: u64,
    /// Labels that fit none of the outputs.
    unfit: u64,
    /// Of 1: labels the predicted class was equal to; null where no label was held against a class.
    accuracy: Option<f64>,
    classified: u64,
    /// Null where no label was held against a number.
    mean_absolute_error: Option<f64>,
    measured: u64,
    label_delay: LabelDelay,
    /// Business values by name.
    values: BTreeMap<String, ValueQuality>,
}

/// Seconds from a prediction to the `ts` of the first feedback about it; null while there is none.
#[derive(Debug, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "names on the wire carry their unit")]
pub(super) struct LabelDelay {
    mean_s: Option<f64>,
    p50_s: Option<f64>,
    p95_s: Option<f64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ValueQuality {
    count: u64,
    mean: f64,
    /// The sample variance; null of fewer than two.
    variance: Option<f64>,
}

/// What feedback says of a model
///
/// Labels held against what each version answered on each arm, label delay, and business values.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/quality", operation_id = "show_quality", tag = "quality",
    params(("model" = String, Path)),
    responses(
        (status = 200, description = "Without arms where nothing was recorded yet", body = Quality),
        (status = 404, description = "No model has this name", body = Problem),
    )
)]
pub(super) async fn show(State(admin): State<Arc<Admin>>, target: Target) -> Result<Json<Quality>, Refused> {
    let snapshot = admin.reader.snapshot();
    let model = target.entry(&snapshot)?.name().clone();
    let of = admin.quality.of(&model);
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
        values: figures.values.iter().map(|(name, moments)| (name.clone(), ValueQuality::of(moments))).collect(),
    };
    Ok(Json(Quality {
        model,
        feedback: of.feedback,
        unmatched: of.unmatched,
        left_out: of.left_out,
        share: of.share,
        arms: of.arms.into_iter().map(arm).collect(),
    }))
}

impl ValueQuality {
    fn of(moments: &Moments) -> ValueQuality {
        ValueQuality { count: moments.count, mean: moments.mean, variance: moments.variance() }
    }
}

/// How the prediction log is doing.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LogAnswer {
    /// Records written and synced since the server started.
    records: u64,
    /// Records lost since then, by reason: `queue_full`, `disk`, `too_large`, `budget`, `stopping`.
    dropped: BTreeMap<&'static str, u64>,
    /// Bytes of records that wait to be written.
    queue_bytes: usize,
    #[schema(format = DateTime)]
    last_written: Option<String>,
    /// Since when it cannot be written, and why; null while all is well.
    #[schema(format = DateTime)]
    failing_since: Option<String>,
    last_error: Option<String>,
    /// Why some segment cannot be sealed into Parquet; it is kept and tried again.
    seal_error: Option<String>,
}

/// The prediction log
///
/// What was written, what was lost, and what is wrong.
#[utoipa::path(
    get, path = "/api/v1/log", operation_id = "show_log", tag = "quality",
    responses((status = 200, description = "Since the server started", body = LogAnswer))
)]
pub(super) async fn log(State(admin): State<Arc<Admin>>) -> Json<LogAnswer> {
    let status = admin.log.status();
    Json(LogAnswer {
        records: status.records,
        dropped: admin.log.dropped().map(|(why, records)| (why.as_str(), records)).collect(),
        queue_bytes: admin.log.queue_bytes(),
        last_written: status.last_written.map(rfc3339),
        failing_since: status.failing_since.map(rfc3339),
        last_error: status.last_error,
        seal_error: status.seal_error,
    })
}
