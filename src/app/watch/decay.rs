//! Versions that became worse than in training, or than the version before them.

use crate::alerts::{About, Finding, Now, Rule, Severity};
use crate::ledger::LedgerReader;
use crate::model::ModelName;
use crate::outcomes::decay::{Against, Decay, decay};
use crate::quality::History;
use crate::registry::{Entry, Reader};
use crate::route::Document;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// The figures of a model are computed once in so many looks, which is once a minute: labels come slowly, and each time reads all rows of a week.
const LOOKS: u32 = 12;

/// What was found of each model, and when. One model is computed in a look, so that a look stays short.
#[derive(Debug)]
pub(super) struct Watched {
    reader: Reader,
    ledger: LedgerReader,
    history: History,
    every: Duration,
    found: HashMap<ModelName, (Instant, Vec<Finding>)>,
}

impl Watched {
    /// `interval`: from one look to the next.
    pub(super) fn new(reader: Reader, ledger: LedgerReader, history: History, interval: Duration) -> Watched {
        Watched { reader, ledger, history, every: interval * LOOKS, found: HashMap::new() }
    }

    /// `None` while the history of outcomes is read after a start: then it is not known whether something is worse.
    pub(super) fn look(&mut self, now: Now) -> Option<Vec<Finding>> {
        if self.history.state() == "reading" {
            return None;
        }
        let snapshot = self.reader.snapshot();
        let known = self.history.known();
        self.found.retain(|model, _| snapshot.model(model.as_str()).is_some());
        let computed = |model: &ModelName| self.found.get(model).map(|(at, _)| *at);
        let next = known.iter().filter(|model| snapshot.model(model.as_str()).is_some()).min_by_key(|m| computed(m));
        let due =
            next.filter(|model| computed(model).is_none_or(|at| now.at.duration_since(at) >= self.every)).cloned();
        if let Some(model) = due {
            let entry = snapshot.model(model.as_str())?;
            let findings = self.findings(entry, now.ts)?;
            self.found.insert(model, (now.at, findings));
        }
        Some(self.found.values().flat_map(|(_, findings)| findings.clone()).collect())
    }

    /// `None` when the ledger cannot be read, or the rows of other gateways are not known.
    fn findings(&self, entry: &Entry, now: Timestamp) -> Option<Vec<Finding>> {
        let model = entry.name();
        let Some(version) = entry.document().filter(|_| entry.can_serve()).and_then(Document::heaviest) else {
            return Some(Vec::new());
        };
        let facts =
            entry.versions().get(&version).and_then(|status| status.loaded.as_ref()).map(|loaded| &loaded.facts);
        let mut training: BTreeMap<String, f64> =
            facts.and_then(|facts| facts.profile.as_ref()).map(|profile| profile.metrics.clone()).unwrap_or_default();
        training.extend(facts.map(|facts| facts.origin.lineage.metrics.clone()).unwrap_or_default());
        let before = self.ledger.history(model).ok()?;
        let mut before = before.iter().filter_map(|entry| Document::from_json(&entry.document).ok()?.heaviest());
        // The version that most requests went to before this one.
        let before = before.find(|before| *before != version);
        let whole = self.history.whole(model, i64::MIN);
        if whole.fleet.is_some_and(|fleet| !fleet.is_new) {
            return None;
        }
        let rows = whole.snapshot;
        let found = decay(&rows, entry.metrics(), version, &training, before, now.as_microsecond());
        Some(found.into_iter().map(|one| finding(model, one, now)).collect())
    }
}

fn finding(model: &ModelName, decay: Decay, now: Timestamp) -> Finding {
    let Decay { version, metric, what, since, words } = decay;
    let against = match what {
        Against::Training => "training",
        Against::Predecessor => "predecessor",
    };
    let since = Timestamp::from_microsecond(since).ok();
    Finding {
        about: About { subject: format!("{metric} {against}"), ..About::version(Rule::Decay, model, version) },
        severity: Severity::Warning,
        summary: format!("{model}: {words}"),
        how_sure: "four standard errors, by units: by chance once in 30,000 comparisons".to_owned(),
        what_to_do: format!(
            "`sluicegate quality {model} --window 7d --step 1d` shows since when; `sluicegate rollback {model} --dry-run` shows the way back; or train on newer rows"
        ),
        since,
        training: since.map(|since| (since, now)),
    }
}
