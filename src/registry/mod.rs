//! registry: what is loaded and how traffic is split, as one snapshot; the only place that names `ArcSwap`.
//!
//! - A [`Snapshot`] is immutable and agrees with itself: an [`Entry`] cannot be made with a traffic document that names a
//!   version it does not hold, so routing cannot miss.
//! - [`new`] gives one [`Writer`] (the manager's, not `Clone`) and a [`Reader`] (everybody's). A request calls
//!   [`Reader::snapshot`] exactly once; a publish replaces the snapshot whole by one atomic store.
//! - What a publish replaces is kept by the writer until no request holds it ([`Writer::collect`]), so that memory is freed on
//!   the manager's thread and never on a request's.
//!
//! Uses: compare (the tolerance), execute, record (where records go), route, model, telemetry.
//!
//! Invariant: no files, no disks, no clocks: a snapshot is what it was given.
//!
//! To add something requests read: a field of [`Entry`] or [`Served`], set where the manager builds the entry.

mod entry;
mod publish;
#[cfg(test)]
pub(crate) mod tests;

pub use entry::{Entry, Facts, Limits, Loaded, Routed, Served, Shadowing, Stage, State, VersionStatus};
pub use publish::{Reader, Snapshot, Writer, new};
