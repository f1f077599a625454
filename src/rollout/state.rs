//! The state of a rollout as the ledger stores it, and the traffic document of each step.

use super::plan::Plan;
use crate::model::{ArmName, Version};
use crate::route::{Arm, Document, Shadow};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// One rollout, active or ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    pub(crate) plan: Plan,
    /// The traffic document from before the rollout, restored when it is moved back or aborted.
    pub(crate) before: Document,
    /// The 99th percentile of the latency of the versions that served before; `None` where they had too few requests under that document.
    pub(crate) p99_before_us: Option<u64>,
    /// The salt of its steps, so that not the users of the last rollout are the first ones again. `None`: the salt of `before`.
    pub(crate) salt: Option<String>,
    /// The revision of the document that the rollout put in force last.
    pub(crate) revision: u64,
    pub(crate) step: Step,
    pub(crate) paused: bool,
    /// The reason for the current state, in words.
    pub(crate) why: String,
    pub(crate) ended: Option<Ended>,
    /// The operator who began it.
    pub(crate) started_by: String,
    pub(crate) started_at: Timestamp,
    pub(crate) step_started_at: Timestamp,
    /// Oldest first.
    pub(crate) moves: Vec<Move>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    /// The candidate gets copies of requests and answers none.
    Shadow,
    /// The candidate answers the share at this index of the plan's steps.
    At(usize),
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ended {
    /// The last step was held.
    Finished,
    /// A guardrail was violated, and the traffic was moved back.
    TakenBack,
    /// An operator aborted it, and the traffic was moved back.
    Aborted,
    /// Somebody else changed the traffic document, which stays as it is.
    Stopped,
}

/// One change of a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Move {
    pub(crate) ts: Timestamp,
    /// As in the audit trail.
    pub(crate) action: String,
    /// The candidate's share after it, in percent.
    pub(crate) percent: f64,
    pub(crate) reason: String,
}

/// The JSON form in the ledger.
#[derive(Serialize, Deserialize)]
struct StoredState {
    plan: Value,
    before: Value,
    #[serde(default)]
    p99_before_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    salt: Option<String>,
    revision: u64,
    step: Step,
    paused: bool,
    why: String,
    ended: Option<Ended>,
    #[serde(rename = "by")]
    started_by: String,
    started_at: Timestamp,
    step_started_at: Timestamp,
    moves: Vec<Move>,
}

// === impl Ended ===

impl Ended {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Ended::Finished => "finished",
            Ended::TakenBack => "taken_back",
            Ended::Aborted => "aborted",
            Ended::Stopped => "stopped",
        }
    }
}

// === impl State ===

impl State {
    /// The candidate's current share, in percent.
    pub(crate) fn percent(&self) -> f64 {
        match (self.ended, self.step) {
            (Some(Ended::TakenBack | Ended::Aborted), _) | (_, Step::Shadow) => 0.0,
            (_, Step::At(index)) => self.plan.steps.get(index).copied().unwrap_or(0.0),
        }
    }

    /// The name of the state in the admin API.
    pub(crate) fn name(&self) -> &'static str {
        match (self.ended, self.paused, self.step) {
            (Some(ended), ..) => ended.as_str(),
            (None, true, _) => "paused",
            (None, false, Step::Shadow) => "shadowing",
            (None, false, Step::At(_)) => "running",
        }
    }

    pub(crate) fn is_active(&self) -> bool {
        self.ended.is_none()
    }

    /// The next step; `None` after the last.
    pub(crate) fn next_step(&self) -> Option<Step> {
        let next = match self.step {
            Step::Shadow => 0,
            Step::At(index) => index + 1,
        };
        (next < self.plan.steps.len()).then_some(Step::At(next))
    }

    /// The traffic document of a step.
    pub(crate) fn document(&self, step: Step) -> Document {
        let percent = match step {
            Step::Shadow => return with_shadow(&self.before, self.plan.to, self.plan.shadow_sample),
            Step::At(index) => self.plan.steps.get(index).copied().unwrap_or(0.0),
        };
        let mut next = if percent >= 100.0 {
            self.before.promoted(self.plan.to)
        } else {
            with_candidate(&self.before, self.plan.to, percent)
        };
        if percent < 100.0 && self.salt.is_some() {
            next.salt.clone_from(&self.salt);
        }
        next.reason = Some(self.plan.reason.clone());
        next
    }

    /// The name of the candidate's arm.
    pub(crate) fn candidate_arm(&self) -> ArmName {
        candidate_arm(&self.before, self.plan.to)
    }

    /// The versions that the candidate is compared with.
    pub(crate) fn control_versions(&self) -> BTreeSet<Version> {
        control_arms(&self.before, self.plan.to).filter(|arm| arm.weight > 0.0).map(|arm| arm.version).collect()
    }

    pub(super) fn record_move(&mut self, action: &str, reason: &str) {
        let (action, reason) = (action.to_owned(), reason.to_owned());
        self.moves.push(Move { ts: Timestamp::now(), action, percent: self.percent(), reason });
    }

    /// The text that the ledger stores.
    pub(super) fn to_json(&self) -> String {
        let stored = StoredState {
            plan: self.plan.to_json(),
            before: serde_json::to_value(&self.before).unwrap_or(Value::Null),
            p99_before_us: self.p99_before_us,
            salt: self.salt.clone(),
            revision: self.revision,
            step: self.step,
            paused: self.paused,
            why: self.why.clone(),
            ended: self.ended,
            started_by: self.started_by.clone(),
            started_at: self.started_at,
            step_started_at: self.step_started_at,
            moves: self.moves.clone(),
        };
        json!(stored).to_string()
    }

    /// Reads a stored state.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn from_json(text: &str) -> Result<State, String> {
        let stored: StoredState = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let before = Document::from_json(&stored.before.to_string()).map_err(|complaints| complaints.join("; "))?;
        let plan = Plan::parse(&stored.plan).map_err(|complaints| complaints.join("; "))?;
        if let Step::At(index) = stored.step
            && index >= plan.steps.len()
        {
            return Err(format!("step {index} of a plan that has {} steps", plan.steps.len()));
        }
        Ok(State {
            plan,
            before,
            p99_before_us: stored.p99_before_us,
            salt: stored.salt,
            revision: stored.revision,
            step: stored.step,
            paused: stored.paused,
            why: stored.why,
            ended: stored.ended,
            started_by: stored.started_by,
            started_at: stored.started_at,
            step_started_at: stored.step_started_at,
            moves: stored.moves,
        })
    }
}

/// The arms that the candidate is compared with: those of other versions. If there are none (an A/A rollout of the serving version), all
/// arms.
fn control_arms(before: &Document, to: Version) -> impl Iterator<Item = &Arm> {
    let others = before.split.iter().any(|arm| arm.version != to && arm.weight > 0.0);
    before.split.iter().filter(move |arm| !others || arm.version != to)
}

/// The version's number, unless a control arm has that name.
fn candidate_arm(before: &Document, to: Version) -> ArmName {
    let name = ArmName::from(to);
    let is_used = |name: &ArmName| control_arms(before, to).any(|arm| arm.arm == *name);
    if !is_used(&name) {
        return name;
    }
    let others = ["candidate".to_owned()].into_iter().chain((2..).map(|n| format!("candidate-{n}")));
    let free = others.filter_map(|name| name.parse().ok()).find(|name| !is_used(name));
    free.expect("a split has fewer arms than there are numbers")
}

/// The candidate's arm with `percent` %; the control's arms share the rest in their old proportions. Arms of other versions with weight 0
/// stay: a version that no document names may be unloaded, and then moving back to it would be refused.
fn with_candidate(before: &Document, to: Version, percent: f64) -> Document {
    let sum: f64 = control_arms(before, to).map(|arm| arm.weight).sum();
    let rest = control_arms(before, to).map(|arm| Arm { weight: arm.weight / sum * (100.0 - percent), ..arm.clone() });
    let mut next = before.clone();
    next.split = rest.chain([Arm { version: to, weight: percent, arm: candidate_arm(before, to) }]).collect();
    next
}

/// The document with the candidate among its shadows.
fn with_shadow(before: &Document, to: Version, sample: f64) -> Document {
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
            p99_before_us: Some(1200),
            salt: None,
            revision: 3,
            step: Step::At(0),
            paused: false,
            why: "begun".to_owned(),
            ended: None,
            started_by: "ann".to_owned(),
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
    fn a_state_can_be_read_back_from_its_json() {
        let state = state(&json!({"split": [{"version": "1", "weight": 1}], "labels": {"a": "1"}}), "2");
        assert_eq!(State::from_json(&state.to_json()).unwrap(), state);
        let salted = State { salt: Some("s".to_owned()), ..state.clone() };
        assert_eq!(State::from_json(&salted.to_json()).unwrap(), salted);
        let broken = |member: &str, value: Value| {
            let mut json: Value = serde_json::from_str(&state.to_json()).unwrap();
            json[member] = value;
            State::from_json(&json.to_string()).unwrap_err()
        };
        assert!(broken("step", json!({"at": 3})).contains("step 3 of a plan that has 3 steps"));
        for (member, value) in [
            ("before", Value::Null),
            ("plan", Value::Null),
            ("revision", json!(-1)),
            ("ended", json!("unknown")),
            ("moves", Value::Null),
        ] {
            broken(member, value);
        }
        for text in ["", "null", "{}", "[]"] {
            assert!(State::from_json(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_control_arms_keep_their_proportions_and_everything_else_stays() {
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
        assert!(last.shadows.is_empty(), "the same as after a promote");
    }

    #[test]
    fn the_salt_of_a_rollout_is_the_same_in_every_step() {
        let before =
            json!({"split": [{"version": "1", "weight": 1}], "sticky_by": {"header": "x-user"}, "salt": "old"});
        let state = State { salt: Some("new".to_owned()), ..state(&before, "2") };
        let salt = |step| state.document(step).salt.unwrap();
        assert_eq!((salt(Step::At(0)), salt(Step::At(1))), ("new".to_owned(), "new".to_owned()));
        assert_eq!(salt(Step::At(2)), "old", "one arm alone has nothing to draw");
        assert_eq!(salt(Step::Shadow), "old");
    }

    #[test]
    fn a_candidate_that_already_serves_gets_one_arm_and_the_others_are_the_control() {
        let before = json!({"split": [{"version": "1", "weight": 9}, {"version": "2", "weight": 1, "arm": "try"}]});
        let state = state(&before, "2");
        assert_eq!(arms(&state.document(Step::At(1))), [arm("1", "1", 50.0), arm("2", "2", 50.0)]);
        assert_eq!(state.control_versions(), ["1".parse().unwrap()].into());
    }

    #[test]
    fn a_version_compared_with_itself_gets_an_arm_of_another_name() {
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
        assert!(state.document(Step::At(0)).shadows.is_empty(), "the shadow that the rollout added is removed");
    }

    #[test]
    fn steps_follow_each_other_until_the_last() {
        let mut state = state(&json!({"split": [{"version": "1", "weight": 1}]}), "2");
        assert_eq!(state.next_step(), Some(Step::At(1)));
        state.step = Step::At(2);
        assert_eq!((state.next_step(), state.percent()), (None, 100.0));
        state.ended = Some(Ended::TakenBack);
        assert_eq!((state.percent(), state.name()), (0.0, "taken_back"));
    }
}
