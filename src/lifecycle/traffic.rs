//! Changes of traffic documents: promote, put, rollout steps, automatic changes. Each change is checked (which may fail and changes
//! nothing), stored in the ledger, and then published.

use super::SYSTEM;
use super::approval::Approvals;
use super::handle::{Actor, Promote, Promotion, Published, RolloutCommit};
use super::model_record::{Model, check_model_loaded, conflict, no_version, not_ready};
use super::policy::{self, Progress};
use super::services::Services;
use super::version_record::{Note, VersionRecord};
use crate::ledger::{Action, Change, Effect, NewDocument};
use crate::model::{Code, Failure, Version};
use crate::model_settings::{Evidence, Gates, Judged, Verdict};
use crate::registry::State;
use crate::route::{Document, Proposal};
use crate::telemetry::{VersionMetrics, names};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// A checked change of a document.
pub(super) struct TrafficChange {
    next: Document,
    action: Action,
    actor: Actor,
    reason: Option<String>,
    /// The version that `auto_promote` promotes.
    auto_promoted: Option<Version>,
    /// The state of the rollout that makes the change, as JSON.
    rollout: Option<String>,
    /// The verdicts of its gates, for the audit trail.
    gates: Option<Judged>,
    /// The versions that get traffic although nobody approved them.
    break_glass: Vec<Version>,
    /// The share of the gateways of a fleet that must be able to serve it. `None`: all.
    quorum: Option<f64>,
}

/// A document that was stored.
pub(super) struct InForce {
    pub next: Document,
    pub action: Action,
    pub actor: Actor,
    /// In the ledger.
    pub revision: u64,
}

/// The state after a change, as the audit trail shows it.
#[derive(Serialize)]
struct AuditAfter<'a> {
    #[serde(flatten)]
    document: &'a Document,
    #[serde(skip_serializing_if = "Option::is_none")]
    gates: Option<&'a Judged>,
    /// The versions whose missing approval an admin overrode.
    #[serde(skip_serializing_if = "<[Version]>::is_empty")]
    break_glass: &'a [Version],
    /// The share of a fleet's gateways that was enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    quorum: Option<f64>,
}

/// How long to wait before an automatic change that the ledger could not store is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// How often to check whether the gates of an automatic promotion have enough compared answers.
const GATE_CHECK: Duration = Duration::from_secs(1);
/// How often to check whether the fleet's document of a model is known.
const FLEET_CHECK: Duration = Duration::from_millis(250);

impl TrafficChange {
    pub(super) fn new(next: Document, action: Action, actor: Actor) -> TrafficChange {
        TrafficChange {
            next,
            action,
            actor,
            reason: None,
            auto_promoted: None,
            rollout: None,
            gates: None,
            break_glass: Vec::new(),
            quorum: None,
        }
    }

    pub(super) fn with_reason(self, reason: Option<String>) -> TrafficChange {
        TrafficChange { reason, ..self }
    }

    /// With versions that get traffic although nobody approved them.
    pub(super) fn with_break_glass(self, break_glass: Vec<Version>) -> TrafficChange {
        TrafficChange { break_glass, ..self }
    }
}

/// Whether one of these revisions is in force. `None`: any may be.
pub(super) fn check_revision(model: &Model, if_match: Option<&[u64]>) -> Result<(), Failure> {
    let revision = model.stored.revision;
    if if_match.is_none_or(|revisions| revisions.contains(&revision)) {
        return Ok(());
    }
    let words = format!("the traffic document is at revision {revision} now; read it again and decide again");
    Err(Failure::new(Code::PreconditionFailed, words))
}

impl Services {
    // === operators ===

    pub(super) fn promote(&mut self, model: &mut Model, request: Promote) -> Result<Promotion, Failure> {
        let Promote {
            version,
            reason,
            dry_run,
            allow_signature_change,
            gates,
            break_glass,
            if_match,
            label,
            quorum,
            actor,
        } = request;
        check_revision(model, if_match.as_deref())?;
        if model.stored.retired.is_none() {
            check_model_loaded(model)?;
        }
        // A promotion keeps the rest of the document, which cannot be read here.
        if model.document_error.is_some() {
            let words = format!(
                "the stored traffic document of model {} cannot be read; put a new document or roll back",
                model.name
            );
            return Err(conflict(words));
        }
        let Some(record) = model.versions.get(&version) else { return Err(no_version(model, version)) };
        if !record.is_callable() {
            return Err(conflict(not_ready(model, version)));
        }
        let returns = model.stored.retired.is_some();
        let from = model.document.as_ref().and_then(Document::heaviest).filter(|_| !returns);
        let (name, revision) = (model.name.clone(), model.stored.revision);
        let before = model.document.clone().filter(|_| !returns);
        let serves = before.as_ref().is_some_and(|document| document.serves_alone(version));
        let has_label = |document: &Document| {
            label.as_ref().is_none_or(|label| document.labels.get(label.as_str()) == Some(&version))
        };
        if let Some(document) = before.as_ref().filter(|document| serves && has_label(document)) {
            let (model, after, gates) = (name, document.clone(), Vec::new());
            return Ok(Promotion { model, from, to: version, revision, changed: false, returns, before, after, gates });
        }
        let mut next = model.document.as_ref().map_or_else(|| Document::single(version), |d| d.promoted(version));
        next.reason = Some(reason).filter(|r| !r.is_empty());
        next.labels.extend(label.map(|label| (label, version)));
        check(model, &next, allow_signature_change)?;
        // A version that already serves alone only gets the label.
        let judged = if serves { None } else { self.judge(model, version, gates.as_ref()) };
        let mut verdicts = judged.as_ref().map(|judged| judged.verdicts.clone()).unwrap_or_default();
        let unapproved = self.unapproved(model, &next, &actor);
        if self.needs_approval(model) {
            let found = unapproved.first().map_or_else(|| "approved".to_owned(), |(_, why)| why.clone());
            let asked = "approved by a second person".to_owned();
            verdicts.push(Verdict { gate: "approval", asked, found, passed: unapproved.is_empty() || break_glass });
        }
        if dry_run {
            let (model, after, gates) = (name, next, verdicts);
            return Ok(Promotion { model, from, to: version, revision, changed: false, returns, before, after, gates });
        }
        if let Some(failed) = judged.as_ref().filter(|judged| !judged.passed()) {
            return Err(failed.refusal(&format!("version {version} of model {}", model.name)));
        }
        let approvals = if break_glass { Approvals::BreakGlass } else { Approvals::Required };
        let break_glass = self.check_approved(model, unapproved, &actor, approvals)?;
        let (reason, after) = (next.reason.clone(), next.clone());
        let change = TrafficChange {
            reason,
            gates: judged,
            break_glass,
            quorum,
            ..TrafficChange::new(next, Action::Promote, actor)
        };
        let revision = self.change_traffic(model, change)?;
        let (model, gates) = (name, verdicts);
        Ok(Promotion { model, from, to: version, revision, changed: true, returns, before, after, gates })
    }

    /// The verdicts of the gates of a promotion: those of the request, else those of the model.
    fn judge(&self, model: &Model, version: Version, requested: Option<&Gates>) -> Option<Judged> {
        let facts = |v: Version| model.versions.get(&v).and_then(|record| record.facts.as_deref());
        let split = model.document.iter().flat_map(|document| &document.split);
        let primaries: BTreeSet<Version> =
            split.filter(|arm| arm.weight > 0.0 && arm.version != version).map(|arm| arm.version).collect();
        let serving = model.serving().into_iter().filter(|v| *v != version);
        let evidence = Evidence {
            agreement: self.figures.agreement(&model.name, &primaries, version),
            top1: self.figures.top1(&model.name, &primaries, version),
            primaries: primaries.into_iter().collect(),
            golden_cases: facts(version).map_or(0, |facts| facts.golden_cases),
            signature: facts(version).map(|facts| &facts.signature),
            serving: serving.map(|v| (v, facts(v).map(|facts| &facts.signature))).collect(),
        };
        Judged::new(requested, &model.settings.gates, &evidence)
    }

    pub(super) fn put_traffic(
        &mut self,
        model: &mut Model,
        proposal: Proposal,
        if_match: Option<&[u64]>,
        actor: Actor,
    ) -> Result<Published, Failure> {
        let Proposal { document, allow_signature_change, break_glass, dry_run, quorum } = proposal;
        let revision = model.stored.revision;
        check_revision(model, if_match)?;
        check_model_loaded(model)?;
        let (next, _) = stored_form(&document)?;
        check(model, &next, allow_signature_change)?;
        // An equal document is no change, so that a rollback still goes back to a different one.
        if dry_run || model.document.as_ref() == Some(&next) {
            return Ok(Published { revision, document: next });
        }
        let approvals = if break_glass { Approvals::BreakGlass } else { Approvals::Required };
        let unapproved = self.unapproved(model, &next, &actor);
        let break_glass = self.check_approved(model, unapproved, &actor, approvals)?;
        let reason = next.reason.clone();
        let document = next.clone();
        let change =
            TrafficChange { reason, break_glass, quorum, ..TrafficChange::new(next, Action::PutTraffic, actor) };
        let revision = self.change_traffic(model, change)?;
        Ok(Published { revision, document })
    }

    /// A step of a rollout.
    pub(super) fn commit_rollout(
        &mut self,
        model: &mut Model,
        commit: RolloutCommit,
        actor: Actor,
    ) -> Result<u64, Failure> {
        let RolloutCommit { at, document, candidate, state, allow_signature_change, break_glass, action, reason } =
            commit;
        let revision = model.stored.revision;
        if at.is_some_and(|at| at != revision) {
            return Err(conflict(format!("the traffic document is at revision {revision} now")));
        }
        let Some(next) = document else {
            let (name, after) = (model.name.clone(), Some(state.clone()));
            let effect = Effect::SetRollout { state, document: None };
            let change = Change { model: name, actor: actor.0, action, reason, before: None, after, effect };
            self.commit(&model.stored, change)?;
            return Ok(revision);
        };
        check_model_loaded(model)?;
        check(model, &next, allow_signature_change)?;
        // What served before a rollout may always be restored. A rollout that begins with a shadow needs the approval before it begins.
        let approvals = match action {
            Action::RolloutTakeBack | Action::RolloutAbort => None,
            _ if break_glass => Some(Approvals::BreakGlass),
            Action::RolloutStart => Some(Approvals::Required),
            _ => Some(Approvals::RequiredOfSystem),
        };
        let break_glass = match approvals {
            None => Vec::new(),
            Some(approvals) => {
                let unapproved = self.unapproved_of(model, [candidate], &actor);
                self.check_approved(model, unapproved, &actor, approvals)?
            }
        };
        let change = TrafficChange { reason, rollout: Some(state), ..TrafficChange::new(next, action, actor) }
            .with_break_glass(break_glass);
        self.change_traffic(model, change)
    }

    // === automatic changes ===

    /// Gives a model its first document, or promotes a version automatically. Returns whether anything changed.
    pub(super) fn serve_automatically(&mut self, model: &mut Model) -> bool {
        if model.is_out() || model.document_error.is_some() {
            return false;
        }
        if !self.may_change_alone(&model.name) {
            self.schedule.look_at(Instant::now() + FLEET_CHECK, &model.name);
            return false;
        }
        let (version, action) = if model.document.is_none() {
            let progress = model.progress();
            let loading = progress.values().any(|p| *p == Progress::Loading);
            let settled = model.versions.values().any(|r| matches!(r.state(), State::Ready | State::Failed));
            model.all_settled_once |= !loading && settled;
            match policy::first(&progress, model.all_settled_once) {
                Some(version) => (version, Action::FirstDocument),
                None => return false,
            }
        } else if model.settings.auto_promote && model.can_serve() {
            let ready = model.versions.iter().filter(|(_, record)| record.is_callable()).map(|(v, _)| *v);
            match policy::auto_promote(ready, model.stored.highest_served, &model.stored.auto_promoted) {
                Some(version) if !model.auto_promote_refused.contains(&version) => (version, Action::AutoPromote),
                _ => return false,
            }
        } else {
            return false;
        };
        let mut next = model.document.as_ref().map_or_else(|| Document::single(version), |d| d.promoted(version));
        next.reason = None;
        let auto_promoted = (action == Action::AutoPromote).then_some(version);
        if let Err(refused) = check(model, &next, false) {
            let words = format!("not promoted automatically: {}", refused.operator_text());
            warn!(model = %model.name, %version, "{words}");
            model.auto_promote_refused.insert(version);
            model.versions.entry(version).and_modify(|record| record.note(Note::AutoPromote, Some(words)));
            return false;
        }
        let actor = Actor(SYSTEM.to_owned());
        if let Some((_, why)) = self.unapproved(model, &next, &actor).first() {
            let words = format!("not promoted automatically: it needs an approval: {why}");
            if let Some(record) = model.versions.get_mut(&version) {
                if !record.notes.contains_key(&Note::AutoPromote) {
                    info!(model = %model.name, %version, "{words}");
                }
                record.note(Note::AutoPromote, Some(words));
            }
            return false;
        }
        let gates = auto_promoted.and_then(|_| self.judge(model, version, None));
        if let Some(failed) = gates.as_ref().filter(|judged| !judged.passed()) {
            self.wait_for_gates(model, version, failed);
            return false;
        }
        let change = TrafficChange { auto_promoted, gates, ..TrafficChange::new(next, action, actor) };
        match self.change_traffic(model, change) {
            Ok(_) => true,
            Err(failure) => {
                error!(model = %model.name, %version, "{}", failure.operator_text());
                self.schedule.look_at(Instant::now() + TRY_AGAIN, &model.name);
                false
            }
        }
    }

    /// A version that would be promoted automatically fails a gate. It is checked again when anything happens to the model, and at an
    /// interval where a gate depends on compared answers.
    fn wait_for_gates(&mut self, model: &mut Model, version: Version, failed: &Judged) {
        let refused = failed.refusal("it");
        let words = format!("not promoted automatically: {}; {}", refused.message, refused.details.join("; "));
        if let Some(record) = model.versions.get_mut(&version) {
            // The words change with every compared answer, so only the first ones are logged.
            if !record.notes.contains_key(&Note::AutoPromote) {
                warn!(model = %model.name, %version, "{words}");
            }
            record.note(Note::AutoPromote, Some(words));
        }
        let now = Instant::now();
        if model.settings.gates.use_shadows() && model.next_gate_check.is_none_or(|at| at <= now) {
            let at = now + GATE_CHECK;
            model.next_gate_check = Some(at);
            self.schedule.look_at(at, &model.name);
        }
    }

    // === every change ===

    /// Stores a checked change in the ledger, and has it published. Returns the new revision.
    ///
    /// # Errors
    /// When the document cannot be stored. Nothing was changed then.
    pub(super) fn change_traffic(&mut self, model: &mut Model, change: TrafficChange) -> Result<u64, Failure> {
        let TrafficChange { next, action, actor, reason, auto_promoted, rollout, gates, break_glass, quorum } = change;
        let (next, text) = stored_form(&next)?;
        let after = AuditAfter { document: &next, gates: gates.as_ref(), break_glass: &break_glass, quorum };
        let after = serde_json::to_string(&after)
            .map_err(|e| Failure::new(Code::Internal, "the change cannot be written").with_internal(e.to_string()))?;
        let highest_served = next.serving().last().copied();
        let change = Change {
            model: model.name.clone(),
            actor: actor.0.clone(),
            action,
            reason: reason.clone(),
            before: audit_before(model),
            after: Some(after),
            effect: match rollout {
                None => Effect::SetDocument { document: text.clone(), highest_served, auto_promoted },
                Some(state) => {
                    let document = NewDocument { document: text.clone(), highest_served };
                    Effect::SetRollout { state, document: Some(document) }
                }
            },
        };
        let revision = self.commit_with(&model.stored, change, quorum)?.revision;

        if !break_glass.is_empty() {
            self.telemetry.process().counter(&names::BREAK_GLASS, &[("action", action.as_str())]).increment(1);
            error!(
                model = %model.name, actor = actor.0, action = %action, versions = ?break_glass, reason = reason.as_deref().unwrap_or_default(),
                "BREAK GLASS: an admin gives traffic to versions that nobody approved"
            );
        }
        model.stored.document = Some(text);
        model.stored.highest_served = model.stored.highest_served.max(highest_served);
        model.stored.auto_promoted.extend(auto_promoted);
        if model.stored.retired.take().is_some() {
            info!(model = %model.name, actor = actor.0, "a promotion brings the retired model back");
        }
        self.put_in_force(model, InForce { next, action, actor, revision });
        Ok(revision)
    }

    /// Has a document that was stored published.
    pub(super) fn put_in_force(&mut self, model: &mut Model, in_force: InForce) {
        let InForce { next, action, actor, revision } = in_force;
        let (before, from) = (model.serving(), model.document.as_ref().and_then(Document::heaviest));
        let to = next.heaviest();
        for version in next.serving() {
            model.versions.entry(version).and_modify(|record| record.note(Note::AutoPromote, None));
        }
        let named = model.document.as_ref().map(Document::named).unwrap_or_default();
        model.update_last_named(&named, &next.named());
        model.document = Some(next);
        model.document_error = None;
        model.stored.revision = revision;
        self.schedule.look_now(model.name.clone());
        self.telemetry.process().counter(&names::SWAPS, &[("action", action.as_str())]).increment(1);
        let replaced: Vec<Arc<VersionMetrics>> = before
            .difference(&model.serving())
            .filter_map(|v| model.versions.get(v)?.loaded.as_ref())
            .map(|loaded| Arc::clone(&loaded.metrics))
            .collect();
        let gauge = self.telemetry.process().gauge(&names::SWAP_IN_FLIGHT, &[]);
        let name = model.name.clone();
        self.publisher.after_publish(move || {
            let in_flight: u64 = replaced.iter().map(|metrics| metrics.in_flight()).sum();
            gauge.set(in_flight as f64);
            let show = |v: Option<Version>| v.map_or_else(|| "none".to_owned(), |v| v.to_string());
            info!(
                model = %name, action = %action, actor = actor.0, from = show(from), to = show(to),
                revision, in_flight, "traffic changed"
            );
        });
    }
}

/// A document as a restart will read it, and its text. What is in force now is then what is in force after a restart.
///
/// # Errors
/// When the text cannot be read back. Stored, it would disable the model at the next start.
fn stored_form(document: &Document) -> Result<(Document, String), Failure> {
    let text = document.to_json();
    match Document::from_json(&text) {
        Ok(document) => Ok((document, text)),
        Err(complaints) => {
            let mut refused = Failure::several(Code::InvalidRequest, complaints);
            refused.message = format!(
                "the traffic document could not be read back after a restart: {}; nothing was changed",
                refused.message
            );
            Err(refused)
        }
    }
}

/// A document of another gateway as it is stored here, and its text.
///
/// # Errors
/// Every complaint, when it cannot be read.
pub(super) fn stored_text(text: &str) -> Result<(Document, String), Failure> {
    let document =
        Document::from_json(text).map_err(|complaints| Failure::several(Code::InvalidRequest, complaints))?;
    stored_form(&document)
}

/// The stored document before a change, as the audit trail shows it: JSON, whatever is stored.
fn audit_before(model: &Model) -> Option<String> {
    if let Some(document) = &model.document {
        return Some(document.to_json());
    }
    let text = model.stored.document.as_ref()?;
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    Some(if is_json { text.clone() } else { serde_json::Value::from(text.as_str()).to_string() })
}

/// Checks that a document can be put in force: every version that it names is callable, and no version that it newly names breaks
/// callers.
pub(super) fn check(model: &Model, next: &Document, allow_signature_change: bool) -> Result<(), Failure> {
    let missing: Vec<Version> = next.named().into_iter().filter(|v| !model.is_callable(*v)).collect();
    if !missing.is_empty() {
        let complaints = missing.into_iter().map(|v| not_ready(model, v)).collect();
        return Err(Failure::several(Code::Conflict, complaints));
    }
    if allow_signature_change {
        return Ok(());
    }
    let serving = model.serving();
    let facts = |record: &VersionRecord| record.facts.clone();
    let mut breaks: Vec<String> = Vec::new();
    for new in next.answering().difference(&model.answering()) {
        for old in &serving {
            let before = model.versions.get(old).and_then(facts);
            let after = model.versions.get(new).and_then(facts);
            let (Some(before), Some(after)) = (before, after) else { continue };
            let changes = before.signature.breaking_changes(&after.signature);
            breaks.extend(changes.iter().map(|change| format!("version {new} against version {old}: {change}")));
        }
    }
    if breaks.is_empty() {
        return Ok(());
    }
    let mut refused = Failure::several(Code::Conflict, breaks);
    let hint = "\"allow_signature_change\": true accepts it";
    refused.message = format!("the signature no longer fits what callers use: {}; {hint}", refused.message);
    Err(refused)
}
