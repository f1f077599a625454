//! Follows what happens, so that each event is put into the outbox once: the changes of the audit trail by their numbers, and the states of
//! versions by what was announced before.

use super::event::{Event, EventKind, link_of, of_change, overrides_approval};
use super::finding::{About, Alert, ChangeBefore, Finding, Now};
use super::rule::{Rule, Severity};
use super::{Training, VersionState};
use crate::ledger::{self, AuditQuery, LedgerReader};
use crate::model::ModelName;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// The most changes of the audit trail that one look takes. More are taken by the next looks.
const MOST_CHANGES: usize = 500;
/// How long a change that overrode an approval is an alert.
const BREAK_GLASS: SignedDuration = SignedDuration::from_hours(24);
/// The most of them that are alerts.
const MOST_BREAK_GLASS: usize = 100;
/// At most one event in this time asks for the retraining of a model.
const RETRAIN_EVERY: SignedDuration = SignedDuration::from_hours(24);
/// The time range of a training set where the finding names none.
const TRAINING_RANGE: SignedDuration = SignedDuration::from_hours(30 * 24);
/// A change that is older than this has hardly anything to do with an alert.
const RECENT_CHANGE: SignedDuration = SignedDuration::from_hours(7 * 24);

const CURSOR: &str = "audit_event";
const CHAIN: &str = "audit_chain";
const BASELINE: &str = "versions_known";
const RETRAINED: &str = "retrained";

/// Where the last look ended.
#[derive(Debug)]
pub(super) struct Follow {
    chain: String,
    /// The number of the last change that was taken.
    cursor: u64,
    /// The names of announced states.
    announced: HashSet<String>,
    /// Whether the versions that were there at the first start are known. They are not news.
    baseline: bool,
    /// When a retraining was last asked for.
    retrained: BTreeMap<ModelName, Timestamp>,
    overridden: VecDeque<(Timestamp, ModelName, Finding)>,
    /// The states that the last stored look saw. The same ones bring nothing new.
    states: Option<Arc<Vec<VersionState>>>,
}

/// What a look found, and what has to be stored with it.
#[derive(Debug, Default)]
pub(super) struct Followed {
    pub events: Vec<Event>,
    pub meta: Vec<(&'static str, String)>,
    pub announced: Vec<String>,
    pub not_announced: Vec<String>,
    cursor: Option<u64>,
    baseline: bool,
    retrained: Vec<(ModelName, Timestamp)>,
    overridden: Vec<(Timestamp, ModelName, Finding)>,
    states: Option<Arc<Vec<VersionState>>>,
}

impl Follow {
    /// Goes on where the last server ended, or with the next change where there was none or the data directory has another audit trail.
    pub(super) fn new(
        ledger: &LedgerReader,
        meta: &HashMap<String, String>,
        announced: Vec<String>,
        now: Timestamp,
    ) -> Result<Follow, ledger::LedgerError> {
        let head = ledger.head()?;
        let stored = meta.get(CURSOR).and_then(|text| text.parse().ok());
        let same_chain = meta.get(CHAIN) == Some(&head.chain);
        let cursor = stored.filter(|cursor| same_chain && *cursor <= head.id).unwrap_or(head.id);
        let since = now.checked_sub(BREAK_GLASS).unwrap_or(Timestamp::MIN);
        let query = AuditQuery { model: None, since: Some(since), limit: 10_000 };
        let recent = ledger.audit_of(&query, |_| true)?;
        let mut overridden: VecDeque<_> = recent.iter().filter_map(overridden_by).collect();
        overridden.truncate(MOST_BREAK_GLASS);
        let retrained = meta.get(RETRAINED).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Ok(Follow {
            chain: head.chain,
            cursor,
            announced: announced.into_iter().collect(),
            baseline: meta.contains_key(BASELINE),
            retrained,
            overridden,
            states: None,
        })
    }

    /// Takes the next changes of the audit trail.
    pub(super) fn changes(&self, ledger: &LedgerReader, followed: &mut Followed) -> Result<(), ledger::LedgerError> {
        let changes = ledger.events_after(self.cursor, MOST_CHANGES)?;
        let Some((last, _)) = changes.last() else { return Ok(()) };
        followed.cursor = Some(*last);
        followed.meta.push((CURSOR, last.to_string()));
        followed.meta.push((CHAIN, self.chain.clone()));
        for change in changes.iter().filter_map(|(_, change)| change.as_ref()) {
            followed.events.extend(of_change(&self.chain, change));
            followed.overridden.extend(overridden_by(change));
        }
        Ok(())
    }

    /// Announces versions that became ready, or failed, with files or a reason that were not announced.
    pub(super) fn versions(&self, states: &Arc<Vec<VersionState>>, now: Timestamp, followed: &mut Followed) {
        if self.states.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, states)) {
            return;
        }
        followed.states = Some(Arc::clone(states));
        // The name of the state of each version now.
        let mut current: HashMap<String, String> = HashMap::new();
        for state in states.iter() {
            let name = name_of(state);
            if !self.announced.contains(&name) {
                if self.baseline {
                    followed.events.push(announcement(state, now));
                }
                followed.announced.push(name.clone());
            }
            current.insert(format!("{}/{}", state.model, state.version), name);
        }
        // One that comes back with the same files was announced before. One that failed and was ready in between fails anew, and nothing is
        // kept of a version that is gone.
        let over = |name: &&String| {
            let version = name.rsplitn(3, '/').nth(2).unwrap_or_default();
            let failed = current.get(version).is_some_and(|now| now.ends_with(FAILED));
            current.get(version).is_none_or(|now| now != *name) && !failed
        };
        followed.not_announced.extend(self.announced.iter().filter(over).cloned());
        if !self.baseline {
            followed.baseline = true;
            followed.meta.push((BASELINE, "1".to_owned()));
        }
    }

    /// Asks for the retraining of models whose alerts ask for it.
    pub(super) fn retrain<'a>(&self, firing: impl Iterator<Item = &'a Alert>, now: Timestamp, followed: &mut Followed) {
        let mut asked: BTreeMap<&ModelName, Vec<&Alert>> = BTreeMap::new();
        for alert in firing.filter(|alert| alert.about.rule.asks_for_retraining()) {
            if let Some(model) = &alert.about.model {
                asked.entry(model).or_default().push(alert);
            }
        }
        for (model, alerts) in asked {
            let last = self.retrained.get(model);
            if last.is_some_and(|last| now.duration_since(*last) < RETRAIN_EVERY) {
                continue;
            }
            let default = (now.checked_sub(TRAINING_RANGE).unwrap_or(Timestamp::MIN), now);
            let (from, to) = alerts.iter().find_map(|alert| alert.training).unwrap_or(default);
            let command =
                format!("sluicegate export {model} --from {from:.0} --to {to:.0} --require-label -o {model}.parquet");
            let rules: Vec<&str> = alerts.iter().map(|alert| alert.about.rule.as_str()).collect();
            let first = alerts[0];
            followed.events.push(Event {
                id: format!("retrain/{model}/{now:.0}"),
                event: EventKind::Retrain,
                ts: now,
                model: Some(model.clone()),
                version: first.about.version,
                actor: "sluicegate".to_owned(),
                reason: Some(first.summary.clone()),
                summary: format!("{model}: a new version should be trained ({})", unique(&rules)),
                link: link_of(Some(model)),
                training: Some(Training { from, to, command }),
            });
            followed.retrained.push((model.clone(), now));
        }
        if !followed.retrained.is_empty() {
            let mut all = self.retrained.clone();
            all.extend(followed.retrained.iter().cloned());
            all.retain(|_, last| now.duration_since(*last) < RETRAIN_EVERY);
            followed.meta.push((RETRAINED, serde_json::to_string(&all).unwrap_or_default()));
        }
    }

    /// Takes over what was stored.
    pub(super) fn stored(&mut self, followed: Followed) {
        self.cursor = followed.cursor.unwrap_or(self.cursor);
        self.baseline |= followed.baseline;
        self.announced.extend(followed.announced);
        for name in &followed.not_announced {
            self.announced.remove(name);
        }
        self.retrained.extend(followed.retrained);
        self.overridden.extend(followed.overridden);
        self.states = followed.states.or_else(|| self.states.take());
    }

    /// Findings about overridden approvals of the last day.
    pub(super) fn overridden(&mut self, now: Now) -> Vec<Finding> {
        self.overridden.retain(|(at, ..)| now.ts.duration_since(*at) < BREAK_GLASS);
        while self.overridden.len() > MOST_BREAK_GLASS {
            self.overridden.pop_front();
        }
        self.overridden.iter().map(|(.., finding)| finding.clone()).collect()
    }
}

fn unique(words: &[&str]) -> String {
    let mut words = words.to_vec();
    words.sort_unstable();
    words.dedup();
    words.join(", ")
}

/// The name under which a state is announced, after the model and the version. Other files are another announcement; another reason is none, as
/// a reason may have a number in it that is different each time.
fn name_of(state: &VersionState) -> String {
    let VersionState { model, version, what } = state;
    match what {
        Ok(digest) => {
            let digest = super::book::hex(&Sha256::digest(digest.as_bytes())[..8]);
            format!("{model}/{version}/ready/{digest}")
        }
        Err(_) => format!("{model}/{version}{FAILED}"),
    }
}

/// The end of the name of a version that failed.
const FAILED: &str = "/failed/-";

fn announcement(state: &VersionState, now: Timestamp) -> Event {
    let VersionState { model, version, what } = state;
    let (event, summary) = match what {
        Ok(_) => (EventKind::Ready, format!("{model}: version {version} is ready")),
        Err(reason) => (EventKind::Failed, format!("{model}: version {version} failed: {reason}")),
    };
    Event {
        id: format!("{}/{now}", name_of(state)),
        event,
        ts: now,
        model: Some(model.clone()),
        version: Some(*version),
        actor: "sluicegate".to_owned(),
        reason: what.as_ref().err().cloned(),
        summary,
        link: link_of(Some(model)),
        training: None,
    }
}

fn overridden_by(change: &ledger::Event) -> Option<(Timestamp, ModelName, Finding)> {
    let after = serde_json::from_str(change.after.as_deref()?).ok()?;
    let model = change.model.clone().filter(|_| overrides_approval(&after))?;
    let reason = change.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let about = About { subject: format!("event {}", change.id), ..About::model(Rule::BreakGlass, &model) };
    let finding = Finding {
        about,
        severity: Severity::Critical,
        summary: format!("{} gave traffic of {model} to a version that nobody approved{reason}", change.actor),
        how_sure: format!("event {} of the audit trail says so", change.id),
        what_to_do: format!(
            "review the version: `sluicegate approve {model} VERSION`, or go back: `sluicegate rollback {model}`"
        ),
        since: Some(change.ts),
        training: None,
    };
    Some((change.ts, model, finding))
}

/// The last change of the model, or of anything, before a time.
pub(super) fn change_before(ledger: &LedgerReader, about: &About, at: Timestamp) -> Option<ChangeBefore> {
    // What the server does by itself to its own files explains nothing.
    const NOT_CHANGES: [&str; 7] =
        ["retention", "chain_begin", "forget", "export", "read_request", "propose", "token_create"];
    let change = ledger.last_event_before(about.model.as_ref(), at, &NOT_CHANGES).ok()??;
    let recent = at.duration_since(change.ts) <= RECENT_CHANGE;
    recent.then_some(ChangeBefore {
        id: change.id,
        ts: change.ts,
        actor: change.actor,
        action: change.action,
        reason: change.reason,
    })
}
