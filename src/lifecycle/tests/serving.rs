//! What serves: the first document, promotions of itself, readiness, and the back and forth.

use super::house::*;
use crate::model::Code;
use crate::registry::{Stage, State};
use crate::route::Selector;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
fn a_model_seen_for_the_first_time_serves_its_highest_ready_version() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    ground.put("m", 2, &answers(2));
    ground.put("m", 10, "unsupported");
    let house = ground.start();
    house.wait_ready();
    assert_eq!(house.state("m", 1), Some(State::Ready));
    assert_eq!(house.state("m", 2), Some(State::Serving));
    let failed = house.status("m", 10).unwrap();
    assert_eq!((failed.state, failed.stage), (State::Failed, Some(Stage::Load)), "a failed version holds nothing back");
    assert!(failed.reason.unwrap().contains("Frobnicate"));
    assert_eq!(house.predict("m").unwrap(), 2);
    assert_eq!(
        house.predict_as("m", Selector::Version(version(1))).unwrap(),
        1,
        "a ready version answers when asked for"
    );
    assert_eq!(house.entry("m").unwrap().revision(), 1);
}

#[test]
fn it_waits_until_all_its_versions_are_ready_or_failed() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    ground.put("m", 2, &answers(2));
    ground.gate.close(&ground.version_dir("m", 1));
    let house = ground.start();
    house.wait_state("m", 2, State::Ready);
    assert!(!house.snapshot().ready);
    assert_eq!(house.predict("m").unwrap_err().code, Code::NotReady);
    house.ground.gate.open();
    house.wait_state("m", 2, State::Serving);
    house.wait_ready();
}

#[test]
fn where_none_is_ready_the_first_that_comes_ready_serves() {
    let ground = Ground::new();
    ground.put("m", 1, "unsupported");
    let house = ground.start();
    house.wait_state("m", 1, State::Failed);
    house.wait_ready();
    house.ground.put("m", 3, &answers(3));
    house.wait_state("m", 3, State::Serving);
    house.ground.put("m", 4, &answers(4));
    house.wait_state("m", 4, State::Ready);
    assert_eq!(house.predict("m").unwrap(), 3, "a later version takes no traffic of itself");
}

#[test]
fn a_directory_without_a_model_holds_nothing_back() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    std::fs::create_dir_all(ground.version_dir("m", 2)).unwrap();
    let house = ground.start();
    house.wait_state("m", 1, State::Serving);
    house.wait_ready();
    let pending = house.status("m", 2).unwrap();
    assert_eq!(pending.state, State::Pending);
    assert!(pending.reason.unwrap().contains("no model.onnx"));
}

#[test]
fn the_server_is_ready_once_each_version_found_is_ready_or_failed_and_stays_so() {
    let ground = Ground::new();
    ground.put("a", 1, &answers(1));
    ground.put("b", 1, &answers(1));
    ground.gate.close(&ground.version_dir("b", 1));
    let house = ground.start();
    house.wait_state("a", 1, State::Serving);
    house.wait_state("b", 1, State::Loading);
    assert!(!house.snapshot().ready);
    house.ground.gate.open();
    house.wait_ready();
    house.ground.put("a", 2, "unsupported");
    house.ground.put("c", 1, "unsupported");
    house.wait_state("a", 2, State::Failed);
    house.wait_state("c", 1, State::Failed);
    assert!(house.snapshot().ready, "a later failure holds it back no more");
}

#[test]
fn an_empty_directory_is_ready_and_a_missing_one_is_not() {
    let empty = Ground::new().start();
    empty.wait_ready();
    let ground = Ground::new();
    std::fs::remove_dir(ground.models()).unwrap();
    let missing = ground.start();
    assert_eq!(missing.promote("m", 1).unwrap_err().code, Code::ModelNotFound);
    assert!(!missing.snapshot().ready);
    std::fs::create_dir(missing.ground.models()).unwrap();
    missing.wait_ready();
    missing.ground.put("m", 1, &answers(1));
    missing.wait_state("m", 1, State::Serving);
}

#[test]
fn auto_promote_takes_each_version_once_and_only_upwards() {
    let ground = Ground::new();
    ground.write("m", "model.toml", "auto_promote = true");
    ground.put("m", 3, &answers(3));
    let house = ground.start();
    house.wait_state("m", 3, State::Serving);
    house.ground.put("m", 2, &answers(2));
    house.wait_state("m", 2, State::Ready);
    house.ground.put("m", 5, &answers(5));
    house.wait_state("m", 5, State::Serving);
    assert_eq!(house.predict("m").unwrap(), 5);
    assert_eq!(house.state("m", 2), Some(State::Ready), "a lower one is not promoted");

    house.promote("m", 3).unwrap();
    house.ground.put("m", 4, &answers(4));
    house.wait_state("m", 4, State::Ready);
    assert_eq!(house.predict("m").unwrap(), 3, "4 is below 5, which served; and 5 had its turn");
    let ground = house.close();
    let house = ground.start();
    house.wait_ready();
    assert_eq!(house.predict("m").unwrap(), 3, "nor does a restart promote it again");
}

#[test]
fn auto_promote_stops_at_a_signature_that_breaks_callers() {
    let ground = Ground::new();
    ground.write("m", "model.toml", "auto_promote = true");
    ground.put("m", 1, &answers(1));
    let house = ground.start();
    house.wait_state("m", 1, State::Serving);
    house.ground.put("m", 2, "wide\nend");
    let ready = house.wait_state("m", 2, State::Ready);
    eventually("the note is there", || !house.status("m", 2).unwrap().notes.is_empty());
    let _ = ready;
    let note = house.status("m", 2).unwrap().notes.remove(0);
    assert!(note.contains("extra"), "{note}");
    assert_eq!(house.predict("m").unwrap(), 1);
}

#[test]
fn two_hundred_promotions_and_no_request_fails() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    ground.put("m", 2, &answers(2));
    let house = ground.start();
    house.wait_ready();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut answered = 0u32;
                    while !stop.load(Ordering::Relaxed) {
                        let y = house.predict("m").expect("no request fails");
                        assert!(y == 1 || y == 2, "{y}");
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        for i in 0..200 {
            let to = 1 + i % 2;
            house.promote("m", to).unwrap();
            assert_eq!(house.predict("m").unwrap(), to, "an answer after the promotion is by the new version");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(callers.into_iter().map(|c| c.join().unwrap()).sum::<u32>() > 0);
    });
    eventually("no replaced snapshot is left", || {
        house.telemetry.render().lines().any(|line| line == "sluicegate_snapshots_retired 0")
    });
    // The first document put 2 in force, so the first promotion, to 1, was a change like all others.
    assert_eq!(house.entry("m").unwrap().revision(), 201);
}

#[test]
fn thousands_of_models_come_up() {
    let ground = Ground::new();
    let n = 300;
    for i in 0..n {
        ground.put(&format!("m{i}"), 1, &answers(i));
    }
    let config = super::super::Config { load_threads: 2, rescan: Duration::from_secs(5), ..ground.config() };
    let house = ground.start_with(config);
    house.wait_ready();
    for i in 0..n {
        assert_eq!(house.predict(&format!("m{i}")).unwrap(), i);
    }
}
