//! Figures against closed forms, and simulations of what intervals promise.

use super::estimate::estimate;
use super::experiment::{Experiment, Setup, SetupArm, experiment};
use super::measure::Measured;
use super::windows::{Ask, Group, windows};
use super::*;
use crate::model::{Feedback, Label, ModelName, Update, Version};
use crate::quality::{Contents, History, Layout, Predicted, Seen, Snapshot, Value};
use crate::tensor::DataType;
use std::sync::Arc;
use std::time::Duration;

const DAY: i64 = 86_400_000_000;
const NOW: i64 = 20_000 * DAY;

pub(super) struct World {
    pub(super) history: History,
    model: ModelName,
    layout: Arc<Layout>,
}

impl World {
    pub(super) fn new(outputs: &[(&str, usize)]) -> World {
        let mut layout = Layout { cells: vec!["inputs.sex".into(), "inputs.age".into()], ..Layout::default() };
        let mut at = 0;
        for (name, n) in outputs {
            layout.outputs.push(((*name).into(), at..at + n));
            at += n;
        }
        let history = History::new(Duration::from_hours(24 * 400), 1 << 30);
        World { history, model: "m".parse().unwrap(), layout: Arc::new(layout) }
    }

    /// A row of version 1 on the arm `control`, or of version 2 on `treatment`.
    pub(super) fn row(&self, id: &str, key: Option<&str>, arm: usize, ts: i64, numbers: &[f64], cells: [Value; 2]) {
        let version: Version = ["1", "2"][arm].parse().unwrap();
        let arm = ["control", "treatment"][arm];
        let seen = Seen { model: &self.model, version, arm, request_id: id, route_key: key, row: 0, ts };
        let mut predicted = Predicted::default();
        for (_, place) in &self.layout.outputs {
            let bytes: Vec<u8> = numbers[place.clone()].iter().flat_map(|n| n.to_le_bytes()).collect();
            predicted.add(DataType::Fp64, &bytes);
        }
        let contents = Contents { numbers: numbers.into(), cells: cells.into() };
        self.history.record_prediction(&seen, &self.layout, NOW, || (predicted, contents));
    }

    pub(super) fn label(&self, id: &str, ts: i64, label: f64) {
        let label = Some(Update::Set(Label::Number(label)));
        let entry = Feedback { request_id: id.to_owned(), row: 0, ts, label, values: Vec::new() };
        self.history.record_feedback(&self.model, &[entry], ts);
    }

    pub(super) fn value(&self, id: &str, ts: i64, name: &str, value: f64) {
        let values = vec![(name.to_owned(), Update::Set(value))];
        let entry = Feedback { request_id: id.to_owned(), row: 0, ts, label: None, values };
        self.history.record_feedback(&self.model, &[entry], ts);
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.history.snapshot(&self.model, i64::MIN)
    }
}

fn cells() -> [Value; 2] {
    [Value::Missing, Value::Missing]
}

fn metric(kind: Kind) -> Metric {
    Metric::of(kind)
}

fn value_metric(kind: Kind, name: &str) -> Metric {
    Metric { value: Some(name.to_owned()), ..Metric::of(kind) }
}

fn near(a: Option<f64>, b: f64) {
    let a = a.expect("a figure");
    assert!((a - b).abs() < 1e-9, "{a} instead of {b}");
}

fn of(snapshot: &Snapshot, metric: &Metric) -> super::estimate::Estimate {
    estimate(&Measured::new(metric, snapshot), snapshot.rows(), 1.0)
}

#[test]
fn figures_of_a_binary_classifier_match_their_definitions() {
    let world = World::new(&[("probabilities", 2)]);
    let rows = [(0.1, 0.0), (0.4, 0.0), (0.35, 1.0), (0.8, 1.0), (0.8, 0.0), (0.6, 1.0)];
    for (i, (p, label)) in rows.iter().enumerate() {
        world.row(&format!("r{i}"), None, 0, NOW, &[1.0 - p, *p], cells());
        world.label(&format!("r{i}"), NOW, *label);
    }
    world.row("unlabelled", None, 0, NOW, &[0.5, 0.5], cells());
    world.row("unfit", None, 0, NOW, &[0.5, 0.5], cells());
    world.label("unfit", NOW, 7.0);
    let snapshot = world.snapshot();
    // Right: 0.1 and 0.4 as 0, 0.8 and 0.6 as 1; the label 7 is wrong too.
    let accuracy = of(&snapshot, &metric(Kind::Accuracy));
    near(accuracy.value, 4.0 / 7.0);
    assert_eq!((accuracy.n, accuracy.units), (7, 7));
    // Of 9 pairs: 0.35 is above one zero, 0.8 above two and equal to one, 0.6 above two.
    let auc = of(&snapshot, &metric(Kind::Auc));
    near(auc.value, (1.0 + 2.5 + 2.0) / 9.0);
    assert_eq!((auc.n, auc.unfit), (6, 1));
    let loss: f64 = rows.iter().map(|(p, y)| -(if *y == 1.0 { *p } else { 1.0 - p }).ln()).sum();
    near(of(&snapshot, &metric(Kind::LogLoss)).value, loss / 6.0);
    let brier: f64 = rows.iter().map(|(p, y)| (p - y).powi(2)).sum();
    near(of(&snapshot, &metric(Kind::Brier)).value, brier / 6.0);
    assert_eq!(of(&snapshot, &metric(Kind::Mae)).value, None, "scores are no predicted number");
    let named = Metric { output: Some(("probabilities".to_owned(), 0)), ..metric(Kind::Auc) };
    near(of(&snapshot, &named).value, 1.0 - 5.5 / 9.0);
    let unknown = Metric { output: Some(("probabilities".to_owned(), 2)), ..metric(Kind::Auc) };
    assert_eq!((of(&snapshot, &unknown).value, of(&snapshot, &unknown).unfit), (None, 7));
}

#[test]
fn figures_of_several_classes_and_of_a_regression_match_their_definitions() {
    let world = World::new(&[("scores", 3)]);
    for (i, label) in [0.0, 2.0].iter().enumerate() {
        world.row(&format!("r{i}"), None, 0, NOW, &[0.5, 0.2, 0.3], cells());
        world.label(&format!("r{i}"), NOW, *label);
    }
    world.row("no shares", None, 0, NOW, &[5.0, 2.0, 3.0], cells());
    world.label("no shares", NOW, 0.0);
    let snapshot = world.snapshot();
    let loss = of(&snapshot, &metric(Kind::LogLoss));
    near(loss.value, -(0.5_f64.ln() + 0.3_f64.ln()) / 2.0);
    assert_eq!(loss.unfit, 1);
    near(of(&snapshot, &metric(Kind::Brier)).value, f64::midpoint(0.38, 0.78));
    assert_eq!(of(&snapshot, &metric(Kind::Auc)).value, None, "of three classes there is none");

    let world = World::new(&[("y", 1)]);
    for (i, (y, label)) in [(3.0, 1.0), (1.0, 2.0), (5.0, 5.0)].iter().enumerate() {
        world.row(&format!("r{i}"), None, 0, NOW, &[*y], cells());
        world.label(&format!("r{i}"), NOW, *label);
    }
    let snapshot = world.snapshot();
    near(of(&snapshot, &metric(Kind::Mae)).value, 1.0);
    near(of(&snapshot, &metric(Kind::Bias)).value, 1.0 / 3.0);
    let rmse = of(&snapshot, &metric(Kind::Rmse));
    near(rmse.value, (5.0_f64 / 3.0).sqrt());
    assert!(rmse.low.unwrap() < rmse.value.unwrap() && rmse.value.unwrap() < rmse.high.unwrap());
}

#[test]
fn the_standard_error_is_that_of_the_units() {
    let world = World::new(&[]);
    // Ten users with ten equal rows each.
    for user in 0..10 {
        for i in 0..10 {
            let id = format!("u{user}r{i}");
            world.row(&id, Some(&format!("u{user}")), 0, NOW, &[], cells());
            world.value(&id, NOW, "revenue", f64::from(user));
        }
    }
    let snapshot = world.snapshot();
    let by_key = of(&snapshot, &value_metric(Kind::Mean, "revenue"));
    near(by_key.standard_error, (82.5_f64 / 9.0 / 10.0).sqrt());
    assert_eq!((by_key.n, by_key.units), (100, 10));
    let by_request = of(&snapshot, &Metric { unit: UnitOf::Request, ..value_metric(Kind::Mean, "revenue") });
    assert!(by_request.standard_error.unwrap() < by_key.standard_error.unwrap() / 3.0 && by_request.units == 100);
    near(of(&snapshot, &value_metric(Kind::Sum, "revenue")).value, 45.0);
    assert_eq!(of(&snapshot, &value_metric(Kind::Proportion, "revenue")).unfit, 80);
    assert_eq!(of(&snapshot, &value_metric(Kind::Mean, "nothing")).value, None);
}

#[test]
fn absent_values_count_where_the_metric_says_so() {
    let world = World::new(&[]);
    for i in 0..4 {
        world.row(&format!("r{i}"), None, 0, NOW, &[], cells());
    }
    world.value("r0", NOW, "clicked", 1.0);
    let snapshot = world.snapshot();
    assert_eq!(of(&snapshot, &value_metric(Kind::Proportion, "clicked")).n, 1);
    near(of(&snapshot, &Metric { absent: Some(0.0), ..value_metric(Kind::Proportion, "clicked") }).value, 0.25);
    near(of(&snapshot, &Metric { absent: Some(0.0), ..value_metric(Kind::Proportion, "never") }).value, 0.0);
}

/// How often 95 % intervals of a metric contain the true value, in `runs` simulations.
fn coverage(runs: u64, kind: Kind, truth: f64, per_user: u64, users: u64) -> f64 {
    let rng = &mut fastrand::Rng::with_seed(7);
    let covered = (0..runs).filter(|_| {
        let world = World::new(&[("p", 2)]);
        for user in 0..users {
            // A user's taste moves all its labels.
            let taste = if rng.bool() { 0.2 } else { -0.2 };
            for i in 0..per_user {
                let (id, score) = (format!("u{user}r{i}"), rng.f64());
                let right = 0.7 + taste;
                let one = rng.bool();
                let p = match kind {
                    // P(score of a 1 > score of a 0) = 5/6 for the maximum of two against the minimum of two.
                    Kind::Auc => {
                        if one {
                            score.max(rng.f64())
                        } else {
                            score.min(rng.f64())
                        }
                    }
                    _ => {
                        if one == (rng.f64() < right) {
                            0.9
                        } else {
                            0.1
                        }
                    }
                };
                world.row(&id, Some(&format!("u{user}")), 0, NOW, &[1.0 - p, p], cells());
                world.label(&id, NOW, f64::from(u8::from(one)));
            }
        }
        let found = of(&world.snapshot(), &metric(kind));
        (found.low.unwrap()..=found.high.unwrap()).contains(&truth)
    });
    covered.count() as f64 / runs as f64
}

fn long() -> bool {
    std::env::var_os("SLUICEGATE_LONG_SIMULATIONS").is_some()
}

#[test]
fn intervals_of_figures_cover_the_truth_although_users_send_many_rows() {
    let runs = if long() { 2000 } else { 150 };
    let found = [coverage(runs, Kind::Accuracy, 0.7, 10, 40), coverage(runs, Kind::Auc, 5.0 / 6.0, 5, 30)];
    println!("coverage of 95 % intervals: accuracy by key {:.3}, auc {:.3}", found[0], found[1]);
    for share in found {
        assert!((0.89..=0.995).contains(&share), "{found:?}");
    }
}

fn group<'g>(groups: &'g [Group], version: &str, segment: Option<&str>, period: usize) -> &'g Group {
    let of: Vec<&Group> = groups
        .iter()
        .filter(|group| group.version.to_string() == version && group.segment.as_deref() == segment)
        .collect();
    of[period]
}

#[test]
fn windows_are_cut_by_version_period_and_segment_and_say_how_complete_they_are() {
    let world = World::new(&[("p", 2)]);
    for i in 0..40_i64 {
        let sex = Value::Text(if i % 4 == 0 { "female" } else { "male" }.to_owned());
        let (id, ts) = (format!("r{i}"), NOW - DAY * (i % 2) - 3_600_000_000);
        world.row(&id, None, usize::from(i >= 20), ts, &[0.2, 0.8], [sex, Value::Number(i as f64)]);
        if i < 30 {
            world.label(&id, ts + 60_000_000, f64::from(u8::from(i % 4 == 0)));
        }
    }
    let snapshot = world.snapshot();
    let mut ask = Ask { from: NOW - 7 * DAY, to: NOW, step: Some(DAY), by: Some("inputs.sex".to_owned()) };
    let found = windows(&snapshot, &Metrics::new(), &ask).unwrap();
    assert_eq!(found.smallest_segment.as_ref().map(|s| (&*s.segment, s.rows)), Some(("female", 10)));
    let female = group(&found.groups, "1", Some("female"), 0);
    // All of them were on even numbers, so in the newer period.
    assert_eq!((female.rows, female.metrics["accuracy"].value), (5, Some(1.0)));
    let accuracy = &female.metrics["accuracy"];
    assert!(accuracy.low.unwrap() > 0.5 && accuracy.high.unwrap() > 0.999, "Wilson's interval: {accuracy:?}");
    let male = group(&found.groups, "1", Some("male"), 0);
    assert_eq!((male.rows, male.metrics["accuracy"].value), (10, Some(0.0)));
    ask.by = None;
    let found = windows(&snapshot, &Metrics::new(), &ask).unwrap();
    let newer = group(&found.groups, "2", None, 1);
    assert_eq!((newer.rows, newer.labels.labelled, newer.labels.waiting), (10, 5, 0));
    assert!((newer.labels.settled_share.unwrap() - 0.5).abs() < 1e-12 && newer.labels.delay_s == 60.0);
    let calibration = newer.calibration.as_ref().unwrap();
    assert!(calibration.bins.len() == 1 && (calibration.bins[0].predicted - 0.8).abs() < 1e-9, "{calibration:?}");
    // A metric counts only what is old enough.
    let slow = Metric { label_delay: Duration::from_hours(24), ..metric(Kind::Accuracy) };
    let metrics = Metrics::from([("accuracy".to_owned(), slow)]);
    let found = windows(&snapshot, &metrics, &ask).unwrap();
    assert_eq!(group(&found.groups, "1", None, 1).metrics["accuracy"].n, 0);
    assert_eq!(group(&found.groups, "1", None, 0).metrics["accuracy"].n, 10);
    // Numbers are cut into quarters.
    ask.by = Some("age".to_owned());
    let found = windows(&snapshot, &Metrics::new(), &Ask { step: None, ..ask.clone() }).unwrap();
    let names: Vec<&str> = found.groups.iter().filter_map(|group| group.segment.as_deref()).collect();
    assert_eq!(names, ["10 to below 20", "below 10", "20 to below 30", "30 and above"]);
    ask.by = Some("inputs.height".to_owned());
    let words = windows(&snapshot, &Metrics::new(), &ask).unwrap_err();
    assert!(words.contains("inputs.height") && words.contains("inputs.age, inputs.sex"), "{words}");
}

// === experiments ===

fn setup(now: i64, began: i64) -> Setup {
    let arm =
        |name: &str, version: &str| SetupArm { name: name.to_owned(), version: version.parse().unwrap(), weight: 0.5 };
    Setup { arms: vec![arm("control", "1"), arm("treatment", "2")], began, now, alpha: 0.05 }
}

/// One simulated experiment, looked at ten times. Users come back, and each has its own level.
struct Simulated {
    users: u64,
    rows: u64,
    /// What the treatment adds.
    effect: f64,
    before: bool,
}

/// Which comparisons were called better or worse at any look, and the last look.
fn simulate(rng: &mut fastrand::Rng, metrics: &Metrics, of: &Simulated) -> (Vec<bool>, Experiment) {
    let world = World::new(&[]);
    let began = NOW - 20 * DAY;
    let levels: Vec<f64> = (0..of.users).map(|_| rng.f64()).collect();
    let mut called = vec![false; metrics.len()];
    let looks = 10;
    let mut row = 0;
    if of.before {
        for user in 0..of.users {
            let id = format!("before{user}");
            world.row(&id, Some(&format!("u{user}")), 0, began - DAY, &[], cells());
            world.value(&id, began - DAY, "revenue", levels[usize::try_from(user).unwrap()] * 10.0 + rng.f64());
        }
    }
    let mut last = None;
    for _ in 0..looks {
        for _ in 0..of.rows / looks {
            // Some users come far more often than others.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "from 0 to the number of users"
            )]
            let user = (rng.f64().powi(3) * of.users as f64) as u64;
            let arm = usize::from(xxhash_rust::xxh3::xxh3_64(format!("{user}{}", levels[0]).as_bytes()) % 2 == 1);
            let level = levels[usize::try_from(user).unwrap()];
            let (id, ts) = (format!("r{row}"), began + row * 1_000_000);
            row += 1;
            world.row(&id, Some(&format!("u{user}")), arm, ts, &[], cells());
            let lift = if arm == 1 { of.effect } else { 0.0 };
            world.value(&id, ts, "clicked", f64::from(u8::from(rng.f64() < 0.1 + 0.3 * level.powi(4) + lift)));
            // Revenue has a long tail.
            world.value(&id, ts, "revenue", level * 10.0 + (-rng.f64().ln()).powi(2) + lift * 10.0);
        }
        let found = experiment(&world.snapshot(), metrics, &setup(began + row * 1_000_000, began)).unwrap();
        for (called, metric) in called.iter_mut().zip(&found.metrics) {
            *called |= matches!(metric.comparisons[0].verdict, "better" | "worse");
        }
        last = Some(found);
    }
    (called, last.unwrap())
}

fn two_metrics() -> Metrics {
    Metrics::from([
        ("clicked".to_owned(), value_metric(Kind::Proportion, "clicked")),
        ("revenue".to_owned(), Metric { winsorize: Some(0.999), ..value_metric(Kind::Mean, "revenue") }),
    ])
}

#[test]
fn identical_arms_are_called_different_no_more_often_than_promised() {
    let runs: u32 = if long() { 1000 } else { 40 };
    let rng = &mut fastrand::Rng::with_seed(3);
    let aa = Simulated { users: 1500, rows: 6000, effect: 0.0, before: false };
    let mut wrong = [0, 0];
    let mut any = 0;
    for _ in 0..runs {
        let (called, found) = simulate(rng, &two_metrics(), &aa);
        assert_eq!((found.unit, found.units_on_two_arms), ("key", 0));
        for (wrong, called) in wrong.iter_mut().zip(&called) {
            *wrong += u32::from(*called);
        }
        any += u32::from(called.contains(&true));
    }
    println!(
        "A/A by key, {runs} runs, 10 looks: any {any}, clicked {}, revenue {}; promised 5 % for any",
        wrong[0], wrong[1]
    );
    // 5 % are promised; more than this many would be a chance of less than one in a thousand at 5 %.
    let most = if long() { 75 } else { 7 };
    assert!(any <= most, "{any} of {runs}: {wrong:?}");
}

#[test]
fn an_effect_is_found_and_the_sentence_says_which_arm_is_better() {
    let runs: u32 = if long() { 200 } else { 6 };
    let rng = &mut fastrand::Rng::with_seed(4);
    let ab = Simulated { users: 4000, rows: 12_000, effect: 0.08, before: false };
    let mut found_in = 0;
    for _ in 0..runs {
        let (called, found) = simulate(rng, &two_metrics(), &ab);
        found_in += u32::from(called[0]);
        let comparison = &found.metrics[0].comparisons[0];
        if comparison.verdict == "better" {
            let words = &comparison.words;
            assert!(words.starts_with("clicked of treatment is higher than that of control by 0."), "{words}");
            assert!(comparison.relative_low.unwrap() > 0.0 && comparison.high.unwrap() < 0.3);
        } else {
            assert_eq!(comparison.verdict, "undecided");
        }
    }
    println!("power: clicked + 0.08 at 0.16 with 4000 users: found in {found_in} of {runs}");
    assert!(found_in * 10 >= runs * 9, "{found_in} of {runs}");
}

#[test]
fn values_from_before_make_intervals_narrower() {
    let rng = &mut fastrand::Rng::with_seed(5);
    let with = Simulated { users: 1500, rows: 6000, effect: 0.0, before: true };
    let (_, found) = simulate(rng, &two_metrics(), &with);
    let revenue = &found.metrics[1];
    let cuped = revenue.comparisons[0].cuped.unwrap();
    assert!(cuped.variance_explained > 0.3 && cuped.units > 1000, "{cuped:?}");
    let plain: f64 = revenue.arms[0].standard_error.unwrap().hypot(revenue.arms[1].standard_error.unwrap());
    let half = (revenue.comparisons[0].high.unwrap() - revenue.comparisons[0].low.unwrap()) / 2.0;
    let effective = revenue.arms.iter().map(|arm| 1.0 / arm.units as f64).sum::<f64>().recip();
    let narrower = half / (Sequence::new(0.025).width(effective) * plain);
    assert!((narrower - (1.0 - cuped.variance_explained).sqrt()).abs() < 0.05, "{narrower} {cuped:?}");
    assert!(found.metrics[0].comparisons[0].cuped.is_none(), "nobody clicked before");
}

#[test]
fn units_on_two_arms_do_not_count_and_shares_that_do_not_fit_are_said() {
    let world = World::new(&[]);
    for user in 0..600 {
        let arm = usize::from(user % 3 == 0);
        world.row(&format!("r{user}"), Some(&format!("u{user}")), arm, NOW, &[], cells());
        world.value(&format!("r{user}"), NOW, "clicked", f64::from(u8::from(user % 2 == 0)));
        if user < 20 {
            world.row(&format!("s{user}"), Some(&format!("u{user}")), 1 - arm, NOW, &[], cells());
        }
    }
    let metrics = Metrics::from([("clicked".to_owned(), value_metric(Kind::Proportion, "clicked"))]);
    let found = experiment(&world.snapshot(), &metrics, &setup(NOW, NOW)).unwrap();
    assert_eq!((found.units_on_two_arms, found.sample_ratio.verdict), (20, "mismatch"));
    assert!(found.summary[0].contains("not to be trusted"), "{:?}", found.summary);
    assert_eq!(found.metrics[0].arms.iter().map(|arm| arm.units).sum::<u64>(), 580);
    assert_eq!(found.comparisons, 1);
}

#[test]
fn too_few_units_and_values_that_do_not_vary_decide_nothing() {
    let world = World::new(&[]);
    let metrics = two_metrics();
    let empty = experiment(&world.snapshot(), &metrics, &setup(NOW, NOW)).unwrap();
    assert!(empty.metrics.iter().all(|metric| metric.comparisons[0].verdict == "too_few"), "{empty:?}");
    assert_eq!(empty.sample_ratio.verdict, "too_few");
    for user in 0..1000 {
        world.row(&format!("r{user}"), Some(&format!("u{user}")), user % 2, NOW, &[], cells());
        world.value(&format!("r{user}"), NOW, "clicked", 0.0);
        world.value(&format!("r{user}"), NOW, "revenue", 1.0);
    }
    let found = experiment(&world.snapshot(), &metrics, &setup(NOW, NOW)).unwrap();
    let clicked = &found.metrics[0].comparisons[0];
    assert!(clicked.verdict == "undecided" && clicked.high.unwrap() > 0.005, "nobody clicked yet: {clicked:?}");
    assert_eq!(found.metrics[1].comparisons[0].verdict, "too_few", "nothing varies");
    // Only old enough requests count.
    let slow = Metric { label_delay: Duration::from_hours(1), ..value_metric(Kind::Proportion, "clicked") };
    let metrics = Metrics::from([("clicked".to_owned(), slow)]);
    let found = experiment(&world.snapshot(), &metrics, &setup(NOW + 60_000_000, NOW)).unwrap();
    assert_eq!(found.metrics[0].arms[0].units, 0);
    let one = Setup { arms: setup(NOW, NOW).arms[..1].to_vec(), ..setup(NOW, NOW) };
    assert!(experiment(&world.snapshot(), &metrics, &one).is_err());
}

#[test]
fn the_sequence_is_that_of_the_paper() {
    // Waudby-Smith et al. 2024, theorem 2.2: √(2 (tρ² + 1) / (t² ρ²) · ln(√(tρ² + 1) / α)), in standard errors.
    let (alpha, t) = (0.05_f64, 1000.0);
    let x: f64 = -2.0 * alpha.ln();
    let rho2 = (x + (x + 1.0).ln()) / 500.0;
    let expected =
        (2.0 * (t * rho2 + 1.0) / (t * t * rho2) * ((t * rho2 + 1.0_f64).sqrt() / alpha).ln()).sqrt() * t.sqrt();
    assert!((Sequence::new(alpha).width(t) - expected).abs() < 1e-12);
    let widths: Vec<f64> = [50.0, 500.0, 5000.0].map(|n| Sequence::new(alpha).width(n)).to_vec();
    assert!(widths[1] < widths[0] && widths[1] < widths[2] && widths.iter().all(|w| *w < 5.0), "{widths:?}");
}

#[test]
fn decay_is_told_against_training_and_against_the_version_before() {
    let world = World::new(&[("p", 2)]);
    let rng = &mut fastrand::Rng::with_seed(6);
    for i in 0..2000_i64 {
        let arm = usize::from(i >= 1000);
        // Version 1 is right in 90 %, and version 2, which came after it, in 70 %.
        let right = rng.f64() < [0.9, 0.7][arm];
        let (id, ts) = (format!("r{i}"), NOW - [8, 2][arm] * DAY + i * 1_000_000);
        world.row(&id, None, arm, ts, &[0.2, 0.8], cells());
        world.label(&id, ts, f64::from(u8::from(right)));
    }
    let snapshot = world.snapshot();
    let version = |n: &str| n.parse::<Version>().unwrap();
    let training = |accuracy: f64| [("accuracy".to_owned(), accuracy)].into();
    let found = |training, before| decay::decay(&snapshot, &Metrics::new(), version("2"), &training, before, NOW);
    let both: Vec<(String, decay::Against)> =
        found(training(0.9), Some(version("1"))).into_iter().map(|d| (d.metric, d.what)).collect();
    assert!(both.contains(&("accuracy".to_owned(), decay::Against::Training)), "{both:?}");
    assert!(both.contains(&("accuracy".to_owned(), decay::Against::Predecessor)), "{both:?}");
    let words = &found(training(0.9), None)[0].words;
    assert!(words.contains("worse than 0.9000 in training"), "{words}");
    assert_eq!(found(training(0.7), None), [], "as in training");
    assert_eq!(found(training(0.2), None), [], "better than in training");
    assert_eq!(decay::decay(&snapshot, &Metrics::new(), version("9"), &training(0.9), None, NOW), []);
}
