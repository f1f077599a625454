//! The resources of the gateway, each with what is used of it, its limit, and a sentence where it is not well. What an alert says is said by the alert.

use super::show;
use maud::{Markup, html};
use serde_json::Value;

/// Above this share of its cores, a gateway lets requests wait.
const BUSY: f64 = 0.9;
/// Above this share of its limit, a queue or the memory of requests will soon refuse some.
const NEARLY_FULL: f64 = 0.8;

/// What the API says now. What the person may not see is null.
pub(super) struct Now<'a> {
    pub(super) gateway: Value,
    /// About the server itself.
    pub(super) alerts: Value,
    /// The newest event of the audit trail.
    pub(super) audit: Value,
    /// Null without a fleet.
    pub(super) fleet: Value,
    pub(super) ready: &'a Value,
    pub(super) log: &'a Value,
    pub(super) tokens: &'a Value,
}

/// A resource.
struct Row {
    what: String,
    used: Markup,
    limit: Markup,
    /// The rules of the alerts about it, and the beginning of their subject.
    rules: &'static [&'static str],
    subject: &'static str,
    /// Why it is not well, where no alert says so.
    warning: Option<String>,
}

impl Now<'_> {
    pub(super) fn section(&self) -> Markup {
        let rows = self.rows();
        html! {
            section aria-labelledby="well-title" {
                h2 #well-title { "Is the gateway itself well?" }
                div .wide { table .well {
                    thead { tr { th scope="col" { "What" } th scope="col" .number { "Now" } th scope="col" .number { "Limit" } th scope="col" { "State" } } }
                    tbody { @for row in &rows { (self.row(row)) } }
                } }
                (self.others(&rows))
                @if let Some(started) = self.gateway["started_at"].as_str() {
                    p .quiet { "Version " (show::text(self.gateway["program"].as_str().unwrap_or("–"), 40)) ", started " (show::ago(&started.into())) "." }
                }
            }
        }
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        if !self.gateway.is_null() {
            rows.extend([self.cores(), self.process_memory(), self.queue()]);
        }
        let held = [
            ("requests", "Memory that requests hold", "requests that do not fit any more are refused"),
            ("prediction_log", "Records that wait to be written", "records that do not fit any more are lost"),
            ("shadows", "Copies for shadows", "copies that do not fit any more are left out"),
        ];
        rows.extend(held.map(|(name, what, then)| held_row(what, &self.ready["memory"][name], then)));
        rows.extend(self.disk());
        if !self.log.is_null() {
            rows.extend([self.log_on_disk(), self.lost()]);
        }
        rows.extend(self.certificates());
        rows.extend(self.tokens_row());
        rows.extend(self.audit_row());
        rows.extend(self.fleet_row());
        rows
    }

    fn row(&self, row: &Row) -> Markup {
        let alerts: Vec<&Value> = self.firing().filter(|alert| row.is_about(alert)).collect();
        let worst = if alerts.iter().any(|alert| alert["severity"] == "critical") { "critical" } else { "warning" };
        html! { tr {
            th scope="row" { (row.what) }
            td .number { (row.used) }
            td .number { (row.limit) }
            td {
                @if !alerts.is_empty() {
                    (show::state(worst)) @for alert in alerts.iter().take(5) { " " (said(alert)) }
                    @if alerts.len() > 5 { " And " (alerts.len() - 5) " more." }
                } @else if let Some(warning) = &row.warning { (show::state("warning")) " " (show::text(warning, 500)) }
                @else { (show::state("ok")) }
            }
        } }
    }

    /// Alerts about the server that belong to no row.
    fn others(&self, rows: &[Row]) -> Markup {
        let others: Vec<&Value> = self.firing().filter(|alert| !rows.iter().any(|row| row.is_about(alert))).collect();
        html! {
            @for alert in others.iter().take(10) {
                p { (show::state(alert["severity"].as_str().unwrap_or("warning"))) " " (said(alert)) }
            }
        }
    }

    fn firing(&self) -> impl Iterator<Item = &Value> {
        self.alerts["alerts"].as_array().into_iter().flatten()
    }

    fn cores(&self) -> Row {
        let cores = &self.gateway["cores"];
        let (used, limit) = (cores["used"].as_f64(), cores["limit"].as_f64().unwrap_or(1.0));
        let busy = used.filter(|used| *used >= BUSY * limit);
        Row {
            what: "Cores, over the last minute".to_owned(),
            used: html! { (show::number_of(&cores["used"])) },
            limit: html! { (show::number_of(&cores["limit"])) " (" (show::text(cores["limited_by"].as_str().unwrap_or("–"), 60)) ")" },
            rules: &[],
            subject: "",
            warning: busy.map(|_| {
                "nearly all of them are in use: requests wait for one another; send less here, or give it more cores".to_owned()
            }),
        }
    }

    fn process_memory(&self) -> Row {
        let memory = &self.gateway["machine_memory"];
        Row {
            what: "Memory of the process".to_owned(),
            used: html! { (show::bytes(&self.ready["memory"]["resident_bytes"])) " (" (show::bytes(&memory["available"])) " can still be taken)" },
            limit: html! {
                (show::bytes(&memory["limit"])) " (" (show::text(memory["limited_by"].as_str().unwrap_or("–"), 60)) "), "
                (show::bytes(&memory["models_limit"])) " for models"
            },
            rules: &["memory_full"],
            subject: "",
            warning: None,
        }
    }

    fn queue(&self) -> Row {
        let queue = &self.gateway["queue"];
        Row {
            what: "Requests that wait for a worker".to_owned(),
            used: html! { (show::number_of(&queue["waiting"])) },
            limit: html! { (show::number_of(&queue["limit"])) },
            rules: &[],
            subject: "",
            warning: nearly_full(&queue["waiting"], &queue["limit"])
                .then(|| "the queue is nearly full: requests that do not fit any more are refused".to_owned()),
        }
    }

    fn disk(&self) -> Option<Row> {
        let disk = &self.gateway["disk"];
        if disk.is_null() {
            return None;
        }
        Some(Row {
            what: "Disk of the data directory".to_owned(),
            used: html! { (show::bytes(&disk["free"])) " free" },
            limit: html! { (show::bytes(&disk["total"])) },
            rules: &["disk_full"],
            subject: "",
            warning: None,
        })
    }

    fn log_on_disk(&self) -> Row {
        let bytes = |name: &str| self.log[name].as_f64().unwrap_or(0.0);
        let (used, budget) = (bytes("segment_bytes") + bytes("sealed_bytes"), bytes("disk_budget"));
        Row {
            what: "Prediction log on the disk".to_owned(),
            used: html! { (show::bytes(&used.into())) },
            limit: html! { (show::bytes(&budget.into())) " (the oldest files are deleted)" },
            rules: &["upload_behind"],
            subject: "",
            warning: None,
        }
    }

    fn lost(&self) -> Row {
        let dropped = self.log["dropped"].as_object().into_iter().flatten();
        let reasons: Vec<(&String, f64)> = dropped
            .filter_map(|(why, records)| Some((why, records.as_f64().filter(|records| *records > 0.0)?)))
            .collect();
        let lost: f64 = reasons.iter().map(|(_, records)| records).sum();
        let words: Vec<String> = reasons
            .iter()
            .map(|(why, records)| format!("{}: {}", why.replace('_', " "), show::number(*records)))
            .collect();
        let sampling = !self.log["sampling_since"].is_null();
        Row {
            what: "Records lost since the start".to_owned(),
            used: html! { (show::number(lost)) @if !words.is_empty() { " (" (show::text(&words.join(", "), 200)) ")" } },
            limit: html! { "0" },
            rules: &["log_loss"],
            subject: "",
            warning: sampling.then(|| {
                format!("the log cannot keep up: it keeps {} of the records", show::share_of(&self.log["kept_share"]))
            }),
        }
    }

    fn certificates(&self) -> Vec<Row> {
        let certificates = self.gateway["certificates"].as_array().into_iter().flatten();
        let row = |certificate: &Value| {
            let plane = certificate["plane"].as_str().unwrap_or_default();
            let subject = if plane == "data" { "data plane" } else { "admin plane" };
            Row {
                what: format!("Certificate of the {subject}"),
                used: html! { "ends " (show::ago(&certificate["expires_at"])) },
                limit: html! { "–" },
                rules: &["certificate_expires"],
                subject,
                warning: None,
            }
        };
        certificates.map(row).collect()
    }

    fn tokens_row(&self) -> Option<Row> {
        let tokens = self.tokens["tokens"].as_array();
        let ends = |token: &Value| token["expires_at"].as_str().map(str::to_owned);
        let next = tokens.and_then(|tokens| tokens.iter().filter_map(ends).min());
        let row = |used: Markup| Row {
            what: "Tokens".to_owned(),
            used,
            limit: html! { "–" },
            rules: &["token_expires"],
            subject: "",
            warning: None,
        };
        match tokens {
            Some(tokens) => Some(row(html! {
                (tokens.len())
                @if let Some(next) = next { ", the first one ends " (show::ago(&next.into())) } @else if !tokens.is_empty() { ", none of them ends" }
            })),
            // Others may not list them, and see the alert.
            None => self.firing().any(|alert| alert["rule"] == "token_expires").then(|| row(html! { "–" })),
        }
    }

    fn audit_row(&self) -> Option<Row> {
        let id = self.audit["id"].as_f64()?;
        Some(Row {
            what: "Audit trail".to_owned(),
            used: html! { (show::counted(id, "event", "events")) },
            limit: html! { "–" },
            rules: &["audit_broken"],
            subject: "",
            warning: None,
        })
    }

    fn fleet_row(&self) -> Option<Row> {
        let nodes = self.fleet["nodes"].as_array()?;
        let well = nodes.iter().filter(|node| node["state"] == "ready" && node["behind"].as_u64() == Some(0)).count();
        Some(Row {
            what: "Gateways of the fleet that follow".to_owned(),
            used: html! { a href="/fleet" { (well) } },
            limit: html! { (nodes.len()) },
            rules: &["fleet_cut_off", "fleet_behind", "fleet_lost"],
            subject: "",
            warning: (well < nodes.len()).then(|| "the page Fleet says which one does not, and why".to_owned()),
        })
    }
}

impl Row {
    fn is_about(&self, alert: &Value) -> bool {
        let rule = alert["rule"].as_str().unwrap_or_default();
        self.rules.contains(&rule) && alert["subject"].as_str().unwrap_or_default().starts_with(self.subject)
    }
}

fn held_row(what: &str, held: &Value, then: &str) -> Row {
    Row {
        what: what.to_owned(),
        used: html! { (show::bytes(&held["held"])) },
        limit: html! { (show::bytes(&held["limit"])) },
        rules: &[],
        subject: "",
        warning: nearly_full(&held["held"], &held["limit"]).then(|| format!("nearly full: {then}")),
    }
}

fn nearly_full(held: &Value, limit: &Value) -> bool {
    let (held, limit) = (held.as_f64().unwrap_or(0.0), limit.as_f64().unwrap_or(0.0));
    held > 0.0 && held >= NEARLY_FULL * limit
}

/// What an alert says, and what to do.
fn said(alert: &Value) -> Markup {
    let text = |name: &str| alert[name].as_str().unwrap_or_default();
    html! {
        (show::text(text("summary"), 400)) ". " (super::alerts::with_code(text("what_to_do"))) "."
        @if alert["state"] == "silenced" { " (silenced)" }
    }
}
