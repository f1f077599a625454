//! The tokens of the fleet: made and revoked on one gateway, valid on all. Each is a key of its own in the bucket of tokens; a revoked one stays
//! there as such, so that a gateway that was away learns it.

use super::board::now;
use super::change::Put;
use super::session::{no_answer, store};
use super::state::{self, By};
use super::wire;
use crate::ledger::{LedgerReader, StoredToken, TokenChange, TokenEffect};
use crate::lifecycle::Handle;
use async_nats::jetstream::kv::{Entry, Operation, Store, Watch};
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{error, info, warn};

/// The form of the values.
const SCHEMA: u32 = 1;
/// The most names that tokens of a fleet have had. A name of a revoked token can be used again.
const MOST_NAMES: usize = 100_000;
/// How often what could not be stored here is tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Puts the tokens that are stored in force on both planes. Blocking.
pub(crate) type Reload = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A token in the bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SharedToken {
    schema: u32,
    name: String,
    /// Without its secret. `None`: it was revoked.
    #[serde(default)]
    token: Option<StoredToken>,
    #[serde(flatten)]
    by: By,
    ts: String,
}

/// What is in the bucket. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct TokenTable(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    table: Mutex<Table>,
    /// Something is to be followed.
    news: Notify,
}

#[derive(Debug, Default)]
struct Table {
    /// Everything in the bucket has been read, and it is followed.
    is_current: bool,
    tokens: HashMap<String, Revision>,
    /// What is to be stored here.
    behind: HashMap<String, (u64, SharedToken)>,
}

/// The newest value of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Revision {
    pub revision: u64,
    /// It is not revoked.
    pub is_valid: bool,
}

/// Follows the tokens of the fleet.
#[derive(Debug)]
pub(super) struct Tokens<'a> {
    pub table: &'a TokenTable,
    pub handle: &'a Handle,
    pub place: &'a Place,
    pub node: &'a str,
    pub exchange: Duration,
}

/// Where this gateway has its tokens.
pub(crate) struct Place {
    pub ledger: LedgerReader,
    pub reload: Reload,
}

// === impl SharedToken ===

impl SharedToken {
    pub fn new(name: &str, token: Option<StoredToken>, by: By) -> SharedToken {
        SharedToken { schema: SCHEMA, name: name.to_owned(), token, by, ts: now() }
    }

    /// The key of a token. Its name may have characters that keys have not.
    pub fn key(name: &str) -> String {
        name.replace('.', "=2E").replace('@', "=40").replace('+', "=2B")
    }

    /// # Errors
    /// In words.
    fn read(entry: &Entry) -> Result<SharedToken, String> {
        let shared: SharedToken = wire::read_up_to(&entry.value, SCHEMA)?;
        let is_its = shared.token.as_ref().is_none_or(|token| token.name == shared.name);
        if SharedToken::key(&shared.name) == entry.key && is_its {
            Ok(shared)
        } else {
            Err(format!("it is the token {:?}, which has another key", shared.name))
        }
    }

    fn change(self) -> TokenChange {
        let SharedToken { name, token, by: By { actor, node, reason, .. }, .. } = self;
        let made = if token.is_some() { "made" } else { "revoked" };
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        let effect = match token {
            Some(token) => TokenEffect::Follow(Box::new(StoredToken { shared: true, ..token })),
            None => TokenEffect::Revoke { name },
        };
        TokenChange { actor, reason: Some(format!("{made} on {node}{reason}")), effect }
    }
}

// === impl TokenTable ===

impl TokenTable {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bucket is read from its beginning, or no longer read.
    fn begin(&self) {
        *self.lock() = Table::default();
    }

    pub fn read(&self) {
        self.lock().is_current = true;
    }

    /// A value in the bucket, also one that this gateway put there: where it was not stored here, it is followed.
    pub fn saw(&self, revision: u64, shared: SharedToken) {
        let mut table = self.lock();
        if table.tokens.get(&shared.name).is_none_or(|known| known.revision < revision) {
            table.tokens.insert(shared.name.clone(), Revision { revision, is_valid: shared.token.is_some() });
            table.behind.insert(shared.name.clone(), (revision, shared));
        }
        drop(table);
        self.0.news.notify_one();
    }

    /// What the bucket has of a name.
    ///
    /// # Errors
    /// In words, when it is not known.
    pub fn known(&self, name: &str) -> Result<Option<Revision>, String> {
        let table = self.lock();
        if table.is_current { Ok(table.tokens.get(name).copied()) } else { Err("its tokens are not read".to_owned()) }
    }

    /// Whether the fleet takes another name.
    ///
    /// # Errors
    /// In words.
    pub fn check_room(&self) -> Result<(), String> {
        let words = || {
            format!(
                "tokens of this fleet have had {MOST_NAMES} names, which is the limit; use the name of a revoked one"
            )
        };
        if self.lock().tokens.len() < MOST_NAMES { Ok(()) } else { Err(words()) }
    }

    fn behind(&self) -> Vec<(u64, SharedToken)> {
        self.lock().behind.values().cloned().collect()
    }

    fn in_force(&self, name: &str, revision: u64) {
        let mut table = self.lock();
        if table.behind.get(name).is_some_and(|(of, _)| *of == revision) {
            table.behind.remove(name);
        }
    }

    fn is_current(&self) -> bool {
        self.lock().is_current
    }

    fn names(&self) -> HashSet<String> {
        self.lock().tokens.keys().cloned().collect()
    }
}

// === impl Tokens ===

impl Tokens<'_> {
    /// Follows the bucket, and stores changes of this gateway in it.
    ///
    /// # Errors
    /// When NATS does not answer. The bucket has to be read again then.
    pub async fn run(&self, bucket: &Store, puts: &mut mpsc::Receiver<Put>) -> Result<(), String> {
        /// Nobody may change tokens while they are not followed.
        struct Following<'t>(&'t TokenTable);
        impl Drop for Following<'_> {
            fn drop(&mut self) {
                self.0.begin();
            }
        }
        self.table.begin();
        let _following = Following(self.table);
        // Side by side: the manager may wait for a change while a token is to be followed.
        tokio::select! {
            ended = self.exchange(bucket, puts) => ended,
            never = self.follow() => match never {},
        }
    }

    async fn exchange(&self, bucket: &Store, puts: &mut mpsc::Receiver<Put>) -> Result<(), String> {
        let follow = |error: &dyn std::fmt::Display| format!("the fleet's tokens cannot be followed: {error}");
        let status = timeout(self.exchange, bucket.status()).await.map_err(|_| no_answer())?;
        let is_empty = status.map_err(|error| follow(&error))?.values() == 0;
        let mut watch: Watch = bucket.watch_with_history(">").await.map_err(|error| follow(&error))?;
        if is_empty {
            self.has_read(bucket).await?;
        }
        loop {
            tokio::select! {
                entry = watch.next() => {
                    let entry = entry.ok_or_else(|| follow(&"the server ended it"))?.map_err(|error| follow(&error))?;
                    // Every later entry is the last one too.
                    let is_last = entry.seen_current && !self.table.is_current();
                    self.saw(&entry);
                    if is_last {
                        self.has_read(bucket).await?;
                    }
                }
                put = puts.recv() => {
                    let Some(put) = put else { return std::future::pending().await };
                    store(bucket, put).await?;
                }
            }
        }
    }

    fn saw(&self, entry: &Entry) {
        if entry.operation != Operation::Put {
            // A token is revoked by a value. What is stored here stays.
            return warn!(
                key = entry.key,
                "a token of the fleet was deleted in the bucket: this gateway keeps what it has"
            );
        }
        match SharedToken::read(entry) {
            Ok(shared) => self.table.saw(entry.revision, shared),
            Err(why) => error!(key = entry.key, why, "a token of the fleet is not followed"),
        }
    }

    /// The bucket was read to its end. Gives the fleet the tokens that it once had, and has lost with its state.
    async fn has_read(&self, bucket: &Store) -> Result<(), String> {
        let known = self.table.names();
        let stored = self.stored().await?;
        for token in stored.into_iter().filter(|token| token.shared && !known.contains(&token.name)) {
            let by =
                By { actor: "system".to_owned(), node: self.node.to_owned(), action: "join".to_owned(), reason: None };
            let (name, key) = (token.name.clone(), SharedToken::key(&token.name));
            let value = state::write(&SharedToken::new(&name, Some(token), by))?;
            let given = timeout(self.exchange, bucket.update(key, value.into(), 0)).await;
            match given.map_err(|_| no_answer())? {
                Ok(_) => info!(token = name, "the fleet has this token again"),
                Err(error) if super::store::is_stale(&error) => {}
                Err(error) => return Err(format!("a token cannot be given to the fleet: {error}")),
            }
        }
        self.table.read();
        Ok(())
    }

    async fn stored(&self) -> Result<Vec<StoredToken>, String> {
        let ledger = self.place.ledger.clone();
        let read = spawn_blocking(move || ledger.tokens()).await;
        read.map_err(|error| error.to_string())?.map_err(|error| format!("the tokens cannot be read: {error}"))
    }

    /// Stores here what others did. Never ends.
    async fn follow(&self) -> std::convert::Infallible {
        let mut is_reload_due = false;
        loop {
            // A wake-up that comes between is kept.
            let _ = timeout(LOOK_AGAIN, self.table.0.news.notified()).await;
            let behind = self.table.behind();
            if !behind.is_empty() {
                match self.stored().await {
                    Ok(stored) => is_reload_due |= self.follow_all(behind, &stored).await,
                    Err(why) => error!("{why}"),
                }
            }
            if is_reload_due {
                let reload = Arc::clone(&self.place.reload);
                match spawn_blocking(move || reload()).await.map_err(|error| error.to_string()).and_then(|done| done) {
                    Ok(()) => is_reload_due = false,
                    Err(why) => error!("tokens of the fleet are stored, and not in force: {why}"),
                }
            }
        }
    }

    /// Returns whether anything was changed.
    async fn follow_all(&self, behind: Vec<(u64, SharedToken)>, stored: &[StoredToken]) -> bool {
        let stored: HashMap<&str, &StoredToken> = stored.iter().map(|token| (token.name.as_str(), token)).collect();
        let mut changed = false;
        for (revision, shared) in behind {
            let name = shared.name.clone();
            let here = stored.get(name.as_str());
            let is_as = match (&shared.token, here) {
                (Some(token), Some(here)) => {
                    **here == StoredToken { shared: true, last_used: here.last_used, ..token.clone() }
                }
                // One that is not shared is this gateway's own.
                (None, here) => here.is_none_or(|here| !here.shared),
                (Some(_), None) => false,
            };
            if !is_as {
                match self.handle.follow_token(shared.change()).await {
                    Ok(has_changed) => changed |= has_changed,
                    Err(failure) => {
                        error!(token = name, "the fleet's token cannot be stored: {}", failure.operator_text());
                        continue;
                    }
                }
            }
            self.table.in_force(&name, revision);
        }
        changed
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").finish_non_exhaustive()
    }
}
