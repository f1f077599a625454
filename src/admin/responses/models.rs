//! Responses about models and versions.

use crate::admin::error::ErrorResponse;
use crate::admin::schemas::{FailedStage, TrafficDocument, VersionState};
use crate::admin::wait::Waited;
use crate::ledger::rfc3339;
use crate::lifecycle::Retired;
use crate::model::{Code, Failure, ModelName, Parameters, Signature, TensorSpec, Version};
use crate::registry::{Entry, Stage, State, VersionStatus};
use crate::route::{Document, RouteRequest, Selector};
use crate::telemetry::Telemetry;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// All models, ordered by name.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::admin) struct Models {
    pub(in crate::admin) models: Vec<Model>,
}

/// A model with its versions, its traffic document and the arms that answer now.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::admin) struct Model {
    #[schema(value_type = String)]
    name: ModelName,
    /// Whether requests that name no version are answered.
    ready: bool,
    /// Why they are not.
    reason: Option<String>,
    /// An operator unloaded or retired the whole model; its document is kept.
    taken_out: bool,
    /// Present where an operator retired the model.
    retired: Option<Retirement>,
    /// The revision of the traffic document; 0 without one.
    revision: u64,
    #[schema(value_type = Option<TrafficDocument>)]
    document: Option<Document>,
    /// The arms that answer requests that name no version. Rules and labels come first; they are in the document.
    answers: Vec<AnsweringArm>,
    versions: Vec<VersionSummary>,
    /// Remarks about its directory: files and directories in the wrong place.
    notes: Vec<String>,
}

/// When a model was retired, by whom and why.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::admin) struct Retirement {
    #[schema(format = DateTime)]
    at: String,
    by: String,
    reason: String,
}

/// The result of a retirement.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::admin) struct RetiredModel {
    #[schema(value_type = String)]
    model: ModelName,
    /// The revision of the traffic document; 0 without one.
    revision: u64,
    /// False if the model was retired already.
    changed: bool,
    retired: Retirement,
}

impl From<Retired> for RetiredModel {
    fn from(retired: Retired) -> RetiredModel {
        let Retired { model, revision, changed, retirement } = retired;
        let retired = Retirement { at: rfc3339(retirement.ts), by: retirement.actor, reason: retirement.reason };
        RetiredModel { model, revision, changed, retired }
    }
}

/// An arm that answers requests.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Answering)]
pub(in crate::admin) struct AnsweringArm {
    pub(super) arm: String,
    #[schema(value_type = String)]
    pub(super) version: Version,
    /// From 0 to 1.
    pub(super) share: f64,
}

/// A version in the list of its model.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::admin) struct VersionSummary {
    #[schema(value_type = String)]
    version: Version,
    #[schema(value_type = VersionState)]
    state: State,
    #[schema(value_type = Option<FailedStage>)]
    stage: Option<Stage>,
    reason: Option<String>,
    notes: Vec<String>,
    engine: Option<&'static str>,
    bytes: Option<u64>,
    in_flight: u64,
}

/// A version with everything known about it. What is known only after loading is null before.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::admin) struct VersionDetail {
    #[schema(value_type = String)]
    model: ModelName,
    #[schema(value_type = String)]
    version: Version,
    #[schema(value_type = VersionState)]
    state: State,
    /// The stage in which it failed.
    #[schema(value_type = Option<FailedStage>)]
    stage: Option<Stage>,
    /// Why it failed, or why it is pending or unloaded.
    reason: Option<String>,
    /// Remarks that do not keep it from serving.
    notes: Vec<String>,
    signature: Option<SignatureResponse>,
    /// SHA-256 of model.onnx, in lower-case hexadecimal.
    sha256: Option<String>,
    engine: Option<&'static str>,
    /// Size of the version's files.
    bytes: Option<u64>,
    load_ms: Option<f64>,
    verify_ms: Option<f64>,
    warm_ms: Option<f64>,
    /// The number of golden cases that were checked.
    golden_cases: Option<usize>,
    /// The content of version.toml.
    metadata: Value,
    /// Requests that use the version now, also while it drains.
    in_flight: u64,
    /// With `wait_for`: how the wait ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    waited: Option<Waited>,
}

/// The inputs and outputs of a version.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SignatureAnswer)]
pub(in crate::admin) struct SignatureResponse {
    inputs: Vec<TensorResponse>,
    /// Inputs that a request may leave out: the model has a value for each.
    optional_inputs: Vec<TensorResponse>,
    outputs: Vec<TensorResponse>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TensorAnswer)]
pub(in crate::admin) struct TensorResponse {
    name: String,
    /// As in the Open Inference Protocol.
    #[schema(example = "FP32")]
    datatype: &'static str,
    /// -1 for a free dimension; null if the model does not state the number of dimensions.
    shape: Option<Vec<i64>>,
}

/// The result of a load, an unload or a push.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::admin) struct Changed {
    #[schema(value_type = String)]
    pub(in crate::admin) model: ModelName,
    #[schema(value_type = String)]
    pub(in crate::admin) version: Version,
    /// The current state.
    #[schema(value_type = VersionState)]
    pub(in crate::admin) state: State,
    /// What happens next, and what is left to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::admin) next: Option<&'static str>,
    /// The files of a version that was pushed as an archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::admin) files: Option<Vec<String>>,
}

/// Requests in flight by model and version, at one moment.
pub(in crate::admin) struct InFlight(BTreeMap<(ModelName, String), u64>);

impl InFlight {
    pub(in crate::admin) fn now(telemetry: &Telemetry) -> InFlight {
        let mut counts = BTreeMap::new();
        for version in telemetry.versions() {
            *counts.entry((version.model().clone(), version.version().to_owned())).or_default() += version.in_flight();
        }
        InFlight(counts)
    }

    fn of(&self, model: &ModelName, version: Version) -> u64 {
        self.0.get(&(model.clone(), version.to_string())).copied().unwrap_or(0)
    }
}

impl Model {
    pub(in crate::admin) fn of(entry: &Entry, in_flight: &InFlight) -> Model {
        let summary = |status: &VersionStatus| VersionSummary {
            version: status.version,
            state: status.state,
            stage: status.stage,
            reason: status.reason.clone(),
            notes: status.notes.clone(),
            engine: status.facts.as_ref().map(|f| f.engine),
            bytes: status.facts.as_ref().map(|f| f.bytes),
            in_flight: in_flight.of(entry.name(), status.version),
        };
        Model {
            name: entry.name().clone(),
            ready: entry.can_serve(),
            reason: why_not_served(entry),
            taken_out: entry.taken_out(),
            retired: entry.retired().map(|retired| Retirement {
                at: rfc3339(retired.at),
                by: retired.by.clone(),
                reason: retired.reason.clone(),
            }),
            revision: entry.revision(),
            document: entry.document().cloned(),
            answers: answering(entry),
            versions: entry.versions().values().map(summary).collect(),
            notes: entry.notes().to_vec(),
        }
    }
}

/// Why requests that name no version are not answered.
pub(in crate::admin) fn why_not_served(entry: &Entry) -> Option<String> {
    let any_request =
        RouteRequest { selector: Selector::Traffic, header: &|_| None, parameters: &Parameters::new(), request_id: "" };
    entry.route(&any_request).err().map(|failure| failure.message)
}

/// The arms that answer requests that name no version.
pub(in crate::admin) fn answering(entry: &Entry) -> Vec<AnsweringArm> {
    let arms = entry.document().filter(|_| entry.can_serve()).map(configured_arms).unwrap_or_default();
    arms.into_iter().filter(|arm| arm.share > 0.0).collect()
}

/// The arms of a document with their shares of the split.
pub(super) fn configured_arms(document: &Document) -> Vec<AnsweringArm> {
    let sum: f64 = document.split.iter().map(|arm| arm.weight).sum();
    let arms = document.split.iter();
    arms.map(|a| AnsweringArm { arm: a.arm.to_string(), version: a.version, share: a.weight / sum }).collect()
}

impl VersionDetail {
    pub(in crate::admin) fn of(model: &ModelName, status: &VersionStatus, in_flight: &InFlight) -> VersionDetail {
        let facts = status.facts.as_deref();
        let ms = |took: std::time::Duration| took.as_secs_f64() * 1e3;
        VersionDetail {
            model: model.clone(),
            version: status.version,
            state: status.state,
            stage: status.stage,
            reason: status.reason.clone(),
            notes: status.notes.clone(),
            signature: facts.map(|f| SignatureResponse::of(&f.signature)),
            sha256: facts.map(|f| f.sha256.clone()),
            engine: facts.map(|f| f.engine),
            bytes: facts.map(|f| f.bytes),
            load_ms: facts.map(|f| ms(f.load)),
            verify_ms: facts.map(|f| ms(f.verify)),
            warm_ms: facts.map(|f| ms(f.warm)),
            golden_cases: facts.map(|f| f.golden_cases),
            metadata: facts.map_or(Value::Null, |f| f.metadata.clone()),
            in_flight: in_flight.of(model, status.version),
            waited: None,
        }
    }

    /// With the end of a wait.
    pub(in crate::admin) fn after(self, waited: Option<Waited>) -> VersionDetail {
        VersionDetail { waited, ..self }
    }
}

impl SignatureResponse {
    fn of(signature: &Signature) -> SignatureResponse {
        let tensor = |spec: &TensorSpec| TensorResponse {
            name: spec.name.to_string(),
            datatype: spec.datatype.as_str(),
            shape: spec.dims.is_some().then(|| spec.wire_shape()),
        };
        SignatureResponse {
            inputs: signature.inputs().iter().map(tensor).collect(),
            optional_inputs: signature.optional_inputs().iter().map(tensor).collect(),
            outputs: signature.outputs().iter().map(tensor).collect(),
        }
    }
}

/// The error for a version that the model does not have.
pub(in crate::admin) fn unknown_version(entry: &Entry, version: Version) -> ErrorResponse {
    let known: Vec<String> = entry.versions().keys().map(ToString::to_string).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let message = format!("model {} has no version {version}; its versions: {known}", entry.name());
    Failure::new(Code::VersionNotFound, message).into()
}
