//! What became of one version's requests, by where and how they ran.

use std::sync::atomic::{AtomicU64, Ordering};

/// Sizes of batches are counted by powers of two of their rows.
const SIZES: usize = 13;

/// Counters since the version was loaded.
#[derive(Debug, Default)]
pub struct Tally {
    alone: AtomicU64,
    spread: AtomicU64,
    cut_in_vain: AtomicU64,
    together: [AtomicU64; SIZES],
    taken_apart: AtomicU64,
    expired: AtomicU64,
    left: AtomicU64,
}

/// What a [`Tally`] shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Runs of one request, on whichever thread: those on the thread that read it, and on a worker.
    pub alone: u64,
    /// Runs of several requests together, by rows: the largest of each size class, and how many.
    pub together: Vec<(usize, u64)>,
    /// Runs of one request too, cut by its rows and run by several workers.
    pub spread: u64,
    /// Requests that failed so, and went well as one run.
    pub cut_in_vain: u64,
    /// Batches that failed and were run again, each request alone.
    pub taken_apart: u64,
    /// Requests that were dropped before they ran: their deadline had passed, or their caller went away.
    pub expired: u64,
    pub left: u64,
}

impl Tally {
    pub(super) fn alone(&self) {
        self.alone.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn spread(&self) {
        self.spread.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn cut_in_vain(&self) {
        self.cut_in_vain.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs that failed in parts and went well as one.
    pub(super) fn cuts_in_vain(&self) -> u64 {
        self.cut_in_vain.load(Ordering::Relaxed)
    }

    pub(super) fn together(&self, rows: usize) {
        let class = (usize::BITS - rows.saturating_sub(1).leading_zeros()) as usize;
        self.together[class.min(SIZES - 1)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn taken_apart(&self) {
        self.taken_apart.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn aside(&self, expired: usize, left: usize) {
        if expired + left > 0 {
            self.expired.fetch_add(expired as u64, Ordering::Relaxed);
            self.left.fetch_add(left as u64, Ordering::Relaxed);
        }
    }

    /// The counts now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let sizes = self.together.iter().enumerate().map(|(class, counter)| (1 << class, read(counter)));
        Counts {
            alone: read(&self.alone),
            spread: read(&self.spread),
            cut_in_vain: read(&self.cut_in_vain),
            together: sizes.filter(|(_, runs)| *runs > 0).collect(),
            taken_apart: read(&self.taken_apart),
            expired: read(&self.expired),
            left: read(&self.left),
        }
    }
}
