//! The hash chain of the audit trail: each event carries the hash of the one before.
//!
//! An event's hash is the SHA-256 of these bytes, one after the other:
//!
//! 1. `sluicegate audit event 1` and a line feed. The number is [`FORMAT`].
//! 2. The 32 bytes of the hash of the event before. Before the first event stands the SHA-256 of `sluicegate audit chain `, the
//!    chain's identifier and a line feed.
//! 3. The fields `id`, `ts`, `actor`, `action`, `model`, `reason`, `before` and `after`: for `null` one byte 0; else one byte 1, the length
//!    in bytes as a 64-bit number with the highest byte first, and the text in UTF-8. The `id` is a decimal text.
//!
//! Changing this needs another number in the first line: existing hashes stay as they are.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::str::FromStr;

/// The format of the hashes.
pub const FORMAT: u32 = 1;

/// The texts of an event that are hashed, in this order, after its number.
pub(super) const FIELDS: [&str; 7] = ["ts", "actor", "action", "model", "reason", "before", "after"];

/// The hash of an event. Shown as 64 hexadecimal digits in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventHash([u8; 32]);

/// Where a chain begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// Identifies the chain: a data directory has one, and keeps it.
    pub chain: String,
    /// The last event that was written before the chain existed, and got its hash afterwards. 0 where there is none.
    pub chained_later: u64,
}

/// The newest event of a chain. Kept outside the data directory, it proves that the events up to it are still there and unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub chain: String,
    /// The number of the newest event; 0 where there is none yet.
    pub id: u64,
    pub hash: EventHash,
    /// When this was the newest event.
    pub ts: String,
}

/// An event as it is stored, whatever its texts contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    pub id: u64,
    /// In the order of [`FIELDS`].
    pub(super) texts: [Option<Vec<u8>>; FIELDS.len()],
    /// `None` where it is not stored, or is no hash.
    pub(super) previous: Option<EventHash>,
    pub(super) hash: Option<EventHash>,
}

/// One line of an export. `before` and `after` are JSON texts, exactly as they are hashed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    pub(super) chain: String,
    id: u64,
    ts: Option<String>,
    actor: Option<String>,
    action: Option<String>,
    model: Option<String>,
    reason: Option<String>,
    before: Option<String>,
    after: Option<String>,
    previous: Option<EventHash>,
    hash: Option<EventHash>,
}

// === impl EventHash ===

impl EventHash {
    /// What stands before the first event of a chain.
    #[must_use]
    pub(super) fn first(chain: &str) -> EventHash {
        EventHash(Sha256::digest(format!("sluicegate audit chain {chain}\n")).into())
    }

    /// The hash of these bytes, one after the other.
    #[must_use]
    pub(super) fn of_bytes<'b>(bytes: impl IntoIterator<Item = &'b [u8]>) -> EventHash {
        let mut hash = Sha256::new();
        bytes.into_iter().for_each(|bytes| hash.update(bytes));
        EventHash(hash.finalize().into())
    }

    pub(super) fn bytes(self) -> [u8; 32] {
        self.0
    }

    /// The hash of an event.
    #[must_use]
    pub(super) fn of(previous: EventHash, id: u64, texts: [Option<&[u8]>; FIELDS.len()]) -> EventHash {
        let mut hash = Sha256::new();
        hash.update(format!("sluicegate audit event {FORMAT}\n"));
        hash.update(previous.0);
        let id = id.to_string();
        for text in std::iter::once(Some(id.as_bytes())).chain(texts) {
            match text {
                None => hash.update([0]),
                Some(text) => {
                    hash.update([1]);
                    hash.update((text.len() as u64).to_be_bytes());
                    hash.update(text);
                }
            }
        }
        EventHash(hash.finalize().into())
    }
}

impl std::fmt::Display for EventHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The text is not a hash.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a hash has 64 hexadecimal digits in lower case")]
pub struct NoHash;

impl FromStr for EventHash {
    type Err = NoHash;

    fn from_str(text: &str) -> Result<EventHash, NoHash> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(NoHash),
        };
        let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| NoHash)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(EventHash(bytes))
    }
}

impl Serialize for EventHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<EventHash, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl FromSql for EventHash {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<EventHash> {
        value.as_str()?.parse().map_err(|e| FromSqlError::Other(Box::new(e)))
    }
}

// === impl StoredEvent ===

impl StoredEvent {
    /// The hash that the event should have, after the event that it says stands before it.
    #[must_use]
    pub(super) fn computed(&self) -> Option<EventHash> {
        Some(EventHash::of(self.previous?, self.id, self.texts.each_ref().map(Option::as_deref)))
    }

    /// One line of an export, with a line feed.
    #[must_use]
    pub fn to_line(&self, chain: &str) -> String {
        let text = |text: &Option<Vec<u8>>| text.as_ref().map(|text| String::from_utf8_lossy(text).into_owned());
        let [ts, actor, action, model, reason, before, after] = self.texts.each_ref().map(text);
        let (previous, hash) = (self.previous, self.hash);
        let line = Line {
            chain: chain.to_owned(),
            id: self.id,
            ts,
            actor,
            action,
            model,
            reason,
            before,
            after,
            previous,
            hash,
        };
        let mut line = serde_json::to_string(&line).expect("texts and numbers always serialize");
        line.push('\n');
        line
    }
}

impl From<Line> for StoredEvent {
    fn from(line: Line) -> StoredEvent {
        let Line { chain: _, id, ts, actor, action, model, reason, before, after, previous, hash } = line;
        let texts = [ts, actor, action, model, reason, before, after].map(|text| text.map(String::into_bytes));
        StoredEvent { id, texts, previous, hash }
    }
}
