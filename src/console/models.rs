//! The first page: all models, what is wrong first.

use super::{Asked, NoPage, Visitor, flow, show};
use axum::extract::Query;
use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

/// Rows of one page. With 2,000 models nobody reads on; they filter.
const ROWS: usize = 80;

pub(super) async fn page(visitor: Visitor, Query(asked): Asked) -> Result<Response, NoPage> {
    let models = visitor.get("/api/v1/models").await?;
    let alerts = visitor.try_get("/api/v1/alerts?state=firing").await.unwrap_or_default();
    let figures = visitor.try_get("/api/v1/figures").await.unwrap_or_default();
    let filter = asked.get("filter").map_or("", |text| text.trim()).to_lowercase();
    let mut rows: Vec<Row> = models["models"].as_array().into_iter().flatten().map(Row::of).collect();
    let all = rows.len();
    rows.retain(|row| row.name.to_lowercase().contains(&filter));
    for row in &mut rows {
        let of_model = alerts["alerts"].as_array().into_iter().flatten().filter(|a| a["model"] == row.name);
        row.alerts = of_model.map(|alert| alert["rule"].as_str().unwrap_or_default().to_owned()).collect();
    }
    let sort = asked.get("sort").map_or("", String::as_str);
    let sort = SORTS.iter().map(|(key, ..)| *key).find(|key| *key == sort).unwrap_or_default();
    sorted(&mut rows, sort, &figures["models"]);
    let page: usize = asked.get("page").and_then(|page| page.parse().ok()).unwrap_or(0);
    let found = rows.len();
    let pages = found.div_ceil(ROWS).max(1);
    let page = page.min(pages - 1);
    let shown: Vec<&Row> = rows.iter().skip(page * ROWS).take(ROWS).collect();
    let content = html! {
        h1 { "Models" }
        @if all == 0 {
            p { "There are no models yet. Copy one into the models directory, or run " code { "sluicegate push NAME 1 model.onnx" } "." }
        } @else {
            form .filter method="get" action="/" role="search" {
                label for="filter" { "Filter by name" }
                input #filter type="search" name="filter" value=(filter) autocomplete="off" spellcheck="false";
                @if !sort.is_empty() { input type="hidden" name="sort" value=(sort); }
                button { "Filter" }
                span .quiet { (summary(&rows, all)) }
            }
            div data-live="models" {
                table {
                    thead { tr {
                        (head("name", sort, &filter)) (head("", sort, &filter)) th scope="col" { "Answers" } (head("requests", sort, &filter))
                        (head("p99", sort, &filter)) (head("failed", sort, &filter)) th scope="col" { "Last hour" } (head("versions", sort, &filter)) (head("alerts", sort, &filter))
                    } }
                    tbody { @for row in shown { (row.show(&figures["models"][row.name.as_str()])) } }
                }
            }
            @if pages > 1 { (links("/", &format!("sort={sort}&filter={}", show::escaped(&filter)), page, pages)) }
        }
    };
    Ok(visitor.page("Models", "/", &content))
}

fn summary(rows: &[Row], all: usize) -> String {
    let wrong = rows.iter().filter(|row| row.wrong() > 0).count();
    let of_all = show::counted(all as f64, "model", "models");
    let found = if rows.len() == all { of_all } else { format!("{} of {of_all}", rows.len()) };
    match (rows.len(), wrong) {
        (0, _) => format!("{found}: no name contains this"),
        (1, 0) => format!("{found}: nothing is wrong with it"),
        (_, 0) => format!("{found}: nothing is wrong with any of them"),
        (1, _) => format!("{found}: it needs attention"),
        (_, 1) => format!("{found}, 1 needs attention: it comes first"),
        (_, wrong) => format!("{found}, {wrong} need attention: they come first"),
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

/// Sorts by a parameter of [`SORTS`]. Rows that are equal in it, and all without one, are sorted by how urgent they are.
fn sorted(rows: &mut [Row], sort: &str, figures: &Value) {
    rows.sort_by_key(|row| (std::cmp::Reverse(row.wrong()), row.name.to_lowercase()));
    let figure = |row: &Row, name: &str| figures[row.name.as_str()][name].as_f64().unwrap_or(-1.0);
    let number = |row: &Row| match sort {
        "requests" => figure(row, "requests_per_s"),
        "p99" => figure(row, "p99_us"),
        "failed" => figure(row, "failed"),
        "versions" => row.versions as f64,
        "alerts" => row.alerts.len() as f64,
        _ => 0.0,
    };
    if sort == "name" {
        rows.sort_by_key(|row| row.name.to_lowercase());
    } else {
        rows.sort_by(|a, b| number(b).total_cmp(&number(a)));
    }
}

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
#[derive(Debug)]
struct Row {
    name: String,
    ready: bool,
    retired: bool,
    reason: String,
    shares: Vec<(String, f64)>,
    versions: usize,
    failed: Vec<String>,
    /// The rules of the alerts that fire.
    alerts: Vec<String>,
}

impl Row {
    fn of(model: &Value) -> Row {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |name: &str| model[name].as_array().map_or(&[][..], Vec::as_slice);
        let failed = list("versions").iter().filter(|v| v["state"] == "failed").map(|v| text(&v["version"]));
        Row {
            name: text(&model["name"]),
            ready: model["ready"] == true,
            retired: !model["retired"].is_null(),
            reason: text(&model["reason"]),
            shares: list("answers").iter().map(|a| (text(&a["version"]), a["share"].as_f64().unwrap_or(0.0))).collect(),
            versions: list("versions").len(),
            failed: failed.collect(),
            alerts: Vec::new(),
        }
    }

    /// How urgent it is; 0: nothing is wrong.
    fn wrong(&self) -> u8 {
        match self {
            Row { retired: true, .. } => 0,
            Row { ready: false, .. } => 3,
            Row { alerts, .. } if !alerts.is_empty() => 2,
            Row { failed, .. } if !failed.is_empty() => 1,
            _ => 0,
        }
    }

    fn show(&self, figures: &Value) -> Markup {
        let state = match self {
            Row { retired: true, .. } => html! { (show::state("retired")) },
            Row { ready: false, .. } => html! { (show::state("failed")) " " (show::text(&self.reason, 120)) },
            Row { failed, .. } if !failed.is_empty() => {
                html! { (show::state("warning")) " failed: " (show::text(&failed.join(", "), 40)) }
            }
            _ => show::state("serving"),
        };
        html! {
            tr {
                th scope="row" { a href=(format!("/models/{}", show::escaped(&self.name))) { (show::text(&self.name, 80)) } }
                td { (state) }
                td { (flow::bar(&self.shares)) (answers(&self.shares)) }
                td .number { (show::number_of(&figures["requests_per_s"])) }
                td .number { (show::ms_of_us(&figures["p99_us"])) }
                td .number { (show::share_of(&figures["failed"])) }
                td { (sparkline(&figures["last_hour"])) }
                td .number { (self.versions) }
                td { @if self.alerts.is_empty() { "–" } @else { a href=(format!("/alerts?model={}", show::escaped(&self.name))) { (rules(&self.alerts)) } } }
            }
        }
    }
}

/// What alerts are about: each rule once, three of them.
fn rules(alerts: &[String]) -> String {
    let mut rules: Vec<&String> = alerts.iter().collect();
    rules.sort_unstable();
    rules.dedup();
    let words: Vec<String> = rules.iter().take(3).map(|rule| show::text(&rule.replace('_', " "), 30)).collect();
    format!("{}{}", words.join(", "), if rules.len() > 3 { " …" } else { "" })
}

fn answers(shares: &[(String, f64)]) -> Markup {
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
