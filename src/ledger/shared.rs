//! What the gateways of a fleet share of a model, and how one of them stores what another one changed.

use super::reader::Text;
use super::writer::{raise_highest_served, set_document};
use super::{Action, Change, Effect, ModelState, NewDocument, Retirement, Review};
use crate::model::{ModelName, Version};
use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The part of a [`ModelState`] that all gateways of a fleet have in common. The rest (files, crashes, revisions) is each gateway's own.
///
/// As JSON, the traffic document is a value and not a text, and what is empty is left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SharedModel {
    /// The traffic document, as JSON.
    #[serde(default, serialize_with = "write_document", deserialize_with = "read_document")]
    pub document: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unloaded: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<Retirement>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest_served: Option<Version>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub operator_unloaded: BTreeSet<Version>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub auto_promoted: BTreeSet<Version>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reviews: BTreeMap<Version, Review>,
    /// Everybody who pushed a version or asked for its traffic, on any gateway.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub proposers: BTreeMap<Version, BTreeSet<String>>,
}

/// Who did something on another gateway, when and why.
#[derive(Debug, Serialize, Deserialize)]
struct Elsewhere {
    actor: String,
    ts: Timestamp,
    reason: String,
}

impl SharedModel {
    #[must_use]
    pub fn of(stored: &ModelState) -> SharedModel {
        SharedModel {
            document: stored.document.clone(),
            unloaded: stored.unloaded,
            retired: stored.retired.clone(),
            highest_served: stored.highest_served,
            operator_unloaded: stored.operator_unloaded.clone(),
            auto_promoted: stored.auto_promoted.clone(),
            reviews: stored.reviews.clone(),
            proposers: stored.proposers.clone(),
        }
    }

    /// Whether there is nothing to share.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == SharedModel::default()
    }

    /// An operator unloaded the whole model, or retired it.
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.unloaded || self.retired.is_some()
    }

    /// The state after a change that is made at `ts`. `None` for a change that concerns one gateway only.
    #[must_use]
    pub fn after(&self, change: &Change, ts: Timestamp) -> Option<SharedModel> {
        let mut next = self.clone();
        let reason = change.reason.clone().unwrap_or_default();
        let mut set = |document: &str, highest: Option<Version>| {
            next.document = Some(document.to_owned());
            next.retired = None;
            next.highest_served = next.highest_served.max(highest);
        };
        match &change.effect {
            Effect::SetDocument { document, highest_served, auto_promoted } => {
                set(document, *highest_served);
                next.auto_promoted.extend(*auto_promoted);
            }
            Effect::SetRollout { document: Some(NewDocument { document, highest_served }), .. } => {
                set(document, *highest_served);
            }
            Effect::SetModelUnloaded(unloaded) => next.unloaded = *unloaded,
            Effect::Retire { .. } => {
                next.retired = Some(Retirement { ts, actor: change.actor.clone(), reason });
                next.unloaded = false;
            }
            Effect::SetOperatorUnloaded { version, unloaded: true } => {
                next.operator_unloaded.insert(*version);
            }
            Effect::SetOperatorUnloaded { version, unloaded: false } => {
                next.operator_unloaded.remove(version);
            }
            Effect::Review { version, artifact, approved } => {
                let (artifact, actor) = (artifact.clone(), change.actor.clone());
                next.reviews.insert(*version, Review { artifact, approved: *approved, actor, ts, reason });
            }
            Effect::Propose { version } => {
                next.proposers.entry(*version).or_default().insert(change.actor.clone());
            }
            Effect::SetRollout { document: None, .. }
            | Effect::RecordArtifact { .. }
            | Effect::RecordCrash { .. }
            | Effect::SetAside { .. }
            | Effect::ForgiveCrashes { .. }
            | Effect::Share { .. }
            | Effect::None => return None,
        }
        Some(next)
    }

    /// The same, with what another state has of what is never taken away: who pushed or asked for what, which versions served or were promoted
    /// automatically, and a document where this one has none.
    #[must_use]
    pub fn with_missing(mut self, other: &SharedModel) -> SharedModel {
        if self.document.is_none() {
            self.document.clone_from(&other.document);
        }
        self.highest_served = self.highest_served.max(other.highest_served);
        self.auto_promoted.extend(&other.auto_promoted);
        for (version, actors) in &other.proposers {
            self.proposers.entry(*version).or_default().extend(actors.iter().cloned());
        }
        self
    }

    /// Whether two states are the same but for the times of retirements and reviews: each gateway stores a change a moment after another.
    #[must_use]
    pub fn is_as(&self, other: &SharedModel) -> bool {
        let timeless = |state: &SharedModel| {
            let mut state = state.clone();
            state.retired.iter_mut().for_each(|retired| retired.ts = Timestamp::UNIX_EPOCH);
            state.reviews.values_mut().for_each(|review| review.ts = Timestamp::UNIX_EPOCH);
            state
        };
        timeless(self) == timeless(other)
    }

    /// The change that replaces this state, as it is stored here, by `next`.
    #[must_use]
    pub fn replaced_by(&self, next: SharedModel, by: Replaced) -> Change {
        let Replaced { model, actor, action, reason, made_by } = by;
        let texts = [(self, &next), (&next, self)].map(|(state, other)| Some(state.shown(other).to_string()));
        let [before, after] = texts;
        let effect = Effect::Share { state: Box::new(next), made_by };
        Change { model, actor, action, reason, before, after, effect }
    }

    /// The state as the audit trail shows it beside another one: the document, and in `state` what is different.
    fn shown(&self, other: &SharedModel) -> Value {
        let document = self.document.as_deref().and_then(|text| serde_json::from_str::<Map<_, _>>(text).ok());
        let mut shown = document.unwrap_or_default();
        let mut state = Map::new();
        let mut different = |name: &str, is: bool, value: Value| {
            if is {
                state.insert(name.to_owned(), value);
            }
        };
        different("unloaded", self.unloaded != other.unloaded, json!(self.unloaded));
        different("retired", self.retired != other.retired, json!(self.retired));
        let unloaded = &self.operator_unloaded;
        different("operator_unloaded", *unloaded != other.operator_unloaded, json!(unloaded));
        let reviews = self.reviews.iter().filter(|(version, review)| !has(&other.reviews, **version, review));
        let reviews: BTreeMap<_, _> = reviews.collect();
        different("reviews", !reviews.is_empty(), json!(reviews));
        different("proposers", self.proposers != other.proposers, json!(self.proposers));
        if !state.is_empty() {
            shown.insert(STATE.to_owned(), Value::Object(state));
        }
        Value::Object(shown)
    }
}

/// Whether these are the reviews of a version, whenever it was stored.
fn has(reviews: &BTreeMap<Version, Review>, version: Version, review: &Review) -> bool {
    reviews.get(&version).is_some_and(|known| Review { ts: review.ts, ..known.clone() } == *review)
}

/// The member of an event's `before` and `after` with what else is shared, beside the members of the document.
pub(super) const STATE: &str = "state";

/// Who replaced a state, and how.
#[derive(Debug)]
pub struct Replaced {
    pub model: ModelName,
    pub actor: String,
    pub action: Action,
    pub reason: Option<String>,
    /// The action on the gateway that made the change, as [`Action::as_str`] spells it. The history shows it.
    pub made_by: Option<String>,
}

/// Stores a state that another gateway has. Its document makes a new revision where it is another one, or the model becomes retired.
pub(super) fn share(
    transaction: &Transaction<'_>,
    model: &str,
    event_id: Option<i64>,
    state: &SharedModel,
    made_by: Option<&str>,
) -> rusqlite::Result<()> {
    let run = |sql: &str, params: &[&dyn rusqlite::ToSql]| transaction.prepare_cached(sql)?.execute(params);
    let stored = transaction
        .prepare_cached(
            "SELECT d.document, m.retired IS NOT NULL FROM models m
             LEFT JOIN documents d ON d.model = m.model AND d.revision = m.revision WHERE m.model = ?1",
        )?
        .query_row([model], |row| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, bool>(1)?)))
        .optional()?;
    let (document, was_retired) = stored.unwrap_or_default();
    if let Some(next) = &state.document
        && (document.as_ref() != Some(next) || state.retired.is_some() && !was_retired)
    {
        set_document(transaction, model, event_id, next, state.highest_served, made_by)?;
    } else if let Some(version) = state.highest_served {
        raise_highest_served(transaction, model, version)?;
    }
    let retired = state.retired.as_ref().map(|Retirement { ts, actor, reason }| elsewhere(actor, *ts, reason));
    let event = event_id.filter(|_| retired.is_some());
    run(
        "UPDATE models SET taken_out = ?2, retired = ?3, retired_elsewhere = ?4 WHERE model = ?1",
        &[&model, &state.unloaded, &event, &retired],
    )?;
    for version in &state.auto_promoted {
        run("INSERT OR IGNORE INTO auto_promoted VALUES (?1, ?2)", &[&model, &version.to_string()])?;
    }
    run("DELETE FROM operator_unloaded WHERE model = ?1", &[&model])?;
    for version in &state.operator_unloaded {
        run("INSERT INTO operator_unloaded VALUES (?1, ?2)", &[&model, &version.to_string()])?;
    }
    for (version, actors) in &state.proposers {
        for actor in actors {
            run("INSERT OR IGNORE INTO proposers VALUES (?1, ?2, ?3)", &[&model, &version.to_string(), actor])?;
        }
    }
    let mut known = BTreeMap::new();
    each_review(transaction, model, |review| {
        // One that cannot be read is replaced.
        known.extend(review.ok());
        Ok(())
    })?;
    run(
        "DELETE FROM reviews WHERE model = ?1 AND version NOT IN (SELECT value FROM json_each(?2))",
        &[&model, &json!(state.reviews.keys().collect::<Vec<_>>()).to_string()],
    )?;
    for (version, review) in state.reviews.iter().filter(|(version, review)| !has(&known, **version, review)) {
        let Review { artifact, approved, actor, ts, reason } = review;
        run(
            "INSERT OR REPLACE INTO reviews (model, version, artifact, approved, event, elsewhere) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            &[&model, &version.to_string(), artifact, approved, &event_id, &elsewhere(actor, *ts, reason)],
        )?;
    }
    Ok(())
}

/// Calls `take` with each stored review of a model.
pub(super) fn each_review(
    connection: &Connection,
    model: &str,
    mut take: impl FnMut(rusqlite::Result<(Version, Review)>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "SELECT r.version, r.artifact, r.approved, e.actor, e.ts, e.reason, r.elsewhere FROM reviews r JOIN events e ON e.id = r.event
         WHERE r.model = ?1",
    )?;
    let review = |row: &Row<'_>| {
        let Elsewhere { actor, ts, reason } = made(row, 3)?;
        let (artifact, approved) = (row.get(1)?, row.get(2)?);
        Ok((row.get::<_, Text<Version>>(0)?.0, Review { artifact, approved, actor, ts, reason }))
    };
    for row in statement.query_map([model], review)? {
        take(row)?;
    }
    Ok(())
}

/// Reads a retirement from the columns that begin at `first`: the event's number, its actor, its time and its reason, and who retired the
/// model elsewhere.
pub(super) fn retirement(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<Retirement>> {
    if row.get::<_, Option<i64>>(first)?.is_none() {
        return Ok(None);
    }
    let Elsewhere { actor, ts, reason } = made(row, first + 1)?;
    Ok(Some(Retirement { ts, actor, reason }))
}

/// Reads who did something from the columns that begin at `first`: the event's actor, time and reason, and those elsewhere, which count.
fn made(row: &Row<'_>, first: usize) -> rusqlite::Result<Elsewhere> {
    match row.get::<_, Option<String>>(first + 3)? {
        Some(text) => serde_json::from_str(&text)
            .map_err(|e| rusqlite::Error::FromSqlConversionFailure(first + 3, Type::Text, Box::new(e))),
        None => Ok(Elsewhere {
            actor: row.get(first)?,
            ts: row.get::<_, Text<Timestamp>>(first + 1)?.0,
            reason: row.get::<_, Option<String>>(first + 2)?.unwrap_or_default(),
        }),
    }
}

fn elsewhere(actor: &str, ts: Timestamp, reason: &str) -> String {
    json!({"actor": actor, "ts": ts, "reason": reason}).to_string()
}

#[expect(clippy::ref_option, reason = "as serde calls it")]
fn write_document<S: Serializer>(document: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    let value = document.as_deref().map(serde_json::from_str::<Value>).transpose();
    value.map_err(serde::ser::Error::custom)?.serialize(serializer)
}

fn read_document<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Value>::deserialize(deserializer)?.map(|document| document.to_string()))
}
