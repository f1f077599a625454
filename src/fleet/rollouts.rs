//! What this gateway knows of the fleet's rollouts: the side that the room `rollout` asks, and the rules of their compare-and-set.
//!
//! Who drives a rollout stands in the model's document in the bucket, so that a gateway that takes over gives the document another revision:
//! whatever the driver before it still sends is refused. Leases only say when to take over. They decide nothing.

use super::board::{Board, Known, RolloutView};
use super::wire::{Lease, SharedRollout};
use crate::ledger::Action;
use crate::model::{Code, Failure, ModelName};
use crate::rollout::{Fellows, Heard, Mark, Orders, Stored, Told, ToldRollout};
use crate::route::Document;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Rollouts(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    board: Board,
    node: String,
    state: Mutex<State>,
    /// Something is to be sent.
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Counts the connections.
    connection: u64,
    /// What the actor was told.
    given: HashMap<ModelName, (u64, bool)>,
    bases: HashMap<ModelName, u64>,
    /// What this gateway drives, and when the actor said so.
    driven: HashMap<ModelName, (Orders, Instant)>,
    /// The last ones, of different drivers.
    leases: HashMap<ModelName, Vec<Seen>>,
    own: HashMap<ModelName, Own>,
    /// By gateway.
    reports: HashMap<ModelName, BTreeMap<String, Heard>>,
}

/// A lease, and when its revision changed, by the clock of this gateway.
#[derive(Debug)]
pub(super) struct Seen {
    pub lease: Lease,
    pub at: Instant,
}

/// This gateway's own counts of a model.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// What the bucket has, and its revision; `None` until it was read on this connection.
    pub stored: Option<(u64, Option<Arc<str>>)>,
    /// What is to be put there.
    pub next: Option<Arc<str>>,
    pub not_before: Option<Instant>,
}

/// A driver whose actor said nothing for so long does not renew its lease.
const SAID_WITHIN: Duration = Duration::from_secs(2);

/// Leases of one model that are remembered. More drivers than two at a time are not to be expected.
const MOST_LEASES: usize = 4;

/// A change of a document or of its rollout.
pub(super) struct Change<'a> {
    /// The new state of the rollout, where a rollout makes the change.
    pub state: Option<&'a str>,
    /// There is a new document.
    pub moves: bool,
    pub actor: &'a str,
    pub action: Action,
    pub node: &'a str,
}

/// The rollout that stands in the bucket after a change. `before`: the one there, at this revision. `base`: the revision that a change of a rollout was computed from.
///
/// # Errors
/// `CONFLICT` when the fleet has another revision by now.
pub(super) fn after(
    change: &Change<'_>,
    before: Option<&SharedRollout>,
    revision: u64,
    base: Option<u64>,
) -> Result<Option<SharedRollout>, Failure> {
    let Change { state, moves, actor, action, node } = *change;
    let Some(state) = state else {
        // The driver sees that its rollout is over.
        let by = || format!("{actor} on {node} ({action})");
        return Ok(before.cloned().map(|before| {
            let overridden = before.overridden.clone().or_else(|| Some(by()));
            SharedRollout { overridden, ..before }
        }));
    };
    if base.unwrap_or(0) != revision {
        let words =
            format!("the fleet's rollout was changed meanwhile (revision {revision}); read it again and decide again");
        return Err(Failure::new(Code::Conflict, words));
    }
    let state = serde_json::from_str(state).map_err(|error| {
        Failure::new(Code::Internal, "the rollout's state cannot be written").with_internal(error.to_string())
    })?;
    // Operators reach a rollout on any gateway; everything else is what the driver does.
    let by_operator = matches!(action, Action::RolloutPause | Action::RolloutResume | Action::RolloutAbort);
    let driver = before.filter(|_| by_operator).map_or_else(|| node.to_owned(), |before| before.driver.clone());
    let step = before.filter(|_| !moves).map_or_else(|| uuid::Uuid::now_v7().to_string(), |before| before.step.clone());
    Ok(Some(SharedRollout { state, driver, step, overridden: None }))
}

impl State {
    fn lease_of(&self, model: &ModelName, driver: &str) -> Option<&Seen> {
        self.leases.get(model)?.iter().find(|seen| seen.lease.driver == driver)
    }
}

impl Rollouts {
    pub fn new(board: Board, node: String) -> Rollouts {
        Rollouts(Arc::new(Shared { board, node, state: Mutex::default(), news: Notify::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn board(&self) -> &Board {
        &self.0.board
    }

    pub fn own_name(&self) -> &str {
        &self.0.node
    }

    /// The revision that the next change of a rollout is computed from. It counts once.
    pub fn take_base(&self, model: &ModelName) -> Option<u64> {
        self.lock().bases.remove(model)
    }

    // === the session ===

    /// A connection begins. What the buckets have is read again.
    pub fn connected(&self) {
        let mut state = self.lock();
        state.connection += 1;
        state.given.clear();
        for own in state.own.values_mut() {
            // It is put again, as the bucket may be another one.
            own.next = own.next.take().or_else(|| own.stored.take()?.1);
            (own.stored, own.not_before) = (None, None);
        }
        state.leases.values_mut().flatten().for_each(|seen| seen.at = Instant::now());
    }

    /// Waits until something may be to be sent.
    pub async fn news(&self) {
        self.0.news.notified().await;
    }

    pub fn saw_lease(&self, model: ModelName, lease: Lease) {
        let mut state = self.lock();
        let leases = state.leases.entry(model).or_default();
        // A driver that was paused may still renew a lease that another one has by now.
        leases.retain(|seen| seen.lease.driver != lease.driver);
        leases.insert(0, Seen { lease, at: Instant::now() });
        leases.truncate(MOST_LEASES);
    }

    /// When the lease of this driver was renewed last, as seen here.
    pub fn renewed(&self, model: &ModelName, driver: &str) -> Option<Instant> {
        self.lock().lease_of(model, driver).map(|seen| seen.at)
    }

    pub fn saw_report(&self, model: ModelName, node: String, revision: u64, report: Arc<str>) {
        let mut state = self.lock();
        let mark = Mark { connection: state.connection, revision };
        state.reports.entry(model).or_default().insert(node.clone(), Heard { node, mark, report });
    }

    /// The leases to renew.
    pub fn to_renew(&self) -> Vec<(ModelName, Orders)> {
        let mut state = self.lock();
        let drives = |model: &ModelName| self.0.board.driver_of(model).is_some_and(|driver| driver == self.0.node);
        state.driven.retain(|model, (_, said)| said.elapsed() < SAID_WITHIN && drives(model));
        state.driven.iter().map(|(model, (orders, _))| (model.clone(), orders.clone())).collect()
    }

    /// The models of which the bucket's value of this gateway is to be read.
    pub fn to_read(&self) -> Vec<ModelName> {
        let state = self.lock();
        state.own.iter().filter(|(_, own)| own.stored.is_none()).map(|(model, _)| model.clone()).collect()
    }

    /// What is to be put, and over which revision.
    pub fn to_put(&self, now: Instant) -> Vec<(ModelName, u64, Arc<str>)> {
        let state = self.lock();
        let due = state.own.iter().filter(|(_, own)| own.not_before.is_none_or(|at| at <= now));
        due.filter_map(|(model, own)| Some((model.clone(), own.stored.as_ref()?.0, own.next.clone()?))).collect()
    }

    /// The bucket has this of the gateway's own counts.
    pub fn own_stored(&self, model: &ModelName, revision: u64, report: Option<Arc<str>>, not_before: Option<Instant>) {
        let mut state = self.lock();
        let Some(own) = state.own.get_mut(model) else { return };
        if own.next.is_some() && own.next == report {
            own.next = None;
        }
        (own.stored, own.not_before) = (Some((revision, report)), not_before);
    }

    /// Something else is in the bucket than was thought.
    pub fn read_again(&self, model: &ModelName) {
        if let Some(own) = self.lock().own.get_mut(model) {
            own.stored = None;
        }
    }

    /// Forgets the counts of a rollout that has ended. Returns the gateways whose values can be removed, if there are any.
    pub fn ended(&self, model: &ModelName, drives: bool) -> Vec<String> {
        let mut state = self.lock();
        let mut nodes: Vec<String> = Vec::new();
        if state.own.remove(model).is_some() {
            nodes.push(self.0.node.clone());
        }
        let reports = state.reports.remove(model).unwrap_or_default();
        if drives {
            nodes.extend(reports.into_keys());
        }
        nodes
    }

    // === operators ===

    pub fn views(&self) -> Vec<RolloutView> {
        let active = self.0.board.rollouts(SharedRollout::is_active);
        let state = self.lock();
        let view = |(model, known): (ModelName, Known)| {
            let driver = known.shared.ok()?.rollout?.driver;
            let seen = state.lease_of(&model, &driver);
            let heard = seen.map(|seen| seen.at.elapsed());
            let counted = seen.into_iter().flat_map(|seen| &seen.lease.orders.counted);
            let age = |age_ms: u64| Duration::from_millis(age_ms) + heard.unwrap_or_default();
            let counted = counted.map(|of| (of.node.clone(), age(of.age_ms))).collect();
            Some(RolloutView { model, driver, heard, counted })
        };
        active.into_iter().filter_map(view).collect()
    }
}

impl Fellows for Rollouts {
    fn node(&self) -> &str {
        &self.0.node
    }

    fn told(&self) -> Result<Vec<Told>, String> {
        let mut given = std::mem::take(&mut self.lock().given);
        let news = self.0.board.news_since(&mut given);
        self.lock().given = given;
        let told = |(model, known): (ModelName, Known)| {
            let shared = known.shared.ok();
            let document = shared.as_ref().and_then(|shared| shared.model.document.as_deref());
            let document = document.and_then(|document| Document::from_json(document).ok());
            let rollout = shared.and_then(|shared| shared.rollout).map(|rollout| ToldRollout {
                state: rollout.state.to_string(),
                driver: rollout.driver,
                step: rollout.step,
                overridden: rollout.overridden,
            });
            Told { model, revision: known.revision, in_force: known.in_force == known.revision, document, rollout }
        };
        Ok(news?.into_iter().map(told).collect())
    }

    fn based_on(&self, model: &ModelName, revision: u64) {
        self.lock().bases.insert(model.clone(), revision);
    }

    fn drives(&self, model: &ModelName, orders: Orders) {
        let is_new = self.lock().driven.insert(model.clone(), (orders, Instant::now())).is_none();
        if is_new {
            self.0.news.notify_one();
        }
    }

    fn orders(&self, model: &ModelName) -> Option<(Orders, Duration)> {
        let driver = self.0.board.driver_of(model);
        let state = self.lock();
        // One that has just taken over goes on from what the driver before it said.
        let seen =
            driver.and_then(|driver| state.lease_of(model, &driver)).or_else(|| state.leases.get(model)?.first())?;
        Some((seen.lease.orders.clone(), seen.at.elapsed()))
    }

    fn stored(&self, model: &ModelName) -> Stored {
        let mut state = self.lock();
        match &state.own.entry(model.clone()).or_default().stored {
            Some((_, Some(report))) => Stored::Report(Arc::clone(report)),
            Some((_, None)) => Stored::Nothing,
            None => {
                drop(state);
                self.0.news.notify_one();
                Stored::Unknown
            }
        }
    }

    fn tell(&self, model: &ModelName, report: String) {
        self.lock().own.entry(model.clone()).or_default().next = Some(report.into());
        self.0.news.notify_one();
    }

    fn reports(&self, model: &ModelName, after: Mark) -> Vec<Heard> {
        let state = self.lock();
        let mut news: Vec<Heard> = state
            .reports
            .get(model)
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter(|heard| heard.mark > after)
            .cloned()
            .collect();
        news.sort_by_key(|heard| heard.mark);
        news
    }

    fn others(&self, model: &ModelName) -> Option<Vec<String>> {
        let board = &self.0.board;
        board.needs_all().then(|| board.serving(model))
    }
}
