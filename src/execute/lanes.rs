//! Waiting jobs, in one lane per version and priority, and the order of the lanes' turns.
//!
//! The lane that has used the least worker time is next (start-time fair queueing, Goyal, Vin and Cheng 1996, with a run's measured
//! time as its length). So a slow version gets its share of the workers and no more. The time of a lane counts times its weight, so that
//! lanes of batch priority get a smaller share.

use super::batch::Selected;
use super::queue::{Queue, Queued};
use crate::model::CallerId;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

/// Identifies a lane.
pub(super) trait LaneId: Eq + Hash + Copy {
    /// How much the time that it uses counts; at least 1.
    fn weight(self) -> u32;
    /// The other lanes of its version: they share the workers that a version may use.
    fn of_same_version(self) -> impl Iterator<Item = Self>;
}

/// The lanes of all waiting jobs. `K` identifies a lane.
#[derive(Debug)]
pub(super) struct Lanes<K, J> {
    by_key: HashMap<K, Lane<J>>,
    /// Jobs that may wait in one lane.
    capacity: usize,
    /// Workers that the lanes of one version may use at once.
    most_workers: usize,
    waiting: usize,
    /// The used time of the lane that had the last turn. A new lane starts here, so it cannot claim time from before it existed.
    now: Duration,
}

#[derive(Debug)]
struct Lane<J> {
    jobs: Queue<J>,
    /// Workers that run jobs of this lane.
    running: usize,
    /// The worker time it has used, times its weight. Runs in progress count with their expected time.
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

impl<K: LaneId, J: Queued> Lanes<K, J> {
    pub(super) fn new(capacity: usize, most_workers: usize) -> Lanes<K, J> {
        Lanes { by_key: HashMap::new(), capacity, most_workers, waiting: 0, now: Duration::ZERO }
    }

    /// Jobs that wait in all lanes.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// The worker time ahead of a job of this caller that is added now: the jobs before it in its lane, and at most the same time for each
    /// other lane, as the weights divide it.
    pub(super) fn work_ahead(&self, key: K, caller: CallerId) -> Duration {
        self.by_key.get(&key).map_or(Duration::ZERO, |lane| self.work_beside(key, lane.jobs.work_before(caller)))
    }

    /// The worker time ahead of a job that is added at the end of a lane.
    pub(super) fn work_of_all(&self, key: K) -> Duration {
        self.by_key.get(&key).map_or(Duration::ZERO, |lane| self.work_beside(key, lane.jobs.work()))
    }

    /// What all lanes work while this one works for so long.
    fn work_beside(&self, key: K, mine: Duration) -> Duration {
        if mine.is_zero() {
            return mine;
        }
        let others = self.by_key.iter().filter(|(other, _)| **other != key);
        let others: Duration =
            others.map(|(other, lane)| lane.jobs.work().min(mine * key.weight() / other.weight())).sum();
        mine + others
    }

    /// Jobs that may wait in one lane.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether no further job of this caller may wait in the lane: it is full, and the job would be the last one.
    pub(super) fn is_full_for(&self, key: K, caller: CallerId) -> bool {
        self.by_key.get(&key).is_some_and(|lane| lane.jobs.len() >= self.capacity && lane.jobs.would_be_last(caller))
    }

    /// Puts a job into its lane, behind the jobs that callers with less waiting work have there. Where the lane is full, the last job of it is
    /// returned: its caller has the most work waiting.
    pub(super) fn push(&mut self, key: K, job: J) -> Option<J> {
        let fresh = || Lane { jobs: Queue::default(), running: 0, used: self.now };
        let lane = self.by_key.entry(key).or_insert_with(fresh);
        if lane.jobs.is_empty() {
            lane.used = lane.used.max(self.now);
        }
        lane.jobs.push(job);
        if lane.jobs.len() > self.capacity {
            return lane.jobs.pop_last();
        }
        self.waiting += 1;
        None
    }

    fn may_run(&self, key: K, lane: &Lane<J>) -> bool {
        let of_others = key.of_same_version().filter_map(|other| self.by_key.get(&other)).map(|lane| lane.running);
        !lane.jobs.is_empty() && lane.running + of_others.sum::<usize>() < self.most_workers
    }

    /// Whether a worker would find a job now.
    pub(super) fn has_turn(&self) -> bool {
        self.by_key.iter().any(|(key, lane)| self.may_run(*key, lane))
    }

    /// Gives a turn to the next lane: `select` removes at least one job from it. `None` where no job waits, except in lanes whose version uses
    /// as many workers as it may.
    pub(super) fn take(
        &mut self,
        select: impl FnOnce(&mut VecDeque<J>) -> Selected<J>,
    ) -> Option<(Turn<K>, Selected<J>)> {
        let now = self.now;
        // An idle lane is forgotten once the others have used as much time.
        self.by_key.retain(|_, lane| lane.running > 0 || !lane.jobs.is_empty() || lane.used > now);
        let waits = self.by_key.iter().filter(|(key, lane)| self.may_run(**key, lane));
        let key = waits.min_by_key(|(_, lane)| lane.used).map(|(key, _)| *key)?;
        let lane = self.by_key.get_mut(&key)?;
        self.now = self.now.max(lane.used);
        let before = lane.jobs.len();
        let (selected, cost) = lane.jobs.take(select);
        lane.running += 1;
        self.waiting -= before - lane.jobs.len();
        // Charged now and not at the end: otherwise other free workers would take from the same lane meanwhile.
        let charged = cost * key.weight();
        lane.used += charged;
        Some((Turn { key, charged }, selected))
    }

    /// Charges a lane for time that a helper worked on its turn.
    pub(super) fn charge(&mut self, key: K, took: Duration) {
        if let Some(lane) = self.by_key.get_mut(&key) {
            lane.used += took * key.weight();
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
        lane.used = (lane.used + took * turn.key.weight()).saturating_sub(turn.charged);
        lane.running -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::tests::{Job, one};
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A lower-case letter is the interactive lane of a version, and the upper-case one its batch lane.
    impl LaneId for char {
        fn weight(self) -> u32 {
            if self.is_ascii_uppercase() { 10 } else { 1 }
        }

        fn of_same_version(self) -> impl Iterator<Item = char> {
            let other = if self.is_ascii_uppercase() { self.to_ascii_lowercase() } else { self.to_ascii_uppercase() };
            std::iter::once(other)
        }
    }

    fn job(cost: Duration) -> Job {
        Job::of(CallerId::default(), cost)
    }

    /// Adds a job that is expected to take this long. It must fit.
    fn push(lanes: &mut Lanes<char, Job>, key: char, cost: Duration) {
        assert!(lanes.push(key, job(cost)).is_none());
    }

    /// Gives one turn that takes the time that `takes` returns for the lane.
    fn turn(lanes: &mut Lanes<char, Job>, takes: impl Fn(char) -> Duration) -> Option<char> {
        let (turn, _) = lanes.take(one)?;
        lanes.end_turn(&turn, takes(turn.key));
        Some(turn.key)
    }

    #[test]
    fn turns_go_by_time_used_and_not_by_jobs_waiting() {
        let mut lanes = Lanes::new(1000, 9);
        for _ in 0..100 {
            push(&mut lanes, 's', MS);
            push(&mut lanes, 'f', MS);
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
        push(&mut lanes, 's', MS);
        for _ in 0..100 {
            push(&mut lanes, 'f', MS);
        }
        for _ in 0..60 {
            let key = turn(&mut lanes, |key| if key == 's' { 20 * MS } else { MS }).unwrap();
            if key == 's' {
                // Its only caller sends the next request.
                push(&mut lanes, 's', MS);
            }
            turns.push(key);
        }
        let slow = turns.iter().filter(|key| **key == 's').count();
        assert!((2..=4).contains(&slow), "the same time as the other lane: {slow} of {turns:?}");
    }

    #[test]
    fn a_running_turn_counts_before_it_ends() {
        let mut lanes = Lanes::new(10, 9);
        for _ in 0..3 {
            push(&mut lanes, 's', MS);
        }
        let (first, _) = lanes.take(one).unwrap();
        push(&mut lanes, 'f', MS);
        let (second, _) = lanes.take(one).unwrap();
        assert_eq!((first.key, second.key), ('s', 'f'), "the second worker does not take from the same lane");
        lanes.end_turn(&first, MS);
        lanes.end_turn(&second, MS);
    }

    #[test]
    fn time_of_helpers_is_charged_to_the_lane() {
        let mut lanes = Lanes::new(10, 9);
        for _ in 0..3 {
            push(&mut lanes, 'l', MS);
            push(&mut lanes, 'o', MS);
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
        for _ in 0..3 {
            push(&mut lanes, 'a', MS);
        }
        turn(&mut lanes, |_| 1000 * MS);
        turn(&mut lanes, |_| 1000 * MS);
        for _ in 0..3 {
            push(&mut lanes, 'b', MS);
        }
        // The new lane is next, once: it starts with the used time of the other.
        assert_eq!(turn(&mut lanes, |_| 1500 * MS), Some('b'));
        assert_eq!(turn(&mut lanes, |_| MS), Some('a'));
        assert_eq!(turn(&mut lanes, |_| MS), Some('b'));
    }

    #[test]
    fn a_full_lane_does_not_affect_other_lanes() {
        let anybody = CallerId::default();
        let mut lanes = Lanes::new(2, 9);
        push(&mut lanes, 'a', MS);
        assert!(!lanes.is_full_for('a', anybody));
        push(&mut lanes, 'a', 4 * MS);
        assert!(lanes.is_full_for('a', anybody) && !lanes.is_full_for('b', anybody));
        let ahead = |lanes: &Lanes<char, Job>| (lanes.work_ahead('a', anybody), lanes.work_ahead('b', anybody));
        assert_eq!(ahead(&lanes), (5 * MS, Duration::ZERO));
        push(&mut lanes, 'b', MS);
        assert_eq!(ahead(&lanes), (6 * MS, 2 * MS), "at most the same time for each other lane");
        assert_eq!(lanes.waiting(), 3);
        let all = |jobs: &mut VecDeque<Job>| Selected { batch: jobs.drain(..).collect(), ..Selected::default() };
        let (first, jobs) = lanes.take(all).unwrap();
        lanes.end_turn(&first, MS);
        assert_eq!(lanes.waiting(), 3 - jobs.batch.len());
        let (second, _) = lanes.take(all).unwrap();
        lanes.end_turn(&second, MS);
        assert!(lanes.waiting() == 0 && lanes.take(all).is_none());
        assert_eq!(ahead(&lanes), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn a_full_lane_takes_a_job_of_a_caller_with_less_waiting_work() {
        let mut lanes = Lanes::new(3, 9);
        for _ in 0..3 {
            push(&mut lanes, 'a', MS);
        }
        let modest = CallerId::of("modest");
        assert!(lanes.is_full_for('a', CallerId::default()) && !lanes.is_full_for('a', modest));
        assert_eq!(lanes.work_ahead('a', modest), MS, "behind the first job, which came before");
        let out = lanes.push('a', Job::of(modest, MS)).unwrap();
        assert_eq!((out.caller(), lanes.waiting()), (CallerId::default(), 3));
        assert!(lanes.is_full_for('a', modest), "its next one would be behind all others: each caller has its share");
    }

    #[test]
    fn batch_lanes_get_a_smaller_share_and_do_not_starve() {
        let mut lanes = Lanes::new(1000, 9);
        for _ in 0..200 {
            push(&mut lanes, 'a', MS);
            push(&mut lanes, 'A', MS);
            push(&mut lanes, 'B', MS);
        }
        let turns: Vec<char> = (0..120).map(|_| turn(&mut lanes, |_| MS).unwrap()).collect();
        let of = |key| turns.iter().filter(|turn| **turn == key).count();
        assert!((99..=101).contains(&of('a')) && (9..=11).contains(&of('A')), "{turns:?}");
        // 100 jobs of the lane itself, 10 of each batch lane beside them.
        assert_eq!(lanes.work_of_all('a'), 120 * MS);
        let batch = lanes.work_of_all('A');
        assert!(batch >= 190 * MS + 100 * MS + 190 * MS, "all of the interactive work goes first: {batch:?}");
    }

    #[test]
    fn the_lanes_of_a_version_share_its_workers() {
        let mut lanes = Lanes::new(9, 2);
        for key in ['a', 'a', 'A', 'b'] {
            push(&mut lanes, key, MS);
        }
        let turns: Vec<_> = std::iter::from_fn(|| lanes.take(one)).map(|(turn, _)| turn).collect();
        let of_a = turns.iter().filter(|turn| turn.key.eq_ignore_ascii_case(&'a')).count();
        assert_eq!((turns.len(), of_a), (3, 2));
        assert!(!lanes.has_turn());
        lanes.end_turn(turns.iter().find(|turn| turn.key != 'b').unwrap(), MS);
        assert!(lanes.has_turn());
    }
}
