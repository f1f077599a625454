//! The accuracy that is expected from scores, held against the accuracy that labels show.

use super::tests::World;
use super::windows::{Ask, EstimatedAccuracy, windows};
use super::*;
use crate::quality::Value;

const DAY: i64 = 86_400_000_000;
const NOW: i64 = 20_000 * DAY;
const WEEK_AGO: i64 = NOW - 7 * DAY;

/// Rows of a binary classifier. `x` has a normal distribution with this spread, and the label is 1 with the probability 1 / (1 + exp(-x)).
#[derive(Clone, Copy)]
struct Rows {
    n: usize,
    spread: f64,
    /// The score is 1 / (1 + exp(-sharpness x)): 1 is calibrated, 3 is far too sure of itself.
    sharpness: f64,
    /// The share of labels that are turned over: the relation of inputs and labels has changed.
    turned: f64,
    /// Rows of each user, with one `x`.
    per_user: usize,
}

const CALIBRATED: Rows = Rows { n: 2000, spread: 2.0, sharpness: 1.0, turned: 0.0, per_user: 1 };

fn is_long() -> bool {
    std::env::var_os("SLUICEGATE_LONG_SIMULATIONS").is_some()
}

/// What the labels of the rows would show, and the mean of the scores as they are.
#[derive(Debug)]
struct Truth {
    accuracy: f64,
    mean_score: f64,
}

impl Rows {
    /// Adds the rows at a time, and their labels where they are told.
    fn add(self, world: &World, rng: &mut fastrand::Rng, (name, ts, told): (&str, i64, bool)) -> Truth {
        let normal = |rng: &mut fastrand::Rng| (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0;
        let probability = |logit: f64| 1.0 / (1.0 + (-logit).exp());
        let (mut right, mut scores, mut x) = (0, 0.0, 0.0);
        for i in 0..self.n {
            if i % self.per_user == 0 {
                x = self.spread * normal(rng);
            }
            let (id, user) = (format!("{name} {i}"), format!("{name} of user {}", i / self.per_user));
            let score = probability(self.sharpness * x);
            let label = (rng.f64() < probability(x)) != (rng.f64() < self.turned);
            world.row(&id, Some(&user), 0, ts, &[1.0 - score, score], [Value::Missing, Value::Missing]);
            if told {
                world.label(&id, ts, f64::from(u8::from(label)));
            }
            right += usize::from((score > 0.5) == label);
            scores += score.max(1.0 - score);
        }
        Truth { accuracy: right as f64 / self.n as f64, mean_score: scores / self.n as f64 }
    }
}

fn world() -> World {
    World::new(&[("probabilities", 2)])
}

/// The estimate for the last week.
fn last_week(world: &World) -> Option<EstimatedAccuracy> {
    let ask = Ask { from: WEEK_AGO, to: NOW, step: None, by: None };
    let found = windows(&world.snapshot(), &Metrics::new(), &ask).unwrap();
    found.groups.into_iter().next()?.estimated_accuracy
}

/// Calibrates on labelled rows of the week before, and estimates the accuracy of rows of this week that have no labels.
fn simulate(before: Rows, now: Rows, seed: u64) -> (EstimatedAccuracy, Truth) {
    let (world, rng) = (world(), &mut fastrand::Rng::with_seed(seed));
    before.add(&world, rng, ("before", WEEK_AGO - DAY, true));
    let truth = now.add(&world, rng, ("now", NOW - DAY, false));
    let estimate = last_week(&world).expect("there are enough labels");
    assert_eq!((estimate.calibration.rows_are, estimate.labelled.as_ref()), ("earlier", None));
    assert_eq!((estimate.n, estimate.calibration.rows), (now.n as u64, before.n as u64));
    (estimate, truth)
}

/// The mean absolute error of the estimates, that of the mean score, and how many intervals have the true accuracy in them.
fn errors(label: &str, runs: u64, before: Rows, now: Rows) -> (f64, f64, u64) {
    let (mut error, mut of_scores, mut covered) = (0.0, 0.0, 0);
    for seed in 0..runs {
        let (estimate, truth) = simulate(before, now, seed);
        error += (estimate.value - truth.accuracy).abs() / runs as f64;
        of_scores += (truth.mean_score - truth.accuracy).abs() / runs as f64;
        covered += u64::from((estimate.low..=estimate.high).contains(&truth.accuracy));
    }
    println!(
        "{label}: off by {error:.4} (mean score: {of_scores:.4}), {covered} of {runs} intervals hold the accuracy"
    );
    (error, of_scores, covered)
}

#[test]
fn estimates_are_near_the_accuracy_where_scores_keep_their_meaning() {
    let runs = if is_long() { 1000 } else { 30 };
    let harder = Rows { spread: 0.7, ..CALIBRATED };
    let too_sure = Rows { sharpness: 3.0, ..CALIBRATED };
    let harder_too_sure = Rows { spread: 0.7, ..too_sure };
    let users = Rows { n: 2000, per_user: 10, ..CALIBRATED };
    let settings = [
        ("calibrated scores", CALIBRATED, CALIBRATED),
        ("calibrated scores, harder rows", CALIBRATED, harder),
        ("scores that are too sure", too_sure, too_sure),
        ("scores that are too sure, harder rows", too_sure, harder_too_sure),
        ("ten rows of each user", users, users),
    ];
    for (label, before, now) in settings {
        let (error, of_scores, covered) = errors(label, runs, before, now);
        // Chance alone makes the accuracy of 2,000 rows differ by 0.008 or so, and that of the calibration as much again.
        assert!(error < 0.02, "{label}: off by {error}");
        assert!(covered * 100 >= runs * 85, "{label}: {covered} of {runs} intervals");
        assert!(now.sharpness < 2.0 || of_scores > 3.0 * error, "{label}: the mean score is off by {of_scores}");
    }
}

#[test]
fn a_changed_relation_is_not_seen_without_labels_and_is_said_once_they_come() {
    let turned = Rows { turned: 0.2, ..CALIBRATED };
    let (estimate, truth) = simulate(CALIBRATED, turned, 1);
    println!("a fifth of the labels turned: estimated {:.3}, realised {:.3}", estimate.value, truth.accuracy);
    assert!(estimate.value - truth.accuracy > 0.08, "{estimate:?} and {truth:?}");
    // With labels for a part of the rows.
    let (world, rng) = (world(), &mut fastrand::Rng::with_seed(1));
    CALIBRATED.add(&world, rng, ("before", WEEK_AGO - DAY, true));
    turned.add(&world, rng, ("unlabelled", NOW - DAY, false));
    let truth = Rows { n: 500, ..turned }.add(&world, rng, ("labelled", NOW - DAY, true));
    let estimate = last_week(&world).unwrap();
    let labelled = estimate.labelled.expect("there are labels");
    assert_eq!((estimate.n, labelled.n), (2500, 500));
    assert!((labelled.realised - truth.accuracy).abs() < 1e-9, "{labelled:?} and {truth:?}");
    assert!((labelled.realised - labelled.estimated - labelled.difference).abs() < 1e-9, "{labelled:?}");
    assert!(labelled.high < 0.0, "worse than estimated beyond doubt: {labelled:?}");
}

#[test]
fn labels_of_the_same_period_estimate_the_other_half_only() {
    let (world, rng) = (world(), &mut fastrand::Rng::with_seed(2));
    let rows = Rows { n: 600, ..CALIBRATED };
    let truth = rows.add(&world, rng, ("now", NOW - DAY, true));
    let estimate = last_week(&world).unwrap();
    assert_eq!((estimate.calibration.rows_are, estimate.calibration.units), ("halves", 600));
    let labelled = estimate.labelled.unwrap();
    assert!((labelled.low..=labelled.high).contains(&0.0), "{labelled:?}");
    assert!((estimate.value - truth.accuracy).abs() < 0.05, "{} and {truth:?}", estimate.value);
}

#[test]
fn without_enough_labels_or_without_probabilities_there_is_no_estimate() {
    let rng = &mut fastrand::Rng::with_seed(3);
    let few = world();
    Rows { n: 99, ..CALIBRATED }.add(&few, rng, ("before", WEEK_AGO - DAY, true));
    Rows { n: 50, ..CALIBRATED }.add(&few, rng, ("now", NOW - DAY, false));
    assert_eq!(last_week(&few), None);
    // A hundred rows of ten users are ten units.
    let users = world();
    Rows { n: 500, per_user: 10, ..CALIBRATED }.add(&users, rng, ("before", WEEK_AGO - DAY, true));
    Rows { n: 50, ..CALIBRATED }.add(&users, rng, ("now", NOW - DAY, false));
    assert_eq!(last_week(&users), None);
    let logits = world();
    for i in 0..500 {
        let id = format!("r{i}");
        logits.row(&id, None, 0, NOW - DAY, &[-3.0, f64::from(i)], [Value::Missing, Value::Missing]);
        logits.label(&id, NOW - DAY, 1.0);
    }
    logits.row("not a number", None, 0, NOW - DAY, &[f64::NAN, f64::NAN], [Value::Missing, Value::Missing]);
    assert_eq!(last_week(&logits), None);
}

#[test]
fn a_version_that_is_always_right_is_expected_to_be_right() {
    let world = world();
    for i in 0..400 {
        let (id, ts) = (format!("r{i}"), if i < 200 { WEEK_AGO - DAY } else { NOW - DAY });
        // All rows have one score, and one row has a score that the calibration never saw.
        let score = if i == 399 { 0.5 } else { 0.8 };
        world.row(&id, None, 0, ts, &[1.0 - score, score], [Value::Missing, Value::Missing]);
        world.label(&id, ts, 1.0);
    }
    let estimate = last_week(&world).unwrap();
    assert!(estimate.value == 1.0 && estimate.standard_error == 0.0 && estimate.low < 1.0, "{estimate:?}");
}
