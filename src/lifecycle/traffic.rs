//! Changing who gets the traffic: promote, put, roll back, and what happens of itself. Each change is prepared (may fail, touches
//! nothing), kept in the ledger, and then published.

use super::handle::{Actor, Promote, Promotion, Published, Reply, RolledBack, RolloutCommit};
use super::manager::{Manager, conflict};
use super::policy;
use super::table::{Model, Note, Op, Rollback};
use super::{SYSTEM, journal};
use crate::ledger::{Action, Change, Effect, NewDocument};
use crate::model::{Code, Failure, ModelName, Version};
use crate::model_settings::{Evidence, Gates, Judged};
use crate::registry::State;
use crate::route::{Document, Proposal};
use crate::telemetry::{VersionMetrics, names};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// A change of a document, ready to be made.
struct Turnover {
    next: Document,
    action: Action,
    actor: Actor,
    reason: Option<String>,
    /// The version that promotes itself.
    auto: Option<Version>,
    /// Where a rollout stands with this, as JSON.
    rollout: Option<String>,
    /// What came of its gates, for the audit trail.
    gates: Option<Judged>,
}

/// What the audit trail shows as it is after a change.
#[derive(Serialize)]
struct After<'a> {
    #[serde(flatten)]
    document: &'a Document,
    #[serde(skip_serializing_if = "Option::is_none")]
    gates: Option<&'a Judged>,
}

/// When the ledger could not keep what happens of itself: how long to wait before it is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Between looks whether a version that would promote itself has the pairs of answers its gates ask for.
const LOOK_AT_PAIRS: Duration = Duration::from_secs(1);

impl Turnover {
    /// Without a word said about it.
    fn to(next: Document, action: Action, actor: Actor) -> Turnover {
        Turnover { next, action, actor, reason: None, auto: None, rollout: None, gates: None }
    }
}

impl Manager {
    pub(super) fn promote(&mut self, model: &mut Model, ask: Promote) -> Result<Promotion, Failure> {
        let Promote { version, reason, dry_run, allow_signature_change, gates, actor } = ask;
        refuse_taken_out(model)?;
        let Some(life) = model.lives.get(&version) else { return Err(no_version(model, version)) };
        if !life.is_callable() {
            return Err(conflict(not_ready(model, version)));
        }
        let from = model.document.as_ref().and_then(Document::heaviest);
        let (name, revision) = (model.name.clone(), model.kept.revision);
        let would_be = |document: &Document| dry_run.then(|| document.clone());
        let done = |would_be, gates| {
            Ok(Promotion { model: name, from, to: version, revision, changed: false, would_be, gates })
        };
        if let Some(document) = model.document.as_ref().filter(|d| d.serves_alone(version)) {
            return done(would_be(document), Vec::new());
        }
        let mut next = model.document.as_ref().map_or_else(|| Document::single(version), |d| d.promoted(version));
        next.reason = Some(reason).filter(|r| !r.is_empty());
        prepare(model, &next, allow_signature_change)?;
        let judged = self.judge(model, version, gates.as_ref());
        let verdicts = judged.as_ref().map(|judged| judged.verdicts.clone()).unwrap_or_default();
        if dry_run {
            return done(would_be(&next), verdicts);
        }
        if let Some(failed) = judged.as_ref().filter(|judged| !judged.passed()) {
            return Err(failed.refusal(&format!("version {version} of model {}", model.name)));
        }
        let (reason, action) = (next.reason.clone(), Action::Promote);
        let revision = self.change(model, Turnover { reason, gates: judged, ..Turnover::to(next, action, actor) })?;
        let model = model.name.clone();
        Ok(Promotion { model, from, to: version, revision, changed: true, would_be: None, gates: verdicts })
    }

    /// What comes of the gates of a promote: those it asks for, else the model's own.
    fn judge(&self, model: &Model, version: Version, asked: Option<&Gates>) -> Option<Judged> {
        let facts = |v: Version| model.lives.get(&v).and_then(|life| life.facts.as_deref());
        let split = model.document.iter().flat_map(|document| &document.split);
        let primaries: BTreeSet<Version> =
            split.filter(|arm| arm.weight > 0.0 && arm.version != version).map(|arm| arm.version).collect();
        let serving = model.serving().into_iter().filter(|v| *v != version);
        let evidence = Evidence {
            agreement: self.figures.agreement(&model.name, &primaries, version),
            primaries: primaries.into_iter().collect(),
            golden_cases: facts(version).map_or(0, |facts| facts.golden_cases),
            signature: facts(version).map(|facts| &facts.signature),
            serving: serving.map(|v| (v, facts(v).map(|facts| &facts.signature))).collect(),
        };
        Judged::new(asked, &model.settings.gates, &evidence)
    }

    pub(super) fn put_traffic(
        &mut self,
        model: &mut Model,
        proposal: Proposal,
        if_match: Option<&[u64]>,
        actor: Actor,
    ) -> Result<Published, Failure> {
        let Proposal { document: next, allow_signature_change } = proposal;
        let revision = model.kept.revision;
        if if_match.is_some_and(|etags| !etags.contains(&revision)) {
            let words = format!("the traffic document is at revision {revision} now; read it again and decide again");
            return Err(Failure::new(Code::PreconditionFailed, words));
        }
        refuse_taken_out(model)?;
        prepare(model, &next, allow_signature_change)?;
        // Saying the same again is no change, so that a rollback still goes back to what was different.
        if model.document.as_ref() == Some(&next) {
            return Ok(Published { revision, document: next });
        }
        let reason = next.reason.clone();
        let document = next.clone();
        let revision = self.change(model, Turnover { reason, ..Turnover::to(next, Action::PutTraffic, actor) })?;
        Ok(Published { revision, document })
    }

    /// A rollout's move.
    pub(super) fn commit_rollout(
        &mut self,
        model: &mut Model,
        steer: RolloutCommit,
        actor: Actor,
    ) -> Result<u64, Failure> {
        let RolloutCommit { at, document, state, allow_signature_change, action, reason } = steer;
        let revision = model.kept.revision;
        if at.is_some_and(|at| at != revision) {
            return Err(conflict(format!("the traffic document is at revision {revision} now")));
        }
        let Some(next) = document else {
            let (name, after) = (model.name.clone(), Some(state.clone()));
            let effect = Effect::SetRollout { state, document: None };
            let change = Change { model: name, actor: actor.0, action, reason, before: None, after, effect };
            self.journal.commit(change).map_err(|e| journal::failure(&e))?;
            return Ok(revision);
        };
        refuse_taken_out(model)?;
        prepare(model, &next, allow_signature_change)?;
        self.change(model, Turnover { reason, rollout: Some(state), ..Turnover::to(next, action, actor) })
    }

    /// Begins a rollback; it ends in [`Manager::finish_rollback`], once the versions it needs are loaded.
    pub(super) fn rollback(&mut self, model: &mut Model, reason: String, actor: Actor, reply: Reply<RolledBack>) {
        match self.document_before(model) {
            Ok(document) => {
                // An operator's wish: what failed is tried once more, at once.
                for version in document.named() {
                    model.lives.entry(version).and_modify(|life| life.retry_at = Some(Instant::now()));
                }
                let to_load = document.named().into_iter().filter(|v| !model.is_callable(*v)).collect();
                let at = model.kept.revision;
                model
                    .ops
                    .push(Op::Rollback { wish: Box::new(Rollback { document, at, to_load, reason, actor }), reply });
            }
            Err(failure) => self.answer(reply, Err(failure)),
        }
    }

    fn document_before(&self, model: &Model) -> Result<Document, Failure> {
        refuse_taken_out(model)?;
        let nothing = || conflict(format!("model {} has no traffic document before the current one", model.name));
        let before = self.journal.previous_document(&model.name).map_err(|e| journal::failure(&e))?;
        Document::from_json(&before.ok_or_else(nothing)?.document).map_err(|complaints| {
            Failure::new(Code::Internal, "the document before cannot be read").with_internal(complaints.join("; "))
        })
    }

    /// Makes the change a rollback waits for; `None` while it has to wait.
    pub(super) fn finish_rollback(
        &mut self,
        model: &mut Model,
        wish: &Rollback,
    ) -> Option<Result<RolledBack, Failure>> {
        if model.kept.revision != wish.at || model.kept.taken_out {
            return Some(Err(conflict(
                "the traffic was changed by somebody else while the rollback loaded its versions",
            )));
        }
        for version in wish.document.named() {
            let life = model.lives.get(&version)?;
            match life.state() {
                State::Ready | State::Serving => {}
                State::Failed | State::Unloaded => return Some(Err(conflict(not_ready(model, version)))),
                State::Pending if !life.has_files() => return Some(Err(conflict(not_ready(model, version)))),
                _ => return None,
            }
        }
        Some(self.roll_back(model, wish))
    }

    fn roll_back(&mut self, model: &mut Model, wish: &Rollback) -> Result<RolledBack, Failure> {
        let Rollback { document, to_load, reason, actor, .. } = wish;
        let from = model.document.as_ref().and_then(Document::heaviest);
        let to = document.heaviest().ok_or_else(|| conflict("the document before sends traffic to no version"))?;
        for version in document.named() {
            self.keep_loaded(model, version, actor, Some("a rollback needs it"))?;
        }
        let reason = Some(reason.clone()).filter(|r| !r.is_empty());
        let (next, action, actor) = (document.clone(), Action::Rollback, actor.clone());
        let revision = self.change(model, Turnover { reason, ..Turnover::to(next, action, actor) })?;
        Ok(RolledBack { model: model.name.clone(), from, to, revision, loaded: to_load.clone() })
    }

    // === what happens of itself ===

    /// Gives a model its first document, or promotes what promotes itself; answers whether anything changed.
    pub(super) fn serve_of_itself(&mut self, model: &mut Model) -> bool {
        if model.kept.taken_out {
            return false;
        }
        let (version, action) = if model.document.is_none() {
            let standings = model.standings();
            let coming = standings.values().any(|s| *s == policy::Standing::Coming);
            let known = model.lives.values().any(|l| matches!(l.state(), State::Ready | State::Failed));
            model.waited |= !coming && known;
            match policy::first(&standings, model.waited) {
                Some(version) => (version, Action::FirstDocument),
                None => return false,
            }
        } else if model.settings.auto_promote && model.can_serve() {
            let ready = model.lives.iter().filter(|(_, l)| l.is_callable()).map(|(v, _)| *v);
            match policy::auto_promote(ready, model.kept.highest_served, &model.kept.auto_promoted) {
                Some(version) if !model.refused.contains(&version) => (version, Action::AutoPromote),
                _ => return false,
            }
        } else {
            return false;
        };
        let mut next = model.document.as_ref().map_or_else(|| Document::single(version), |d| d.promoted(version));
        next.reason = None;
        let auto = (action == Action::AutoPromote).then_some(version);
        let prepared = prepare(model, &next, false);
        if let Err(refused) = prepared {
            let words = format!("not promoted of itself: {}", refused.operator_text());
            warn!(model = %model.name, %version, "{words}");
            model.refused.insert(version);
            model.lives.entry(version).and_modify(|life| life.note(Note::AutoPromote, Some(words)));
            return false;
        }
        let gates = auto.and_then(|_| self.judge(model, version, None));
        if let Some(failed) = gates.as_ref().filter(|judged| !judged.passed()) {
            self.stay_out(model, version, failed);
            return false;
        }
        let actor = Actor(SYSTEM.to_owned());
        match self.change(model, Turnover { auto, gates, ..Turnover::to(next, action, actor) }) {
            Ok(_) => true,
            Err(failure) => {
                error!(model = %model.name, %version, "{}", failure.operator_text());
                self.wake_at(Instant::now() + TRY_AGAIN, &model.name);
                false
            }
        }
    }

    /// A version that would promote itself does not pass its gates: it is said, and looked at again when anything happens to the
    /// model, and where pairs of answers are asked for, also as they are compared.
    fn stay_out(&mut self, model: &mut Model, version: Version, failed: &Judged) {
        let refused = failed.refusal("it");
        let words = format!("not promoted of itself: {}; {}", refused.message, refused.details.join("; "));
        if let Some(life) = model.lives.get_mut(&version) {
            // The words change with every pair; the log is told once.
            if !life.notes.contains_key(&Note::AutoPromote) {
                warn!(model = %model.name, %version, "{words}");
            }
            life.note(Note::AutoPromote, Some(words));
        }
        let now = Instant::now();
        if model.settings.gates.use_shadows() && model.look_again.is_none_or(|at| at <= now) {
            let at = now + LOOK_AT_PAIRS;
            model.look_again = Some(at);
            self.wake_at(at, &model.name);
        }
    }

    // === prepare and apply ===

    /// Keeps a prepared change in the ledger, and has it published.
    ///
    /// # Errors
    /// When the ledger cannot keep it; nothing is changed then.
    fn change(&mut self, model: &mut Model, change: Turnover) -> Result<u64, Failure> {
        let Turnover { next, action, actor, reason, auto, rollout, gates } = change;
        let text = next.to_json();
        let after = After { document: &next, gates: gates.as_ref() };
        let after = serde_json::to_string(&after).expect("a document and words are what JSON can write");
        let highest_served = next.serving().last().copied();
        let committed = self.journal.commit(Change {
            model: model.name.clone(),
            actor: actor.0.clone(),
            action,
            reason,
            before: model.document.as_ref().map(Document::to_json),
            after: Some(after),
            effect: match rollout {
                None => Effect::SetDocument { document: text.clone(), highest_served, auto_promoted: auto },
                Some(state) => {
                    let document = NewDocument { document: text.clone(), highest_served };
                    Effect::SetRollout { state, document: Some(document) }
                }
            },
        });
        let committed = committed.map_err(|e| journal::failure(&e))?;

        let (before, from) = (model.serving(), model.document.as_ref().and_then(Document::heaviest));
        let to = next.heaviest();
        for version in next.serving() {
            model.lives.entry(version).and_modify(|life| life.note(Note::AutoPromote, None));
        }
        let named = model.document.as_ref().map(Document::named).unwrap_or_default();
        model.names(&named, &next.named());
        model.document = Some(next);
        model.kept.document = Some(text);
        model.kept.revision = committed.revision;
        model.kept.highest_served = model.kept.highest_served.max(highest_served);
        model.kept.auto_promoted.extend(auto);
        self.touched.insert(model.name.clone());
        self.telemetry.process().counter(&names::SWAPS, &[("action", action.as_str())]).increment(1);
        let out: Vec<Arc<VersionMetrics>> = before
            .difference(&model.serving())
            .filter_map(|v| model.lives.get(v)?.loaded.as_ref())
            .map(|loaded| Arc::clone(&loaded.metrics))
            .collect();
        let gauge = self.telemetry.process().gauge(&names::SWAP_IN_FLIGHT, &[]);
        let name = model.name.clone();
        self.after.push(Box::new(move || {
            let in_flight: u64 = out.iter().map(|metrics| metrics.in_flight()).sum();
            gauge.set(in_flight as f64);
            let show = |v: Option<Version>| v.map_or_else(|| "none".to_owned(), |v| v.to_string());
            info!(
                model = %name, action = %action, actor = actor.0, from = show(from), to = show(to),
                revision = committed.revision, in_flight, "traffic changed"
            );
        }));
        Ok(committed.revision)
    }
}

/// Whether a document may be put in force: every version it names is callable, and none that it newly names breaks callers.
fn prepare(model: &Model, next: &Document, allow_signature_change: bool) -> Result<(), Failure> {
    let missing: Vec<Version> = next.named().into_iter().filter(|v| !model.is_callable(*v)).collect();
    if !missing.is_empty() {
        let complaints = missing.into_iter().map(|v| not_ready(model, v)).collect();
        return Err(Failure::several(Code::Conflict, complaints));
    }
    if allow_signature_change {
        return Ok(());
    }
    let serving = model.serving();
    let signature = |v: &Version| model.lives.get(v).and_then(|l| l.facts.as_ref()).map(|f| &f.signature);
    let mut breaks: Vec<String> = Vec::new();
    for new in next.serving().difference(&serving) {
        for old in &serving {
            let (Some(was), Some(is)) = (signature(old), signature(new)) else { continue };
            let changes = was.breaking_changes(is);
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

pub(super) fn no_model(model: &ModelName) -> Failure {
    Failure::new(Code::ModelNotFound, format!("no model is named {:?}", model.as_str()))
}

pub(super) fn no_version(model: &Model, version: Version) -> Failure {
    let known: Vec<String> = model.lives.keys().map(ToString::to_string).collect();
    let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
    Failure::new(Code::VersionNotFound, format!("model {} has no version {version}; {known}", model.name))
}

pub(super) fn refuse_taken_out(model: &Model) -> Result<(), Failure> {
    if model.kept.taken_out {
        Err(conflict(format!("model {} is unloaded as a whole; load the model first", model.name)))
    } else {
        Ok(())
    }
}

/// Why a version cannot be named by a document now, in words.
pub(super) fn not_ready(model: &Model, version: Version) -> String {
    let Some(life) = model.lives.get(&version) else { return no_version(model, version).message };
    let stage = life.stage.map(|stage| format!(" in {}", stage.as_str())).unwrap_or_default();
    let reason = life.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("version {version} of model {} is {}{stage}{reason}", model.name, life.state())
}
