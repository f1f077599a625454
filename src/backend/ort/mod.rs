//! ONNX Runtime: the engine `onnxruntime`.
//!
//! One engine session per version is shared by all threads that run it, so that the weights are in memory once. A run
//! uses the calling thread only; the engine has no threads of its own.

mod errors;
mod library;
mod model;
mod scratch;
mod trap;
mod values;
mod weights;

use super::onnx::OnnxFile;
use super::{Backend, LoadError, Model, VersionFiles};
use library::Library;
use model::OrtModel;
use std::path::Path;
use std::sync::Arc;

/// ONNX Runtime, with its library loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct OnnxRuntime {
    library: &'static Library,
}

impl OnnxRuntime {
    pub(super) const NAME: &'static str = "onnxruntime";

    /// Finds and loads the library; `library.rs` says where it looks.
    ///
    /// # Errors
    /// A message for operators.
    pub(super) fn find(configured: Option<&Path>) -> Result<OnnxRuntime, String> {
        library::load(configured).map(|library| OnnxRuntime { library })
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
        let file = OnnxFile::read(files)?;
        Ok(Arc::new(OrtModel::load(self.library, &file)?))
    }
}
