//! One logged request: what came in, what each version answered, what became of it, and whether it would be the same today.

use super::api::{ApiRequest, Problem};
use super::form::Posted;
use super::{Console, Fields, NoPage, Visitor, layout, session, show};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Elements of a tensor that the API is asked for.
const ELEMENTS: usize = 400;
/// What is shown of a tensor: rows, columns, and elements of all tensors together.
const ROWS: usize = 8;
const COLUMNS: usize = 12;
const CELLS: usize = 1200;
/// Tensors of each side, and columns of an explanation.
const TENSORS: usize = 60;
const PARTS: usize = 30;
/// Answers, and rows of feedback.
const ANSWERS: usize = 10;
const FEEDBACK: usize = 20;

pub(super) async fn page(visitor: Visitor, Path((model, request)): Path<(String, String)>) -> Result<Response, NoPage> {
    show_page(&visitor, &model, &request, None).await
}

/// What running the request again gave.
struct Again {
    title: &'static str,
    result: Result<Value, Problem>,
}

/// Runs the request again. Nothing changes by that, so the page is the answer.
pub(super) async fn again(
    State(console): State<Arc<Console>>,
    visitor: Visitor,
    headers: HeaderMap,
    Path((model, request, action)): Path<(String, String, String)>,
    Posted(fields): Posted,
) -> Result<Response, NoPage> {
    session::check(&console, session::of(&headers).as_deref(), &fields)?;
    let mut body = json!({ "request_id": request });
    let title = match action.as_str() {
        "reproduce" => "Run again",
        "explain" => {
            for name in ["row", "element"] {
                if let Some(number) = number(&fields, name) {
                    body[name] = number;
                }
            }
            if let Some(output) = fields.get("output").filter(|output| !output.is_empty()) {
                body["output"] = output.as_str().into();
            }
            "Explanation"
        }
        _ => return Err(visitor.no_page(Problem::of(StatusCode::NOT_FOUND, "there is no such page"))),
    };
    let path = format!("/api/v1/models/{}/requests:{action}", show::escaped(&model));
    let request_to_api = ApiRequest { method: Method::POST, path, body: Some(body), if_match: None };
    let result = visitor.console.api.send(&visitor.credentials, request_to_api).await;
    show_page(&visitor, &model, &request, Some(&Again { title, result })).await
}

/// A number of a form; another text is sent as it is, and the API says what is wrong with it.
fn number(fields: &Fields, name: &str) -> Option<Value> {
    let text = fields.get(name).map(|text| text.trim()).filter(|text| !text.is_empty())?;
    Some(text.parse::<u64>().map_or_else(|_| text.into(), Value::from))
}

async fn show_page(visitor: &Visitor, model: &str, id: &str, again: Option<&Again>) -> Result<Response, NoPage> {
    let api = format!("/api/v1/models/{}", show::escaped(model));
    let found = visitor.get(&format!("{api}/requests/{}?elements={ELEMENTS}", show::escaped(id))).await?;
    let all = list(&found, "predictions");
    let predictions = &all[..all.len().min(ANSWERS)];
    let first = predictions.first().cloned().unwrap_or_default();
    let version = first["version"].as_str().unwrap_or_default();
    // Which column of an input is which feature.
    let names = visitor.try_get(&format!("{api}/versions/{}", show::escaped(version))).await.unwrap_or_default();
    let names = Names(&names["metadata"]["model.toml"]);
    let mut cells = CELLS;
    let status = again.and_then(|again| again.result.as_ref().err()).map_or(StatusCode::OK, |problem| problem.status);
    let content = html! {
        p { a href=(format!("/requests?model={}", show::escaped(model))) { "Requests of " (show::text(model, 130)) } }
        h1 { "Request " code { (show::text(id, 120)) } }
        @if let Some(again) = again { (outcome(again)) }
        (summary(model, &first))
        (super::requests::not_read(&found))
        @if found["contents"] == "withheld" { p .warn { "Inputs, outputs and feedback are not shown: reading what a request holds needs the role operator or admin, and the audit trail has who read it." } }
        section #inputs aria-labelledby="inputs-title" {
            h2 #inputs-title { "Inputs" }
            (inputs(&first, &names, &mut cells))
        }
        section #answers aria-labelledby="answers-title" {
            h2 #answers-title { "Answers" }
            (answers(model, predictions))
            (outputs(predictions, &first, &mut cells))
            @if found["more"] == true || all.len() > ANSWERS { p .quiet { "There are more answers with this id: it was used again. The newest are shown." } }
        }
        @if found["contents"] != "withheld" { (feedback(&found)) }
        (lineage(model, predictions))
        (run_again(visitor, model, id, &first, &found))
    };
    Ok((status, visitor.page(&format!("Request {}", show::text(id, 60)), "/requests", &content)).into_response())
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value, name: &str, most: usize) -> String {
    show::text(value[name].as_str().unwrap_or_default(), most)
}

/// The names of features, from the `model.toml` of the version.
struct Names<'a>(&'a Value);

impl Names<'_> {
    /// The name of a column of an input. `only`: it is the only input.
    fn of(&self, tensor: &str, only: bool, column: usize) -> Option<String> {
        let by_tensor = &self.0["features"][tensor][column];
        let of_only = if only { &self.0["feature_names"][column] } else { &Value::Null };
        by_tensor.as_str().or(of_only.as_str()).map(|name| show::text(name, 40))
    }
}

// === parts of the page ===

fn summary(model: &str, first: &Value) -> Markup {
    let optional = |name: &str| first[name].as_str().map(|value| show::text(value, 130));
    html! {
        dl .facts {
            dt { "Answered" } dd { (show::moment(&first["ts"])) " UTC, " (show::ago(&first["ts"])) }
            dt { "By" } dd {
                a href=(format!("/models/{}", show::escaped(model))) { (show::text(model, 130)) } " version "
                a href=(version_path(model, first)) { (text(first, "version", 20)) } ", arm " (text(first, "arm", 60)) ", " (text(first, "role", 20))
            }
            dt { "Ended" } dd { (show::ended(&first["status"])) }
            dt { "Took" } dd { (show::ms_of_us(&first["latency_us"])) ", " (show::ms_of_us(&first["infer_us"])) " of it in the model" }
            dt { "Rows" } dd { (show::number_of(&first["rows"])) @if first["batch_rows"] != first["rows"] { "; " (show::number_of(&first["batch_rows"])) " ran together" } }
            @if let Some(key) = optional("route_key") { dt { "Route key" } dd { code { (key) } } }
            @if let Some(trace) = optional("traceparent") { dt { "Trace" } dd { code { (trace) } } }
            @if first["truncated"] == true { dt { "Left out" } dd { "Tensors, because the record is larger than " code { "max_record_bytes" } } }
        }
    }
}

fn version_path(model: &str, prediction: &Value) -> String {
    let version = prediction["version"].as_str().unwrap_or_default();
    format!("/models/{}/versions/{}", show::escaped(model), show::escaped(version))
}

fn inputs(first: &Value, names: &Names, cells: &mut usize) -> Markup {
    let tensors = list(first, "inputs");
    let rows = rows_of(first);
    let (single, wide): (Vec<&Value>, Vec<&Value>) =
        tensors.iter().take(TENSORS).partition(|tensor| width(tensor, rows) == 1);
    html! {
        @if tensors.is_empty() { p .quiet { "The model has no inputs." } }
        @if !single.is_empty() { div .wide { table .values {
            thead { tr { th scope="col" { "Input" } th scope="col" { "Type" } @for row in 0..rows.min(ROWS) { th scope="col" .number { @if rows > 1 { "Row " (row) } @else { "Value" } } } } }
            tbody { @for tensor in single { tr {
                th scope="row" { code { (text(tensor, "name", 80)) } }
                td { (kind(tensor)) }
                @for row in 0..rows.min(ROWS) { (cell(element(tensor, row), cells)) }
            } } }
        } } (rest(rows, 1)) }
        @for tensor in wide {
            h3 { code { (text(tensor, "name", 80)) } " " span .quiet { (kind(tensor)) } }
            @if list(tensor, "data").is_empty() { p .quiet { (why_empty(tensor)) } } @else { (matrix(tensor, rows, names, tensors.len() == 1, cells)) }
        }
        @if tensors.len() > TENSORS { p .quiet { (TENSORS) " of " (tensors.len()) " inputs." } }
    }
}

/// The rows of a request, and 1 for a request without rows.
fn rows_of(prediction: &Value) -> usize {
    prediction["rows"].as_u64().and_then(|rows| usize::try_from(rows).ok()).unwrap_or(1).max(1)
}

/// Elements of one row.
fn width(tensor: &Value, rows: usize) -> usize {
    let elements = tensor["elements"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    // A request without rows may have a matrix: its last dimension makes the columns.
    let last = list(tensor, "shape").last().and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    match last {
        Some(last) if rows == 1 && list(tensor, "shape").len() == 2 && last > 0 => last,
        _ => elements / rows.max(1),
    }
}

fn element(tensor: &Value, at: usize) -> &Value {
    &tensor["data"][at]
}

/// Type, shape, and how it was recorded.
fn kind(tensor: &Value) -> Markup {
    let shape = tensor["shape"].as_array().map(|shape| {
        let extents: Vec<String> = shape.iter().map(Value::to_string).collect();
        extents.join(" × ")
    });
    html! {
        (text(tensor, "datatype", 10)) @if let Some(shape) = shape.filter(|shape| !shape.is_empty()) { " " (shape) }
        @match tensor["recorded"].as_str() { Some("hashed") => { ", hashed" } Some("masked") => { ", masked" } Some("dropped") => { ", not recorded" } Some("withheld") => { ", not shown" } _ => {} }
    }
}

fn why_empty(tensor: &Value) -> &'static str {
    match tensor["recorded"].as_str() {
        Some("dropped") => "The configuration of the log leaves it out.",
        Some("withheld") => "It is stored, and only an operator may read it.",
        Some("absent") => "It was not given, not asked for, or too large to be recorded.",
        _ => "It has no elements.",
    }
}

/// One element, as long as there is room on the page.
fn cell(value: &Value, cells: &mut usize) -> Markup {
    if *cells == 0 && !value.is_null() {
        return html! { td .number { "…" } };
    }
    *cells = cells.saturating_sub(1);
    match value {
        Value::Null => html! { td .number .quiet { "–" } },
        Value::Number(number) => {
            let shown = number.as_f64().filter(|_| number.is_f64()).map_or_else(|| number.to_string(), digits);
            html! { td .number title=(number.to_string()) { (shown) } }
        }
        Value::String(words) if ["NaN", "Infinity", "-Infinity"].contains(&words.as_str()) => {
            html! { td .number { strong .bad { (words) } } }
        }
        Value::String(words) => html! { td { (show::text(words, 80)) } },
        Value::Bool(yes) => html! { td .number { (yes) } },
        other => html! { td { code { (show::text(&other.to_string(), 60)) } } },
    }
}

/// Up to five digits of a number: enough to see a difference; the title has all.
fn digits(number: f64) -> String {
    let magnitude = number.abs();
    if magnitude != 0.0 && !(1e-4..1e7).contains(&magnitude) {
        return format!("{number:.4e}");
    }
    let whole = format!("{magnitude:.0}").len();
    let text = format!("{number:.*}", 6_usize.saturating_sub(whole));
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// What of a table is not there.
fn rest(rows: usize, columns: usize) -> Markup {
    let hidden = |n: usize, most: usize, what: &str| (n > most).then(|| format!("{most} of {n} {what}"));
    let words: Vec<String> =
        [hidden(rows, ROWS, "rows"), hidden(columns, COLUMNS, "columns")].into_iter().flatten().collect();
    html! { @if !words.is_empty() { p .quiet { "Shown: " (words.join(", ")) ". " code { "sluicegate request … --json" } " has more." } } }
}

fn matrix(tensor: &Value, rows: usize, names: &Names, only: bool, cells: &mut usize) -> Markup {
    let columns = width(tensor, rows);
    let elements = tensor["elements"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let lines = elements.div_ceil(columns.max(1));
    let name = tensor["name"].as_str().unwrap_or_default();
    html! {
        div .wide { table .values {
            thead { tr { th scope="col" { "Row" } @for column in 0..columns.min(COLUMNS) { th scope="col" .number { (names.of(name, only, column).unwrap_or_else(|| column.to_string())) } } } }
            tbody { @for row in 0..lines.min(ROWS) { tr {
                th scope="row" { (row) }
                @for column in 0..columns.min(COLUMNS) { (cell(element(tensor, row * columns + column), cells)) }
            } } }
        } }
        (rest(lines, columns))
    }
}

/// Who answered, and whether a shadow agrees.
fn answers(model: &str, predictions: &[Value]) -> Markup {
    html! {
        div .wide { table {
            thead { tr { th scope="col" { "Version" } th scope="col" { "Role" } th scope="col" { "Arm" } th scope="col" { "Time (UTC)" } th scope="col" { "Ended" } th scope="col" .number { "In the model" } th scope="col" { "Compared with the answer to the caller" } } }
            tbody { @for of in predictions { tr {
                th scope="row" { a href=(version_path(model, of)) { (text(of, "version", 20)) } }
                td { (text(of, "role", 20)) }
                td { (text(of, "arm", 40)) }
                td { (show::moment(&of["ts"])) }
                td { (show::ended(&of["status"])) }
                td .number { (show::ms_of_us(&of["infer_us"])) }
                td { @if let Some(words) = of["compared"]["words"].as_str() {
                    (show::state(if of["compared"]["agrees"] == true { "ok" } else { "mismatch" })) " " (show::text(words, 300))
                } @else if of["role"] == "shadow" { span .quiet { "not comparable: an answer was not recorded as it was" } } @else { "–" } }
            } } }
        } }
    }
}

/// The outputs of the newest request, the versions' below one another.
fn outputs(predictions: &[Value], first: &Value, cells: &mut usize) -> Markup {
    let same: Vec<&Value> = predictions.iter().filter(|of| of["ts"] == first["ts"]).collect();
    let mut seen = BTreeSet::new();
    let names: Vec<&str> = same
        .iter()
        .flat_map(|of| list(of, "outputs"))
        .filter_map(|tensor| tensor["name"].as_str())
        .filter(|name| seen.insert(*name))
        .take(TENSORS)
        .collect();
    html! { @for name in names { (output(name, &same, cells)) } }
}

fn output(name: &str, predictions: &[&Value], cells: &mut usize) -> Markup {
    let of_name = |of: &&Value| list(of, "outputs").iter().find(|tensor| tensor["name"] == name).cloned();
    let given: Vec<(&Value, Value)> = predictions.iter().filter_map(|of| Some((*of, of_name(of)?))).collect();
    let rows = given.iter().map(|(of, _)| rows_of(of)).max().unwrap_or(1);
    let columns = given.iter().map(|(of, tensor)| width(tensor, rows_of(of))).max().unwrap_or(0);
    let first = given.first().map(|(_, tensor)| tensor.clone()).unwrap_or_default();
    html! {
        h3 { code { (show::text(name, 80)) } " " span .quiet { (kind(&first)) } }
        @if given.iter().all(|(_, tensor)| list(tensor, "data").is_empty()) { p .quiet { (why_empty(&first)) } } @else {
            div .wide { table .values {
                thead { tr { @if rows > 1 { th scope="col" .number { "Row" } } th scope="col" { "Version" } @for column in 0..columns.min(COLUMNS) { th scope="col" .number { @if columns > 1 { (column) } @else { "Value" } } } } }
                tbody { @for row in 0..rows.min(ROWS) { @for (of, tensor) in &given { tr {
                    @if rows > 1 { td .number { (row) } }
                    th scope="row" { (text(of, "version", 20)) @if of["role"] == "shadow" { span .quiet { " shadow" } } }
                    @let width = width(tensor, rows_of(of));
                    @for column in 0..columns.min(COLUMNS) { (cell(if column < width { element(tensor, row * width + column) } else { &Value::Null }, cells)) }
                } } } }
            } }
            (rest(rows, columns))
        }
    }
}

fn feedback(found: &Value) -> Markup {
    let rows = list(found, "feedback");
    html! {
        section #feedback aria-labelledby="feedback-title" {
            h2 #feedback-title { "Feedback" }
            @if rows.is_empty() { p .quiet { "None came yet for this request." } } @else { div .wide { table {
                thead { tr { th scope="col" .number { "Row" } th scope="col" { "Label" } th scope="col" { "Values" } th scope="col" { "Time" } } }
                tbody { @for of in rows.iter().take(FEEDBACK) { tr {
                    td .number { (show::number_of(&of["row"])) }
                    td { (super::gateway::line(&of["label"])) }
                    td { @for (name, value) in of["values"].as_object().into_iter().flatten().take(10) { (show::text(name, 60)) " " (super::gateway::line(value)) " " } }
                    td { (show::ago(&of["ts"])) }
                } } }
            } }
            @if rows.len() > FEEDBACK { p .quiet { (FEEDBACK) " of " (rows.len()) " rows." } } }
        }
    }
}

/// Where each version that answered comes from.
fn lineage(model: &str, predictions: &[Value]) -> Markup {
    let mut seen = BTreeSet::new();
    let is_new = |of: &&Value| seen.insert((of["version"].to_string(), of["sha256"].to_string()));
    let versions: Vec<&Value> = predictions.iter().filter(is_new).collect();
    html! {
        section #lineage aria-labelledby="lineage-title" {
            h2 #lineage-title { "Where the answers come from" }
            div .wide { table {
                thead { tr { th scope="col" { "Version" } th scope="col" { "File that answered (SHA-256)" } th scope="col" { "The version now" } th scope="col" { "Training data" } th scope="col" { "Code" } } }
                tbody { @for of in versions {
                    @let lineage = &of["lineage"];
                    tr {
                        th scope="row" { a href=(version_path(model, of)) { (text(of, "version", 20)) } }
                        td { code { (text(of, "sha256", 64)) } }
                        td {
                            @if lineage["state"].is_null() { "is not here any more" } @else { (show::state(lineage["state"].as_str().unwrap_or_default())) }
                            @if lineage["same_file"] == true { " the same file" } @else if lineage["same_file"] == false { " " strong .bad { "another file" } }
                        }
                        td { (known(&lineage["training"]["data"]["digest"])) }
                        td { (known(&lineage["training"]["code"]["commit"])) }
                    }
                } }
            } }
        }
    }
}

fn known(value: &Value) -> Markup {
    html! { @if let Some(text) = value.as_str() { code { (show::text(text, 80)) } } @else { span .quiet { "not said" } } }
}

fn run_again(visitor: &Visitor, model: &str, id: &str, first: &Value, found: &Value) -> Markup {
    let action = |action: &str| format!("/requests/{}/{}/{action}", show::escaped(model), show::escaped(id));
    let rows = rows_of(first);
    html! {
        section #again aria-labelledby="again-title" {
            h2 #again-title { "Would the answer be the same today, and why this answer?" }
            @if visitor.may("operate") {
                div .forms {
                    form method="post" action=(action("reproduce")) {
                        input type="hidden" name="csrf" value=(visitor.csrf);
                        button .main { "Run it again" }
                        span .quiet { " with the file that answered, at the lowest priority" }
                    }
                    form method="post" action=(action("explain")) {
                        input type="hidden" name="csrf" value=(visitor.csrf);
                        @if rows > 1 { label for="row" { "Row" } input #row name="row" type="number" min="0" max=(rows - 1) value="0"; " " }
                        button { "Explain the answer" }
                        span .quiet { " by Shapley values of its columns" }
                    }
                }
            } @else { p .quiet { "An operator can run it again here." } }
            @for name in ["reproduce", "explain"] {
                @if let Some(line) = found["commands"][name].as_str() { (layout::command(&show::text(line, 1200))) }
            }
        }
    }
}

/// What running it again gave.
fn outcome(again: &Again) -> Markup {
    html! {
        section #outcome aria-labelledby="outcome-title" {
            h2 #outcome-title { (again.title) }
            @match &again.result {
                Err(problem) => { (layout::complaint(problem)) }
                Ok(result) if result["predictions"].is_array() => { @for of in list(result, "predictions") {
                    p role="status" {
                        (show::state(match of["outcome"].as_str() { Some("equal" | "close") => "ok", Some("apart") => "mismatch", _ => "warning" })) " "
                        "Version " (text(of, "version", 20)) " (" (text(of, "role", 20)) "): " (text(of, "words", 800))
                    }
                } }
                Ok(result) => { (explanation(result)) }
            }
        }
    }
}

fn explanation(result: &Value) -> Markup {
    let mut columns: Vec<&Value> = list(result, "columns").iter().collect();
    let size = |column: &Value| column["value"].as_f64().unwrap_or(0.0).abs();
    columns.sort_by(|a, b| size(b).total_cmp(&size(a)));
    let largest = columns.first().map_or(0.0, |column| size(column));
    let value = |name: &str| result[name].as_f64().map_or_else(|| "–".to_owned(), digits);
    html! {
        p role="status" {
            "Row " (show::number_of(&result["row"])) ": output " code { (text(result, "output", 80)) } ", element " (show::number_of(&result["element"])) ", is " strong { (value("answer")) }
            "; the mean over " (show::number_of(&result["background_rows"])) " other rows is " (value("base")) ". The parts of the columns add up to the difference."
        }
        div .wide { table .values {
            thead { tr { th scope="col" { "Column" } th scope="col" .number { "Value" } th scope="col" .number { "Part" } th scope="col" { "Lowers or raises" } } }
            tbody { @for column in columns.iter().take(PARTS) { tr {
                th scope="row" { (text(column, "column", 80)) }
                td .number { (super::gateway::line(&column["input"])) }
                td .number { (column["value"].as_f64().map_or_else(|| "–".to_owned(), |part| format!("{}{}", if part > 0.0 { "+" } else { "" }, digits(part)))) }
                td { (part(column["value"].as_f64().unwrap_or(0.0), largest)) }
            } } }
        } }
        @if columns.len() > PARTS { p .quiet { (PARTS) " of " (columns.len()) " columns, the largest parts first." } }
    }
}

/// A bar to the right of the middle for a part that raises the answer, and to the left for one that lowers it.
fn part(value: f64, largest: f64) -> Markup {
    let length = if largest > 0.0 { (value.abs() / largest * 80.0).min(80.0) } else { 0.0 };
    let x = if value < 0.0 { 84.0 - length } else { 84.0 };
    html! {
        svg .interval viewBox="0 0 168 20" aria-hidden="true" {
            line .axis x1="84" y1="1" x2="84" y2="19" {}
            rect .range x=(format!("{x:.1}")) y="5" width=(format!("{length:.1}")) height="10" {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::digits;

    #[test]
    fn numbers_have_the_digits_that_show_a_difference() {
        assert_eq!(
            [
                digits(0.0),
                digits(0.123_456_78),
                digits(12.5),
                digits(123_456.7),
                digits(-3.0),
                digits(1e-9),
                digits(2e9)
            ],
            ["0", "0.12346", "12.5", "123457", "-3", "1.0000e-9", "2.0000e9"]
        );
    }
}
