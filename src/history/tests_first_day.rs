//! First days: when they are over, what is slower, and how often noise alone is called slower.

use super::first_day::{Compared, FirstDay, LIMIT};
use super::series::{All, Arm};
use super::*;

const BEGIN: u32 = 1_000_000_000;
const DAY: u32 = 86_400;
const SPAN: u32 = 300;

fn point(ts: u32, us: f64) -> Point {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a latency in microseconds")]
    let whole = |us: f64| us.round() as u32;
    let (p50_us, p99_us) = (whole(us), whole(4.0 * us));
    Point { ts, span: SPAN, requests: 1000, failed: 0, p50_us, p99_us, engine_ns_per_row: whole(500.0 * us) }
}

/// Points of five minutes; `us` gives the latency at a time since the begin.
fn points(seconds: u32, mut us: impl FnMut(u32) -> f64) -> Vec<Point> {
    (1..=seconds / SPAN).map(|i| point(BEGIN + i * SPAN, us(i * SPAN))).collect()
}

fn slower(compared: &[Compared]) -> Vec<Measure> {
    compared.iter().filter(|one| one.slower).map(|one| one.measure).collect()
}

#[test]
fn a_version_is_slower_when_most_of_a_day_is_beyond_its_first_day() {
    let at = |us: f64| points(3 * DAY, |since| if since > 2 * DAY { us } else { 1000.0 + f64::from(since % 7) });
    let now = BEGIN + 3 * DAY;
    let all = at(1600.0);
    let day = FirstDay::of(&all, now).unwrap();
    assert_eq!((day.from, day.to), (BEGIN, BEGIN + DAY));
    assert_eq!(FirstDay::of(&all, BEGIN + DAY), None, "it is not over");
    let compared = day.compare(&all, now, LIMIT);
    assert_eq!(slower(&compared), Measure::ALL);
    assert_eq!((compared[0].now, compared[0].first.points), (Some(1600.0), 288));
    assert!((compared[0].first.median - 1003.0).abs() < 2.0, "{compared:?}");
    // Different, and not enough to matter.
    assert_eq!(slower(&day.compare(&at(1400.0), now, LIMIT)), []);
    // Of the last hours, two are slow; then five, and much slower.
    let late = |hours: u32, us: f64| points(3 * DAY, |since| if since > 3 * DAY - hours * 3600 { us } else { 1000.0 });
    assert_eq!(slower(&day.compare(&late(2, 9000.0), now, LIMIT)), []);
    assert_eq!(slower(&day.compare(&late(5, 1400.0), now, LIMIT)), []);
    assert_eq!(slower(&day.compare(&late(5, 1600.0), now, LIMIT)), Measure::ALL);
    // A model may have another limit: of a day, and of the last hours.
    assert_eq!(slower(&day.compare(&at(1400.0), now, 1.3)), Measure::ALL);
    assert_eq!(slower(&day.compare(&late(5, 1400.0), now, 1.3)), Measure::ALL);
    assert_eq!(slower(&day.compare(&all, now, 1.7)), []);
    assert_eq!(slower(&day.compare(&late(5, 1600.0), now, 1.7)), []);
    // A first day with two hours that are as slow says that this is usual for hours, and not for a day.
    let usual = points(3 * DAY, |since| if since % DAY < 7200 { 2500.0 } else { 1000.0 });
    let of_usual = FirstDay::of(&usual, now).unwrap();
    assert_eq!(slower(&of_usual.compare(&late(5, 3000.0), now, LIMIT)), []);
    assert_eq!(slower(&of_usual.compare(&at(1600.0), now, LIMIT)), Measure::ALL);
}

#[test]
fn few_requests_prove_nothing_and_a_quiet_first_day_lasts_longer() {
    let now = BEGIN + 5 * DAY;
    let few = |requests: u32| points(5 * DAY, |_| 1000.0).into_iter().map(move |point| Point { requests, ..point });
    let quiet: Vec<Point> = few(19).collect();
    assert_eq!(FirstDay::of(&quiet, now), None);
    let day = FirstDay::of(&few(20).collect::<Vec<_>>(), now).unwrap();
    assert!(day.p50.is_some() && day.engine.is_some() && day.p99.is_none(), "{day:?}");
    assert_eq!(day.compare(&quiet, now, LIMIT), [compared(Measure::P50, &day), compared(Measure::Engine, &day)]);
    // Enough requests once in an hour: 72 such points are there after three days.
    let hourly: Vec<Point> = few(500).filter(|point| (point.ts - BEGIN).is_multiple_of(3600)).collect();
    assert_eq!(FirstDay::of(&hourly, now).unwrap().to, BEGIN + 3 * DAY);
    assert_eq!(FirstDay::of(&[], now), None);
    // Only the last hours of a day have requests: they are no day.
    let evening: Vec<Point> = points(5 * DAY, |_| 1600.0).split_off(5 * 288 - 100);
    assert_eq!(day.compare(&evening, now, LIMIT)[0].now, None);
    // Points from the future, as after a clock that was wrong.
    assert_eq!(slower(&day.compare(&points(9 * DAY, |_| 9000.0).split_off(5 * 288), now, LIMIT)), []);
}

fn compared(measure: Measure, day: &FirstDay) -> Compared {
    let first = if measure == Measure::P50 { day.p50 } else { day.engine };
    Compared { measure, first: first.unwrap(), now: None, slower: false }
}

#[test]
fn first_days_are_learnt_once_over_all_arms_and_are_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let model: ModelName = "m".parse().unwrap();
    let arm = |version: &str, name: &str| {
        let version: Version = version.parse().unwrap();
        Arm { model: "m".parse().unwrap(), version, name: name.to_owned() }
    };
    let mut all = All::default();
    for (at, point) in points(2 * DAY, |since| if since > DAY { 3000.0 } else { 1000.0 }).into_iter().enumerate() {
        all.restore(arm("1", ["a", "b"][at % 2]), false, point);
    }
    all.restore(arm("2", "a"), false, point(BEGIN + 2 * DAY, 1000.0));
    let now = BEGIN + 2 * DAY;
    let days = all.learn_first_days(now).unwrap();
    assert_eq!(days.len(), 1, "the first day of version 2 is not over");
    assert_eq!(all.learn_first_days(now + DAY), None, "a first day does not change");
    let files = files::Files::new(dir.path());
    files.write_first_days(days);
    let limit = |of: &ModelName| (*of == model).then_some(LIMIT);
    let against = all.against_first_day(now, limit);
    assert_eq!(slower(&against[0].compared), Measure::ALL);
    assert_eq!(all.against_first_day(now, |_| None), [], "it is left out");
    // The points of the first day are gone after two weeks, and what was learnt is not.
    let mut later = All::default();
    later.restore_first_days(files.read_first_days());
    for point in points(30 * DAY, |_| 3000.0).split_off(20 * 288) {
        later.restore(arm("1", "a"), false, point);
    }
    let against = later.against_first_day(BEGIN + 30 * DAY, limit);
    assert_eq!((against[0].first_day.to, slower(&against[0].compared)), (BEGIN + DAY, Measure::ALL.to_vec()));
    for nonsense in [
        "",
        "nonsense",
        "{}",
        "[{}]",
        r#"[{"model":"m","version":"1","from":1,"to":0,"p50":null,"p99":null,"engine":null}]"#,
    ] {
        std::fs::write(dir.path().join("history/first-days.json"), nonsense).unwrap();
        assert!(files.read_first_days().is_empty(), "{nonsense}");
    }
}

/// Days of points: a daily cycle, noise in which one bad point follows another, an hour in a hundred that is three times as slow, and from `change` on
/// a factor. Returns the times at which it begins to be called slower.
fn simulate(seed: u64, change: Option<(u32, f64)>, days: u32, limit: f64) -> Vec<u32> {
    let rng = &mut fastrand::Rng::with_seed(seed);
    let normal = |rng: &mut fastrand::Rng| (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0;
    let (mut noise, mut spike) = (0.0, 1.0);
    let all = points(days * DAY, |since| {
        // The standard deviation of the noise is 0.25; two points an hour apart have a correlation of 0.54.
        noise = 0.95 * noise + 0.078 * normal(rng);
        if since % 3600 == 0 {
            spike = if rng.f64() < 0.01 { 3.0 } else { 1.0 };
        }
        let cycle = 0.4 * (f64::from(since % DAY) / f64::from(DAY) * std::f64::consts::TAU).sin();
        let factor = change.filter(|(from, _)| since >= *from).map_or(1.0, |(_, factor)| factor);
        1000.0 * (cycle + noise).exp() * spike * factor
    });
    let day = FirstDay::of(&all, BEGIN + 2 * DAY).unwrap();
    let (mut begun, mut was) = (Vec::new(), false);
    // A look every hour, at the points of the last day.
    for end in (2 * 288..all.len()).step_by(12) {
        let is = day.compare(&all[end - 288..end], all[end - 1].ts, limit).iter().any(|one| one.slower);
        if is && !was {
            begun.push(all[end - 1].ts - BEGIN);
        }
        was = is;
    }
    begun
}

#[test]
fn noise_and_the_hour_of_the_day_are_not_called_slower_and_a_change_is() {
    let is_long = std::env::var_os("SLUICEGATE_LONG_SIMULATIONS").is_some();
    let years = if is_long { 50 } else { 1 };
    let alarms: usize = (0..years).map(|seed| simulate(seed, None, 365, LIMIT).len()).sum();
    println!("no change: {alarms} alarms in {years} years");
    // At most one in ten years of a version.
    assert!(alarms as u64 * 10 <= years, "{alarms} alarms in {years} years");
    if is_long {
        for limit in [1.2, 1.35, 2.0] {
            let alarms: usize = (0..10).map(|seed| simulate(seed, None, 365, limit).len()).sum();
            println!("no change, a limit of {limit}: {alarms} alarms in 10 years");
        }
    }
    let n = if is_long { 100 } else { 5 };
    for (factor, within_h, least_share) in [(2.0, 30.0, 0.6), (3.0, 30.0, 0.9), (6.0, 12.0, 0.9)] {
        let change = 10 * DAY + 7 * 3600;
        let found = (0..n).filter_map(|seed| {
            let begun = simulate(seed, Some((change, factor)), 12, LIMIT);
            begun.into_iter().find(|at| *at >= change).map(|at| f64::from(at - change) / 3600.0)
        });
        let mut hours: Vec<f64> = found.collect();
        hours.sort_by(f64::total_cmp);
        let found = hours.iter().filter(|hours| **hours <= within_h).count();
        println!(
            "{factor} times as slow: {found} of {n} within {within_h} h, median {:?} h",
            hours.get(hours.len() / 2)
        );
        assert!(found as f64 >= least_share * f64::from(u32::try_from(n).unwrap()), "{found} of {n}: {hours:?}");
    }
}
