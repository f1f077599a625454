//! SHA-256 digests of a version's files.

use crate::backend::VersionFiles;
use crate::machine::open_regular;
use crate::source::artifact_files;
use sha2::{Digest as _, Sha256};
use std::io::{self, Read as _};
use std::path::Path;

/// The SHA-256 of each of the artifact's files in lower-case hex, sorted by file name.
pub type Digests = Vec<(String, String)>;

/// Hashes all files of the artifact.
///
/// # Errors
/// When a file cannot be read.
pub fn artifact_digests(dir: &Path) -> io::Result<Digests> {
    let digest = |name: String| file_sha256(&dir.join(&name)).map(|sha256| (name, sha256));
    artifact_files(dir)?.into_iter().map(digest).collect()
}

/// One SHA-256 for all files of the artifact, in lower-case hex.
#[must_use]
pub fn artifact_sha256(digests: &Digests) -> String {
    let mut hasher = Sha256::new();
    for (name, digest) in digests {
        // The form of a name in a string literal has no line break, so that no two lists give the same text.
        hasher.update(format!("{digest} {name:?}\n"));
    }
    format!("{:x}", hasher.finalize())
}

/// The SHA-256 of a version's `model.onnx`, in lower-case hex.
///
/// # Errors
/// When it cannot be read.
pub fn model_sha256(dir: &Path) -> io::Result<String> {
    file_sha256(&dir.join(VersionFiles::MODEL))
}

pub(super) fn file_sha256(path: &Path) -> io::Result<String> {
    let mut file = open_regular(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(format!("{:x}", hasher.finalize())),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
