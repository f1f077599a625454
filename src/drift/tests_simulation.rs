//! What is promised, by simulation. `SLUICEGATE_LONG_SIMULATIONS=1` runs whole years; docs/EVIDENCE.md has their figures.

use super::analysis::ArmState;
use super::hot::Tally;
use super::plan::{Plan, Reference};
use super::settings::Settings;
use crate::columns::{Cell, ElementNames, Kind};
use crate::model::{Dim, Signature, TensorSpec};
use crate::profile::{Builder, Profile};
use crate::tensor::DataType;
use std::f64::consts::TAU;

fn is_long() -> bool {
    std::env::var_os("SLUICEGATE_LONG_SIMULATIONS").is_some()
}

/// Standard normal, by Box and Muller.
fn normal(random: &mut fastrand::Rng) -> f64 {
    (-2.0 * (1.0 - random.f64()).ln()).sqrt() * (TAU * random.f64()).cos()
}

/// Columns of normally distributed numbers, with a profile of some rows.
struct World {
    plan: Plan,
    state: ArmState,
    random: fastrand::Rng,
}

/// What came of a simulation.
#[derive(Debug, Default, Clone)]
struct Told {
    /// Alarms that began.
    begun: usize,
    /// Rows until the first, and its hour.
    rows: Option<u64>,
    hour: Option<i64>,
}

impl World {
    fn new(columns: usize, profile_rows: usize, settings: &Settings, seed: u64) -> World {
        let mut random = fastrand::Rng::with_seed(seed);
        let dims = Some(vec![Dim::Free(None), Dim::Fixed(columns)]);
        let spec = |name: &str, dims| TensorSpec { name: name.into(), datatype: DataType::Fp64, dims };
        let output = spec("y", Some(vec![Dim::Free(None)]));
        let signature = Signature::new(vec![spec("x", dims)], vec![output]);
        let name = |column: usize| if columns == 1 { "x".to_owned() } else { format!("x[{column}]") };
        let profile = Profile {
            format: Profile::FORMAT,
            rows: profile_rows as u64,
            from: None,
            to: None,
            source: None,
            metrics: [].into(),
            sample: None,
            columns: (0..columns)
                .map(|column| {
                    let mut builder = Builder::new(profile_rows);
                    (0..profile_rows).for_each(|_| builder.add(Cell::Number(normal(&mut random))));
                    (name(column), builder.finish(Some(Kind::Float)))
                })
                .collect(),
        };
        let none = ElementNames::default();
        let plan = Plan::new(Reference::Profile, &profile, &signature, &none, &[].into(), settings);
        assert_eq!(plan.columns.len(), columns, "{:?}", plan.notes);
        let state = ArmState::new(&plan, 0);
        World { plan, state, random }
    }

    /// Hours of `rows` rows each. `value` changes a standard normal number of a column in an hour; NaN is missing.
    fn run(
        &mut self,
        hours: std::ops::Range<i64>,
        rows: u64,
        value: impl Fn(i64, usize, f64, &mut fastrand::Rng) -> f64,
    ) -> Told {
        let mut told = Told::default();
        let first = hours.start;
        for hour in hours {
            let before: Vec<bool> = self.state.columns.iter().map(|column| column.alarm.is_some()).collect();
            let mut tally = Tally::new(&self.plan);
            (tally.offered, tally.rows) = (rows, rows);
            for (at, watched) in self.plan.columns.iter().enumerate() {
                for _ in 0..rows {
                    let number = normal(&mut self.random);
                    let cell = Cell::Number(value(hour, at, number, &mut self.random));
                    tally.counts[watched.start + watched.counter(cell).unwrap()] += 1;
                }
            }
            self.state.add(&self.plan, hour, tally, 1);
            let after = self.state.columns.iter().map(|column| column.alarm.is_some());
            let begun = before.into_iter().zip(after).filter(|(before, after)| !before && *after).count();
            told.begun += begun;
            if begun > 0 && told.rows.is_none() {
                // An alarm of a longer window begins with the hour after it.
                told.rows = Some(rows * u64::try_from(hour - first + 1).unwrap());
                told.hour = Some(hour - first);
            }
        }
        told
    }
}

const YEAR: i64 = 365 * 24;

/// Without a floor, so that what is tested is the evidence alone, and with more alarms accepted than by default, so that they can be counted.
#[test]
fn false_alarms_are_within_the_budget() {
    let accepted = 50.0;
    let settings = Settings { false_alarms_per_year: accepted, floor: 0.0, ..Settings::default() };
    let (years, columns) = if is_long() { (4u32, 4) } else { (1, 1) };
    let hours = if is_long() { YEAR } else { YEAR / 6 };
    let mut begun = 0;
    for seed in 0..years {
        // A profile of few rows: its own error is as large as that of a day.
        begun += World::new(columns, 2000, &settings, u64::from(seed)).run(0..hours, 60, |_, _, x, _| x).begun;
    }
    let expected = accepted * (i64::from(years) * hours) as f64 / YEAR as f64;
    println!("no drift: {begun} alarms, at most {expected:.1} promised, {years} x {hours} hours, {columns} columns");
    assert!(begun as f64 <= expected + 3.0 * expected.sqrt(), "{begun} alarms, {expected} promised");
}

#[test]
fn the_default_is_silent_without_drift_and_over_a_daily_cycle() {
    let (hours, columns) = if is_long() { (YEAR, 8) } else { (20 * 24, 3) };
    let settings = Settings::default();
    let told = World::new(columns, 20_000, &settings, 11).run(0..hours, 100, |_, _, x, _| x);
    println!("default, no drift: {told:?} in {hours} hours, {columns} columns");
    assert_eq!(told.begun, 0, "{told:?}");
    // The mean moves by half a standard deviation each way within a day, and the days are alike. The profile is of whole days too.
    let cycle = |hour: i64| 0.5 * (TAU * (hour % 24) as f64 / 24.0).sin();
    let wide = (1.0f64 + 0.125).sqrt();
    let told = World::new(columns, 20_000, &settings, 12).run(0..hours, 100, |hour, _, x, _| (x + cycle(hour)) / wide);
    println!("default, daily cycle: {told:?} in {hours} hours, {columns} columns");
    assert_eq!(told.begun, 0, "{told:?}");
}

/// Each change is told, and after how many rows.
#[test]
fn changes_are_told() {
    let settings = Settings::default();
    let rows = 1000;
    let runs = if is_long() { 5 } else { 1 };
    let columns = if is_long() { 500 } else { 10 };
    let shift = |by: f64| move |_: i64, at: usize, x: f64, _: &mut fastrand::Rng| if at == 0 { x + by } else { x };
    let missing = |share: f64| {
        move |_: i64, at: usize, x: f64, random: &mut fastrand::Rng| {
            if at == 0 && random.f64() < share { f64::NAN } else { x }
        }
    };
    let report =
        |name: &str, columns: usize, within: u64, value: &dyn Fn(i64, usize, f64, &mut fastrand::Rng) -> f64| {
            let mut all: Vec<u64> = Vec::new();
            for seed in 0..runs {
                let mut world = World::new(columns, 20_000, &settings, 100 + seed);
                let told = world.run(0..24 * 8 + 1, rows, value);
                all.push(told.rows.unwrap_or(u64::MAX));
                assert!(told.rows.is_some_and(|rows| rows <= within), "{name}: {told:?}");
            }
            all.sort_unstable();
            println!(
                "{name}, {columns} columns, {rows} rows an hour: told after {:?} rows (median of {runs})",
                all[all.len() / 2]
            );
        };
    report("a shift by 0.2 standard deviations", 5, 25_000, &shift(0.2));
    report("a shift by 1 standard deviation", 5, 1000, &shift(1.0));
    report("missing values in 5 % of the rows", 5, 1000, &missing(0.05));
    report("missing values in 1 % of the rows", 5, 25_000, &missing(0.01));
    if is_long() {
        report("a shift by 0.2 of one column of many", columns, 25_000, &shift(0.2));
    } else {
        report("a shift by 1 of one column of many", columns, 1000, &shift(1.0));
    }
}

/// A text that the profile does not have. Five texts, of which the rarest has 2 % of the rows, come as before.
#[test]
fn a_category_that_appears_is_told() {
    const TEXTS: [(&str, f64); 5] = [("a", 0.5), ("b", 0.25), ("c", 0.15), ("d", 0.08), ("e", 0.02)];
    let text = |random: &mut fastrand::Rng| {
        let mut left = random.f64();
        let found = TEXTS.iter().find(|(_, share)| {
            left -= share;
            left < 0.0
        });
        found.map_or("a", |(text, _)| text)
    };
    let name =
        |name: &str| TensorSpec { name: name.into(), datatype: DataType::Bytes, dims: Some(vec![Dim::Free(None)]) };
    let signature = Signature::new(vec![name("s")], vec![name("y")]);
    let (rows, runs) = (1000, if is_long() { 5 } else { 1 });
    for (share, within) in [(0.0, None), (0.01, Some(25_000)), (0.05, Some(1000))] {
        let mut all: Vec<u64> = Vec::new();
        for seed in 0..runs {
            let random = &mut fastrand::Rng::with_seed(200 + seed);
            let mut builder = Builder::new(20_000);
            (0..20_000).for_each(|_| builder.add(Cell::Text(text(random).as_bytes())));
            let columns = [("s".to_owned(), builder.finish(None))].into();
            let (format, none) = (Profile::FORMAT, ElementNames::default());
            let profile = Profile {
                format,
                rows: 20_000,
                from: None,
                to: None,
                source: None,
                metrics: [].into(),
                sample: None,
                columns,
            };
            let plan = Plan::new(Reference::Profile, &profile, &signature, &none, &[].into(), &Settings::default());
            let (mut state, watched) = (ArmState::new(&plan, 0), &plan.columns[0]);
            let told = (0..24 * 8).find(|hour| {
                let mut tally = Tally::new(&plan);
                (tally.offered, tally.rows) = (rows, rows);
                for _ in 0..rows {
                    let cell = if random.f64() < share { "new" } else { text(random) };
                    tally.counts[watched.start + watched.counter(Cell::Text(cell.as_bytes())).unwrap()] += 1;
                }
                state.add(&plan, *hour, tally, 1);
                state.columns[0].alarm.is_some()
            });
            all.push(told.map_or(u64::MAX, |hour| rows * (hour.cast_unsigned() + 1)));
        }
        println!("a new text in {share} of the rows: told after {all:?} rows");
        match within {
            Some(within) => assert!(all.iter().all(|rows| *rows <= within), "{share}: {all:?}"),
            None => assert!(all.iter().all(|rows| *rows == u64::MAX), "nothing changed: {all:?}"),
        }
    }
}

/// After two weeks an hour is compared with the same hours of other days.
#[test]
fn like_is_compared_with_like() {
    let settings = Settings::default();
    let cycle = |hour: i64| 0.5 * (TAU * (hour % 24) as f64 / 24.0).sin();
    let wide = (1.0f64 + 0.125).sqrt();
    let mut world = World::new(1, 20_000, &settings, 5);
    let told = world.run(0..16 * 24, 300, |hour, _, x, _| (x + cycle(hour)) / wide);
    assert_eq!(told.begun, 0, "{told:?}");
    assert!(world.state.columns[0].looks[0].as_ref().unwrap().alike);
    // Half a standard deviation is within what the cycle moves, and told within hours.
    let told = world.run(16 * 24..17 * 24, 300, |hour, _, x, _| (x + cycle(hour)) / wide + 0.5);
    println!("a shift by 0.5 beside a daily cycle, 300 rows an hour: {told:?}");
    assert!(told.hour.is_some_and(|hours| hours <= 3), "{told:?}");
}

/// Rows that are related: each value comes ten times. The dispersion between days and hours shows it.
#[test]
fn related_rows_count_less() {
    let settings = Settings { false_alarms_per_year: 50.0, floor: 0.0, ..Settings::default() };
    let days = if is_long() { 365 } else { 40 };
    let mut world = World::new(1, 20_000, &settings, 6);
    let mut begun = 0;
    for hour in 0..days * 24 {
        let mut tally = Tally::new(&world.plan);
        let watched = &world.plan.columns[0];
        (tally.offered, tally.rows) = (100, 100);
        for _ in 0..10 {
            let cell = Cell::Number(normal(&mut world.random));
            tally.counts[watched.start + watched.counter(cell).unwrap()] += 10;
        }
        let before = world.state.columns[0].alarm.is_some();
        world.state.add(&world.plan, hour, tally, 1);
        // The dispersion is known after some days.
        begun += usize::from(!before && world.state.columns[0].alarm.is_some() && hour > 16 * 24);
    }
    let expected = 50.0 * (days - 16) as f64 / 365.0;
    println!("each value ten times: {begun} alarms after the second week, at most {expected:.1} promised");
    assert!(f64::from(u32::try_from(begun).unwrap()) <= expected + 3.0 * expected.sqrt(), "{begun} {expected}");
    let dispersion = world.state.columns[0].looks[0].as_ref().unwrap().dispersion;
    assert!((5.0..15.0).contains(&dispersion), "{dispersion}");
}
