//! Follows the bucket with the versions of the fleet's store, and cleans the store.

use super::board::Board;
use super::catalogue::Catalogue;
use super::session::bucket;
use super::store::{STEP, Store, Swept};
use super::wire::{self, SharedVersion};
use super::{Config, SOURCE};
use crate::mirror::Mirror;
use async_nats::jetstream::kv::{self, Entry, Operation};
use async_nats::{Client, jetstream};
use futures_util::StreamExt as _;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, warn};

/// What the session needs to follow versions.
pub(super) struct Versions {
    pub catalogue: Catalogue,
    pub board: Board,
    pub mirror: Mirror,
}

/// How often the store is cleaned.
const CLEAN_EVERY: Duration = Duration::from_mins(10);

/// The bucket with a manifest for each version.
pub(super) fn config(config: &Config) -> kv::Config {
    kv::Config {
        bucket: format!("{}_versions", config.name),
        description: "Sluicegate: versions of models".to_owned(),
        num_replicas: config.replicas,
        max_value_size: wire::LARGEST_MANIFEST,
        history: 1,
        ..kv::Config::default()
    }
}

impl Versions {
    /// Follows the bucket as long as the connection lasts.
    ///
    /// # Errors
    /// When NATS does not answer, or the bucket cannot be followed.
    pub async fn run(&self, client: &Client, fleet: &Config) -> Result<(), String> {
        tokio::select! {
            ended = self.follow(client, fleet) => ended,
            () = self.clean(client, fleet) => Ok(()),
        }
    }

    async fn follow(&self, client: &Client, fleet: &Config) -> Result<(), String> {
        let context = jetstream::new(client.clone());
        let versions = bucket(&context, config(fleet)).await?;
        let follow = |error: &dyn std::fmt::Display| format!("the fleet's versions cannot be followed: {error}");
        self.catalogue.reading();
        let no_answer = |_| "NATS does not answer".to_owned();
        let status = timeout(STEP, versions.status()).await.map_err(no_answer)?.map_err(|error| follow(&error))?;
        let entries = timeout(STEP, versions.watch_with_history(">")).await.map_err(no_answer)?;
        let mut entries = entries.map_err(|error| follow(&error))?;
        if status.values() == 0 {
            self.complete();
        }
        loop {
            let entry = entries.next().await.ok_or("the fleet's versions are no longer followed")?;
            let entry = entry.map_err(|error| follow(&error))?;
            self.saw(&entry);
            if entry.seen_current {
                self.complete();
            }
        }
    }

    /// Cleans the store from time to time, where this gateway is the one that does. Never ends.
    async fn clean(&self, client: &Client, fleet: &Config) {
        let mut ticks = interval(CLEAN_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut swept = Swept::default();
        loop {
            ticks.tick().await;
            if self.board.tells() != Some(true) {
                continue;
            }
            // A store that is not clean disturbs nobody, so a failure waits for the next time.
            let cleaned = async { Store::open(fleet, client).await?.sweep(&mut swept, &self.catalogue).await };
            if let Err(why) = cleaned.await {
                debug!(why, "the fleet's store is not cleaned now");
            }
        }
    }

    fn complete(&self) {
        self.catalogue.complete();
        self.mirror.read_source(SOURCE);
    }

    fn saw(&self, entry: &Entry) {
        let Some(id) = wire::version_of(&entry.key) else {
            return warn!(key = entry.key, "the fleet's versions have a key that is no version");
        };
        let version = match entry.operation {
            Operation::Put => {
                let read = wire::read::<SharedVersion>(&entry.value).and_then(SharedVersion::checked);
                if let Err(why) = &read {
                    warn!(model = %id.model, version = %id.version, why, "a version in the fleet's store is not read");
                }
                Some(read)
            }
            Operation::Delete | Operation::Purge => None,
        };
        if self.catalogue.set(id, version) {
            self.mirror.read_source(SOURCE);
        }
    }
}
