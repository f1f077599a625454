//! The commands `alerts` and `silence`.

use super::client::{Client, Done, print, segment};
use super::show::{cell, list, table};
use super::{AlertsOptions, CommandError, SilenceOptions};
use crate::settings::parse_duration;
use serde_json::{Value, json};
use std::fmt::Write as _;

impl Client {
    pub(super) fn alerts(&self, options: &AlertsOptions) -> Done {
        if let Some(target) = &options.test {
            let answer = self.send("POST", "/api/v1/alerts:test", &json!({"target": target}))?;
            self.show(&answer, |_| String::new())?;
            let answer = answer.json()?;
            if answer["delivered"] == true {
                if !self.json() {
                    print(&format!("the target {target} accepted a test\n"))?;
                }
                return Ok(());
            }
            return Err(CommandError::Failed(format!(
                "the target {target} did not accept a test: {}",
                cell(&answer["error"])
            )));
        }
        let query: Vec<String> = [("state", &options.state), ("model", &options.model)]
            .into_iter()
            .filter_map(|(name, value)| value.as_ref().map(|value| format!("{name}={}", segment(value))))
            .collect();
        self.show(&self.get(&format!("/api/v1/alerts?{}", query.join("&")))?, alerts)
    }

    pub(super) fn silence(&self, options: &SilenceOptions) -> Done {
        let SilenceOptions { rule, model, version, duration, until, reason, list, end } = options;
        if *list {
            return self.show(&self.get("/api/v1/alerts/silences")?, silences);
        }
        if let Some(id) = end {
            let place = format!("/api/v1/alerts/silences/{}", segment(id));
            return self.show(&self.send("DELETE", &place, &json!({}))?, |_| format!("the silence {id} has ended\n"));
        }
        let until = match (duration, until) {
            (Some(text), _) => {
                let wrong = || CommandError::Usage(format!("--for {text:?}: expected a time such as 2h or 3d"));
                let time = parse_duration(text).filter(|time| !time.is_zero()).ok_or_else(wrong)?;
                jiff::Timestamp::now().checked_add(time).map_err(|_| wrong())?.to_string()
            }
            (None, Some(text)) => text.clone(),
            (None, None) => {
                let message = "nothing to do: give --for or --until with a reason, or --list, or --end ID";
                return Err(CommandError::Usage(message.to_owned()));
            }
        };
        let mut matcher = json!({});
        for (name, value) in [("rule", rule), ("model", model), ("version", version)] {
            if let Some(value) = value {
                matcher[name] = value.as_str().into();
            }
        }
        let body = json!({"matcher": matcher, "until": until, "reason": reason});
        self.show(&self.send("POST", "/api/v1/alerts/silences", &body)?, |answer| {
            format!("silence {} until {}\n", cell(&answer["id"]), cell(&answer["until"]))
        })
    }
}

/// What an alert is about: `iris/3`, a model, or something of the server.
fn about(alert: &Value) -> String {
    let parts = [&alert["model"], &alert["version"]].map(cell);
    let about = parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("/");
    let subject = cell(&alert["subject"]);
    match (about.is_empty(), subject.is_empty()) {
        (true, true) => "the server".to_owned(),
        (true, false) => subject,
        (false, true) => about,
        (false, false) => format!("{about} {subject}"),
    }
}

pub(super) fn alerts(answer: &Value) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for alert in list(answer, "alerts") {
        let state = cell(&alert["state"]);
        let times = match alert["until"].as_str() {
            None => format!("since {}", cell(&alert["since"])),
            Some(until) => format!("{} to {until}", cell(&alert["since"])),
        };
        let (rule, severity) = (cell(&alert["rule"]), cell(&alert["severity"]));
        let _ = writeln!(text, "{} {severity} {rule}: {} ({times})", state.to_uppercase(), about(alert));
        let _ = writeln!(text, "  {}", cell(&alert["summary"]));
        if alert["until"].is_null() {
            let _ = writeln!(text, "  how sure:  {}", cell(&alert["how_sure"]));
            let change = &alert["change_before"];
            if change.is_object() {
                let reason =
                    if change["reason"].is_null() { String::new() } else { format!(" ({})", cell(&change["reason"])) };
                let [action, actor, ts] = ["action", "actor", "ts"].map(|name| cell(&change[name]));
                let _ = writeln!(text, "  before it: {action} by {actor} on {ts}{reason}");
            }
            let _ = writeln!(text, "  what to do: {}", cell(&alert["what_to_do"]));
        }
    }
    if text.is_empty() {
        text.push_str("no alerts\n");
    }
    let untracked = answer["untracked"].as_u64().unwrap_or_default();
    if untracked > 0 {
        let _ = writeln!(text, "and {untracked} findings for which there was no room");
    }
    let rows: Vec<Vec<String>> = list(answer, "targets")
        .map(|target| {
            ["name", "kind", "waiting", "sent", "failed", "dropped", "last_sent", "last_error"]
                .map(|name| cell(&target[name]))
                .to_vec()
        })
        .collect();
    if !rows.is_empty() {
        let heads = ["TARGET", "KIND", "WAITING", "SENT", "FAILED TRIES", "DROPPED", "LAST SENT", "LAST ERROR"];
        let _ = write!(text, "\n{}", table(&heads, &rows));
    }
    text
}

pub(super) fn silences(answer: &Value) -> String {
    let rows: Vec<Vec<String>> = list(answer, "silences")
        .map(|silence| {
            let matcher = silence["matcher"].as_object().into_iter().flatten();
            let matcher = matcher.filter(|(_, value)| !value.is_null());
            let matcher: Vec<String> = matcher.map(|(name, value)| format!("{name}={}", cell(value))).collect();
            let [id, until, by, reason] = ["id", "until", "created_by", "reason"].map(|name| cell(&silence[name]));
            vec![id, matcher.join(" "), until, by, reason]
        })
        .collect();
    if rows.is_empty() {
        return "no silences\n".to_owned();
    }
    table(&["ID", "ALERTS", "UNTIL", "BY", "REASON"], &rows)
}
