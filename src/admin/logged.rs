//! Export and replay of logged predictions, for operators.

use super::Admin;
use super::body::{JsonBody, Members};
use super::caller::Caller;
use super::child::{Output, Piece};
use super::contents;
use super::error::ErrorResponse;
use super::extract::{Operator, Target};
use super::schemas::Problem;
use crate::ledger::{Action, Note};
use crate::model::{Code, Failure, Version};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use utoipa::ToSchema;

/// How many exports, and how many replays, run at the same time.
static EXPORTS: Semaphore = Semaphore::const_new(2);
static REPLAYS: Semaphore = Semaphore::const_new(1);
/// The longest export and replay.
const LONGEST: Duration = Duration::from_hours(1);
/// The most bytes of the result of a replay.
const MAX_RESULT: usize = 64 << 20;
/// The most entries of a list, and bytes of a text.
const MAX_ITEMS: usize = 100;
const MAX_TEXT: usize = 200;

/// The body of an export.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body; it is read member by member")]
pub(super) struct ExportRequest {
    /// `parquet` or `csv`.
    format: String,
    /// Only records from this time on: RFC 3339, or a date.
    #[schema(required = false)]
    from: Option<String>,
    /// Only records before this time.
    #[schema(required = false)]
    to: Option<String>,
    #[schema(required = false)]
    versions: Vec<String>,
    #[schema(required = false)]
    arms: Vec<String>,
    /// `primary`, `pinned` or `shadow`. Absent: primary and pinned.
    #[schema(required = false)]
    roles: Vec<String>,
    /// Leave out records without a label.
    #[schema(required = false)]
    require_label: bool,
    /// At most this many rows, the oldest first.
    #[schema(required = false)]
    limit: Option<u64>,
}

/// The body of a replay.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body; it is read member by member")]
pub(super) struct ReplayRequest {
    /// The version to run the requests through.
    version: String,
    #[schema(required = false)]
    from: Option<String>,
    #[schema(required = false)]
    to: Option<String>,
    /// Only records that these versions answered.
    #[schema(required = false)]
    answered_by: Vec<String>,
    #[schema(required = false)]
    arms: Vec<String>,
    /// Absent: primary.
    #[schema(required = false)]
    roles: Vec<String>,
    /// At most this many requests, the oldest first.
    #[schema(required = false)]
    limit: Option<u64>,
    #[schema(required = false)]
    rtol: Option<f64>,
    #[schema(required = false)]
    atol: Option<f64>,
    /// Conditions, such as `accuracy>=champion-0.01`.
    #[schema(required = false)]
    gates: Vec<String>,
}

/// Export logged predictions
///
/// Joined with their latest feedback, as the command `export` writes them. The file is sent while it is made, by a process of the lowest priority. It ends
/// when the client goes. The audit trail has who exported what. A stream that breaks off is not a whole file.
#[utoipa::path(
    post, path = "/api/v1/models/{model}/export", operation_id = "export_predictions", tag = "quality",
    params(("model" = String, Path)),
    request_body = ExportRequest,
    responses(
        (status = 200, description = "The file", content(
            (Vec<u8> = "application/vnd.apache.parquet"),
            (String = "text/csv"),
        )),
        (status = 400, description = "The body is wrong", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
        (status = 409, description = "No prediction matches", body = Problem),
        (status = 429, description = "Two other exports are in progress", body = Problem),
        (status = 504, description = "It took too long", body = Problem),
    )
)]
pub(super) async fn export(
    State(admin): State<Arc<Admin>>,
    target: Target,
    Operator(actor): Operator,
    body: JsonBody,
) -> Result<Response, ErrorResponse> {
    let model = target.model()?;
    target.entry(&admin.reader.snapshot())?;
    let asked = body.value.clone();
    let mut members = Members::of(body, r#"{"format":"parquet"}"#)?;
    let format = members.take("format");
    let media = match format.as_ref().and_then(Value::as_str) {
        Some("parquet") => "application/vnd.apache.parquet",
        Some("csv") => "text/csv",
        _ => {
            members.complain("format", "\"parquet\" or \"csv\"", format.as_ref());
            ""
        }
    };
    let mut arguments: Vec<String> = vec!["export".to_owned(), "--output=-".to_owned()];
    arguments.extend(format.as_ref().and_then(Value::as_str).map(|format| format!("--format={format}")));
    text(&mut members, "from", "--from", &mut arguments);
    text(&mut members, "to", "--to", &mut arguments);
    list(&mut members, "versions", "--version", &mut arguments);
    list(&mut members, "arms", "--arm", &mut arguments);
    list(&mut members, "roles", "--role", &mut arguments);
    if members.flag("require_label") {
        arguments.push("--require-label".to_owned());
    }
    count(&mut members, &mut arguments);
    members.finish()?;
    let permit = admitted(&EXPORTS, "exports")?;
    common(&admin, model.as_str(), &mut arguments);
    let note = Note {
        model: Some(model),
        actor: actor.0,
        action: Action::Export,
        reason: None,
        before: None,
        after: asked.map(|asked| asked.to_string()),
    };
    admin.handle.note(note).await?;
    let mut process = admin.offline.start(&arguments)?;
    // An export that fails before its first bytes, as nothing matches, has an error as its answer.
    let first = match process.next(LONGEST).await? {
        Some(Piece::Output(first)) => Some(first),
        Some(Piece::Failed { code, said }) => return Err(admin.offline.failure(code, &said, &admin.models_dir).into()),
        None => None,
    };
    let until = Box::pin(tokio::time::sleep(LONGEST));
    let output = Output { first, process, _permit: permit, until };
    Ok(([(CONTENT_TYPE, media)], Body::new(output)).into_response())
}

/// Replay logged requests
///
/// Runs logged requests through a version, in a process of the lowest priority, and compares the answers with the logged ones: the result of the command
/// `replay --json`. It ends when the client goes. `passed` says whether all gates passed. The audit trail has who asked for what.
#[utoipa::path(
    post, path = "/api/v1/models/{model}/replay", operation_id = "replay_predictions", tag = "quality",
    params(("model" = String, Path)),
    request_body = ReplayRequest,
    responses(
        (status = 200, description = "The comparison, and the verdict of each gate", body = Value),
        (status = 400, description = "The body is wrong", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
        (status = 409, description = "No prediction matches, or the version does not load", body = Problem),
        (status = 429, description = "Another replay is in progress", body = Problem),
        (status = 504, description = "It took too long", body = Problem),
    )
)]
pub(super) async fn replay(
    State(admin): State<Arc<Admin>>,
    target: Target,
    Caller(caller): Caller,
    body: JsonBody,
) -> Result<Json<Value>, ErrorResponse> {
    let model = target.model()?;
    target.entry(&admin.reader.snapshot())?;
    let asked = body.value.clone();
    let mut members = Members::of(body, r#"{"version":"3"}"#)?;
    let version: Option<Version> = members.version();
    let mut arguments: Vec<String> = vec!["replay".to_owned(), "--json".to_owned()];
    arguments.extend(version.map(|version| format!("--version={version}")));
    text(&mut members, "from", "--from", &mut arguments);
    text(&mut members, "to", "--to", &mut arguments);
    list(&mut members, "answered_by", "--answered-by", &mut arguments);
    list(&mut members, "arms", "--arm", &mut arguments);
    list(&mut members, "roles", "--role", &mut arguments);
    list(&mut members, "gates", "--gate", &mut arguments);
    count(&mut members, &mut arguments);
    for name in ["rtol", "atol"] {
        match members.take(name) {
            None => {}
            Some(Value::Number(number)) if number.as_f64().is_some_and(|n| n >= 0.0) => {
                arguments.push(format!("--{name}={number}"));
            }
            Some(other) => members.complain(name, "a number of at least 0", Some(&other)),
        }
    }
    members.finish()?;
    let _permit = admitted(&REPLAYS, "replays")?;
    // The result quotes the answers that differ most.
    contents::note_of_several(&admin, &caller, &model, json!({ "by": "replay", "asked": asked })).await?;
    common(&admin, model.as_str(), &mut arguments);
    arguments.insert(arguments.len() - 2, format!("--models={}", admin.models_dir.display()));
    let process = admin.offline.start(&arguments)?;
    let printed = match process.whole(MAX_RESULT, LONGEST).await? {
        Ok(printed) => printed,
        // A gate that fails has a result and the exit code 1.
        Err((Some(1), _, printed)) if printed.starts_with(b"{") => printed,
        Err((code, said, _)) => return Err(admin.offline.failure(code, &said, &admin.models_dir).into()),
    };
    let result = serde_json::from_slice(&printed).map_err(|e| {
        Failure::new(Code::Internal, "the result of the replay cannot be read").with_internal(e.to_string())
    })?;
    Ok(Json(result))
}

fn admitted(places: &'static Semaphore, what: &str) -> Result<SemaphorePermit<'static>, Failure> {
    let full = |_| {
        Failure::new(Code::TooManyRequests, format!("other {what} are in progress, as many as may be; try again later"))
    };
    places.try_acquire().map_err(full)
}

/// The arguments that every command has. The model stands last.
fn common(admin: &Admin, model: &str, arguments: &mut Vec<String>) {
    arguments.push("--for-server".to_owned());
    arguments.push(format!("--data-dir={}", admin.offline.data_dir.display()));
    arguments.extend(["--".to_owned(), model.to_owned()]);
}

fn text(members: &mut Members, name: &'static str, option: &str, arguments: &mut Vec<String>) {
    match members.take(name) {
        None => {}
        Some(Value::String(text)) if is_argument(&text) => arguments.push(format!("{option}={text}")),
        Some(other) => members.complain(name, &format!("a text of at most {MAX_TEXT} bytes"), Some(&other)),
    }
}

/// Whether a text can be given to another program.
fn is_argument(text: &str) -> bool {
    text.len() <= MAX_TEXT && !text.contains('\0')
}

fn list(members: &mut Members, name: &'static str, option: &str, arguments: &mut Vec<String>) {
    let expected = format!("a list of at most {MAX_ITEMS} texts of at most {MAX_TEXT} bytes");
    let Some(value) = members.take(name) else { return };
    let texts: Option<Vec<&str>> = value.as_array().and_then(|items| items.iter().map(Value::as_str).collect());
    match texts.filter(|texts| texts.len() <= MAX_ITEMS && texts.iter().all(|text| is_argument(text))) {
        Some(texts) => arguments.extend(texts.iter().map(|text| format!("{option}={text}"))),
        None => members.complain(name, &expected, Some(&json!(value))),
    }
}

fn count(members: &mut Members, arguments: &mut Vec<String>) {
    match members.take("limit") {
        None => {}
        Some(Value::Number(number)) if number.as_u64().is_some() => arguments.push(format!("--limit={number}")),
        Some(other) => members.complain("limit", "a whole number of at least 0", Some(&other)),
    }
}
