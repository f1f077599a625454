//! Decides what is stored: which source gives a version, and which versions fit. Pure.
//!
//! The order is the same in each round, so that nothing is removed that the next round would download again: first what the traffic documents name,
//! then the newest version of each model, then the second newest, and so on. Of two versions of one rank the smaller name comes first.

use crate::model::{ModelName, VersionId};
use std::collections::{BTreeMap, BTreeSet};

/// What is known when a plan is made.
#[derive(Debug)]
pub(super) struct Known<'a> {
    /// For each source, in the order of precedence, the bytes of each version that it has.
    pub offers: Vec<BTreeMap<VersionId, u64>>,
    /// The bytes of each version that is stored.
    pub stored: &'a BTreeMap<VersionId, u64>,
    /// Versions that the traffic documents name.
    pub named: &'a BTreeSet<VersionId>,
    /// Versions that are in the models directory.
    pub local: &'a BTreeSet<VersionId>,
    /// How many versions of each model are kept.
    pub newest: usize,
    /// The most bytes.
    pub limit: u64,
}

/// What becomes of a version of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Take,
    /// The source with this number gives it.
    Other(usize),
    /// The models directory has it.
    Local,
    /// As many newer versions are kept.
    NotNewest,
    /// Others that come first fill the cache.
    NoRoom,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// For each source.
    pub verdicts: Vec<BTreeMap<VersionId, Verdict>>,
    /// What is taken, in the order in which it is downloaded, with its source.
    pub order: Vec<(VersionId, usize)>,
    /// Stored versions that are not kept.
    pub remove: Vec<VersionId>,
    /// Stored versions that no source has any more, and that a document names.
    pub orphans: Vec<VersionId>,
}

pub(super) fn plan(known: &Known) -> Plan {
    let mut plan = Plan { verdicts: vec![BTreeMap::new(); known.offers.len()], ..Plan::default() };
    let mut giver: BTreeMap<&VersionId, (usize, u64)> = BTreeMap::new();
    for (source, offers) in known.offers.iter().enumerate() {
        for (id, bytes) in offers {
            let (first, _) = *giver.entry(id).or_insert((source, *bytes));
            let verdict = if known.local.contains(id) { Verdict::Local } else { Verdict::Other(first) };
            plan.verdicts[source].insert(id.clone(), verdict);
        }
    }
    let keeps = |id: &VersionId| known.named.contains(id) && known.stored.contains_key(id);
    let orphans = known.stored.keys().filter(|id| !giver.contains_key(id));
    plan.orphans = orphans.filter(|id| keeps(id)).cloned().collect();
    // What a document names is stored already, and stays.
    let mut used = known.stored.iter().filter(|(id, _)| keeps(id)).fold(0, |sum: u64, (_, n)| sum.saturating_add(*n));
    for (id, rank) in ranked(giver.keys().copied().filter(|id| !known.local.contains(id)), known.named) {
        let (source, bytes) = giver[&id];
        let verdict = if keeps(&id) {
            Verdict::Take
        } else if rank >= known.newest && !known.named.contains(&id) {
            Verdict::NotNewest
        } else if used.saturating_add(bytes) > known.limit {
            Verdict::NoRoom
        } else {
            used = used.saturating_add(bytes);
            Verdict::Take
        };
        plan.verdicts[source].insert(id.clone(), verdict);
        if verdict == Verdict::Take {
            plan.order.push((id, source));
        }
    }
    let taken: BTreeSet<&VersionId> = plan.order.iter().map(|(id, _)| id).collect();
    plan.remove = known.stored.keys().filter(|id| !taken.contains(id) && !keeps(id)).cloned().collect();
    plan
}

/// Versions with how many newer ones of their model there are, in the order in which they are taken.
fn ranked<'a>(ids: impl Iterator<Item = &'a VersionId>, named: &BTreeSet<VersionId>) -> Vec<(VersionId, usize)> {
    let mut by_model: BTreeMap<&ModelName, Vec<&VersionId>> = BTreeMap::new();
    ids.for_each(|id| by_model.entry(&id.model).or_default().push(id));
    let mut all: Vec<(VersionId, usize)> = Vec::new();
    for versions in by_model.values_mut() {
        versions.sort_unstable_by_key(|id| std::cmp::Reverse(id.version));
        all.extend(versions.iter().enumerate().map(|(rank, id)| ((*id).clone(), rank)));
    }
    all.sort_by(|(a, rank_a), (b, rank_b)| (!named.contains(a), rank_a, a).cmp(&(!named.contains(b), rank_b, b)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> VersionId {
        let (model, version) = text.split_once('/').unwrap();
        VersionId { model: model.parse().unwrap(), version: version.parse().unwrap() }
    }

    fn ids(texts: &[&str]) -> BTreeSet<VersionId> {
        texts.iter().map(|text| id(text)).collect()
    }

    fn bytes(all: &[(&str, u64)]) -> BTreeMap<VersionId, u64> {
        all.iter().map(|(text, n)| (id(text), *n)).collect()
    }

    fn show(ids: &[VersionId]) -> Vec<String> {
        ids.iter().map(ToString::to_string).collect()
    }

    fn order(plan: &Plan) -> Vec<String> {
        plan.order.iter().map(|(id, source)| format!("{id} from {source}")).collect()
    }

    #[test]
    fn the_first_source_gives_a_version_and_the_models_directory_comes_before_all() {
        let known = Known {
            offers: vec![bytes(&[("m/1", 1), ("m/2", 1)]), bytes(&[("m/2", 1), ("m/3", 1)])],
            stored: &bytes(&[]),
            named: &ids(&[]),
            local: &ids(&["m/1"]),
            newest: 10,
            limit: 10,
        };
        let plan = plan(&known);
        assert_eq!(order(&plan), ["m/3 from 1", "m/2 from 0"]);
        assert_eq!(plan.verdicts[0][&id("m/1")], Verdict::Local);
        assert_eq!(plan.verdicts[1][&id("m/2")], Verdict::Other(0));
    }

    #[test]
    fn what_documents_name_comes_first_and_then_the_newest_as_far_as_there_is_room() {
        let all = [("a/1", 4), ("a/2", 4), ("a/3", 4), ("b/7", 4), ("b/8", 4)];
        let known = Known {
            offers: vec![bytes(&all)],
            stored: &bytes(&[("a/1", 4), ("b/7", 4)]),
            named: &ids(&["a/1"]),
            local: &ids(&[]),
            newest: 2,
            limit: 12,
        };
        let plan = plan(&known);
        assert_eq!(order(&plan), ["a/1 from 0", "a/3 from 0", "b/8 from 0"]);
        assert_eq!(show(&plan.remove), ["b/7"], "a newer version takes its place");
        assert_eq!(plan.verdicts[0][&id("a/2")], Verdict::NoRoom);
        let roomy = super::plan(&Known { limit: 100, ..known });
        assert_eq!(order(&roomy).len(), 5);
        assert_eq!(show(&roomy.remove), Vec::<String>::new());
    }

    #[test]
    fn a_version_that_no_source_has_is_removed_unless_a_document_names_it() {
        let stored = bytes(&[("m/1", 4), ("m/2", 4)]);
        let known = Known {
            offers: vec![bytes(&[("m/3", 4)])],
            stored: &stored,
            named: &ids(&["m/1", "other/1"]),
            local: &ids(&[]),
            newest: 1,
            limit: 4,
        };
        let plan = plan(&known);
        assert_eq!(show(&plan.orphans), ["m/1"]);
        assert_eq!(show(&plan.remove), ["m/2"]);
        assert_eq!(plan.verdicts[0][&id("m/3")], Verdict::NoRoom, "what serves fills the cache");
    }

    #[test]
    fn sizes_that_a_stranger_chose_do_not_overflow() {
        let known = Known {
            offers: vec![bytes(&[("m/1", u64::MAX), ("m/2", u64::MAX), ("m/3", 1)])],
            stored: &bytes(&[("m/1", u64::MAX)]),
            named: &ids(&["m/1"]),
            local: &ids(&[]),
            newest: 10,
            limit: 10,
        };
        assert_eq!(order(&plan(&known)), ["m/1 from 0"]);
    }
}
