//! The authorities that sign the certificates of servers.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use ureq::tls::{Certificate, PemItem, parse_pem};

/// Where systems keep the authorities that they trust: Debian and Alpine, Fedora, and others.
const SYSTEM: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// The most bytes of a file with authorities. Those of systems have a quarter of a megabyte.
const MAX_FILE: u64 = 8 << 20;

/// Why the authorities in a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    #[error("{}: {reason}", file.display())]
    File { file: PathBuf, reason: String },
    #[error("this system has no list of trusted authorities, and no file with authorities is configured")]
    NoSystemList,
}

/// The file with the authorities that the system trusts.
#[must_use]
pub fn system_authorities() -> Option<&'static Path> {
    SYSTEM.iter().map(Path::new).find(|file| file.exists())
}

/// All certificates in a PEM file, of which there must be one at least.
///
/// # Errors
/// When the file cannot be read, is too large, or has no certificate.
pub fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>, Untrusted> {
    let wrong = |reason: String| Untrusted::File { file: file.to_owned(), reason };
    let mut text = Vec::new();
    let opened = File::open(file).map_err(|e| wrong(e.to_string()))?;
    opened.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|e| wrong(e.to_string()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(wrong(format!("it is larger than {MAX_FILE} bytes, which no list of authorities is")));
    }
    let mut all = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| wrong(e.to_string()))? {
            all.push(certificate);
        }
    }
    if all.is_empty() { Err(wrong("it has no certificate (PEM)".to_owned())) } else { Ok(all) }
}
