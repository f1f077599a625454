//! Makes the configuration of rustls from files.

use super::files::{certificates, private_key};
use super::{ClientAuth, Config, TlsError, identity};
use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use std::path::Path;
use std::sync::Arc;

/// Certificates that were loaded and fit together.
#[derive(Debug)]
pub(super) struct Loaded {
    pub server: Arc<ServerConfig>,
    /// The first end of validity in the chain of the server.
    pub not_after: Timestamp,
}

/// Loads all files of a plane.
pub(super) fn load(config: &Config) -> Result<Loaded, TlsError> {
    let setup = |error: rustls::Error| TlsError::Setup(error.to_string());
    let (chain, key) = (certificates(&config.certificate)?, private_key(&config.key)?);
    let mut ends = Vec::new();
    for (index, certificate) in chain.iter().enumerate() {
        let unreadable = |reason| TlsError::Certificate { path: config.certificate.clone(), number: index + 1, reason };
        ends.push(identity::not_after(certificate).map_err(unreadable)?);
    }
    let not_after = ends.into_iter().min().unwrap_or(Timestamp::MIN);
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(setup)?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => builder.with_client_cert_verifier(verifier(path, config.client_auth, provider)?),
    };
    let mut server = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::General(_) => TlsError::NoKey { path: config.key.clone() },
        error => TlsError::Pair {
            certificate: config.certificate.clone(),
            key: config.key.clone(),
            reason: error.to_string(),
        },
    })?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    if config.client_ca.is_some() {
        // A ticket would stand for a certificate that has expired or whose authority was removed since.
        server.send_tls13_tickets = 0;
    } else {
        server.ticketer = Ticketer::new().map_err(setup)?;
        // Clients use one.
        server.send_tls13_tickets = 1;
    }
    Ok(Loaded { server: Arc::new(server), not_after })
}

fn verifier(
    path: &Path,
    client_auth: ClientAuth,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for (index, authority) in certificates(path)?.into_iter().enumerate() {
        roots.add(authority).map_err(|e| TlsError::Certificate {
            path: path.to_owned(),
            number: index + 1,
            reason: e.to_string(),
        })?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match client_auth {
        ClientAuth::Required => builder,
        ClientAuth::Optional => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|e| TlsError::Setup(format!("{}: {e}", path.display())))
}
