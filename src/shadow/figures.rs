//! What is known of every pair of a primary and a shadow.

use crate::model::{ModelName, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// How many pairs were compared, and how many of them agreed in every output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Agreement {
    pub pairs: u64,
    pub agreed: u64,
}

/// The running figures of all pairs; cheap to clone, every clone is the same.
#[derive(Debug, Clone, Default)]
pub struct Figures(Arc<Mutex<BTreeMap<(ModelName, Version, Version), Agreement>>>);

impl Figures {
    /// How a shadow agreed with any of these primaries, together.
    #[must_use]
    pub fn agreement(&self, model: &ModelName, primaries: &BTreeSet<Version>, shadow: Version) -> Agreement {
        let pairs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = Agreement::default();
        for primary in primaries {
            if let Some(pair) = pairs.get(&(model.clone(), *primary, shadow)) {
                sum.pairs += pair.pairs;
                sum.agreed += pair.agreed;
            }
        }
        sum
    }

    /// Takes in one pair.
    pub fn record(&self, model: &ModelName, primary: Version, shadow: Version, agreed: bool) {
        let mut pairs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = pairs.entry((model.clone(), primary, shadow)).or_default();
        pair.pairs += 1;
        pair.agreed += u64::from(agreed);
    }
}
