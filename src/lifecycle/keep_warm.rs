//! Keep warm: a version that `versions` would drop stays ready for a while after a document named it last, so that a rollback to it
//! is one atomic store. It gives way to whatever is wanted for good.

use super::manager::Manager;
use super::policy::Leave;
use super::table::Model;
use crate::model::{Version, VersionId};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tracing::info;

/// When a document named a version last: on the clock that cannot be set, and as people read it.
#[derive(Debug, Clone, Copy)]
pub struct Left {
    at: Instant,
    ts: Timestamp,
}

impl Left {
    fn now() -> Left {
        Left { at: Instant::now(), ts: Timestamp::now() }
    }

    /// Whether it is warm no longer.
    fn is_over(&self, keep: Duration) -> bool {
        self.at.elapsed() >= keep
    }

    fn until(&self, keep: Duration) -> Timestamp {
        // Past the year 9999 it is as good as any other time.
        jiff::SignedDuration::try_from(keep).ok().and_then(|keep| self.ts.checked_add(keep).ok()).unwrap_or(self.ts)
    }
}

impl Model {
    /// The document changed: what it names no longer may be rolled back to.
    pub(super) fn names(&mut self, before: &BTreeSet<Version>, after: &BTreeSet<Version>) {
        self.left.retain(|version, _| !after.contains(version));
        self.left.extend(before.difference(after).map(|version| (*version, Left::now())));
    }
}

impl Manager {
    /// Which versions of a model ought to be loaded, those that are kept warm among them; looks again when the time of one is over.
    pub(super) fn wanted_now(&mut self, model: &mut Model) -> BTreeMap<Version, Result<(), Leave>> {
        model.warm.clear();
        let wanted = model.wanted();
        let keep = model.settings.keep_warm.unwrap_or(self.config.keep_warm);
        model.left.retain(|_, left| !left.is_over(keep));
        let warm = |v: &Version| wanted.get(v) == Some(&Err(Leave::NotKept)) && model.is_callable(*v);
        model.warm = model.left.iter().filter(|(v, _)| warm(v)).map(|(v, left)| (*v, left.until(keep))).collect();
        for version in model.warm.keys() {
            self.wake_at(model.left[version].at + keep, &model.name);
        }
        model.wanted()
    }

    /// Lets go of versions that are only kept warm, those that left first, so that `id` fits; answers whether that will do. None
    /// goes when it will not.
    pub(super) fn cool(&mut self, model: &Model, id: &VersionId, bytes: u64) -> bool {
        let missing = self.budget.missing(bytes);
        let mut room = self.drains_bytes();
        let mut warm: Vec<(Instant, VersionId, u64)> = Vec::new();
        for of in self.models.values().chain([model]) {
            for (version, left) in of.left.iter().filter(|(version, _)| of.warm.contains_key(version)) {
                let facts = of.lives.get(version).and_then(|life| life.facts.as_ref());
                warm.push((left.at, of.id(*version), facts.map_or(0, |facts| facts.bytes)));
            }
        }
        warm.sort_by_key(|(left, ..)| *left);
        let mut cooled = Vec::new();
        for (_, version, bytes) in warm {
            if room < missing {
                room += bytes;
                cooled.push(version);
            }
        }
        if room < missing || cooled.is_empty() {
            return false;
        }
        for version in &cooled {
            info!(model = %version.model, version = %version.version, "kept warm no longer, to make room for {id}");
        }
        self.cooled.extend(cooled);
        true
    }
}
