//! The keyed hash that is written instead of private values.

use crate::machine::durable;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

/// HMAC-SHA-256 (RFC 2104) with a secret key.
#[derive(Clone)]
pub(super) struct HashKey(Hmac<Sha256>);

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey(…)")
    }
}

impl HashKey {
    /// The environment variable that holds the key.
    const VARIABLE: &'static str = "SLUICEGATE_HASH_KEY";
    const FILE: &'static str = "hash.key";
    /// Bytes. Shorter keys can be guessed.
    const MIN_BYTES: usize = 16;
    /// Length of a hash in hex.
    pub const HEX: usize = 64;

    /// # Errors
    /// Words, when the key is shorter than [`HashKey::MIN_BYTES`].
    pub fn new(secret: &[u8]) -> Result<HashKey, String> {
        if secret.len() < HashKey::MIN_BYTES {
            return Err(format!("the key has {} bytes: expected at least {}", secret.len(), HashKey::MIN_BYTES));
        }
        Ok(HashKey(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length")))
    }

    /// For streams that are only read, and hash nothing.
    pub fn none() -> HashKey {
        HashKey(Hmac::new_from_slice(&[]).expect("HMAC takes keys of any length"))
    }

    /// Finds the key: in the environment, else in `file`, else in the data directory, where it is created if there is none.
    ///
    /// # Errors
    /// When a file cannot be read or created, or the key is too short.
    pub fn find(file: Option<&Path>, data: &Path) -> io::Result<HashKey> {
        if let Some(key) = HashKey::existing(file, data)? {
            return Ok(key);
        }
        let path = data.join(HashKey::FILE);
        let secret = create(&path).map_err(named(&path))?;
        HashKey::new(secret.trim_ascii()).map_err(invalid(format!("the hash key {}", path.display())))
    }

    /// The same without creating a key. `None` where there is none in the data directory.
    ///
    /// # Errors
    /// When a file cannot be read, or the key is too short.
    pub fn existing(file: Option<&Path>, data: &Path) -> io::Result<Option<HashKey>> {
        if let Ok(secret) = std::env::var(HashKey::VARIABLE) {
            return HashKey::new(secret.trim().as_bytes()).map(Some).map_err(invalid(HashKey::VARIABLE.to_owned()));
        }
        let default = data.join(HashKey::FILE);
        let path = file.unwrap_or(&default);
        let secret = match std::fs::read(path) {
            Ok(secret) => secret,
            Err(e) if e.kind() == io::ErrorKind::NotFound && file.is_none() => return Ok(None),
            Err(e) => return Err(named(path)(e)),
        };
        HashKey::new(secret.trim_ascii()).map(Some).map_err(invalid(format!("the hash key {}", path.display())))
    }

    /// Tells this key apart from others, without saying what it is.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        String::from_utf8_lossy(&self.hash(b"sluicegate: which key this is")[..16]).into_owned()
    }

    /// The hash in lower-case hex.
    #[must_use]
    pub fn hash(&self, text: &[u8]) -> [u8; HashKey::HEX] {
        let mut mac = self.0.clone();
        mac.update(text);
        let mut hex = [0; HashKey::HEX];
        write!(&mut hex[..], "{:x}", mac.finalize().into_bytes()).expect("SHA-256 has 32 bytes, which are 64 digits");
        hex
    }
}

fn invalid(what: String) -> impl Fn(String) -> io::Error {
    move |words| io::Error::new(io::ErrorKind::InvalidInput, format!("{what}: {words}"))
}

fn named(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("the hash key {}: {e}", path.display()))
}

/// Creates a key. The file is durable before anything is hashed with it.
fn create(path: &Path) -> io::Result<Vec<u8>> {
    let hex = fresh()?;
    durable::write_atomically(path, hex.as_bytes())?;
    Ok(hex.into_bytes())
}

/// A key of 256 random bits, in hex.
///
/// # Errors
/// When the system has no random bits.
pub(crate) fn fresh() -> io::Result<String> {
    let mut bytes = [0u8; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:x}", hmac::digest::generic_array::GenericArray::from(bytes)))
}

/// Whether an operator names the key: the environment or the configuration.
pub(crate) fn is_configured(file: Option<&Path>) -> bool {
    file.is_some() || std::env::var_os(HashKey::VARIABLE).is_some()
}

/// The key that an earlier start made in the data directory.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn made(data: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(data.join(HashKey::FILE)) {
        Ok(secret) => Ok(Some(secret.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(&data.join(HashKey::FILE))(error)),
    }
}

/// A key that came from elsewhere.
///
/// # Errors
/// In words, when it is too short.
pub(crate) fn checked(secret: &str) -> Result<String, String> {
    HashKey::new(secret.trim().as_bytes()).map(|_| secret.trim().to_owned())
}

/// Hashes with this key from now on, in a data directory that has none.
///
/// # Errors
/// When it cannot be stored.
pub(crate) fn adopt(data: &Path, secret: &str) -> io::Result<()> {
    std::fs::create_dir_all(data)?;
    durable::write_atomically(&data.join(HashKey::FILE), secret.as_bytes())
}
