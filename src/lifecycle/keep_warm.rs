//! Keep warm: a version that `versions` leaves out stays ready for a while after a document named it last, so that a rollback to it
//! needs no load. Its memory is released when a version that is wanted permanently needs it.

use super::manager::Manager;
use super::model_record::Model;
use super::policy::UnloadReason;
use super::services::Services;
use crate::model::{Version, VersionId};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tracing::info;

/// When a document named a version last: on the monotonic clock, and as a time of day for people.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastNamed {
    at: Instant,
    ts: Timestamp,
}

impl LastNamed {
    fn now() -> LastNamed {
        LastNamed { at: Instant::now(), ts: Timestamp::now() }
    }

    fn is_over(&self, keep: Duration) -> bool {
        self.at.elapsed() >= keep
    }

    fn until(&self, keep: Duration) -> Timestamp {
        // A time after the year 9999 cannot be shown, so the time of naming stands in.
        jiff::SignedDuration::try_from(keep).ok().and_then(|keep| self.ts.checked_add(keep).ok()).unwrap_or(self.ts)
    }
}

impl Model {
    /// Records a change of the document: a rollback may need the versions that it no longer names.
    pub(super) fn update_last_named(&mut self, before: &BTreeSet<Version>, after: &BTreeSet<Version>) {
        self.last_named.retain(|version, _| !after.contains(version));
        self.last_named.extend(before.difference(after).map(|version| (*version, LastNamed::now())));
    }
}

impl Services {
    /// Which versions of a model should be loaded, including those that are kept warm. Schedules a look for when that ends.
    pub(super) fn wanted_now(&mut self, model: &mut Model) -> BTreeMap<Version, Result<(), UnloadReason>> {
        model.kept_warm.clear();
        let wanted = model.wanted();
        let keep = model.settings.keep_warm.unwrap_or(self.config.keep_warm);
        model.last_named.retain(|_, last| !last.is_over(keep));
        let warm = |v: &Version| wanted.get(v) == Some(&Err(UnloadReason::ExcludedBySettings)) && model.is_callable(*v);
        model.kept_warm =
            model.last_named.iter().filter(|(v, _)| warm(v)).map(|(v, last)| (*v, last.until(keep))).collect();
        for version in model.kept_warm.keys() {
            // A time that the clock cannot express never comes.
            if let Some(end) = model.last_named[version].at.checked_add(keep) {
                self.schedule.look_at(end, &model.name);
            }
        }
        model.wanted()
    }
}

impl Manager {
    /// Releases versions that are only kept warm, the least recently named first, until `missing` bytes are free for `id`. Returns
    /// whether that is enough. Releases none where it is not.
    pub(super) fn release_kept_warm(&mut self, id: &VersionId, missing: u64) -> bool {
        let mut warm: Vec<(Instant, VersionId, u64)> = Vec::new();
        for model in self.models.values() {
            for (version, last) in model.last_named.iter().filter(|(version, _)| model.kept_warm.contains_key(version))
            {
                let facts = model.versions.get(version).and_then(|record| record.facts.as_ref());
                warm.push((last.at, model.id(*version), facts.map_or(0, |facts| facts.bytes)));
            }
        }
        warm.sort_by_key(|(last_named, ..)| *last_named);
        let mut released = Vec::new();
        let mut room = 0;
        for (_, version, bytes) in warm {
            if room < missing {
                room += bytes;
                released.push(version);
            }
        }
        if room < missing {
            return false;
        }
        for version in &released {
            info!(model = %version.model, version = %version.version, "no longer kept warm, to make room for {id}");
        }
        self.services.evictions.no_longer_warm.extend(released);
        true
    }
}
