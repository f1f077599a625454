//! Simulated rollouts through the real counters: engine times, constant outputs, absolute limits, and what `require` asks for.

use super::business::Says;
use super::decide::{Decision, judge};
use super::evidence::StepEvidence;
use super::plan::Plan;
use crate::model::Code;
use crate::telemetry::{ArmCounts, Ended, Unit};
use serde_json::{Value, json};
use std::time::Duration;

const CHECK: Duration = Duration::from_millis(100);

/// How a request ends, by whether the candidate answered it.
type Request = fn(&mut fastrand::Rng, bool) -> Ended;

#[derive(Debug)]
enum Outcome {
    /// The step was held, and the next one begins.
    Advanced,
    TakenBack {
        why: String,
        candidate: u64,
    },
    /// The last reason to stay.
    Stays(String),
}

fn plan(members: &Value) -> Plan {
    let mut plan = json!({"to": "2", "steps": [50, 100], "hold": "10s", "reason": "a simulation"});
    plan.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    Plan::parse(&plan).unwrap()
}

/// Runs the first step of a plan for at most so many requests, ten in each check.
fn simulate(plan: &Plan, requests: u64, unit: Unit, seed: u64, request: Request) -> Outcome {
    let rng = &mut fastrand::Rng::with_seed(seed);
    let percent = plan.steps[0];
    let (candidate, control) = (ArmCounts::new(unit), ArmCounts::new(unit));
    let mut evidence = StepEvidence::new(plan, percent, unit, Some(5000));
    let mut held = Duration::ZERO;
    let mut stays = String::new();
    for _ in 0..requests / 10 {
        let (for_candidate, for_control) = evidence.watch(held);
        candidate.watch(&for_candidate);
        control.watch(&for_control);
        for _ in 0..10 {
            let of_candidate = rng.f64() * 100.0 < percent;
            let ended = Ended { key: Some(rng.u64(..)), ..request(rng, of_candidate) };
            if of_candidate { candidate.ended(&ended) } else { control.ended(&ended) }
        }
        let (mut of_candidate, mut of_control) = (candidate.read(), control.read());
        of_candidate.weigh(percent);
        of_control.weigh(100.0 - percent);
        evidence.update(of_candidate, of_control);
        held += CHECK;
        match judge(plan, &evidence, Says::Nothing, held) {
            Decision::Stay(why) => stays = why,
            Decision::Advance(_) => return Outcome::Advanced,
            Decision::EndEarly(why) => panic!("there is no goal: {why}"),
            Decision::TakeBack(why) => {
                return Outcome::TakenBack { why, candidate: evidence.candidate.requests };
            }
        }
    }
    Outcome::Stays(stays)
}

/// Both sides wait in the same queue for 20 to 40 ms, and then run for so long.
fn queued(rng: &mut fastrand::Rng, engine_ms: f64) -> Ended {
    let engine = Duration::from_secs_f64(engine_ms * (0.9 + 0.2 * rng.f64()) / 1e3);
    let waited = Duration::from_secs_f64(0.02 + 0.02 * rng.f64());
    Ended { engine: Some((engine, 1)), answer: Some(rng.u64(..)), ..Ended::of(None, waited + engine, true) }
}

#[test]
fn a_slower_engine_is_detected_while_both_versions_wait_in_the_same_queue() {
    let plan = plan(&json!({}));
    for unit in [Unit::Request, Unit::Key] {
        let slower = |rng: &mut fastrand::Rng, of_candidate| queued(rng, if of_candidate { 15.6 } else { 8.8 });
        for seed in 0..5 {
            let outcome = simulate(&plan, 4000, unit, seed, slower);
            let Outcome::TakenBack { why, candidate } = outcome else { panic!("{unit:?}: {outcome:?}") };
            assert!(why.starts_with("engine_time_ratio violated: "), "{why}");
            assert!(candidate <= 300, "after {candidate} requests of the candidate");
            let faster = |rng: &mut fastrand::Rng, of_candidate| queued(rng, if of_candidate { 8.8 } else { 15.6 });
            let outcome = simulate(&plan, 2000, unit, seed, faster);
            assert!(matches!(outcome, Outcome::Advanced), "{unit:?}: {outcome:?}");
        }
    }
}

#[test]
fn equal_engines_raise_no_false_alarms() {
    let plan = plan(&json!({}));
    let equal = |rng: &mut fastrand::Rng, _| queued(rng, 8.8);
    let outcomes = (0..40).map(|seed| simulate(&plan, 1500, Unit::Request, seed, equal));
    assert_eq!(outcomes.filter(|outcome| !matches!(outcome, Outcome::Advanced)).count(), 0);
}

/// An answer with one of so many values.
fn answer(rng: &mut fastrand::Rng, values: u64) -> Ended {
    Ended { answer: Some(rng.u64(..values)), ..Ended::of(None, Duration::from_millis(1), true) }
}

#[test]
fn a_constant_output_is_detected_and_rare_labels_are_not_taken_for_one() {
    let plan = plan(&json!({}));
    for unit in [Unit::Request, Unit::Key] {
        let constant = |rng: &mut fastrand::Rng, of_candidate: bool| answer(rng, if of_candidate { 1 } else { 3 });
        let outcome = simulate(&plan, 4000, unit, 1, constant);
        let Outcome::TakenBack { why, candidate } = outcome else { panic!("{unit:?}: {outcome:?}") };
        assert!(why.starts_with("constant_output_ratio violated: "), "{why}");
        assert!(candidate <= 300, "after {candidate} requests of the candidate");
        // Both versions answer with the same label nineteen times of twenty; and both always with the same.
        let rare: Request = |rng, _| Ended {
            answer: Some(u64::from(rng.f64() < 0.05)),
            ..Ended::of(None, Duration::from_millis(1), true)
        };
        let always: Request = |rng, _| answer(rng, 1);
        for same in [rare, always] {
            let outcome = simulate(&plan, 2000, unit, 2, same);
            assert!(matches!(outcome, Outcome::Advanced), "{unit:?}: {outcome:?}");
        }
    }
}

fn failing(rng: &mut fastrand::Rng, rate: f64) -> Ended {
    let failed = (rng.f64() < rate).then_some(Code::EngineFailed);
    Ended { answer: Some(rng.u64(..)), ..Ended::of(failed, Duration::from_millis(10), true) }
}

#[test]
fn absolute_limits_hold_whatever_the_control_does() {
    let both_fail = |rng: &mut fastrand::Rng, _| failing(rng, 0.2);
    for (limit, units, starts, has) in [
        (
            json!({"max_error_rate": 0.05}),
            Unit::Request,
            "max_error_rate violated: ",
            "requests of the candidate failed",
        ),
        (json!({"max_error_rate": 0.05}), Unit::Key, "max_error_rate violated: ", "keys of the candidate had a failed"),
        (json!({"max_p99_ms": 5}), Unit::Request, "max_p99_ms violated: ", "1 % may take longer than 5 ms"),
        (json!({"max_p99_ms": 5}), Unit::Key, "max_p99_ms violated: ", "1 % may take longer than 5 ms"),
        // Before the rollout, the 99th percentile was 5 ms.
        (json!({"p99_before_ratio": 1.5}), Unit::Request, "p99_before_ratio violated: ", "of both sides took longer"),
        (json!({"p99_before_ratio": 1.5}), Unit::Key, "p99_before_ratio violated: ", "of both sides had a request"),
    ] {
        let outcome = simulate(&plan(&json!({"guardrails": limit})), 2000, units, 1, both_fail);
        let Outcome::TakenBack { why, .. } = outcome else { panic!("{limit}: {outcome:?}") };
        assert!(why.starts_with(starts) && why.contains(has), "{why}");
    }
    let allowed = json!({"guardrails": {"max_error_rate": 0.25, "max_p99_ms": 12, "p99_before_ratio": 3}});
    for units in [Unit::Request, Unit::Key] {
        let outcome = simulate(&plan(&allowed), 2000, units, 1, both_fail);
        assert!(matches!(outcome, Outcome::Advanced), "{outcome:?}");
    }
}

/// Five requests a second for ten minutes, at 50 %.
const LITTLE_TRAFFIC: u64 = 3000;

#[test]
fn with_little_traffic_only_what_is_required_keeps_a_worse_version_from_the_next_step() {
    let doubled = |rng: &mut fastrand::Rng, of_candidate| failing(rng, if of_candidate { 0.02 } else { 0.01 });
    let n = 40;
    let advanced = |plan: &Plan, requests, request: Request| {
        let simulate = |seed| simulate(plan, requests, Unit::Request, seed, request);
        (0..40).filter(|seed| matches!(simulate(*seed), Outcome::Advanced)).count()
    };
    let without = advanced(&plan(&json!({"hold": "30s"})), LITTLE_TRAFFIC, doubled);
    let ratio = plan(&json!({"hold": "10s", "require": {"error_rate_ratio": 1.5}}));
    let with = advanced(&ratio, LITTLE_TRAFFIC, doubled);
    let rate = plan(&json!({"hold": "10s", "require": {"max_error_rate": 0.018}}));
    let with_rate = advanced(&rate, LITTLE_TRAFFIC, doubled);
    println!(
        "1 % → 2 %: {without} of {n} reach the next step; with a required ratio {with}, with a required rate {with_rate}"
    );
    assert!(without * 2 > n, "{without} of {n}: without it, little traffic shows little");
    assert!(with * 20 <= n && with_rate * 20 <= n, "{with} and {with_rate} of {n}");
    // Equal versions advance once there are enough requests.
    let equal = |rng: &mut fastrand::Rng, _| failing(rng, 0.01);
    for required in [
        json!({"error_rate_ratio": 2.0}),
        json!({"error_rate_difference": 0.01}),
        json!({"max_error_rate": 0.02}),
        json!({"error_rate_ratio": 2.5, "error_rate_difference": 0.01, "max_error_rate": 0.02}),
    ] {
        let plan = plan(&json!({"hold": "1s", "require": required}));
        let outcome = simulate(&plan, 200, Unit::Request, 1, equal);
        let Outcome::Stays(why) = outcome else { panic!("{required}: {outcome:?}") };
        assert!(why.starts_with("waiting for evidence: "), "{why}");
        let outcome = simulate(&plan, 60_000, Unit::Request, 1, equal);
        assert!(matches!(outcome, Outcome::Advanced), "{required}: {outcome:?}");
    }
}
