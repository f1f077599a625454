//! What waits for a loading thread, and the memory that loads may use.

use super::loaders::{Loaders, Task};
use super::memory::{Budget, FileBytes, TooLarge, TooLittle, check_available};
use crate::machine::Available;
use crate::model::{ModelName, Version, VersionId};
use std::cmp::Reverse;
use std::collections::{BTreeSet, VecDeque};

/// Versions and tasks that wait for a loading thread, and versions that wait for memory.
#[derive(Debug)]
pub(super) struct LoadQueue {
    pub loaders: Loaders,
    budget: Budget,
    versions: BTreeSet<QueuedVersion>,
    /// Comparisons and pushes. They go before versions. Bounded by the number of changed versions and of operator calls.
    tasks: VecDeque<Task>,
    waiting_for_memory: BTreeSet<VersionId>,
    /// Memory was freed since the waiting versions were last tried.
    memory_freed: bool,
}

/// A version that waits for its turn: lower ranks first, then higher versions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct QueuedVersion {
    rank: usize,
    model: ModelName,
    version: Reverse<Version>,
}

impl LoadQueue {
    #[must_use]
    pub(super) fn new(loaders: Loaders, memory_budget: u64) -> LoadQueue {
        LoadQueue {
            loaders,
            budget: Budget::new(memory_budget),
            versions: BTreeSet::new(),
            tasks: VecDeque::new(),
            waiting_for_memory: BTreeSet::new(),
            memory_freed: false,
        }
    }

    /// Queues a version. Queueing it twice is harmless: its state is checked when its turn comes.
    pub(super) fn push_version(&mut self, rank: usize, id: &VersionId) {
        self.versions.insert(QueuedVersion { rank, model: id.model.clone(), version: Reverse(id.version) });
    }

    pub(super) fn next_version(&mut self) -> Option<VersionId> {
        let QueuedVersion { model, version, .. } = self.versions.pop_first()?;
        Some(VersionId { model, version: version.0 })
    }

    pub(super) fn push_task(&mut self, task: Task) {
        self.tasks.push_back(task);
    }

    pub(super) fn next_task(&mut self) -> Option<Task> {
        self.tasks.pop_front()
    }

    /// Whether a version or a task waits for a thread.
    #[must_use]
    pub(super) fn has_work(&self) -> bool {
        !self.versions.is_empty() || !self.tasks.is_empty()
    }

    /// Removes everything that waits. Returns the tasks, so that their callers can be answered.
    pub(super) fn clear(&mut self) -> VecDeque<Task> {
        self.versions.clear();
        std::mem::take(&mut self.tasks)
    }

    // === memory ===

    /// Reserves the peak of the load of these files.
    ///
    /// # Errors
    /// When it does not fit. Nothing is reserved then.
    pub(super) fn reserve_load(&mut self, files: FileBytes) -> Result<(), TooLarge> {
        self.budget.reserve(files.peak())
    }

    /// A load ended with a loaded version: what it takes stays reserved.
    pub(super) fn loaded(&mut self, files: FileBytes) {
        self.release(files.peak() - files.all);
    }

    /// A load ended without a loaded version.
    pub(super) fn not_loaded(&mut self, files: FileBytes) {
        self.release(files.peak());
    }

    /// A version's memory was freed. Versions that wait for memory are tried again.
    pub(super) fn release(&mut self, bytes: u64) {
        self.budget.release(bytes);
        self.memory_freed = true;
    }

    /// How many bytes must be released before these files can be loaded.
    #[must_use]
    pub(super) fn missing(&self, files: FileBytes) -> u64 {
        self.budget.missing(files.peak())
    }

    /// Checks that these files can be loaded with what the system has left.
    ///
    /// # Errors
    /// The numbers, where they cannot.
    pub(super) fn check_available(&self, files: FileBytes, available: Option<Available>) -> Result<(), TooLittle> {
        let loading = self.loaders.loading().map(FileBytes::peak).fold(0, u64::saturating_add);
        check_available(files, loading, available)
    }

    pub(super) fn wait_for_memory(&mut self, id: VersionId) {
        self.waiting_for_memory.insert(id);
    }

    /// Has the versions that wait for memory tried again, although none was freed: memory that they wait for is not coming.
    pub(super) fn retry_waiting(&mut self) {
        self.memory_freed = true;
    }

    /// The versions to try again, because memory was freed since the last call.
    pub(super) fn take_retries(&mut self) -> BTreeSet<VersionId> {
        if std::mem::take(&mut self.memory_freed) {
            std::mem::take(&mut self.waiting_for_memory)
        } else {
            BTreeSet::new()
        }
    }
}
