//! The keyed hash that stands in for what must not be written.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// HMAC-SHA-256 (RFC 2104) under a secret key.
#[derive(Clone)]
pub struct HashKey(Hmac<Sha256>);

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey(…)")
    }
}

impl HashKey {
    pub const VARIABLE: &'static str = "SLUICEGATE_HASH_KEY";
    const FILE: &'static str = "hash.key";
    /// Shorter ones can be guessed.
    pub const LEAST: usize = 16;

    /// # Errors
    /// Words, when it is shorter than [`HashKey::LEAST`] bytes.
    pub fn new(secret: &[u8]) -> Result<HashKey, String> {
        if secret.len() < HashKey::LEAST {
            return Err(format!("a key of {} bytes: expected at least {}", secret.len(), HashKey::LEAST));
        }
        Ok(HashKey(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length")))
    }

    /// The environment's, else the file's, else the data directory's own, which is made where it is not there.
    ///
    /// # Errors
    /// When a file cannot be read or made, or a key is too short.
    pub fn find(file: Option<&Path>, data: &Path) -> io::Result<HashKey> {
        let invalid =
            |what: String| move |words: String| io::Error::new(io::ErrorKind::InvalidInput, format!("{what}: {words}"));
        if let Ok(secret) = std::env::var(HashKey::VARIABLE) {
            return HashKey::new(secret.trim().as_bytes()).map_err(invalid(HashKey::VARIABLE.to_owned()));
        }
        let own = data.join(HashKey::FILE);
        let path = file.unwrap_or(&own);
        let named = |e: io::Error| io::Error::new(e.kind(), format!("the hash key {}: {e}", path.display()));
        let secret = match std::fs::read(path) {
            Ok(secret) => secret,
            Err(e) if e.kind() == io::ErrorKind::NotFound && file.is_none() => make(path).map_err(named)?,
            Err(e) => return Err(named(e)),
        };
        HashKey::new(secret.trim_ascii()).map_err(invalid(format!("the hash key {}", path.display())))
    }

    /// Lower-case hex.
    #[must_use]
    pub fn hash(&self, text: &[u8]) -> String {
        let mut mac = self.0.clone();
        mac.update(text);
        format!("{:x}", mac.finalize().into_bytes())
    }
}

/// 256 bits from the system, in hex, durable before anything is hashed with it.
fn make(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = [0u8; 32];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    let hex = format!("{:x}", hmac::digest::generic_array::GenericArray::from(bytes));
    let unfinished = path.with_extension("tmp");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(hex.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    Ok(hex.into_bytes())
}
