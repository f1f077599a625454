//! The schedule of an open loop, and a timer that waits for the next request.

use std::io;
use std::time::{Duration, Instant};

use rand::Rng;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::scenario::Arrivals;

/// Due times of one generator thread. The rate changes linearly from `from` to `to` requests per second over `seconds`.
///
/// The number of requests due by `t` is `N(t) = from·t + slope·t²/2`. Each request is due at the `t` where `N(t)` has grown by one
/// (even arrivals), or by an exponential random number with mean one (a Poisson process with a changing rate).
#[derive(Debug)]
pub struct Schedule<R> {
    from: f64,
    slope: f64,
    seconds: f64,
    arrivals: Arrivals,
    count: f64,
    rng: R,
}

impl<R: Rng> Schedule<R> {
    /// `offset`: delay of the first request, as a fraction of the gap (0 to 1). It keeps threads that share a rate apart.
    pub fn new(from: f64, to: f64, seconds: f64, arrivals: Arrivals, offset: f64, rng: R) -> Self {
        Self { from, slope: (to - from) / seconds, seconds, arrivals, count: offset, rng }
    }

    fn due(&self, count: f64) -> Option<f64> {
        let root = self.from * self.from + 2.0 * self.slope * count;
        if root < 0.0 {
            return None; // the rate reaches 0 before this request
        }
        // This form of the quadratic formula is exact when the slope is 0.
        let below = self.from + root.sqrt();
        let t = if below > 0.0 { 2.0 * count / below } else { 0.0 };
        (t < self.seconds).then_some(t)
    }
}

impl<R: Rng> Iterator for Schedule<R> {
    /// Time since the start of the phase.
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if self.arrivals == Arrivals::Poisson {
            // 1 - [0, 1) is never 0.
            self.count -= (1.0 - self.rng.random::<f64>()).ln();
        }
        let due = self.due(self.count)?;
        if self.arrivals == Arrivals::Even {
            self.count += 1.0;
        }
        Some(Duration::from_secs_f64(due))
    }
}

/// A timer with microsecond precision: waits for a kernel timer, then polls for the last microseconds. tokio's timers have millisecond
/// precision, and polling all the time would take a core from the server.
#[derive(Debug)]
pub struct Timer(AsyncFd<std::os::fd::OwnedFd>);

/// How long to poll: about the time of a wake-up.
const POLLED: Duration = Duration::from_micros(12);

impl Timer {
    /// Must be called in a tokio runtime.
    #[expect(unsafe_code, reason = "tokio has no safe way to wait for a descriptor that it did not open")]
    pub fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // SAFETY: `AsyncFd` owns the descriptor, which is never replaced, and closes it when it is dropped.
        let registered = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        Ok(Self(registered))
    }

    /// Returns at `due`, or at once if `due` has passed. Other tasks of the thread run while it waits.
    pub async fn until(&self, due: Instant) -> io::Result<()> {
        let left = due.saturating_duration_since(Instant::now());
        if left > POLLED * 2 {
            let wait = left.saturating_sub(POLLED);
            let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
            let once = Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: wait.subsec_nanos().into() };
            // Setting the timer clears an earlier expiry. The loop below clears the readiness that tokio remembers.
            timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: zero, it_value: once })?;
            let mut fired = [0; 8];
            loop {
                let mut ready = self.0.readable().await?;
                if ready.try_io(|fd| Ok(rustix::io::read(fd, &mut fired)?)).is_ok() {
                    break;
                }
            }
        }
        while Instant::now() < due {
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn schedule(from: f64, to: f64, seconds: f64, arrivals: Arrivals) -> Vec<f64> {
        Schedule::new(from, to, seconds, arrivals, 0.0, ChaCha8Rng::seed_from_u64(1)).map(|d| d.as_secs_f64()).collect()
    }

    #[test]
    fn even_arrivals_are_one_gap_apart() {
        let due = schedule(1000.0, 1000.0, 2.0, Arrivals::Even);
        assert_eq!(due.len(), 2000);
        assert!(due.windows(2).all(|w| (w[1] - w[0] - 0.001).abs() < 1e-6), "every gap is a millisecond");
    }

    #[test]
    fn a_ramp_has_its_mean_rate_and_ends_at_the_last_rate() {
        let due = schedule(0.0, 1000.0, 4.0, Arrivals::Even);
        assert!(due.len().abs_diff(2000) <= 1, "half of 1000/s for 4 s: {}", due.len());
        let last_tenth = due.iter().filter(|&&t| t >= 3.6).count();
        assert!(last_tenth.abs_diff(380) <= 1, "950/s for 0.4 s: {last_tenth}");
        assert_eq!(
            schedule(1000.0, 0.0, 4.0, Arrivals::Even).len().abs_diff(2000) / 2,
            0,
            "the same for a falling rate"
        );
    }

    #[test]
    fn poisson_arrivals_have_the_right_rate_and_deviation() {
        let due = schedule(10_000.0, 10_000.0, 10.0, Arrivals::Poisson);
        assert!((due.len() as f64 - 100_000.0).abs() < 5.0 * 100_000_f64.sqrt(), "{} arrivals", due.len());
        let gaps: Vec<_> = due.windows(2).map(|w| w[1] - w[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((deviation / mean - 1.0).abs() < 0.02, "the standard deviation of exponential gaps is their mean");
    }

    #[test]
    fn the_timer_is_never_early() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let timer = Timer::new().unwrap();
            for us in [0, 5, 40, 300, 2000, 90] {
                let due = Instant::now() + Duration::from_micros(us);
                timer.until(due).await.unwrap();
                assert!(Instant::now() >= due, "{us} us had not passed");
            }
        });
    }
}
