//! Simulated rollouts of users who send many requests each: false alarms and power of guardrails that count sticky keys.
//!
//! `SLUICEGATE_LONG_SIMULATIONS=1` runs more and larger ones; docs/EVIDENCE.md has their figures.

use super::business::Says;
use super::decide::{Decision, judge};
use super::evidence::StepEvidence;
use super::plan::Plan;
use crate::model::Code;
use crate::route::{SampleRatio, Verdict};
use crate::telemetry::{ArmCounts, Ended, Unit};
use serde_json::json;
use std::time::Duration;

/// Checks of a step: one in each tick.
const CHECKS: u32 = 64;

/// Users and how their requests turn out.
#[derive(Clone, Copy)]
struct Scenario {
    users: usize,
    /// Of both arms, in each step.
    requests: u32,
    /// The activity of users is lognormal with this spread.
    spread: f64,
    /// The share of users whose requests fail at `troubled_rate`, whichever version answers. All others fail at `error_rate`.
    troubled: f64,
    troubled_rate: f64,
    error_rate: f64,
    /// From this part of each step on, the candidate's error rates are multiplied by `error_ratio` and are at least `least_rate`.
    from: f64,
    error_ratio: f64,
    least_rate: f64,
}

/// The candidate is no different from the control; one user in a hundred sends what both versions fail.
const NO_DIFFERENCE: Scenario = Scenario {
    users: 2000,
    requests: 10_000,
    spread: 1.0,
    troubled: 0.01,
    troubled_rate: 0.9,
    error_rate: 0.001,
    from: 0.0,
    error_ratio: 1.0,
    least_rate: 0.0,
};
/// Every user's requests fail independently.
const INDEPENDENT: Scenario = Scenario { troubled: 0.0, error_rate: 0.01, ..NO_DIFFERENCE };

fn is_long() -> bool {
    std::env::var_os("SLUICEGATE_LONG_SIMULATIONS").is_some()
}

struct User {
    key: u64,
    /// The candidate answers in steps of more percent than this.
    percent: f64,
    troubled: bool,
}

/// The outcome of a rollout that was moved back.
#[derive(Debug)]
struct TakenBack {
    why: String,
    /// The part of the step that had passed.
    after: f64,
}

fn plan(steps: &[f64]) -> Plan {
    Plan::parse(&json!({"to": "2", "steps": steps, "hold": "640s", "reason": "a simulation"})).unwrap()
}

fn population(scenario: &Scenario, rng: &mut fastrand::Rng) -> (Vec<User>, Vec<u32>) {
    let user = |rng: &mut fastrand::Rng| User {
        key: rng.u64(..),
        percent: 100.0 * rng.f64(),
        troubled: rng.f64() < scenario.troubled,
    };
    let users: Vec<User> = (0..scenario.users).map(|_| user(rng)).collect();
    let normal = |rng: &mut fastrand::Rng| (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0;
    let activity: Vec<f64> = users.iter().map(|_| (scenario.spread * normal(rng)).exp()).collect();
    let all: f64 = activity.iter().sum();
    // A request is of the user in a random place of this list.
    let places = 16 * scenario.users;
    let mut senders = Vec::with_capacity(places);
    let mut below = 0.0;
    for (user, activity) in (0..).zip(&activity) {
        below += activity / all;
        while senders.len() < places && (senders.len() as f64 + 0.5) < below * places as f64 {
            senders.push(user);
        }
    }
    (users, senders)
}

/// Runs a plan. `unit`: what the evidence counts.
fn simulate(plan: &Plan, scenario: &Scenario, unit: Unit, seed: u64) -> Option<TakenBack> {
    let rng = &mut fastrand::Rng::with_seed(seed);
    let (users, senders) = population(scenario, rng);
    for percent in plan.steps.iter().filter(|percent| **percent < 100.0) {
        let (candidate, control) = (ArmCounts::new(unit), ArmCounts::new(unit));
        let mut evidence = StepEvidence::new(plan, *percent, unit, None);
        for check in 1..=CHECKS {
            let passed = f64::from(check) / f64::from(CHECKS);
            for _ in 0..scenario.requests / CHECKS {
                let user = &users[senders[rng.usize(..senders.len())] as usize];
                let of_candidate = user.percent < *percent;
                let mut rate = if user.troubled { scenario.troubled_rate } else { scenario.error_rate };
                if of_candidate && passed > scenario.from {
                    rate = (rate * scenario.error_ratio).max(scenario.least_rate);
                }
                let failed = (rng.f64() < rate).then_some(Code::EngineFailed);
                let arm = if of_candidate { &candidate } else { &control };
                arm.ended(&Ended { key: Some(user.key), ..Ended::of(failed, Duration::from_millis(1), true) });
            }
            let (mut of_candidate, mut of_control) = (candidate.read(), control.read());
            of_candidate.weigh(*percent);
            of_control.weigh(100.0 - *percent);
            evidence.update(of_candidate, of_control);
            let held = plan.hold / CHECKS * check;
            let (for_candidate, for_control) = evidence.watch(held);
            candidate.watch(&for_candidate);
            control.watch(&for_control);
            if let Decision::TakeBack(why) = judge(plan, &evidence, Says::Nothing, held) {
                return Some(TakenBack { why, after: passed });
            }
        }
    }
    None
}

fn taken_back(n: u64, plan: &Plan, scenario: Scenario, unit: Unit) -> Vec<TakenBack> {
    (0..n).filter_map(|seed| simulate(plan, &scenario, unit, seed)).collect()
}

#[test]
fn heavy_users_raise_no_false_alarms_where_keys_are_counted_and_many_where_requests_are() {
    let plan = plan(&[1.0, 5.0, 25.0, 50.0, 100.0]);
    let (n, scenario) = if is_long() {
        (100, Scenario { users: 20_000, requests: 150_000, ..NO_DIFFERENCE })
    } else {
        (40, Scenario { requests: 15_000, ..NO_DIFFERENCE })
    };
    let by_key = taken_back(n, &plan, scenario, Unit::Key);
    let by_request = taken_back(n / 4, &plan, scenario, Unit::Request).len() as u64;
    println!("A/A, heavy users: {} of {n} by key, {by_request} of {} by request", by_key.len(), n / 4);
    // The promise is 5 %. The union bound is not tight, so fewer are seen.
    assert!(by_key.len() as u64 * 20 <= n, "{} of {n}, such as {:?}", by_key.len(), by_key.first());
    // Without this the simulation would not show the fault that counting keys prevents.
    assert!(by_request * 10 >= n / 4, "{by_request} of {} by request", n / 4);
}

#[test]
fn heavy_tailed_activity_raises_no_false_alarms() {
    let plan = plan(&[5.0, 50.0, 100.0]);
    let n = if is_long() { 1000 } else { 60 };
    let scenario = Scenario { users: 500, spread: 2.0, troubled: 0.04, requests: 6400, ..NO_DIFFERENCE };
    let alarms = taken_back(n, &plan, scenario, Unit::Key);
    println!("A/A, heavy tails: {} of {n}", alarms.len());
    assert!(alarms.len() as u64 * 20 <= n, "{} of {n}, such as {:?}", alarms.len(), alarms.first());
}

/// The parts of the step after which the rollouts were moved back, in order.
fn detected(label: &str, n: u64, percent: f64, scenario: Scenario) -> Vec<f64> {
    let mut plan = plan(&[percent, 100.0]);
    // The level of one of the four steps of a default rollout.
    plan.guardrails.false_alarm_rate /= 4.0;
    let back = taken_back(n, &plan, scenario, Unit::Key);
    assert!(back.iter().all(|back| back.why.starts_with("error_rate_ratio violated: ")), "{back:?}");
    let mut after: Vec<f64> = back.iter().map(|back| back.after).collect();
    after.sort_by(f64::total_cmp);
    let median = after.get(after.len() / 2);
    println!("{label}, at {percent} %: {} of {n} moved back, median after {median:?} of the step", after.len());
    after
}

#[test]
fn a_worse_candidate_is_detected_by_its_keys() {
    let n = if is_long() { 100 } else { 8 };
    let doubled = Scenario { users: 20_000, requests: 60_000, error_ratio: 2.0, ..INDEPENDENT };
    let found = detected("1 % doubled", n, 50.0, doubled);
    assert_eq!(found.len() as u64, n);
    // It begins late. Users whose requests were good before are counted when they are bad.
    let late = Scenario { users: 2000, requests: 20_000, from: 0.75, least_rate: 1.0, ..INDEPENDENT };
    for percent in [5.0, 50.0] {
        let found = detected("all fail in the last quarter", n, percent, late);
        assert_eq!(found.len() as u64, n);
        assert!(found.iter().all(|after| (0.75..0.8).contains(after)), "at {percent} %: {found:?}");
    }
    let a_tenth = Scenario { least_rate: 0.1, requests: 40_000, ..late };
    assert_eq!(detected("a tenth fails in the last quarter", n, 50.0, a_tenth).len() as u64, n);
    // Nearly all of the hundred users have had a failed request long before. Their next periods still count.
    let few = Scenario { users: 100, requests: 64_000, from: 0.5, least_rate: 1.0, spread: 0.5, ..INDEPENDENT };
    let found = detected("100 busy users, all fail in the second half", n, 50.0, few);
    assert_eq!(found.len() as u64, n);
    assert!(found.iter().all(|after| (0.5..0.7).contains(after)), "{found:?}");
}

#[test]
fn one_caller_cannot_have_a_rollout_moved_back() {
    let plan = plan(&[1.0, 100.0]);
    let (candidate, control) = (ArmCounts::new(Unit::Key), ArmCounts::new(Unit::Key));
    let mut evidence = StepEvidence::new(&plan, 1.0, Unit::Key, None);
    let failing = |arm: &ArmCounts, key: u64| {
        arm.ended(&Ended { key: Some(key << 40), ..Ended::of(Some(Code::EngineFailed), Duration::ZERO, true) });
    };
    let mut decide = |check: u32| {
        let (mut of_candidate, mut of_control) = (candidate.read(), control.read());
        of_candidate.weigh(1.0);
        of_control.weigh(99.0);
        evidence.update(of_candidate, of_control);
        let (watch, _) = evidence.watch(plan.hold / CHECKS * check);
        candidate.watch(&watch);
        judge(&plan, &evidence, Says::Nothing, plan.hold / CHECKS * check)
    };
    for check in 1..=CHECKS {
        // Two callers whose requests all fail, thousands of them.
        (0..100).for_each(|_| failing(&candidate, 1));
        (0..100).for_each(|_| failing(&candidate, 2));
        assert!(!matches!(decide(check), Decision::TakeBack(_)), "in check {check}");
    }
    (3..8).for_each(|key| failing(&candidate, key));
    let Decision::TakeBack(why) = decide(CHECKS + 1) else { panic!("seven callers fail, and none of the control's") };
    assert!(why.starts_with("error_rate_ratio violated: 7 of 7 candidate keys had a failed request"), "{why}");
}

#[test]
fn a_sound_split_of_users_is_no_mismatch_by_keys_and_often_one_by_requests() {
    let (n, scenario) =
        (if is_long() { 2000 } else { 200 }, Scenario { users: 1000, requests: 10_000, ..NO_DIFFERENCE });
    let (mut by_key, mut by_request) = (0, 0);
    for seed in 0..n {
        let rng = &mut fastrand::Rng::with_seed(seed);
        let (users, senders) = population(&scenario, rng);
        let arms = [ArmCounts::new(Unit::Key), ArmCounts::new(Unit::Key)];
        for _ in 0..scenario.requests {
            let user = &users[senders[rng.usize(..senders.len())] as usize];
            let arm = &arms[usize::from(user.percent < 50.0)];
            arm.ended(&Ended { key: Some(user.key), ..Ended::of(None, Duration::ZERO, true) });
        }
        let counts = arms.each_ref().map(ArmCounts::read);
        let is_mismatch = |counts: [u64; 2]| SampleRatio::of(&[1.0, 1.0], &counts).verdict == Verdict::Mismatch;
        by_key += u64::from(is_mismatch(counts.each_ref().map(|arm| arm.keys.as_ref().unwrap().keys())));
        by_request += u64::from(is_mismatch(counts.each_ref().map(|arm| arm.requests)));
    }
    println!("sound splits called a mismatch: {by_key} of {n} by key, {by_request} of {n} by request");
    assert!(by_key * 200 <= n, "{by_key} of {n} by key");
    assert!(by_request * 5 >= n, "{by_request} of {n} by request");
}
