//! The stored tokens, without their secrets.

use super::error::{LedgerError, is_unreadable_value};
use super::reader::{LedgerReader, Text};
use super::writer::{NewEvent, insert_event};
use super::{Action, rfc3339};
use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};

/// A token as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredToken {
    pub name: String,
    /// SHA-256.
    pub hash: [u8; 32],
    /// As the room `access` spells it, like `models`, which are separated by commas.
    pub role: String,
    pub models: String,
    pub created_at: Timestamp,
    pub created_by: String,
    pub expires_at: Option<Timestamp>,
    /// Not exact: the time in memory is stored at intervals.
    pub last_used: Option<Timestamp>,
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
    Revoke { name: String },
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

const SELECT: &str = "SELECT name, hash, role, models, created_at, created_by, expires_at, last_used FROM tokens";

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
            let StoredToken { name, hash, role, models, created_at, created_by, expires_at, last_used: _ } = &**token;
            let inserted = transaction
                .prepare_cached("INSERT OR IGNORE INTO tokens VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, NULL)")?
                .execute(params![
                    name,
                    hash,
                    role,
                    models,
                    rfc3339(*created_at),
                    created_by,
                    expires_at.map(rfc3339)
                ])?;
            if inserted == 0 {
                return Ok(false);
            }
            (Action::TokenCreate, None, Some(shown(token)))
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

/// A time never goes back: two programs' clocks, or a late message.
pub(super) fn store_uses(transaction: &Transaction<'_>, uses: &[(String, Timestamp)]) -> rusqlite::Result<()> {
    let sql = "UPDATE tokens SET last_used = ?2 WHERE name = ?1 AND (last_used IS NULL OR last_used < ?2)";
    let mut statement = transaction.prepare_cached(sql)?;
    for (name, ts) in uses {
        statement.execute(params![name, rfc3339(*ts)])?;
    }
    Ok(())
}
