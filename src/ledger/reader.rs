//! Reads the history and the audit trail.

use super::chain::{Beginning, EventHash, Head};
use super::error::{LedgerError, is_unreadable_value};
use super::verify::{Heads, Verified, Verifier};
use super::{Artifact, Revision, rfc3339, rows};
use crate::model::{ModelName, Version};
use jiff::Timestamp;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

/// Reads the ledger while the manager writes it. Cheap to clone, for any thread. It sees only whole changes.
#[derive(Debug, Clone)]
pub struct LedgerReader(Arc<Reading>);

#[derive(Debug)]
struct Reading {
    /// One query at a time is enough: a query takes microseconds, and people send them.
    connection: Mutex<Connection>,
    file: PathBuf,
}

/// One traffic document of the past, with the change that put it in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    pub revision: u64,
    pub ts: Timestamp,
    pub actor: String,
    /// As [`super::Action::as_str`] spells it; that of the gateway that made the change, where this one followed. A text, because a newer
    /// program may have written an action that this one lacks.
    pub action: String,
    pub reason: Option<String>,
    /// JSON.
    pub document: String,
}

/// One event of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Increases with every event of any model and is never used twice.
    pub id: u64,
    pub ts: Timestamp,
    pub actor: String,
    pub action: String,
    /// `None` for a change that concerns no model, such as a token.
    pub model: Option<ModelName>,
    pub reason: Option<String>,
    /// JSON.
    pub before: Option<String>,
    /// JSON.
    pub after: Option<String>,
    /// The hash of this event and, through it, of all events before it.
    pub hash: Option<EventHash>,
}

/// Selects events of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditQuery {
    /// Only events of this model.
    pub model: Option<ModelName>,
    /// Only events at or after this time.
    pub since: Option<Timestamp>,
    /// The highest number of events to return.
    pub limit: usize,
}

impl LedgerReader {
    pub(super) fn new(connection: Connection, file: PathBuf) -> LedgerReader {
        LedgerReader(Arc::new(Reading { connection: Mutex::new(connection), file }))
    }

    /// The state of each model's last rollout, as JSON.
    pub fn rollouts(&self) -> Result<Vec<(ModelName, String)>, LedgerError> {
        self.query("read the rollouts", |connection| {
            let mut statement = connection.prepare_cached("SELECT model, state FROM rollouts ORDER BY model")?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, Text<ModelName>>(0)?.0, row.get(1)?)))?;
            // One unreadable row must not hide the rollouts of other models.
            let readable = |row: rusqlite::Result<_>| match row {
                Err(error) if is_unreadable_value(&error) => {
                    tracing::error!(%error, "a stored rollout cannot be read and is ignored");
                    None
                }
                row => Some(row),
            };
            rows.filter_map(readable).collect()
        })
    }

    /// Every traffic document that a model has had, newest first.
    pub fn history(&self, model: &ModelName) -> Result<Vec<HistoryEntry>, LedgerError> {
        self.query("read the history", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT d.revision, e.ts, e.actor, COALESCE(d.made_by, e.action), e.reason, d.document
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

    /// The selected events, newest first.
    #[cfg(test)]
    pub fn audit(&self, query: &AuditQuery) -> Result<Vec<Event>, LedgerError> {
        self.audit_of(query, |_| true)
    }

    /// The selected events whose model is `visible`, newest first.
    pub fn audit_of(
        &self,
        query: &AuditQuery,
        visible: impl Fn(Option<&ModelName>) -> bool,
    ) -> Result<Vec<Event>, LedgerError> {
        let since = query.since.map(rfc3339);
        // SQLite returns row after row, so that nothing is read beyond the last event that is needed.
        let take = |rows: &mut dyn Iterator<Item = rusqlite::Result<Event>>| {
            rows.filter(|row| row.as_ref().map_or(true, |event| visible(event.model.as_ref())))
                .take(query.limit)
                .collect()
        };
        self.query("read the audit trail", |connection| match &query.model {
            Some(model) => {
                take(&mut connection.prepare_cached(&newest(true))?.query_map(params![model.as_str(), since], event)?)
            }
            None => take(&mut connection.prepare_cached(&newest(false))?.query_map(params![since], event)?),
        })
    }

    /// Calls `take` with the events of a model, newest first, `most` at most. Returns whether there are more.
    pub fn each_event_of(
        &self,
        model: &ModelName,
        most: usize,
        mut take: impl FnMut(Event),
    ) -> Result<bool, LedgerError> {
        self.query("read the audit trail", |connection| {
            let mut statement = connection.prepare_cached(&format!("{SELECT} WHERE model = ?1 ORDER BY id DESC"))?;
            let mut rows = statement.query([model.as_str()])?;
            for _ in 0..most {
                let Some(row) = rows.next()? else { return Ok(false) };
                take(event(row)?);
            }
            Ok(rows.next()?.is_some())
        })
    }

    /// The events after a number, in order, `most` at most, each with its number. One that cannot be read is `None`.
    pub fn events_after(&self, after: u64, most: usize) -> Result<Vec<(u64, Option<Event>)>, LedgerError> {
        let (after, most) = (i64::try_from(after).unwrap_or(i64::MAX), i64::try_from(most).unwrap_or(i64::MAX));
        self.query("read the audit trail", |connection| {
            let mut statement = connection.prepare_cached(&format!("{SELECT} WHERE id > ?1 ORDER BY id LIMIT ?2"))?;
            let mut rows = statement.query([after, most])?;
            let mut events = Vec::new();
            while let Some(row) = rows.next()? {
                let id = row.get::<_, i64>(0)?.cast_unsigned();
                events.push(match event(row) {
                    Ok(event) => (id, Some(event)),
                    Err(error) if is_unreadable_value(&error) => (id, None),
                    Err(error) => return Err(error),
                });
            }
            Ok(events)
        })
    }

    /// The last event before a time, of a model or of anything, that is none of these actions.
    pub fn last_event_before(
        &self,
        model: Option<&ModelName>,
        before: Timestamp,
        without: &[&str],
    ) -> Result<Option<Event>, LedgerError> {
        // So many events are looked at, in a few milliseconds: those of people who read requests can be many.
        const MOST: i64 = 5000;
        let before = rfc3339(before);
        self.query("read the audit trail", |connection| {
            let order = "ORDER BY id DESC LIMIT ?2";
            let (sql, model) = match model {
                Some(model) => (format!("{SELECT} WHERE ts <= ?1 AND model = ?3 {order}"), model.as_str()),
                None => (format!("{SELECT} WHERE ts <= ?1 AND ?3 = '' {order}"), ""),
            };
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query(params![before, MOST, model])?;
            while let Some(row) = rows.next()? {
                match event(row) {
                    Ok(event) if !without.contains(&event.action.as_str()) => return Ok(Some(event)),
                    Ok(_) => {}
                    Err(error) if is_unreadable_value(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(None)
        })
    }

    /// The bytes that a version became ready with. `None` where it never was ready.
    pub fn artifact(&self, model: &ModelName, version: Version) -> Result<Option<Artifact>, LedgerError> {
        self.query("read the artifact", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT sha256, bytes, first_ready_at FROM artifacts WHERE model = ?1 AND version = ?2",
            )?;
            statement.query_row(params![model.as_str(), version.to_string()], |row| artifact(row, 0)).optional()
        })
    }

    /// The newest event, with its hash.
    pub fn head(&self) -> Result<Head, LedgerError> {
        self.query("read the newest event", |connection| {
            let Beginning { chain, .. } = rows::beginning(connection)?;
            let (id, hash) = rows::last(connection, &chain)?;
            Ok(Head { chain, id: id.cast_unsigned(), hash, ts: rfc3339(Timestamp::now()) })
        })
    }

    /// The events after a number, in order, as lines of an export: at most `limit` events, and no further one once they have `bytes`. Empty
    /// after the last event.
    pub fn export(&self, after: u64, limit: usize, bytes: usize) -> Result<String, LedgerError> {
        self.query("read the audit trail", |connection| {
            let Beginning { chain, .. } = rows::beginning(connection)?;
            let mut lines = String::new();
            rows::each_event(connection, after, limit, |event| {
                lines.push_str(&event.to_line(&chain));
                lines.len() < bytes
            })?;
            Ok(lines)
        })
    }

    /// Verifies the audit trail, all of it as it is at one moment: the hash chain, and the stored documents that it names. Memory does not grow
    /// with the number of events. Other readers wait meanwhile: for a reader of its own, see [`super::open_for_reading`].
    pub fn verify(&self, heads: Heads) -> Result<Verified, LedgerError> {
        self.query("verify the audit trail", |connection| {
            // One transaction, so that a server may go on writing.
            let transaction = connection.unchecked_transaction()?;
            let beginning = rows::beginning(&transaction)?;
            let mut verifier = Verifier::of_ledger(&beginning, heads);
            rows::each_event(&transaction, 0, usize::MAX, |event| {
                verifier.event(&event);
                true
            })?;
            rows::check_documents(&transaction, &beginning, &mut verifier)?;
            rows::check_tokens(&transaction, &mut verifier)?;
            rows::check_reviews(&transaction, &mut verifier)?;
            let counted = rows::counted(&transaction)?;
            Ok(verifier.finish(Some(counted.cast_unsigned())))
        })
    }

    #[cfg(test)]
    pub fn previous_document(&self, model: &ModelName) -> Result<Option<Revision>, LedgerError> {
        self.query("read the previous document", |connection| previous_document(connection, model))
    }

    pub(super) fn query<T>(
        &self,
        doing: &'static str,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        let connection = self.0.connection.lock().unwrap_or_else(PoisonError::into_inner);
        query(&connection).map_err(|e| LedgerError::sqlite(&self.0.file, doing, e))
    }
}

/// The revision in force, or 0 where there is none.
pub(super) fn revision_of(connection: &Connection, model: &ModelName) -> rusqlite::Result<u64> {
    let revision = connection
        .prepare_cached("SELECT revision FROM models WHERE model = ?1")?
        .query_row([model.as_str()], |row| row.get::<_, i64>(0))
        .optional()?;
    Ok(revision.unwrap_or(0).cast_unsigned())
}

/// A rollout is one change made in steps, so its steps are skipped. After an aborted rollout, which restored the document from before
/// it, that document is skipped too.
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
               AND COALESCE(d.made_by, e.action) NOT IN ('rollout_start', 'rollout_step')
               AND NOT (COALESCE(now.made_by, made.action) IN ('rollout_take_back', 'rollout_abort') AND d.document = now.document)
             ORDER BY d.revision DESC LIMIT 1",
        )?
        .query_row([model.as_str()], |row| {
            Ok(Revision { revision: row.get::<_, i64>(0)?.cast_unsigned(), document: row.get(1)? })
        })
        .optional()
}

/// The document of a revision.
pub(super) fn document_at(
    connection: &Connection,
    model: &ModelName,
    revision: u64,
) -> rusqlite::Result<Option<Revision>> {
    let number = i64::try_from(revision).unwrap_or(i64::MAX);
    connection
        .prepare_cached("SELECT document FROM documents WHERE model = ?1 AND revision = ?2")?
        .query_row(params![model.as_str(), number], |row| Ok(Revision { revision, document: row.get(0)? }))
        .optional()
}

/// The action that put the document in force.
pub(super) fn last_change(connection: &Connection, model: &ModelName) -> rusqlite::Result<Option<String>> {
    connection
        .prepare_cached(
            "SELECT COALESCE(d.made_by, e.action) FROM models m
             JOIN documents d ON d.model = m.model AND d.revision = m.revision
             JOIN events e ON e.id = d.event
             WHERE m.model = ?1",
        )?
        .query_row([model.as_str()], |row| row.get(0))
        .optional()
}

const SELECT: &str = "SELECT id, ts, actor, action, model, reason, before, after, hash FROM events";

/// The newest events first, of a model or of everything. SQLite looks only at those that are taken: they are in the order of the primary key, or of the
/// model's index.
pub(super) fn newest(of_model: bool) -> String {
    let which = if of_model { "model = ?1 AND (?2 IS NULL OR ts >= ?2)" } else { "?1 IS NULL OR ts >= ?1" };
    format!("{SELECT} WHERE {which} ORDER BY id DESC")
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        id: row.get::<_, i64>(0)?.cast_unsigned(),
        ts: row.get::<_, Text<Timestamp>>(1)?.0,
        actor: row.get(2)?,
        action: row.get(3)?,
        model: model_of(row, 4)?,
        reason: row.get(5)?,
        before: row.get(6)?,
        after: row.get(7)?,
        hash: row.get(8).or_else(|e| if is_unreadable_value(&e) { Ok(None) } else { Err(e) })?,
    })
}

/// The model of an event. An event that concerns no model has an empty text, as the column has always been required.
fn model_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<ModelName>> {
    match row.get_ref(column)?.as_str() {
        Ok("") => Ok(None),
        _ => row.get::<_, Text<ModelName>>(column).map(|name| Some(name.0)),
    }
}

/// Reads an artifact from the columns that begin at `first`.
pub(super) fn artifact(row: &Row<'_>, first: usize) -> rusqlite::Result<Artifact> {
    Ok(Artifact {
        sha256: row.get(first)?,
        bytes: row.get::<_, i64>(first + 1)?.cast_unsigned(),
        first_ready_at: row.get::<_, Text<Timestamp>>(first + 2)?.0,
    })
}

/// A value stored as text. Text that does not parse is an unreadable value.
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
