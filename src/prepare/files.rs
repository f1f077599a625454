//! Reads the small files beside a model. Each has a size limit, so that a wrong file cannot fill the memory.

use super::failure::StageFailure;
use crate::machine::open_regular;
use crate::registry::Stage;
use std::io::{self, Read as _};
use std::path::Path;

/// Limit for `golden.json` and `warmup.json`. Both may hold whole tensors as text.
pub(super) const MAX_REQUESTS_BYTES: u64 = 256 << 20;
/// Limit for `version.toml` and `model.toml`, which are written by hand.
pub(super) const MAX_SETTINGS_BYTES: u64 = 1 << 20;

/// Reads a file beside the model. `None` where there is none.
///
/// # Errors
/// When it cannot be read or is larger than `limit` bytes.
pub(super) fn read_beside(dir: &Path, name: &str, limit: u64, stage: Stage) -> Result<Option<Vec<u8>>, StageFailure> {
    read_limited(&dir.join(name), limit).map_err(|error| StageFailure::io(stage, &format!("read {name}"), &error))
}

/// Reads a whole file of at most `limit` bytes. `None` where there is no file.
///
/// # Errors
/// When it cannot be read, is not a regular file, or is larger (`InvalidData`).
pub(super) fn read_limited(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match open_regular(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    // One byte more than the limit shows that the file is too large, also where it grows while it is read.
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is larger than {limit} bytes")));
    }
    Ok(Some(bytes))
}
