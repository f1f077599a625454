//! The sums of what all gateways counted in a step.
//!
//! The last report of each gateway counts, so a report that comes twice, late or never changes nothing that was counted before.

use super::report::{Counts, Report, Tally};
use super::shared::{Counted, Mark, Sums};
use crate::telemetry::{KEYLESS, PERIOD_TICKS, PooledKeys, Side, Watch};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

#[cfg(test)]
#[path = "tests_pool.rs"]
mod tests;

/// A gateway that told nothing for so long is named. Each tells its counts twice a second, and every second second where they are as before.
pub(super) const TELLS_WITHIN: Duration = Duration::from_secs(6);

/// The reports of all gateways for one step.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    step: String,
    members: BTreeMap<String, Member>,
    /// Of all of them, where the step counts keys.
    keys: Option<PooledKeys>,
    /// The newest report.
    mark: Mark,
}

#[derive(Debug, Clone)]
struct Member {
    mark: Mark,
    at: Instant,
    tally: Tally,
}

impl Pool {
    pub(super) fn new(step: &str) -> Pool {
        Pool { step: step.to_owned(), members: BTreeMap::new(), keys: None, mark: Mark::default() }
    }

    /// Reports up to here have been taken.
    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    /// Takes a report, unless a newer one of that gateway is there or it is about another step.
    pub(super) fn take(&mut self, node: &str, mark: Mark, report: &Report) {
        self.mark = self.mark.max(mark);
        if report.step != self.step || self.members.get(node).is_some_and(|member| member.mark >= mark) {
            return;
        }
        self.replace(node, mark, report);
    }

    /// Passes over a report that cannot be read.
    pub(super) fn pass(&mut self, mark: Mark) {
        self.mark = self.mark.max(mark);
    }

    /// Takes what this gateway counted until now.
    pub(super) fn take_own(&mut self, node: &str, report: &Report) {
        self.replace(node, Mark::default(), report);
    }

    fn replace(&mut self, node: &str, mark: Mark, report: &Report) {
        let mut tally = report.earlier.clone();
        tally.add(&report.now);
        self.members.insert(node.to_owned(), Member { mark, at: Instant::now(), tally });
        if report.keys.counted {
            let pooled = self.keys.get_or_insert_default();
            for side in [Side::Candidate, Side::Control] {
                pooled.take(side, report.keys.period, report.keys.halvings, &report.keys.of(side));
            }
        }
    }

    /// Begins the period of this tick.
    pub(super) fn watch(&mut self, watch: &Watch) {
        if let Some(keys) = &mut self.keys {
            keys.begin_period(watch.tick / PERIOD_TICKS);
        }
    }

    /// The sums. `weights`: the shares of the split that the candidate and the control have.
    pub(super) fn sums(&self, weights: (f64, f64)) -> Sums {
        let mut sum = Tally::default();
        self.members.values().for_each(|member| sum.add(&member.tally));
        let keys = |side, keyless: &[u64; KEYLESS], weight| {
            self.keys.as_ref().map(|keys| keys.evidence(side, keyless, weight))
        };
        let of = |counts: &Counts, side, weight| counts.evidence(keys(side, &counts.keyless, weight));
        Sums {
            candidate: of(&sum.candidate, Side::Candidate, weights.0),
            control: of(&sum.control, Side::Control, weights.1),
            pairs: sum.pairs,
        }
    }

    /// The gateways that are in the sums.
    pub(super) fn counted(&self) -> Vec<Counted> {
        let of = |(node, member): (&String, &Member)| Counted {
            node: node.clone(),
            requests: member.tally.candidate.requests + member.tally.control.requests + member.tally.pairs.0,
            age_ms: u64::try_from(member.at.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        self.members.iter().map(of).collect()
    }

    /// Those of these gateways that did not tell their counts of this step lately.
    pub(super) fn silent(&self, there: Vec<String>) -> Vec<String> {
        let tells = |node: &String| self.members.get(node).is_some_and(|member| member.at.elapsed() < TELLS_WITHIN);
        there.into_iter().filter(|node| !tells(node)).collect()
    }
}
