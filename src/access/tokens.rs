//! The tokens, as one snapshot that requests read.

use super::identity::{Grant, Identity, Via};
use super::pattern::Models;
use super::role::{Action, Role};
use super::secret::{self, Hash};
use super::unauthenticated;
use crate::ledger::StoredToken;
use crate::model::Failure;
use arc_swap::ArcSwap;
use jiff::Timestamp;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use subtle::ConstantTimeEq;

/// The tokens by the first eight bytes of their hashes. Those bytes are found in a time that depends on them; that tells nothing about a
/// secret, as nobody can choose a secret for its hash. All 32 bytes are then compared in constant time.
type Snapshot = HashMap<[u8; 8], Vec<Arc<Token>>>;

/// All tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    current: ArcSwap<Snapshot>,
    /// Increased after each change of `current`, so that what was proved before it is proved again.
    generation: AtomicU64,
    /// Held while the tokens are read and replaced.
    reloading: Mutex<()>,
    /// Those of the configuration, which no change of the others removes.
    configured: Vec<StoredToken>,
}

#[derive(Debug)]
pub(super) struct Token {
    hash: Hash,
    identity: Arc<Identity>,
    grant: Grant,
    created_at: Timestamp,
    created_by: String,
    expires_at: Option<Timestamp>,
    /// In seconds since 1970; 0: never.
    last_used: AtomicI64,
    shared: bool,
    /// Used since the last call of [`Tokens::take_uses`].
    used: AtomicBool,
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFacts {
    pub name: String,
    pub role: Role,
    pub models: Models,
    pub created_at: Timestamp,
    pub created_by: String,
    pub expires_at: Option<Timestamp>,
    pub last_used: Option<Timestamp>,
    /// It is valid on every gateway of the fleet.
    pub shared: bool,
}

impl TokenFacts {
    /// A stored token. `None` when it cannot be read: somebody else wrote it.
    #[must_use]
    pub fn of(stored: &StoredToken) -> Option<TokenFacts> {
        Some(TokenFacts {
            name: stored.name.clone(),
            role: stored.role.parse().ok()?,
            models: Models::of(stored.models.split(',')).ok()?,
            created_at: stored.created_at,
            created_by: stored.created_by.clone(),
            expires_at: stored.expires_at,
            last_used: stored.last_used,
            shared: stored.shared,
        })
    }

    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

/// Whether a text can be the name of a token: it becomes the actor in the audit trail. `local` and `system` are the names of callers
/// without credentials and of the server.
#[must_use]
pub fn is_token_name(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-@+".contains(c);
    (1..=64).contains(&text.len()) && text.chars().all(is_allowed) && !matches!(text, "local" | "system")
}

/// A token of the configuration, which a file holds: a secret that an orchestrator mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRule {
    /// See [`is_token_name`].
    pub name: String,
    pub grant: Grant,
    pub file: PathBuf,
}

/// A longer file holds something else than a token.
const MAX_TOKEN_FILE: u64 = 4096;

impl TokenRule {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, or does not hold a token.
    pub(super) fn read(&self) -> std::io::Result<StoredToken> {
        let wrong = |why: String| {
            std::io::Error::other(format!("the token of {:?} in {}: {why}", self.name, self.file.display()))
        };
        let unreadable = |e: std::io::Error| wrong(format!("cannot be read: {e}"));
        // A named pipe would hold the start until somebody writes to it.
        if !std::fs::metadata(&self.file).map_err(unreadable)?.is_file() {
            return Err(wrong("expected a file".to_owned()));
        }
        let mut text = String::new();
        File::open(&self.file)
            .and_then(|file| file.take(MAX_TOKEN_FILE).read_to_string(&mut text))
            .map_err(unreadable)?;
        let secret = text.trim();
        if !secret::is_whole(secret) {
            return Err(wrong("expected one line, as `sluicegate token generate` prints it".to_owned()));
        }
        Ok(StoredToken {
            name: self.name.clone(),
            hash: secret::hash(secret),
            role: self.grant.role.to_string(),
            models: self.grant.models.texts().join(","),
            created_at: Timestamp::now(),
            created_by: "configuration".to_owned(),
            expires_at: None,
            last_used: None,
            shared: false,
        })
    }
}

/// A token that is about to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// See [`is_token_name`].
    pub name: String,
    pub grant: Grant,
    pub expires_at: Option<Timestamp>,
    pub created_by: String,
}

impl NewToken {
    /// Makes the secret. Returns it with the form that is stored; nothing else ever has it.
    ///
    /// # Errors
    /// When the system has no random bits.
    pub fn make(self) -> std::io::Result<(String, StoredToken)> {
        let secret = secret::generate()?;
        let stored = StoredToken {
            name: self.name,
            role: self.grant.role.to_string(),
            models: self.grant.models.texts().join(","),
            hash: secret::hash(&secret),
            created_at: Timestamp::now(),
            created_by: self.created_by,
            expires_at: self.expires_at,
            last_used: None,
            shared: false,
        };
        Ok((secret, stored))
    }
}

impl Tokens {
    pub(super) fn new(stored: &[StoredToken], configured: Vec<StoredToken>) -> Tokens {
        let current = ArcSwap::from_pointee(snapshot(stored.iter().chain(&configured), &Snapshot::new()));
        Tokens { current, generation: AtomicU64::new(0), reloading: Mutex::new(()), configured }
    }

    /// The token with this secret, and the generation of the tokens that has it.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`.
    pub(super) fn find(&self, secret: &str) -> Result<(Arc<Token>, u64), Failure> {
        if !secret::is_whole(secret) {
            return Err(unauthenticated(
                "the bearer token is not one of this server: it was cut, mistyped, or belongs to another program",
            ));
        }
        let hash = secret::hash(secret);
        // Before the tokens are read: if they change in between, the token counts as one of the older generation, and is looked up again.
        let generation = self.generation();
        let current = self.current.load();
        let token = current.get(&key(&hash)).into_iter().flatten().find(|token| token.hash.ct_eq(&hash).into());
        match token {
            Some(token) => Ok((Arc::clone(token), generation)),
            None => Err(unauthenticated("the token is unknown: it was revoked, or another server made it")),
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn any_valid(&self) -> bool {
        let now = Timestamp::now();
        self.facts().iter().any(|token| !token.is_expired(now) && token.role.allows(Action::View))
    }

    pub(super) fn any_valid_admin(&self) -> bool {
        let now = Timestamp::now();
        let may = |token: &TokenFacts| token.role == Role::Admin && token.models == Models::All;
        self.facts().iter().any(|token| may(token) && !token.is_expired(now))
    }

    pub(super) fn reload<E>(&self, read: impl FnOnce() -> Result<Vec<StoredToken>, E>) -> Result<(), E> {
        let _reloading = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let next = snapshot(read()?.iter().chain(&self.configured), &self.current.load());
        self.current.store(Arc::new(next));
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    pub(super) fn facts(&self) -> Vec<TokenFacts> {
        let current = self.current.load();
        let mut all: Vec<TokenFacts> = current.values().flatten().map(|token| token.facts()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    pub(super) fn take_uses(&self) -> Vec<(String, Timestamp)> {
        let current = self.current.load();
        let used = current.values().flatten().filter(|token| token.used.swap(false, Ordering::Relaxed));
        used.filter_map(|token| Some((token.identity.name.clone(), token.last_used()?))).collect()
    }
}

impl Token {
    /// The holder of the token, which was used now.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` when it has expired.
    pub(super) fn accept(&self) -> Result<Arc<Identity>, Failure> {
        let now = Timestamp::now();
        if self.expires_at.is_some_and(|at| at <= now) {
            let message = format!("the token {:?} has expired; an admin can make another one", self.identity.name);
            return Err(unauthenticated(&message));
        }
        // Written once a second at most, so that threads do not take the line of memory from each other.
        if self.last_used.load(Ordering::Relaxed) != now.as_second() {
            self.last_used.store(now.as_second(), Ordering::Relaxed);
            self.used.store(true, Ordering::Relaxed);
        }
        Ok(Arc::clone(&self.identity))
    }

    fn last_used(&self) -> Option<Timestamp> {
        let seconds = self.last_used.load(Ordering::Relaxed);
        Timestamp::from_second(seconds).ok().filter(|_| seconds != 0)
    }

    fn facts(&self) -> TokenFacts {
        TokenFacts {
            name: self.identity.name.clone(),
            role: self.grant.role,
            models: self.grant.models.clone(),
            created_at: self.created_at,
            created_by: self.created_by.clone(),
            expires_at: self.expires_at,
            last_used: self.last_used(),
            shared: self.shared,
        }
    }
}

fn key(hash: &Hash) -> [u8; 8] {
    let mut key = [0; 8];
    key.copy_from_slice(&hash[..8]);
    key
}

/// The snapshot of stored tokens. What is known in memory about their last use is kept.
fn snapshot<'t>(stored: impl IntoIterator<Item = &'t StoredToken>, before: &Snapshot) -> Snapshot {
    let mut next = Snapshot::new();
    for stored in stored {
        let Some(facts) = TokenFacts::of(stored) else {
            tracing::error!(token = stored.name, "a stored token cannot be read; nobody can use it");
            continue;
        };
        let key = key(&stored.hash);
        let known = before.get(&key).into_iter().flatten().find(|token| token.hash == stored.hash);
        let stored_use = facts.last_used.map_or(0, Timestamp::as_second);
        let last_used = known.map_or(0, |token| token.last_used.load(Ordering::Relaxed)).max(stored_use);
        let grant = Grant { role: facts.role, models: facts.models };
        next.entry(key).or_default().push(Arc::new(Token {
            hash: stored.hash,
            identity: Arc::new(Identity { name: facts.name, via: Via::Token, grants: vec![grant.clone()] }),
            grant,
            created_at: facts.created_at,
            created_by: facts.created_by,
            expires_at: facts.expires_at,
            last_used: AtomicI64::new(last_used),
            shared: facts.shared,
            used: AtomicBool::new(known.is_some_and(|token| token.used.load(Ordering::Relaxed))),
        }));
    }
    next
}
