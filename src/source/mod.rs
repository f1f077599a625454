//! source: finds the models and versions in directories, and reports what changed.
//!
//! - [`look_at_root`], [`look_at_model`](scan::look_at_model) and [`look_at_version`] read the directory once. They change nothing.
//! - [`watch`](fn@watch) starts a thread that reads it again when the system reports a change, and at an interval. It sends a [`Look`] when
//!   something differs from the last one.
//! - A version counts as still when its files have not changed for the settle time. A half-copied version is never still.
//! - Several directories are read as one: the first one that has a version gives it (`roots.rs`).
//! - A program that fills a directory can say why a version is not complete, or what to know about it ([`Told`]).
//! - A link is followed only where it resolves to a path inside the models directory.
//!
//! Uses: backend (file names), machine (files), model.
//!
//! Invariant: nothing here knows what is loaded.
//!
//! Versions from other places than directories are mirrored into one that is watched here (`src/mirror/`).

mod links;
mod notices;
mod roots;
mod scan;
mod staging;
#[cfg(test)]
mod tests;
mod told;
mod watch;

pub(crate) use links::{allow_links_into, check_link};
pub use roots::Awaited;
pub use scan::Fingerprint;
pub(crate) use scan::{Found, FoundModel, Ignored, artifact_files, look_at_root, look_at_version};
pub(crate) use staging::staging_name;
pub(crate) use told::Told;
pub(crate) use watch::{Look, WakeHandle, watch};
