//! Triton's model configuration and statistics as JSON, in the form that its HTTP server writes.

use super::grpc::generated::inference::model_version_policy::PolicyChoice;
use super::grpc::generated::inference::repository_index_response::ModelIndex;
use super::grpc::generated::inference::{
    DataType, InferStatistics, ModelConfig, ModelStatistics, StatisticDuration, model_config::SchedulingChoice,
    model_instance_group::Kind,
};
use crate::model::{Code, Failure};
use bytes::Bytes;
use serde_json::{Value, json};

/// The configuration of a model. Members that have no meaning here have Triton's defaults: clients read them.
pub(crate) fn config_json(config: &ModelConfig) -> Bytes {
    let versions = match config.version_policy.as_ref().and_then(|policy| policy.policy_choice.as_ref()) {
        Some(PolicyChoice::Specific(specific)) => specific.versions.clone(),
        _ => Vec::new(),
    };
    let data_type = |n: i32| DataType::try_from(n).unwrap_or(DataType::TypeInvalid).as_str_name();
    let inputs: Vec<Value> = config
        .input
        .iter()
        .map(|input| {
            json!({
                "name": input.name,
                "data_type": data_type(input.data_type),
                "format": "FORMAT_NONE",
                "dims": input.dims,
                "is_shape_tensor": false,
                "allow_ragged_batch": false,
                "optional": input.optional,
            })
        })
        .collect();
    let outputs: Vec<Value> = config
        .output
        .iter()
        .map(|output| {
            json!({
                "name": output.name,
                "data_type": data_type(output.data_type),
                "dims": output.dims,
                "label_filename": "",
                "is_shape_tensor": false,
            })
        })
        .collect();
    let groups: Vec<Value> = config
        .instance_group
        .iter()
        .map(|group| {
            let kind = Kind::try_from(group.kind).unwrap_or(Kind::Auto).as_str_name();
            json!({"name": group.name, "kind": kind, "count": group.count, "gpus": [], "profile": []})
        })
        .collect();
    let mut value = json!({
        "name": config.name,
        "platform": config.platform,
        "backend": config.backend,
        "version_policy": {"specific": {"versions": versions}},
        "max_batch_size": config.max_batch_size,
        "input": inputs,
        "output": outputs,
        "batch_input": [],
        "batch_output": [],
        "instance_group": groups,
        "default_model_filename": config.default_model_filename,
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {},
        "model_warmup": [],
        "model_transaction_policy": {"decoupled": false},
    });
    if let Some(SchedulingChoice::DynamicBatching(batching)) = &config.scheduling_choice {
        value["dynamic_batching"] = json!({
            "preferred_batch_size": batching.preferred_batch_size,
            "max_queue_delay_microseconds": batching.max_queue_delay_microseconds,
            "preserve_ordering": batching.preserve_ordering,
        });
    }
    value.to_string().into()
}

/// The statistics of versions.
pub(crate) fn statistics_json(statistics: &[ModelStatistics]) -> Bytes {
    let models: Vec<Value> = statistics
        .iter()
        .map(|model| {
            let inference = model.inference_stats.unwrap_or_default();
            json!({
                "name": model.name,
                "version": model.version,
                "last_inference": model.last_inference,
                "inference_count": model.inference_count,
                "execution_count": model.execution_count,
                "inference_stats": inference_stats(&inference),
                "response_stats": {},
                "batch_stats": [],
                "memory_usage": [],
            })
        })
        .collect();
    json!({"model_stats": models}).to_string().into()
}

/// Whether a request for the repository index asks for ready versions only.
///
/// # Errors
/// `INVALID_REQUEST` for what is not empty and no JSON object, or where `ready` is no truth value.
pub(crate) fn wants_ready(body: &[u8]) -> Result<bool, Failure> {
    let wrong = |what: String| {
        Failure::new(
            Code::InvalidRequest,
            format!("expected nothing, or an object such as {{\"ready\": true}}: {what}"),
        )
    };
    if body.is_empty() {
        return Ok(false);
    }
    let request: serde_json::Map<String, Value> = serde_json::from_slice(body).map_err(|e| wrong(e.to_string()))?;
    match request.get("ready") {
        None => Ok(false),
        Some(Value::Bool(ready)) => Ok(*ready),
        Some(other) => Err(wrong(format!("\"ready\" is {other}, which is no truth value"))),
    }
}

/// The repository index. A version that is ready has no reason.
pub(crate) fn index_json(index: &[ModelIndex]) -> Bytes {
    let entry = |entry: &ModelIndex| {
        let mut shown = json!({"name": entry.name});
        for (name, value) in [("version", &entry.version), ("state", &entry.state), ("reason", &entry.reason)] {
            if !value.is_empty() {
                shown[name] = json!(value);
            }
        }
        shown
    };
    Value::Array(index.iter().map(entry).collect()).to_string().into()
}

fn inference_stats(stats: &InferStatistics) -> Value {
    let duration = |duration: &Option<StatisticDuration>| {
        let StatisticDuration { count, ns } = duration.unwrap_or_default();
        json!({"count": count, "ns": ns})
    };
    json!({
        "success": duration(&stats.success),
        "fail": duration(&stats.fail),
        "queue": duration(&stats.queue),
        "compute_input": duration(&stats.compute_input),
        "compute_infer": duration(&stats.compute_infer),
        "compute_output": duration(&stats.compute_output),
        "cache_hit": duration(&stats.cache_hit),
        "cache_miss": duration(&stats.cache_miss),
    })
}
