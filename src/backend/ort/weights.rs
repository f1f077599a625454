//! Reads external weight files into memory and passes them to the engine.
//!
//! By default ONNX Runtime maps such files for as long as the session lives. A file overwritten in place would then change
//! the answers of a serving version, and a truncated file would end the process with SIGBUS. Passed as bytes, the engine
//! copies them, and they take as much memory as weights inside `model.onnx` (36 MB of weights: 58 MB resident either way,
//! with one session and the engine; mapped: 54 MB).
//!
//! Measured with 190 MiB of weights and ONNX Runtime 1.32, private memory beyond that before the load, at its peak and afterwards: beside
//! the model 571 MiB (the file, the engine's own copy of it, the session's tensors) and 192 MiB; inside `model.onnx` 376 to 383 MiB and
//! 192 MiB. Values of the engine (`AddExternalInitializers`) need no copy, but the engine requires that their memory lives as long as
//! the session, and then weights that a kernel stores in another order are in memory twice for good.
#![expect(unsafe_code, reason = "the engine's interface is C")]

use super::values::check;
use crate::backend::LoadError;
use crate::backend::onnx::OnnxFile;
use ort::session::builder::SessionBuilder;
use ort::{AsPointer as _, Error, api};
use std::ffi::{CString, c_char};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::ptr::{NonNull, null_mut};

/// The contents of a model's weight files, by the location that the model gives.
#[derive(Debug, Default)]
pub(super) struct Weights(Vec<(CString, Pages)>);

impl Weights {
    /// Reads every weight file of the main graph. Files that only inner graphs name stay mapped; no exporter writes such
    /// models.
    pub(super) fn read(file: &OnnxFile) -> Result<Weights, LoadError> {
        let mut files = Vec::new();
        for location in file.weight_files() {
            let unreadable = |source| LoadError::Io { what: format!("the weight file {location:?}"), source };
            let name = CString::new(location)
                .map_err(|_| LoadError::Invalid("the name of a weight file contains a NUL".to_owned()))?;
            let pages = Pages::read(&file.dir().join(location)).map_err(|error| match error.kind() {
                io::ErrorKind::OutOfMemory => {
                    LoadError::Memory(format!("there is not enough memory for the weight file {location:?}"))
                }
                _ => unreadable(error),
            })?;
            files.push((name, pages));
        }
        Ok(Weights(files))
    }

    /// Passes the files to the session that is being built. The engine copies what it needs when the session is made, so they have to
    /// live until then, and no longer.
    pub(super) fn add_to(&self, builder: &SessionBuilder) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        let names: Vec<*const c_char> = self.0.iter().map(|(name, _)| name.as_ptr()).collect();
        let files: Vec<*mut c_char> = self.0.iter().map(|(_, pages)| pages.at.as_ptr().cast()).collect();
        let sizes: Vec<usize> = self.0.iter().map(|(_, pages)| pages.bytes).collect();
        // SAFETY: the options are alive. The three arrays have this length, and hold C strings and memory of these sizes, which live until
        // the session is made. The engine reads the memory and does not write it.
        check(unsafe {
            (api().AddExternalInitializersFromMemory)(
                builder.ptr().cast_mut(),
                names.as_ptr(),
                files.as_ptr(),
                sizes.as_ptr(),
                names.len(),
            )
        })
    }

    /// The size of all files together.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|(_, pages)| pages.bytes).sum()
    }
}

/// The content of a file in private memory. A mapping of its own: where the system has too little memory this is an error, and it goes
/// back to the system as soon as it is dropped.
#[derive(Debug)]
struct Pages {
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is owned, and only written while it is made.
unsafe impl Send for Pages {}

impl Pages {
    fn read(path: &Path) -> io::Result<Pages> {
        let mut file = File::open(path)?;
        let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let mut pages = Pages::new(bytes)?;
        file.read_exact(pages.as_mut())?;
        Ok(pages)
    }

    fn new(bytes: usize) -> io::Result<Pages> {
        // The system maps no empty range.
        let length = bytes.max(1);
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address that the system chooses touches no existing memory.
        let at = unsafe { libc::mmap(null_mut(), length, access, kind, -1, 0) };
        match NonNull::new(at.cast::<u8>()).filter(|_| at != libc::MAP_FAILED) {
            Some(at) => Ok(Pages { at, bytes }),
            None => Err(io::Error::last_os_error()),
        }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has this many bytes, which the system set to zero, and this value owns it.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.bytes) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is owned by this value and has this length. A failure leaves it mapped.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes.max(1)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_any_size_are_read_and_memory_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 1, 4096, 5000] {
            let path = dir.path().join("weights");
            let written: Vec<u8> = (0..size).map(|i: u32| i.to_le_bytes()[0]).collect();
            std::fs::write(&path, &written).unwrap();
            assert_eq!(Pages::read(&path).unwrap().as_mut(), written);
        }
        let error = Pages::new(1 << 47).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory, "{error}");
    }
}
