//! The alert rules and the dashboards in `deploy/` use metrics and labels that exist.

use super::names::{self, Kind};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Labels that Prometheus adds, and that of the buckets of histograms.
const ALWAYS: [&str; 3] = ["job", "instance", "le"];

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

/// The labels of a metric as an expression names it, or what is wrong with the name.
fn labels_of(name: &str) -> Result<BTreeSet<&'static str>, String> {
    let exact = names::ALL.iter().find(|metric| metric.name == name);
    if let Some(metric) = exact {
        return match metric.kind {
            Kind::Histogram(_) => Err(format!("{name} is a histogram: use its _bucket, _sum or _count")),
            _ => Ok(metric.labels.iter().copied().collect()),
        };
    }
    let base = ["_bucket", "_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending));
    let histogram = base.and_then(|base| names::ALL.iter().find(|metric| metric.name == base));
    match histogram {
        Some(metric) if matches!(metric.kind, Kind::Histogram(_)) => Ok(metric.labels.iter().copied().collect()),
        _ => Err(format!("there is no metric {name}")),
    }
}

/// What is wrong with the metrics and labels of an expression. `recorded`: names of recording rules, which have any labels.
fn wrong(expression: &str, recorded: &BTreeSet<String>) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut known: BTreeSet<&str> = ALWAYS.into();
    let mut any = false;
    let mut rest = expression;
    while let Some(at) = rest.find("sluicegate") {
        let found = &rest[at..];
        let end = found.find(|c| !is_name(c)).unwrap_or(found.len());
        let (name, after) = found.split_at(end);
        rest = after;
        // The value of the label `job`.
        if name == "sluicegate" {
            continue;
        }
        if recorded.contains(name) {
            any = true;
            continue;
        }
        match labels_of(name) {
            Err(complaint) => complaints.push(complaint),
            Ok(labels) => {
                if let Some(matchers) = after.strip_prefix('{').and_then(|after| after.split('}').next()) {
                    for matcher in matchers.split(", ") {
                        let label = matcher.split(['=', '!']).next().unwrap_or_default().trim();
                        if !labels.contains(label) && !ALWAYS.contains(&label) {
                            complaints.push(format!("{name} has no label {label:?}"));
                        }
                    }
                }
                known.extend(labels);
            }
        }
    }
    for (at, _) in expression.match_indices("by (") {
        let list = expression[at + 4..].split(')').next().unwrap_or_default();
        for label in list.split(',').map(str::trim).filter(|label| !any && !known.contains(label)) {
            complaints.push(format!("no metric of the expression has the label {label:?}"));
        }
    }
    complaints
}

/// Labels in a text such as `{{model}}` or `{{ $labels.model }}` that the expression does not have.
fn wrong_in_text(text: &str, expression: &str, recorded: &BTreeSet<String>) -> Vec<String> {
    let labels = text.split("{{").skip(1).filter_map(|part| {
        let inside = part.split("}}").next()?.trim();
        let inside = inside.strip_prefix("$labels.").unwrap_or(inside);
        inside.chars().all(is_name).then_some(inside)
    });
    let of = |label: &str| wrong(&format!("sum by ({label}) ({expression})"), recorded);
    // What an expression sums up over is gone.
    let kept = expression.split("by (").nth(1).map(|list| list.split(')').next().unwrap_or_default());
    let is_kept = |label: &str| kept.is_none_or(|kept| kept.split(',').any(|known| known.trim() == label));
    labels
        .flat_map(|label| {
            let gone = (!is_kept(label)).then(|| format!("{label:?} is summed up"));
            of(label).into_iter().chain(gone)
        })
        .collect()
}

#[test]
fn the_alert_rules_use_metrics_and_labels_that_exist() {
    let text = std::fs::read_to_string(deploy("prometheus/rules.yml")).unwrap();
    let of = |key: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key));
        lines.map(|value| value.trim().to_owned()).collect()
    };
    let recorded: BTreeSet<String> = of("record:").into_iter().collect();
    let expressions = of("expr:");
    assert_eq!(expressions.len(), recorded.len() + of("alert:").len(), "each rule has an expression on one line");
    assert!(expressions.len() > 20 && of("what_to_do:").len() == of("alert:").len());
    let mut complaints = Vec::new();
    let mut expression = "";
    for line in text.lines().map(str::trim) {
        if let Some(found) = line.strip_prefix("expr:") {
            expression = found.trim();
            complaints.extend(wrong(expression, &recorded).into_iter().map(|words| format!("{words}: {expression}")));
        } else if line.starts_with("summary:") || line.starts_with("what_to_do:") {
            complaints
                .extend(wrong_in_text(line, expression, &recorded).into_iter().map(|words| format!("{words}: {line}")));
        }
    }
    assert!(complaints.is_empty(), "deploy/prometheus/rules.yml:\n{}", complaints.join("\n"));
}

#[test]
fn the_dashboards_use_metrics_and_labels_that_exist() {
    let (mut boards, mut expressions, mut complaints) = (0, 0, Vec::new());
    for entry in std::fs::read_dir(deploy("grafana")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let board: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        boards += 1;
        assert!(board["uid"].as_str().is_some_and(|uid| uid.starts_with("sluicegate-")), "{name}");
        let panels = board["panels"].as_array().unwrap();
        let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len(), "{name}: the ids of panels are different");
        for target in panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap()) {
            let (expression, legend) = (target["expr"].as_str().unwrap(), target["legendFormat"].as_str().unwrap());
            expressions += 1;
            let none = BTreeSet::new();
            let found = wrong(expression, &none).into_iter().chain(wrong_in_text(legend, expression, &none));
            complaints.extend(found.map(|words| format!("{name}: {words}: {expression}")));
        }
        for variable in board["templating"]["list"].as_array().unwrap() {
            let Some(query) = variable["query"]["query"].as_str() else { continue };
            let inside = query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')')).unwrap();
            let (metric, label) = inside.split_once(", ").unwrap();
            complaints.extend(wrong(&format!("sum by ({label}) ({metric})"), &BTreeSet::new()));
        }
    }
    assert!(boards >= 3 && expressions > 40, "{boards} dashboards with {expressions} expressions");
    assert!(complaints.is_empty(), "deploy/grafana:\n{}", complaints.join("\n"));
}

#[test]
fn a_wrong_metric_or_label_is_found() {
    let none = BTreeSet::new();
    for (expression, words) in [
        ("sluicegate_request_total", "there is no metric sluicegate_request_total"),
        ("sluicegate_request_duration_seconds{model=\"m\"}", "is a histogram"),
        ("sluicegate_ready_bucket", "there is no metric"),
        ("rate(sluicegate_requests_total{modell=~\"a\"}[5m])", "has no label \"modell\""),
        ("sum by (versionn) (sluicegate_requests_total)", "has the label \"versionn\""),
    ] {
        let found = wrong(expression, &none).join("; ");
        assert!(found.contains(words), "{expression}: {found}");
    }
    assert_eq!(wrong("up{job=\"sluicegate\"} == 0", &none), [""; 0]);
    assert!(!wrong_in_text("{{arm}}", "sum by (model) (sluicegate_requests_total)", &none).is_empty());
    assert!(!wrong_in_text("{{ $labels.plane }}", "sluicegate_ready == 0", &none).is_empty());
}
