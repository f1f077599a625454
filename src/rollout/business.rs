//! Business metrics of a step: the candidate's against the control's, with intervals that hold at every look.

use super::plan::Plan;
use super::state::State;
use crate::model::ModelName;
use crate::outcomes::experiment::show;
use crate::outcomes::sides::{Cuped, Difference, Side, Sides, measure, on_two_sides, oriented};
use crate::outcomes::{Metric, Metrics, Sequence};
use crate::quality::{History, Row, Snapshot};
use jiff::Timestamp;
use std::time::{Duration, Instant};

#[cfg(test)]
#[path = "tests_business.rs"]
mod tests;

/// What is known of the plan's metrics in this step.
#[derive(Debug, Default)]
pub(super) struct Business {
    found: Vec<Found>,
    next: Option<Instant>,
    /// Rows from before the start of the server are still read.
    reading: bool,
    /// Why the rows of other gateways of a fleet are not known, or which ones are missing.
    without: Option<String>,
}

/// One metric of the plan.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) name: String,
    /// `None` where `model.toml` does not have the metric any more.
    pub(crate) metric: Option<Metric>,
    /// The least difference that is allowed; `None` for the goal.
    pub(crate) not_worse_than: Option<f64>,
    sides: Option<Sides>,
}

/// What metrics say about a step.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Says {
    Nothing,
    /// Beyond doubt, with the words.
    Worse(String),
    /// The goal is better beyond doubt, and no other metric is worse than allowed.
    Better(String),
    /// The next step has to wait.
    Wait(String),
}

const CANDIDATE: usize = 0;
const CONTROL: usize = 1;
/// The error probability of what must be shown before the next step, and of an early end, at each step.
const SHOWN_LEVEL: f64 = 0.05;
/// The share of the time that may be spent on this, and the shortest time between two looks.
const TIMES_THE_COST: u32 = 50;
const LEAST_INTERVAL: Duration = Duration::from_millis(250);

impl Business {
    pub(super) fn found(&self) -> &[Found] {
        &self.found
    }

    /// Measures the metrics again, if it is time.
    pub(super) fn update(&mut self, model: &ModelName, state: &State, metrics: &Metrics, history: &History) {
        let plan = &state.plan;
        if !plan.has_metrics() || self.next.is_some_and(|next| Instant::now() < next) {
            return;
        }
        let begun = Instant::now();
        self.reading = history.state() == "reading";
        let whole = history.whole(model, i64::MIN);
        self.without = whole.fleet.and_then(|fleet| {
            let missing = fleet.missing.join(", ");
            let missing =
                (!missing.is_empty()).then(|| format!("the outcomes of these gateways are not known: {missing}"));
            fleet.waits.or(missing)
        });
        self.found = measured(state, metrics, &whole.snapshot, Timestamp::now().as_microsecond());
        self.next = Some(Instant::now() + (begun.elapsed() * TIMES_THE_COST).max(LEAST_INTERVAL));
    }

    /// What the metrics say.
    pub(super) fn says(&self, plan: &Plan) -> Says {
        if !plan.has_metrics() {
            return Says::Nothing;
        }
        if self.reading {
            return Says::Wait("waiting until the history of outcomes is read again after the start".to_owned());
        }
        for found in &self.found {
            let limit = found.not_worse_than.unwrap_or(0.0);
            if let Some((low, high)) = found.interval(plan.level()).filter(|(_, high)| *high < limit) {
                let words = found.words("is worse beyond doubt", low, high);
                return Says::Worse(format!("{words}; the limit is {}", show(limit)));
            }
        }
        if let Some(why) = &self.without {
            return Says::Wait(format!("waiting: {why}"));
        }
        let shown = Sequence::new(SHOWN_LEVEL / plan.compared_steps().max(1) as f64);
        let mut better = None;
        for found in &self.found {
            let interval = found.at(shown);
            match (found.not_worse_than, interval) {
                (Some(limit), Some((low, _))) if low > limit => {}
                (Some(limit), Some((low, high))) => {
                    let words = found.words("is not shown to be no worse than allowed", low, high);
                    return Says::Wait(format!("waiting for evidence: {words}; above {} is required", show(limit)));
                }
                (Some(_), None) => return Says::Wait(found.too_few()),
                (None, Some((low, high))) if low > 0.0 => {
                    better = Some(found.words("is better beyond doubt", low, high));
                }
                (None, _) => {}
            }
        }
        better.map_or(Says::Nothing, Says::Better)
    }
}

/// The metrics of a plan in the step that is in force. `now` in microseconds since 1970.
fn measured(state: &State, metrics: &Metrics, snapshot: &Snapshot, now: i64) -> Vec<Found> {
    let since = state.step_started_at.as_microsecond();
    let document = state.document(state.step);
    let candidate = state.candidate_arm();
    let place = |arm: &crate::quality::history::ArmOf| {
        let of_split = document.split.iter().find(|of_split| {
            of_split.arm.as_str() == &*arm.name && of_split.version == arm.version && of_split.weight > 0.0
        })?;
        Some(if of_split.arm == candidate { CANDIDATE } else { CONTROL })
    };
    let places: Vec<Option<usize>> = snapshot.arms().iter().map(place).collect();
    let side = |row: &Row| places.get(usize::from(row.arm)).copied().flatten();
    let excluded = on_two_sides(snapshot.rows().filter(|row| row.ts >= since), side);
    let found = |(name, not_worse_than): (&String, Option<f64>)| {
        let metric = metrics.get(name).cloned();
        let sides = metric.as_ref().map(|metric| measure(snapshot, metric, 2, (since, now), &excluded, side));
        Found { name: name.clone(), metric, not_worse_than, sides }
    };
    let limits = state.plan.metrics.iter().map(|(name, limit)| (name, Some(*limit)));
    limits.chain(state.plan.goal.iter().map(|name| (name, None))).map(found).collect()
}

impl Found {
    /// The interval of the difference, turned so that more is better, at this error probability.
    pub(crate) fn interval(&self, level: f64) -> Option<(f64, f64)> {
        self.at(Sequence::new(level))
    }

    fn at(&self, sequence: Sequence) -> Option<(f64, f64)> {
        let difference = self.sides.as_ref()?.difference(CANDIDATE, CONTROL, sequence)?;
        Some(oriented(self.metric.as_ref()?, difference))
    }

    /// The candidate's mean less the control's, with its interval.
    pub(crate) fn difference(&self, level: f64) -> Option<Difference> {
        self.sides.as_ref()?.difference(CANDIDATE, CONTROL, Sequence::new(level))
    }

    /// What values from before the step explain, where the difference is without it.
    pub(crate) fn cuped(&self) -> Option<Cuped> {
        self.sides.as_ref()?.cuped
    }

    /// The candidate and the control.
    pub(crate) fn sides(&self) -> (Side, Side) {
        let side = |at: usize| self.sides.as_ref().map_or_else(Side::default, |sides| sides.sides[at]);
        (side(CANDIDATE), side(CONTROL))
    }

    fn words(&self, what: &str, low: f64, high: f64) -> String {
        let (candidate, control) = self.sides();
        let mean = |side: Side| side.mean.map_or_else(|| "unknown".to_owned(), show);
        format!(
            "{} {what}: {} of {} candidate units, {} of {} control units; the difference, where more is better, is between {} and {}",
            self.name,
            mean(candidate),
            candidate.units,
            mean(control),
            control.units,
            show(low),
            show(high)
        )
    }

    fn too_few(&self) -> String {
        let Some(sides) = self.sides.as_ref() else {
            return format!("waiting: model.toml has no metric {} any more", self.name);
        };
        let ((candidate, needs), (control, _)) = (sides.units(CANDIDATE), sides.units(CONTROL));
        format!(
            "waiting for outcomes: {} has {candidate} candidate units and {control} control units of {needs} each that are old enough",
            self.name
        )
    }
}
