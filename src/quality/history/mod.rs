//! A sample of answered rows with their outcomes, over weeks: what figures over windows, experiments and rollouts are computed from.
//!
//! Rows are kept as they are, not as sums. So a label that comes late, twice, or in parts changes exactly the row it belongs to, and any figure
//! can be computed from them. Memory is bounded: when it is used up, half of the requests of the largest arm are dropped. A hash of the request id
//! chooses them, so what stays is a sample that has nothing to do with the answers.

mod cell;
pub mod exchange;
mod interner;
mod outcome;
mod rows;
mod snapshot;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_exchange;

pub use cell::Cell;
pub use exchange::Whole;
pub use outcome::Outcome;
pub use snapshot::{ArmOf, Snapshot};

use super::label::Predicted;
use super::window::Seen;
use crate::model::{Feedback, ModelName};
use rows::ModelRows;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where the numbers and cells of the rows of one version are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// The floating-point outputs: their names, and the places of their elements in [`Row::numbers`].
    pub outputs: Vec<(Box<str>, std::ops::Range<usize>)>,
    /// The names of [`Row::cells`]: `inputs.NAME`, or `inputs.NAME[i]` for an input with several elements in a row.
    pub cells: Vec<Box<str>>,
}

impl Layout {
    /// The most numbers of outputs that are kept of a row.
    pub const MAX_NUMBERS: usize = 64;
    /// The most columns of inputs that are kept of a row, to group rows by: four bytes each.
    pub const MAX_CELLS: usize = 256;
    /// Of an input with more elements than [`Layout::WIDE`], such as an image, only so many are kept: nobody groups rows by a pixel.
    pub const MAX_OF_WIDE: usize = 16;
    pub const WIDE: usize = 500;

    /// The scores that a label is compared with if nothing else is named: the first output with several numbers.
    #[must_use]
    pub fn scores(&self) -> Option<std::ops::Range<usize>> {
        self.outputs.iter().map(|(_, place)| place.clone()).find(|place| place.len() > 1)
    }

    /// The first output with one number.
    #[must_use]
    pub fn number(&self) -> Option<usize> {
        self.outputs.iter().find(|(_, place)| place.len() == 1).map(|(_, place)| place.start)
    }
}

/// What is kept of the answer and the inputs of one row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Contents {
    pub numbers: Box<[f64]>,
    pub cells: Vec<Value>,
}

/// A value of an input, before it is kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Missing,
    Number(f64),
    Text(String),
}

/// One answered row.
#[derive(Debug, Clone)]
pub struct Row {
    /// A hash of the request id and the row.
    key: u64,
    /// A hash of the request id. Rows with a small one are kept longest.
    position: u32,
    /// The arm, as [`Snapshot::arm`] numbers it.
    pub arm: u16,
    /// Whether the unit is a sticky key; else it is the request.
    pub is_key: bool,
    /// Microseconds since 1970, UTC.
    pub ts: i64,
    /// A hash of the sticky key, or of the request id.
    pub unit: u64,
    pub predicted: Predicted,
    /// The floating-point outputs, at the places that [`Layout::outputs`] gives.
    pub numbers: Box<[f64]>,
    cells: Box<[cell::Packed]>,
    pub outcome: Option<Box<Outcome>>,
}

impl Row {
    /// A hash of the request id.
    #[must_use]
    pub fn request(&self) -> u64 {
        u64::from(self.position)
    }

    /// The value of the input at a place of [`Layout::cells`]. `None` beyond the last.
    #[must_use]
    pub fn cell(&self, place: usize) -> Option<Cell> {
        self.cells.get(place).map(|packed| packed.cell())
    }

    /// Whether the row is in the sample that halves the requests this many times.
    #[must_use]
    pub fn is_within(&self, halvings: u32) -> bool {
        self.position.leading_zeros() >= halvings
    }
}

/// The store. Clones share one.
#[derive(Debug, Clone)]
pub struct History(Arc<Store>);

#[derive(Debug)]
struct Store {
    /// The most bytes of all models together, and how long rows are kept.
    bytes: usize,
    keep: Duration,
    held: AtomicUsize,
    /// Rows from before the start are still read from the log.
    reading: AtomicBool,
    models: Mutex<BTreeMap<ModelName, Arc<Model>>>,
    /// The other gateways of a fleet, and how long feedback waits for their rows, in microseconds.
    others: Mutex<Option<(Arc<dyn exchange::Others>, i64)>>,
}

#[derive(Debug, Default)]
struct Model {
    rows: Mutex<ModelRows>,
    /// Its part of [`Store::held`].
    held: AtomicUsize,
}

impl Model {
    fn lock(&self) -> MutexGuard<'_, ModelRows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History {
    /// `keep`: rows older than this are dropped. `bytes`: the most that all rows take.
    #[must_use]
    pub fn new(keep: Duration, bytes: usize) -> History {
        let (held, reading, models) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::default());
        History(Arc::new(Store { bytes, keep, held, reading, models, others: Mutex::default() }))
    }

    /// How long rows are kept.
    #[must_use]
    pub fn keep(&self) -> Duration {
        self.0.keep
    }

    /// Says whether rows from before the start are still read from the log.
    pub fn set_reading(&self, reading: bool) {
        self.0.reading.store(reading, Ordering::Release);
    }

    /// `complete`, or `reading` while rows from before the start are still read from the log.
    #[must_use]
    pub fn state(&self) -> &'static str {
        if self.0.reading.load(Ordering::Acquire) { "reading" } else { "complete" }
    }

    /// Keeps a row, if it is in the sample. The same row twice is kept once. `contents` is called only for a row that is kept. `now` and the
    /// row's time are in microseconds since 1970: a row that is too old is not kept.
    pub fn record_prediction(
        &self,
        seen: &Seen,
        layout: &Arc<Layout>,
        now: i64,
        contents: impl FnOnce() -> (Predicted, Contents),
    ) {
        if now.saturating_sub(seen.ts) > self.keep_us() {
            return;
        }
        let model = self.model(seen.model);
        self.change(&model, |rows| rows.insert(seen, layout, contents));
    }

    /// Merges feedback into its rows. Feedback whose row is not known waits for it, for a while. `received_at` is in microseconds since 1970.
    pub fn record_feedback(&self, model: &ModelName, entries: &[Feedback], received_at: i64) {
        let model = self.model(model);
        self.change(&model, |rows| entries.iter().for_each(|entry| rows.merge(entry, received_at)));
    }

    /// Drops rows that are too old. `now` is in microseconds since 1970.
    pub fn expire(&self, now: i64) {
        let limit = now.saturating_sub(self.keep_us());
        let models: Vec<Arc<Model>> = self.models().values().cloned().collect();
        for model in models {
            self.change(&model, |rows| rows.expire(limit, now));
        }
        // A model without rows is known again by its next row. One that somebody else has got is about to have one.
        self.models().retain(|_, model| {
            let keep = Arc::strong_count(model) > 1 || !model.lock().is_empty();
            if !keep {
                self.set_held(model, 0);
            }
            keep
        });
    }

    /// The rows of a model from `from` on, as they are now. Later changes do not change what is returned.
    #[must_use]
    pub fn snapshot(&self, model: &ModelName, from: i64) -> Snapshot {
        let known = self.models().get(model).cloned();
        known.map_or_else(Snapshot::default, |model| model.lock().snapshot(from))
    }

    /// The models that have rows.
    #[must_use]
    pub fn known(&self) -> Vec<ModelName> {
        self.models().keys().cloned().collect()
    }

    /// The bytes of all rows.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    fn keep_us(&self) -> i64 {
        i64::try_from(self.0.keep.as_micros()).unwrap_or(i64::MAX)
    }

    fn models(&self) -> MutexGuard<'_, BTreeMap<ModelName, Arc<Model>>> {
        self.0.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn model(&self, name: &ModelName) -> Arc<Model> {
        let mut models = self.models();
        if let Some(known) = models.get(name) {
            return Arc::clone(known);
        }
        let model = Arc::clone(models.entry(name.clone()).or_default());
        let others = self.0.others.lock().unwrap_or_else(PoisonError::into_inner);
        model.lock().wait_for(others.as_ref().map(|(_, keep)| *keep));
        model
    }

    /// Changes a model's rows, and makes room if there are too many bytes then.
    fn change(&self, model: &Arc<Model>, change: impl FnOnce(&mut ModelRows)) {
        let mut rows = model.lock();
        change(&mut rows);
        let after = rows.bytes();
        drop(rows);
        self.set_held(model, after);
        while self.bytes() > self.0.bytes {
            let models = self.models();
            let held = |model: &Arc<Model>| model.held.load(Ordering::Relaxed);
            let Some(largest) = models.values().max_by_key(|model| held(model)).cloned() else { return };
            drop(models);
            let mut rows = largest.lock();
            let before = rows.bytes();
            rows.halve();
            let after = rows.bytes();
            drop(rows);
            self.set_held(&largest, after);
            if after >= before {
                return;
            }
        }
    }

    fn set_held(&self, model: &Model, bytes: usize) {
        let before = model.held.swap(bytes, Ordering::Relaxed);
        self.0.held.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed);
    }
}
