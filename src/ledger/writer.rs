//! The one who writes.

use super::error::LedgerError;
use super::open::Lock;
use super::reader::{Text, previous_document, revision_of};
use super::{Artifact, Change, Committed, Effect, ModelState, NewDocument, Revision, rfc3339};
use crate::model::{ModelName, Version};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Writes the ledger; owned by the manager. Keeps other servers out of the data directory until it is dropped.
#[derive(Debug)]
pub struct LedgerWriter {
    connection: Connection,
    file: PathBuf,
    /// Held, never read: closing it gives the directory back. After `connection`, so that it is closed after it.
    _lock: Lock,
}

impl LedgerWriter {
    pub(super) fn new(connection: Connection, file: PathBuf, lock: Lock) -> LedgerWriter {
        LedgerWriter { connection, file, _lock: lock }
    }

    /// All that is kept, in the order of the models' names: what a start begins with.
    pub fn load(&self) -> Result<Vec<ModelState>, LedgerError> {
        self.load_all().map_err(|e| LedgerError::sqlite(&self.file, "read what was kept", e))
    }

    /// The document before the current one: what a rollback goes back to. `None` where there is none.
    pub fn previous_document(&self, model: &ModelName) -> Result<Option<Revision>, LedgerError> {
        previous_document(&self.connection, model)
            .map_err(|e| LedgerError::sqlite(&self.file, "read the document before", e))
    }

    /// Keeps a change, whole or not at all: when this answers `Ok`, it is on the disk.
    pub fn commit(&mut self, change: Change) -> Result<Committed, LedgerError> {
        refuse_other_than_json(&change)?;
        let LedgerWriter { connection, file, .. } = self;
        write(connection, change).map_err(|e| LedgerError::sqlite(file, "keep the change", e))
    }

    fn load_all(&self) -> rusqlite::Result<Vec<ModelState>> {
        let mut models = self.connection.prepare_cached(
            "SELECT m.model, m.revision, d.document, m.taken_out, m.highest_served
             FROM models m LEFT JOIN documents d ON d.model = m.model AND d.revision = m.revision ORDER BY m.model",
        )?;
        let states = models.query_map([], |row| {
            Ok(ModelState {
                model: row.get::<_, Text<ModelName>>(0)?.0,
                revision: row.get::<_, i64>(1)?.cast_unsigned(),
                document: row.get(2)?,
                taken_out: row.get(3)?,
                highest_served: row.get::<_, Option<Text<Version>>>(4)?.map(|v| v.0),
                operator_unloaded: BTreeSet::new(),
                auto_promoted: BTreeSet::new(),
                artifacts: BTreeMap::new(),
            })
        })?;
        let mut states = states.collect::<rusqlite::Result<Vec<ModelState>>>()?;
        for state in &mut states {
            let version = |row: &Row<'_>| row.get::<_, Text<Version>>(0).map(|v| v.0);
            let versions = |table: &str| -> rusqlite::Result<BTreeSet<Version>> {
                let sql = format!("SELECT version FROM {table} WHERE model = ?1");
                self.connection.prepare_cached(&sql)?.query_map([state.model.as_str()], version)?.collect()
            };
            state.operator_unloaded = versions("operator_unloaded")?;
            state.auto_promoted = versions("auto_promoted")?;
            state.artifacts = self
                .connection
                .prepare_cached("SELECT version, sha256, bytes, first_ready_at FROM artifacts WHERE model = ?1")?
                .query_map([state.model.as_str()], |row| Ok((version(row)?, artifact(row, 1)?)))?
                .collect::<rusqlite::Result<_>>()?;
        }
        Ok(states)
    }

    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for LedgerWriter {
    fn drop(&mut self) {
        // So that after a clean stop the one file holds everything, for whoever copies it. Nothing is lost where it fails: the
        // next start reads the write-ahead log.
        let _ = self.connection.pragma_update_and_check(None, "wal_checkpoint", "TRUNCATE", |_| Ok(()));
    }
}

fn refuse_other_than_json(change: &Change) -> Result<(), LedgerError> {
    let (document, rollout) = match &change.effect {
        Effect::SetDocument { document, .. } => (Some(document), None),
        Effect::SetRollout { state, document } => (document.as_ref().map(|new| &new.document), Some(state)),
        _ => (None, None),
    };
    let texts = [
        ("the traffic document", document),
        ("the rollout", rollout),
        ("`before` of the change", change.before.as_ref()),
        ("`after` of the change", change.after.as_ref()),
    ];
    for (what, text) in texts {
        if let Some(text) = text {
            serde_json::from_str::<serde::de::IgnoredAny>(text)
                .map_err(|source| LedgerError::NotJson { what, source })?;
        }
    }
    Ok(())
}

fn write(connection: &mut Connection, mut change: Change) -> rusqlite::Result<Committed> {
    let ts = Timestamp::now();
    // The time as it is kept, so that what is answered now and what is read later are one.
    let ts = Timestamp::from_microsecond(ts.as_microsecond()).unwrap_or(ts);
    // Dropped without `commit`, it is rolled back: every `?` below leaves nothing behind.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let model = change.model.as_str().to_owned();
    if change.effect != Effect::None {
        transaction.prepare_cached("INSERT OR IGNORE INTO models (model) VALUES (?1)")?.execute([&model])?;
    }
    let event_id = match artifact_news(&transaction, &mut change)? {
        News::Audited => Some(record_event(&transaction, &change, ts)?),
        News::Silent => None,
    };
    apply(&transaction, &change, ts, event_id)?;
    let revision = revision_of(&transaction, &change.model)?;
    transaction.commit()?;
    Ok(Committed { revision, event_id: event_id.map(i64::cast_unsigned), ts })
}

/// Whether a change leaves an audit event.
enum News {
    Audited,
    Silent,
}

/// A version that comes ready with the bytes it always had, or for the first time, is no news. Other bytes are, and the event tells
/// both where the caller did not.
fn artifact_news(transaction: &Transaction<'_>, change: &mut Change) -> rusqlite::Result<News> {
    let Effect::RecordArtifact { version, sha256, bytes } = &change.effect else { return Ok(News::Audited) };
    let kept = transaction
        .prepare_cached("SELECT sha256, bytes, first_ready_at FROM artifacts WHERE model = ?1 AND version = ?2")?
        .query_row(params![change.model.as_str(), version.to_string()], |row| artifact(row, 0))
        .optional()?;
    match kept {
        Some(kept) if kept.sha256 != *sha256 => {
            let show = |sha256: &str, bytes: u64| {
                serde_json::json!({"version": version, "sha256": sha256, "bytes": bytes}).to_string()
            };
            let (before, after) = (show(&kept.sha256, kept.bytes), show(sha256, *bytes));
            change.before.get_or_insert(before);
            change.after.get_or_insert(after);
            Ok(News::Audited)
        }
        _ => Ok(News::Silent),
    }
}

fn record_event(transaction: &Transaction<'_>, change: &Change, ts: Timestamp) -> rusqlite::Result<i64> {
    let Change { model, actor, action, reason, before, after, .. } = change;
    transaction
        .prepare_cached(
            "INSERT INTO events (ts, actor, action, model, reason, before, after) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![rfc3339(ts), actor, action.as_str(), model.as_str(), reason, before, after])?;
    Ok(transaction.last_insert_rowid())
}

fn apply(transaction: &Transaction<'_>, change: &Change, ts: Timestamp, event_id: Option<i64>) -> rusqlite::Result<()> {
    let model = change.model.as_str();
    let run = |sql: &str, params: &[&dyn rusqlite::ToSql]| transaction.prepare_cached(sql)?.execute(params);
    match &change.effect {
        Effect::None => {}
        Effect::SetRollout { state, document } => {
            if let Some(NewDocument { document, highest_served }) = document {
                set_document(transaction, model, event_id, document, *highest_served)?;
            }
            run(
                "INSERT INTO rollouts VALUES (?1, ?2) ON CONFLICT (model) DO UPDATE SET state = excluded.state",
                &[&model, state],
            )?;
        }
        Effect::SetDocument { document, highest_served, auto_promoted } => {
            set_document(transaction, model, event_id, document, *highest_served)?;
            if let Some(version) = auto_promoted {
                run("INSERT OR IGNORE INTO auto_promoted VALUES (?1, ?2)", &[&model, &version.to_string()])?;
            }
        }
        Effect::SetTakenOut(taken_out) => {
            run("UPDATE models SET taken_out = ?2 WHERE model = ?1", &[&model, taken_out])?;
        }
        Effect::SetOperatorUnloaded { version, unloaded } => {
            let sql = if *unloaded {
                "INSERT OR IGNORE INTO operator_unloaded VALUES (?1, ?2)"
            } else {
                "DELETE FROM operator_unloaded WHERE model = ?1 AND version = ?2"
            };
            run(sql, &[&model, &version.to_string()])?;
        }
        Effect::RecordArtifact { version, sha256, bytes } => {
            // No file is past 8 EiB, the most SQLite's integers hold.
            let bytes = i64::try_from(*bytes).unwrap_or(i64::MAX);
            run(
                "INSERT INTO artifacts VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (model, version) DO UPDATE
                 SET sha256 = excluded.sha256, bytes = excluded.bytes, first_ready_at = excluded.first_ready_at
                 WHERE sha256 <> excluded.sha256",
                &[&model, &version.to_string(), sha256, &bytes, &rfc3339(ts)],
            )?;
        }
    }
    Ok(())
}

fn set_document(
    transaction: &Transaction<'_>,
    model: &str,
    event_id: Option<i64>,
    document: &str,
    highest_served: Option<Version>,
) -> rusqlite::Result<()> {
    let run = |sql: &str, params: &[&dyn rusqlite::ToSql]| transaction.prepare_cached(sql)?.execute(params);
    run("UPDATE models SET revision = revision + 1 WHERE model = ?1", &[&model])?;
    run(
        "INSERT INTO documents (model, revision, event, document)
         SELECT model, revision, ?2, ?3 FROM models WHERE model = ?1",
        &[&model, &event_id, &document],
    )?;
    highest_served.map_or(Ok(()), |version| raise_highest_served(transaction, model, version))
}

/// Compared here and not in SQL, where versions are text and "9" comes after "10".
fn raise_highest_served(transaction: &Transaction<'_>, model: &str, version: Version) -> rusqlite::Result<()> {
    let kept: Option<Text<Version>> = transaction
        .prepare_cached("SELECT highest_served FROM models WHERE model = ?1")?
        .query_row([model], |row| row.get(0))?;
    if kept.is_none_or(|kept| version > kept.0) {
        transaction
            .prepare_cached("UPDATE models SET highest_served = ?2 WHERE model = ?1")?
            .execute(params![model, version.to_string()])?;
    }
    Ok(())
}

/// The artifact whose columns begin at `first`.
fn artifact(row: &Row<'_>, first: usize) -> rusqlite::Result<Artifact> {
    Ok(Artifact {
        sha256: row.get(first)?,
        bytes: row.get::<_, i64>(first + 1)?.cast_unsigned(),
        first_ready_at: row.get::<_, Text<Timestamp>>(first + 2)?.0,
    })
}
