//! The list of the fleet's gateways: reports this one, and follows the reports of others.
//!
//! In a fleet of up to fifty every gateway follows all reports. In a larger one that would be the square of their number. There each knows all names, and
//! follows the reports of the first gateways by name that are there. All reports are followed by these first ones, by gateways with rules of placement,
//! and, for a minute, by those where somebody asked.

use super::board::{self, Board, Heard, State, heard_within, now, repeat_every, report_every};
use super::own;
use super::session::{EXCHANGE, Member, Never, check_id, no_answer};
use super::wire::{self, Node};
use async_nats::Client;
use async_nats::connection::State as Connection;
use async_nats::jetstream::kv::{Entry, Operation, Store, Watch};
use futures_util::{StreamExt as _, TryStreamExt as _};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, timeout};
use tracing::warn;

/// Whose reports this gateway follows.
#[derive(Debug, Default)]
pub(super) enum Reports {
    /// Those of all gateways, and they are known.
    #[default]
    All,
    /// Those of all gateways, which are being read.
    Reading,
    /// Those of some. `names`: of all gateways; `looked`: those whose reports were read, and of which the ones without a report are not there.
    Some { names: BTreeSet<String>, looked: Vec<String> },
}

/// Whose reports are to be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    All,
    /// Of these, and the own one.
    Of(Vec<String>),
}

/// How often the gateway reports itself and looks at the connection.
const TICK: Duration = Duration::from_secs(1);
/// In a fleet of more gateways not every one follows all reports, and in one of fewer each does.
const MANY: usize = 50;
const FEW: usize = 40;
/// So many gateways, the first by name of those that are there, follow all reports, and are followed by everyone.
const FIRST: usize = 3;
/// How long all reports are followed after somebody needed them.
const NEEDED: Duration = Duration::from_mins(1);
/// How often a thread looks whether they are known.
const LOOK: Duration = Duration::from_millis(10);

impl State {
    /// How many gateways are known.
    pub fn size(&self) -> usize {
        match &self.reports {
            Reports::Some { names, .. } => names.len(),
            Reports::All | Reports::Reading => self.nodes.len(),
        }
    }

    /// Whether no gateway that is there comes before this one in the order of names. In a large fleet the first ones know all reports.
    pub fn is_first(&self, own: &str) -> bool {
        matches!(self.reports, Reports::All) && self.heard().all(|(name, _)| own <= name.as_str())
    }

    /// Whose reports this gateway should follow. `own`: its name; `places`: it has rules of placement.
    fn wanted(&self, own: &str, places: bool) -> Wanted {
        if places || self.needed.is_some_and(|at| at.elapsed() < NEEDED) {
            return Wanted::All;
        }
        let (names, looked, many): (Vec<&String>, &[String], usize) = match &self.reports {
            Reports::Some { names, looked } => (names.iter().collect(), looked, FEW),
            Reports::All | Reports::Reading => (self.nodes.keys().collect(), &[], MANY),
        };
        if names.len() <= many {
            return Wanted::All;
        }
        let within = heard_within(names.len());
        let mut first = Vec::new();
        let mut there = 0;
        for name in names.into_iter().filter(|name| name.as_str() < own) {
            first.push(name.clone());
            let is_there = match self.nodes.get(name) {
                Some(heard) => heard.at.elapsed() < within,
                None => !looked.contains(name),
            };
            there += usize::from(is_there);
            if there == FIRST {
                return Wanted::Of(first);
            }
        }
        Wanted::All
    }
}

impl Board {
    /// How many gateways are known.
    pub fn size(&self) -> usize {
        self.lock().size()
    }

    /// Whether a gateway has said that it leaves, or was not heard for so long that it is forgotten.
    pub fn is_gone(&self, node: &str) -> bool {
        let state = self.lock();
        let is_named = matches!(&state.reports, Reports::Some { names, .. } if names.contains(node));
        !is_named && !state.nodes.contains_key(node)
    }

    /// Somebody needs the reports of all gateways. Returns whether they are known now.
    pub fn needs_all(&self) -> bool {
        let mut state = self.lock();
        state.needed = Some(Instant::now());
        let are_known = matches!(state.reports, Reports::All);
        drop(state);
        if !are_known {
            self.0.needed.notify_one();
        }
        are_known
    }

    /// Whether the reports of all gateways are known. They are not followed for that.
    pub fn knows_all(&self) -> bool {
        matches!(self.lock().reports, Reports::All)
    }

    /// Waits for them. Returns whether they are known.
    pub fn wait_for_all(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        while !self.needs_all() {
            if Instant::now() >= until {
                return false;
            }
            std::thread::park_timeout(LOOK);
        }
        true
    }

    /// The same for a task. One that is cut off waits for nothing.
    pub async fn all_known(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        while !self.needs_all() {
            if Instant::now() >= until || !self.is_following() {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        true
    }

    pub fn wanted(&self) -> Wanted {
        self.lock().wanted(&self.0.node, !self.0.rules.is_empty())
    }

    /// The names of all gateways.
    pub fn named(&self, names: BTreeSet<String>) {
        let mut state = self.lock();
        let looked = match &mut state.reports {
            Reports::Some { looked, .. } => std::mem::take(looked),
            Reports::All | Reports::Reading => Vec::new(),
        };
        state.reports = Reports::Some { names, looked };
    }

    /// These reports are followed from now on, and are being read.
    pub fn follows(&self, wanted: &Wanted) {
        let mut state = self.lock();
        match wanted {
            Wanted::All => state.reports = Reports::Reading,
            Wanted::Of(first) => {
                if !matches!(state.reports, Reports::Some { .. }) {
                    let names = state.nodes.keys().cloned().collect();
                    state.reports = Reports::Some { names, looked: Vec::new() };
                }
                let own = &self.0.node;
                state.nodes.retain(|name, _| name == own || first.contains(name));
            }
        }
    }

    /// The reports that are followed were read: all that there are. With each, how long ago it came.
    pub fn read(&self, wanted: &Wanted, reports: BTreeMap<String, (Node, Duration)>) {
        let now = Instant::now();
        let mut state = self.lock();
        match (wanted, &mut state.reports) {
            (Wanted::Of(first), Reports::Some { looked, .. }) => looked.clone_from(first),
            (Wanted::Of(_), Reports::All | Reports::Reading) => {}
            (Wanted::All, known) => *known = Reports::All,
        }
        for (name, (node, ago)) in reports {
            let at = now.checked_sub(ago).unwrap_or(now);
            state.places.came(&name);
            // One that was heard here a moment ago was heard then.
            let at = state.nodes.get(&name).map_or(at, |known| if known.node == node { known.at.max(at) } else { at });
            state.nodes.insert(name, Heard { node, at });
        }
        state.count();
    }
}

/// The part of a session that is for the list of gateways.
pub(super) struct Gateways<'a> {
    pub member: &'a Member,
    pub client: &'a Client,
    pub bucket: &'a Store,
    /// The revision of the last report under this gateway's name before it joined.
    pub joined_at: u64,
}

/// Reports that are being read: what there is comes first, oldest first.
struct Reading {
    /// With the time when NATS stored each, in milliseconds since 1970.
    reports: BTreeMap<String, (Node, i64)>,
    newest: i64,
}

impl Gateways<'_> {
    /// Takes part until the connection is lost.
    ///
    /// # Errors
    /// Why it was.
    pub async fn run(&self) -> Result<Never, String> {
        let board = &self.member.board;
        let since = now();
        let mut reported = None;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut counted = self.count().await?;
        loop {
            let wanted = board.wanted();
            let mut reports = self.watch(&wanted).await?;
            board.follows(&wanted);
            let mut reading = Some(Reading { reports: BTreeMap::new(), newest: i64::MIN });
            while board.wanted() == wanted {
                tokio::select! {
                    entry = reports.next() => {
                        let entry = entry.ok_or("the list of gateways is no longer followed")?;
                        let entry = entry.map_err(|error| format!("the list of gateways is no longer followed: {error}"))?;
                        self.saw(&entry, &wanted, &mut reading)?;
                    }
                    () = board.0.needed.notified() => {}
                    _ = ticks.tick() => {
                        if self.client.connection_state() != Connection::Connected {
                            return Err("the connection was lost".to_owned());
                        }
                        self.report(&since, &mut reported).await?;
                        if wanted != Wanted::All && counted.elapsed() >= repeat_every(board.size()) {
                            counted = self.count().await?;
                        }
                    }
                }
            }
        }
    }

    /// Asks for the names of all gateways: one exchange. Returns when.
    async fn count(&self) -> Result<Instant, String> {
        let unreadable = |error: String| format!("the names of the gateways cannot be read: {error}");
        let prefix = &self.bucket.prefix;
        let subjects = timeout(EXCHANGE, self.bucket.stream.info_with_subjects(format!("{prefix}>"))).await;
        let subjects = subjects.map_err(|_| no_answer())?.map_err(|error| unreadable(error.to_string()))?;
        let names = timeout(EXCHANGE, subjects.map_ok(|(subject, _)| subject).try_collect::<Vec<String>>()).await;
        let names = names.map_err(|_| no_answer())?.map_err(|error| unreadable(error.to_string()))?;
        let names = names.iter().filter_map(|subject| subject.strip_prefix(prefix.as_str())).map(str::to_owned);
        self.member.board.named(names.collect());
        Ok(Instant::now())
    }

    async fn watch(&self, wanted: &Wanted) -> Result<Watch, String> {
        let own = &self.member.config.node;
        let keys = match wanted {
            Wanted::All => vec![">".to_owned()],
            Wanted::Of(first) => first.iter().chain([own]).cloned().collect(),
        };
        let watch = timeout(EXCHANGE, self.bucket.watch_many_with_history(keys)).await.map_err(|_| no_answer())?;
        watch.map_err(|error| format!("the list of gateways cannot be followed: {error}"))
    }

    /// # Errors
    /// When another gateway has reported under this one's name since it joined: both saw the name free.
    fn saw(&self, entry: &Entry, wanted: &Wanted, reading: &mut Option<Reading>) -> Result<(), String> {
        let Member { board, config, id, .. } = self.member;
        let at_ms = entry.created.unix_timestamp() * 1000 + i64::from(entry.created.millisecond());
        let report = match entry.operation {
            Operation::Delete | Operation::Purge => None,
            Operation::Put => Some(wire::read::<Node>(&entry.value)),
        };
        if let Some(Ok(node)) = &report
            && entry.key == config.node
            && entry.revision > self.joined_at
        {
            check_id(&config.node, id, node)?;
        }
        if let Some(Err(why)) = &report {
            warn!(node = entry.key, why, "the report of a gateway is not read");
        }
        let Some(read) = reading else {
            match report {
                Some(Ok(node)) => board.node(&entry.key, node),
                Some(Err(_)) => {}
                None => board.left(&entry.key),
            }
            return Ok(());
        };
        read.newest = read.newest.max(at_ms);
        match report {
            Some(Ok(node)) => {
                read.reports.insert(entry.key.clone(), (node, at_ms));
            }
            // It may be the last one that there is: then all have been read.
            Some(Err(_)) => {}
            None => {
                read.reports.remove(&entry.key);
            }
        }
        if entry.seen_current
            && let Some(Reading { reports, newest }) = reading.take()
        {
            // By NATS's clock alone: the newest one has come just now.
            let ago = |at: i64| Duration::from_millis(u64::try_from(newest.saturating_sub(at)).unwrap_or(0));
            board.read(wanted, reports.into_iter().map(|(name, (node, at))| (name, (node, ago(at)))).collect());
        }
        Ok(())
    }

    async fn report(&self, since: &str, reported: &mut Option<(Node, u32)>) -> Result<(), String> {
        let Member { board, reader, versions, id, evidence, config, .. } = self.member;
        board.count();
        let mut report = own::report(reader, board, &versions.mirror, id, since);
        report.drift_told = evidence.told();
        let nodes = board.size();
        if let Some((before, ticks)) = reported {
            let every = if *before == report { board::repeat_every } else { board::report_every };
            *ticks += 1;
            if TICK * *ticks < every(nodes) {
                return Ok(());
            }
        }
        let bytes = serde_json::to_vec(&report).map_err(|error| format!("the report cannot be written: {error}"))?;
        let put = timeout(EXCHANGE, self.bucket.put(&config.node, bytes.into())).await.map_err(|_| no_answer())?;
        put.map_err(|error| format!("the report is refused: {error}"))?;
        // Gateways that joined in the same moment do not go on reporting in the same moment.
        let most = u32::try_from(report_every(nodes).as_secs()).unwrap_or(u32::MAX);
        let ahead = if reported.is_none() { fastrand::u32(0..most) } else { 0 };
        *reported = Some((report, ahead));
        Ok(())
    }
}
