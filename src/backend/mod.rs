//! backend: loads a model file and runs it; one file per engine.
//!
//! - [`Engines::discover`] finds the engines this machine has; [`Engines::load`] takes the one a version asks for, or
//!   under `auto` the first that will run it. What none will run is refused in words that say what would help.
//! - [`Backend::load`] reads a version's files once; the [`Model`] it gives holds the weights once, however many run
//!   it, and what happens to the files later does not reach it.
//! - [`Model::session`] gives a light [`Session`] per worker; `run` is synchronous, takes checked tensors in the
//!   signature's order and answers the wanted outputs in the wanted order.
//! - A run that fails, panics, or traps on an integer division ends that run alone (`ort/trap.rs`). Any other signal
//!   inside an engine ends the process.
//! - Every engine passes the same conformance suite (`conformance/`); a case an engine cannot do is listed with its
//!   reason.
//!
//! Uses: model, tensor.
//!
//! Invariant: no async, no queues, no other versions: an engine knows one file at a time.
//!
//! To add an engine: a folder beside these that implements the three traits, a variant of [`EngineChoice`], a line in
//! `Engines::discover`, and its row in the conformance suite (`docs/how-to-add/engine.md`).

#[cfg(test)]
mod conformance;
mod engines;
pub mod fake;
mod onnx;
mod ort;
mod tract;

pub use engines::{EngineInfo, Engines};

use crate::model::{Checked, Signature};
use crate::tensor::Tensor;
use std::path::PathBuf;
use std::sync::Arc;

/// Where one version's bytes lie: `dir/model.onnx`, with external weight files beside it.
#[derive(Debug, Clone)]
pub struct VersionFiles {
    pub dir: PathBuf,
}

impl VersionFiles {
    pub const MODEL: &'static str = "model.onnx";

    #[must_use]
    pub fn model(&self) -> PathBuf {
        self.dir.join(Self::MODEL)
    }
}

/// Which engine runs a model: `engine` in `model.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// ONNX Runtime where its library is there, tract where it is not.
    #[default]
    Auto,
    OnnxRuntime,
    Tract,
}

/// Why a version cannot be loaded. The words are for operators: they name the operator, the input or the file beside
/// the model, and what would help.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read: worth another try.
    #[error("cannot read {what}: {source}")]
    Io { what: String, source: std::io::Error },
    /// There was not enough memory: worth another try.
    #[error("{0}")]
    Memory(String),
    /// The files are no model any engine could run: missing, empty, cut short, something else. The same bytes give
    /// the same answer.
    #[error("{0}")]
    Invalid(String),
    /// The file was read and this engine will not run it: the same bytes give the same answer.
    #[error("{0}")]
    Unsupported(String),
    /// The engine wanted is not there at all.
    #[error("{0}")]
    NoEngine(String),
}

impl LoadError {
    /// Whether the same files may load a little later.
    #[must_use]
    pub fn is_worth_retrying(&self) -> bool {
        matches!(self, LoadError::Io { .. } | LoadError::Memory(_))
    }
}

/// Why a run gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The inputs fit the signature and this engine cannot take them (a NUL in a string, a division that would trap):
    /// the caller's to mend.
    #[error("{0}")]
    Refused(String),
    /// The engine failed. `message` is for the caller: no paths, no sources; `internal` is the engine's own words,
    /// for the log.
    #[error("{message}")]
    Failed { message: String, internal: String },
}

/// A way to run ONNX files.
pub trait Backend: Send + Sync {
    /// `onnxruntime` or `tract`, as metadata and `sluicegate check` spell it.
    fn name(&self) -> &'static str;

    /// Reads a version and makes it runnable with one thread per run. Blocking, and slow for large files.
    fn load(&self, files: &VersionFiles) -> Result<Arc<dyn Model>, LoadError>;
}

/// A loaded version: its weights, once.
pub trait Model: Send + Sync + std::fmt::Debug {
    fn engine(&self) -> &'static str;

    fn signature(&self) -> &Signature;

    /// A light handle for one worker at a time.
    fn session(self: Arc<Self>) -> Result<Box<dyn Session>, RunError>;
}

/// One worker's way into a [`Model`].
pub trait Session: Send {
    /// Runs once.
    ///
    /// `request` fits [`Model::signature`]. Answers one tensor per entry of [`Checked::wanted`], in its order.
    fn run(&mut self, request: &Checked) -> Result<Vec<Tensor>, RunError>;
}
