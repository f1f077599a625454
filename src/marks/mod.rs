//! marks: records in shared memory which version each thread runs in an engine, so that another process can read it after a crash.
//!
//! - [`VersionMark::register`] gives a loaded version a number in the region's table of names, until the last clone is dropped.
//! - [`VersionMark::enter`] marks the calling thread until the returned [`Inside`] is dropped: a few nanoseconds, no system call, no lock.
//!   A mark inside another one keeps the outer kind, so that a run during verification is shown as a verification.
//! - [`catch_signals`] installs handlers that write the signal and the mark of the dying thread into the region, and then let the signal end
//!   the process as before.
//! - [`Region::create`] makes a region that a child process can share; [`install`] uses it in the child. Without it the marks go to private
//!   memory, which nobody reads.
//! - [`Region::read`] reads the marks of a process that has ended.
//! - [`keep_inputs`] copies the inputs of a run into the region before the run, where that is switched on.
//!
//! Uses: model (names, requests), tensor (input data).
//!
//! Invariant: entering and leaving an engine neither allocates nor waits. All of the region is atomic integers, so that no content of it is invalid.
//!
//! To add a kind of call: a variant of [`Kind`], and [`VersionMark::enter`] around the call.

mod inputs;
mod reading;
mod region;
mod signals;
mod thread;

pub use inputs::{KeptInputs, keep_inputs};
pub use reading::{Caller, Death, MarkedThread, Named, Reading};
pub use region::{Region, install};
pub use signals::catch_signals;
pub use thread::Inside;

use crate::model::{ModelName, Version};
use std::sync::Arc;

/// What a thread does in an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The engine reads the model's files.
    Load = 1,
    /// Golden answers and trial runs.
    Verify = 2,
    Warm = 3,
    /// The engine prepares a session for a thread.
    Session = 4,
    /// A run for a caller.
    Run = 5,
    /// A run of a copied request.
    Shadow = 6,
    /// The engine releases a version.
    Free = 7,
}

impl Kind {
    pub const ALL: [Kind; 7] =
        [Kind::Load, Kind::Verify, Kind::Warm, Kind::Session, Kind::Run, Kind::Shadow, Kind::Free];

    /// As the log and the audit trail spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Load => "load",
            Kind::Verify => "verify",
            Kind::Warm => "warm",
            Kind::Session => "session",
            Kind::Run => "run",
            Kind::Shadow => "shadow",
            Kind::Free => "free",
        }
    }
}

/// The mark of one version. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct VersionMark(Option<Arc<Entry>>);

/// An entry of the table of names. Freed when dropped.
#[derive(Debug)]
struct Entry(usize);

impl Drop for Entry {
    fn drop(&mut self) {
        region::current().free_name(self.0);
    }
}

impl VersionMark {
    /// Enters a version into the table of names. `artifact` identifies its files, in at most [`Region::MAX_ARTIFACT`] bytes.
    ///
    /// When the table is full, the mark is that of an unnamed version.
    #[must_use]
    pub fn register(model: &ModelName, version: Version, artifact: &str) -> VersionMark {
        let entry = region::current().add_name(model.as_str(), version.number(), artifact);
        if entry.is_none() {
            tracing::warn!(%model, %version, "the table of names for crash reports is full: a crash of this version cannot be attributed to it");
        }
        VersionMark(entry.map(|index| Arc::new(Entry(index))))
    }

    /// Marks this thread as inside an engine until the result is dropped.
    #[inline]
    #[must_use]
    pub fn enter(&self, kind: Kind) -> Inside {
        let name = self.0.as_ref().map_or(0, |entry| entry.0 as u64 + 1);
        thread::enter(name << region::KIND_BITS | u64::from(kind as u8))
    }
}

#[cfg(test)]
mod tests;
