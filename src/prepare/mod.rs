//! prepare: makes a version ready to serve, from its files alone: load, verify, warm up.
//!
//! - [`bring_up`](fn@bring_up) runs the three stages and returns the ready version, or the stage and the reason of the failure.
//! - [`check()`] reports for every engine whether a version would become ready; [`load_offline`] loads one without a server.
//! - [`make_golden`](fn@make_golden) makes a `golden.json` from arrays, and says whether the version gives these answers.
//! - Where keys are configured ([`TrustedKeys`]), a version without a signature by one of them is refused before an engine reads its files.
//! - Every stage has a time limit ([`TimeLimits`]).
//! - Every failure is a value ([`Outcome`]). Panics of an engine are caught.
//! - [`TriedEngines`] loads and runs each version in another process first, so that no file can end this one (`trial/`).
//! - Trial runs correct an output that is declared with a fixed first dimension and has one element per row (`row_outputs.rs`).
//! - Every file beside a model has a size limit (`files.rs`), and every generated request too (`inputs.rs`).
//!
//! Uses: arrays, backend, codec (golden answers, warm-up requests), columns (names of elements), compare, execute, machine (processor time), marks, model, model_settings, profile (its file), registry (the loaded version), settings, source (fingerprints), telemetry, tensor.
//!
//! Invariant: nothing here knows which versions serve, or any live request.
//!
//! To add a stage: a file beside `verify.rs`, called by `bring_up.rs`, and a value of `registry::Stage`.

mod batchability;
mod bring_up;
mod check;
mod digest;
mod failure;
mod files;
mod inputs;
mod limits;
mod lineage;
mod make_golden;
mod offline;
mod profile;
mod repeat;
mod row_outputs;
mod signed;
#[cfg(test)]
mod tests;
mod trial;
mod verify;
mod version_toml;
mod warm;

pub use bring_up::{Job, Outcome, ReadyVersion, bring_up};
pub use check::{VersionReport, check};
pub use digest::{Digests, artifact_digests, artifact_sha256, model_sha256};
pub use failure::{StageFailure, backoff};
pub use limits::TimeLimits;
pub use make_golden::{GoldenSource, MadeGolden, make_golden};
pub use offline::{ModelDirs, OfflineVersion, load_offline, version_dir};
pub use profile::read as read_profile;
pub use signed::{SIGNATURE_FILE, SigningKey, TrustedKeys};
pub use trial::{Program as TrialProgram, TrialConfig, TriedEngines, run_trials};
pub use verify::GoldenOutput;

use crate::backend::{EngineChoice, Engines, LoadError, Model, VersionFiles};
use std::fmt::Debug;
use std::sync::Arc;

/// Loads model files. Tests use a fake.
pub trait Loader: Send + Sync + Debug {
    /// Loads a version. Blocks, and is slow for large files. `artifact`: the [`artifact_sha256`] of the files, where the caller knows it.
    fn load(
        &self,
        engine: EngineChoice,
        files: &VersionFiles,
        artifact: Option<&str>,
    ) -> Result<Arc<dyn Model>, LoadError>;
}

impl Loader for Engines {
    fn load(
        &self,
        engine: EngineChoice,
        files: &VersionFiles,
        _artifact: Option<&str>,
    ) -> Result<Arc<dyn Model>, LoadError> {
        Engines::load(self, engine, files)
    }
}
