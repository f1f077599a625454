//! The snapshot, and the one place that replaces it.

use super::entry::Entry;
use crate::model::ModelName;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Notify;

/// What is loaded at one moment: everything that a request reads.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    models: HashMap<ModelName, Arc<Entry>>,
    /// Every version found at start is ready or failed, or takes long and is named by no document; every model's document is served as
    /// far as it can be, and at least one is.
    pub ready: bool,
    elsewhere: Elsewhere,
}

/// Says where a model is that this server should not have. It is asked only where a request names a model that cannot be served here.
#[derive(Clone, Default)]
pub struct Elsewhere(Option<Arc<Tells>>);

type Tells = dyn Fn(&str) -> Option<String> + Send + Sync;

impl Elsewhere {
    #[must_use]
    pub fn new(tells: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Elsewhere {
        Elsewhere(Some(Arc::new(tells)))
    }
}

impl std::fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Elsewhere").finish_non_exhaustive()
    }
}

impl Snapshot {
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&Arc<Entry>> {
        self.models.get(name)
    }

    /// Where a model is that this server should not have, in a sentence.
    #[must_use]
    pub fn elsewhere(&self, name: &str) -> Option<String> {
        self.elsewhere.0.as_ref().and_then(|tells| tells(name))
    }

    /// All models, in no particular order.
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

/// Makes the writer and a reader of a first, empty snapshot.
#[must_use]
pub fn new() -> (Writer, Reader) {
    new_with(Elsewhere::default())
}

/// The same, where other servers have models that this one should not have.
#[must_use]
pub fn new_with(elsewhere: Elsewhere) -> (Writer, Reader) {
    let current = Arc::new(ArcSwap::from_pointee(Snapshot { elsewhere, ..Snapshot::default() }));
    let published: Arc<Notify> = Arc::default();
    let reader = Reader { current: Arc::clone(&current), published: Arc::clone(&published) };
    (Writer { current, published, retired: Vec::new() }, reader)
}

/// Reads the published snapshot. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    current: Arc<ArcSwap<Snapshot>>,
    published: Arc<Notify>,
}

impl Reader {
    /// The current snapshot. A request calls this once, so that everything it reads is consistent.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Waits until `wanted` returns something for the current snapshot or a later one. For operators who wait for a state, not for requests.
    pub async fn wait_for<T>(&self, mut wanted: impl FnMut(&Snapshot) -> Option<T>) -> T {
        loop {
            let mut published = std::pin::pin!(self.published.notified());
            // Registered before the snapshot is read, so that none is missed in between.
            published.as_mut().enable();
            if let Some(found) = wanted(&self.snapshot()) {
                return found;
            }
            published.await;
        }
    }
}

/// Publishes snapshots. There is only one writer, and the manager owns it.
#[derive(Debug)]
pub struct Writer {
    current: Arc<ArcSwap<Snapshot>>,
    /// Wakes those who wait for a state.
    published: Arc<Notify>,
    /// Replaced snapshots that a request may still hold. Bounded by the requests in flight, as each holds at most one.
    retired: Vec<Arc<Snapshot>>,
}

impl Writer {
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces the whole snapshot. Later requests read the new one; requests in flight keep the one they have.
    pub fn publish(&mut self, next: Snapshot) {
        self.retired.push(self.current.swap(Arc::new(next)));
        self.published.notify_waiters();
        self.collect();
    }

    /// Drops, on this thread, the replaced snapshots that are not held any more. Returns how many are left.
    pub fn collect(&mut self) -> usize {
        // No new reference can be taken to a snapshot that is not current, so a count of one cannot grow.
        self.retired.retain(|old| Arc::strong_count(old) > 1);
        self.retired.len()
    }
}
