//! Keeps the counts over a restart.

use super::analysis::ArmState;
use super::state::Drift;
use super::together::Closed;
use crate::model::{ModelName, Version};
use crate::profile::Profile;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The state of one model in a file.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    arms: Vec<StoredArm>,
    first_days: BTreeMap<Version, Profile>,
    /// The last hour that was closed for all gateways of a fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    closed: Option<Closed>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredArm {
    version: Version,
    arm: String,
    state: ArmState,
}

const FORMAT: u32 = 1;

impl Drift {
    /// The largest state of a model that is read.
    pub const MAX_SAVED: u64 = 256 << 20;

    /// The models whose state is not saved as it is now.
    #[must_use]
    pub fn changed(&self) -> Vec<ModelName> {
        let mut changed: BTreeSet<ModelName> = {
            let hot = self.hot();
            let counted = hot.models.iter().filter(|(_, model)| {
                model.versions.values().any(|version| version.arms.iter().any(|arm| arm.tally.offered > 0))
            });
            counted.map(|(name, _)| name.clone()).collect()
        };
        let analysis = self.analysis();
        changed.extend(analysis.models.iter().filter(|(_, model)| model.changed).map(|(name, _)| name.clone()));
        changed.into_iter().collect()
    }

    /// The state of a model, with the open hour, as text for [`Drift::load`].
    #[must_use]
    pub fn save(&self, name: &ModelName) -> String {
        let is_shared = self.is_shared();
        let open: Vec<_> = {
            let hot = self.hot();
            // In a fleet, what is open here is told, and judged with what others counted.
            let versions = hot.models.get(name).filter(|_| !is_shared).into_iter().flat_map(|model| &model.versions);
            let arms = versions.filter_map(|(version, of)| Some((*version, of.plan.clone()?, &of.arms)));
            arms.flat_map(|(version, plan, arms)| {
                let counted = arms.iter().filter(|arm| arm.tally.offered > 0);
                counted.map(move |arm| (version, Arc::clone(&plan), arm.clone())).collect::<Vec<_>>()
            })
            .collect()
        };
        let (mut arms, first_days) = {
            let mut analysis = self.analysis();
            let model = analysis.models.entry(name.clone()).or_default();
            model.changed = false;
            let first_days = model.first_days.iter().map(|(version, of)| (*version, Profile::clone(of))).collect();
            (model.arms.clone(), first_days)
        };
        for (version, plan, arm) in open {
            let state = arms.entry((version, arm.name)).or_insert_with(|| ArmState::new(&plan, arm.hour));
            if state.digest != plan.digest {
                *state = ArmState::new(&plan, arm.hour);
            }
            let mut tally = arm.tally;
            // A restart may already have interrupted this hour.
            match state.part.take() {
                Some((hour, part)) if hour == arm.hour => tally.add(&part),
                other => state.part = other,
            }
            if state.part.is_none() {
                state.part = Some((arm.hour, tally));
            }
        }
        let arms = arms.into_iter().map(|((version, arm), state)| StoredArm { version, arm, state }).collect();
        let stored = Stored { format: FORMAT, arms, first_days, closed: self.closed(name) };
        serde_json::to_string(&stored).expect("finite numbers and texts are JSON")
    }

    /// Continues with a saved state, before the model's versions are watched.
    ///
    /// # Errors
    /// In words, when it is not a state of this format.
    pub fn load(&self, name: &ModelName, bytes: &[u8]) -> Result<(), String> {
        let stored: Stored = serde_json::from_slice(bytes).map_err(|e| format!("not a saved state: {e}"))?;
        if stored.format != FORMAT {
            return Err(format!("format {}: expected {FORMAT}", stored.format));
        }
        for (version, profile) in &stored.first_days {
            let text = profile.to_json();
            Profile::parse(text.as_bytes()).map_err(|e| format!("the first day of version {version}: {e}"))?;
        }
        if let Some(closed) = stored.closed {
            self.sharing().closed.insert(name.clone(), closed);
        }
        let mut analysis = self.analysis();
        let model = analysis.models.entry(name.clone()).or_default();
        model.first_days.extend(stored.first_days.into_iter().map(|(version, of)| (version, Arc::new(of))));
        model.arms.extend(stored.arms.into_iter().map(|of| ((of.version, of.arm), of.state)));
        Ok(())
    }
}
