//! Who changed what, newest first.

use super::{Asked, NoPage, Visitor, difference, layout, show};
use axum::extract::Query;
use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

/// Events of one page, of all pages, and the bytes of one page.
const ROWS: usize = 50;
const MOST: usize = 10_000;
const BYTES: usize = 70_000;

pub(super) async fn page(visitor: Visitor, Query(asked): Asked) -> Result<Response, NoPage> {
    let model = asked.get("model").map_or("", |text| text.trim());
    let skip: usize = asked.get("skip").and_then(|skip| skip.parse().ok()).unwrap_or(0).min(MOST - ROWS);
    // One more tells whether there are older ones.
    let mut path = format!("/api/v1/audit?limit={}", (skip + ROWS + 1).min(MOST));
    if !model.is_empty() {
        path = format!("{path}&model={}", show::escaped(model));
    }
    let audit = visitor.get(&path).await?;
    let head = visitor.try_get("/api/v1/audit/head").await.unwrap_or_default();
    let events = audit["events"].as_array().map_or(&[][..], Vec::as_slice);
    let events = events.get(skip..).unwrap_or_default();
    let (items, shown) = layout::fitting(events.iter().take(ROWS).map(item), BYTES);
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
        @if events.is_empty() { p { "There are no " @if skip > 0 { "older " } "events" @if !model.is_empty() { " of this model" } "." } }
        div data-live="audit" { ol .history { (items) } }
        (links(model, skip, shown, events.len() > shown))
    };
    Ok(visitor.page("Audit", "/audit", &content))
}

fn links(model: &str, skip: usize, shown: usize, older: bool) -> Markup {
    let at = |skip: usize| format!("/audit?model={}&skip={skip}", show::escaped(model));
    let next = skip + shown;
    html! {
        nav .pages aria-label="Pages of the trail" {
            @if skip > 0 { a href=(at(0)) rel="first" { "Newest events" } }
            @if older && next <= MOST - ROWS { a href=(at(next)) rel="next" { "Older events" } }
        }
        @if older && next > MOST - ROWS { p .quiet { code { "sluicegate audit --export" } " has all events." } }
    }
}

fn item(event: &Value) -> Markup {
    html! { li {
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

/// A missing document differs from another one member by member.
fn object(value: &Value) -> Value {
    if value.is_null() { Value::Object(serde_json::Map::new()) } else { value.clone() }
}
