//! The jobs that wait in one lane, in an order that is fair to their callers.
//!
//! Each caller's jobs stay in the order they came. Between callers the order is by the worker time that their jobs cost (start-time fair
//! queueing, Goyal, Vin and Cheng 1996): a job's tag is the time at which it would start if all callers shared the lane evenly. So a
//! caller with one job does not wait behind a thousand of another caller.

use super::batch::Selected;
use crate::model::CallerId;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// What the queue needs to know of a job, and what it notes on it.
pub(super) trait Queued {
    fn caller(&self) -> CallerId;
    /// The worker time that it is expected to take.
    fn cost(&self) -> Duration;
    fn tag(&self) -> Duration;
    fn set_tag(&mut self, tag: Duration);
}

/// A job whose cost is not known counts as this much, so that callers take turns before anything was measured.
const LEAST_COST: Duration = Duration::from_micros(1);

/// The waiting jobs of one lane.
#[derive(Debug)]
pub(super) struct Queue<J> {
    /// By tag, ascending.
    jobs: VecDeque<J>,
    /// The expected time of all of them.
    work: Duration,
    callers: HashMap<CallerId, Share>,
    /// The tag of the last job that left: a caller without waiting jobs starts here, and cannot claim time from before.
    now: Duration,
}

/// One caller's waiting jobs.
#[derive(Debug)]
struct Share {
    jobs: usize,
    /// The tag of its next job.
    next: Duration,
}

impl<J> Default for Queue<J> {
    fn default() -> Queue<J> {
        Queue { jobs: VecDeque::new(), work: Duration::ZERO, callers: HashMap::new(), now: Duration::ZERO }
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
        self.callers.get(&caller).map_or(self.now, |share| share.next)
    }

    /// The place of a job with this tag: behind those that have the same.
    fn place(&self, tag: Duration) -> usize {
        if self.jobs.back().is_none_or(|last| last.tag() <= tag) {
            return self.jobs.len();
        }
        self.jobs.partition_point(|job| job.tag() <= tag)
    }

    /// The expected time of the jobs that would go before this caller's next one.
    pub(super) fn work_before(&self, caller: CallerId) -> Duration {
        let place = self.place(self.next_tag(caller));
        if place == self.jobs.len() { self.work } else { self.jobs.iter().take(place).map(J::cost).sum() }
    }

    /// Whether this caller's next job would be the last one.
    pub(super) fn would_be_last(&self, caller: CallerId) -> bool {
        self.place(self.next_tag(caller)) == self.jobs.len()
    }

    pub(super) fn push(&mut self, mut job: J) {
        let tag = self.next_tag(job.caller());
        job.set_tag(tag);
        let cost = job.cost();
        let share = self.callers.entry(job.caller()).or_insert(Share { jobs: 0, next: tag });
        share.jobs += 1;
        share.next = tag + cost.max(LEAST_COST);
        self.work += cost;
        let place = self.place(tag);
        self.jobs.insert(place, job);
    }

    /// Removes the last job: one of the caller that has the most work waiting.
    pub(super) fn pop_last(&mut self) -> Option<J> {
        let job = self.jobs.pop_back()?;
        self.left(&job);
        // The next job of this caller gets the tag that this one had.
        if let Some(share) = self.callers.get_mut(&job.caller()) {
            share.next = job.tag();
        }
        Some(job)
    }

    /// Has `select` remove jobs. Returns them with their expected time.
    pub(super) fn take(&mut self, select: impl FnOnce(&mut VecDeque<J>) -> Selected<J>) -> (Selected<J>, Duration) {
        let selected = select(&mut self.jobs);
        let Selected { batch, expired, cancelled } = &selected;
        let mut cost = Duration::ZERO;
        for job in batch.iter().chain(expired).chain(cancelled) {
            cost += job.cost();
            self.left(job);
        }
        // The first of the batch was the front of the queue, or all before it were dropped.
        if let Some(first) = batch.first() {
            self.now = self.now.max(first.tag());
        }
        (selected, cost)
    }

    fn left(&mut self, job: &J) {
        self.work = if self.jobs.is_empty() { Duration::ZERO } else { self.work.saturating_sub(job.cost()) };
        if let Some(share) = self.callers.get_mut(&job.caller()) {
            share.jobs -= 1;
            if share.jobs == 0 {
                self.callers.remove(&job.caller());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug)]
    struct Job {
        caller: CallerId,
        number: u32,
        cost: Duration,
        tag: Duration,
    }

    impl Queued for Job {
        fn caller(&self) -> CallerId {
            self.caller
        }
        fn cost(&self) -> Duration {
            self.cost
        }
        fn tag(&self) -> Duration {
            self.tag
        }
        fn set_tag(&mut self, tag: Duration) {
            self.tag = tag;
        }
    }

    const MS: Duration = Duration::from_millis(1);

    fn job(caller: &str, number: u32, cost: Duration) -> Job {
        Job { caller: CallerId::of(caller), number, cost, tag: Duration::ZERO }
    }

    fn next(queue: &mut Queue<Job>) -> Option<u32> {
        let one = |jobs: &mut VecDeque<Job>| Selected {
            batch: jobs.pop_front().into_iter().collect(),
            ..Selected::default()
        };
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
        /// Whatever comes and goes: the order of a caller's jobs, the sums, and the shares stay right; and two callers that always have jobs
        /// waiting get the same time, within one job each.
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
                } else {
                    let one = |jobs: &mut VecDeque<Job>| Selected { batch: jobs.pop_front().into_iter().collect(), ..Selected::default() };
                    if let Some(job) = queue.take(one).0.batch.pop() {
                        let before = last_of.insert(job.caller, job.number);
                        prop_assert!(before.is_none_or(|before| before < job.number));
                    }
                }
                prop_assert!(queue.jobs.iter().is_sorted_by_key(|job| job.tag));
                prop_assert_eq!(queue.work, queue.jobs.iter().map(|job| job.cost).sum::<Duration>());
                prop_assert_eq!(queue.callers.values().map(|share| share.jobs).sum::<usize>(), queue.jobs.len());
                for name in ["a", "b", "c", "d"] {
                    let caller = CallerId::of(name);
                    let before = queue.work_before(caller);
                    queue.push(job(name, u32::MAX, MS));
                    let at = queue.jobs.iter().rposition(|job| job.number == u32::MAX).unwrap();
                    prop_assert_eq!(before, queue.jobs.iter().take(at).map(|job| job.cost).sum::<Duration>());
                    let job = queue.jobs.remove(at).unwrap();
                    queue.left(&job);
                    if let Some(share) = queue.callers.get_mut(&caller) {
                        share.next = job.tag;
                    }
                }
            }
        }
    }
}
