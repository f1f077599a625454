//! Limits the streams that are open: a stream without messages costs memory and keeps its connection.

use super::super::peers::network;
use crate::model::{Code, Failure};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The most streams at the same time, and of them those of one peer (an IPv4 address or an IPv6 network of 64 bits).
const MOST: usize = 4096;
const MOST_PER_PEER: usize = 1024;

/// The same for streams that only watch, which may have no credentials: they take no places of those that send requests.
const MOST_WATCHES: usize = 1024;
const MOST_WATCHES_PER_PEER: usize = 64;

/// The open streams of each peer.
#[derive(Debug)]
pub(in crate::http) struct StreamPlaces {
    open: Mutex<HashMap<IpAddr, usize>>,
    most: usize,
    most_per_peer: usize,
}

/// An open stream, until it is dropped.
#[derive(Debug)]
pub(super) struct StreamPlace {
    places: Arc<StreamPlaces>,
    peer: IpAddr,
}

impl StreamPlaces {
    pub(in crate::http) fn of_requests() -> Arc<StreamPlaces> {
        Arc::new(StreamPlaces { open: Mutex::default(), most: MOST, most_per_peer: MOST_PER_PEER })
    }

    pub(in crate::http) fn of_watches() -> Arc<StreamPlaces> {
        Arc::new(StreamPlaces { open: Mutex::default(), most: MOST_WATCHES, most_per_peer: MOST_WATCHES_PER_PEER })
    }

    /// # Errors
    /// `TOO_MANY_REQUESTS` at one of the limits.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<StreamPlace, Failure> {
        let peer = network(address);
        let StreamPlaces { most, most_per_peer, .. } = **self;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = open.values().sum();
        let of_peer = open.get(&peer).copied().unwrap_or_default();
        let full =
            |what: String| Failure::new(Code::TooManyRequests, format!("{what}, which is the limit: end some first"));
        if all >= most {
            return Err(full(format!("{most} streams are open")));
        }
        if of_peer >= most_per_peer {
            return Err(full(format!("{most_per_peer} streams of {peer} are open")));
        }
        open.insert(peer, of_peer + 1);
        drop(open);
        Ok(StreamPlace { places: Arc::clone(self), peer })
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut open = self.places.open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get_mut(&self.peer) {
            Some(n) if *n > 1 => *n -= 1,
            _ => drop(open.remove(&self.peer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_limited_for_each_peer_and_for_all() {
        let places = StreamPlaces::of_requests();
        let address = |n: usize| IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()]);
        let mut held: Vec<_> = (0..MOST_PER_PEER).map(|_| places.enter(address(1)).unwrap()).collect();
        assert_eq!(places.enter(address(1)).unwrap_err().code, Code::TooManyRequests);
        for peer in 2..=MOST / MOST_PER_PEER {
            held.extend((0..MOST_PER_PEER).map(|_| places.enter(address(peer)).unwrap()));
        }
        assert_eq!(places.enter(address(9)).unwrap_err().code, Code::TooManyRequests);
        held.pop();
        held.push(places.enter(address(9)).unwrap());
        drop(held);
        assert!(places.open.lock().unwrap().is_empty(), "nothing is kept for peers without streams");
    }
}
