//! What this gateway knows of its fleet. The manager, the session and the admin plane share it.

use super::Config;
use super::export::FleetState;
use super::gateways::Reports;
use super::placement::{Labels, Rule};
use super::places::Places;
use super::state::SharedState;
use super::wire::{Node, NodeModel, SharedRollout};
use crate::ledger::rfc3339;
use crate::model::ModelName;
use crate::telemetry::{Telemetry, names};
use jiff::Timestamp;
use metrics::{Gauge, Histogram};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How many reports come from all gateways together in a second. Each goes to all of them, so more would cost NATS more than the documents do.
const REPORTS_PER_SECOND: usize = 50;
/// A report that says nothing new is repeated so often.
const REPEAT_EVERY: Duration = Duration::from_secs(3);
/// A report may come so late.
const LATE: Duration = Duration::from_secs(2);
/// How long a gateway that left without saying so is shown.
const SHOWN: Duration = Duration::from_mins(10);

/// How often a gateway of a fleet of `nodes` may report something new: every second, and less often where there are many.
pub(super) fn report_every(nodes: usize) -> Duration {
    Duration::from_secs(nodes.div_ceil(REPORTS_PER_SECOND).max(1) as u64)
}

/// How often it reports where there is nothing new.
pub(super) fn repeat_every(nodes: usize) -> Duration {
    report_every(nodes).max(REPEAT_EVERY)
}

/// A gateway that was not heard for so long is not there.
pub(super) fn heard_within(nodes: usize) -> Duration {
    repeat_every(nodes) + LATE
}

/// Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Board(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    name: String,
    pub(super) node: String,
    /// What this gateway is, and where models are.
    pub(super) labels: Labels,
    pub(super) rules: Vec<Rule>,
    state: Mutex<State>,
    /// Something is to be followed.
    news: Notify,
    /// The reports of all gateways are needed.
    pub(super) needed: Notify,
    /// This gateway has what the fleet says of its models, or goes on with what it had.
    begun: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct State {
    link: Link,
    /// Since when it is followed.
    since: Option<Instant>,
    /// It was tried to reach NATS, in vain.
    failed: bool,
    pub(super) models: HashMap<ModelName, Known>,
    /// Those whose reports are followed.
    pub(super) nodes: BTreeMap<String, Heard>,
    pub(super) reports: Reports,
    /// When the reports of all gateways were last needed.
    pub(super) needed: Option<Instant>,
    pub(super) places: Places,
    /// Changes that NATS has for this gateway, as of the last one that arrived.
    pending: u64,
    /// From NATS's time of the last change that was made elsewhere until it was in force here, in milliseconds: by two clocks, for people.
    lag_ms: Option<u64>,
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

/// A model's state in the bucket.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub revision: u64,
    /// The revision that is in force here; less while it is being followed.
    pub in_force: u64,
    /// Why it cannot be read, where it cannot.
    pub shared: Result<SharedState, String>,
    /// Why it is not in force yet.
    pub waits: Option<String>,
    /// When to try again, and after how long the next time.
    pub again: Option<(Instant, Duration)>,
    /// When it arrived; `None` where it was read at the start of a session.
    arrived: Option<Arrived>,
    /// Since when it is known here.
    since: Instant,
}

/// When a change that was made elsewhere arrived here.
#[derive(Debug, Clone, Copy)]
struct Arrived {
    at: Instant,
    /// When NATS stored it, in milliseconds since 1970.
    stored_ms: i64,
}

/// What NATS says of a document that arrives.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stored {
    pub revision: u64,
    /// When, in milliseconds since 1970, by NATS's clock.
    pub at_ms: i64,
    /// How many newer changes there are.
    pub pending: u64,
}

#[derive(Debug)]
pub(super) struct Heard {
    pub node: Node,
    pub at: Instant,
}

#[derive(Debug)]
struct Gauges {
    connected: Gauge,
    nodes: Gauge,
    behind: Gauge,
    lost: Gauge,
    watch_lag: Gauge,
    made_here: Histogram,
    made_elsewhere: Histogram,
}

/// The fleet as one gateway sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub name: String,
    /// The gateway that looks.
    pub node: String,
    pub nodes: Vec<NodeView>,
    /// The active rollouts.
    pub rollouts: Vec<RolloutView>,
}

/// An active rollout of the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutView {
    pub model: ModelName,
    /// The gateway that drives it.
    pub driver: String,
    /// Since the driver was heard; `None` where it was not.
    pub heard: Option<Duration>,
    /// The gateways whose counts are in the driver's sum, and since when their last counts are there.
    pub counted: Vec<(String, Duration)>,
}

/// A gateway of the fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeView {
    pub name: String,
    /// `ready`, `starting`, `degraded` (cut off from NATS) or `lost` (not heard for some seconds).
    pub state: &'static str,
    pub program: String,
    pub since: String,
    pub labels: Labels,
    pub models: BTreeMap<String, NodeModel>,
    /// Documents that it has in force in an older revision than the fleet's.
    pub behind: u64,
    /// From NATS's time of the last change that was made elsewhere until it was in force there, in milliseconds. By two clocks: a figure for people.
    pub lag_ms: Option<u64>,
}

/// What is wrong with the fleet, as one gateway sees it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Troubles {
    /// Why this gateway is cut off.
    pub cut_off: Option<String>,
    /// The documents that are not in force here, and why. Empty while it is cut off.
    pub behind: Vec<(ModelName, String)>,
    /// The gateways that were there and are not heard any more, and since when they had been there. `None` where this gateway cannot know, or another
    /// one reports it.
    pub lost: Option<Vec<(String, String)>>,
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
            labels: config.labels.clone(),
            rules: config.placement.clone(),
            state: Mutex::default(),
            news: Notify::new(),
            needed: Notify::new(),
            begun: AtomicBool::new(false),
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count_with(&self, telemetry: &Telemetry) {
        let gauge = |name| telemetry.process().gauge(name, &[]);
        let seconds = |made| telemetry.process().histogram(&names::FLEET_CHANGE_SECONDS, &[("made", made)]);
        let gauges = Gauges {
            connected: gauge(&names::FLEET_CONNECTED),
            nodes: gauge(&names::FLEET_NODES),
            behind: gauge(&names::FLEET_BEHIND),
            lost: gauge(&names::FLEET_NODES_LOST),
            watch_lag: gauge(&names::FLEET_WATCH_LAG),
            made_here: seconds("here"),
            made_elsewhere: seconds("elsewhere"),
        };
        let mut state = self.lock();
        state.gauges = Some(gauges);
        state.count();
    }

    /// Brings the gauges up to date, and forgets gateways that are gone for long. Once a second: it looks at all documents and gateways, which with each
    /// report of a thousand gateways would be a million looks a second.
    pub fn count(&self) {
        let mut state = self.lock();
        state.nodes.retain(|_, heard| heard.at.elapsed() < SHOWN);
        state.count();
    }

    // === the session ===

    /// The connection was lost. Returns whether it was there.
    pub fn cut_off(&self, why: String) -> bool {
        let mut state = self.lock();
        let was = matches!(state.link, Link::Following);
        state.link = Link::CutOff(why);
        state.failed = true;
        state.count();
        was
    }

    /// The bucket is read from its beginning. It may be another one than before.
    pub fn reading(&self) {
        let mut state = self.lock();
        state.link = Link::Reading;
        state.models.clear();
        state.pending = 0;
    }

    /// Whether everything in the bucket has been read.
    pub fn is_following(&self) -> bool {
        matches!(self.lock().link, Link::Following)
    }

    /// Everything in the bucket has been read. Returns whether that is new.
    pub fn following(&self) -> bool {
        let mut state = self.lock();
        let was = matches!(state.link, Link::Following);
        state.link = Link::Following;
        if !was {
            state.since = Some(Instant::now());
        }
        state.count();
        drop(state);
        self.0.news.notify_one();
        !was
    }

    /// A state in the bucket, or why it cannot be read.
    pub fn shared(&self, model: ModelName, stored: Stored, shared: Result<SharedState, String>) {
        let Stored { revision, at_ms, pending } = stored;
        let mut state = self.lock();
        state.pending = pending;
        // What is read at the start of a session was changed some time ago, and what was changed here is measured here.
        let is_elsewhere = shared.as_ref().is_ok_and(|shared| shared.by.node != self.0.node);
        let is_news = matches!(state.link, Link::Following) && is_elsewhere;
        let arrived = is_news.then(|| Arrived { at: Instant::now(), stored_ms: at_ms });
        let in_force = state.models.get(&model).map_or(0, |known| known.in_force);
        if state.models.get(&model).is_none_or(|known| known.revision <= revision) {
            let since = Instant::now();
            state.models.insert(model, Known { revision, in_force, shared, waits: None, again: None, arrived, since });
        }
        drop(state);
        self.0.news.notify_one();
    }

    pub fn node(&self, name: &str, node: Node) {
        let mut state = self.lock();
        state.places.came(name);
        state.nodes.insert(name.to_owned(), Heard { node, at: Instant::now() });
    }

    /// A gateway said that it leaves.
    pub fn left(&self, name: &str) {
        let mut state = self.lock();
        if let Some(Heard { node, .. }) = state.nodes.remove(name) {
            state.places.left(name, node.labels);
        }
    }

    /// Waits until something may have to be followed.
    pub async fn news(&self) {
        self.0.news.notified().await;
    }

    /// The states that are to be put in force now.
    pub fn to_follow(&self, now: Instant) -> Vec<(ModelName, Known)> {
        let is_due = |known: &Known| known.again.is_none_or(|(at, _)| at <= now);
        let mut state = self.lock();
        let behind = state.models.iter().filter(|(_, known)| known.in_force != known.revision && is_due(known));
        let mut behind: Vec<_> = behind.map(|(model, known)| (model.clone(), known.clone())).collect();
        behind.retain(|(model, _)| state.is_here(&self.0, model));
        behind
    }

    /// Whether it has begun, and everything is in force that should be here.
    pub fn is_settled(&self) -> bool {
        let state = self.lock();
        let is_behind =
            |(model, known): (&ModelName, &Known)| known.in_force != known.revision && state.places.may_be_here(model);
        self.has_begun() && !state.models.iter().any(is_behind)
    }

    /// A revision is in force here.
    pub fn in_force(&self, model: &ModelName, revision: u64) {
        let mut state = self.lock();
        let Some(known) = state.models.get_mut(model) else { return };
        known.in_force = revision;
        if known.revision != revision {
            return;
        }
        known.waits = None;
        known.again = None;
        if let Some(Arrived { at, stored_ms }) = known.arrived.take() {
            let lag = Timestamp::now().as_millisecond().saturating_sub(stored_ms);
            state.lag_ms = Some(lag.try_into().unwrap_or(0));
            if let Some(gauges) = &state.gauges {
                gauges.made_elsewhere.record(at.elapsed().as_secs_f64());
            }
        }
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

    /// Whether this gateway has begun: its models are as the fleet says, or what is missing cannot be put in force for now, or NATS is away and it goes
    /// on with what it had.
    pub fn has_begun(&self) -> bool {
        self.0.begun.load(Ordering::Acquire)
    }

    /// Looks whether it has begun by now. `comes`: versions of a model are being fetched or loaded. `has_own`: documents from before its start are in
    /// force here.
    pub fn begin(&self, comes: impl Fn(&ModelName) -> bool, has_own: bool) {
        /// What is neither here by then nor on its way will not come soon.
        const PATIENT: Duration = Duration::from_secs(5);
        let mut state = self.lock();
        let begun = match &state.link {
            Link::CutOff(_) => state.failed && has_own,
            Link::Reading => false,
            Link::Following => {
                let is_patient = state.since.is_none_or(|since| since.elapsed() < PATIENT);
                let behind =
                    state.models.iter().filter(|(_, known)| known.in_force != known.revision && known.shared.is_ok());
                let mut behind: Vec<ModelName> = behind.map(|(model, _)| model.clone()).collect();
                behind.retain(|model| state.is_here(&self.0, model));
                behind.iter().all(|model| !is_patient && !comes(model))
            }
        };
        self.0.begun.fetch_or(begun, Ordering::AcqRel);
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

    /// A change that was made here took so long, from the put to the answer.
    pub fn took(&self, time: Duration) {
        if let Some(gauges) = &self.lock().gauges {
            gauges.made_here.record(time.as_secs_f64());
        }
    }

    /// This gateway changed the state. `in_force`: the one before was in force here.
    pub fn changed(&self, model: &ModelName, revision: u64, shared: SharedState, in_force: bool) {
        let mut state = self.lock();
        let before = state.models.get(model).map_or(0, |known| known.in_force);
        let in_force = if in_force { revision } else { before };
        if state.models.get(model).is_none_or(|known| known.revision <= revision) {
            let shared = Ok(shared);
            let since = Instant::now();
            let known = Known { revision, in_force, shared, waits: None, again: None, arrived: None, since };
            state.models.insert(model.clone(), known);
        }
    }

    /// The state that is in force here is not the one in the bucket.
    pub fn not_in_force(&self, model: &ModelName) {
        if let Some(known) = self.lock().models.get_mut(model) {
            known.in_force = 0;
        }
        self.0.news.notify_one();
    }

    /// The states of all models.
    ///
    /// # Errors
    /// In words, when one is not known.
    pub fn all(&self) -> Result<FleetState, String> {
        let state = self.lock();
        match &state.link {
            Link::Following => {}
            Link::Reading => return Err("the fleet's state is being read".to_owned()),
            Link::CutOff(why) => return Err(why.clone()),
        }
        let models = state.models.iter().map(|(model, known)| match &known.shared {
            Ok(shared) => Ok((model.clone(), shared.model.clone())),
            Err(why) => Err(format!("the state of model {model} cannot be read: {why}")),
        });
        let models = models.collect::<Result<_, String>>()?;
        Ok(FleetState::new(self.0.name.clone(), self.0.node.clone(), models))
    }

    /// The other gateways that are there and should have a model, and what each has of it.
    pub fn others(&self, model: &ModelName) -> Vec<(String, Option<NodeModel>)> {
        let mut state = self.lock();
        let holders = state.holders(&self.0, model.as_str());
        let there = state.heard().filter(|(name, _)| **name != self.0.node && holders.contains(*name));
        there.map(|(name, heard)| (name.clone(), heard.node.models.get(model.as_str()).cloned())).collect()
    }

    /// The names of the other gateways that are there and answer for a model.
    pub fn serving(&self, model: &ModelName) -> Vec<String> {
        let others = self.others(model).into_iter().filter(|(_, has)| has.as_ref().is_some_and(NodeModel::answers));
        others.map(|(name, _)| name).collect()
    }

    /// The names of the gateways that answered for a model and are gone without a word.
    pub fn lost(&self, model: &ModelName) -> Vec<String> {
        let state = self.lock();
        let answered = |heard: &Heard| heard.node.models.get(model.as_str()).is_some_and(NodeModel::answers);
        state.lost().filter(|(_, heard)| answered(heard)).map(|(name, _)| name.clone()).collect()
    }

    /// The same with the hour before which each has told all that it counted of drift.
    pub fn tellers(&self, model: &ModelName) -> Vec<(String, Option<i64>)> {
        let serving = self.serving(model);
        let state = self.lock();
        let told = |name: &String| state.nodes.get(name).and_then(|heard| heard.node.drift_told);
        serving.iter().map(|name| (name.clone(), told(name))).collect()
    }

    /// How many gateways that are there and should have a model come before this one in the order of names.
    pub fn place(&self, model: &ModelName) -> usize {
        self.others(model).iter().filter(|(name, _)| *name < self.0.node).count()
    }

    /// Whether this gateway is the first by name of those that are there. `None` while it is not known.
    pub fn tells(&self) -> Option<bool> {
        let state = self.lock();
        let is_known = match &state.reports {
            Reports::All => true,
            Reports::Reading => false,
            // Before any report was read only names are known.
            Reports::Some { looked, .. } => !looked.is_empty(),
        };
        (is_known && matches!(state.link, Link::Following)).then(|| state.is_first(&self.0.node))
    }

    // === rollouts ===

    /// What the bucket has of the models whose revision, or whether it is in force, is another one than `given` says.
    ///
    /// # Errors
    /// Why it is not known, in words.
    pub fn news_since(&self, given: &mut HashMap<ModelName, (u64, bool)>) -> Result<Vec<(ModelName, Known)>, String> {
        let state = self.lock();
        match &state.link {
            Link::Following => {}
            Link::Reading => return Err("the fleet's state is being read".to_owned()),
            Link::CutOff(why) => return Err(why.clone()),
        }
        let mut news = Vec::new();
        for (model, known) in &state.models {
            let now = (known.revision, known.in_force == known.revision);
            if given.get(model) != Some(&now) {
                given.insert(model.clone(), now);
                news.push((model.clone(), known.clone()));
            }
        }
        Ok(news)
    }

    /// The models whose rollout fits, while everything is known.
    pub fn rollouts(&self, fits: impl Fn(&SharedRollout) -> bool) -> Vec<(ModelName, Known)> {
        let state = self.lock();
        if !matches!(state.link, Link::Following) {
            return Vec::new();
        }
        let rollout =
            |known: &Known| known.shared.as_ref().is_ok_and(|shared| shared.rollout.as_ref().is_some_and(&fits));
        let of_rollout = state.models.iter().filter(|(_, known)| rollout(known));
        of_rollout.map(|(model, known)| (model.clone(), known.clone())).collect()
    }

    /// The gateway that drives the model's active rollout.
    pub fn driver_of(&self, model: &ModelName) -> Option<String> {
        let state = self.lock();
        let rollout = state.models.get(model)?.shared.as_ref().ok()?.rollout.as_ref()?;
        rollout.is_active().then(|| rollout.driver.clone())
    }

    // === operators ===

    /// The revision that is in force here, and why a newer one is not.
    pub fn own(&self, model: &ModelName) -> (u64, Option<String>) {
        let state = self.lock();
        state.models.get(model).map_or((0, None), |known| {
            (known.in_force, known.waits.clone().filter(|_| known.in_force != known.revision))
        })
    }

    /// How long the last change that was made elsewhere took, as [`NodeView::lag_ms`] has it.
    pub fn lag_ms(&self) -> Option<u64> {
        self.lock().lag_ms
    }

    pub fn view(&self) -> View {
        let state = self.lock();
        let (is_cut_off, within) = (!matches!(state.link, Link::Following), heard_within(state.size()));
        // A gateway that lacks a model entirely is not behind.
        // A report from before a change says nothing of it.
        let behind = |node: &Node, at: Instant| {
            let is_behind = |(model, known): (&ModelName, &Known)| {
                let has = node.models.get(model.as_str());
                known.since <= at && has.is_some_and(|has| has.revision < known.revision)
            };
            state.models.iter().filter(|model| is_behind(*model)).count() as u64
        };
        // This gateway knows what it has.
        let own_behind = || {
            let is_behind = |(model, known): &(&ModelName, &Known)| {
                known.in_force != known.revision && state.places.may_be_here(model)
            };
            state.models.iter().filter(is_behind).count() as u64
        };
        let of = |(name, Heard { node, at }): (&String, &Heard)| {
            let is_own = *name == self.0.node;
            let state = match () {
                () if is_own && is_cut_off => "degraded",
                () if !is_own && at.elapsed() >= within => "lost",
                () if node.ready => "ready",
                () => "starting",
            };
            let (program, since) = (node.program.clone(), node.since.clone());
            let (labels, models) = (node.labels.clone(), node.models.clone());
            let behind = if is_own && !is_cut_off { own_behind() } else { behind(node, *at) };
            let lag_ms = node.lag_ms;
            NodeView { name: name.clone(), state, program, since, labels, models, behind, lag_ms }
        };
        let mut nodes: Vec<NodeView> = state.nodes.iter().map(of).collect();
        if !state.nodes.contains_key(&self.0.node) {
            nodes.push(NodeView {
                name: self.0.node.clone(),
                state: if is_cut_off { "degraded" } else { "starting" },
                program: env!("CARGO_PKG_VERSION").to_owned(),
                since: String::new(),
                labels: self.0.labels.clone(),
                models: BTreeMap::new(),
                behind: 0,
                lag_ms: None,
            });
        }
        View { name: self.0.name.clone(), node: self.0.node.clone(), nodes, rollouts: Vec::new() }
    }

    /// Every gateway reports itself. Those that are lost are reported by one: the first by name of those that are heard.
    pub fn troubles(&self) -> Troubles {
        let state = self.lock();
        match &state.link {
            Link::CutOff(why) => return Troubles { cut_off: Some(why.clone()), ..Troubles::default() },
            Link::Reading => return Troubles::default(),
            Link::Following => {}
        }
        let mut behind: Vec<(ModelName, String)> = state
            .models
            .iter()
            .filter(|(model, known)| known.in_force != known.revision && state.places.may_be_here(model))
            .map(|(model, known)| {
                (model.clone(), known.waits.clone().unwrap_or_else(|| "it is being put in force".to_owned()))
            })
            .collect();
        behind.sort();
        // After a reconnection nobody was heard for a while.
        let knows = state.since.is_some_and(|since| since.elapsed() >= heard_within(state.size()));
        let lost = (knows && state.is_first(&self.0.node))
            .then(|| state.lost().map(|(name, heard)| (name.clone(), heard.node.since.clone())).collect());
        Troubles { cut_off: None, behind, lost }
    }

    pub fn trouble(&self) -> Option<String> {
        let mut state = self.lock();
        if let Link::CutOff(why) = &state.link {
            return Some(format!(
                "degraded: this gateway is cut off from the fleet {}: {why}; it serves what it has, and changes are refused",
                self.0.name
            ));
        }
        if let Some(other) = state.other_rules(&self.0) {
            return Some(format!(
                "the gateway {other} has other rules in [[fleet.placement]]: gateways do not agree on where models are"
            ));
        }
        let behind = state.models.iter().filter(|(_, known)| known.in_force != known.revision);
        let mut behind: Vec<(ModelName, Known)> = behind.map(|(model, known)| (model.clone(), known.clone())).collect();
        behind.retain(|(model, _)| state.is_here(&self.0, model));
        let behind: Vec<String> = behind
            .iter()
            .map(|(model, known)| {
                let why = known.waits.as_deref().unwrap_or("it is being put in force");
                format!("{model} (revision {}: {why})", known.revision)
            })
            .take(5)
            .collect();
        (!behind.is_empty()).then(|| format!("documents of the fleet are not in force here yet: {}", behind.join("; ")))
    }
}

#[cfg(test)]
impl Board {
    /// As if it had followed since then.
    pub fn since(&self, at: Instant) {
        self.lock().since = Some(at);
    }

    /// As if the reports of all gateways had been needed then for the last time.
    pub fn needed_at(&self, at: Instant) {
        self.lock().needed = Some(at);
    }

    /// As if a gateway had been heard then.
    pub fn last_heard(&self, name: &str, at: Instant) {
        self.lock().nodes.get_mut(name).expect("it was heard").at = at;
    }
}

impl State {
    /// The gateways that are there.
    pub(super) fn heard(&self) -> impl Iterator<Item = (&String, &Heard)> {
        let within = heard_within(self.size());
        self.nodes.iter().filter(move |(_, heard)| heard.at.elapsed() < within)
    }

    /// The gateways that were there and are not heard any more.
    fn lost(&self) -> impl Iterator<Item = (&String, &Heard)> {
        let within = heard_within(self.size());
        self.nodes.iter().filter(move |(_, heard)| (within..SHOWN).contains(&heard.at.elapsed()))
    }

    pub(super) fn count(&self) {
        let Some(gauges) = &self.gauges else { return };
        gauges.connected.set(if matches!(self.link, Link::Following) { 1.0 } else { 0.0 });
        let there = match &self.reports {
            Reports::Some { names, .. } => names.len(),
            Reports::All | Reports::Reading => self.heard().count(),
        };
        gauges.nodes.set(there as f64);
        let is_behind =
            |(model, known): &(&ModelName, &Known)| known.in_force != known.revision && self.places.may_be_here(model);
        gauges.behind.set(self.models.iter().filter(is_behind).count() as f64);
        gauges.lost.set(self.lost().count() as f64);
        gauges.watch_lag.set(self.pending as f64);
    }
}

/// The time now, as the ledger writes it.
pub(super) fn now() -> String {
    rfc3339(Timestamp::now())
}
