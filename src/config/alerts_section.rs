//! `[alerts]`: what is told, and the targets that are told.

use crate::alerts::{Config, EventKind, Hidden, Kind, MOST_TARGETS, Rule, Send, Severity, Target, is_address};
use crate::settings::{Table, Value, parse_duration};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// The limits of the time of one post.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(1);

pub(super) fn read(t: &mut Table) -> Config {
    let d = Config::default();
    let hour = Duration::from_hours(1);
    let rules = format!("a list of some of {}", Rule::names());
    let off = t.custom("off", &rules, |value| {
        value.as_list()?.iter().map(|rule| rule.as_str()?.parse().ok()).collect::<Option<Vec<Rule>>>()
    });
    let name = t.custom("name", "a text of at most 128 characters", |value| {
        value.as_str().filter(|text| text.len() <= 128 && !text.chars().any(char::is_control)).map(str::to_owned)
    });
    let console = t.custom("console", "an address such as \"https://gateway.internal:8081\", or \"\"", |value| {
        value.as_str().filter(|text| text.is_empty() || is_address(text) && text.len() <= 512).map(str::to_owned)
    });
    Config {
        enabled: t.bool("enabled").unwrap_or(d.enabled),
        check_interval: t
            .duration("check_interval", Duration::from_millis(100)..=Duration::from_mins(1))
            .unwrap_or(d.check_interval),
        end_after: t.duration("end_after", Duration::ZERO..=hour).unwrap_or(d.end_after),
        off: off.unwrap_or(d.off),
        error_budget: t.float("error_budget", 0.000_001..=0.5).unwrap_or(d.error_budget),
        name: name.unwrap_or(d.name),
        console: console.unwrap_or(d.console),
        outbox: t.integer("outbox", 1..=1_000_000).unwrap_or(d.outbox),
        keep_for: t.duration("keep_for", Duration::from_mins(1)..=hour * 24 * 30).unwrap_or(d.keep_for),
        targets: targets(t).unwrap_or(d.targets),
    }
}

/// The targets, with a complaint for each that is wrong. A complaint shows no value: an address may be a secret.
fn targets(t: &mut Table) -> Option<Vec<Target>> {
    let expected = "a list of targets, each written [[alerts.targets]]";
    let items = t.custom("targets", expected, |value| value.as_list().map(<[Value]>::to_vec))?;
    if items.len() > MOST_TARGETS {
        t.complain_hidden("targets", &format!("at most {MOST_TARGETS} targets, got {}", items.len()));
    }
    let mut names = BTreeSet::new();
    let mut targets = Vec::new();
    for (index, item) in items.iter().take(MOST_TARGETS).enumerate() {
        match target(item) {
            Ok(target) if !names.insert(target.name.clone()) => {
                t.complain_hidden(
                    "targets",
                    &format!("another name for target {}: {:?} is taken", index + 1, target.name),
                );
            }
            Ok(target) => targets.push(target),
            Err(wrong) => t.complain_hidden("targets", &format!("in target {}: {wrong}", index + 1)),
        }
    }
    Some(targets)
}

const KEYS: [&str; 11] = [
    "name",
    "kind",
    "url",
    "url_file",
    "url_env",
    "ca",
    "secret_file",
    "secret_env",
    "send",
    "min_severity",
    "timeout",
];

/// Reads one target, or says what is expected instead.
fn target(item: &Value) -> Result<Target, String> {
    let Value::Table(members) = item else { return Err("a table with name, kind and url".to_owned()) };
    if let Some(unknown) = members.keys().find(|key| !KEYS.contains(&key.as_str())) {
        if unknown == "secret" {
            return Err(
                "secret_file or secret_env instead of secret: a configuration is not a place for secrets".to_owned()
            );
        }
        let unknown: String = unknown.chars().take(80).collect();
        return Err(format!("only the keys {}, got {unknown}", KEYS.join(", ")));
    }
    let name = text(members, "name")?
        .filter(|name| {
            (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        })
        .ok_or("name: 1 to 64 letters, digits, `.`, `_` and `-`")?;
    let kind = match text(members, "kind")?.as_deref() {
        Some("webhook") => Kind::Webhook,
        Some("alertmanager") => Kind::Alertmanager,
        Some("slack") => Kind::Slack,
        _ => return Err("kind: \"webhook\", \"alertmanager\" or \"slack\"".to_owned()),
    };
    let (url, secret) = (hidden(members, "url")?, hidden(members, "secret")?);
    let url = url.ok_or("one of url, url_file and url_env")?;
    if matches!(&url, Hidden::Here(url) if !is_address(url)) {
        return Err("url: an address that begins with http:// or https://".to_owned());
    }
    if secret.is_some() && kind != Kind::Webhook {
        return Err("no secret: only a webhook is signed".to_owned());
    }
    let ca = text(members, "ca")?.map(PathBuf::from);
    if ca.is_some() && matches!(&url, Hidden::Here(url) if !url.starts_with("https://")) {
        return Err("url: an address that begins with https://, because ca is set".to_owned());
    }
    let min_severity = match text(members, "min_severity")?.as_deref() {
        None | Some("warning") => Severity::Warning,
        Some("critical") => Severity::Critical,
        Some(_) => return Err("min_severity: \"warning\" or \"critical\"".to_owned()),
    };
    let timeout = match text(members, "timeout")? {
        None => Duration::from_secs(10),
        Some(text) => parse_duration(&text)
            .filter(|timeout| TIMEOUT.contains(timeout))
            .ok_or("timeout: a duration from \"100ms\" to \"1m\"")?,
    };
    Ok(Target { name, kind, url, ca, secret, send: send(members, kind)?, min_severity, timeout })
}

fn text(members: &BTreeMap<String, Value>, key: &str) -> Result<Option<String>, String> {
    match members.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() && !text.contains('\0') => Ok(Some(text.clone())),
        Some(_) => Err(format!("{key}: a text that is not empty")),
    }
}

/// A text that is written here, in a file, or in the environment.
fn hidden(members: &BTreeMap<String, Value>, key: &str) -> Result<Option<Hidden>, String> {
    let here = text(members, key)?.map(Hidden::Here);
    let file = text(members, &format!("{key}_file"))?.map(|path| Hidden::File(PathBuf::from(path)));
    let environment = text(members, &format!("{key}_env"))?.map(Hidden::Environment);
    let mut given = [here, file, environment].into_iter().flatten();
    let first = given.next();
    match given.next() {
        None => Ok(first),
        Some(_) => Err(format!("only one of {key}, {key}_file and {key}_env")),
    }
}

fn send(members: &BTreeMap<String, Value>, kind: Kind) -> Result<Send, String> {
    let expected = || {
        let events = EventKind::ALL.map(EventKind::as_str).join(", ");
        format!("send: a list of some of alerts, events, version.*, rollout.*, {events}")
    };
    let Some(value) = members.get("send") else { return Ok(Send { alerts: true, events: Vec::new() }) };
    let words = value.as_list().filter(|words| !words.is_empty() && words.len() <= 64).ok_or_else(expected)?;
    let mut send = Send { alerts: false, events: Vec::new() };
    for word in words {
        match word.as_str().ok_or_else(expected)? {
            "alerts" => send.alerts = true,
            word => {
                let events = EventKind::chosen_by(word);
                if events.is_empty() {
                    return Err(expected());
                }
                send.events.extend(events);
            }
        }
    }
    if kind == Kind::Alertmanager && !send.events.is_empty() {
        return Err("send: only \"alerts\", as Alertmanager has no events".to_owned());
    }
    send.events.sort_unstable();
    send.events.dedup();
    Ok(send)
}
