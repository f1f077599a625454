//! `model.toml`: the settings for all versions of a model.

use super::engine;
use super::features;
use super::gates::Gates;
use super::metrics;
use super::monitoring;
use super::recording::LogSettings;
use crate::backend::{EngineChoice, EngineOptions};
use crate::columns::ElementNames;
use crate::execute::{Batching, Placement};
use crate::model::Version;
use crate::outcomes::Metrics;
use crate::registry::{Limits, Staleness};
use crate::settings::{Table, Value};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// The settings of a model. The defaults apply to a model without the file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelSettings {
    /// `engine`, or `name` in `[engine]`: `"auto"` (default), `"onnxruntime"` or `"tract"`.
    pub engine: EngineChoice,
    /// `[engine] custom_ops` and `providers`. A change applies to versions loaded afterwards.
    pub engine_options: Arc<EngineOptions>,
    /// `versions`: `"all"` (default), `{ latest = N }`, or a list such as `["3", "7"]`.
    pub versions: Keep,
    /// `auto_promote`: default false, so that a person or a rollout decides which version serves.
    pub auto_promote: bool,
    /// `keep_warm`: how long a version outside of `versions` stays ready after a traffic document last named it. Absent: the value of
    /// the server's configuration.
    pub keep_warm: Option<Duration>,
    /// `[gates]`: the conditions for `auto_promote`, and for a promote that gives no gates of its own.
    pub gates: Gates,
    /// `[approval] required`: a version gets un-pinned traffic only after somebody with the role approver approved it. Default false; the
    /// server's configuration can require it of every model.
    pub approval: bool,
    /// `[limits]`: `max_in_flight`, `max_rows` and `max_answer`, absent by default. A change applies to versions loaded afterwards.
    pub limits: Limits,
    /// `[shadow] rtol` and `atol`: the allowed difference between the numbers of a shadow and the primary. Absent: the values of the
    /// server's configuration.
    pub shadow_rtol: Option<f64>,
    pub shadow_atol: Option<f64>,
    /// `[prediction_log]`: which predictions are recorded, and which of their columns.
    pub log: LogSettings,
    /// `[metrics.NAME]`: what versions are judged by, from feedback.
    pub metrics: Arc<Metrics>,
    /// `[batching]` (`enabled`, `max_rows`) and `[execution]` (`at_once`, `spread`).
    pub execution: ExecutionSettings,
    /// `[features]` and `feature_names`: names for the elements of tensors.
    pub features: ElementNames,
    /// `[drift]`.
    pub drift: crate::drift::Settings,
    /// `[staleness]`.
    pub staleness: Staleness,
    /// `[first_day] limit`: how many times the time of its first day a version may take before it is called slower. Absent: the usual limit.
    pub first_day_limit: Option<f64>,
    /// `description`, `feature_names`, `[features]` and `[batching] enabled`, as they were written. Shown with the metadata of each version.
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

/// `versions` in `model.toml`: which of the versions found are loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Keep {
    /// All that are found.
    #[default]
    All,
    /// The N highest numbers.
    Latest(usize),
    /// These versions, if they are found.
    Listed(BTreeSet<Version>),
}

/// Where and how the model runs. Everything is absent by default. A change applies to versions loaded afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExecutionSettings {
    pub batching: BatchingSettings,
    /// `[execution]`: runs on the I/O thread of the request or on a worker, and on one worker or on all idle workers. Absent: decided by
    /// the measured cost.
    pub place: Placement,
}

/// `[batching]` of `model.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchingSettings {
    /// `false`: never. Absent: if a test has shown that rows are independent. `true`: also if the test could not tell, but not if rows
    /// are dependent.
    pub enabled: Option<bool>,
    /// Limit for the rows of one run.
    pub max_rows: Option<usize>,
}

/// To keep a version for longer, name it in `versions` or with a label.
const MAX_KEEP_WARM: Duration = Duration::from_hours(30 * 24);

impl ModelSettings {
    /// Reads the text of a `model.toml`. Complaints use `name` for the file.
    ///
    /// # Errors
    /// All complaints, one per line.
    pub fn parse(name: &str, text: &str) -> Result<ModelSettings, String> {
        let mut table = Table::parse(name, text);
        let (engine, engine_options) = engine::read(&mut table);
        let expected = "\"all\", { latest = N } with N from 1, or a list of versions such as [\"3\", \"7\"]";
        let versions = table.custom("versions", expected, keep).unwrap_or_default();
        let auto_promote = table.bool("auto_promote").unwrap_or_default();
        let keep_warm = table.duration("keep_warm", Duration::ZERO..=MAX_KEEP_WARM);
        let gates = Gates::read(table.section("gates"));
        let approval = table.section("approval").bool("required").unwrap_or_default();
        let limits = table.section("limits");
        let limits = Limits {
            max_in_flight: limits.integer("max_in_flight", 1..=1_000_000),
            max_rows: limits.integer("max_rows", 1..=1_000_000_000),
            max_answer: limits
                .bytes("max_answer", 1..=u64::MAX)
                .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
        };
        let shadow = table.section("shadow");
        let (relative, absolute) = (shadow.float("rtol", 0.0..=1.0), shadow.float("atol", 0.0..=f64::MAX));
        let log = LogSettings::read(table.section("prediction_log"));
        let metrics = Arc::new(metrics::read(table.section("metrics")));
        let mut metadata = serde_json::Map::new();
        if let Some(text) = table.string("description") {
            metadata.insert("description".to_owned(), text.into());
        }
        let features = features::read(&mut table);
        let drift = monitoring::drift(&mut table);
        let staleness = monitoring::staleness(&mut table);
        let first_day_limit = monitoring::first_day_limit(&mut table);
        if !features.of_only_input.is_empty() {
            metadata.insert("feature_names".to_owned(), features.of_only_input.clone().into());
        }
        if !features.by_tensor.is_empty() {
            metadata.insert("features".to_owned(), serde_json::json!(features.by_tensor));
        }
        let batching = table.section("batching");
        let batching = BatchingSettings {
            enabled: batching.bool("enabled"),
            max_rows: batching.integer("max_rows", 1..=Batching::MAX_ROWS),
        };
        let place = table.section("execution");
        let place = Placement { at_once: place.bool("at_once"), spread: place.bool("spread") };
        let execution = ExecutionSettings { batching, place };
        if let Some(enabled) = batching.enabled {
            metadata.insert("batching_enabled".to_owned(), enabled.into());
        }
        table.finish().map_err(|complaints| complaints.to_string())?;
        Ok(ModelSettings {
            engine,
            engine_options: Arc::new(engine_options),
            versions,
            auto_promote,
            keep_warm,
            gates,
            approval,
            limits,
            shadow_rtol: relative,
            shadow_atol: absolute,
            log,
            metrics,
            execution,
            features,
            drift,
            staleness,
            first_day_limit,
            metadata,
        })
    }
}

fn keep(value: &Value) -> Option<Keep> {
    match value {
        Value::String(text) if text == "all" => Some(Keep::All),
        Value::Table(members) => match (members.len(), members.get("latest")) {
            (1, Some(Value::Integer(n))) => usize::try_from(*n).ok().filter(|n| *n > 0).map(Keep::Latest),
            _ => None,
        },
        Value::List(items) => {
            let version = |item: &Value| item.as_str()?.parse::<Version>().ok();
            items.iter().map(version).collect::<Option<BTreeSet<Version>>>().map(Keep::Listed)
        }
        _ => None,
    }
}
