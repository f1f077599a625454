//! Logged requests: find them.

use super::{Asked, Fields, NoPage, Visitor, layout, show};
use axum::extract::Query;
use axum::response::Response;
use maud::{Markup, html};
use serde_json::{Value, json};

/// Up to this many models are offered as a list; of more, the name is typed.
const LISTED: usize = 50;
/// Models that are searched for an id, where none was chosen.
const SEARCHED: usize = 50;
/// Requests of one page.
const ROWS: usize = 50;

/// The texts of the form, which are parameters of the API with the same names.
const TEXTS: [&str; 9] =
    ["request_id", "route_key", "since", "until", "version", "arm", "role", "status", "slower_than"];
/// Its switches.
const FLAGS: [&str; 2] = ["disagreed", "non_finite"];

pub(super) async fn page(visitor: Visitor, Query(asked): Asked) -> Result<Response, NoPage> {
    let models = visitor.get("/api/v1/models").await?;
    let names: Vec<&str> =
        models["models"].as_array().into_iter().flatten().filter_map(|model| model["name"].as_str()).collect();
    let given = field(&asked, "model");
    let model = if given.is_empty() && names.len() == 1 { names[0] } else { given };
    let found = if !model.is_empty() {
        Some(visitor.try_send(&path(model, &asked)).await)
    } else if !field(&asked, "request_id").is_empty() {
        Some(Ok(everywhere(&visitor, &names, &asked).await))
    } else {
        None
    };
    let content = html! {
        h1 { "Requests" }
        @if names.is_empty() {
            p { "There are no models yet, so there are no requests. Copy one into the models directory, or run " code { "sluicegate push NAME 1 model.onnx" } "." }
        } @else {
            (form(&names, model, &asked))
            @match &found {
                None => { p .quiet { "Choose a model, or give a request id." } }
                Some(Err(problem)) => { (layout::complaint(problem)) }
                Some(Ok(found)) => { (results(found, model, &asked)) }
            }
            @if !model.is_empty() { (layout::command(&command(model, &asked))) }
        }
    };
    Ok(visitor.page("Requests", "/requests", &content))
}

fn field<'a>(asked: &'a Fields, name: &str) -> &'a str {
    asked.get(name).map_or("", |text| text.trim())
}

fn is_set(asked: &Fields, name: &str) -> bool {
    matches!(field(asked, name), "true" | "on")
}

/// What was asked for, as parameters of a query.
fn parameters(asked: &Fields) -> Vec<(&'static str, String)> {
    let texts = TEXTS.into_iter().map(|name| (name, field(asked, name).to_owned()));
    let flags = FLAGS.into_iter().filter(|name| is_set(asked, name)).map(|name| (name, "true".to_owned()));
    texts.filter(|(_, value)| !value.is_empty()).chain(flags).collect()
}

fn query(parameters: &[(&'static str, String)]) -> String {
    let pairs: Vec<String> =
        parameters.iter().map(|(name, value)| format!("&{name}={}", show::escaped(value))).collect();
    pairs.concat()
}

fn path(model: &str, asked: &Fields) -> String {
    let after = field(asked, "after");
    let after = if after.is_empty() { String::new() } else { format!("&after={}", show::escaped(after)) };
    format!("/api/v1/models/{}/requests?limit={ROWS}{}{after}", show::escaped(model), query(&parameters(asked)))
}

/// Answers with the id, of the first model that has any.
async fn everywhere(visitor: &Visitor, names: &[&str], asked: &Fields) -> Value {
    for name in names.iter().take(SEARCHED) {
        let found = visitor.try_get(&path(name, asked)).await.unwrap_or_default();
        if found["requests"].as_array().is_some_and(|requests| !requests.is_empty()) {
            return found;
        }
    }
    json!({ "requests": [], "searched_models": names.len().min(SEARCHED), "models": names.len() })
}

/// The command that does the same.
fn command(model: &str, asked: &Fields) -> String {
    let option = |(name, value): &(&'static str, String)| {
        let name = name.replace('_', "-");
        if FLAGS.contains(&name.replace('-', "_").as_str()) {
            format!(" --{name}")
        } else {
            format!(" --{name} {}", word(value))
        }
    };
    let options: String = parameters(asked).iter().map(option).collect();
    format!("sluicegate requests {}{options}", word(model))
}

/// A word of a shell's command line.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/@".contains(c);
    if text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", show::text(text, 200).replace('\'', r"'\''"))
    }
}

fn form(names: &[&str], model: &str, asked: &Fields) -> Markup {
    let text = |name: &str, label: &str, example: &str| {
        html! {
            div {
                label for=(name) { (label) }
                input id=(name) name=(name) value=(field(asked, name)) placeholder=(example) maxlength="1024" autocomplete="off" spellcheck="false";
            }
        }
    };
    let choice = |name: &str, label: &str, options: &[(&str, &str)]| {
        html! {
            div {
                label for=(name) { (label) }
                select id=(name) name=(name) { @for (value, word) in options {
                    option value=(value) selected[*value == field(asked, name)] { (word) }
                } }
            }
        }
    };
    let flag = |name: &str, label: &str| {
        html! {
            div .flag { input id=(name) name=(name) type="checkbox" value="true" checked[is_set(asked, name)]; " " label for=(name) { (label) } }
        }
    };
    html! {
        form .search method="get" action="/requests" role="search" {
            div {
                label for="model" { "Model" }
                @if names.len() > LISTED {
                    input #model name="model" value=(model) autocomplete="off" spellcheck="false";
                } @else {
                    select #model name="model" {
                        @if names.len() > 1 { option value="" selected[model.is_empty()] { "any, by request id" } }
                        @for name in names { option value=(name) selected[*name == model] { (show::text(name, 60)) } }
                    }
                }
            }
            (text("request_id", "Request id", "x-request-id of the answer"))
            (text("route_key", "Route key", "the value of the sticky key"))
            (text("since", "Since", "2026-11-01T08:30:00Z"))
            (text("until", "Before", "2026-11-02"))
            (text("version", "Version", "any"))
            (text("arm", "Arm", "any"))
            (choice("role", "Answered", &[("", "to callers"), ("primary", "as the split said"), ("pinned", "as the caller asked"), ("shadow", "as a shadow")]))
            (choice("status", "Ended", &[("", "in any way"), ("ok", "well"), ("error", "with an error")]))
            (text("slower_than", "Slower than", "250ms"))
            (flag("disagreed", "A shadow disagreed"))
            (flag("non_finite", "NaN or infinite outputs"))
            div { button .main { "Search" } }
        }
    }
}

fn results(found: &Value, model: &str, asked: &Fields) -> Markup {
    let requests = found["requests"].as_array().map_or(&[][..], Vec::as_slice);
    let model = if model.is_empty() { found["model"].as_str().unwrap_or_default() } else { model };
    let differ = requests.iter().any(|request| !request["difference"].is_null());
    html! {
        (not_read(found))
        @if requests.is_empty() { (nothing(found, asked)) } @else {
            div .wide {
                table {
                    thead { tr {
                        th scope="col" { "Time (UTC)" } th scope="col" { "Request" } th scope="col" { "Version" } th scope="col" { "Arm" } th scope="col" { "Role" }
                        th scope="col" { "Ended" } th scope="col" .number { "Latency" } th scope="col" .number { "Rows" } @if differ { th scope="col" { "Difference" } }
                    } }
                    tbody { @for request in requests { (row(model, request, differ)) } }
                }
            }
        }
        @if let Some(next) = found["next"].as_str() {
            @if found["ended"] == "time" { p .warn { "The time for one search is over. It goes on where it ended:" } }
            p .pages { a href=(format!("/requests?model={}{}&after={}", show::escaped(model), query(&parameters(asked)), show::escaped(next))) rel="next" { "Older requests" } }
        } @else if !requests.is_empty() { p .quiet { "There are no older ones." } }
    }
}

/// Damaged files, which may hold more.
pub(super) fn not_read(found: &Value) -> Markup {
    let files = found["not_read"]["files"].as_u64().unwrap_or(0);
    let named = found["not_read"]["named"].as_array().map_or(&[][..], Vec::as_slice);
    html! {
        @if files > 0 {
            div .warn role="alert" {
                p { (show::counted(files as f64, "file of the log is damaged and was not read. What it holds", "files of the log are damaged and were not read. What they hold")) " is not among what is shown here." }
                ul { @for of in named.iter().take(5) { li { code { (show::text(of["file"].as_str().unwrap_or_default(), 200)) } ": " (show::text(of["why"].as_str().unwrap_or_default(), 300)) } } }
                @if named.len() > 5 { p { code { "sluicegate requests" } " names more of them." } }
            }
        }
    }
}

fn nothing(found: &Value, asked: &Fields) -> Markup {
    html! {
        @if found["ended"] == "time" {
        } @else if parameters(asked).is_empty() {
            p { "The log has no requests of this model. They are there a moment after their answer, unless " code { "[prediction_log]" } " is off." }
        } @else if let Some(searched) = found["searched_models"].as_u64() {
            p { @if searched == 1 { "The model has no such request in its log." } @else { "None of " (searched) " models has such a request in its log." } @if found["models"].as_u64() > Some(searched) { " Choose the model: there are " (show::number_of(&found["models"])) "." } }
        } @else {
            p { "No request matches. A sample rate below 1, retention and losses of the log " a href="/gateway" { "(its state)" } " can be why one is not there." }
        }
    }
}

fn row(model: &str, request: &Value, differ: bool) -> Markup {
    let text = |name: &str, most: usize| show::text(request[name].as_str().unwrap_or_default(), most);
    let id = request["request_id"].as_str().unwrap_or_default();
    html! {
        tr {
            td { (show::moment(&request["ts"])) }
            th scope="row" { a href=(format!("/requests/{}/{}", show::escaped(model), show::escaped(id))) { code { (show::text(id, 48)) } } }
            td { (text("version", 20)) }
            td { (text("arm", 40)) }
            td { (text("role", 20)) }
            td { (show::ended(&request["status"])) }
            td .number { (show::ms_of_us(&request["latency_us"])) }
            td .number { (show::number_of(&request["rows"])) }
            @if differ { td { (text("difference", 200)) } }
        }
    }
}
