//! Idle workers, the help they are asked for, and the load of the other threads.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Counts idle workers and queues the parts of split runs that they are asked to run. `H` is such a part.
#[derive(Debug)]
pub(super) struct IdleWorkers<H> {
    /// Workers that wait for work.
    waiting: usize,
    /// One for each worker that was asked and has not started yet. Never more than [`IdleWorkers::waiting`] when it is filled.
    asked: VecDeque<H>,
    /// A bit for each of the last turns: set where a worker had waited for it.
    recent: u16,
}

/// The machine is quiet where a worker had waited for at least this many of the last 16 turns. On a busy machine, workers find the next
/// job as soon as they are done, and splitting runs would only slow the others.
const QUIET_TURNS: u32 = 12;

impl<H> IdleWorkers<H> {
    /// No worker is idle yet, and the machine is quiet.
    pub(super) fn new() -> IdleWorkers<H> {
        IdleWorkers { waiting: 0, asked: VecDeque::new(), recent: u16::MAX }
    }

    /// A worker starts to wait, until [`IdleWorkers::end`].
    pub(super) fn begin(&mut self) {
        self.waiting += 1;
    }

    pub(super) fn end(&mut self) {
        self.waiting -= 1;
    }

    /// A worker took a turn. `waited`: it had been idle before.
    pub(super) fn record_turn(&mut self, waited: bool) {
        self.recent = self.recent << 1 | u16::from(waited);
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Workers that can be asked for help: those that wait and were not asked yet.
    pub(super) fn available(&self) -> usize {
        self.waiting.saturating_sub(self.asked.len())
    }

    /// Whether workers had waited for most of the last turns.
    pub(super) fn is_quiet(&self) -> bool {
        self.recent.count_ones() >= QUIET_TURNS
    }

    /// Asks one of [`IdleWorkers::available`] for help.
    pub(super) fn ask_for_help(&mut self, help: H) {
        self.asked.push_back(help);
    }

    /// The next part that a worker without other work runs.
    pub(super) fn take_help(&mut self) -> Option<H> {
        self.asked.pop_front()
    }

    /// Withdraws the requests for help that no worker has taken.
    pub(super) fn withdraw(&mut self, is_withdrawn: impl Fn(&H) -> bool) {
        self.asked.retain(|help| !is_withdrawn(help));
    }
}

/// Measures the cores used by all threads except the workers: connections and short runs, the log, loads.
#[derive(Debug)]
pub(super) struct OtherCpuLoad {
    /// When the current span began.
    since: Instant,
    /// Processor time of the other threads at that moment.
    time: Duration,
    /// Cores used in the span before.
    cores: f64,
}

/// The shortest span to measure over. A shorter one predicts little.
const SPAN: Duration = Duration::from_millis(50);

impl OtherCpuLoad {
    pub(super) fn new(now: Instant, time: Duration) -> OtherCpuLoad {
        OtherCpuLoad { since: now, time, cores: 0.0 }
    }

    /// The cores used recently. `time`: the processor time of the other threads until now.
    pub(super) fn cores(&mut self, now: Instant, time: Duration) -> f64 {
        let span = now.saturating_duration_since(self.since);
        if span >= SPAN {
            self.cores = time.saturating_sub(self.time).as_secs_f64() / span.as_secs_f64();
            (self.since, self.time) = (now, time);
        }
        self.cores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(waiting: usize) -> IdleWorkers<u32> {
        let mut idle = IdleWorkers::new();
        (0..waiting).for_each(|_| idle.begin());
        idle
    }

    #[test]
    fn a_worker_that_was_asked_is_not_available_to_others() {
        let mut idle = idle(3);
        assert_eq!(idle.available(), 3);
        idle.ask_for_help(7);
        idle.ask_for_help(7);
        assert_eq!(idle.available(), 1);
        idle.end();
        assert_eq!(idle.take_help(), Some(7));
        assert_eq!((idle.waiting(), idle.available()), (2, 1), "one has started, the other has not");
        idle.withdraw(|help| *help == 7);
        assert_eq!((idle.available(), idle.take_help()), (2, None), "the request for help was withdrawn");
    }

    #[test]
    fn the_machine_is_quiet_while_workers_wait_for_most_turns() {
        let mut idle = idle(3);
        (0..4).for_each(|_| idle.record_turn(false));
        assert!(idle.is_quiet(), "twelve of the last sixteen");
        idle.record_turn(false);
        assert!(!idle.is_quiet());
        (0..15).for_each(|_| idle.record_turn(true));
        assert!(idle.is_quiet());
    }

    #[test]
    fn the_load_of_other_threads_is_measured_in_spans() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let mut load = OtherCpuLoad::new(now, ms(500));
        let mut tenths = |at, time| (load.cores(now + ms(at), ms(time)) * 10.0).round();
        assert_eq!(tenths(49, 549), 0.0, "the span is too short");
        assert_eq!(tenths(100, 650), 15.0);
        assert_eq!(tenths(120, 700), 15.0, "the last span counts");
        assert_eq!(tenths(200, 600), 0.0, "a long run of a worker is subtracted only when it ends");
    }
}
