use super::*;
use crate::model::{Feedback, Label, ModelName};
use crate::tensor::DataType;
use proptest::prelude::*;
use std::time::Duration;

fn model() -> ModelName {
    "m".parse().unwrap()
}

fn see(quality: &Quality, id: &str, ts: i64, predicted: f64) {
    let seen = Seen { model: &model(), version: "1".parse().unwrap(), arm: "control", request_id: id, row: 0, ts };
    quality.predicted(&seen, || {
        let mut all = Predicted::default();
        all.add(DataType::Fp64, &predicted.to_le_bytes());
        all
    });
}

fn told(id: &str, ts: i64, label: f64, revenue: f64) -> Feedback {
    Feedback {
        request_id: id.to_owned(),
        row: 0,
        ts,
        label: Some(Label::Number(label)),
        values: vec![("revenue".to_owned(), revenue)],
    }
}

fn only(quality: &Quality) -> Figures {
    let of = quality.of(&model());
    assert_eq!(of.arms.len(), 1, "{of:?}");
    of.arms.into_values().next().unwrap()
}

#[test]
fn feedback_joins_before_after_and_again() {
    let quality = Quality::new(Config::default());
    let before = told("early", 2_000_000, 0.0, 1.0);
    quality.told(&model(), vec![before, told("early", 5_000_000, 1.0, 10.0)], 5_000_000);
    assert_eq!(quality.of(&model()).unmatched, 2);
    see(&quality, "early", 1_000_000, 1.5);
    see(&quality, "late", 2_000_000, 3.0);
    quality.told(&model(), vec![told("late", 4_000_000, 1.0, 20.0), told("nobody", 1, 1.0, 1.0)], 9_000_000);
    let figures = only(&quality);
    assert_eq!((figures.predictions, figures.told, figures.labelled), (2, 2, 2));
    assert_eq!(figures.mean_absolute_error(), Some(1.25));
    assert_eq!((figures.values["revenue"].mean, figures.values["revenue"].variance()), (15.0, Some(50.0)));
    // The first `ts` of each.
    assert_eq!(figures.mean_delay(), Some(1.5));
    // Later counts, earlier does not.
    quality.told(&model(), vec![told("late", 6_000_000, 3.0, 30.0), told("late", 3_000_000, 0.0, 0.0)], 9_000_000);
    let figures = only(&quality);
    assert_eq!((figures.labelled, figures.mean_absolute_error()), (2, Some(0.25)));
    assert_eq!(figures.values["revenue"].mean, 20.0);
    let of = quality.of(&model());
    assert_eq!((of.feedback, of.unmatched, of.left_out), (6, 1, 0));
}

#[test]
fn memory_is_bounded_and_the_share_that_is_kept_is_fair() {
    let quality = Quality::new(Config { rows: 1000, window: Duration::from_hours(1) });
    for i in 0..100_000 {
        see(&quality, &format!("id-{i}"), i, 1.0);
    }
    let share = quality.of(&model()).share;
    assert!((1.0 / 256.0..=1.0 / 64.0).contains(&share), "{share}");
    let entries = (0..100_000).map(|i| told(&format!("id-{i}"), i, f64::from(u32::try_from(i % 2).unwrap()), 1.0));
    quality.told(&model(), entries.collect(), 100_000);
    let of = quality.of(&model());
    assert_eq!((of.feedback, of.unmatched), (100_000, 0), "{of:?}");
    let figures = only(&quality);
    let expected = 100_000.0 * share;
    assert!((figures.labelled as f64 - expected).abs() < 7.0 * expected.sqrt(), "{} of {expected}", figures.labelled);
    // Half of the labels are off by one.
    assert!((figures.mean_absolute_error().unwrap() - 0.5).abs() < 3.5 / expected.sqrt());
    // When the rows are past the window, all requests are kept again.
    for i in 0..2000 {
        see(&quality, &format!("new-{i}"), 1_000_000_000_000 + i * 10_000_000, 1.0);
    }
    assert_eq!(quality.of(&model()).share, 1.0);
}

proptest! {
    #[test]
    fn numbers_taken_away_are_as_if_never_added(kept in prop::collection::vec(-1e3..1e3, 0..20),
                                                gone in prop::collection::vec(-1e3..1e3, 0..20)) {
        let mut moments = Moments::default();
        for x in gone.iter().chain(&kept) {
            moments.add(*x);
        }
        for x in &gone {
            moments.take(*x);
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
