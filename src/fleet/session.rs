//! The connection to NATS: reads the fleet's buckets, follows them, reports this gateway, and stores changes.

use super::board::{Board, now};
use super::change::{Outcome, Put};
use super::wire::{self, Node, SCHEMA, SharedDocument};
use super::{Config, own};
use crate::lifecycle::{FollowOutcome, Followed, Handle};
use crate::model::Code;
use crate::registry::Reader;
use async_nats::connection::State as Connection;
use async_nats::jetstream;
use async_nats::jetstream::kv::{self, Entry, Operation, Store, UpdateErrorKind};
use async_nats::jetstream::stream::StorageType;
use async_nats::{Client, ConnectOptions};
use futures_util::StreamExt as _;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, timeout};
use tracing::{error, info, warn};

/// A gateway on the side of NATS.
pub(super) struct Member {
    pub config: Config,
    pub id: String,
    pub board: Board,
    pub handle: Handle,
    pub reader: Reader,
}

/// The buckets of the fleet.
struct Buckets {
    state: Store,
    nodes: Store,
}

/// How a session ended.
enum End {
    Asked,
    Lost(String),
}

/// Every single exchange with NATS.
const EXCHANGE: Duration = Duration::from_secs(2);
/// How often the gateway reports itself and looks at the connection.
const TICK: Duration = Duration::from_secs(1);
/// How long a report lives in its bucket.
const REPORT_LIVES: Duration = Duration::from_secs(10);
/// A report that says nothing new is repeated so often.
const REPEAT_EVERY: u32 = 3;
/// The pause before the next attempt to reach NATS.
const RETRY: Duration = Duration::from_millis(500);
/// How often documents that cannot be followed yet are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How many documents are given to the fleet between two looks at the rest.
const GIVEN_AT_ONCE: usize = 64;
/// The largest value: 1 MiB is what NATS takes by default.
const LARGEST: i32 = 1 << 20;

impl Member {
    /// Follows the fleet until it is asked to stop. Connects again whenever the connection is lost.
    pub async fn run(self, mut puts: mpsc::Receiver<Put>, mut stop: watch::Receiver<bool>) {
        let mut said = String::new();
        let follow = Box::pin(self.follow());
        let sessions = Box::pin(async {
            loop {
                match Box::pin(self.session(&mut puts, &mut stop)).await {
                    End::Asked => return,
                    End::Lost(why) => {
                        let was_there = self.board.cut_off(why.clone());
                        if was_there || why != said {
                            warn!(
                                fleet = self.config.name,
                                why,
                                "cut off from the fleet: this gateway serves what it has, and refuses changes of traffic"
                            );
                            said = why;
                        }
                    }
                }
                tokio::select! {
                    _ = stop.changed() => return,
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        });
        tokio::select! {
            () = sessions => {}
            () = follow => {}
        }
    }

    async fn session(&self, puts: &mut mpsc::Receiver<Put>, stop: &mut watch::Receiver<bool>) -> End {
        let joined = tokio::select! {
            _ = stop.changed() => return End::Asked,
            joined = self.join() => joined,
        };
        let (client, buckets) = match joined {
            Ok(joined) => joined,
            Err(why) => return End::Lost(why),
        };
        match self.take_part(&client, &buckets, puts, stop).await {
            Ok(()) => {
                // Leaves at once instead of after the time of its report. Where it fails, the report ends by itself.
                let _ = timeout(EXCHANGE, buckets.nodes.purge(&self.config.node)).await;
                End::Asked
            }
            Err(why) => End::Lost(why),
        }
    }

    // === joining ===

    async fn join(&self) -> Result<(Client, Buckets), String> {
        let client = self.connect().await?;
        let mut context = jetstream::new(client.clone());
        context.set_timeout(EXCHANGE);
        let Config { name, replicas, .. } = &self.config;
        let state = kv::Config {
            bucket: format!("{name}_state"),
            description: "Sluicegate: traffic documents".to_owned(),
            num_replicas: *replicas,
            max_value_size: LARGEST,
            history: 1,
            ..kv::Config::default()
        };
        let nodes = kv::Config {
            bucket: format!("{name}_nodes"),
            description: "Sluicegate: gateways".to_owned(),
            num_replicas: *replicas,
            max_value_size: LARGEST,
            max_age: REPORT_LIVES,
            storage: StorageType::Memory,
            history: 1,
            ..kv::Config::default()
        };
        let buckets = Buckets { state: bucket(&context, state).await?, nodes: bucket(&context, nodes).await? };
        self.check_name(&buckets).await?;
        Ok((client, buckets))
    }

    async fn connect(&self) -> Result<Client, String> {
        let Config { urls, credentials, ca, node, .. } = &self.config;
        let mut options = ConnectOptions::new()
            .name(format!("sluicegate {node}"))
            .connection_timeout(EXCHANGE)
            .request_timeout(Some(EXCHANGE))
            .max_reconnects(1)
            .client_capacity(1024);
        if let Some(ca) = ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let Some(file) = credentials {
            // A small local file.
            let text = std::fs::read_to_string(file);
            let text = text.map_err(|error| format!("the credentials {} cannot be read: {error}", file.display()))?;
            options = options
                .credentials(&text)
                .map_err(|error| format!("{} is not a credentials file of NATS: {error}", file.display()))?;
        }
        let connected = timeout(EXCHANGE * 2, options.connect(urls.clone())).await;
        match connected {
            Ok(Ok(client)) => Ok(client),
            // The addresses may hold passwords.
            Ok(Err(error)) => Err(format!("NATS cannot be reached: {error}")),
            Err(_) => Err("NATS does not answer".to_owned()),
        }
    }

    /// Another gateway must not have this one's name.
    async fn check_name(&self, buckets: &Buckets) -> Result<(), String> {
        let node = &self.config.node;
        let entry = timeout(EXCHANGE, buckets.nodes.entry(node)).await.map_err(|_| no_answer())?;
        let entry = entry.map_err(|error| format!("the list of gateways cannot be read: {error}"))?;
        let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else { return Ok(()) };
        match wire::read::<Node>(&entry.value) {
            Ok(other) if other.id != self.id => Err(format!(
                "the fleet has another gateway with the name {node} ([fleet] node), there since {}",
                other.since
            )),
            _ => Ok(()),
        }
    }

    // === taking part ===

    async fn take_part(
        &self,
        client: &Client,
        buckets: &Buckets,
        puts: &mut mpsc::Receiver<Put>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), String> {
        let since = now();
        self.board.reading();
        let status = timeout(EXCHANGE, buckets.state.status()).await.map_err(|_| no_answer())?;
        let is_empty = status.map_err(|error| format!("the state cannot be read: {error}"))?.values() == 0;
        let follow = |error: kv::WatchError| format!("the fleet's state cannot be followed: {error}");
        let mut documents = buckets.state.watch_with_history(">").await.map_err(follow)?;
        let mut nodes = buckets.nodes.watch_with_history(">").await.map_err(follow)?;
        if is_empty {
            self.joined();
        }
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reported: Option<(Node, u32)> = None;
        loop {
            tokio::select! {
                _ = stop.changed() => return Ok(()),
                entry = documents.next() => {
                    let entry = entry.ok_or("the fleet's state is no longer followed")?;
                    let entry = entry.map_err(|error| format!("the fleet's state is no longer followed: {error}"))?;
                    let is_last = entry.seen_current;
                    self.saw_document(&entry);
                    if is_last {
                        self.joined();
                    }
                }
                entry = nodes.next() => {
                    let entry = entry.ok_or("the list of gateways is no longer followed")?;
                    self.saw_node(&entry.map_err(|error| format!("the list of gateways is no longer followed: {error}"))?);
                }
                put = puts.recv() => {
                    let Some(put) = put else { return Ok(()) };
                    store(&buckets.state, put).await?;
                }
                _ = ticks.tick() => {
                    if client.connection_state() != Connection::Connected {
                        return Err("the connection was lost".to_owned());
                    }
                    self.report(&buckets.nodes, &since, &mut reported).await?;
                    self.give_own(&buckets.state).await?;
                }
            }
        }
    }

    fn joined(&self) {
        if self.board.following() {
            info!(fleet = self.config.name, node = self.config.node, "follows the fleet");
        }
    }

    fn saw_document(&self, entry: &Entry) {
        let Some(model) = wire::model(&entry.key) else {
            return warn!(key = entry.key, "the fleet's state has a key that is no model");
        };
        if entry.operation != Operation::Put {
            // Nobody deletes documents. What serves here stays.
            return warn!(%model, "the fleet's document of a model was deleted: this gateway keeps what it has");
        }
        match wire::read::<SharedDocument>(&entry.value) {
            Ok(shared) => self.board.document(model, entry.revision, shared),
            Err(why) => {
                error!(%model, revision = entry.revision, why, "the fleet's document of a model is not followed");
                let unreadable = SharedDocument {
                    schema: SCHEMA,
                    document: serde_json::Value::Null,
                    actor: String::new(),
                    node: String::new(),
                    action: String::new(),
                    reason: Some(why),
                    ts: now(),
                };
                self.board.document(model, entry.revision, unreadable);
            }
        }
    }

    fn saw_node(&self, entry: &Entry) {
        match entry.operation {
            Operation::Put => match wire::read::<Node>(&entry.value) {
                Ok(node) => self.board.node(&entry.key, node),
                Err(why) => warn!(node = entry.key, why, "the report of a gateway is not read"),
            },
            Operation::Delete | Operation::Purge => self.board.left(&entry.key),
        }
    }

    async fn report(&self, nodes: &Store, since: &str, reported: &mut Option<(Node, u32)>) -> Result<(), String> {
        let report = own::report(&self.reader, &self.board, &self.id, since);
        if let Some((before, ticks)) = reported
            && *before == report
            && *ticks + 1 < REPEAT_EVERY
        {
            *ticks += 1;
            return Ok(());
        }
        let bytes = serde_json::to_vec(&report).map_err(|error| format!("the report cannot be written: {error}"))?;
        let put = timeout(EXCHANGE, nodes.put(&self.config.node, bytes.into())).await.map_err(|_| no_answer())?;
        put.map_err(|error| format!("the report is refused: {error}"))?;
        *reported = Some((report, 0));
        Ok(())
    }

    /// Gives the fleet the documents of this gateway for models that the fleet does not know. Where another gateway is faster, this one follows.
    async fn give_own(&self, state: &Store) -> Result<(), String> {
        let snapshot = self.reader.snapshot();
        let own = snapshot.models().filter(|entry| self.board.lacks(entry.name()) && entry.retired().is_none());
        let documents: Vec<_> = own
            .filter_map(|entry| Some((entry.name().clone(), entry.document()?.to_json())))
            .take(GIVEN_AT_ONCE)
            .collect();
        for (model, document) in documents {
            let shared = SharedDocument {
                schema: SCHEMA,
                document: serde_json::from_str(&document).map_err(|error| error.to_string())?,
                actor: "system".to_owned(),
                node: self.config.node.clone(),
                action: "join".to_owned(),
                reason: None,
                ts: now(),
            };
            let bytes = serde_json::to_vec(&shared).map_err(|error| error.to_string())?;
            let given = timeout(EXCHANGE, state.update(wire::key(&model), bytes.into(), 0)).await;
            match given.map_err(|_| no_answer())? {
                Ok(_) => info!(%model, "the fleet has this gateway's document now"),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
                Err(error) => return Err(format!("a document cannot be given to the fleet: {error}")),
            }
        }
        Ok(())
    }

    // === following ===

    /// Puts documents in force that others changed. Never ends.
    async fn follow(&self) {
        loop {
            // A wake-up that comes between is kept.
            let _ = timeout(LOOK_AGAIN, self.board.news()).await;
            for (model, known) in self.board.to_follow(Instant::now()) {
                if known.shared.document.is_null() {
                    let why = known.shared.reason.unwrap_or_default();
                    self.board.waits(&model, known.revision, why, Instant::now());
                    continue;
                }
                let SharedDocument { document, actor, node, action, reason, .. } = &known.shared;
                let reason = reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
                let reason = format!("{action} on {node}, revision {} of the fleet{reason}", known.revision);
                let followed = Followed { document: document.to_string(), actor: actor.clone(), reason };
                match self.handle.follow(model.clone(), followed).await {
                    Ok(FollowOutcome::InForce) => self.board.in_force(&model, known.revision),
                    Ok(FollowOutcome::Waits(why)) => self.board.waits(&model, known.revision, why, Instant::now()),
                    Err(failure) => {
                        if failure.code != Code::ModelNotFound {
                            error!(%model, revision = known.revision, "the fleet's document cannot be put in force: {}", failure.operator_text());
                        }
                        self.board.waits(&model, known.revision, failure.message.clone(), Instant::now());
                    }
                }
            }
        }
    }
}

/// Opens a bucket. It is made where there is none.
async fn bucket(context: &jetstream::Context, config: kv::Config) -> Result<Store, String> {
    let name = config.bucket.clone();
    if let Ok(Ok(store)) = timeout(EXCHANGE, context.get_key_value(&name)).await {
        return Ok(store);
    }
    let made = timeout(EXCHANGE, context.create_key_value(config)).await.map_err(|_| no_answer())?;
    match made {
        Ok(store) => Ok(store),
        // Another gateway was faster.
        Err(error) => match timeout(EXCHANGE, context.get_key_value(&name)).await {
            Ok(Ok(store)) => Ok(store),
            _ => Err(format!("the bucket {name} cannot be opened or made: {error}")),
        },
    }
}

/// Stores a change, and answers the manager.
///
/// # Errors
/// When NATS does not answer: the session ends, and the bucket is read again.
async fn store(state: &Store, put: Put) -> Result<(), String> {
    let Put { model, shared, expected, until, reply } = put;
    // The operator was told that it was perhaps not made. It must not be made after that.
    if Instant::now() + EXCHANGE > until {
        return Ok(());
    }
    let key = wire::key(&model);
    let (outcome, lost) = match serde_json::to_vec(&shared) {
        Err(error) => (Outcome::Failed(error.to_string()), None),
        Ok(bytes) => match timeout(EXCHANGE, state.update(&key, bytes.into(), expected)).await {
            Ok(Ok(revision)) => (Outcome::Stored(revision), None),
            Ok(Err(error)) if error.kind() == UpdateErrorKind::WrongLastRevision => (Outcome::Stale, None),
            Ok(Err(error)) => (Outcome::Failed(error.to_string()), Some(error.to_string())),
            Err(_) => (Outcome::Failed(no_answer()), Some(no_answer())),
        },
    };
    // Fails only when the manager no longer waits.
    let _ = reply.try_send(outcome);
    lost.map_or(Ok(()), Err)
}

fn no_answer() -> String {
    "NATS does not answer".to_owned()
}
