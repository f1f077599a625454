//! Which versions ought to be loaded, and which one serves by itself. Pure: from what is known to what ought to be.

use crate::model::Version;
use crate::model_settings::Keep;
use std::collections::{BTreeMap, BTreeSet};

/// What is known of a model when it is decided which of its versions ought to be loaded.
#[derive(Debug, Default)]
pub struct Known<'a> {
    /// Versions whose directories are there.
    pub found: BTreeSet<Version>,
    /// Versions the traffic document names: always kept.
    pub named: BTreeSet<Version>,
    pub keep: Option<&'a Keep>,
    /// Unloaded by an operator, and not loaded again.
    pub operator_unloaded: Option<&'a BTreeSet<Version>>,
    /// Loaded by an operator although `keep` leaves them out.
    pub asked: Option<&'a BTreeSet<Version>>,
    /// Unloaded to make room.
    pub evicted: Option<&'a BTreeSet<Version>>,
    /// Ready, and kept so for a rollback though `keep` leaves them out.
    pub warm: BTreeSet<Version>,
    /// The whole model is unloaded.
    pub taken_out: bool,
}

/// Why a version that is known ought not to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    TakenOut,
    Operator,
    Gone,
    Evicted,
    NotKept,
}

impl Leave {
    /// The reason shown beside `unloaded`.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Leave::TakenOut => "the whole model was unloaded by an operator",
            Leave::Operator => "unloaded by an operator; it stays so until it is loaded again",
            Leave::Gone => "its directory is gone",
            Leave::Evicted => "unloaded to make room for another version; load it to have it back",
            Leave::NotKept => "`versions` in model.toml leaves it out",
        }
    }
}

/// Which versions ought to be loaded; for each of the others, why not.
#[must_use]
pub fn wanted(known: &Known) -> BTreeMap<Version, Result<(), Leave>> {
    let has = |set: Option<&BTreeSet<Version>>, v: Version| set.is_some_and(|s| s.contains(&v));
    let latest: BTreeSet<Version> = match known.keep {
        Some(Keep::Latest(n)) => known.found.iter().rev().take(*n).copied().collect(),
        _ => BTreeSet::new(),
    };
    let kept = |v: Version| match known.keep {
        None | Some(Keep::All) => true,
        Some(Keep::Latest(_)) => latest.contains(&v),
        Some(Keep::Listed(list)) => list.contains(&v),
    };
    let verdict = |v: Version| {
        if known.taken_out {
            Err(Leave::TakenOut)
        } else if known.named.contains(&v) {
            Ok(())
        } else if !known.found.contains(&v) {
            Err(Leave::Gone)
        } else if has(known.operator_unloaded, v) {
            Err(Leave::Operator)
        } else if has(known.asked, v) {
            Ok(())
        } else if has(known.evicted, v) {
            Err(Leave::Evicted)
        } else if kept(v) || known.warm.contains(&v) {
            Ok(())
        } else {
            Err(Leave::NotKept)
        }
    };
    known.found.union(&known.named).map(|v| (*v, verdict(*v))).collect()
}

/// How the versions of a model without a traffic document stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Still on its way.
    Coming,
    Ready,
    /// Failed, unloaded, or nothing to load yet.
    Out,
}

/// Which version a model that was never served begins with. `waited`: all its versions have been ready or failed before.
#[must_use]
pub fn first(standing: &BTreeMap<Version, Standing>, waited: bool) -> Option<Version> {
    if !waited && standing.values().any(|s| *s == Standing::Coming) {
        return None;
    }
    standing.iter().rev().find(|(_, s)| **s == Standing::Ready).map(|(v, _)| *v)
}

/// Which version `auto_promote` promotes now: the highest that is ready, once per version, and only above any that ever served.
#[must_use]
pub fn auto_promote(
    ready: impl IntoIterator<Item = Version>,
    highest_served: Option<Version>,
    promoted_before: &BTreeSet<Version>,
) -> Option<Version> {
    ready.into_iter().max().filter(|v| Some(*v) > highest_served && !promoted_before.contains(v))
}
