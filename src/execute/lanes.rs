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
    /// What all of them are expected to take.
    work: Duration,
    /// Workers that are at it.
    running: usize,
    /// Time of workers that it had, what is running counted as it is expected to take.
    used: Duration,
}

/// A lane's turn: to be given back by [`Lanes::done`].
#[derive(Debug)]
#[must_use = "a lane whose turn does not end counts as running for ever"]
pub struct Turn<K> {
    key: K,
    charged: Duration,
}

impl<K: Eq + Hash + Copy, J> Lanes<K, J> {
    pub fn new(most: usize) -> Lanes<K, J> {
        Lanes { by_key: HashMap::new(), most, waiting: 0, now: Duration::ZERO }
    }

    /// Jobs that wait in all lanes.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Worker time that goes by before a job that comes now has its turn, where turns are fair: what waits before it, and of each
    /// other lane as much at most.
    pub fn ahead(&self, key: K) -> Duration {
        let Some(mine) = self.by_key.get(&key).map(|lane| lane.work) else { return Duration::ZERO };
        self.by_key.values().map(|lane| lane.work.min(mine)).sum()
    }

    /// Jobs that may wait in one lane.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Whether no more jobs should be put into this lane.
    pub fn is_full(&self, key: K) -> bool {
        self.by_key.get(&key).is_some_and(|lane| lane.jobs.len() >= self.most)
    }

    /// Puts a job at the end of its lane, with what it is expected to take.
    pub fn push(&mut self, key: K, job: J, cost: Duration) {
        let fresh = || Lane { jobs: VecDeque::new(), work: Duration::ZERO, running: 0, used: self.now };
        let lane = self.by_key.entry(key).or_insert_with(fresh);
        if lane.jobs.is_empty() {
            lane.used = lane.used.max(self.now);
        }
        lane.jobs.push_back(job);
        lane.work += cost;
        self.waiting += 1;
    }

    /// Whose turn it is takes what it wants out of its lane, one job at least, and says what that was expected to take. `None` where
    /// nothing waits.
    pub fn take<B>(&mut self, form: impl FnOnce(&mut VecDeque<J>) -> (B, Duration)) -> Option<(Turn<K>, B)> {
        let now = self.now;
        // What an idle lane used before the others' present is of no more account.
        self.by_key.retain(|_, lane| lane.running > 0 || !lane.jobs.is_empty() || lane.used > now);
        let waits = self.by_key.iter_mut().filter(|(_, lane)| !lane.jobs.is_empty());
        let (key, lane) = waits.min_by_key(|(_, lane)| lane.used)?;
        self.now = self.now.max(lane.used);
        lane.running += 1;
        let before = lane.jobs.len();
        let (formed, charged) = form(&mut lane.jobs);
        self.waiting -= before - lane.jobs.len();
        lane.work = if lane.jobs.is_empty() { Duration::ZERO } else { lane.work.saturating_sub(charged) };
        // At once, or every worker that becomes free before this is done would take from the same lane.
        lane.used += charged;
        Some((Turn { key: *key, charged }, formed))
    }

    /// Somebody else worked on this lane's turn for so long.
    pub fn charge(&mut self, key: K, took: Duration) {
        if let Some(lane) = self.by_key.get_mut(&key) {
            lane.used += took;
        }
    }

    /// A turn has ended, and this is how long it was.
    pub fn done(&mut self, turn: &Turn<K>, took: Duration) {
        let Some(lane) = self.by_key.get_mut(&turn.key) else { return };
        lane.used = (lane.used + took).saturating_sub(turn.charged);
        lane.running -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn one(jobs: &mut VecDeque<u32>) -> (u32, Duration) {
        (jobs.pop_front().unwrap(), MS)
    }

    /// One turn that takes so long.
    fn turn(lanes: &mut Lanes<char, u32>, takes: impl Fn(char) -> Duration) -> Option<char> {
        let (turn, _) = lanes.take(one)?;
        lanes.done(&turn, takes(turn.key));
        Some(turn.key)
    }

    #[test]
    fn turns_go_by_time_used_and_not_by_how_many_wait() {
        let mut lanes = Lanes::new(1000);
        for i in 0..100 {
            lanes.push('s', i, MS);
            lanes.push('f', i, MS);
        }
        let mut turns = HashMap::from([('s', 0), ('f', 0)]);
        for _ in 0..44 {
            let key = turn(&mut lanes, |key| if key == 's' { 10 * MS } else { MS }).unwrap();
            *turns.get_mut(&key).unwrap() += 1;
        }
        // 40 ms each: the slow one four times, the fast one forty.
        assert_eq!(turns, HashMap::from([('s', 4), ('f', 40)]));
    }

    #[test]
    fn one_that_comes_back_at_once_is_not_forgiven_what_it_used() {
        let mut lanes = Lanes::new(1000);
        let mut turns = Vec::new();
        lanes.push('s', 0, MS);
        for i in 0..100 {
            lanes.push('f', i, MS);
        }
        for _ in 0..60 {
            let key = turn(&mut lanes, |key| if key == 's' { 20 * MS } else { MS }).unwrap();
            if key == 's' {
                // Its only caller asks again.
                lanes.push('s', 0, MS);
            }
            turns.push(key);
        }
        let slow = turns.iter().filter(|key| **key == 's').count();
        assert!((2..=4).contains(&slow), "as much time as the other: {slow} of {turns:?}");
    }

    #[test]
    fn what_is_running_counts_before_it_is_done() {
        let mut lanes = Lanes::new(10);
        for i in 0..3 {
            lanes.push('s', i, MS);
        }
        let (first, _) = lanes.take(one).unwrap();
        lanes.push('f', 0, MS);
        let (second, _) = lanes.take(one).unwrap();
        assert_eq!((first.key, second.key), ('s', 'f'), "the second worker does not go to the same lane");
        lanes.done(&first, MS);
        lanes.done(&second, MS);
    }

    #[test]
    fn what_helpers_worked_counts_too() {
        let mut lanes = Lanes::new(10);
        for i in 0..3 {
            lanes.push('l', i, MS);
            lanes.push('o', i, MS);
        }
        let (first, _) = lanes.take(one).unwrap();
        lanes.charge(first.key, 5 * MS);
        lanes.charge('x', MS);
        lanes.done(&first, MS);
        let turns: Vec<char> = (0..3).map(|_| turn(&mut lanes, |_| MS).unwrap()).collect();
        assert!(!turns.contains(&first.key), "it had six milliseconds: {turns:?}");
    }

    #[test]
    fn one_that_was_idle_gets_no_time_for_it() {
        let mut lanes = Lanes::new(10);
        for i in 0..3 {
            lanes.push('a', i, MS);
        }
        turn(&mut lanes, |_| 1000 * MS);
        turn(&mut lanes, |_| 1000 * MS);
        for i in 0..3 {
            lanes.push('b', i, MS);
        }
        // It is next, once: it stands where the other stood.
        assert_eq!(turn(&mut lanes, |_| 1500 * MS), Some('b'));
        assert_eq!(turn(&mut lanes, |_| MS), Some('a'));
        assert_eq!(turn(&mut lanes, |_| MS), Some('b'));
    }

    #[test]
    fn a_full_lane_says_so_and_leaves_the_others_room() {
        let mut lanes = Lanes::new(2);
        lanes.push('a', 1, MS);
        assert!(!lanes.is_full('a'));
        lanes.push('a', 2, 4 * MS);
        assert!(lanes.is_full('a') && !lanes.is_full('b'));
        assert_eq!((lanes.ahead('a'), lanes.ahead('b')), (5 * MS, Duration::ZERO));
        lanes.push('b', 1, MS);
        assert_eq!((lanes.ahead('a'), lanes.ahead('b')), (6 * MS, 2 * MS), "of each other lane as much as of its own");
        assert_eq!(lanes.waiting(), 3);
        let all = |jobs: &mut VecDeque<u32>| (jobs.drain(..).count(), MS);
        let (first, jobs) = lanes.take(all).unwrap();
        lanes.done(&first, MS);
        assert_eq!(lanes.waiting(), 3 - jobs);
        let (second, _) = lanes.take(all).unwrap();
        lanes.done(&second, MS);
        assert!(lanes.waiting() == 0 && lanes.take(all).is_none());
        assert_eq!((lanes.ahead('a'), lanes.ahead('b')), (Duration::ZERO, Duration::ZERO));
    }
}
