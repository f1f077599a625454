//! tls: certificates: loads, checks and reloads them, makes them, and reads who a client is.
//!
//! - [`Tls`] is the certificate of one plane, as it is now. A handshake takes the current one; open connections keep theirs.
//! - [`Tls::look`] is called every second. It loads files that have changed and then stayed unchanged for a second. [`Tls::reload`] loads
//!   them at once. A pair that cannot be used is refused in words, and the one from before stays.
//! - [`ClientCertificate`] is the verified identity of a client, in the terms that roles and audit trails use.
//! - [`make`](fn@make) makes certificates for trying, and never overwrites a file.
//! - TLS 1.2 and 1.3 by rustls with ring (`docs/adr/0007-tls-by-rustls-and-ring.md`). Sessions are resumed by tickets that the client keeps, so
//!   that they cost no memory here. Where clients have certificates nothing is resumed: each connection proves its identity.
//!
//! Uses: telemetry.
//!
//! Invariant: no sockets and no HTTP here; a private key never leaves this room and is never shown.
//!
//! To add a property of clients: a field of [`ClientCertificate`] in `identity.rs`.

mod config;
mod files;
mod identity;
mod load;
mod make;
mod plane;
#[cfg(test)]
mod tests;

pub use config::{ClientAuth, Config};
pub use identity::ClientCertificate;
pub use make::{Made, MakeError, Wanted, make};
pub use plane::Tls;

use std::path::PathBuf;

/// Why certificates cannot be used. The message names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is larger than {limit} bytes, which no certificate file is", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("{} has no certificate: expected PEM with at least one \"BEGIN CERTIFICATE\"", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{} has no private key that can be used: expected PEM with one unencrypted \"BEGIN PRIVATE KEY\" (RSA, ECDSA or Ed25519)", path.display())]
    NoKey { path: PathBuf },
    #[error("{}: certificate {number} cannot be read: {reason}", path.display())]
    Certificate { path: PathBuf, number: usize, reason: String },
    #[error("{} and {} do not belong together: {reason}", certificate.display(), key.display())]
    Pair { certificate: PathBuf, key: PathBuf, reason: String },
    #[error("{} expired on {on}", path.display())]
    Expired { path: PathBuf, on: String },
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}
