//! Drift, outputs that are stuck or not finite, and versions that are too old.

use crate::alerts::{About, Finding, Rule, Severity};
use crate::drift::{Drift, Trouble, What};
use crate::model::{ModelName, Version};
use crate::registry::{Entry, Loaded, Reader};
use crate::route::{Document, RESERVED_ARMS};
use crate::settings::show_duration;
use crate::stability::{Ran, Stability};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use std::collections::BTreeMap;
use std::time::Duration;

/// Columns that a summary names.
const NAMED: usize = 3;

/// Columns that are different, and it matters: one finding for each version and arm.
pub(super) fn drift(drift: &Drift, reader: &Reader) -> Vec<Finding> {
    let mut groups: BTreeMap<_, Vec<Trouble>> = BTreeMap::new();
    for trouble in troubles(drift, reader).filter(|trouble| trouble.what == What::Drift) {
        groups.entry((trouble.model.clone(), trouble.version, trouble.arm.clone())).or_default().push(trouble);
    }
    let finding = |((model, version, arm), troubles): ((_, Version, String), Vec<Trouble>)| {
        let words: Vec<&str> = troubles.iter().take(NAMED).map(|trouble| trouble.words.as_str()).collect();
        let more = troubles.len().saturating_sub(NAMED);
        let more = if more > 0 { format!("; and {more} more columns") } else { String::new() };
        let since =
            troubles.iter().map(|trouble| trouble.since).min().and_then(|ts| Timestamp::from_microsecond(ts).ok());
        Finding {
            about: About { subject: arm.clone(), ..About::version(Rule::Drift, &model, version) },
            severity: Severity::Warning,
            summary: format!("version {version} of {model} on arm {arm}: {}{more}", words.join("; ")),
            how_sure: "both that it is different and that it matters; false alarms are as many a year as [drift] in model.toml accepts, 1 by default"
                .to_owned(),
            what_to_do: format!(
                "`sluicegate drift {model}` shows the columns; look for a change of the data's source first, then train on newer rows"
            ),
            since,
            training: None,
        }
    };
    groups.into_iter().map(finding).collect()
}

/// What is wrong with arms that may still get rows. The split has no arm any more after a promotion: its alarms end with it.
fn troubles(drift: &Drift, reader: &Reader) -> impl Iterator<Item = Trouble> {
    let snapshot = reader.snapshot();
    drift.troubles().into_iter().filter(move |trouble| {
        let document = snapshot.model(trouble.model.as_str()).and_then(|entry| entry.document());
        let is_in = |document: &Document| {
            RESERVED_ARMS.contains(&trouble.arm.as_str())
                || document.split.iter().any(|arm| arm.arm.as_str() == trouble.arm && arm.version == trouble.version)
        };
        document.is_none_or(is_in)
    })
}

/// Outputs that are stuck at a value, and outputs that became NaN or infinite, of the last hour that was counted; and versions that give other answers
/// to the same bytes.
pub(super) fn unstable(drift: Option<&Drift>, stability: &Stability, reader: &Reader) -> Vec<Finding> {
    let troubles =
        drift.into_iter().flat_map(|drift| troubles(drift, reader)).filter(|trouble| trouble.what != What::Drift);
    let finding = |trouble: Trouble| {
        let Trouble { model, version, arm, column, words, since, .. } = trouble;
        Finding {
            about: About { subject: format!("{arm} {column}"), ..About::version(Rule::Unstable, &model, version) },
            severity: Severity::Warning,
            summary: format!("version {version} of {model} on arm {arm}: {words}"),
            how_sure: "counted in the rows of the last hour; the reference has other values".to_owned(),
            what_to_do: format!(
                "`sluicegate drift {model}` shows whether its inputs changed; `sluicegate reproduce REQUEST_ID` runs a prediction again"
            ),
            since: Timestamp::from_microsecond(since).ok(),
            training: None,
        }
    };
    let other_answers = stability.different(reader).into_iter().map(not_reproduced);
    troubles.map(finding).chain(other_answers).collect()
}

fn not_reproduced((model, version, ran): (ModelName, Version, Ran)) -> Finding {
    let Ran { equal, close, different, .. } = ran;
    // After a restart only the numbers are known.
    let (such_as, id) = match (ran.first_different, ran.words) {
        (Some(id), Some(words)) => (format!(", such as {id}: {words}"), id),
        _ => (String::new(), "REQUEST_ID".to_owned()),
    };
    Finding {
        about: About { subject: "reproduce".to_owned(), ..About::version(Rule::Unstable, &model, version) },
        severity: Severity::Warning,
        summary: format!(
            "version {version} of {model} gives other answers than were logged: {different} of {} logged predictions that were run again{such_as}",
            equal + close + different,
        ),
        how_sure:
            "certain: the same model file got the same bytes; where a request ran with others, rounding is allowed"
                .to_owned(),
        what_to_do: format!(
            "`sluicegate reproduce {id} --model {model}` shows the difference: look for another engine, another processor, or a model that draws random numbers"
        ),
        since: None,
        training: None,
    }
}

/// Versions that un-pinned traffic goes to and that are older, or have older data, than `[staleness]` in `model.toml` allows.
pub(super) fn stale(reader: &Reader, now: Timestamp) -> Vec<Finding> {
    let snapshot = reader.snapshot();
    let mut findings = Vec::new();
    for entry in snapshot.models() {
        let serving = entry.document().map(crate::route::Document::serving).unwrap_or_default();
        let loaded = entry.versions().values().filter_map(|status| status.loaded.as_deref());
        for loaded in loaded.filter(|loaded| serving.contains(&loaded.version)) {
            findings.extend(stale_version(entry, loaded, now));
        }
    }
    findings
}

fn stale_version(entry: &Entry, loaded: &Loaded, now: Timestamp) -> impl Iterator<Item = Finding> {
    let (limits, lineage) = (entry.staleness(), &loaded.facts.origin.lineage);
    let trained_at = lineage.trained_at.as_deref().and_then(time);
    let profile_to = loaded.facts.profile.as_ref().and_then(|profile| profile.to);
    let data_to = profile_to.or_else(|| lineage.data.to.as_deref().and_then(time));
    let (model, version) = (entry.name().clone(), loaded.version);
    let checks = [
        ("it was trained", "max_age", limits.max_age, trained_at),
        ("the last row of its training data came", "max_data_age", limits.max_data_age, data_to),
    ];
    checks.into_iter().filter_map(move |(what, key, limit, at)| {
        let (limit, at) = (limit?, at?);
        let age = Duration::try_from(now.duration_since(at)).ok().filter(|age| *age > limit)?;
        let days = age.as_secs() / (24 * 3600);
        Some(Finding {
            about: About { subject: key.to_owned(), ..About::version(Rule::Staleness, &model, version) },
            severity: Severity::Warning,
            summary: format!(
                "version {version} of {model} is stale: {what} {days} days ago ({at}), and [staleness] {key} is {}",
                show_duration(limit)
            ),
            how_sure: "certain, if the time in version.toml or profile.json is right".to_owned(),
            what_to_do: format!("train {model} on newer data, or raise {key} in its model.toml"),
            since: at.checked_add(limit).ok(),
            training: None,
        })
    })
}

/// An RFC 3339 time, or a date, which means its start in UTC.
fn time(text: &str) -> Option<Timestamp> {
    let date = || text.parse::<Date>().ok()?.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    text.parse().ok().or_else(date)
}
