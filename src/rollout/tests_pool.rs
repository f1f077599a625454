//! Sums over gateways: nothing counts twice whatever is delivered, and simulated rollouts of a fleet: false alarms, and the cost of a bad version.
//!
//! `SLUICEGATE_LONG_SIMULATIONS=1` runs more; docs/EVIDENCE.md has the figures.

use super::super::business::Says;
use super::super::decide::{Decision, judge};
use super::super::evidence::StepEvidence;
use super::super::plan::Plan;
use super::super::report::{Reading, Reporter};
use super::*;
use crate::model::Code;
use crate::telemetry::{ArmCounts, ArmEvidence, Ended, Unit};
use proptest::prelude::*;
use serde_json::json;

const STEP: &str = "step";

fn mark(revision: u64) -> Mark {
    Mark { connection: 1, revision }
}

fn counted(requests: u64, failed: u64) -> Counts {
    let mut evidence = ArmEvidence { requests, failed, ..ArmEvidence::default() };
    evidence.latency[3] = requests;
    Counts::of(&evidence, [0; KEYLESS])
}

fn reading(candidate: (u64, u64), control: (u64, u64)) -> Reading {
    let tally =
        Tally { candidate: counted(candidate.0, candidate.1), control: counted(control.0, control.1), pairs: (0, 0) };
    Reading { tally, keys: None }
}

fn total(pool: &Pool) -> (u64, u64) {
    let sums = pool.sums((1.0, 1.0));
    assert_eq!(sums.candidate.latency[3], sums.candidate.requests, "all parts are summed alike");
    (sums.candidate.requests + sums.control.requests, sums.candidate.failed + sums.control.failed)
}

/// What happens to a gateway.
#[derive(Debug, Clone)]
enum Event {
    /// It answers so many requests of the candidate and of the control.
    Answers(u64, u64),
    /// It tells its counts, and the fleet keeps them or not.
    Tells(bool),
    /// The process starts again.
    Restarts,
    /// A version is loaded again: its counters begin at 0.
    Reloads,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..50_u64, 0..50_u64).prop_map(|(a, b)| Event::Answers(a, b)),
        4 => any::<bool>().prop_map(Event::Tells),
        1 => Just(Event::Restarts),
        1 => Just(Event::Reloads),
    ]
}

/// The reports of one gateway that the fleet kept, and how many requests it had told when each was made.
fn reports_of(events: &[Event]) -> Vec<(Report, u64)> {
    let mut kept: Vec<(Report, u64)> = Vec::new();
    let mut start = 0;
    let mut reporter = Reporter::new(STEP, "0", None);
    let mut counters = (0, 0);
    // Requests that some report of the fleet has, those of this start that were read, and those of it that are in the counters.
    let (mut told, mut read, mut answered) = (0, 0, 0);
    for event in events {
        match event {
            Event::Answers(candidate, control) => {
                counters = (counters.0 + candidate, counters.1 + control);
                answered += candidate + control;
            }
            Event::Tells(is_kept) => {
                let report = reporter.report(reading((counters.0, 0), (counters.1, counters.1 / 2)));
                read = answered;
                if *is_kept {
                    kept.push((report, told + read));
                }
            }
            Event::Restarts => {
                // What the fleet does not have is lost.
                told = kept.last().map_or(0, |(_, told)| *told);
                start += 1;
                let stored = kept.last().map(|(report, _)| Report::read(&report.to_json()).unwrap());
                reporter = Reporter::new(STEP, &start.to_string(), stored.as_ref());
                (counters, read, answered) = ((0, 0), 0, 0);
            }
            Event::Reloads => {
                // What was not read before is lost. Counters that are 0 and were read as 0 did not begin again.
                answered = read;
                counters = (0, 0);
                let _ = reporter.report(reading(counters, counters));
            }
        }
    }
    kept
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_order_duplication_or_loss_of_reports_counts_a_request_twice(
        gateways in prop::collection::vec(prop::collection::vec(event(), 1..30), 1..4),
        deliveries in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..60),
    ) {
        let reports: Vec<Vec<(Report, u64)>> = gateways.iter().map(|events| reports_of(events)).collect();
        let mut pool = Pool::new(STEP);
        let mut newest: Vec<Option<usize>> = vec![None; reports.len()];
        for (gateway, report) in &deliveries {
            let gateway = gateway.index(reports.len());
            if reports[gateway].is_empty() {
                continue;
            }
            let at = report.index(reports[gateway].len());
            pool.take(&gateway.to_string(), mark(at as u64 + 1), &reports[gateway][at].0);
            newest[gateway] = newest[gateway].max(Some(at));
        }
        let expected: u64 = newest.iter().zip(&reports).filter_map(|(at, of)| Some(of[(*at)?].1)).sum();
        prop_assert_eq!(total(&pool).0, expected);
        // What was told grows from report to report, and the last one has all that the fleet could know.
        for of in &reports {
            prop_assert!(of.windows(2).all(|pair| pair[0].1 <= pair[1].1));
            prop_assert!(of.windows(2).all(|pair| pair[0].0.requests() <= pair[1].0.requests()));
        }
    }
}

#[test]
fn a_report_of_another_step_and_an_older_one_change_nothing() {
    let mut pool = Pool::new(STEP);
    let mut reporter = Reporter::new(STEP, "1", None);
    let first = reporter.report(reading((10, 1), (20, 2)));
    let second = reporter.report(reading((11, 1), (20, 2)));
    pool.take("a", mark(7), &second);
    pool.take("a", mark(6), &first);
    pool.take("b", mark(8), &Reporter::new("another", "1", None).report(reading((99, 0), (99, 0))));
    assert_eq!((total(&pool), pool.mark()), ((31, 3), mark(8)));
    // Another connection: the bucket's values come again, under whatever revisions.
    pool.take("a", Mark { connection: 2, revision: 1 }, &second);
    assert_eq!(total(&pool), (31, 3));
    let counted = pool.counted();
    assert_eq!((counted.len(), counted[0].node.as_str(), counted[0].requests), (1, "a", 31));
    assert_eq!(pool.silent(vec!["a".to_owned(), "b".to_owned()]), ["b"]);
}

#[test]
fn reports_that_are_broken_or_too_large_are_refused_in_words() {
    let mut report = Reporter::new(STEP, "1", None).report(reading((10, 1), (20, 2)));
    assert_eq!(Report::read(&report.to_json()).unwrap(), report);
    let mut wrong = |change: fn(&mut Report), part: &str| {
        let before = report.clone();
        change(&mut report);
        let why = Report::read(&report.to_json()).unwrap_err();
        assert!(why.contains(part), "{why}");
        report = before;
    };
    wrong(|report| report.now.candidate.requests = u64::MAX, "at most");
    let beyond = |report: &mut Report| {
        report.earlier.control.latency.insert(100_000, 1);
    };
    wrong(beyond, "a bucket that does not exist");
    wrong(|report| report.now.pairs = (1, 2), "pairs");
    wrong(|report| report.keys.candidate = "?".to_owned(), "keys cannot be read");
    wrong(|report| report.keys.candidate = "AAAA".to_owned(), "cut off");
    wrong(|report| report.keys.control = "AAAA".repeat(100_000), "more than");
    for text in ["", "{}", "null", "[]"] {
        assert!(Report::read(text).is_err(), "{text}");
    }
}

// === simulations ===

/// One gateway's counters of a step.
struct Gateway {
    arms: [ArmCounts; 2],
    reporter: Reporter,
    name: String,
}

impl Gateway {
    fn new(number: usize, unit: Unit) -> Gateway {
        let arms = [ArmCounts::new(unit), ArmCounts::new(unit)];
        Gateway { arms, reporter: Reporter::new(STEP, "1", None), name: number.to_string() }
    }

    fn report(&mut self) -> Report {
        let [(candidate, of_candidate), (control, of_control)] =
            self.arms.each_ref().map(|arm| (arm.read(), arm.key_notes()));
        let keyless = |notes: &Option<crate::telemetry::KeyNotes>| notes.as_ref().map_or([0; KEYLESS], |n| n.keyless);
        let tally = Tally {
            candidate: Counts::of(&candidate, keyless(&of_candidate)),
            control: Counts::of(&control, keyless(&of_control)),
            pairs: (0, 0),
        };
        let report = self.reporter.report(Reading { tally, keys: of_candidate.zip(of_control) });
        Report::read(&report.to_json()).unwrap()
    }

    fn watch(&self, (of_candidate, of_control): &(Watch, Watch)) {
        self.arms[0].watch(of_candidate);
        self.arms[1].watch(of_control);
    }
}

/// How requests turn out.
#[derive(Clone, Copy)]
struct Scenario {
    gateways: usize,
    unit: Unit,
    users: u64,
    /// Of all gateways together, in each check.
    per_check: u64,
    checks: u32,
    error_rate: f64,
    error_ratio: f64,
    /// The share of users whose requests fail nine times of ten, whichever version answers.
    troubled: f64,
    /// The share of the requests of the first gateway that fail, whichever version answers.
    first_fails: f64,
    /// A report comes with this probability in each check, and the orders with it.
    comes: f64,
}

const SAME: Scenario = Scenario {
    gateways: 5,
    unit: Unit::Request,
    users: 500,
    per_check: 100,
    checks: 200,
    error_rate: 0.01,
    error_ratio: 1.0,
    troubled: 0.0,
    first_fails: 0.0,
    comes: 0.3,
};

/// The requests of the candidate and of both when a step at 50 % was moved back; `None` where it was not.
fn simulate(scenario: &Scenario, seed: u64) -> Option<(u64, u64)> {
    // The same requests for any number of gateways.
    let (rng, ways) = (&mut fastrand::Rng::with_seed(seed), &mut fastrand::Rng::with_seed(!seed));
    let plan = json!({"to": "2", "steps": [50, 100], "hold": "10h", "reason": "a simulation"});
    let plan = Plan::parse(&plan).unwrap();
    let users: Vec<(u64, bool, bool)> =
        (0..scenario.users).map(|_| (rng.u64(..), rng.bool(), rng.f64() < scenario.troubled)).collect();
    let mut gateways: Vec<Gateway> = (0..scenario.gateways).map(|at| Gateway::new(at, scenario.unit)).collect();
    let mut evidence = StepEvidence::new(&plan, 50.0, scenario.unit, None);
    let mut pool = Pool::new(STEP);
    let (mut sent, mut of_candidate) = (0, 0);
    for check in 1..=scenario.checks {
        for _ in 0..scenario.per_check {
            let at = ways.usize(..scenario.gateways);
            let below = rng.usize(1..=users.len());
            let (key, mut is_candidate, troubled) = users[rng.usize(..below)];
            if scenario.unit == Unit::Request {
                is_candidate = rng.bool();
            }
            let ratio = if is_candidate { scenario.error_ratio } else { 1.0 };
            let mut rate = if troubled { 0.9 } else { scenario.error_rate * ratio };
            if at == 0 {
                rate = rate.max(scenario.first_fails);
            }
            let failed = (rng.f64() < rate).then_some(Code::EngineFailed);
            let key = (scenario.unit == Unit::Key).then_some(key);
            let ended = Ended { key, ..Ended::of(failed, Duration::from_millis(1), true) };
            gateways[at].arms[usize::from(!is_candidate)].ended(&ended);
            sent += 1;
            of_candidate += u64::from(is_candidate);
        }
        for gateway in &mut gateways {
            if ways.f64() < scenario.comes {
                let report = gateway.report();
                pool.take(&gateway.name, mark(u64::from(check)), &report);
            }
        }
        let sums = pool.sums((50.0, 50.0));
        evidence.update(sums.candidate, sums.control);
        let held = plan.hold / 1024 * check;
        let watch = evidence.watch(held);
        pool.watch(&watch.0);
        for gateway in &gateways {
            if ways.f64() < scenario.comes {
                gateway.watch(&watch);
            }
        }
        if let Decision::TakeBack(_) = judge(&plan, &evidence, Says::Nothing, held) {
            return Some((of_candidate, sent));
        }
    }
    None
}

fn alarms(n: u64, scenario: Scenario) -> usize {
    (0..n).filter_map(|seed| simulate(&scenario, seed)).count()
}

fn runs(short: u64, long: u64) -> u64 {
    if std::env::var_os("SLUICEGATE_LONG_SIMULATIONS").is_some() { long } else { short }
}

#[test]
fn sums_of_unequal_gateways_raise_no_more_false_alarms_than_promised() {
    for (label, scenario) in [
        ("equal gateways", SAME),
        ("a gateway on which a fifth fails", Scenario { first_fails: 0.2, ..SAME }),
        ("keys", Scenario { unit: Unit::Key, ..SAME }),
        ("keys, of which one in fifty is troubled", Scenario { unit: Unit::Key, troubled: 0.02, ..SAME }),
        ("keys, a gateway on which a fifth fails", Scenario { unit: Unit::Key, first_fails: 0.2, ..SAME }),
    ] {
        // Tables of keys take time to read.
        let n = if scenario.unit == Unit::Key { runs(2, 200) } else { runs(6, 1000) };
        let found = alarms(n, scenario);
        println!("identical versions, five gateways, {label}: {found} of {n} moved back");
        assert!(found as u64 * 20 <= n, "{label}: {found} of {n}");
    }
}

#[test]
fn a_bad_version_costs_a_fleet_about_as_many_requests_in_all_as_one_gateway() {
    for (label, scenario) in [
        ("1 % doubled", Scenario { error_ratio: 2.0, checks: 1000, ..SAME }),
        ("all fail", Scenario { error_ratio: 100.0, per_check: 10, checks: 1000, ..SAME }),
        (
            "keys, 1 % of the requests, and a fifth",
            Scenario { unit: Unit::Key, users: 5000, error_ratio: 20.0, checks: 1000, ..SAME },
        ),
    ] {
        let n = if scenario.unit == Unit::Key { runs(5, 100) } else { runs(7, 200) };
        let median = |gateways, comes| {
            let found = (0..n).map(|seed| simulate(&Scenario { gateways, comes, ..scenario }, seed));
            let mut sent: Vec<u64> = found.map(|found| found.expect("it is found").1).collect();
            sent.sort_unstable();
            sent[sent.len() / 2]
        };
        let (one, fleet) = (median(1, 1.0), median(5, SAME.comes));
        println!("{label}: one gateway after {one} requests of both, five gateways after {fleet} in all");
        // A report is under way for three checks on average.
        let under_way = 6 * scenario.per_check;
        assert!(fleet <= one + one / 4 + under_way, "{label}: {one} and {fleet}");
    }
}
