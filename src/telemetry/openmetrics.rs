//! The text of `/metrics` in OpenMetrics 1.0, for scrapers that ask for it: the only form that has exemplars.

use super::exemplars::canonical;
use super::names::{self, Kind, Metric};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The media type of the text.
pub(crate) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The text of these families, which are those of the Prometheus form. `exemplars` has what follows a bucket of the latency histogram, by its
/// labels.
pub(super) fn render(families: &BTreeMap<String, String>, exemplars: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (name, lines) in families {
        let metric = names::ALL.iter().find(|metric| metric.name == name);
        if let Some(metric) = metric {
            head(&mut text, metric);
        }
        match metric.map(|metric| metric.kind) {
            Some(Kind::Histogram(_)) => {
                let exemplars = (*name == names::REQUEST_SECONDS_M.name).then_some(exemplars);
                lines.lines().for_each(|line| bucket(&mut text, line, exemplars));
            }
            _ => text.push_str(lines),
        }
    }
    text
}

fn head(text: &mut String, metric: &Metric) {
    let (name, kind) = match metric.kind {
        // The family of a counter has the name without the suffix of its samples.
        Kind::Counter => (metric.name.strip_suffix("_total").unwrap_or(metric.name), "counter"),
        Kind::Gauge => (metric.name, "gauge"),
        Kind::Histogram(_) => (metric.name, "histogram"),
    };
    let help = metric.help.replace('\\', "\\\\").replace('"', "\\\"");
    let _ = writeln!(text, "# TYPE {name} {kind}\n# HELP {name} {help}");
}

/// A line of a histogram, with its bound as this form wants it, and with its exemplar.
fn bucket(text: &mut String, line: &str, exemplars: Option<&BTreeMap<String, String>>) {
    const BOUND: &str = "le=\"";
    text.push_str(&match parts(line) {
        None => Cow::Borrowed(line),
        Some((before, bound, after)) => {
            let bound = bound.parse().map_or(Cow::Borrowed(bound), |bound: f64| canonical(bound).into());
            let line = format!("{before}{BOUND}{bound}\"{after}");
            let labels = line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(labels, _)| labels);
            let exemplar = labels.and_then(|labels| exemplars?.get(labels)).map_or("", String::as_str);
            format!("{line}{exemplar}").into()
        }
    });
    text.push('\n');
}

/// What stands before the bound, the bound, and what follows its closing quote.
fn parts(line: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = line.split_once("le=\"")?;
    let (bound, after) = rest.split_once('"')?;
    Some((before, bound, after))
}
