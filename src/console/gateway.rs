//! Whether the gateway itself is well: its resources with their limits (`well.rs`), the prediction log, callers, tokens.

use super::{NoPage, Visitor, layout, show, well};
use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

/// Members of an object that are listed.
const MEMBERS: usize = 60;
/// Of such a list, and of the tokens.
const BYTES: usize = 16_000;
const BYTES_OF_TOKENS: usize = 24_000;
/// Of a value that is no text and no list of texts.
const LONGEST_JSON: usize = 5_000;

pub(super) async fn page(visitor: Visitor) -> Result<Response, NoPage> {
    let ready = visitor.get("/readyz").await?;
    let log = visitor.try_get("/api/v1/log").await.unwrap_or_default();
    let callers = visitor.try_get("/api/v1/callers").await.unwrap_or_default();
    let tokens = visitor.try_get("/api/v1/tokens").await.unwrap_or_default();
    let now = well::Now {
        gateway: visitor.try_get("/api/v1/gateway").await.unwrap_or_default(),
        alerts: visitor
            .try_get("/api/v1/alerts?state=firing,silenced&about=server&limit=100")
            .await
            .unwrap_or_default(),
        audit: visitor.try_get("/api/v1/audit/head").await.unwrap_or_default(),
        fleet: if visitor.console.fleet {
            visitor.try_get("/api/v1/fleet").await.unwrap_or_default()
        } else {
            Value::Null
        },
        ready: &ready,
        log: &log,
        tokens: &tokens,
    };
    let content = html! {
        h1 { "Gateway " (show::state(if ready["ready"] == true { "ready" } else { "failed" })) }
        div data-live="gateway" {
            @for warning in ready["warnings"].as_array().into_iter().flatten().take(20) { p .warn { (show::text(warning.as_str().unwrap_or_default(), 500)) } }
            @for model in ready["unserved"].as_array().into_iter().flatten().take(20) { p .bad { (line(model)) } }
            (now.section())
            section aria-labelledby="log-title" {
                h2 #log-title { "Prediction log" }
                @if log.is_null() { p .quiet { "You may not see it, or it is off." } } @else { (facts(&log)) }
            }
            @if let Some(list) = callers["callers"].as_array() {
                section aria-labelledby="callers-title" {
                    h2 #callers-title { "Callers" }
                    @if list.is_empty() { p .quiet { "Nobody has sent a request lately." } } @else { table {
                        thead { tr { th scope="col" { "Caller" } th scope="col" .number { "In flight" } th scope="col" .number { "Last minute" } th scope="col" .number { "Refused" } th scope="col" { "Priority" } } }
                        tbody { @for caller in list.iter().take(50) { tr {
                            th scope="row" { (show::text(caller["caller"].as_str().unwrap_or_default(), 130)) }
                            td .number { (show::number_of(&caller["in_flight"])) }
                            td .number { (show::number_of(&caller["last_minute"])) }
                            td .number { (show::number_of(&caller["refused_last_minute"])) }
                            td { (show::text(caller["priority"].as_str().unwrap_or_default(), 20)) }
                        } } }
                    } }
                }
            }
        }
        @if let Some(list) = tokens["tokens"].as_array() {
            section aria-labelledby="tokens-title" {
                h2 #tokens-title { "Tokens" }
                @if list.is_empty() { p .quiet { "There are none. " code { "sluicegate token create --name N --role viewer" } " makes one." } } @else {
                    @let (rows, shown) = layout::fitting(list.iter().map(token), BYTES_OF_TOKENS);
                    table {
                        thead { tr { th scope="col" { "Name" } th scope="col" { "Role" } th scope="col" { "Models" } th scope="col" { "Expires" } th scope="col" { "Last used" } } }
                        tbody { (rows) }
                    }
                    @if list.len() > shown { p .quiet { (list.len() - shown) " more. " code { "sluicegate token list" } " has all." } }
                }
            }
        }
    };
    Ok(visitor.page("Gateway", "/gateway", &content))
}

fn token(token: &Value) -> Markup {
    html! { tr {
        th scope="row" { (show::text(token["name"].as_str().unwrap_or_default(), 64)) }
        td { (show::text(token["role"].as_str().unwrap_or_default(), 20)) }
        td { (line(&token["models"])) }
        td { (show::ago(&token["expires_at"])) }
        td { (show::ago(&token["last_used"])) }
    } }
}

/// The members of an object, as a list of names and values.
pub(super) fn facts(value: &Value) -> Markup {
    let Value::Object(members) = value else { return html! { p .quiet { "Nothing is known." } } };
    let known = || members.iter().filter(|(_, value)| !value.is_null());
    let items = known().take(MEMBERS).map(|(name, value)| {
        html! {
            dt { (show::text(&name.replace('_', " "), 80)) }
            dd { @if is_bytes(name) { (show::bytes(value)) } @else if is_time(value) { (show::ago(value)) } @else { (line(value)) } }
        }
    });
    let (items, shown) = layout::fitting(items, BYTES);
    let more = known().count() - shown;
    html! {
        dl .facts { (items) }
        @if more > 0 { p .quiet { "And " (more) " more." } }
    }
}

fn is_bytes(name: &str) -> bool {
    name == "bytes" || name.ends_with("_bytes") || name == "disk_budget"
}

fn is_time(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.len() >= 20 && text.parse::<jiff::Timestamp>().is_ok())
}

/// A value on one line.
pub(super) fn line(value: &Value) -> Markup {
    match value {
        Value::Null => html! { "–" },
        Value::Bool(yes) => html! { (if *yes { "yes" } else { "no" }) },
        Value::Number(number) => html! { (number.as_f64().map(show::number).unwrap_or_default()) },
        Value::String(text) => html! { (show::text(text, 400)) },
        Value::Array(list) if list.iter().all(|item| !item.is_object() && !item.is_array()) => {
            let items: Vec<String> = list.iter().take(50).map(plain).collect();
            html! { (show::text(&items.join(", "), 600)) }
        }
        Value::Object(members) if members.values().all(|item| !item.is_object() && !item.is_array()) => {
            let items: Vec<String> = members
                .iter()
                .take(MEMBERS)
                .map(|(name, item)| format!("{}: {}", name.replace('_', " "), plain(item)))
                .collect();
            html! { (show::text(&items.join(" · "), 1000)) }
        }
        other => {
            html! { details { summary { "Show" } pre { (show::text(&serde_json::to_string_pretty(other).unwrap_or_default(), LONGEST_JSON)) } } }
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.as_f64().map(show::number).unwrap_or_default(),
        Value::Null => "–".to_owned(),
        other => other.to_string(),
    }
}
