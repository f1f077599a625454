//! Bearer tokens of an identity provider: JSON Web Tokens (RFC 7519) that are signed with a key of its key set (RFC 7517).
//!
//! A token is verified on the caller's thread, with the keys in memory; nothing there reads a file or waits for the network. The thread `jwks`
//! reads the keys: at start, at an interval, and once when a token names a key that is unknown, but not more often than every
//! [`SOONEST`]. The keys stay as they were when they cannot be read.

use super::identity::{Grant, Identity, Via};
use super::unauthenticated;
use crate::model::{Failure, quoted};
use arc_swap::ArcSwap;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

/// The longest token. Those of identity providers have one to four kilobytes.
const MAX_TOKEN: usize = 16 << 10;
/// The longest name of an identity.
const MAX_NAME: usize = 128;
/// The most bytes of a key set, and the most keys that are used.
const MAX_SET: u64 = 1 << 20;
const MAX_KEYS: usize = 100;
/// The longest wait for a key set.
const FETCH_TIME: Duration = Duration::from_secs(5);
/// The shortest time between two readings.
const SOONEST: Duration = Duration::from_secs(10);

/// Where the keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    File(PathBuf),
    Url(String),
}

/// What a role claim may hold, and what it grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleRule {
    /// A value of the role claim.
    pub value: String,
    pub grant: Grant,
}

/// An identity provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcConfig {
    /// The claim `iss` of each token.
    pub issuer: String,
    /// One of the claim `aud` of each token.
    pub audience: String,
    pub keys: KeySource,
    /// How often the keys are read again.
    pub refresh: Duration,
    /// Signatures that are accepted. Never those with a shared secret.
    pub algorithms: Vec<Algorithm>,
    /// How far the clocks may differ, for `exp` and `nbf`.
    pub leeway: Duration,
    /// The claim with the name of the identity: the actor in the audit trail. One that its holder cannot choose.
    pub name_claim: String,
    /// The claim with the roles: a list of texts, or one text with spaces. Dots lead into objects.
    pub roles_claim: String,
    pub roles: Vec<RoleRule>,
}

/// The signatures that can be configured.
pub const ALGORITHMS: [(&str, Algorithm); 9] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// Verifies the tokens of an identity provider.
#[derive(Debug)]
pub(super) struct Oidc {
    config: OidcConfig,
    keys: Arc<ArcSwap<Keys>>,
    /// Asks the thread to read the keys. It ends when this is dropped.
    wake: SyncSender<()>,
}

#[derive(Default)]
struct Keys(Vec<Key>);

struct Key {
    id: Option<String>,
    /// The algorithm that the set names for it.
    algorithm: Option<Algorithm>,
    decoding: DecodingKey,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| key.id.as_deref().unwrap_or("without an id"))).finish()
    }
}

impl Oidc {
    /// Starts the thread that reads the keys, and waits for the first reading, for [`FETCH_TIME`] at most: a token that comes first is
    /// verified.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(config: OidcConfig) -> std::io::Result<Oidc> {
        let keys = Arc::new(ArcSwap::from_pointee(Keys::default()));
        // One request is enough: another one while the thread reads is left out.
        let (wake, asked) = sync_channel(1);
        let (first, read) = sync_channel(1);
        let (source, every, reading) = (config.keys.clone(), config.refresh, Arc::clone(&keys));
        std::thread::Builder::new().name("jwks".to_owned()).spawn(move || {
            refresh(&source, every, &reading, &asked, &first);
        })?;
        // A provider that does not answer must not keep the server from starting.
        let _ = read.recv_timeout(FETCH_TIME);
        Ok(Oidc { config, keys, wake })
    }

    /// Whether a text has the form of such a token.
    pub(super) fn is_jwt(text: &str) -> bool {
        text.bytes().filter(|b| *b == b'.').count() == 2
    }

    /// The identity that a token proves.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, with the reason.
    pub(super) fn identify(&self, token: &str) -> Result<Arc<Identity>, Failure> {
        let OidcConfig { issuer, audience, algorithms, leeway, name_claim, roles_claim, roles, .. } = &self.config;
        if token.len() > MAX_TOKEN {
            return Err(unauthenticated(&format!("the bearer token is longer than {MAX_TOKEN} bytes")));
        }
        let header = decode_header(token).map_err(|_| unauthenticated("the bearer token is not a JSON Web Token"))?;
        if !algorithms.contains(&header.alg) {
            let known: Vec<&str> =
                ALGORITHMS.iter().filter(|(_, a)| algorithms.contains(a)).map(|(name, _)| *name).collect();
            let message = format!("the bearer token is signed with {:?}: expected {}", header.alg, known.join(" or "));
            return Err(unauthenticated(&message));
        }
        let keys = self.keys.load();
        let Some(key) = keys.find(header.kid.as_deref(), header.alg) else {
            // Full: the thread will read the keys anyway.
            let _ = self.wake.try_send(());
            let id = header.kid.as_deref().map_or_else(|| "no key id".to_owned(), |id| format!("key {}", quoted(id)));
            let message =
                format!("the bearer token is signed with {id}, which is unknown; the keys of {issuer} are read again");
            return Err(unauthenticated(&message));
        };
        let mut validation = Validation::new(header.alg);
        validation.leeway = leeway.as_secs();
        validation.validate_nbf = true;
        validation.set_audience(&[audience]);
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let claims = decode::<Map<String, Value>>(token, &key.decoding, &validation).map_err(|error| {
            use jsonwebtoken::errors::ErrorKind::{
                ExpiredSignature, ImmatureSignature, InvalidAudience, InvalidIssuer, InvalidSignature,
            };
            let why = match error.kind() {
                ExpiredSignature => "has expired".to_owned(),
                ImmatureSignature => "is not valid yet".to_owned(),
                InvalidAudience => format!("is for another audience: expected {audience:?}"),
                InvalidIssuer => format!("is from another issuer: expected {issuer:?}"),
                InvalidSignature => "has a wrong signature".to_owned(),
                other => format!("cannot be accepted ({other:?})"),
            };
            unauthenticated(&format!("the bearer token {why}"))
        })?;
        let claims = Value::Object(claims.claims);
        let name = claims[name_claim.as_str()].as_str().unwrap_or_default();
        let fits = (1..=MAX_NAME).contains(&name.len()) && !name.chars().any(char::is_control);
        if !fits || matches!(name, "local" | "system" | "rollout") {
            let message =
                format!("the claim {name_claim:?} of the bearer token is not a name of 1 to {MAX_NAME} bytes");
            return Err(unauthenticated(&message));
        }
        let held = held_roles(&claims, roles_claim);
        let grants = roles.iter().filter(|rule| held.contains(&rule.value.as_str())).map(|rule| rule.grant.clone());
        Ok(Arc::new(Identity { name: name.to_owned(), via: Via::Oidc, grants: grants.collect() }))
    }
}

/// The values of the role claim.
fn held_roles<'c>(claims: &'c Value, path: &str) -> Vec<&'c str> {
    // A claim may itself have dots in its name, as those with a URL have.
    let claim = claims.get(path).unwrap_or_else(|| path.split('.').fold(claims, |value, name| &value[name]));
    match claim {
        Value::String(text) => text.split_whitespace().collect(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

impl Keys {
    /// The key of a token. Without an id, the only key for this signature.
    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&Key> {
        let fits = |key: &&Key| key.algorithm.is_none_or(|a| a == algorithm);
        let mut keys = self.0.iter().filter(fits);
        match id {
            Some(id) => keys.find(|key| key.id.as_deref() == Some(id)),
            None => keys.next().filter(|_| keys.next().is_none()),
        }
    }

    /// Reads a key set. Keys that this program cannot use are left out.
    fn parse(text: &[u8]) -> Result<Keys, String> {
        // Key by key: one of a kind that this program does not know must not hide the others.
        let set: Value = serde_json::from_slice(text).map_err(|e| format!("it is not JSON: {e}"))?;
        let keys = set["keys"].as_array().ok_or("it is not a key set: it has no list \"keys\"")?;
        let usable = |jwk: &Value| {
            if jwk["use"].as_str().is_some_and(|purpose| purpose != "sig") {
                return None;
            }
            let jwk: Jwk = serde_json::from_value(jwk.clone()).ok()?;
            let named = jwk.common.key_algorithm.map(|name| name.to_string());
            let algorithm = named.map(|name| ALGORITHMS.iter().find(|(known, _)| *known == name).map(|(_, a)| *a));
            // An algorithm that is never accepted makes the key useless.
            let algorithm = match algorithm {
                Some(None) => return None,
                other => other.flatten(),
            };
            Some(Key { id: jwk.common.key_id.clone(), algorithm, decoding: DecodingKey::from_jwk(&jwk).ok()? })
        };
        let keys: Vec<Key> = keys.iter().filter_map(usable).take(MAX_KEYS).collect();
        if keys.is_empty() { Err("it has no key that can be used".to_owned()) } else { Ok(Keys(keys)) }
    }
}

/// The thread `jwks`.
fn refresh(source: &KeySource, every: Duration, keys: &ArcSwap<Keys>, asked: &Receiver<()>, first: &SyncSender<()>) {
    loop {
        let began = Instant::now();
        let read = fetch(source).and_then(|text| Keys::parse(&text));
        match read {
            Ok(read) => {
                tracing::debug!(keys = ?read, "read the keys of the identity provider");
                keys.store(Arc::new(read));
            }
            Err(error) => tracing::error!(?source, "the keys of the identity provider stay as they were: {error}"),
        }
        // Nobody waits for it after the first time.
        let _ = first.try_send(());
        // Without any key it is tried again soon.
        let every = if keys.load().0.is_empty() { SOONEST } else { every };
        match asked.recv_timeout(every) {
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) => std::thread::park_timeout(SOONEST.saturating_sub(began.elapsed())),
        }
    }
}

fn fetch(source: &KeySource) -> Result<Vec<u8>, String> {
    match source {
        KeySource::File(path) => {
            let mut text = Vec::new();
            let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
            file.take(MAX_SET + 1).read_to_end(&mut text).map_err(|e| e.to_string())?;
            if text.len() as u64 > MAX_SET { Err(format!("it is larger than {MAX_SET} bytes")) } else { Ok(text) }
        }
        KeySource::Url(url) => {
            // Another address than the configured one must not give keys.
            let mut config = ureq::Agent::config_builder().timeout_global(Some(FETCH_TIME)).max_redirects(0);
            if url.starts_with("https://") {
                config = config.tls_config(trusted_by_the_system()?);
            }
            let agent: ureq::Agent = config.build().into();
            let mut answer = agent.get(url).call().map_err(|e| e.to_string())?;
            if answer.status() != 200 {
                return Err(format!("the answer has the status {}", answer.status()));
            }
            answer.body_mut().with_config().limit(MAX_SET).read_to_vec().map_err(|e| e.to_string())
        }
    }
}

/// Where systems keep the authorities that they trust: Debian and Alpine, Fedora, and others.
const SYSTEM: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// TLS that trusts the authorities of the system.
fn trusted_by_the_system() -> Result<TlsConfig, String> {
    let file = SYSTEM.iter().find(|file| std::path::Path::new(file).exists());
    let file = file.ok_or("this system has no list of trusted authorities")?;
    let text = std::fs::read(file).map_err(|e| format!("{file}: {e}"))?;
    let certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    };
    let roots: Vec<_> = parse_pem(&text).filter_map(certificate).collect();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&roots));
    Ok(config.unversioned_rustls_crypto_provider(provider).build())
}

/// For tests: a set as text.
#[cfg(test)]
pub(super) fn usable_keys(text: &str) -> Result<usize, String> {
    Keys::parse(text.as_bytes()).map(|keys| keys.0.len())
}
