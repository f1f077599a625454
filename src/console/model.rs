//! One model, and one version of it.

use super::{NoPage, Visitor, evidence, flow, layout, rollout, show};
use axum::extract::{Path, Query};
use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

/// Revisions that are listed.
const HISTORY: usize = 20;
/// Arms and shadows that are listed.
const ARMS: usize = 8;
/// Of all parts below the traffic, of the history, of the list of versions, and of the tensors of a version.
const BYTES_OF_PARTS: usize = 60_000;
const BYTES_OF_HISTORY: usize = 10_000;
const BYTES_OF_VERSIONS: usize = 12_000;
const BYTES_OF_TENSORS: usize = 24_000;

pub(super) async fn page(
    visitor: Visitor,
    Path(name): Path<String>,
    Query(asked): super::Asked,
) -> Result<Response, NoPage> {
    let path = format!("/api/v1/models/{}", show::escaped(&name));
    let model = visitor.get(&path).await?;
    let rollout = visitor.try_get(&format!("{path}/rollout")).await;
    let shadows = visitor.try_get(&format!("{path}/shadows")).await.unwrap_or_default();
    let quality = visitor.try_get(&format!("{path}/quality")).await.unwrap_or_default();
    let traffic = visitor.try_get(&format!("{path}/traffic")).await.unwrap_or_default();
    let history = visitor.try_get(&format!("{path}/history")).await.unwrap_or_default();
    let drift = visitor.try_get(&format!("{path}/drift?bins={}", super::drift::DRAWN)).await.unwrap_or_default();
    let experiment = visitor.try_get(&format!("{path}/experiment")).await.unwrap_or_default();
    let alerts = visitor
        .try_get(&format!("/api/v1/alerts?state=firing&limit=100&model={}", show::escaped(&name)))
        .await
        .unwrap_or_default();
    let figures = visitor.try_get(&format!("{path}/figures?window=1h")).await.unwrap_or_default();
    let execution = visitor.try_get(&format!("{path}/execution")).await.unwrap_or_default();
    let last = &history["history"][0];
    let rollout = rollout.filter(|rollout| !rollout["state"].is_null());
    let parts = [
        rollout.map(|rollout| rollout::section(&name, &rollout, visitor.may("operate"))).unwrap_or_default(),
        super::chart::section(&figures, &history),
        super::timeline::section(&history),
        super::chart::first_days(&figures),
        super::chart::reproduced(&figures),
        versions(&visitor, &name, &model),
        evidence::experiment(&experiment),
        shadow_section(&shadows),
        quality_section(&quality),
        super::drift::section(&drift),
        super::runs::section(&execution),
    ];
    let content = html! {
        h1 { (show::text(&name, 130)) " " (state(&model)) }
        @if let Some(done) = asked.get("done") { p .good role="status" { "Done: " (show::text(done, 40)) "." } }
        @if let Some(reason) = model["reason"].as_str() { p .bad { (show::text(reason, 500)) } }
        @for note in model["notes"].as_array().into_iter().flatten().take(5) { p .warn { (show::text(note.as_str().unwrap_or_default(), 500)) } }
        div data-live="model" {
            (super::alerts::list(&alerts, 3, visitor.may("operate")))
            section #traffic aria-labelledby="traffic-title" {
                h2 #traffic-title { "Traffic" }
                (flow::drawing(&model["document"]))
                @if !last.is_null() {
                    p { "Revision " (show::number_of(&model["revision"])) ", " (show::ago(&last["ts"])) " by " strong { (show::text(last["actor"].as_str().unwrap_or("–"), 80)) } ": " (show::text(last["reason"].as_str().unwrap_or("no reason was given"), 300)) }
                }
                (shares(&traffic))
                (actions(&visitor, &name))
                p { a href=(format!("/requests?model={}", show::escaped(&name))) { "Logged requests" } }
            }
            (layout::parts(&parts, BYTES_OF_PARTS))
        }
        section #history aria-labelledby="history-title" {
            h2 #history-title { "History of the traffic" }
            (history_table(&visitor, &name, &history))
        }
    };
    Ok(visitor.page(&name, "/", &content))
}

fn state(model: &Value) -> Markup {
    let word = if !model["retired"].is_null() {
        "retired"
    } else if model["ready"] == true {
        "serving"
    } else {
        "failed"
    };
    show::state(word)
}

fn actions(visitor: &Visitor, name: &str) -> Markup {
    let link = |action: &str| format!("/models/{}/{action}", show::escaped(name));
    html! {
        @if visitor.may("operate") {
            p .actions {
                a .button .main href=(link("rollback")) { "Go back" }
                a .button href=(link("promote")) { "Promote" }
                a .button href=(link("split")) { "Split" }
                a .button href=(link("rollout")) { "Roll out" }
                a .button href=(link("shadow")) { "Shadow" }
                a .button href=(link("rule")) { "Rules" }
                a .button href=(link("document")) { "Edit the document" }
                a .button href=(link("retire")) { "Retire" }
            }
        }
    }
}

fn shares(traffic: &Value) -> Markup {
    let Some(shares) = traffic["shares"].as_array().filter(|shares| !shares.is_empty()) else { return html! {} };
    let ratio = &traffic["sample_ratio"];
    html! {
        table {
            thead { tr { th scope="col" { "Arm" } th scope="col" { "Version" } th scope="col" .number { "Configured" } th scope="col" .number { "Observed" } th scope="col" .number { "Requests" } th scope="col" { "Breaker" } } }
            tbody { @for arm in shares.iter().take(ARMS) { tr {
                th scope="row" { (show::text(arm["arm"].as_str().unwrap_or_default(), 60)) }
                td { (show::text(arm["version"].as_str().unwrap_or_default(), 20)) }
                td .number { (show::share_of(&arm["configured"])) }
                td .number { (show::share_of(&arm["observed"])) }
                td .number { (show::number_of(&arm["requests"])) }
                td { (show::state(arm["breaker"].as_str().unwrap_or("–"))) }
            } } }
        }
        @if let Some(verdict) = ratio["verdict"].as_str().filter(|_| shares.len() > 1) {
            p .quiet { "Sample ratio " (show::state(verdict)) ": counted by " (show::text(ratio["unit"].as_str().unwrap_or("request"), 20)) ", p = " (show::number_of(&ratio["p_value"])) "." }
        }
    }
}

fn versions(visitor: &Visitor, name: &str, model: &Value) -> Markup {
    let mut list: Vec<&Value> = model["versions"].as_array().into_iter().flatten().collect();
    list.reverse();
    let path = |version: &str| format!("/models/{}/versions/{}", show::escaped(name), show::escaped(version));
    let act = |action: &str, version: &str| {
        format!("/models/{}/{action}?version={}", show::escaped(name), show::escaped(version))
    };
    let rows = list.iter().map(|version| {
        let number = version["version"].as_str().unwrap_or_default();
        let state = version["state"].as_str().unwrap_or_default();
        html! { tr {
            th scope="row" { a href=(path(number)) { (show::text(number, 20)) } }
            td { (show::state(state)) }
            td { (show::text(version["engine"].as_str().unwrap_or("–"), 20)) }
            td .number { (show::bytes(&version["bytes"])) }
            td .number { (show::number_of(&version["in_flight"])) }
            td { (remarks(version)) }
            @if visitor.may("operate") { td .actions {
                @match state {
                    "ready" => { a href=(act("promote", number)) { "Promote" } " " a href=(act("rollout", number)) { "Roll out" } " " a href=(act("unload", number)) { "Unload" } }
                    "serving" => { a href=(act("promote", number)) { "Promote" } }
                    "failed" | "unloaded" => { a href=(act("load", number)) { "Load" } }
                    _ => {}
                }
            } }
        } }
    });
    let (rows, shown) = layout::fitting(rows, BYTES_OF_VERSIONS);
    html! {
        section #versions aria-labelledby="versions-title" {
            h2 #versions-title { "Versions" }
            table {
                thead { tr { th scope="col" { "Version" } th scope="col" { "State" } th scope="col" { "Engine" } th scope="col" .number { "Size" } th scope="col" .number { "In flight" } th scope="col" { "Remarks" } @if visitor.may("operate") { th scope="col" { "Actions" } } } }
                tbody { (rows) }
            }
            @if list.len() > shown { p .quiet { "The newest " (shown) " of " (list.len()) ". " code { "sluicegate versions " (show::text(name, 130)) } " has all." } }
        }
    }
}

fn remarks(version: &Value) -> Markup {
    let reason = version["reason"].as_str().map(|reason| {
        let stage = version["stage"].as_str().map(|stage| format!("{stage}: ")).unwrap_or_default();
        format!("{stage}{reason}")
    });
    let notes: Vec<&str> = version["notes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    html! {
        @if let Some(reason) = reason { span .bad { (show::text(&reason, 300)) } " " }
        @for note in notes.iter().take(3) { span .quiet { (show::text(note, 160)) } " " }
    }
}

fn shadow_section(shadows: &Value) -> Markup {
    let Some(list) = shadows["shadows"].as_array().filter(|list| !list.is_empty()) else { return html! {} };
    html! {
        section #shadows aria-labelledby="shadows-title" {
            h2 #shadows-title { "Shadows" }
            table {
                thead { tr { th scope="col" { "Version" } th scope="col" .number { "Copies of" } th scope="col" .number { "Compared" } th scope="col" .number { "Disagreed" } } }
                tbody { @for shadow in list.iter().take(ARMS) { tr {
                    th scope="row" { (show::text(shadow["version"].as_str().unwrap_or_default(), 20)) }
                    td .number { (show::share_of(&shadow["sample"])) }
                    td .number { (show::number_of(&shadow["compared"])) }
                    td .number { (show::number_of(&shadow["disagreed"])) }
                } } }
            }
        }
    }
}

fn quality_section(quality: &Value) -> Markup {
    let Some(arms) = quality["arms"].as_array().filter(|arms| !arms.is_empty()) else { return html! {} };
    html! {
        section #quality aria-labelledby="quality-title" {
            h2 #quality-title { "Quality from feedback" }
            table {
                thead { tr { th scope="col" { "Version" } th scope="col" { "Arm" } th scope="col" .number { "Answers" } th scope="col" .number { "Labels" } th scope="col" .number { "Accuracy" } th scope="col" .number { "Mean absolute error" } th scope="col" { "Values" } } }
                tbody { @for arm in arms.iter().take(ARMS) { tr {
                    th scope="row" { (show::text(arm["version"].as_str().unwrap_or_default(), 20)) }
                    td { (show::text(arm["arm"].as_str().unwrap_or_default(), 60)) }
                    td .number { (show::number_of(&arm["predictions"])) }
                    td .number { (show::number_of(&arm["labelled"])) }
                    td .number { (show::share_of(&arm["accuracy"])) }
                    td .number { (show::number_of(&arm["mean_absolute_error"])) }
                    td { @for (name, value) in arm["values"].as_object().into_iter().flatten().take(5) { (show::text(name, 40)) " " (show::number_of(&value["mean"])) " ± " (show::number_of(&value["standard_error"])) " " } }
                } } }
            }
        }
    }
}

fn history_table(visitor: &Visitor, name: &str, history: &Value) -> Markup {
    let revisions = history["history"].as_array().map_or(&[][..], Vec::as_slice);
    let items = revisions.iter().take(HISTORY).enumerate().map(|(index, revision)| {
        let number = revision["revision"].as_u64().unwrap_or(0);
        html! { li {
            p { "Revision " (number) ", " (show::ago(&revision["ts"])) " by " strong { (show::text(revision["actor"].as_str().unwrap_or("–"), 80)) } ", " (show::text(&revision["action"].as_str().unwrap_or_default().replace('_', " "), 40)) @if let Some(reason) = revision["reason"].as_str() { ": " (show::text(reason, 300)) } }
            @if let Some(before) = revisions.get(index + 1) {
                details { summary { "What changed" } (super::difference::table(&super::difference::between(&before["document"], &revision["document"]))) }
            }
            @if index > 0 && visitor.may("operate") { a href=(format!("/models/{}/rollback?to_revision={number}", show::escaped(name))) { "Go back to this" } }
        } }
    });
    let (items, shown) = layout::fitting(items, BYTES_OF_HISTORY);
    html! {
        @if revisions.is_empty() { p .quiet { "No version of this model has served yet." } }
        ol .history { (items) }
        @if revisions.len() > shown { p .quiet { "The newest " (shown) " of " (revisions.len()) ". " code { "sluicegate history " (show::text(name, 130)) } " has all." } }
    }
}

pub(super) async fn version(
    visitor: Visitor,
    Path((name, number)): Path<(String, String)>,
) -> Result<Response, NoPage> {
    let path = format!("/api/v1/models/{}/versions/{}", show::escaped(&name), show::escaped(&number));
    let version = visitor.get(&path).await?;
    let approval = visitor.try_get(&format!("{path}/approval")).await.unwrap_or_default();
    let lineage = visitor.try_get(&format!("{path}/lineage")).await.unwrap_or_default();
    let week = format!("/api/v1/models/{}/quality?window=7d", show::escaped(&name));
    let week = visitor.try_get(&week).await.unwrap_or_default();
    let model_path = format!("/models/{}", show::escaped(&name));
    let status = approval["status"].as_str().unwrap_or_default();
    let sides = [("input", "inputs"), ("optional input", "optional_inputs"), ("output", "outputs")];
    let of_side = |(side, list): (&'static str, &str)| {
        version["signature"][list].as_array().into_iter().flatten().map(|tensor| (side, tensor)).collect::<Vec<_>>()
    };
    let all: Vec<(&str, &Value)> = sides.into_iter().flat_map(of_side).collect();
    let tensors = all.iter().map(|(side, tensor)| {
        html! { tr {
            th scope="row" { code { (show::text(tensor["name"].as_str().unwrap_or_default(), 120)) } }
            td { (side) }
            td { (tensor["datatype"].as_str().unwrap_or("–")) }
            td { code { (show::text(&tensor["shape"].to_string(), 200)) } }
        } }
    });
    let (tensors, shown) = layout::fitting(tensors, BYTES_OF_TENSORS);
    let content = html! {
        p { a href=(model_path) { (show::text(&name, 130)) } }
        h1 { "Version " (show::text(&number, 20)) " " (show::state(version["state"].as_str().unwrap_or_default())) }
        (remarks(&version))
        h2 { "Inputs and outputs" }
        table {
            thead { tr { th scope="col" { "Tensor" } th scope="col" { "Side" } th scope="col" { "Datatype" } th scope="col" { "Shape" } } }
            tbody { (tensors) }
        }
        @if shown < all.len() { p .quiet { "The first " (shown) " of " (all.len()) "." } }
        (evidence::accuracy(&week, &number))
        h2 { "Approval" }
        p {
            @if approval["required"] == true { "A second person has to approve its files before it serves. " } @else { "No approval is required. " }
            "Status: " (show::state(if status.is_empty() { "none" } else { status }))
        }
        @if visitor.may("approve") {
            p .actions {
                a .button href=(format!("{model_path}/approve?version={}", show::escaped(&number))) { "Approve" }
                a .button href=(format!("{model_path}/reject?version={}", show::escaped(&number))) { "Reject" }
            }
        }
        h2 { "Files and times" }
        (super::gateway::facts(&without(&version, &["signature", "metadata", "notes"])))
        h2 { "What its author says" }
        (super::gateway::facts(&version["metadata"]))
        @if !lineage.is_null() { h2 { "Lineage" } (super::gateway::facts(&without(&lineage, &["model", "version"]))) }
    };
    Ok(visitor.page(&format!("{name} {number}"), "/", &content))
}

fn without(value: &Value, names: &[&str]) -> Value {
    let mut value = value.clone();
    if let Value::Object(members) = &mut value {
        members.retain(|name, _| !names.contains(&name.as_str()));
    }
    value
}
