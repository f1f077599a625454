//! Evidence of the whole fleet: what this gateway knows of the rows and the hours of the others, and what it has told them (docs/FLEET.md).
//!
//! Rows are in parts that replace their own earlier form (`rows.rs`); counts of drift are told by hour, and an hour is closed once for all
//! (`hours.rs`). Both are states and never differences: what comes twice, late, or again after a restart counts once.

use super::board::Board;
use super::wire;
use crate::drift::Drift;
use crate::ledger::LedgerReader;
use crate::model::ModelName;
use crate::quality::Quality;
use crate::quality::exchange::{Gateway, Given, Others, Part};
use crate::registry::Reader;
use crate::route;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// What rows and counts are read from.
#[derive(Clone)]
pub(crate) struct Counted {
    pub quality: Quality,
    pub drift: Drift,
    pub ledger: LedgerReader,
    /// The key that this gateway made to hash route keys with; `None` where the configuration names one.
    pub hash_key: Option<String>,
}

/// Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Evidence(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) board: Board,
    pub(super) node: String,
    /// Of the data directory, and of this start.
    pub(super) id: String,
    pub(super) session: String,
    state: Mutex<State>,
    /// Somebody waits for the newest.
    wake: Notify,
    /// The last ticket that was answered.
    done: watch::Sender<u64>,
    /// All counts of drift before this hour have been told; -1 before the first.
    told: AtomicI64,
    /// Tells the key that route keys are hashed with apart from those of others.
    key: OnceLock<String>,
}

#[derive(Debug, Default)]
struct State {
    ticket: u64,
    wanted: HashMap<ModelName, Wanted>,
    /// By the id of a gateway.
    others: HashMap<ModelName, BTreeMap<String, Theirs>>,
}

/// A model whose rows somebody asked for.
#[derive(Debug)]
struct Wanted {
    asked: Instant,
    ticket: u64,
    refreshed: Option<Instant>,
}

/// What another gateway gave.
#[derive(Debug, Clone)]
pub(super) struct Theirs {
    pub revision: u64,
    pub manifest: wire::Manifest,
    /// By the name of the part: what the list calls it, and its bytes.
    pub parts: BTreeMap<String, (String, Arc<[u8]>)>,
    /// Why it cannot be read. Then there are no parts.
    pub unreadable: Option<String>,
}

/// Models are looked at again in the background as long as somebody asked within this time.
const ASKED_WITHIN: Duration = Duration::from_mins(1);
/// And forgotten after this.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(10);
/// How often they are looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Rows that were looked at longer ago are not called new.
const CURRENT: Duration = Duration::from_secs(15);
/// The longest wait for the newest.
const WAIT: Duration = Duration::from_secs(3);

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evidence").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Evidence {
    pub fn new(board: Board, node: String, id: String) -> Evidence {
        let session = uuid::Uuid::now_v7().simple().to_string();
        let (done, _) = watch::channel(0);
        let (wake, told) = (Notify::new(), AtomicI64::new(-1));
        Evidence(Arc::new(Shared {
            board,
            node,
            id,
            session,
            state: Mutex::default(),
            wake,
            done,
            told,
            key: OnceLock::new(),
        }))
    }

    pub fn set_key(&self, key: String) {
        // It is set once, before anything is counted.
        let _ = self.0.key.set(key);
    }

    pub(super) fn key(&self) -> String {
        self.0.key.get().cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the rows of other gateways are as new as they can be: a few milliseconds, and not at all without NATS.
    pub async fn newest(&self, model: &ModelName) {
        if !self.0.board.is_following() {
            return;
        }
        let mut done = self.0.done.subscribe();
        let ticket = {
            let mut state = self.lock();
            state.ticket += 1;
            let ticket = state.ticket;
            state.want(model).ticket = ticket;
            ticket
        };
        self.0.wake.notify_one();
        // Later than that, the answer says how old the rows are.
        let rows = async {
            let _ = tokio::time::timeout(WAIT, done.wait_for(|done| *done >= ticket)).await;
        };
        tokio::join!(rows, self.0.board.all_known(WAIT));
    }

    /// All counts of drift before this hour have been told. `None` before the first were.
    pub fn told(&self) -> Option<i64> {
        Some(self.0.told.load(Ordering::Relaxed)).filter(|hour| *hour >= 0)
    }

    pub(super) fn set_told(&self, hour: i64) {
        self.0.told.store(hour, Ordering::Relaxed);
    }

    // === the session ===

    /// Waits until somebody asks.
    pub(super) async fn asked(&self) {
        self.0.wake.notified().await;
    }

    /// The models to look at now, and the last ticket that this answers.
    pub(super) fn due(&self) -> (u64, Vec<ModelName>) {
        let done = *self.0.done.borrow();
        let mut state = self.lock();
        let State { ticket, wanted, others } = &mut *state;
        wanted.retain(|_, wanted| wanted.asked.elapsed() < FORGOTTEN_AFTER);
        others.retain(|model, _| wanted.contains_key(model));
        let is_due = |wanted: &Wanted| {
            let is_old = wanted.refreshed.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
            wanted.ticket > done || is_old && wanted.asked.elapsed() < ASKED_WITHIN
        };
        let due = wanted.iter().filter(|(_, wanted)| is_due(wanted)).map(|(model, _)| model.clone()).collect();
        (*ticket, due)
    }

    pub(super) fn answered(&self, ticket: u64) {
        self.0.done.send_replace(ticket);
    }

    /// What is known of the other gateways' rows.
    pub(super) fn others(&self, model: &ModelName) -> BTreeMap<String, Theirs> {
        self.lock().others.get(model).cloned().unwrap_or_default()
    }

    pub(super) fn refreshed(&self, model: &ModelName, others: BTreeMap<String, Theirs>) {
        let mut state = self.lock();
        state.others.insert(model.clone(), others);
        if let Some(wanted) = state.wanted.get_mut(model) {
            wanted.refreshed = Some(Instant::now());
        }
    }
}

impl State {
    fn want(&mut self, model: &ModelName) -> &mut Wanted {
        let now = Instant::now();
        let wanted = self.wanted.entry(model.clone()).or_insert(Wanted { asked: now, ticket: 0, refreshed: None });
        wanted.asked = now;
        wanted
    }
}

impl Others for Evidence {
    fn of(&self, model: &ModelName) -> Given {
        let are_known = self.0.board.needs_all();
        let serving = self.0.board.serving(model);
        let follows = self.0.board.is_following();
        let mut state = self.lock();
        let refreshed = state.want(model).refreshed;
        let mut given = Given { key: self.key(), ..Given::default() };
        for theirs in state.others.get(model).into_iter().flat_map(BTreeMap::values) {
            let wire::Manifest { node, as_of, feedback, left_out, split, hash_key, .. } = &theirs.manifest;
            if theirs.unreadable.is_some() {
                given.missing.push(node.clone());
                continue;
            }
            given.gateways.push(Gateway {
                name: node.clone(),
                as_of: *as_of,
                feedback: *feedback,
                left_out: *left_out,
                split: *split,
                key: hash_key.clone(),
                parts: theirs.parts.values().map(|(_, bytes)| Arc::clone(bytes)).collect(),
            });
        }
        drop(state);
        let gave = |name: &String| given.gateways.iter().any(|gateway| gateway.name == *name);
        let missing: Vec<String> = serving.into_iter().filter(|name| !gave(name)).collect();
        given.missing.extend(missing);
        given.missing.sort();
        given.missing.dedup();
        given.waits = match refreshed {
            _ if follows && !are_known => Some("the list of the fleet's gateways is being read".to_owned()),
            None => Some("the rows of the other gateways have not been read yet".to_owned()),
            Some(at) if at.elapsed() > CURRENT => {
                let why = if follows { "NATS is slow" } else { "this gateway is cut off" };
                Some(format!("the rows of the other gateways are {} s old: {why}", at.elapsed().as_secs()))
            }
            Some(_) => None,
        };
        if refreshed.is_none() {
            self.0.wake.notify_one();
        }
        given
    }
}

/// The split in force, as a hash, and since when: microseconds since 1970.
pub(super) fn split(reader: &Reader, ledger: &LedgerReader, model: &ModelName) -> Option<(u64, i64)> {
    let snapshot = reader.snapshot();
    let document = snapshot.model(model.as_str())?.document()?;
    let history = ledger.history(model).ok()?;
    let history = history.iter().map(|entry| (entry.revision, entry.ts.as_microsecond(), entry.document.as_str()));
    let (_, at) = route::began(history, document)?;
    Some((document.split_hash(), at))
}

/// The name of a part, if it is one.
pub(super) fn part(text: &str) -> Option<Part> {
    text.parse().ok()
}
