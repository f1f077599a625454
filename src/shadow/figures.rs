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
    pairs: Mutex<BTreeMap<ModelName, Vec<Known>>>,
}

/// One primary and one shadow.
#[derive(Debug)]
struct Known {
    figures: PairFigures,
    /// The newest document that copied a request to it, and what came of those it copied: copies that were drawn under an older one
    /// are run when their turn comes, and say nothing of what this one began.
    revision: u64,
    under: Agreement,
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
        self.sum(model, primaries, shadow, |known| known.figures.comparable())
    }

    /// The same, of the requests alone that the document of this revision copied.
    #[must_use]
    pub fn agreement_under(
        &self,
        revision: u64,
        model: &ModelName,
        primaries: &BTreeSet<Version>,
        shadow: Version,
    ) -> Agreement {
        let of_it = |known: &Known| if known.revision == revision { known.under } else { Agreement::default() };
        self.sum(model, primaries, shadow, of_it)
    }

    fn sum(
        &self,
        model: &ModelName,
        primaries: &BTreeSet<Version>,
        shadow: Version,
        of: impl Fn(&Known) -> Agreement,
    ) -> Agreement {
        let pairs = self.lock();
        let these = pairs.get(model).into_iter().flatten();
        let these = these.filter(|known| known.figures.shadow == shadow && primaries.contains(&known.figures.primary));
        these.map(of).fold(Agreement::default(), Agreement::and)
    }

    /// A version came ready with these bytes: what is known of other bytes under its number says nothing of it.
    pub fn came_ready(&self, model: &ModelName, version: Version, sha256: &str) {
        let same = |of: Version, bytes: &str| of != version || bytes == sha256;
        if let Some(pairs) = self.lock().get_mut(model) {
            pairs.retain(|Known { figures: pair, .. }| {
                same(pair.primary, &pair.sha256.0) && same(pair.shadow, &pair.sha256.1)
            });
        }
    }

    /// All pairs of a model, by shadow and primary.
    #[must_use]
    pub fn of(&self, model: &ModelName) -> Vec<PairFigures> {
        let of_model = |known: &Vec<Known>| known.iter().map(|known| known.figures.clone()).collect();
        let mut pairs: Vec<PairFigures> = self.lock().get(model).map(of_model).unwrap_or_default();
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
        let of_these =
            |known: &Known| (known.figures.primary, known.figures.shadow) == (original.primary, shadow.version);
        // Other bytes begin anew.
        pairs.retain(|known| !of_these(known) || known.figures.sha256 == sha256);
        if !pairs.iter().any(of_these) {
            if pairs.len() >= PAIRS
                && let Some(quiet) = (0..pairs.len()).min_by_key(|i| pairs[*i].figures.until)
            {
                pairs.remove(quiet);
            }
            let figures = PairFigures::new(original.primary, shadow.version, sha256, Timestamp::now());
            pairs.push(Known { figures, revision: original.revision, under: Agreement::default() });
        }
        if let Some(known) = pairs.iter_mut().find(|known| of_these(known)) {
            let pair = Pair {
                request_id: &original.request_id,
                arm: &original.arm,
                at: Timestamp::now(),
                primary: original.outcome.as_ref().map(|answer| (answer, original.infer)),
                shadow: outcome,
                comparison,
            };
            known.record(self.0.worst, original.revision, &pair);
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
        known.retain(|known| (known.figures.primary, known.figures.shadow) != (primary, shadow));
        let figures = PairFigures { pairs, agreed, ..PairFigures::new(primary, shadow, sha256, Timestamp::now()) };
        known.push(Known { figures, revision: 0, under: Agreement::default() });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ModelName, Vec<Known>>> {
        self.0.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Takes in one pair, of a request that was copied under this revision.
    fn record(&mut self, worst: usize, revision: u64, pair: &Pair) {
        let before = self.figures.comparable();
        self.figures.record(worst, pair);
        let after = self.figures.comparable();
        if revision > self.revision {
            (self.revision, self.under) = (revision, Agreement::default());
        }
        if revision == self.revision {
            let this = Agreement { pairs: after.pairs - before.pairs, agreed: after.agreed - before.agreed };
            self.under = self.under.and(this);
        }
    }
}
