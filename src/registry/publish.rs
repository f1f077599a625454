//! The snapshot and its one swap.

use super::entry::Entry;
use crate::model::ModelName;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::Arc;

/// Everything a request may need to know about what is loaded, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    models: HashMap<ModelName, Arc<Entry>>,
    /// Every version found at start is ready or failed (operator-unloaded ones aside), and every model's document can be served.
    pub ready: bool,
}

impl Snapshot {
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&Arc<Entry>> {
        self.models.get(name)
    }

    /// All models, in no order.
    pub fn models(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.models.values()
    }

    /// This snapshot with one model's entry replaced or added.
    #[must_use]
    pub fn with(&self, entry: Entry) -> Snapshot {
        let mut next = self.clone();
        next.models.insert(entry.name().clone(), Arc::new(entry));
        next
    }

    /// This snapshot with several models' entries replaced or added.
    #[must_use]
    pub fn with_all(&self, entries: impl IntoIterator<Item = Entry>) -> Snapshot {
        let mut next = self.clone();
        next.models.extend(entries.into_iter().map(|entry| (entry.name().clone(), Arc::new(entry))));
        next
    }

    /// This snapshot without a model.
    #[must_use]
    pub fn without(&self, name: &ModelName) -> Snapshot {
        let mut next = self.clone();
        next.models.remove(name);
        next
    }
}

/// Makes the two halves around a first, empty snapshot.
#[must_use]
pub fn new() -> (Writer, Reader) {
    let current = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let reader = Reader { current: Arc::clone(&current) };
    (Writer { current, retired: Vec::new() }, reader)
}

/// Reads the published snapshot; cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    current: Arc<ArcSwap<Snapshot>>,
}

impl Reader {
    /// The snapshot as published now. A request calls this once, so that everything it sees agrees.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }
}

/// Publishes snapshots; there is one, and the manager has it.
#[derive(Debug)]
pub struct Writer {
    current: Arc<ArcSwap<Snapshot>>,
    /// Replaced snapshots that somebody may still hold. Bounded by the requests in flight: each holds at most one.
    retired: Vec<Arc<Snapshot>>,
}

impl Writer {
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces the snapshot whole: requests that start after this see the new one, those under way keep theirs.
    pub fn publish(&mut self, next: Snapshot) {
        self.retired.push(self.current.swap(Arc::new(next)));
        self.collect();
    }

    /// Drops, on this thread, the replaced snapshots that nobody holds any more; answers how many are left.
    pub fn collect(&mut self) -> usize {
        // Nobody can take a new reference to a snapshot that is no longer current, so a count of one stays one.
        self.retired.retain(|old| Arc::strong_count(old) > 1);
        self.retired.len()
    }
}
