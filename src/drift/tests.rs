//! Counting and judging.

use super::evidence;
use super::hot::{FIRST_DAY_ROWS, Tally};
use super::window::HOUR;
use super::*;
use crate::columns::{Cell, Column, ElementNames};
use crate::model::{Dim, ModelName, Signature, TensorSpec, Version};
use crate::profile::{Builder, Profile};
use crate::tensor::DataType;
use std::collections::BTreeSet;
use std::sync::Arc;

fn spec(name: &str, datatype: DataType, dims: &[Option<usize>]) -> TensorSpec {
    let dims = dims.iter().map(|d| d.map_or(Dim::Free(None), Dim::Fixed)).collect();
    TensorSpec { name: name.into(), datatype, dims: Some(dims) }
}

/// A number, a text and a score.
pub(crate) fn signature() -> Signature {
    Signature::new(
        vec![spec("x", DataType::Fp32, &[None, Some(1)]), spec("s", DataType::Bytes, &[None])],
        vec![spec("y", DataType::Fp32, &[None])],
    )
}

pub(crate) fn model() -> ModelName {
    "m".parse().unwrap()
}

pub(crate) fn version() -> Version {
    "1".parse().unwrap()
}

/// One row: `x` uniform from 0 to 1, `s` one of two texts, `y` half of `x`.
fn row(random: &mut fastrand::Rng) -> (f64, &'static str) {
    (random.f64(), if random.f64() < 0.3 { "a" } else { "b" })
}

pub(crate) fn profile(rows: usize) -> Arc<Profile> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut builders = [(); 3].map(|()| Builder::new(100_000));
    for _ in 0..rows {
        let (x, s) = row(&mut random);
        builders[0].add(Cell::Number(x));
        builders[1].add(Cell::Text(s.as_bytes()));
        builders[2].add(Cell::Number(x / 2.0));
    }
    let columns = ["x", "s", "y"].into_iter().zip(&builders);
    Arc::new(Profile {
        format: Profile::FORMAT,
        rows: rows as u64,
        from: None,
        to: None,
        source: None,
        metrics: [].into(),
        sample: None,
        columns: columns.map(|(name, builder)| (name.to_owned(), builder.finish(None))).collect(),
    })
}

pub(crate) struct Fixture {
    pub drift: Drift,
    signature: Signature,
    random: fastrand::Rng,
    settings: Settings,
}

impl Fixture {
    pub fn new(config: Config, profile: Option<&Arc<Profile>>) -> Fixture {
        let fixture = Fixture {
            drift: Drift::new(config),
            signature: signature(),
            random: fastrand::Rng::with_seed(3),
            settings: Settings::default(),
        };
        fixture.watch(profile, &[]);
        fixture
    }

    pub fn watch(&self, profile: Option<&Arc<Profile>>, hidden: &[&str]) {
        self.drift.watch(&Watch {
            model: &model(),
            version: version(),
            signature: &self.signature,
            names: &ElementNames::default(),
            hidden: hidden.iter().map(|column| (*column).to_owned()).collect(),
            profile,
            settings: &self.settings,
        });
    }

    /// Requests of one row, spread over an hour.
    pub fn hour(&mut self, hour: i64, requests: i64, change: impl Fn(&mut f64, &mut &'static str)) {
        for i in 0..requests {
            let (mut x, mut s) = row(&mut self.random);
            change(&mut x, &mut s);
            let id = format!("{hour}-{i}");
            self.request(hour * HOUR + i * (HOUR / requests), &id, 1, |column| match (column.tensor, column.side) {
                (0, crate::columns::Side::Inputs) => Cell::Number(x),
                (1, _) => Cell::Text(s.as_bytes()),
                _ => Cell::Number(x / 2.0),
            });
        }
    }

    pub fn request<'f>(&self, ts: i64, id: &str, records: usize, cell: impl Fn(&Column) -> Cell<'f>) {
        let (model, version) = (model(), version());
        let seen = Seen { model: &model, version, arm: "control", request_id: id, ts, records };
        self.drift.observe(&seen, |columns, _, each| {
            columns.iter().enumerate().for_each(|(at, column)| each(at, cell(column)));
        });
    }

    pub fn report(&self) -> VersionReport {
        self.drift.report(&model(), 0).versions.remove(0)
    }

    pub fn column(&self, name: &str) -> ColumnReport {
        let report = self.report();
        report.arms[0].columns.iter().find(|column| column.name == name).unwrap().clone()
    }
}

#[test]
fn the_expectation_of_an_e_value_is_at_most_one() {
    let ln_choose = |n: u32, k: u32| (1..=k).map(|i| (f64::from(n - k + i) / f64::from(i)).ln()).sum::<f64>();
    for (n, m, both) in [(10u32, 10u32, 5u32), (40, 10, 20), (10, 200, 30), (100, 1000, 600), (1000, 50, 7), (5, 5, 9)]
    {
        let (least, most) = (both.saturating_sub(m), both.min(n));
        let expectation: f64 = (least..=most)
            .map(|x| {
                let probability = ln_choose(both, x) + ln_choose(n + m - both, n - x) - ln_choose(n + m, n);
                let e = evidence::event(f64::from(x), f64::from(n), f64::from(both - x), f64::from(m));
                (probability + e).exp()
            })
            .sum();
        assert!(expectation <= 1.0 + 1e-9, "{n} {m} {both}: {expectation}");
        assert!(expectation > 0.5, "{n} {m} {both}: {expectation} wastes evidence");
    }
}

#[test]
fn evidence_grows_with_a_difference_and_its_rows() {
    let same = evidence::column(&[100.0, 100.0, 0.0], &[1000.0, 1000.0, 0.0], 2);
    assert!(same < 0.0, "{same}");
    let little = evidence::column(&[60.0, 40.0, 0.0], &[1000.0, 1000.0, 0.0], 2);
    let more = evidence::column(&[600.0, 400.0, 0.0], &[1000.0, 1000.0, 0.0], 2);
    let most = evidence::column(&[600.0, 400.0, 0.0], &[100_000.0, 100_000.0, 0.0], 2);
    assert!(little < more && more < most, "{little} {more} {most}");
    for (live, reference) in [([0.0, 0.0], [5.0, 5.0]), ([5.0, 5.0], [0.0, 0.0])] {
        assert_eq!(evidence::column(&live, &reference, 2), 0.0);
        assert_eq!(evidence::distance(&live, &reference), 0.0);
    }
    assert!((evidence::distance(&[1e9, 0.0], &[0.0, 1e9]) - 1.0).abs() < 1e-6);
    assert!(evidence::distance(&[100.0, 100.0], &[100.0, 100.0]) < 1e-9);
}

#[test]
fn columns_are_rejected_together() {
    // One of 100 columns needs 100 / alpha; when three exceed 100 / (3 alpha), all three are rejected.
    let mut ln_e = vec![0.0; 100];
    let needs = |rejected: f64| (100.0 / (0.01 * rejected)).ln();
    assert!((evidence::threshold(&ln_e, 0.01) - needs(1.0)).abs() < 1e-12);
    ln_e[..3].fill(needs(3.0) + 0.01);
    assert!((evidence::threshold(&ln_e, 0.01) - needs(3.0)).abs() < 1e-12);
}

#[test]
fn a_change_alarms_and_ends() {
    let mut fixture = Fixture::new(Config::default(), Some(&profile(20_000)));
    let start = 24 * 20_000;
    for hour in 0..24 {
        fixture.hour(start + hour, 200, |_, _| {});
    }
    fixture.drift.work((start + 25) * HOUR);
    assert!(fixture.drift.troubles().is_empty(), "{:?}", fixture.drift.troubles());
    let quiet = fixture.column("inputs.x");
    assert_eq!(quiet.looks.iter().map(|look| look.window).collect::<Vec<_>>(), [Window::Hour, Window::Day]);
    assert!(quiet.words.contains("inputs.x is as the reference, in the last day too"), "{}", quiet.words);
    for hour in 24..26 {
        fixture.hour(start + hour, 200, |x, s| {
            *x += 0.4;
            *s = if *s == "a" { "new" } else { "b" };
        });
    }
    fixture.drift.work((start + 27) * HOUR);
    let troubles = fixture.drift.troubles();
    let told: BTreeSet<&str> = troubles.iter().map(|trouble| trouble.column.as_str()).collect();
    assert_eq!(told, ["inputs.x", "inputs.s", "outputs.y"].into(), "{troubles:?}");
    let words = &troubles.iter().find(|trouble| trouble.column == "inputs.s").unwrap().words;
    assert!(words.contains("inputs.s differs from the profile in the hour of 200 rows"), "{words}");
    assert!(words.contains("the value \"a\" has 0.00 % of the rows"), "{words}");
    assert!(troubles.iter().all(|trouble| trouble.since == (start + 24) * HOUR), "{troubles:?}");
    assert!(fixture.column("inputs.x").words.contains("standard deviations"));
    for hour in 26..72 {
        fixture.hour(start + hour, 50, |_, _| {});
    }
    fixture.drift.work((start + 73) * HOUR);
    assert!(fixture.drift.troubles().is_empty(), "{:?}", fixture.drift.troubles());
}

#[test]
fn what_was_wrong_with_an_arm_without_rows_ends_after_a_day() {
    let mut fixture = Fixture::new(Config::default(), Some(&profile(5000)));
    fixture.hour(1000, 600, |x, _| *x = 0.5);
    fixture.drift.work(1024 * HOUR + HOUR / 2);
    let what = |fixture: &Fixture| fixture.drift.troubles().iter().map(|trouble| trouble.what).collect::<Vec<_>>();
    assert!(what(&fixture).contains(&What::Drift) && what(&fixture).contains(&What::Stuck), "{:?}", what(&fixture));
    fixture.drift.work(1025 * HOUR + HOUR / 2);
    assert_eq!(what(&fixture), []);
    assert!(fixture.column("inputs.x").alarm.is_none());
    // Rows come again, and are as wrong as before.
    fixture.hour(1030, 600, |x, _| *x = 0.5);
    fixture.drift.work(1031 * HOUR + HOUR / 2);
    assert!(what(&fixture).contains(&What::Drift) && what(&fixture).contains(&What::Stuck), "{:?}", what(&fixture));
}

#[test]
fn outputs_that_are_stuck_or_not_finite_are_told() {
    let mut fixture = Fixture::new(Config::default(), Some(&profile(5000)));
    fixture.hour(1000, 600, |x, _| *x = 0.5);
    fixture.hour(1001, 600, |x, _| *x = if *x < 0.1 { f64::NAN } else { *x });
    fixture.drift.work(1001 * HOUR + HOUR / 2);
    let stuck = fixture.drift.troubles().into_iter().find(|trouble| trouble.what == What::Stuck).unwrap();
    assert!(stuck.words.contains("outputs.y has the same value in all 600 rows"), "{}", stuck.words);
    fixture.drift.work(1003 * HOUR);
    let troubles = fixture.drift.troubles();
    assert!(troubles.iter().all(|trouble| trouble.what != What::Stuck), "{troubles:?}");
    assert!(troubles.iter().any(|trouble| trouble.what == What::NonFinite && trouble.column == "outputs.y"));
}

#[test]
fn the_first_day_is_the_reference_of_a_version_without_a_profile() {
    let mut fixture = Fixture::new(Config::default(), None);
    let report = fixture.report();
    assert_eq!((report.reference, report.first_day_rows), (None, Some(0)));
    for hour in 0..24 {
        fixture.hour(hour, 100, |_, _| {});
    }
    fixture.drift.work(23 * HOUR);
    assert_eq!(fixture.report().reference, None);
    assert!(fixture.report().first_day_rows.unwrap() > FIRST_DAY_ROWS as u64);
    fixture.drift.work(25 * HOUR);
    let report = fixture.report();
    assert_eq!((report.reference, report.first_day_rows), (Some(Reference::FirstDay), None));
    for hour in 25..27 {
        fixture.hour(hour, 400, |x, _| *x /= 3.0);
    }
    fixture.drift.work(28 * HOUR);
    let words = fixture.column("inputs.x").words;
    assert!(words.contains("differs from the version's first day"), "{words}");
    // The reference is kept over a restart.
    let again = Fixture { drift: Drift::new(Config::default()), ..fixture };
    again.watch(None, &[]);
    assert_eq!(again.report().reference, None);
}

#[test]
fn counts_survive_a_restart() {
    let profile = profile(5000);
    let mut fixture = Fixture::new(Config::default(), Some(&profile));
    for hour in 0..30 {
        fixture.hour(hour, 50, |x, _| *x += 0.5);
    }
    fixture.drift.work(29 * HOUR + 1);
    assert_eq!(fixture.drift.changed(), [model()]);
    let saved = fixture.drift.save(&model());
    let (rows, troubles) = (fixture.report().arms[0].rows, fixture.drift.troubles());
    assert_eq!((rows, troubles.len()), (1500, 2));
    let mut again = Fixture { drift: Drift::new(Config::default()), ..fixture };
    again.drift.load(&model(), saved.as_bytes()).unwrap();
    again.watch(Some(&profile), &[]);
    assert_eq!((again.report().arms[0].rows, again.drift.troubles()), (rows, troubles));
    // The rest of the interrupted hour is added to it.
    again.hour(29, 50, |x, _| *x += 0.5);
    again.drift.work(31 * HOUR);
    let look = again.column("inputs.x").looks[0];
    assert_eq!((look.window, look.rows, look.from), (Window::Hour, 100, 29 * HOUR));
    for bytes in [&b""[..], b"{}", b"null", b"{\"format\":1,\"arms\":[{}],\"first_days\":{}}", &saved.as_bytes()[1..]] {
        assert!(again.drift.load(&model(), bytes).is_err());
    }
    // Counts of other bins are dropped.
    let other = Fixture { drift: Drift::new(Config::default()), ..again };
    other.drift.load(&model(), saved.replace("\"counts\":[", "\"counts\":[1,").as_bytes()).unwrap();
    other.watch(Some(&profile), &[]);
    assert!(other.report().arms.is_empty());
}

#[test]
fn hidden_columns_are_not_watched() {
    let fixture = Fixture::new(Config::default(), Some(&profile(1000)));
    fixture.watch(Some(&profile(1000)), &["inputs.s"]);
    let report = fixture.report();
    assert!(report.notes.iter().any(|note| note.contains("1 columns are dropped, hashed or masked")), "{report:?}");
    fixture.request(HOUR, "a", 1, |_| Cell::Hidden);
    fixture.drift.work(3 * HOUR);
    assert!(fixture.report().arms[0].columns.iter().all(|column| column.name != "inputs.s"));
}

#[test]
fn only_a_share_is_counted_beyond_the_budget() {
    let config = Config { cells_per_second: 300.0, ..Config::default() };
    let fixture = Fixture::new(config, Some(&profile(1000)));
    let mut sent = 0;
    for second in 0..20 {
        for i in 0..400 {
            sent += 1;
            let id = format!("{second}-{i}");
            fixture.request(second * 1_000_000 + i, &id, 1, |_| Cell::Number(0.5));
        }
    }
    let report = fixture.report();
    let (offered, rows) = (report.arms[0].offered, report.arms[0].rows);
    assert_eq!(offered, sent);
    // 400 rows of three columns a second, of which a quarter fits. The first second is counted whole.
    assert!((report.share - 0.25).abs() < 0.01, "{}", report.share);
    assert!((400 + 19 * 60..400 + 19 * 140).contains(&rows), "{rows}");
    // A value of a first day costs as much as four.
    let first_day = Fixture::new(config, None);
    for i in 0..8_000 {
        first_day.request(i * 2_500, &format!("first-{i}"), 1, |_| Cell::Number(0.5));
    }
    let share = first_day.report().share;
    assert!((share - 0.0625).abs() < 0.01, "{share}");
    // A request of many rows costs no more than 32 rows.
    fixture.request(60_000_000, "many", 1_000_000, |_| Cell::Number(0.5));
    assert!(fixture.report().arms[0].rows <= rows + 32);
}

#[test]
fn arms_and_memory_are_bounded() {
    let fixture = Fixture::new(Config { bytes: 100_000, ..Config::default() }, Some(&profile(1000)));
    let (model, version) = (model(), version());
    for i in 0..100 {
        let arm = format!("arm-{i}");
        let seen = Seen { model: &model, version, arm: &arm, request_id: "a", ts: HOUR, records: 1 };
        fixture.drift.observe(&seen, |_, _, each| each(0, Cell::Number(1.0)));
    }
    let report = fixture.report();
    assert!(!report.arms.is_empty() && report.arms.len() <= 16, "{}", report.arms.len());
    assert_eq!(report.left_out, 100 - report.arms.len() as u64);
}

#[test]
fn a_clock_that_jumps_does_no_harm() {
    let mut fixture = Fixture::new(Config::default(), Some(&profile(1000)));
    for hour in [100, 1_000_000, 99, 98, 5, 100, i64::MAX / HOUR - 1000] {
        fixture.hour(hour, 10, |_, _| {});
        fixture.drift.work((hour + 2) * HOUR);
    }
    fixture.drift.work(i64::MIN);
    fixture.drift.work(i64::MAX);
    let _ = fixture.report();
}

#[test]
fn tallies_add_up() {
    let mut one =
        Tally { offered: 1, rows: 1, counts: vec![u32::MAX, 1], sums: vec![[1.0, 2.0]], steady: vec![Some((7, true))] };
    let other =
        Tally { offered: 2, rows: 1, counts: vec![1, 1], sums: vec![[1.0, 3.0]], steady: vec![Some((8, true))] };
    one.add(&other);
    assert_eq!((one.offered, one.rows, one.counts, one.sums), (3, 2, vec![u32::MAX, 2], vec![[2.0, 5.0]]));
    assert_eq!(one.steady, [Some((7, false))]);
}

#[test]
fn rows_that_come_after_their_window_was_judged_are_counted_in_the_open_one() {
    let mut fixture = Fixture::new(Config::default(), Some(&profile(2000)));
    for hour in 0..24 {
        fixture.hour(hour, 50, |_, _| {});
    }
    fixture.drift.work(24 * HOUR + HOUR / 30);
    let day = |fixture: &Fixture| {
        let looks = fixture.column("inputs.x").looks;
        let look = looks.iter().find(|look| look.window == Window::Day).copied().unwrap();
        (look.from, look.rows)
    };
    assert_eq!(day(&fixture), (0, 24 * 50));
    // The thread of the log was slow: what it has of the last hour is judged when it comes, and not as another day.
    fixture.hour(23, 30, |_, _| {});
    fixture.drift.work(24 * HOUR + HOUR / 20);
    for hour in 24..48 {
        fixture.hour(hour, 50, |_, _| {});
        fixture.drift.work((hour + 1) * HOUR + HOUR / 30);
    }
    assert_eq!(day(&fixture), (24 * HOUR, 24 * 50 + 30), "nothing is lost, and each day is judged once");
    // A clock that was set back by days begins a new day.
    fixture.hour(0, 50, |_, _| {});
    fixture.drift.work(2 * HOUR);
    fixture.hour(24, 50, |_, _| {});
    fixture.drift.work(26 * HOUR);
    assert_eq!(day(&fixture), (0, 50));
}

#[test]
fn an_alarm_ends_after_a_quiet_day_and_not_after_as_many_parts_of_hours() {
    let mut fixture = Fixture::new(Config::default(), Some(&profile(2000)));
    fixture.hour(0, 300, |x, _| *x += 0.8);
    fixture.drift.work(HOUR + HOUR / 30);
    assert!(fixture.column("inputs.x").alarm.is_some());
    for hour in 1..12 {
        for _ in 0..3 {
            fixture.hour(hour, 20, |_, _| {});
            fixture.drift.work((hour + 1) * HOUR + HOUR / 30);
        }
    }
    assert!(fixture.column("inputs.x").alarm.is_some(), "33 parts of 11 hours");
}
