//! The upload that has begun: stored before the first byte is sent, so that another try goes on with the same object.

use crate::bucket::Prefix;
use crate::machine::durable::write_atomically;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// One file that is being uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    /// Below the data directory.
    pub file: PathBuf,
    /// The object, below the prefix of `to`.
    pub object: String,
    /// The address.
    pub to: String,
    pub sha256: String,
    /// The upload in parts, where there is one.
    pub upload: Option<String>,
    /// What the store answered for each part that arrived.
    pub parts: Vec<String>,
}

impl Begun {
    /// `None` where there is none, or none that can be read: then it begins again.
    pub(super) fn find(data: &Path) -> Option<Begun> {
        serde_json::from_slice(&std::fs::read(path(data)).ok()?).ok()
    }

    pub(super) fn store(&self, data: &Path) -> io::Result<()> {
        std::fs::create_dir_all(data.join("upload"))?;
        write_atomically(&path(data), &serde_json::to_vec(self)?)
    }

    pub(super) fn clear(data: &Path) {
        // One that stays names a file that is uploaded: it is replaced by the next one.
        let _ = std::fs::remove_file(path(data));
    }
}

/// Ends the upload in parts that a stopped server had begun: its parts may hold what must not stay.
///
/// # Errors
/// When the bucket does not end it.
pub fn end_begun(data: &Path, prefix: &Prefix) -> io::Result<()> {
    let Some(begun) = Begun::find(data).filter(|begun| begun.to == prefix.address().to_string()) else { return Ok(()) };
    if let Some(id) = &begun.upload {
        prefix.abort(&begun.object, id)?;
    }
    Begun::clear(data);
    Ok(())
}

fn path(data: &Path) -> PathBuf {
    data.join("upload/begun.json")
}
