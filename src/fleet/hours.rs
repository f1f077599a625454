//! The part of a session that is for drift: tells what was counted here, closes hours for all gateways, and judges those that are closed.
//!
//! Keys of the bucket: `tally.MODEL.HOUR.ID-START` is what one start of a gateway counted in an hour, as a whole, and `first.MODEL.VERSION` the first day
//! of a version that counts for all. A closed hour is a message of the stream `NAME_drift`, one subject for each model. To close an hour is to append it
//! after the last one of its model (a compare-and-set), so an hour is closed once and in order, whoever tries.

use super::evidence::{Counted, Evidence};
use super::rows::{keys, now_us, remove};
use super::session::{EXCHANGE, no_answer};
use super::wire;
use crate::drift::Drift;
use crate::drift::together::{Hour, begins};
use crate::model::ModelName;
use crate::profile::Profile;
use crate::registry::Reader;
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, stream};
use futures_util::StreamExt as _;
use std::collections::{BTreeMap, HashMap};
use std::future::IntoFuture as _;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, sleep, timeout};
use tracing::{debug, info, warn};

/// How often this gateway tells what it counted, where that changed.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How often hours that are over are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// An hour is closed without the gateways that have told nothing of it for so long after its end.
const LATEST_US: i64 = 600_000_000;
/// Each gateway waits a little longer than the one before it in the order of names, so that mostly one tries.
const APART_US: i64 = 15_000_000;
const MOST_APART: i64 = 10;
/// How long closed hours are kept: a gateway that was away longer begins anew.
const KEPT: Duration = Duration::from_hours(35 * 24);
/// Hours before the last that was judged here that are read again after a start: what was saved of models may be a little older.
const READ_AGAIN: u64 = 10_000;
/// The header of a closed hour with its number since 1970.
const HOUR: &str = "Sluicegate-Hour";
/// The largest first day, before it is compressed.
const MAX_FIRST_DAY: usize = 16 << 20;

/// The stream of the closed hours.
pub(super) fn stream_config(name: &str, replicas: usize) -> stream::Config {
    stream::Config {
        name: format!("{name}_drift"),
        description: Some("Sluicegate: what all gateways counted of drift, by hour".to_owned()),
        subjects: vec![format!("{name}_drift.*")],
        max_age: KEPT,
        num_replicas: replicas,
        allow_direct: true,
        ..stream::Config::default()
    }
}

pub(super) struct Hours<'a> {
    pub evidence: &'a Evidence,
    pub counted: &'a Counted,
    pub reader: &'a Reader,
    pub bucket: &'a Store,
    pub context: &'a jetstream::Context,
    /// The stream, and the part of its subjects before the model.
    pub closed: &'a Stream,
    pub prefix: &'a str,
}

impl Hours<'_> {
    fn drift(&self) -> &Drift {
        &self.counted.drift
    }

    /// Takes part until the connection is lost.
    ///
    /// # Errors
    /// Why it was.
    pub async fn run(&self) -> Result<(), String> {
        // Versions are watched when they are loaded: what comes before would be judged by nothing.
        while !self.reader.snapshot().ready {
            sleep(TELL_EVERY / 20).await;
        }
        tokio::select! {
            ended = self.tell() => ended,
            ended = self.close() => ended,
            ended = self.judge() => ended,
        }
    }

    // === telling ===

    pub(super) async fn tell(&self) -> Result<(), String> {
        let mut told = HashMap::new();
        let mut ticks = tokio::time::interval(TELL_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.tell_all(&mut told).await?;
            self.agree().await?;
        }
    }

    /// Tells what is new, once: before this gateway leaves.
    pub async fn last(&self) -> Result<(), String> {
        self.tell_all(&mut HashMap::new()).await
    }

    async fn tell_all(&self, told: &mut HashMap<(ModelName, i64), u64>) -> Result<(), String> {
        // What ends after this is told the next time.
        let ended = self.drift().ended();
        let hours = self.drift().told(&self.evidence.0.node);
        told.retain(|of, _| hours.contains_key(of));
        for ((model, hour), counts) in hours {
            let offered = counts.offered();
            if told.get(&(model.clone(), hour)) == Some(&offered) {
                continue;
            }
            let Some(bytes) = counts.write() else {
                warn!(%model, hour, "what was counted of drift in an hour is too large for the fleet, and left out");
                told.insert((model, hour), offered);
                continue;
            };
            let key = format!("tally.{}.{hour}.{}-{}", wire::key(&model), self.evidence.0.id, self.evidence.0.session);
            let put = timeout(EXCHANGE, self.bucket.put(&key, bytes.into())).await.map_err(|_| no_answer())?;
            put.map_err(|error| format!("what was counted of drift cannot be told: {error}"))?;
            told.insert((model, hour), offered);
        }
        self.evidence.set_told(ended);
        Ok(())
    }

    // === first days ===

    /// Gives first days that are over to the fleet, and takes those that it has.
    async fn agree(&self) -> Result<(), String> {
        for (model, version, own) in self.drift().disagreed() {
            let key = format!("first.{}.{version}", wire::key(&model));
            if let Some(own) = own {
                let packed = zstd::bulk::compress(own.to_json().as_bytes(), 1).map_err(|error| error.to_string())?;
                let made = timeout(EXCHANGE, self.bucket.create(&key, packed.into())).await.map_err(|_| no_answer())?;
                match made {
                    Ok(_) => {
                        info!(%model, %version, "the first day of the version on this gateway is the reference of the fleet");
                    }
                    Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {}
                    Err(error) => return Err(format!("the first day of a version cannot be given: {error}")),
                }
            }
            let entry = timeout(EXCHANGE, self.bucket.entry(&key)).await.map_err(|_| no_answer())?;
            let entry = entry.map_err(|error| format!("the first day of a version cannot be read: {error}"))?;
            let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else { continue };
            match first_day(&entry.value) {
                Ok(profile) => self.drift().agree(&model, version, profile),
                Err(why) => warn!(%model, %version, why, "the first day that the fleet has of a version is not read"),
            }
        }
        Ok(())
    }

    // === closing ===

    pub(super) async fn close(&self) -> Result<(), String> {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // In a large fleet the first gateways by name do it: they know what the others have told.
            if !self.evidence.0.board.knows_all() {
                continue;
            }
            // Those who wait are few: an hour is removed when it is closed.
            let mut hours: BTreeMap<ModelName, BTreeMap<i64, Vec<String>>> = BTreeMap::new();
            for key in keys(self.bucket, "tally.>").await? {
                if let Some((model, hour)) = of_key(&key) {
                    hours.entry(model).or_default().entry(hour).or_default().push(key);
                }
            }
            for (model, hours) in hours {
                self.close_first(&model, hours).await?;
            }
        }
    }

    /// Closes the oldest hour of a model that is over, if it is time.
    async fn close_first(&self, model: &ModelName, hours: BTreeMap<i64, Vec<String>>) -> Result<(), String> {
        let board = &self.evidence.0.board;
        let place = i64::try_from(board.place(model)).unwrap_or(MOST_APART).min(MOST_APART);
        let now = now_us();
        let Some((hour, tallies)) = hours.into_iter().next() else { return Ok(()) };
        let over_for = now.saturating_sub(begins(hour + 1));
        if over_for < place * APART_US {
            return Ok(());
        }
        let (last, sequence) = self.last_closed(model).await?;
        if last.is_some_and(|last| hour <= last) {
            debug!(%model, hour, "counts of drift came after their hour was closed");
            return remove(self.bucket, &format!("tally.{}.{hour}.*", wire::key(model))).await;
        }
        let own = (self.evidence.0.node.clone(), self.evidence.told());
        let tellers = board.tellers(model).into_iter().chain([own]);
        let late: Vec<String> =
            tellers.filter(|(_, told)| told.is_none_or(|told| told <= hour)).map(|(name, _)| name).collect();
        if !late.is_empty() && over_for < LATEST_US {
            return Ok(());
        }
        let mut sum = Hour::default();
        for key in &tallies {
            let entry = timeout(EXCHANGE, self.bucket.entry(key)).await.map_err(|_| no_answer())?;
            let entry = entry.map_err(|error| format!("what was counted of drift cannot be read: {error}"))?;
            let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else { continue };
            match Hour::read(&entry.value) {
                Ok(counts) => sum.add(&counts),
                Err(why) => {
                    warn!(%model, key, why, "what a gateway counted of drift is not read");
                    sum.missing.insert(key.clone());
                }
            }
        }
        // An hour does not wait for gateways that are gone without a word. Where it has nothing of them, it names them.
        let missing = late.into_iter().chain(board.lost(model));
        sum.missing.extend(missing.filter(|name| !sum.gateways.contains(name)));
        let Some(bytes) = sum.write() else {
            warn!(%model, hour, "an hour of drift of all gateways is too large, and is left out");
            return remove(self.bucket, &format!("tally.{}.{hour}.*", wire::key(model))).await;
        };
        let mut headers = HeaderMap::new();
        headers.insert(HOUR, hour.to_string().as_str());
        let message = PublishMessage::build().headers(headers).payload(bytes.into());
        let message = message.expected_last_subject_sequence(sequence);
        let sent = timeout(EXCHANGE, self.context.send_publish(self.subject(model), message)).await;
        let sent =
            sent.map_err(|_| no_answer())?.map_err(|error| format!("an hour of drift cannot be closed: {error}"))?;
        match timeout(EXCHANGE, sent.into_future()).await.map_err(|_| no_answer())? {
            Ok(_) => remove(self.bucket, &format!("tally.{}.{hour}.*", wire::key(model))).await,
            // Another gateway was faster.
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(()),
            Err(error) => Err(format!("an hour of drift cannot be closed: {error}")),
        }
    }

    /// The last hour of a model that is closed, and its number in the stream.
    async fn last_closed(&self, model: &ModelName) -> Result<(Option<i64>, u64), String> {
        let subject = self.subject(model);
        let last = timeout(EXCHANGE, self.closed.get_last_raw_message_by_subject(&subject)).await;
        match last.map_err(|_| no_answer())? {
            Ok(message) => Ok((hour_of(&message.headers), message.sequence)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok((None, 0)),
            Err(error) => Err(format!("the closed hours of drift cannot be read: {error}")),
        }
    }

    fn subject(&self, model: &ModelName) -> String {
        format!("{}.{}", self.prefix, wire::key(model))
    }

    // === judging ===

    pub(super) async fn judge(&self) -> Result<(), String> {
        let unreadable =
            |error: &dyn std::fmt::Display| format!("the closed hours of drift cannot be followed: {error}");
        let info = timeout(EXCHANGE, self.closed.get_info()).await.map_err(|_| no_answer())?;
        let newest = info.map_err(|error| unreadable(&error))?.state.last_sequence;
        let known = self.drift().last_place();
        // A stream that is shorter is another one: all state of NATS was lost.
        let start = if known > newest { 1 } else { known.saturating_sub(READ_AGAIN).max(1) };
        let config = pull::OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: start },
            ..pull::OrderedConfig::default()
        };
        let consumer = timeout(EXCHANGE, self.closed.create_consumer(config)).await.map_err(|_| no_answer())?;
        let consumer = consumer.map_err(|error| unreadable(&error))?;
        let messages = timeout(EXCHANGE, consumer.messages()).await.map_err(|_| no_answer())?;
        let mut messages = messages.map_err(|error| unreadable(&error))?;
        if newest < start {
            self.drift().set_following(true);
        }
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| unreadable(&error))?;
            let place = message.info().map_err(|error| unreadable(&error))?.stream_sequence;
            let hour = message.headers.as_ref().and_then(hour_of);
            let of_subject = message.subject.strip_prefix(self.prefix).and_then(|rest| rest.strip_prefix('.'));
            match (of_subject.and_then(wire::model), hour, Hour::read(&message.payload)) {
                (Some(model), Some(hour), Ok(counts)) => {
                    let node = &self.evidence.0.node;
                    let late = self.drift().judge(&model, hour, place, &counts, node);
                    if late > 0 {
                        warn!(%model, hour, rows = late, "what was counted of drift here came after its hour was closed, and is left out");
                    }
                }
                (_, _, Err(why)) => warn!(place, why, "a closed hour of drift is not read"),
                _ => warn!(place, "a closed hour of drift has no model or no hour"),
            }
            if place >= newest {
                self.drift().set_following(true);
            }
        }
        Err("the closed hours of drift are no longer followed".to_owned())
    }
}

/// The model and the hour of the key of a tally.
fn of_key(key: &str) -> Option<(ModelName, i64)> {
    let mut parts = key.strip_prefix("tally.")?.split('.');
    let (model, hour) = (wire::model(parts.next()?)?, parts.next()?.parse().ok()?);
    // Far from any time, where hours cannot be added to.
    (i64::abs(hour) < 1 << 32).then_some((model, hour))
}

fn hour_of(headers: &HeaderMap) -> Option<i64> {
    let hour: i64 = headers.get(HOUR)?.as_str().parse().ok()?;
    (i64::abs(hour) < 1 << 32).then_some(hour)
}

fn first_day(bytes: &[u8]) -> Result<Profile, String> {
    let text =
        zstd::bulk::decompress(bytes, MAX_FIRST_DAY).map_err(|error| format!("it cannot be decompressed: {error}"))?;
    Profile::parse(&text)
}
