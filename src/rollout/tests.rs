//! Simulated rollouts: how often guardrails raise false alarms, and how many requests a regression costs.

use super::business::Says;
use super::decide::{Decision, judge};
use super::evidence::StepEvidence;
use super::plan::Plan;
use crate::telemetry::{ArmEvidence, Unit, latency_bucket};
use serde_json::json;
use std::time::Duration;

/// Requests of both arms per check: 1,000 a second.
const PER_CHECK: f64 = 100.0;
/// Between two checks.
const CHECK: Duration = Duration::from_millis(100);

/// How simulated requests turn out.
#[derive(Debug, Clone, Copy)]
struct Scenario {
    /// The control's error rate at the start.
    error_rate: f64,
    /// The candidate's error rate divided by the control's.
    error_ratio: f64,
    /// The factor by which the error rates grow from the first check to the last.
    drift: f64,
    /// The candidate's latency divided by the control's.
    slower: f64,
    /// Requests of both arms per check.
    per_check: f64,
    /// The share of checks in which every request of both arms fails: an outage that has nothing to do with the candidate.
    outages: f64,
}

/// The candidate is no different from the control.
const NO_DIFFERENCE: Scenario =
    Scenario { error_rate: 0.01, error_ratio: 1.0, drift: 1.0, slower: 1.0, per_check: PER_CHECK, outages: 0.0 };

#[derive(Debug, PartialEq)]
enum Outcome {
    Finished,
    /// With the requests of that step: the candidate's, and those of both arms.
    TakenBack {
        why: String,
        percent: f64,
        candidate: u64,
        both: u64,
    },
}

fn plan(steps: &[f64]) -> Plan {
    Plan::parse(&json!({"to": "2", "steps": steps, "hold": "10s", "reason": "a simulation"})).unwrap()
}

/// One request's latency: about 1 ms, and up to ten times as much for 3 % of the requests.
fn latency(rng: &mut fastrand::Rng, slower: f64) -> Duration {
    let base = 0.8 + 0.4 * rng.f64();
    let tail = if rng.f64() < 0.03 { 1.0 + 9.0 * rng.f64() } else { 1.0 };
    Duration::from_secs_f64(base * tail * slower / 1e3)
}

/// Runs a plan in one scenario. Every request is drawn independently.
fn simulate(plan: &Plan, scenario: Scenario, rng: &mut fastrand::Rng) -> Outcome {
    let all_checks = plan.steps.len() as f64 * plan.hold.as_secs_f64() / CHECK.as_secs_f64();
    let mut checks = 0.0;
    for percent in plan.steps.iter().filter(|percent| **percent < 100.0) {
        let mut evidence = StepEvidence::new(plan, *percent, Unit::Request, None);
        let (mut candidate, mut control) = (ArmEvidence::default(), ArmEvidence::default());
        let mut held = Duration::ZERO;
        loop {
            let drift = 1.0 + (scenario.drift - 1.0) * checks / all_checks;
            let outage = rng.f64() < scenario.outages;
            let mut remaining = scenario.per_check;
            // A fraction of a request is one request with that probability.
            while remaining > 0.0 && (remaining >= 1.0 || rng.f64() < remaining) {
                remaining -= 1.0;
                let is_candidate = rng.f64() * 100.0 < *percent;
                let (arm, ratio, slower) = if is_candidate {
                    (&mut candidate, scenario.error_ratio, scenario.slower)
                } else {
                    (&mut control, 1.0, 1.0)
                };
                arm.requests += 1;
                arm.failed += u64::from(outage || rng.f64() < scenario.error_rate * drift * ratio);
                arm.latency[latency_bucket(latency(rng, slower))] += 1;
            }
            evidence.update(candidate.clone(), control.clone());
            held += CHECK;
            checks += 1.0;
            match judge(plan, &evidence, Says::Nothing, held) {
                Decision::Stay(_) => {}
                Decision::Advance(_) => break,
                Decision::EndEarly(why) => panic!("there is no goal: {why}"),
                Decision::TakeBack(why) => {
                    let (candidate, both) = (candidate.requests, candidate.requests + control.requests);
                    return Outcome::TakenBack { why, percent: *percent, candidate, both };
                }
            }
        }
    }
    Outcome::Finished
}

fn taken_back(n: u64, plan: &Plan, scenario: Scenario) -> Vec<Outcome> {
    let simulate = |seed| simulate(plan, scenario, &mut fastrand::Rng::with_seed(seed));
    (0..n).map(simulate).filter(|outcome| *outcome != Outcome::Finished).collect()
}

#[test]
fn a_thousand_rollouts_without_a_difference_raise_no_more_false_alarms_than_promised() {
    let plan = plan(&[1.0, 5.0, 25.0, 50.0, 100.0]);
    let alarms = taken_back(1000, &plan, NO_DIFFERENCE);
    // The promise is at most 5 %: 50 of 1,000. Ville's inequality and the union bound are not tight, so far fewer are seen.
    println!("{} of 1000 without a difference", alarms.len());
    assert!(alarms.len() <= 50, "{} false alarms of 1000, such as {:?}", alarms.len(), alarms.first());
}

#[test]
fn error_rates_that_grow_tenfold_raise_no_more_false_alarms() {
    let plan = plan(&[5.0, 50.0, 100.0]);
    let alarms = taken_back(300, &plan, Scenario { error_rate: 0.002, drift: 10.0, ..NO_DIFFERENCE });
    assert!(alarms.len() <= 15, "{} false alarms of 300, such as {:?}", alarms.len(), alarms.first());
}

#[test]
fn outages_of_both_arms_raise_no_more_false_alarms() {
    let plan = plan(&[1.0, 5.0, 50.0, 100.0]);
    // One check in fifty fails completely: with much traffic, and with so little that few checks have requests of both arms.
    for per_check in [PER_CHECK, 3.0] {
        let alarms = taken_back(300, &plan, Scenario { error_rate: 0.001, outages: 0.02, per_check, ..NO_DIFFERENCE });
        assert!(alarms.len() <= 15, "{} false alarms of 300, such as {:?}", alarms.len(), alarms.first());
    }
}

/// The 95th percentile.
fn p95(mut numbers: Vec<u64>) -> u64 {
    numbers.sort_unstable();
    numbers[numbers.len() * 95 / 100]
}

/// Requests until the traffic is moved back, for 95 of 100 rollouts: the candidate's, and those of both arms.
fn requests_until_taken_back(percent: f64, scenario: Scenario) -> (u64, u64) {
    let mut plan = plan(&[percent, 100.0]);
    // Held until the regression is detected, at the level of one of the four steps of a default rollout.
    plan.hold = Duration::from_hours(24);
    plan.guardrails.false_alarm_rate /= 4.0;
    let (mut candidate, mut both) = (Vec::new(), Vec::new());
    for outcome in taken_back(100, &plan, scenario) {
        if let Outcome::TakenBack { candidate: c, both: b, .. } = outcome {
            candidate.push(c);
            both.push(b);
        }
    }
    assert_eq!(candidate.len(), 100, "every regression is detected");
    let (candidate, both) = (p95(candidate), p95(both));
    println!("at {percent} %, {scenario:?}: {candidate} of {both}");
    (candidate, both)
}

#[test]
fn a_regression_is_detected_within_the_documented_number_of_requests() {
    // docs/TRAFFIC.md documents these numbers, for 95 of 100 rollouts.
    let doubled = Scenario { error_ratio: 2.0, ..NO_DIFFERENCE };
    let (_, both) = requests_until_taken_back(50.0, doubled);
    assert!(both <= 25_000, "1 % doubled, at 50 %: {both}");
    let (candidate, both) = requests_until_taken_back(5.0, doubled);
    assert!(both <= 125_000 && candidate <= 6_000, "1 % doubled, at 5 %: {candidate} of {both}");
    let (candidate, _) = requests_until_taken_back(5.0, Scenario { error_ratio: 20.0, ..NO_DIFFERENCE });
    assert!(candidate <= 100, "a fifth fails, at 5 %: {candidate}");
    let (candidate, _) = requests_until_taken_back(5.0, Scenario { error_ratio: 100.0, ..NO_DIFFERENCE });
    assert!(candidate <= 30, "all fail, at 5 %: {candidate}");
    // Five requests a second, so that hardly any check has requests of both arms.
    for percent in [5.0, 50.0] {
        let (candidate, _) =
            requests_until_taken_back(percent, Scenario { error_ratio: 100.0, per_check: 0.5, ..NO_DIFFERENCE });
        assert!(candidate <= 30, "all fail, at {percent} % of little traffic: {candidate}");
    }
    let (candidate, _) = requests_until_taken_back(5.0, Scenario { slower: 2.0, ..NO_DIFFERENCE });
    assert!(candidate <= 18_000, "twice as slow, at 5 %: {candidate}");
    let (candidate, _) = requests_until_taken_back(5.0, Scenario { slower: 10.0, ..NO_DIFFERENCE });
    assert!(candidate <= 450, "ten times as slow, at 5 %: {candidate}");
}

#[test]
fn a_take_back_names_the_guardrail_and_the_figures() {
    let plan = plan(&[50.0, 100.0]);
    let scenario = Scenario { error_ratio: 50.0, ..NO_DIFFERENCE };
    let outcome = simulate(&plan, scenario, &mut fastrand::Rng::with_seed(1));
    let Outcome::TakenBack { why, .. } = outcome else { panic!("half of the requests fail") };
    assert!(why.starts_with("error_rate_ratio violated: "), "{why}");
    assert!(why.contains("candidate requests failed") && why.contains("control requests"), "{why}");
}
