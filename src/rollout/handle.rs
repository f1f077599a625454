//! The handle: sends commands to the actor and waits for its replies.

use super::actor::RolloutActor;
use super::business::Found as MetricEvidence;
use super::evidence::Evidence;
use super::guardrail::NearGuardrail;
use super::plan::Plan;
use super::services::Services;
use super::shared::{Driving, Fellows};
use super::state::State;
use crate::ledger::LedgerReader;
use crate::lifecycle::{Actor, Handle};
use crate::model::{Code, Failure, ModelName};
use crate::quality::History;
use crate::registry::Reader;
use crate::shadow::Figures;
use crate::telemetry::Telemetry;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};

/// Starts, changes and shows rollouts. Cheap to clone.
///
/// A command that was sent is carried out whether or not its caller still waits for the reply.
#[derive(Debug, Clone)]
pub(crate) struct Rollouts {
    commands: mpsc::Sender<Command>,
    stop: Arc<Notify>,
}

/// A rollout at one moment.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) model: ModelName,
    pub(crate) state: State,
    /// How long the current step has been held; after the end, how long the last step was held.
    pub(crate) held: Duration,
    pub(crate) evidence: Evidence,
    /// The business metrics of the plan in this step.
    pub(crate) metrics: Vec<MetricEvidence>,
    /// Why the last change failed, while it is retried.
    pub(crate) trouble: Option<String>,
    /// Where this gateway is in a fleet.
    pub(crate) driving: Option<Driving>,
}

impl View {
    /// The guardrails that a level four times as high would break: the evidence comes close to a take-back.
    pub(crate) fn near(&self) -> Vec<NearGuardrail> {
        const TIMES: f64 = 4.0;
        let plan = &self.state.plan;
        let level = (plan.level() * TIMES).min(0.5);
        match &self.evidence {
            Evidence::Step(step) if self.state.ended.is_none() => {
                step.guardrails.iter().filter_map(|guardrail| guardrail.near(level)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// One command and where its reply goes.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) model: ModelName,
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Result<View, Failure>>,
}

#[derive(Debug)]
pub(super) enum Request {
    Begin {
        plan: Box<Plan>,
        actor: Actor,
    },
    /// What a begin would do.
    Preview {
        plan: Box<Plan>,
        actor: Actor,
    },
    Change {
        change: Change,
        reason: String,
        actor: Actor,
    },
    View,
}

/// What an operator can do to an active rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Pause,
    Resume,
    Abort,
}

/// Commands that wait for the actor. When the queue is full, callers wait and nothing is lost.
const QUEUED_COMMANDS: usize = 64;

impl Rollouts {
    /// Reads the stored rollouts and starts the actor's thread. A stored rollout that cannot be read is logged and reported for its
    /// model; it does not prevent the start. `fellows`: the other gateways, where this one is in a fleet. Then the fleet's rollouts count.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn start(
        handle: Handle,
        reader: Reader,
        ledger: LedgerReader,
        figures: Figures,
        history: History,
        telemetry: Telemetry,
        fellows: Option<Arc<dyn Fellows>>,
    ) -> std::io::Result<Rollouts> {
        let (commands, waiting) = mpsc::channel(QUEUED_COMMANDS);
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let actor = RolloutActor::new(Services {
            handle,
            reader,
            ledger,
            figures,
            history,
            telemetry,
            fellows,
            start: uuid::Uuid::now_v7().to_string(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        std::thread::Builder::new()
            .name("rollout".to_owned())
            .spawn(move || runtime.block_on(actor.run(waiting, stopped)))?;
        Ok(Rollouts { commands, stop })
    }

    /// Ends the actor after the command it is working on. Rollouts stay stored as they are; the next start continues them.
    pub(crate) fn stop(&self) {
        self.stop.notify_one();
    }

    /// Begins a rollout. Returns after its first step is in force.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, `VERSION_NOT_FOUND`; `CONFLICT` while another rollout of the model is active, while the model has no traffic
    /// document, or when the version is not ready or its signature would break callers; in a fleet also `INVALID_REQUEST` for a plan that
    /// needs what cannot be summed, and `NOT_READY` while this gateway is cut off.
    pub(crate) async fn begin(&self, model: ModelName, plan: Plan, actor: Actor) -> Result<View, Failure> {
        self.send(model, Request::Begin { plan: Box::new(plan), actor }).await
    }

    /// The rollout as it would begin. Whether its version can serve is not checked.
    ///
    /// # Errors
    /// As [`Rollouts::begin`].
    pub(crate) async fn preview(&self, model: ModelName, plan: Plan, actor: Actor) -> Result<View, Failure> {
        self.send(model, Request::Preview { plan: Box::new(plan), actor }).await
    }

    /// Holds the rollout at its step. Guardrails are still checked.
    ///
    /// # Errors
    /// `NOT_FOUND` when the model never had a rollout, `CONFLICT` when it has ended. The same for `resume` and `abort`.
    pub(crate) async fn pause(&self, model: ModelName, reason: String, actor: Actor) -> Result<View, Failure> {
        self.send(model, Request::Change { change: Change::Pause, reason, actor }).await
    }

    /// Ends a pause.
    pub(crate) async fn resume(&self, model: ModelName, reason: String, actor: Actor) -> Result<View, Failure> {
        self.send(model, Request::Change { change: Change::Resume, reason, actor }).await
    }

    /// Ends the rollout and restores the traffic document from before it.
    pub(crate) async fn abort(&self, model: ModelName, reason: String, actor: Actor) -> Result<View, Failure> {
        self.send(model, Request::Change { change: Change::Abort, reason, actor }).await
    }

    /// The model's last rollout.
    ///
    /// # Errors
    /// `NOT_FOUND` when the model never had a rollout; `INTERNAL` when the stored one cannot be read.
    pub(crate) async fn view(&self, model: ModelName) -> Result<View, Failure> {
        self.send(model, Request::View).await
    }

    async fn send(&self, model: ModelName, request: Request) -> Result<View, Failure> {
        let (reply, answer) = oneshot::channel();
        let ended = || Failure::new(Code::Draining, "the server is stopping, or its rollout thread has failed");
        self.commands.send(Command { model, request, reply }).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}
