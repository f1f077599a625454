//! Drift over the gateways of a fleet.

use super::tests::{Fixture, model, profile, version};
use super::together::Hour;
use super::window::HOUR;
use super::*;
use crate::columns::{Cell, Side};
use std::collections::BTreeMap;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// One gateway that has all rows, and three that share them.
struct Fleet {
    alone: Fixture,
    gateways: [Fixture; 3],
    random: fastrand::Rng,
    place: u64,
}

impl Fleet {
    fn new(with_profile: bool) -> Fleet {
        let of = profile(20_000);
        let of = with_profile.then_some(&of);
        let alone = Fixture::new(Config::default(), of);
        let gateways = [(); 3].map(|()| Fixture::new(Config::default(), of));
        for gateway in &gateways {
            gateway.drift.share();
            gateway.drift.set_following(true);
        }
        Fleet { alone, gateways, random: fastrand::Rng::with_seed(9), place: 0 }
    }

    /// Requests of one row in an hour, each on some gateway.
    fn hour(&mut self, hour: i64, requests: i64, shift: f64) {
        for i in 0..requests {
            let (x, text) = (self.random.f64() + shift, if self.random.f64() < 0.3 { "a" } else { "b" });
            let id = format!("{hour}-{i}");
            let on = &self.gateways[self.random.usize(0..3)];
            for fixture in [&self.alone, on] {
                fixture.request(hour * HOUR + i * (HOUR / requests), &id, 1, |column| {
                    match (column.tensor, column.side) {
                        (0, Side::Inputs) => Cell::Number(x),
                        (1, _) => Cell::Text(text.as_bytes()),
                        _ => Cell::Number(x / 2.0),
                    }
                });
            }
        }
    }

    fn work(&self, now: i64) {
        self.alone.drift.work(now);
        self.gateways.iter().for_each(|gateway| gateway.drift.work(now));
    }

    /// Closes all hours that are over on all, as a fleet does: what each tells comes twice, through bytes.
    fn close(&mut self) {
        let mut told: BTreeMap<i64, Hour> = BTreeMap::new();
        for (gateway, name) in self.gateways.iter().zip(NAMES) {
            for ((_, hour), counts) in gateway.drift.told(name) {
                if hour < gateway.drift.ended() {
                    told.entry(hour).or_default().add(&Hour::read(&counts.write().unwrap()).unwrap());
                }
            }
        }
        for (hour, counts) in told {
            self.place += 1;
            let counts = Hour::read(&counts.write().unwrap()).unwrap();
            for (gateway, name) in self.gateways.iter().zip(NAMES) {
                assert_eq!(gateway.drift.judge(&model(), hour, self.place, &counts, name), 0);
                gateway.drift.judge(&model(), hour, self.place, &counts, name);
            }
        }
    }
}

/// What was found, without means, whose sums depend on the order.
fn found(fixture: &Fixture) -> String {
    let report = fixture.report();
    let look = |look: &Look| {
        (look.window.as_str(), look.rows, look.evidence, look.needed, look.distance, look.different, look.matters)
    };
    let column = |column: &ColumnReport| {
        (column.name.clone(), column.alarm.is_some(), column.looks.iter().map(look).collect::<Vec<_>>())
    };
    let arm =
        |arm: &ArmReport| (arm.arm.clone(), arm.offered, arm.rows, arm.columns.iter().map(column).collect::<Vec<_>>());
    let troubles: Vec<String> = fixture.drift.troubles().into_iter().map(|trouble| trouble.column).collect();
    format!("{:?} {troubles:?}", report.arms.iter().map(arm).collect::<Vec<_>>())
}

#[test]
fn three_gateways_judge_the_same_sums_as_one_that_has_all_rows() {
    let mut fleet = Fleet::new(true);
    let start = 24 * 20_000;
    for hour in start..start + 30 {
        fleet.hour(hour, 120, if hour < start + 26 { 0.0 } else { 0.5 });
        fleet.work((hour + 1) * HOUR + HOUR / 30);
        fleet.close();
    }
    let now = (start + 30) * HOUR + 3 * HOUR;
    fleet.work(now);
    assert!(!fleet.alone.drift.troubles().is_empty());
    for gateway in &fleet.gateways {
        assert_eq!(found(gateway), found(&fleet.alone));
    }
    // A third of the rows alone says less.
    let closed = fleet.gateways[0].drift.closed(&model()).unwrap();
    assert_eq!(closed.gateways, NAMES.map(str::to_owned).into());
    // A restart goes on where it was.
    let saved = fleet.gateways[1].drift.save(&model());
    let again = Fixture::new(Config::default(), Some(&profile(20_000)));
    let loaded = Drift::default();
    loaded.load(&model(), saved.as_bytes()).unwrap();
    assert_eq!(loaded.closed(&model()), Some(closed.clone()));
    assert_eq!(loaded.last_place(), closed.place);
    drop(again);
}

#[test]
fn what_comes_after_an_hour_was_closed_is_left_out_and_said() {
    let mut fleet = Fleet::new(true);
    fleet.hour(1000, 300, 0.0);
    let early = fleet.gateways[0].drift.told("a").remove(&(model(), 1000)).unwrap();
    fleet.work(1001 * HOUR + HOUR / 30);
    // Closed without c.
    let mut counts = early;
    counts.add(&fleet.gateways[1].drift.told("b").remove(&(model(), 1000)).unwrap());
    counts.missing.insert("c".to_owned());
    let c = &fleet.gateways[2].drift;
    let own: u64 = c.told("c")[&(model(), 1000)].offered();
    assert!(own > 0);
    assert_eq!(c.judge(&model(), 1000, 7, &counts, "c"), own, "its rows are not in the hour");
    assert!(c.told("c").is_empty(), "and are not told again");
    assert_eq!(c.judge(&model(), 999, 8, &counts, "c"), 0, "an earlier hour is over");
    assert_eq!(c.closed(&model()).unwrap().hour, 1000);
    let judged: u64 = fleet.gateways[2].report().arms.iter().map(|arm| arm.offered).sum();
    assert_eq!(judged, counts.offered());
}

#[test]
fn one_first_day_counts_for_all() {
    let mut fleet = Fleet::new(false);
    for hour in 1000..1026 {
        fleet.hour(hour, 300, 0.0);
        fleet.work((hour + 1) * HOUR + HOUR / 30);
    }
    let a = &fleet.gateways[0].drift;
    let (_, _, own) = a.disagreed().remove(0);
    let own = own.expect("its day is over");
    assert!(fleet.gateways[0].report().reference.is_none(), "it waits until the fleet has one");
    for gateway in &fleet.gateways {
        gateway.drift.agree(&model(), version(), crate::profile::Profile::clone(&own));
        assert!(gateway.drift.disagreed().is_empty());
        assert_eq!(gateway.report().reference, Some(Reference::FirstDay));
    }
    fleet.hour(1030, 300, 0.0);
    fleet.work(1031 * HOUR + HOUR / 30);
    fleet.close();
    let rows: Vec<u64> = fleet.gateways.iter().map(|gateway| gateway.report().arms[0].offered).collect();
    assert_eq!(rows, [300; 3], "the hour of one gateway is that of all");
}

#[test]
fn bytes_that_are_no_hour_are_refused() {
    let mut fleet = Fleet::new(true);
    fleet.hour(1000, 100, 0.0);
    let good = fleet.gateways[0].drift.told("a").remove(&(model(), 1000)).unwrap().write().unwrap();
    assert!(Hour::read(b"").is_err() && Hour::read(b"{}").is_err());
    let plain = zstd::bulk::decompress(&good, 16 << 20).unwrap();
    let rng = &mut fastrand::Rng::with_seed(1);
    for n in 0..2000_u32 {
        let mut bytes = plain.clone();
        let at = rng.usize(0..bytes.len());
        bytes[at] = rng.u8(..);
        if let Ok(hour) = Hour::read(&zstd::bulk::compress(&bytes, 1).unwrap()) {
            let mut sum = Hour::read(&good).unwrap();
            sum.add(&hour);
            fleet.gateways[1].drift.judge(&model(), 1000 + i64::from(n), u64::from(n), &sum, "b");
            fleet.gateways[1].drift.work((1002 + i64::from(n)) * HOUR);
        }
    }
    fleet.gateways[1].report();
}
