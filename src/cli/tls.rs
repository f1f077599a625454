//! TLS to the admin API.

use super::CommandError;
use crate::outbound;
use std::path::Path;
use std::sync::Arc;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

/// Trusts the certificates in `ca`, or those that the system trusts. The certificate of the client is sent if the server asks for one.
pub(super) fn config(
    ca: Option<&Path>,
    certificate: Option<&Path>,
    key: Option<&Path>,
) -> Result<TlsConfig, CommandError> {
    let file = match ca {
        Some(file) => file,
        None => outbound::system_authorities().ok_or_else(|| {
            let message = "this system has no list of trusted authorities: --ca or SLUICEGATE_CA names a file (PEM)";
            CommandError::Usage(message.to_owned())
        })?,
    };
    let roots = certificates("--ca", file)?;
    let client = match (certificate, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => {
            let chain = certificates("--client-cert", certificate)?;
            let bytes = read("--client-key", key)?;
            let key = PrivateKey::from_pem(&bytes).map_err(|error| wrong("--client-key", key, &error.to_string()))?;
            Some(ClientCert::new_with_certs(&chain, key))
        }
        _ => {
            let message = "--client-cert and --client-key belong together: give both or neither";
            return Err(CommandError::Usage(message.to_owned()));
        }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&roots)).client_cert(client);
    Ok(config.unversioned_rustls_crypto_provider(provider).build())
}

/// What an operator can do about an error of TLS.
pub(super) fn advice(error: &ureq::Error) -> Option<&'static str> {
    let text = error.to_string();
    let is_one_of = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    if is_one_of(&["UnknownIssuer"]) {
        Some("--ca FILE (or SLUICEGATE_CA) names the certificate or authority to trust")
    } else if is_one_of(&["CertificateRequired"]) {
        Some("the server asks for a certificate: give --client-cert and --client-key")
    } else if is_one_of(&["InvalidContentType", "corrupt message"]) {
        Some("the server does not answer with TLS there: use http://, or the port that speaks TLS")
    } else if is_one_of(&["NotValidForName"]) {
        Some(
            "the certificate is for another name: use a name that it has, or make one with `sluicegate certificate --for NAME`",
        )
    } else if is_one_of(&["invalid peer certificate", "fatal alert"]) {
        Some("the other side does not accept the certificate")
    } else {
        None
    }
}

fn certificates(option: &str, file: &Path) -> Result<Vec<Certificate<'static>>, CommandError> {
    outbound::certificates(file).map_err(|error| CommandError::Usage(format!("{option} {error}")))
}

fn read(option: &str, file: &Path) -> Result<Vec<u8>, CommandError> {
    std::fs::read(file).map_err(|error| wrong(option, file, &error.to_string()))
}

fn wrong(option: &str, file: &Path, reason: &str) -> CommandError {
    CommandError::Usage(format!("{option} {}: {reason}", file.display()))
}
