//! Approvals: where they are required, a version gets no un-pinned traffic until a second person approved its files.
//!
//! Whoever pushed a version or asked for its traffic cannot approve it, and whoever approved it cannot ask for its traffic.

use super::handle::{Actor, ApprovalState, ReviewRequest, Reviewed};
use super::model_record::{Model, conflict, no_version, not_ready};
use super::services::Services;
use super::version_record::VersionRecord;
use crate::ledger::{Action, Change, Effect, Review, rfc3339};
use crate::model::{Code, Failure, Version};
use crate::prepare::{ReadyVersion, artifact_sha256};
use crate::route::Document;
use std::collections::BTreeSet;
use tracing::info;

/// How a change that gives versions traffic deals with approvals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Approvals {
    /// They are required where the configuration says so, and the actor becomes a proposer of what is not approved.
    Required,
    /// The same for a change that no person asks for.
    RequiredOfSystem,
    /// An admin overrides them.
    BreakGlass,
}

impl Services {
    pub(super) fn needs_approval(&self, model: &Model) -> bool {
        self.config.approval_required || model.settings.approval
    }

    /// The versions that a document would newly give un-pinned traffic and that are not approved, each with the reason. `actor` asks for it.
    pub(super) fn unapproved(&self, model: &Model, next: &Document, actor: &Actor) -> Vec<(Version, String)> {
        // A retired model serves nothing.
        let answering = if model.stored.retired.is_some() { BTreeSet::new() } else { model.answering() };
        self.unapproved_of(model, next.answering().difference(&answering).copied(), actor)
    }

    /// The same for these versions.
    pub(super) fn unapproved_of(
        &self,
        model: &Model,
        versions: impl IntoIterator<Item = Version>,
        actor: &Actor,
    ) -> Vec<(Version, String)> {
        if !self.needs_approval(model) {
            return Vec::new();
        }
        let refused = |version| Some((version, why_not(model, version, actor)?));
        versions.into_iter().filter_map(refused).collect()
    }

    /// Checks that a change gives traffic to approved versions only. Returns the versions whose missing approval is overridden.
    ///
    /// # Errors
    /// `CONFLICT` with a reason for each version. The actor is stored as somebody who asked for their traffic.
    pub(super) fn check_approved(
        &mut self,
        model: &mut Model,
        unapproved: Vec<(Version, String)>,
        actor: &Actor,
        approvals: Approvals,
    ) -> Result<Vec<Version>, Failure> {
        if unapproved.is_empty() || approvals == Approvals::BreakGlass {
            return Ok(unapproved.into_iter().map(|(version, _)| version).collect());
        }
        if approvals == Approvals::Required {
            for (version, _) in &unapproved {
                self.propose(model, *version, actor)?;
            }
        }
        let name = model.name.clone();
        let complaints = unapproved.into_iter().map(|(version, why)| {
            format!(
                "version {version} of model {name} needs an approval: {why}; somebody with the role approver, who neither pushed it nor asked \
                 for its traffic, can approve it: sluicegate approve {name} {version} --reason …"
            )
        });
        Err(Failure::several(Code::Conflict, complaints.collect()))
    }

    /// Remembers who asked for a version's traffic. Not the one who approved it: asking would undo the approval for everybody.
    fn propose(&mut self, model: &mut Model, version: Version, actor: &Actor) -> Result<(), Failure> {
        let approved =
            model.stored.reviews.get(&version).is_some_and(|review| review.approved && review.actor == actor.0);
        let known = model.stored.proposers.get(&version).is_some_and(|actors| actors.contains(&actor.0));
        if approved || known {
            return Ok(());
        }
        self.commit(
            &model.stored,
            Change {
                model: model.name.clone(),
                actor: actor.0.clone(),
                action: Action::Propose,
                reason: None,
                before: None,
                after: Some(serde_json::json!({"version": version}).to_string()),
                effect: Effect::Propose { version },
            },
        )?;
        model.stored.proposers.entry(version).or_default().insert(actor.0.clone());
        Ok(())
    }

    pub(super) fn approval(&self, model: &Model, version: Version) -> Result<ApprovalState, Failure> {
        let Some(record) = model.versions.get(&version) else { return Err(no_version(model, version)) };
        Ok(ApprovalState {
            required: self.needs_approval(model),
            artifact: artifact_of(record),
            review: model.stored.reviews.get(&version).cloned(),
            proposers: model.stored.proposers.get(&version).cloned().unwrap_or_default(),
        })
    }

    /// Stores a review.
    pub(super) fn review(&mut self, model: &mut Model, request: ReviewRequest) -> Result<Reviewed, Failure> {
        let ReviewRequest { version, artifact, approved, reason, evidence, actor } = request;
        let Some(record) = model.versions.get(&version) else { return Err(no_version(model, version)) };
        let Some(found) = artifact_of(record) else {
            let why = not_ready(model, version);
            return Err(conflict(format!("only a version that is loaded can be approved or rejected: {why}")));
        };
        if let Some(seen) = artifact.filter(|seen| *seen != found) {
            let words = format!(
                "version {version} of model {} has other files now: expected {seen}, found {found}",
                model.name
            );
            return Err(conflict(words));
        }
        let proposed = model.stored.proposers.get(&version).is_some_and(|actors| actors.contains(&actor.0));
        if approved && proposed {
            let words = format!(
                "{} pushed version {version} of model {} or asked for its traffic; somebody else has to approve it",
                actor.0, model.name
            );
            return Err(Failure::new(Code::Forbidden, words));
        }
        let verdict = if approved { "approved" } else { "rejected" };
        let after =
            serde_json::json!({"version": version, "artifact": found, "verdict": verdict, "evidence": evidence});
        let before = model.stored.reviews.get(&version).map(|review| {
            let verdict = if review.approved { "approved" } else { "rejected" };
            serde_json::json!({"version": version, "artifact": review.artifact, "verdict": verdict, "by": review.actor})
                .to_string()
        });
        let committed = self.commit(
            &model.stored,
            Change {
                model: model.name.clone(),
                actor: actor.0.clone(),
                action: if approved { Action::Approve } else { Action::Reject },
                reason: Some(reason.clone()),
                before,
                after: Some(after.to_string()),
                effect: Effect::Review { version, artifact: found.clone(), approved },
            },
        )?;
        info!(model = %model.name, %version, actor = actor.0, artifact = found, "version {verdict}");
        let review = Review { artifact: found, approved, actor: actor.0, ts: committed.ts, reason };
        model.stored.reviews.insert(version, review.clone());
        // It may be promoted automatically.
        model.auto_promote_refused.remove(&version);
        self.schedule.look_now(model.name.clone());
        Ok(Reviewed { model: model.name.clone(), version, review })
    }

    /// Why a version that is loaded again must not serve: a traffic document names it, and its files are not those that served before or were
    /// approved. `None` where it may.
    pub(super) fn other_files(&self, model: &Model, version: Version, ready: &ReadyVersion) -> Option<String> {
        if !self.needs_approval(model) || !model.answering().contains(&version) {
            return None;
        }
        let found = artifact_sha256(&ready.digests);
        let approved = model.stored.reviews.get(&version).filter(|review| review.approved);
        if approved.is_some_and(|review| review.artifact == found) {
            return None;
        }
        let served = model.stored.artifacts.get(&version)?;
        let changed = approved.is_some() || served.sha256 != ready.loaded.facts.sha256;
        changed.then(|| {
            "its files are not those that were approved or served before; restore them, or push them as another version".to_owned()
        })
    }
}

/// Identifies the files of a loaded version.
pub(super) fn artifact_of(record: &VersionRecord) -> Option<String> {
    record.digests.as_ref().map(artifact_sha256)
}

/// Why a version may not get traffic that this actor asks for; `None` when somebody else approved its files.
fn why_not(model: &Model, version: Version, actor: &Actor) -> Option<String> {
    let found = model.versions.get(&version).and_then(artifact_of).unwrap_or_else(|| "unknown".to_owned());
    let Some(review) = model.stored.reviews.get(&version) else {
        return Some(format!("nobody has approved its files ({found})"));
    };
    let Review { artifact, approved, actor: by, ts, reason } = review;
    if *artifact != found {
        return Some(format!("{by} looked at other files ({artifact}, now {found})"));
    }
    if !approved {
        return Some(format!("{by} rejected it at {}: {reason}", rfc3339(*ts)));
    }
    if *by == actor.0 {
        return Some(format!("{by} approved it, so somebody else has to ask for its traffic"));
    }
    let proposed = model.stored.proposers.get(&version).is_some_and(|actors| actors.contains(by));
    proposed.then(|| format!("{by} approved it and has pushed it or asked for its traffic since"))
}
