//! Reads external weight files into memory and passes them to the engine.
//!
//! By default ONNX Runtime maps such files for as long as the session lives. A file overwritten in place would then change
//! the answers of a serving version, and a truncated file would end the process with SIGBUS. Passed as bytes, the engine
//! copies them, and they take as much memory as weights inside `model.onnx` (36 MB of weights: 58 MB resident either way,
//! with one session and the engine; mapped: 54 MB).

use crate::backend::LoadError;
use crate::backend::onnx::OnnxFile;
use ort::Error;
use ort::session::builder::SessionBuilder;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// The contents of a model's weight files, by the location that the model gives.
#[derive(Debug, Default)]
pub(super) struct Weights(BTreeMap<PathBuf, Arc<[u8]>>);

impl Weights {
    /// Reads every weight file of the main graph. Files that only inner graphs name stay mapped; no exporter writes such
    /// models.
    pub(super) fn read(file: &OnnxFile) -> Result<Weights, LoadError> {
        let mut files = BTreeMap::new();
        for location in file.weight_files() {
            let bytes = std::fs::read(file.dir().join(location))
                .map_err(|source| LoadError::Io { what: format!("the weight file {location:?}"), source })?;
            files.insert(PathBuf::from(location), bytes.into());
        }
        Ok(Weights(files))
    }

    /// Passes the files to the session that is being built. It copies what it needs, so that the bytes are freed afterwards.
    pub(super) fn add_to(self, mut builder: SessionBuilder) -> Result<SessionBuilder, Error> {
        for (name, bytes) in self.0 {
            builder = builder.with_external_initializer_file_in_memory(name, bytes)?;
        }
        Ok(builder)
    }

    /// The size of all files together.
    pub(super) fn bytes(&self) -> usize {
        self.0.values().map(|bytes| bytes.len()).sum()
    }
}
