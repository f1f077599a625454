//! One caller: its limits, what it has in flight, and what it sent.

use super::Key;
use super::config::Limits;
use super::rate::Rate;
use crate::model::{CallerId, Code, Failure, Priority, quoted};
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// One caller. All its connections share this.
#[derive(Debug)]
pub struct Caller {
    /// All callers that have a request in flight.
    active: Arc<AtomicUsize>,
    key: Key,
    id: CallerId,
    allowed: ArcSwap<Allowed>,
    in_flight: AtomicUsize,
    since: Instant,
    /// Milliseconds after `since` at which the last request came.
    last: AtomicU64,
    requests: PerMinute,
    refused: PerMinute,
}

#[derive(Debug)]
struct Allowed {
    max_in_flight: usize,
    rate: Option<Rate>,
    priority: Priority,
}

/// The place of a request in flight. Dropping it frees the place.
#[derive(Debug)]
pub struct Place(Arc<Caller>);

/// What is known of a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerFacts {
    /// Its name, or its address.
    pub caller: String,
    /// Whether it proved a name.
    pub named: bool,
    pub priority: Priority,
    pub in_flight: usize,
    /// Requests of the last 60 s, those that were refused included.
    pub last_minute: u64,
    /// Those of them that a limit of the gateway refused.
    pub refused_last_minute: u64,
    /// How long ago the last request came.
    pub idle: Duration,
}

impl Caller {
    pub(super) fn new(active: Arc<AtomicUsize>, key: Key, limits: Limits, priority: Priority, now: Instant) -> Caller {
        Caller {
            active,
            id: key.id(),
            key,
            allowed: ArcSwap::from_pointee(Allowed::new(limits, priority)),
            in_flight: AtomicUsize::new(0),
            since: now,
            last: AtomicU64::new(0),
            requests: PerMinute::default(),
            refused: PerMinute::default(),
        }
    }

    #[must_use]
    pub fn id(&self) -> CallerId {
        self.id
    }

    /// The priority of its requests that ask for none.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.allowed.load().priority
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn set_limits(&self, limits: Limits, priority: Priority) {
        self.allowed.store(Arc::new(Allowed::new(limits, priority)));
    }

    /// Counts a request, and takes it from the rate.
    ///
    /// # Errors
    /// `TOO_MANY_REQUESTS`, with the rate and when the next one may come.
    pub fn send(&self, now: Instant) -> Result<(), Failure> {
        let second = self.note(now);
        self.requests.count(second);
        self.take_rate(&self.allowed.load()).inspect_err(|_| self.refused.count(second))
    }

    /// Refuses a request that would get no place now.
    ///
    /// # Errors
    /// As [`Caller::enter`].
    pub fn has_room(&self) -> Result<(), Failure> {
        let most = self.allowed.load().max_in_flight;
        if self.in_flight() < most { Ok(()) } else { Err(self.no_place(most)) }
    }

    /// Takes a place for a request.
    ///
    /// # Errors
    /// `TOO_MANY_REQUESTS`, with the limit.
    pub fn enter(self: &Arc<Caller>) -> Result<Place, Failure> {
        let most = self.allowed.load().max_in_flight;
        let enter = |count: usize| (count < most).then_some(count + 1);
        let entered = self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter);
        let before = entered.map_err(|_| self.no_place(most))?;
        if before == 0 {
            self.active.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Place(Arc::clone(self)))
    }

    #[cold]
    fn no_place(&self, most: usize) -> Failure {
        let message = format!(
            "{most} requests of {} are in flight, which is the limit of a caller (callers.max_in_flight): try again shortly",
            self.words()
        );
        Failure::new(Code::TooManyRequests, message)
    }

    fn take_rate(&self, allowed: &Allowed) -> Result<(), Failure> {
        let Some(rate) = &allowed.rate else { return Ok(()) };
        rate.take().map_err(|wait| {
            let (rate, wait_ms) = (rate.per_second(), wait.as_millis().max(1));
            let message = format!(
                "{} may send {rate} requests per second (callers.rate), and the next one in {wait_ms} ms",
                self.words()
            );
            Failure::new(Code::TooManyRequests, message).with_retry_after(wait)
        })
    }

    /// Counts a request that was refused for another reason than this caller's limits.
    pub fn count_refused(&self, now: Instant) {
        self.refused.count(self.second(now));
    }

    /// Notes that a request came. Returns the second since this caller was first seen.
    fn note(&self, now: Instant) -> u64 {
        let millis = u64::try_from(now.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX);
        self.last.store(millis, Ordering::Relaxed);
        millis / 1000
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.since).as_secs()
    }

    pub(super) fn idle_for(&self, now: Instant) -> Duration {
        let last = self.since + Duration::from_millis(self.last.load(Ordering::Relaxed));
        now.saturating_duration_since(last)
    }

    pub(super) fn facts(&self, now: Instant) -> CallerFacts {
        let second = self.second(now);
        CallerFacts {
            caller: self.key.to_string(),
            named: matches!(self.key, Key::Name(_)),
            priority: self.priority(),
            in_flight: self.in_flight(),
            last_minute: self.requests.of_last_minute(second),
            refused_last_minute: self.refused.of_last_minute(second),
            idle: self.idle_for(now),
        }
    }

    fn words(&self) -> String {
        match &self.key {
            Key::Name(name) => quoted(name),
            Key::Address(address) => format!("the address {address}"),
        }
    }
}

impl Allowed {
    fn new(limits: Limits, priority: Priority) -> Allowed {
        Allowed { max_in_flight: limits.max_in_flight, rate: Rate::of(&limits), priority }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Counts events of the last minute, in six parts of ten seconds. Counting is one atomic step; at the change of a part, counts of
/// other threads in the same moment may be lost.
#[derive(Debug, Default)]
struct PerMinute([AtomicU64; PerMinute::PARTS]);

impl PerMinute {
    const PARTS: usize = 6;
    const SECONDS: u64 = 10;
    /// A part holds its number in the upper bits and the count in the lower ones.
    const COUNT_BITS: u32 = 32;

    fn count(&self, second: u64) {
        let number = second / Self::SECONDS + 1;
        let part = &self.0[usize::try_from(number).unwrap_or_default() % Self::PARTS];
        let value = part.load(Ordering::Relaxed);
        if value >> Self::COUNT_BITS == number {
            part.fetch_add(1, Ordering::Relaxed);
        } else {
            part.store(number << Self::COUNT_BITS | 1, Ordering::Relaxed);
        }
    }

    fn of_last_minute(&self, second: u64) -> u64 {
        let number = second / Self::SECONDS + 1;
        let parts = self.0.iter().map(|part| part.load(Ordering::Relaxed));
        let recent = parts.filter(|value| number - (value >> Self::COUNT_BITS).min(number) < Self::PARTS as u64);
        recent.map(|value| value & ((1 << Self::COUNT_BITS) - 1)).sum()
    }
}
