//! Policies: which versions should be loaded, and which one serves without an operator. All functions are pure.

use crate::model::Version;
use crate::model_settings::Keep;
use std::collections::{BTreeMap, BTreeSet};

/// The facts about a model that decide which of its versions should be loaded.
#[derive(Debug, Default)]
pub(super) struct PolicyInput<'a> {
    /// Versions whose directories exist.
    pub found: BTreeSet<Version>,
    /// Versions that the traffic document names. They are always kept.
    pub required: BTreeSet<Version>,
    pub keep: Option<&'a Keep>,
    /// Versions that an operator unloaded and did not load again.
    pub operator_unloaded: Option<&'a BTreeSet<Version>>,
    /// Versions that an operator loaded although `keep` leaves them out.
    pub requested: Option<&'a BTreeSet<Version>>,
    /// Versions that were unloaded to make room.
    pub evicted: Option<&'a BTreeSet<Version>>,
    /// Versions that stay ready for a rollback although `keep` leaves them out.
    pub kept_warm: BTreeSet<Version>,
    /// Why no version of the model should be loaded.
    pub out: Option<UnloadReason>,
    /// Versions that are loaded all the same, to be promoted.
    pub returning: BTreeSet<Version>,
}

/// Why a known version should not be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UnloadReason {
    Retired,
    ModelUnloaded,
    Elsewhere,
    ByOperator,
    DirectoryGone,
    Evicted,
    ExcludedBySettings,
}

impl UnloadReason {
    /// The reason shown beside `unloaded`.
    #[must_use]
    pub(super) const fn words(self) -> &'static str {
        match self {
            UnloadReason::Retired => "the model was retired; promote a version to bring it back",
            UnloadReason::ModelUnloaded => "an operator unloaded the whole model",
            UnloadReason::Elsewhere => "by the fleet's placement other gateways have the model",
            UnloadReason::ByOperator => "an operator unloaded it; it stays unloaded until it is loaded again",
            UnloadReason::DirectoryGone => "its directory is gone",
            UnloadReason::Evicted => "unloaded to make room for another version; load it to get it back",
            UnloadReason::ExcludedBySettings => "`versions` in model.toml leaves it out",
        }
    }
}

/// Which versions should be loaded, and for each other version the reason why not.
#[must_use]
pub(super) fn wanted(input: &PolicyInput) -> BTreeMap<Version, Result<(), UnloadReason>> {
    let has = |set: Option<&BTreeSet<Version>>, v: Version| set.is_some_and(|s| s.contains(&v));
    let latest: BTreeSet<Version> = match input.keep {
        Some(Keep::Latest(n)) => input.found.iter().rev().take(*n).copied().collect(),
        _ => BTreeSet::new(),
    };
    let kept = |v: Version| match input.keep {
        None | Some(Keep::All) => true,
        Some(Keep::Latest(_)) => latest.contains(&v),
        Some(Keep::Listed(list)) => list.contains(&v),
    };
    let decide = |v: Version| {
        if input.returning.contains(&v) {
            Ok(())
        } else if let Some(out) = input.out {
            Err(out)
        } else if input.required.contains(&v) {
            Ok(())
        } else if !input.found.contains(&v) {
            Err(UnloadReason::DirectoryGone)
        } else if has(input.operator_unloaded, v) {
            Err(UnloadReason::ByOperator)
        } else if has(input.requested, v) {
            Ok(())
        } else if has(input.evicted, v) {
            Err(UnloadReason::Evicted)
        } else if kept(v) || input.kept_warm.contains(&v) {
            Ok(())
        } else {
            Err(UnloadReason::ExcludedBySettings)
        }
    };
    input.found.union(&input.required).map(|v| (*v, decide(*v))).collect()
}

/// How far the load of a version is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Waiting for its turn, or being loaded.
    Loading,
    Ready,
    /// Failed, unloaded, or without files.
    Stopped,
}

/// The version that a new model serves first: the highest ready one. `waited`: all versions were ready or stopped at some time.
#[must_use]
pub(super) fn first(progress: &BTreeMap<Version, Progress>, waited: bool) -> Option<Version> {
    if !waited && progress.values().any(|p| *p == Progress::Loading) {
        return None;
    }
    progress.iter().rev().find(|(_, p)| **p == Progress::Ready).map(|(v, _)| *v)
}

/// The version that `auto_promote` promotes now: the highest ready one, once per version, and only above every version that served.
#[must_use]
pub(super) fn auto_promote(
    ready: impl IntoIterator<Item = Version>,
    highest_served: Option<Version>,
    promoted_before: &BTreeSet<Version>,
) -> Option<Version> {
    ready.into_iter().max().filter(|v| Some(*v) > highest_served && !promoted_before.contains(v))
}

/// The order in which versions are loaded, lowest rank first: what documents name, what operators requested, then the newest
/// version of each model, the second newest, and so on. Where memory is short, old versions are left out. `from_top`: the version's
/// place among the wanted versions of its model, 1 for the newest.
#[must_use]
pub(super) fn load_rank(required: bool, requested: bool, from_top: usize) -> usize {
    if required {
        0
    } else if requested {
        1
    } else {
        1 + from_top
    }
}
