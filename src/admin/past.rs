//! What was changed, by whom and why.

use super::Admin;
use super::answers::{Audit, History};
use super::ask::{Parameters, Target};
use super::refused::Refused;
use super::shapes::Problem;
use crate::ledger::{AuditQuery, LedgerError, LedgerReader};
use crate::model::{Code, Failure};
use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use std::sync::Arc;

/// Every traffic document there has been, newest first
#[utoipa::path(
    get, path = "/api/v1/models/{model}/history", tag = "history",
    params(("model" = String, Path)),
    responses(
        (status = 200, description = "Newest first", body = History),
        (status = 404, description = "No model has this name, nor ever had a document", body = Problem),
    )
)]
pub(super) async fn history(State(admin): State<Arc<Admin>>, target: Target) -> Result<Json<History>, Refused> {
    let model = target.model()?;
    let asked = model.clone();
    let entries = ask(&admin.ledger, move |ledger| ledger.history(&asked)).await?;
    if entries.is_empty() {
        // A model whose directory is gone still has its history; one that has neither is unknown.
        target.entry(&admin.reader.snapshot())?;
    }
    let history = entries.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
    Ok(Json(History { model, history }))
}

/// The audit trail, newest first
#[utoipa::path(
    get, path = "/api/v1/audit", tag = "history",
    params(
        ("model" = Option<String>, Query, description = "Of this model alone"),
        ("since" = Option<String>, Query, description = "Of this time and after: RFC 3339, or a date (in UTC)"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 10_000, description = "At most so many; 100 when absent"),
    ),
    responses(
        (status = 200, description = "Newest first", body = Audit),
        (status = 400, description = "A parameter is not right; the sentence names it", body = Problem),
    )
)]
pub(super) async fn audit(State(admin): State<Arc<Admin>>, mut asked: Parameters) -> Result<Json<Audit>, Refused> {
    let model = asked.take("model", |text| text.parse().map_err(|_| "a model's name".to_owned()));
    let since =
        asked.take("since", |text| time(text).ok_or("a time such as 2026-11-21T08:00:00Z or 2026-11-21".to_owned()));
    let limit = asked.take("limit", |text| {
        let limit = text.parse().ok().filter(|n| (1..=MAX_EVENTS).contains(n));
        limit.ok_or(format!("a number from 1 to {MAX_EVENTS}"))
    });
    asked.finish()?;
    let query = AuditQuery { model, since, limit: limit.unwrap_or(DEFAULT_EVENTS) };
    let events = ask(&admin.ledger, move |ledger| ledger.audit(&query)).await?;
    Ok(Json(Audit { events: events.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()? }))
}

/// A screen or two; documents stand in each twice, so that all of them at once could be hundreds of megabytes.
const DEFAULT_EVENTS: usize = 100;
const MAX_EVENTS: usize = 10_000;

fn time(text: &str) -> Option<Timestamp> {
    // A plus that was not escaped comes out of a query as a space.
    if let Ok(time) = text.replace(' ', "+").parse() {
        return Some(time);
    }
    let date: jiff::civil::Date = text.parse().ok().filter(|_| text.len() == "2026-11-21".len())?;
    Some(date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

/// Reads the ledger on a thread that may wait for the disk.
async fn ask<T: Send + 'static>(
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
