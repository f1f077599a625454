//! The files of one plane.

use std::path::PathBuf;

/// Where the certificate of a plane is, and which clients may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// PEM: the certificate of the server, followed by intermediate ones.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// PEM: the authorities that sign certificates of clients. Without it clients are not asked for one.
    pub client_ca: Option<PathBuf>,
    pub client_auth: ClientAuth,
}

/// Whether clients need a certificate, where `client_ca` is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientAuth {
    /// A client without a certificate cannot connect.
    #[default]
    Required,
    /// A client without a certificate can connect, and has no identity from TLS.
    Optional,
}
