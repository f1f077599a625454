//! The first page: all models, what is wrong first.

use super::{Asked, NoPage, Visitor, flow, show};
use axum::extract::Query;
use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

/// Rows of one page. With 2,000 models nobody reads on; they filter.
const ROWS: usize = 80;
/// The most bytes of a filter: those of a name.
const FILTER: usize = 128;
/// Pages that can be asked for.
const MOST_PAGES: usize = 10_000;

pub(super) async fn page(visitor: Visitor, Query(asked): Asked) -> Result<Response, NoPage> {
    let filter = asked.get("filter").map_or("", |text| text.trim());
    let filter = &filter[..filter.floor_char_boundary(FILTER)];
    let sort = asked.get("sort").map_or("", String::as_str);
    let sort = SORTS.iter().map(|(key, ..)| *key).find(|key| *key == sort).unwrap_or_default();
    let page: usize = asked.get("page").and_then(|page| page.parse().ok()).unwrap_or(0).min(MOST_PAGES);
    let mut overview = visitor.get(&path(sort, filter, page)).await?;
    let count =
        |overview: &Value, name: &str| overview[name].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let pages = count(&overview, "found").div_ceil(ROWS).max(1);
    if page >= pages {
        // There were more of them, or somebody wrote the number.
        overview = visitor.get(&path(sort, filter, pages - 1)).await?;
    }
    let page = page.min(pages - 1);
    let (all, found, wrong) = (count(&overview, "models"), count(&overview, "found"), count(&overview, "wrong"));
    let rows = overview["rows"].as_array().map_or(&[][..], Vec::as_slice);
    let content = html! {
        h1 { "Models" }
        @if all == 0 {
            p { "There are no models yet. Copy one into the models directory, or run " code { "sluicegate push NAME 1 model.onnx" } "." }
        } @else {
            form .filter method="get" action="/" role="search" {
                label for="filter" { "Filter by name" }
                input #filter type="search" name="filter" value=(filter) maxlength=(FILTER) autocomplete="off" spellcheck="false";
                @if !sort.is_empty() { input type="hidden" name="sort" value=(sort); }
                button { "Filter" }
                span .quiet data-live="summary" { (summary(all, found, wrong)) }
            }
            div data-live="models" {
                table {
                    thead { tr {
                        (head("name", sort, filter)) (head("", sort, filter)) th scope="col" { "Answers" } (head("requests", sort, filter))
                        (head("p99", sort, filter)) (head("failed", sort, filter)) th scope="col" { "Last hour" } (head("versions", sort, filter)) (head("alerts", sort, filter))
                    } }
                    tbody { @for model in rows { (row(model)) } }
                }
            }
            @if pages > 1 { (links("/", &format!("sort={sort}&filter={}", show::escaped(filter)), page, pages)) }
        }
    };
    Ok(visitor.page("Models", "/", &content))
}

/// What the API is asked for: the rows of this page alone.
fn path(sort: &str, filter: &str, page: usize) -> String {
    let sort = if sort.is_empty() { "attention" } else { sort };
    format!("/api/v1/overview?sort={sort}&filter={}&offset={}&limit={ROWS}", show::escaped(filter), page * ROWS)
}

fn summary(all: usize, found: usize, wrong: usize) -> String {
    let of_all = show::counted(all as f64, "model", "models");
    let words = if found == all { of_all } else { format!("{found} of {of_all}") };
    match (found, wrong) {
        (0, _) => format!("{words}: no name contains this"),
        (1, 0) => format!("{words}: nothing is wrong with it"),
        (_, 0) => format!("{words}: nothing is wrong with any of them"),
        (1, _) => format!("{words}: it needs attention"),
        (_, 1) => format!("{words}, 1 needs attention: it comes first"),
        (_, wrong) => format!("{words}, {wrong} need attention: they come first"),
    }
}

/// What the list can be sorted by: the parameter, the head of the column, and whether it has numbers, of which the largest come first.
const SORTS: [(&str, &str, bool); 7] = [
    ("", "State", false),
    ("name", "Model", false),
    ("requests", "Requests/s", true),
    ("p99", "p99", true),
    ("failed", "Failed", true),
    ("versions", "Versions", true),
    ("alerts", "Alerts", false),
];

/// The head of a column that the list can be sorted by.
fn head(key: &str, sort: &str, filter: &str) -> Markup {
    let (_, label, numbers) = SORTS.into_iter().find(|(known, ..)| *known == key).unwrap_or_default();
    let order = (key == sort).then_some(if key == "name" { "ascending" } else { "descending" });
    html! {
        th scope="col" .number[numbers] aria-sort=[order] {
            a href=(format!("/?sort={key}&filter={}", show::escaped(filter))) { (label) }
        }
    }
}

/// Leads to the other pages of a list, which is at `path`. `parameters` are its other parameters, escaped.
pub(super) fn links(path: &str, parameters: &str, page: usize, pages: usize) -> Markup {
    let link = |page: usize| format!("{path}?{parameters}&page={page}");
    html! {
        nav .pages aria-label="Pages of the list" {
            @if page > 0 { a href=(link(page - 1)) rel="prev" { "Previous" } }
            span { "Page " (page + 1) " of " (pages) }
            @if page + 1 < pages { a href=(link(page + 1)) rel="next" { "Next" } }
        }
    }
}

/// A model as a row.
fn row(model: &Value) -> Markup {
    let name = model["name"].as_str().unwrap_or_default();
    let texts =
        |name: &str| -> Vec<&str> { model[name].as_array().into_iter().flatten().filter_map(Value::as_str).collect() };
    let answers = model["answers"].as_array().into_iter().flatten();
    let share =
        |arm: &Value| (arm["version"].as_str().unwrap_or_default().to_owned(), arm["share"].as_f64().unwrap_or(0.0));
    let shares: Vec<(String, f64)> = answers.map(share).collect();
    let (failed, alerts, figures) = (texts("failed_versions"), texts("alerts"), &model["figures"]);
    let state = if model["retired"] == true {
        show::state("retired")
    } else if model["ready"] != true {
        html! { (show::state("failed")) " " (show::text(model["reason"].as_str().unwrap_or_default(), 120)) }
    } else if !failed.is_empty() {
        html! { (show::state("warning")) " failed: " (show::text(&failed.join(", "), 40)) }
    } else {
        show::state("serving")
    };
    html! {
        tr {
            th scope="row" { a href=(format!("/models/{}", show::escaped(name))) { (show::text(name, 80)) } }
            td { (state) }
            td { (flow::bar(&shares)) (versions(&shares)) }
            td .number { (show::number_of(&figures["requests_per_s"])) }
            td .number { (show::ms_of_us(&figures["p99_us"])) }
            td .number { (show::share_of(&figures["failed"])) }
            td { (sparkline(&figures["last_hour"])) }
            td .number { (show::number_of(&model["versions"])) }
            td { @if alerts.is_empty() { "–" } @else { a href=(format!("/alerts?model={}", show::escaped(name))) { (rules(&alerts)) } } }
        }
    }
}

/// What alerts are about, at most three rules.
fn rules(alerts: &[&str]) -> String {
    let words: Vec<String> = alerts.iter().take(3).map(|rule| show::text(&rule.replace('_', " "), 30)).collect();
    format!("{}{}", words.join(", "), if alerts.len() > 3 { " …" } else { "" })
}

fn versions(shares: &[(String, f64)]) -> Markup {
    let words: Vec<String> = shares
        .iter()
        .take(4)
        .map(|(version, share)| format!("v{} {}", show::text(version, 10), show::share(*share)))
        .collect();
    html! { span .quiet { (words.join(" · ")) @if shares.len() > 4 { " …" } } }
}

/// Requests per second over the last hour; the highest point is as high as the line.
pub(super) fn sparkline(points: &Value) -> Markup {
    let points: Vec<f64> = points.as_array().into_iter().flatten().map(|p| p.as_f64().unwrap_or(0.0)).collect();
    if points.len() < 2 {
        return html! { span .quiet { "–" } };
    }
    let highest = points.iter().copied().fold(0.0, f64::max);
    // Two minutes are four units wide; more points would not be seen, and a page has many lines.
    let points: Vec<f64> = points.chunks(2).map(|pair| pair.iter().sum::<f64>() / pair.len() as f64).collect();
    let top = points.iter().copied().fold(0.0, f64::max);
    let scale = if top > 0.0 { 20.0 / top } else { 0.0 };
    let step = 120.0 / (points.len() - 1).max(1) as f64;
    let line = points
        .iter()
        .enumerate()
        .map(|(index, value)| format!("{:.0},{:.0}", index as f64 * step, 22.0 - value * scale))
        .collect::<Vec<_>>()
        .join(" ");
    html! {
        svg .spark viewBox="0 0 120 24" role="img" aria-label=(format!("requests per second in the last hour, at most {}", show::number(highest))) {
            polyline points=(line) {}
        }
    }
}
