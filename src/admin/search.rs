//! Requests of the prediction log, for people: a list, one of them, and what running it again gives.
//!
//! The log is read by an offline command of this program, in a process of its own (`child.rs`): at low priority, for a limited time, and only as long as the
//! client waits.

use super::Admin;
use super::body::{JsonBody, Members};
use super::caller::Caller;
use super::child::ROUTE_KEY;
use super::contents;
use super::error::ErrorResponse;
use super::extract::{Parameters, Target};
use super::lineage::Training;
use super::lines::{self, Lines};
use super::schemas::Problem;
use crate::access::Identity;
use crate::model::{Code, Failure, ModelName, RequestId, Version};
use crate::registry::Entry;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use utoipa::ToSchema;

/// How many searches run at the same time, and how many requests are run again. More of them wait.
static SEARCHES: Semaphore = Semaphore::const_new(2);
static RUNS: Semaphore = Semaphore::const_new(1);
/// The longest wait for others.
const WAIT: Duration = Duration::from_secs(5);
/// The longest search, and the longest run. A search ends by itself after ten seconds, and says where to go on.
const LONGEST_SEARCH: Duration = Duration::from_secs(30);
const LONGEST_RUN: Duration = Duration::from_mins(2);
/// The most bytes of a result.
const MAX_RESULT: usize = 128 << 20;
/// The most bytes of a text that is looked for.
const MAX_TEXT: usize = RequestId::MAX_BYTES;
/// The most requests of a page, and elements of a tensor.
const MAX_REQUESTS: u32 = 1000;
const MAX_ELEMENTS: u32 = 100_000;

/// The body of a request that is run again.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body; it is read member by member")]
pub(super) struct ReproduceRequest {
    /// The request's id.
    request_id: String,
}

/// The body of a request that is explained.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body; it is read member by member")]
pub(super) struct ExplainRequest {
    /// The request's id.
    request_id: String,
    /// The row of the request, counted from 0. Absent: 0.
    #[schema(required = false)]
    row: u64,
    /// The output to explain. Absent: the first one of floating-point numbers.
    #[schema(required = false)]
    output: Option<String>,
    /// Its element within a row. Absent: the largest one.
    #[schema(required = false)]
    element: Option<u64>,
}

/// List logged requests
///
/// The newest first, without their tensors, a page at a time. A search takes at most about ten seconds; `next` says where the next page begins, and null that
/// the whole log was searched. Damaged files are left out, and named in `not_read`. Who is no operator of the model gets no route keys, and no words about
/// differences (`contents` is `withheld`). With `accept: application/x-ndjson` each request is a line that is sent as soon as it is found:
/// `{"begin":{"model","contents"}}`, `{"request":{…}}` for each, `{"searching":true}` while nothing is found, and at last `{"end":{"next","ended",…}}`; a
/// client that goes ends the search.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/requests", operation_id = "list_requests", tag = "requests",
    params(
        ("model" = String, Path),
        ("request_id" = Option<String>, Query, description = "Only this request; answers of all roles"),
        ("route_key" = Option<String>, Query, description = "Only requests with this key, also where it is stored as a hash; for operators"),
        ("since" = Option<String>, Query, description = "Only requests at or after this time: RFC 3339, or a date in UTC"),
        ("until" = Option<String>, Query, description = "Only requests before this time"),
        ("version" = Option<String>, Query, description = "Only answers of this version"),
        ("arm" = Option<String>, Query, description = "Only answers of this arm"),
        ("role" = Option<String>, Query, description = "primary, pinned or shadow; absent: primary and pinned"),
        ("status" = Option<String>, Query, description = "ok, error (anything else), or an error code"),
        ("slower_than" = Option<String>, Query, description = "Only requests that took longer, such as 250ms"),
        ("non_finite" = Option<bool>, Query, description = "Only requests with an output of NaN or infinity"),
        ("disagreed" = Option<bool>, Query, description = "Only answers of shadows that differ from the primary's"),
        ("rtol" = Option<f64>, Query, description = "With disagreed: the relative tolerance; absent: that of the model"),
        ("atol" = Option<f64>, Query, description = "With disagreed: the absolute tolerance; absent: that of the model"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "The largest number of requests; absent: 50"),
        ("after" = Option<String>, Query, description = "`next` of the page before"),
    ),
    responses(
        (status = 200, description = "A page of requests", content(
            (Value = "application/json"),
            (String = "application/x-ndjson"),
        )),
        (status = 400, description = "A parameter is wrong; the error names it", body = Problem),
        (status = 403, description = "A route key is looked for, and the caller is no operator of the model", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
        (status = 409, description = "The log cannot be read", body = Problem),
        (status = 429, description = "Other searches are in progress", body = Problem),
        (status = 504, description = "It took too long", body = Problem),
    )
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    Caller(caller): Caller,
    target: Target,
    mut parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response, ErrorResponse> {
    let model = target.model()?;
    let entry = Arc::clone(target.entry(&admin.reader.snapshot())?);
    let lines = lines::are_wanted(&headers);
    let mut arguments = vec!["requests".to_owned(), if lines { "--lines" } else { "--json" }.to_owned()];
    let texts = [
        ("request_id", "--request-id"),
        ("since", "--since"),
        ("until", "--until"),
        ("arm", "--arm"),
        ("role", "--role"),
        ("status", "--status"),
        ("slower_than", "--slower-than"),
        ("after", "--after"),
    ];
    for (name, option) in texts {
        arguments.extend(parameters.take(name, text).map(|text| format!("{option}={text}")));
    }
    let version =
        parameters.take("version", |text| text.parse::<Version>().map_err(|_| "a version, such as 3".to_owned()));
    arguments.extend(version.map(|version| format!("--version={version}")));
    let limit = parameters.take("limit", |text| number(text, 1, MAX_REQUESTS));
    arguments.extend(limit.map(|limit| format!("--limit={limit}")));
    if parameters.take("non_finite", flag) == Some(true) {
        arguments.push("--non-finite".to_owned());
    }
    let mut environment = Vec::new();
    let mut looked_by = Vec::new();
    if let Some(key) = parameters.take("route_key", text) {
        contents::check_key(&caller, &model)?;
        arguments.push(format!("--hashed-route-key={}", admin.log.hashed_route_key(&key)));
        environment.push((ROUTE_KEY, key));
        looked_by.push("route_key");
    }
    let disagreed = parameters.take("disagreed", flag) == Some(true);
    let tolerance = tolerance(&mut parameters, &entry);
    parameters.finish()?;
    if disagreed {
        arguments.push("--disagreed".to_owned());
        arguments.extend(tolerance);
        looked_by.push("disagreed");
    }
    let permit = admitted(&SEARCHES, "searches").await?;
    place(&admin, &mut arguments);
    arguments.extend(["--".to_owned(), model.to_string()]);
    let may_read = contents::may_read(&caller, &model);
    if may_read && !looked_by.is_empty() {
        // A key may be a person's, and words about a difference quote values.
        contents::note_of_several(&admin, &caller, &model, json!({ "by": "list", "found_by": looked_by })).await?;
    }
    if lines {
        let process = admin.offline.start_with(&arguments, &environment)?;
        let failure = |code: Option<i32>, said: &str| admin.offline.failure(code, said, &admin.models_dir);
        let lines = Lines::begin(process, permit, LONGEST_SEARCH, (model.as_str(), may_read), failure).await?;
        return Ok(([(CONTENT_TYPE, lines::MEDIA)], lines.body()).into_response());
    }
    let mut found = printed(&admin, &arguments, &environment, LONGEST_SEARCH).await?;
    found["contents"] = "shown".into();
    if !may_read {
        contents::leave_out_of_list(&mut found);
    }
    Ok(Json(found).into_response())
}

/// One logged request
///
/// All that the log has about it: inputs, the answers of all versions, feedback, where the version comes from, and the commands that run it again. Large
/// tensors are cut: `elements` says how many there are. Who is no operator of the model gets no contents: no elements, words about them, feedback or route
/// key (`contents` is `withheld`). The audit trail has who read which contents.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/requests/{request}", operation_id = "show_request", tag = "requests",
    params(
        ("model" = String, Path),
        ("request" = String, Path, description = "The request's id"),
        ("elements" = Option<u32>, Query, maximum = 100_000, description = "The largest number of elements of each tensor; absent: 1000"),
        ("rtol" = Option<f64>, Query, description = "How far a shadow's answer may differ: the relative tolerance; absent: that of the model"),
        ("atol" = Option<f64>, Query, description = "The absolute tolerance; absent: that of the model"),
    ),
    responses(
        (status = 200, description = "The request", body = Value),
        (status = 400, description = "A parameter is wrong; the error names it", body = Problem),
        (status = 404, description = "No model has this name, or the log has no such request", body = Problem),
        (status = 409, description = "The log cannot be read", body = Problem),
        (status = 429, description = "Other searches are in progress", body = Problem),
        (status = 504, description = "It took too long", body = Problem),
    )
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    Caller(caller): Caller,
    target: Target,
    mut parameters: Parameters,
) -> Result<Json<Value>, ErrorResponse> {
    let model = target.model()?;
    let entry = Arc::clone(target.entry(&admin.reader.snapshot())?);
    let id = id(target.request())?;
    let elements = parameters.take("elements", |text| number(text, 0, MAX_ELEMENTS));
    let tolerance = tolerance(&mut parameters, &entry);
    parameters.finish()?;
    let mut arguments = vec!["request".to_owned(), "--json".to_owned()];
    arguments.extend(elements.map(|elements| format!("--elements={elements}")));
    arguments.extend(tolerance);
    let _permit = admitted(&SEARCHES, "searches").await?;
    place(&admin, &mut arguments);
    arguments.extend(["--".to_owned(), model.to_string(), id.clone()]);
    let mut found = printed(&admin, &arguments, &[], LONGEST_SEARCH).await?;
    let predictions = found["predictions"].as_array_mut().map_or(&mut [][..], Vec::as_mut_slice);
    if predictions.is_empty() {
        let id: String = id.chars().take(200).collect();
        let damaged = match found["not_read"]["files"].as_u64() {
            None | Some(0) => String::new(),
            Some(1) => "; 1 file is damaged and was not read".to_owned(),
            Some(files) => format!("; {files} files are damaged and were not read"),
        };
        let words = format!("the log has no request of {model} with the id {id:?}{damaged}");
        return Err(Failure::new(Code::NotFound, words).into());
    }
    for prediction in predictions {
        prediction["lineage"] = lineage(&entry, prediction);
    }
    found["contents"] = "shown".into();
    if contents::may_read(&caller, &model) {
        contents::note(&admin, &caller, &model, &id, "show").await?;
    } else {
        contents::leave_out_of_request(&mut found);
    }
    Ok(Json(found))
}

/// Run a logged request again
///
/// With the model file that answered, alone, in a process of the lowest priority: the result of the command `reproduce --json`.
#[utoipa::path(
    post, path = "/api/v1/models/{model}/requests:reproduce", operation_id = "reproduce_request", tag = "requests",
    params(("model" = String, Path)),
    request_body = ReproduceRequest,
    responses(
        (status = 200, description = "The outcome for each answer with this id", body = Value),
        (status = 400, description = "The body is wrong", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
        (status = 409, description = "The log has no such request", body = Problem),
        (status = 429, description = "Another request is run again", body = Problem),
        (status = 504, description = "It took too long", body = Problem),
    )
)]
pub(super) async fn reproduce(
    State(admin): State<Arc<Admin>>,
    Caller(caller): Caller,
    target: Target,
    body: JsonBody,
) -> Result<Json<Value>, ErrorResponse> {
    let model = target.model()?;
    target.entry(&admin.reader.snapshot())?;
    let mut members = Members::of(body, r#"{"request_id":"order-1234"}"#)?;
    let id = request_id(&mut members);
    members.finish()?;
    let again = Again { model: &model, verb: "reproduce", options: Vec::new(), id: id.unwrap_or_default() };
    again.run(&admin, &caller).await
}

/// Explain a logged answer
///
/// Which columns of a row the answer came from, by Shapley values: the result of the command `explain --json`, in a process of the lowest priority.
#[utoipa::path(
    post, path = "/api/v1/models/{model}/requests:explain", operation_id = "explain_request", tag = "requests",
    params(("model" = String, Path)),
    request_body = ExplainRequest,
    responses(
        (status = 200, description = "The part of each column", body = Value),
        (status = 400, description = "The body is wrong", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
        (status = 409, description = "The log has no such request, or it cannot be explained", body = Problem),
        (status = 429, description = "Another request is run again", body = Problem),
        (status = 504, description = "It took too long", body = Problem),
    )
)]
pub(super) async fn explain(
    State(admin): State<Arc<Admin>>,
    Caller(caller): Caller,
    target: Target,
    body: JsonBody,
) -> Result<Json<Value>, ErrorResponse> {
    let model = target.model()?;
    target.entry(&admin.reader.snapshot())?;
    let mut members = Members::of(body, r#"{"request_id":"order-1234","row":0}"#)?;
    let id = request_id(&mut members);
    let mut options = Vec::new();
    for (name, option) in [("row", "--row"), ("element", "--element")] {
        match members.take(name) {
            None => {}
            Some(Value::Number(number)) if number.as_u64().is_some_and(|n| u32::try_from(n).is_ok()) => {
                options.push(format!("{option}={number}"));
            }
            Some(other) => members.complain(name, "a whole number of at least 0", Some(&other)),
        }
    }
    match members.take("output") {
        None => {}
        Some(Value::String(name)) if text(&name).is_ok() => options.push(format!("--output={name}")),
        Some(other) => members.complain("output", "the name of an output", Some(&other)),
    }
    members.finish()?;
    let again = Again { model: &model, verb: "explain", options, id: id.unwrap_or_default() };
    again.run(&admin, &caller).await
}

/// A logged request that is run again.
struct Again<'a> {
    model: &'a ModelName,
    verb: &'static str,
    options: Vec<String>,
    id: String,
}

impl Again<'_> {
    /// Runs the command that loads the model file that answered. Its result quotes the request, so the audit trail has who asked.
    async fn run(self, admin: &Admin, caller: &Identity) -> Result<Json<Value>, ErrorResponse> {
        let Again { model, verb, options, id } = self;
        let _permit = admitted(&RUNS, "requests that are run again").await?;
        contents::note(admin, caller, model, &id, verb).await?;
        let mut arguments = vec![verb.to_owned(), "--json".to_owned()];
        arguments.extend(options);
        place(admin, &mut arguments);
        arguments.push(format!("--models={}", admin.models_dir.display()));
        arguments.extend([format!("--model={model}"), "--".to_owned(), id]);
        Ok(Json(printed(admin, &arguments, &[], LONGEST_RUN).await?))
    }
}

/// What a command prints as JSON. A command that ends with the code 1 may have a result too: the request was not reproduced.
async fn printed(
    admin: &Admin,
    arguments: &[String],
    environment: &[(&str, String)],
    longest: Duration,
) -> Result<Value, Failure> {
    let process = admin.offline.start_with(arguments, environment)?;
    let printed = match process.whole(MAX_RESULT, longest).await? {
        Ok(printed) => printed,
        Err((Some(1), _, printed)) if printed.starts_with(b"{") => printed,
        Err((code, said, _)) => return Err(admin.offline.failure(code, &said, &admin.models_dir)),
    };
    serde_json::from_slice(&printed)
        .map_err(|e| Failure::new(Code::Internal, "the result cannot be read").with_internal(e.to_string()))
}

/// Where the command finds the log.
fn place(admin: &Admin, arguments: &mut Vec<String>) {
    arguments.push("--for-server".to_owned());
    arguments.push(format!("--data-dir={}", admin.offline.data_dir.display()));
}

async fn admitted(places: &'static Semaphore, what: &str) -> Result<SemaphorePermit<'static>, Failure> {
    let full = || {
        Failure::new(Code::TooManyRequests, format!("other {what} are in progress, as many as may be; try again later"))
    };
    match tokio::time::timeout(WAIT, places.acquire()).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) | Err(_) => Err(full()),
    }
}

/// Where the version that answered stands now, and what its author says about its training.
fn lineage(entry: &Entry, prediction: &Value) -> Value {
    let version = prediction["version"].as_str().and_then(|version| version.parse::<Version>().ok());
    let Some(status) = version.and_then(|version| entry.versions().get(&version)) else {
        return json!({ "state": null, "same_file": null, "training": null });
    };
    let facts = status.facts.as_deref();
    json!({
        "state": status.state,
        // A version that was not loaded since the server started has no known file.
        "same_file": facts.map(|facts| prediction["sha256"] == facts.sha256.as_str()),
        "training": facts.map(|facts| Training::of(&facts.origin.lineage)),
    })
}

/// The options of the tolerance: those that were asked for, else those of the model.
fn tolerance(parameters: &mut Parameters, entry: &Entry) -> Vec<String> {
    let given = |text: &str| {
        let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
        number.ok_or_else(|| "a number of at least 0".to_owned())
    };
    let of_model = entry.tolerance();
    let rtol = parameters.take("rtol", given).unwrap_or(of_model.rtol);
    let atol = parameters.take("atol", given).unwrap_or(of_model.atol);
    vec![format!("--rtol={rtol}"), format!("--atol={atol}")]
}

fn request_id(members: &mut Members) -> Option<String> {
    match members.take("request_id") {
        Some(Value::String(given)) if !given.is_empty() && text(&given).is_ok() => Some(given),
        other => {
            members.complain("request_id", &format!("a text of at most {MAX_TEXT} bytes"), other.as_ref());
            None
        }
    }
}

/// The id in a path.
fn id(given: &str) -> Result<String, Failure> {
    text(given).map_err(|expected| Failure::new(Code::NotFound, format!("no request has this id: expected {expected}")))
}

/// A text that can be given to another program.
fn text(given: &str) -> Result<String, String> {
    if given.len() <= MAX_TEXT && !given.contains('\0') {
        return Ok(given.to_owned());
    }
    Err(format!("a text of at most {MAX_TEXT} bytes"))
}

fn flag(given: &str) -> Result<bool, String> {
    given.parse().map_err(|_| "true or false".to_owned())
}

fn number(given: &str, least: u32, most: u32) -> Result<u32, String> {
    let number = given.parse().ok().filter(|n| (least..=most).contains(n));
    number.ok_or_else(|| format!("a number from {least} to {most}"))
}
