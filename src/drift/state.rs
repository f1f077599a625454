//! What is watched, and the two halves of the work: counting, and judging what was counted.

use super::analysis::Analysis;
use super::hot::{FIRST_DAY_BYTES, FIRST_DAY_ROWS, FirstDay, Hot, ModelHot, Seen, VersionHot};
use super::plan::{Plan, Reference, first_day_columns};
use super::settings::Settings;
use super::together::Sharing;
use super::window::HOUR;
use crate::columns::{Cell, Column, ElementNames};
use crate::model::{ModelName, Signature, Version};
use crate::profile::{Builder, Profile};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Limits of the counting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// Values that are counted in a second, over all models. Beyond it a share of the requests is counted.
    pub cells_per_second: f64,
    /// Bytes of all counts.
    pub bytes: usize,
}

impl Default for Config {
    fn default() -> Config {
        // A hundredth of a core is 10 ms a second: 100 ns for each value.
        Config { cells_per_second: 100_000.0, bytes: 64 << 20 }
    }
}

/// Counts and judges. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Drift(pub(super) Arc<Shared>);

#[derive(Debug, Default)]
pub(super) struct Shared {
    config: Config,
    hot: Mutex<Hot>,
    analysis: Mutex<Analysis>,
    pub(super) sharing: Mutex<Sharing>,
}

/// A version that is watched.
#[derive(Debug)]
pub struct Watch<'a> {
    pub model: &'a ModelName,
    pub version: Version,
    pub signature: &'a Signature,
    pub names: &'a ElementNames,
    /// Tensors that are not recorded as they are: `inputs.NAME`.
    pub hidden: BTreeSet<String>,
    /// Absent: the version's own first day is the reference.
    pub profile: Option<&'a Arc<Profile>>,
    pub settings: &'a Settings,
}

/// What a plan was made from.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    pub signature: Signature,
    pub names: ElementNames,
    pub hidden: BTreeSet<String>,
    pub profile: Option<Arc<Profile>>,
    pub settings: Settings,
    /// The profile of the first day, once there is one.
    pub first_day: Option<Arc<Profile>>,
}

impl Watched {
    fn is_of(&self, watch: &Watch) -> bool {
        let same_profile = match (&self.profile, watch.profile) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one == other,
            _ => false,
        };
        same_profile
            && self.signature == *watch.signature
            && self.names == *watch.names
            && self.hidden == watch.hidden
            && self.settings == *watch.settings
    }

    /// The plan; `None` while there is no reference.
    fn plan(&self) -> Option<Plan> {
        let (reference, profile) = match (&self.profile, &self.first_day) {
            (Some(profile), _) => (Reference::Profile, profile),
            (None, Some(first_day)) => (Reference::FirstDay, first_day),
            (None, None) => return None,
        };
        Some(Plan::new(reference, profile, &self.signature, &self.names, &self.hidden, &self.settings))
    }
}

impl Drift {
    #[must_use]
    pub fn new(config: Config) -> Drift {
        Drift(Arc::new(Shared { config, ..Shared::default() }))
    }

    /// Watches a version from now on, as `watch` says. Does nothing if it is watched so already.
    pub fn watch(&self, watch: &Watch) {
        let first_day = self.analysis().first_day(watch.model, watch.version);
        let watched = {
            let hot = self.hot();
            let known = hot.models.get(watch.model).and_then(|model| model.versions.get(&watch.version));
            if known.is_some_and(|known| known.watched.is_of(watch)) {
                return;
            }
            Watched {
                signature: watch.signature.clone(),
                names: watch.names.clone(),
                hidden: watch.hidden.clone(),
                profile: watch.profile.cloned(),
                settings: watch.settings.clone(),
                first_day: known.and_then(|known| known.watched.first_day.clone()).or(first_day),
            }
        };
        // Made without a lock, as it takes long.
        let plan = if watched.settings.enabled { watched.plan().map(Arc::new) } else { None };
        let columns = first_day_columns(&watched.signature, &watched.names, &watched.hidden);
        let needs_first_day = plan.is_none() && watched.settings.enabled;
        let mut hot = self.hot();
        let room = self.0.config.bytes.saturating_sub(hot.bytes);
        let bytes = columns.len() * FIRST_DAY_BYTES;
        let attached = plan.clone();
        let first_day = (needs_first_day && bytes <= room).then(|| FirstDay {
            builders: vec![Builder::new(FIRST_DAY_ROWS); columns.len()],
            columns,
            from: 0,
            to: i64::MIN,
            rows: 0,
        });
        hot.bytes += if first_day.is_some() { bytes } else { 0 };
        let model = hot.models.entry(watch.model.clone()).or_insert_with(ModelHot::new);
        let before = model.versions.remove(&watch.version);
        let mut freed = before.as_ref().map_or(0, VersionHot::bytes);
        let mut next = VersionHot { watched, plan, first_day, arms: Vec::new(), left_out: 0 };
        let bins = |of: &VersionHot| of.plan.as_ref().map(|plan| plan.digest);
        if let Some(before) = before.filter(|before| bins(before).is_some() && bins(before) == bins(&next)) {
            // Only other settings: the counts of the open hour are still right.
            next.arms = before.arms;
            freed = 0;
        }
        model.versions.insert(watch.version, next);
        hot.bytes = hot.bytes.saturating_sub(freed);
        drop(hot);
        if let Some(plan) = attached {
            self.analysis().attach(watch.model, watch.version, &plan);
        }
    }

    /// Counts a record of a version that is watched. `read` calls its last argument with the index and the cell of each of these columns,
    /// in a row of the record.
    pub fn observe<'f>(&self, seen: &Seen, mut read: impl FnMut(&[Column], usize, &mut dyn FnMut(usize, Cell<'f>))) {
        let Config { cells_per_second, bytes } = self.0.config;
        self.hot().observe(seen, cells_per_second, bytes, &mut read);
    }

    /// Judges what has ended. `now` is in microseconds since 1970, UTC.
    pub fn work(&self, now: i64) {
        self.end_first_days(now);
        // Records of the last hour may still wait to be written.
        let hour = now.saturating_sub(HOUR / 60).div_euclid(HOUR);
        self.hot().end_hours(hour);
        if self.gather(hour) {
            return;
        }
        loop {
            // Not in the loop's condition, where the lock would be held for its body.
            let ended = self.hot().ended.pop_front();
            let Some(ended) = ended else { break };
            self.analysis().add(ended);
        }
        self.analysis().end_windows(hour);
    }

    /// Makes references of first days that are over.
    fn end_first_days(&self, now: i64) {
        let mut done = Vec::new();
        {
            let mut hot = self.hot();
            let mut freed = 0;
            for (name, model) in &mut hot.models {
                for (version, of) in &mut model.versions {
                    let is_over =
                        |day: &FirstDay| day.rows >= FIRST_DAY_ROWS as u64 && now.saturating_sub(day.from) >= 24 * HOUR;
                    if of.first_day.as_ref().is_some_and(is_over)
                        && let Some(day) = of.first_day.take()
                    {
                        freed += day.builders.len() * FIRST_DAY_BYTES;
                        done.push((name.clone(), *version, day));
                    }
                }
            }
            hot.bytes = hot.bytes.saturating_sub(freed);
        }
        for (name, version, day) in done {
            let profile = Arc::new(day.profile());
            if !self.propose(&name, version, &profile) {
                self.set_first_day(&name, version, profile);
            }
        }
    }

    /// The first day of a version is its reference from now on.
    pub(super) fn set_first_day(&self, name: &ModelName, version: Version, profile: Arc<Profile>) {
        self.analysis().set_first_day(name, version, Arc::clone(&profile));
        let watched = {
            let mut hot = self.hot();
            let of = hot.models.get_mut(name).and_then(|model| model.versions.get_mut(&version));
            let Some(of) = of else { return };
            if of.watched.first_day.as_ref().is_some_and(|known| *known == profile) && of.plan.is_some() {
                return;
            }
            of.watched.first_day = Some(profile);
            of.watched.clone()
        };
        let plan = if watched.settings.enabled { watched.plan().map(Arc::new) } else { None };
        let mut hot = self.hot();
        let Hot { models, bytes, .. } = &mut *hot;
        if let Some(of) = models.get_mut(name).and_then(|model| model.versions.get_mut(&version)) {
            *bytes = bytes.saturating_sub(of.bytes());
            (of.first_day, of.arms, of.plan) = (None, Vec::new(), plan.clone());
        }
        drop(hot);
        if let Some(plan) = plan {
            self.analysis().attach(name, version, &plan);
        }
    }

    pub(super) fn hot(&self) -> MutexGuard<'_, Hot> {
        self.0.hot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn analysis(&self) -> MutexGuard<'_, Analysis> {
        self.0.analysis.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VersionHot {
    fn bytes(&self) -> usize {
        let arms = self.plan.as_ref().map_or(0, |plan| plan.bytes_of_arm()) * self.arms.len();
        arms + self.first_day.as_ref().map_or(0, |day| day.builders.len() * FIRST_DAY_BYTES)
    }
}

impl FirstDay {
    fn profile(&self) -> Profile {
        let columns = self.columns.iter().zip(&self.builders);
        Profile {
            format: Profile::FORMAT,
            rows: self.rows,
            from: jiff::Timestamp::from_microsecond(self.from).ok(),
            to: jiff::Timestamp::from_microsecond(self.to).ok(),
            source: Some("the first day of the version".to_owned()),
            metrics: std::collections::BTreeMap::new(),
            columns: columns
                .filter(|(_, builder)| builder.rows() > 0)
                .map(|(column, builder)| (column.name.clone(), builder.finish(Some(column.kind))))
                .collect(),
            sample: None,
        }
    }
}
