//! callers: what each caller has in flight, how fast it may send, and who sends the most.
//!
//! - A [`Caller`] is a name (of a token, a certificate or an identity) or an address. All connections of one share its limits.
//! - [`Caller::send`] takes a request of it from its rate. [`Caller::enter`] takes a [`Place`], which is freed when it is dropped.
//! - [`Callers`] knows the callers of recent times. It is bounded: those that were idle longest are forgotten.
//!
//! Uses: access (patterns), model.
//!
//! Invariant: no sockets, no HTTP, no models; a request takes a lock only where its caller was not looked up before.
//!
//! To add a limit: a field of [`Limits`], its check in `caller.rs`, and its key in `config/callers_section.rs`.

mod caller;
mod config;
mod rate;
#[cfg(test)]
mod tests;

pub use caller::{Caller, CallerFacts, Place};
pub use config::{Config, Limits, Network, Rule, Who};

use crate::model::CallerId;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What identifies a caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// The name of a token, a client certificate, or an identity.
    Name(Box<str>),
    /// An IPv4 address, or the first address of an IPv6 network of 64 bits.
    Address(IpAddr),
}

/// The most callers that are kept.
const MOST: usize = 10_000;
/// Idle callers are looked for at most this often. Each search makes room for a thousand.
const SEARCH_EVERY: Duration = Duration::from_millis(100);

/// The callers of recent times.
#[derive(Debug)]
pub struct Callers {
    known: Mutex<Known>,
    /// Callers that have a request in flight. Each caller counts itself.
    active: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Known {
    config: Config,
    callers: HashMap<Key, Arc<Caller>>,
    /// When idle callers were looked for the last time.
    searched: Option<Instant>,
}

impl Callers {
    #[must_use]
    pub fn new(config: Config) -> Arc<Callers> {
        Arc::new(Callers {
            known: Mutex::new(Known { config, callers: HashMap::new(), searched: None }),
            active: Arc::default(),
        })
    }

    /// The caller with this key.
    #[must_use]
    pub fn get(&self, key: Key, now: Instant) -> Arc<Caller> {
        let mut known = self.lock();
        if let Some(caller) = known.callers.get(&key) {
            return Arc::clone(caller);
        }
        // A search looks at all callers, so where all are in use it is not repeated for each new one.
        let is_soon = known.searched.is_some_and(|last| now.saturating_duration_since(last) < SEARCH_EVERY);
        if known.callers.len() >= MOST && !is_soon {
            known.searched = Some(now);
            forget_idle(&mut known.callers, now);
        }
        let (limits, priority) = known.config.of(&key);
        let caller = Arc::new(Caller::new(Arc::clone(&self.active), key.clone(), limits, priority, now));
        // Where all of them are in use, a further one has limits of its own until it is idle, and is not listed.
        if known.callers.len() < MOST {
            known.callers.insert(key, Arc::clone(&caller));
        }
        caller
    }

    /// Applies new settings. Requests in flight keep their places; rates begin anew.
    pub fn apply(&self, config: Config) {
        let mut known = self.lock();
        if known.config == config {
            return;
        }
        for (key, caller) in &known.callers {
            let (limits, priority) = config.of(key);
            caller.set_limits(limits, priority);
        }
        known.config = config;
    }

    /// The fair share of one caller of `places` that are taken: those that have a request in flight share them evenly.
    #[must_use]
    pub fn share_of(&self, places: usize) -> usize {
        places / self.active.load(Ordering::Relaxed).max(1)
    }

    /// The callers with the most requests in the last minute, at most `most` of them.
    #[must_use]
    pub fn busiest(&self, most: usize, now: Instant) -> Vec<CallerFacts> {
        let callers: Vec<Arc<Caller>> = self.lock().callers.values().cloned().collect();
        let mut facts: Vec<CallerFacts> = callers.iter().map(|caller| caller.facts(now)).collect();
        facts.sort_by(|a, b| (b.last_minute, b.in_flight, &a.caller).cmp(&(a.last_minute, a.in_flight, &b.caller)));
        facts.truncate(most);
        facts
    }

    /// A panic while the lock is held leaves a complete table.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets the tenth of the callers that nobody uses and that were idle longest.
fn forget_idle(callers: &mut HashMap<Key, Arc<Caller>>, now: Instant) {
    let unused = |caller: &Arc<Caller>| Arc::strong_count(caller) == 1;
    let mut idle: Vec<_> = callers.values().filter(|c| unused(c)).map(|caller| caller.idle_for(now)).collect();
    idle.sort_unstable();
    let Some(least) = idle.len().checked_sub(MOST / 10 + 1).map_or(idle.first(), |at| idle.get(at)).copied() else {
        return;
    };
    callers.retain(|_, caller| !(unused(caller) && caller.idle_for(now) >= least));
}

impl Key {
    fn id(&self) -> CallerId {
        CallerId::of(self)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Name(name) => f.write_str(name),
            Key::Address(address) => write!(f, "{address}"),
        }
    }
}
