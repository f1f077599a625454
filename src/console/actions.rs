//! Changes of a model: each shows first what would change, asks for a reason, and is done by the API.
//!
//! A page shows the change as of one revision of the traffic document. The change is sent with that revision, so that two people who act at once do not
//! overwrite each other: the second one sees what the first one did.

use super::api::{ApiRequest, Problem};
use super::form::Posted;
use super::proposals::{document, rollout, rule, shadow, split};
use super::{Asked, Console, Fields, NoPage, Visitor, difference, flow, layout, session, show};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde_json::{Value, json};
use std::sync::Arc;

/// What can be done to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Promote,
    Rollback,
    Split,
    Shadow,
    Rule,
    Document,
    Rollout,
    Pause,
    Resume,
    Abort,
    Retire,
    Load,
    Unload,
    Approve,
    Reject,
}

impl Action {
    const ALL: [(&'static str, Action, &'static str); 15] = [
        ("promote", Action::Promote, "Promote a version"),
        ("rollback", Action::Rollback, "Go back"),
        ("split", Action::Split, "Split the traffic"),
        ("shadow", Action::Shadow, "Copy requests to a version"),
        ("rule", Action::Rule, "Send some requests to a version"),
        ("document", Action::Document, "Edit the traffic document"),
        ("rollout", Action::Rollout, "Roll out a version step by step"),
        ("pause", Action::Pause, "Pause the rollout"),
        ("resume", Action::Resume, "Resume the rollout"),
        ("abort", Action::Abort, "Abort the rollout and go back"),
        ("retire", Action::Retire, "Retire the model"),
        ("load", Action::Load, "Load a version"),
        ("unload", Action::Unload, "Unload a version"),
        ("approve", Action::Approve, "Approve a version"),
        ("reject", Action::Reject, "Reject a version"),
    ];

    fn of(slug: &str) -> Option<(Action, &'static str)> {
        Action::ALL.iter().find(|(known, ..)| *known == slug).map(|(_, action, title)| (*action, *title))
    }

    fn slug(self) -> &'static str {
        Action::ALL.iter().find(|(_, action, _)| *action == self).map_or("", |(slug, ..)| slug)
    }

    /// Whether the traffic must not have changed since it was looked at.
    fn is_of_a_revision(self) -> bool {
        matches!(
            self,
            Action::Promote
                | Action::Rollback
                | Action::Split
                | Action::Shadow
                | Action::Rule
                | Action::Document
                | Action::Rollout
        )
    }
}

/// The model as it is when somebody looks at it.
pub(super) struct Now {
    pub(super) name: String,
    pub(super) model: Value,
    pub(super) revision: u64,
    /// The traffic document from before the last rollout.
    before_rollout: Value,
    /// The version that the last rollout leads to.
    rollout_to: String,
}

/// What would be done.
pub(super) struct Plan {
    /// Without the reason.
    pub(super) request: ApiRequest,
    /// Asks the API what it would change.
    pub(super) dry: Option<ApiRequest>,
    /// The document that would be in force, where that is known without asking.
    pub(super) document: Option<Value>,
    /// What it does besides.
    pub(super) words: String,
    pub(super) command: String,
}

/// What a page shows next.
pub(super) enum Next {
    /// Something has to be chosen first.
    Ask(Markup),
    Confirm(Box<Plan>),
}

pub(super) async fn preview(
    visitor: Visitor,
    Path((name, slug)): Path<(String, String)>,
    Query(fields): Asked,
) -> Result<Response, NoPage> {
    show_page(&visitor, &name, &slug, &fields, None).await
}

pub(super) async fn perform(
    State(console): State<Arc<Console>>,
    visitor: Visitor,
    headers: HeaderMap,
    Path((name, slug)): Path<(String, String)>,
    Posted(fields): Posted,
) -> Result<Response, NoPage> {
    session::check(&console, session::of(&headers).as_deref(), &fields)?;
    if fields.get("step").is_some_and(|step| step == "preview") {
        return show_page(&visitor, &name, &slug, &fields, None).await;
    }
    let (action, _) = known(&visitor, &slug)?;
    let mut now = Now::of(&visitor, &name).await?;
    let looked_at: Option<u64> = fields.get("revision").and_then(|revision| revision.parse().ok());
    if action.is_of_a_revision() && looked_at.is_none() {
        let given = field(&fields, "revision");
        let words = format!("revision: expected the number of the traffic document that was looked at, got {given:?}");
        let problem = Problem::of(StatusCode::BAD_REQUEST, &words);
        return show_page(&visitor, &name, &slug, &fields, Some(&problem)).await;
    }
    if action == Action::Rollout && looked_at.is_some_and(|revision| revision != now.revision) {
        // The API takes no revision with a rollout.
        let problem = Problem::of(StatusCode::PRECONDITION_FAILED, "the traffic changed since you looked at it");
        return show_page(&visitor, &name, &slug, &fields, Some(&problem)).await;
    }
    now.revision = looked_at.unwrap_or(now.revision);
    let plan = match next(action, &now, &fields) {
        Ok(Next::Confirm(plan)) => plan,
        Ok(Next::Ask(_)) => return show_page(&visitor, &name, &slug, &fields, None).await,
        Err(error) => {
            let problem = Problem::of(StatusCode::BAD_REQUEST, &error);
            return show_page(&visitor, &name, &slug, &fields, Some(&problem)).await;
        }
    };
    let mut request = plan.request;
    if let Some(body) = request.body.as_mut() {
        body["reason"] = field(&fields, "reason").into();
    }
    match visitor.console.api.send(&visitor.credentials, request).await {
        Ok(_) => Ok(super::to(&format!("/models/{}?done={}", show::escaped(&name), action.slug()))),
        Err(problem) => show_page(&visitor, &name, &slug, &fields, Some(&problem)).await,
    }
}

fn known(visitor: &Visitor, slug: &str) -> Result<(Action, &'static str), NoPage> {
    let unknown = || visitor.no_page(Problem::of(StatusCode::NOT_FOUND, "there is no such page"));
    Action::of(slug).ok_or_else(unknown)
}

pub(super) fn field<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).map_or("", |text| text.trim())
}

impl Now {
    async fn of(visitor: &Visitor, name: &str) -> Result<Now, NoPage> {
        let model = visitor.get(&format!("/api/v1/models/{}", show::escaped(name))).await?;
        let revision = model["revision"].as_u64().unwrap_or(0);
        let rollout = visitor.try_get(&format!("/api/v1/models/{}/rollout", show::escaped(name))).await;
        let rollout = rollout.unwrap_or_default();
        let rollout_to = rollout["to"].as_str().unwrap_or_default().to_owned();
        Ok(Now { name: name.to_owned(), model, revision, before_rollout: rollout["before"].clone(), rollout_to })
    }

    pub(super) fn api(&self, rest: &str) -> String {
        format!("/api/v1/models/{}{rest}", show::escaped(&self.name))
    }

    /// Versions in one of these states, the newest first.
    pub(super) fn versions(&self, states: &[&str]) -> Vec<&str> {
        let versions = self.model["versions"].as_array().into_iter().flatten();
        let fits = |version: &&Value| version["state"].as_str().is_some_and(|state| states.contains(&state));
        let mut found: Vec<&str> = versions.filter(fits).filter_map(|version| version["version"].as_str()).collect();
        found.reverse();
        found
    }

    pub(super) fn version_of<'f>(&self, fields: &'f Fields, states: &[&str]) -> Result<&'f str, Markup> {
        let given = field(fields, "version");
        if !given.is_empty() {
            return Ok(given);
        }
        let versions = self.versions(states);
        Err(html! {
            @if versions.is_empty() { p { "No version can be chosen: none is " (states.join(" or ")) "." } }
            @else { p {
                label for="version" { "Version" } " "
                select #version name="version" { @for version in versions { option value=(version) { (show::text(version, 20)) } } }
            } }
        })
    }
}

async fn show_page(
    visitor: &Visitor,
    name: &str,
    slug: &str,
    fields: &Fields,
    problem: Option<&Problem>,
) -> Result<Response, NoPage> {
    let (action, title) = known(visitor, slug)?;
    let now = Now::of(visitor, name).await?;
    let mut problem = problem.cloned();
    let next = next(action, &now, fields);
    let (status, content) = match next {
        Err(error) => {
            let problem = problem.unwrap_or_else(|| Problem::of(StatusCode::BAD_REQUEST, &error));
            (problem.status, html! { (layout::complaint(&problem)) })
        }
        Ok(Next::Ask(inputs)) => {
            let status = problem.as_ref().map_or(StatusCode::OK, |problem| problem.status);
            let asked = html! {
                @if let Some(problem) = &problem { (layout::complaint(problem)) }
                form method="post" {
                    (hidden(visitor, &now, &[("step", "preview")]))
                    (inputs)
                    p .actions { button .main { "Show what would change" } (cancel(name)) }
                }
            };
            (status, asked)
        }
        Ok(Next::Confirm(plan)) => {
            let mut would = Value::Null;
            if let Some(dry) = plan.dry.clone() {
                match visitor.console.api.send(&visitor.credentials, dry).await {
                    Ok(answer) => would = answer,
                    Err(refused) => problem = problem.or(Some(refused)),
                }
            }
            let status = problem.as_ref().map_or(StatusCode::OK, |problem| problem.status);
            (status, confirm(visitor, action, &now, fields, &plan, &would, problem.as_ref()).await)
        }
    };
    let whole = html! {
        p { a href=(format!("/models/{}", show::escaped(name))) { (show::text(name, 130)) } }
        h1 { (title) }
        (content)
    };
    Ok((status, visitor.page(title, "/", &whole)).into_response())
}

/// The page that shows what would change, and asks for the reason.
async fn confirm(
    visitor: &Visitor,
    action: Action,
    now: &Now,
    fields: &Fields,
    plan: &Plan,
    would: &Value,
    problem: Option<&Problem>,
) -> Markup {
    let before = &now.model["document"];
    let after = plan.document.as_ref().or(Some(&would["would_be"]).filter(|document| !document.is_null()));
    let looked_at: Option<u64> = fields.get("revision").and_then(|revision| revision.parse().ok());
    let changed_since = looked_at.filter(|revision| action.is_of_a_revision() && *revision != now.revision);
    let since = if let Some(revision) = changed_since {
        changes_since(visitor, now, revision).await
    } else {
        html! {}
    };
    let gates = would["gates"].as_array().map_or(&[][..], Vec::as_slice);
    html! {
        (since)
        @if let Some(problem) = problem.filter(|problem| changed_since.is_none() || problem.status != StatusCode::PRECONDITION_FAILED) { (layout::complaint(problem)) }
        @if !plan.words.is_empty() { p { (show::text(&plan.words, 600)) } }
        @if let Some(after) = after {
            h2 { "What would change" }
            div .side-by-side {
                div { h3 { "Now" } (flow::drawing(before)) }
                div { h3 { (then(action)) } (flow::drawing(after)) }
            }
            // A retired model keeps its document.
            @if action != Action::Retire { (difference::table(&difference::between(&without_reason(before), &without_reason(after)))) }
        } @else if !before.is_null() && plan.dry.is_none() && action != Action::Abort {
            h2 { "The traffic stays as it is" }
            (flow::drawing(before))
        }
        @if let Some(rollout) = would["ends_rollout"].as_object() { p .warn { "This ends the rollout to version " (show::text(rollout.get("to").and_then(Value::as_str).unwrap_or("?"), 20)) "." } }
        @if !gates.is_empty() {
            h3 { "Gates" }
            ul { @for gate in gates { li { (super::gateway::line(gate)) } } }
        }
        form method="post" {
            (hidden(visitor, now, &[]))
            @for (name, value) in fields.iter().filter(|(name, _)| !["csrf", "revision", "reason", "step", "break_glass"].contains(&name.as_str())) {
                input type="hidden" name=(name) value=(value);
            }
            p {
                label for="reason" { "Reason, for the audit trail" }
                input #reason name="reason" required maxlength="1000" autocomplete="off" autofocus value=(field(fields, "reason"));
            }
            @if visitor.may("administer") && matches!(action, Action::Promote | Action::Rollback | Action::Rollout) {
                details {
                    summary { "Without an approval" }
                    p { input #break-glass type="checkbox" name="break_glass" value="true"; " " label for="break-glass" { "Break glass: do it although nobody approved the version. Alerts and the audit trail say so." } }
                }
            }
            p .actions { button .main { (button(action)) } (cancel(&now.name)) }
        }
        (layout::command(&plan.command))
    }
}

fn then(action: Action) -> &'static str {
    match action {
        Action::Rollout => "Then, at the first step",
        Action::Abort => "Then, as before the rollout",
        Action::Retire => "Then, for as long as it is retired",
        _ => "Then",
    }
}

fn button(action: Action) -> &'static str {
    match action {
        Action::Promote => "Promote now",
        Action::Rollback => "Go back now",
        Action::Split | Action::Shadow | Action::Rule | Action::Document => "Change the traffic now",
        Action::Rollout => "Begin the rollout",
        Action::Pause => "Pause",
        Action::Resume => "Resume",
        Action::Abort => "Abort and go back",
        Action::Retire => "Retire",
        Action::Load => "Load",
        Action::Unload => "Unload",
        Action::Approve => "Approve",
        Action::Reject => "Reject",
    }
}

pub(super) fn without_reason(document: &Value) -> Value {
    let mut document = document.clone();
    if let Value::Object(members) = &mut document {
        members.remove("reason");
    }
    document
}

/// What others did since somebody looked.
async fn changes_since(visitor: &Visitor, now: &Now, revision: u64) -> Markup {
    let history = visitor.try_get(&now.api("/history")).await.unwrap_or_default();
    let history = history["history"].as_array().cloned().unwrap_or_default();
    let seen = history.iter().find(|entry| entry["revision"].as_u64() == Some(revision));
    let last = history.first().cloned().unwrap_or_default();
    let seen = seen.map_or(Value::Null, |entry| entry["document"].clone());
    html! {
        div .warn role="alert" {
            p { "The traffic changed since you looked at it: " strong { (show::text(last["actor"].as_str().unwrap_or("somebody"), 80)) } ", " (show::ago(&last["ts"])) ", " (show::text(last["reason"].as_str().unwrap_or("without a reason"), 300)) ". Nothing was done. Below is what your change would do now." }
            (difference::table(&difference::between(&without_reason(&seen), &without_reason(&now.model["document"]))))
        }
    }
}

fn hidden(visitor: &Visitor, now: &Now, more: &[(&str, &str)]) -> Markup {
    html! {
        input type="hidden" name="csrf" value=(visitor.csrf);
        input type="hidden" name="revision" value=(now.revision);
        @for (name, value) in more { input type="hidden" name=(name) value=(value); }
    }
}

fn cancel(name: &str) -> Markup {
    html! { " " a href=(format!("/models/{}", show::escaped(name))) { "Cancel" } }
}

/// From what was chosen so far to what comes next.
///
/// # Errors
/// What is wrong with the choice, in words.
fn next(action: Action, now: &Now, fields: &Fields) -> Result<Next, String> {
    let name = &now.name;
    let post = |path: String, body: Value| ApiRequest {
        method: Method::POST,
        path,
        body: Some(body),
        if_match: action.is_of_a_revision().then_some(now.revision),
    };
    let plan = |request: ApiRequest, words: &str, command: String| {
        Ok(Next::Confirm(Box::new(Plan { request, dry: None, document: None, words: words.to_owned(), command })))
    };
    let with_dry_run = |request: ApiRequest, command: String| {
        let dry = Some(dry_run(&request));
        Ok(Next::Confirm(Box::new(Plan { request, dry, document: None, words: String::new(), command })))
    };
    let break_glass = field(fields, "break_glass") == "true";
    match action {
        Action::Promote => {
            let version = match now.version_of(fields, &["ready", "serving"]) {
                Ok(version) => version,
                Err(ask) => return Ok(Next::Ask(ask)),
            };
            let body = json!({"version": version, "break_glass": break_glass});
            with_dry_run(
                post(now.api(":promote"), body),
                format!("sluicegate promote {name} {} --reason …", show::word(version)),
            )
        }
        Action::Rollback => {
            let mut body = json!({"break_glass": break_glass});
            let mut command = format!("sluicegate rollback {name}");
            if let Some(revision) = Some(field(fields, "to_revision")).filter(|text| !text.is_empty()) {
                let revision: u64 =
                    revision.parse().map_err(|_| format!("to_revision: expected a number, got {revision:?}"))?;
                body["to_revision"] = revision.into();
                command = format!("{command} --to-revision {revision}");
            }
            with_dry_run(post(now.api(":rollback"), body), format!("{command} --reason …"))
        }
        Action::Split => split(now, fields),
        Action::Shadow => shadow(now, fields),
        Action::Rule => rule(now, fields),
        Action::Document => document(now, fields),
        Action::Rollout => rollout(now, fields, break_glass),
        Action::Pause | Action::Resume | Action::Abort => {
            let verb = action.slug();
            let rollout = match now.rollout_to.as_str() {
                "" => "rollout".to_owned(),
                to => format!("rollout to version {to}"),
            };
            let words = match action {
                Action::Pause => {
                    format!("The {rollout} will stay at its step. A candidate that proves worse is still taken back.")
                }
                Action::Resume => format!("The {rollout} will go on from its step."),
                _ => format!("The traffic from before the {rollout} will come back."),
            };
            let request = post(now.api(&format!("/rollout:{verb}")), json!({}));
            let command = format!("sluicegate rollout {name} --{verb} --reason …");
            // Only an abort changes the traffic.
            let document =
                Some(now.before_rollout.clone()).filter(|before| action == Action::Abort && !before.is_null());
            Ok(Next::Confirm(Box::new(Plan { request, dry: None, document, words, command })))
        }
        Action::Retire => {
            let mut request = post(now.api(""), json!({}));
            request.method = Method::DELETE;
            let words = "Its versions are unloaded, and its requests are answered 404 with your reason, also after a restart. Promoting a version brings it back.";
            let command = format!("sluicegate retire {name} --reason …");
            let document = Some(json!({ "split": [] }));
            Ok(Next::Confirm(Box::new(Plan { request, dry: None, document, words: words.to_owned(), command })))
        }
        Action::Load | Action::Unload | Action::Approve | Action::Reject => {
            let states: &[&str] = match action {
                Action::Load => &["failed", "unloaded"],
                Action::Unload => &["ready"],
                _ => &["ready", "serving", "failed", "unloaded"],
            };
            let version = match now.version_of(fields, states) {
                Ok(version) => version,
                Err(ask) => return Ok(Next::Ask(ask)),
            };
            let verb = action.slug();
            let query = if matches!(action, Action::Load | Action::Unload) { "?wait=false" } else { "" };
            let path = now.api(&format!("/versions/{}:{verb}{query}", show::escaped(version)));
            let words = match action {
                Action::Load => {
                    format!("Version {version} will be loaded, verified and warmed. It gets no traffic by that.")
                }
                Action::Unload => {
                    format!("The memory of version {version} will be freed. It stays unloaded until somebody loads it.")
                }
                Action::Approve => {
                    format!(
                        "The files of version {version} may serve: you say that you looked at the evidence on its page."
                    )
                }
                _ => format!("The files of version {version} may be given no traffic any more."),
            };
            plan(post(path, json!({})), &words, format!("sluicegate {verb} {name} {} --reason …", show::word(version)))
        }
    }
}

/// The same request, to see what it would change.
pub(super) fn dry_run(request: &ApiRequest) -> ApiRequest {
    let mut dry = request.clone();
    if let Some(body) = dry.body.as_mut() {
        body["dry_run"] = true.into();
        body["reason"] = "a look at it".into();
    }
    dry.if_match = None;
    dry
}
