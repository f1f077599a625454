//! The changes of a rollout: checks its evidence, and stores and applies each transition.

use super::active::{ActiveRollout, Trouble};
use super::decide::Decision;
use super::evidence::p99_us;
use super::in_fleet::InFleet;
use super::plan::Plan;
use super::shared::Fellows;
use super::state::{Ended, State, Step};
use crate::ledger::{Action, LedgerReader};
use crate::lifecycle::{Actor, Handle, RolloutCommit};
use crate::model::{Code, Failure, ModelName};
use crate::outcomes::{Kind, Metrics};
use crate::quality::History;
use crate::registry::Reader;
use crate::route::Document;
use crate::shadow::Figures;
use crate::telemetry::{ArmEvidence, Telemetry, names};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// What the actor reads and changes. Kept apart from the rollouts, so that one of them can be changed with it.
pub(super) struct Services {
    pub(super) handle: Handle,
    pub(super) reader: Reader,
    pub(super) ledger: LedgerReader,
    pub(super) figures: Figures,
    /// Rows with their outcomes, for business metrics.
    pub(super) history: History,
    pub(super) telemetry: Telemetry,
    /// The other gateways, in a fleet.
    pub(super) fellows: Option<Arc<dyn Fellows>>,
    /// This start of the process.
    pub(super) start: String,
}

/// A change of one rollout that is to be stored.
pub(super) struct Transition {
    pub(super) next: State,
    /// The traffic document that comes into force with it; `None` leaves the traffic as it is.
    pub(super) document: Option<Document>,
    pub(super) action: Action,
    pub(super) reason: String,
    pub(super) actor: Actor,
}

/// After a change that failed.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// After a change that another gateway's came before.
const RETRY_IN_FLEET: Duration = Duration::from_millis(500);
/// The actor's name in the audit trail.
const ROLLOUT: &str = "rollout";

impl Services {
    /// The traffic document that a rollout begins from, its revision, and the 99th percentile of the latency under it.
    pub(super) fn before(&self, model: &ModelName, plan: &Plan) -> Result<(Document, u64, Option<u64>), Failure> {
        let snapshot = self.reader.snapshot();
        let entry = snapshot
            .model(model.as_str())
            .ok_or_else(|| Failure::new(Code::ModelNotFound, format!("no model is named {:?}", model.as_str())))?;
        if !entry.versions().contains_key(&plan.to) {
            let message = format!("model {model} has no version {}", plan.to);
            return Err(Failure::new(Code::VersionNotFound, message));
        }
        check_metrics(plan, entry.metrics())?;
        if self.fellows.is_some() {
            check_for_fleet(plan)?;
        }
        let document = entry.document().filter(|_| !entry.taken_out()).cloned().ok_or_else(|| {
            Failure::new(Code::Conflict, format!("model {model} is not serving, so there is no traffic to move"))
        })?;
        let mut served = ArmEvidence::default();
        for arm in entry.arms().iter().filter(|arm| arm.loaded.version != plan.to) {
            served.add(&arm.metrics.evidence());
        }
        Ok((document, entry.revision(), p99_us(&served)))
    }

    /// Checks one active rollout and carries out what the evidence says.
    pub(super) async fn check(&self, model: &ModelName, rollout: &mut ActiveRollout) {
        if let Some(fellows) = &self.fellows {
            return self.check_in_fleet(fellows.as_ref(), model, rollout).await;
        }
        self.stop_if_traffic_changed(model, rollout).await;
        if !rollout.state.is_active() {
            return;
        }
        let snapshot = self.reader.snapshot();
        let entry = snapshot.model(model.as_str()).filter(|entry| entry.revision() == rollout.state.revision);
        let Some(entry) = entry else { return };
        let failed = rollout.candidate_failed(entry);
        if !entry.can_serve() && failed.is_none() {
            // After a restart the document is published before its versions are loaded. The step's clock starts when they are.
            rollout.step_began = Instant::now();
            return;
        }
        let decision = failed.unwrap_or_else(|| rollout.decide(model, entry, &self.figures, &self.history));
        drop(snapshot);
        self.carry_out(model, rollout, decision).await;
    }

    /// The same in a fleet: every gateway tells what it answered, and the driver decides.
    async fn check_in_fleet(&self, fellows: &dyn Fellows, model: &ModelName, rollout: &mut ActiveRollout) {
        let Some(fleet) = &rollout.fleet else { return };
        if !fleet.in_force {
            return;
        }
        let is_here = fleet.is_here();
        if let Some(entry) = self.reader.snapshot().model(model.as_str()) {
            rollout.bind(entry);
        }
        if is_here {
            self.stop_if_traffic_changed(model, rollout).await;
        }
        let Some(fleet) = rollout.fleet.as_ref().filter(|_| rollout.state.is_active()) else { return };
        let snapshot = self.reader.snapshot();
        // A gateway that does not serve the step's document drives nothing: after some seconds another one does.
        let entry = snapshot.model(model.as_str()).filter(|entry| fleet.is_bound_to(entry.revision()));
        let Some(entry) = entry else { return };
        let failed = rollout.candidate_failed(entry).filter(|_| is_here);
        if !entry.can_serve() && failed.is_none() {
            return;
        }
        rollout.count_here(fellows, &self.start, model, entry, &self.figures);
        if !is_here {
            return;
        }
        let decision = rollout.drive(fellows, model, entry, &self.history);
        drop(snapshot);
        self.carry_out(model, rollout, failed.unwrap_or(decision)).await;
    }

    /// Does what was decided.
    async fn carry_out(&self, model: &ModelName, rollout: &mut ActiveRollout, decision: Decision) {
        let mut next = rollout.state.clone();
        let (document, action, reason) = match decision {
            Decision::Stay(reason) => {
                if !rollout.state.paused {
                    rollout.state.why = reason;
                }
                return;
            }
            Decision::Advance(_) | Decision::EndEarly(_) if next.paused => return,
            Decision::EndEarly(reason) => {
                let last = Step::At(next.plan.steps.len().saturating_sub(1));
                let document = (next.step != last).then(|| next.document(last));
                (next.step, next.ended) = (last, Some(Ended::Finished));
                (document, Action::RolloutFinish, reason)
            }
            Decision::Advance(reason) => match next.next_step() {
                None => {
                    next.ended = Some(Ended::Finished);
                    (None, Action::RolloutFinish, reason)
                }
                Some(step) => {
                    next.step = step;
                    let document = next.document(step);
                    let action = if next.percent() >= 100.0 {
                        next.ended = Some(Ended::Finished);
                        Action::RolloutFinish
                    } else {
                        Action::RolloutStep
                    };
                    (Some(document), action, reason)
                }
            },
            Decision::TakeBack(reason) => {
                next.ended = Some(Ended::TakenBack);
                (Some(next.before.clone()), Action::RolloutTakeBack, reason)
            }
        };
        next.why.clone_from(&reason);
        self.commit_or_retry(model, rollout, Transition { next, document, action, reason, actor: this_actor() }).await;
    }

    /// Ends an active rollout whose traffic document is no longer in force.
    pub(super) async fn stop_if_traffic_changed(&self, model: &ModelName, rollout: &mut ActiveRollout) {
        if !rollout.state.is_active() {
            return;
        }
        let reason = {
            let snapshot = self.reader.snapshot();
            match snapshot.model(model.as_str()) {
                // In a fleet other gateways may still have it.
                None if rollout.fleet.is_some() => return,
                Some(entry) if rollout.fleet.is_some() && entry.taken_out() => return,
                Some(_) if let Some(by) = rollout.fleet.as_ref().and_then(|fleet| fleet.overridden.as_ref()) => {
                    format!("the traffic document was changed by {by}; it stays in force")
                }
                Some(entry)
                    if entry.retired().is_none() && rollout.fleet.as_ref().is_some_and(|fleet| !fleet.is_bound()) =>
                {
                    return;
                }
                None => "the model no longer exists".to_owned(),
                Some(entry) if let Some(retired) = entry.retired() => {
                    format!("the model was retired: {}", retired.reason)
                }
                Some(entry) if entry.taken_out() => "the whole model was unloaded".to_owned(),
                Some(entry) if entry.revision() == rollout.state.revision => return,
                Some(entry) => self.describe_change(model, entry.revision()),
            }
        };
        let mut next = rollout.state.clone();
        (next.ended, next.why) = (Some(Ended::Stopped), reason.clone());
        let action = Action::RolloutStop;
        self.commit_or_retry(model, rollout, Transition { next, document: None, action, reason, actor: this_actor() })
            .await;
    }

    /// Ends a rollout that this gateway began alone, before it joined a fleet.
    pub(super) async fn end_own(&self, model: &ModelName, rollout: &mut ActiveRollout) {
        let mut next = rollout.state.clone();
        let reason = "this gateway joined a fleet, which does not know the rollout".to_owned();
        (next.ended, next.why) = (Some(Ended::Stopped), reason.clone());
        let action = Action::RolloutStop;
        self.commit_or_retry(model, rollout, Transition { next, document: None, action, reason, actor: this_actor() })
            .await;
    }

    fn describe_change(&self, model: &ModelName, revision: u64) -> String {
        let history = self.ledger.history(model).unwrap_or_default();
        let entry = history.into_iter().find(|entry| entry.revision == revision);
        let by = entry.map(|entry| format!(" by {} ({})", entry.actor, entry.action)).unwrap_or_default();
        format!("the traffic document was changed{by}; revision {revision} stays in force")
    }

    /// Commits what the actor decided by itself. A failure is logged, shown with the rollout and retried later.
    async fn commit_or_retry(&self, model: &ModelName, rollout: &mut ActiveRollout, transition: Transition) {
        let action = transition.action;
        if rollout.must_wait(action) {
            return;
        }
        if let Err(failure) = self.commit(model, rollout, transition).await {
            let message = format!("{action} failed and is retried: {}", failure.message);
            let came_late = rollout.fleet.is_some() && failure.code == Code::Conflict;
            if came_late {
                info!(%model, "{message}");
            } else {
                error!(%model, detail = failure.internal.as_deref().unwrap_or_default(), "{message}");
            }
            let pause = if came_late { RETRY_IN_FLEET } else { RETRY_AFTER };
            rollout.trouble = Some(Trouble { action, message, retry_at: Instant::now() + pause });
        }
    }

    /// Stores a transition together with its document, and then applies it to the rollout in memory.
    pub(super) async fn commit(
        &self,
        model: &ModelName,
        rollout: &mut ActiveRollout,
        transition: Transition,
    ) -> Result<(), Failure> {
        let Transition { mut next, document, action, reason, actor } = transition;
        let moves_traffic = document.is_some();
        let revision = rollout.state.revision;
        next.revision = revision + u64::from(moves_traffic);
        next.record_move(action.as_str(), &reason);
        if moves_traffic {
            next.step_started_at = Timestamp::now();
        }
        let commit = RolloutCommit {
            at: moves_traffic.then_some(revision),
            document,
            candidate: next.plan.to,
            state: stored(&next)?,
            // The document from before the rollout may always be restored.
            allow_signature_change: next.plan.allow_signature_change
                || matches!(action, Action::RolloutTakeBack | Action::RolloutAbort),
            break_glass: next.plan.break_glass,
            action,
            reason: Some(reason.clone()),
        };
        if let (Some(fellows), Some(fleet)) = (&self.fellows, &rollout.fleet) {
            fellows.based_on(model, fleet.revision);
        }
        self.handle.commit_rollout(model.clone(), commit, actor).await?;
        let fleet = rollout.fleet.take().map(InFleet::changed);
        let (to, percent, ended) = (next.plan.to, next.percent(), next.ended);
        if action == Action::RolloutTakeBack {
            warn!(%model, %to, percent, action = action.as_str(), "rollout taken back: {reason}");
        } else {
            info!(%model, %to, percent, action = action.as_str(), "rollout: {reason}");
        }
        if moves_traffic && ended.is_none() {
            *rollout = ActiveRollout::new(next);
        } else {
            // The evidence stays, so that it can be seen after the end.
            rollout.held = ended.map(|_| rollout.step_began.elapsed());
            (rollout.state, rollout.trouble) = (next, None);
        }
        rollout.fleet = fleet;
        self.show_percent(model, rollout);
        if let Some(ended) = ended {
            let labels = [("how", ended.as_str())];
            self.telemetry.process().counter(&names::ROLLOUTS_ENDED, &labels).increment(1);
        }
        Ok(())
    }

    /// Sets the gauge of the candidate's share.
    pub(super) fn show_percent(&self, model: &ModelName, rollout: &ActiveRollout) {
        let percent = if rollout.state.is_active() { rollout.state.percent() } else { 0.0 };
        self.telemetry.process().gauge(&names::ROLLOUT_PERCENT, &[("model", model.as_str())]).set(percent);
    }
}

/// Whether the metrics of a plan are in `model.toml`.
fn check_metrics(plan: &Plan, metrics: &Metrics) -> Result<(), Failure> {
    let known = || {
        let names: Vec<&str> = metrics.keys().map(String::as_str).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let named = plan.metrics.keys().map(|name| (format!("guardrails.metrics.{name}"), name));
    let complaints: Vec<String> = named
        .chain(plan.goal.iter().map(|name| ("goal.metric".to_owned(), name)))
        .filter_map(|(key, name)| match metrics.get(name) {
            None => Some(format!("{key}: expected a metric of model.toml ({}), got {name:?}", known())),
            Some(metric) if metric.kind == Kind::Bias => {
                Some(format!("{key}: expected a metric that may be better or worse, got one of kind \"bias\""))
            }
            Some(_) => None,
        })
        .collect();
    if complaints.is_empty() { Ok(()) } else { Err(Failure::several(Code::InvalidRequest, complaints)) }
}

/// Whether a fleet can judge a plan: what one gateway alone knows is not judged for all of them.
fn check_for_fleet(plan: &Plan) -> Result<(), Failure> {
    let mut complaints = Vec::new();
    if plan.guardrails.p99_before_ratio.is_some() {
        complaints.push(
            "guardrails.p99_before_ratio: in a fleet, the p99 from before the rollout is known of each gateway alone; expected a plan without it, \
             max_p99_ms sets a limit"
                .to_owned(),
        );
    }
    if complaints.is_empty() { Ok(()) } else { Err(Failure::several(Code::InvalidRequest, complaints)) }
}

fn this_actor() -> Actor {
    Actor(ROLLOUT.to_owned())
}

/// The text for the ledger. It is read back first, so that the ledger never holds a state that the next start cannot read.
fn stored(state: &State) -> Result<String, Failure> {
    let text = state.to_json();
    match State::from_json(&text) {
        Ok(_) => Ok(text),
        Err(reason) => Err(Failure::new(Code::Internal, "the rollout's state cannot be stored").with_internal(reason)),
    }
}
