//! While an I/O thread refuses half of its requests or more, it lets them gather for a moment before it looks for more.
//!
//! A request that arrives while the thread waits for events wakes it. In an overload all cores run models, so that each such wake interrupts a
//! run and changes threads twice, which costs more than the refusal does. A thread that has nothing left to do therefore rests, and then reads all that has
//! arrived. Every request of the thread waits for up to [`REST`] longer meanwhile: little beside the queue that makes it refuse. A thread that answers
//! more than it refuses never rests, and refusals at a limit of one caller or model do not count: there may be idle cores then.

use std::cell::RefCell;
use std::time::{Duration, Instant};

/// How long a thread rests. Longer rests gather more requests, and delay the answers of those that were accepted: with 4 ms deadlines were missed.
const REST: Duration = Duration::from_millis(2);
/// A thread rests once it has refused this many requests …
const REFUSALS: u32 = 16;
/// … of at most this many: fewer refusals are not worth a delay of the others …
const REQUESTS: u32 = 2 * REFUSALS;
/// … and in at most this time. Rarer ones hardly cost anything.
const WITHIN: Duration = Duration::from_millis(32);
/// Then it rests for this long, unless it refuses as many again.
const LASTS: Duration = Duration::from_millis(50);

/// What a thread has refused lately.
#[derive(Debug, Default)]
struct Lately {
    /// The first refusal that is counted.
    since: Option<Instant>,
    refusals: u32,
    requests: u32,
    /// The thread rests until then.
    until: Option<Instant>,
}

impl Lately {
    const fn new() -> Lately {
        Lately { since: None, refusals: 0, requests: 0, until: None }
    }

    fn arrived(&mut self) {
        self.requests = self.requests.saturating_add(1);
    }

    fn refused(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        self.refusals += 1;
        if self.requests > REQUESTS || now.saturating_duration_since(since) > WITHIN {
            // The count begins again with this one.
            (self.since, self.refusals, self.requests) = (Some(now), 1, 1);
        } else if self.refusals >= REFUSALS {
            self.until = Some(now + LASTS);
            (self.since, self.refusals, self.requests) = (None, 0, 0);
        }
    }

    fn rests(&mut self, now: impl FnOnce() -> Instant) -> bool {
        // A thread that refuses nothing reads no clock.
        let Some(until) = self.until else { return false };
        let rests = now() < until;
        if !rests {
            self.until = None;
        }
        rests
    }
}

thread_local! {
    static LATELY: RefCell<Lately> = const { RefCell::new(Lately::new()) };
}

/// A request has arrived at this thread.
pub(super) fn arrived() {
    LATELY.with_borrow_mut(Lately::arrived);
}

/// It was refused because the server is busy.
pub(super) fn refused(now: Instant) {
    LATELY.with_borrow_mut(|lately| lately.refused(now));
}

/// To be called when this thread has nothing to do. Rests while it refuses half of its requests or more.
pub(super) fn rest() {
    if !LATELY.with_borrow_mut(|lately| lately.rests(Instant::now)) {
        return;
    }
    let rest = rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(REST.subsec_nanos()) };
    // A rest that a signal ends is shorter.
    let _ = rustix::thread::nanosleep(&rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One request is refused after this many that are answered.
    fn serve(lately: &mut Lately, answered: u32, now: Instant) {
        for _ in 0..=answered {
            lately.arrived();
        }
        lately.refused(now);
    }

    #[test]
    fn a_thread_that_refuses_most_of_many_requests_rests_for_a_while() {
        let mut lately = Lately::new();
        let start = Instant::now();
        assert!(!lately.rests(|| unreachable!("nothing was refused")));
        let at = |n: u32| start + Duration::from_millis(2) * n;
        for n in 0..REFUSALS - 1 {
            serve(&mut lately, 1, at(n));
            assert!(!lately.rests(|| unreachable!("{n} refusals are few")));
        }
        let last = at(REFUSALS - 1);
        serve(&mut lately, 1, last);
        assert!(lately.rests(|| last) && lately.rests(|| last + LASTS / 2));
        for n in 0..REFUSALS {
            serve(&mut lately, 0, last + Duration::from_millis(1) * n);
        }
        assert!(lately.rests(|| last + LASTS), "it goes on refusing");
        assert!(!lately.rests(|| last + 2 * LASTS), "it was a while ago");
        assert!(!lately.rests(|| unreachable!("it is over")));
    }

    #[test]
    fn few_refusals_among_many_answers_or_over_a_long_time_let_no_thread_rest() {
        let start = Instant::now();
        let mut lately = Lately::new();
        for n in 0..10 * REFUSALS {
            serve(&mut lately, 3, start + Duration::from_micros(10) * n);
            assert!(!lately.rests(|| unreachable!("most requests were answered")));
        }
        let mut lately = Lately::new();
        for n in 0..10 * REFUSALS {
            serve(&mut lately, 0, start + Duration::from_millis(5) * n);
            assert!(!lately.rests(|| unreachable!("200 a second cost little")));
        }
        let mut lately = Lately::new();
        (0..1000).for_each(|_| lately.arrived());
        for n in 0..REFUSALS {
            assert!(!lately.rests(|| unreachable!("{n} refusals are few")));
            serve(&mut lately, 0, start + Duration::from_micros(10) * n);
        }
        assert!(lately.rests(|| start), "the overload began after what was answered");
    }
}
