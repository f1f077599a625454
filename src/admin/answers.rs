//! What the plane answers, as JSON: each answer's one shape, for the handlers and for `openapi.rs`.

use super::refused::Refused;
use super::shapes::{FailedStage, TrafficDocument, VersionState};
use crate::ledger::{Event, HistoryEntry, rfc3339};
use crate::lifecycle::{Promotion, RolledBack};
use crate::model::{Code, Failure, ModelName, Parameters, Signature, TensorSpec, Version};
use crate::model_settings::Verdict;
use crate::registry::{Entry, Stage, State, VersionStatus};
use crate::route::{Ask, Document, SampleRatio, Selector};
use crate::telemetry::Telemetry;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Live {
    pub live: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Ready {
    pub ready: bool,
}

/// Every model, in order of name.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Models {
    pub models: Vec<Model>,
}

/// One model: its versions, its traffic document, and what answers now.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Model {
    #[schema(value_type = String)]
    name: ModelName,
    /// Whether un-pinned requests are answered.
    ready: bool,
    /// Why they are not.
    reason: Option<String>,
    /// An operator took the whole model out; its document is kept.
    taken_out: bool,
    /// Of the traffic document; 0 while there is none.
    revision: u64,
    #[schema(value_type = Option<TrafficDocument>)]
    document: Option<Document>,
    /// Who answers un-pinned requests now, and with what share; rules and labels come before it and stand in the document.
    answers: Vec<Answering>,
    versions: Vec<VersionSummary>,
}

/// One arm that answers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Answering {
    arm: String,
    #[schema(value_type = String)]
    version: Version,
    /// Of 1.
    share: f64,
}

/// One version among its model's.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VersionSummary {
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

/// One version, with all that is known of it. What is known only once it was loaded is null before.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VersionDetail {
    #[schema(value_type = String)]
    model: ModelName,
    #[schema(value_type = String)]
    version: Version,
    #[schema(value_type = VersionState)]
    state: State,
    /// Where it failed.
    #[schema(value_type = Option<FailedStage>)]
    stage: Option<Stage>,
    /// Why it failed, or is pending or unloaded.
    reason: Option<String>,
    /// Remarks that stop nothing.
    notes: Vec<String>,
    signature: Option<SignatureAnswer>,
    /// Of model.onnx, in lower-case hexadecimal.
    sha256: Option<String>,
    engine: Option<&'static str>,
    /// Of the version's files.
    bytes: Option<u64>,
    load_ms: Option<f64>,
    verify_ms: Option<f64>,
    warm_ms: Option<f64>,
    /// Golden cases that were checked.
    golden_cases: Option<usize>,
    /// version.toml, as it was written.
    metadata: Value,
    /// Requests that hold the version now, also while it drains.
    in_flight: u64,
}

/// What a version takes and gives.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SignatureAnswer {
    inputs: Vec<TensorAnswer>,
    outputs: Vec<TensorAnswer>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TensorAnswer {
    name: String,
    /// As the Open Inference Protocol spells it.
    #[schema(example = "FP32")]
    datatype: &'static str,
    /// -1 for a free dimension; null where the model does not say how many there are.
    shape: Option<Vec<i64>>,
}

/// What became of a load, an unload or a push.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Changed {
    #[schema(value_type = String)]
    pub model: ModelName,
    #[schema(value_type = String)]
    pub version: Version,
    /// As it is now.
    #[schema(value_type = VersionState)]
    pub state: State,
    /// What happens next, and what is left to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<&'static str>,
}

/// The traffic document's own members, and beside them what is so now. The whole answer may be put back: the members that are
/// not the document's are read-only and ignored there.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Traffic {
    #[serde(flatten)]
    #[schema(value_type = TrafficDocument)]
    document: Document,
    #[schema(value_type = String, read_only)]
    model: ModelName,
    /// Also the etag, there in quotes.
    #[schema(read_only)]
    revision: u64,
    /// Of the split, arm by arm.
    #[schema(read_only)]
    shares: Vec<Share>,
    /// Whether the arms got what their weights say, by Pearson's chi-squared test over the requests since this revision.
    #[schema(read_only)]
    sample_ratio: SampleRatioAnswer,
}

impl Traffic {
    /// Members that are answered and are not the document's.
    pub(super) const READ_ONLY: [&str; 4] = ["model", "revision", "shares", "sample_ratio"];
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SampleRatioAnswer {
    requests: u64,
    chi_squared: f64,
    degrees_of_freedom: usize,
    /// How often a sound split is at least as far off.
    p_value: f64,
    /// `ok`; `mismatch`: p below 0.001, or requests on an arm without weight; `too_few`: fewer than five expected on an arm.
    verdict: &'static str,
    /// What to mind when reading it.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

/// What one arm should get, beside what it got.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Share {
    arm: String,
    #[schema(value_type = String)]
    version: Version,
    /// Of 1: its weight among the split's.
    configured: f64,
    /// Of 1: its requests among those the split decided since this revision; null before the first.
    observed: Option<f64>,
    /// Since this revision.
    requests: u64,
}

/// What a promote did, or would do.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PromotionAnswer {
    #[schema(value_type = String)]
    model: ModelName,
    /// The heaviest version before; null where there was no document.
    #[schema(value_type = Option<String>)]
    from: Option<Version>,
    /// The heaviest version after.
    #[schema(value_type = String)]
    to: Version,
    /// In force now.
    revision: u64,
    /// For a dry run: the document there would be.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TrafficDocument>)]
    would_be: Option<Document>,
    /// For a dry run: whether every gate was passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    would_pass: Option<bool>,
    /// Each gate that was asked for, here or in model.toml; empty where there was nothing to change.
    gates: Vec<GateVerdict>,
}

/// What a gate asked for and found.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GateVerdict {
    #[schema(example = "shadow_agreement")]
    gate: &'static str,
    /// In words.
    asked: String,
    /// In words.
    found: String,
    passed: bool,
}

/// What a rollback did.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RollbackAnswer {
    #[schema(value_type = String)]
    model: ModelName,
    /// The heaviest version before; null where there was no document.
    #[schema(value_type = Option<String>)]
    from: Option<Version>,
    /// The heaviest version after.
    #[schema(value_type = String)]
    to: Version,
    /// In force now.
    revision: u64,
    /// The versions that were not loaded any more, and were loaded for it.
    #[schema(value_type = Vec<String>)]
    loaded: Vec<Version>,
}

/// Every traffic document there has been, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct History {
    #[schema(value_type = String)]
    pub model: ModelName,
    pub history: Vec<HistoryItem>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HistoryItem {
    revision: u64,
    #[schema(format = DateTime)]
    ts: String,
    actor: String,
    /// What put it there: `promote`, `rollback`, `put_traffic`, …
    action: String,
    reason: Option<String>,
    #[schema(value_type = TrafficDocument)]
    document: Value,
}

/// What was changed, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Audit {
    pub events: Vec<AuditEvent>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditEvent {
    /// Grows with every event.
    id: u64,
    #[schema(format = DateTime)]
    ts: String,
    actor: String,
    action: String,
    #[schema(value_type = String)]
    model: ModelName,
    reason: Option<String>,
    /// How it was; null where there was nothing.
    before: Value,
    /// How it is since.
    after: Value,
}

/// One entry of Triton's repository index.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct IndexEntry {
    #[schema(value_type = String)]
    pub name: ModelName,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub version: Option<Version>,
    /// READY, LOADING, UNLOADING or UNAVAILABLE.
    pub state: &'static str,
    pub reason: String,
}

/// Requests in flight by model and version, at one moment.
pub(super) struct InFlight(BTreeMap<(ModelName, String), u64>);

impl InFlight {
    pub(super) fn now(telemetry: &Telemetry) -> InFlight {
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
    pub(super) fn of(entry: &Entry, in_flight: &InFlight) -> Model {
        let anyone =
            Ask { selector: Selector::Traffic, header: &|_| None, parameters: &Parameters::new(), request_id: "" };
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
        let answers = entry.document().filter(|_| entry.can_serve()).map(configured).unwrap_or_default();
        Model {
            name: entry.name().clone(),
            ready: entry.can_serve(),
            reason: entry.route(&anyone).err().map(|failure| failure.message),
            taken_out: entry.taken_out(),
            revision: entry.revision(),
            document: entry.document().cloned(),
            answers: answers.into_iter().filter(|answering| answering.share > 0.0).collect(),
            versions: entry.versions().values().map(summary).collect(),
        }
    }
}

fn configured(document: &Document) -> Vec<Answering> {
    let sum: f64 = document.split.iter().map(|arm| arm.weight).sum();
    let arms = document.split.iter();
    arms.map(|a| Answering { arm: a.arm.to_string(), version: a.version, share: a.weight / sum }).collect()
}

impl VersionDetail {
    pub(super) fn of(model: &ModelName, status: &VersionStatus, in_flight: &InFlight) -> VersionDetail {
        let facts = status.facts.as_deref();
        let ms = |took: std::time::Duration| took.as_secs_f64() * 1e3;
        VersionDetail {
            model: model.clone(),
            version: status.version,
            state: status.state,
            stage: status.stage,
            reason: status.reason.clone(),
            notes: status.notes.clone(),
            signature: facts.map(|f| SignatureAnswer::of(&f.signature)),
            sha256: facts.map(|f| f.sha256.clone()),
            engine: facts.map(|f| f.engine),
            bytes: facts.map(|f| f.bytes),
            load_ms: facts.map(|f| ms(f.load)),
            verify_ms: facts.map(|f| ms(f.verify)),
            warm_ms: facts.map(|f| ms(f.warm)),
            golden_cases: facts.map(|f| f.golden_cases),
            metadata: facts.map_or(Value::Null, |f| f.metadata.clone()),
            in_flight: in_flight.of(model, status.version),
        }
    }
}

impl SignatureAnswer {
    fn of(signature: &Signature) -> SignatureAnswer {
        let tensor = |spec: &TensorSpec| TensorAnswer {
            name: spec.name.to_string(),
            datatype: spec.datatype.as_str(),
            shape: spec.dims.is_some().then(|| spec.wire_shape()),
        };
        SignatureAnswer {
            inputs: signature.inputs().iter().map(tensor).collect(),
            outputs: signature.outputs().iter().map(tensor).collect(),
        }
    }
}

impl Traffic {
    /// `entry`: the model as it is published; what it counted is shown where it is of this revision.
    pub(super) fn of(model: ModelName, revision: u64, document: Document, entry: Option<&Entry>) -> Traffic {
        let arms = entry.filter(|entry| entry.revision() == revision).map_or(&[][..], Entry::arms);
        let counts: Vec<u64> =
            (0..document.split.len()).map(|i| arms.get(i).map_or(0, |a| a.metrics.requests())).collect();
        let weights: Vec<f64> = document.split.iter().map(|arm| arm.weight).collect();
        let ratio = SampleRatio::of(&weights, &counts);
        let all: u64 = ratio.requests;
        let share = |(arm, requests): (Answering, u64)| Share {
            arm: arm.arm,
            version: arm.version,
            configured: arm.share,
            observed: (all > 0).then(|| requests as f64 / all as f64),
            requests,
        };
        let shares = configured(&document).into_iter().zip(counts).map(share).collect();
        let sample_ratio = SampleRatioAnswer {
            requests: ratio.requests,
            chi_squared: ratio.chi_squared,
            degrees_of_freedom: ratio.degrees_of_freedom,
            p_value: ratio.p_value,
            verdict: ratio.verdict.as_str(),
            note: document.sticky_by.as_ref().map(
                |_| "the requests of one sticky key go together, so a few busy keys can cause a mismatch by themselves",
            ),
        };
        Traffic { document, model, revision, shares, sample_ratio }
    }
}

impl PromotionAnswer {
    pub(super) fn of(promotion: Promotion, dry_run: bool) -> PromotionAnswer {
        let Promotion { model, from, to, revision, would_be, gates, changed: _ } = promotion;
        let would_pass = dry_run.then(|| gates.iter().all(|verdict| verdict.passed));
        let verdict = |Verdict { gate, asked, found, passed }| GateVerdict { gate, asked, found, passed };
        let gates = gates.into_iter().map(verdict).collect();
        PromotionAnswer { model, from, to, revision, would_be, would_pass, gates }
    }
}

impl From<RolledBack> for RollbackAnswer {
    fn from(rolled_back: RolledBack) -> RollbackAnswer {
        let RolledBack { model, from, to, revision, loaded } = rolled_back;
        RollbackAnswer { model, from, to, revision, loaded }
    }
}

impl TryFrom<HistoryEntry> for HistoryItem {
    type Error = Refused;

    fn try_from(entry: HistoryEntry) -> Result<HistoryItem, Refused> {
        let HistoryEntry { revision, ts, actor, action, reason, document } = entry;
        Ok(HistoryItem { revision, ts: rfc3339(ts), actor, action, reason, document: json(Some(&document))? })
    }
}

impl TryFrom<Event> for AuditEvent {
    type Error = Refused;

    fn try_from(event: Event) -> Result<AuditEvent, Refused> {
        let Event { id, ts, actor, action, model, reason, before, after } = event;
        let (before, after) = (json(before.as_deref())?, json(after.as_deref())?);
        Ok(AuditEvent { id, ts: rfc3339(ts), actor, action, model, reason, before, after })
    }
}

/// A version was asked for that the model does not have.
pub(super) fn no_version(entry: &Entry, version: Version) -> Refused {
    let known: Vec<String> = entry.versions().keys().map(ToString::to_string).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let words = format!("model {} has no version {version}; it has {known}", entry.name());
    Failure::new(Code::VersionNotFound, words).into()
}

/// The ledger refuses what is not JSON, so a text that is none was damaged on the disk.
fn json(text: Option<&str>) -> Result<Value, Refused> {
    let Some(text) = text else { return Ok(Value::Null) };
    serde_json::from_str(text)
        .map_err(|e| Failure::new(Code::Internal, "the ledger is damaged").with_internal(e.to_string()).into())
}
