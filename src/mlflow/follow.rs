//! Follows the registry: carries out what aliases change, and tells MLflow what became of it.

use super::ACTOR;
use super::alias::{Followed, Now, Outcome, Step, label_of};
use super::api::Api;
use super::config::Config;
use super::memory::{Memory, ModelNews, News, VersionNews};
use super::start::Mlflow;
use super::view::{AliasView, ModelView, VersionView};
use crate::lifecycle::{Actor, Handle, Promote, Promotion};
use crate::model::{Code, Failure, MAX_REASON, ModelName, Version};
use crate::registry::{Entry, Reader};
use crate::route::{Document, Proposal};
use crate::telemetry::{Telemetry, names};
use metrics::Counter;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// The time limit of one request to the manager. A promotion of a retired model waits until the version is loaded.
const CALL: Duration = Duration::from_mins(2);
/// The pause after a change that the manager had no time for.
const PAUSE: Duration = Duration::from_secs(2);

/// What follows the registry.
pub(super) struct Following {
    pub(super) config: Config,
    pub(super) memory: Memory,
    pub(super) api: Api,
    view: Mlflow,
    pub(super) reader: Reader,
    handle: Handle,
    /// Drives the calls of the handle.
    calls: tokio::runtime::Runtime,
    /// What the registry said last.
    pub(super) news: BTreeMap<ModelName, ModelNews>,
    /// Failures to write tags in a row, and when to try again.
    pub(super) untold: (u32, Option<Instant>),
    carried: [Counter; 2],
    /// No change is made before this, after the manager had no time for one.
    not_before: Option<Instant>,
    /// How many of the models had a traffic document at the last look.
    documents: usize,
    /// Has the registry read at once.
    read_now: Box<dyn Fn() + Send>,
}

/// One alias that something was decided about.
struct Case<'c> {
    model: &'c ModelName,
    alias: &'c str,
    promotes: bool,
    /// The revision that was looked at.
    revision: u64,
}

impl Following {
    pub(super) fn new(
        (config, memory): (Config, Memory),
        api: Api,
        view: Mlflow,
        reader: Reader,
        (handle, calls): (Handle, tokio::runtime::Runtime),
        read_now: Box<dyn Fn() + Send>,
        telemetry: &Telemetry,
    ) -> Following {
        let scope = telemetry.process();
        let carried = ["applied", "refused"].map(|result| scope.counter(&names::MLFLOW_ALIASES, &[("result", result)]));
        let (news, untold) = (BTreeMap::new(), (0, None));
        let (not_before, documents) = (None, usize::MAX);
        Following {
            config,
            memory,
            api,
            view,
            reader,
            handle,
            calls,
            news,
            untold,
            carried,
            not_before,
            documents,
            read_now,
        }
    }

    /// Whether an alias waits for something of this server.
    pub(super) fn waits(&self) -> bool {
        let all = self.memory.models.values().flat_map(BTreeMap::values);
        all.into_iter().any(|followed| followed.outcome == Outcome::Waiting)
    }

    /// Takes what the registry says, and does what can be done now.
    pub(super) fn look(&mut self, news: Option<News>) {
        let look_again = news.is_some();
        if let Some(news) = news {
            self.take(news);
        }
        let snapshot = self.reader.snapshot();
        for model in self.config.models.clone() {
            self.carry_over(&model, snapshot.model(model.as_str()).map(Arc::as_ref), look_again);
        }
        // Until a model has a document, only one of its versions is offered.
        let has_document = |model: &&ModelName| snapshot.model(model.as_str()).is_some_and(|e| e.document().is_some());
        let documents = self.config.models.iter().filter(has_document).count();
        if documents > std::mem::replace(&mut self.documents, documents) {
            (self.read_now)();
        }
        self.memory.write();
        self.show();
        self.tell(look_again);
    }

    /// Remembers the aliases that moved. A model that the registry does not have keeps what it had: a registry that lost it removes no labels.
    fn take(&mut self, news: News) {
        let snapshot = self.reader.snapshot();
        for (model, of) in &news.models {
            let document = snapshot.model(model.as_str()).and_then(|entry| entry.document());
            let known = self.memory.models.entry(model.clone()).or_default();
            for (alias, version) in &of.aliases {
                if known.get(alias).is_none_or(|followed| followed.version != Some(*version)) {
                    let mut followed = Followed::moved(alias, Some(*version), document);
                    if self.memory.lost {
                        followed.outcome = Outcome::Superseded;
                        "what became of it before is not known; move the alias again to carry it over"
                            .clone_into(&mut followed.message);
                    }
                    known.insert(alias.clone(), followed);
                }
            }
            for (alias, followed) in known.iter_mut().filter(|(alias, _)| !of.aliases.contains_key(*alias)) {
                if followed.version.is_some() {
                    // The label is removed if it is still the one that the alias set.
                    let (was, applied) = (followed.version, followed.outcome == Outcome::Applied);
                    *followed = Followed::moved(alias, None, document);
                    followed.found.label = followed.found.label.filter(|label| applied && Some(*label) == was);
                }
            }
        }
        self.memory.lost = false;
        self.news = news.models;
    }

    fn carry_over(&mut self, model: &ModelName, entry: Option<&Entry>, look_again: bool) {
        let Some(known) = self.memory.models.get(model) else { return };
        let of = self.news.get(model);
        let mut decided = Vec::new();
        for (alias, followed) in known {
            let promotes = self.config.promote_alias.as_ref() == Some(alias);
            let now = Now {
                document: entry.and_then(Entry::document),
                status: followed.version.and_then(|version| entry?.versions().get(&version)),
                version: followed.version.and_then(|version| of?.versions.get(&version)),
                retired: entry.is_some_and(|entry| entry.retired().is_some()),
                look_again,
            };
            decided.push((alias.clone(), promotes, followed.next(alias, promotes, now)));
        }
        for (alias, promotes, step) in decided {
            // An earlier step may have changed the document; the others are decided again at the next look.
            let is_change = matches!(step, Step::Put(_) | Step::Promote { .. });
            if is_change && self.not_before.is_some_and(|at| Instant::now() < at) {
                return;
            }
            let case = Case { model, alias: &alias, promotes, revision: entry.map_or(0, Entry::revision) };
            self.carry_out(&case, step);
            if is_change {
                return;
            }
        }
    }

    fn carry_out(&mut self, case: &Case<'_>, step: Step) {
        match step {
            Step::Nothing => {}
            Step::Is(outcome, message) => self.set(case, outcome, message),
            Step::Forget => self.forget(case),
            Step::Put(document) => self.put(case, *document),
            Step::Promote { version, check } => self.promote(case, version, check),
        }
    }

    fn put(&mut self, case: &Case<'_>, mut document: Document) {
        let version = self.followed(case).and_then(|followed| followed.version);
        document.reason = Some(reason(case, version));
        let proposal =
            Proposal { document, allow_signature_change: false, break_glass: false, dry_run: false, quorum: None };
        let asked =
            self.handle.put_traffic(case.model.clone(), proposal, Some(vec![case.revision]), Actor(ACTOR.to_owned()));
        let answer = call(&self.calls, asked);
        match (answer, version) {
            (Ok(_), None) => self.forget(case),
            (Ok(published), Some(_)) => {
                let words = format!("the label is set since revision {}", published.revision);
                self.set(case, Outcome::Applied, words);
            }
            (Err(failure), _) => self.refused(case, &failure),
        }
    }

    fn promote(&mut self, case: &Case<'_>, version: Version, check: bool) {
        let request = |dry_run| Promote {
            version,
            reason: reason(case, Some(version)),
            dry_run,
            allow_signature_change: false,
            gates: None,
            break_glass: false,
            if_match: Some(vec![case.revision]),
            label: label_of(case.alias),
            quorum: None,
            actor: Actor(ACTOR.to_owned()),
        };
        if check {
            let would = call(&self.calls, self.handle.promote(case.model.clone(), request(true)));
            if !would.is_ok_and(|promotion| passes(&promotion)) {
                return;
            }
        }
        match call(&self.calls, self.handle.promote(case.model.clone(), request(false))) {
            Ok(promotion) => {
                let words = format!("promoted: it serves since revision {}", promotion.revision);
                self.set(case, Outcome::Applied, words);
            }
            Err(failure) => self.refused(case, &failure),
        }
    }

    fn refused(&mut self, case: &Case<'_>, failure: &Failure) {
        // Something changed meanwhile, or the manager has no time: the next look decides again.
        let is_passing =
            matches!(failure.code, Code::PreconditionFailed | Code::Draining | Code::Internal | Code::NotReady);
        let outcome = if is_passing { Outcome::Waiting } else { Outcome::Refused };
        if is_passing {
            self.not_before = Some(Instant::now() + PAUSE);
        }
        self.set(case, outcome, failure.message.clone());
    }

    fn followed(&mut self, case: &Case<'_>) -> Option<&mut Followed> {
        self.memory.models.get_mut(case.model)?.get_mut(case.alias)
    }

    fn forget(&mut self, case: &Case<'_>) {
        info!(model = %case.model, alias = case.alias, "the alias was removed in MLflow");
        if let Some(known) = self.memory.models.get_mut(case.model) {
            known.remove(case.alias);
        }
    }

    /// Stores what became of an alias. A change of it is logged, and a promotion is told to MLflow.
    fn set(&mut self, case: &Case<'_>, outcome: Outcome, message: String) {
        let tells = case.promotes && !self.config.tags.is_empty();
        let Some(followed) = self.followed(case) else { return };
        if (followed.outcome, &followed.message) == (outcome, &message) {
            return;
        }
        let is_new = followed.outcome != outcome;
        followed.outcome = outcome;
        followed.message = message;
        if !is_new {
            return;
        }
        let Followed { version: Some(version), message, .. } = &*followed else { return };
        let (version, message) = (*version, message.clone());
        match outcome {
            Outcome::Waiting => return,
            Outcome::Applied => info!(model = %case.model, alias = case.alias, %version, "MLflow's alias: {message}"),
            Outcome::Refused | Outcome::Superseded => {
                warn!(model = %case.model, alias = case.alias, %version, "MLflow's alias is not carried over: {message}");
            }
        }
        if tells {
            followed.untold = Some(format!("{}: {message}", outcome.as_str()));
        }
        self.carried[usize::from(outcome != Outcome::Applied)].increment(1);
    }

    fn show(&self) {
        let model = |name: &ModelName| {
            let known = self.memory.models.get(name).into_iter().flatten();
            let alias = |(alias, followed): (&String, &Followed)| AliasView {
                alias: alias.clone(),
                version: followed.version,
                promotes: self.config.promote_alias.as_ref() == Some(alias),
                state: followed.outcome.as_str(),
                message: followed.message.clone(),
            };
            let versions = self.news.get(name).into_iter().flat_map(|of| &of.versions);
            let version = |(version, news): (&Version, &VersionNews)| VersionView {
                version: *version,
                unusable: news.unusable.clone(),
            };
            ModelView {
                model: name.clone(),
                aliases: known.map(alias).collect(),
                versions: versions.map(version).collect(),
            }
        };
        let models: Vec<ModelView> = self.config.models.iter().map(model).collect();
        self.view.set(|view| view.models = models);
    }
}

/// Whether a promotion would not be refused by a gate.
fn passes(promotion: &Promotion) -> bool {
    promotion.gates.iter().all(|verdict| verdict.passed)
}

fn reason(case: &Case<'_>, version: Option<Version>) -> String {
    let Case { model, alias, .. } = case;
    let words = match version {
        Some(version) => format!("alias {alias} of {model} in MLflow is version {version}"),
        None => format!("alias {alias} of {model} was removed in MLflow"),
    };
    words.chars().take(MAX_REASON).collect()
}

/// Waits for the manager's answer, within a time limit.
fn call<T>(calls: &tokio::runtime::Runtime, asked: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let limited = async { tokio::time::timeout(CALL, asked).await };
    calls.block_on(limited).unwrap_or_else(|_| {
        Err(Failure::new(Code::Internal, "the manager did not answer in time; it is looked at again"))
    })
}
