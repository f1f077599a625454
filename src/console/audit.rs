//! Who changed what, newest first.

use super::{Asked, NoPage, Visitor, difference, show};
use axum::extract::Query;
use axum::response::Response;
use maud::html;
use serde_json::Value;

const ROWS: usize = 50;

pub(super) async fn page(visitor: Visitor, Query(asked): Asked) -> Result<Response, NoPage> {
    let model = asked.get("model").map_or("", |text| text.trim());
    let limit: usize = asked.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(ROWS).clamp(1, 1000);
    let mut path = format!("/api/v1/audit?limit={limit}");
    if !model.is_empty() {
        path = format!("{path}&model={}", show::escaped(model));
    }
    let audit = visitor.get(&path).await?;
    let head = visitor.try_get("/api/v1/audit/head").await.unwrap_or_default();
    let events = audit["events"].as_array().map_or(&[][..], Vec::as_slice);
    let content = html! {
        h1 { "Audit" }
        form .filter method="get" action="/audit" role="search" {
            label for="model" { "Of one model" }
            input #model name="model" value=(model) autocomplete="off" spellcheck="false";
            button { "Show" }
        }
        @if let Some(hash) = head["hash"].as_str() {
            p .quiet { "Event " (show::number_of(&head["id"])) " has the hash " code { (show::text(hash, 64)) } ". " code { "sluicegate audit --verify" } " verifies the chain." }
        }
        @if events.is_empty() { p { "There are no events" @if !model.is_empty() { " of this model" } "." } }
        ol .history data-live="audit" {
            @for event in events { li {
                p {
                    (show::ago(&event["ts"])) " · " strong { (show::text(event["actor"].as_str().unwrap_or("–"), 80)) } " · "
                    (show::text(&event["action"].as_str().unwrap_or_default().replace('_', " "), 60))
                    @if let Some(model) = event["model"].as_str().filter(|model| !model.is_empty()) { " · " a href=(format!("/models/{}", show::escaped(model))) { (show::text(model, 130)) } }
                    @if let Some(reason) = event["reason"].as_str() { ": " (show::text(reason, 500)) }
                }
                @if !event["before"].is_null() || !event["after"].is_null() {
                    details { summary { "What changed" } (difference::table(&difference::between(&object(&event["before"]), &object(&event["after"])))) }
                }
            } }
        }
        @if events.len() == limit && limit < 1000 {
            p { a href=(format!("/audit?model={}&limit={}", show::escaped(model), (limit * 4).min(1000))) { "Older events" } }
        }
    };
    Ok(visitor.page("Audit", "/audit", &content))
}

/// A missing document differs from another one member by member.
fn object(value: &Value) -> Value {
    if value.is_null() { Value::Object(serde_json::Map::new()) } else { value.clone() }
}
