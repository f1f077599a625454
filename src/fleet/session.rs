//! The connection to NATS: reads the fleet's buckets, follows them, reports this gateway, and stores changes.

use super::Config;
use super::audit::Trail;
use super::board::{self, Board, Stored};
use super::change::{Outcome, Put};
use super::evidence::{Counted, Evidence};
use super::gateways::Gateways;
use super::give::Giver;
use super::hash_key;
use super::hours::{self, Hours};
use super::rollouts::Rollouts;
use super::rows::{self, Giving};
use super::state::{By, SharedState};
use super::tokens::{Place, TokenTable, Tokens};
use super::versions::Versions;
use super::wire::{self, Node};
use crate::lifecycle::{FollowOutcome, Followed, Handle};
use crate::model::ModelName;
use crate::registry::{Reader, State};
use crate::settings::without_credentials;
use async_nats::jetstream;
use async_nats::jetstream::kv::{self, Entry, Operation, Store};
use async_nats::jetstream::stream::{StorageType, Stream};
use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions};
use futures_util::StreamExt as _;
use std::cell::Cell;
use std::error::Error as _;
use std::io;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

/// A gateway on the side of NATS.
pub(super) struct Member {
    pub config: Config,
    pub id: String,
    pub board: Board,
    pub rollouts: Rollouts,
    pub evidence: Evidence,
    pub counted: Counted,
    pub handle: Handle,
    pub reader: Reader,
    pub versions: Versions,
    pub tokens: TokenTable,
    pub place: Place,
    /// The last report of another gateway under this one's name, by its revision, and since when it is the last one.
    pub stranger: Cell<Option<(u64, Instant)>>,
}

/// The changes of this gateway.
#[derive(Debug)]
pub(super) struct Puts {
    pub states: mpsc::Receiver<Put>,
    pub tokens: mpsc::Receiver<Put>,
}

/// The buckets of the fleet.
pub(super) struct Buckets {
    pub state: Store,
    pub nodes: Store,
    pub tokens: Store,
    pub rollouts: Store,
}

/// How a session ended.
enum End {
    Asked,
    Lost(String),
}

/// What never comes.
pub(super) enum Never {}

/// Every single exchange with NATS.
pub(super) const EXCHANGE: Duration = Duration::from_secs(2);
/// How long a report lives in its bucket: longer than ten thousand gateways need for one each ([`board::report_every`]).
const REPORT_LIVES: Duration = Duration::from_mins(5);
/// The pause before the next attempt to reach NATS. In a large fleet it is longer by a random part of so many milliseconds for each gateway.
const RETRY: Duration = Duration::from_millis(500);
const APART_MS: u64 = 5;
/// The pause before evidence is shared again.
const EVIDENCE_RETRY: Duration = Duration::from_secs(5);
/// How often documents that cannot be followed yet are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The same where all are in force: another gateway may be gone, and its models are to be here.
const LOOK_SELDOM: Duration = Duration::from_secs(1);
/// The most consumers of a stream.
const CONSUMERS: i32 = 100_000;
/// The largest value of a bucket.
const MAX_VALUE: i32 = (1 << 20) - 1024;

impl Member {
    /// Follows the fleet until it is asked to stop. Connects again whenever the connection is lost.
    pub async fn run(self, mut puts: Puts, mut stop: watch::Receiver<bool>) {
        let mut said = String::new();
        let follow = Box::pin(self.follow());
        let sessions = Box::pin(async {
            loop {
                match Box::pin(self.session(&mut puts, &mut stop)).await {
                    End::Asked => return,
                    End::Lost(why) => {
                        let was_there = self.board.cut_off(why.clone());
                        self.versions.catalogue.cut_off(&why);
                        if was_there || why != said {
                            warn!(
                                fleet = self.config.name,
                                why, "cut off from the fleet: this gateway serves what it has, and refuses changes"
                            );
                            said = why;
                        }
                    }
                }
                tokio::select! {
                    _ = stop.changed() => return,
                    () = tokio::time::sleep(RETRY + self.apart()) => {}
                }
            }
        });
        tokio::select! {
            () = sessions => {}
            () = follow => {}
        }
    }

    /// A part of the pause before the next attempt. Many gateways that were cut off in the same moment do not ask again in the same moment, or NATS would answer
    /// none of them in time.
    fn apart(&self) -> Duration {
        let gateways = u64::try_from(self.board.size()).unwrap_or(u64::MAX);
        Duration::from_millis(fastrand::u64(0..=gateways.saturating_mul(APART_MS)))
    }

    async fn session(&self, puts: &mut Puts, stop: &mut watch::Receiver<bool>) -> End {
        let joined = tokio::select! {
            _ = stop.changed() => return End::Asked,
            joined = self.join() => joined,
        };
        let (client, buckets, joined_at) = match joined {
            Ok(joined) => joined,
            Err(why) => return End::Lost(why),
        };
        let (node, exchange) = (self.config.node.as_str(), EXCHANGE);
        let giver = Giver { board: &self.board, handle: &self.handle, node, exchange };
        let tokens = Tokens { table: &self.tokens, handle: &self.handle, place: &self.place, node, exchange };
        let giving = async {
            match giver.run(&buckets.state).await {
                Ok(()) => std::future::pending().await,
                Err(why) => why,
            }
        };
        let gateways = Gateways { member: self, client: &client, bucket: &buckets.nodes, joined_at };
        let ended = tokio::select! {
            ended = self.take_part(&buckets, &mut puts.states, stop) => ended,
            ended = Box::pin(gateways.run()) => match ended {
                Err(why) => Err(why),
                Ok(never) => match never {},
            },
            why = giving => Err(why),
            ended = tokens.run(&buckets.tokens, &mut puts.tokens) => ended,
            why = self.rollouts.share(&buckets.rollouts, &buckets.state) => Err(why),
            ended = Box::pin(self.versions.run(&client, &self.config)) => ended,
            never = Box::pin(self.share_evidence(&client)) => match never {},
            never = Box::pin(self.share_audit(&client)) => match never {},
        };
        match ended {
            Ok(()) => {
                let _ = timeout(EXCHANGE, self.give_last(&client)).await;
                // Leaves at once instead of after the time of its report. Where it fails, the report ends by itself.
                let _ = timeout(EXCHANGE, buckets.nodes.purge(&self.config.node)).await;
                End::Asked
            }
            Err(why) => End::Lost(why),
        }
    }

    // === joining ===

    /// The connection, the buckets, and the revision of the last report under this gateway's name.
    async fn join(&self) -> Result<(Client, Buckets, u64), String> {
        let client = connect(&self.config).await?;
        let buckets = Box::pin(open(&client, &self.config)).await?;
        let joined_at = self.check_name(&buckets).await?;
        Ok((client, buckets, joined_at))
    }

    /// Another gateway that reports must not have this one's name. Returns the revision of the last report under it, 0 where there is none.
    async fn check_name(&self, buckets: &Buckets) -> Result<u64, String> {
        let node = &self.config.node;
        let unreadable = |error: String| format!("the list of gateways cannot be read: {error}");
        let entry = timeout(EXCHANGE, buckets.nodes.entry(node)).await.map_err(|_| no_answer())?;
        let entry = entry.map_err(|error| unreadable(error.to_string()))?;
        let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else { return Ok(0) };
        // A report in a newer form does not say whose it is.
        let Ok(found) = wire::read::<Node>(&entry.value) else { return Ok(entry.revision) };
        let Err(refused) = check_id(node, &self.id, &found) else { return Ok(entry.revision) };
        // One that reports no more has ended. This is measured here: the clock of another machine says nothing.
        let since = match self.stranger.get() {
            Some((revision, since)) if revision == entry.revision => since,
            _ => {
                self.stranger.set(Some((entry.revision, Instant::now())));
                return Err(refused);
            }
        };
        let status = timeout(EXCHANGE, buckets.nodes.status()).await.map_err(|_| no_answer())?;
        let nodes = status.map_err(|error| unreadable(error.to_string()))?.values();
        if since.elapsed() < board::heard_within(usize::try_from(nodes).unwrap_or(usize::MAX)) {
            return Err(refused);
        }
        Ok(entry.revision)
    }

    // === taking part ===

    async fn take_part(
        &self,
        buckets: &Buckets,
        puts: &mut mpsc::Receiver<Put>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), String> {
        self.board.reading();
        let status = timeout(EXCHANGE, buckets.state.status()).await.map_err(|_| no_answer())?;
        let is_empty = status.map_err(|error| format!("the state cannot be read: {error}"))?.values() == 0;
        let follow = |error: kv::WatchError| format!("the fleet's state cannot be followed: {error}");
        let mut documents = buckets.state.watch_with_history(">").await.map_err(follow)?;
        if is_empty {
            self.joined();
        }
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
                put = puts.recv() => {
                    let Some(put) = put else { return Ok(()) };
                    store(&buckets.state, put).await?;
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
            // Nobody deletes states. What serves here stays.
            return warn!(%model, "the fleet's state of a model was deleted: this gateway keeps what it has");
        }
        let at_ms = entry.created.unix_timestamp() * 1000 + i64::from(entry.created.millisecond());
        let stored = Stored { revision: entry.revision, at_ms, pending: entry.delta };
        let shared = SharedState::read(&entry.value);
        if let Err(why) = &shared {
            error!(%model, revision = entry.revision, why, "the fleet's state of a model is not followed");
        }
        self.board.shared(model, stored, shared);
    }

    /// Tells the manager when this gateway has what the fleet says.
    async fn begin(&self) {
        if self.board.has_begun() {
            return;
        }
        let snapshot = self.reader.snapshot();
        let is_coming =
            |state: State| matches!(state, State::Pending | State::Loading | State::Verifying | State::Warming);
        let comes = |model: &ModelName| {
            let fetched = self.versions.mirror.unfinished(super::SOURCE);
            let loads = snapshot.model(model.as_str());
            fetched.iter().any(|version| version.id.model == *model && version.why.is_none())
                || loads.is_some_and(|entry| entry.versions().values().any(|version| is_coming(version.state)))
        };
        let has_own = snapshot.models().any(|entry| entry.document().is_some());
        self.board.begin(comes, has_own);
        if self.board.has_begun() {
            // Whatever it is asked, it looks whether it is ready. It fails only when the manager is ending.
            let _ = self.handle.shared_states().await;
        }
    }

    // === evidence ===

    /// Shares rows and counts of drift. What goes wrong with them does not cut the gateway off: documents are more important. Never ends.
    async fn share_evidence(&self, client: &Client) -> Never {
        let mut said = String::new();
        loop {
            let why = match Box::pin(self.shared_evidence(client)).await {
                Ok(()) => "it ended".to_owned(),
                Err(why) => why,
            };
            if why != said {
                warn!(fleet = self.config.name, why, "evidence is not shared with the fleet for the moment");
                said = why;
            }
            tokio::time::sleep(EVIDENCE_RETRY).await;
        }
    }

    /// Appends the own audit trail to that of the fleet. What goes wrong with it does not cut the gateway off, and is done later. Never ends.
    async fn share_audit(&self, client: &Client) -> Never {
        let mut said = String::new();
        loop {
            let shared = async { Trail::open(client, &self.config, &self.counted.ledger).await?.run().await };
            if let Err(why) = shared.await
                && why != said
            {
                warn!(fleet = self.config.name, why, "the audit trail is not shared with the fleet for the moment");
                said = why;
            }
            tokio::time::sleep(EVIDENCE_RETRY).await;
        }
    }

    async fn shared_evidence(&self, client: &Client) -> Result<(), String> {
        let shared = SharedEvidence::open(client, &self.config).await?;
        if let Some(secret) = &self.counted.hash_key {
            hash_key::offer(&shared.bucket, secret).await?;
        }
        let _following = Following(&self.counted.drift);
        let most = self.counted.quality.history().limit();
        let (giving, hours) = (self.giving(&shared), self.hours(&shared));
        tokio::select! {
            ended = giving.run() => ended,
            ended = rows::read(&self.evidence, &shared.bucket, most) => ended,
            ended = hours.run() => ended,
        }
    }

    /// Gives what is new before this gateway leaves.
    async fn give_last(&self, client: &Client) -> Result<(), String> {
        Trail::open(client, &self.config, &self.counted.ledger).await?.fill(&mut None).await?;
        let shared = SharedEvidence::open(client, &self.config).await?;
        self.hours(&shared).last().await?;
        self.giving(&shared).last().await
    }

    fn giving<'a>(&'a self, shared: &'a SharedEvidence) -> Giving<'a> {
        let Member { evidence, counted, reader, .. } = self;
        Giving { evidence, counted, reader, bucket: &shared.bucket }
    }

    fn hours<'a>(&'a self, shared: &'a SharedEvidence) -> Hours<'a> {
        let Member { evidence, counted, reader, .. } = self;
        let SharedEvidence { bucket, context, closed, prefix } = shared;
        Hours { evidence, counted, reader, bucket, context, closed, prefix }
    }

    // === following ===

    /// Puts states in force that others changed. Never ends.
    async fn follow(&self) {
        loop {
            let pause = if self.board.is_settled() { LOOK_SELDOM } else { LOOK_AGAIN };
            // A wake-up that comes between is kept.
            let _ = timeout(pause, self.board.news()).await;
            self.begin().await;
            for (model, known) in self.board.to_follow(Instant::now()) {
                let SharedState { model: state, by: By { actor, node, action, reason }, .. } = match known.shared {
                    Ok(shared) => shared,
                    Err(why) => {
                        self.board.waits(&model, known.revision, why, Instant::now());
                        continue;
                    }
                };
                let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
                let reason = format!("{action} on {node}, revision {} of the fleet{reason}", known.revision);
                let followed = Followed { state, actor, action, reason };
                match self.handle.follow(model.clone(), followed).await {
                    Ok(FollowOutcome::InForce) => self.board.in_force(&model, known.revision),
                    Ok(FollowOutcome::Waits(why)) => self.board.waits(&model, known.revision, why, Instant::now()),
                    Err(failure) => {
                        error!(%model, revision = known.revision, "the fleet's state cannot be put in force: {}", failure.operator_text());
                        self.board.waits(&model, known.revision, failure.message.clone(), Instant::now());
                    }
                }
            }
        }
    }
}

/// Where evidence is, on one connection.
pub(super) struct SharedEvidence {
    pub bucket: Store,
    pub context: jetstream::Context,
    pub closed: Stream,
    pub prefix: String,
}

/// While it lives, what the fleet closes arrives here.
struct Following<'a>(&'a crate::drift::Drift);

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.0.set_following(false);
    }
}

impl SharedEvidence {
    pub async fn open(client: &Client, config: &Config) -> Result<SharedEvidence, String> {
        let mut context = jetstream::new(client.clone());
        context.set_timeout(EXCHANGE);
        let Config { name, replicas, .. } = config;
        let evidence = kv::Config {
            bucket: format!("{name}_evidence"),
            description: "Sluicegate: rows with their outcomes, and counts of drift".to_owned(),
            num_replicas: *replicas,
            max_value_size: MAX_VALUE,
            history: 1,
            ..kv::Config::default()
        };
        let bucket = bucket(&context, evidence).await?;
        let stream = hours::stream_config(name, *replicas);
        let prefix = format!("{name}_drift");
        let closed = timeout(EXCHANGE, context.get_or_create_stream(stream)).await.map_err(|_| no_answer())?;
        let closed = closed.map_err(|error| format!("the stream {prefix} cannot be opened or made: {error}"))?;
        admit(&context, &closed).await?;
        Ok(SharedEvidence { bucket, context, closed, prefix })
    }
}

/// Connects to NATS.
///
/// # Errors
/// In words.
pub(super) async fn connect(config: &Config) -> Result<Client, String> {
    let Config { urls, credentials, ca, node, .. } = config;
    let mut options = ConnectOptions::new()
        .name(format!("sluicegate {node}"))
        .connection_timeout(EXCHANGE)
        .request_timeout(Some(EXCHANGE))
        // Each server is tried once; then the session begins again, and says why.
        .max_reconnects(urls.len())
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
        // Its text has no addresses, which may hold passwords.
        Ok(Err(error)) => Err(match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                format!("NATS refuses the credentials of this gateway ([fleet] credentials): {error}")
            }
            ConnectErrorKind::Tls => format!("no TLS connection with NATS ([fleet] ca): {error}"),
            ConnectErrorKind::Io if is_tls(&error) => {
                format!("no TLS connection with NATS ([fleet] ca): {error}")
            }
            _ => format!("NATS cannot be reached at {}: {error}", addresses(urls)),
        }),
        Err(_) => Err("NATS does not answer".to_owned()),
    }
}

/// The servers, without what is in an address to sign in with.
fn addresses(urls: &[String]) -> String {
    urls.iter().map(|url| without_credentials(url)).collect::<Vec<_>>().join(", ")
}

/// Opens the buckets. Those that are missing are made.
///
/// # Errors
/// In words.
pub(super) async fn open(client: &Client, config: &Config) -> Result<Buckets, String> {
    let mut context = jetstream::new(client.clone());
    context.set_timeout(EXCHANGE);
    let Config { name, replicas, .. } = config;
    let state = kv::Config {
        bucket: format!("{name}_state"),
        description: "Sluicegate: what the gateways share of each model".to_owned(),
        num_replicas: *replicas,
        max_value_size: MAX_VALUE,
        history: 1,
        ..kv::Config::default()
    };
    let nodes = kv::Config {
        bucket: format!("{name}_nodes"),
        description: "Sluicegate: gateways".to_owned(),
        num_replicas: *replicas,
        max_value_size: MAX_VALUE,
        max_age: REPORT_LIVES,
        storage: StorageType::Memory,
        history: 1,
        ..kv::Config::default()
    };
    let rollouts = kv::Config {
        bucket: format!("{name}_rollouts"),
        description: "Sluicegate: who drives rollouts, and what gateways counted".to_owned(),
        ..state.clone()
    };
    let tokens = kv::Config {
        bucket: format!("{name}_tokens"),
        description: "Sluicegate: tokens, without their secrets".to_owned(),
        ..state.clone()
    };
    Ok(Buckets {
        state: bucket(&context, state).await?,
        nodes: bucket(&context, nodes).await?,
        tokens: bucket(&context, tokens).await?,
        rollouts: bucket(&context, rollouts).await?,
    })
}

/// Whether a connection failed in its TLS handshake.
fn is_tls(error: &ConnectError) -> bool {
    let failed = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    matches!(failed.and_then(io::Error::get_ref), Some(inner) if inner.is::<rustls::Error>())
}

/// Whether a report under this gateway's name is its own.
///
/// # Errors
/// When the report has the id of another data directory.
pub(super) fn check_id(node: &str, id: &str, found: &Node) -> Result<(), String> {
    if found.id == id {
        return Ok(());
    }
    Err(format!("the fleet has another gateway with the name {node} ([fleet] node), there since {}", found.since))
}

/// Opens a bucket. It is made where there is none.
pub(super) async fn bucket(context: &jetstream::Context, config: kv::Config) -> Result<Store, String> {
    let name = config.bucket.clone();
    let open = || timeout(EXCHANGE, context.get_key_value(&name));
    let store = if let Ok(Ok(store)) = open().await {
        store
    } else {
        let made = timeout(EXCHANGE, context.create_key_value(config)).await.map_err(|_| no_answer())?;
        match made {
            Ok(store) => store,
            // Another gateway was faster.
            Err(error) => match open().await {
                Ok(Ok(store)) => store,
                _ => return Err(format!("the bucket {name} cannot be opened or made: {error}")),
            },
        }
    };
    admit(context, &store.stream).await?;
    Ok(store)
}

/// Lets as many gateways follow a stream as a fleet may have: each has a consumer in it, and one that was cut off leaves its own for a while. From 2.15 on,
/// NATS allows a thousand in a stream that does not ask for more, and says nothing of that in the stream's configuration.
///
/// # Errors
/// When NATS does not answer. Where it refuses, a smaller fleet works: older servers have no such limit, and some do not let it be changed.
pub(super) async fn admit(context: &jetstream::Context, stream: &Stream) -> Result<(), String> {
    let config = &stream.cached_info().config;
    if config.max_consumers >= CONSUMERS {
        return Ok(());
    }
    let config = jetstream::stream::Config { max_consumers: CONSUMERS, ..config.clone() };
    if let Err(error) = timeout(EXCHANGE, context.update_stream(&config)).await.map_err(|_| no_answer())? {
        debug!(stream = config.name, "NATS does not change how many gateways may follow a stream: {error}");
    }
    Ok(())
}

/// Stores a change, and answers the manager.
///
/// # Errors
/// When NATS does not answer: the session ends, and the bucket is read again.
pub(super) async fn store(bucket: &Store, put: Put) -> Result<(), String> {
    let Put { key, value, expected, until, reply } = put;
    // The operator was told that it was perhaps not made. It must not be made after that.
    if Instant::now() + EXCHANGE > until {
        return Ok(());
    }
    let (outcome, lost) = match timeout(EXCHANGE, bucket.update(&key, value.into(), expected)).await {
        Ok(Ok(revision)) => (Outcome::Stored(revision), None),
        Ok(Err(error)) if super::store::is_stale(&error) => (Outcome::Stale, None),
        Ok(Err(error)) => (Outcome::Failed(error.to_string()), Some(error.to_string())),
        Err(_) => (Outcome::Failed(no_answer()), Some(no_answer())),
    };
    // Fails only when the manager no longer waits.
    let _ = reply.try_send(outcome);
    lost.map_or(Ok(()), Err)
}

pub(super) fn no_answer() -> String {
    "NATS does not answer".to_owned()
}
