//! The actor: owns every rollout, carries out operators' commands and checks guardrails.

use super::active::ActiveRollout;
use super::handle::{Change, Command, Request, View};
use super::plan::Plan;
use super::services::{Services, Transition};
use super::state::{Ended, State, Step};
use crate::ledger::Action;
use crate::lifecycle::Actor;
use crate::model::{Code, Failure, ModelName};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;
use tracing::error;

/// The one owner of all rollouts.
pub(super) struct RolloutActor {
    services: Services,
    /// The last rollout of each model.
    rollouts: BTreeMap<ModelName, ActiveRollout>,
    /// Models whose stored rollout cannot be read, and why.
    unreadable: BTreeMap<ModelName, String>,
    /// Why no stored rollout could be read at all.
    ledger_error: Option<String>,
    fleet: Heard,
}

/// What was heard of the fleet.
#[derive(Debug, Default)]
struct Heard {
    /// The fleet's revision of each model's document.
    revisions: BTreeMap<ModelName, u64>,
    /// Why the fleet's state is not known now.
    cut_off: Option<String>,
}

/// Between two checks of the active rollouts.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

// === impl RolloutActor ===

impl RolloutActor {
    /// Continues the stored rollouts.
    pub(super) fn new(services: Services) -> RolloutActor {
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
        RolloutActor { services, rollouts, unreadable, ledger_error, fleet: Heard::default() }
    }

    /// Runs until it is stopped, or until the last handle is dropped.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, stop: Arc<Notify>) {
        let mut checks = tokio::time::interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_awake =
                self.services.fellows.is_some() || self.rollouts.values().any(|rollout| rollout.state.is_active());
            tokio::select! {
                () = stop.notified() => return,
                command = commands.recv() => match command {
                    Some(command) => self.execute(command).await,
                    None => return,
                },
                _ = checks.tick(), if is_awake => self.check_all().await,
            }
        }
    }

    async fn execute(&mut self, Command { model, request, reply }: Command) {
        self.hear();
        let result = match request {
            Request::Begin { plan, actor } => self.begin(&model, *plan, actor).await,
            Request::Preview { plan, actor } => {
                self.first(&model, *plan, &actor).await.map(|state| ActiveRollout::new(state).view(&model, None, None))
            }
            Request::Change { change, reason, actor } => self.change(&model, change, reason, actor).await,
            Request::View => self.view(&model).await,
        };
        // The send fails when the caller disconnected. What was done stays done.
        let _ = reply.send(result);
    }

    /// The state in which a rollout begins.
    async fn first(&mut self, model: &ModelName, plan: Plan, actor: &Actor) -> Result<State, Failure> {
        if let Some(rollout) = self.rollouts.get_mut(model) {
            if drives(rollout) {
                self.services.stop_if_traffic_changed(model, rollout).await;
            }
            if rollout.state.is_active() {
                let (to, percent) = (rollout.state.plan.to, rollout.state.percent());
                let message = format!(
                    "a rollout of model {model} to version {to} is already active, at {percent} %; abort it first"
                );
                return Err(Failure::new(Code::Conflict, message));
            }
        }
        let (before, revision, p99_before_us) = self.services.before(model, &plan)?;
        let now = Timestamp::now();
        let step = if plan.guardrails.shadow_disagreement.is_some() { Step::Shadow } else { Step::At(0) };
        // A split that is there already keeps its salt: another one would move the keys of its arms. Replicas with the same history get the
        // same salt, so that a user has the same arm on all of them.
        let salt = (before.sticky_by.is_some() && before.has_one_arm()).then(|| format!("{model}-{revision}"));
        Ok(State {
            plan,
            before,
            p99_before_us,
            salt,
            revision,
            step,
            paused: false,
            why: "begun".to_owned(),
            ended: None,
            started_by: actor.0.clone(),
            started_at: now,
            step_started_at: now,
            moves: Vec::new(),
        })
    }

    async fn begin(&mut self, model: &ModelName, plan: Plan, actor: Actor) -> Result<View, Failure> {
        self.check_connected()?;
        let reason = plan.reason.clone();
        let mut state = self.first(model, plan, &actor).await?;
        let mut rollout = ActiveRollout::new(state.clone());
        let document = Some(state.document(state.step));
        let mut action = Action::RolloutStart;
        if state.percent() >= 100.0 {
            // At 100 % there is no control to compare with, so the rollout is over.
            (state.ended, action) = (Some(Ended::Finished), Action::RolloutFinish);
        }
        let transition = Transition { next: state, document, action, reason, actor };
        if let (Some(fellows), Some(revision)) = (&self.services.fellows, self.fleet.revisions.get(model)) {
            fellows.based_on(model, *revision);
        }
        self.services.commit(model, &mut rollout, transition).await?;
        self.rollouts.insert(model.clone(), rollout);
        self.unreadable.remove(model);
        self.hear();
        self.shown(model)
    }

    /// Whether changes are possible: a gateway that is cut off from its fleet makes none.
    fn check_connected(&self) -> Result<(), Failure> {
        match &self.fleet.cut_off {
            None => Ok(()),
            Some(why) => {
                let words = format!("rollouts are not changed while this gateway is cut off from its fleet: {why}");
                Err(Failure::new(Code::NotReady, words))
            }
        }
    }

    async fn change(
        &mut self,
        model: &ModelName,
        change: Change,
        reason: String,
        actor: Actor,
    ) -> Result<View, Failure> {
        self.check_connected()?;
        let Some(rollout) = self.rollouts.get_mut(model) else { return Err(self.missing(model)) };
        if drives(rollout) {
            self.services.stop_if_traffic_changed(model, rollout).await;
        }
        if !rollout.state.is_active() {
            let (name, why) = (rollout.state.name(), &rollout.state.why);
            // The reason of an abort begins with the state's name.
            let why = why.strip_prefix(&format!("{name}: ")).unwrap_or(why);
            let message = format!("the rollout of model {model} has ended ({name}): {why}");
            return Err(Failure::new(Code::Conflict, message));
        }
        let fellows = self.services.fellows.as_ref();
        let mut next = rollout.state.clone();
        let mut document = None;
        let action = match change {
            // A repeated request changes nothing. Another reason replaces the one before.
            Change::Pause if next.paused && next.why == paused(&reason) => {
                return Ok(rollout.view(model, fellows, None));
            }
            Change::Resume if !next.paused => return Ok(rollout.view(model, fellows, None)),
            Change::Pause => {
                (next.paused, next.why) = (true, paused(&reason));
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
        self.hear();
        self.shown(model)
    }

    async fn view(&mut self, model: &ModelName) -> Result<View, Failure> {
        let Some(rollout) = self.rollouts.get_mut(model) else { return Err(self.missing(model)) };
        if self.fleet.cut_off.is_none() && drives(rollout) {
            self.services.stop_if_traffic_changed(model, rollout).await;
        }
        self.shown(model)
    }

    fn shown(&self, model: &ModelName) -> Result<View, Failure> {
        let Some(rollout) = self.rollouts.get(model) else { return Err(self.missing(model)) };
        Ok(rollout.view(model, self.services.fellows.as_ref(), self.fleet.cut_off.as_deref()))
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

    /// Takes what the fleet says of the rollouts.
    fn hear(&mut self) {
        let Some(fellows) = self.services.fellows.clone() else { return };
        let told = match fellows.told() {
            Ok(told) => {
                self.fleet.cut_off = None;
                told
            }
            Err(why) => {
                self.fleet.cut_off = Some(why);
                return;
            }
        };
        let snapshot = self.services.reader.snapshot();
        for told in told {
            self.fleet.revisions.insert(told.model.clone(), told.revision);
            let Some(rollout) = &told.rollout else { continue };
            let known = self.rollouts.remove(&told.model);
            let entry = snapshot.model(told.model.as_str()).map(|entry| &**entry);
            match ActiveRollout::hear(known, fellows.as_ref(), &told, rollout, entry) {
                Ok(rollout) => {
                    self.services.show_percent(&told.model, &rollout);
                    self.rollouts.insert(told.model.clone(), rollout);
                    self.unreadable.remove(&told.model);
                }
                Err(reason) => {
                    error!(model = %told.model, reason, "the fleet's rollout cannot be read; it is not followed");
                    self.unreadable.insert(told.model.clone(), reason);
                }
            }
        }
    }

    /// Ends rollouts that were begun alone: a fleet that this gateway joined does not know them.
    async fn end_own(&mut self) {
        let Some(fellows) = self.services.fellows.clone() else { return };
        for (model, rollout) in &mut self.rollouts {
            let is_own = rollout.fleet.is_none() && rollout.state.is_active();
            if let Some(revision) = self.fleet.revisions.get(model).filter(|_| is_own) {
                fellows.based_on(model, *revision);
                self.services.end_own(model, rollout).await;
            }
        }
    }

    async fn check_all(&mut self) {
        self.hear();
        if self.fleet.cut_off.is_some() {
            // Nothing can be changed, and nothing is known of what others answered.
            return;
        }
        self.end_own().await;
        for (model, rollout) in self.rollouts.iter_mut().filter(|(_, rollout)| rollout.state.is_active()) {
            self.services.check(model, rollout).await;
        }
    }
}

/// Whether this gateway decides for a rollout.
fn drives(rollout: &ActiveRollout) -> bool {
    rollout.fleet.as_ref().is_none_or(|fleet| fleet.is_here() && fleet.in_force)
}

/// What a paused rollout says of itself.
fn paused(reason: &str) -> String {
    format!("paused: {reason}")
}
