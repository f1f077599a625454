//! The versions in the fleet's store, as this gateway knows them. The session fills it, the source of versions and the admin plane read it.

use super::wire::SharedVersion;
use crate::model::VersionId;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Catalogue(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug, Default)]
struct State {
    /// What is there. It stays while NATS is away.
    known: BTreeMap<VersionId, Listed>,
    /// What was read so far, while the bucket is read from its beginning.
    reading: Option<BTreeMap<VersionId, Listed>>,
    /// Whether the bucket was read as a whole since the start.
    is_complete: bool,
    /// Why it cannot be read now.
    cut_off: Option<String>,
}

/// A version in the bucket, or why it cannot be read.
pub(super) type Listed = Result<SharedVersion, String>;

impl Catalogue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // === the session ===

    /// The bucket is read from its beginning.
    pub fn reading(&self) {
        self.lock().reading = Some(BTreeMap::new());
    }

    /// Everything in the bucket has been read.
    pub fn complete(&self) {
        let mut state = self.lock();
        if let Some(read) = state.reading.take() {
            state.known = read;
        }
        (state.is_complete, state.cut_off) = (true, None);
        drop(state);
        self.0.1.notify_all();
    }

    /// NATS cannot be reached.
    pub fn cut_off(&self, why: &str) {
        self.lock().cut_off = Some(why.to_owned());
        self.0.1.notify_all();
    }

    /// A version is in the bucket, or, with `None`, is not there any more. Returns whether readers see it now.
    pub fn set(&self, id: VersionId, version: Option<Listed>) -> bool {
        let mut state = self.lock();
        let State { known, reading, .. } = &mut *state;
        let is_live = reading.is_none();
        let map = reading.as_mut().unwrap_or(known);
        match version {
            Some(version) => drop(map.insert(id, version)),
            None => drop(map.remove(&id)),
        }
        is_live
    }

    // === readers ===

    /// Everything in the bucket, as it was last known.
    ///
    /// # Errors
    /// When it was not read since the start. Waits for that up to `within`, and not while NATS cannot be reached.
    pub fn all(&self, within: Duration) -> Result<BTreeMap<VersionId, Listed>, String> {
        let until = Instant::now() + within;
        let mut state = self.lock();
        while !state.is_complete {
            if let Some(why) = &state.cut_off {
                return Err(format!("the fleet's store has not been read since the start: {why}"));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("the fleet's store has not been read since the start".to_owned());
            }
            state = self.0.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(state.known.clone())
    }

    pub fn has(&self, id: &VersionId) -> bool {
        self.lock().known.contains_key(id)
    }

    pub fn has_model(&self, model: &str) -> bool {
        self.lock().known.keys().any(|id| id.model.as_str() == model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(version: &str) -> VersionId {
        VersionId { model: "m".parse().unwrap(), version: version.parse().unwrap() }
    }

    #[test]
    fn what_was_read_stays_until_all_was_read_again() {
        let catalogue = Catalogue::default();
        catalogue.cut_off("nobody answers");
        assert!(catalogue.all(Duration::from_mins(1)).unwrap_err().ends_with("nobody answers"), "it does not wait");
        catalogue.reading();
        let listed = || Some(Err("x".to_owned()));
        assert!(!catalogue.set(id("1"), listed()) && !catalogue.set(id("2"), listed()));
        assert!(!catalogue.has(&id("1")), "not all was read");
        catalogue.complete();
        assert_eq!(catalogue.all(Duration::ZERO).unwrap().len(), 2);
        assert!(catalogue.set(id("2"), None));
        assert!(catalogue.has(&id("1")) && !catalogue.has(&id("2")) && catalogue.has_model("m"));
        catalogue.cut_off("gone");
        catalogue.reading();
        assert_eq!(catalogue.all(Duration::ZERO).unwrap().len(), 1, "it stays while it is read again");
        catalogue.complete();
        assert!(!catalogue.has_model("m"));
    }
}
