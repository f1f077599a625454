//! Where models are, by the gateways that this one knows of.
//!
//! A gateway that went away counts for two more minutes: a restart moves no model. A gateway drops a model only when all that should have it can serve it.

use super::board::{Board, Shared, State};
use super::placement::{self, Labels};
use super::wire::NodeModel;
use crate::model::ModelName;
use crate::registry::{Reader, State as VersionState};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// The gateways that models are placed on, and what follows for this one.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Gateways that said that they leave, with the time.
    gone: BTreeMap<String, (Labels, Instant)>,
    members: BTreeMap<String, Labels>,
    /// When the members were last gathered.
    gathered: Option<Instant>,
    /// Whether this gateway should have a model, by the members above.
    here: HashMap<ModelName, bool>,
}

/// How long a gateway that is not heard keeps its models: longer than a restart takes.
const KEPT: Duration = Duration::from_mins(2);
/// How often the members are gathered.
const GATHER_EVERY: Duration = Duration::from_secs(1);
/// The most gateways that a message names.
const NAMED: usize = 5;

impl Places {
    pub fn came(&mut self, name: &str) {
        if self.gone.remove(name).is_none() && !self.members.contains_key(name) {
            self.gathered = None;
        }
    }

    pub fn left(&mut self, name: &str, labels: Labels) {
        self.gone.insert(name.to_owned(), (labels, Instant::now()));
    }

    /// False where it is known that this gateway should not have a model.
    pub fn may_be_here(&self, model: &ModelName) -> bool {
        self.here.get(model).copied().unwrap_or(true)
    }
}

impl State {
    fn gather(&mut self, shared: &Shared) {
        let now = Instant::now();
        if self.places.gathered.is_some_and(|at| now.duration_since(at) < GATHER_EVERY) {
            return;
        }
        self.places.gathered = Some(now);
        self.places.gone.retain(|_, (_, at)| now.duration_since(*at) < KEPT);
        let heard = self.nodes.iter().filter(|(_, heard)| now.duration_since(heard.at) < KEPT);
        let heard = heard.map(|(name, heard)| (name.clone(), heard.node.labels.clone()));
        let gone = self.places.gone.iter().map(|(name, (labels, _))| (name.clone(), labels.clone()));
        // This gateway knows its own labels best.
        let own = (shared.node.clone(), shared.labels.clone());
        let members: BTreeMap<String, Labels> = gone.chain(heard).chain([own]).collect();
        if members != self.places.members {
            self.places.members = members;
            self.places.here.clear();
        }
    }

    /// The gateways that should have a model.
    pub fn holders(&mut self, shared: &Shared, model: &str) -> Vec<String> {
        self.gather(shared);
        placement::holders(&shared.rules, model, &self.places.members).into_iter().map(str::to_owned).collect()
    }

    /// Whether this gateway should have a model.
    pub fn is_here(&mut self, shared: &Shared, model: &ModelName) -> bool {
        if placement::rule_of(&shared.rules, model.as_str()).is_none() {
            return true;
        }
        self.gather(shared);
        if let Some(known) = self.places.here.get(model) {
            return *known;
        }
        let holders = placement::holders(&shared.rules, model.as_str(), &self.places.members);
        let is_here = holders.contains(&shared.node.as_str());
        self.places.here.insert(model.clone(), is_here);
        is_here
    }

    /// A gateway that is there and has other rules.
    pub fn other_rules(&self, shared: &Shared) -> Option<String> {
        let own = placement::fingerprint(&shared.rules);
        let mut others = self.heard().filter(|(name, _)| **name != shared.node);
        others.find(|(_, heard)| heard.node.rules != own).map(|(name, _)| name.clone())
    }
}

impl Board {
    /// Whether this gateway should have a model.
    pub fn is_here(&self, model: &ModelName) -> bool {
        self.lock().is_here(&self.0, model)
    }

    /// Whether this gateway should have a model, or has it and the gateways that should are not able to serve it yet.
    pub fn keeps(&self, model: &ModelName, reader: &Reader) -> bool {
        if self.is_here(model) {
            return true;
        }
        let snapshot = reader.snapshot();
        let Some(entry) = snapshot.model(model.as_str()) else { return false };
        let with = |wanted: VersionState| {
            let versions = entry.versions().iter().filter(move |(_, status)| status.state == wanted);
            versions.map(|(version, _)| version.to_string()).collect::<Vec<_>>()
        };
        let (serving, ready) = (with(VersionState::Serving), with(VersionState::Ready));
        if serving.is_empty() && ready.is_empty() {
            return false;
        }
        let can = |has: &NodeModel| {
            if serving.is_empty() { !has.ready.is_empty() } else { serving.iter().all(|v| has.ready.contains(v)) }
        };
        let holders = self.lock().holders(&self.0, model.as_str());
        let others = self.others(model);
        // Gateways that went away for a moment are holders too, and cannot serve now.
        let able = others.iter().filter(|(_, has)| has.as_ref().is_some_and(can)).count();
        holders.is_empty() || able < holders.len()
    }

    /// Waits until the gateways that are there are known, where it matters which they are.
    pub fn wait_for_gateways(&self, within: Duration) {
        const LOOK: Duration = Duration::from_millis(50);
        let until = Instant::now() + within;
        // This gateway's own report comes after those of the others.
        let is_known = || self.0.rules.is_empty() || self.lock().nodes.contains_key(&self.0.node);
        while !is_known() && Instant::now() < until {
            std::thread::park_timeout(LOOK);
        }
    }

    /// Where a model is that this gateway should not have, in a sentence. `None` where it should have it, or the fleet does not know the model. `is_known`: it is
    /// in the store.
    pub fn elsewhere(&self, model: &str, is_known: impl FnOnce() -> bool) -> Option<String> {
        let rule = placement::rule_of(&self.0.rules, model)?;
        let name: ModelName = model.parse().ok()?;
        let mut state = self.lock();
        if state.is_here(&self.0, &name) {
            return None;
        }
        let holders = state.holders(&self.0, model);
        let has = |node: &super::wire::Node| node.models.get(model).is_some_and(|has| !has.ready.is_empty());
        let there = state.heard().filter(|(_, heard)| has(&heard.node));
        let able: Vec<&str> = there.map(|(name, _)| name.as_str()).filter(|name| *name != self.0.node).collect();
        if able.is_empty() && !state.models.contains_key(&name) && !is_known() {
            return None;
        }
        let listed = |names: &[&str]| {
            let more = names.len().saturating_sub(NAMED);
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            format!("{}{more}", names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", "))
        };
        let why = format!("model {model} is not on this gateway ({}) by the fleet's placement", self.0.node);
        let needs =
            if rule.labels.is_empty() { String::new() } else { format!(" with {}", placement::shown(&rule.labels)) };
        let holders: Vec<&str> = holders.iter().map(String::as_str).collect();
        Some(match (able.is_empty(), holders.is_empty()) {
            (false, _) => format!("{why}: it is on {}", listed(&able)),
            (true, false) => format!("{why}: it is to be on {}, which cannot serve it now", listed(&holders)),
            (true, true) => format!("{why}: no gateway{needs} is there"),
        })
    }
}
