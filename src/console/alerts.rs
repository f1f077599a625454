//! What is wrong, since when, and what to do.

use super::{Asked, NoPage, Visitor, layout, show, silence};
use axum::extract::Query;
use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

/// Of one list; its bytes are bounded too.
const ROWS: usize = 100;
/// Of one list.
const BYTES: usize = 30_000;

pub(super) async fn page(visitor: Visitor, Query(asked): Asked) -> Result<Response, NoPage> {
    let model = asked.get("model").map_or("", |text| text.trim());
    let of_model = if model.is_empty() { String::new() } else { format!("&model={}", show::escaped(model)) };
    let path = |states: &str| format!("/api/v1/alerts?state={states}&limit={ROWS}{of_model}");
    let firing = visitor.get(&path("firing")).await?;
    let others = visitor.get(&path("silenced,resolved")).await?;
    let silences = visitor.try_get("/api/v1/alerts/silences").await.unwrap_or_default();
    let may_operate = visitor.may("operate");
    let is_empty = |list: &Value| list["alerts"].as_array().is_none_or(Vec::is_empty);
    let content = html! {
        h1 { "Alerts" }
        @match asked.get("done").map(String::as_str) {
            Some("silence") => { p .good role="status" { "Done: the alerts are silenced." } }
            Some("end") => { p .good role="status" { "Done: the silence has ended." } }
            _ => {}
        }
        @if !model.is_empty() { p { "Of model " (show::text(model, 130)) ". " a href="/alerts" { "All alerts" } } }
        div data-live="alerts" {
            @if is_empty(&firing) { p .good { "Nothing is wrong that an alert knows of." } }
            (list(&firing, ROWS, may_operate))
            (silence::list(&silences, may_operate))
            @if !is_empty(&others) { h2 { "Over, or silenced" } (list(&others, ROWS, false)) }
        }
    };
    Ok(visitor.page("Alerts", "/alerts", &content))
}

/// Alerts, the most urgent first as the API has them.
pub(super) fn list(answer: &Value, most: usize, may_silence: bool) -> Markup {
    let alerts = answer["alerts"].as_array().map_or(&[][..], Vec::as_slice);
    let found = answer["found"].as_u64().and_then(|found| usize::try_from(found).ok()).unwrap_or(alerts.len());
    let (items, shown) = layout::fitting(alerts.iter().take(most).map(|alert| item(alert, may_silence)), BYTES);
    html! {
        @if !alerts.is_empty() {
            ul .alerts { (items) }
            @if found > shown { p .quiet { (found - shown) " more. " a href="/alerts" { "All alerts" } ": " code { "sluicegate alerts" } } }
        }
    }
}

fn item(alert: &Value, may_silence: bool) -> Markup {
    let text = |name: &str, most: usize| show::text(alert[name].as_str().unwrap_or_default(), most);
    html! { li {
        p {
            (show::state(alert["severity"].as_str().unwrap_or("warning"))) " " strong { (text("summary", 400)) } " "
            span .quiet { (show::state(alert["state"].as_str().unwrap_or_default())) ", since " (show::ago(&alert["since"])) }
            @if let Some(model) = alert["model"].as_str() { " · " a href=(format!("/models/{}", show::escaped(model))) { (show::text(model, 130)) } }
            @if may_silence { " · " a href=(silence::link(alert)) { "Silence" } }
        }
        p { span .quiet { "How sure: " } (with_code(alert["how_sure"].as_str().unwrap_or("–"))) }
        @if !alert["change_before"].is_null() { p { span .quiet { "The change before it: " } (change(&alert["change_before"])) } }
        p { span .quiet { "What to do: " } (with_code(alert["what_to_do"].as_str().unwrap_or("–"))) }
    } }
}

/// Commands stand in backticks.
pub(super) fn with_code(text: &str) -> Markup {
    html! {
        @for (index, part) in text.split('`').take(40).enumerate() {
            @if index % 2 == 1 { code { (show::text(part, 300)) } } @else { (show::text(part, 600)) }
        }
    }
}

/// An event of the audit trail, in words.
fn change(event: &Value) -> Markup {
    html! {
        (show::text(&event["action"].as_str().unwrap_or("a change").replace('_', " "), 60)) " by "
        strong { (show::text(event["actor"].as_str().unwrap_or("–"), 80)) } ", " (show::ago(&event["ts"]))
        @if let Some(reason) = event["reason"].as_str() { ": " (show::text(reason, 300)) }
    }
}
