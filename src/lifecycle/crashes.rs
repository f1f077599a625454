//! Crashes of the process before this one: they are stored, and versions with too many are set aside before anything is loaded.

use super::SYSTEM;
use super::journal::Journal;
use super::set_aside::SetAside;
use crate::ledger::{Action, Change, Effect, LedgerError, StoredAside};
use crate::model::VersionId;
use crate::prepare::{artifact_digests, artifact_sha256};
use crate::registry::Stage;
use jiff::Timestamp;
use std::path::PathBuf;
use std::time::Duration;
use tracing::{error, info, warn};

/// A crash that is attributed to a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashedVersion {
    pub id: VersionId,
    pub at: Timestamp,
    /// Identifies the files that it had: [`artifact_sha256`]. Empty for a file that was pushed and not yet a version.
    pub artifact: String,
    /// `SIGSEGV`.
    pub signal: String,
    /// What the version did: `run`, `load`, …
    pub call: String,
    /// The file with the inputs of the run, where they were kept.
    pub inputs: Option<String>,
}

/// When a version that ends the process is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashLimit {
    /// After this many crashes. 0: never.
    pub crashes: u32,
    /// Crashes longer ago do not count.
    pub within: Duration,
}

/// Stores the crashes, and returns the versions that must not be loaded: those that have crashed too often by now, and those that were set
/// aside before, where their files are still the same. `roots` are the directories with versions, in the order of their precedence.
///
/// # Errors
/// When the ledger cannot be read or written.
pub(crate) fn store_crashes(
    ledger: &mut dyn Journal,
    roots: &[PathBuf],
    crashes: &[CrashedVersion],
    limit: CrashLimit,
) -> Result<Vec<SetAside>, LedgerError> {
    for crash in crashes {
        ledger.commit(crash.change())?;
    }
    let mut asides = Vec::new();
    let now = Timestamp::now();
    for model in ledger.load()? {
        for (version, crashes) in &model.crashes {
            let Some(last) = crashes.last() else { continue };
            let since = now.saturating_sub(limit.within).unwrap_or(Timestamp::MIN);
            let count = crashes.iter().filter(|c| c.artifact == last.artifact && c.at >= since).count();
            let is_known = model.set_aside.get(version).is_some_and(|aside| aside.artifact == last.artifact);
            if limit.crashes == 0 || count < limit.crashes as usize || is_known || last.artifact.is_empty() {
                continue;
            }
            let reason = format!(
                "it ended the server process {count} times within {} min; it is not loaded again until its files change or an operator \
                 loads it",
                limit.within.as_secs().div_ceil(60)
            );
            let id = VersionId { model: model.model.clone(), version: *version };
            ledger.commit(set_aside(&id, &last.artifact, &reason))?;
            asides.push((id, StoredAside { artifact: last.artifact.clone(), reason }));
        }
        let stored = model.set_aside.into_iter();
        asides.extend(stored.map(|(version, aside)| (VersionId { model: model.model.clone(), version }, aside)));
    }
    Ok(asides.into_iter().filter_map(|(id, aside)| still_applies(roots, id, aside)).collect())
}

/// The version, if its files are those that it was set aside with.
fn still_applies(roots: &[PathBuf], id: VersionId, aside: StoredAside) -> Option<SetAside> {
    let dirs = || roots.iter().map(|root| root.join(id.model.as_str()).join(id.version.to_string()));
    let dir = dirs().find(|dir| dir.exists()).or_else(|| dirs().next()).unwrap_or_default();
    match artifact_digests(&dir) {
        Ok(digests) if artifact_sha256(&digests) != aside.artifact => {
            info!(model = %id.model, version = %id.version, "the version was set aside, but its files have changed since");
            None
        }
        result => {
            if let Err(error) = result {
                // Files that cannot be read now may be the same. Not loading a version is the smaller risk.
                warn!(model = %id.model, version = %id.version, %error, "the files of a version that is set aside cannot be read");
            }
            error!(model = %id.model, version = %id.version, "the version is set aside: {}", aside.reason);
            Some(SetAside { id, stage: Stage::Crashed, reason: aside.reason, recorded: true })
        }
    }
}

fn set_aside(id: &VersionId, artifact: &str, reason: &str) -> Change {
    Change {
        model: id.model.clone(),
        actor: SYSTEM.to_owned(),
        action: Action::SetAside,
        reason: Some(reason.to_owned()),
        before: None,
        after: Some(
            serde_json::json!({"version": id.version, "state": "failed", "stage": Stage::Crashed.as_str()}).to_string(),
        ),
        effect: Effect::SetAside { version: id.version, artifact: artifact.to_owned(), reason: reason.to_owned() },
    }
}

impl CrashedVersion {
    fn change(&self) -> Change {
        let CrashedVersion { id, at, artifact, signal, call, inputs } = self;
        let after = serde_json::json!({
            "version": id.version,
            "signal": signal,
            "call": call,
            "at": crate::ledger::rfc3339(*at),
            "inputs": inputs,
        });
        Change {
            model: id.model.clone(),
            actor: SYSTEM.to_owned(),
            action: Action::Crash,
            reason: Some(format!("{signal} in version {} ({call}) ended the server process", id.version)),
            before: None,
            after: Some(after.to_string()),
            effect: Effect::RecordCrash { version: id.version, artifact: artifact.clone(), at: *at },
        }
    }
}
