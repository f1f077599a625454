//! prepare: makes a version ready to serve, from its files alone: load, verify, warm up.
//!
//! - [`bring_up`] runs the three stages and returns the ready version, or the stage and reason of the failure.
//! - [`check()`] reports what would become of a version; [`offline()`] loads one without a server.
//! - Every failure is an [`Outcome`]; panics of an engine are caught.
//!
//! Uses: backend, codec (golden answers, warm-up requests), compare, execute, machine (processor time), model, model_settings, registry (the loaded version), settings, source (fingerprints), telemetry, tensor.
//!
//! Invariant: nothing here knows which versions serve, or any live request.
//!
//! To add a stage: a file beside `verify.rs`, called by `bring_up.rs`, and a value of `registry::Stage`.

mod batchability;
mod bring_up;
mod check;
mod offline;
mod verify;
mod warm;

pub use bring_up::{Digests, Job, Outcome, Trouble, Up, backoff, bring_up, digest};
pub use check::{CheckReport, EngineReport, VersionReport, check};
pub use offline::{Offline, offline, sha256_of_version, version_dir, versions_of};

use crate::backend::{EngineChoice, Engines, LoadError, Model, VersionFiles};
use std::fmt::Debug;
use std::sync::Arc;

/// Loads model files: the engines, or a fake in tests.
pub trait Loader: Send + Sync + Debug {
    /// Reads a version and makes it runnable. Blocking, and slow for large files.
    fn load(&self, engine: EngineChoice, files: &VersionFiles) -> Result<Arc<dyn Model>, LoadError>;
}

impl Loader for Engines {
    fn load(&self, engine: EngineChoice, files: &VersionFiles) -> Result<Arc<dyn Model>, LoadError> {
        Engines::load(self, engine, files)
    }
}
