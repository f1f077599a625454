//! Counting: what the thread of the log does for each record.

use super::analysis::LATE_HOURS;
use super::plan::{Plan, key_of};
use super::state::Watched;
use super::window::HOUR;
use crate::columns::{Cell, Column};
use crate::model::{ModelName, Version};
use crate::profile::Builder;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A record: the rows of one request, or the request.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    pub model: &'a ModelName,
    pub version: Version,
    pub arm: &'a str,
    pub request_id: &'a str,
    /// Microseconds since 1970, UTC.
    pub ts: i64,
    pub records: usize,
}

/// Reads the values of some columns in a row: calls its last argument with the index and the value of each.
pub(super) type ReadRow<'r, 'f> = &'r mut dyn FnMut(&[Column], usize, &mut dyn FnMut(usize, Cell<'f>));

/// What is counted at the moment.
#[derive(Debug, Default)]
pub(super) struct Hot {
    pub models: HashMap<ModelName, ModelHot>,
    /// Hours that have ended and wait to be judged, at most [`MAX_ENDED`].
    pub ended: VecDeque<Ended>,
    /// Hours that were dropped because too many waited.
    pub lost: u64,
    /// Bytes of all arms, and of the first days.
    pub bytes: usize,
    /// The second that `offered` counts.
    second: i64,
}

#[derive(Debug)]
pub(super) struct ModelHot {
    pub versions: BTreeMap<Version, VersionHot>,
    /// The share of its requests that is counted.
    pub share: f64,
    /// Cells that came in this second.
    offered: f64,
}

#[derive(Debug)]
pub(super) struct VersionHot {
    pub watched: Watched,
    pub plan: Option<Arc<Plan>>,
    /// Until there is a plan.
    pub first_day: Option<FirstDay>,
    pub arms: Vec<ArmHot>,
    /// Records of arms that are not counted, as there is no memory for them, or too many arms.
    pub left_out: u64,
}

/// The counts of the open hour of an arm.
#[derive(Debug, Clone)]
pub(super) struct ArmHot {
    pub name: String,
    pub hour: i64,
    pub tally: Tally,
}

/// Counts of rows.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Tally {
    /// Rows that came, and those that were counted.
    pub offered: u64,
    pub rows: u64,
    pub counts: Vec<u32>,
    /// By column: the number of its finite numbers, and their sum.
    pub sums: Vec<[f64; 2]>,
    /// By column: the value of the first row, and whether all others had it too. Only of outputs.
    pub steady: Vec<Option<(u64, bool)>>,
}

/// An hour of an arm that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub model: ModelName,
    pub version: Version,
    pub plan: Arc<Plan>,
    pub arm: ArmHot,
}

/// The rows of a version's first day, of which a reference is made.
#[derive(Debug)]
pub(super) struct FirstDay {
    pub columns: Vec<Column>,
    pub builders: Vec<Builder>,
    /// Of its first and last row, microseconds since 1970.
    pub from: i64,
    pub to: i64,
    pub rows: u64,
}

/// The most arms of a version that are counted.
const MAX_ARMS: usize = 16;
/// The most ended hours that wait.
const MAX_ENDED: usize = 20_000;
/// The most rows of one record that are counted, and where they are looked for: to find a text, those before it are read.
const MAX_ROWS: usize = 32;
const LOOKED_AT: usize = 4096;
/// Rows of a first day that are kept, and the least rows that make a reference.
pub(super) const FIRST_DAY_ROWS: usize = 1000;
/// Bytes of one column of a first day.
pub(super) const FIRST_DAY_BYTES: usize = FIRST_DAY_ROWS * 8 + 512;
/// A value of a first day takes so many times as long as one that is counted in bins: 180 ns, by `perf` at 10,000 requests a second of 100 columns.
const FIRST_DAY_COST: f64 = 4.0;
/// A sum of larger numbers could overflow, and would not be a mean of anything.
const LARGEST: f64 = 1e200;
/// Requests are chosen by another hash than those that the log samples.
const SEED: u64 = 0x0d41_f7ed;

impl Hot {
    /// Counts a record. `read` gives the cells of a row.
    pub fn observe(&mut self, seen: &Seen, cells_per_second: f64, most_bytes: usize, read: ReadRow<'_, '_>) {
        self.tick(seen.ts.div_euclid(1_000_000), cells_per_second);
        let Some(model) = self.models.get_mut(seen.model) else { return };
        let Some(version) = model.versions.get_mut(&seen.version) else { return };
        let (columns, cost) = match (&version.plan, &version.first_day) {
            (Some(plan), _) => (plan.columns.len(), 1.0),
            (None, Some(day)) => (day.columns.len(), FIRST_DAY_COST),
            (None, None) => (0, 1.0),
        };
        let looked_at = seen.records.min(LOOKED_AT);
        let step = looked_at.div_ceil(MAX_ROWS).max(1);
        model.offered += cost * (columns * looked_at.div_ceil(step)) as f64;
        let position = (xxh3_64_with_seed(seen.request_id.as_bytes(), SEED) >> 11) as f64 / (1u64 << 53) as f64;
        let is_counted = position < model.share;
        if let Some(plan) = version.plan.clone() {
            let hour = seen.ts.div_euclid(HOUR);
            let room = most_bytes.saturating_sub(self.bytes);
            let Some(arm) = version.arm(seen.arm, &plan, hour, room, &mut self.bytes) else { return };
            // Records come a little out of order. A clock that was set back begins a new window too.
            if hour > arm.hour || hour < arm.hour - LATE_HOURS {
                let ended = ArmHot { name: arm.name.clone(), hour: arm.hour, tally: arm.tally.take(&plan) };
                arm.hour = hour;
                if ended.tally.offered > 0 {
                    let (model, version) = (seen.model.clone(), seen.version);
                    self.ended.push_back(Ended { model, version, plan: Arc::clone(&plan), arm: ended });
                }
            }
            arm.tally.offered += seen.records as u64;
            if is_counted {
                for row in (0..looked_at).step_by(step) {
                    arm.tally.rows += 1;
                    read(&plan.cells, row, &mut |at, cell| arm.tally.count(&plan, at, cell));
                }
            }
        } else if let Some(day) = version.first_day.as_mut().filter(|_| is_counted) {
            if day.rows == 0 {
                day.from = seen.ts;
            }
            day.to = day.to.max(seen.ts);
            for row in (0..looked_at).step_by(step) {
                day.rows += 1;
                let FirstDay { columns, builders, .. } = day;
                read(columns, row, &mut |at, cell| builders[at].add(cell));
            }
        }
        while self.ended.len() > MAX_ENDED {
            self.ended.pop_front();
            self.lost += 1;
        }
    }

    /// Once a second: lets in of each model at most a level, so that all together are within the budget and small ones are whole.
    fn tick(&mut self, second: i64, cells_per_second: f64) {
        let seconds = second - self.second;
        if seconds == 0 {
            return;
        }
        self.second = second;
        // After a pause or a change of the clock the rate is not known: what came is taken for one second's.
        let seconds = if (1..=60).contains(&seconds) { seconds as f64 } else { 1.0 };
        let mut rates: Vec<f64> = self.models.values().map(|model| model.offered / seconds).collect();
        rates.retain(|rate| *rate > 0.0);
        rates.sort_by(f64::total_cmp);
        let (mut left, mut level) = (cells_per_second, f64::INFINITY);
        for (i, rate) in rates.iter().enumerate() {
            let fair = left / (rates.len() - i) as f64;
            if *rate > fair {
                level = fair;
                break;
            }
            left -= rate;
        }
        for model in self.models.values_mut() {
            let rate = model.offered / seconds;
            model.share = if rate > level { level / rate } else { 1.0 };
            model.offered = 0.0;
        }
    }

    /// Ends the hours that are over at `now`, where no record came that would.
    pub fn end_hours(&mut self, hour: i64) {
        for (name, model) in &mut self.models {
            for (version, of) in &mut model.versions {
                let Some(plan) = &of.plan else { continue };
                for arm in of.arms.iter_mut().filter(|arm| arm.hour < hour && arm.tally.offered > 0) {
                    let ended = ArmHot { name: arm.name.clone(), hour: arm.hour, tally: arm.tally.take(plan) };
                    let (model, version) = (name.clone(), *version);
                    self.ended.push_back(Ended { model, version, plan: Arc::clone(plan), arm: ended });
                }
            }
        }
    }
}

impl ModelHot {
    pub fn new() -> ModelHot {
        ModelHot { versions: BTreeMap::new(), share: 1.0, offered: 0.0 }
    }
}

impl VersionHot {
    /// The counts of an arm, which is added if it is new and there is room for it.
    fn arm(&mut self, name: &str, plan: &Plan, hour: i64, room: usize, bytes: &mut usize) -> Option<&mut ArmHot> {
        let known = self.arms.iter().position(|arm| arm.name == name);
        let at = match known {
            Some(at) => at,
            None if self.arms.len() < MAX_ARMS && plan.bytes_of_arm() <= room => {
                *bytes += plan.bytes_of_arm();
                self.arms.push(ArmHot { name: name.to_owned(), hour, tally: Tally::new(plan) });
                self.arms.len() - 1
            }
            None => {
                self.left_out += 1;
                return None;
            }
        };
        self.arms.get_mut(at)
    }
}

impl Tally {
    pub fn new(plan: &Plan) -> Tally {
        Tally {
            offered: 0,
            rows: 0,
            counts: vec![0; plan.counters],
            sums: vec![[0.0; 2]; plan.columns.len()],
            steady: vec![None; plan.columns.len()],
        }
    }

    /// Whether the counts belong to the columns of a plan.
    pub fn fits(&self, plan: &Plan) -> bool {
        let columns = plan.columns.len();
        self.counts.len() == plan.counters && self.sums.len() == columns && self.steady.len() == columns
    }

    /// Whether the counts may be of the same columns.
    pub fn is_like(&self, other: &Tally) -> bool {
        (self.counts.len(), self.sums.len(), self.steady.len())
            == (other.counts.len(), other.sums.len(), other.steady.len())
    }

    fn take(&mut self, plan: &Plan) -> Tally {
        std::mem::replace(self, Tally::new(plan))
    }

    fn count(&mut self, plan: &Plan, at: usize, cell: Cell) {
        let watched = &plan.columns[at];
        let Some(counter) = watched.counter(cell) else { return };
        let counter = &mut self.counts[watched.start + counter];
        *counter = counter.saturating_add(1);
        if let Cell::Number(number) = cell
            && number.abs() < LARGEST
        {
            let sums = &mut self.sums[at];
            sums[0] += 1.0;
            sums[1] += number;
        }
        if watched.is_output() {
            let key = key_of(cell).unwrap_or(u64::MAX);
            match &mut self.steady[at] {
                Some((first, same)) => *same &= *first == key,
                none => *none = Some((key, true)),
            }
        }
    }

    /// Adds the counts of rows of the same columns.
    pub fn add(&mut self, other: &Tally) {
        self.offered = self.offered.saturating_add(other.offered);
        self.rows = self.rows.saturating_add(other.rows);
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum = sum.saturating_add(*count);
        }
        for (sums, more) in self.sums.iter_mut().zip(&other.sums) {
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
        for (mine, other) in self.steady.iter_mut().zip(&other.steady) {
            *mine = match (*mine, *other) {
                (Some((a, x)), Some((b, y))) => Some((a, x && y && a == b)),
                (one, two) => one.or(two),
            };
        }
    }
}
