//! ONNX Runtime: the engine `onnxruntime`.
//!
//! One engine session per version is shared by all threads that run it, so that the weights are in memory once. A run
//! uses the calling thread only; the engine has no threads of its own.

pub(super) mod custom_ops;
mod divisions;
mod errors;
mod library;
mod model;
pub(super) mod providers;
mod scratch;
mod trap;
mod values;
mod weights;

use super::onnx::{OnnxFile, Operator};
use super::{Backend, LoadError, Model, VersionFiles};
use library::Library;
use model::{OrtModel, Setup};
use providers::Providers;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// ONNX Runtime, with its library loaded.
#[derive(Debug, Clone)]
pub(super) struct OnnxRuntime {
    library: &'static Library,
    /// The directory of the libraries with custom operators that models may name.
    custom_ops: Option<PathBuf>,
}

impl OnnxRuntime {
    pub(super) const NAME: &'static str = "onnxruntime";

    /// Finds and loads the library; `library.rs` says where it looks.
    ///
    /// # Errors
    /// A message for operators.
    pub(super) fn find(configured: Option<&Path>, custom_ops: Option<&Path>) -> Result<OnnxRuntime, String> {
        let custom_ops = custom_ops.map(Path::to_owned);
        library::load(configured).map(|library| OnnxRuntime { library, custom_ops })
    }

    /// Whether an integer division that traps in an operator fails its run only. Holds for the process.
    pub(super) fn set_skip_divisions(skip: bool) {
        trap::set_enabled(skip);
    }

    #[must_use]
    pub(super) fn version(&self) -> &str {
        &self.library.version
    }

    /// Where the library was found.
    #[must_use]
    pub(super) fn origin(&self) -> &str {
        &self.library.origin
    }
}

impl Backend for OnnxRuntime {
    fn name(&self) -> &'static str {
        OnnxRuntime::NAME
    }

    fn load(&self, files: &VersionFiles) -> Result<Arc<dyn Model>, LoadError> {
        let custom_ops = custom_ops::files(self.custom_ops.as_deref(), &files.options.custom_ops)?;
        let providers = Providers::choose(&files.options, self.version())?;
        let file = OnnxFile::read(files)?;
        let divides = |operator: &Operator| operator.domain.is_empty() && matches!(&*operator.name, "Div" | "Mod");
        if trap::is_enabled() && file.operators().iter().any(divides) {
            divisions::learn(self.library);
        }
        Ok(Arc::new(OrtModel::load(self.library, file, &Setup { custom_ops, providers })?))
    }
}
