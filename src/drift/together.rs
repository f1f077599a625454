//! Drift over the gateways of a fleet: what each counted in an hour is told and added up, and each judges the same sums (docs/FLEET.md).
//!
//! An hour of a model is closed once, for all gateways. What one counted after that is left out. So all of them judge the same hours in the same
//! order, and the false alarms that are promised are those of the fleet.

use super::hot::{ArmHot, Ended, Tally};
use super::plan::Plan;
use super::state::Drift;
use super::window::HOUR;
use crate::model::{ModelName, Version};
use crate::profile::Profile;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, MutexGuard, PoisonError};

/// What was counted of a model in one hour, by one gateway or by several.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Hour {
    form: u32,
    /// The gateways whose counts these are.
    pub gateways: BTreeSet<String>,
    /// Gateways that answered for the model, and whose counts did not come in time.
    pub missing: BTreeSet<String>,
    arms: Vec<Counts>,
}

/// The counts of an arm in the bins of one reference.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Counts {
    version: Version,
    arm: String,
    /// Of the bins.
    digest: u64,
    tally: Tally,
}

/// What was counted here in an hour, by version, arm and the digest of the bins.
type OwnArms = BTreeMap<(Version, String, u64), Tally>;

/// What is shared of drift.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    on: bool,
    /// What ended here and was not closed for all yet, by model and hour. The last [`MOST_HOURS`] of each.
    own: BTreeMap<ModelName, BTreeMap<i64, OwnArms>>,
    /// All hours before this one are in `own`.
    ended: i64,
    /// The last hour of each model that was closed and judged, whose counts were in it, and whose were missing.
    pub closed: BTreeMap<ModelName, Closed>,
    /// Versions whose first day was agreed upon.
    agreed: BTreeSet<(ModelName, Version)>,
    /// First days that are over here, and that the fleet may not know.
    proposed: BTreeMap<(ModelName, Version), Arc<Profile>>,
    /// Whether the fleet is followed: otherwise no window ends, as hours may come late.
    following: bool,
}

/// The last hour of a model that was closed for all gateways.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    pub hour: i64,
    /// Its place in the list of all hours.
    pub place: u64,
    pub gateways: BTreeSet<String>,
    pub missing: BTreeSet<String>,
}

const FORM: u32 = 1;
/// The most bytes of an hour before it is compressed, and after. A value of NATS has at most 1 MiB.
const MAX_PLAIN: usize = 16 << 20;
const MAX_PACKED: usize = 1_000_000;
const LEVEL: i32 = 1;
/// Hours of a model that wait to be closed. More are forgotten: two days without NATS.
const MOST_HOURS: usize = 48;
/// No hour is closed later than this after its end, in hours: windows end then.
const CLOSED_WITHIN: i64 = 2;

impl Hour {
    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.arms.is_empty()
    }

    /// Rows that came, over all arms.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.arms.iter().map(|arm| arm.tally.offered).sum()
    }

    /// Adds what other gateways counted.
    pub fn add(&mut self, other: &Hour) {
        self.gateways.extend(other.gateways.iter().cloned());
        self.missing.extend(other.missing.iter().cloned());
        for counts in &other.arms {
            let same = |known: &&mut Counts| {
                (known.version, &known.arm, known.digest) == (counts.version, &counts.arm, counts.digest)
                    && known.tally.is_like(&counts.tally)
            };
            match self.arms.iter_mut().find(same) {
                Some(known) => known.tally.add(&counts.tally),
                None => self.arms.push(counts.clone()),
            }
        }
        self.arms.sort_by(|a, b| (a.version, &a.arm, a.digest).cmp(&(b.version, &b.arm, b.digest)));
    }

    /// For other gateways. `None` where it is too large.
    #[must_use]
    pub fn write(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        ciborium::into_writer(&Hour { form: FORM, ..self.clone() }, &mut bytes).ok()?;
        if bytes.len() > MAX_PLAIN {
            return None;
        }
        zstd::bulk::compress(&bytes, LEVEL).ok().filter(|bytes| bytes.len() <= MAX_PACKED)
    }

    /// # Errors
    /// In words.
    pub fn read(bytes: &[u8]) -> Result<Hour, String> {
        let plain =
            zstd::bulk::decompress(bytes, MAX_PLAIN).map_err(|error| format!("it cannot be decompressed: {error}"))?;
        let hour: Hour =
            ciborium::from_reader(&plain[..]).map_err(|error| format!("it is not an hour of counts: {error}"))?;
        if hour.form != FORM {
            return Err(format!(
                "it has the form {}, and this version of Sluicegate reads {FORM}: upgrade this gateway",
                hour.form
            ));
        }
        Ok(hour)
    }
}

impl Drift {
    pub(super) fn sharing(&self) -> MutexGuard<'_, Sharing> {
        self.0.sharing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on hours are judged when they are closed for all gateways of a fleet ([`Drift::judge`]), and first days count when they are
    /// agreed upon ([`Drift::agree`]).
    pub fn share(&self) {
        self.sharing().on = true;
    }

    pub(super) fn is_shared(&self) -> bool {
        self.sharing().on
    }

    /// Whether what the fleet closes arrives here.
    pub fn set_following(&self, following: bool) {
        self.sharing().following = following;
    }

    /// What was counted here and is not closed, by model and hour; the hour that is open too.
    #[must_use]
    pub fn told(&self, gateway: &str) -> BTreeMap<(ModelName, i64), Hour> {
        let mut hours: BTreeMap<(ModelName, i64), Hour> = BTreeMap::new();
        let mut add = |model: &ModelName, hour: i64, version: Version, arm: &str, digest: u64, tally: &Tally| {
            let counts = Counts { version, arm: arm.to_owned(), digest, tally: tally.clone() };
            let gateways = BTreeSet::from([gateway.to_owned()]);
            let one = Hour { form: FORM, gateways, missing: BTreeSet::new(), arms: vec![counts] };
            hours.entry((model.clone(), hour)).or_default().add(&one);
        };
        // Both locks are held: an hour that ends in between would be nowhere.
        let sharing = self.sharing();
        let hot = self.hot();
        for (model, hours) in &sharing.own {
            for (hour, arms) in hours {
                for ((version, arm, digest), tally) in arms {
                    add(model, *hour, *version, arm, *digest, tally);
                }
            }
        }
        for ended in &hot.ended {
            let Ended { model, version, plan, arm } = ended;
            add(model, arm.hour, *version, &arm.name, plan.digest, &arm.tally);
        }
        for (model, of) in &hot.models {
            for (version, of) in &of.versions {
                let Some(plan) = &of.plan else { continue };
                for arm in of.arms.iter().filter(|arm| arm.tally.offered > 0) {
                    add(model, arm.hour, *version, &arm.name, plan.digest, &arm.tally);
                }
            }
        }
        // What was closed without them is over.
        hours.retain(|(model, hour), _| sharing.closed.get(model).is_none_or(|closed| *hour > closed.hour));
        hours
    }

    /// All hours before this one have ended here.
    #[must_use]
    pub fn ended(&self) -> i64 {
        self.sharing().ended
    }

    /// Takes an hour that is closed for all gateways, in the order of the list. `place`: its place there. Returns the rows that were counted here and are
    /// not in it.
    pub fn judge(&self, model: &ModelName, hour: i64, place: u64, counts: &Hour, gateway: &str) -> u64 {
        let mut sharing = self.sharing();
        if sharing.closed.get(model).is_some_and(|closed| closed.hour >= hour) {
            return 0;
        }
        let Hour { gateways, missing, .. } = counts;
        let closed = Closed { hour, place, gateways: gateways.clone(), missing: missing.clone() };
        sharing.closed.insert(model.clone(), closed);
        let own = sharing.own.get_mut(model).map(|own| {
            let later = own.split_off(&(hour + 1));
            std::mem::replace(own, later)
        });
        drop(sharing);
        let plans: BTreeMap<Version, Arc<Plan>> = {
            let hot = self.hot();
            let versions = hot.models.get(model).into_iter().flat_map(|model| &model.versions);
            versions.filter_map(|(version, of)| Some((*version, of.plan.clone()?))).collect()
        };
        let mut analysis = self.analysis();
        for Counts { version, arm, digest, tally } in &counts.arms {
            let Some(plan) = plans.get(version).filter(|plan| plan.digest == *digest && tally.fits(plan)) else {
                continue;
            };
            let arm = ArmHot { name: arm.clone(), hour, tally: tally.clone() };
            analysis.add(Ended { model: model.clone(), version: *version, plan: Arc::clone(plan), arm });
        }
        analysis.models.entry(model.clone()).or_default().changed = true;
        drop(analysis);
        let late = |(of, arms): (i64, OwnArms)| {
            let is_in = of == hour && gateways.contains(gateway);
            if is_in { 0 } else { arms.values().map(|tally| tally.offered).sum() }
        };
        own.into_iter().flatten().map(late).sum()
    }

    /// The last hour of a model that was closed for all gateways.
    #[must_use]
    pub fn closed(&self, model: &ModelName) -> Option<Closed> {
        self.sharing().closed.get(model).cloned()
    }

    /// The last place in the list of closed hours that was judged here.
    #[must_use]
    pub fn last_place(&self) -> u64 {
        self.sharing().closed.values().map(|closed| closed.place).max().unwrap_or(0)
    }

    // === first days ===

    /// Versions without a profile whose first day is not agreed upon, with this gateway's, where it is over.
    #[must_use]
    pub fn disagreed(&self) -> Vec<(ModelName, Version, Option<Arc<Profile>>)> {
        let sharing = self.sharing();
        let hot = self.hot();
        let mut found = Vec::new();
        for (model, of) in &hot.models {
            for (version, of) in &of.versions {
                let key = (model.clone(), *version);
                if of.watched.profile.is_none() && of.watched.settings.enabled && !sharing.agreed.contains(&key) {
                    let own = sharing.proposed.get(&key).cloned().or_else(|| of.watched.first_day.clone());
                    found.push((model.clone(), *version, own));
                }
            }
        }
        found
    }

    /// The first day of a version that counts for all gateways.
    pub fn agree(&self, model: &ModelName, version: Version, profile: Profile) {
        let key = (model.clone(), version);
        let mut sharing = self.sharing();
        sharing.proposed.remove(&key);
        sharing.agreed.insert(key);
        drop(sharing);
        self.set_first_day(model, version, Arc::new(profile));
    }

    /// A first day that is over here. Returns whether it waits until all gateways have one.
    pub(super) fn propose(&self, model: &ModelName, version: Version, profile: &Arc<Profile>) -> bool {
        let mut sharing = self.sharing();
        if sharing.on {
            sharing.proposed.insert((model.clone(), version), Arc::clone(profile));
        }
        sharing.on
    }

    // === the work ===

    /// Moves what has ended to what is told. Returns false in no fleet.
    pub(super) fn gather(&self, hour: i64) -> bool {
        let mut sharing = self.sharing();
        if !sharing.on {
            return false;
        }
        let ended: VecDeque<Ended> = std::mem::take(&mut self.hot().ended);
        for Ended { model, version, plan, arm } in ended {
            let ArmHot { name, hour, tally } = arm;
            let own = sharing.own.entry(model).or_default();
            let arms = own.entry(hour).or_default();
            match arms.get_mut(&(version, name.clone(), plan.digest)) {
                Some(known) => known.add(&tally),
                None => drop(arms.insert((version, name, plan.digest), tally)),
            }
            while own.len() > MOST_HOURS {
                own.pop_first();
            }
        }
        sharing.own.retain(|_, own| !own.is_empty());
        sharing.ended = hour;
        let following = sharing.following;
        drop(sharing);
        if following {
            self.analysis().end_windows(hour - CLOSED_WITHIN);
        }
        true
    }
}

/// The beginning of an hour, microseconds since 1970.
#[must_use]
pub fn begins(hour: i64) -> i64 {
    hour.saturating_mul(HOUR)
}
