//! The answers: what is known about a model, and what alarms.

use super::analysis::{Alarm, ArmState, ColumnState, Found, begins};
use super::plan::{Plan, Reference, Watched};
use super::state::Drift;
use super::window::{HOUR, Window};
use crate::model::{ModelName, Version};
use std::fmt::Write as _;
use std::sync::Arc;

/// What is known about the drift of a model.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub versions: Vec<VersionReport>,
}

#[derive(Debug, Clone)]
pub struct VersionReport {
    pub version: Version,
    /// `None` while there is no reference.
    pub reference: Option<Reference>,
    /// Rows of the reference, and their time.
    pub reference_rows: u64,
    pub from: Option<jiff::Timestamp>,
    pub to: Option<jiff::Timestamp>,
    /// Without a reference: rows of the first day so far; `None` where none is taken.
    pub first_day_rows: Option<u64>,
    /// The share of the model's requests that is counted now.
    pub share: f64,
    /// Records of arms that are not counted, because there are too many arms or too little memory.
    pub left_out: u64,
    pub notes: Vec<String>,
    pub arms: Vec<ArmReport>,
}

#[derive(Debug, Clone)]
pub struct ArmReport {
    pub arm: String,
    /// Rows that came since `since`, and those of them that were counted.
    pub offered: u64,
    pub rows: u64,
    /// Microseconds since 1970.
    pub since: Option<i64>,
    /// Hours are compared with the same hours of other days.
    pub alike: bool,
    pub columns: Vec<ColumnReport>,
}

#[derive(Debug, Clone)]
pub struct ColumnReport {
    pub name: String,
    pub element_name: Option<String>,
    pub floor: f64,
    /// The last window of each kind that has ended.
    pub looks: Vec<Look>,
    /// The window that alarms, since when (microseconds since 1970), and when it was told.
    pub alarm: Option<(Look, i64, i64)>,
    /// One sentence.
    pub words: String,
    /// Where it was asked for: the values of the window that alarms, else of the last one that ended, beside those of the reference.
    pub bins: Option<Bins>,
}

/// How the values of a window and of its reference are spread over the bins of a column.
#[derive(Debug, Clone)]
pub struct Bins {
    pub window: Window,
    /// How many of the first bins are ordered: intervals of numbers.
    pub ordered: usize,
    pub bins: Vec<Bin>,
}

/// One bin: what it holds, and its share of the rows, from 0 to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Bin {
    pub name: String,
    pub reference: f64,
    pub live: f64,
}

/// What one window shows of a column.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub window: Window,
    /// Microseconds since 1970.
    pub from: i64,
    pub to: i64,
    pub rows: u64,
    /// The decimal logarithms of the e-value and of the least that is called different.
    pub evidence: f64,
    pub needed: f64,
    /// The Jensen-Shannon distance, and the least that matters.
    pub distance: f64,
    pub floor: f64,
    pub different: bool,
    pub matters: bool,
    pub alike: bool,
    pub dispersion: f64,
    /// Of the numbers, and how many standard deviations of the reference it moved.
    pub mean: Option<f64>,
    pub moved: Option<f64>,
}

/// A column, or a version, that is not as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Trouble {
    pub model: ModelName,
    pub version: Version,
    pub arm: String,
    /// The name of the column.
    pub column: String,
    pub what: What,
    /// Microseconds since 1970.
    pub since: i64,
    pub words: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Drift,
    /// All rows of an hour have the same output.
    Stuck,
    /// Outputs are NaN or infinite.
    NonFinite,
}

/// The most bins of an answer.
const MAX_BINS: usize = 20_000;
/// The share of outputs without a finite value from which on they are told.
const NON_FINITE: f64 = 0.001;

impl Drift {
    /// What is known about a model. `bins`: of so many columns of each arm, those that moved most, also their bins, [`MAX_BINS`] in all.
    #[must_use]
    pub fn report(&self, name: &ModelName, bins: usize) -> Report {
        let mut room = MAX_BINS;
        let mut versions: Vec<(VersionReport, Option<Arc<Plan>>)> = {
            let hot = self.hot();
            let Some(model) = hot.models.get(name) else { return Report::default() };
            let report = |(version, of): (&Version, &super::hot::VersionHot)| {
                let plan = of.plan.as_deref();
                let mut notes = plan.map(|plan| plan.notes.clone()).unwrap_or_default();
                if !of.watched.settings.enabled {
                    notes.push("switched off: [drift] enabled = false in model.toml".to_owned());
                } else if plan.is_none() && of.first_day.is_none() {
                    notes.push("there is no memory for the rows of its first day".to_owned());
                }
                let report = VersionReport {
                    version: *version,
                    reference: plan.map(|plan| plan.reference),
                    reference_rows: plan.map_or(0, |plan| plan.rows),
                    from: plan.and_then(|plan| plan.from),
                    to: plan.and_then(|plan| plan.to),
                    first_day_rows: of.first_day.as_ref().map(|day| day.rows),
                    share: model.share,
                    left_out: of.left_out,
                    notes,
                    arms: of.arms.iter().map(|arm| ArmReport::begun(&arm.name, &arm.tally)).collect(),
                };
                (report, of.plan.clone())
            };
            model.versions.iter().map(report).collect()
        };
        let analysis = self.analysis();
        let states = analysis.models.get(name).map(|model| &model.arms);
        for ((version, arm), state) in states.into_iter().flatten() {
            let of = versions.iter_mut().find(|(report, _)| report.version == *version);
            let Some((report, Some(plan))) = of else { continue };
            if state.digest != plan.digest || !state.fits(plan) {
                continue;
            }
            if !report.arms.iter().any(|known| known.arm == *arm) {
                report.arms.push(ArmReport::begun(arm, &super::hot::Tally::default()));
            }
            if let Some(known) = report.arms.iter_mut().find(|known| known.arm == *arm) {
                known.add(plan, state);
                known.add_bins(plan, state, bins, &mut room);
            }
        }
        Report { versions: versions.into_iter().map(|(report, _)| report).collect() }
    }

    /// The least share of a model's requests that is counted now.
    #[must_use]
    pub fn least_share(&self) -> f64 {
        self.hot().models.values().map(|model| model.share).fold(1.0, f64::min)
    }

    /// What is wrong now, of all models.
    #[must_use]
    pub fn troubles(&self) -> Vec<Trouble> {
        let analysis = self.analysis();
        let mut troubles = Vec::new();
        for (model, of) in &analysis.models {
            for ((version, arm), state) in of.arms.iter().filter(|(_, state)| !state.idle) {
                let Some(plan) = state.plan.as_deref().filter(|plan| state.fits(plan)) else { continue };
                for (watched, column) in plan.columns.iter().zip(&state.columns) {
                    let trouble = |what, since: i64, words: String| Trouble {
                        model: model.clone(),
                        version: *version,
                        arm: arm.clone(),
                        column: watched.column.shown().to_owned(),
                        what,
                        since: begins(since),
                        words,
                    };
                    if let Some(alarm) = &column.alarm {
                        let words = alarm_words(plan, watched, alarm);
                        troubles.push(trouble(What::Drift, alarm.since, words));
                    }
                    let Some(hour) = column.looks[Window::Hour as usize].as_ref().filter(|_| watched.is_output())
                    else {
                        continue;
                    };
                    let before = watched.reference.iter().copied().fold(0.0, f64::max)
                        / watched.reference.iter().sum::<f64>().max(1.0);
                    // A column that was nearly constant in the reference may be constant.
                    if hour.stuck && (before < 0.95 || watched.ordered() > 1) {
                        let words = format!(
                            "{} has the same value in all {} rows of the last hour",
                            watched.column.shown(),
                            hour.rows
                        );
                        troubles.push(trouble(What::Stuck, hour.hour, words));
                    }
                    let (now, of_reference) = hour.not_finite;
                    if now > NON_FINITE && now > 2.0 * of_reference {
                        let words = format!(
                            "{} is NaN or infinite in {} of the rows of the last hour",
                            watched.column.shown(),
                            percent(now)
                        );
                        troubles.push(trouble(What::NonFinite, hour.hour, words));
                    }
                }
            }
        }
        troubles
    }
}

impl ArmReport {
    fn begun(arm: &str, open: &super::hot::Tally) -> ArmReport {
        ArmReport {
            arm: arm.to_owned(),
            offered: open.offered,
            rows: open.rows,
            since: None,
            alike: false,
            columns: Vec::new(),
        }
    }

    fn add(&mut self, plan: &Plan, state: &ArmState) {
        let part = state.part.as_ref().map_or((0, 0), |(_, part)| (part.offered, part.rows));
        self.offered += state.offered + part.0;
        self.rows += state.rows + part.1;
        self.since = Some(begins(state.first_hour));
        let columns = plan.columns.iter().zip(&state.columns);
        self.columns = columns
            .map(|(watched, column)| {
                let looks = Window::ALL.iter().zip(&column.looks);
                let looks: Vec<Look> =
                    looks.filter_map(|(window, found)| Some(Look::of(*window, watched, found.as_ref()?))).collect();
                let alarm = column.alarm.as_ref();
                let words = match (alarm, looks.last()) {
                    (Some(alarm), _) => alarm_words(plan, watched, alarm),
                    (None, None) => format!("{}: no window has ended yet", watched.column.shown()),
                    (None, Some(_)) => quiet_words(watched, &looks),
                };
                ColumnReport {
                    name: watched.column.name.clone(),
                    element_name: watched.column.element_name.clone(),
                    floor: watched.floor,
                    looks,
                    alarm: alarm.map(|alarm| {
                        (Look::of(alarm.window, watched, &alarm.found), begins(alarm.since), begins(alarm.told))
                    }),
                    words,
                    bins: None,
                }
            })
            .collect();
        self.alike = self.columns.iter().any(|column| column.looks.iter().any(|look| look.alike));
    }
}

impl ArmReport {
    /// Adds the bins of the columns that moved most, as long as there is room: first those that alarm.
    fn add_bins(&mut self, plan: &Plan, state: &ArmState, columns: usize, room: &mut usize) {
        let urgency = |column: &ColumnReport| {
            (column.alarm.is_some(), column.looks.iter().map(|look| look.distance).fold(0.0, f64::max))
        };
        let mut order: Vec<usize> = (0..self.columns.len()).collect();
        order.sort_by(|a, b| {
            let ((first_alarms, far), (alarms, distance)) = (urgency(&self.columns[*b]), urgency(&self.columns[*a]));
            first_alarms.cmp(&alarms).then(far.total_cmp(&distance))
        });
        for at in order.into_iter().take(columns) {
            let watched = &plan.columns[at];
            if watched.width > *room {
                return;
            }
            *room -= watched.width;
            self.columns[at].bins = Bins::of(watched, &state.columns[at]);
        }
    }
}

impl Bins {
    /// `None` before the first window has ended.
    fn of(watched: &Watched, column: &ColumnState) -> Option<Bins> {
        let alarm = column.alarm.as_ref().map(|alarm| (alarm.window, &alarm.found));
        let last =
            || Window::ALL.into_iter().zip(&column.looks).rev().find_map(|(of, found)| Some((of, found.as_ref()?)));
        let (window, found) = alarm.or_else(last).filter(|(_, found)| found.live.len() == watched.width)?;
        let like = found.same_hours.len() == watched.width;
        let reference = if like { &found.same_hours } else { &watched.reference };
        let (all, before) = (found.live.iter().map(|n| f64::from(*n)).sum::<f64>(), reference.iter().sum::<f64>());
        let bin = |at: usize| Bin {
            name: watched.counter_name(at),
            reference: reference[at] / before.max(1.0),
            live: f64::from(found.live[at]) / all.max(1.0),
        };
        Some(Bins { window, ordered: watched.ordered(), bins: (0..watched.width).map(bin).collect() })
    }
}

impl Look {
    fn of(window: Window, watched: &Watched, found: &Found) -> Look {
        let moved = found.mean.zip(watched.mean).zip(watched.deviation);
        let from = begins(found.hour);
        Look {
            window,
            from,
            to: from.saturating_add(window.hours() * HOUR),
            rows: found.rows,
            evidence: found.ln_e / std::f64::consts::LN_10,
            needed: found.needed / std::f64::consts::LN_10,
            distance: found.distance,
            floor: found.floor,
            different: found.is_different(),
            matters: found.matters(),
            alike: found.alike,
            dispersion: found.dispersion,
            mean: found.mean,
            moved: moved.map(|((now, before), deviation)| (now - before) / deviation),
        }
    }
}

fn alarm_words(plan: &Plan, watched: &Watched, alarm: &Alarm) -> String {
    let found = &alarm.found;
    let like = match (found.alike, plan.reference) {
        (true, _) => "the same hours of the last weeks",
        (false, Reference::Profile) => "the profile",
        (false, Reference::FirstDay) => "the version's first day",
    };
    let name = watched.column.shown();
    let mut words =
        format!("{name} differs from {like} in the {} of {} rows, and it matters", alarm.window.shown(), found.rows);
    let (counter, before, now) = found.most;
    // Writing to a String cannot fail.
    let _ = write!(
        words,
        ": {} has {} of the rows, before {}",
        watched.counter_name(counter),
        percent(now),
        percent(before)
    );
    let look = Look::of(alarm.window, watched, found);
    if let (Some(mean), Some(before), Some(moved)) = (look.mean, watched.mean, look.moved.filter(|_| !found.alike)) {
        let _ = write!(words, "; the mean moved from {before:.4} to {mean:.4} ({moved:+.2} standard deviations)");
    }
    let _ = write!(words, "; distance {:.3}, of which {:.3} matters", found.distance, found.floor);
    words
}

fn quiet_words(watched: &Watched, looks: &[Look]) -> String {
    let name = watched.column.shown();
    let longest = looks.last().map_or("hour", |look| look.window.shown());
    let small = looks.iter().find(|look| look.different);
    let large = looks.iter().find(|look| look.matters);
    match (small, large) {
        (Some(look), _) if !look.matters => format!(
            "{name} is different in the last {}, by a distance of {:.3}; less than {:.3} does not matter",
            look.window.shown(),
            look.distance,
            look.floor
        ),
        (_, Some(look)) => format!(
            "{name} looks different in the last {} (distance {:.3}), but {} rows may show that by chance",
            look.window.shown(),
            look.distance,
            look.rows
        ),
        _ => format!("{name} is as the reference, in the last {longest} too"),
    }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}
