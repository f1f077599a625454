//! One audit trail of the fleet: the stream `NAME_audit` has the events of all gateways in one chain ([`FleetEvent`]).
//!
//! The trail of each gateway stays where it is, and is verified as before. Its events are appended here in their order. Each append names the message
//! that it follows (a compare-and-set on the whole stream), so the chain has no gap and no event twice, whoever appends at the same moment, and whatever
//! answer is lost. What a gateway made while it was cut off is appended when it is back. The stream refuses to delete messages.

use super::session::{self, EXCHANGE, admit, no_answer};
use super::{Config, Fleet};
use crate::ledger::{FleetEvent, FleetLine, LedgerReader, rfc3339};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{self, LastRawMessageErrorKind, RawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, jetstream::message::StreamMessage};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use std::future::IntoFuture as _;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, timeout};

/// How often the own trail is looked at for something new.
const TICK: Duration = Duration::from_secs(1);
/// Events that are read from the own trail at once, and their bytes.
const EVENTS: usize = 100;
const BYTES: usize = 2 << 20;
/// The most bytes of a line in one message: a message of NATS has at most 1 MiB, and escapes take room.
const PART: usize = 256 << 10;
/// Messages that are read at the same time.
const TOGETHER: usize = 16;

/// The own trail, and where it goes.
pub(super) struct Trail<'a> {
    pub config: &'a Config,
    pub ledger: &'a LedgerReader,
    pub context: Context,
    pub stream: Stream,
}

/// The number of an event in a line of an export.
#[derive(serde::Deserialize)]
struct Numbered {
    id: u64,
}

/// The last message of the own chain: the event, the part and how many parts there are.
type At = (u64, u32, u32);

async fn open(client: &Client, config: &Config) -> Result<(Context, Stream), String> {
    let mut context = jetstream::new(client.clone());
    context.set_timeout(EXCHANGE);
    let name = format!("{}_audit", config.name);
    let of = stream::Config {
        name: name.clone(),
        description: Some("Sluicegate: the audit trails of all gateways in one chain".to_owned()),
        subjects: vec![format!("{name}.*")],
        num_replicas: config.replicas,
        deny_delete: true,
        deny_purge: true,
        allow_direct: true,
        ..stream::Config::default()
    };
    let stream = timeout(EXCHANGE, context.get_or_create_stream(of)).await.map_err(|_| no_answer())?;
    let stream = stream.map_err(|error| format!("the stream {name} cannot be opened or made: {error}"))?;
    admit(&context, &stream).await?;
    Ok((context, stream))
}

impl<'a> Trail<'a> {
    pub async fn open(client: &Client, config: &'a Config, ledger: &'a LedgerReader) -> Result<Trail<'a>, String> {
        let (context, stream) = open(client, config).await?;
        Ok(Trail { config, ledger, context, stream })
    }

    /// Appends what is new, until the connection is lost.
    ///
    /// # Errors
    /// Why it was.
    pub async fn run(&self) -> Result<(), String> {
        let mut at: Option<At> = None;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.fill(&mut at).await?;
        }
    }

    /// Appends what is new, once.
    pub async fn fill(&self, at: &mut Option<At>) -> Result<(), String> {
        let ledger = self.ledger.clone();
        let head = spawn_blocking(move || ledger.head()).await.map_err(|error| error.to_string())?;
        let head = head.map_err(|error| error.to_string())?;
        let subject = format!("{}_audit.{}", self.config.name, head.chain);
        let mut last = match *at {
            Some(at) => at,
            None => self.last(&subject).await?,
        };
        while last.0 < head.id || last.1 < last.2 {
            // One whose parts are not all there is read again.
            let after = if last.1 < last.2 { last.0 - 1 } else { last.0 };
            let ledger = self.ledger.clone();
            let lines = spawn_blocking(move || ledger.export(after, EVENTS, BYTES)).await;
            let lines = lines.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            if lines.is_empty() {
                break;
            }
            for line in lines.lines() {
                let Numbered { id: event } = serde_json::from_str(line).map_err(|error| error.to_string())?;
                let parts = parts(line);
                let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
                for (part, text) in (1..).zip(parts) {
                    if (event, part) <= (last.0, last.1) {
                        continue;
                    }
                    self.append(&subject, (&head.chain, event), (part, count), text).await?;
                    last = (event, part, count);
                    *at = Some(last);
                }
            }
        }
        *at = Some(last);
        Ok(())
    }

    /// What the stream has of this chain.
    async fn last(&self, subject: &str) -> Result<At, String> {
        let last = timeout(EXCHANGE, self.stream.get_last_raw_message_by_subject(subject)).await;
        match last.map_err(|_| no_answer())? {
            Ok(message) => {
                let FleetEvent { event, part, parts, .. } = read(&message)?;
                Ok((event, part, parts))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok((0, 1, 1)),
            Err(error) => Err(unreadable(&error)),
        }
    }

    async fn append(&self, subject: &str, of: (&str, u64), part: (u32, u32), text: &str) -> Result<(), String> {
        loop {
            let info = timeout(EXCHANGE, self.stream.get_info()).await.map_err(|_| no_answer())?;
            let newest = info.map_err(|error| unreadable(&error))?.state.last_sequence;
            let previous = match newest {
                0 => FleetEvent::first(&self.config.name),
                newest => {
                    let message = timeout(EXCHANGE, self.stream.get_raw_message(newest)).await;
                    let message = message.map_err(|_| no_answer())?.map_err(|error| unreadable(&error))?;
                    // Somebody else wrote it. The verification says so, and that the next event does not follow it.
                    read(&message).map_or_else(|_| FleetEvent::first(&self.config.name), |before| before.hash)
                }
            };
            let next = FleetEvent::after(previous, &self.config.name, &self.config.node, of, part, text);
            let bytes = serde_json::to_vec(&next).map_err(|error| error.to_string())?;
            let message = PublishMessage::build().payload(bytes.into()).expected_last_sequence(newest);
            let sent = timeout(EXCHANGE, self.context.send_publish(subject.to_owned(), message)).await;
            let sent = sent.map_err(|_| no_answer())?.map_err(|error| refused(&error))?;
            match timeout(EXCHANGE, sent.into_future()).await.map_err(|_| no_answer())? {
                Ok(_) => return Ok(()),
                // Another gateway was faster.
                Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {}
                // An answer that is lost: what is there is read again.
                Err(error) => return Err(refused(&error)),
            }
        }
    }
}

impl Fleet {
    /// The audit trail of the fleet after a message, oldest first, as lines: at most `most` messages, and no further one once they have `bytes`.
    ///
    /// # Errors
    /// In words, when NATS cannot be reached or has no trail.
    pub(crate) async fn audit(&self, after: u64, most: usize, bytes: usize) -> Result<String, String> {
        let config = &self.sharing.config;
        let client = session::connect(config).await?;
        let (_, stream) = open(&client, config).await?;
        let info = timeout(EXCHANGE, stream.get_info()).await.map_err(|_| no_answer())?;
        let state = info.map_err(|error| unreadable(&error))?.state;
        let first = after.saturating_add(1).max(state.first_sequence.max(1));
        let last = state.last_sequence.min(first.saturating_add(most as u64).saturating_sub(1));
        let stream = &stream;
        let read_one = |id: u64| async move { (id, timeout(EXCHANGE, stream.get_raw_message(id)).await) };
        let mut messages = futures_util::stream::iter(first..=last).map(read_one).buffered(TOGETHER);
        let mut lines = String::new();
        while let Some((id, message)) = messages.next().await {
            let message = match message.map_err(|_| no_answer())? {
                Ok(message) => message,
                // The verification says that it is missing.
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => continue,
                Err(error) => return Err(unreadable(&error)),
            };
            let ts = Timestamp::from_nanosecond(message.time.unix_timestamp_nanos()).map(rfc3339).unwrap_or_default();
            // What cannot be read is shown as it is: the verification says so.
            let line = match read(&message) {
                Ok(event) => serde_json::to_string(&FleetLine { id, ts, event }).map_err(|error| error.to_string())?,
                Err(_) => {
                    serde_json::json!({"id": id, "ts": ts, "unreadable": String::from_utf8_lossy(&message.payload)})
                        .to_string()
                }
            };
            lines.push_str(&line);
            lines.push('\n');
            if lines.len() >= bytes {
                break;
            }
        }
        Ok(lines)
    }
}

fn read(message: &StreamMessage) -> Result<FleetEvent, String> {
    serde_json::from_slice(&message.payload).map_err(|error| {
        format!("message {} of the audit trail of the fleet cannot be read: {error}", message.sequence)
    })
}

/// A line in parts that fit into a message.
fn parts(line: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = line;
    while rest.len() > PART {
        let (part, after) = rest.split_at(rest.floor_char_boundary(PART));
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts
}

fn unreadable(error: &dyn std::fmt::Display) -> String {
    format!("the audit trail of the fleet cannot be read: {error}")
}

fn refused(error: &dyn std::fmt::Display) -> String {
    format!("the audit trail of the fleet does not take an event: {error}")
}
