//! The part of a session that is for rollouts: renews and watches leases, takes over from drivers that are gone, and carries the counts of
//! gateways to the driver.

use super::board::Known;
use super::rollouts::Rollouts;
use super::session::{EXCHANGE, no_answer};
use super::state::{By, SharedState};
use super::wire::{self, Lease, SCHEMA, SharedRollout};
use crate::model::ModelName;
use async_nats::jetstream::kv::{Entry, Operation, Store, Watch};
use futures_util::StreamExt as _;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, timeout};
use tracing::{info, warn};

/// How often leases are renewed.
const TICK: Duration = Duration::from_millis(500);
/// A driver whose lease was not renewed for so long is gone: ten renewals are missing.
const LEASE: Duration = Duration::from_secs(5);
/// One that said that it leaves is waited for no longer than this.
const LEFT: Duration = Duration::from_millis(1500);
/// Each gateway waits a little longer than the one before it in the order of names, so that mostly one tries.
const APART: Duration = Duration::from_millis(200);
const MOST_APART: u32 = 10;
/// What a gateway spends on its counts, in bytes a second.
const BYTES_PER_SECOND: f64 = 131_072.0;

/// What changed in the bucket of rollouts.
enum News {
    Lease(Entry),
    Counts(Entry),
}

impl Rollouts {
    /// Takes part until the connection is lost. Returns why.
    pub async fn share(&self, bucket: &Store, state: &Store) -> String {
        self.connected();
        match self.take_part(bucket, state).await {
            Err(why) => why,
            Ok(()) => "the rollouts are no longer followed".to_owned(),
        }
    }

    async fn take_part(&self, bucket: &Store, state: &Store) -> Result<(), String> {
        let mut leases = watch(bucket, &["lease.*".to_owned()]).await?;
        let mut counts: Option<Watch> = None;
        let mut driven = BTreeSet::new();
        let mut patience = Patience::default();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next = tokio::select! {
                entry = leases.next() => Some(News::Lease(seen(entry)?)),
                entry = next_of(&mut counts) => Some(News::Counts(seen(entry)?)),
                _ = ticks.tick() => {
                    self.renew(bucket).await?;
                    self.take_over(state, &mut patience).await?;
                    self.clear(bucket).await?;
                    None
                }
                () = self.news() => None,
            };
            match next {
                Some(News::Lease(entry)) => self.lease(&entry),
                Some(News::Counts(entry)) => self.counts(&entry),
                None => {
                    let now_driven: BTreeSet<ModelName> = self.to_renew().into_iter().map(|(model, _)| model).collect();
                    if now_driven != driven {
                        let keys: Vec<String> =
                            now_driven.iter().map(|model| format!("evidence.{}.*", wire::key(model))).collect();
                        counts = if keys.is_empty() { None } else { Some(watch(bucket, &keys).await?) };
                        driven = now_driven;
                    }
                    self.exchange(bucket).await?;
                }
            }
        }
    }

    fn lease(&self, entry: &Entry) {
        let Some(model) = entry.key.strip_prefix("lease.").and_then(wire::model) else { return };
        if entry.operation == Operation::Put {
            match wire::read::<Lease>(&entry.value) {
                Ok(lease) => self.saw_lease(model, lease),
                Err(why) => warn!(%model, why, "the lease of a rollout is not read"),
            }
        }
    }

    fn counts(&self, entry: &Entry) {
        let parts = entry.key.strip_prefix("evidence.").and_then(|rest| rest.split_once('.'));
        let Some((Some(model), node)) = parts.map(|(model, node)| (wire::model(model), node)) else { return };
        if entry.operation != Operation::Put || node == self.own_name() {
            return;
        }
        if let Ok(report) = std::str::from_utf8(&entry.value) {
            self.saw_report(model, node.to_owned(), entry.revision, report.into());
        } else {
            warn!(%model, node, "the counts of a gateway are no text");
        }
    }

    // === sending ===

    async fn renew(&self, bucket: &Store) -> Result<(), String> {
        for (model, orders) in self.to_renew() {
            let lease = Lease { schema: SCHEMA, driver: self.own_name().to_owned(), orders };
            let bytes = serde_json::to_vec(&lease).map_err(|error| error.to_string())?;
            let key = format!("lease.{}", wire::key(&model));
            let put = timeout(EXCHANGE, bucket.put(&key, bytes.into())).await.map_err(|_| no_answer())?;
            put.map_err(|error| format!("the lease of a rollout cannot be renewed: {error}"))?;
        }
        Ok(())
    }

    /// Reads what the bucket has of this gateway's counts, and puts the newest there.
    async fn exchange(&self, bucket: &Store) -> Result<(), String> {
        let key = |model: &ModelName| format!("evidence.{}.{}", wire::key(model), self.own_name());
        for model in self.to_read() {
            let entry = timeout(EXCHANGE, bucket.entry(key(&model))).await.map_err(|_| no_answer())?;
            let entry = entry.map_err(|error| format!("the counts of this gateway cannot be read: {error}"))?;
            let (revision, report) = match entry {
                None => (0, None),
                Some(entry) if entry.operation == Operation::Put => {
                    (entry.revision, std::str::from_utf8(&entry.value).ok().map(Arc::from))
                }
                Some(entry) => (entry.revision, None),
            };
            self.own_stored(&model, revision, report, None);
        }
        for (model, expected, report) in self.to_put(Instant::now()) {
            let bytes = report.as_bytes().to_vec();
            let pause = Duration::from_secs_f64(bytes.len() as f64 / BYTES_PER_SECOND);
            let put = timeout(EXCHANGE, bucket.update(key(&model), bytes.into(), expected)).await;
            match put.map_err(|_| no_answer())? {
                Ok(revision) => self.own_stored(&model, revision, Some(report), Some(Instant::now() + pause)),
                Err(error) if super::store::is_stale(&error) => self.read_again(&model),
                Err(error) => return Err(format!("the counts of this gateway cannot be told: {error}")),
            }
        }
        Ok(())
    }

    /// Removes the counts of rollouts that have ended.
    async fn clear(&self, bucket: &Store) -> Result<(), String> {
        for (model, known) in self.board().rollouts(|rollout| !rollout.is_active()) {
            let drives = known
                .shared
                .is_ok_and(|shared| shared.rollout.is_some_and(|rollout| rollout.driver == self.own_name()));
            for node in self.ended(&model, drives) {
                let key = format!("evidence.{}.{node}", wire::key(&model));
                let purged = timeout(EXCHANGE, bucket.purge(&key)).await.map_err(|_| no_answer())?;
                purged.map_err(|error| format!("the counts of a rollout cannot be removed: {error}"))?;
            }
        }
        Ok(())
    }

    // === taking over ===

    /// Makes this gateway the driver of rollouts whose driver is gone.
    async fn take_over(&self, state: &Store, patience: &mut Patience) -> Result<(), String> {
        let active = self.board().rollouts(SharedRollout::is_active);
        patience.keep(&active);
        for (model, known) in active {
            let Ok(shared) = known.shared else { continue };
            let Some(rollout) = shared.rollout else { continue };
            if rollout.driver == self.own_name() || known.in_force != known.revision {
                continue;
            }
            let since = patience.since(&model, known.revision);
            let heard = self.renewed(&model, &rollout.driver).map_or(since, |renewed| renewed.max(since));
            let wait = if self.board().is_gone(&rollout.driver) { LEFT } else { LEASE };
            if heard.elapsed() < wait + APART * self.place(&model) {
                continue;
            }
            let driver = self.own_name().to_owned();
            let before = rollout.driver.clone();
            let by = By {
                actor: "system".to_owned(),
                node: driver.clone(),
                action: "rollout_take_over".to_owned(),
                reason: Some(format!("{before} drives it no longer")),
            };
            let rollout = Some(SharedRollout { driver, ..rollout });
            let shared = SharedState::new(shared.model, by).with_rollout(rollout);
            let bytes = shared.write()?;
            let put = timeout(EXCHANGE, state.update(wire::key(&model), bytes.into(), known.revision)).await;
            match put.map_err(|_| no_answer())? {
                Ok(revision) => {
                    info!(%model, before, "took the rollout over: its driver's lease was not renewed");
                    // The document is the one that is in force here.
                    self.board().changed(&model, revision, shared, true);
                }
                Err(error) if super::store::is_stale(&error) => {}
                Err(error) => return Err(format!("a rollout cannot be taken over: {error}")),
            }
        }
        Ok(())
    }

    /// The place of this gateway among those that are there.
    fn place(&self, model: &ModelName) -> u32 {
        u32::try_from(self.board().place(model)).unwrap_or(MOST_APART).min(MOST_APART)
    }
}

/// Since when each rollout has been as it is, on this connection, by the clock of this gateway.
#[derive(Default)]
struct Patience(HashMap<ModelName, (u64, Instant)>);

impl Patience {
    fn keep(&mut self, active: &[(ModelName, Known)]) {
        self.0.retain(|model, _| active.iter().any(|(of_active, _)| of_active == model));
    }

    /// A rollout that is new here has been so since now: its driver has not had the time for its lease yet.
    fn since(&mut self, model: &ModelName, revision: u64) -> Instant {
        let known = self.0.entry(model.clone()).or_insert((revision, Instant::now()));
        if known.0 != revision {
            *known = (revision, Instant::now());
        }
        known.1
    }
}

async fn watch(bucket: &Store, keys: &[String]) -> Result<Watch, String> {
    let watch = timeout(EXCHANGE, bucket.watch_many_with_history(keys)).await.map_err(|_| no_answer())?;
    watch.map_err(|error| format!("the rollouts cannot be followed: {error}"))
}

/// Never ends where nothing is watched.
async fn next_of(watch: &mut Option<Watch>) -> Option<Result<Entry, async_nats::jetstream::kv::WatcherError>> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

fn seen(entry: Option<Result<Entry, async_nats::jetstream::kv::WatcherError>>) -> Result<Entry, String> {
    let entry = entry.ok_or("the rollouts are no longer followed")?;
    entry.map_err(|error| format!("the rollouts are no longer followed: {error}"))
}
