//! The actor: owns every rollout, carries out operators' commands and checks guardrails.

use super::active::{ActiveRollout, Trouble};
use super::decide::Decision;
use super::handle::{Change, Command, Request, View};
use super::plan::Plan;
use super::state::{Ended, State, Step};
use crate::ledger::{Action, LedgerReader};
use crate::lifecycle::{Actor, Handle, RolloutCommit};
use crate::model::{Code, Failure, ModelName};
use crate::registry::Reader;
use crate::route::Document;
use crate::shadow::Figures;
use crate::telemetry::{Telemetry, names};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;
use tracing::{error, info};

/// The one owner of all rollouts.
pub(super) struct RolloutActor {
    services: Services,
    /// The last rollout of each model.
    rollouts: BTreeMap<ModelName, ActiveRollout>,
    /// Models whose stored rollout cannot be read, and why.
    unreadable: BTreeMap<ModelName, String>,
    /// Why no stored rollout could be read at all.
    ledger_error: Option<String>,
}

/// What the actor reads and changes. Kept apart from the rollouts, so that one of them can be changed with it.
struct Services {
    handle: Handle,
    reader: Reader,
    ledger: LedgerReader,
    figures: Figures,
    telemetry: Telemetry,
}

/// A change of one rollout that is to be stored.
struct Transition {
    next: State,
    /// The traffic document that comes into force with it; `None` leaves the traffic as it is.
    document: Option<Document>,
    action: Action,
    reason: String,
    actor: Actor,
}

/// Between two checks of the active rollouts.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// After a change that failed.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// The actor's name in the audit trail.
const ROLLOUT: &str = "rollout";

// === impl RolloutActor ===

impl RolloutActor {
    /// Continues the stored rollouts.
    pub(super) fn new(
        handle: Handle,
        reader: Reader,
        ledger: LedgerReader,
        figures: Figures,
        telemetry: Telemetry,
    ) -> RolloutActor {
        let services = Services { handle, reader, ledger, figures, telemetry };
        let (mut rollouts, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
        let mut ledger_error = None;
        let stored = services.ledger.rollouts().unwrap_or_else(|error| {
            error!(%error, "the stored rollouts cannot be read; none of them is continued");
            ledger_error = Some(error.to_string());
            Vec::new()
        });
        for (model, text) in stored {
            match State::from_json(&text) {
                Ok(state) => {
                    let rollout = ActiveRollout::new(state);
                    services.show_percent(&model, &rollout);
                    rollouts.insert(model, rollout);
                }
                // The traffic document that the rollout put in force stays.
                Err(reason) => {
                    error!(%model, reason, "the stored rollout cannot be read; it is not continued");
                    unreadable.insert(model, reason);
                }
            }
        }
        RolloutActor { services, rollouts, unreadable, ledger_error }
    }

    /// Runs until it is stopped, or until the last handle is dropped.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, stop: Arc<Notify>) {
        let mut checks = tokio::time::interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let any_active = self.rollouts.values().any(|rollout| rollout.state.is_active());
            tokio::select! {
                () = stop.notified() => return,
                command = commands.recv() => match command {
                    Some(command) => self.execute(command).await,
                    None => return,
                },
                _ = checks.tick(), if any_active => self.check_all().await,
            }
        }
    }

    async fn execute(&mut self, Command { model, request, reply }: Command) {
        let result = match request {
            Request::Begin { plan, actor } => self.begin(&model, *plan, actor).await,
            Request::Change { change, reason, actor } => self.change(&model, change, reason, actor).await,
            Request::View => self.view(&model).await,
        };
        // The send fails when the caller disconnected. What was done stays done.
        let _ = reply.send(result);
    }

    async fn begin(&mut self, model: &ModelName, plan: Plan, actor: Actor) -> Result<View, Failure> {
        if let Some(rollout) = self.rollouts.get_mut(model) {
            self.services.stop_if_traffic_changed(model, rollout).await;
            if rollout.state.is_active() {
                let (to, percent) = (rollout.state.plan.to, rollout.state.percent());
                let message = format!(
                    "a rollout of model {model} to version {to} is already active, at {percent} %; abort it first"
                );
                return Err(Failure::new(Code::Conflict, message));
            }
        }
        let (before, revision) = self.services.document_before(model, &plan)?;
        let now = Timestamp::now();
        let step = if plan.guardrails.shadow_disagreement.is_some() { Step::Shadow } else { Step::At(0) };
        let reason = plan.reason.clone();
        let mut state = State {
            plan,
            before,
            revision,
            step,
            paused: false,
            why: "begun".to_owned(),
            ended: None,
            started_by: actor.0.clone(),
            started_at: now,
            step_started_at: now,
            moves: Vec::new(),
        };
        let mut rollout = ActiveRollout::new(state.clone());
        let document = Some(state.document(step));
        let mut action = Action::RolloutStart;
        if state.percent() >= 100.0 {
            // At 100 % there is no control to compare with, so the rollout is over.
            (state.ended, action) = (Some(Ended::Finished), Action::RolloutFinish);
        }
        let transition = Transition { next: state, document, action, reason, actor };
        self.services.commit(model, &mut rollout, transition).await?;
        let view = rollout.view(model);
        self.rollouts.insert(model.clone(), rollout);
        self.unreadable.remove(model);
        Ok(view)
    }

    async fn change(
        &mut self,
        model: &ModelName,
        change: Change,
        reason: String,
        actor: Actor,
    ) -> Result<View, Failure> {
        let Some(rollout) = self.rollouts.get_mut(model) else { return Err(self.missing(model)) };
        self.services.stop_if_traffic_changed(model, rollout).await;
        if !rollout.state.is_active() {
            let message =
                format!("the rollout of model {model} has ended ({}): {}", rollout.state.name(), rollout.state.why);
            return Err(Failure::new(Code::Conflict, message));
        }
        let mut next = rollout.state.clone();
        let mut document = None;
        let action = match change {
            Change::Pause if next.paused => return Ok(rollout.view(model)),
            Change::Resume if !next.paused => return Ok(rollout.view(model)),
            Change::Pause => {
                (next.paused, next.why) = (true, format!("paused: {reason}"));
                Action::RolloutPause
            }
            Change::Resume => {
                (next.paused, next.why) = (false, "resumed".to_owned());
                Action::RolloutResume
            }
            Change::Abort => {
                (next.ended, next.why) = (Some(Ended::Aborted), format!("aborted: {reason}"));
                document = Some(next.before.clone());
                Action::RolloutAbort
            }
        };
        self.services.commit(model, rollout, Transition { next, document, action, reason, actor }).await?;
        Ok(rollout.view(model))
    }

    async fn view(&mut self, model: &ModelName) -> Result<View, Failure> {
        let Some(rollout) = self.rollouts.get_mut(model) else { return Err(self.missing(model)) };
        self.services.stop_if_traffic_changed(model, rollout).await;
        Ok(rollout.view(model))
    }

    fn missing(&self, model: &ModelName) -> Failure {
        match self.unreadable.get(model).or(self.ledger_error.as_ref()) {
            None => Failure::new(Code::NotFound, format!("model {model} has never had a rollout")),
            Some(reason) => {
                let message = format!(
                    "the stored rollout of model {model} cannot be read and is not continued; its last traffic document \
                     stays in force, and a new rollout may be begun"
                );
                Failure::new(Code::Internal, message).with_internal(reason.clone())
            }
        }
    }

    async fn check_all(&mut self) {
        for (model, rollout) in self.rollouts.iter_mut().filter(|(_, rollout)| rollout.state.is_active()) {
            self.services.check(model, rollout).await;
        }
    }
}

// === impl Services ===

impl Services {
    /// The traffic document that a rollout begins from, and its revision.
    fn document_before(&self, model: &ModelName, plan: &Plan) -> Result<(Document, u64), Failure> {
        let snapshot = self.reader.snapshot();
        let entry = snapshot
            .model(model.as_str())
            .ok_or_else(|| Failure::new(Code::ModelNotFound, format!("no model is named {:?}", model.as_str())))?;
        if !entry.versions().contains_key(&plan.to) {
            let message = format!("model {model} has no version {}", plan.to);
            return Err(Failure::new(Code::VersionNotFound, message));
        }
        let document = entry.document().filter(|_| !entry.taken_out()).cloned().ok_or_else(|| {
            Failure::new(Code::Conflict, format!("model {model} is not serving, so there is no traffic to move"))
        })?;
        Ok((document, entry.revision()))
    }

    /// Checks one active rollout and carries out what the evidence says.
    async fn check(&self, model: &ModelName, rollout: &mut ActiveRollout) {
        self.stop_if_traffic_changed(model, rollout).await;
        if !rollout.state.is_active() {
            return;
        }
        let snapshot = self.reader.snapshot();
        let entry = snapshot.model(model.as_str()).filter(|entry| entry.revision() == rollout.state.revision);
        let Some(entry) = entry else { return };
        if !entry.can_serve() {
            // After a restart the document is published before its versions are loaded. The step's clock starts when they are.
            rollout.step_began = Instant::now();
            return;
        }
        let decision = rollout.decide(model, entry, &self.figures);
        drop(snapshot);
        let mut next = rollout.state.clone();
        let (document, action, reason) = match decision {
            Decision::Stay(reason) => {
                if !rollout.state.paused {
                    rollout.state.why = reason;
                }
                return;
            }
            Decision::Advance(_) if next.paused => return,
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
    async fn stop_if_traffic_changed(&self, model: &ModelName, rollout: &mut ActiveRollout) {
        if !rollout.state.is_active() {
            return;
        }
        let reason = {
            let snapshot = self.reader.snapshot();
            match snapshot.model(model.as_str()) {
                None => "the model no longer exists".to_owned(),
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
            error!(%model, detail = failure.internal.as_deref().unwrap_or_default(), "{message}");
            rollout.trouble = Some(Trouble { action, message, retry_at: Instant::now() + RETRY_AFTER });
        }
    }

    /// Stores a transition together with its document, and then applies it to the rollout in memory.
    async fn commit(
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
            state: stored(&next)?,
            // The document from before the rollout may always be restored.
            allow_signature_change: next.plan.allow_signature_change
                || matches!(action, Action::RolloutTakeBack | Action::RolloutAbort),
            action,
            reason: Some(reason.clone()),
        };
        self.handle.commit_rollout(model.clone(), commit, actor).await?;
        let (to, percent, ended) = (next.plan.to, next.percent(), next.ended);
        info!(%model, %to, percent, action = action.as_str(), "rollout: {reason}");
        if moves_traffic && ended.is_none() {
            *rollout = ActiveRollout::new(next);
        } else {
            // The evidence stays, so that it can be seen after the end.
            rollout.held = ended.map(|_| rollout.step_began.elapsed());
            (rollout.state, rollout.trouble) = (next, None);
        }
        self.show_percent(model, rollout);
        if let Some(ended) = ended {
            let labels = [("how", ended.as_str())];
            self.telemetry.process().counter(&names::ROLLOUTS_ENDED, &labels).increment(1);
        }
        Ok(())
    }

    /// Sets the gauge of the candidate's share.
    fn show_percent(&self, model: &ModelName, rollout: &ActiveRollout) {
        let percent = if rollout.state.is_active() { rollout.state.percent() } else { 0.0 };
        self.telemetry.process().gauge(&names::ROLLOUT_PERCENT, &[("model", model.as_str())]).set(percent);
    }
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
