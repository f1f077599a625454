//! The gateways of the fleet: who follows, who does not and why. What is wrong comes first.

use super::{Asked, NoPage, Visitor, layout, models, show};
use axum::extract::Query;
use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

/// Rows of one page.
const ROWS: usize = 80;
/// Of the list of troubles.
const BYTES: usize = 30_000;
/// Troubles of one gateway that are listed.
const OF_ONE: usize = 20;

pub(super) async fn page(visitor: Visitor, Query(asked): Asked) -> Result<Response, NoPage> {
    let fleet = visitor.get("/api/v1/fleet").await?;
    let filter = asked.get("filter").map_or("", |text| text.trim()).to_lowercase();
    let mut rows: Vec<Row> = fleet["nodes"].as_array().into_iter().flatten().map(Row::of).collect();
    let all = rows.len();
    rows.retain(|row| row.name.to_lowercase().contains(&filter));
    rows.sort_by_key(|row| (std::cmp::Reverse(row.wrong()), row.name.to_lowercase()));
    let page: usize = asked.get("page").and_then(|page| page.parse().ok()).unwrap_or(0);
    let pages = rows.len().div_ceil(ROWS).max(1);
    let page = page.min(pages - 1);
    let shown = &rows[page * ROWS..rows.len().min((page + 1) * ROWS)];
    let own = fleet["node"].as_str().unwrap_or_default();
    let content = html! {
        h1 { "Fleet " (show::text(fleet["name"].as_str().unwrap_or_default(), 64)) }
        p .quiet { "As the gateway " (show::text(own, 64)) " sees it. Each gateway reports what is new within a second, and otherwise every three seconds." }
        form .filter method="get" action="/fleet" role="search" {
            label for="filter" { "Filter by name" }
            input #filter type="search" name="filter" value=(filter) autocomplete="off" spellcheck="false";
            button { "Filter" }
        }
        div data-live="fleet" {
            p { (summary(&rows, all)) }
            table {
                thead { tr {
                    th scope="col" { "Gateway" } th scope="col" { "State" } th scope="col" .number { "Behind" } th scope="col" .number { "Last change took" }
                    th scope="col" .number { "Models" } th scope="col" .number { "Ready" } th scope="col" .number { "Failed" }
                    th scope="col" { "Program" } th scope="col" { "Since" }
                } }
                tbody { @for row in shown { (row.show(own)) } }
            }
            (troubles(shown))
        }
        @if pages > 1 { (models::links("/fleet", &format!("filter={}", show::escaped(&filter)), page, pages)) }
        (layout::command("sluicegate fleet"))
    };
    Ok(visitor.page("Fleet", "/fleet", &content))
}

fn summary(rows: &[Row], all: usize) -> String {
    let wrong = rows.iter().filter(|row| row.wrong() > 0).count();
    let of_all = format!("{all} {}", if all == 1 { "gateway" } else { "gateways" });
    let found = if rows.len() == all { of_all } else { format!("{} of {of_all}", rows.len()) };
    match wrong {
        0 => format!("{found}, all of them follow"),
        1 => format!("{found}, 1 needs attention: it comes first"),
        wrong => format!("{found}, {wrong} need attention: they come first"),
    }
}

/// What is wrong with the gateways of the table, in words.
fn troubles(rows: &[Row]) -> Markup {
    let all = || rows.iter().flat_map(|row| row.troubles.iter().take(OF_ONE).map(move |words| (&row.name, words)));
    let left_out: usize = rows.iter().map(|row| row.troubles.len().saturating_sub(OF_ONE)).sum();
    let items =
        all().map(|(name, words)| html! { li { strong { (show::text(name, 64)) } ": " (show::text(words, 400)) } });
    let (items, shown) = layout::fitting(items, BYTES);
    let more = all().count() - shown + left_out;
    html! {
        @if shown > 0 {
            h2 { "What is wrong" }
            ul { (items) }
            @if more > 0 { p .quiet { (more) " more. " code { "sluicegate fleet --json" } " has all." } }
        }
    }
}

/// A gateway as a row.
#[derive(Debug)]
struct Row {
    name: String,
    state: String,
    program: String,
    since: Value,
    behind: u64,
    lag: Value,
    models: usize,
    ready: usize,
    failed: usize,
    /// Documents that wait, and versions that failed.
    troubles: Vec<String>,
}

impl Row {
    fn of(node: &Value) -> Row {
        let text = |name: &str| node[name].as_str().unwrap_or_default().to_owned();
        let mut row = Row {
            name: text("name"),
            state: text("state"),
            program: text("program"),
            since: node["since"].clone(),
            behind: node["behind"].as_u64().unwrap_or(0),
            lag: node["lag_ms"].clone(),
            models: 0,
            ready: 0,
            failed: 0,
            troubles: Vec::new(),
        };
        for (name, model) in node["models"].as_object().into_iter().flatten() {
            row.models += 1;
            row.ready += model["ready"].as_array().map_or(0, Vec::len);
            if let Some(why) = model["waits"].as_str() {
                row.troubles.push(format!("model {name} waits: {why}"));
            }
            for (version, why) in model["failed"].as_object().into_iter().flatten() {
                row.failed += 1;
                row.troubles.push(format!("version {version} of {name} failed: {}", why.as_str().unwrap_or_default()));
            }
        }
        row
    }

    /// How urgent it is; 0: nothing is wrong.
    fn wrong(&self) -> u8 {
        match self {
            Row { state, .. } if state == "lost" => 4,
            Row { state, .. } if state == "degraded" => 3,
            Row { behind: 1.., .. } => 2,
            Row { state, failed, .. } if state != "ready" || *failed > 0 => 1,
            _ => 0,
        }
    }

    fn show(&self, own: &str) -> Markup {
        let lag = self.lag.as_f64().map_or_else(|| "–".to_owned(), |ms| format!("{} ms", show::number(ms)));
        html! { tr {
            th scope="row" { (show::text(&self.name, 64)) @if self.name == own { " " span .quiet { "(this one)" } } }
            td { (show::state(&self.state)) }
            td .number { (self.behind) }
            td .number { (lag) }
            td .number { (self.models) }
            td .number { (self.ready) }
            td .number { (self.failed) }
            td { (show::text(&self.program, 40)) }
            td { @if self.since.as_str().is_some_and(|since| !since.is_empty()) { (show::ago(&self.since)) } @else { "–" } }
        } }
    }
}
