//! Triton's model configuration, statistics and repository index, for both HTTP and gRPC. Triton's load tools read them.

use super::admission;
use super::answer::{self, Dialect, HttpResponse};
use super::body::{self, UnreadBody};
use super::data_plane::DataPlane;
use super::endpoint::{Target, VersionPart};
use super::info::{callable, platform, version_of, with_entry};
use crate::access::Identity;
use crate::budget::Hold;
use crate::codec;
use crate::codec::grpc::generated::inference::model_version_policy::{PolicyChoice, Specific};
use crate::codec::grpc::generated::inference::repository_index_response::ModelIndex;
use crate::codec::grpc::generated::inference::{
    DataType as TritonType, InferStatistics, ModelConfig, ModelDynamicBatching, ModelInput, ModelInstanceGroup,
    ModelOutput, ModelStatistics, ModelTransactionPolicy, ModelVersionPolicy, StatisticDuration,
    model_config::SchedulingChoice, model_instance_group::Kind,
};
use crate::model::{Failure, TensorSpec};
use crate::registry::{Entry, Served, State, VersionStatus};
use crate::telemetry::Total;
use crate::tensor::DataType;
use http::HeaderMap;
use std::sync::Arc;
use std::time::Instant;

/// The most bytes of a request for the index.
const MOST_OF_INDEX: usize = 64 << 10;
/// The most rows of a request where `model.toml` sets no limit: as many as run together (docs/EXECUTION.md).
const MOST_ROWS: usize = 4096;

/// The configuration of a model, as Triton would have it: with rows, the first dimension is that of the batch, and not among the dimensions.
pub(super) fn config(plane: &DataPlane, target: &Target<'_>) -> Result<ModelConfig, Failure> {
    with_entry(plane, target, |entry| {
        let served = version_of(entry, &target.version)?;
        let loaded = &served.loaded;
        let signature = &loaded.facts.signature;
        let has_rows = signature.has_rows();
        let dims = |spec: &TensorSpec| spec.wire_shape().into_iter().skip(usize::from(has_rows)).collect();
        let input = |spec: &TensorSpec, optional| ModelInput {
            name: spec.name.to_string(),
            data_type: triton_type(spec.datatype).into(),
            // An optional input counts for the whole request, so it has no dimension of the batch.
            dims: if optional { spec.wire_shape() } else { dims(spec) },
            optional,
        };
        let inputs = signature.inputs().iter().map(|spec| input(spec, false));
        let optional = signature.optional_inputs().iter().map(|spec| input(spec, true));
        let output = |spec: &TensorSpec| ModelOutput {
            name: spec.name.to_string(),
            data_type: triton_type(spec.datatype).into(),
            dims: dims(spec),
        };
        let versions = callable(entry, &served, &target.version);
        let versions = versions.iter().map(|v| i64::try_from(v.number()).unwrap_or(i64::MAX)).collect();
        let most_rows = loaded.limits.max_rows.unwrap_or(MOST_ROWS);
        Ok(ModelConfig {
            name: entry.name().to_string(),
            platform: platform(loaded.facts.engine).to_owned(),
            backend: loaded.facts.engine.to_owned(),
            version_policy: Some(ModelVersionPolicy {
                policy_choice: Some(PolicyChoice::Specific(Specific { versions })),
            }),
            max_batch_size: if has_rows { i32::try_from(most_rows).unwrap_or(i32::MAX) } else { 0 },
            input: inputs.chain(optional).collect(),
            output: signature.outputs().iter().map(output).collect(),
            scheduling_choice: has_rows.then(|| SchedulingChoice::DynamicBatching(ModelDynamicBatching::default())),
            instance_group: vec![ModelInstanceGroup {
                name: entry.name().to_string(),
                kind: Kind::Cpu.into(),
                count: 1,
            }],
            default_model_filename: "model.onnx".to_owned(),
            model_transaction_policy: Some(ModelTransactionPolicy { decoupled: false }),
        })
    })
}

const fn triton_type(datatype: DataType) -> TritonType {
    match datatype {
        DataType::Bool => TritonType::TypeBool,
        DataType::Uint8 => TritonType::TypeUint8,
        DataType::Uint16 => TritonType::TypeUint16,
        DataType::Uint32 => TritonType::TypeUint32,
        DataType::Uint64 => TritonType::TypeUint64,
        DataType::Int8 => TritonType::TypeInt8,
        DataType::Int16 => TritonType::TypeInt16,
        DataType::Int32 => TritonType::TypeInt32,
        DataType::Int64 => TritonType::TypeInt64,
        DataType::Fp16 => TritonType::TypeFp16,
        DataType::Fp32 => TritonType::TypeFp32,
        DataType::Fp64 => TritonType::TypeFp64,
        DataType::Bytes => TritonType::TypeString,
    }
}

/// The models that a caller may use, by name.
pub(super) fn visible(plane: &DataPlane, identity: Option<&Identity>) -> Vec<Arc<Entry>> {
    let snapshot = plane.gateway().snapshot();
    let may_use = |entry: &&Arc<Entry>| plane.check_model(identity, entry.name().as_str()).is_ok();
    let mut entries: Vec<Arc<Entry>> = snapshot.models().filter(may_use).cloned().collect();
    entries.sort_by(|a, b| a.name().cmp(b.name()));
    entries
}

/// The statistics of all loaded versions: of a model, or of all models that the caller may use.
pub(super) fn statistics(
    plane: &DataPlane,
    identity: Option<&Identity>,
    target: Option<&Target<'_>>,
) -> Result<Vec<ModelStatistics>, Failure> {
    let Some(target) = target else {
        return Ok(visible(plane, identity).iter().flat_map(|entry| of_entry(entry)).collect());
    };
    with_entry(plane, target, |entry| match target.version {
        VersionPart::Any => Ok(of_entry(entry)),
        _ => Ok(vec![of_version(entry, &*version_of(entry, &target.version)?)]),
    })
}

fn of_entry(entry: &Entry) -> Vec<ModelStatistics> {
    entry.callable().map(|served| of_version(entry, served)).collect()
}

/// What the series of a version say. `inference_count` counts requests: the rows of runs on an I/O thread are not counted anywhere.
fn of_version(entry: &Entry, served: &Served) -> ModelStatistics {
    let totals = served.loaded.metrics.totals();
    let ns = |total: Total| u64::try_from(total.time.as_nanos()).unwrap_or(u64::MAX);
    let requests = totals.succeeded.count;
    // Triton counts each step once for each request, so that a client can divide.
    let step = |ns| Some(StatisticDuration { count: requests, ns });
    ModelStatistics {
        name: entry.name().to_string(),
        version: served.version_text.to_string(),
        // The time of the last request is not kept.
        last_inference: 0,
        inference_count: requests,
        execution_count: totals.ran.count,
        inference_stats: Some(InferStatistics {
            success: step(ns(totals.succeeded)),
            fail: Some(StatisticDuration { count: totals.failed.count, ns: ns(totals.failed) }),
            queue: step(ns(totals.queued)),
            compute_input: step(0),
            compute_infer: step(ns(totals.ran)),
            compute_output: step(0),
            cache_hit: None,
            cache_miss: None,
        }),
        ..ModelStatistics::default()
    }
}

/// Answers `POST /v2/repository/index`.
///
/// # Errors
/// Those of [`body::read`], and `INVALID_REQUEST` for a body that is not `{"ready": …}` or nothing.
pub(super) async fn repository_index(
    plane: &Arc<DataPlane>,
    headers: &HeaderMap,
    body: UnreadBody<'_>,
    received: Instant,
    identity: Option<&Identity>,
) -> Result<HttpResponse, Failure> {
    let deadline = received + admission::timeout(plane, headers, Dialect::Http)?;
    let hold = Hold::open(&plane.budget, &body.caller.account)?;
    let timeout = plane.limits.body_timeout();
    let body = body::read(headers, body, Dialect::Http, MOST_OF_INDEX, timeout, deadline, &hold).await?;
    let index = index(plane, identity, codec::triton::wants_ready(&body)?);
    Ok(answer::json(codec::triton::index_json(&index)))
}

/// All versions of all models that the caller may use. With `ready` only those that can be called.
pub(super) fn index(plane: &DataPlane, identity: Option<&Identity>, ready: bool) -> Vec<ModelIndex> {
    let mut index = Vec::new();
    for entry in visible(plane, identity) {
        let name = entry.name().to_string();
        if entry.versions().is_empty() {
            let reason = "no version was found".to_owned();
            index.push(ModelIndex { name: name.clone(), version: String::new(), state: "UNAVAILABLE".into(), reason });
        }
        index.extend(entry.versions().values().map(|status| index_entry(&entry, &name, status)));
    }
    index.retain(|version| !ready || version.state == "READY");
    index
}

fn index_entry(entry: &Entry, name: &str, status: &VersionStatus) -> ModelIndex {
    let (state, reason) = match status.state {
        State::Ready | State::Serving if entry.taken_out() => ("UNAVAILABLE", "unloaded"),
        State::Ready | State::Serving => ("READY", ""),
        State::Pending | State::Loading | State::Verifying | State::Warming => ("LOADING", ""),
        State::Draining => ("UNLOADING", ""),
        State::Unloaded => ("UNAVAILABLE", "unloaded"),
        // The reason can contain file names, which are for operators.
        State::Failed => ("UNAVAILABLE", "failed; the admin plane has the reason"),
    };
    ModelIndex {
        name: name.to_owned(),
        version: status.version.to_string(),
        state: state.to_owned(),
        reason: reason.to_owned(),
    }
}
