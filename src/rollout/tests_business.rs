//! Simulated rollouts on a business metric, from the first step to the end: users with different levels and very different activity, through the
//! history of outcomes and the decisions of each check.
//!
//! `SLUICEGATE_LONG_SIMULATIONS=1` runs more; docs/EVIDENCE.md has the figures.

use super::*;
use crate::model::{Feedback, Update, Version};
use crate::outcomes::Kind;
use crate::quality::{Contents, Layout, Predicted, Seen};
use crate::rollout::decide::{Decision, judge};
use crate::rollout::evidence::StepEvidence;
use crate::rollout::state::Step;
use crate::route::Proposal;
use crate::telemetry::{ArmCounts, Ended, Unit};
use serde_json::{Value, json};
use std::sync::Arc;

const DAY: i64 = 86_400_000_000;
const BEGIN: i64 = 20_000 * DAY;
/// Checks in the shortest time of a step. A step that waits for evidence goes on for as long again.
const CHECKS: u32 = 6;

#[derive(Debug, Clone, PartialEq)]
enum Outcome {
    Finished,
    /// The goal was reached.
    EndedEarly,
    TakenBack(String),
    /// A step waited for evidence until its time was over.
    Waits,
}

/// Users, and how often they click.
#[derive(Clone, Copy)]
struct Scenario {
    users: usize,
    /// Of both arms, in each step.
    requests: u32,
    /// The candidate's rate of clicks as a multiple of the control's.
    ratio: f64,
}

const SAME: Scenario = Scenario { users: 1500, requests: 3000, ratio: 1.0 };

struct User {
    key: String,
    level: f64,
    percent: f64,
}

fn is_long() -> bool {
    std::env::var_os("SLUICEGATE_LONG_SIMULATIONS").is_some()
}

fn plan(decides: &Value) -> Plan {
    let mut plan =
        json!({"to": "2", "steps": [10, 50, 100], "hold": "60s", "min_requests": 20, "reason": "a simulation"});
    plan.as_object_mut().unwrap().extend(decides.as_object().unwrap().clone());
    Plan::parse(&plan).unwrap()
}

fn state(plan: &Plan) -> State {
    let before = json!({"split": [{"version": "1", "weight": 1}], "sticky_by": {"header": "x-user"}});
    State {
        plan: plan.clone(),
        before: Proposal::parse(&before).unwrap().document,
        p99_before_us: None,
        salt: None,
        revision: 1,
        step: Step::At(0),
        paused: false,
        why: String::new(),
        ended: None,
        started_by: "ann".to_owned(),
        started_at: Timestamp::from_microsecond(BEGIN).unwrap(),
        step_started_at: Timestamp::from_microsecond(BEGIN).unwrap(),
        moves: Vec::new(),
    }
}

/// The rows of the simulated traffic.
struct Rows {
    history: History,
    model: ModelName,
    layout: Arc<Layout>,
    sent: u64,
}

impl Rows {
    fn add(&mut self, user: &User, (version, arm): (Version, &str), ts: i64, clicked: bool) {
        self.sent += 1;
        let id = format!("r{}", self.sent);
        let seen = Seen { model: &self.model, version, arm, request_id: &id, route_key: Some(&user.key), row: 0, ts };
        self.history.record_prediction(&seen, &self.layout, ts, || (Predicted::default(), Contents::default()));
        let values = vec![("clicked".to_owned(), Update::Set(f64::from(u8::from(clicked))))];
        let entry = Feedback { request_id: id, row: 0, ts, label: None, values };
        self.history.record_feedback(&self.model, &[entry], ts);
    }
}

fn simulate(plan: &Plan, scenario: Scenario, seed: u64) -> Outcome {
    let rng = &mut fastrand::Rng::with_seed(seed);
    // The mean level is 1/6.
    let mut user =
        |at: usize| User { key: format!("u{at}"), level: rng.f64().powi(2) / 2.0, percent: 100.0 * rng.f64() };
    let users: Vec<User> = (0..scenario.users).map(&mut user).collect();
    // A random place below a random place: a few users send most of the requests.
    let sender = |rng: &mut fastrand::Rng| {
        let below = rng.usize(1..=users.len());
        let below = rng.usize(1..=below);
        &users[rng.usize(..below)]
    };
    let history = History::new(Duration::from_hours(24 * 400), 1 << 30);
    let mut rows = Rows { history, model: "m".parse().unwrap(), layout: Arc::default(), sent: 0 };
    let mut state = state(plan);
    let metric = Metric { value: Some("clicked".to_owned()), ..Metric::of(Kind::Proportion) };
    let metrics: Metrics = [("clicked".to_owned(), metric)].into();
    let split = state.document(Step::At(0)).split;
    let candidate_arm = state.candidate_arm();
    let control = split.iter().find(|arm| arm.arm != candidate_arm).unwrap();
    let (of_candidate, of_control) = ((plan.to, candidate_arm.as_str()), (control.version, control.arm.as_str()));
    // Before the rollout, so that CUPED has values.
    for _ in 0..scenario.requests / 2 {
        let user = sender(rng);
        rows.add(user, of_control, BEGIN - DAY, rng.f64() < user.level);
    }
    let mut now = BEGIN;
    for (index, percent) in plan.steps.iter().enumerate().filter(|(_, percent)| **percent < 100.0) {
        (state.step, state.step_started_at) = (Step::At(index), Timestamp::from_microsecond(now + 1).unwrap());
        let (candidate, control) = (ArmCounts::new(Unit::Key), ArmCounts::new(Unit::Key));
        let mut evidence = StepEvidence::new(plan, *percent, Unit::Key, None);
        for check in 1.. {
            for _ in 0..scenario.requests / CHECKS {
                now += 1000;
                let user = sender(rng);
                let is_candidate = user.percent < *percent;
                let (arm, counts, ratio) =
                    if is_candidate { (of_candidate, &candidate, scenario.ratio) } else { (of_control, &control, 1.0) };
                rows.add(user, arm, now, rng.f64() < user.level * ratio);
                let key = Some(xxhash_rust::xxh3::xxh3_64(user.key.as_bytes()));
                counts.ended(&Ended { key, ..Ended::of(None, Duration::from_millis(1), true) });
            }
            let (mut of_candidate, mut of_control) = (candidate.read(), control.read());
            of_candidate.weigh(*percent);
            of_control.weigh(100.0 - *percent);
            evidence.update(of_candidate, of_control);
            let snapshot = rows.history.snapshot(&rows.model, i64::MIN);
            let business = Business { found: measured(&state, &metrics, &snapshot, now + 1), ..Business::default() };
            match judge(plan, &evidence, business.says(plan), plan.hold / CHECKS * check) {
                Decision::TakeBack(why) => return Outcome::TakenBack(why),
                Decision::EndEarly(_) => return Outcome::EndedEarly,
                Decision::Advance(_) => break,
                Decision::Stay(_) if check >= 2 * CHECKS => return Outcome::Waits,
                Decision::Stay(_) => {}
            }
        }
    }
    Outcome::Finished
}

/// How many rollouts finished, ended early, were taken back, and waited to the end.
fn count(label: &str, n: u64, plan: &Plan, scenario: Scenario) -> [u64; 4] {
    let mut counts = [0; 4];
    for seed in 0..n {
        let outcome = simulate(plan, scenario, seed);
        if let Outcome::TakenBack(why) = &outcome {
            assert!(why.starts_with("clicked is worse beyond doubt"), "{why}");
        }
        let place = match outcome {
            Outcome::Finished => 0,
            Outcome::EndedEarly => 1,
            Outcome::TakenBack(_) => 2,
            Outcome::Waits => 3,
        };
        counts[place] += 1;
    }
    let [finished, early, back, waits] = counts;
    println!("{label}: of {n}, {finished} finished, {early} ended early, {back} were taken back, {waits} waited");
    counts
}

#[test]
fn rollouts_of_identical_versions_are_rarely_decided_by_chance() {
    let n = if is_long() { 1000 } else { 20 };
    let goal = plan(&json!({"goal": {"metric": "clicked"}}));
    let [finished, early, back, _] = count("identical versions, a goal", n, &goal, SAME);
    // The promise is 5 % for each of the two errors.
    assert!(back * 20 <= n, "{back} of {n} were taken back");
    assert!(early * 20 <= n, "{early} of {n} ended early");
    assert!(finished * 10 >= n * 9, "{finished} of {n} finished");
    let margin = plan(&json!({"guardrails": {"metrics": {"clicked": {"not_worse_than": -0.1}}}}));
    let [_, _, back, _] = count("identical versions, not worse by 0.1", n, &margin, SAME);
    assert!(back * 20 <= n, "{back} of {n} were taken back");
}

#[test]
fn worse_versions_are_taken_back_or_stopped_on_business_metrics() {
    let n = if is_long() { 200 } else { 5 };
    let goal = plan(&json!({"goal": {"metric": "clicked"}}));
    // From 0.17 to 0.08.
    let half = Scenario { users: 3000, requests: 6000, ratio: 0.5 };
    let [finished, early, back, _] = count("half as many clicks, a goal", n, &goal, half);
    assert!(back * 10 >= n * 9 && early == 0, "{back} of {n} were taken back, {finished} finished");
    // A guardrail does not let it pass before it is shown to be no worse.
    let margin = plan(&json!({"guardrails": {"metrics": {"clicked": {"not_worse_than": -0.02}}}}));
    let [finished, _, back, waits] = count("half as many clicks, not worse by 0.02", n, &margin, half);
    assert!(finished == 0 && back + waits == n, "{finished} finished, {back} were taken back, {waits} waited");
}
