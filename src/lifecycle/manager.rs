//! The manager's thread: it takes one event at a time and publishes the result.
//!
//! The other files hold its parts: `reconcile.rs` moves versions to where they should be, `dispatch.rs` gives tasks to the loading
//! threads, `results.rs` handles their results, `traffic.rs` changes documents, `operators.rs` handles operator requests.

use super::Config;
use super::drain::{Drains, Freed, Late};
use super::handle::{Command, stopping};
use super::journal::Journal;
use super::load_queue::LoadQueue;
use super::loaders::{LoaderMessage, LoaderNews, Loaders, Overdue, Task};
use super::model_record::Model;
use super::peers::Peers;
use super::publisher::Publisher;
use super::services::{Evictions, Schedule, Services, StateCounts};
use super::version_record::{Note, VersionRecord};
use crate::model::{Code, Failure, ModelName, VersionId, panic_message};
use crate::registry::{Stage, State, Writer};
use crate::shadow::Figures;
use crate::source::{Look, WakeHandle};
use crate::telemetry::Telemetry;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

/// What the manager reacts to.
#[derive(Debug)]
pub(super) enum Event {
    /// An operator's request.
    Command(Command),
    /// The models directory changed.
    Looked(Look),
    Loader(LoaderMessage),
    /// A version's memory was freed.
    Freed(Freed),
    /// Drain everything, for at most this long, and end.
    Stop(Duration),
}

/// The only writer of the registry and the ledger.
pub(super) struct Manager {
    pub models: BTreeMap<ModelName, Model>,
    pub services: Services,
    /// The latest time to end, once a stop was requested.
    pub stopping: Option<Instant>,
}

/// The parts that a manager is built from.
pub(super) struct Parts {
    pub writer: Writer,
    pub journal: Box<dyn Journal>,
    pub peers: Option<Box<dyn Peers>>,
    pub figures: Figures,
    pub telemetry: Telemetry,
    pub loaders: Loaders,
    pub drains: Drains,
    pub source: WakeHandle,
}

/// How long the manager sleeps when nothing is due. Any time would do, because every event wakes it.
const IDLE: Duration = Duration::from_mins(1);
/// How often to look whether replaced snapshots can be dropped.
const COLLECT: Duration = Duration::from_millis(50);

/// Runs the manager until it is told to stop.
///
/// After a panic the table cannot be trusted, so nothing is changed any more. The server stops being ready, the published versions
/// go on answering, and operators are refused until the process is restarted.
pub(super) fn run(mut manager: Manager, mut events: mpsc::Receiver<Event>, clock: &Runtime) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| manager.run(&mut events, clock))) {
        let message = panic_message(&*panic);
        error!(
            message,
            "the manager panicked: the server is no longer ready, and nothing can be changed until it is restarted"
        );
        manager.services.publisher.publish_not_ready();
        // Dropping a reply tells its caller that the manager ended.
        manager.services.publisher.clear();
        manager.services.loading.clear();
        manager.models.values_mut().for_each(|model| model.waiting.clear());
        while let Some(event) = events.blocking_recv() {
            if matches!(event, Event::Stop(_)) {
                break;
            }
        }
        manager.services.source.stop();
    }
    events.close();
    while let Ok(event) = events.try_recv() {
        if let Event::Command(command) = event {
            command.refuse(stopping());
        }
    }
    manager.services.drains.finish();
}

impl Manager {
    #[must_use]
    pub(super) fn new(config: Config, parts: Parts) -> Manager {
        let Parts { writer, journal, peers, figures, telemetry, loaders, drains, source } = parts;
        let services = Services {
            state_counts: StateCounts::new(&telemetry),
            loading: LoadQueue::new(loaders, config.memory_budget),
            publisher: Publisher::new(writer, &telemetry),
            config,
            journal,
            peers,
            figures,
            telemetry,
            source,
            drains,
            evictions: Evictions::default(),
            schedule: Schedule::default(),
        };
        Manager { models: BTreeMap::new(), services, stopping: None }
    }

    /// Restores what the ledger stores. Every document is published at once and served as soon as its versions are loaded. A document
    /// that cannot be read disables its model and no other.
    ///
    /// # Errors
    /// When the ledger as a whole cannot be read.
    pub(super) fn restore(&mut self) -> std::io::Result<()> {
        for stored in self.services.journal.load().map_err(std::io::Error::other)? {
            let model = Model::from_stored(stored);
            if let Some(reason) = &model.stored.unreadable {
                error!(model = %model.name, "the ledger holds values of this model that cannot be read: {reason}");
            }
            if let Some(reason) = &model.document_error {
                error!(
                    model = %model.name, revision = model.stored.revision,
                    "the stored traffic document cannot be read, so the model answers only requests that name a version; put a new \
                     document or roll back: {reason}"
                );
            }
            if model.is_visible() || model.stored.unloaded {
                self.services.schedule.look_now(model.name.clone());
            }
            self.models.insert(model.name.clone(), model);
        }
        self.work();
        for aside in std::mem::take(&mut self.services.config.set_aside) {
            self.set_aside(aside);
        }
        Ok(())
    }

    fn run(&mut self, events: &mut mpsc::Receiver<Event>, clock: &Runtime) {
        loop {
            let now = Instant::now();
            if self.is_done(now) {
                return;
            }
            let wake = self.next_wake(now).into();
            match clock.block_on(async { tokio::time::timeout_at(wake, events.recv()).await }) {
                Ok(Some(event)) => self.handle(event),
                // All senders are gone, so no command can come.
                Ok(None) => self.handle(Event::Stop(Duration::ZERO)),
                Err(_) => {}
            }
            self.services.schedule.advance(Instant::now());
            self.services.publisher.collect();
            self.look_at_drains();
            self.look_at_loads();
            self.work();
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Command(command) if self.stopping.is_none() => self.command(command),
            Event::Command(command) => command.refuse(stopping()),
            Event::Looked(look) => self.looked(look),
            Event::Loader(LoaderMessage { task, news: LoaderNews::Reached(state) }) => {
                if let Some(id) = self.services.loading.loaders.reached(task, state) {
                    self.with_version(&id, |services, record| {
                        services.set_state(&id, record, state);
                    });
                }
            }
            Event::Loader(LoaderMessage { task, news: LoaderNews::Done(result) }) => self.task_done(task, result),
            Event::Freed(freed) => self.freed(freed),
            Event::Stop(within) => self.stop(within),
        }
    }

    /// Moves every scheduled model to where it should be, gives tasks to the loading threads, and publishes.
    pub(super) fn work(&mut self) {
        loop {
            self.make_evictions();
            while let Some(name) = self.services.schedule.next() {
                self.settle(&name);
            }
            if !self.dispatch() && self.services.schedule.is_idle() {
                break;
            }
        }
        let Services { publisher, config, peers, .. } = &mut self.services;
        let has_begun = peers.as_ref().is_none_or(|peers| peers.has_begun());
        publisher.publish(&self.models, config, self.stopping.is_some(), has_begun);
        self.look_at_drains();
    }

    fn look_at_drains(&mut self) {
        for late in self.services.drains.look(Instant::now()) {
            self.late(late);
        }
    }

    /// Gives up loads that exceeded their time limits.
    fn look_at_loads(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        for overdue in self.services.loading.loaders.overdue(Instant::now()) {
            match overdue {
                Overdue::Long(id) => self.no_longer_awaited(&id),
                Overdue::Version { id, stage, bytes } => self.exceeded(&id, stage, bytes),
                Overdue::Compare(id) => {
                    warn!(model = %id.model, version = %id.version, "its changed files cannot be compared with the loaded ones: reading them takes too long");
                }
                Overdue::Push { id, reply, bytes } => {
                    let limit = self.services.config.time_limits.exceeded(Stage::Load, bytes).reason;
                    warn!(model = %id.model, version = %id.version, "push: the load of the file {limit}");
                    if let Some(reply) = reply {
                        let words = format!("the load of the file {limit}; the version was not added");
                        self.services.refuse_push(reply, Failure::new(Code::InvalidRequest, words));
                    }
                }
            }
        }
        self.services.show_left_behind();
    }

    /// A version takes long. Unless a traffic document names it, the server does not wait for it to become ready, and its model may
    /// get its first document without it.
    fn no_longer_awaited(&mut self, id: &VersionId) {
        let Manager { models, services, .. } = self;
        let Some(model) = models.get_mut(&id.model) else { return };
        let required = model.required().contains(&id.version);
        let Some(record) = model.versions.get_mut(&id.version) else { return };
        warn!(model = %id.model, version = %id.version, state = %record.state(), "this stage takes long; other versions are loaded beside it");
        if !required {
            record.long = true;
            services.publisher.readiness.awaited.remove(id);
        }
        services.schedule.look_now(id.model.clone());
    }

    /// A stage of a version took longer than its limit.
    fn exceeded(&mut self, id: &VersionId, stage: Stage, bytes: u64) {
        self.with_version(id, |services, record| {
            record.busy = false;
            if !matches!(record.state(), State::Loading | State::Verifying | State::Warming) {
                return;
            }
            let failure = services.config.time_limits.exceeded(stage, bytes);
            services.fail(id, record, failure);
            let words = "its load was given up and has not ended: its memory stays reserved until it does";
            record.note(Note::Lingering, Some(words.to_owned()));
        });
    }

    /// Reports that requests still hold a version after its deadline.
    fn late(&mut self, late: Late) {
        let Late { serial, id, in_flight } = late;
        warn!(model = %id.model, version = %id.version, in_flight, "requests still hold the version after drain_timeout");
        // The callers of a run that does not end have left.
        let who = if in_flight == 0 { "runs that do not end".to_owned() } else { format!("{in_flight} requests") };
        let words = format!("{who} still hold it after drain_timeout; its memory is freed when they end");
        self.services.count_failure("drain");
        self.services.loading.retry_waiting();
        self.unloaded(&id, serial, Some(words));
    }

    fn next_wake(&mut self, now: Instant) -> Instant {
        let services = &mut self.services;
        let retired = (services.publisher.collect() > 0).then(|| now + COLLECT);
        let scheduled = services.schedule.next_due(now);
        let drains = services.drains.next_look(now);
        let loads = services.loading.loaders.next_look(now).filter(|_| self.stopping.is_none());
        [retired, scheduled, drains, loads, self.stopping].into_iter().flatten().fold(now + IDLE, Instant::min)
    }

    // === stopping ===

    fn stop(&mut self, within: Duration) {
        if self.stopping.is_some() {
            return;
        }
        info!("stopping: requests are refused, and every version is unloaded");
        self.stopping = Some(Instant::now() + within);
        let Manager { models, services, .. } = self;
        services.source.stop();
        services.schedule.clear_later();
        let mut pushes = services.loading.loaders.take_replies();
        for task in services.loading.clear() {
            if let Task::Stage(push) = task {
                pushes.extend(push.reply);
            }
        }
        for reply in pushes {
            services.refuse_push(reply, stopping());
        }
        for (name, model) in models {
            model.waiting.drain(..).for_each(|request| request.refuse(stopping()));
            for (version, record) in &mut model.versions {
                let id = VersionId { model: name.clone(), version: *version };
                if record.is_callable() {
                    services.drain(&id, record, within);
                }
            }
            services.publisher.changed.insert(name.clone());
        }
    }

    fn is_done(&self, now: Instant) -> bool {
        let is_draining = |record: &VersionRecord| record.state() == State::Draining;
        let draining = || self.models.values().flat_map(|m| m.versions.values()).any(is_draining);
        self.stopping.is_some_and(|deadline| now >= deadline || self.services.drains.is_over() && !draining())
    }

    // === helpers of the other files ===

    /// Changes a version, and has its model looked at afterwards.
    pub(super) fn with_version(&mut self, id: &VersionId, change: impl FnOnce(&mut Services, &mut VersionRecord)) {
        let Manager { models, services, .. } = self;
        let Some(record) = models.get_mut(&id.model).and_then(|m| m.versions.get_mut(&id.version)) else { return };
        change(services, record);
        services.schedule.look_now(id.model.clone());
    }

    /// The end of one drain, unless its version has moved on since.
    pub(super) fn unloaded(&mut self, id: &VersionId, serial: u64, lingering: Option<String>) {
        self.with_version(id, |services, record| {
            if record.drain == Some(serial) {
                record.drain = None;
                services.set_state(id, record, State::Unloaded);
                record.note(Note::Lingering, lingering);
            } else if lingering.is_none() || record.state() == State::Failed {
                record.note(Note::Lingering, lingering);
            }
        });
    }
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("models", &self.models.len()).finish_non_exhaustive()
    }
}
