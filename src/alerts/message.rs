//! Messages: what is kept in the outbox, and the form that each kind of target gets.

use super::book::{Group, hex};
use super::event::Event;
use super::finding::Alert;
use super::rule::{Rule, Severity};
use super::target::{Kind, Target};
use hmac::{Hmac, Mac as _};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::time::Duration;

/// The most alerts, or events, that one message describes; for a webhook the others are counted in `omitted`.
const MOST_IN_MESSAGE: usize = 50;
/// The most alerts in one request to Alertmanager: 200 take 200 kB. More are several requests.
const MOST_IN_REQUEST: usize = 200;
/// How long Alertmanager takes an alert for firing after it was sent. It is sent again every minute.
const FIRING_FOR: Duration = Duration::from_mins(5);

/// A message, as it stands in the outbox and as a webhook gets it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Message {
    /// The same at every try: a receiver that has seen it ignores it.
    pub key: String,
    pub kind: MessageKind,
    /// The server that sends it.
    pub gateway: String,
    pub created_at: Timestamp,
    /// The rule of all alerts in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// How many alerts began and ended, with those that are left out.
    #[serde(default)]
    pub firing: usize,
    #[serde(default)]
    pub resolved: usize,
    /// How many alerts are left out.
    #[serde(default)]
    pub omitted: usize,
    #[serde(default)]
    pub alerts: Vec<Told>,
    #[serde(default)]
    pub events: Vec<Event>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MessageKind {
    Alerts,
    Events,
    /// Of `sluicegate alerts --test`.
    Test,
}

/// An alert in a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Told {
    pub id: String,
    /// `firing` or `resolved`.
    pub state: String,
    pub rule: Rule,
    pub model: Option<String>,
    pub version: Option<String>,
    pub subject: Option<String>,
    pub severity: Severity,
    pub since: Timestamp,
    pub until: Option<Timestamp>,
    pub summary: String,
    pub how_sure: String,
    /// In words; `null` where no change is known.
    pub change_before: Option<String>,
    pub what_to_do: String,
    pub link: String,
}

/// What all messages of a server have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sender {
    /// `alerts.name`, or the host's name.
    pub gateway: String,
    /// The address of the console; empty: links are paths.
    pub console: String,
}

// === impl Told ===

impl Told {
    fn of(alert: &Alert, sender: &Sender) -> Told {
        let about = &alert.about;
        let change = alert.change_before.as_ref().map(|change| {
            let reason = change.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            let (action, actor, ts) = (&change.action, &change.actor, change.ts);
            format!("{action} by {actor} on {ts:.0}{reason}, event {}", change.id)
        });
        Told {
            id: alert.id.clone(),
            state: if alert.is_firing() { "firing" } else { "resolved" }.to_owned(),
            rule: about.rule,
            model: about.model.as_ref().map(ToString::to_string),
            version: about.version.map(|version| version.to_string()),
            subject: Some(about.subject.clone()).filter(|subject| !subject.is_empty()),
            severity: alert.severity,
            since: alert.since,
            until: alert.until,
            summary: alert.summary.clone(),
            how_sure: alert.how_sure.clone(),
            change_before: change,
            what_to_do: alert.what_to_do.clone(),
            link: format!("{}{}", sender.console, alert.link()),
        }
    }

    /// `fraud/3`, a model, or what it is about.
    fn about(&self) -> String {
        match (&self.model, &self.version, &self.subject) {
            (Some(model), Some(version), _) => format!("{model}/{version}"),
            (Some(model), None, _) => model.clone(),
            (None, _, Some(subject)) => subject.clone(),
            (None, _, None) => "server".to_owned(),
        }
    }
}

// === impl Message ===

impl Message {
    /// The messages about a group for one target. Alertmanager groups by itself and gets every alert.
    pub(super) fn of_group(group: &Group, target: &Target, sender: &Sender, now: Timestamp) -> Vec<Message> {
        let alerts: Vec<&Alert> = group.alerts.iter().filter(|a| a.severity >= target.min_severity).collect();
        if alerts.is_empty() || !target.send.alerts {
            return Vec::new();
        }
        let all = target.kind == Kind::Alertmanager;
        let parts = if all { alerts.chunks(MOST_IN_REQUEST).collect() } else { vec![&alerts[..]] };
        let message = |part: &[&Alert]| {
            let firing = part.iter().filter(|alert| alert.is_firing()).count();
            let shown = if all { part } else { &part[..part.len().min(MOST_IN_MESSAGE)] };
            Message {
                key: key_of(part.iter().map(|alert| format!("{}/{}", alert.id, alert.is_firing()))),
                kind: MessageKind::Alerts,
                gateway: sender.gateway.clone(),
                created_at: now,
                rule: Some(group.rule),
                firing,
                resolved: part.len() - firing,
                omitted: part.len() - shown.len(),
                alerts: shown.iter().map(|alert| Told::of(alert, sender)).collect(),
                events: Vec::new(),
            }
        };
        parts.into_iter().map(message).collect()
    }

    /// The messages with the events that a target asks for.
    pub(super) fn of_events(events: &[Event], target: &Target, sender: &Sender, now: Timestamp) -> Vec<Message> {
        let wanted: Vec<Event> = events
            .iter()
            .filter(|event| target.send.events.contains(&event.event))
            .map(|event| Event { link: format!("{}{}", sender.console, event.link), ..event.clone() })
            .collect();
        let message = |part: &[Event]| Message {
            key: key_of(part.iter().map(|event| event.id.clone())),
            kind: MessageKind::Events,
            gateway: sender.gateway.clone(),
            created_at: now,
            rule: None,
            firing: 0,
            resolved: 0,
            omitted: 0,
            alerts: Vec::new(),
            events: part.to_vec(),
        };
        wanted.chunks(MOST_IN_MESSAGE).map(message).collect()
    }

    /// What `sluicegate alerts --test` sends.
    pub(super) fn test(sender: &Sender, now: Timestamp) -> Message {
        Message {
            key: key_of([format!("test/{now}")]),
            kind: MessageKind::Test,
            gateway: sender.gateway.clone(),
            created_at: now,
            rule: None,
            firing: 0,
            resolved: 0,
            omitted: 0,
            alerts: Vec::new(),
            events: Vec::new(),
        }
    }

    /// The alerts that fire, for Alertmanager, which forgets those that are not sent again.
    pub(super) fn still_firing(alerts: &[Alert], sender: &Sender, now: Timestamp) -> Vec<Message> {
        let message = |part: &[Alert]| Message {
            alerts: part.iter().map(|alert| Told::of(alert, sender)).collect(),
            firing: part.len(),
            kind: MessageKind::Alerts,
            ..Message::test(sender, now)
        };
        alerts.chunks(MOST_IN_REQUEST).map(message).collect()
    }

    /// The body of a request to a target.
    pub(super) fn render(&self, kind: Kind, now: Timestamp) -> String {
        match kind {
            Kind::Webhook => serde_json::to_string(self).unwrap_or_default(),
            Kind::Alertmanager => self.alertmanager(now).to_string(),
            Kind::Slack => json!({"text": self.text()}).to_string(),
        }
    }

    /// A list of `postableAlert` (<https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml>).
    fn alertmanager(&self, now: Timestamp) -> Value {
        let firing_until = now.checked_add(FIRING_FOR).unwrap_or(Timestamp::MAX);
        let alert = |alert: &Told| {
            let mut labels = json!({
                "alertname": format!("sluicegate_{}", alert.rule),
                "severity": alert.severity,
                "gateway": self.gateway,
            });
            for (name, value) in [("model", &alert.model), ("version", &alert.version), ("subject", &alert.subject)] {
                if let Some(value) = value {
                    labels[name] = value.as_str().into();
                }
            }
            let mut annotations = json!({
                "summary": alert.summary,
                "how_sure": alert.how_sure,
                "what_to_do": alert.what_to_do,
                "link": alert.link,
            });
            if let Some(change) = &alert.change_before {
                annotations["change_before"] = change.as_str().into();
            }
            let mut posted = json!({
                "labels": labels,
                "annotations": annotations,
                "startsAt": alert.since,
                "endsAt": alert.until.unwrap_or(firing_until),
            });
            // It must be an address, and a path alone is none.
            if alert.link.starts_with("http") {
                posted["generatorURL"] = alert.link.as_str().into();
            }
            posted
        };
        if self.kind == MessageKind::Test {
            let labels = json!({"alertname": "sluicegate_test", "severity": "warning", "gateway": self.gateway});
            let annotations = json!({"summary": "A test of the alerts of Sluicegate. It ends by itself."});
            let ends = now.checked_add(Duration::from_mins(1)).unwrap_or(Timestamp::MAX);
            return json!([{"labels": labels, "annotations": annotations, "startsAt": now, "endsAt": ends}]);
        }
        self.alerts.iter().map(alert).collect()
    }

    /// For people: one line for each alert or event. `&`, `<` and `>` are escaped, as Slack wants it.
    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        match self.kind {
            MessageKind::Test => {
                let _ = write!(text, "A test of the alerts of Sluicegate on {}.", self.gateway);
            }
            MessageKind::Alerts => {
                let rule = self.rule.map_or("alerts", Rule::as_str);
                let _ = write!(text, "*{rule}* on {}: {} began, {} ended", self.gateway, self.firing, self.resolved);
                for alert in &self.alerts {
                    let sign = if alert.until.is_some() { "ended" } else { alert.severity.as_str() };
                    let _ = write!(text, "\n• [{sign}] {}: {}", alert.about(), one_line(&alert.summary));
                    if alert.until.is_none() {
                        let _ = write!(text, " — {}", alert.what_to_do);
                    }
                }
                if self.omitted > 0 {
                    let _ = write!(text, "\nand {} more", self.omitted);
                }
            }
            MessageKind::Events => {
                for (index, event) in self.events.iter().enumerate() {
                    let line = if index == 0 { "" } else { "\n" };
                    let _ = write!(text, "{line}*{}* on {}: {}", event.event, self.gateway, one_line(&event.summary));
                    if let Some(reason) = &event.reason {
                        let _ = write!(text, " ({})", one_line(reason));
                    }
                    if let Some(training) = &event.training {
                        let _ = write!(text, "\n`{}`", training.command);
                    }
                }
            }
        }
        text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
    }
}

/// Texts of operators cannot begin lines of their own, which would look like other alerts.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c }).collect()
}

fn key_of(parts: impl IntoIterator<Item = String>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update(b"\n");
    }
    hex(&hash.finalize()[..16])
}

/// `v1=` and the HMAC-SHA256, in hexadecimal, of the Unix time in seconds, a full stop and the body. The time is in it so that an old message
/// cannot be sent again by somebody else later.
pub(super) fn signature(secret: &str, seconds: i64, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(format!("{seconds}.{body}").as_bytes());
    format!("v1={}", hex(&mac.finalize().into_bytes()))
}
