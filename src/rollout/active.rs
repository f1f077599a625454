//! One rollout with what is kept in memory only: the evidence and the clock of its current step.

use super::business::Business;
use super::decide::{Decision, judge, judge_shadow};
use super::evidence::{Evidence, ShadowEvidence, StepEvidence};
use super::handle::View;
use super::in_fleet::InFleet;
use super::shared::Fellows;
use super::state::{State, Step};
use crate::ledger::Action;
use crate::model::ModelName;
use crate::quality::History;
use crate::registry::{Entry, Served, State as VersionState};
use crate::shadow::Figures;
use crate::telemetry::{ArmEvidence, Unit};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A model's last rollout, active or ended.
#[derive(Debug)]
pub(super) struct ActiveRollout {
    pub(super) state: State,
    /// When the current step began, or was continued after a restart.
    pub(super) step_began: Instant,
    pub(super) evidence: Evidence,
    pub(super) business: Business,
    /// How long the last step was held, once the rollout has ended.
    pub(super) held: Option<Duration>,
    pub(super) trouble: Option<Trouble>,
    /// Where this gateway is in a fleet that knows the rollout.
    pub(super) fleet: Option<InFleet>,
}

/// A change that failed and is retried. It does not delay other actions: a rollback is tried at once after an advance failed.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) action: Action,
    pub(super) message: String,
    pub(super) retry_at: Instant,
}

impl ActiveRollout {
    pub(super) fn new(state: State) -> ActiveRollout {
        let evidence = match state.step {
            Step::Shadow => Evidence::Shadow(ShadowEvidence::default()),
            Step::At(_) => {
                let unit = if state.document(state.step).counts_keys() { Unit::Key } else { Unit::Request };
                let step = StepEvidence::new(&state.plan, state.percent(), unit, state.p99_before_us);
                Evidence::Step(Box::new(step))
            }
        };
        // How long a rollout was held that ended before a restart is not stored.
        let held = state.ended.map(|_| Duration::ZERO);
        ActiveRollout {
            state,
            step_began: Instant::now(),
            evidence,
            business: Business::default(),
            held,
            trouble: None,
            fleet: None,
        }
    }

    /// Whether this action failed a moment ago and is not to be retried yet.
    pub(super) fn must_wait(&self, action: Action) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.action == action && Instant::now() < trouble.retry_at)
    }

    /// What to do where the candidate is no longer loaded because it failed: it was set aside, or could not be loaded after a restart.
    pub(super) fn candidate_failed(&self, entry: &Entry) -> Option<Decision> {
        let to = self.state.plan.to;
        let status = entry.versions().get(&to).filter(|status| status.state == VersionState::Failed)?;
        let stage = status.stage.map(|stage| format!(" ({})", stage.as_str())).unwrap_or_default();
        let reason = status.reason.as_deref().unwrap_or("no reason is known");
        Some(Decision::TakeBack(format!("version {to} failed{stage}: {reason}")))
    }

    /// Updates the evidence and decides what to do next.
    pub(super) fn decide(
        &mut self,
        model: &ModelName,
        entry: &Entry,
        figures: &Figures,
        history: &History,
    ) -> Decision {
        let plan = &self.state.plan;
        let held = self.step_began.elapsed();
        match &mut self.evidence {
            Evidence::Shadow(shadow) => {
                let (revision, control) = (self.state.revision, self.state.control_versions());
                shadow.update(figures.agreement_under(revision, model, &control, plan.to));
                judge_shadow(plan, plan.guardrails.shadow_disagreement.unwrap_or(1.0), shadow, held)
            }
            Evidence::Step(step) => {
                let name = self.state.candidate_arm();
                let mut control = ArmEvidence::default();
                let mut candidate = ArmEvidence::default();
                let is_candidate = |arm: &Served| &**arm.arm() == name.as_str();
                let split = entry.document().map_or(&[][..], |document| &document.split);
                for arm in entry.arms() {
                    let mut evidence = arm.metrics.evidence();
                    let weight = split.iter().find(|of_split| of_split.arm.as_str() == &**arm.arm());
                    evidence.weigh(weight.map_or(0.0, |of_split| of_split.weight));
                    if is_candidate(arm) {
                        candidate = evidence;
                    } else {
                        control.add(&evidence);
                    }
                }
                step.update(candidate, control);
                let (of_candidate, of_control) = step.watch(held);
                for arm in entry.arms() {
                    arm.metrics.watch(if is_candidate(arm) { &of_candidate } else { &of_control });
                }
                self.business.update(model, &self.state, entry.metrics(), history);
                judge(plan, step, self.business.says(plan), held)
            }
        }
    }

    /// `cut_off`: why the fleet's state is not known now.
    pub(super) fn view(&self, model: &ModelName, fellows: Option<&Arc<dyn Fellows>>, cut_off: Option<&str>) -> View {
        View {
            model: model.clone(),
            state: self.state.clone(),
            held: self.held.unwrap_or_else(|| self.step_began.elapsed()),
            evidence: self.evidence.clone(),
            metrics: self.business.found().to_vec(),
            trouble: self.trouble.as_ref().map(|trouble| trouble.message.clone()),
            driving: self.driving(fellows, model, cut_off),
        }
    }
}
