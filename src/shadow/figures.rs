//! What is known of every pair of a primary and a shadow.

use super::original::Original;
use crate::compare::{Agreement, Comparison, Pair, PairFigures};
use crate::model::{Answer, Failure, ModelName, Version};
use crate::registry::Loaded;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The running figures of all pairs; cheap to clone, every clone is the same. In memory only.
#[derive(Debug, Clone)]
pub struct Figures(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    /// How many of the worst pairs are kept, of each primary and shadow.
    worst: usize,
    pairs: Mutex<BTreeMap<ModelName, Vec<PairFigures>>>,
}

/// Pairs of one model that are kept; with more, those that have been quiet longest go.
const PAIRS: usize = 64;

impl Default for Figures {
    fn default() -> Figures {
        Figures::new(20)
    }
}

impl Figures {
    /// Keeps so many of the worst pairs.
    #[must_use]
    pub fn new(worst: usize) -> Figures {
        Figures(Arc::new(Kept { worst, pairs: Mutex::default() }))
    }

    /// How a shadow agreed with any of these primaries, together.
    #[must_use]
    pub fn agreement(&self, model: &ModelName, primaries: &BTreeSet<Version>, shadow: Version) -> Agreement {
        let pairs = self.lock();
        let these = pairs.get(model).into_iter().flatten();
        let these = these.filter(|pair| pair.shadow == shadow && primaries.contains(&pair.primary));
        these.fold(Agreement::default(), |sum, pair| Agreement {
            pairs: sum.pairs + pair.pairs - pair.both_failed,
            agreed: sum.agreed + pair.agreed,
        })
    }

    /// A version came ready with these bytes: what is known of other bytes under its number says nothing of it.
    pub fn came_ready(&self, model: &ModelName, version: Version, sha256: &str) {
        let same = |of: Version, bytes: &str| of != version || bytes == sha256;
        if let Some(pairs) = self.lock().get_mut(model) {
            pairs.retain(|pair| same(pair.primary, &pair.sha256.0) && same(pair.shadow, &pair.sha256.1));
        }
    }

    /// All pairs of a model, by shadow and primary.
    #[must_use]
    pub fn of(&self, model: &ModelName) -> Vec<PairFigures> {
        let mut pairs = self.lock().get(model).cloned().unwrap_or_default();
        pairs.sort_by_key(|pair| (pair.shadow, pair.primary));
        pairs
    }

    /// Takes in one pair. `comparison` where both sides answered.
    pub(super) fn record(
        &self,
        original: &Original,
        shadow: &Loaded,
        outcome: Result<(&Answer, Duration), &Failure>,
        comparison: Option<&Comparison>,
    ) {
        let mut models = self.lock();
        let pairs = models.entry(original.model.clone()).or_default();
        let sha256 = (original.facts.sha256.clone(), shadow.facts.sha256.clone());
        let of_these = |pair: &PairFigures| (pair.primary, pair.shadow) == (original.primary, shadow.version);
        // Other bytes begin anew.
        pairs.retain(|pair| !of_these(pair) || pair.sha256 == sha256);
        if !pairs.iter().any(of_these) {
            if pairs.len() >= PAIRS
                && let Some(quiet) = (0..pairs.len()).min_by_key(|i| pairs[*i].until)
            {
                pairs.remove(quiet);
            }
            pairs.push(PairFigures::new(original.primary, shadow.version, sha256, Timestamp::now()));
        }
        if let Some(figures) = pairs.iter_mut().find(|pair| of_these(pair)) {
            let pair = Pair {
                request_id: &original.request_id,
                arm: &original.arm,
                at: Timestamp::now(),
                primary: original.outcome.as_ref().map(|answer| (answer, original.infer)),
                shadow: outcome,
                comparison,
            };
            figures.record(self.0.worst, &pair);
        }
    }

    /// As if so many pairs had been compared, of versions with these bytes: for tests of those who read them.
    #[cfg(test)]
    pub(crate) fn pretend(
        &self,
        model: &ModelName,
        (primary, shadow): (Version, Version),
        sha256: (String, String),
        Agreement { pairs, agreed }: Agreement,
    ) {
        let mut models = self.lock();
        let known = models.entry(model.clone()).or_default();
        known.retain(|pair| (pair.primary, pair.shadow) != (primary, shadow));
        known.push(PairFigures { pairs, agreed, ..PairFigures::new(primary, shadow, sha256, Timestamp::now()) });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ModelName, Vec<PairFigures>>> {
        self.0.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
