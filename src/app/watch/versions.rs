//! Versions that failed, models that are not served, and engines that fail.

use crate::alerts::{About, Finding, Rule, Severity, VersionState};
use crate::registry::{Entry, Reader, Snapshot, State, Unserved, VersionStatus};

/// Versions that failed. Critical where the traffic document sends requests to one. `None` while versions are loaded at the start.
pub(super) fn failed(snapshot: &Snapshot) -> Option<Vec<Finding>> {
    if !snapshot.ready {
        return None;
    }
    let all = snapshot.models().flat_map(|entry| entry.versions().values().map(move |version| (entry, version)));
    Some(
        all.filter(|(_, version)| version.state == State::Failed)
            .map(|(entry, version)| failure(entry, version))
            .collect(),
    )
}

fn failure(entry: &Entry, status: &VersionStatus) -> Finding {
    let (model, version) = (entry.name(), status.version);
    let named = entry.document().is_some_and(|document| document.serving().contains(&version));
    let stage = status.stage.map_or("unknown", crate::registry::Stage::as_str);
    let reason = status.reason.as_deref().unwrap_or("no reason is known");
    let served = if named { "; its traffic document names it" } else { "" };
    Finding {
        about: About::version(Rule::VersionFailed, model, version),
        severity: if named { Severity::Critical } else { Severity::Warning },
        summary: format!("version {version} of {model} failed ({stage}): {reason}{served}"),
        how_sure: "certain: the version is in the state failed".to_owned(),
        what_to_do: format!(
            "`sluicegate check models/{model}/{version}` says what is wrong with its files; push a new version, or remove this one"
        ),
        since: None,
        training: None,
    }
}

/// Models whose traffic document cannot be served as a whole.
pub(super) fn unserved(snapshot: &Snapshot) -> Option<Vec<Finding>> {
    if !snapshot.ready {
        return None;
    }
    let finding = |unserved: Unserved| {
        let Unserved { model, versions, reason, advice } = unserved;
        let versions: Vec<String> = versions.iter().map(ToString::to_string).collect();
        let of = if versions.is_empty() { String::new() } else { format!(" (versions {})", versions.join(", ")) };
        Finding {
            about: About::model(Rule::ModelUnserved, &model),
            severity: Severity::Critical,
            summary: format!("the traffic document of {model} cannot be served as a whole{of}: {reason}"),
            how_sure: "certain: requests are refused".to_owned(),
            what_to_do: advice,
            since: None,
            training: None,
        }
    };
    Some(snapshot.models().filter_map(|entry| entry.unserved()).map(finding).collect())
}

/// Versions whose engine fails.
pub(super) fn breakers(reader: &Reader) -> Vec<Finding> {
    let snapshot = reader.snapshot();
    let loaded = snapshot.models().flat_map(|entry| entry.versions().values()).filter_map(|v| v.loaded.as_ref());
    let open = loaded.filter_map(|loaded| {
        let status = loaded.breaker.status();
        (status.state != "closed").then_some((loaded, status))
    });
    open.map(|(loaded, status)| {
            let (model, version) = (&loaded.model, loaded.version);
            Finding {
                about: About::version(Rule::BreakerOpen, model, version),
                severity: Severity::Critical,
                summary: format!(
                    "the engine of version {version} of {model} fails: its breaker is {}, and {} requests were kept from it",
                    status.state, status.refused
                ),
                how_sure: "certain: the failures of the engine passed the limits in [breaker]".to_owned(),
                what_to_do: format!("go back: `sluicegate rollback {model} --reason \"its engine fails\"`, or name a fallback"),
                since: None,
                training: None,
            }
        })
        .collect()
}

/// The versions that are ready or failed, for the events about them. `None` while versions are loaded at the start.
pub(super) fn states(snapshot: &Snapshot) -> Option<Vec<VersionState>> {
    if !snapshot.ready {
        return None;
    }
    let all = snapshot.models().flat_map(|entry| entry.versions().values().map(move |version| (entry.name(), version)));
    let state = |(model, status): (&crate::model::ModelName, &VersionStatus)| {
        let what = match status.state {
            State::Ready | State::Serving => Ok(status.facts.as_ref()?.sha256.clone()),
            State::Failed => Err(status.reason.clone().unwrap_or_default()),
            _ => return None,
        };
        Some(VersionState { model: model.clone(), version: status.version, what })
    };
    Some(all.filter_map(state).collect())
}
