//! source: finds the models and versions in a directory, and reports what changed.
//!
//! - [`look_at_root`], [`look_at_model`] and [`look_at_version`] read the directory once; they change nothing.
//! - [`watch`] starts a thread that reads it again when the system reports a change, and at an interval. It sends a [`Look`] when
//!   something differs from the last one.
//! - A version counts as still when its files have not changed for the settle time. A half-copied version is never still.
//!
//! Uses: backend (file names), model.
//!
//! Invariant: nothing here knows what is loaded.
//!
//! To add a source: a file beside `watch.rs` that sends the same [`Look`].

mod scan;
mod staging;
mod watch;

pub use scan::{Fingerprint, Found, FoundModel, artifact_files, look_at_model, look_at_root, look_at_version};
pub use staging::{remove_leftovers, staging_name};
pub use watch::{Look, ScanState, WakeHandle, watch};
