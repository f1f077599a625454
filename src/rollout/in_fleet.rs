//! A rollout of a fleet on one of its gateways: takes over what the fleet says of it, tells what was answered here, and, on the driver,
//! judges the sums.

use super::active::ActiveRollout;
use super::decide::{Decision, judge, judge_shadow};
use super::evidence::Evidence;
use super::pool::{Pool, TELLS_WITHIN};
use super::report::{Counts, Reading, Report, Reporter, Tally};
use super::shared::{Driving, Fellows, Orders, Stored, Sums, Told, ToldRollout};
use super::state::{State, Step};
use crate::model::ModelName;
use crate::quality::History;
use crate::registry::{Entry, Served};
use crate::route::Document;
use crate::shadow::{Agreement, Figures};
use crate::telemetry::{ArmEvidence, KEYLESS, KeyNotes, Unit, Watch};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// What the fleet says of a rollout, and what was counted for it here.
#[derive(Debug, Clone)]
pub(super) struct InFleet {
    /// The fleet's revision of the state.
    pub(super) revision: u64,
    /// Whether the document of that revision is in force here.
    pub(super) in_force: bool,
    /// The name of this gateway, and that of the driver.
    node: String,
    driver: String,
    step: String,
    /// Who changed the traffic document since, and how.
    pub(super) overridden: Option<String>,
    /// The document of that revision; `None` where it cannot be read here.
    document: Option<Document>,
    /// The revision of this gateway's own ledger under which the step's document is in force here.
    local: Option<u64>,
    /// One whose counters have the requests of another step.
    not_local: Option<u64>,
    reporter: Option<Reporter>,
    pool: Pool,
    counted_at: Option<Instant>,
    told_at: Option<(Instant, u64)>,
    silent: Vec<String>,
}

/// How often a gateway counts and tells. A driver looks at its own requests at every check, where no keys have to be read.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// Counts that are as before are told again so often, so that the driver knows that nothing is missing.
const REPEAT_EVERY: Duration = Duration::from_secs(2);

/// The gateways that the driver names to the others, so that a lease stays small.
const MOST_NAMED: usize = 100;

impl InFleet {
    fn new(fellows: &dyn Fellows, told: &Told, rollout: &ToldRollout) -> InFleet {
        InFleet {
            revision: told.revision,
            in_force: told.in_force,
            node: fellows.node().to_owned(),
            driver: rollout.driver.clone(),
            step: rollout.step.clone(),
            overridden: rollout.overridden.clone(),
            document: told.document.clone(),
            local: None,
            not_local: None,
            reporter: None,
            pool: Pool::new(&rollout.step),
            counted_at: None,
            told_at: None,
            silent: Vec::new(),
        }
    }

    /// Whether this gateway drives the rollout.
    pub(super) fn is_here(&self) -> bool {
        self.driver == self.node
    }

    /// The same after a change: nothing is decided before the fleet says what it has now.
    pub(super) fn changed(mut self) -> InFleet {
        self.in_force = false;
        self
    }

    /// Whether the step's document is in force here.
    pub(super) fn is_bound(&self) -> bool {
        self.local.is_some()
    }

    /// Whether the step's document is in force here under this revision of this gateway's ledger.
    pub(super) fn is_bound_to(&self, revision: u64) -> bool {
        self.local == Some(revision)
    }
}

impl ActiveRollout {
    /// Takes what the fleet says. What was counted in a step is kept as long as the step lasts.
    ///
    /// # Errors
    /// When the state cannot be read, in words.
    pub(super) fn hear(
        known: Option<ActiveRollout>,
        fellows: &dyn Fellows,
        told: &Told,
        rollout: &ToldRollout,
        entry: Option<&Entry>,
    ) -> Result<ActiveRollout, String> {
        let state = State::from_json(&rollout.state)?;
        let mut bound_before = None;
        let mut next = match known {
            Some(mut known) if known.fleet.as_ref().is_some_and(|fleet| fleet.step == rollout.step) => {
                let revision = known.state.revision;
                known.state = State { revision, ..state };
                known.trouble = None;
                if !known.state.is_active() {
                    known.held = Some(known.held.unwrap_or_else(|| known.step_began.elapsed()));
                }
                known
            }
            // The evidence of the last step can be seen after the end.
            Some(mut known)
                if !state.is_active() && known.fleet.is_some() && known.state.started_at == state.started_at =>
            {
                known.held = Some(known.held.unwrap_or_else(|| known.step_began.elapsed()));
                known.state = state;
                known
            }
            known => {
                bound_before = known.and_then(|known| known.fleet?.local);
                ActiveRollout::new(state)
            }
        };
        let mut fleet = next.fleet.take().unwrap_or_else(|| InFleet::new(fellows, told, rollout));
        let takes_over = rollout.driver == fleet.node && fleet.driver != fleet.node;
        if takes_over {
            info!(model = %told.model, before = fleet.driver, "this gateway drives the rollout from now on");
        }
        (fleet.revision, fleet.in_force) = (told.revision, told.in_force);
        (fleet.driver, fleet.overridden) = (rollout.driver.clone(), rollout.overridden.clone());
        if fleet.step != rollout.step {
            // The rollout ended: what was counted stays as it is.
            fleet.step.clone_from(&rollout.step);
        }
        fleet.document.clone_from(&told.document);
        fleet.not_local = fleet.not_local.or(bound_before);
        next.fleet = Some(fleet);
        if let Some(entry) = entry {
            next.bind(entry);
        }
        next.hear_orders(fellows, &told.model);
        Ok(next)
    }

    /// Notes under which revision of this gateway's ledger the step's document is in force here, once it is.
    pub(super) fn bind(&mut self, entry: &Entry) {
        let Some(fleet) = &mut self.fleet else { return };
        if fleet.local.is_none()
            && fleet.in_force
            && fleet.overridden.is_none()
            && entry.document().is_some()
            && entry.document() == fleet.document.as_ref()
            && fleet.not_local != Some(entry.revision())
        {
            fleet.local = Some(entry.revision());
        }
        if let Some(local) = fleet.local.filter(|_| self.state.is_active()) {
            self.state.revision = local;
        }
    }

    /// Takes what the driver said last. Returns by what requests are judged.
    fn hear_orders(&mut self, fellows: &dyn Fellows, model: &ModelName) -> Option<(Watch, Watch)> {
        let fleet = self.fleet.as_ref()?;
        let (orders, age) = fellows.orders(model).filter(|(orders, _)| orders.step == fleet.step)?;
        if self.state.is_active() {
            let held = Duration::from_millis(orders.held_ms) + age;
            // A step that began before this machine cannot be shown as longer than the machine's uptime.
            self.step_began = Instant::now().checked_sub(held).unwrap_or(self.step_began);
            if !self.state.paused && !fleet.is_here() {
                self.state.why = orders.why;
            }
        }
        orders.watch
    }

    /// Counts what this gateway answered in the step, and tells it. On a gateway that does not drive, the driver's thresholds come into
    /// force.
    pub(super) fn count_here(
        &mut self,
        fellows: &dyn Fellows,
        start: &str,
        model: &ModelName,
        entry: &Entry,
        figures: &Figures,
    ) {
        let Some(fleet) = &self.fleet else { return };
        if !fleet.is_here()
            && let Some(watch) = self.hear_orders(fellows, model)
        {
            apply(&self.state, entry, &watch);
        }
        let counts_keys = matches!(&self.evidence, Evidence::Step(step) if step.unit() == Unit::Key);
        let Some(fleet) = &mut self.fleet else { return };
        let is_often = fleet.is_here() && !counts_keys;
        if !is_often && fleet.counted_at.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return;
        }
        let reporter = match &mut fleet.reporter {
            Some(reporter) => reporter,
            none => {
                let stored = match fellows.stored(model) {
                    Stored::Unknown => return,
                    Stored::Nothing => None,
                    Stored::Report(text) => match Report::read(&text) {
                        Ok(report) => Some(report),
                        Err(why) => {
                            warn!(%model, why, "what the fleet kept of this gateway's counts is not read");
                            None
                        }
                    },
                };
                none.insert(Reporter::new(&fleet.step, start, stored.as_ref()))
            }
        };
        fleet.counted_at = Some(Instant::now());
        let report = reporter.report(reading(&self.state, entry, model, figures, counts_keys));
        if fleet.driver == fleet.node {
            fleet.pool.take_own(&fleet.node, &report);
        }
        let requests = report.requests();
        let is_due = fleet
            .told_at
            .is_none_or(|(at, told)| at.elapsed() >= REPEAT_EVERY || at.elapsed() >= TELL_EVERY && told != requests);
        if is_due {
            fleet.told_at = Some((Instant::now(), requests));
            fellows.tell(model, report.to_json());
        }
    }

    /// Judges the sums of all gateways, and renews the lease.
    pub(super) fn drive(
        &mut self,
        fellows: &dyn Fellows,
        model: &ModelName,
        entry: &Entry,
        history: &History,
    ) -> Decision {
        let held = self.step_began.elapsed();
        let Some(fleet) = &mut self.fleet else { return Decision::Stay("this gateway is in no fleet".to_owned()) };
        for heard in fellows.reports(model, fleet.pool.mark()) {
            match Report::read(&heard.report) {
                Ok(report) => fleet.pool.take(&heard.node, heard.mark, &report),
                Err(why) => {
                    warn!(%model, node = heard.node, why, "the counts of a gateway are not read");
                    fleet.pool.pass(heard.mark);
                }
            }
        }
        if fleet.reporter.is_none() {
            return Decision::Stay("waiting for what this gateway had counted before".to_owned());
        }
        let Sums { candidate, control, pairs } = fleet.pool.sums(weights(&self.state, entry));
        let plan = &self.state.plan;
        let mut watch = None;
        let decision = match &mut self.evidence {
            Evidence::Shadow(shadow) => {
                shadow.update(Agreement { pairs: pairs.0, agreed: pairs.1 });
                judge_shadow(plan, plan.guardrails.shadow_disagreement.unwrap_or(1.0), shadow, held)
            }
            Evidence::Step(step) => {
                step.update(candidate, control);
                let both = step.watch(held);
                fleet.pool.watch(&both.0);
                apply(&self.state, entry, &both);
                watch = Some(both);
                self.business.update(model, &self.state, entry.metrics(), history);
                judge(plan, step, self.business.says(plan), held)
            }
        };
        let others = fellows.others(model);
        let are_known = others.is_some();
        fleet.silent = fleet.pool.silent(others.unwrap_or_default());
        let decision = match decision {
            Decision::Advance(_) | Decision::EndEarly(_) if !are_known => {
                Decision::Stay("waiting for the list of the fleet's gateways".to_owned())
            }
            Decision::Advance(_) | Decision::EndEarly(_) if !fleet.silent.is_empty() => {
                Decision::Stay(format!("waiting for what these gateways counted: {}", fleet.silent.join(", ")))
            }
            decision => decision,
        };
        let why = match &decision {
            Decision::Stay(why) if !self.state.paused => why.clone(),
            _ => self.state.why.clone(),
        };
        fellows.drives(
            model,
            Orders {
                step: fleet.step.clone(),
                held_ms: u64::try_from(held.as_millis()).unwrap_or(u64::MAX),
                watch,
                why,
                counted: fleet.pool.counted().into_iter().take(MOST_NAMED).collect(),
            },
        );
        decision
    }

    /// What a view shows of the fleet.
    pub(super) fn driving(
        &self,
        fellows: Option<&Arc<dyn Fellows>>,
        model: &ModelName,
        cut_off: Option<&str>,
    ) -> Option<Driving> {
        let (fleet, fellows) = (self.fleet.as_ref()?, fellows?);
        let orders = fellows.orders(model);
        let age = |(_, age): &(Orders, Duration)| *age;
        let here = fleet.is_here();
        let lease = orders.as_ref().map(age);
        let mut counted = if here {
            fleet.pool.counted()
        } else {
            orders.filter(|(orders, _)| orders.step == fleet.step).map(|(orders, _)| orders.counted).unwrap_or_default()
        };
        if !here {
            let passed = lease.map_or(0, |lease| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
            for of in &mut counted {
                of.age_ms = of.age_ms.saturating_add(passed);
            }
        }
        let late = |age_ms: u64| Duration::from_millis(age_ms) >= TELLS_WITHIN;
        let mut silent = fleet.silent.clone();
        silent.extend(counted.iter().filter(|of| late(of.age_ms)).map(|of| of.node.clone()));
        silent.sort();
        silent.dedup();
        let cut_off = cut_off.map(str::to_owned);
        Some(Driving { driver: fleet.driver.clone(), here, lease, counted, silent, cut_off })
    }
}

/// Sets what the next requests of both sides are judged by.
fn apply(state: &State, entry: &Entry, (of_candidate, of_control): &(Watch, Watch)) {
    let name = state.candidate_arm();
    for arm in entry.arms() {
        arm.metrics.watch(if is_candidate(arm, name.as_str()) { of_candidate } else { of_control });
    }
}

fn is_candidate(arm: &Served, name: &str) -> bool {
    &**arm.arm() == name
}

/// The shares of the split that the candidate and the control have.
fn weights(state: &State, entry: &Entry) -> (f64, f64) {
    let name = state.candidate_arm();
    let split = entry.document().map_or(&[][..], |document| &document.split);
    let sum = |of_candidate: bool| -> f64 {
        split.iter().filter(|arm| (arm.arm == name) == of_candidate).map(|arm| arm.weight).sum()
    };
    (sum(true), sum(false))
}

/// What this gateway's counters say of the step.
fn reading(state: &State, entry: &Entry, model: &ModelName, figures: &Figures, counts_keys: bool) -> Reading {
    if state.step == Step::Shadow {
        let control = state.control_versions();
        let Agreement { pairs, agreed } = figures.agreement_under(entry.revision(), model, &control, state.plan.to);
        return Reading { tally: Tally { pairs: (pairs, agreed), ..Tally::default() }, keys: None };
    }
    let name = state.candidate_arm();
    let mut sides: [(ArmEvidence, KeyNotes); 2] = Default::default();
    for arm in entry.arms() {
        let (evidence, keys) = &mut sides[usize::from(!is_candidate(arm, name.as_str()))];
        evidence.add(&arm.metrics.evidence());
        if counts_keys && let Some(notes) = arm.metrics.key_notes() {
            keys.period = keys.period.max(notes.period);
            keys.halvings = keys.halvings.max(notes.halvings);
            keys.keys.extend(notes.keys);
            keys.keyless.iter_mut().zip(notes.keyless).for_each(|(sum, more)| *sum += more);
        }
    }
    let [(candidate, of_candidate), (control, of_control)] = sides;
    let keyless: [[u64; KEYLESS]; 2] = [of_candidate.keyless, of_control.keyless];
    let tally = Tally {
        candidate: Counts::of(&candidate, keyless[0]),
        control: Counts::of(&control, keyless[1]),
        pairs: (0, 0),
    };
    Reading { tally, keys: counts_keys.then_some((of_candidate, of_control)) }
}
