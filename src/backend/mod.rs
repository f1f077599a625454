//! backend: loads a model file and runs it; one file per engine.
//!
//! - [`Engines::discover`] finds the engines on this machine. [`Engines::load`] uses the engine that a version asks for,
//!   or with `auto` the first one that can run it. If no engine can, the error says why and what would help.
//! - [`Backend::load`] reads a version's files once. The [`Model`] holds the weights once, for any number of sessions;
//!   later changes to the files do not affect it.
//! - [`Model::session`] makes a light [`Session`] for one worker. `run` is synchronous, takes checked tensors in the
//!   signature's order and returns the requested outputs in the requested order.
//! - [`Model::graph`] says what the graph shows without a run: whether rows are independent, and which operators depend on values.
//! - Values that an operator cannot take are the caller's error ([`RunError::Refused`]), not a failure of the engine.
//! - Another thread ends a run by its [`Interrupt`] ([`RunError::Interrupted`]). The model and its sessions stay usable.
//! - An error, a panic or a division of integer elements that traps (`ort/trap.rs`) ends only that run. Any other signal inside an
//!   engine ends the process.
//! - [`Model::empty_inputs`] says which inputs without elements a version may be given: some kernels end the process on them.
//! - Every engine passes the same conformance suite (`conformance/`). A case that an engine does not support is listed
//!   there with its reason.
//!
//! Uses: model, tensor.
//!
//! Invariant: no async, no queues, no other versions: an engine works on one version at a time.
//!
//! To add an engine: a folder that implements the three traits, a variant of [`EngineChoice`], a line in
//! `Engines::discover`, and the engine in the conformance suite (`docs/how-to-add/engine.md`).

#[cfg(test)]
mod conformance;
mod empty_inputs;
mod engines;
#[cfg(test)]
pub(crate) mod fake;
mod interrupt;
mod onnx;
mod options;
mod ort;
mod tract;

pub use empty_inputs::{EmptyAxes, EmptyInputs, FreeAxis, MAX_FREE_AXES, Tried, free_axes};
pub use engines::{EngineInfo, Engines};
pub use interrupt::Interrupt;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use onnx::OnnxFile;
pub use onnx::{GraphFacts, RowAnalysis};
pub use options::{EngineOptions, Provider};

use crate::model::{Checked, Signature};
use crate::tensor::Tensor;
use std::path::PathBuf;
use std::sync::Arc;

/// The files of one version: `dir/model.onnx`, with external weight files beside it; and how its engine is set up.
#[derive(Debug, Clone)]
pub struct VersionFiles {
    pub dir: PathBuf,
    pub options: Arc<EngineOptions>,
}

impl VersionFiles {
    pub const MODEL: &'static str = "model.onnx";

    /// For an engine without options.
    #[must_use]
    pub fn of(dir: impl Into<PathBuf>) -> VersionFiles {
        VersionFiles { dir: dir.into(), options: Arc::default() }
    }

    #[must_use]
    pub fn model(&self) -> PathBuf {
        self.dir.join(Self::MODEL)
    }
}

/// Which engine runs a model: `engine` in `model.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// ONNX Runtime; tract where its library is not installed or where it cannot load the model.
    #[default]
    Auto,
    OnnxRuntime,
    Tract,
}

/// Why a version cannot be loaded. The messages are for operators: they name the ONNX operator, the input or the file, and
/// what would help.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read. Another attempt may succeed.
    #[error("cannot read {what}: {source}")]
    Io { what: String, source: std::io::Error },
    /// There was not enough memory. Another attempt may succeed.
    #[error("{0}")]
    Memory(String),
    /// The files are not a model: missing, empty, truncated, another format. The same bytes always give the same error.
    #[error("{0}")]
    Invalid(String),
    /// This engine cannot run the model. The same bytes always give the same error.
    #[error("{0}")]
    Unsupported(String),
    /// The engine asked for is not available.
    #[error("{0}")]
    NoEngine(String),
}

impl LoadError {
    /// Whether the same files may load a moment later.
    #[must_use]
    pub fn is_worth_retrying(&self) -> bool {
        matches!(self, LoadError::Io { .. } | LoadError::Memory(_))
    }
}

/// The message of a run that failed for want of memory.
pub const OUT_OF_MEMORY: &str = "there is not enough memory for this request";

/// Why a run returned no outputs.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The inputs fit the signature, but an operator cannot compute with their values: an index out of range, a shape that
    /// does not fit, a string that is not a number, a division by zero. The caller has to change them.
    #[error("{0}")]
    Refused(String),
    /// The engine failed: missing memory, a missing implementation, a bug. `message` is for the caller and contains no
    /// paths; `internal` is the engine's own message, for the log.
    #[error("{message}")]
    Failed { message: String, internal: String },
    /// The outputs are larger than [`Model::limit_outputs`] allows. They were not copied.
    #[error("the outputs have {bytes} bytes, and at most {most} are allowed")]
    OutputsTooLarge { bytes: usize, most: usize },
    /// The run was ended by its [`Interrupt`]. It says nothing about the request or the model.
    #[error("the run was interrupted")]
    Interrupted,
}

/// An engine that runs ONNX files.
pub trait Backend: Send + Sync {
    /// `onnxruntime` or `tract`, as metadata and `sluicegate check` spell it.
    fn name(&self) -> &'static str;

    /// Loads a version, to be run with one thread per run. Blocks, for long with large files.
    fn load(&self, files: &VersionFiles) -> Result<Arc<dyn Model>, LoadError>;
}

/// A loaded version. It holds the weights once.
///
/// No method has a default, so that a model that wraps another one (`prepare/trial`) cannot hide what the other one does.
pub trait Model: Send + Sync + std::fmt::Debug {
    fn engine(&self) -> &'static str;

    fn signature(&self) -> &Signature;

    /// What the graph says about runs: whether rows are independent, and whether values decide how long a run takes.
    fn graph(&self) -> &GraphFacts;

    /// From now on runs fail whose outputs have more bytes together, before these are copied. An engine that does not copy outputs ignores
    /// it, as whoever runs the model checks too.
    fn limit_outputs(&self, bytes: usize);

    /// Which inputs without elements a run may have. [`EmptyInputs::Any`], unless a trial limits them.
    fn empty_inputs(&self) -> &EmptyInputs;

    /// Makes a light handle, to be used by one worker at a time.
    fn session(self: Arc<Self>) -> Result<Box<dyn Session>, RunError>;
}

/// A handle with which one worker runs a [`Model`].
pub trait Session: Send {
    /// Runs the model once.
    ///
    /// `request` fits [`Model::signature`]. Returns one tensor per entry of [`Checked::wanted`], in that order. Ends early with
    /// [`RunError::Interrupted`] where `interrupt` is requested and the engine notices it in time.
    fn run(&mut self, request: &Checked, interrupt: &Interrupt) -> Result<Vec<Tensor>, RunError>;
}
