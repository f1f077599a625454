//! Waiting jobs, in one lane per version, and the order of the lanes' turns.
//!
//! The lane that has used the least worker time is next (start-time fair queueing, Goyal, Vin and Cheng 1996, with a run's measured
//! time as its length). So a slow version gets its share of the workers and no more.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

/// The lanes of all waiting jobs. `K` identifies a lane.
#[derive(Debug)]
pub(super) struct Lanes<K, J> {
    by_key: HashMap<K, Lane<J>>,
    /// Jobs that may wait in one lane.
    capacity: usize,
    /// Workers that one lane may use at once.
    most_workers: usize,
    waiting: usize,
    /// The used time of the lane that had the last turn. A new lane starts here, so it cannot claim time from before it existed.
    now: Duration,
}

#[derive(Debug)]
struct Lane<J> {
    jobs: VecDeque<J>,
    /// The expected time of all of them.
    work: Duration,
    /// Workers that run jobs of this lane.
    running: usize,
    /// The worker time it has used. Runs in progress count with their expected time.
    used: Duration,
}

/// A lane's turn. It has to be ended by [`Lanes::end_turn`].
#[derive(Debug)]
#[must_use = "a lane whose turn is not ended counts as running for ever"]
pub(super) struct Turn<K> {
    key: K,
    charged: Duration,
}

impl<K: Copy> Turn<K> {
    pub(super) fn key(&self) -> K {
        self.key
    }
}

impl<J> Lane<J> {
    fn may_run(&self, most_workers: usize) -> bool {
        !self.jobs.is_empty() && self.running < most_workers
    }
}

impl<K: Eq + Hash + Copy, J> Lanes<K, J> {
    pub(super) fn new(capacity: usize, most_workers: usize) -> Lanes<K, J> {
        Lanes { by_key: HashMap::new(), capacity, most_workers, waiting: 0, now: Duration::ZERO }
    }

    /// Jobs that wait in all lanes.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// The worker time ahead of a job that is added now: all jobs of its lane, and at most the same time for each other lane.
    pub(super) fn work_ahead(&self, key: K) -> Duration {
        let Some(mine) = self.by_key.get(&key).map(|lane| lane.work) else { return Duration::ZERO };
        self.by_key.values().map(|lane| lane.work.min(mine)).sum()
    }

    /// Jobs that may wait in one lane.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether a lane is at its capacity.
    pub(super) fn is_full(&self, key: K) -> bool {
        self.by_key.get(&key).is_some_and(|lane| lane.jobs.len() >= self.capacity)
    }

    /// Puts a job at the end of its lane. `cost`: its expected time.
    pub(super) fn push(&mut self, key: K, job: J, cost: Duration) {
        let fresh = || Lane { jobs: VecDeque::new(), work: Duration::ZERO, running: 0, used: self.now };
        let lane = self.by_key.entry(key).or_insert_with(fresh);
        if lane.jobs.is_empty() {
            lane.used = lane.used.max(self.now);
        }
        lane.jobs.push_back(job);
        lane.work += cost;
        self.waiting += 1;
    }

    /// Whether a worker would find a job now.
    pub(super) fn has_turn(&self) -> bool {
        self.by_key.values().any(|lane| lane.may_run(self.most_workers))
    }

    /// Gives a turn to the next lane: `select` removes at least one job from it and returns the expected time of what it removed. `None`
    /// where no job waits, except in lanes that use as many workers as they may.
    pub(super) fn take<B>(&mut self, select: impl FnOnce(&mut VecDeque<J>) -> (B, Duration)) -> Option<(Turn<K>, B)> {
        let now = self.now;
        // An idle lane is forgotten once the others have used as much time.
        self.by_key.retain(|_, lane| lane.running > 0 || !lane.jobs.is_empty() || lane.used > now);
        let waits = self.by_key.iter_mut().filter(|(_, lane)| lane.may_run(self.most_workers));
        let (key, lane) = waits.min_by_key(|(_, lane)| lane.used)?;
        self.now = self.now.max(lane.used);
        let before = lane.jobs.len();
        let (selected, charged) = select(&mut lane.jobs);
        lane.running += 1;
        self.waiting -= before - lane.jobs.len();
        lane.work = if lane.jobs.is_empty() { Duration::ZERO } else { lane.work.saturating_sub(charged) };
        // Charged now and not at the end: otherwise other free workers would take from the same lane meanwhile.
        lane.used += charged;
        Some((Turn { key: *key, charged }, selected))
    }

    /// Charges a lane for time that a helper worked on its turn.
    pub(super) fn charge(&mut self, key: K, took: Duration) {
        if let Some(lane) = self.by_key.get_mut(&key) {
            lane.used += took;
        }
    }

    /// The worker that has a turn of this lane was replaced, and does not end its turn.
    pub(super) fn lose_worker(&mut self, key: K) {
        if let Some(lane) = self.by_key.get_mut(&key) {
            lane.running -= 1;
        }
    }

    /// Ends a turn that took this long.
    pub(super) fn end_turn(&mut self, turn: &Turn<K>, took: Duration) {
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

    /// Gives one turn that takes the time that `takes` returns for the lane.
    fn turn(lanes: &mut Lanes<char, u32>, takes: impl Fn(char) -> Duration) -> Option<char> {
        let (turn, _) = lanes.take(one)?;
        lanes.end_turn(&turn, takes(turn.key));
        Some(turn.key)
    }

    #[test]
    fn turns_go_by_time_used_and_not_by_jobs_waiting() {
        let mut lanes = Lanes::new(1000, 9);
        for i in 0..100 {
            lanes.push('s', i, MS);
            lanes.push('f', i, MS);
        }
        let mut turns = HashMap::from([('s', 0), ('f', 0)]);
        for _ in 0..44 {
            let key = turn(&mut lanes, |key| if key == 's' { 10 * MS } else { MS }).unwrap();
            *turns.get_mut(&key).unwrap() += 1;
        }
        // 40 ms each: four turns for the slow lane and forty for the fast one.
        assert_eq!(turns, HashMap::from([('s', 4), ('f', 40)]));
    }

    #[test]
    fn a_lane_that_refills_at_once_keeps_its_used_time() {
        let mut lanes = Lanes::new(1000, 9);
        let mut turns = Vec::new();
        lanes.push('s', 0, MS);
        for i in 0..100 {
            lanes.push('f', i, MS);
        }
        for _ in 0..60 {
            let key = turn(&mut lanes, |key| if key == 's' { 20 * MS } else { MS }).unwrap();
            if key == 's' {
                // Its only caller sends the next request.
                lanes.push('s', 0, MS);
            }
            turns.push(key);
        }
        let slow = turns.iter().filter(|key| **key == 's').count();
        assert!((2..=4).contains(&slow), "the same time as the other lane: {slow} of {turns:?}");
    }

    #[test]
    fn a_running_turn_counts_before_it_ends() {
        let mut lanes = Lanes::new(10, 9);
        for i in 0..3 {
            lanes.push('s', i, MS);
        }
        let (first, _) = lanes.take(one).unwrap();
        lanes.push('f', 0, MS);
        let (second, _) = lanes.take(one).unwrap();
        assert_eq!((first.key, second.key), ('s', 'f'), "the second worker does not take from the same lane");
        lanes.end_turn(&first, MS);
        lanes.end_turn(&second, MS);
    }

    #[test]
    fn time_of_helpers_is_charged_to_the_lane() {
        let mut lanes = Lanes::new(10, 9);
        for i in 0..3 {
            lanes.push('l', i, MS);
            lanes.push('o', i, MS);
        }
        let (first, _) = lanes.take(one).unwrap();
        lanes.charge(first.key, 5 * MS);
        lanes.charge('x', MS);
        lanes.end_turn(&first, MS);
        let turns: Vec<char> = (0..3).map(|_| turn(&mut lanes, |_| MS).unwrap()).collect();
        assert!(!turns.contains(&first.key), "it has used six milliseconds: {turns:?}");
    }

    #[test]
    fn an_idle_lane_saves_up_no_time() {
        let mut lanes = Lanes::new(10, 9);
        for i in 0..3 {
            lanes.push('a', i, MS);
        }
        turn(&mut lanes, |_| 1000 * MS);
        turn(&mut lanes, |_| 1000 * MS);
        for i in 0..3 {
            lanes.push('b', i, MS);
        }
        // The new lane is next, once: it starts with the used time of the other.
        assert_eq!(turn(&mut lanes, |_| 1500 * MS), Some('b'));
        assert_eq!(turn(&mut lanes, |_| MS), Some('a'));
        assert_eq!(turn(&mut lanes, |_| MS), Some('b'));
    }

    #[test]
    fn a_full_lane_does_not_affect_other_lanes() {
        let mut lanes = Lanes::new(2, 9);
        lanes.push('a', 1, MS);
        assert!(!lanes.is_full('a'));
        lanes.push('a', 2, 4 * MS);
        assert!(lanes.is_full('a') && !lanes.is_full('b'));
        assert_eq!((lanes.work_ahead('a'), lanes.work_ahead('b')), (5 * MS, Duration::ZERO));
        lanes.push('b', 1, MS);
        assert_eq!(
            (lanes.work_ahead('a'), lanes.work_ahead('b')),
            (6 * MS, 2 * MS),
            "at most the same time for each other lane"
        );
        assert_eq!(lanes.waiting(), 3);
        let all = |jobs: &mut VecDeque<u32>| (jobs.drain(..).count(), MS);
        let (first, jobs) = lanes.take(all).unwrap();
        lanes.end_turn(&first, MS);
        assert_eq!(lanes.waiting(), 3 - jobs);
        let (second, _) = lanes.take(all).unwrap();
        lanes.end_turn(&second, MS);
        assert!(lanes.waiting() == 0 && lanes.take(all).is_none());
        assert_eq!((lanes.work_ahead('a'), lanes.work_ahead('b')), (Duration::ZERO, Duration::ZERO));
    }
}
