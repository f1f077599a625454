//! Which gateways should have a model. Pure: the same rules and the same gateways give the same answer on every gateway.
//!
//! Gateways are ranked for each model by a hash of both names (rendezvous hashing). When a gateway comes or goes, only the models move that it has or gets.

use crate::access::Pattern;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use xxhash_rust::xxh3::xxh3_64;

/// What a gateway is: names with values.
pub type Labels = BTreeMap<String, String>;

/// Where the models with some names are. The first rule that fits a model applies. A model without a rule is on every gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub models: Vec<Pattern>,
    /// A gateway needs all of them.
    pub labels: Labels,
    /// On how many of the gateways with these labels. `None`: on all.
    pub replicas: Option<usize>,
}

impl Rule {
    fn fits(&self, model: &str) -> bool {
        self.models.iter().any(|pattern| pattern.fits(model))
    }

    fn takes(&self, labels: &Labels) -> bool {
        self.labels.iter().all(|(name, value)| labels.get(name) == Some(value))
    }
}

/// The rule of a model. `None`: it is on every gateway.
pub(super) fn rule_of<'r>(rules: &'r [Rule], model: &str) -> Option<&'r Rule> {
    rules.iter().find(|rule| rule.fits(model))
}

/// The gateways that should have a model, in the order of their rank.
pub(super) fn holders<'g>(rules: &[Rule], model: &str, gateways: &'g BTreeMap<String, Labels>) -> Vec<&'g str> {
    let Some(rule) = rule_of(rules, model) else { return gateways.keys().map(String::as_str).collect() };
    let takes = gateways.iter().filter(|(_, labels)| rule.takes(labels)).map(|(name, _)| name.as_str());
    let mut holders: Vec<&str> = takes.collect();
    if let Some(replicas) = rule.replicas {
        holders.sort_by_cached_key(|gateway| (std::cmp::Reverse(rank(gateway, model)), *gateway));
        holders.truncate(replicas);
    }
    holders
}

fn rank(gateway: &str, model: &str) -> u64 {
    // Neither name has this byte.
    xxh3_64(format!("{gateway}\0{model}").as_bytes())
}

/// Labels as people read them: `region=eu, tier=gpu`.
pub(super) fn shown(labels: &Labels) -> String {
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
}

/// Tells rules apart. Empty without rules.
pub(super) fn fingerprint(rules: &[Rule]) -> String {
    if rules.is_empty() {
        return String::new();
    }
    let mut text = String::new();
    for rule in rules {
        // Writing into a text cannot fail.
        let _ = writeln!(text, "{rule:?}");
    }
    format!("{:016x}", xxh3_64(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn rule(models: &[&str], of: &[(&str, &str)], replicas: Option<usize>) -> Rule {
        Rule { models: models.iter().map(|p| p.parse().unwrap()).collect(), labels: labels(of), replicas }
    }

    fn gateways(count: usize) -> BTreeMap<String, Labels> {
        (0..count).map(|n| (format!("g{n}"), labels(&[("region", if n % 2 == 0 { "eu" } else { "us" })]))).collect()
    }

    #[test]
    fn the_first_rule_that_fits_decides_and_a_model_without_one_is_everywhere() {
        let rules =
            [rule(&["eu-*", "x"], &[("region", "eu")], None), rule(&["eu-1", "*-lost"], &[("region", "mars")], None)];
        let gateways = gateways(4);
        assert_eq!(holders(&rules, "eu-1", &gateways), ["g0", "g2"]);
        assert_eq!(holders(&rules, "x", &gateways), ["g0", "g2"]);
        assert_eq!(holders(&rules, "y", &gateways), ["g0", "g1", "g2", "g3"]);
        assert_eq!(holders(&rules, "a-lost", &gateways), Vec::<&str>::new());
        assert_eq!(holders(&[], "y", &gateways).len(), 4);
        assert_eq!(fingerprint(&[]), "");
        assert_ne!(fingerprint(&rules), fingerprint(&rules[..1]));
    }

    #[test]
    fn replicas_spread_evenly_and_few_models_move_when_a_gateway_goes() {
        let rules = [rule(&["*"], &[], Some(2))];
        let mut all = gateways(10);
        let names: Vec<String> = (0..2000).map(|n| format!("model-{n}")).collect();
        let before: Vec<Vec<String>> =
            names.iter().map(|m| holders(&rules, m, &all).into_iter().map(str::to_owned).collect()).collect();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        before.iter().flatten().for_each(|name| *counts.entry(name).or_default() += 1);
        assert!(before.iter().all(|holders| holders.len() == 2));
        assert!(counts.values().all(|n| (300..=500).contains(n)), "400 each on average: {counts:?}");
        all.remove("g3");
        for (model, before) in names.iter().zip(&before) {
            let after = holders(&rules, model, &all);
            let stayed = before.iter().filter(|name| after.contains(&name.as_str())).count();
            assert_eq!(stayed, if before.iter().any(|name| name == "g3") { 1 } else { 2 }, "{model}");
            assert_eq!(after.len(), 2);
        }
        assert_eq!(holders(&[rule(&["*"], &[], Some(20))], "m", &all).len(), 9, "as many as there are");
    }
}
