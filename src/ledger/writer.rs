//! Writes the ledger.

use super::error::{LedgerError, is_unreadable_value};
use super::identity::OpenFiles;
use super::lock::Lock;
use super::reader::{Text, artifact, document_at, last_change, previous_document, revision_of};
use super::rows;
use super::shared::{each_review, retirement, share};
use super::tokens::{TokenChange, change_token, store_uses};
use super::{
    Action, Change, Committed, Crash, Effect, MAX_CRASHES, ModelState, NewDocument, Note, Revision, StoredAside,
    rfc3339,
};
use crate::model::{ModelName, Version};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};
use std::path::PathBuf;

/// Writes the ledger. The manager owns it. Other servers cannot use the data directory until it is dropped.
#[derive(Debug)]
pub struct LedgerWriter {
    connection: Connection,
    file: PathBuf,
    /// The database, its write-ahead log and the lock file.
    files: OpenFiles,
    /// Never read. Dropping it releases the directory. Declared after `connection`, so that it is dropped after it.
    _lock: Lock,
}

impl LedgerWriter {
    pub(super) fn new(connection: Connection, file: PathBuf, files: OpenFiles, lock: Lock) -> LedgerWriter {
        LedgerWriter { connection, file, files, _lock: lock }
    }

    /// Everything stored, in the order of the model names. The server reads it once at start.
    pub fn load(&self) -> Result<Vec<ModelState>, LedgerError> {
        self.load_all().map_err(|e| LedgerError::sqlite(&self.file, "read the stored state", e))
    }

    /// The document that a rollback goes back to. `None` where there is none.
    pub fn previous_document(&self, model: &ModelName) -> Result<Option<Revision>, LedgerError> {
        previous_document(&self.connection, model)
            .map_err(|e| LedgerError::sqlite(&self.file, "read the previous document", e))
    }

    /// A document of the past.
    pub fn document_at(&self, model: &ModelName, revision: u64) -> Result<Option<Revision>, LedgerError> {
        document_at(&self.connection, model, revision)
            .map_err(|e| LedgerError::sqlite(&self.file, "read a traffic document", e))
    }

    /// The action that put the document in force, as [`Action::as_str`] spells it. `None` where there is no document.
    pub fn last_change(&self, model: &ModelName) -> Result<Option<String>, LedgerError> {
        last_change(&self.connection, model)
            .map_err(|e| LedgerError::sqlite(&self.file, "read the last change of the traffic", e))
    }

    /// Stores a change in one transaction. After `Ok` it is on disk, after an error nothing of it is.
    pub fn commit(&mut self, change: Change) -> Result<Committed, LedgerError> {
        check_json(&change)?;
        let LedgerWriter { connection, file, files, .. } = self;
        let failed = |error| LedgerError::sqlite(file, "store the change", error);
        files.check()?;
        // Dropped without `commit`, the transaction is rolled back: every `?` below leaves nothing behind.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let committed = write(&transaction, change).map_err(failed)?;
        // Again, as late as possible: SQLite would also commit into a file that is no longer in the directory.
        files.check()?;
        transaction.commit().map_err(failed)?;
        Ok(committed)
    }

    /// Stores a change of a token with its event, in one transaction. False, and nothing is stored, when the name is taken, or there is no
    /// token to revoke.
    pub fn commit_token(&mut self, change: &TokenChange) -> Result<bool, LedgerError> {
        let LedgerWriter { connection, file, files, .. } = self;
        let failed = |error| LedgerError::sqlite(file, "store the token", error);
        files.check()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        if !change_token(&transaction, Timestamp::now(), change).map_err(failed)? {
            return Ok(false);
        }
        files.check()?;
        transaction.commit().map_err(failed)?;
        Ok(true)
    }

    /// Whether a token is valid in the whole fleet. `None` where there is no such token.
    pub fn token_is_shared(&self, name: &str) -> Result<Option<bool>, LedgerError> {
        let found = self.connection.prepare_cached("SELECT shared FROM tokens WHERE name = ?1");
        let found = found.and_then(|mut select| select.query_row([name], |row| row.get(0)).optional());
        found.map_err(|e| LedgerError::sqlite(&self.file, "read a token", e))
    }

    /// Stores when tokens were used last. Writes no event.
    pub fn store_token_uses(&mut self, uses: &[(String, Timestamp)]) -> Result<(), LedgerError> {
        let LedgerWriter { connection, file, files, .. } = self;
        let failed = |error| LedgerError::sqlite(file, "store the use of tokens", error);
        files.check()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        store_uses(&transaction, uses).map_err(failed)?;
        transaction.commit().map_err(failed)
    }

    /// Stores an event that changes nothing else. Returns its number.
    pub fn note(&mut self, note: Note) -> Result<u64, LedgerError> {
        let Note { model, actor, action, reason, before, after } = note;
        for (what, text) in [("`before` of the event", &before), ("`after` of the event", &after)] {
            check_text(what, text.as_ref())?;
        }
        let LedgerWriter { connection, file, files, .. } = self;
        let failed = |error| LedgerError::sqlite(file, "store the event", error);
        files.check()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let model = model.as_ref().map_or("", ModelName::as_str);
        let (reason, before, after) = (reason.as_deref(), before.as_deref(), after.as_deref());
        let event = NewEvent { actor: &actor, action, model, reason, before, after };
        let id = insert_event(&transaction, now(), &event).map_err(failed)?;
        files.check()?;
        transaction.commit().map_err(failed)?;
        Ok(id.cast_unsigned())
    }

    fn load_all(&self) -> rusqlite::Result<Vec<ModelState>> {
        let mut models = self.connection.prepare_cached(
            "SELECT m.model, m.revision, d.document, m.taken_out, m.highest_served, m.retired, e.actor, e.ts, e.reason, m.retired_elsewhere
             FROM models m LEFT JOIN documents d ON d.model = m.model AND d.revision = m.revision
             LEFT JOIN events e ON e.id = m.retired ORDER BY m.model",
        )?;
        let mut rows = models.query([])?;
        let mut states = Vec::new();
        while let Some(row) = rows.next()? {
            let name: Text<ModelName> = match row.get(0) {
                Ok(name) => name,
                Err(error) if is_unreadable_value(&error) => {
                    tracing::error!(%error, file = %self.file.display(), "a stored model name cannot be read; the model is ignored");
                    continue;
                }
                Err(error) => return Err(error),
            };
            states.push(self.load_model(name.0, row)?);
        }
        Ok(states)
    }

    /// Reads what is stored about one model. A value that cannot be read is reported in the state and does not end the start.
    fn load_model(&self, name: ModelName, row: &Row<'_>) -> rusqlite::Result<ModelState> {
        let mut unreadable = Unreadable::default();
        let version = |row: &Row<'_>| row.get::<_, Text<Version>>(0).map(|v| v.0);
        let mut state = ModelState {
            revision: unreadable.or_empty("revision", row.get::<_, i64>(1))?.cast_unsigned(),
            document: unreadable.or_empty("document", row.get(2))?,
            unloaded: unreadable.or_empty("taken_out", row.get(3))?,
            retired: unreadable.or_empty("retired", retirement(row, 5))?,
            highest_served: unreadable.or_empty("highest_served", row.get::<_, Option<Text<Version>>>(4))?.map(|v| v.0),
            ..ModelState::new(name)
        };
        for (table, versions) in
            [("operator_unloaded", &mut state.operator_unloaded), ("auto_promoted", &mut state.auto_promoted)]
        {
            let sql = format!("SELECT version FROM {table} WHERE model = ?1");
            let mut statement = self.connection.prepare_cached(&sql)?;
            for row in statement.query_map([state.model.as_str()], version)? {
                versions.extend(unreadable.or_empty(table, row.map(Some))?);
            }
        }
        let mut statement = self
            .connection
            .prepare_cached("SELECT version, sha256, bytes, first_ready_at FROM artifacts WHERE model = ?1")?;
        for row in statement.query_map([state.model.as_str()], |row| Ok((version(row)?, artifact(row, 1)?)))? {
            state.artifacts.extend(unreadable.or_empty("artifacts", row.map(Some))?);
        }
        let mut statement = self
            .connection
            .prepare_cached("SELECT version, ts, artifact FROM crashes WHERE model = ?1 ORDER BY ts, rowid")?;
        let crash = |row: &Row<'_>| {
            Ok((version(row)?, Crash { at: row.get::<_, Text<Timestamp>>(1)?.0, artifact: row.get(2)? }))
        };
        for row in statement.query_map([state.model.as_str()], crash)? {
            if let Some((version, crash)) = unreadable.or_empty("crashes", row.map(Some))? {
                state.crashes.entry(version).or_default().push(crash);
            }
        }
        let mut statement =
            self.connection.prepare_cached("SELECT version, artifact, reason FROM set_aside WHERE model = ?1")?;
        let aside = |row: &Row<'_>| Ok((version(row)?, StoredAside { artifact: row.get(1)?, reason: row.get(2)? }));
        for row in statement.query_map([state.model.as_str()], aside)? {
            state.set_aside.extend(unreadable.or_empty("set_aside", row.map(Some))?);
        }
        each_review(&self.connection, state.model.as_str(), |review| {
            state.reviews.extend(unreadable.or_empty("reviews", review.map(Some))?);
            Ok(())
        })?;
        let mut statement = self.connection.prepare_cached("SELECT version, actor FROM proposers WHERE model = ?1")?;
        let proposer = |row: &Row<'_>| Ok((version(row)?, row.get::<_, String>(1)?));
        for row in statement.query_map([state.model.as_str()], proposer)? {
            if let Some((version, actor)) = unreadable.or_empty("proposers", row.map(Some))? {
                state.proposers.entry(version).or_default().insert(actor);
            }
        }
        state.unreadable = unreadable.words();
        Ok(state)
    }

    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for LedgerWriter {
    fn drop(&mut self) {
        // After a clean stop one file holds everything, which makes copying it safe. A failure loses nothing: the next start reads
        // the write-ahead log.
        let _ = self.connection.pragma_update_and_check(None, "wal_checkpoint", "TRUNCATE", |_| Ok(()));
    }
}

/// Collects the stored values of one model that cannot be read.
#[derive(Debug, Default)]
struct Unreadable(Vec<String>);

impl Unreadable {
    /// The value, or an empty one with a complaint when the stored value cannot be read.
    ///
    /// # Errors
    /// When the database itself fails.
    fn or_empty<T: Default>(&mut self, what: &str, value: rusqlite::Result<T>) -> rusqlite::Result<T> {
        match value {
            Err(error) if is_unreadable_value(&error) => {
                self.0.push(format!("stored value {what:?} cannot be read: {error}"));
                Ok(T::default())
            }
            value => value,
        }
    }

    fn words(self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.0.join("; "))
    }
}

fn check_json(change: &Change) -> Result<(), LedgerError> {
    let (document, rollout) = match &change.effect {
        Effect::SetDocument { document, .. } => (Some(document), None),
        Effect::SetRollout { state, document } => (document.as_ref().map(|new| &new.document), Some(state)),
        Effect::Retire { document } => (document.as_ref().map(|new| &new.document), None),
        Effect::Share { state, .. } => (state.document.as_ref(), None),
        _ => (None, None),
    };
    let texts = [
        ("the traffic document", document),
        ("the rollout", rollout),
        ("`before` of the change", change.before.as_ref()),
        ("`after` of the change", change.after.as_ref()),
    ];
    for (what, text) in texts {
        check_text(what, text)?;
    }
    Ok(())
}

fn check_text(what: &'static str, text: Option<&String>) -> Result<(), LedgerError> {
    let Some(text) = text else { return Ok(()) };
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|source| LedgerError::NotJson { what, source })?;
    Ok(())
}

/// Rounded as it is stored, so that the answer now and a later reading agree.
fn now() -> Timestamp {
    let ts = Timestamp::now();
    Timestamp::from_microsecond(ts.as_microsecond()).unwrap_or(ts)
}

fn write(transaction: &Transaction<'_>, mut change: Change) -> rusqlite::Result<Committed> {
    let ts = now();
    let model = change.model.as_str().to_owned();
    if change.effect != Effect::None {
        transaction.prepare_cached("INSERT OR IGNORE INTO models (model) VALUES (?1)")?.execute([&model])?;
    }
    let event_id =
        if needs_event(transaction, &mut change)? { Some(record_event(transaction, &change, ts)?) } else { None };
    apply(transaction, &change, ts, event_id)?;
    let revision = revision_of(transaction, &change.model)?;
    Ok(Committed { revision, event_id: event_id.map(i64::cast_unsigned), ts })
}

/// Whether a change writes an audit event. A version that becomes ready for the first time, or with the bytes it had before, writes
/// none, and neither does forgiving its crashes. Other bytes do, and the event shows both where the caller gave neither.
fn needs_event(transaction: &Transaction<'_>, change: &mut Change) -> rusqlite::Result<bool> {
    let Effect::RecordArtifact { version, sha256, bytes } = &change.effect else {
        return Ok(!matches!(change.effect, Effect::ForgiveCrashes { .. }));
    };
    let stored = transaction
        .prepare_cached("SELECT sha256, bytes, first_ready_at FROM artifacts WHERE model = ?1 AND version = ?2")?
        .query_row(params![change.model.as_str(), version.to_string()], |row| artifact(row, 0))
        .optional()?;
    match stored {
        Some(stored) if stored.sha256 != *sha256 => {
            let show = |sha256: &str, bytes: u64| {
                serde_json::json!({"version": version, "sha256": sha256, "bytes": bytes}).to_string()
            };
            let (before, after) = (show(&stored.sha256, stored.bytes), show(sha256, *bytes));
            change.before.get_or_insert(before);
            change.after.get_or_insert(after);
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn record_event(transaction: &Transaction<'_>, change: &Change, ts: Timestamp) -> rusqlite::Result<i64> {
    let Change { model, actor, action, reason, before, after, .. } = change;
    let (reason, before, after) = (reason.as_deref(), before.as_deref(), after.as_deref());
    insert_event(transaction, ts, &NewEvent { actor, action: *action, model: model.as_str(), reason, before, after })
}

/// An event of the audit trail that is about to be stored.
pub(super) struct NewEvent<'e> {
    pub actor: &'e str,
    pub action: Action,
    /// Empty where the event concerns no model.
    pub model: &'e str,
    pub reason: Option<&'e str>,
    pub before: Option<&'e str>,
    pub after: Option<&'e str>,
}

/// The only place that adds an event.
pub(super) fn insert_event(
    transaction: &Transaction<'_>,
    ts: Timestamp,
    event: &NewEvent<'_>,
) -> rusqlite::Result<i64> {
    rows::append(transaction, ts, event)
}

fn apply(transaction: &Transaction<'_>, change: &Change, ts: Timestamp, event_id: Option<i64>) -> rusqlite::Result<()> {
    let model = change.model.as_str();
    let run = |sql: &str, params: &[&dyn rusqlite::ToSql]| transaction.prepare_cached(sql)?.execute(params);
    match &change.effect {
        Effect::None => {}
        Effect::Share { state, made_by } => share(transaction, model, event_id, state, made_by.as_deref())?,
        Effect::SetRollout { state, document } => {
            if let Some(NewDocument { document, highest_served }) = document {
                set_document(transaction, model, event_id, document, *highest_served, None)?;
            }
            run(
                "INSERT INTO rollouts VALUES (?1, ?2) ON CONFLICT (model) DO UPDATE SET state = excluded.state",
                &[&model, state],
            )?;
        }
        Effect::SetDocument { document, highest_served, auto_promoted } => {
            set_document(transaction, model, event_id, document, *highest_served, None)?;
            if let Some(version) = auto_promoted {
                run("INSERT OR IGNORE INTO auto_promoted VALUES (?1, ?2)", &[&model, &version.to_string()])?;
            }
        }
        Effect::Retire { document } => {
            if let Some(NewDocument { document, highest_served }) = document {
                set_document(transaction, model, event_id, document, *highest_served, None)?;
            }
            run(
                "UPDATE models SET retired = ?2, retired_elsewhere = NULL, taken_out = 0 WHERE model = ?1",
                &[&model, &event_id],
            )?;
        }
        Effect::SetModelUnloaded(unloaded) => {
            run("UPDATE models SET taken_out = ?2 WHERE model = ?1", &[&model, unloaded])?;
        }
        Effect::SetOperatorUnloaded { version, unloaded } => {
            let sql = if *unloaded {
                "INSERT OR IGNORE INTO operator_unloaded VALUES (?1, ?2)"
            } else {
                "DELETE FROM operator_unloaded WHERE model = ?1 AND version = ?2"
            };
            run(sql, &[&model, &version.to_string()])?;
        }
        Effect::RecordCrash { version, artifact, at } => {
            let version = version.to_string();
            run("INSERT INTO crashes VALUES (?1, ?2, ?3, ?4)", &[&model, &version, &rfc3339(*at), artifact])?;
            run(
                "DELETE FROM crashes WHERE rowid IN (SELECT rowid FROM crashes WHERE model = ?1 AND version = ?2
                 ORDER BY ts DESC, rowid DESC LIMIT -1 OFFSET ?3)",
                &[&model, &version, &MAX_CRASHES],
            )?;
        }
        Effect::SetAside { version, artifact, reason } => {
            run(
                "INSERT OR REPLACE INTO set_aside VALUES (?1, ?2, ?3, ?4)",
                &[&model, &version.to_string(), artifact, reason],
            )?;
        }
        Effect::Review { version, artifact, approved } => {
            run(
                "INSERT OR REPLACE INTO reviews (model, version, artifact, approved, event) VALUES (?1, ?2, ?3, ?4, ?5)",
                &[&model, &version.to_string(), artifact, approved, &event_id],
            )?;
        }
        Effect::Propose { version } => {
            let version = version.to_string();
            run("INSERT OR IGNORE INTO proposers VALUES (?1, ?2, ?3)", &[&model, &version, &change.actor])?;
        }
        Effect::ForgiveCrashes { version } => {
            let version = version.to_string();
            run("DELETE FROM set_aside WHERE model = ?1 AND version = ?2", &[&model, &version])?;
            run("DELETE FROM crashes WHERE model = ?1 AND version = ?2", &[&model, &version])?;
        }
        Effect::RecordArtifact { version, sha256, bytes } => {
            // No file is larger than 8 EiB, the largest number that SQLite stores.
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

pub(super) fn set_document(
    transaction: &Transaction<'_>,
    model: &str,
    event_id: Option<i64>,
    document: &str,
    highest_served: Option<Version>,
    made_by: Option<&str>,
) -> rusqlite::Result<()> {
    let run = |sql: &str, params: &[&dyn rusqlite::ToSql]| transaction.prepare_cached(sql)?.execute(params);
    run("UPDATE models SET revision = revision + 1, retired = NULL WHERE model = ?1", &[&model])?;
    run(
        "INSERT INTO documents (model, revision, event, document, made_by)
         SELECT model, revision, ?2, ?3, ?4 FROM models WHERE model = ?1",
        &[&model, &event_id, &document, &made_by],
    )?;
    highest_served.map_or(Ok(()), |version| raise_highest_served(transaction, model, version))
}

/// Compares here and not in SQL, where versions are text and "9" sorts after "10".
pub(super) fn raise_highest_served(
    transaction: &Transaction<'_>,
    model: &str,
    version: Version,
) -> rusqlite::Result<()> {
    let stored = transaction
        .prepare_cached("SELECT highest_served FROM models WHERE model = ?1")?
        .query_row([model], |row| row.get::<_, Option<Text<Version>>>(0));
    let stored = match stored {
        // A new document repairs a value that cannot be read.
        Err(error) if is_unreadable_value(&error) => None,
        stored => stored?,
    };
    if stored.is_none_or(|stored| version > stored.0) {
        transaction
            .prepare_cached("UPDATE models SET highest_served = ?2 WHERE model = ?1")?
            .execute(params![model, version.to_string()])?;
    }
    Ok(())
}
