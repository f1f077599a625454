//! Where the files of a data directory are uploaded to, and under which names.

use crate::bucket::Address;
use crate::machine::durable::write_atomically;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// As it stands in the data directory, for commands that run without the server's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The address.
    pub to: String,
    /// The name of the gateway.
    pub node: String,
    /// A random id of the data directory: two gateways with one name never write one object.
    pub id: String,
}

impl Place {
    /// The place of a data directory; `None` where nothing was ever uploaded from it.
    ///
    /// # Errors
    /// When the file cannot be read, or has another form.
    pub fn find(data: &Path) -> io::Result<Option<Place>> {
        let path = path(data);
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let wrong = |e: serde_json::Error| {
            let words = format!("{} is not what the server wrote: {e}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, words)
        };
        serde_json::from_slice(&text).map(Some).map_err(wrong)
    }

    /// Notes the place. The id stays what it was.
    pub(super) fn make(data: &Path, to: &Address, node: &str) -> io::Result<Place> {
        let known = Place::find(data)?;
        let id = known.as_ref().map_or_else(|| format!("{:08x}", fastrand::u32(..)), |known| known.id.clone());
        let place = Place { to: to.to_string(), node: node.to_owned(), id };
        if known.as_ref() != Some(&place) {
            std::fs::create_dir_all(data.join("upload"))?;
            write_atomically(&path(data), &serde_json::to_vec_pretty(&place)?)?;
        }
        Ok(place)
    }

    /// The name of a sealed file's object, below the prefix. `file` is below the data directory.
    #[must_use]
    pub(super) fn object(&self, file: &Path) -> String {
        let named = file.with_extension(format!("{}.{}.parquet", self.node, self.id));
        // The names of models and dates are ASCII.
        named.to_string_lossy().into_owned()
    }
}

fn path(data: &Path) -> PathBuf {
    data.join("upload/place.json")
}
