//! Judging the windows that have ended.

use super::evidence;
use super::hot::{Ended, Tally};
use super::plan::{Plan, Watched};
use super::window::{HOUR, Window};
use crate::model::{ModelName, Version};
use crate::profile::Profile;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What was found out about all arms.
#[derive(Debug, Default)]
pub(super) struct Analysis {
    pub models: BTreeMap<ModelName, ModelState>,
}

/// What was found out about a model.
#[derive(Debug, Default)]
pub(super) struct ModelState {
    pub arms: BTreeMap<(Version, String), ArmState>,
    /// References that were made of the first day of versions without a profile.
    pub first_days: BTreeMap<Version, Arc<Profile>>,
    /// It differs from what was saved.
    pub changed: bool,
}

/// The counts of an arm over longer windows, and its columns.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ArmState {
    /// Of the plan that the counts belong to.
    pub digest: u64,
    #[serde(skip)]
    pub plan: Option<Arc<Plan>>,
    /// A part of an hour that a restart interrupted.
    pub part: Option<(i64, Tally)>,
    /// The open day, week and four weeks: their number and their counts.
    pub open: [(i64, Tally); 3],
    /// The last whole day.
    pub day_before: Option<Tally>,
    pub history: History,
    pub columns: Vec<ColumnState>,
    /// The last hour with rows.
    pub last_hour: i64,
    /// Since its first hour.
    pub first_hour: i64,
    pub offered: u64,
    pub rows: u64,
    /// It had no rows for so long that nothing is wrong with it now.
    #[serde(skip)]
    pub idle: bool,
}

/// Counts by hour of the day, over the last weeks.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct History {
    /// 24 times the counters of the plan; empty before the first hour.
    counts: Vec<f32>,
    /// Days that each hour has.
    days: [u16; 24],
}

/// What is known about one column.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct ColumnState {
    /// The last window of each kind.
    pub looks: [Option<Found>; 4],
    pub alarm: Option<Alarm>,
    /// How much an hour differs from the same hours of other days, and a day from the one before: see [`evidence::dispersion`].
    hours: VecDeque<f64>,
    days: VecDeque<f64>,
}

/// What one window shows of one column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Found {
    /// The first hour of the window.
    pub hour: i64,
    pub rows: u64,
    /// The natural logarithm of the e-value, and the least that is called different.
    pub ln_e: f64,
    pub needed: f64,
    pub distance: f64,
    pub floor: f64,
    /// The same hours of the last weeks are the reference, and not the profile.
    pub alike: bool,
    /// How many related rows count as one.
    pub dispersion: f64,
    pub mean: Option<f64>,
    /// The counter whose share moved most, and its share in the reference and now.
    pub most: (usize, f64, f64),
    /// All rows have one value. Only of outputs.
    pub stuck: bool,
    /// The share of the rows without a finite value: now, and in the reference.
    pub not_finite: (f64, f64),
    /// The rows of each counter of the column. Empty in a state that an earlier version saved.
    #[serde(default)]
    pub live: Vec<u32>,
    /// The same hours of the last weeks, where they are the reference.
    #[serde(default)]
    pub same_hours: Vec<f64>,
}

/// A column that is different, and it matters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Alarm {
    pub window: Window,
    /// The first hour of the window that showed it, and the hour at whose beginning it was told.
    pub since: i64,
    pub told: i64,
    /// What that window showed.
    pub found: Found,
    /// Windows since then without it.
    quiet: u32,
}

/// Days of history before hours are compared with the same hours of other days, and the most that count.
pub(super) const HISTORY_DAYS: u16 = 14;
const MOST_DAYS: u16 = 28;
/// Before that, an hour must differ this many times as much, as it may be a part of a daily cycle. With the default floor, a cycle that moves a
/// mean by half a standard deviation is silent.
const WITHOUT_HISTORY: f64 = 5.0;
/// And it must do so by this many standard errors.
const SURE: f64 = 5.0;
/// But not where the difference is in values that the reference hardly has: at most in this share of its rows.
const HARDLY: f64 = 0.01;
/// Values of the dispersion that are kept, and that are needed.
const DISPERSIONS: usize = 24;
const ENOUGH_DISPERSIONS: usize = 5;
/// Rows of an hour in which an output may be called stuck.
const STUCK_ROWS: u64 = 500;
/// An arm without rows for this long is dropped: eight weeks.
const IDLE_HOURS: i64 = 56 * 24;
/// An alarm of an arm without rows ends after this long: after a promotion nobody would end it.
const QUIET_HOURS: i64 = 24;
/// Rows may come so much later than the window that they belong to has ended. Earlier ones are of a clock that was set back, which begins new windows.
pub(super) const LATE_HOURS: i64 = 2;
/// An arm counts for the share of the false alarms that each gets, if it had rows in the last four weeks.
const ACTIVE_HOURS: i64 = 28 * 24;

impl Found {
    pub fn is_different(&self) -> bool {
        self.ln_e >= self.needed
    }

    pub fn matters(&self) -> bool {
        self.distance >= self.floor
    }
}

impl Analysis {
    pub fn first_day(&self, model: &ModelName, version: Version) -> Option<Arc<Profile>> {
        self.models.get(model)?.first_days.get(&version).cloned()
    }

    pub fn set_first_day(&mut self, model: &ModelName, version: Version, profile: Arc<Profile>) {
        let model = self.models.entry(model.clone()).or_default();
        model.first_days.insert(version, profile);
        model.changed = true;
    }

    /// Continues with the counts that were saved of a version, where they are of the same bins.
    pub fn attach(&mut self, model: &ModelName, version: Version, plan: &Arc<Plan>) {
        let Some(model) = self.models.get_mut(model) else { return };
        model.arms.retain(|(of, _), state| *of != version || state.digest == plan.digest && state.fits(plan));
        for (_, state) in model.arms.iter_mut().filter(|((of, _), _)| *of == version) {
            state.plan = Some(Arc::clone(plan));
        }
    }

    /// Adds an hour of an arm, and judges it.
    pub fn add(&mut self, ended: Ended) {
        let Ended { model, version, plan, arm } = ended;
        let model = self.models.entry(model).or_default();
        model.changed = true;
        let active = |arm_state: &ArmState| arm.hour - arm_state.last_hour <= ACTIVE_HOURS;
        let key = (version, arm.name.clone());
        let others = model.arms.iter().filter(|(other, state)| **other != key && active(state)).count();
        let state = model.arms.entry(key).or_insert_with(|| ArmState::new(&plan, arm.hour));
        if state.digest != plan.digest || !state.fits(&plan) {
            *state = ArmState::new(&plan, arm.hour);
        }
        state.plan = Some(Arc::clone(&plan));
        state.add(&plan, arm.hour, arm.tally, others + 1);
    }

    /// Judges windows that are over although no later row came, ends the alarms of arms without rows, and drops arms that have none for long.
    pub fn end_windows(&mut self, hour: i64) {
        for model in self.models.values_mut() {
            let active = model.arms.values().filter(|state| hour - state.last_hour <= ACTIVE_HOURS).count();
            for state in model.arms.values_mut() {
                state.idle = hour - state.last_hour > QUIET_HOURS;
                for column in state.columns.iter_mut().filter(|column| column.alarm.is_some() && state.idle) {
                    column.alarm = None;
                    model.changed = true;
                }
                let Some(plan) = state.plan.clone() else { continue };
                if let Some((at, _)) = state.part
                    && at < hour
                    && let Some((at, part)) = state.part.take()
                {
                    state.add(&plan, at, part, active.max(1));
                    model.changed = true;
                }
                model.changed |= state.end_windows(&plan, hour, active.max(1));
            }
            let before = model.arms.len();
            model.arms.retain(|_, state| hour - state.last_hour <= IDLE_HOURS);
            model.changed |= model.arms.len() != before;
        }
    }
}

impl ArmState {
    pub fn new(plan: &Plan, hour: i64) -> ArmState {
        ArmState {
            digest: plan.digest,
            plan: None,
            part: None,
            open: [Window::Day, Window::Week, Window::FourWeeks].map(|window| (window.of_hour(hour), Tally::new(plan))),
            day_before: None,
            history: History::default(),
            columns: vec![ColumnState::default(); plan.columns.len()],
            last_hour: hour,
            first_hour: hour,
            offered: 0,
            rows: 0,
            idle: false,
        }
    }

    /// Whether the counts belong to the columns of a plan. Saved ones may be of any length.
    pub fn fits(&self, plan: &Plan) -> bool {
        let history = self.history.counts.len();
        self.columns.len() == plan.columns.len()
            && self.open.iter().all(|(_, tally)| tally.fits(plan))
            && self.day_before.iter().all(|tally| tally.fits(plan))
            && self.part.iter().all(|(_, tally)| tally.fits(plan))
            && (history == 0 || history == 24 * plan.counters)
    }

    /// Adds the counts of an hour. `arms`: the arms of the model, which share the false alarms.
    pub fn add(&mut self, plan: &Plan, hour: i64, mut tally: Tally, arms: usize) {
        if let Some((at, part)) = self.part.take() {
            if at == hour {
                tally.add(&part);
            } else {
                self.add(plan, at, part, arms);
            }
        }
        self.last_hour = self.last_hour.max(hour);
        self.offered += tally.offered;
        self.rows += tally.rows;
        self.end_windows(plan, hour, arms);
        if tally.rows > 0 {
            self.judge_hour(plan, hour, &tally, arms);
            self.history.add(plan, hour, &tally);
        }
        for (_, open) in &mut self.open {
            open.add(&tally);
        }
    }

    /// Judges the open windows that are over at `hour`, and begins the next ones.
    fn end_windows(&mut self, plan: &Plan, hour: i64, arms: usize) -> bool {
        let mut any = false;
        for (at, window) in [Window::Day, Window::Week, Window::FourWeeks].into_iter().enumerate() {
            let number = window.of_hour(hour);
            // Rows that came late are counted in the window that is open: going back would judge it before it is over, and the one before it twice.
            let begins = self.open[at].0 * window.hours();
            if self.open[at].0 == number || (begins - LATE_HOURS..begins).contains(&hour) {
                continue;
            }
            let (ended, tally) = std::mem::replace(&mut self.open[at], (number, Tally::new(plan)));
            if tally.rows == 0 {
                continue;
            }
            any = true;
            if window == Window::Day
                && let Some(before) = self.day_before.take()
            {
                self.note_dispersion(plan, &tally, before.counts.iter().map(|n| f64::from(*n)), false);
            }
            self.judge(plan, window, ended * window.hours(), &tally, None, arms);
            if window == Window::Day {
                self.day_before = Some(tally);
            }
        }
        any
    }

    fn judge_hour(&mut self, plan: &Plan, hour: i64, tally: &Tally, arms: usize) {
        let alike = self.history.of(plan, hour);
        if let Some((_, counts)) = &alike {
            self.note_dispersion(plan, tally, counts.iter().copied(), true);
        }
        let alike = alike.filter(|(days, _)| *days >= HISTORY_DAYS).map(|(_, counts)| counts);
        self.judge(plan, Window::Hour, hour, tally, alike.as_deref(), arms);
    }

    /// Notes how much a window differs from another that is expected to be like it.
    fn note_dispersion(&mut self, plan: &Plan, tally: &Tally, other: impl Iterator<Item = f64>, hours: bool) {
        let other: Vec<f64> = other.collect();
        for (watched, state) in plan.columns.iter().zip(&mut self.columns) {
            let range = watched.start..watched.start + watched.width;
            let live: Vec<f64> = tally.counts[range.clone()].iter().map(|n| f64::from(*n)).collect();
            let value = evidence::dispersion(&live, &other[range]);
            let kept = if hours { &mut state.hours } else { &mut state.days };
            kept.push_back(value);
            if kept.len() > DISPERSIONS {
                kept.pop_front();
            }
        }
    }

    fn judge(
        &mut self,
        plan: &Plan,
        window: Window,
        first_hour: i64,
        tally: &Tally,
        alike: Option<&[f64]>,
        arms: usize,
    ) {
        let mut found: Vec<Found> = Vec::with_capacity(plan.columns.len());
        for (at, (watched, state)) in plan.columns.iter().zip(&self.columns).enumerate() {
            let range = watched.start..watched.start + watched.width;
            let dispersion = median(if window == Window::Hour { &state.hours } else { &state.days }).max(1.0);
            let live: Vec<f64> = tally.counts[range.clone()].iter().map(|n| f64::from(*n) / dispersion).collect();
            let reference: Vec<f64> = match alike {
                Some(counts) => counts[range].iter().map(|n| n / dispersion).collect(),
                None => watched.reference.clone(),
            };
            let guarded = window == Window::Hour && alike.is_none() && !begins_to(watched, &live);
            let [numbers, sum] = tally.sums[at];
            found.push(Found {
                hour: first_hour,
                rows: tally.rows,
                ln_e: evidence::column(&live, &reference, watched.ordered()),
                needed: 0.0,
                distance: evidence::least_distance(&live, &reference, if guarded { SURE } else { 0.0 }),
                floor: if guarded { watched.floor * WITHOUT_HISTORY } else { watched.floor },
                alike: alike.is_some(),
                dispersion,
                mean: (numbers > 0.0).then(|| sum / numbers),
                most: moved_most(&live, &reference),
                not_finite: (not_finite(watched, &live), not_finite(watched, &watched.reference)),
                stuck: tally.rows >= STUCK_ROWS && matches!(tally.steady[at], Some((_, true))),
                live: tally.counts[watched.start..watched.start + watched.width].to_vec(),
                same_hours: if alike.is_some() { reference.clone() } else { Vec::new() },
            });
        }
        let alpha = window.alpha(plan.false_alarms_per_year) / arms.max(1) as f64;
        let ln_e: Vec<f64> = found.iter().map(|found| found.ln_e).collect();
        let needed = evidence::threshold(&ln_e, alpha);
        for (state, mut found) in self.columns.iter_mut().zip(found) {
            found.needed = needed;
            state.note(window, found);
        }
    }
}

impl ColumnState {
    fn note(&mut self, window: Window, found: Found) {
        let told = found.hour + window.hours();
        // A window whose rows came in parts is one window. Parts of several hours may come one after the other.
        let last = self.looks[window as usize].as_ref().map(|last| last.hour);
        let late = if window == Window::Hour { QUIET_HOURS } else { 0 };
        let is_part = last.is_some_and(|last| (found.hour..=found.hour + late).contains(&last));
        if found.is_different() && found.matters() {
            match &mut self.alarm {
                Some(alarm) if alarm.window == window => {
                    alarm.quiet = 0;
                    alarm.found = found.clone();
                }
                // What a longer window shows lasts longer.
                Some(alarm) if alarm.window < window => {
                    (alarm.window, alarm.quiet, alarm.found) = (window, 0, found.clone());
                }
                Some(alarm) => alarm.quiet = 0,
                None => {
                    self.alarm = Some(Alarm { window, since: found.hour, told, found: found.clone(), quiet: 0 });
                }
            }
        } else if let Some(alarm) = self.alarm.as_mut().filter(|alarm| alarm.window == window) {
            alarm.quiet += u32::from(!is_part);
            let enough = match window {
                Window::Hour => 24,
                Window::Day | Window::Week | Window::FourWeeks => 1,
            };
            if alarm.quiet >= enough {
                self.alarm = None;
            }
        }
        if !is_part {
            self.looks[window as usize] = Some(found);
        }
    }
}

impl History {
    /// The days and the counts of an hour of the day. `None` before the first.
    fn of(&self, plan: &Plan, hour: i64) -> Option<(u16, Vec<f64>)> {
        let at = hour_of_day(hour);
        let counts = self.counts.get(at * plan.counters..(at + 1) * plan.counters)?;
        (self.days[at] > 0).then(|| (self.days[at], counts.iter().map(|n| f64::from(*n)).collect()))
    }

    fn add(&mut self, plan: &Plan, hour: i64, tally: &Tally) {
        if self.counts.len() != 24 * plan.counters {
            self.counts = vec![0.0; 24 * plan.counters];
            self.days = [0; 24];
        }
        let at = hour_of_day(hour);
        let slots = &mut self.counts[at * plan.counters..(at + 1) * plan.counters];
        // Old days fade, so that the last four weeks have most of the weight.
        let fade = if self.days[at] >= MOST_DAYS { 1.0 - 1.0 / f32::from(MOST_DAYS) } else { 1.0 };
        for (slot, count) in slots.iter_mut().zip(&tally.counts) {
            *slot = *slot * fade + *count as f32;
        }
        self.days[at] = (self.days[at] + 1).min(MOST_DAYS);
    }
}

fn hour_of_day(hour: i64) -> usize {
    usize::try_from(hour.rem_euclid(24)).unwrap_or(0)
}

/// The median; 1 for too few values. Not the mean: one true change must not hide the next.
fn median(values: &VecDeque<f64>) -> f64 {
    if values.len() < ENOUGH_DISPERSIONS {
        return 1.0;
    }
    let mut sorted: Vec<f64> = values.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The counter whose share moved most, and its share in the reference and now.
fn moved_most(live: &[f64], reference: &[f64]) -> (usize, f64, f64) {
    let (n, m) = (live.iter().sum::<f64>().max(1.0), reference.iter().sum::<f64>().max(1.0));
    let shares = live.iter().zip(reference).enumerate().map(|(at, (x, c))| (at, c / m, x / n));
    let most = shares.max_by(|(_, a, b), (_, c, d)| (a - b).abs().total_cmp(&(c - d).abs()));
    most.unwrap_or((0, 0.0, 0.0))
}

/// Whether values begin that the reference hardly has: missing, infinite, or unlisted ones. No daily cycle explains that.
fn begins_to(watched: &Watched, live: &[f64]) -> bool {
    let rows = watched.reference.iter().sum::<f64>();
    let first = watched.width - 2;
    let is_new = |at: usize| at >= first && watched.reference[at] <= HARDLY * rows;
    // All other counters together are one.
    let collapsed = |counts: &[f64]| {
        let new: Vec<f64> = (first..watched.width).filter(|at| is_new(*at)).map(|at| counts[at]).collect();
        let others = counts.iter().sum::<f64>() - new.iter().sum::<f64>();
        new.into_iter().chain([others]).collect::<Vec<f64>>()
    };
    evidence::distance(&collapsed(live), &collapsed(&watched.reference)) >= watched.floor.max(f64::MIN_POSITIVE)
}

/// The share of rows without a finite value, in the last counters of a column of numbers.
fn not_finite(watched: &Watched, counts: &[f64]) -> f64 {
    let last = if watched.ordered() > 0 { 2 } else { 1 };
    let without: f64 = counts.iter().rev().take(last).sum();
    without / counts.iter().sum::<f64>().max(1.0)
}

/// The time at which an hour begins, microseconds since 1970.
pub(super) fn begins(hour: i64) -> i64 {
    hour.saturating_mul(HOUR)
}
