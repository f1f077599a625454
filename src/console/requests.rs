//! Logged requests: find them. The list itself comes while it is found (`searching.rs`).

use super::{Asked, Fields, NoPage, Visitor, layout, searching, show};
use axum::extract::Query;
use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

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
    let overview = visitor.get(&format!("/api/v1/overview?sort=name&limit={}", LISTED + 1)).await?;
    let names: Vec<&str> =
        overview["rows"].as_array().into_iter().flatten().filter_map(|model| model["name"].as_str()).collect();
    let given = field(&asked, "model");
    let model = if given.is_empty() && names.len() == 1 { names[0] } else { given }.to_owned();
    let searched: Vec<String> = if !model.is_empty() {
        vec![model.clone()]
    } else if !field(&asked, "request_id").is_empty() {
        names.iter().take(SEARCHED).map(|name| (*name).to_owned()).collect()
    } else {
        Vec::new()
    };
    let content = html! {
        h1 { "Requests" }
        @if names.is_empty() {
            p { "There are no models yet, so there are no requests. Copy one into the models directory, or run " code { "sluicegate push NAME 1 model.onnx" } "." }
        } @else {
            (form(&names, &model, &asked))
            @if searched.is_empty() { p .quiet { "Choose a model, or give a request id." } } @else { (searching::place()) }
            @if !model.is_empty() { (layout::command(&command(&model, &asked))) }
        }
    };
    if searched.is_empty() {
        return Ok(visitor.page("Requests", "/requests", &content));
    }
    let page = visitor.html("Requests", "/requests", &content);
    let models = overview["models"].as_u64().unwrap_or(0);
    Ok(searching::answer(visitor, &page, Asking { asked, model, searched, models }))
}

/// What is looked for.
pub(super) struct Asking {
    asked: Fields,
    /// Empty: that of a request id, whichever has it first.
    model: String,
    /// The models that are searched, one after the other.
    pub(super) searched: Vec<String>,
    /// How many there are.
    pub(super) models: u64,
}

impl Asking {
    pub(super) fn path(&self, model: &str) -> String {
        path(model, &self.asked)
    }

    pub(super) fn is_one_model(&self) -> bool {
        !self.model.is_empty()
    }

    /// Whether the differences of shadows are looked for.
    pub(super) fn differences(&self) -> bool {
        is_set(&self.asked, "disagreed")
    }
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

/// The table of requests around its rows.
pub(super) fn table(caption: &str, differ: bool, rows: &Markup) -> Markup {
    html! {
        div .wide {
            table {
                caption .hidden { (caption) }
                thead { tr {
                    th scope="col" { "Time (UTC)" } th scope="col" { "Request" } th scope="col" { "Version" } th scope="col" { "Arm" } th scope="col" { "Role" }
                    th scope="col" { "Ended" } th scope="col" .number { "Latency" } th scope="col" .number { "Rows" } @if differ { th scope="col" { "Difference" } }
                } }
                tbody { (rows) }
            }
        }
    }
}

/// What stands below the rows: where the search goes on, and what it could not read.
pub(super) fn end(found: &Value, model: &str, asking: &Asking, rows: usize) -> Markup {
    let asked = &asking.asked;
    html! {
        (not_read(found))
        @if rows == 0 { (nothing(found, asked)) }
        @if let Some(next) = found["next"].as_str() {
            @if found["ended"] == "time" { p .warn { "The time for one search is over. It goes on where it ended:" } }
            p .pages { a href=(format!("/requests?model={}{}&after={}", show::escaped(model), query(&parameters(asked)), show::escaped(next))) rel="next" { "Older requests" } }
        } @else if rows > 0 { p .quiet { "There are no older ones." } }
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

pub(super) fn row(model: &str, request: &Value, differ: bool) -> Markup {
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
