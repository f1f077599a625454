//! Bearer tokens of an identity provider: JSON Web Tokens (RFC 7519) that are signed with a key of its key set (RFC 7517).
//!
//! A token is verified on the caller's thread, with the keys in memory; nothing there reads a file or waits for the network. The thread `jwks`
//! reads the keys: at start, at an interval, and once when a token names a key that is unknown, but not more often than
//! [`Pace::soonest`]. The keys stay as they were when they cannot be read.

use super::identity::{Grant, Identity, Via};
use super::unauthenticated;
use crate::model::{Failure, quoted};
use crate::outbound::Client;
use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// The longest token. Those of identity providers have one to four kilobytes.
const MAX_TOKEN: usize = 16 << 10;
/// The longest name of an identity.
const MAX_NAME: usize = 128;
/// The most bytes of a key set, and the most keys that are used.
const MAX_SET: u64 = 1 << 20;
const MAX_KEYS: usize = 100;

/// When keys are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// The longest wait for a key set.
    pub within: Duration,
    /// The shortest time from one reading to the next: strangers can send tokens with any key id, and the provider must not notice.
    pub soonest: Duration,
    /// The longest time to the next reading after one that failed: the keys are older then than they should be.
    pub after_failure: Duration,
}

impl Pace {
    pub(super) const USUAL: Pace = Pace {
        within: Duration::from_secs(5),
        soonest: Duration::from_secs(10),
        after_failure: Duration::from_mins(1),
    };
}

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
    /// The file with the authorities that sign the certificate of an `https://` address. `None`: those that the system trusts.
    pub ca: Option<PathBuf>,
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
struct Keys {
    all: Vec<Key>,
    /// How many key sets had been read before.
    generation: u64,
}

struct Key {
    id: Option<String>,
    /// The algorithm that the set names for it.
    algorithm: Option<Algorithm>,
    decoding: DecodingKey,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all.iter().map(|key| key.id.as_deref().unwrap_or("without an id"))).finish()
    }
}

/// What a token proves.
#[derive(Debug)]
pub(super) struct Proven {
    pub(super) identity: Arc<Identity>,
    /// With the leeway.
    pub(super) expires_at: Timestamp,
    /// Of the keys that verified it.
    pub(super) generation: u64,
}

impl Oidc {
    /// Starts the thread that reads the keys, and waits for the first reading, for [`Pace::within`] at most: a token that comes first is
    /// verified.
    ///
    /// # Errors
    /// When the authorities of the address cannot be read, or the thread cannot be started.
    pub(super) fn start(config: OidcConfig, pace: Pace) -> std::io::Result<Oidc> {
        let source = match config.keys.clone() {
            KeySource::File(path) => Source::File(path),
            KeySource::Url(url) => Source::Url(Client::new(url, config.ca.clone()).map_err(std::io::Error::other)?),
        };
        let keys = Arc::new(ArcSwap::from_pointee(Keys::default()));
        // One request is enough: another one while the thread reads is left out.
        let (wake, asked) = sync_channel(1);
        let (first, read) = sync_channel(1);
        let (every, reading) = (config.refresh, Arc::clone(&keys));
        std::thread::Builder::new().name("jwks".to_owned()).spawn(move || {
            refresh(source, every, pace, &reading, &asked, &first);
        })?;
        // A provider that does not answer must not keep the server from starting.
        let _ = read.recv_timeout(pace.within);
        Ok(Oidc { config, keys, wake })
    }

    /// Whether a text has the form of such a token.
    pub(super) fn is_jwt(text: &str) -> bool {
        text.bytes().filter(|b| *b == b'.').count() == 2
    }

    /// How many key sets were read.
    pub(super) fn generation(&self) -> u64 {
        self.keys.load().generation
    }

    /// The identity that a token proves, until when, and with which generation of the keys.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, with the reason.
    pub(super) fn verify(&self, token: &str) -> Result<Proven, Failure> {
        let OidcConfig { issuer, audience, algorithms, leeway, name_claim, roles_claim, roles, .. } = &self.config;
        if token.len() > MAX_TOKEN {
            return Err(unauthenticated(&format!("the bearer token is longer than {MAX_TOKEN} bytes")));
        }
        let header = decode_header(token).map_err(|_| unauthenticated("the bearer token is not a JSON Web Token"))?;
        if has_critical_extension(token) {
            return Err(unauthenticated("the bearer token has an extension (crit) that this server does not know"));
        }
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
        // The library takes a list of issuers too, and passes over a time that is not a number.
        if claims["iss"] != issuer.as_str() {
            return Err(unauthenticated(&format!("the bearer token is from another issuer: expected {issuer:?}")));
        }
        if !(claims["nbf"].is_null() || claims["nbf"].is_number()) {
            return Err(unauthenticated("the claim \"nbf\" of the bearer token is not a number"));
        }
        let name = claims[name_claim.as_str()].as_str().unwrap_or_default();
        let fits = (1..=MAX_NAME).contains(&name.len()) && !name.chars().any(char::is_control);
        if !fits || matches!(name, "local" | "system" | "rollout") {
            let message =
                format!("the claim {name_claim:?} of the bearer token is not a name of 1 to {MAX_NAME} bytes");
            return Err(unauthenticated(&message));
        }
        let held = held_roles(&claims, roles_claim);
        let grants = roles.iter().filter(|rule| held.contains(&rule.value.as_str())).map(|rule| rule.grant.clone());
        let identity = Identity { name: name.to_owned(), via: Via::Oidc, grants: grants.collect() };
        // The library has checked that it is a number in the future. One that no clock reaches is never.
        let expires = claims["exp"].as_f64().unwrap_or_default() + leeway.as_secs_f64();
        let expires_at = SignedDuration::try_from_secs_f64(expires).ok().and_then(|d| Timestamp::from_duration(d).ok());
        let expires_at = expires_at.unwrap_or(Timestamp::MAX);
        Ok(Proven { identity: Arc::new(identity), expires_at, generation: keys.generation })
    }
}

/// Whether the header of a token names extensions that a reader must understand (RFC 7515, section 4.1.11). There are none here.
fn has_critical_extension(token: &str) -> bool {
    let header = token.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let header: Option<Value> = header.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    header.is_none_or(|header| header.get("crit").is_some())
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
        let mut keys = self.all.iter().filter(fits);
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
        if keys.is_empty() {
            Err("it has no key that can be used".to_owned())
        } else {
            Ok(Keys { all: keys, generation: 0 })
        }
    }
}

/// Where the thread reads the keys.
enum Source {
    File(PathBuf),
    Url(Client),
}

impl Source {
    fn read(&mut self, within: Duration) -> Result<Keys, String> {
        let text = match self {
            Source::File(path) => {
                let mut text = Vec::new();
                let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
                file.take(MAX_SET + 1).read_to_end(&mut text).map_err(|e| e.to_string())?;
                if text.len() as u64 > MAX_SET {
                    return Err(format!("the file is larger than {MAX_SET} bytes"));
                }
                text
            }
            Source::Url(client) => client.get(within, MAX_SET).map_err(|e| e.to_string())?,
        };
        Keys::parse(&text)
    }
}

/// The thread `jwks`.
fn refresh(
    mut source: Source,
    every: Duration,
    pace: Pace,
    keys: &ArcSwap<Keys>,
    asked: &Receiver<()>,
    first: &SyncSender<()>,
) {
    let mut failed = false;
    loop {
        let began = Instant::now();
        match source.read(pace.within) {
            Ok(read) => {
                if failed {
                    tracing::info!("the keys of the identity provider can be read again");
                }
                tracing::debug!(keys = ?read, "read the keys of the identity provider");
                let generation = keys.load().generation + 1;
                keys.store(Arc::new(Keys { generation, ..read }));
                failed = false;
            }
            Err(error) => {
                tracing::error!(error, "cannot read the keys of the identity provider; they stay as they were");
                failed = true;
            }
        }
        // Nobody waits for it after the first time.
        let _ = first.try_send(());
        let next = match (keys.load().all.is_empty(), failed) {
            // Without any key nobody gets in.
            (true, _) => pace.soonest,
            (false, true) => every.min(pace.after_failure),
            (false, false) => every,
        };
        match asked.recv_timeout(next) {
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) => {
                let until = began + pace.soonest;
                while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                    std::thread::park_timeout(left);
                }
                // Those who asked meanwhile are served by this reading too.
                while asked.try_recv().is_ok() {}
            }
        }
    }
}

/// For tests: a set as text.
#[cfg(test)]
pub(super) fn usable_keys(text: &str) -> Result<usize, String> {
    Keys::parse(text.as_bytes()).map(|keys| keys.all.len())
}
