//! Weights that lie in files of their own, read into memory and handed over.
//!
//! Left to itself ONNX Runtime maps such files and keeps them mapped: a file overwritten in place would change the
//! answers of a version that serves, and one cut short would end the process with SIGBUS at the next read. Handed
//! over as bytes they are the engine's own, and take what they take inside `model.onnx` (36 MB of weights: 58 MB
//! resident either way, one session and the engine itself included; mapped, 54 MB).

use crate::backend::LoadError;
use crate::backend::onnx::OnnxFile;
use ort::Error;
use ort::session::builder::SessionBuilder;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// The weight files of a model, by the names it knows them by.
#[derive(Debug, Default)]
pub struct Weights(BTreeMap<PathBuf, Arc<[u8]>>);

impl Weights {
    /// Reads every file the main graph keeps tensors in. Those of inner graphs alone, which no exporter writes, stay
    /// mapped.
    pub fn read(file: &OnnxFile) -> Result<Weights, LoadError> {
        let mut files = BTreeMap::new();
        for location in file.weight_files() {
            let bytes = std::fs::read(file.dir().join(location))
                .map_err(|source| LoadError::Io { what: format!("the weight file {location:?}"), source })?;
            files.insert(PathBuf::from(location), bytes.into());
        }
        Ok(Weights(files))
    }

    /// Gives the files to the session about to be made. It copies what it needs of them, so they are gone when it is.
    pub fn give_to(self, mut builder: SessionBuilder) -> Result<SessionBuilder, Error> {
        for (name, bytes) in self.0 {
            builder = builder.with_external_initializer_file_in_memory(name, bytes)?;
        }
        Ok(builder)
    }

    /// Of all files.
    pub fn bytes(&self) -> usize {
        self.0.values().map(|bytes| bytes.len()).sum()
    }
}
