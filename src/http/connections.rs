//! The open connections of a server: their number, the longest idle ones, and what all of them are told.

use super::activity::{Activity, Stage};
use crate::telemetry::{Scope, names};
use metrics::{Counter, Gauge};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A connection that was used more recently is not closed to make room: its next request may be on its way.
const MIN_IDLE: Duration = Duration::from_secs(1);
/// How many of the longest idle connections one search notes. A search visits all connections.
const NOTED: usize = 64;

/// The open connections of a server.
#[derive(Debug)]
pub(crate) struct Connections {
    /// The key is a running number.
    open: Mutex<HashMap<u64, Arc<Activity>>>,
    next: AtomicU64,
    /// A [`Stage`], for connections that are opened from now on.
    stage: AtomicU8,
    /// Notified when a connection has ended.
    ended: Notify,
    /// The longest idle connections of the last search, the longest one last.
    noted: Mutex<Vec<Arc<Activity>>>,
    gauge: Gauge,
    closed: [Counter; Reason::ALL.len()],
}

/// The limit because of which the server closed a connection, or reset a stream of HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Idle,
    Room,
    Headers,
    Handshake,
    Reader,
    Stream,
    Flood,
}

impl Reason {
    const ALL: [Reason; 7] =
        [Reason::Idle, Reason::Room, Reason::Headers, Reason::Handshake, Reason::Reader, Reason::Stream, Reason::Flood];

    fn as_str(self) -> &'static str {
        match self {
            Reason::Idle => "idle",
            Reason::Room => "room",
            Reason::Headers => "headers",
            Reason::Handshake => "handshake",
            Reason::Reader => "reader",
            Reason::Stream => "stream",
            Reason::Flood => "flood",
        }
    }
}

impl Connections {
    /// For the data plane or the admin plane, as the label `plane` of the metrics.
    pub(crate) fn new(scope: &Scope, plane: &str) -> Connections {
        Connections {
            open: Mutex::default(),
            next: AtomicU64::new(0),
            stage: AtomicU8::new(Stage::Open as u8),
            ended: Notify::new(),
            noted: Mutex::default(),
            gauge: scope.gauge(&names::CONNECTIONS, &[("plane", plane)]),
            closed: Reason::ALL.map(|reason| {
                scope.counter(&names::CONNECTIONS_CLOSED, &[("plane", plane), ("reason", reason.as_str())])
            }),
        }
    }

    /// Adds a connection. It is removed when the result is dropped.
    pub(crate) fn open(self: &Arc<Self>) -> OpenConnection {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut open = self.lock();
        // Under the lock, so that `tell` reaches it or it starts with the new stage.
        let activity = Arc::new(Activity::new(self.stage()));
        open.insert(number, Arc::clone(&activity));
        self.gauge.set(open.len() as f64);
        OpenConnection { connections: Arc::clone(self), number, activity }
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// From now on each answer says that its connection closes, and HTTP/2 connections announce their end.
    pub(crate) fn announce(&self) {
        self.tell(Stage::Announce);
    }

    /// From now on a connection closes as soon as no request is in progress on it.
    pub(crate) fn close_idle(&self) {
        self.tell(Stage::CloseIdle);
    }

    fn tell(&self, stage: Stage) {
        let open = self.lock();
        self.stage.fetch_max(stage as u8, Ordering::AcqRel);
        for activity in open.values() {
            activity.tell(stage);
        }
    }

    pub(super) fn count_closed(&self, reason: Reason) {
        self.closed[reason as usize].increment(1);
    }

    pub(super) fn stage(&self) -> Stage {
        Stage::of(self.stage.load(Ordering::Acquire))
    }

    /// Asks the longest idle connection to close, and returns it. `None` if no connection has been idle for a second.
    pub(super) fn evict_longest_idle(&self) -> Option<Arc<Activity>> {
        let now = Instant::now();
        let can_go = |activity: &Activity| activity.is_idle() && activity.idle_for(now) >= MIN_IDLE;
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(activity) = noted.pop() {
            if can_go(&activity) && !activity.is_evicted() {
                activity.evict();
                return Some(activity);
            }
        }
        let open = self.lock();
        let mut idle: Vec<_> = open
            .values()
            .filter(|activity| can_go(activity) && !activity.is_evicted())
            .map(|activity| (activity.idle_for(now), activity))
            .collect();
        if idle.len() > NOTED {
            let cut = idle.len() - NOTED;
            idle.select_nth_unstable_by_key(cut, |(idle_for, _)| *idle_for);
            idle.drain(..cut);
        }
        idle.sort_unstable_by_key(|(idle_for, _)| *idle_for);
        noted.extend(idle.into_iter().map(|(_, activity)| Arc::clone(activity)));
        let longest = noted.pop()?;
        longest.evict();
        Some(longest)
    }

    /// Waits until a connection has ended, or for the given time.
    pub(crate) async fn one_ended(&self, within: Duration) {
        let _ = tokio::time::timeout(within, self.ended.notified()).await;
    }

    /// A panic while the lock is held leaves a complete map.
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Activity>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the open connections, until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenConnection {
    pub(super) connections: Arc<Connections>,
    number: u64,
    pub(super) activity: Arc<Activity>,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        open.remove(&self.number);
        self.connections.gauge.set(open.len() as f64);
        drop(open);
        self.connections.ended.notify_one();
    }
}
