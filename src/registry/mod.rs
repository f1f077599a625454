//! registry: what is loaded and how traffic is split, as one snapshot.
//!
//! - A [`Snapshot`] is immutable and consistent: an [`Entry`] whose document names a version that is not loaded is only built where
//!   the manager knows why. Requests for that version are refused with its state; the others are served.
//! - [`new`] makes one [`Writer`], for the manager (not `Clone`), and a [`Reader`], for everyone else. A request calls
//!   [`Reader::snapshot`] exactly once. A publish replaces the whole snapshot by one atomic store.
//! - The writer keeps a replaced snapshot until no request holds it ([`Writer::collect`]). So its memory is freed on the manager's
//!   thread and never on a request's.
//! - Each loaded version has a [`Breaker`]: after repeated failures of its engine, requests are refused, or answered by the document's fallback.
//! - A [`RequestContext`] holds what was decided about one request when it was routed.
//!
//! Uses: columns (names of elements), compare (the tolerance), execute, outcomes (metrics), profile, record (streams, the record of a request), route, model, telemetry.
//!
//! Invariant: no files, no disks, no clocks. A snapshot contains only what it was given.
//!
//! To add something that requests read: a field of [`Entry`] or [`Served`], set where the manager builds the entry.

mod breaker;
mod context;
mod entry;
mod origin;
mod publish;
#[cfg(test)]
pub(crate) mod tests;
mod version;

pub use breaker::{Admission, AfterFailure, Breaker, BreakerConfig, BreakerStatus};
pub use context::{Recording, RequestContext, Timing, micros};
pub use entry::Unserved;
pub use entry::{Entry, Routed};
pub use origin::{Lineage, Origin, Parent, SourceCode, TrainingData};
pub use publish::{Elsewhere, Reader, Snapshot, Writer, new, new_with};
pub use version::{
    Facts, Identity, Limits, Loaded, Retired, Served, ShadowRoute, Stage, Staleness, State, VersionStatus,
};
