//! The jobs that wait in one lane, in an order that is fair to their callers.
//!
//! Each caller's jobs stay in the order they came. Between callers the order is by the worker time that their jobs cost (start-time fair
//! queueing, Goyal, Vin and Cheng 1996): a job's tag is the time at which it would start if all callers shared the lane evenly. So a
//! caller with one job does not wait behind a thousand of another caller.

use super::batch::Selected;
use crate::model::CallerId;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// What the queue knows of a job.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slot {
    caller: CallerId,
    /// The worker time that the job is expected to take.
    cost: Duration,
    /// Its place, given by the queue.
    tag: Duration,
}

impl Slot {
    pub(super) fn new(caller: CallerId, cost: Duration) -> Slot {
        Slot { caller, cost, tag: Duration::ZERO }
    }
}

/// A job that can wait in a queue.
pub(super) trait Queued {
    fn slot(&self) -> &Slot;
    fn slot_mut(&mut self) -> &mut Slot;
}

/// A job whose cost is not known counts as this much, so that callers take turns before anything was measured.
const LEAST_COST: Duration = Duration::from_micros(1);
/// The most callers without waiting jobs that are remembered. A caller that is forgotten starts at the present.
const MOST_IDLE: usize = 4096;

/// The waiting jobs of one lane.
#[derive(Debug)]
pub(super) struct Queue<J> {
    /// By tag, ascending.
    jobs: VecDeque<J>,
    /// The expected time of all of them.
    work: Duration,
    /// Those that have jobs here, or had some that would have ended after `now`.
    callers: HashMap<CallerId, Share>,
    /// Idle callers are looked for when there are more callers than this.
    search_above: usize,
    /// The tag of the last job that left: no job starts before, so a caller cannot claim time in which it had no jobs.
    now: Duration,
}

/// What one caller has used of the lane.
#[derive(Debug)]
struct Share {
    jobs: usize,
    /// When its last job would end: its next one starts then, or at the present if that is later.
    end: Duration,
}

impl<J> Default for Queue<J> {
    fn default() -> Queue<J> {
        Queue {
            jobs: VecDeque::new(),
            work: Duration::ZERO,
            callers: HashMap::new(),
            search_above: 0,
            now: Duration::ZERO,
        }
    }
}

impl<J: Queued> Queue<J> {
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// The expected time of all waiting jobs.
    pub(super) fn work(&self) -> Duration {
        self.work
    }

    /// The tag that a caller's next job would get.
    fn next_tag(&self, caller: CallerId) -> Duration {
        self.callers.get(&caller).map_or(self.now, |share| share.end.max(self.now))
    }

    /// The place of a job with this tag: behind those that have the same.
    fn place(&self, tag: Duration) -> usize {
        if self.jobs.back().is_none_or(|last| last.slot().tag <= tag) {
            return self.jobs.len();
        }
        self.jobs.partition_point(|job| job.slot().tag <= tag)
    }

    /// The expected time of the jobs that would go before this caller's next one.
    pub(super) fn work_before(&self, caller: CallerId) -> Duration {
        let place = self.place(self.next_tag(caller));
        if place == self.jobs.len() { self.work } else { self.jobs.iter().take(place).map(|job| job.slot().cost).sum() }
    }

    /// Whether this caller's next job would be the last one.
    pub(super) fn would_be_last(&self, caller: CallerId) -> bool {
        self.place(self.next_tag(caller)) == self.jobs.len()
    }

    pub(super) fn push(&mut self, mut job: J) {
        let Slot { caller, cost, .. } = *job.slot();
        let tag = self.next_tag(caller);
        job.slot_mut().tag = tag;
        let share = self.callers.entry(caller).or_insert(Share { jobs: 0, end: tag });
        share.jobs += 1;
        share.end = tag + cost.max(LEAST_COST);
        self.work += cost;
        let place = self.place(tag);
        self.jobs.insert(place, job);
    }

    /// Removes the last job: one of the caller that has the most work waiting.
    pub(super) fn pop_last(&mut self) -> Option<J> {
        let job = self.jobs.pop_back()?;
        self.left(&job);
        // The next job of this caller gets the tag that this one had.
        if let Some(share) = self.callers.get_mut(&job.slot().caller) {
            share.end = job.slot().tag;
        }
        Some(job)
    }

    /// Has `select` remove jobs. Returns them with their expected time.
    pub(super) fn take(&mut self, select: impl FnOnce(&mut VecDeque<J>) -> Selected<J>) -> (Selected<J>, Duration) {
        let selected = select(&mut self.jobs);
        let Selected { batch, expired, cancelled } = &selected;
        let mut cost = Duration::ZERO;
        for job in batch.iter().chain(expired).chain(cancelled) {
            cost += job.slot().cost;
            self.left(job);
        }
        // The first of the batch was the front of the queue, or all before it were dropped.
        if let Some(first) = batch.first() {
            self.now = self.now.max(first.slot().tag);
        }
        self.forget_idle();
        (selected, cost)
    }

    fn left(&mut self, job: &J) {
        let Slot { caller, cost, .. } = job.slot();
        self.work = if self.jobs.is_empty() { Duration::ZERO } else { self.work.saturating_sub(*cost) };
        if let Some(share) = self.callers.get_mut(caller) {
            share.jobs -= 1;
        }
    }

    /// Forgets callers whose time is over, and all where nothing waits: they would start together.
    fn forget_idle(&mut self) {
        if self.jobs.is_empty() {
            self.callers.clear();
        } else if self.callers.len() > self.search_above {
            let now = self.now;
            self.callers.retain(|_, share| share.jobs > 0 || share.end > now);
            if self.callers.len() > self.jobs.len() + MOST_IDLE {
                self.callers.retain(|_, share| share.jobs > 0);
            }
            self.search_above = 2 * self.callers.len() + 64;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Also for the tests of lanes.
    #[derive(Debug)]
    pub(in crate::execute) struct Job {
        slot: Slot,
        number: u32,
    }

    impl Queued for Job {
        fn slot(&self) -> &Slot {
            &self.slot
        }

        fn slot_mut(&mut self) -> &mut Slot {
            &mut self.slot
        }
    }

    impl Job {
        pub(in crate::execute) fn of(caller: CallerId, cost: Duration) -> Job {
            Job { slot: Slot::new(caller, cost), number: 0 }
        }

        pub(in crate::execute) fn caller(&self) -> CallerId {
            self.slot.caller
        }
    }

    /// Takes the front of a queue.
    pub(in crate::execute) fn one(jobs: &mut VecDeque<Job>) -> Selected<Job> {
        Selected { batch: jobs.pop_front().into_iter().collect(), ..Selected::default() }
    }

    const MS: Duration = Duration::from_millis(1);

    fn job(caller: &str, number: u32, cost: Duration) -> Job {
        Job { number, ..Job::of(CallerId::of(caller), cost) }
    }

    fn next(queue: &mut Queue<Job>) -> Option<u32> {
        queue.take(one).0.batch.pop().map(|job| job.number)
    }

    #[test]
    fn one_job_does_not_wait_behind_a_thousand_of_another_caller() {
        let mut queue = Queue::default();
        for number in 0..1000 {
            queue.push(job("greedy", number, MS));
        }
        assert_eq!((next(&mut queue), next(&mut queue)), (Some(0), Some(1)));
        assert_eq!(queue.work_before(CallerId::of("greedy")), 998 * MS);
        // It starts with the time of the job that left last, so the next one in the order of the other caller goes first at most.
        assert!(queue.work_before(CallerId::of("modest")) <= MS);
        queue.push(job("modest", 5000, MS));
        let place = std::iter::from_fn(|| next(&mut queue)).position(|number| number == 5000).unwrap();
        assert!(place <= 1, "behind {place}");
    }

    #[test]
    fn callers_take_turns_by_cost_and_not_by_jobs() {
        let mut queue = Queue::default();
        for number in 0..100 {
            queue.push(job("large", 1000 + number, 10 * MS));
            queue.push(job("small", number, MS));
        }
        let first: Vec<u32> = (0..44).map(|_| next(&mut queue).unwrap()).collect();
        let large = first.iter().filter(|number| **number >= 1000).count();
        assert!((4..=5).contains(&large), "40 ms each: {first:?}");
    }

    #[test]
    fn a_caller_that_comes_back_at_once_gets_its_share_and_no_more() {
        let mut queue = Queue::default();
        for number in 0..100 {
            queue.push(job("backlog", number, MS));
        }
        let mut of_other = 0;
        queue.push(job("returns", 1000, MS));
        for _ in 0..60 {
            if next(&mut queue).unwrap() == 1000 {
                of_other += 1;
                queue.push(job("returns", 1000, MS));
            }
        }
        assert!((29..=31).contains(&of_other), "{of_other} of 60");
    }

    #[test]
    fn callers_without_jobs_are_forgotten() {
        let mut queue = Queue::default();
        for number in 0..20_000 {
            queue.push(job("backlog", number, MS));
            queue.push(job(&format!("once-{number}"), number, MS));
            next(&mut queue);
            assert!(queue.callers.len() <= 2 * (queue.len() + MOST_IDLE) + 65, "{}", queue.callers.len());
        }
        while next(&mut queue).is_some() {}
        assert!(queue.callers.is_empty());
    }

    #[test]
    fn the_last_job_is_one_of_the_caller_with_the_most_work() {
        let mut queue = Queue::default();
        for number in 0..10 {
            queue.push(job("greedy", number, MS));
        }
        queue.push(job("modest", 100, MS));
        assert!(queue.would_be_last(CallerId::of("greedy")) && !queue.would_be_last(CallerId::of("third")));
        assert_eq!(queue.pop_last().map(|job| job.number), Some(9));
        queue.push(job("greedy", 10, MS));
        let order: Vec<u32> = std::iter::from_fn(|| next(&mut queue)).collect();
        assert_eq!(
            order,
            [0, 100, 1, 2, 3, 4, 5, 6, 7, 8, 10],
            "a caller that was refused once has not lost its place"
        );
        assert!(queue.callers.is_empty() && queue.work == Duration::ZERO);
    }

    proptest! {
        /// Whatever comes and goes: the order of a caller's jobs, the sums, and the shares stay right.
        #[test]
        fn orders_sums_and_shares(steps in proptest::collection::vec((0_u8..4, 0_u64..20), 1..300)) {
            let mut queue: Queue<Job> = Queue::default();
            let mut number = 0;
            let mut last_of = HashMap::new();
            for (what, cost) in steps {
                if what < 3 {
                    let name = ["a", "b", "c"][usize::from(what)];
                    queue.push(job(name, number, MS * u32::try_from(cost).unwrap()));
                    number += 1;
                } else if let Some(job) = queue.take(one).0.batch.pop() {
                    let before = last_of.insert(job.caller(), job.number);
                    prop_assert!(before.is_none_or(|before| before < job.number));
                }
                prop_assert!(queue.jobs.iter().is_sorted_by_key(|job| job.slot.tag));
                prop_assert_eq!(queue.work, queue.jobs.iter().map(|job| job.slot.cost).sum::<Duration>());
                prop_assert_eq!(queue.callers.values().map(|share| share.jobs).sum::<usize>(), queue.jobs.len());
                for name in ["a", "b", "c", "d"] {
                    let caller = CallerId::of(name);
                    let before = queue.work_before(caller);
                    queue.push(job(name, u32::MAX, MS));
                    let at = queue.jobs.iter().rposition(|job| job.number == u32::MAX).unwrap();
                    prop_assert_eq!(before, queue.jobs.iter().take(at).map(|job| job.slot.cost).sum::<Duration>());
                    let job = queue.jobs.remove(at).unwrap();
                    queue.left(&job);
                    if let Some(share) = queue.callers.get_mut(&caller) {
                        share.end = job.slot.tag;
                    }
                }
            }
        }
    }
}
