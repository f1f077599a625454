//! Handlers of alerts, silences and targets.

use super::Admin;
use super::body::{JsonBody, Members};
use super::caller::Caller;
use super::error::ErrorResponse;
use super::extract::{Parameters, Target};
use super::schemas::Problem;
use crate::access::{Action, Identity, Pattern};
use crate::alerts::{self, AlertsError, LONGEST_SILENCE, Matcher, Rule};
use crate::ledger::{self, Note, rfc3339};
use crate::model::{Code, Failure, ModelName, Version};
use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;
use utoipa::ToSchema;

/// What fires, and what ended within the last week.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AlertList {
    /// Those that fire first, then those that ended, newest first; at most `limit`.
    alerts: Vec<AlertView>,
    /// How many the parameters fit; above the length of `alerts` where `limit` left some out.
    found: usize,
    /// How many fire and are not silenced, of all that the caller may see.
    firing: usize,
    silenced: usize,
    /// Findings for which there was no room: more than 5,000 fire.
    untracked: usize,
    /// Only for callers who may see all models.
    targets: Vec<TargetView>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AlertView {
    id: String,
    /// `version_failed`, `drift`, …
    rule: &'static str,
    #[schema(value_type = Option<String>)]
    model: Option<ModelName>,
    #[schema(value_type = Option<String>)]
    version: Option<Version>,
    /// What it is about, where a rule, a model and a version do not say it: the name of a token, a column, a guardrail.
    subject: Option<String>,
    /// `warning` or `critical`, as it was when the alert began.
    severity: &'static str,
    /// `firing`, `silenced` or `resolved`.
    state: &'static str,
    #[schema(format = DateTime)]
    since: String,
    /// Null while it fires.
    #[schema(format = DateTime)]
    until: Option<String>,
    summary: String,
    how_sure: String,
    /// The change of the audit trail just before it; it need not be the cause.
    change_before: Option<ChangeView>,
    what_to_do: String,
    /// A page of the console.
    link: String,
    /// Whether the targets know that it began.
    told: bool,
    /// The silence that holds it back.
    silence: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ChangeView {
    /// The number of the event.
    id: u64,
    #[schema(format = DateTime)]
    ts: String,
    actor: String,
    action: String,
    reason: Option<String>,
}

/// A target, without its address and its key.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TargetView {
    name: String,
    /// `webhook`, `alertmanager` or `slack`.
    kind: &'static str,
    /// Messages that wait; null when the outbox cannot be read.
    waiting: Option<usize>,
    /// Since the start: messages that were accepted, tries that failed, messages that were given up.
    sent: u64,
    failed: u64,
    dropped: u64,
    #[schema(format = DateTime)]
    last_sent: Option<String>,
    /// Why the last try failed; null after a success.
    last_error: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Silences {
    silences: Vec<SilenceView>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SilenceView {
    id: String,
    matcher: MatcherView,
    #[schema(format = DateTime)]
    until: String,
    reason: String,
    created_by: String,
    #[schema(format = DateTime)]
    created_at: String,
}

/// Which alerts: all that is given must fit.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MatcherView {
    rule: Option<&'static str>,
    /// A name or a pattern such as `fraud-*`.
    model: Option<String>,
    #[schema(value_type = Option<String>)]
    version: Option<Version>,
}

/// The body of a new silence.
#[derive(ToSchema)]
#[schema(as = SilenceRequest)]
#[expect(dead_code, reason = "the schema of what `read` reads")]
pub(super) struct SilenceRequest {
    /// At least one of `rule`, `model` (a name or a pattern) and `version`.
    #[schema(value_type = MatcherRequest)]
    matcher: Value,
    /// When it ends, at most a year from now.
    #[schema(format = DateTime)]
    until: String,
    reason: String,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of what `read` reads")]
pub(super) struct MatcherRequest {
    #[schema(required = false)]
    rule: Option<String>,
    #[schema(required = false)]
    model: Option<String>,
    #[schema(required = false)]
    version: Option<String>,
}

/// The body of a test.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of what `test` reads")]
pub(super) struct TestRequest {
    /// The name of the target.
    target: String,
}

/// What came of a test.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Tested {
    target: String,
    /// Whether the target accepted it.
    delivered: bool,
    error: Option<String>,
}

/// What is wrong now
///
/// The alerts that fire, those of the last week that ended, and the targets that are told.
#[utoipa::path(
    get, path = "/api/v1/alerts", operation_id = "list_alerts", tag = "alerts",
    params(
        ("state" = Option<String>, Query, description = "Only alerts in this state: firing, silenced or resolved; several with commas between them"),
        ("model" = Option<String>, Query, description = "Only alerts about this model"),
        ("about" = Option<String>, Query, description = "server: only alerts that are about no model"),
        ("limit" = Option<usize>, Query, description = "The largest number of alerts; absent: all"),
    ),
    responses(
        (status = 200, description = "Those that fire first", body = AlertList),
        (status = 400, description = "A parameter is wrong; the error names it", body = Problem),
    )
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    Caller(caller): Caller,
    mut parameters: Parameters,
) -> Result<Json<AlertList>, ErrorResponse> {
    let states = parameters.take("state", |text| {
        let known = |word: &str| ["firing", "silenced", "resolved"].into_iter().find(|state| *state == word);
        let states: Option<Vec<&'static str>> = text.split(',').map(known).collect();
        states.ok_or_else(|| "firing, silenced or resolved, or several of them such as silenced,resolved".to_owned())
    });
    let model: Option<ModelName> =
        parameters.take("model", |text| text.parse().map_err(|_| "the name of a model".to_owned()));
    let about_server = parameters.take("about", |text| (text == "server").then_some(()).ok_or("server".to_owned()));
    let limit = parameters.take("limit", |text| text.parse().map_err(|_| "a whole number of at least 0".to_owned()));
    let limit: usize = limit.unwrap_or(usize::MAX);
    parameters.finish()?;
    let sees = |model: Option<&ModelName>| caller.may(Action::View, model.map(ModelName::as_str));
    let (mut alerts, mut found, mut firing, mut silenced) = (Vec::new(), 0, 0, 0);
    let untracked = admin.alerts.visit(|alert, silence| {
        if !sees(alert.about.model.as_ref()) {
            return;
        }
        let state = state_of(alert, silence);
        firing += usize::from(state == "firing");
        silenced += usize::from(state == "silenced");
        let wanted = states.as_ref().is_none_or(|states| states.contains(&state))
            && model.as_ref().is_none_or(|model| alert.about.model.as_ref() == Some(model))
            && (about_server.is_none() || alert.about.model.is_none());
        found += usize::from(wanted);
        if wanted && alerts.len() < limit {
            alerts.push(AlertView::of(alert, silence));
        }
    });
    let targets =
        if sees(None) { admin.alerts.targets().into_iter().map(TargetView::of).collect() } else { Vec::new() };
    Ok(Json(AlertList { alerts, found, firing, silenced, untracked, targets }))
}

/// All silences
#[utoipa::path(
    get, path = "/api/v1/alerts/silences", operation_id = "list_silences", tag = "alerts",
    responses((status = 200, description = "Those that hold, in the order in which they were made", body = Silences))
)]
pub(super) async fn silences(State(admin): State<Arc<Admin>>, Caller(caller): Caller) -> Json<Silences> {
    let now = Timestamp::now();
    let all = admin.alerts.silences().into_iter().filter(|silence| silence.holds(now));
    let visible = all.filter(|silence| caller.may(Action::View, silence.matcher.model.as_deref()));
    Json(Silences { silences: visible.map(SilenceView::of).collect() })
}

/// Silence alerts
///
/// Nobody is told of alerts that fit, until the time is over. Alerts that were told before get their end. A caller who may operate only some
/// models names one of them.
#[utoipa::path(
    post, path = "/api/v1/alerts/silences", operation_id = "silence_alerts", tag = "alerts",
    request_body = SilenceRequest,
    responses(
        (status = 201, description = "The silence", body = SilenceView),
        (status = 400, description = "The body is wrong; all complaints at once", body = Problem),
        (status = 403, description = "The caller may not operate all models that it fits", body = Problem),
        (status = 409, description = "There are too many silences", body = Problem),
    )
)]
pub(super) async fn silence(
    State(admin): State<Arc<Admin>>,
    Caller(caller): Caller,
    body: JsonBody,
) -> Result<impl IntoResponse, ErrorResponse> {
    let (matcher, until, reason) = read(body)?;
    may_silence(&caller, &matcher)?;
    let by = caller.name.clone();
    let what = serde_json::json!({ "matcher": &matcher, "until": until.to_string() });
    note(&admin, by.clone(), ledger::Action::Silence, Some(reason.clone()), &what).await?;
    let alerts = admin.alerts.clone();
    let made = blocking(move || alerts.silence(matcher, until, reason, by)).await??;
    Ok((StatusCode::CREATED, Json(SilenceView::of(made))))
}

/// End a silence
///
/// Alerts that it held back, and that still fire, are told.
#[utoipa::path(
    delete, path = "/api/v1/alerts/silences/{silence}", operation_id = "end_silence", tag = "alerts",
    params(("silence" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It has ended", body = SilenceView),
        (status = 403, description = "The caller may not operate all models that it fits", body = Problem),
        (status = 404, description = "No silence has this id", body = Problem),
    )
)]
pub(super) async fn end_silence(
    State(admin): State<Arc<Admin>>,
    Caller(caller): Caller,
    target: Target,
) -> Result<Json<SilenceView>, ErrorResponse> {
    let id = target.silence().to_owned();
    if let Some(silence) = admin.alerts.silences().into_iter().find(|silence| silence.id == id) {
        may_silence(&caller, &silence.matcher)?;
        let what = serde_json::json!({ "matcher": &silence.matcher, "until": silence.until.to_string() });
        note(&admin, caller.name.clone(), ledger::Action::EndSilence, None, &what).await?;
    }
    let alerts = admin.alerts.clone();
    Ok(Json(SilenceView::of(blocking(move || alerts.end_silence(&id)).await??)))
}

/// The audit trail has who silenced what before it is so: alerts about the audit trail itself can be silenced.
async fn note(
    admin: &Admin,
    actor: String,
    action: ledger::Action,
    reason: Option<String>,
    what: &Value,
) -> Result<(), Failure> {
    let note = Note { model: None, actor, action, reason, before: None, after: Some(what.to_string()) };
    admin.handle.note(note).await.map(drop)
}

/// Send a test to a target
///
/// At once, and past the messages that wait.
#[utoipa::path(
    post, path = "/api/v1/alerts:test", operation_id = "test_target", tag = "alerts",
    request_body = TestRequest,
    responses(
        (status = 200, description = "Whether the target accepted it", body = Tested),
        (status = 400, description = "The body is wrong", body = Problem),
        (status = 404, description = "No target has this name", body = Problem),
    )
)]
pub(super) async fn test(State(admin): State<Arc<Admin>>, body: JsonBody) -> Result<Json<Tested>, ErrorResponse> {
    let mut members = Members::of(body, "{\"target\":\"ops\"}")?;
    let given = members.take("target");
    let target = given.as_ref().and_then(Value::as_str).map(str::to_owned);
    if target.is_none() {
        members.complain("target", "the name of a target", given.as_ref());
    }
    members.finish()?;
    let target = target.unwrap_or_default();
    let (alerts, name) = (admin.alerts.clone(), target.clone());
    let sent = blocking(move || alerts.test(&name)).await??;
    let error = sent.err();
    Ok(Json(Tested { target, delivered: error.is_none(), error }))
}

/// What an operator of some models may silence must fit those models only.
fn may_silence(caller: &Identity, matcher: &Matcher) -> Result<(), Failure> {
    let model = matcher.model.as_deref().filter(|model| !model.contains('*'));
    caller.check(Action::Operate, model)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let failed =
        |e: tokio::task::JoinError| Failure::new(Code::Internal, "an internal error").with_internal(e.to_string());
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

fn read(body: JsonBody) -> Result<(Matcher, Timestamp, String), Failure> {
    let mut members = Members::of(
        body,
        "{\"matcher\":{\"rule\":\"drift\",\"model\":\"fraud-*\"},\"until\":\"2026-12-01T08:00:00Z\",\"reason\":\"…\"}",
    )?;
    let given = members.take("matcher");
    let matcher = given.as_ref().map_or_else(|| Err(wrong_matcher("")), matcher);
    let matcher = match matcher {
        Ok(matcher) => Some(matcher),
        Err(expected) => {
            members.complain("matcher", &expected, given.as_ref());
            None
        }
    };
    let now = Timestamp::now();
    let last = now.checked_add(LONGEST_SILENCE).unwrap_or(Timestamp::MAX);
    let given = members.take("until");
    let until = given.as_ref().and_then(Value::as_str).and_then(|text| text.parse().ok());
    let until = until.filter(|until| now < *until && *until <= last);
    if until.is_none() {
        members.complain(
            "until",
            "a time in the future such as \"2026-12-01T08:00:00Z\", at most a year from now",
            given.as_ref(),
        );
    }
    let reason = members.reason();
    members.finish()?;
    let incomplete = || Failure::new(Code::Internal, "the request is incomplete");
    let reason: String = reason.ok_or_else(incomplete)?.chars().take(1000).collect();
    Ok((matcher.ok_or_else(incomplete)?, until.ok_or_else(incomplete)?, reason))
}

fn wrong_matcher(what: &str) -> String {
    format!(
        "an object with at least one of rule, model and version, such as {{\"rule\":\"drift\",\"model\":\"fraud-*\"}}{what}"
    )
}

fn matcher(value: &Value) -> Result<Matcher, String> {
    let Some(members) = value.as_object() else { return Err(wrong_matcher("")) };
    let mut matcher = Matcher::default();
    for (name, value) in members {
        let text = value.as_str();
        match (name.as_str(), value) {
            ("rule" | "model" | "version", Value::Null) => {}
            ("rule", _) => {
                let rule: Option<Rule> = text.and_then(|text| text.parse().ok());
                matcher.rule = Some(rule.ok_or_else(|| wrong_matcher(&format!(", with a rule of {}", Rule::names())))?);
            }
            ("model", _) => {
                let model = text.filter(|text| text.parse::<Pattern>().is_ok());
                matcher.model =
                    Some(model.ok_or_else(|| wrong_matcher(", with the name or pattern of a model"))?.to_owned());
            }
            ("version", _) => {
                let version = text.and_then(|text| text.parse().ok());
                matcher.version =
                    Some(version.ok_or_else(|| wrong_matcher(", with a version as a string such as \"3\""))?);
            }
            _ => return Err(wrong_matcher(", and no other member")),
        }
    }
    if matcher.is_empty() { Err(wrong_matcher("")) } else { Ok(matcher) }
}

impl From<AlertsError> for ErrorResponse {
    fn from(error: AlertsError) -> ErrorResponse {
        let code = match &error {
            AlertsError::TooMany => Code::Conflict,
            AlertsError::NoSilence(_) | AlertsError::NoTarget { .. } => Code::NotFound,
            AlertsError::NotStored(internal) => {
                return Failure::new(Code::Internal, "the database of alerts cannot be written")
                    .with_internal(internal.clone())
                    .into();
            }
        };
        Failure::new(code, error.to_string()).into()
    }
}

fn state_of(alert: &alerts::Alert, silence: Option<&alerts::Silence>) -> &'static str {
    match (alert.is_firing(), silence) {
        (false, _) => "resolved",
        (true, None) => "firing",
        (true, Some(_)) => "silenced",
    }
}

impl AlertView {
    fn of(alert: &alerts::Alert, silence: Option<&alerts::Silence>) -> AlertView {
        let state = state_of(alert, silence);
        let link = alert.link();
        let alerts::Alert { id, about, severity, since, until, summary, how_sure, what_to_do, .. } = alert.clone();
        let alerts::About { rule, model, version, subject } = about;
        AlertView {
            id,
            rule: rule.as_str(),
            model,
            version,
            subject: Some(subject).filter(|subject| !subject.is_empty()),
            severity: severity.as_str(),
            state,
            since: rfc3339(since),
            until: until.map(rfc3339),
            summary,
            how_sure,
            change_before: alert.change_before.clone().map(|change| ChangeView {
                id: change.id,
                ts: rfc3339(change.ts),
                actor: change.actor,
                action: change.action,
                reason: change.reason,
            }),
            what_to_do,
            link,
            told: alert.told != alerts::Told::Nothing,
            silence: silence.map(|silence| silence.id.clone()),
        }
    }
}

impl TargetView {
    fn of(target: alerts::TargetStatus) -> TargetView {
        let alerts::TargetStatus { name, kind, waiting, status } = target;
        TargetView {
            name,
            kind: kind.as_str(),
            waiting,
            sent: status.sent,
            failed: status.failed,
            dropped: status.dropped,
            last_sent: status.last_sent.map(rfc3339),
            last_error: status.last_error,
        }
    }
}

impl SilenceView {
    fn of(silence: alerts::Silence) -> SilenceView {
        let alerts::Silence { id, matcher, until, reason, created_by, created_at } = silence;
        let Matcher { rule, model, version } = matcher;
        SilenceView {
            id,
            matcher: MatcherView { rule: rule.map(Rule::as_str), model, version },
            until: rfc3339(until),
            reason,
            created_by,
            created_at: rfc3339(created_at),
        }
    }
}
