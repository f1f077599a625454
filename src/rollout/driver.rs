//! The rollouts that are under way, and the thread that moves them.

use super::decide::{Decision, judge, judge_shadow};
use super::evidence::{ShadowEvidence, StepEvidence};
use super::plan::Plan;
use super::state::{Ended, State, Step};
use crate::ledger::{Action, LedgerReader};
use crate::lifecycle::{Actor, Handle, RolloutCommit};
use crate::model::{Code, Failure, ModelName};
use crate::registry::{Entry, Reader};
use crate::route::Document;
use crate::shadow::Figures;
use crate::telemetry::{ArmEvidence, Telemetry, names};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Notify};
use tracing::{error, info};

/// All rollouts: how operators reach them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rollouts(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    handle: Handle,
    reader: Reader,
    ledger: LedgerReader,
    figures: Figures,
    telemetry: Telemetry,
    /// The last rollout of each model. Held while one of them is moved, so that moves come one after the other.
    rides: Mutex<BTreeMap<ModelName, Ride>>,
    begun: Notify,
    stopping: AtomicBool,
}

/// A rollout with what is in memory alone.
#[derive(Debug)]
struct Ride {
    state: State,
    /// When its step began, or was taken up again after a restart.
    since: Instant,
    evidence: Evidence,
    /// How long its last step was held, once it has ended.
    held: Option<Duration>,
    trouble: Option<Trouble>,
}

/// A move that could not be made. Another one need not wait for it: a take-back does not for an advance.
#[derive(Debug)]
struct Trouble {
    action: Action,
    words: String,
    /// When it is tried again.
    again: Instant,
}

/// What its step has shown.
#[derive(Debug, Clone)]
pub enum Evidence {
    Shadow(ShadowEvidence),
    Step(Box<StepEvidence>),
}

/// A rollout as it stands.
#[derive(Debug, Clone)]
pub struct View {
    pub model: ModelName,
    pub state: State,
    /// How long its step has been held, or had been when it ended.
    pub held: Duration,
    pub evidence: Evidence,
    /// A move that could not be made yet, and why.
    pub trouble: Option<String>,
}

/// Between looks.
const LOOK: Duration = Duration::from_millis(100);
/// After a move that could not be made.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Who moves rollouts, in the audit trail.
const ROLLOUT: &str = "rollout";

impl Rollouts {
    /// Takes up what the ledger kept, and starts the thread.
    ///
    /// # Errors
    /// When the ledger cannot be read, or the system gives no thread.
    pub fn start(
        handle: Handle,
        reader: Reader,
        ledger: LedgerReader,
        figures: Figures,
        telemetry: Telemetry,
    ) -> std::io::Result<Rollouts> {
        let mut rides = BTreeMap::new();
        for (model, text) in ledger.rollouts().map_err(std::io::Error::other)? {
            match State::from_json(&text) {
                Ok(state) => {
                    let ride = Ride::new(state);
                    show(&telemetry, &model, &ride);
                    rides.insert(model, ride);
                }
                // What cannot be read moves nothing: the document it put in force stays.
                Err(words) => error!(%model, words, "the kept rollout cannot be read; it goes no further"),
            }
        }
        let (rides, begun, stopping) = (Mutex::new(rides), Notify::new(), AtomicBool::new(false));
        let shared = Arc::new(Shared { handle, reader, ledger, figures, telemetry, rides, begun, stopping });
        let rollouts = Rollouts(shared);
        let looking = rollouts.clone();
        let clock = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        std::thread::Builder::new()
            .name("rollout".to_owned())
            .spawn(move || clock.block_on(looking.look_until_stopped()))?;
        Ok(rollouts)
    }

    /// Moves nothing any more; what stands is kept.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
        self.0.begun.notify_one();
    }

    /// Begins a rollout: its first step is in force when this answers.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, `VERSION_NOT_FOUND`; `CONFLICT` while another is under way, where there is no document, or the version is
    /// not ready or breaks callers.
    pub async fn begin(&self, model: ModelName, plan: Plan, actor: Actor) -> Result<View, Failure> {
        let mut rides = self.0.rides.lock().await;
        if let Some(ride) = rides.get_mut(&model) {
            self.stop_if_changed(&model, ride).await;
            if ride.state.is_active() {
                let (to, percent) = (ride.state.plan.to, ride.state.percent());
                let words =
                    format!("a rollout of model {model} to version {to} is under way, at {percent} %; abort it first");
                return Err(Failure::new(Code::Conflict, words));
            }
        }
        let (before, revision) = self.begins_from(&model, &plan)?;
        let now = Timestamp::now();
        let step = if plan.guardrails.shadow_disagreement.is_some() { Step::Shadow } else { Step::At(0) };
        let reason = plan.reason.clone();
        let state = State {
            plan,
            before,
            revision,
            step,
            paused: false,
            why: "begun".to_owned(),
            ended: None,
            by: actor.0.clone(),
            started_at: now,
            step_started_at: now,
            moves: Vec::new(),
        };
        let document = state.document(step);
        let mut ride = Ride::new(state.clone());
        let (mut state, mut action) = (state, Action::RolloutStart);
        if state.percent() >= 100.0 {
            // A plan of one step: there is nothing to hold it against.
            (state.ended, action) = (Some(Ended::Finished), Action::RolloutFinish);
        }
        self.go(&model, &mut ride, state, Some(document), action, &reason, actor).await?;
        let view = ride.view(&model);
        rides.insert(model, ride);
        self.0.begun.notify_one();
        Ok(view)
    }

    /// Holds the step: guardrails go on watching.
    pub async fn pause(&self, model: &ModelName, reason: &str, actor: Actor) -> Result<View, Failure> {
        self.change(model, Action::RolloutPause, reason, actor).await
    }

    /// Goes on from a pause.
    pub async fn resume(&self, model: &ModelName, reason: &str, actor: Actor) -> Result<View, Failure> {
        self.change(model, Action::RolloutResume, reason, actor).await
    }

    /// Ends it, and puts back the document before it.
    pub async fn abort(&self, model: &ModelName, reason: &str, actor: Actor) -> Result<View, Failure> {
        self.change(model, Action::RolloutAbort, reason, actor).await
    }

    /// The model's last rollout.
    ///
    /// # Errors
    /// `NOT_FOUND` where there has been none.
    pub async fn view(&self, model: &ModelName) -> Result<View, Failure> {
        let mut rides = self.0.rides.lock().await;
        let ride = rides.get_mut(model).ok_or_else(|| none(model))?;
        self.stop_if_changed(model, ride).await;
        Ok(ride.view(model))
    }

    /// The document it begins from, and its revision.
    fn begins_from(&self, model: &ModelName, plan: &Plan) -> Result<(Document, u64), Failure> {
        let snapshot = self.0.reader.snapshot();
        let entry = snapshot
            .model(model.as_str())
            .ok_or_else(|| Failure::new(Code::ModelNotFound, format!("no model is named {:?}", model.as_str())))?;
        if !entry.versions().contains_key(&plan.to) {
            let words = format!("model {model} has no version {}", plan.to);
            return Err(Failure::new(Code::VersionNotFound, words));
        }
        let document = entry.document().filter(|_| !entry.taken_out()).cloned().ok_or_else(|| {
            Failure::new(Code::Conflict, format!("model {model} serves nothing now that traffic could be moved from"))
        })?;
        Ok((document, entry.revision()))
    }

    async fn change(&self, model: &ModelName, action: Action, reason: &str, actor: Actor) -> Result<View, Failure> {
        let mut rides = self.0.rides.lock().await;
        let ride = rides.get_mut(model).ok_or_else(|| none(model))?;
        self.stop_if_changed(model, ride).await;
        if !ride.state.is_active() {
            let words = format!("the rollout of model {model} is {}: {}", ride.state.name(), ride.state.why);
            return Err(Failure::new(Code::Conflict, words));
        }
        let mut state = ride.state.clone();
        let mut document = None;
        match action {
            Action::RolloutPause if state.paused => return Ok(ride.view(model)),
            Action::RolloutResume if !state.paused => return Ok(ride.view(model)),
            Action::RolloutPause => (state.paused, state.why) = (true, format!("paused: {reason}")),
            Action::RolloutResume => (state.paused, state.why) = (false, "resumed".to_owned()),
            _ => {
                (state.ended, state.why) = (Some(Ended::Aborted), format!("aborted: {reason}"));
                document = Some(state.before.clone());
            }
        }
        self.go(model, ride, state, document, action, reason, actor).await?;
        Ok(ride.view(model))
    }

    // === the thread ===

    async fn look_until_stopped(&self) {
        while !self.0.stopping.load(Ordering::Acquire) {
            if self.look().await {
                tokio::time::sleep(LOOK).await;
            } else {
                self.0.begun.notified().await;
            }
        }
    }

    /// Looks at every rollout; answers whether one is under way.
    async fn look(&self) -> bool {
        let mut rides = self.0.rides.lock().await;
        for (model, ride) in rides.iter_mut().filter(|(_, ride)| ride.state.is_active()) {
            self.look_at(model, ride).await;
        }
        rides.values().any(|ride| ride.state.is_active())
    }

    async fn look_at(&self, model: &ModelName, ride: &mut Ride) {
        self.stop_if_changed(model, ride).await;
        if !ride.state.is_active() {
            return;
        }
        let snapshot = self.0.reader.snapshot();
        let entry = snapshot.model(model.as_str()).filter(|entry| entry.revision() == ride.state.revision);
        let Some(entry) = entry else { return };
        if !entry.can_serve() {
            // While a server starts, the document is there and its versions are not yet: nothing is held.
            ride.since = Instant::now();
            return;
        }
        let decision = ride.decide(entry, &self.0.figures, model);
        drop(snapshot);
        let mut state = ride.state.clone();
        let (document, action, why) = match decision {
            Decision::Stay(why) => {
                if !ride.state.paused {
                    ride.state.why = why;
                }
                return;
            }
            Decision::Advance(_) if state.paused => return,
            Decision::Advance(why) => match state.next_step() {
                None => {
                    state.ended = Some(Ended::Finished);
                    (None, Action::RolloutFinish, why)
                }
                Some(next) => {
                    state.step = next;
                    let document = state.document(next);
                    // At 100 there is nothing to hold it against.
                    let action = if state.percent() >= 100.0 {
                        state.ended = Some(Ended::Finished);
                        Action::RolloutFinish
                    } else {
                        Action::RolloutStep
                    };
                    (Some(document), action, why)
                }
            },
            Decision::TakeBack(why) => {
                state.ended = Some(Ended::TakenBack);
                (Some(state.before.clone()), Action::RolloutTakeBack, why)
            }
        };
        if ride.waits_for(action) {
            return;
        }
        state.why.clone_from(&why);
        let actor = Actor(ROLLOUT.to_owned());
        if let Err(failure) = self.go(model, ride, state, document, action, &why, actor).await {
            let words = format!("{} could not be done: {}", action, failure.message);
            error!(%model, detail = failure.internal.as_deref().unwrap_or_default(), "{words}");
            ride.trouble = Some(Trouble { action, words, again: Instant::now() + TRY_AGAIN });
        }
    }

    /// Ends a rollout whose document is no longer the one in force.
    async fn stop_if_changed(&self, model: &ModelName, ride: &mut Ride) {
        if !ride.state.is_active() {
            return;
        }
        let words = {
            let snapshot = self.0.reader.snapshot();
            match snapshot.model(model.as_str()) {
                None => "the model is gone".to_owned(),
                Some(entry) if entry.taken_out() => "the model was unloaded as a whole".to_owned(),
                Some(entry) if entry.revision() == ride.state.revision => return,
                Some(entry) => self.who_changed(model, entry.revision()),
            }
        };
        if ride.waits_for(Action::RolloutStop) {
            return;
        }
        let mut state = ride.state.clone();
        (state.ended, state.why) = (Some(Ended::Stopped), words.clone());
        let actor = Actor(ROLLOUT.to_owned());
        if let Err(failure) = self.go(model, ride, state, None, Action::RolloutStop, &words, actor).await {
            error!(%model, "a rollout could not be stopped: {}", failure.message);
            let again = Instant::now() + TRY_AGAIN;
            ride.trouble = Some(Trouble { action: Action::RolloutStop, words: failure.message, again });
        }
    }

    fn who_changed(&self, model: &ModelName, revision: u64) -> String {
        let history = self.0.ledger.history(model).unwrap_or_default();
        let entry = history.into_iter().find(|entry| entry.revision == revision);
        let by = entry.map(|e| format!(" by {} ({})", e.actor, e.action)).unwrap_or_default();
        format!("the traffic was changed{by}, to revision {revision}; it stays as that made it")
    }

    /// Keeps a new standing, with its document where it moves traffic, and then takes it over.
    #[expect(clippy::too_many_arguments, reason = "one move, told whole")]
    async fn go(
        &self,
        model: &ModelName,
        ride: &mut Ride,
        mut state: State,
        document: Option<Document>,
        action: Action,
        reason: &str,
        actor: Actor,
    ) -> Result<(), Failure> {
        let at = ride.state.revision;
        state.revision = at + u64::from(document.is_some());
        if action == Action::RolloutStop {
            // What is in force now is somebody else's.
            state.revision = at;
        }
        state.moved(action.as_str(), reason);
        if document.is_some() {
            state.step_started_at = Timestamp::now();
        }
        let moves_traffic = document.is_some();
        let steer = RolloutCommit {
            at: moves_traffic.then_some(at),
            document,
            state: state.to_json(),
            // What was served before may always be served again.
            allow_signature_change: state.plan.allow_signature_change
                || matches!(action, Action::RolloutTakeBack | Action::RolloutAbort),
            action,
            reason: Some(reason.to_owned()),
        };
        self.0.handle.commit_rollout(model.clone(), steer, actor).await?;
        let (to, percent) = (state.plan.to, state.percent());
        let ended = state.ended;
        info!(%model, %to, percent, action = action.as_str(), "rollout: {reason}");
        if moves_traffic && ended.is_none() {
            *ride = Ride::new(state);
        } else {
            // What ended it stays to be seen.
            ride.held = ended.map(|_| ride.since.elapsed());
            (ride.state, ride.trouble) = (state, None);
        }
        show(&self.0.telemetry, model, ride);
        if let Some(ended) = ended {
            let labels = [("how", ended.as_str())];
            self.0.telemetry.process().counter(&names::ROLLOUTS_ENDED, &labels).increment(1);
        }
        Ok(())
    }
}

/// Shows the candidate's share to the scraper.
fn show(telemetry: &Telemetry, model: &ModelName, ride: &Ride) {
    let percent = if ride.state.is_active() { ride.state.percent() } else { 0.0 };
    telemetry.process().gauge(&names::ROLLOUT_PERCENT, &[("model", model.as_str())]).set(percent);
}

impl Ride {
    fn new(state: State) -> Ride {
        let evidence = match state.step {
            Step::Shadow => Evidence::Shadow(ShadowEvidence::default()),
            Step::At(_) => Evidence::Step(Box::new(StepEvidence::new(&state.plan.guardrails, state.percent()))),
        };
        // What ended before a restart was held for as long as nobody knows any more.
        let held = state.ended.map(|_| Duration::ZERO);
        Ride { state, since: Instant::now(), evidence, held, trouble: None }
    }

    /// Whether this move was tried a moment ago, in vain.
    fn waits_for(&self, action: Action) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.action == action && Instant::now() < trouble.again)
    }

    fn decide(&mut self, entry: &Entry, figures: &Figures, model: &ModelName) -> Decision {
        let plan = &self.state.plan;
        let held = self.since.elapsed();
        match &mut self.evidence {
            Evidence::Shadow(shadow) => {
                let (revision, control) = (self.state.revision, self.state.control_versions());
                shadow.look(figures.agreement_under(revision, model, &control, plan.to));
                judge_shadow(plan, plan.guardrails.shadow_disagreement.unwrap_or(1.0), shadow, held)
            }
            Evidence::Step(step) => {
                let name = self.state.candidate();
                let mut control = ArmEvidence::default();
                let mut candidate = ArmEvidence::default();
                for arm in entry.arms() {
                    let evidence = arm.metrics.evidence();
                    if arm.arm == name.as_str() {
                        candidate = evidence;
                    } else {
                        control.add(&evidence);
                    }
                }
                step.look(candidate, control);
                judge(plan, step, held)
            }
        }
    }

    fn view(&self, model: &ModelName) -> View {
        View {
            model: model.clone(),
            state: self.state.clone(),
            held: self.held.unwrap_or_else(|| self.since.elapsed()),
            evidence: self.evidence.clone(),
            trouble: self.trouble.as_ref().map(|trouble| trouble.words.clone()),
        }
    }
}

fn none(model: &ModelName) -> Failure {
    Failure::new(Code::NotFound, format!("model {model} has had no rollout"))
}
