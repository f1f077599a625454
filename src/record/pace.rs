//! Limits the processor time of the sealing thread.

use super::log::Shared;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Lets the sealing thread use a share of the processors, measured since this was made. To be used by one thread.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    shared: Arc<Shared>,
    begun: Instant,
    /// The thread's processor time at the beginning.
    used: Duration,
}

/// Processor time that may be used ahead, so that small work never pauses.
const AHEAD: Duration = Duration::from_millis(20);
/// The longest pause between two looks at whether the log stops.
const LONGEST: Duration = Duration::from_millis(50);

impl Pace {
    pub fn new(shared: Arc<Shared>) -> Pace {
        Pace { shared, begun: Instant::now(), used: crate::machine::thread_time() }
    }

    /// Sleeps while the thread has used more than its share. A log that stops is not held up.
    pub fn rest(&self) {
        let cores = self.shared.config.seal_cores();
        loop {
            let used = crate::machine::thread_time().saturating_sub(self.used);
            let pause = pause(used, self.begun.elapsed(), cores);
            if pause.is_zero() || self.shared.stopping.load(Ordering::Acquire) {
                return;
            }
            std::thread::park_timeout(pause.min(LONGEST));
        }
    }
}

/// How long to wait after this much processor time in this much time. `cores`: how many may be used.
fn pause(used: Duration, took: Duration, cores: f64) -> Duration {
    let ahead = used.saturating_sub(AHEAD).as_secs_f64();
    // A thread uses at most one core.
    if cores >= 1.0 { Duration::ZERO } else { Duration::from_secs_f64(ahead / cores.max(0.001)).saturating_sub(took) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_pauses_until_its_share_of_the_time_is_what_it_used() {
        let ms = Duration::from_millis;
        assert_eq!(pause(ms(20), ms(0), 0.1), Duration::ZERO, "small work never pauses");
        assert_eq!(pause(ms(30), ms(40), 0.1), ms(60), "10 ms beyond what may be used ahead take 100 ms");
        assert_eq!(pause(ms(30), ms(100), 0.1), Duration::ZERO);
        assert_eq!(pause(ms(3000), ms(0), 1.0), Duration::ZERO, "a whole core is no limit");
    }
}
