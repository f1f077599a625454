//! Those who read: history and audit.

use super::error::LedgerError;
use super::{Revision, rfc3339};
use crate::model::ModelName;
use jiff::Timestamp;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

/// Reads the ledger while it is written; cheap to clone, and for any thread. What it sees is whole changes.
#[derive(Debug, Clone)]
pub struct LedgerReader(Arc<Reading>);

#[derive(Debug)]
struct Reading {
    /// One query at a time: they take microseconds, and come from people.
    connection: Mutex<Connection>,
    file: PathBuf,
}

/// A traffic document there has been, and how it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    pub revision: u64,
    pub ts: Timestamp,
    pub actor: String,
    /// As [`super::Action::as_str`] spells it; a text, as an older program may read a newer one's.
    pub action: String,
    pub reason: Option<String>,
    /// JSON.
    pub document: String,
}

/// One change that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Grows with every event of any model, never used twice.
    pub id: u64,
    pub ts: Timestamp,
    pub actor: String,
    pub action: String,
    pub model: ModelName,
    pub reason: Option<String>,
    /// JSON.
    pub before: Option<String>,
    /// JSON.
    pub after: Option<String>,
}

/// Which events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditQuery {
    /// Of this model alone.
    pub model: Option<ModelName>,
    /// Of this time and after.
    pub since: Option<Timestamp>,
    /// At most so many.
    pub limit: usize,
}

impl LedgerReader {
    pub(super) fn new(connection: Connection, file: PathBuf) -> LedgerReader {
        LedgerReader(Arc::new(Reading { connection: Mutex::new(connection), file }))
    }

    /// Where each model's last rollout stands, as JSON.
    pub fn rollouts(&self) -> Result<Vec<(ModelName, String)>, LedgerError> {
        self.ask("read the rollouts", |connection| {
            let mut statement = connection.prepare_cached("SELECT model, state FROM rollouts ORDER BY model")?;
            let all = statement.query_map([], |row| Ok((row.get::<_, Text<ModelName>>(0)?.0, row.get(1)?)))?;
            all.collect()
        })
    }

    /// Every traffic document a model has had, the newest first.
    pub fn history(&self, model: &ModelName) -> Result<Vec<HistoryEntry>, LedgerError> {
        self.ask("read the history", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT d.revision, e.ts, e.actor, e.action, e.reason, d.document
                 FROM documents d JOIN events e ON e.id = d.event WHERE d.model = ?1 ORDER BY d.revision DESC",
            )?;
            let entries = statement.query_map([model.as_str()], |row| {
                Ok(HistoryEntry {
                    revision: row.get::<_, i64>(0)?.cast_unsigned(),
                    ts: row.get::<_, Text<Timestamp>>(1)?.0,
                    actor: row.get(2)?,
                    action: row.get(3)?,
                    reason: row.get(4)?,
                    document: row.get(5)?,
                })
            })?;
            entries.collect()
        })
    }

    /// What was changed, the newest first.
    pub fn audit(&self, query: &AuditQuery) -> Result<Vec<Event>, LedgerError> {
        let since = query.since.map(rfc3339);
        let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
        let select = "SELECT id, ts, actor, action, model, reason, before, after FROM events";
        self.ask("read the audit trail", |connection| match &query.model {
            Some(model) => connection
                .prepare_cached(&format!(
                    "{select} WHERE model = ?1 AND (?2 IS NULL OR ts >= ?2) ORDER BY id DESC LIMIT ?3"
                ))?
                .query_map(params![model.as_str(), since, limit], event)?
                .collect(),
            None => connection
                .prepare_cached(&format!("{select} WHERE ?1 IS NULL OR ts >= ?1 ORDER BY id DESC LIMIT ?2"))?
                .query_map(params![since, limit], event)?
                .collect(),
        })
    }

    /// The document before the current one: what a rollback goes back to. `None` where there is none.
    pub fn previous_document(&self, model: &ModelName) -> Result<Option<Revision>, LedgerError> {
        self.ask("read the document before", |connection| previous_document(connection, model))
    }

    fn ask<T>(
        &self,
        doing: &'static str,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        let connection = self.0.connection.lock().unwrap_or_else(PoisonError::into_inner);
        query(&connection).map_err(|e| LedgerError::sqlite(&self.0.file, doing, e))
    }
}

/// The revision in force; 0 where there is none.
pub(super) fn revision_of(connection: &Connection, model: &ModelName) -> rusqlite::Result<u64> {
    let revision = connection
        .prepare_cached("SELECT revision FROM models WHERE model = ?1")?
        .query_row([model.as_str()], |row| row.get::<_, i64>(0))
        .optional()?;
    Ok(revision.unwrap_or(0).cast_unsigned())
}

/// A rollout is one change made in steps: its steps are passed over, and after a take-back, which is back where the rollout began, that
/// document too.
pub(super) fn previous_document(connection: &Connection, model: &ModelName) -> rusqlite::Result<Option<Revision>> {
    connection
        .prepare_cached(
            "SELECT d.revision, d.document
             FROM models m
             JOIN documents now ON now.model = m.model AND now.revision = m.revision
             JOIN events made ON made.id = now.event
             JOIN documents d ON d.model = m.model AND d.revision < m.revision
             JOIN events e ON e.id = d.event
             WHERE m.model = ?1
               AND e.action NOT IN ('rollout_start', 'rollout_step')
               AND NOT (made.action IN ('rollout_take_back', 'rollout_abort') AND d.document = now.document)
             ORDER BY d.revision DESC LIMIT 1",
        )?
        .query_row([model.as_str()], |row| {
            Ok(Revision { revision: row.get::<_, i64>(0)?.cast_unsigned(), document: row.get(1)? })
        })
        .optional()
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        id: row.get::<_, i64>(0)?.cast_unsigned(),
        ts: row.get::<_, Text<Timestamp>>(1)?.0,
        actor: row.get(2)?,
        action: row.get(3)?,
        model: row.get::<_, Text<ModelName>>(4)?.0,
        reason: row.get(5)?,
        before: row.get(6)?,
        after: row.get(7)?,
    })
}

/// A value kept as its text; one that does not read back makes the file damaged.
pub(super) struct Text<T>(pub(super) T);

impl<T> FromSql for Text<T>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map(Text).map_err(|e| FromSqlError::Other(Box::new(e)))
    }
}
