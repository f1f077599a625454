//! The lineage of a version: what is known about where it comes from, and what is not.

use super::Admin;
use super::caller::Caller;
use super::error::ErrorResponse;
use super::extract::Target;
use super::history::read;
use super::responses::models::unknown_version;
use super::schemas::{Problem, VersionState};
use crate::access::Action;
use crate::ledger::{Event, rfc3339};
use crate::model::{ModelName, Version};
use crate::registry::{Facts, Lineage, Snapshot, State};
use axum::Json;
use axum::extract::State as Shared;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use utoipa::ToSchema;

/// The most parents that are followed.
const MAX_PARENTS: usize = 32;
/// The newest events of the model that are searched, and the most that are returned.
const SEARCHED: usize = 10_000;
const MAX_EVENTS: usize = 100;

/// What is known about where a version comes from.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LineageAnswer {
    #[schema(value_type = String)]
    model: ModelName,
    #[schema(value_type = String)]
    version: Version,
    /// Null for a version that is only in the audit trail.
    #[schema(value_type = Option<VersionState>)]
    state: Option<State>,
    /// Null until the version was loaded since the server started.
    files: Option<Files>,
    /// When the version was ready with its bytes for the first time.
    #[schema(format = DateTime)]
    first_ready_at: Option<String>,
    /// The SHA-256 of its model.onnx then.
    first_ready_sha256: Option<String>,
    /// What `[lineage]` in version.toml says; null until the version was loaded since the server started.
    training: Option<Training>,
    /// The versions that it was made from, the nearest first.
    parents: Vec<ParentAnswer>,
    /// Why the list of parents ends.
    parents_end: String,
    /// Changes that concern this version, newest first: pushed, loaded, promoted, given or refused traffic.
    events: Vec<LineageEvent>,
    /// Versions that its answers were compared with while it was a shadow, since the server started.
    compared_with: Vec<ComparedWith>,
    /// What is not known, in words.
    unknown: Vec<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Files {
    /// SHA-256 of model.onnx.
    sha256: String,
    /// One SHA-256 for all files.
    digest: String,
    all: Vec<FileDigest>,
    /// The trusted key that signed the files; null where no keys are configured.
    signed_by: Option<String>,
    engine: &'static str,
    bytes: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FileDigest {
    name: String,
    sha256: String,
}

/// As the author of the version says it. Nothing here is verified.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Training {
    data: DataAnswer,
    code: CodeAnswer,
    trainer: Option<String>,
    trained_at: Option<String>,
    /// `3` or `iris/3`.
    parent: Option<String>,
    parameters: BTreeMap<String, Value>,
    metrics: BTreeMap<String, f64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DataAnswer {
    /// SHA-256, or a digest of another kind after its name, such as `mlflow:0e60fe4c`.
    digest: Option<String>,
    from: Option<String>,
    to: Option<String>,
    location: Option<String>,
    rows: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CodeAnswer {
    repository: Option<String>,
    commit: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ParentAnswer {
    #[schema(value_type = String)]
    model: ModelName,
    #[schema(value_type = String)]
    version: Version,
    /// Whether this server has the version.
    known: bool,
    sha256: Option<String>,
    training: Option<Training>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LineageEvent {
    id: u64,
    #[schema(format = DateTime)]
    ts: String,
    actor: String,
    action: String,
    reason: Option<String>,
    /// What the version got by this change: `split 10`, `shadow 0.5`, `label stable`, …; empty where it got no traffic.
    traffic: Vec<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ComparedWith {
    #[schema(value_type = String)]
    primary: Version,
    /// Pairs of answers.
    pairs: u64,
    agreed: u64,
    #[schema(format = DateTime)]
    since: String,
    #[schema(format = DateTime)]
    until: String,
}

/// Where a version comes from
///
/// Its files, what version.toml says about its training, its parents, who pushed, loaded and promoted it, and what it was compared with. The
/// member `unknown` says what of that is not known.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/versions/{version}/lineage", operation_id = "lineage", tag = "models",
    params(("model" = String, Path), ("version" = String, Path)),
    responses(
        (status = 200, description = "What is known, and what is not", body = LineageAnswer),
        (status = 404, description = "Neither the model nor the audit trail has such a version", body = Problem),
    )
)]
pub(super) async fn show(
    Shared(admin): Shared<Arc<Admin>>,
    Caller(caller): Caller,
    target: Target,
) -> Result<Json<LineageAnswer>, ErrorResponse> {
    let (model, version) = (target.model()?, target.version()?);
    let name = model.clone();
    let (events, searched, artifact) = read(&admin.ledger, move |ledger| {
        let mut found = Found { version, events: Vec::new(), pushed: false };
        let searched = ledger.each_event_of(&name, SEARCHED, |event| found.add(event))?;
        Ok((found, searched, ledger.artifact(&name, version)?))
    })
    .await?;
    let snapshot = admin.reader.snapshot();
    let status = snapshot.model(model.as_str()).and_then(|entry| entry.versions().get(&version));
    if status.is_none() && events.events.is_empty() && artifact.is_none() {
        return Err(unknown_version(target.entry(&snapshot)?, version));
    }
    let facts = status.and_then(|status| status.facts.as_deref());
    let may_see = |model: &ModelName| caller.may(Action::View, Some(model.as_str()));
    let (parents, parents_end) = parents(&snapshot, (&model, version), facts, may_see);
    let pairs = admin.figures.of(&model);
    let compared = pairs.iter().filter(|pair| pair.shadow == version).map(|pair| ComparedWith {
        primary: pair.primary,
        pairs: pair.pairs,
        agreed: pair.agreed,
        since: rfc3339(pair.since),
        until: rfc3339(pair.until),
    });
    let compared_with: Vec<ComparedWith> = compared.collect();
    let mut unknown = not_named(facts);
    if facts.is_some_and(|facts| facts.origin.signed_by.is_none()) {
        unknown.push("who signed the files: [models] trusted_keys has no key".to_owned());
    }
    if !events.pushed {
        unknown.push("who pushed it: no push of it is in the audit trail; its files may have been copied".to_owned());
    }
    if searched {
        unknown.push(format!("events of the model before the newest {SEARCHED}, which were not searched"));
    }
    if compared_with.is_empty() {
        unknown.push("how it compares: it was compared with no other version since the server started".to_owned());
    }
    Ok(Json(LineageAnswer {
        state: status.map(|status| status.state),
        files: facts.map(Files::of),
        first_ready_at: artifact.as_ref().map(|artifact| rfc3339(artifact.first_ready_at)),
        first_ready_sha256: artifact.map(|artifact| artifact.sha256),
        training: facts.map(|facts| Training::of(&facts.origin.lineage)),
        parents,
        parents_end,
        events: events.events,
        compared_with,
        unknown,
        model,
        version,
    }))
}

/// The members of the lineage that `version.toml` does not name.
fn not_named(facts: Option<&Facts>) -> Vec<String> {
    let Some(facts) = facts else {
        return vec![
            "the files and what version.toml says: the version was not loaded since the server started".to_owned(),
        ];
    };
    let Lineage { data, code, trainer, trained_at, parent, parameters, metrics } = &facts.origin.lineage;
    let named = [
        ("the training data: lineage.data.digest", data.digest.is_some()),
        ("the time range of the training data: lineage.data.from and to", data.from.is_some() && data.to.is_some()),
        ("the code: lineage.code.commit", code.commit.is_some()),
        ("the parameters: lineage.parameters", !parameters.is_empty()),
        ("the metrics of the training: lineage.metrics", !metrics.is_empty()),
        ("who trained it: lineage.trainer", trainer.is_some()),
        ("when it was trained: lineage.trained_at", trained_at.is_some()),
        ("the version it was made from: lineage.parent", parent.is_some()),
    ];
    let missing = named.into_iter().filter(|(_, is_named)| !is_named);
    missing.map(|(what, _)| format!("{what} is not in version.toml")).collect()
}

/// Follows the parents. Returns them with the reason for which the list ends.
fn parents(
    snapshot: &Snapshot,
    (model, version): (&ModelName, Version),
    facts: Option<&Facts>,
    may_see: impl Fn(&ModelName) -> bool,
) -> (Vec<ParentAnswer>, String) {
    let mut seen = BTreeSet::from([(model.clone(), version)]);
    let mut parents: Vec<ParentAnswer> = Vec::new();
    let mut at = (model.clone(), version);
    let mut parent = facts.and_then(|facts| facts.origin.lineage.parent.clone());
    loop {
        let Some(next) = parent else {
            let known =
                parents.last().is_none_or(|last| last.training.is_some()) && (facts.is_some() || !parents.is_empty());
            let words = if known { "names no parent" } else { "was not loaded since the server started" };
            return (parents, format!("version {} of {} {words}", at.1, at.0));
        };
        let id = (next.model.unwrap_or_else(|| at.0.clone()), next.version);
        if !seen.insert(id.clone()) {
            return (parents, format!("version {} of {} is its own ancestor: the parents form a cycle", id.1, id.0));
        }
        if parents.len() == MAX_PARENTS {
            return (parents, format!("only {MAX_PARENTS} parents are followed"));
        }
        if !may_see(&id.0) {
            return (parents, format!("the caller may not see version {} of {}", id.1, id.0));
        }
        let status = snapshot.model(id.0.as_str()).and_then(|entry| entry.versions().get(&id.1));
        let facts = status.and_then(|status| status.facts.as_deref());
        parents.push(ParentAnswer {
            model: id.0.clone(),
            version: id.1,
            known: status.is_some(),
            sha256: facts.map(|facts| facts.sha256.clone()),
            training: facts.map(|facts| Training::of(&facts.origin.lineage)),
        });
        if status.is_none() {
            return (parents, format!("this server has no version {} of {}", id.1, id.0));
        }
        parent = facts.and_then(|facts| facts.origin.lineage.parent.clone());
        at = id;
    }
}

/// The events that concern a version.
struct Found {
    version: Version,
    events: Vec<LineageEvent>,
    pushed: bool,
}

impl Found {
    /// Adds an event if it concerns the version.
    fn add(&mut self, event: Event) {
        let parse = |text: &Option<String>| -> Value {
            text.as_ref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
        };
        let (before, after) = (parse(&event.before), parse(&event.after));
        let version = self.version.to_string();
        let is_own = before["version"] == version.as_str() || after["version"] == version.as_str();
        let (had, has) = (traffic(&before, &version), traffic(&after, &version));
        if !is_own && had == has {
            return;
        }
        self.pushed |= is_own && event.action == "push";
        if self.events.len() < MAX_EVENTS {
            let Event { id, ts, actor, action, reason, .. } = event;
            self.events.push(LineageEvent { id, ts: rfc3339(ts), actor, action, reason, traffic: has });
        }
    }
}

/// What a traffic document gives to a version.
fn traffic(document: &Value, version: &str) -> Vec<String> {
    let list = |name: &str| document[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_it = |value: &&Value| value["version"] == version;
    let split = list("split").iter().filter(is_it).map(|arm| format!("split {}", arm["weight"]));
    let rules = list("rules").iter().filter(is_it).map(|_| "rule".to_owned());
    let shadows = list("shadows").iter().filter(is_it).map(|shadow| format!("shadow {}", shadow["sample"]));
    let labels = document["labels"].as_object().into_iter().flatten();
    let labels = labels.filter(|(_, named)| *named == version).map(|(label, _)| format!("label {label}"));
    let fallback = (document["fallback"]["version"] == version).then(|| "fallback".to_owned());
    split.chain(rules).chain(shadows).chain(labels).chain(fallback).collect()
}

impl Files {
    fn of(facts: &Facts) -> Files {
        let files = facts.origin.files.iter();
        Files {
            sha256: facts.sha256.clone(),
            digest: facts.origin.digest.clone(),
            all: files.map(|(name, sha256)| FileDigest { name: name.clone(), sha256: sha256.clone() }).collect(),
            signed_by: facts.origin.signed_by.clone(),
            engine: facts.engine,
            bytes: facts.bytes,
        }
    }
}

impl Training {
    pub(super) fn of(lineage: &Lineage) -> Training {
        let Lineage { data, code, trainer, trained_at, parent, parameters, metrics } = lineage.clone();
        Training {
            data: DataAnswer {
                digest: data.digest,
                from: data.from,
                to: data.to,
                location: data.location,
                rows: data.rows,
            },
            code: CodeAnswer { repository: code.repository, commit: code.commit },
            trainer,
            trained_at,
            parent: parent.map(|parent| match parent.model {
                Some(model) => format!("{model}/{}", parent.version),
                None => parent.version.to_string(),
            }),
            parameters,
            metrics,
        }
    }
}
