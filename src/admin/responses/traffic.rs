//! Responses about traffic: the document with its shares, promotions, rollbacks.

use super::models::{AnsweringArm, configured_arms};
use crate::admin::schemas::{TrafficArm, TrafficDocument, TrafficKey};
use crate::lifecycle::{Promotion, RolledBack};
use crate::model::{Code, Failure, ModelName, Version};
use crate::model_settings::Verdict;
use crate::registry::{Entry, Served};
use crate::rollout::View;
use crate::route::{Arm, Document, Key, Moves, Router, SampleRatio, Score};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// The traffic document, and members that describe its effect. The whole response may be sent back with PUT, which ignores the members
/// that are not the document's.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::admin) struct Traffic {
    #[serde(flatten)]
    #[schema(value_type = TrafficDocument)]
    document: Document,
    #[schema(value_type = String, read_only)]
    model: ModelName,
    /// In quotes, it is also the etag.
    #[schema(read_only)]
    revision: u64,
    /// One for each arm of the split.
    #[schema(read_only)]
    shares: Vec<Share>,
    /// Whether the arms got the shares that their weights say: Pearson's chi-squared test over the sticky keys or the requests since this
    /// revision.
    #[schema(read_only)]
    sample_ratio: SampleRatioResponse,
    /// After a PUT: the rollout that it ended; absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub(in crate::admin) ends_rollout: Option<EndsRollout>,
    /// After a PUT: what it means for the keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub(in crate::admin) moves: Option<MovesResponse>,
}

/// How many keys a change of the split moves. A key is a sticky key, or a request id where the document has none.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MovesAnswer)]
pub(in crate::admin) struct MovesResponse {
    /// From 0 to 1: the share of the keys that get another version or another arm than before; an estimate.
    share: f64,
    /// In words: arms that are new or renamed, and another salt.
    notes: Vec<String>,
}

impl From<Moves> for MovesResponse {
    fn from(Moves { share, notes }: Moves) -> MovesResponse {
        MovesResponse { share, notes }
    }
}

/// The arm that a key gets, and why.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::admin) struct Assignment {
    #[schema(value_type = String)]
    model: ModelName,
    revision: u64,
    key: String,
    /// The arm of this key.
    arm: String,
    #[schema(value_type = String)]
    version: Version,
    /// Why it is this arm, in words.
    why: String,
    /// Where the key of a request is read from; null: each request is drawn by its id.
    #[schema(value_type = Option<TrafficKey>)]
    sticky_by: Option<Key>,
    /// The salt of the hash.
    salt: String,
    /// The document has no salt, so it is the model's name.
    default_salt: bool,
    /// The number of rules that come before the split.
    rules: usize,
    /// The arms that get requests. The highest score wins.
    arms: Vec<AssignmentArm>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::admin) struct AssignmentArm {
    arm: String,
    #[schema(value_type = String)]
    version: Version,
    weight: f64,
    /// The hash of salt, arm and key, between 0 and 1.
    draw: f64,
    /// `-weight / ln(draw)`, where the weights are scaled by a common power of two; null if it overflows.
    score: Option<f64>,
}

impl Assignment {
    pub(in crate::admin) fn of(
        model: ModelName,
        revision: u64,
        router: &Router,
        key: String,
    ) -> Result<Assignment, Failure> {
        let document = router.document();
        let (chosen, scores) = router.explain(&key);
        let chosen = chosen
            .and_then(|index| document.split.get(index))
            .ok_or_else(|| Failure::new(Code::Conflict, format!("no arm of model {model} gets requests")))?;
        let source = match &document.sticky_by {
            Some(Key::Header(name)) => format!("requests whose header {name} is this key get it"),
            Some(Key::Parameter(name)) => format!("requests whose parameter {name} is this key get it"),
            None => "the document has no sticky_by: a request with this id gets it".to_owned(),
        };
        let reason = if scores.len() == 1 {
            format!("arm {} is the only one that gets requests", chosen.arm)
        } else {
            let count = scores.len();
            format!(
                "arm {} has the highest score of {count}: a score is -weight / ln(draw), and a draw is a hash of salt, arm and key",
                chosen.arm
            )
        };
        let rules = match document.rules.len() {
            0 => String::new(),
            n => format!("; a request that one of the {n} rules matches does not come to the split"),
        };
        let arm = |Score { index, draw, score }: &Score| {
            let Arm { version, weight, arm } = document.split.get(*index)?;
            let score = Some(*score).filter(|score| score.is_finite());
            Some(AssignmentArm { arm: arm.to_string(), version: *version, weight: *weight, draw: *draw, score })
        };
        Ok(Assignment {
            revision,
            arm: chosen.arm.to_string(),
            version: chosen.version,
            why: format!("{reason}; {source}{rules}"),
            sticky_by: document.sticky_by.clone(),
            salt: document.salt.clone().unwrap_or_else(|| model.to_string()),
            default_salt: document.salt.is_none(),
            rules: document.rules.len(),
            arms: scores.iter().filter_map(arm).collect(),
            key,
            model,
        })
    }
}

/// An active rollout that a change of the traffic ends.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::admin) struct EndsRollout {
    /// The version that it moves traffic to.
    #[schema(value_type = String)]
    to: Version,
    /// The share of that version, in percent.
    percent: f64,
    /// The operator who began it.
    by: String,
    /// The revision that it put in force last.
    revision: u64,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SampleRatioAnswer)]
pub(in crate::admin) struct SampleRatioResponse {
    /// What is tested: `key`, the distinct sticky keys of each arm, or `request`.
    unit: &'static str,
    /// Requests that the split assigned.
    requests: u64,
    /// The distinct sticky keys that are tested; null where requests are. Requests without the key are not among them.
    keys: Option<u64>,
    /// The share of all sticky keys that is followed, chosen by their hash: 1 up to 32,768 keys of an arm, then a half, a quarter and so
    /// on; null where requests are tested.
    followed: Option<f64>,
    chi_squared: f64,
    degrees_of_freedom: usize,
    /// The probability of a deviation at least as large if the split works.
    p_value: f64,
    /// `ok`; `mismatch`: p below 0.001, or requests on an arm without weight; `too_few`: fewer than five keys or requests expected on an
    /// arm.
    verdict: &'static str,
    /// A caveat.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

/// The configured and the observed share of an arm.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::admin) struct Share {
    arm: String,
    #[schema(value_type = String)]
    version: Version,
    /// From 0 to 1: its part of the sum of weights.
    configured: f64,
    /// From 0 to 1: its part of the requests that the split assigned since this revision; null before the first.
    observed: Option<f64>,
    /// Since this revision.
    requests: u64,
    /// The state of its version's breaker: `closed`, `open` or `probing`; null where the version is not loaded.
    breaker: Option<&'static str>,
}

/// The result of a promote or of its dry run.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PromotionAnswer)]
pub(in crate::admin) struct PromotionResponse {
    #[schema(value_type = String)]
    model: ModelName,
    /// The version with the largest weight before; null if none served.
    #[schema(value_type = Option<String>)]
    from: Option<Version>,
    /// The version with the largest weight after.
    #[schema(value_type = String)]
    to: Version,
    /// The revision in force.
    revision: u64,
    /// The model was retired, and this version serves it again; absent if it was not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    returns: bool,
    /// The split before; empty if none served.
    #[schema(value_type = Vec<TrafficArm>)]
    from_split: Vec<Arm>,
    /// What changes in the traffic document, member by member, in words.
    #[schema(example = json!(["split: 1=70, 2=30 → 2=1"]))]
    difference: Vec<String>,
    /// The active rollout that this ends; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_rollout: Option<EndsRollout>,
    /// For a dry run: the document that a promote would put in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TrafficDocument>)]
    would_be: Option<Document>,
    /// For a dry run: whether every gate passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    would_pass: Option<bool>,
    /// The gates of the request or of model.toml; empty if nothing had to change.
    gates: Vec<GateVerdict>,
}

/// The result of one gate.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::admin) struct GateVerdict {
    #[schema(example = "shadow_agreement")]
    gate: &'static str,
    /// The condition, in words.
    asked: String,
    /// What was found, in words.
    found: String,
    passed: bool,
}

/// The result of a rollback or of its dry run.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RollbackAnswer)]
pub(in crate::admin) struct RollbackResponse {
    #[schema(value_type = String)]
    model: ModelName,
    /// The version with the largest weight before; null if there was no document.
    #[schema(value_type = Option<String>)]
    from: Option<Version>,
    /// The version with the largest weight after.
    #[schema(value_type = String)]
    to: Version,
    /// The revision in force.
    revision: u64,
    /// The earlier revision whose traffic document it restores.
    restored: u64,
    /// The split before; empty if there was no document.
    #[schema(value_type = Vec<TrafficArm>)]
    from_split: Vec<Arm>,
    /// The split after.
    #[schema(value_type = Vec<TrafficArm>)]
    to_split: Vec<Arm>,
    /// What changes in the traffic document, member by member, in words.
    #[schema(example = json!(["split: 2=1 → 1=70, 2=30"]))]
    difference: Vec<String>,
    /// The active rollout that this ends; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_rollout: Option<EndsRollout>,
    /// The versions that had to be loaded for it; for a dry run, that would have to be.
    #[schema(value_type = Vec<String>)]
    loaded: Vec<Version>,
    /// For a dry run: the document that the rollback would put in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TrafficDocument>)]
    would_be: Option<Document>,
}

impl Traffic {
    /// Members of the response that are not the document's.
    pub(in crate::admin) const READ_ONLY: [&str; 6] =
        ["model", "revision", "shares", "sample_ratio", "ends_rollout", "moves"];

    /// `entry` is the published model. Its counts are used if they belong to this revision.
    pub(in crate::admin) fn of(model: ModelName, revision: u64, document: Document, entry: Option<&Entry>) -> Traffic {
        let arms = entry.filter(|entry| entry.revision() == revision).map_or(&[][..], Entry::arms);
        let counts: Vec<u64> =
            (0..document.split.len()).map(|i| arms.get(i).map_or(0, |a| a.metrics.requests())).collect();
        let weights: Vec<f64> = document.split.iter().map(|arm| arm.weight).collect();
        // All arms are compared over the same sample of keys: that of the arm that follows the smallest.
        let halvings =
            document.counts_keys().then(|| arms.iter().filter_map(|arm| arm.metrics.halvings()).max()).flatten();
        let keys = halvings.map(|halvings| {
            let keys = |i| arms.get(i).map_or(0, |arm: &Arc<Served>| arm.metrics.distinct_keys(halvings));
            (0..document.split.len()).map(keys).collect::<Vec<u64>>()
        });
        let ratio = SampleRatio::of(&weights, keys.as_ref().unwrap_or(&counts));
        let all: u64 = counts.iter().sum();
        let share = |(arm, requests): (AnsweringArm, u64)| Share {
            arm: arm.arm,
            version: arm.version,
            configured: arm.share,
            observed: (all > 0).then(|| requests as f64 / all as f64),
            requests,
            breaker: entry
                .and_then(|entry| entry.pinned(arm.version))
                .map(|served| served.loaded.breaker.status().state),
        };
        let shares = configured_arms(&document).into_iter().zip(counts).map(share).collect();
        let by_request = document.sticky_by.is_some() && keys.is_none() && document.split.len() > 1;
        let sample_ratio = SampleRatioResponse {
            unit: if keys.is_some() { "key" } else { "request" },
            requests: all,
            keys: keys.as_ref().map(|_| ratio.units),
            followed: halvings.map(|halvings| (-f64::from(halvings)).exp2()),
            chi_squared: ratio.chi_squared,
            degrees_of_freedom: ratio.degrees_of_freedom,
            p_value: ratio.p_value,
            verdict: ratio.verdict.as_str(),
            note: by_request.then_some(
                "requests of one sticky key are not independent: a few busy keys can cause a mismatch by themselves",
            ),
        };
        Traffic { document, model, revision, shares, sample_ratio, ends_rollout: None, moves: None }
    }
}

impl EndsRollout {
    pub(in crate::admin) fn of(view: &View) -> EndsRollout {
        let state = &view.state;
        let by = state.started_by.clone();
        EndsRollout { to: state.plan.to, percent: state.percent(), by, revision: state.revision }
    }

    /// Whether the rollout ends when the traffic document has this revision.
    pub(in crate::admin) fn is_ended_by(&self, revision: u64) -> bool {
        self.revision != revision
    }
}

/// What changes between two documents, in words. Empty where there was none before.
fn difference(before: Option<&Document>, after: &Document) -> Vec<String> {
    before.map(|before| before.differences(after)).unwrap_or_default()
}

impl PromotionResponse {
    /// `rollout` was active before.
    pub(in crate::admin) fn of(promotion: Promotion, dry_run: bool, rollout: Option<EndsRollout>) -> PromotionResponse {
        let Promotion { model, from, to, revision, returns, before, after, gates, changed } = promotion;
        let difference = difference(before.as_ref(), &after);
        let ends_rollout = rollout.filter(|_| changed || dry_run && !difference.is_empty());
        let from_split = before.map(|before| before.split).unwrap_or_default();
        let would_pass = dry_run.then(|| gates.iter().all(|verdict| verdict.passed));
        let verdict = |Verdict { gate, asked, found, passed }| GateVerdict { gate, asked, found, passed };
        let gates = gates.into_iter().map(verdict).collect();
        PromotionResponse {
            model,
            from,
            to,
            revision,
            returns,
            from_split,
            difference,
            ends_rollout,
            would_be: dry_run.then_some(after),
            would_pass,
            gates,
        }
    }
}

impl RollbackResponse {
    /// `ends_rollout` was active before.
    pub(in crate::admin) fn of(
        rolled_back: RolledBack,
        dry_run: bool,
        ends_rollout: Option<EndsRollout>,
    ) -> RollbackResponse {
        let RolledBack { model, from, to, revision, restored, before, after, loaded } = rolled_back;
        let difference = difference(before.as_ref(), &after);
        RollbackResponse {
            model,
            from,
            to,
            revision,
            restored,
            from_split: before.map(|before| before.split).unwrap_or_default(),
            to_split: after.split.clone(),
            difference,
            ends_rollout,
            loaded,
            would_be: dry_run.then_some(after),
        }
    }
}
