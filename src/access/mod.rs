//! access: who a caller is, and what a caller may do.
//!
//! - [`Access::identify`] turns the credentials of a request (a bearer token, one of an identity provider, or a client certificate) into an [`Identity`]. Wrong
//!   credentials are an error, never an anonymous caller.
//! - An [`Identity`] has grants: a [`Role`] and the models it is limited to. [`Identity::check`] allows an [`Action`], or says what would be
//!   needed.
//! - A [`Permission`] states what an endpoint needs. Both planes require one of every endpoint: neither compiles without.
//! - [`Remembered`] is what a connection proved last, so that a request with the same credentials is cheap.
//! - Tokens have 256 random bits and are kept as SHA-256 hashes, in one snapshot that a request reads without a lock. A slow hash (bcrypt,
//!   Argon2) protects secrets that can be guessed; 256 random bits cannot, and a slow hash would cost every request milliseconds.
//! - The stored tokens belong to the ledger, and their changes are events of the audit trail.
//!
//! Uses: ledger (the stored form of a token), model, outbound (the keys of an identity provider).
//!
//! Invariant: nothing here reads a request's path or body, no request waits for a file or the network, and no secret is kept, logged or printed; the one who makes a token gets it once.
//!
//! To add a role: a variant of [`Role`], its arm in `Role::allows`, and its column in docs/SECURITY.md (a test compares them).

mod certificate;
mod identity;
mod oidc;
mod pattern;
mod permission;
mod remembered;
mod role;
mod secret;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_jwks;
#[cfg(test)]
mod tests_remembered;
mod tokens;

pub use certificate::{CertificateRule, ClientCertificate};
pub use identity::{Grant, Identity, Via};
pub use oidc::{ALGORITHMS, KeySource, OidcConfig, RoleRule};
pub use pattern::{Models, Pattern};
pub use permission::{Permission, Scope};
pub use remembered::Remembered;
pub use role::{Action, Role};
pub use tokens::{NewToken, TokenFacts, TokenRule, is_token_name};

use crate::ledger::StoredToken;
use crate::model::{Code, Failure};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use oidc::{Oidc, Pace, Proven};
use remembered::Proof;
use std::sync::Arc;
use tokens::Tokens;

/// The settings of this room.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Who the holders of client certificates are. The first rule that fits applies.
    pub certificates: Vec<CertificateRule>,
    /// Tokens that files hold, read at the start.
    pub tokens: Vec<TokenRule>,
    /// Whose JSON Web Tokens are accepted.
    pub oidc: Option<OidcConfig>,
}

/// Identifies callers. Cheap to clone; all clones share the tokens.
#[derive(Debug, Clone)]
pub struct Access(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tokens: Tokens,
    certificates: Vec<CertificateRule>,
    oidc: Option<Oidc>,
}

impl Access {
    /// With these tokens. A stored token that cannot be read is reported in the log, and nobody can use it.
    ///
    /// # Errors
    /// When the thread that reads the keys of an identity provider cannot be started, or the authorities of its address or a token cannot be
    /// read.
    pub fn start(config: Config, tokens: &[StoredToken]) -> std::io::Result<Access> {
        Access::start_at(config, tokens, Pace::USUAL)
    }

    fn start_at(config: Config, tokens: &[StoredToken], pace: Pace) -> std::io::Result<Access> {
        let Config { certificates, tokens: rules, oidc } = config;
        let configured: Vec<StoredToken> = rules.iter().map(TokenRule::read).collect::<std::io::Result<_>>()?;
        for rule in rules.iter().filter(|rule| tokens.iter().any(|stored| stored.name == rule.name)) {
            tracing::warn!(
                token = rule.name,
                "[access] tokens has a token of this name, and the data directory another one: both are valid, and the audit trail does not tell them apart"
            );
        }
        let oidc = oidc.map(|oidc| Oidc::start(oidc, pace)).transpose()?;
        Ok(Access(Arc::new(Inner { tokens: Tokens::new(tokens, configured), certificates, oidc })))
    }

    /// The caller with these credentials; `None` without any. `remembered`: what the connection of the request proved last.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` when there are credentials and they are wrong.
    pub fn identify(
        &self,
        headers: &HeaderMap,
        certificate: Option<&ClientCertificate>,
        remembered: Option<&Remembered>,
    ) -> Result<Option<Arc<Identity>>, Failure> {
        let Inner { tokens, certificates, oidc } = &*self.0;
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let Some(value) = given.next() else {
            return Ok(certificate.and_then(|certificate| certificate.identity(certificates)));
        };
        if given.next().is_some() {
            return Err(unauthenticated("the request has more than one authorization header"));
        }
        let Some(secret) = bearer(value) else {
            return Err(unauthenticated("the authorization header is not of the form \"Bearer TOKEN\""));
        };
        if let Some(proof) = remembered.and_then(|remembered| remembered.proof_of(value))
            && let Some(identity) = self.still_holds(&proof)
        {
            return identity.map(Some);
        }
        let (identity, proof) = match oidc {
            Some(oidc) if Oidc::is_jwt(secret) => {
                let Proven { identity, expires_at, generation } = oidc.verify(secret)?;
                (Arc::clone(&identity), Proof::Jwt { identity, expires_at, generation })
            }
            _ => {
                let (token, generation) = tokens.find(secret)?;
                (token.accept()?, Proof::Token { token, generation })
            }
        };
        if let Some(remembered) = remembered {
            remembered.keep(value, proof);
        }
        Ok(Some(identity))
    }

    /// Whose the credentials are that proved this before. `None`: they have to prove it again.
    fn still_holds(&self, proof: &Proof) -> Option<Result<Arc<Identity>, Failure>> {
        let Inner { tokens, oidc, .. } = &*self.0;
        match proof {
            Proof::Token { token, generation } => (*generation == tokens.generation()).then(|| token.accept()),
            Proof::Jwt { identity, expires_at, generation } => {
                let holds = oidc.as_ref().is_some_and(|oidc| oidc.generation() == *generation)
                    && jiff::Timestamp::now() < *expires_at;
                holds.then(|| Ok(Arc::clone(identity)))
            }
        }
    }

    /// The holder of a token of this server, or of a client certificate, on a plane that needs no credentials. Others name nobody there: they may
    /// be meant for a proxy, and the signature of a JSON Web Token costs more to verify than a request.
    #[must_use]
    pub fn name_of(
        &self,
        headers: &HeaderMap,
        certificate: Option<&ClientCertificate>,
        remembered: &Remembered,
    ) -> Option<Arc<Identity>> {
        let Inner { tokens, certificates, .. } = &*self.0;
        let Some(value) = headers.get(AUTHORIZATION) else {
            return certificate.and_then(|certificate| certificate.identity(certificates));
        };
        if let Some(identity) = remembered.proof_of(value).and_then(|proof| self.still_holds(&proof)) {
            return identity.ok();
        }
        let (token, generation) = bearer(value).and_then(|secret| tokens.find(secret).ok())?;
        let identity = token.accept().ok()?;
        remembered.keep(value, Proof::Token { token, generation });
        Some(identity)
    }

    /// Whether anybody could get in: an unexpired token, a role of an identity provider, or a rule for client certificates.
    #[must_use]
    pub fn has_credentials(&self, certificates_are_checked: bool) -> bool {
        let by_certificate = certificates_are_checked && !self.0.certificates.is_empty();
        self.0.tokens.any_valid() || self.0.oidc.is_some() || by_certificate
    }

    /// Whether there is a token that has not expired and may make others.
    #[must_use]
    pub fn has_admin_token(&self) -> bool {
        self.0.tokens.any_valid_admin()
    }

    /// Replaces the tokens by those that `read` returns. Calls are carried out one after the other, so that the last one read is in force.
    ///
    /// # Errors
    /// Those of `read`. The tokens stay as they were then.
    pub fn reload<E>(&self, read: impl FnOnce() -> Result<Vec<StoredToken>, E>) -> Result<(), E> {
        self.0.tokens.reload(read)
    }

    /// All tokens without their secrets, in the order of their names.
    #[must_use]
    pub fn tokens(&self) -> Vec<TokenFacts> {
        self.0.tokens.facts()
    }

    /// The tokens that were used since the last call, with the times. They are kept in memory until somebody stores them.
    #[must_use]
    pub fn take_uses(&self) -> Vec<(String, jiff::Timestamp)> {
        self.0.tokens.take_uses()
    }
}

/// The text of a new token, which nothing knows yet.
///
/// # Errors
/// When the system has no random bits.
pub fn generate_token() -> std::io::Result<String> {
    secret::generate()
}

/// The answer to a request whose endpoint needs credentials, when it has none.
#[must_use]
pub fn credentials_needed(certificate: Option<&ClientCertificate>) -> Failure {
    let hint = certificate.map_or_else(String::new, |certificate| {
        format!(
            "; no rule in [access] certificates of the configuration fits the client certificate of {:?}: add one such as {{ name = {:?}, \
             role = \"viewer\" }} and restart the server",
            certificate.subject, certificate.subject
        )
    });
    unauthenticated(&format!(
        "this needs credentials: send the header \"authorization: Bearer TOKEN\" (`sluicegate token create` makes a token, and the command line \
         sends the one in SLUICEGATE_TOKEN){hint}"
    ))
}

/// The credentials in an authorization header of the form `Bearer TOKEN`.
fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, credentials) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| credentials.trim())
}

fn unauthenticated(message: &str) -> Failure {
    Failure::new(Code::Unauthenticated, message)
}
