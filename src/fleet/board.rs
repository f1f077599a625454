//! What this gateway knows of its fleet. The manager, the session and the admin plane share it.

use super::Config;
use super::wire::{Node, NodeModel, SharedDocument};
use crate::ledger::rfc3339;
use crate::model::ModelName;
use crate::telemetry::{Telemetry, names};
use jiff::Timestamp;
use metrics::Gauge;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A gateway that was not heard for so long is not there. It reports each second, and its key lives for ten.
pub(super) const HEARD_WITHIN: Duration = Duration::from_secs(5);
/// How long a gateway that left without saying so is shown.
const SHOWN: Duration = Duration::from_mins(10);

/// Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Board(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: String,
    node: String,
    state: Mutex<State>,
    /// Something is to be followed.
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    link: Link,
    models: HashMap<ModelName, Known>,
    nodes: BTreeMap<String, Heard>,
    gauges: Option<Gauges>,
}

/// The connection to NATS.
#[derive(Debug)]
enum Link {
    /// Why there is none.
    CutOff(String),
    /// The bucket is being read.
    Reading,
    Following,
}

/// A model's document in the bucket.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub revision: u64,
    /// The revision that is in force here; less while it is being followed.
    pub in_force: u64,
    pub shared: SharedDocument,
    /// Why it is not in force yet.
    pub waits: Option<String>,
    /// When to try again, and after how long the next time.
    pub again: Option<(Instant, Duration)>,
}

#[derive(Debug)]
struct Heard {
    node: Node,
    at: Instant,
}

#[derive(Debug)]
struct Gauges {
    connected: Gauge,
    nodes: Gauge,
    behind: Gauge,
}

/// The fleet as one gateway sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub name: String,
    /// The gateway that looks.
    pub node: String,
    pub nodes: Vec<NodeView>,
}

/// A gateway of the fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeView {
    pub name: String,
    /// `ready`, `starting`, `degraded` (cut off from NATS) or `lost` (not heard for some seconds).
    pub state: &'static str,
    pub program: String,
    pub since: String,
    pub models: BTreeMap<String, NodeModel>,
}

impl Default for Link {
    fn default() -> Link {
        Link::CutOff("it has not been reached yet".to_owned())
    }
}

impl Board {
    pub fn new(config: &Config) -> Board {
        Board(Arc::new(Shared {
            name: config.name.clone(),
            node: config.node.clone(),
            state: Mutex::default(),
            news: Notify::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count_with(&self, telemetry: &Telemetry) {
        let gauge = |name| telemetry.process().gauge(name, &[]);
        let (connected, nodes) = (gauge(&names::FLEET_CONNECTED), gauge(&names::FLEET_NODES));
        let mut state = self.lock();
        state.gauges = Some(Gauges { connected, nodes, behind: gauge(&names::FLEET_BEHIND) });
        state.count();
    }

    // === the session ===

    /// The connection was lost. Returns whether it was there.
    pub fn cut_off(&self, why: String) -> bool {
        let mut state = self.lock();
        let was = matches!(state.link, Link::Following);
        state.link = Link::CutOff(why);
        state.count();
        was
    }

    /// The bucket is read from its beginning. It may be another one than before.
    pub fn reading(&self) {
        let mut state = self.lock();
        state.link = Link::Reading;
        state.models.clear();
    }

    /// Whether the bucket has no document of a model.
    pub fn lacks(&self, model: &ModelName) -> bool {
        let state = self.lock();
        matches!(state.link, Link::Following) && !state.models.contains_key(model)
    }

    /// Everything in the bucket has been read. Returns whether that is new.
    pub fn following(&self) -> bool {
        let mut state = self.lock();
        let was = matches!(state.link, Link::Following);
        state.link = Link::Following;
        state.count();
        drop(state);
        self.0.news.notify_one();
        !was
    }

    /// A document in the bucket.
    pub fn document(&self, model: ModelName, revision: u64, shared: SharedDocument) {
        let mut state = self.lock();
        let in_force = state.models.get(&model).map_or(0, |known| known.in_force);
        if state.models.get(&model).is_none_or(|known| known.revision <= revision) {
            state.models.insert(model, Known { revision, in_force, shared, waits: None, again: None });
        }
        state.count();
        drop(state);
        self.0.news.notify_one();
    }

    pub fn node(&self, name: &str, node: Node) {
        let mut state = self.lock();
        state.nodes.insert(name.to_owned(), Heard { node, at: Instant::now() });
        state.nodes.retain(|_, heard| heard.at.elapsed() < SHOWN);
        state.count();
    }

    /// A gateway said that it leaves.
    pub fn left(&self, name: &str) {
        let mut state = self.lock();
        state.nodes.remove(name);
        state.count();
    }

    /// Waits until something may have to be followed.
    pub async fn news(&self) {
        self.0.news.notified().await;
    }

    /// The documents that are to be put in force now.
    pub fn to_follow(&self, now: Instant) -> Vec<(ModelName, Known)> {
        let is_due = |known: &Known| known.again.is_none_or(|(at, _)| at <= now);
        let state = self.lock();
        let behind = state.models.iter().filter(|(_, known)| known.in_force != known.revision && is_due(known));
        behind.map(|(model, known)| (model.clone(), known.clone())).collect()
    }

    /// A revision is in force here.
    pub fn in_force(&self, model: &ModelName, revision: u64) {
        let mut state = self.lock();
        if let Some(known) = state.models.get_mut(model) {
            known.in_force = revision;
            if known.revision == revision {
                known.waits = None;
                known.again = None;
            }
        }
        state.count();
    }

    /// A revision cannot be put in force yet. It is tried again, each time after twice as long, up to a few seconds.
    pub fn waits(&self, model: &ModelName, revision: u64, why: String, now: Instant) {
        const FIRST: Duration = Duration::from_millis(100);
        const LONGEST: Duration = Duration::from_secs(3);
        if let Some(known) = self.lock().models.get_mut(model).filter(|known| known.revision == revision) {
            let pause = known.again.map_or(FIRST, |(_, pause)| (pause * 2).min(LONGEST));
            known.again = Some((now + pause, pause));
            known.waits = Some(why);
        }
    }

    // === the manager ===

    /// What the bucket has of a model.
    ///
    /// # Errors
    /// Why it is not known, in words.
    pub fn known(&self, model: &ModelName) -> Result<Option<Known>, String> {
        let state = self.lock();
        match &state.link {
            Link::Following => Ok(state.models.get(model).cloned()),
            Link::Reading => Err("the fleet's state is being read".to_owned()),
            Link::CutOff(why) => Err(why.clone()),
        }
    }

    /// This gateway changed the document.
    pub fn changed(&self, model: &ModelName, revision: u64, shared: SharedDocument) {
        let mut state = self.lock();
        let known = state.models.get(model).map_or(0, |known| known.revision);
        if known <= revision {
            state
                .models
                .insert(model.clone(), Known { revision, in_force: revision, shared, waits: None, again: None });
        }
        state.count();
    }

    /// The document that is in force here is not the one in the bucket.
    pub fn not_in_force(&self, model: &ModelName) {
        if let Some(known) = self.lock().models.get_mut(model) {
            known.in_force = 0;
        }
        self.0.news.notify_one();
    }

    /// The other gateways that are there, and what each has of a model.
    pub fn others(&self, model: &ModelName) -> Vec<(String, Option<NodeModel>)> {
        let state = self.lock();
        let there =
            state.nodes.iter().filter(|(name, heard)| **name != self.0.node && heard.at.elapsed() < HEARD_WITHIN);
        there.map(|(name, heard)| (name.clone(), heard.node.models.get(model.as_str()).cloned())).collect()
    }

    // === operators ===

    /// The revision that is in force here, and why a newer one is not.
    pub fn own(&self, model: &ModelName) -> (u64, Option<String>) {
        let state = self.lock();
        state.models.get(model).map_or((0, None), |known| {
            (known.in_force, known.waits.clone().filter(|_| known.in_force != known.revision))
        })
    }

    pub fn view(&self) -> View {
        let state = self.lock();
        let is_cut_off = !matches!(state.link, Link::Following);
        let of = |(name, Heard { node, at }): (&String, &Heard)| {
            let is_own = *name == self.0.node;
            let state = match () {
                () if is_own && is_cut_off => "degraded",
                () if !is_own && at.elapsed() >= HEARD_WITHIN => "lost",
                () if node.ready => "ready",
                () => "starting",
            };
            let (program, since) = (node.program.clone(), node.since.clone());
            NodeView { name: name.clone(), state, program, since, models: node.models.clone() }
        };
        let mut nodes: Vec<NodeView> = state.nodes.iter().map(of).collect();
        if !state.nodes.contains_key(&self.0.node) {
            nodes.push(NodeView {
                name: self.0.node.clone(),
                state: if is_cut_off { "degraded" } else { "starting" },
                program: env!("CARGO_PKG_VERSION").to_owned(),
                since: String::new(),
                models: BTreeMap::new(),
            });
        }
        View { name: self.0.name.clone(), node: self.0.node.clone(), nodes }
    }

    pub fn trouble(&self) -> Option<String> {
        let state = self.lock();
        if let Link::CutOff(why) = &state.link {
            return Some(format!(
                "degraded: this gateway is cut off from the fleet {}: {why}; it serves what it has, and changes of traffic are refused",
                self.0.name
            ));
        }
        let behind = state.models.iter().filter(|(_, known)| known.in_force != known.revision);
        let behind: Vec<String> = behind
            .map(|(model, known)| {
                let why = known.waits.as_deref().unwrap_or("it is being put in force");
                format!("{model} (revision {}: {why})", known.revision)
            })
            .take(5)
            .collect();
        (!behind.is_empty()).then(|| format!("documents of the fleet are not in force here yet: {}", behind.join("; ")))
    }
}

impl State {
    fn count(&self) {
        let Some(gauges) = &self.gauges else { return };
        gauges.connected.set(if matches!(self.link, Link::Following) { 1.0 } else { 0.0 });
        gauges.nodes.set(self.nodes.values().filter(|heard| heard.at.elapsed() < HEARD_WITHIN).count() as f64);
        gauges.behind.set(self.models.values().filter(|known| known.in_force != known.revision).count() as f64);
    }
}

/// The time now, as the ledger writes it.
pub(super) fn now() -> String {
    rfc3339(Timestamp::now())
}
