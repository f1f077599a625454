//! Counts a version's runs by where and how they happened.

use std::sync::atomic::{AtomicU64, Ordering};

/// Batches are counted by size class: powers of two of their rows.
const SIZE_CLASSES: usize = 13;

/// Counters since the version was loaded.
#[derive(Debug, Default)]
pub struct RunCounters {
    single: AtomicU64,
    batched: [AtomicU64; SIZE_CLASSES],
    gathered_runs: AtomicU64,
    gathered_requests: AtomicU64,
    batch_failed: AtomicU64,
    split: AtomicU64,
    split_failed: AtomicU64,
    expired: AtomicU64,
    cancelled: AtomicU64,
}

/// The values of [`RunCounters`] at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunCounts {
    /// Runs of one request, on the thread that read it or on a worker.
    pub single: u64,
    /// Runs of several requests together: the largest number of rows of each size class, and the runs of that class.
    pub batched: Vec<(usize, u64)>,
    /// Those of them on a thread that read several requests in one turn.
    pub gathered_runs: u64,
    /// The requests in these runs.
    pub gathered_requests: u64,
    /// Batches that failed and were run again in halves.
    pub batch_failed: u64,
    /// Runs of one request that was split across several workers.
    pub split: u64,
    /// Requests that failed as a split run and then succeeded as one run.
    pub split_failed: u64,
    /// Requests that were dropped before they ran because their deadline had passed.
    pub expired: u64,
    /// Requests that were dropped before they ran because their caller went away.
    pub cancelled: u64,
}

impl RunCounters {
    pub(super) fn single(&self) {
        self.single.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn batched(&self, rows: usize) {
        let class = (usize::BITS - rows.saturating_sub(1).leading_zeros()) as usize;
        self.batched[class.min(SIZE_CLASSES - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a batch of this many requests that were read in one turn.
    pub(super) fn gathered(&self, requests: usize) {
        self.gathered_runs.fetch_add(1, Ordering::Relaxed);
        self.gathered_requests.fetch_add(requests as u64, Ordering::Relaxed);
    }

    pub(super) fn batch_failed(&self) {
        self.batch_failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn split(&self) {
        self.split.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn split_failed(&self) {
        self.split_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// How often [`RunCounters::split_failed`] was counted.
    pub(super) fn failed_splits(&self) -> u64 {
        self.split_failed.load(Ordering::Relaxed)
    }

    pub(super) fn dropped(&self, expired: usize, cancelled: usize) {
        if expired + cancelled > 0 {
            self.expired.fetch_add(expired as u64, Ordering::Relaxed);
            self.cancelled.fetch_add(cancelled as u64, Ordering::Relaxed);
        }
    }

    #[must_use]
    pub fn read(&self) -> RunCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let classes = self.batched.iter().enumerate().map(|(class, counter)| (1 << class, read(counter)));
        RunCounts {
            single: read(&self.single),
            batched: classes.filter(|(_, runs)| *runs > 0).collect(),
            gathered_runs: read(&self.gathered_runs),
            gathered_requests: read(&self.gathered_requests),
            batch_failed: read(&self.batch_failed),
            split: read(&self.split),
            split_failed: read(&self.split_failed),
            expired: read(&self.expired),
            cancelled: read(&self.cancelled),
        }
    }
}
