//! The rate of one caller: `governor`'s cell rate algorithm, which keeps one number per caller and needs no lock.

use super::config::Limits;
use governor::clock::{Clock, MonotonicClock};
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use std::num::NonZeroU32;
use std::time::Duration;

type Limiter = RateLimiter<NotKeyed, InMemoryState, MonotonicClock>;

/// Limits how fast requests come.
pub(super) struct Rate {
    per_second: NonZeroU32,
    limiter: Limiter,
}

impl std::fmt::Debug for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rate({}/s)", self.per_second)
    }
}

impl Rate {
    /// `None` where there is no limit.
    pub(super) fn of(limits: &Limits) -> Option<Rate> {
        let per_second = limits.rate?;
        let quota = Quota::per_second(per_second).allow_burst(limits.burst.unwrap_or(per_second));
        Some(Rate { per_second, limiter: RateLimiter::direct_with_clock(quota, MonotonicClock) })
    }

    pub(super) fn per_second(&self) -> NonZeroU32 {
        self.per_second
    }

    /// Counts one request.
    ///
    /// # Errors
    /// The time until one more is allowed.
    pub(super) fn take(&self) -> Result<(), Duration> {
        self.limiter.check().map_err(|not_until| not_until.wait_time_from(MonotonicClock.now()))
    }
}
