//! Silencing alerts, and ending a silence: each shows first which alerts it concerns.

use super::api::{ApiRequest, Problem};
use super::form::Posted;
use super::{Asked, Console, Fields, NoPage, Visitor, alerts, layout, session, show};
use crate::access::Pattern;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::{SignedDuration, Timestamp};
use maud::{Markup, html};
use serde_json::{Value, json};
use std::sync::Arc;

/// How long a silence lasts, as the form and the command line have it.
const TIMES: [(&str, i64, &str); 5] =
    [("1h", 1, "1 hour"), ("4h", 4, "4 hours"), ("12h", 12, "12 hours"), ("1d", 24, "1 day"), ("7d", 7 * 24, "7 days")];
const MATCHED: [&str; 3] = ["rule", "model", "version"];
/// Alerts that are listed.
const ROWS: usize = 20;
/// Of the list of silences.
const BYTES: usize = 16_000;

pub(super) async fn preview(visitor: Visitor, Query(fields): Asked) -> Result<Response, NoPage> {
    Ok(page(&visitor, &fields, None).await)
}

pub(super) async fn perform(
    State(console): State<Arc<Console>>,
    visitor: Visitor,
    headers: HeaderMap,
    Posted(fields): Posted,
) -> Result<Response, NoPage> {
    session::check(&console, session::of(&headers).as_deref(), &fields)?;
    if field(&fields, "step") == "preview" {
        return Ok(page(&visitor, &fields, None).await);
    }
    let hours = TIMES.iter().find(|(time, ..)| *time == field(&fields, "for")).map(|(_, hours, _)| *hours);
    let until = hours.and_then(|hours| Timestamp::now().checked_add(SignedDuration::from_hours(hours)).ok());
    let Some(until) = until else {
        let problem = Problem::of(StatusCode::BAD_REQUEST, "the time: expected one of the list");
        return Ok(page(&visitor, &fields, Some(&problem)).await);
    };
    let body = json!({"matcher": matcher(&fields), "until": until.to_string(), "reason": field(&fields, "reason")});
    let path = "/api/v1/alerts/silences".to_owned();
    let request = ApiRequest { method: Method::POST, path, body: Some(body), if_match: None };
    match visitor.console.api.send(&visitor.credentials, request).await {
        Ok(_) => Ok(super::to("/alerts?done=silence")),
        Err(problem) => Ok(page(&visitor, &fields, Some(&problem)).await),
    }
}

fn field<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).map_or("", |text| text.trim())
}

fn matcher(fields: &Fields) -> Value {
    let given = MATCHED.iter().map(|name| (*name, field(fields, name))).filter(|(_, value)| !value.is_empty());
    given.map(|(name, value)| (name.to_owned(), Value::from(value))).collect::<serde_json::Map<_, _>>().into()
}

/// Whether an alert fits what is given: all of it must.
fn fits(alert: &Value, matcher: &Value) -> bool {
    let same = |name: &str| matcher[name].is_null() || alert[name] == matcher[name];
    let model = matcher["model"].as_str().is_none_or(|pattern| {
        let pattern: Option<Pattern> = pattern.parse().ok();
        alert["model"].as_str().is_some_and(|model| pattern.is_some_and(|pattern| pattern.fits(model)))
    });
    same("rule") && same("version") && model
}

/// What a silence is about, in words.
fn words(matcher: &Value) -> String {
    let given = MATCHED.iter().filter_map(|name| Some(format!("{name} {}", matcher[*name].as_str()?)));
    let words = given.collect::<Vec<_>>().join(", ");
    show::text(&words, 300)
}

/// The link that begins a silence of alerts like this one.
pub(super) fn link(alert: &Value) -> String {
    let given = MATCHED.iter().filter_map(|name| Some(format!("{name}={}", show::escaped(alert[*name].as_str()?))));
    format!("/alerts/silence?{}", given.collect::<Vec<_>>().join("&"))
}

async fn page(visitor: &Visitor, fields: &Fields, problem: Option<&Problem>) -> Response {
    let firing = visitor.try_get("/api/v1/alerts?state=firing").await.unwrap_or_default();
    let matcher = matcher(fields);
    let is_empty = matcher.as_object().is_some_and(serde_json::Map::is_empty);
    let all = firing["alerts"].as_array().into_iter().flatten();
    let fitting: Vec<Value> = all.filter(|alert| !is_empty && fits(alert, &matcher)).cloned().collect();
    let time = Some(field(fields, "for")).filter(|time| !time.is_empty()).unwrap_or("4h");
    let content = html! {
        p { a href="/alerts" { "Alerts" } }
        h1 { "Silence alerts" }
        p { "Nobody is told of alerts that fit, until the time is over. They still stand on the page of alerts." }
        @if let Some(problem) = problem { (layout::complaint(problem)) }
        form .fields method="post" action="/alerts/silence" {
            input type="hidden" name="csrf" value=(visitor.csrf);
            (input("rule", "Rule", fields))
            (input("model", "Model, or a pattern such as fraud-*", fields))
            (input("version", "Version", fields))
            p {
                label for="for" { "For" }
                select #for name="for" { @for (value, _, words) in TIMES { option value=(value) selected[value == time] { (words) } } }
            }
            p {
                label for="reason" { "Reason, for the audit trail" }
                input #reason name="reason" required maxlength="1000" autocomplete="off" autofocus value=(field(fields, "reason"));
            }
            p .actions {
                button .main { "Silence now" }
                button name="step" value="preview" formnovalidate { "Show which alerts fit" }
                " " a href="/alerts" { "Cancel" }
            }
        }
        h2 { "Alerts that fit now" }
        @if is_empty { p .quiet { "Name a rule, a model or a version." } }
        @else if fitting.is_empty() { p .quiet { "None that fires now." } }
        @else { (alerts::list(&json!({ "alerts": fitting }), ROWS, false)) }
        (layout::command(&command(&matcher, time)))
    };
    let status = problem.map_or(StatusCode::OK, |problem| problem.status);
    (status, visitor.page("Silence alerts", "/alerts", &content)).into_response()
}

fn input(name: &str, label: &str, fields: &Fields) -> Markup {
    html! { p {
        label for=(name) { (label) }
        input id=(name) name=(name) value=(field(fields, name)) maxlength="256" autocomplete="off" spellcheck="false";
    } }
}

fn command(matcher: &Value, time: &str) -> String {
    let given = MATCHED.iter().filter_map(|name| Some(format!(" --{name} {}", show::word(matcher[*name].as_str()?))));
    format!("sluicegate silence{} --for {} --reason …", given.collect::<String>(), show::word(time))
}

/// Those that hold, with a link to end each.
pub(super) fn list(silences: &Value, may_operate: bool) -> Markup {
    let silences = silences["silences"].as_array().map_or(&[][..], Vec::as_slice);
    let rows = silences.iter().map(|silence| {
        let end = format!("/alerts/silences/{}/end", show::escaped(silence["id"].as_str().unwrap_or_default()));
        html! { tr {
            th scope="row" { (words(&silence["matcher"])) }
            td { (show::ago(&silence["until"])) }
            td { (show::text(silence["created_by"].as_str().unwrap_or("–"), 80)) }
            td { (show::text(silence["reason"].as_str().unwrap_or("–"), 300)) }
            @if may_operate { td { a href=(end) { "End" } } }
        } }
    });
    let (rows, shown) = layout::fitting(rows, BYTES);
    html! {
        @if !silences.is_empty() {
            h2 { "Silences" }
            table {
                thead { tr { th scope="col" { "Alerts of" } th scope="col" { "Ends" } th scope="col" { "By" } th scope="col" { "Reason" } @if may_operate { th scope="col" { "Actions" } } } }
                tbody { (rows) }
            }
            @if silences.len() > shown { p .quiet { (silences.len() - shown) " more. " code { "sluicegate silence --list" } " has all." } }
        }
    }
}

pub(super) async fn preview_end(visitor: Visitor, Path(id): Path<String>) -> Result<Response, NoPage> {
    end_page(&visitor, &id, None).await
}

pub(super) async fn end(
    State(console): State<Arc<Console>>,
    visitor: Visitor,
    headers: HeaderMap,
    Path(id): Path<String>,
    Posted(fields): Posted,
) -> Result<Response, NoPage> {
    session::check(&console, session::of(&headers).as_deref(), &fields)?;
    let path = format!("/api/v1/alerts/silences/{}", show::escaped(&id));
    let request = ApiRequest { method: Method::DELETE, path, body: None, if_match: None };
    match visitor.console.api.send(&visitor.credentials, request).await {
        Ok(_) => Ok(super::to("/alerts?done=end")),
        Err(problem) => end_page(&visitor, &id, Some(&problem)).await,
    }
}

async fn end_page(visitor: &Visitor, id: &str, problem: Option<&Problem>) -> Result<Response, NoPage> {
    let silences = visitor.get("/api/v1/alerts/silences").await?;
    let silence = silences["silences"].as_array().into_iter().flatten().find(|silence| silence["id"] == id);
    let gone = || visitor.no_page(Problem::of(StatusCode::NOT_FOUND, "this silence is over, or never was"));
    let silence = silence.ok_or_else(gone)?;
    let content = html! {
        p { a href="/alerts" { "Alerts" } }
        h1 { "End a silence" }
        @if let Some(problem) = problem { (layout::complaint(problem)) }
        p { "Alerts of " strong { (words(&silence["matcher"])) } " are silenced. When the silence ends, targets are told of those that still fire." }
        p .quiet { "It ends by itself " (show::ago(&silence["until"])) ". Begun by " (show::text(silence["created_by"].as_str().unwrap_or("–"), 80)) ", " (show::ago(&silence["created_at"])) ": " (show::text(silence["reason"].as_str().unwrap_or("–"), 300)) }
        form method="post" {
            input type="hidden" name="csrf" value=(visitor.csrf);
            p .actions { button .main { "End it now" } " " a href="/alerts" { "Cancel" } }
        }
        (layout::command(&format!("sluicegate silence --end {}", show::word(id))))
    };
    let status = problem.map_or(StatusCode::OK, |problem| problem.status);
    Ok((status, visitor.page("End a silence", "/alerts", &content)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_fits_when_all_that_is_given_fits() {
        let alert = json!({"rule": "drift", "model": "fraud-eu", "version": "3"});
        let cases = [
            (json!({"rule": "drift"}), true),
            (json!({"rule": "decay"}), false),
            (json!({"model": "fraud-*", "version": "3"}), true),
            (json!({"model": "fraud-*", "version": "4"}), false),
            (json!({"model": "fraud"}), false),
        ];
        for (matcher, expected) in cases {
            assert_eq!(fits(&alert, &matcher), expected, "{matcher}");
        }
        assert!(!fits(&json!({"rule": "disk_full", "model": null}), &json!({"model": "*"})), "it is about no model");
        assert_eq!(link(&alert), "/alerts/silence?rule=drift&model=fraud%2Deu&version=3");
        assert_eq!(words(&json!({"rule": "drift", "model": null})), "rule drift");
    }
}
