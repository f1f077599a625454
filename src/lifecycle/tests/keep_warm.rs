//! A rollback soon after a promote needs no load.

use super::super::{Config, Policy};
use super::house::*;
use crate::registry::State;
use crate::route::Selector;
use serde_json::json;
use std::time::Duration;

const LATEST: &str = "versions = { latest = 1 }";

/// Version 2 serves, and 1 did until now; `versions` leaves 1 out.
fn house(config: impl FnOnce(Config) -> Config, model_toml: &str) -> House {
    let ground = Ground::new();
    ground.write("m", "model.toml", model_toml);
    ground.put("m", 1, &answers(1));
    let config = config(ground.config());
    let house = ground.start_with(config);
    house.wait_state("m", 1, State::Serving);
    house.ground.put("m", 2, &answers(2));
    house.wait_state("m", 2, State::Ready);
    house.promote("m", 2).unwrap();
    house
}

fn note(house: &House, v: u64) -> String {
    house.status("m", v).unwrap().notes.join(" ")
}

#[test]
fn a_rollback_while_it_is_warm_loads_nothing() {
    let house = house(|config| config, LATEST);
    assert_eq!(house.state("m", 1), Some(State::Ready));
    assert!(note(&house, 1).starts_with("kept warm for a rollback until 2"), "{}", note(&house, 1));
    assert_eq!(house.predict_as("m", Selector::Version(version(1))).unwrap(), 1, "it answers who asks for it");
    let back = house.rollback("m").unwrap();
    assert_eq!((back.to, back.loaded, house.loads("m", 1)), (version(1), Vec::new(), 1));
    assert_eq!((house.predict("m").unwrap(), note(&house, 1)), (1, String::new()));
    assert_eq!(house.state("m", 2), Some(State::Ready), "the latest is kept anyway");
    assert_eq!(note(&house, 2), "");
}

#[test]
fn it_is_unloaded_when_its_time_is_over_and_a_rollback_says_that_it_loaded_it() {
    let short = |config| Config { keep_warm: Duration::from_millis(300), ..config };
    let house = house(short, LATEST);
    let begun = std::time::Instant::now();
    let gone = house.wait_state("m", 1, State::Unloaded);
    assert!(begun.elapsed() >= Duration::from_millis(250), "it was kept for its time");
    assert!(gone.reason.unwrap().contains("`versions`") && gone.notes.is_empty());
    let back = house.rollback("m").unwrap();
    assert_eq!((back.to, back.loaded, house.loads("m", 1)), (version(1), vec![version(1)], 2));
}

#[test]
fn model_toml_says_for_how_long() {
    let house = house(|config| config, "versions = { latest = 1 }\nkeep_warm = \"0s\"");
    house.wait_state("m", 1, State::Unloaded);
    house.rollback("m").unwrap();
    house.ground.write("m", "model.toml", "versions = { latest = 1 }\nkeep_warm = \"1h\"");
    house.ground.put("m", 3, &answers(3));
    house.wait_state("m", 3, State::Ready);
    assert_eq!(house.state("m", 2), Some(State::Unloaded), "it served before, but not when it was left out");
    house.promote("m", 3).unwrap();
    assert!(note(&house, 1).contains("kept warm"), "{}", note(&house, 1));
    house.ground.write("m", "model.toml", "versions = { latest = 1 }\nkeep_warm = \"1ms\"");
    house.wait_state("m", 1, State::Unloaded);
}

#[test]
fn a_shadow_is_kept_warm_too_and_what_nobody_named_is_not() {
    let house = house(|config| config, "");
    for v in 3..=4 {
        house.ground.put("m", v, &answers(v));
        house.wait_state("m", v, State::Ready);
    }
    house.put("m", &json!({"split": [{"version": "2", "weight": 1}], "shadows": [{"version": "3"}]})).unwrap();
    house.put("m", &json!({"split": [{"version": "2", "weight": 1}]})).unwrap();
    house.ground.write("m", "model.toml", "versions = [\"2\"]");
    house.wait_state("m", 4, State::Unloaded);
    assert_eq!(house.state("m", 3), Some(State::Ready), "going back to the document needs its shadow");
    assert_eq!(house.rollback("m").unwrap().loaded, []);
    let shadows = house.entry("m").unwrap().shadows().len();
    assert_eq!(shadows, 1);
}

#[test]
fn an_operator_takes_it_out_at_once() {
    let house = house(|config| config, LATEST);
    house.unload("m", 1).unwrap();
    let status = house.status("m", 1).unwrap();
    assert!(status.state == State::Unloaded && status.notes.is_empty(), "{status:?}");
    assert!(status.reason.unwrap().contains("operator"));
    assert_eq!(house.rollback("m").unwrap().loaded, [version(1)]);
}

#[test]
fn it_gives_way_when_its_memory_is_needed() {
    for policy in [Policy::KeepServing, Policy::MakeRoom] {
        let ground = Ground::new();
        let padded = |n: u64| format!("{}\n{}", answers(n), "#".repeat(600));
        ground.write("m", "model.toml", LATEST);
        ground.put("m", 1, &padded(1));
        let config = Config { memory_budget: 1500, policy, ..ground.config() };
        let house = ground.start_with(config);
        house.wait_state("m", 1, State::Serving);
        house.ground.put("m", 2, &padded(2));
        house.wait_state("m", 2, State::Ready);
        house.promote("m", 2).unwrap();
        assert!(note(&house, 1).contains("kept warm"));
        house.ground.put("m", 3, &padded(3));
        house.wait_state("m", 3, State::Ready);
        let gone = house.wait_state("m", 1, State::Unloaded);
        assert!(gone.reason.unwrap().contains("`versions`"), "it is left out, as it was to be anyway");
        assert_eq!((house.predict("m").unwrap(), house.loads("m", 3)), (2, 1), "3 never failed");
    }
}

#[test]
fn a_restart_keeps_nothing_warm() {
    let ground = house(|config| config, LATEST).close();
    let house = ground.start();
    house.wait_ready();
    house.wait_state("m", 1, State::Unloaded);
    assert_eq!(house.loads("m", 1), 0);
}
