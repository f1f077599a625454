//! History and audit trail: what was changed, by whom and why.

use super::Admin;
use super::caller::Caller;
use super::error::ErrorResponse;
use super::extract::{Parameters, Target};
use super::schemas::{Problem, TrafficDocument};
use crate::access::{Action, Identity};
use crate::ledger::{AuditQuery, Event, Head, HistoryEntry, LedgerError, LedgerReader, rfc3339};
use crate::model::{Code, Failure, ModelName};
use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;
use utoipa::ToSchema;

/// All traffic documents of a model, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct History {
    #[schema(value_type = String)]
    model: ModelName,
    history: Vec<HistoryItem>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HistoryItem {
    revision: u64,
    #[schema(format = DateTime)]
    ts: String,
    actor: String,
    /// The change that put it in force: `promote`, `rollback`, `put_traffic`, …
    action: String,
    reason: Option<String>,
    #[schema(value_type = TrafficDocument)]
    document: Value,
}

/// Changes, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Audit {
    events: Vec<AuditEvent>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditEvent {
    /// Grows with every event.
    id: u64,
    #[schema(format = DateTime)]
    ts: String,
    actor: String,
    action: String,
    /// Null for a change that concerns no model, such as a token.
    #[schema(value_type = Option<String>)]
    model: Option<ModelName>,
    reason: Option<String>,
    /// The value before the change; null if there was none.
    before: Value,
    /// The value after the change.
    after: Value,
    /// The SHA-256 of this event and of the hash of the event before it.
    hash: Option<String>,
}

/// The newest event of the audit trail. Kept elsewhere, it proves that the events up to it are still there and unchanged.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditHead {
    /// Identifies the chain of hashes: a data directory keeps its own.
    chain: String,
    /// The number of the newest event; 0 before the first one.
    id: u64,
    hash: String,
    /// The time of this answer.
    #[schema(format = DateTime)]
    ts: String,
}

/// All traffic documents of a model, newest first
#[utoipa::path(
    get, path = "/api/v1/models/{model}/history", tag = "history",
    params(("model" = String, Path)),
    responses(
        (status = 200, description = "Newest first", body = History),
        (status = 404, description = "No model has this name or ever had a document under it", body = Problem),
    )
)]
pub(super) async fn history(State(admin): State<Arc<Admin>>, target: Target) -> Result<Json<History>, ErrorResponse> {
    let model = target.model()?;
    let name = model.clone();
    let entries = read(&admin.ledger, move |ledger| ledger.history(&name)).await?;
    if entries.is_empty() {
        // A model without a directory may still have a history. Without both it is unknown.
        target.entry(&admin.reader.snapshot())?;
    }
    let history = entries.into_iter().map(TryInto::try_into).collect::<Result<_, Failure>>()?;
    Ok(Json(History { model, history }))
}

/// The audit trail, newest first
#[utoipa::path(
    get, path = "/api/v1/audit", tag = "history",
    params(
        ("model" = Option<String>, Query, description = "Only events of this model"),
        ("since" = Option<String>, Query, description = "Only events at or after this time: RFC 3339, or a date in UTC"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 10_000, description = "The largest number of events; absent: 100"),
    ),
    responses(
        (status = 200, description = "Newest first", body = Audit),
        (status = 400, description = "A parameter is wrong; the error names it", body = Problem),
    )
)]
pub(super) async fn audit(
    State(admin): State<Arc<Admin>>,
    Caller(caller): Caller,
    mut parameters: Parameters,
) -> Result<Json<Audit>, ErrorResponse> {
    let model = parameters.take("model", |text| text.parse().map_err(|_| "the name of a model".to_owned()));
    let since = parameters
        .take("since", |text| parse_time(text).ok_or("a time such as 2026-11-21T08:00:00Z or 2026-11-21".to_owned()));
    let limit = parameters.take("limit", |text| {
        let limit = text.parse().ok().filter(|n| (1..=MAX_EVENTS).contains(n));
        limit.ok_or(format!("a number from 1 to {MAX_EVENTS}"))
    });
    parameters.finish()?;
    let query = AuditQuery { model, since, limit: limit.unwrap_or(DEFAULT_EVENTS) };
    let events = read(&admin.ledger, move |ledger| ledger.audit_of(&query, |model| sees(&caller, model))).await?;
    Ok(Json(Audit { events: events.into_iter().map(TryInto::try_into).collect::<Result<_, Failure>>()? }))
}

/// Whether a caller may see the events of this model. A caller who sees only some models sees no event that concerns no model.
fn sees(caller: &Identity, model: Option<&ModelName>) -> bool {
    caller.may(Action::View, model.map(ModelName::as_str))
}

/// The newest event of the audit trail with its hash
#[utoipa::path(
    get, path = "/api/v1/audit/head", operation_id = "audit_head", tag = "history",
    responses((status = 200, description = "Keep it outside the data directory; docs/AUDIT.md says why", body = AuditHead))
)]
pub(super) async fn head(State(admin): State<Arc<Admin>>) -> Result<Json<AuditHead>, ErrorResponse> {
    let Head { chain, id, hash, ts } = read(&admin.ledger, LedgerReader::head).await?;
    Ok(Json(AuditHead { chain, id, hash: hash.to_string(), ts }))
}

/// The audit trail as JSON lines, oldest first, in pages
#[utoipa::path(
    get, path = "/api/v1/audit/export", operation_id = "audit_export", tag = "history",
    params(
        ("after" = Option<u64>, Query, description = "Only events with a higher number; absent: from the first one"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 10_000, description = "The largest number of events; absent: 1000"),
    ),
    responses(
        (status = 200, description = "One event per line with its hashes; before and after are texts, as they are hashed. A page has 4 MiB or a \
                                      little more at most. The next page begins after the number of the last line; an empty page is the end",
         body = String, content_type = "application/jsonl"),
        (status = 400, description = "A parameter is wrong; the error names it", body = Problem),
    )
)]
pub(super) async fn export(
    State(admin): State<Arc<Admin>>,
    mut parameters: Parameters,
) -> Result<impl IntoResponse, ErrorResponse> {
    let after = parameters.take("after", |text| text.parse().map_err(|_| "the number of an event".to_owned()));
    let limit = parameters.take("limit", |text| {
        let limit = text.parse().ok().filter(|n| (1..=MAX_EVENTS).contains(n));
        limit.ok_or(format!("a number from 1 to {MAX_EVENTS}"))
    });
    parameters.finish()?;
    let (after, limit) = (after.unwrap_or(0), limit.unwrap_or(PAGE_EVENTS));
    let lines = read(&admin.ledger, move |ledger| ledger.export(after, limit, PAGE_BYTES)).await?;
    Ok(([(CONTENT_TYPE, "application/jsonl")], lines))
}

/// The default size of a page, and the bytes after which a page gets no further event.
const PAGE_EVENTS: usize = 1000;
const PAGE_BYTES: usize = 4 << 20;

/// Each event has two traffic documents, so all events at once could be hundreds of megabytes.
const DEFAULT_EVENTS: usize = 100;
const MAX_EVENTS: usize = 10_000;

fn parse_time(text: &str) -> Option<Timestamp> {
    // A plus sign that was not escaped in the query arrives as a space.
    if let Ok(time) = text.replace(' ', "+").parse() {
        return Some(time);
    }
    let date: jiff::civil::Date = text.parse().ok().filter(|_| text.len() == "2026-11-21".len())?;
    Some(date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

/// Reads the ledger on a thread that may block.
pub(super) async fn read<T: Send + 'static>(
    ledger: &LedgerReader,
    query: impl FnOnce(&LedgerReader) -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, Failure> {
    let unreadable =
        |internal: String| Failure::new(Code::Internal, "the ledger cannot be read").with_internal(internal);
    let ledger = ledger.clone();
    match tokio::task::spawn_blocking(move || query(&ledger)).await {
        Ok(answer) => answer.map_err(|e| unreadable(e.to_string())),
        Err(e) => Err(unreadable(e.to_string())),
    }
}

impl TryFrom<HistoryEntry> for HistoryItem {
    type Error = Failure;

    fn try_from(entry: HistoryEntry) -> Result<HistoryItem, Failure> {
        let HistoryEntry { revision, ts, actor, action, reason, document } = entry;
        Ok(HistoryItem { revision, ts: rfc3339(ts), actor, action, reason, document: parse_json(Some(&document))? })
    }
}

impl TryFrom<Event> for AuditEvent {
    type Error = Failure;

    fn try_from(event: Event) -> Result<AuditEvent, Failure> {
        let Event { id, ts, actor, action, model, reason, before, after, hash } = event;
        let (before, after) = (parse_json(before.as_deref())?, parse_json(after.as_deref())?);
        let hash = hash.map(|hash| hash.to_string());
        Ok(AuditEvent { id, ts: rfc3339(ts), actor, action, model, reason, before, after, hash })
    }
}

/// The ledger stores nothing but JSON, so other text means that the file was damaged.
fn parse_json(text: Option<&str>) -> Result<Value, Failure> {
    let Some(text) = text else { return Ok(Value::Null) };
    serde_json::from_str(text)
        .map_err(|e| Failure::new(Code::Internal, "the ledger is damaged").with_internal(e.to_string()))
}
