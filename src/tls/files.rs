//! Reads the PEM files, and notices when they change.

use super::{Config, TlsError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The most bytes of a file: a bundle of all public authorities has a quarter of it.
const MAX_FILE: u64 = 1 << 20;
/// The most certificates of a file.
const MAX_CERTIFICATES: usize = 1000;

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    // A pipe or a device could block or never end.
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(failed(std::io::Error::other("it is not a regular file")));
    }
    File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(TlsError::TooLarge { path: path.to_owned(), limit: MAX_FILE });
    }
    Ok(bytes)
}

/// The certificates of a PEM file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let mut all = Vec::new();
    for (index, certificate) in CertificateDer::pem_slice_iter(&bytes).take(MAX_CERTIFICATES).enumerate() {
        all.push(certificate.map_err(|e| TlsError::Certificate {
            path: path.to_owned(),
            number: index + 1,
            reason: e.to_string(),
        })?);
    }
    if all.is_empty() { Err(TlsError::NoCertificate { path: path.to_owned() }) } else { Ok(all) }
}

/// The first private key of a PEM file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read(path)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| TlsError::NoKey { path: path.to_owned() })
}

/// What changes when a file is replaced or written. `None` for a file that is not there.
type Stamp = Option<(u64, u64, i64, i64, i64, i64)>;

/// The state of all files of a plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamps([Stamp; 3]);

impl Stamps {
    pub(super) fn of(config: &Config) -> Stamps {
        let stamp = |path: &Path| {
            let m = path.metadata().ok()?;
            Some((m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()))
        };
        Stamps([stamp(&config.certificate), stamp(&config.key), config.client_ca.as_deref().and_then(stamp)])
    }
}
