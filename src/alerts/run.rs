//! The thread `alerts`: looks at what rooms report, keeps the book, and fills the outbox.

use super::Config;
use super::book::{Group, Looked};
use super::event::Event;
use super::finding::{Alert, Now, Source};
use super::follow::{Follow, Followed, change_before};
use super::handle::Alerts;
use super::message::Message;
use super::rule::Rule;
use super::silence::Silence;
use super::store::{Batch, NewMessage};
use super::{Inputs, VersionState};
use crate::ledger::LedgerReader;
use crate::telemetry::{Scope, names};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use jiff::Timestamp;
use metrics::Gauge;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// The state of the thread.
pub(super) struct Runner {
    alerts: Alerts,
    config: Config,
    ledger: LedgerReader,
    sources: Vec<Source>,
    versions: Box<dyn FnMut() -> Option<Arc<Vec<VersionState>>> + Send>,
    follow: Option<Follow>,
    /// One for each outlet: there is something new.
    wake: Vec<Sender<()>>,
    firing: Vec<(Rule, Gauge)>,
    /// The last look could not be stored, or the ledger not be read; it is logged once.
    failing: bool,
}

impl Runner {
    pub(super) fn new(alerts: Alerts, config: Config, inputs: Inputs, wake: Vec<Sender<()>>, scope: &Scope) -> Runner {
        let Inputs { ledger, sources, versions } = inputs;
        let gauge = |rule: Rule| (rule, scope.gauge(&names::ALERTS_FIRING, &[("rule", rule.as_str())]));
        let firing = Rule::ALL.map(gauge).into();
        Runner { alerts, config, ledger, sources, versions, follow: None, wake, firing, failing: false }
    }

    /// Looks until it is told to stop.
    pub(super) fn run(mut self, stop: &Receiver<()>) {
        crate::machine::lower_priority("alerts", 5);
        // The first look is made at once: events that come before it are not told.
        let mut wait = Duration::ZERO;
        while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(wait) {
            wait = self.config.check_interval;
            // A defect in one source must not end all alerts. What it left half done is stored, or looked at again.
            let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.look(Now::read())));
            if looked.is_err() {
                tracing::error!("a look at what is wrong panicked; the next one is made all the same");
            }
        }
    }

    /// One look. What cannot be stored is tried again with the next one.
    pub(super) fn look(&mut self, now: Now) {
        if let Err(error) = self.try_look(now) {
            if !self.failing {
                tracing::error!(error, "alerts cannot be kept; it is tried again");
            }
            self.failing = true;
        } else {
            self.failing = false;
        }
    }

    fn try_look(&mut self, now: Now) -> Result<(), String> {
        let inner = self.alerts.0.clone();
        let mut followed = self.followed(now)?;
        let mut found: Vec<Looked> = self.sources.iter_mut().map(|source| (source.rules, (source.look)(now))).collect();
        if let Some(follow) = &mut self.follow {
            found.push((&[Rule::BreakGlass], Some(Arc::new(follow.overridden(now)))));
        }
        let (silences, expired) = self.silences(now.ts);

        let mut book = inner.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.look(now, &found, &self.config.off, |about, at| change_before(&self.ledger, about, at));
        let is_silent = |about: &super::About| silences.iter().any(|silence| silence.matcher.fits(about));
        let groups = book.take_untold(now.at, is_silent);
        if let Some(follow) = &self.follow {
            let asks = |alert: &&Alert| alert.about.rule.asks_for_retraining() && !is_silent(&alert.about);
            follow.retrain(book.firing().filter(asks), now.ts, &mut followed);
        }
        let batch = Batch {
            alerts: book.to_store(&groups),
            removed: book.to_remove(),
            messages: self.messages(&groups, &followed.events, now.ts),
            announced: followed.announced.clone(),
            not_announced: followed.not_announced.clone(),
            meta: followed.meta.clone(),
            expired_silences: expired,
            most_waiting: self.config.outbox,
        };
        let mut firing: BTreeMap<Rule, u32> = BTreeMap::new();
        book.firing().for_each(|alert| *firing.entry(alert.about.rule).or_default() += 1);
        for (rule, gauge) in &self.firing {
            gauge.set(f64::from(firing.get(rule).copied().unwrap_or(0)));
        }
        if batch.is_empty() {
            book.stored(&groups, now.at);
            if let Some(follow) = &mut self.follow {
                follow.stored(followed);
            }
            return Ok(());
        }
        let dropped =
            inner.store.store(&batch, now.ts).map_err(|e| format!("the database of alerts cannot be written: {e}"))?;
        book.stored(&groups, now.at);
        drop(book);
        if let Some(follow) = &mut self.follow {
            follow.stored(followed);
        }
        inner.silences.lock().unwrap_or_else(PoisonError::into_inner).retain(|silence| silence.holds(now.ts));
        for outlet in &inner.outlets {
            if let Some(messages) = dropped.get(&outlet.target.name) {
                outlet.count_dropped("full", *messages);
            }
        }
        for wake in &self.wake {
            // A full channel means that the sender is awake.
            let _ = wake.try_send(());
        }
        log(&groups);
        Ok(())
    }

    /// What happened since the last look.
    fn followed(&mut self, now: Now) -> Result<Followed, String> {
        let unreadable = |e: crate::ledger::LedgerError| format!("the audit trail cannot be read: {e}");
        let mut followed = Followed::default();
        if self.follow.is_none() {
            let store = &self.alerts.0.store;
            let of_store = |e: rusqlite::Error| format!("the database of alerts cannot be read: {e}");
            let (meta, announced) = (store.meta().map_err(of_store)?, store.announced().map_err(of_store)?);
            self.follow = Some(Follow::new(&self.ledger, &meta, announced, now.ts).map_err(unreadable)?);
        }
        if let Some(follow) = &self.follow {
            follow.changes(&self.ledger, &mut followed).map_err(unreadable)?;
            if let Some(states) = (self.versions)() {
                follow.versions(&states, now.ts, &mut followed);
            }
        }
        Ok(followed)
    }

    /// The silences that hold, and the ids of those that are over.
    fn silences(&self, now: Timestamp) -> (Vec<Silence>, Vec<String>) {
        let all = self.alerts.silences();
        let (hold, over): (Vec<Silence>, Vec<Silence>) = all.into_iter().partition(|silence| silence.holds(now));
        (hold, over.into_iter().map(|silence| silence.id).collect())
    }

    fn messages(&self, groups: &[Group], events: &[Event], now: Timestamp) -> Vec<NewMessage> {
        let inner = &self.alerts.0;
        let mut all = Vec::new();
        for outlet in &inner.outlets {
            let target = &outlet.target;
            let of_events = Message::of_events(events, target, &inner.sender, now);
            let of_groups = groups.iter().flat_map(|group| Message::of_group(group, target, &inner.sender, now));
            for message in of_events.into_iter().chain(of_groups) {
                let body = serde_json::to_string(&message).unwrap_or_default();
                all.push(NewMessage { target: target.name.clone(), key: message.key, body });
            }
        }
        all
    }
}

/// A line for each alert, at most some of them for each rule.
fn log(groups: &[Group]) {
    const MOST: usize = 5;
    for Group { rule, alerts } in groups {
        for alert in alerts.iter().take(MOST) {
            let (model, version) = (alert.about.model.as_ref().map(tracing::field::display), alert.about.version);
            let version = version.map(tracing::field::display);
            if alert.is_firing() {
                tracing::warn!(%rule, model, version, severity = %alert.severity, id = alert.id, "ALERT: {}", alert.summary);
            } else {
                tracing::info!(%rule, model, version, id = alert.id, "alert ended: {}", alert.summary);
            }
        }
        if alerts.len() > MOST {
            tracing::warn!(%rule, "and {} more alerts that began or ended", alerts.len() - MOST);
        }
    }
}
