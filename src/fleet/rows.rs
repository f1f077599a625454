//! The part of a session that is for rows: gives those of this gateway in parts, and reads those of others when somebody asks.
//!
//! Keys of the bucket: `rows.MODEL.ID` is the list of a gateway's parts, and `part.MODEL.ID.PART` one of them. The list is put after the parts that it
//! names, and removed before them. A reader takes the parts of one list as a whole or not at all.

use super::evidence::{Counted, Evidence, LOOK_EVERY, Theirs, part, split};
use super::session::{EXCHANGE, no_answer};
use super::wire::{self, Manifest, SCHEMA};
use crate::model::ModelName;
use crate::quality::exchange::{self, Part};
use crate::registry::Reader;
use async_nats::jetstream::kv::{Operation, Store};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, sleep, timeout};
use tracing::warn;
use xxhash_rust::xxh3::xxh3_128;

/// How often this gateway looks for what is new of its own.
const TICK: Duration = Duration::from_secs(1);
/// The least time between two lists of a model, for each [`GATEWAYS`] gateways.
const PAUSE: Duration = Duration::from_secs(1);
const GATEWAYS: usize = 20;
/// A list that says nothing new is put again so often: it would be taken for that of a gateway that is gone for good.
const REPEAT_EVERY: Duration = Duration::from_hours(12);
/// What a gateway spends on its parts, in bytes a second.
const BYTES_PER_SECOND: f64 = 524_288.0;
/// The most parts of a list, and gateways of a model, that are read.
const MOST_PARTS: usize = 50_000;
const MOST_GATEWAYS: usize = 2000;
/// How often a list is read again whose parts changed meanwhile.
const ATTEMPTS: usize = 3;
/// What is kept together in one step, so that other work goes on.
const STEP: usize = 32;

/// What the bucket has of this gateway's rows of a model.
#[derive(Default)]
struct Given {
    /// The number of the last change that was given, and what the list calls the part.
    parts: BTreeMap<Part, (u64, String)>,
    halvings: u32,
    /// The number of the last change, and the revision of the traffic document, that were looked at.
    seen: Option<(u64, u64)>,
    /// The list, but for its time.
    list: Option<Manifest>,
    not_before: Option<Instant>,
    /// When the list was put, or was found.
    put_at: Option<Instant>,
}

/// The giving side.
pub(super) struct Giving<'a> {
    pub evidence: &'a Evidence,
    pub counted: &'a Counted,
    pub reader: &'a Reader,
    pub bucket: &'a Store,
}

impl Giving<'_> {
    /// Gives what is new, until the connection is lost.
    ///
    /// # Errors
    /// Why it was.
    pub async fn run(&self) -> Result<(), String> {
        let mut given = self.already().await?;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.give(&mut given).await?;
        }
    }

    /// Gives what is new, once: before this gateway leaves.
    pub async fn last(&self) -> Result<(), String> {
        let mut given = self.already().await?;
        self.give(&mut given).await
    }

    /// What the bucket has of this gateway, of this start or an earlier one.
    async fn already(&self) -> Result<HashMap<ModelName, Given>, String> {
        let mut given: HashMap<ModelName, Given> = HashMap::new();
        let id = &self.evidence.0.id;
        for key in keys(self.bucket, &format!("rows.*.{id}")).await? {
            let Some(model) = key.strip_prefix("rows.").and_then(|rest| wire::model(rest.rsplit_once('.')?.0)) else {
                continue;
            };
            let Some((_, list)) = list(self.bucket, &key).await? else { continue };
            // What cannot be read is replaced.
            let list = list.unwrap_or_default();
            let parts = list.parts.iter().filter_map(|(name, digest)| Some((part(name)?, (0, digest.clone()))));
            let (parts, halvings) = (parts.collect(), list.halvings);
            let (not_before, put_at) = (None, Some(Instant::now()));
            given.insert(model, Given { parts, halvings, seen: None, list: Some(list), not_before, put_at });
        }
        Ok(given)
    }

    async fn give(&self, given: &mut HashMap<ModelName, Given>) -> Result<(), String> {
        let history = self.counted.quality.history();
        // What the bucket has is more than what was read again until now.
        if history.state() == "reading" {
            return Ok(());
        }
        // One that answers for a model and has no rows yet says so: others do not wait for its rows.
        let snapshot = self.reader.snapshot();
        let served = snapshot.models().filter(|entry| entry.document().is_some()).map(|entry| entry.name().clone());
        let mut models: BTreeSet<ModelName> = served.chain(history.known()).collect();
        drop(snapshot);
        models.extend(given.keys().cloned());
        let nodes = self.evidence.0.board.size().max(1);
        let room = Room { nodes, models: history.known().len().max(1), bytes: history.bytes(), most: history.limit() };
        for model in models {
            let of_model = given.entry(model.clone()).or_default();
            if of_model.not_before.is_none_or(|at| at <= Instant::now()) {
                self.give_model(&model, of_model, &room).await?;
            }
            if of_model.list.is_none() {
                given.remove(&model);
            }
        }
        Ok(())
    }

    async fn give_model(&self, model: &ModelName, given: &mut Given, room: &Room) -> Result<(), String> {
        let history = self.counted.quality.history();
        let halvings = room.halvings(history.bytes_of(model), given.halvings);
        let snapshot = self.reader.snapshot();
        let revision = snapshot.model(model.as_str()).map_or(0, |entry| entry.revision());
        let seen = (history.changes(model), revision);
        let is_served = snapshot.model(model.as_str()).is_some_and(|entry| entry.document().is_some());
        drop(snapshot);
        let is_old = given.put_at.is_some_and(|at| at.elapsed() > REPEAT_EVERY);
        if given.seen == Some(seen) && given.halvings == halvings && !is_old {
            return Ok(());
        }
        if given.halvings != halvings {
            given.halvings = halvings;
            given.parts.values_mut().for_each(|(change, _)| *change = 0);
        }
        let now = history.parts(model);
        let mut next: BTreeMap<Part, (u64, String)> = BTreeMap::new();
        let (mut sent, mut looked_at) = (0, 0);
        for (part, change) in now {
            let before = given.parts.get(&part);
            if let Some((known, digest)) = before
                && *known == change
            {
                next.insert(part, (change, digest.clone()));
                continue;
            }
            looked_at += 1;
            if looked_at % STEP == 0 {
                // Documents and leases are more urgent.
                sleep(Duration::from_millis(1)).await;
            }
            let Some(bytes) = history.part(model, part, halvings) else { continue };
            let digest = digest(&bytes);
            if before.is_none_or(|(_, known)| *known != digest) {
                sent += bytes.len();
                self.put(&self.part_key(model, part), bytes).await?;
            }
            next.insert(part, (change, digest));
        }
        let figures = self.counted.quality.of(model);
        let list = Manifest {
            schema: SCHEMA,
            node: self.evidence.0.node.clone(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            as_of: 0,
            until: 0,
            feedback: figures.feedback,
            left_out: figures.left_out,
            split: split(self.reader, &self.counted.ledger, model),
            hash_key: self.evidence.key(),
            halvings,
            parts: next.iter().map(|(part, (_, digest))| (part.to_string(), digest.clone())).collect(),
        };
        let key = format!("rows.{}.{}", wire::key(model), self.evidence.0.id);
        if next.is_empty() && !is_served {
            if given.list.take().is_some() {
                remove(self.bucket, &key).await?;
            }
        } else if is_old || given.list.as_ref().is_none_or(|before| !before.is_like(&list)) {
            let as_of = now_us();
            let until = as_of.saturating_add(i64::try_from(history.keep().as_micros()).unwrap_or(i64::MAX));
            let bytes =
                serde_json::to_vec(&Manifest { as_of, until, ..list.clone() }).map_err(|error| error.to_string())?;
            self.put(&key, bytes).await?;
            (given.list, given.put_at) = (Some(list), Some(Instant::now()));
            let pause = PAUSE * u32::try_from(room.nodes.div_ceil(GATEWAYS)).unwrap_or(u32::MAX);
            let pause = pause.max(Duration::from_secs_f64(sent as f64 / BYTES_PER_SECOND));
            given.not_before = Some(Instant::now() + pause);
        }
        for part in given.parts.keys().filter(|part| !next.contains_key(part)) {
            remove(self.bucket, &self.part_key(model, *part)).await?;
        }
        (given.parts, given.seen) = (next, Some(seen));
        Ok(())
    }

    fn part_key(&self, model: &ModelName, part: Part) -> String {
        format!("part.{}.{}.{part}", wire::key(model), self.evidence.0.id)
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<(), String> {
        let put = timeout(EXCHANGE, self.bucket.put(key, bytes.into())).await.map_err(|_| no_answer())?;
        put.map(drop).map_err(|error| format!("the rows of this gateway cannot be given: {error}"))
    }
}

/// What there is, and what fits where the rows of all gateways are put together.
struct Room {
    nodes: usize,
    /// Models of this gateway, and the bytes of their rows.
    models: usize,
    bytes: usize,
    most: usize,
}

impl Room {
    /// How often the requests of a model with these bytes are halved for the fleet, if all gateways are like this one. Models with few rows keep all.
    fn halvings(&self, bytes: usize, before: u32) -> u32 {
        let Room { nodes, models, most, .. } = *self;
        let (nodes, fair) = (nodes as f64, most as f64 / models as f64);
        let mut halvings = 0;
        if nodes * self.bytes as f64 > most as f64 {
            while nodes * bytes as f64 / f64::from(1_u32 << halvings) > fair && halvings < 20 {
                halvings += 1;
            }
        }
        // One gateway more or less does not have everything given again.
        if halvings + 1 == before { before } else { halvings }
    }
}

// === reading ===

/// Reads the rows of others that somebody asks for, until the connection is lost.
///
/// # Errors
/// Why it was.
pub(super) async fn read(evidence: &Evidence, bucket: &Store, most: usize) -> Result<(), String> {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = evidence.asked() => {}
        }
        let (ticket, models) = evidence.due();
        for model in models {
            let others = refresh(evidence, bucket, &model, most).await?;
            evidence.refreshed(&model, others);
        }
        evidence.answered(ticket);
    }
}

async fn refresh(
    evidence: &Evidence,
    bucket: &Store,
    model: &ModelName,
    most: usize,
) -> Result<BTreeMap<String, Theirs>, String> {
    let before = evidence.others(model);
    let mut next = BTreeMap::new();
    let mut left = most;
    for key in keys(bucket, &format!("rows.{}.*", wire::key(model))).await?.into_iter().take(MOST_GATEWAYS) {
        let Some((_, id)) = key.rsplit_once('.') else { continue };
        if id == evidence.0.id {
            continue;
        }
        if let Some(theirs) = refresh_one(bucket, model, id, before.get(id), left).await? {
            left = left.saturating_sub(theirs.parts.values().map(|(_, bytes)| bytes.len()).sum());
            next.insert(id.to_owned(), theirs);
        }
    }
    Ok(next)
}

/// The rows of one gateway; `None` where it gives none any more.
async fn refresh_one(
    bucket: &Store,
    model: &ModelName,
    id: &str,
    before: Option<&Theirs>,
    left: usize,
) -> Result<Option<Theirs>, String> {
    let key = format!("rows.{}.{id}", wire::key(model));
    for _ in 0..ATTEMPTS {
        let Some((revision, list)) = list(bucket, &key).await? else { return Ok(None) };
        if let Some(before) = before.filter(|before| before.revision == revision) {
            return Ok(Some(before.clone()));
        }
        let unreadable = |manifest: Manifest, why: String| {
            warn!(%model, gateway = manifest.node, why, "the rows of a gateway are not read");
            let node = if manifest.node.is_empty() { id.to_owned() } else { manifest.node };
            let manifest = Manifest { node, ..Manifest::default() };
            Theirs { revision, manifest, parts: BTreeMap::new(), unreadable: Some(why) }
        };
        let list = match list {
            Ok(list) => list,
            Err(why) => return Ok(Some(unreadable(Manifest::default(), why))),
        };
        if list.until < now_us() {
            // All of its rows are older than rows are kept: it is gone for good.
            remove(bucket, &key).await?;
            remove(bucket, &format!("part.{}.{id}.*", wire::key(model))).await?;
            return Ok(None);
        }
        if list.parts.len() > MOST_PARTS {
            let why = format!("its list has {} parts, and at most {MOST_PARTS} are read", list.parts.len());
            return Ok(Some(unreadable(list, why)));
        }
        let mut parts: BTreeMap<String, (String, Arc<[u8]>)> = BTreeMap::new();
        let (mut bytes_in_all, mut changed) = (0, false);
        for (name, wanted) in &list.parts {
            if let Some(known) = before.and_then(|before| before.parts.get(name)).filter(|(known, _)| known == wanted) {
                bytes_in_all += known.1.len();
                parts.insert(name.clone(), known.clone());
                continue;
            }
            if part(name).is_none() {
                let why = format!("its list has {name:?}, which is no part");
                return Ok(Some(unreadable(list, why)));
            }
            let key = format!("part.{}.{id}.{name}", wire::key(model));
            let entry = timeout(EXCHANGE, bucket.entry(key)).await.map_err(|_| no_answer())?;
            let entry = entry.map_err(|error| format!("the rows of a gateway cannot be read: {error}"))?;
            let Some(entry) =
                entry.filter(|entry| entry.operation == Operation::Put && digest(&entry.value) == *wanted)
            else {
                // It was replaced since the list was read.
                changed = true;
                break;
            };
            if let Err(why) = exchange::check(&entry.value) {
                let why = format!("the part {name}: {why}");
                return Ok(Some(unreadable(list, why)));
            }
            bytes_in_all += entry.value.len();
            if bytes_in_all > left {
                let why = format!("the rows of all gateways have more than the {left} bytes that are kept here");
                return Ok(Some(unreadable(list, why)));
            }
            parts.insert(name.clone(), (wanted.clone(), Arc::from(&entry.value[..])));
        }
        if !changed {
            return Ok(Some(Theirs { revision, manifest: list, parts, unreadable: None }));
        }
    }
    // It changes faster than it is read: what is known of it is whole, and the next look reads it again.
    Ok(before.cloned())
}

/// A list and its revision. `None` where there is none.
async fn list(bucket: &Store, key: &str) -> Result<Option<(u64, Result<Manifest, String>)>, String> {
    let entry = timeout(EXCHANGE, bucket.entry(key)).await.map_err(|_| no_answer())?;
    let entry = entry.map_err(|error| format!("the rows of a gateway cannot be read: {error}"))?;
    let entry = entry.filter(|entry| entry.operation == Operation::Put);
    Ok(entry.map(|entry| (entry.revision, wire::read::<Manifest>(&entry.value))))
}

/// The keys of a bucket that fit a filter.
pub(super) async fn keys(bucket: &Store, filter: &str) -> Result<Vec<String>, String> {
    let unreadable = |error: &dyn std::fmt::Display| format!("the evidence of the fleet cannot be listed: {error}");
    let subjects = timeout(EXCHANGE, bucket.stream.info_with_subjects(format!("{}{filter}", bucket.prefix))).await;
    let mut subjects = subjects.map_err(|_| no_answer())?.map_err(|error| unreadable(&error))?;
    let mut keys = Vec::new();
    while let Some(subject) = timeout(EXCHANGE, subjects.next()).await.map_err(|_| no_answer())? {
        let (subject, _) = subject.map_err(|error| unreadable(&error))?;
        keys.extend(subject.strip_prefix(&bucket.prefix).map(str::to_owned));
    }
    keys.sort();
    Ok(keys)
}

/// Removes the keys that fit a filter, without a trace: a deleted key would stay as a marker for ever.
pub(super) async fn remove(bucket: &Store, filter: &str) -> Result<(), String> {
    let purge = bucket.stream.purge().filter(format!("{}{filter}", bucket.prefix));
    let purged = timeout(EXCHANGE, std::future::IntoFuture::into_future(purge)).await.map_err(|_| no_answer())?;
    purged.map(drop).map_err(|error| format!("what is no longer needed cannot be removed: {error}"))
}

/// Microseconds since 1970.
pub(super) fn now_us() -> i64 {
    Timestamp::now().as_microsecond()
}

fn digest(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3_128(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_all_gateways_fit_and_small_models_keep_theirs() {
        let room = |nodes, bytes| Room { nodes, models: 2, bytes, most: 64 };
        assert_eq!(room(3, 20).halvings(19, 0), 0, "all of them fit");
        assert_eq!(room(10, 20).halvings(19, 0), 3, "10 * 19 / 8 fits into a half of 64");
        assert_eq!(room(10, 20).halvings(1, 0), 0, "a small model keeps all");
        assert_eq!(room(9, 20).halvings(17, 3), 3, "a little less changes nothing");
        assert_eq!(room(1, 64).halvings(64, 0), 0, "one gateway gives what it has");
        assert_eq!(room(1_000_000, 64).halvings(64, 0), 20);
    }
}
