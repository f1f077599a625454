//! Where a rollout stands: what is kept in the ledger, and the documents its steps are.

use super::plan::Plan;
use crate::model::{ArmName, Version};
use crate::route::{Arm, Document, Shadow};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// One rollout, from its start to after its end.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    pub plan: Plan,
    /// The document before it began: what a take-back goes back to.
    pub before: Document,
    /// The revision of the document it put in force last.
    pub revision: u64,
    pub step: Step,
    pub paused: bool,
    /// Why it stands where it does, in words.
    pub why: String,
    pub ended: Option<Ended>,
    /// Who began it.
    pub by: String,
    pub started_at: Timestamp,
    pub step_started_at: Timestamp,
    /// All moves, oldest first.
    pub moves: Vec<Move>,
}

/// What the candidate does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Sees copies, and answers nobody.
    Shadow,
    /// Answers as much as the step at this place of the plan says.
    At(usize),
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Its last step was held.
    Finished,
    /// A guardrail was broken.
    TakenBack,
    /// By an operator, who had the traffic taken back.
    Aborted,
    /// Somebody else changed the traffic, which stays as it is.
    Stopped,
}

impl Ended {
    pub const ALL: [Ended; 4] = [Ended::Finished, Ended::TakenBack, Ended::Aborted, Ended::Stopped];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Ended::Finished => "finished",
            Ended::TakenBack => "taken_back",
            Ended::Aborted => "aborted",
            Ended::Stopped => "stopped",
        }
    }
}

/// One move, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Move {
    pub ts: Timestamp,
    /// As the audit trail spells it.
    pub action: String,
    /// The candidate's share afterwards, in percent.
    pub percent: f64,
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    plan: Value,
    before: Value,
    revision: u64,
    step: Step,
    paused: bool,
    why: String,
    ended: Option<Ended>,
    by: String,
    started_at: Timestamp,
    step_started_at: Timestamp,
    moves: Vec<Move>,
}

impl State {
    /// The candidate's share now, in percent.
    #[must_use]
    pub fn percent(&self) -> f64 {
        match (self.ended, self.step) {
            (Some(Ended::TakenBack | Ended::Aborted), _) | (_, Step::Shadow) => 0.0,
            (_, Step::At(place)) => self.plan.steps.get(place).copied().unwrap_or(0.0),
        }
    }

    /// As the admin API spells it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match (self.ended, self.paused, self.step) {
            (Some(ended), ..) => ended.as_str(),
            (None, true, _) => "paused",
            (None, false, Step::Shadow) => "shadowing",
            (None, false, Step::At(_)) => "running",
        }
    }

    #[must_use]
    pub fn is_active(&self) -> bool {
        self.ended.is_none()
    }

    /// The step after this one; `None` after the last.
    #[must_use]
    pub fn next_step(&self) -> Option<Step> {
        let next = match self.step {
            Step::Shadow => 0,
            Step::At(place) => place + 1,
        };
        (next < self.plan.steps.len()).then_some(Step::At(next))
    }

    /// The document of a step.
    #[must_use]
    pub fn document(&self, step: Step) -> Document {
        let percent = match step {
            Step::Shadow => return shadowing(&self.before, self.plan.to, self.plan.shadow_sample),
            Step::At(place) => self.plan.steps.get(place).copied().unwrap_or(0.0),
        };
        let mut next = if percent >= 100.0 {
            self.before.promoted(self.plan.to)
        } else {
            shared(&self.before, self.plan.to, percent)
        };
        next.reason = Some(self.plan.reason.clone());
        next
    }

    /// The name of the candidate's arm.
    #[must_use]
    pub fn candidate(&self) -> ArmName {
        candidate(&self.before, self.plan.to)
    }

    /// The versions the candidate is held against.
    #[must_use]
    pub fn control_versions(&self) -> BTreeSet<Version> {
        control(&self.before, self.plan.to).filter(|arm| arm.weight > 0.0).map(|arm| arm.version).collect()
    }

    /// Notes a move.
    pub fn moved(&mut self, action: &str, reason: &str) {
        let (action, reason) = (action.to_owned(), reason.to_owned());
        self.moves.push(Move { ts: Timestamp::now(), action, percent: self.percent(), reason });
    }

    /// The JSON text the ledger keeps.
    #[must_use]
    pub fn to_json(&self) -> String {
        let kept = Kept {
            plan: self.plan.to_json(),
            before: serde_json::to_value(&self.before).unwrap_or(Value::Null),
            revision: self.revision,
            step: self.step,
            paused: self.paused,
            why: self.why.clone(),
            ended: self.ended,
            by: self.by.clone(),
            started_at: self.started_at,
            step_started_at: self.step_started_at,
            moves: self.moves.clone(),
        };
        json!(kept).to_string()
    }

    /// Reads what the ledger kept.
    ///
    /// # Errors
    /// In words, where it is none of ours.
    pub fn from_json(text: &str) -> Result<State, String> {
        let kept: Kept = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let before = Document::from_json(&kept.before.to_string()).map_err(|complaints| complaints.join("; "))?;
        Ok(State {
            plan: Plan::parse(&kept.plan).map_err(|complaints| complaints.join("; "))?,
            before,
            revision: kept.revision,
            step: kept.step,
            paused: kept.paused,
            why: kept.why,
            ended: kept.ended,
            by: kept.by,
            started_at: kept.started_at,
            step_started_at: kept.step_started_at,
            moves: kept.moves,
        })
    }
}

/// The arms the candidate is held against: those of other versions; where there is none (one version against itself, an A/A
/// rollout), all.
fn control(before: &Document, to: Version) -> impl Iterator<Item = &Arm> {
    let others = before.split.iter().any(|arm| arm.version != to && arm.weight > 0.0);
    before.split.iter().filter(move |arm| !others || arm.version != to)
}

fn candidate(before: &Document, to: Version) -> ArmName {
    let name = ArmName::from(to);
    let is_taken = |name: &ArmName| control(before, to).any(|arm| arm.arm == *name);
    if !is_taken(&name) {
        return name;
    }
    let spare = ["candidate".to_owned()].into_iter().chain((2..).map(|n| format!("candidate-{n}")));
    let free = spare.filter_map(|name| name.parse().ok()).find(|name| !is_taken(name));
    free.expect("a split has fewer arms than there are numbers")
}

/// The candidate's arm with so many percent, and the control's sharing the rest as they did. Arms of other versions without a weight
/// keep their place: a version that no document names may be unloaded, and a take-back that needs it would be refused.
fn shared(before: &Document, to: Version, percent: f64) -> Document {
    let sum: f64 = control(before, to).map(|arm| arm.weight).sum();
    let rest = control(before, to).map(|arm| Arm { weight: arm.weight / sum * (100.0 - percent), ..arm.clone() });
    let mut next = before.clone();
    next.split = rest.chain([Arm { version: to, weight: percent, arm: candidate(before, to) }]).collect();
    next
}

/// The document with the candidate among its shadows.
fn shadowing(before: &Document, to: Version, sample: f64) -> Document {
    let mut next = before.clone();
    if !next.shadows.iter().any(|shadow| shadow.version == to) {
        next.shadows.push(Shadow { version: to, sample });
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Proposal;

    fn state(before: &Value, to: &str) -> State {
        let plan = Plan::parse(&json!({"to": to, "steps": [10, 50, 100], "reason": "better"})).unwrap();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        State {
            plan,
            before: Proposal::parse(before).unwrap().document,
            revision: 3,
            step: Step::At(0),
            paused: false,
            why: "begun".to_owned(),
            ended: None,
            by: "ann".to_owned(),
            started_at: now,
            step_started_at: now,
            moves: vec![Move {
                ts: now,
                action: "rollout_start".to_owned(),
                percent: 10.0,
                reason: "better".to_owned(),
            }],
        }
    }

    fn arms(document: &Document) -> Vec<(String, String, f64)> {
        document.split.iter().map(|a| (a.arm.to_string(), a.version.to_string(), a.weight)).collect()
    }

    fn arm(name: &str, version: &str, weight: f64) -> (String, String, f64) {
        (name.to_owned(), version.to_owned(), weight)
    }

    #[test]
    fn a_state_survives_its_json() {
        let state = state(&json!({"split": [{"version": "1", "weight": 1}], "labels": {"a": "1"}}), "2");
        assert_eq!(State::from_json(&state.to_json()).unwrap(), state);
        assert!(State::from_json("{}").is_err());
    }

    #[test]
    fn the_control_shares_the_rest_as_it_did_and_all_else_stays() {
        let before = json!({
            "split": [{"version": "1", "weight": 3, "arm": "a"}, {"version": "2", "weight": 1, "arm": "b"}, {"version": "3", "weight": 0}],
            "sticky_by": {"header": "x-user"}, "labels": {"l": "1"}, "shadows": [{"version": "4", "sample": 0.5}], "salt": "s"
        });
        let state = state(&before, "4");
        let step = state.document(Step::At(0));
        assert_eq!(arms(&step), [arm("a", "1", 67.5), arm("b", "2", 22.5), arm("3", "3", 0.0), arm("4", "4", 10.0)]);
        assert_eq!(
            (&step.labels, &step.shadows, &step.salt),
            (&state.before.labels, &state.before.shadows, &state.before.salt)
        );
        let last = state.document(Step::At(2));
        assert_eq!(arms(&last), [arm("4", "4", 1.0)]);
        assert!(last.shadows.is_empty(), "as a promote makes it");
    }

    #[test]
    fn a_candidate_that_answers_already_has_one_arm_and_the_others_are_the_control() {
        let before = json!({"split": [{"version": "1", "weight": 9}, {"version": "2", "weight": 1, "arm": "try"}]});
        let state = state(&before, "2");
        assert_eq!(arms(&state.document(Step::At(1))), [arm("1", "1", 50.0), arm("2", "2", 50.0)]);
        assert_eq!(state.control_versions(), ["1".parse().unwrap()].into());
    }

    #[test]
    fn a_version_against_itself_gets_an_arm_of_another_name() {
        let state = state(&json!({"split": [{"version": "1", "weight": 1}]}), "1");
        assert_eq!(arms(&state.document(Step::At(0))), [arm("1", "1", 90.0), arm("candidate", "1", 10.0)]);
        assert_eq!(arms(&state.document(Step::At(2))), [arm("1", "1", 1.0)]);
    }

    #[test]
    fn the_candidate_is_a_shadow_before_the_first_step() {
        let mut state = state(&json!({"split": [{"version": "1", "weight": 1}]}), "2");
        state.step = Step::Shadow;
        let shadow = state.document(Step::Shadow);
        assert_eq!(shadow.shadows, [Shadow { version: "2".parse().unwrap(), sample: 1.0 }]);
        assert_eq!(shadow.split, state.before.split);
        assert_eq!((state.next_step(), state.percent(), state.name()), (Some(Step::At(0)), 0.0, "shadowing"));
        assert!(state.document(Step::At(0)).shadows.is_empty(), "the shadow it added goes");
    }

    #[test]
    fn steps_follow_each_other_to_the_last() {
        let mut state = state(&json!({"split": [{"version": "1", "weight": 1}]}), "2");
        assert_eq!(state.next_step(), Some(Step::At(1)));
        state.step = Step::At(2);
        assert_eq!((state.next_step(), state.percent()), (None, 100.0));
        state.ended = Some(Ended::TakenBack);
        assert_eq!((state.percent(), state.name()), (0.0, "taken_back"));
    }
}
