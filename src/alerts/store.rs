//! The database of alerts: what fires, silences, what was announced, and the outbox.
//!
//! It is a file of its own, `alerts.sqlite3` in the data directory, and not a part of the ledger: the ledger is written by the manager, in the
//! middle of changes of traffic, and every row of it is evidence that stays. The outbox is a queue that a receiver that is down fills, and that
//! is emptied again. What happens to this file never delays or fails a change.

use super::finding::Alert;
use super::silence::Silence;
use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The schema, one step per release that changed it. Never change a released step.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE alerts (id TEXT PRIMARY KEY NOT NULL, alert TEXT NOT NULL) STRICT;
    CREATE TABLE silences (id TEXT PRIMARY KEY NOT NULL, silence TEXT NOT NULL) STRICT;
    CREATE TABLE announced (name TEXT PRIMARY KEY NOT NULL) STRICT;
    CREATE TABLE meta (name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) STRICT;
    CREATE TABLE outbox (
        id      INTEGER PRIMARY KEY AUTOINCREMENT,
        target  TEXT NOT NULL,
        key     TEXT NOT NULL,
        created INTEGER NOT NULL,
        body    TEXT NOT NULL,
        UNIQUE (target, key)
    ) STRICT;
    CREATE INDEX outbox_by_target ON outbox (target, id);
"];

/// How long to wait for another process, such as a person with the `sqlite3` tool.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// The database. One query at a time: they are few and short.
#[derive(Debug)]
pub(super) struct Store(Mutex<Connection>);

/// A message in the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    pub id: i64,
    pub key: String,
    pub created: Timestamp,
    pub body: String,
}

/// A message that is put into the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewMessage {
    pub target: String,
    pub key: String,
    pub body: String,
}

/// Everything that one look stores, in one transaction.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub alerts: Vec<Alert>,
    /// The ids of ended alerts that are not kept any more.
    pub removed: Vec<String>,
    pub messages: Vec<NewMessage>,
    pub announced: Vec<String>,
    pub not_announced: Vec<String>,
    pub meta: Vec<(&'static str, String)>,
    pub expired_silences: Vec<String>,
    /// The most messages that may wait for one target.
    pub most_waiting: usize,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        let Batch { alerts, removed, messages, announced, not_announced, meta, expired_silences, most_waiting: _ } =
            self;
        alerts.is_empty()
            && removed.is_empty()
            && messages.is_empty()
            && announced.is_empty()
            && not_announced.is_empty()
            && meta.is_empty()
            && expired_silences.is_empty()
    }
}

impl Store {
    /// Opens the database of a data directory. One that is damaged is set aside, and one that cannot be opened is replaced by one in memory: the
    /// server goes on, and the log says what is lost.
    pub(super) fn open(dir: &Path) -> Store {
        let file = dir.join("alerts.sqlite3");
        let opened = Store::open_file(&file).or_else(|error| {
            let damaged = matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
            );
            if !damaged {
                return Err(error);
            }
            let aside = aside(&file);
            tracing::error!(%error, aside = %aside.display(), "the database of alerts is damaged; it is set aside, and a new one begins");
            for ending in ["", "-wal", "-shm"] {
                let from = PathBuf::from(format!("{}{ending}", file.display()));
                // What is not there need not be moved.
                let _ = std::fs::rename(&from, format!("{}{ending}", aside.display()));
            }
            Store::open_file(&file)
        });
        opened.unwrap_or_else(|error| {
            tracing::error!(%error, file = %file.display(), "the database of alerts cannot be used: alerts and messages are lost at a restart");
            Store::in_memory()
        })
    }

    /// For tests, and where no file can be used.
    pub(super) fn in_memory() -> Store {
        let connection = Connection::open_in_memory().expect("SQLite can always open a database in memory");
        connection.execute_batch(&MIGRATIONS.concat()).expect("the schema is valid, as every test shows");
        Store(Mutex::new(connection))
    }

    fn open_file(file: &Path) -> rusqlite::Result<Store> {
        let mut connection = Connection::open(file)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")?;
        let applied: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        for (version, step) in (1_i64..).zip(MIGRATIONS).filter(|(version, _)| *version > applied) {
            let transaction = connection.transaction()?;
            transaction.execute_batch(step)?;
            transaction.pragma_update(None, "user_version", version)?;
            transaction.commit()?;
        }
        // A damaged file mostly shows here, and not when it is opened.
        connection.query_row("SELECT COUNT(*) FROM outbox", [], |row| row.get::<_, i64>(0))?;
        Ok(Store(Mutex::new(connection)))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Alerts that another program wrote in another form are left out.
    pub(super) fn alerts(&self) -> rusqlite::Result<Vec<Alert>> {
        self.json("SELECT alert FROM alerts")
    }

    pub(super) fn silences(&self) -> rusqlite::Result<Vec<Silence>> {
        self.json("SELECT silence FROM silences")
    }

    fn json<T: serde::de::DeserializeOwned>(&self, sql: &str) -> rusqlite::Result<Vec<T>> {
        let texts = self.texts(sql)?;
        let read = |text: &String| match serde_json::from_str(text) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(%error, "a row of the database of alerts cannot be read; it is left out");
                None
            }
        };
        Ok(texts.iter().filter_map(read).collect())
    }

    fn texts(&self, sql: &str) -> rusqlite::Result<Vec<String>> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(sql)?;
        statement.query_map([], |row| row.get(0))?.collect()
    }

    pub(super) fn announced(&self) -> rusqlite::Result<Vec<String>> {
        self.texts("SELECT name FROM announced")
    }

    pub(super) fn meta(&self) -> rusqlite::Result<HashMap<String, String>> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached("SELECT name, value FROM meta")?;
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    }

    pub(super) fn put_silence(&self, silence: &Silence) -> rusqlite::Result<()> {
        let text = serde_json::to_string(silence).unwrap_or_default();
        self.lock().execute("INSERT OR REPLACE INTO silences VALUES (?1, ?2)", params![silence.id, text]).map(drop)
    }

    pub(super) fn remove_silence(&self, id: &str) -> rusqlite::Result<()> {
        self.lock().execute("DELETE FROM silences WHERE id = ?1", [id]).map(drop)
    }

    /// Stores everything or nothing. Returns how many messages were dropped for each target, the oldest ones, because too many wait.
    pub(super) fn store(&self, batch: &Batch, now: Timestamp) -> rusqlite::Result<HashMap<String, usize>> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        for alert in &batch.alerts {
            let text = serde_json::to_string(alert).unwrap_or_default();
            transaction
                .prepare_cached("INSERT OR REPLACE INTO alerts VALUES (?1, ?2)")?
                .execute(params![alert.id, text])?;
        }
        for id in &batch.removed {
            transaction.prepare_cached("DELETE FROM alerts WHERE id = ?1")?.execute([id])?;
        }
        for name in &batch.announced {
            transaction.prepare_cached("INSERT OR IGNORE INTO announced VALUES (?1)")?.execute([name])?;
        }
        for name in &batch.not_announced {
            transaction.prepare_cached("DELETE FROM announced WHERE name = ?1")?.execute([name])?;
        }
        for (name, value) in &batch.meta {
            transaction.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2)")?.execute([*name, value])?;
        }
        for id in &batch.expired_silences {
            transaction.prepare_cached("DELETE FROM silences WHERE id = ?1")?.execute([id])?;
        }
        for NewMessage { target, key, body } in &batch.messages {
            transaction
                .prepare_cached("INSERT OR IGNORE INTO outbox (target, key, created, body) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![target, key, now.as_millisecond(), body])?;
        }
        let mut dropped = HashMap::new();
        let targets: std::collections::BTreeSet<&String> = batch.messages.iter().map(|m| &m.target).collect();
        for target in targets {
            let over = waiting_of(&transaction, target)?.saturating_sub(batch.most_waiting);
            if over > 0 {
                let sql =
                    "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE target = ?1 ORDER BY id LIMIT ?2)";
                transaction.execute(sql, params![target, i64::try_from(over).unwrap_or(i64::MAX)])?;
                dropped.insert(target.clone(), over);
            }
        }
        transaction.commit()?;
        Ok(dropped)
    }

    // === the outbox ===

    /// The oldest message that waits for a target.
    pub(super) fn next(&self, target: &str) -> rusqlite::Result<Option<Waiting>> {
        let connection = self.lock();
        let mut statement = connection
            .prepare_cached("SELECT id, key, created, body FROM outbox WHERE target = ?1 ORDER BY id LIMIT 1")?;
        statement
            .query_row([target], |row| {
                let created = Timestamp::from_millisecond(row.get(2)?).unwrap_or(Timestamp::MIN);
                Ok(Waiting { id: row.get(0)?, key: row.get(1)?, created, body: row.get(3)? })
            })
            .optional()
    }

    /// Removes a message that was delivered or dropped.
    pub(super) fn remove(&self, id: i64) -> rusqlite::Result<()> {
        self.lock().execute("DELETE FROM outbox WHERE id = ?1", [id]).map(drop)
    }

    pub(super) fn waiting(&self, target: &str) -> rusqlite::Result<usize> {
        waiting_of(&self.lock(), target)
    }

    /// Removes the messages for targets that are not configured any more. Returns how many.
    pub(super) fn remove_others(&self, targets: &[&str]) -> rusqlite::Result<usize> {
        let mut removed = 0;
        let waiting = self.texts("SELECT DISTINCT target FROM outbox")?;
        for target in waiting.iter().filter(|target| !targets.contains(&target.as_str())) {
            removed += self.lock().execute("DELETE FROM outbox WHERE target = ?1", [target])?;
        }
        Ok(removed)
    }
}

fn waiting_of(connection: &Connection, target: &str) -> rusqlite::Result<usize> {
    let count: i64 = connection
        .prepare_cached("SELECT COUNT(*) FROM outbox WHERE target = ?1")?
        .query_row([target], |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// A name that is not taken, for a damaged database.
fn aside(file: &Path) -> PathBuf {
    let free = (1..1_000).map(|n| PathBuf::from(format!("{}.damaged-{n}", file.display()))).find(|path| !path.exists());
    free.unwrap_or_else(|| PathBuf::from(format!("{}.damaged", file.display())))
}
