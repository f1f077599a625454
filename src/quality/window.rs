//! Recent predictions that wait for feedback, and feedback that came before its prediction.
//!
//! Both are counted in bytes and expire by time. Feedback whose prediction is not known has a quarter of the bytes for all models together,
//! and an eighth for one model: its ids are the caller's, so anybody can send as much as they like.

use super::figures::Figures;
use super::history::{History, Outcome};
use super::label::Predicted;
use super::units::{Unit, Units, unit_of};
use crate::model::{Feedback, Label, ModelName, Update, Version};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use xxhash_rust::xxh3::Xxh3;

/// How much of the recent past is joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Limit for the rows that wait for feedback, over all models. A row takes about 200 bytes. Default 250 000.
    pub rows: usize,
    /// Limit for the bytes of these rows, of feedback about them and of feedback that came before its prediction. Default 64 MiB. The
    /// sums by unit are not among them: an arm has at most 16,384, of about 50 bytes.
    pub bytes: usize,
    /// How long a row waits. Where more rows come in that time than the limit allows, only a share of the requests is kept. A hash of
    /// the request id chooses them. The share is halved and doubled as needed. Default 1 h.
    pub window: Duration,
    /// How long a sample of the rows is kept for figures over windows and for experiments. Default 35 d.
    pub history: Duration,
    /// Limit for the bytes of that sample, over all models. A row takes about 300 bytes. Default 64 MiB.
    pub history_bytes: usize,
}

/// Figures of an arm without predictions for this long are dropped: its version is probably gone, and feedback about it can no
/// longer be joined. A longer window replaces it.
const IDLE_ARM: Duration = Duration::from_hours(24);

impl Default for Config {
    fn default() -> Config {
        Config {
            rows: 250_000,
            bytes: 64 << 20,
            window: Duration::from_hours(1),
            history: Duration::from_hours(35 * 24),
            history_bytes: 64 << 20,
        }
    }
}

/// One row of an answered request.
#[derive(Debug)]
pub struct Seen<'a> {
    pub model: &'a ModelName,
    pub version: Version,
    pub arm: &'a str,
    pub request_id: &'a str,
    /// The sticky key, where the request has one.
    pub route_key: Option<&'a str>,
    pub row: u32,
    /// Microseconds since 1970, UTC.
    pub ts: i64,
}

/// The live join of predictions and feedback. Clones share one state. It is kept in memory only, so a restart begins again, except for the
/// history, which is read again from the log.
#[derive(Debug, Clone)]
pub struct Quality {
    window: Arc<Mutex<Window>>,
    history: History,
}

/// The figures of one model.
#[derive(Debug, Clone, Default)]
pub struct ModelQuality {
    /// By version and arm.
    pub arms: BTreeMap<(Version, String), Figures>,
    /// Feedback entries received for the model.
    pub feedback: u64,
    /// Entries whose prediction is not in the window: unknown, too old, or still to come.
    pub unmatched: u64,
    /// Entries about requests outside the share that is kept.
    pub left_out: u64,
    /// The share of requests that is kept now.
    pub share: f64,
}

/// A hash of model, request id and row. It is wide enough that collisions do not matter.
type Key = u128;

#[derive(Debug)]
struct Window {
    config: Config,
    rows: HashMap<Key, Row>,
    /// Bytes of the rows and the feedback about them, and of early feedback.
    row_bytes: usize,
    early_bytes: usize,
    /// Rows in the order of arrival. Some may be gone from `rows`.
    order: VecDeque<(i64, Key)>,
    /// Feedback without a prediction in the window. [`Model::early`] has its order; the oldest is dropped first.
    early: HashMap<Key, EarlyFeedback>,
    /// Requests whose hash is below this are kept.
    share: f64,
    models: BTreeMap<ModelName, Model>,
    /// When idle arms were last looked for.
    swept_at: i64,
}

#[derive(Debug, Default)]
struct Model {
    /// By a number that is never used again, which rows refer to.
    arms: BTreeMap<u64, Arm>,
    next_arm: u64,
    feedback: u64,
    matched: u64,
    left_out: u64,
    /// Early feedback in the order of arrival. Some may be gone.
    early: VecDeque<(i64, Key)>,
    early_bytes: usize,
    /// The time of the last prediction or feedback.
    last_used: i64,
}

#[derive(Debug)]
pub(super) struct Arm {
    version: Version,
    name: String,
    figures: Figures,
    units: Units,
    /// The time of the last prediction.
    last_used: i64,
}

#[derive(Debug)]
struct Row {
    ts: i64,
    /// Key in [`Model::arms`].
    arm: u64,
    unit: Unit,
    predicted: Predicted,
    feedback: Option<Box<Told>>,
}

#[derive(Debug)]
struct EarlyFeedback {
    merged: Told,
    /// The `ts` of the first entry.
    first_ts: i64,
    entries: u64,
    /// When the first entry arrived.
    arrived: i64,
}

/// What the entries about a row say, merged: of each field, the latest.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// With its `ts`.
    label: Option<(i64, Update<Label>)>,
    /// Each name once, with the `ts`.
    values: Vec<(Box<str>, i64, Update<f64>)>,
    /// Values that were not kept, because the row had [`MAX_ROW_VALUES`] names already.
    pub left_out: u64,
}

/// The most names of values that are kept for a row. One entry has at most as many.
const MAX_ROW_VALUES: usize = 100;

/// What a row takes beside its text: its place in the map and in the order, and what the allocator adds.
const ROW_BYTES: usize = 200;
/// The same for feedback.
const TOLD_BYTES: usize = 160;
/// The same for a text or a value of feedback.
const PART_BYTES: usize = 64;

impl Told {
    /// Adds an entry. Returns whether it changes anything.
    fn merge(&mut self, entry: Feedback) -> bool {
        let mut changed = false;
        let ts = entry.ts;
        if let Some(label) = entry.label
            && self.label.as_ref().is_none_or(|(known, _)| *known <= ts)
        {
            // The strings were allocated for the request. Exact copies do not keep what was reserved for it.
            let label = match label {
                Update::Set(Label::Text(text)) => Update::Set(Label::Text(text.as_str().to_owned())),
                other => other,
            };
            self.label = Some((ts, label));
            changed = true;
        }
        if self.values.is_empty() {
            self.values.reserve_exact(entry.values.len());
        }
        for (name, value) in entry.values {
            match self.values.iter_mut().find(|(known, ..)| **known == *name) {
                Some((_, known, _)) if *known > ts => {}
                Some((_, known, held)) => {
                    (*known, *held) = (ts, value);
                    changed = true;
                }
                None => {
                    changed = true;
                    if self.values.len() < MAX_ROW_VALUES {
                        self.values.push((name.into(), ts, value));
                    } else {
                        self.left_out += 1;
                    }
                }
            }
        }
        changed
    }

    /// The label. `None` where none came or the latest entry retracts it.
    pub(super) fn label(&self) -> Option<&Label> {
        self.label.as_ref().and_then(|(_, label)| label.value())
    }

    /// The values that hold, by name.
    pub(super) fn values(&self) -> impl Iterator<Item = (&str, f64)> {
        self.values.iter().filter_map(|(name, _, value)| Some((&**name, *value.value()?)))
    }

    fn bytes(&self) -> usize {
        let label =
            if let Some((_, Update::Set(Label::Text(text)))) = &self.label { PART_BYTES + text.len() } else { 0 };
        TOLD_BYTES + label + self.values.iter().map(|(name, ..)| PART_BYTES + name.len()).sum::<usize>()
    }
}

impl Told {
    /// What is known of a row of the history. `names`: those of the values, by their numbers.
    pub(super) fn of(outcome: &Outcome, names: &[Box<str>]) -> Told {
        let ts = outcome.first_ts;
        let values = outcome.values().filter_map(|(name, value)| Some((names.get(usize::from(name))?, value)));
        Told {
            label: outcome.label().map(|label| (ts, Update::Set(label.clone()))),
            values: values.map(|(name, value)| (name.clone(), ts, Update::Set(value))).collect(),
            left_out: 0,
        }
    }
}

impl Row {
    fn bytes(&self) -> usize {
        ROW_BYTES + self.predicted.text_bytes() + self.feedback.as_ref().map_or(0, |told| told.bytes())
    }
}

impl Default for Quality {
    fn default() -> Quality {
        Quality::new(Config::default())
    }
}

impl Quality {
    #[must_use]
    pub fn new(config: Config) -> Quality {
        let window = Window {
            config,
            rows: HashMap::new(),
            row_bytes: 0,
            early_bytes: 0,
            order: VecDeque::new(),
            early: HashMap::new(),
            share: 1.0,
            models: BTreeMap::new(),
            swept_at: i64::MIN,
        };
        let history = History::new(config.history, config.history_bytes);
        Quality { window: Arc::new(Mutex::new(window)), history }
    }

    /// The sample of rows over weeks. Feedback is passed on to it; its predictions are recorded separately.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Records a row of an answer. `predicted` is called only if the row is kept.
    pub fn record_prediction(&self, seen: &Seen, predicted: impl FnOnce() -> Predicted) {
        self.lock().record_prediction(seen, predicted);
    }

    /// Records feedback about a model's predictions. `now` is in microseconds since 1970, UTC.
    pub fn record_feedback(&self, model: &ModelName, entries: Vec<Feedback>, now: i64) {
        self.history.record_feedback(model, &entries, now);
        let mut window = self.lock();
        for entry in entries {
            window.record_feedback(model, entry, now);
        }
    }

    /// Drops what is older than the window, also where nothing new comes. `now` is in microseconds since 1970, UTC.
    pub fn expire(&self, now: i64) {
        let mut window = self.lock();
        window.drop_old_rows(now);
        window.drop_old_feedback(now);
        window.drop_idle_arms(now);
        drop(window);
        self.history.expire(now);
    }

    /// Bytes of the rows and the feedback that are kept.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let window = self.lock();
        window.row_bytes + window.early_bytes
    }

    /// The figures of a model. They are empty for an unknown one.
    #[must_use]
    pub fn of(&self, model: &ModelName) -> ModelQuality {
        let window = self.lock();
        let known = window.models.get(model);
        ModelQuality { share: window.share, ..known.map_or_else(ModelQuality::default, Model::quality) }
    }

    /// The figures of all models that have any.
    #[must_use]
    pub fn all(&self) -> Vec<(ModelName, ModelQuality)> {
        let window = self.lock();
        let quality = |model: &Model| ModelQuality { share: window.share, ..model.quality() };
        window.models.iter().map(|(name, model)| (name.clone(), quality(model))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Model {
    fn quality(&self) -> ModelQuality {
        let arms = self.arms.values().map(|arm| ((arm.version, arm.name.clone()), arm.figures()));
        ModelQuality {
            arms: arms.collect(),
            feedback: self.feedback,
            // Early feedback may be matched after the counts of an idle model were dropped.
            unmatched: self.feedback.saturating_sub(self.matched).saturating_sub(self.left_out),
            left_out: self.left_out,
            share: 1.0,
        }
    }

    /// The number of an arm, which is added if it is new.
    fn arm(&mut self, version: Version, name: &str) -> u64 {
        let known = self.arms.iter().find(|(_, arm)| arm.version == version && arm.name == name);
        if let Some((number, _)) = known {
            return *number;
        }
        let number = self.next_arm;
        self.next_arm += 1;
        self.arms.insert(number, Arm::new(version, name));
        number
    }
}

impl Arm {
    pub(super) fn new(version: Version, name: &str) -> Arm {
        let (figures, units) = (Figures::default(), Units::default());
        Arm { version, name: name.to_owned(), figures, units, last_used: i64::MIN }
    }

    /// Counts a row of the history.
    pub(super) fn add_row(&mut self, row: &super::Row, names: &[Box<str>]) {
        self.figures.predictions += 1;
        self.units.seen(row.is_key);
        if let Some(outcome) = row.outcome.as_deref() {
            self.figures.record_first_feedback(row.ts, outcome.first_ts);
            self.add(row.unit, &row.predicted, &Told::of(outcome, names));
        }
    }

    /// The figures, with those by unit.
    pub(super) fn figures(&self) -> Figures {
        let mut figures = self.figures.clone();
        let values = self.figures.known_values();
        figures.by_unit = values.map(|(name, all)| (name.clone(), self.units.of(name, all.count, all.mean))).collect();
        figures
    }

    fn add(&mut self, unit: Unit, predicted: &Predicted, told: &Told) {
        self.figures.add(predicted, told);
        // Only names that have figures are summed by unit.
        self.units.add(unit, told.values().filter(|(name, _)| self.figures.values.contains_key(*name)));
    }

    fn remove(&mut self, unit: Unit, predicted: &Predicted, told: &Told) {
        self.figures.remove(predicted, told);
        self.units.remove(unit, told.values());
    }
}

impl Window {
    fn record_prediction(&mut self, seen: &Seen, predicted: impl FnOnce() -> Predicted) {
        let (key, position) = key(seen.model, seen.request_id, seen.row);
        if position >= self.share {
            return;
        }
        if !self.models.contains_key(seen.model) {
            self.models.insert(seen.model.clone(), Model::default());
        }
        let Some(model) = self.models.get_mut(seen.model) else { return };
        let number = model.arm(seen.version, seen.arm);
        let Some(arm) = model.arms.get_mut(&number) else { return };
        model.last_used = seen.ts;
        arm.last_used = seen.ts;
        arm.figures.predictions += 1;
        arm.units.seen(seen.route_key.is_some());
        let unit = unit_of(seen.route_key, seen.request_id);
        let mut row = Row { ts: seen.ts, arm: number, unit, predicted: predicted(), feedback: None };
        if let Some(early) = self.early.remove(&key) {
            let bytes = early.merged.bytes();
            self.early_bytes -= bytes;
            model.early_bytes -= bytes;
            let EarlyFeedback { merged, first_ts, entries, .. } = early;
            model.matched += entries;
            arm.figures.record_first_feedback(seen.ts, first_ts);
            arm.add(unit, &row.predicted, &merged);
            row.feedback = Some(Box::new(merged));
        }
        // If an id is used again, feedback is about its newest prediction.
        self.row_bytes += row.bytes();
        if let Some(replaced) = self.rows.insert(key, row) {
            self.row_bytes -= replaced.bytes();
        }
        self.order.push_back((seen.ts, key));
        self.drop_old_rows(seen.ts);
        self.drop_idle_arms(seen.ts);
    }

    fn record_feedback(&mut self, name: &ModelName, entry: Feedback, now: i64) {
        let (key, position) = key(name, &entry.request_id, entry.row);
        if !self.models.contains_key(name) {
            self.models.insert(name.clone(), Model::default());
        }
        let Some(model) = self.models.get_mut(name) else { return };
        model.feedback += 1;
        model.last_used = now;
        if position >= self.share {
            model.left_out += 1;
            return;
        }
        let Some(row) = self.rows.get_mut(&key) else {
            self.keep_early(name, key, entry, now);
            return;
        };
        // The arm of an old row may have been dropped already.
        let Some(arm) = model.arms.get_mut(&row.arm) else { return };
        model.matched += 1;
        let before = row.bytes();
        if row.feedback.is_none() {
            arm.figures.record_first_feedback(row.ts, entry.ts);
        }
        let known = row.feedback.as_deref();
        let mut merged = known.cloned().unwrap_or_default();
        if !merged.merge(entry) {
            return;
        }
        if let Some(known) = known {
            arm.remove(row.unit, &row.predicted, known);
        }
        arm.add(row.unit, &row.predicted, &merged);
        row.feedback = Some(Box::new(merged));
        self.row_bytes = self.row_bytes + row.bytes() - before;
        self.halve_while_full();
    }

    fn keep_early(&mut self, name: &ModelName, key: Key, entry: Feedback, now: i64) {
        let (total, of_one) = (self.config.bytes / 4, self.config.bytes / 8);
        let Some(model) = self.models.get_mut(name) else { return };
        if let Some(early) = self.early.get_mut(&key) {
            early.entries += 1;
            let before = early.merged.bytes();
            early.merged.merge(entry);
            let bytes = early.merged.bytes();
            model.early_bytes = model.early_bytes + bytes - before;
            self.early_bytes = self.early_bytes + bytes - before;
        } else {
            let first_ts = entry.ts;
            let mut merged = Told::default();
            merged.merge(entry);
            let bytes = merged.bytes();
            if bytes > of_one {
                return;
            }
            model.early.push_back((now, key));
            model.early_bytes += bytes;
            self.early_bytes += bytes;
            self.early.insert(key, EarlyFeedback { merged, first_ts, entries: 1, arrived: now });
        }
        while model.early_bytes > of_one || model.early.len() > self.config.rows {
            self.early_bytes -= drop_oldest(model, &mut self.early);
        }
        while self.early_bytes > total {
            // Only where several models have much: the one with the most gives way.
            let Some(most) = self.models.values_mut().max_by_key(|model| model.early_bytes) else { return };
            self.early_bytes -= drop_oldest(most, &mut self.early);
        }
    }

    /// Drops early feedback that is older than the window.
    fn drop_old_feedback(&mut self, now: i64) {
        let window = micros(self.config.window).unsigned_abs();
        for model in self.models.values_mut() {
            while model.early.front().is_some_and(|(arrived, _)| now.abs_diff(*arrived) > window) {
                self.early_bytes -= drop_oldest(model, &mut self.early);
            }
        }
        shrink(&mut self.early);
    }

    /// Drops the rows that are older than the window. Halves the share of requests if too many are left.
    fn drop_old_rows(&mut self, now: i64) {
        let window = micros(self.config.window).unsigned_abs();
        // A row far in the future is dropped too. It was recorded before the clock was set back, and would block all others.
        while let Some((ts, key)) = self.order.front()
            && now.abs_diff(*ts) > window
        {
            if self.rows.get(key).is_some_and(|row| row.ts == *ts)
                && let Some(row) = self.rows.remove(key)
            {
                self.row_bytes -= row.bytes();
            }
            self.order.pop_front();
            let (few, small) = (self.config.rows / 4, self.config.bytes / 16 * 3);
            if self.share < 1.0 && self.order.len() < few && self.row_bytes < small {
                self.share = (self.share * 2.0).min(1.0);
            }
        }
        shrink(&mut self.rows);
        if self.order.is_empty() {
            self.share = 1.0;
        }
        self.halve_while_full();
    }

    /// Halves the share of requests until the rows fit into the limits.
    fn halve_while_full(&mut self) {
        let most = self.config.bytes / 4 * 3;
        while self.order.len() > self.config.rows || self.row_bytes > most {
            self.share /= 2.0;
            let share = self.share;
            let mut bytes = 0;
            self.rows.retain(|key, row| {
                let keep = position(*key) < share;
                bytes += if keep { row.bytes() } else { 0 };
                keep
            });
            self.row_bytes = bytes;
            self.order.retain(|(_, key)| position(*key) < share);
            // Early feedback outside the share stays unmatched, because its prediction will not be kept.
            for model in self.models.values_mut() {
                let outside = |(_, key): &(i64, Key)| position(*key) >= share;
                while model.early.front().is_some_and(outside) {
                    self.early_bytes -= drop_oldest(model, &mut self.early);
                }
            }
        }
    }

    /// Drops the figures of arms and models that have been idle for a long time.
    fn drop_idle_arms(&mut self, now: i64) {
        let limit = micros(self.config.window.max(IDLE_ARM)).unsigned_abs();
        // An arm is dropped up to a sixteenth late, so that most calls do nothing.
        if now.abs_diff(self.swept_at) < limit / 16 {
            return;
        }
        self.swept_at = now;
        for model in self.models.values_mut() {
            model.arms.retain(|_, arm| now.abs_diff(arm.last_used) <= limit);
        }
        let (early, early_bytes) = (&mut self.early, &mut self.early_bytes);
        self.models.retain(|_, model| {
            let keep = !model.arms.is_empty() || now.abs_diff(model.last_used) <= limit;
            // Feedback of a model that is dropped is older than the window.
            while !keep && !model.early.is_empty() {
                *early_bytes -= drop_oldest(model, early);
            }
            keep
        });
    }
}

/// Drops the oldest early feedback of a model. Returns its bytes.
fn drop_oldest(model: &mut Model, early: &mut HashMap<Key, EarlyFeedback>) -> usize {
    let Some((arrived, key)) = model.early.pop_front() else {
        // Nothing is left, so nothing is counted.
        return std::mem::take(&mut model.early_bytes);
    };
    // It may have found its prediction, and come again.
    if early.get(&key).is_none_or(|of_key| of_key.arrived != arrived) {
        return 0;
    }
    let bytes = early.remove(&key).map_or(0, |of_key| of_key.merged.bytes());
    model.early_bytes -= bytes;
    bytes
}

/// Gives memory back that a burst left.
fn shrink<V>(map: &mut HashMap<Key, V>) {
    if map.capacity() > 4096 && map.len() < map.capacity() / 4 {
        map.shrink_to(map.len() * 2);
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// The key of a row, and the position of its request between 0 and 1. All rows of a request have the same position, so that they
/// are kept or dropped together.
fn key(model: &ModelName, id: &str, row: u32) -> (Key, f64) {
    let mut hash = Xxh3::new();
    hash.update(model.as_str().as_bytes());
    hash.update(&[0]);
    hash.update(id.as_bytes());
    let request = hash.digest128();
    // The upper half identifies the request. The row changes only the lower half.
    let key = request ^ u128::from(u64::from(row).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (key, position(key))
}

fn position(key: Key) -> f64 {
    // The upper 53 bits.
    (key >> 75) as f64 / (1u64 << 53) as f64
}
