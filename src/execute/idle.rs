//! The workers that have nothing to do, and what they are asked to help with.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Who idles, and the shares of others' runs that wait for them.
#[derive(Debug)]
pub struct Idle<H> {
    /// Workers that wait for something to do.
    waiting: usize,
    /// One for each worker that is asked and has not come yet.
    asked: VecDeque<H>,
    /// A bit for each of the last turns: whether a worker had waited for it.
    quiet: u16,
}

/// Of the last 16 turns, those that a worker had waited for where the machine is quiet: where workers find the next who waits when they
/// are done, all are better off with runs of their own.
const QUIET: u32 = 12;

impl<H> Idle<H> {
    /// Nobody yet, and quiet.
    pub fn new() -> Idle<H> {
        Idle { waiting: 0, asked: VecDeque::new(), quiet: u16::MAX }
    }

    /// A worker finds nothing to do, until [`Idle::end`].
    pub fn begin(&mut self) {
        self.waiting += 1;
    }

    pub fn end(&mut self) {
        self.waiting -= 1;
    }

    /// A turn was taken, by a worker that had `waited` for it or not.
    pub fn turn(&mut self, waited: bool) {
        self.quiet = self.quiet << 1 | u16::from(waited);
    }

    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Workers that may be asked for help: those that wait and are not asked already.
    pub fn spare(&self) -> usize {
        self.waiting.saturating_sub(self.asked.len())
    }

    /// Whether workers had waited for most of the last turns.
    pub fn is_quiet(&self) -> bool {
        self.quiet.count_ones() >= QUIET
    }

    /// Asks one of [`Idle::spare`].
    pub fn ask(&mut self, help: H) {
        self.asked.push_back(help);
    }

    /// What a worker that has nothing else to do helps with.
    pub fn take(&mut self) -> Option<H> {
        self.asked.pop_front()
    }

    /// Who has not come need not come any more.
    pub fn let_go(&mut self, of: impl Fn(&H) -> bool) {
        self.asked.retain(|help| !of(help));
    }
}

/// What the process does beside the workers: connections and short runs, the log, loads. Workers that idle say nothing of it.
#[derive(Debug)]
pub struct Beside {
    at: Instant,
    /// Processor time of all threads but the workers, then.
    time: Duration,
    /// Cores it took before then.
    cores: f64,
}

/// Shorter spans say little of what comes next.
const SPAN: Duration = Duration::from_millis(50);

impl Beside {
    pub fn new(now: Instant, time: Duration) -> Beside {
        Beside { at: now, time, cores: 0.0 }
    }

    /// The cores it takes of late, `time` being what it had of them until now.
    pub fn cores(&mut self, now: Instant, time: Duration) -> f64 {
        let span = now.saturating_duration_since(self.at);
        if span >= SPAN {
            self.cores = time.saturating_sub(self.time).as_secs_f64() / span.as_secs_f64();
            (self.at, self.time) = (now, time);
        }
        self.cores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(waiting: usize) -> Idle<u32> {
        let mut idle = Idle::new();
        (0..waiting).for_each(|_| idle.begin());
        idle
    }

    #[test]
    fn who_is_asked_by_one_is_not_spare_for_another() {
        let mut idle = idle(3);
        assert_eq!(idle.spare(), 3);
        idle.ask(7);
        idle.ask(7);
        assert_eq!(idle.spare(), 1);
        idle.end();
        assert_eq!(idle.take(), Some(7));
        assert_eq!((idle.waiting(), idle.spare()), (2, 1), "one has come, the other is still to");
        idle.let_go(|help| *help == 7);
        assert_eq!((idle.spare(), idle.take()), (2, None), "and need not");
    }

    #[test]
    fn it_is_quiet_where_workers_were_waiting_of_late() {
        let mut idle = idle(3);
        (0..4).for_each(|_| idle.turn(false));
        assert!(idle.is_quiet(), "twelve of sixteen");
        idle.turn(false);
        assert!(!idle.is_quiet());
        (0..15).for_each(|_| idle.turn(true));
        assert!(idle.is_quiet());
    }

    #[test]
    fn what_is_done_beside_is_measured_by_spans() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let mut beside = Beside::new(now, ms(500));
        let mut tenths = |at, time| (beside.cores(now + ms(at), ms(time)) * 10.0).round();
        assert_eq!(tenths(49, 549), 0.0, "too short a time to say");
        assert_eq!(tenths(100, 650), 15.0);
        assert_eq!(tenths(120, 700), 15.0, "as before");
        assert_eq!(tenths(200, 600), 0.0, "workers that are at a long run are counted late");
    }
}
