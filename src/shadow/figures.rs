//! The running figures of every pair of a primary and a shadow.

use super::original::Original;
use crate::compare::{Agreement, Alternation, Comparison, Pair, PairFigures};
use crate::model::{Answer, Failure, ModelName, Version};
use crate::registry::Loaded;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The running figures of all pairs. Cheap to clone; all clones share the figures. In memory only.
#[derive(Debug, Clone)]
pub struct Figures(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// How many of the worst answers are kept for each pair.
    worst: usize,
    pairs: Mutex<BTreeMap<ModelName, Vec<PairState>>>,
}

/// One primary and one shadow.
#[derive(Debug)]
struct PairState {
    figures: PairFigures,
    /// The newest revision of the traffic document that copied a request to this shadow.
    revision: u64,
    /// The agreement on requests copied under that revision. Copies made under an older one may run later and do not count here.
    of_revision: Agreement,
}

/// Pairs kept for one model. With more, the pair without a comparison for the longest time is dropped.
const MAX_PAIRS: usize = 64;

impl Default for Figures {
    fn default() -> Figures {
        Figures::new(20)
    }
}

impl Figures {
    /// Figures that keep this many of the worst answers for each pair.
    #[must_use]
    pub fn new(worst: usize) -> Figures {
        Figures(Arc::new(Shared { worst, pairs: Mutex::default() }))
    }

    /// The agreement of a shadow with these primaries, summed.
    #[must_use]
    pub fn agreement(&self, model: &ModelName, primaries: &BTreeSet<Version>, shadow: Version) -> Agreement {
        self.sum(model, primaries, shadow, |pair| pair.figures.comparable())
    }

    /// The same, only for requests copied under this revision of the traffic document.
    #[must_use]
    pub fn agreement_under(
        &self,
        revision: u64,
        model: &ModelName,
        primaries: &BTreeSet<Version>,
        shadow: Version,
    ) -> Agreement {
        let agreement =
            |pair: &PairState| if pair.revision == revision { pair.of_revision } else { Agreement::default() };
        self.sum(model, primaries, shadow, agreement)
    }

    /// The rows of scores whose highest score is another one than that of these primaries, and all such rows, over all outputs.
    #[must_use]
    pub fn top1(&self, model: &ModelName, primaries: &BTreeSet<Version>, shadow: Version) -> (u64, u64) {
        let pairs = self.lock();
        let of_model = pairs.get(model).into_iter().flatten().map(|pair| &pair.figures);
        let matching = of_model.filter(|pair| pair.shadow == shadow && primaries.contains(&pair.primary));
        let outputs = matching.flat_map(|pair| &pair.outputs);
        outputs.fold((0, 0), |(flipped, rows), output| (flipped + output.top1_flipped, rows + output.top1_rows))
    }

    fn sum(
        &self,
        model: &ModelName,
        primaries: &BTreeSet<Version>,
        shadow: Version,
        agreement: impl Fn(&PairState) -> Agreement,
    ) -> Agreement {
        let pairs = self.lock();
        let of_model = pairs.get(model).into_iter().flatten();
        let matching =
            of_model.filter(|pair| pair.figures.shadow == shadow && primaries.contains(&pair.figures.primary));
        matching.map(agreement).fold(Agreement::default(), Agreement::and)
    }

    /// Drops the figures of this version's number that belong to other bytes. Called when a version becomes ready.
    pub fn came_ready(&self, model: &ModelName, version: Version, sha256: &str) {
        let same = |of: Version, bytes: &str| of != version || bytes == sha256;
        if let Some(pairs) = self.lock().get_mut(model) {
            pairs.retain(|PairState { figures: pair, .. }| {
                same(pair.primary, &pair.sha256.0) && same(pair.shadow, &pair.sha256.1)
            });
        }
    }

    /// All pairs of a model, sorted by shadow and primary.
    #[must_use]
    pub fn of(&self, model: &ModelName) -> Vec<PairFigures> {
        let of_model = |pairs: &Vec<PairState>| pairs.iter().map(|pair| pair.figures.clone()).collect();
        let mut pairs: Vec<PairFigures> = self.lock().get(model).map(of_model).unwrap_or_default();
        pairs.sort_by_key(|pair| (pair.shadow, pair.primary));
        pairs
    }

    /// Adds one pair of outcomes. `comparison`: present where both sides answered. `alternated`: where both
    /// sides ran on this thread.
    pub(super) fn record(
        &self,
        original: &Original,
        shadow: &Loaded,
        outcome: Result<(&Answer, Duration), &Failure>,
        comparison: Option<&Comparison>,
        alternated: Option<Alternation>,
    ) {
        let mut models = self.lock();
        let context = &original.context;
        let primary = &context.identity;
        let pairs = models.entry(primary.model.clone()).or_default();
        let sha256 = (primary.facts.sha256.clone(), shadow.facts.sha256.clone());
        let is_this =
            |pair: &PairState| (pair.figures.primary, pair.figures.shadow) == (primary.version, shadow.version);
        // Figures of other bytes under these numbers do not count.
        pairs.retain(|pair| !is_this(pair) || pair.figures.sha256 == sha256);
        if !pairs.iter().any(is_this) {
            if pairs.len() >= MAX_PAIRS
                && let Some((oldest, _)) = pairs.iter().enumerate().min_by_key(|(_, pair)| pair.figures.until)
            {
                pairs.remove(oldest);
            }
            let figures = PairFigures::new(primary.version, shadow.version, sha256, Timestamp::now());
            pairs.push(PairState { figures, revision: context.revision, of_revision: Agreement::default() });
        }
        if let Some(state) = pairs.iter_mut().find(|pair| is_this(pair)) {
            let pair = Pair {
                request_id: &context.id,
                arm: &primary.arm,
                at: Timestamp::now(),
                primary: original.outcome.as_ref().map(|answer| (answer, original.timing.infer)),
                shadow: outcome,
                comparison,
                alternated,
            };
            state.record(self.0.worst, context.revision, &pair);
        }
    }

    /// Sets the figures of a pair, for tests of the rooms that read them.
    #[cfg(test)]
    pub(crate) fn pretend(
        &self,
        model: &ModelName,
        (primary, shadow): (Version, Version),
        sha256: (String, String),
        Agreement { pairs, agreed }: Agreement,
    ) {
        let mut models = self.lock();
        let of_model = models.entry(model.clone()).or_default();
        of_model.retain(|pair| (pair.figures.primary, pair.figures.shadow) != (primary, shadow));
        let figures = PairFigures { pairs, agreed, ..PairFigures::new(primary, shadow, sha256, Timestamp::now()) };
        of_model.push(PairState { figures, revision: 0, of_revision: Agreement::default() });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ModelName, Vec<PairState>>> {
        self.0.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PairState {
    /// Adds one pair of outcomes, of a request that was copied under this revision.
    fn record(&mut self, worst: usize, revision: u64, pair: &Pair) {
        let before = self.figures.comparable();
        self.figures.record(worst, pair);
        let after = self.figures.comparable();
        if revision > self.revision {
            (self.revision, self.of_revision) = (revision, Agreement::default());
        }
        if revision == self.revision {
            let added = Agreement { pairs: after.pairs - before.pairs, agreed: after.agreed - before.agreed };
            self.of_revision = self.of_revision.and(added);
        }
    }
}
