//! The breaker of a version: after repeated failures of its engine, requests to it are refused at once until it answers again.

use crate::model::Checked;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When a breaker opens and closes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerConfig {
    /// The failures within `window` after which it opens. 0 never opens one. Default 10: a few failures are chance or one caller's values, and ten
    /// callers were already told.
    pub failures: u32,
    /// The share of the runs in the window that must have failed. Default 0.5: a version that answers most requests is better than none.
    pub share: f64,
    /// Default 10 s: long enough to see ten failures of a version with one request per second.
    pub window: Duration,
    /// How long it stays open before one request may try. Doubled after each try that fails, up to a minute. Default 1 s: a failing engine costs a
    /// caller one failed request per second at most.
    pub pause: Duration,
    /// The tries in a row that must succeed before it closes. Default 3: one success may be chance.
    pub probes: u32,
}

impl Default for BreakerConfig {
    fn default() -> BreakerConfig {
        BreakerConfig {
            failures: 10,
            share: 0.5,
            window: Duration::from_secs(10),
            pause: Duration::from_secs(1),
            probes: 3,
        }
    }
}

/// The longest pause between two tries.
const MAX_PAUSE: Duration = Duration::from_mins(1);
/// A try that did not end after this time does not hold the next one back.
const LOST_PROBE: Duration = Duration::from_secs(10);

/// The breaker of one loaded version. While nothing fails, a request reads one atomic value.
#[derive(Debug)]
pub struct Breaker {
    /// One of the constants below.
    state: AtomicU8,
    figures: Mutex<Figures>,
    /// A request that the version answered while it was warmed up. When the version fails requests and answers this one, the requests
    /// are to blame.
    known_good: Option<Arc<Checked>>,
}

/// No failure is remembered.
const CLEAN: u8 = 0;
/// Failures are counted, and requests run.
const COUNTING: u8 = 1;
/// Requests are refused, except for one at a time that tries.
const OPEN: u8 = 2;

#[derive(Debug, Default)]
struct Figures {
    window_from: Option<Instant>,
    failures: u32,
    successes: u32,
    /// When the next request may try.
    retry_at: Option<Instant>,
    pause: Duration,
    /// Since when one tries.
    probing: Option<Instant>,
    answered_probes: u32,
    opened: u64,
    refused: u64,
    /// The requests were to blame.
    spared: u64,
}

/// Whether a request may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    Run,
    /// It may run, and its end decides how the breaker goes on.
    Probe,
    /// It must not run; a later one may, after this time.
    Refused {
        retry_after: Duration,
    },
}

/// What a failure leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    Nothing,
    /// The version has failed often enough: [`Breaker::open`] it, unless it answers [`Breaker::known_good`] ([`Breaker::spare`]).
    Suspect,
}

/// For operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerStatus {
    /// `closed`, `open`, or `probing` while one request tries.
    pub state: &'static str,
    /// In the current window.
    pub failures: u32,
    /// Since the version was loaded: how often it opened, the requests that were refused, and how often the failing requests were to blame.
    pub opened: u64,
    pub refused: u64,
    pub spared: u64,
}

impl Breaker {
    #[must_use]
    pub fn new(known_good: Option<Arc<Checked>>) -> Breaker {
        Breaker { state: AtomicU8::new(CLEAN), figures: Mutex::default(), known_good }
    }

    #[must_use]
    pub fn known_good(&self) -> Option<&Arc<Checked>> {
        self.known_good.as_ref()
    }

    /// Whether a request may run now.
    #[inline]
    pub fn admit(&self, now: impl FnOnce() -> Instant) -> Admission {
        if self.state.load(Ordering::Relaxed) == OPEN { self.admit_while_open(now()) } else { Admission::Run }
    }

    #[cold]
    fn admit_while_open(&self, now: Instant) -> Admission {
        let mut figures = self.figures();
        if self.state.load(Ordering::Relaxed) != OPEN {
            return Admission::Run;
        }
        let lost = figures.probing.is_none_or(|since| now.saturating_duration_since(since) >= LOST_PROBE);
        let wait = figures.retry_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        if lost && wait.is_zero() {
            figures.probing = Some(now);
            return Admission::Probe;
        }
        figures.refused += 1;
        Admission::Refused { retry_after: wait.max(Duration::from_millis(1)) }
    }

    /// The version answered a request. Returns whether the breaker closed.
    #[inline]
    pub fn answered(&self, config: &BreakerConfig, probe: bool, now: impl FnOnce() -> Instant) -> bool {
        self.state.load(Ordering::Relaxed) != CLEAN && self.answered_after_failures(config, probe, now())
    }

    #[cold]
    fn answered_after_failures(&self, config: &BreakerConfig, probe: bool, now: Instant) -> bool {
        let mut figures = self.figures();
        match self.state.load(Ordering::Relaxed) {
            OPEN if probe => {
                figures.probing = None;
                figures.answered_probes += 1;
                if figures.answered_probes < config.probes {
                    return false;
                }
                self.clear(&mut figures);
                true
            }
            COUNTING => {
                figures.successes = figures.successes.saturating_add(1);
                if figures.window_is_over(config, now) {
                    self.clear(&mut figures);
                }
                false
            }
            // It was admitted before the breaker opened.
            _ => false,
        }
    }

    /// The version's engine failed a request.
    pub fn failed(&self, config: &BreakerConfig, probe: bool, now: Instant) -> AfterFailure {
        if config.failures == 0 {
            return AfterFailure::Nothing;
        }
        let mut figures = self.figures();
        match self.state.load(Ordering::Relaxed) {
            OPEN if probe => AfterFailure::Suspect,
            // It was admitted before the breaker opened.
            OPEN => AfterFailure::Nothing,
            _ => {
                if figures.window_from.is_none() || figures.window_is_over(config, now) {
                    figures.start_window(now);
                }
                self.state.store(COUNTING, Ordering::Relaxed);
                figures.failures = figures.failures.saturating_add(1);
                let runs = figures.failures.saturating_add(figures.successes);
                let share = f64::from(figures.failures) / f64::from(runs);
                if figures.failures < config.failures || share < config.share {
                    return AfterFailure::Nothing;
                }
                // The count begins again, so that one failure of many at the same time leads to one decision.
                figures.start_window(now);
                AfterFailure::Suspect
            }
        }
    }

    /// Opens it, or keeps it open after a try that failed. Returns whether it was closed before.
    pub fn open(&self, config: &BreakerConfig, now: Instant) -> bool {
        let mut figures = self.figures();
        let was_closed = self.state.load(Ordering::Relaxed) != OPEN;
        figures.pause = if was_closed { config.pause } else { (figures.pause * 2).min(MAX_PAUSE.max(config.pause)) };
        figures.retry_at = Some(now + figures.pause);
        figures.probing = None;
        figures.answered_probes = 0;
        figures.opened += u64::from(was_closed);
        self.state.store(OPEN, Ordering::Relaxed);
        was_closed
    }

    /// The failing requests were to blame: the version answers its known good one. Closes it. Returns whether it was open.
    pub fn spare(&self) -> bool {
        let mut figures = self.figures();
        figures.spared += 1;
        let was_open = self.state.load(Ordering::Relaxed) == OPEN;
        self.clear(&mut figures);
        was_open
    }

    /// A try ended without an answer of the engine: its caller left, or its values did not fit. The next request may try.
    pub fn probe_came_to_nothing(&self) {
        self.figures().probing = None;
    }

    #[must_use]
    pub fn status(&self) -> BreakerStatus {
        let figures = self.figures();
        let state = match (self.state.load(Ordering::Relaxed), figures.probing) {
            (OPEN, Some(_)) => "probing",
            (OPEN, None) => "open",
            _ => "closed",
        };
        let Figures { failures, opened, refused, spared, .. } = *figures;
        BreakerStatus { state, failures, opened, refused, spared }
    }

    fn clear(&self, figures: &mut Figures) {
        let Figures { opened, refused, spared, .. } = *figures;
        *figures = Figures { opened, refused, spared, ..Figures::default() };
        self.state.store(CLEAN, Ordering::Relaxed);
    }

    fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Figures {
    fn start_window(&mut self, now: Instant) {
        (self.window_from, self.failures, self.successes) = (Some(now), 0, 0);
    }

    fn window_is_over(&self, config: &BreakerConfig, now: Instant) -> bool {
        self.window_from.is_none_or(|from| now.saturating_duration_since(from) >= config.window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: BreakerConfig = BreakerConfig {
        failures: 3,
        share: 0.5,
        window: Duration::from_secs(10),
        pause: Duration::from_secs(1),
        probes: 2,
    };

    fn open(breaker: &Breaker, now: Instant) {
        for _ in 0..CONFIG.failures {
            if breaker.failed(&CONFIG, false, now) == AfterFailure::Suspect {
                assert!(breaker.open(&CONFIG, now), "it was closed");
            }
        }
        assert_eq!(breaker.status().state, "open");
    }

    #[test]
    fn it_opens_after_enough_failures_in_a_window_and_closes_after_tries_that_succeed() {
        let breaker = Breaker::new(None);
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(breaker.admit(|| unreachable!("a closed breaker reads no clock")), Admission::Run);
        assert!(!breaker.answered(&CONFIG, false, || unreachable!("a clean breaker reads no clock")));
        open(&breaker, at(0));
        assert_eq!(breaker.admit(|| at(400)), Admission::Refused { retry_after: Duration::from_millis(600) });
        assert_eq!(breaker.admit(|| at(1000)), Admission::Probe);
        assert!(matches!(breaker.admit(|| at(1000)), Admission::Refused { .. }), "one request tries at a time");
        assert_eq!(breaker.status().state, "probing");
        assert_eq!(breaker.failed(&CONFIG, true, at(1100)), AfterFailure::Suspect);
        assert!(!breaker.open(&CONFIG, at(1100)), "it was open");
        assert!(matches!(breaker.admit(|| at(3000)), Admission::Refused { .. }), "the pause is doubled");
        assert_eq!(breaker.admit(|| at(3100)), Admission::Probe);
        assert!(!breaker.answered(&CONFIG, false, || at(3100)), "a request from before does not count");
        assert!(!breaker.answered(&CONFIG, true, || at(3100)), "one of two tries");
        assert_eq!(breaker.admit(|| at(3200)), Admission::Probe, "the next try follows at once");
        assert!(breaker.answered(&CONFIG, true, || at(3200)));
        assert_eq!(breaker.admit(|| at(3200)), Admission::Run);
        let BreakerStatus { state, failures, opened, refused, .. } = breaker.status();
        assert_eq!((state, failures, opened, refused), ("closed", 0, 1, 3));
    }

    #[test]
    fn failures_that_are_rare_or_far_apart_do_not_open_it() {
        let breaker = Breaker::new(None);
        let start = Instant::now();
        for n in 0..100 {
            // One failure in three runs.
            assert_eq!(breaker.failed(&CONFIG, false, start), AfterFailure::Nothing, "failure {n}");
            breaker.answered(&CONFIG, false, || start);
            breaker.answered(&CONFIG, false, || start);
        }
        let breaker = Breaker::new(None);
        for n in 0..100 {
            let now = start + Duration::from_secs(6 * n);
            assert_eq!(breaker.failed(&CONFIG, false, now), AfterFailure::Nothing, "two in a window, at {n}");
        }
        let never = BreakerConfig { failures: 0, ..CONFIG };
        for _ in 0..100 {
            assert_eq!(breaker.failed(&never, false, start), AfterFailure::Nothing);
        }
        let breaker = Breaker::new(None);
        breaker.failed(&CONFIG, false, start);
        assert!(!breaker.answered(&CONFIG, false, || start + CONFIG.window), "the window is over");
        assert_eq!(breaker.state.load(Ordering::Relaxed), CLEAN, "a request reads no clock again");
    }

    #[test]
    fn a_try_that_comes_to_nothing_or_is_lost_does_not_hold_the_next_one_back() {
        let breaker = Breaker::new(None);
        let start = Instant::now();
        open(&breaker, start);
        let later = start + CONFIG.pause;
        assert_eq!(breaker.admit(|| later), Admission::Probe);
        breaker.probe_came_to_nothing();
        assert_eq!(breaker.admit(|| later), Admission::Probe);
        assert!(matches!(breaker.admit(|| later), Admission::Refused { .. }));
        assert_eq!(breaker.admit(|| later + LOST_PROBE), Admission::Probe);
        assert!(breaker.spare(), "it was open");
        assert_eq!((breaker.admit(|| later), breaker.status().spared), (Admission::Run, 1));
    }

    #[test]
    fn the_pause_grows_to_a_limit() {
        let breaker = Breaker::new(None);
        let now = Instant::now();
        open(&breaker, now);
        for _ in 0..100 {
            breaker.open(&CONFIG, now);
        }
        assert_eq!(breaker.figures().pause, MAX_PAUSE);
    }
}
