//! The rows of the hash chain: appends an event, reads events as they are stored, and compares stored documents with them.

use super::chain::{Beginning, EventHash, FIELDS, StoredEvent};
use super::shared::STATE;
use super::verify::{ProblemKind, Verifier};
use super::writer::NewEvent;
use super::{Action, rfc3339};
use jiff::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Writes an event with its hash. Returns its number. Another connection may have written the event before it: the transaction holds the
/// database's write lock.
pub(super) fn append(transaction: &Transaction<'_>, ts: Timestamp, event: &NewEvent<'_>) -> rusqlite::Result<i64> {
    let NewEvent { actor, action, model, reason, before, after } = *event;
    let Beginning { chain, .. } = beginning(transaction)?;
    let (last, previous) = last(transaction, &chain)?;
    // A number is not used again, also where the newest events were removed by another program.
    let id = counted(transaction)?.max(last) + 1;
    let ts = rfc3339(ts);
    let text = |text: Option<&str>| text.map(|text| text.as_bytes().to_vec());
    let texts = [
        Some(ts.clone().into_bytes()),
        Some(actor.as_bytes().to_vec()),
        Some(action.as_str().as_bytes().to_vec()),
        Some(model.as_bytes().to_vec()).filter(|model| !model.is_empty()),
        text(reason),
        text(before),
        text(after),
    ];
    let stored = StoredEvent { id: id.cast_unsigned(), texts, previous: Some(previous), hash: None };
    let hash = stored.computed().map(|hash| hash.to_string());
    transaction
        .prepare_cached(
            "INSERT INTO events (id, ts, actor, action, model, reason, before, after, previous, hash)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![id, ts, actor, action.as_str(), model, reason, before, after, previous.to_string(), hash])?;
    Ok(id)
}

/// Begins the chain: gives all events that are there their hashes, and says so in an event where there are any.
pub(super) fn begin_chain(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let chain = Uuid::now_v7().to_string();
    let mut previous = EventHash::first(&chain);
    let mut last = 0;
    let mut events = 0_u64;
    let mut select = transaction.prepare(&format!("{SELECT} WHERE id > ?1 ORDER BY id LIMIT 1"))?;
    let mut update = transaction.prepare("UPDATE events SET previous = ?2, hash = ?3 WHERE id = ?1")?;
    // One at a time, so that memory does not grow with the events.
    while let Some(event) = select.query_row([last], stored_event).optional()? {
        let event = StoredEvent { previous: Some(previous), ..event };
        let Some(hash) = event.computed() else { break };
        last = event.id.cast_signed();
        update.execute(params![last, previous.to_string(), hash.to_string()])?;
        previous = hash;
        events += 1;
    }
    transaction.execute("INSERT INTO chain (chain, chained_later) VALUES (?1, ?2)", params![chain, last])?;
    if events > 0 {
        let after = json!({ "chained_later": last, "events": events }).to_string();
        let reason =
            "the events before this one are older than the hash chain: their hashes show only changes after now";
        let event = NewEvent {
            actor: "migration",
            action: Action::ChainBegin,
            model: "",
            reason: Some(reason),
            before: None,
            after: Some(&after),
        };
        append(transaction, Timestamp::now(), &event)?;
    }
    Ok(())
}

/// Where the chain begins.
pub(super) fn beginning(connection: &Connection) -> rusqlite::Result<Beginning> {
    connection
        .prepare_cached("SELECT chain, chained_later FROM chain ORDER BY rowid LIMIT 1")?
        .query_row([], |row| Ok(Beginning { chain: row.get(0)?, chained_later: row.get::<_, i64>(1)?.cast_unsigned() }))
}

/// How many events the database has numbered, also those that are no longer there.
pub(super) fn counted(connection: &Connection) -> rusqlite::Result<i64> {
    let counted = connection
        .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'events'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(counted.unwrap_or(0))
}

/// The number of the newest event, and the hash that the next event names as the one before it.
pub(super) fn last(connection: &Connection, chain: &str) -> rusqlite::Result<(i64, EventHash)> {
    let last = connection
        .prepare_cached(&format!("{SELECT} ORDER BY id DESC LIMIT 1"))?
        .query_row([], stored_event)
        .optional()?;
    let first = EventHash::first(chain);
    // An event of another program may have no hash. Changes are stored all the same, and a verification names that event.
    Ok(last
        .map_or((0, first), |event| (event.id.cast_signed(), event.hash.or_else(|| event.computed()).unwrap_or(first))))
}

const SELECT: &str =
    "SELECT id, previous, hash, ts, actor, action, NULLIF(model, ''), reason, before, after FROM events";

/// Calls `take` with the events after a number, in order, until it returns false or has had `limit`.
pub(super) fn each_event(
    connection: &Connection,
    after: u64,
    limit: usize,
    mut take: impl FnMut(StoredEvent) -> bool,
) -> rusqlite::Result<()> {
    let (after, limit) = (i64::try_from(after).unwrap_or(i64::MAX), i64::try_from(limit).unwrap_or(i64::MAX));
    let mut statement = connection.prepare_cached(&format!("{SELECT} WHERE id > ?1 ORDER BY id LIMIT ?2"))?;
    let mut rows = statement.query([after, limit])?;
    while let Some(row) = rows.next()? {
        if !take(stored_event(row)?) {
            break;
        }
    }
    Ok(())
}

/// Reads an event, whatever its texts contain: a verification must not end at a damaged one.
fn stored_event(row: &Row<'_>) -> rusqlite::Result<StoredEvent> {
    let hash = |column: usize| -> rusqlite::Result<Option<EventHash>> {
        Ok(row.get_ref(column)?.as_str_or_null().ok().flatten().and_then(|text| text.parse().ok()))
    };
    let mut texts = [const { None }; FIELDS.len()];
    for (column, text) in (3..).zip(&mut texts) {
        *text = match row.get_ref(column)? {
            ValueRef::Null => None,
            ValueRef::Text(text) | ValueRef::Blob(text) => Some(text.to_vec()),
            ValueRef::Integer(number) => Some(number.to_string().into_bytes()),
            ValueRef::Real(number) => Some(number.to_string().into_bytes()),
        };
    }
    Ok(StoredEvent { id: row.get::<_, i64>(0)?.cast_unsigned(), texts, previous: hash(1)?, hash: hash(2)? })
}

/// What events have beside the members of a document.
const BESIDE: [&str; 4] = ["gates", "break_glass", "quorum", STATE];

/// Compares every stored traffic document with the event that put it in force, and every model's revision with its documents. Documents that
/// are older than the chain are not compared.
pub(super) fn check_documents(
    connection: &Connection,
    beginning: &Beginning,
    verifier: &mut Verifier,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(
        "SELECT d.model, d.revision, d.event, d.document, e.id, e.model, e.before, e.after
         FROM documents d LEFT JOIN events e ON e.id = d.event WHERE d.event > ?1 ORDER BY d.model, d.revision",
    )?;
    let mut rows = statement.query([beginning.chained_later.cast_signed()])?;
    while let Some(row) = rows.next()? {
        let text = |column: usize| -> rusqlite::Result<String> {
            Ok(String::from_utf8_lossy(row.get_ref(column)?.as_bytes_or_null().ok().flatten().unwrap_or_default())
                .into_owned())
        };
        let (model, revision, event) = (text(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?);
        let parse = |text: String| serde_json::from_str::<Value>(&text).ok();
        let document = parse(text(3)?);
        let document_of = |value: Option<Value>| {
            value.map(|mut value| {
                if let Some(members) = value.as_object_mut() {
                    members.retain(|name, _| !BESIDE.contains(&name.as_str()));
                }
                value
            })
        };
        let named = row.get_ref(4)? != ValueRef::Null;
        // A retirement stores the document from before once more.
        let fits = document.is_some()
            && (document_of(parse(text(7)?)) == document || document_of(parse(text(6)?)) == document);
        if !named || text(5)? != model || !fits {
            let words =
                format!("the traffic document of {model:?} at revision {revision} is not the one of event {event}");
            verifier.report(ProblemKind::Document, Some(event.cast_unsigned()), words);
        }
    }
    let mut statement = connection.prepare(
        "SELECT m.model, m.revision, COUNT(d.revision), COALESCE(MAX(d.revision), 0)
         FROM models m LEFT JOIN documents d ON d.model = m.model GROUP BY m.model
         HAVING m.revision <> COUNT(d.revision) OR m.revision <> COALESCE(MAX(d.revision), 0)",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let model = String::from_utf8_lossy(row.get_ref(0)?.as_bytes().unwrap_or_default()).into_owned();
        let (revision, documents): (i64, i64) = (row.get(1)?, row.get(2)?);
        let words = format!("{model:?} is at revision {revision}, but has {documents} traffic documents");
        verifier.report(ProblemKind::Document, None, words);
    }
    Ok(())
}

/// Compares every token with the newest event about it: a token that no event made, or one with other rights, is reported.
pub(super) fn check_tokens(connection: &Connection, verifier: &mut Verifier) -> rusqlite::Result<()> {
    let parse =
        |text: Option<String>| text.and_then(|text| serde_json::from_str::<Value>(&text).ok()).unwrap_or_default();
    let mut made = BTreeMap::new();
    let mut statement = connection.prepare(
        "SELECT id, action, before, after FROM events WHERE action IN ('token_create', 'token_revoke') ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (id, action): (i64, String) = (row.get(0)?, row.get(1)?);
        let token = parse(row.get(if action == "token_create" { 3 } else { 2 })?);
        let name = token["token"].as_str().unwrap_or_default().to_owned();
        if action == "token_create" {
            made.insert(name, (id, token));
        } else {
            made.remove(&name);
        }
    }
    let mut statement = connection.prepare("SELECT name, role, models, expires_at FROM tokens ORDER BY name")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let text = |column: usize| row.get::<_, Option<String>>(column).unwrap_or_default().unwrap_or_default();
        let (name, role, models, expires_at) = (text(0), text(1), text(2), text(3));
        let problem = match made.get(&name) {
            None => Some((None, "is in no event: another program made it")),
            Some((id, event)) => {
                let listed = event["models"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let same = event["role"] == role.as_str()
                    && listed.collect::<Vec<_>>().join(",") == models
                    && event["expires_at"].as_str().unwrap_or_default() == expires_at;
                (!same).then_some((Some(id.cast_unsigned()), "has other rights than the event that made it"))
            }
        };
        if let Some((event, words)) = problem {
            verifier.report(ProblemKind::Token, event, format!("the token {name:?} {words}"));
        }
    }
    Ok(())
}

/// Compares every approval with its event: one that no approver gave is reported.
pub(super) fn check_reviews(connection: &Connection, verifier: &mut Verifier) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(
        "SELECT r.model, r.version, r.artifact, r.event, r.approved, e.model, e.action, e.after
         FROM reviews r LEFT JOIN events e ON e.id = r.event ORDER BY r.model, r.version",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let text = |column: usize| row.get::<_, Option<String>>(column).unwrap_or_default().unwrap_or_default();
        let (model, version, artifact, event) = (text(0), text(1), text(2), row.get::<_, i64>(3)?);
        let action = if row.get(4)? { "approve" } else { "reject" };
        let after: Value = serde_json::from_str(&text(7)).unwrap_or_default();
        let made = text(6) == action && after["version"] == version.as_str() && after["artifact"] == artifact.as_str();
        // The event by which this gateway followed another one has whole reviews.
        let followed = &after[STATE]["reviews"][version.as_str()];
        let followed = matches!(text(6).as_str(), "follow" | "import_state")
            && followed["artifact"] == artifact.as_str()
            && followed["approved"] == row.get::<_, bool>(4)?;
        if text(5) != model || !(made || followed) {
            let words = format!("the review of version {version:?} of {model:?} is not the one of event {event}");
            verifier.report(ProblemKind::Review, Some(event.cast_unsigned()), words);
        }
    }
    Ok(())
}
