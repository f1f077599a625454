//! The stored tokens, without their secrets.

use super::error::{LedgerError, is_unreadable_value};
use super::reader::{LedgerReader, Text};
use super::writer::{NewEvent, insert_event};
use super::{Action, rfc3339};
use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};
use serde::{Deserialize, Serialize, Serializer};

/// A token as it is stored. As JSON it has what several gateways share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredToken {
    pub name: String,
    /// SHA-256.
    #[serde(with = "digits")]
    pub hash: [u8; 32],
    /// As the room `access` spells it, like `models`, which are separated by commas.
    pub role: String,
    pub models: String,
    #[serde(serialize_with = "as_stored")]
    pub created_at: Timestamp,
    pub created_by: String,
    #[serde(default, serialize_with = "as_stored_where_any")]
    pub expires_at: Option<Timestamp>,
    /// Not exact: the time in memory is stored at intervals.
    #[serde(skip)]
    pub last_used: Option<Timestamp>,
    /// It is valid on every gateway of the fleet.
    #[serde(skip)]
    pub shared: bool,
}

/// A change of the tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenChange {
    pub actor: String,
    pub reason: Option<String>,
    pub effect: TokenEffect,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenEffect {
    Create(Box<StoredToken>),
    Revoke {
        name: String,
    },
    /// Another gateway of the fleet made it. Replaces one of its name that is another one.
    Follow(Box<StoredToken>),
}

impl TokenEffect {
    /// Of the token.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            TokenEffect::Create(token) | TokenEffect::Follow(token) => &token.name,
            TokenEffect::Revoke { name } => name,
        }
    }
}

impl LedgerReader {
    /// All tokens, in the order of their names. One that cannot be read is left out, and the log says so.
    pub fn tokens(&self) -> Result<Vec<StoredToken>, LedgerError> {
        self.query("read the tokens", |connection| {
            let mut statement = connection.prepare_cached(&format!("{SELECT} ORDER BY name"))?;
            let rows = statement.query_map([], token)?;
            let readable = |row: rusqlite::Result<_>| match row {
                Err(error) if is_unreadable_value(&error) => {
                    tracing::error!(%error, "a stored token cannot be read; nobody can use it");
                    None
                }
                row => Some(row),
            };
            rows.filter_map(readable).collect()
        })
    }
}

const SELECT: &str =
    "SELECT name, hash, role, models, created_at, created_by, expires_at, last_used, shared FROM tokens";

fn token(row: &Row<'_>) -> rusqlite::Result<StoredToken> {
    let time = |column| row.get::<_, Option<Text<Timestamp>>>(column).map(|ts| ts.map(|ts| ts.0));
    Ok(StoredToken {
        name: row.get(0)?,
        hash: row.get(1)?,
        role: row.get(2)?,
        models: row.get(3)?,
        created_at: row.get::<_, Text<Timestamp>>(4)?.0,
        created_by: row.get(5)?,
        expires_at: time(6)?,
        last_used: time(7)?,
        shared: row.get(8)?,
    })
}

/// Stores a change and its event. False when there is nothing to change.
pub(super) fn change_token(
    transaction: &Transaction<'_>,
    ts: Timestamp,
    change: &TokenChange,
) -> rusqlite::Result<bool> {
    let TokenChange { actor, reason, effect } = change;
    let shown = |token: &StoredToken| {
        let expires_at = token.expires_at.map(rfc3339);
        let (name, role) = (&token.name, &token.role);
        let models: Vec<&str> = token.models.split(',').collect();
        serde_json::json!({"token": name, "role": role, "models": models, "expires_at": expires_at}).to_string()
    };
    let (action, before, after) = match effect {
        TokenEffect::Create(token) => {
            if !insert(transaction, token)? {
                return Ok(false);
            }
            (Action::TokenCreate, None, Some(shown(token)))
        }
        TokenEffect::Follow(token) => {
            let stored =
                transaction.prepare_cached(&format!("{SELECT} WHERE name = ?1"))?.query_row([&token.name], self::token);
            let before = match stored {
                Ok(stored) if (StoredToken { last_used: token.last_used, ..stored.clone() }) == **token => {
                    return Ok(false);
                }
                Ok(stored) => Some(shown(&stored)),
                Err(rusqlite::Error::QueryReturnedNoRows) => None,
                Err(error) if is_unreadable_value(&error) => None,
                Err(error) => return Err(error),
            };
            // A hash belongs to one token: one of another name that has it is the same secret.
            transaction
                .prepare_cached("DELETE FROM tokens WHERE name = ?1 OR hash = ?2")?
                .execute(params![token.name, token.hash])?;
            insert(transaction, token)?;
            (Action::TokenCreate, before, Some(shown(token)))
        }
        TokenEffect::Revoke { name } => {
            let stored = transaction.prepare_cached(&format!("{SELECT} WHERE name = ?1"))?.query_row([name], token);
            let before = match stored {
                Ok(stored) => Some(shown(&stored)),
                Err(rusqlite::Error::QueryReturnedNoRows) => return Ok(false),
                // A token that cannot be read must be removable.
                Err(error) if is_unreadable_value(&error) => Some(serde_json::json!({"token": name}).to_string()),
                Err(error) => return Err(error),
            };
            transaction.prepare_cached("DELETE FROM tokens WHERE name = ?1")?.execute([name])?;
            (Action::TokenRevoke, before, None)
        }
    };
    let (reason, before, after) = (reason.as_deref(), before.as_deref(), after.as_deref());
    insert_event(transaction, ts, &NewEvent { actor, action, model: "", reason, before, after })?;
    Ok(true)
}

/// False when the name or the hash is taken.
fn insert(transaction: &Transaction<'_>, token: &StoredToken) -> rusqlite::Result<bool> {
    let StoredToken { name, hash, role, models, created_at, created_by, expires_at, last_used: _, shared } = token;
    let (created_at, expires_at) = (rfc3339(*created_at), expires_at.map(rfc3339));
    let inserted = transaction
        .prepare_cached(
            "INSERT OR IGNORE INTO tokens (name, hash, role, models, created_at, created_by, expires_at, shared)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![name, hash, role, models, created_at, created_by, expires_at, shared])?;
    Ok(inserted > 0)
}

/// A time never goes back: two programs' clocks, or a late message.
pub(super) fn store_uses(transaction: &Transaction<'_>, uses: &[(String, Timestamp)]) -> rusqlite::Result<()> {
    let sql = "UPDATE tokens SET last_used = ?2 WHERE name = ?1 AND (last_used IS NULL OR last_used < ?2)";
    let mut statement = transaction.prepare_cached(sql)?;
    for (name, ts) in uses {
        statement.execute(params![name, rfc3339(*ts)])?;
    }
    Ok(())
}

/// A hash as hexadecimal digits.
mod digits {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use std::fmt::Write as _;

    pub(super) fn serialize<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(64);
        for byte in hash {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || de::Error::custom("a hash has 64 hexadecimal digits");
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut hash = [0; 32];
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(hash)
    }
}

/// Rounded as the ledger stores it, so that a token that is read back is the same.
fn as_stored<S: Serializer>(ts: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*ts))
}

#[expect(clippy::ref_option, reason = "as serde calls it")]
fn as_stored_where_any<S: Serializer>(ts: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    ts.map(rfc3339).serialize(serializer)
}
