//! The manager: takes events, one at a time, and publishes what they change.
//!
//! What happens is split by what it is about: `reconcile.rs` moves versions to where they ought to be, `dispatch.rs` gives the
//! loading threads work, `results.rs` takes in what comes of it, `traffic.rs` changes documents, `operators.rs` does what
//! operators ask. Here is the loop around them, and the one place that publishes.

use super::drain::{Drains, Freed};
use super::handle::{Command, Reply};
use super::journal::Journal;
use super::loaders::{Done, Loaders};
use super::memory::Budget;
use super::table::{Life, Model};
use super::{Config, state};
use crate::model::{Code, Failure, ModelName, VersionId};
use crate::registry::{Snapshot, State, Writer};
use crate::route::Document;
use crate::shadow::Figures;
use crate::source::{Look, WakeHandle};
use crate::telemetry::{Telemetry, names};
use metrics::Gauge;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::{error, info};

/// What the manager takes.
#[derive(Debug)]
pub enum Event {
    /// An operator's wish.
    Command(Command),
    /// The models directory changed.
    Looked(Look),
    /// A version being brought up came to a state.
    Came { id: VersionId, state: State },
    /// A loading thread is done with something.
    Done(Done),
    /// A version's memory was given back.
    Freed(Freed),
    /// Drain everything, for as long as this, and end.
    Stop(Duration),
}

/// Whose turn it is to be loaded: lower ranks first, then higher versions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    pub rank: usize,
    pub model: ModelName,
    pub version: std::cmp::Reverse<crate::model::Version>,
}

/// The only writer of the registry and the ledger.
pub(super) struct Manager {
    pub config: Config,
    pub writer: Writer,
    pub journal: Box<dyn Journal>,
    /// What shadows have shown, for gates.
    pub figures: Figures,
    pub telemetry: Telemetry,
    pub loaders: Loaders,
    pub drains: Drains,
    pub source: WakeHandle,
    pub budget: Budget,
    pub models: BTreeMap<ModelName, Model>,
    /// Versions to be brought up.
    pub queue: BTreeSet<Turn>,
    /// Comparisons and pushes; they go before versions. Bounded by versions that changed, and by operators' calls.
    pub errands: VecDeque<super::loaders::Work>,
    /// Models to look at again at a time.
    pub wake: BTreeSet<(Instant, ModelName)>,
    /// Versions that wait for bytes to be given back.
    pub hungry: BTreeSet<VersionId>,
    /// Bytes were given back since they were last looked at.
    pub fed: bool,
    /// Versions that make room, still to be unloaded.
    pub evictions: Vec<VersionId>,
    /// Versions that are kept warm no longer, as their memory is needed; still to be unloaded.
    pub cooled: Vec<VersionId>,
    /// Models that something happened to, still to be looked at; then to be published.
    pub touched: BTreeSet<ModelName>,
    pub dirty: BTreeSet<ModelName>,
    /// What is to be said once what it tells of is published: answers, log lines.
    pub after: Vec<Box<dyn FnOnce() + Send>>,
    pub counts: Counts,
    /// The whole models directory was looked at.
    pub looked: bool,
    /// Versions found at start that are neither ready nor failed yet.
    pub awaited: BTreeSet<VersionId>,
    /// Models with a document that cannot be served.
    pub unservable: BTreeSet<ModelName>,
    /// Once it is, it stays.
    pub ready: bool,
    /// When to end at the latest, once told to.
    pub stopping: Option<Instant>,
}

/// What a manager is put together from.
pub(super) struct Parts {
    pub writer: Writer,
    pub journal: Box<dyn Journal>,
    pub figures: Figures,
    pub telemetry: Telemetry,
    pub loaders: Loaders,
    pub drains: Drains,
    pub source: WakeHandle,
}

/// Versions in each state, as the metric shows them.
#[derive(Debug)]
pub struct Counts {
    gauges: Vec<Gauge>,
}

/// How long the manager sleeps when nothing is due. Any time would do: what happens wakes it.
const IDLE: Duration = Duration::from_mins(1);
/// Between looks whether replaced snapshots can be dropped.
const COLLECT: Duration = Duration::from_millis(50);

// === impl Counts ===

impl Counts {
    #[must_use]
    pub fn new(telemetry: &Telemetry) -> Counts {
        let gauge = |s: &State| telemetry.process().gauge(&names::STATES, &[("state", s.as_str())]);
        let gauges: Vec<Gauge> = State::ALL.iter().map(gauge).collect();
        for gauge in &gauges {
            gauge.set(0.0);
        }
        Counts { gauges }
    }

    pub fn appeared(&self, state: State) {
        self.gauges[state as usize].increment(1.0);
    }

    pub fn went(&self, state: State) {
        self.gauges[state as usize].decrement(1.0);
    }
}

// === impl Manager ===

impl Manager {
    #[must_use]
    pub fn new(config: Config, parts: Parts) -> Manager {
        let Parts { writer, journal, figures, telemetry, loaders, drains, source } = parts;
        Manager {
            budget: Budget::new(config.memory_budget),
            counts: Counts::new(&telemetry),
            config,
            writer,
            journal,
            figures,
            telemetry,
            loaders,
            drains,
            source,
            models: BTreeMap::new(),
            queue: BTreeSet::new(),
            errands: VecDeque::new(),
            wake: BTreeSet::new(),
            hungry: BTreeSet::new(),
            fed: false,
            evictions: Vec::new(),
            cooled: Vec::new(),
            touched: BTreeSet::new(),
            dirty: BTreeSet::new(),
            after: Vec::new(),
            looked: false,
            awaited: BTreeSet::new(),
            unservable: BTreeSet::new(),
            ready: false,
            stopping: None,
        }
    }

    /// Takes over what the ledger kept: every document is published at once, to be served as soon as its versions are loaded.
    pub fn recall(&mut self) -> std::io::Result<()> {
        let kept = self.journal.load().map_err(std::io::Error::other)?;
        for state in kept {
            let mut model = Model::new(state.model.clone());
            match state.document.as_deref().map(Document::from_json).transpose() {
                Ok(document) => model.document = document,
                Err(complaints) => {
                    let words = complaints.join("; ");
                    return Err(std::io::Error::other(format!("the kept document of model {}: {words}", state.model)));
                }
            }
            model.kept = state;
            if model.document.is_some() || model.kept.taken_out {
                self.touched.insert(model.name.clone());
            }
            self.models.insert(model.name.clone(), model);
        }
        self.work();
        Ok(())
    }

    /// Takes events until it is told to stop.
    pub fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let clock = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(clock) => clock,
            Err(error) => return error!(%error, "the manager cannot start; versions stay as they are"),
        };
        loop {
            let now = Instant::now();
            if self.is_done(now) {
                break;
            }
            let wake = self.next_wake(now).into();
            match clock.block_on(async { tokio::time::timeout_at(wake, events.recv()).await }) {
                Ok(Some(event)) => self.take(event),
                // Nobody can ask anything any more.
                Ok(None) => self.take(Event::Stop(Duration::ZERO)),
                Err(_) => {}
            }
            self.tick();
            self.work();
        }
        events.close();
        self.drains.finish();
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Command(command) if self.stopping.is_none() => self.command(command),
            // Dropping the reply says that the server is stopping.
            Event::Command(_) => {}
            Event::Looked(look) => self.looked(look),
            Event::Came { id, state } => self.came(&id, state),
            Event::Done(done) => self.done(done),
            Event::Freed(freed) => self.freed(freed),
            Event::Stop(within) => self.stop(within),
        }
    }

    /// What time alone brings.
    fn tick(&mut self) {
        let now = Instant::now();
        while let Some((at, model)) = self.wake.pop_first() {
            if at > now {
                self.wake.insert((at, model));
                break;
            }
            self.touched.insert(model);
        }
        self.collect();
        for late in self.drains.look(now) {
            self.late(late);
        }
    }

    /// Brings everything that was touched to where it ought to be, gives the loading threads work, and publishes.
    pub fn work(&mut self) {
        loop {
            self.feed();
            while let Some(name) = self.touched.pop_first() {
                self.settle(&name);
            }
            if !self.dispatch() && self.touched.is_empty() {
                break;
            }
        }
        self.publish();
    }

    /// Publishes every model that changed, in one step, and then says so.
    fn publish(&mut self) {
        let ready = self.readiness();
        let before = self.writer.snapshot();
        if !self.dirty.is_empty() || before.ready != ready {
            let mut next = if self.stopping.is_some() { Snapshot::default() } else { self.entries(&before) };
            next.ready = ready;
            drop(before);
            self.writer.publish(next);
            if ready && !std::mem::replace(&mut self.ready, ready) {
                info!("ready: every version found at start is ready or failed, and every model can be served");
            }
        }
        for say in std::mem::take(&mut self.after) {
            say();
        }
        self.collect();
        for late in self.drains.look(Instant::now()) {
            self.late(late);
        }
    }

    fn entries(&mut self, before: &Snapshot) -> Snapshot {
        let mut entries = Vec::new();
        let mut gone = Vec::new();
        for name in std::mem::take(&mut self.dirty) {
            let Some(model) = self.models.get(&name) else { continue };
            if model.lives.is_empty() && model.document.is_none() {
                gone.push(name);
                continue;
            }
            match model.entry(!self.ready, self.config.tolerance, self.config.recording.as_ref()) {
                Ok(entry) => entries.push(entry),
                // Every change is checked before it is made, so this is a mistake of ours: what was published stays.
                Err(missing) => error!(model = %name, ?missing, "the document names versions that are not loaded"),
            }
        }
        gone.iter().fold(before.with_all(entries), |next, name| next.without(name))
    }

    fn readiness(&mut self) -> bool {
        for name in &self.dirty {
            let stuck =
                self.models.get(name).is_some_and(|m| m.document.is_some() && !m.kept.taken_out && !m.can_serve());
            if stuck {
                self.unservable.insert(name.clone());
            } else {
                self.unservable.remove(name);
            }
        }
        if !self.awaited.is_empty() {
            for model in self.dirty.iter().filter_map(|name| self.models.get(name)) {
                let settled = |life: &Life| state::is_settled(life.state()) || !life.has_files();
                for (version, _) in model.lives.iter().filter(|(_, life)| settled(life)) {
                    self.awaited.remove(&model.id(*version));
                }
            }
        }
        self.stopping.is_none() && (self.ready || self.looked && self.awaited.is_empty() && self.unservable.is_empty())
    }

    fn collect(&mut self) {
        let held = self.writer.collect();
        self.telemetry.process().gauge(&names::SNAPSHOTS_RETIRED, &[]).set(held as f64);
    }

    fn next_wake(&mut self, now: Instant) -> Instant {
        if !self.touched.is_empty() {
            return now;
        }
        let retired = (self.writer.collect() > 0).then(|| now + COLLECT);
        let model = self.wake.first().map(|(at, _)| *at);
        let drains = self.drains.next_look(now);
        [retired, model, drains, self.stopping].into_iter().flatten().fold(now + IDLE, Instant::min)
    }

    // === stopping ===

    fn stop(&mut self, within: Duration) {
        if self.stopping.is_some() {
            return;
        }
        info!("stopping: nothing is answered any more, and everything is unloaded");
        self.stopping = Some(Instant::now() + within);
        self.source.stop();
        self.queue.clear();
        self.errands.clear();
        self.wake.clear();
        let names: Vec<ModelName> = self.models.keys().cloned().collect();
        for name in names {
            let Some(mut model) = self.models.remove(&name) else { continue };
            model.ops.clear();
            for (version, life) in &mut model.lives {
                let id = VersionId { model: name.clone(), version: *version };
                if life.is_callable() {
                    self.drain(&id, life, within);
                }
            }
            self.dirty.insert(name.clone());
            self.models.insert(name, model);
        }
    }

    fn is_done(&self, now: Instant) -> bool {
        let draining = || self.models.values().flat_map(|m| m.lives.values()).any(|l| l.state() == State::Draining);
        self.stopping.is_some_and(|deadline| now >= deadline || self.drains.is_empty() && !draining())
    }

    // === helpers of the files beside this one ===

    /// Moves a version on, counts it and logs it. An illegal move changes nothing and is logged as the mistake it is.
    pub fn go(&mut self, id: &VersionId, life: &mut Life, to: State) -> bool {
        match life.go(to) {
            Ok(from) => {
                self.counts.went(from);
                self.counts.appeared(to);
                self.dirty.insert(id.model.clone());
                // What came ready or failed is logged where there is more to say of it.
                if to != State::Failed && from != State::Warming {
                    info!(model = %id.model, version = %id.version, %from, state = %to, "version");
                }
                true
            }
            Err(illegal) => {
                error!(model = %id.model, version = %id.version, %illegal, "a mistake in the manager");
                false
            }
        }
    }

    /// Takes a loaded version out: it is no longer callable from the next publish on, and is freed when no request holds it.
    pub fn drain(&mut self, id: &VersionId, life: &mut Life, timeout: Duration) {
        if let Some(loaded) = life.loaded.take()
            && self.go(id, life, State::Draining)
        {
            life.draining = Some(self.drains.begin(id.clone(), loaded, timeout));
        }
        life.digests = None;
        life.compared = None;
    }

    /// Answers an operator once what was done is published.
    pub fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, result: Result<T, Failure>) {
        self.after.push(Box::new(move || {
            // The operator went away; what was done stays done.
            let _ = reply.send(result);
        }));
    }

    pub fn wake_at(&mut self, at: Instant, model: &ModelName) {
        self.wake.insert((at, model.clone()));
    }
}

/// A refusal because of how things stand.
pub(super) fn conflict(words: impl Into<String>) -> Failure {
    Failure::new(Code::Conflict, words)
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("models", &self.models.len()).finish_non_exhaustive()
    }
}
