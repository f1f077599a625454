use super::*;
use crate::model::{Feedback, Label, ModelName, Update, Version};
use crate::tensor::DataType;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

fn model() -> ModelName {
    "m".parse().unwrap()
}

fn predict(quality: &Quality, id: &str, ts: i64, predicted: f64) {
    let seen = Seen {
        model: &model(),
        version: "1".parse().unwrap(),
        arm: "control",
        request_id: id,
        route_key: None,
        row: 0,
        ts,
    };
    quality.record_prediction(&seen, || {
        let mut all = Predicted::default();
        all.add(DataType::Fp64, &predicted.to_le_bytes());
        all
    });
}

fn feedback(id: &str, ts: i64, label: f64, revenue: f64) -> Feedback {
    Feedback {
        request_id: id.to_owned(),
        row: 0,
        ts,
        label: Some(Update::Set(Label::Number(label))),
        values: vec![("revenue".to_owned(), Update::Set(revenue))],
    }
}

fn only_arm(quality: &Quality) -> Figures {
    only(quality.of(&model()).arms)
}

fn only(arms: BTreeMap<(Version, String), Figures>) -> Figures {
    assert_eq!(arms.len(), 1, "{arms:?}");
    arms.into_values().next().unwrap()
}

#[test]
fn feedback_may_come_before_after_and_again() {
    let quality = Quality::new(Config::default());
    let first = feedback("early", 2_000_000, 0.0, 1.0);
    quality.record_feedback(&model(), vec![first, feedback("early", 5_000_000, 1.0, 10.0)], 5_000_000);
    assert_eq!(quality.of(&model()).unmatched, 2);
    predict(&quality, "early", 1_000_000, 1.5);
    predict(&quality, "late", 2_000_000, 3.0);
    quality.record_feedback(
        &model(),
        vec![feedback("late", 4_000_000, 1.0, 20.0), feedback("nobody", 1, 1.0, 1.0)],
        9_000_000,
    );
    let figures = only_arm(&quality);
    assert_eq!((figures.predictions, figures.with_feedback, figures.labelled), (2, 2, 2));
    assert_eq!(figures.mean_absolute_error(), Some(1.25));
    assert_eq!((figures.values["revenue"].mean, figures.values["revenue"].variance()), (15.0, Some(50.0)));
    // The delay is that of the first `ts` of each row.
    assert_eq!(figures.mean_delay(), Some(1.5));
    // A later `ts` replaces the feedback, an earlier one does not.
    quality.record_feedback(
        &model(),
        vec![feedback("late", 6_000_000, 3.0, 30.0), feedback("late", 3_000_000, 0.0, 0.0)],
        9_000_000,
    );
    let figures = only_arm(&quality);
    assert_eq!((figures.labelled, figures.mean_absolute_error()), (2, Some(0.25)));
    assert_eq!(figures.values["revenue"].mean, 20.0);
    let of = quality.of(&model());
    assert_eq!((of.feedback, of.unmatched, of.left_out), (6, 1, 0));
}

fn entry(id: &str, ts: i64, label: Option<Update<Label>>, values: &[(&str, Update<f64>)]) -> Feedback {
    let values = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    Feedback { request_id: id.to_owned(), row: 0, ts, label, values }
}

fn label(number: f64) -> Update<Label> {
    Update::Set(Label::Number(number))
}

#[test]
fn entries_about_a_row_are_merged_field_by_field() {
    let quality = Quality::new(Config::default());
    let tell = |entry: Feedback| quality.record_feedback(&model(), vec![entry], 9_000_000);
    for id in ["before", "after"] {
        if id == "after" {
            predict(&quality, id, 1_000_000, 3.0);
        }
        tell(entry(id, 10_000_000, Some(label(3.0)), &[]));
        tell(entry(id, 20_000_000, None, &[("revenue", Update::Set(5.0)), ("clicked", Update::Set(1.0))]));
        // It came late: its label is older than the label, its cost is new.
        tell(entry(id, 5_000_000, Some(label(7.0)), &[("cost", Update::Set(2.0)), ("revenue", Update::Set(100.0))]));
        if id == "before" {
            predict(&quality, id, 1_000_000, 3.0);
        }
    }
    let figures = only_arm(&quality);
    assert_eq!((figures.with_feedback, figures.labelled), (2, 2), "revenue does not remove the label");
    assert_eq!(figures.mean_absolute_error(), Some(0.0), "an older label does not replace a newer one");
    let value = |figures: &Figures, name: &str| (figures.values[name].count, figures.values[name].mean);
    assert_eq!(value(&figures, "revenue"), (2, 5.0));
    assert_eq!((value(&figures, "clicked"), value(&figures, "cost")), ((2, 1.0), (2, 2.0)));

    // An older retraction changes nothing, a newer one holds until a newer label comes.
    tell(entry("after", 9_000_000, Some(Update::Retract), &[("revenue", Update::Retract)]));
    assert_eq!((only_arm(&quality).labelled, value(&only_arm(&quality), "revenue")), (2, (2, 5.0)));
    tell(entry("after", 30_000_000, Some(Update::Retract), &[("revenue", Update::Retract)]));
    let figures = only_arm(&quality);
    assert_eq!((figures.with_feedback, figures.labelled, value(&figures, "revenue")), (2, 1, (1, 5.0)));
    assert_eq!(value(&figures, "clicked"), (2, 1.0), "the others keep their values");
    tell(entry("after", 25_000_000, Some(label(8.0)), &[]));
    assert_eq!(only_arm(&quality).labelled, 1, "a label from before the retraction is retracted too");
    tell(entry("after", 30_000_000, Some(label(4.0)), &[]));
    let figures = only_arm(&quality);
    assert_eq!((figures.labelled, figures.mean_absolute_error()), (2, Some(0.5)), "of equal times the last counts");
}

#[test]
fn a_row_keeps_a_limited_number_of_values() {
    let quality = Quality::new(Config::default());
    predict(&quality, "a", 1_000_000, 3.0);
    for i in 0..1000 {
        let name = format!("v{i}");
        quality.record_feedback(&model(), vec![entry("a", i, None, &[(&name, Update::Set(1.0))])], 9_000_000);
    }
    assert!(quality.bytes() < 20_000, "{} bytes", quality.bytes());
    let figures = only_arm(&quality);
    assert_eq!(figures.values.values().map(|moments| moments.count).sum::<u64>() + figures.values_left_out, 1000);
}

#[test]
fn memory_is_bounded_and_the_kept_share_is_representative() {
    let quality = Quality::new(Config { rows: 1000, window: Duration::from_hours(1), ..Config::default() });
    for i in 0..100_000 {
        predict(&quality, &format!("id-{i}"), i, 1.0);
    }
    let share = quality.of(&model()).share;
    assert!((1.0 / 256.0..=1.0 / 64.0).contains(&share), "{share}");
    let entries = (0..100_000).map(|i| feedback(&format!("id-{i}"), i, f64::from(u32::try_from(i % 2).unwrap()), 1.0));
    quality.record_feedback(&model(), entries.collect(), 100_000);
    let of = quality.of(&model());
    assert_eq!((of.feedback, of.unmatched), (100_000, 0), "{of:?}");
    let figures = only_arm(&quality);
    let expected = 100_000.0 * share;
    assert!((figures.labelled as f64 - expected).abs() < 7.0 * expected.sqrt(), "{} of {expected}", figures.labelled);
    // Half of the labels have an error of 1.
    assert!((figures.mean_absolute_error().unwrap() - 0.5).abs() < 3.5 / expected.sqrt());
    // Once the rows are older than the window, all requests are kept again.
    for i in 0..2000 {
        predict(&quality, &format!("new-{i}"), 1_000_000_000_000 + i * 10_000_000, 1.0);
    }
    assert_eq!(quality.of(&model()).share, 1.0);
}

#[test]
fn figures_of_idle_arms_and_models_are_dropped() {
    let hour = 3_600_000_000;
    let quality = Quality::new(Config::default());
    let other: ModelName = "other".parse().unwrap();
    quality.record_feedback(&other, vec![feedback("early", 0, 1.0, 1.0)], 0);
    let predict = |model: &ModelName, version: u64, arm: &str, ts: i64| {
        let version = version.to_string().parse().unwrap();
        let seen =
            Seen { model, version, arm, request_id: &format!("{version}-{arm}-{ts}"), route_key: None, row: 0, ts };
        quality.record_prediction(&seen, Predicted::default);
    };
    predict(&other, 1, "control", 0);
    for i in 0..200_u32 {
        // A new version every hour, beside one that always serves.
        predict(&model(), u64::from(i) + 2, "challenger", i64::from(i) * hour);
        predict(&model(), 1, "control", i64::from(i) * hour);
    }
    let arms = quality.of(&model()).arms;
    assert!((25..30).contains(&arms.len()), "{}", arms.len());
    let control = arms.iter().find(|((_, arm), _)| arm == "control").unwrap();
    assert_eq!(control.1.predictions, 200, "an arm in use keeps its figures");
    assert!(arms.keys().all(|(version, arm)| arm == "control" || version.number() > 170), "the oldest are dropped");
    assert_eq!(quality.all().len(), 1, "a model without predictions and feedback is dropped");
    // The dropped model's early feedback has expired with it.
    let seen = Seen {
        model: &other,
        version: "1".parse().unwrap(),
        arm: "control",
        request_id: "early",
        route_key: None,
        row: 0,
        ts: 200 * hour,
    };
    quality.record_prediction(&seen, Predicted::default);
    let of = quality.of(&other);
    assert_eq!((of.feedback, of.unmatched, only(of.arms).with_feedback), (0, 0, 0));
    quality.expire(400 * hour);
    assert_eq!(quality.bytes(), 0, "nothing of it is counted any more");
}

#[test]
fn a_clock_that_is_set_back_does_not_stop_the_window() {
    let hour = 3_600_000_000;
    let quality = Quality::new(Config { rows: 100, window: Duration::from_hours(1), ..Config::default() });
    predict(&quality, "future", 10_000 * hour, 1.0);
    for i in 0..1000 {
        predict(&quality, &format!("id-{i}"), i * hour / 50, 1.0);
    }
    let of = quality.of(&model());
    assert_eq!(of.share, 1.0, "at most 51 rows are in the window");
    quality.record_feedback(&model(), vec![feedback("id-999", 1000 * hour, 1.0, 1.0)], 1000 * hour);
    quality.record_feedback(&model(), vec![feedback("future", 1000 * hour, 1.0, 1.0)], 1000 * hour);
    assert_eq!(only_arm(&quality).labelled, 1, "the row in the future was dropped");
    let other: ModelName = "other".parse().unwrap();
    quality.record_feedback(&other, Vec::new(), 0);
    let seen = Seen {
        model: &other,
        version: "1".parse().unwrap(),
        arm: "a",
        request_id: "x",
        route_key: None,
        row: 0,
        ts: 20 * hour,
    };
    quality.record_prediction(&seen, Predicted::default);
    predict(&quality, "later", 60 * hour, 1.0);
    assert!(quality.of(&other).arms.is_empty(), "idle arms are still dropped");
}

proptest! {
    #[test]
    fn removed_numbers_leave_no_trace(kept in prop::collection::vec(-1e3..1e3, 0..20),
                                                removed in prop::collection::vec(-1e3..1e3, 0..20)) {
        let mut moments = Moments::default();
        for x in removed.iter().chain(&kept) {
            moments.add(*x);
        }
        for x in &removed {
            moments.remove(*x);
        }
        let n = kept.len() as f64;
        prop_assert_eq!(moments.count, kept.len() as u64);
        if !kept.is_empty() {
            let mean = kept.iter().sum::<f64>() / n;
            prop_assert!((moments.mean - mean).abs() < 1e-9 * 1e3);
            let variance = kept.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
            if let Some(found) = moments.variance() {
                prop_assert!((found - variance).abs() < 1e-9 * 1e6, "{} {}", found, variance);
            }
        }
    }
}

/// Feedback with as much text as one entry may have.
fn large(id: &str, ts: i64) -> Feedback {
    let values = (0..100).map(|i| (format!("{}{i}", "v".repeat(4000)), Update::Set(1.0))).collect();
    Feedback { request_id: id.to_owned(), row: 0, ts, label: Some(Update::Set(Label::Text("l".repeat(4096)))), values }
}

#[test]
fn feedback_for_unknown_ids_is_counted_in_bytes_and_expires() {
    let config = Config { bytes: 8 << 20, ..Config::default() };
    let quality = Quality::new(config);
    let second: ModelName = "n".parse().unwrap();
    for i in 0..100 {
        quality.record_feedback(&model(), vec![large(&format!("unknown-{i}"), 1)], 1_000_000);
        assert!(quality.bytes() <= 1 << 20, "one model has an eighth: {}", quality.bytes());
    }
    assert!(quality.bytes() > 500_000, "what fits is kept: {}", quality.bytes());
    for i in 0..100_000 {
        let entry = Feedback { label: None, ..feedback(&format!("u{i}"), 1, 0.0, 1.0) };
        quality.record_feedback(&second, vec![entry], 2_000_000);
    }
    assert!(quality.bytes() <= 2 << 20, "all models have a quarter: {}", quality.bytes());
    assert_eq!((quality.of(&model()).unmatched, quality.of(&second).unmatched), (100, 100_000));
    // The oldest were dropped, the newest are joined.
    predict_of(&quality, &second, "u99999", 3_000_000);
    assert_eq!(quality.of(&second).unmatched, 99_999);
    quality.expire(2_000_000 + micros(Duration::from_hours(1)));
    assert!(quality.bytes() > 0);
    quality.expire(3_000_001 + micros(Duration::from_hours(1)));
    assert_eq!(quality.bytes(), 0, "everything expires without new records");
}

#[test]
fn feedback_about_known_rows_is_counted_in_bytes() {
    let quality = Quality::new(Config { bytes: 8 << 20, ..Config::default() });
    for i in 0..1000 {
        let id = format!("r{i}");
        predict(&quality, &id, 1_000_000, 1.0);
        quality.record_feedback(&model(), vec![large(&id, 2_000_000)], 2_000_000);
        assert!(quality.bytes() <= 8 << 20, "{} bytes after {i}", quality.bytes());
    }
    assert!(quality.of(&model()).share < 1.0, "a share of the requests is kept");
    quality.expire(1_000_001 + micros(Duration::from_hours(1)));
    assert_eq!((quality.bytes(), quality.of(&model()).share), (0, 1.0), "with the rows their feedback goes");
    assert!(only_arm(&quality).values_left_out > 0);
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap()
}

fn predict_of(quality: &Quality, model: &ModelName, id: &str, ts: i64) {
    let seen =
        Seen { model, version: "1".parse().unwrap(), arm: "control", request_id: id, route_key: None, row: 0, ts };
    quality.record_prediction(&seen, Predicted::default);
}

proptest! {
    /// Whatever comes in whatever order: the bytes are never over the limit, and none are left when everything has expired.
    #[test]
    fn bytes_are_neither_lost_nor_counted_twice(
        steps in proptest::collection::vec((0u8..4, 0usize..40, 0usize..2000, 0i64..600_000_000), 1..300),
    ) {
        let quality = Quality::new(Config { bytes: 64 << 10, rows: 50, window: Duration::from_mins(10), ..Config::default() });
        let mut now = 1_000_000;
        for (action, id, size, later) in steps {
            let id = format!("id{id}");
            match action {
                0 => predict(&quality, &id, now, 1.0),
                1 | 2 => {
                    let label = Some(Update::Set(Label::Text("x".repeat(size))));
                    quality.record_feedback(&model(), vec![Feedback { label, ..feedback(&id, now, 0.0, 1.0) }], now);
                }
                _ => {
                    now += later / 4;
                    quality.expire(now);
                }
            }
            prop_assert!(quality.bytes() <= 64 << 10);
        }
        quality.expire(now + micros(Duration::from_mins(10)) + 1);
        prop_assert_eq!(quality.bytes(), 0);
    }
}

/// Revenue of 300 users with five requests each on average, on two identical arms.
fn revenue_by_user(rng: &mut fastrand::Rng) -> Vec<Figures> {
    let quality = Quality::default();
    for user in 0..300 {
        let (arm, level) = (if rng.bool() { "a" } else { "b" }, -(1.0 - rng.f64()).ln());
        let mut request = 0;
        while request == 0 || rng.f64() < 0.8 {
            let id = format!("{user}-{request}");
            let (model, version, key) = (&model(), "1".parse().unwrap(), format!("u{user}"));
            let seen = Seen { model, version, arm, request_id: &id, route_key: Some(&key), row: 0, ts: 0 };
            quality.record_prediction(&seen, Predicted::default);
            quality.record_feedback(model, vec![feedback(&id, 1, 1.0, level * rng.f64())], 1);
            request += 1;
        }
    }
    quality.of(&model()).arms.into_values().collect()
}

#[test]
fn identical_arms_differ_by_more_than_two_standard_errors_of_their_users_in_few_tests_and_of_their_rows_in_many() {
    let rng = &mut fastrand::Rng::with_seed(3);
    let (tests, mut by_unit, mut by_row) = (100, 0, 0);
    for _ in 0..tests {
        let arms = revenue_by_user(rng);
        let [a, b] = &arms[..] else { panic!("two arms") };
        let difference = (a.values["revenue"].mean - b.values["revenue"].mean).abs();
        let of_rows = |arm: &Figures| {
            let moments = arm.values["revenue"];
            moments.variance().unwrap() / moments.count as f64
        };
        let of_units = |arm: &Figures| arm.by_unit["revenue"].standard_error.unwrap().powi(2);
        by_unit += u32::from(difference > 1.96 * (of_units(a) + of_units(b)).sqrt());
        by_row += u32::from(difference > 1.96 * (of_rows(a) + of_rows(b)).sqrt());
    }
    println!("identical arms differ in {by_unit} of {tests} tests by user and in {by_row} by row");
    assert!(by_unit <= 12, "{by_unit} of {tests} by user");
    assert!(by_row >= 20, "{by_row} of {tests} by row");
}

#[test]
fn values_are_summed_by_key_and_corrections_replace_them() {
    let quality = Quality::default();
    let see = |id: &str, key: Option<&str>| {
        let (model, version) = (&model(), "1".parse().unwrap());
        let seen = Seen { model, version, arm: "control", request_id: id, route_key: key, row: 0, ts: 0 };
        quality.record_prediction(&seen, Predicted::default);
    };
    // Feedback about the first comes before its prediction.
    quality.record_feedback(&model(), vec![feedback("a", 1, 1.0, 2.0)], 1);
    see("a", Some("u1"));
    see("b", Some("u1"));
    see("c", Some("u2"));
    see("d", None);
    quality.record_feedback(&model(), vec![feedback("b", 1, 1.0, 100.0), feedback("c", 1, 1.0, 6.0)], 1);
    quality.record_feedback(&model(), vec![feedback("b", 2, 1.0, 4.0), feedback("d", 1, 1.0, 8.0)], 2);
    let by_unit = only_arm(&quality).by_unit["revenue"];
    assert_eq!((by_unit.is_key, by_unit.units), (true, 3));
    // A mean of 5. The users' sums less five times their rows: -4, 1, 3.
    let expected = (26.0_f64 * 3.0 / 2.0).sqrt() / 4.0;
    assert!((by_unit.standard_error.unwrap() - expected).abs() < 1e-12, "{by_unit:?}");
}
