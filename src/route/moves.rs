//! How many keys a change of the document moves.

use super::document::{Arm, Document};
use super::router::Router;
use crate::model::{ArmName, ModelName};

/// What a change of the split means for the keys: users, where the document has a sticky key, else requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Moves {
    /// The share of the keys that get another version or another arm than before, from 0 to 1. An estimate from a sample of keys, with a
    /// standard error of at most half a percentage point for up to 100 arms.
    pub share: f64,
    /// In words: arms that are new, gone or renamed, and a salt that is new.
    pub notes: Vec<String>,
}

/// The most keys of the sample, and the most scores that are computed for it.
const KEYS: usize = 10_000;
const SCORES: usize = 2_000_000;

impl Moves {
    /// Compares two documents of a model.
    #[must_use]
    pub fn between(model: &ModelName, before: &Document, after: &Document) -> Moves {
        let (old, new) = (Router::new(model, before.clone()), Router::new(model, after.clone()));
        let arms = before.split.len() + after.split.len();
        let keys = (SCORES / arms.max(1)).clamp(100, KEYS);
        let (mut moved, mut to_new) = (0_usize, vec![0_usize; after.split.len()]);
        let is_new: Vec<bool> = after.split.iter().map(|arm| named(before, &arm.arm).is_none()).collect();
        for key in 0..keys {
            let key = format!("key-{key}");
            let (Some(from), Some(to)) = (old.arm_for(&key), new.arm_for(&key)) else { continue };
            if is_moved(before, &before.split[from], after, &after.split[to]) {
                moved += 1;
                to_new[to] += usize::from(is_new[to]);
            }
        }
        let share = |count: usize| count as f64 / keys as f64;
        let mut notes = Vec::new();
        let sharing = |document: &Document| document.split.iter().filter(|arm| arm.weight > 0.0).count();
        let reshuffles = sharing(before) > 1 && sharing(after) > 1;
        if before.salt != after.salt && reshuffles {
            notes.push("the salt is another one: every key is assigned anew".to_owned());
        }
        for (index, arm) in after.split.iter().enumerate().filter(|(index, arm)| is_new[*index] && arm.weight > 0.0) {
            let Arm { version, arm: name, .. } = arm;
            let gone = before
                .split
                .iter()
                .find(|old| old.version == *version && old.weight > 0.0 && named(after, &old.arm).is_none());
            match gone.filter(|_| reshuffles) {
                Some(old) => notes.push(format!(
                    "arm {} of version {version} is named {name} now: a key's arm depends on the names, so this moves keys; keep the name to \
                     keep them where they are",
                    old.arm
                )),
                None => notes.push(format!(
                    "arm {name} is new: about {:.1} % of the keys move to version {version}",
                    100.0 * share(to_new[index])
                )),
            }
        }
        Moves { share: share(moved), notes }
    }
}

fn named<'d>(document: &'d Document, name: &ArmName) -> Option<&'d Arm> {
    document.split.iter().find(|arm| arm.arm == *name)
}

/// Whether a key that goes from one arm to the other gets another version, or another one of two arms that both documents have.
fn is_moved(before: &Document, from: &Arm, after: &Document, to: &Arm) -> bool {
    let both_have = |name: &ArmName| named(before, name).is_some() && named(after, name).is_some();
    from.version != to.version || (from.arm != to.arm && both_have(&from.arm) && both_have(&to.arm))
}
