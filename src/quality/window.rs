//! Recent predictions, waiting for what will be told about them; and what was told before its prediction.

use super::figures::Figures;
use super::fit::Predicted;
use crate::model::{Feedback, ModelName, Version};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use xxhash_rust::xxh3::Xxh3;

/// How much of the recent past is joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Rows that may wait for feedback, over all models. Some 200 bytes each.
    pub rows: usize,
    /// How far back. Where more rows than may wait come in that time, a share of the requests is kept, chosen by a hash of their ids,
    /// that halves and doubles.
    pub window: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config { rows: 250_000, window: Duration::from_hours(1) }
    }
}

/// One row that was answered.
#[derive(Debug)]
pub struct Seen<'a> {
    pub model: &'a ModelName,
    pub version: Version,
    pub arm: &'a str,
    pub request_id: &'a str,
    pub row: u32,
    /// Microseconds since 1970, UTC.
    pub ts: i64,
}

/// The live join. Cheap to clone, every clone is the same. In memory only: a restart begins anew.
#[derive(Debug, Clone)]
pub struct Quality(Arc<Mutex<Window>>);

/// What is known of one model.
#[derive(Debug, Clone, Default)]
pub struct ModelQuality {
    /// By version and arm.
    pub arms: BTreeMap<(Version, String), Figures>,
    /// Entries of feedback that were taken for it.
    pub feedback: u64,
    /// Entries whose prediction is not among those the window keeps: unknown, too long ago, or not there yet.
    pub unmatched: u64,
    /// Entries about requests that are not among the share that is kept.
    pub left_out: u64,
    /// The share of requests that is kept now.
    pub share: f64,
}

/// A hash of model, request id and row, wide enough that two never meet.
type Key = u128;

#[derive(Debug)]
struct Window {
    config: Config,
    rows: HashMap<Key, Row>,
    /// By when they came; some may be gone from the map.
    order: VecDeque<(i64, Key)>,
    /// Told before its prediction, or about one that is not kept. Bounded as the rows are, the oldest go first.
    early: HashMap<Key, Early>,
    early_order: VecDeque<(i64, Key)>,
    /// Requests whose hash is below this are kept.
    share: f64,
    models: BTreeMap<ModelName, Model>,
}

#[derive(Debug, Default)]
struct Model {
    /// Few, so a list.
    arms: Vec<(Version, String, Figures)>,
    feedback: u64,
    matched: u64,
    left_out: u64,
}

#[derive(Debug)]
struct Row {
    ts: i64,
    /// The index among its model's arms.
    arm: usize,
    predicted: Predicted,
    told: Option<Box<Feedback>>,
}

#[derive(Debug)]
struct Early {
    told: Feedback,
    /// When the first of them says it happened.
    first: i64,
    /// How many entries were told of it.
    entries: u64,
}

impl Default for Quality {
    fn default() -> Quality {
        Quality::new(Config::default())
    }
}

impl Quality {
    #[must_use]
    pub fn new(config: Config) -> Quality {
        Quality(Arc::new(Mutex::new(Window {
            config,
            rows: HashMap::new(),
            order: VecDeque::new(),
            early: HashMap::new(),
            early_order: VecDeque::new(),
            share: 1.0,
            models: BTreeMap::new(),
        })))
    }

    /// A row was answered; `predicted` is asked only where it is kept.
    pub fn predicted(&self, seen: &Seen, predicted: impl FnOnce() -> Predicted) {
        self.lock().predicted(seen, predicted);
    }

    /// Something was told about a model's predictions.
    pub fn told(&self, model: &ModelName, entries: Vec<Feedback>, now: i64) {
        let mut window = self.lock();
        for entry in entries {
            window.told(model, entry, now);
        }
    }

    /// What is known of a model.
    #[must_use]
    pub fn of(&self, model: &ModelName) -> ModelQuality {
        let window = self.lock();
        let known = window.models.get(model);
        ModelQuality { share: window.share, ..known.map_or_else(ModelQuality::default, Model::shown) }
    }

    /// What is known of all models that anything is known of.
    #[must_use]
    pub fn all(&self) -> Vec<(ModelName, ModelQuality)> {
        let window = self.lock();
        let shown = |model: &Model| ModelQuality { share: window.share, ..model.shown() };
        window.models.iter().map(|(name, model)| (name.clone(), shown(model))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Model {
    fn shown(&self) -> ModelQuality {
        ModelQuality {
            arms: self.arms.iter().map(|(version, arm, figures)| ((*version, arm.clone()), figures.clone())).collect(),
            feedback: self.feedback,
            unmatched: self.feedback - self.matched - self.left_out,
            left_out: self.left_out,
            share: 1.0,
        }
    }
}

impl Window {
    fn predicted(&mut self, seen: &Seen, predicted: impl FnOnce() -> Predicted) {
        let (key, place) = key(seen.model, seen.request_id, seen.row);
        if place >= self.share {
            return;
        }
        if !self.models.contains_key(seen.model) {
            self.models.insert(seen.model.clone(), Model::default());
        }
        let Some(model) = self.models.get_mut(seen.model) else { return };
        let same = |(version, arm, _): &(Version, String, Figures)| *version == seen.version && arm == seen.arm;
        let arm = model.arms.iter().position(same).unwrap_or_else(|| {
            model.arms.push((seen.version, seen.arm.to_owned(), Figures::default()));
            model.arms.len() - 1
        });
        let figures = &mut model.arms[arm].2;
        figures.predictions += 1;
        let mut row = Row { ts: seen.ts, arm, predicted: predicted(), told: None };
        if let Some(Early { told, first, entries }) = self.early.remove(&key) {
            model.matched += entries;
            figures.told_first(seen.ts, first);
            figures.add(&row.predicted, &told);
            row.told = Some(Box::new(told));
        }
        // An id that is used again is about the newest prediction.
        self.rows.insert(key, row);
        self.order.push_back((seen.ts, key));
        self.make_room(seen.ts);
    }

    fn told(&mut self, model: &ModelName, entry: Feedback, now: i64) {
        let (key, place) = key(model, &entry.request_id, entry.row);
        let of_model = self.models.entry(model.clone()).or_default();
        of_model.feedback += 1;
        if place >= self.share {
            of_model.left_out += 1;
        } else if let Some(row) = self.rows.get_mut(&key) {
            of_model.matched += 1;
            let figures = &mut of_model.arms[row.arm].2;
            match &row.told {
                Some(before) if before.ts > entry.ts => return,
                Some(before) => figures.take(&row.predicted, before),
                None => figures.told_first(row.ts, entry.ts),
            }
            figures.add(&row.predicted, &entry);
            row.told = Some(Box::new(entry));
        } else {
            self.keep_early(key, entry, now);
        }
    }

    fn keep_early(&mut self, key: Key, entry: Feedback, now: i64) {
        if let Some(early) = self.early.get_mut(&key) {
            early.entries += 1;
            if entry.ts >= early.told.ts {
                early.told = entry;
            }
            return;
        }
        self.early.insert(key, Early { first: entry.ts, told: entry, entries: 1 });
        self.early_order.push_back((now, key));
        while self.early_order.len() > self.config.rows {
            if let Some((_, key)) = self.early_order.pop_front() {
                self.early.remove(&key);
            }
        }
    }

    /// Lets go of what is too old, and of half of the requests where that is not enough.
    fn make_room(&mut self, now: i64) {
        let window = i64::try_from(self.config.window.as_micros()).unwrap_or(i64::MAX);
        while let Some((ts, key)) = self.order.front()
            && now - ts > window
        {
            if self.rows.get(key).is_some_and(|row| row.ts == *ts) {
                self.rows.remove(key);
            }
            self.order.pop_front();
            if self.share < 1.0 && self.order.len() < self.config.rows / 4 {
                self.share = (self.share * 2.0).min(1.0);
            }
        }
        if self.order.len() <= self.config.rows {
            return;
        }
        self.share /= 2.0;
        let share = self.share;
        self.rows.retain(|key, _| place(*key) < share);
        self.order.retain(|(_, key)| place(*key) < share);
        // Those stay unmatched: their prediction will not be kept.
        self.early.retain(|key, _| place(*key) < share);
        self.early_order.retain(|(_, key)| place(*key) < share);
    }
}

/// The key of a row, and the place of its request between 0 and 1: the rows of one request are kept together.
fn key(model: &ModelName, id: &str, row: u32) -> (Key, f64) {
    let mut hash = Xxh3::new();
    hash.update(model.as_str().as_bytes());
    hash.update(&[0]);
    hash.update(id.as_bytes());
    let request = hash.digest128();
    // The upper half says which request; the row is mixed into the lower.
    let key = request ^ u128::from(u64::from(row).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (key, place(key))
}

fn place(key: Key) -> f64 {
    // The upper 53 bits.
    (key >> 75) as f64 / (1u64 << 53) as f64
}
