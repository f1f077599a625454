//! Who this gateway is, over restarts: a random id in the data directory. Two gateways of one name have two ids.

use crate::machine::durable;
use std::io;
use std::path::Path;

const FILE: &str = "fleet-node";

/// The id in the data directory. It is made where there is none.
///
/// # Errors
/// When the file cannot be read or written, or has another form.
pub(super) fn read_or_make(data: &Path) -> io::Result<String> {
    let path = data.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            if let Ok(id) = uuid::Uuid::parse_str(text.trim()) {
                Ok(id.to_string())
            } else {
                let words = format!("{} has no id of a gateway: remove it, and a new one is made", path.display());
                Err(io::Error::new(io::ErrorKind::InvalidData, words))
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = uuid::Uuid::now_v7().to_string();
            durable::write_atomically(&path, id.as_bytes())?;
            Ok(id)
        }
        Err(error) => Err(error),
    }
}
