//! Client certificates (mTLS): what the connection knows of one, and who that is.

use super::identity::{Grant, Identity, Via};
use std::sync::Arc;

/// The verified certificate of a client. The connection adds it to each of its requests as an `Arc` among the extensions; it is there only if
/// the certificate's chain ends in a configured authority (`client_ca`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The common name of the subject; empty where there is none.
    pub subject: String,
    /// The subject alternative names: host names, e-mail addresses and URIs, as text.
    pub names: Vec<String>,
}

/// Which certificates are whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRule {
    /// The common name or a subject alternative name. The actor in the audit trail has this name.
    pub name: String,
    pub grant: Grant,
}

impl ClientCertificate {
    /// All grants of the rules that fit, under the name of the first. `None` when none fits.
    pub(super) fn identity(&self, rules: &[CertificateRule]) -> Option<Arc<Identity>> {
        let is_named = |name: &str| self.subject == name || self.names.iter().any(|n| n == name);
        let first = rules.iter().find(|rule| is_named(&rule.name))?;
        let grants = rules.iter().filter(|rule| rule.name == first.name).map(|rule| rule.grant.clone()).collect();
        Some(Arc::new(Identity { name: first.name.clone(), via: Via::Certificate, grants }))
    }
}
