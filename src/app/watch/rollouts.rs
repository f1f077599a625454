//! Rollouts that were taken back, and guardrails that the evidence comes close to breaking.

use crate::alerts::{About, Finding, Now, Rule, Severity};
use crate::ledger::LedgerReader;
use crate::model::ModelName;
use crate::registry::Reader;
use crate::rollout::{NearGuardrail, Rollouts, View};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::time::Duration;

/// How long a rollout that was taken back is an alert, unless other traffic or another rollout ends it before.
const TAKEN_BACK: SignedDuration = SignedDuration::from_hours(24);
/// How long the answer about one rollout may take.
const ANSWER: Duration = Duration::from_secs(2);
/// The most active rollouts that are asked for their evidence in one look.
const MOST_ACTIVE: usize = 200;

/// The stored rollouts. They are read again when the audit trail has a new event, as every move of a rollout is one.
#[derive(Debug)]
pub(super) struct Watched {
    ledger: LedgerReader,
    rollouts: Rollouts,
    reader: Reader,
    head: Option<u64>,
    stored: Vec<Stored>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// What is read of a stored rollout.
#[derive(Debug)]
struct Stored {
    model: ModelName,
    to: String,
    active: bool,
    /// When it was taken back, the reason, and the revision that it put in force then.
    taken_back: Option<(Timestamp, String, u64)>,
}

impl Watched {
    pub(super) fn new(ledger: LedgerReader, rollouts: Rollouts, reader: Reader) -> Watched {
        Watched { ledger, rollouts, reader, head: None, stored: Vec::new(), runtime: None }
    }

    /// `None` when the ledger cannot be read.
    pub(super) fn look(&mut self, now: Now) -> Option<Vec<Finding>> {
        let head = self.ledger.head().ok()?.id;
        if self.head != Some(head) {
            let all = self.ledger.rollouts().ok()?;
            self.stored = all.into_iter().filter_map(|(model, state)| Stored::read(model, &state)).collect();
            self.head = Some(head);
        }
        let snapshot = self.reader.snapshot();
        let mut findings = Vec::new();
        for stored in &self.stored {
            let Some((at, why, revision)) = &stored.taken_back else { continue };
            let same = snapshot.model(stored.model.as_str()).is_none_or(|entry| entry.revision() <= *revision);
            if same && now.ts.duration_since(*at) < TAKEN_BACK {
                findings.push(taken_back(&stored.model, &stored.to, *at, why));
            }
        }
        let active: Vec<ModelName> = self
            .stored
            .iter()
            .filter(|stored| stored.active)
            .take(MOST_ACTIVE)
            .map(|stored| stored.model.clone())
            .collect();
        findings.extend(self.near(&active)?);
        Some(findings)
    }

    fn near(&mut self, active: &[ModelName]) -> Option<Vec<Finding>> {
        if active.is_empty() {
            return Some(Vec::new());
        }
        if self.runtime.is_none() {
            self.runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().ok();
        }
        let (runtime, rollouts) = (self.runtime.as_ref()?, &self.rollouts);
        let mut findings = Vec::new();
        for model in active {
            let asked = runtime.block_on(async { tokio::time::timeout(ANSWER, rollouts.view(model.clone())).await });
            // Without an answer in time nothing is known.
            let Ok(view) = asked.ok()? else { continue };
            findings.extend(view.near().into_iter().map(|near| near_finding(&view, near)));
        }
        Some(findings)
    }
}

impl Stored {
    fn read(model: ModelName, state: &str) -> Option<Stored> {
        let state: Value = serde_json::from_str(state).ok()?;
        let taken_back = (state["ended"] == "taken_back").then(|| {
            let last = state["moves"].as_array().and_then(|moves| moves.last());
            let at = last.and_then(|last| last["ts"].as_str()?.parse().ok()).unwrap_or_default();
            (at, state["why"].as_str().unwrap_or_default().to_owned(), state["revision"].as_u64().unwrap_or_default())
        });
        let to = state["plan"]["to"].as_str().unwrap_or_default().to_owned();
        Some(Stored { model, to, active: state["ended"].is_null(), taken_back })
    }
}

fn taken_back(model: &ModelName, to: &str, at: Timestamp, why: &str) -> Finding {
    Finding {
        about: About { version: to.parse().ok(), ..About::model(Rule::RolloutTakenBack, model) },
        severity: Severity::Critical,
        summary: format!("the rollout of {model} to version {to} was taken back: {why}"),
        how_sure: "the guardrails of the plan decide, with its rate of false alarms (docs/TRAFFIC.md)".to_owned(),
        what_to_do: format!(
            "`sluicegate rollout {model}` shows the evidence; the traffic is as it was before, so nothing is urgent"
        ),
        since: Some(at),
        training: None,
    }
}

fn near_finding(view: &View, near: NearGuardrail) -> Finding {
    let (model, to) = (&view.model, view.state.plan.to);
    let NearGuardrail { name, low, limit, level } = near;
    Finding {
        about: About { subject: name.to_owned(), ..About::version(Rule::GuardrailNear, model, to) },
        severity: Severity::Warning,
        summary: format!(
            "the rollout of {model} to version {to} is close to being taken back: {name} is at least {low:.3}, and its limit is {limit}"
        ),
        how_sure: format!(
            "at the level {level:.4}, four times the one that takes it back: at most {:.0} % of the rollouts of equally good versions see this",
            view.state.plan.guardrails.false_alarm_rate * 400.0
        ),
        what_to_do: format!(
            "look at the evidence: `sluicegate rollout {model}`; pause it: `sluicegate rollout {model} --pause --reason TEXT`"
        ),
        since: None,
        training: None,
    }
}
