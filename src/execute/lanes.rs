//! Work that waits, in a lane for each version, and whose turn it is.
//!
//! Turns go by time used: the lane whose runs took the least so far is next (start-time fair queueing, Goyal, Vin and Cheng 1996,
//! with a run's own time as its weight). So a slow version gets its share of the workers, and not theirs altogether.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

/// The lanes of everything that waits. `K` says which lane.
#[derive(Debug)]
pub struct Lanes<K, J> {
    by_key: HashMap<K, Lane<J>>,
    /// Jobs that may wait in one lane.
    most: usize,
    waiting: usize,
    /// Where the lane stood that was taken from last: one that comes anew starts here, and not with the time it never used.
    now: Duration,
}

#[derive(Debug)]
struct Lane<J> {
    jobs: VecDeque<J>,
    /// What each of them is expected to take, and all together.
    costs: VecDeque<Duration>,
    work: Duration,
    /// Workers that are at it: while there are any, it is remembered though nothing waits.
    running: usize,
    used: Duration,
}

impl<K: Eq + Hash + Clone, J> Lanes<K, J> {
    pub fn new(most: usize) -> Lanes<K, J> {
        Lanes { by_key: HashMap::new(), most, waiting: 0, now: Duration::ZERO }
    }

    /// Jobs that wait in all lanes.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Worker time that goes by before a job that comes now has its turn, where turns are fair: what waits before it, once for each
    /// lane that waits.
    pub fn ahead(&self, key: &K) -> Duration {
        let Some(lane) = self.by_key.get(key) else { return Duration::ZERO };
        let busy = self.by_key.values().filter(|lane| !lane.jobs.is_empty()).count();
        lane.work.saturating_mul(u32::try_from(busy).unwrap_or(u32::MAX))
    }

    /// Puts a job at the end of its lane, with what it is expected to take; gives it back where the lane is full.
    pub fn push(&mut self, key: K, job: J, cost: Duration) -> Result<(), J> {
        let fresh =
            || Lane { jobs: VecDeque::new(), costs: VecDeque::new(), work: Duration::ZERO, running: 0, used: self.now };
        let lane = self.by_key.entry(key).or_insert_with(fresh);
        if lane.jobs.len() >= self.most {
            return Err(job);
        }
        if lane.jobs.is_empty() {
            lane.used = lane.used.max(self.now);
        }
        lane.jobs.push_back(job);
        lane.costs.push_back(cost);
        lane.work += cost;
        self.waiting += 1;
        Ok(())
    }

    /// Whose turn it is takes what it wants from the front of its lane, one job at least; [`Lanes::done`] has to follow. `None` where
    /// nothing waits.
    pub fn take<B>(&mut self, form: impl FnOnce(&K, &mut VecDeque<J>) -> B) -> Option<(K, B)> {
        let waits = self.by_key.iter().filter(|(_, lane)| !lane.jobs.is_empty());
        let key = waits.min_by_key(|(_, lane)| lane.used).map(|(key, _)| key.clone())?;
        let lane = self.by_key.get_mut(&key)?;
        self.now = self.now.max(lane.used);
        lane.running += 1;
        let before = lane.jobs.len();
        let formed = form(&key, &mut lane.jobs);
        let taken = before - lane.jobs.len();
        self.waiting -= taken;
        let taken: Duration = lane.costs.drain(..taken).sum();
        lane.work = lane.work.saturating_sub(taken);
        Some((key, formed))
    }

    /// A worker is done with what it took, and this is how long it was at it.
    pub fn done(&mut self, key: &K, took: Duration) {
        let Some(lane) = self.by_key.get_mut(key) else { return };
        lane.used += took;
        lane.running -= 1;
        if lane.running == 0 && lane.jobs.is_empty() {
            self.by_key.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as `take` gives it")]
    fn one(_: &char, jobs: &mut VecDeque<u32>) -> u32 {
        jobs.pop_front().unwrap()
    }

    #[test]
    fn turns_go_by_time_used_and_not_by_how_many_wait() {
        let mut lanes = Lanes::new(1000);
        for i in 0..100 {
            lanes.push('s', i, MS).unwrap();
            lanes.push('f', i, MS).unwrap();
        }
        let mut turns = HashMap::from([('s', 0), ('f', 0)]);
        for _ in 0..44 {
            let (key, _) = lanes.take(one).unwrap();
            *turns.get_mut(&key).unwrap() += 1;
            lanes.done(&key, if key == 's' { 10 * MS } else { MS });
        }
        // 40 ms each: the slow one four times, the fast one forty.
        assert_eq!(turns, HashMap::from([('s', 4), ('f', 40)]));
    }

    #[test]
    fn one_that_was_idle_gets_no_time_for_it() {
        let mut lanes = Lanes::new(10);
        for i in 0..3 {
            lanes.push('a', i, MS).unwrap();
        }
        lanes.take(one);
        lanes.done(&'a', 1000 * MS);
        lanes.take(one);
        lanes.done(&'a', 1000 * MS);
        for i in 0..3 {
            lanes.push('b', i, MS).unwrap();
        }
        // It is next, once: it stands where the other stood.
        assert_eq!(lanes.take(one), Some(('b', 0)));
        lanes.done(&'b', 1500 * MS);
        assert_eq!(lanes.take(one), Some(('a', 2)));
        lanes.done(&'a', MS);
        assert_eq!(lanes.take(one).map(|(key, _)| key), Some('b'));
    }

    #[test]
    fn a_full_lane_gives_back_and_leaves_the_others_room() {
        let mut lanes = Lanes::new(2);
        assert!(lanes.push('a', 1, MS).is_ok() && lanes.push('a', 2, 4 * MS).is_ok());
        assert_eq!(lanes.push('a', 3, MS), Err(3));
        assert_eq!((lanes.ahead(&'a'), lanes.ahead(&'b')), (5 * MS, Duration::ZERO));
        assert!(lanes.push('b', 1, MS).is_ok());
        assert_eq!((lanes.ahead(&'a'), lanes.ahead(&'b')), (10 * MS, 2 * MS), "turns are shared");
        assert_eq!(lanes.waiting(), 3);
        let all = |_: &char, jobs: &mut VecDeque<u32>| jobs.drain(..).collect::<Vec<_>>();
        let (key, jobs) = lanes.take(all).unwrap();
        lanes.done(&key, MS);
        assert_eq!((jobs.len(), lanes.waiting()), (3 - lanes.waiting(), lanes.waiting()));
        lanes.take(all);
        assert_eq!((lanes.waiting(), lanes.take(all)), (0, None));
        assert_eq!((lanes.ahead(&'a'), lanes.ahead(&'b')), (Duration::ZERO, Duration::ZERO));
    }
}
