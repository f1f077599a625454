//! budget: how many bytes the requests of this process hold, and the most they may hold.
//!
//! - A [`Budget`] is one count of bytes with a limit. A [`Hold`] is what one request holds of it: its body, its tensors, and its answer until
//!   the answer was written. Dropping the hold gives the bytes back.
//! - [`Hold::grow`] is called before memory is taken, and refuses in words. Nothing waits here, so nothing can wait for itself.
//! - Large requests leave an eighth of the limit to small ones. One connection holds at most half of the limit, and all connections of one
//!   peer at most three quarters: neither can refuse the others.
//! - [`Hold::room`] makes room in a `Vec`: counted, and with an error where the system has no memory.
//!
//! Uses: model.
//!
//! Invariant: this room allocates nothing for a request and knows nothing of what is held. A hold that is dropped has given back exactly
//! what it took.
//!
//! To count something more: pass the request's [`Hold`] to where the memory is taken.

mod account;
mod hold;
#[cfg(test)]
mod tests;

pub use account::Account;
pub use hold::Hold;

use crate::model::{Code, Failure};
use account::Peers;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The bytes that all requests together hold. Clones share one count.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    held: AtomicUsize,
    refused: AtomicU64,
    peers: Peers,
}

/// The memory that was asked for is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    /// All requests together hold the limit, or the part of it that is open to large requests.
    Server { held: usize, limit: usize },
    /// This connection or its peer holds all that it may.
    Caller { who: &'static str, held: usize, most: usize },
    /// One request wants more than one may ever hold.
    Never { wants: usize, most: usize },
    /// The system gave no memory.
    System { wants: usize },
}

/// A request that holds at most this may use the whole limit; a larger one leaves [`RESERVE`] of it.
const SMALL: usize = 64 << 10;
/// The part of the limit that only small requests may use: an eighth.
const RESERVE: usize = 8;

impl Budget {
    /// `limit`: in bytes, at least 1 MiB.
    #[must_use]
    pub fn new(limit: usize) -> Budget {
        let limit = limit.max(1 << 20);
        Budget(Arc::new(Shared {
            limit,
            held: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            peers: Peers::default(),
        }))
    }

    /// The share of a process's memory that requests may hold by default: an eighth. Model files may take four fifths, and engines need
    /// memory beside both.
    #[must_use]
    pub fn default_of(memory: u64) -> usize {
        usize::try_from(memory / 8).unwrap_or(usize::MAX)
    }

    /// The account of a new connection.
    #[must_use]
    pub fn connection(&self, peer: Option<IpAddr>) -> Account {
        let limit = self.0.limit;
        let peer = peer.map(|address| self.0.peers.of(address, limit / 4 * 3));
        Account::connection(limit / 2, peer)
    }

    /// Bytes that are held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// Requests refused for want of memory since the start.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Takes bytes for a request that will hold `total`.
    fn take(&self, bytes: usize, total: usize) -> Result<(), Full> {
        let limit = self.0.limit;
        let open = if total <= SMALL { limit } else { limit - limit / RESERVE };
        if total > open {
            return Err(Full::Never { wants: total, most: open });
        }
        // One step, so that two requests that do not fit together never refuse each other.
        let add = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= open);
        self.0
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .map_err(|held| Full::Server { held, limit })?;
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        self.0.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    #[cold]
    fn refuse(&self, full: Full) -> Failure {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
        full.failure()
    }
}

impl Full {
    #[cold]
    fn failure(self) -> Failure {
        let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        match self {
            Full::Server { held, limit } => Failure::new(
                Code::Overloaded,
                format!(
                    "the memory for requests is full: {} of {} are held ([server] memory); try again shortly",
                    mib(held),
                    mib(limit)
                ),
            ),
            Full::Caller { who, held, most } => Failure::new(
                Code::TooManyRequests,
                format!(
                    "the requests of this {who} hold {} of memory already, and at most {} are allowed: read the answers, or try again \
                     shortly",
                    mib(held),
                    mib(most)
                ),
            ),
            Full::Never { wants, most } => Failure::new(
                Code::BodyTooLarge,
                format!(
                    "this request and its answer need more than {} of memory, and one request may hold at most {} ([server] memory): \
                     send fewer rows at once",
                    mib(wants),
                    mib(most)
                ),
            ),
            Full::System { wants } => Failure::new(
                Code::Overloaded,
                format!("the system has no memory left for {} of this request; try again shortly", mib(wants)),
            ),
        }
    }
}
