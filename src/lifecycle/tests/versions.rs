//! How versions come, fail, change on disk and go.

use super::super::{Config, Policy};
use super::house::*;
use crate::registry::{Stage, State};
use crate::route::Selector;
use std::sync::Arc;
use std::time::Duration;

#[test]
fn a_slow_copy_is_not_read_before_it_is_whole() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    let config = Config { settle: Duration::from_millis(300), ..ground.config() };
    let house = ground.start_with(config);
    house.wait_state("m", 1, State::Serving);
    let file = house.ground.version_dir("m", 2).join("model.onnx");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let whole = format!("{}\n{}", "#".repeat(60), answers(2));
    let never = crossbeam_channel::never::<()>();
    for i in 1..=8 {
        std::fs::write(&file, &whole[..whole.len() * i / 8]).unwrap();
        let _ = never.recv_timeout(Duration::from_millis(60));
    }
    house.wait_state("m", 2, State::Ready);
    assert_eq!(house.loads("m", 2), 1, "it was read once, when it was whole");
}

#[test]
fn a_half_copied_version_fails_and_is_taken_up_when_the_rest_arrives() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    let house = ground.start();
    house.wait_state("m", 1, State::Serving);
    house.ground.write("m/2", "model.onnx", "answer 2");
    let failed = house.wait_state("m", 2, State::Failed);
    assert!(failed.reason.unwrap().contains("in the middle"));
    let loads = house.loads("m", 2);
    // Two whole looks later it was not tried again: the same bytes give the same answer.
    let begun = std::time::Instant::now();
    eventually("some looks passed", || begun.elapsed() > Duration::from_millis(500));
    assert_eq!(house.loads("m", 2), loads);
    house.ground.write("m/2", "model.onnx", &answers(2));
    house.wait_state("m", 2, State::Ready);
    assert_eq!(house.predict("m").unwrap(), 1);
}

#[test]
fn files_that_change_while_they_are_read_are_read_again() {
    let ground = Ground::new();
    ground.put("m", 1, "unsupported");
    ground.gate.close(&ground.version_dir("m", 1));
    let house = ground.start();
    house.wait_state("m", 1, State::Loading);
    house.ground.write("m/1", "model.onnx", &answers(1));
    house.ground.gate.open();
    house.wait_state("m", 1, State::Serving);
    assert!(house.loads("m", 1) <= 2);
}

#[test]
fn changed_bytes_under_a_loaded_version_are_reported_and_not_loaded() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    let house = ground.start();
    house.wait_state("m", 1, State::Serving);
    let notes = || house.status("m", 1).unwrap().notes;
    // The same bytes, touched, are nothing.
    house.ground.write("m/1", "model.onnx", &answers(1));
    house.ground.write("m/1", "model.onnx", &answers(9));
    eventually("it is said", || notes().iter().any(|n| n.contains("model.onnx changed on disk")));
    assert_eq!(house.predict("m").unwrap(), 1);
    assert_eq!((house.loads("m", 1), house.state("m", 1)), (1, Some(State::Serving)));
    // The bytes that were loaded, put back, mend it.
    house.ground.write("m/1", "model.onnx", &answers(1));
    eventually("it is said no more", || notes().is_empty());
    // External weights are bytes of the version too; what describes it is not.
    house.ground.write("m/1", "version.toml", "owner = \"x\"");
    house.ground.write("m/1", "weights.bin", "w");
    eventually("it is said", || notes().iter().any(|n| n.contains("weights.bin changed on disk")));
}

#[test]
fn a_version_whose_directory_vanishes_goes_unless_the_document_names_it() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    ground.put("m", 2, &answers(2));
    ground.put("other", 1, &answers(1));
    let house = ground.start();
    house.wait_ready();
    std::fs::remove_dir_all(house.ground.models().join("m")).unwrap();
    let gone = house.wait_state("m", 1, State::Unloaded);
    assert!(gone.reason.unwrap().contains("gone"));
    eventually("the note is there", || house.status("m", 2).unwrap().notes.iter().any(|n| n.contains("gone")));
    assert_eq!(house.predict("m").unwrap(), 2);
    house.ground.put("m", 3, &answers(3));
    house.wait_state("m", 3, State::Ready);
    house.promote("m", 3).unwrap();
    house.wait_state("m", 2, State::Unloaded);
}

#[test]
fn a_vanished_root_unloads_nothing() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    ground.put("m", 2, &answers(2));
    let house = ground.start();
    house.wait_ready();
    let aside = house.ground.dir.path().join("aside");
    std::fs::rename(house.ground.models(), &aside).unwrap();
    std::fs::create_dir(house.ground.models()).unwrap();
    let begun = std::time::Instant::now();
    eventually("some looks passed", || begun.elapsed() > Duration::from_millis(500));
    assert_eq!((house.state("m", 1), house.state("m", 2)), (Some(State::Ready), Some(State::Serving)));
    std::fs::remove_dir(house.ground.models()).unwrap();
    std::fs::rename(&aside, house.ground.models()).unwrap();
    house.ground.put("m", 3, &answers(3));
    house.wait_state("m", 3, State::Ready);
    assert_eq!(house.loads("m", 1), 1);
}

#[test]
fn a_whole_model_that_never_served_is_forgotten_with_its_directory() {
    let ground = Ground::new();
    ground.put("keeps", 1, &answers(1));
    ground.put("goes", 1, "unsupported");
    let house = ground.start();
    house.wait_ready();
    std::fs::remove_dir_all(house.ground.models().join("goes")).unwrap();
    eventually("it is gone", || house.entry("goes").is_none());
    let shown = house.telemetry.render();
    assert!(shown.contains("sluicegate_versions{state=\"unloaded\"} 0"), "{shown}");
}

#[test]
fn a_panic_while_loading_fails_that_version_alone() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    ground.put("m", 2, "panic");
    let house = ground.start();
    house.wait_ready();
    let failed = house.wait_state("m", 2, State::Failed);
    assert_eq!(failed.stage, Some(Stage::Load));
    assert!(failed.reason.unwrap().contains("the loader panics"));
    assert_eq!(house.predict("m").unwrap(), 1);
    house.ground.put("m", 3, &answers(3));
    house.wait_state("m", 3, State::Ready);
}

#[test]
fn what_the_disk_did_is_tried_again() {
    let ground = Ground::new();
    ground.put("m", 1, "io");
    let house = ground.start();
    let failed = house.wait_state("m", 1, State::Failed);
    assert!(failed.reason.unwrap().contains("the share is away"));
    eventually("it is tried again", || house.loads("m", 1) >= 2);
}

#[test]
fn the_sha256_of_version_toml_is_held_against_the_bytes() {
    use sha2::{Digest as _, Sha256};
    let ground = Ground::new();
    let hex = format!("{:X}", Sha256::digest(answers(1)));
    let right = format!("sha256 = \"{hex}\"\ntrained_at = 2026-01-02T03:04:05Z\n[metrics]\nauc = 0.9\n");
    ground.put_with("m", 1, &[("model.onnx", &answers(1)), ("version.toml", &right)]);
    let wrong = format!("sha256 = \"{}\"", "0".repeat(64));
    ground.put_with("m", 2, &[("model.onnx", &answers(2)), ("version.toml", &wrong)]);
    ground.put_with("m", 3, &[("model.onnx", "answer 3"), ("version.toml", &wrong)]);
    ground.put_with("m", 4, &[("model.onnx", &answers(4)), ("version.toml", "sha256 = 4")]);
    let house = ground.start();
    house.wait_ready();
    let facts = house.wait_state("m", 1, State::Serving).facts.unwrap();
    assert_eq!(facts.metadata["metrics"]["auc"], 0.9);
    assert_eq!(facts.sha256, hex.to_lowercase());
    let failed = |v| {
        let status = house.status("m", v).unwrap();
        (status.stage.unwrap(), status.reason.unwrap())
    };
    let (stage, reason) = failed(2);
    assert!(stage == Stage::Verify && reason.contains("version.toml gives 0000"), "{reason}");
    let (stage, reason) = failed(3);
    assert!(stage == Stage::Load && reason.contains("in the middle") && reason.contains("sha256"), "{reason}");
    let (stage, reason) = failed(4);
    assert!(stage == Stage::Verify && reason.contains("64 hexadecimal digits"), "{reason}");
}

#[test]
fn a_warm_up_made_from_the_signature_may_be_refused() {
    let ground = Ground::new();
    ground.put("m", 1, "strict\nanswer 1\nend");
    let house = ground.start();
    let serving = house.wait_state("m", 1, State::Serving);
    assert!(serving.notes[0].contains("neither zeros nor ones"), "{:?}", serving.notes);
}

#[test]
fn what_does_not_fit_into_memory_says_the_numbers_and_comes_when_there_is_room() {
    let ground = Ground::new();
    let padded = |n: u64, bytes: usize| format!("{}\n{}", answers(n), "#".repeat(bytes));
    ground.put("m", 1, &padded(1, 600));
    ground.put("m", 2, &padded(2, 600));
    ground.put("m", 3, &padded(3, 5000));
    let config = Config { memory_budget: 2000, ..ground.config() };
    let house = ground.start_with(config);
    house.wait_ready();
    let failed = house.wait_state("m", 3, State::Failed);
    let reason = failed.reason.unwrap();
    assert!(failed.stage == Some(Stage::Load) && reason.contains("budget of 2000 bytes"), "{reason}");
    assert_eq!(house.loads("m", 3), 0);
    house.ground.put("m", 4, &padded(4, 1200));
    house.wait_state("m", 4, State::Failed);
    assert_eq!(house.predict("m").unwrap(), 2);
    house.unload("m", 1).unwrap();
    house.wait_state("m", 4, State::Ready);
}

#[test]
fn room_is_made_where_that_is_the_policy() {
    let ground = Ground::new();
    let padded = |n: u64| format!("{}\n{}", answers(n), "#".repeat(600));
    ground.put("m", 1, &padded(1));
    ground.put("m", 2, &padded(2));
    let config = Config { memory_budget: 1500, policy: Policy::MakeRoom, ..ground.config() };
    let house = ground.start_with(config);
    house.wait_ready();
    house.wait_state("m", 2, State::Serving);
    house.ground.put("m", 3, &padded(3));
    house.wait_state("m", 3, State::Ready);
    let evicted = house.wait_state("m", 1, State::Unloaded);
    assert!(evicted.reason.unwrap().contains("to make room"));
    assert_eq!(house.predict("m").unwrap(), 2, "what serves is never unloaded for it");
    // Asked for by an operator, a lower version comes back and the higher one goes.
    house.load("m", 1).unwrap();
    house.wait_state("m", 3, State::Unloaded);
}

#[test]
fn versions_in_model_toml_narrows_what_is_loaded() {
    let ground = Ground::new();
    ground.write("m", "model.toml", "versions = { latest = 2 }");
    for v in 1..=3 {
        ground.put("m", v, &answers(v));
    }
    let house = ground.start();
    house.wait_ready();
    let left_out = house.wait_state("m", 1, State::Unloaded);
    assert!(left_out.reason.unwrap().contains("model.toml"));
    assert_eq!(house.loads("m", 1), 0);
    house.ground.put("m", 4, &answers(4));
    house.wait_state("m", 4, State::Ready);
    house.wait_state("m", 2, State::Unloaded);
    assert_eq!(house.predict("m").unwrap(), 3);
    house.ground.write("m", "model.toml", "versions = \"all\"");
    house.wait_state("m", 1, State::Ready);
}

#[test]
fn a_wrong_model_toml_leaves_what_was_right_before() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    ground.write("new", "model.toml", "engin = \"tract\"");
    ground.put("new", 1, &answers(1));
    let house = ground.start();
    house.wait_ready();
    let failed = house.wait_state("new", 1, State::Failed);
    assert!(failed.reason.unwrap().contains("did you mean `engine`"));
    house.ground.write("new", "model.toml", "engine = \"tract\"");
    house.wait_state("new", 1, State::Serving);
    house.ground.write("m", "model.toml", "versions = 3");
    eventually("it is said", || house.status("m", 1).unwrap().notes.iter().any(|n| n.contains("versions: expected")));
    assert_eq!(house.predict("m").unwrap(), 1);
    std::fs::remove_file(house.ground.models().join("m/model.toml")).unwrap();
    eventually("it is said no more", || house.status("m", 1).unwrap().notes.is_empty());
}

#[test]
fn memory_is_freed_by_no_request() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    ground.put("m", 2, &answers(2));
    let house = ground.start();
    house.wait_ready();
    let snapshot = house.snapshot();
    let held = Arc::clone(snapshot.model("m").unwrap().pinned(version(1)).unwrap());
    drop(snapshot);
    let runner = Arc::clone(&held.loaded.runner);
    let freed = Arc::downgrade(&held.loaded);
    let in_flight = held.loaded.metrics.enter();
    let unloading = {
        let handle = house.handle.clone();
        std::thread::spawn(move || ask(handle.unload(name("m"), version(1), true, ann())))
    };
    house.wait_state("m", 1, State::Draining);
    assert!(house.predict_as("m", Selector::Version(version(1))).is_err(), "nobody new comes to it");
    // The request is done with the version, but a worker still runs it.
    drop(in_flight);
    drop(held);
    let begun = std::time::Instant::now();
    eventually("some looks passed", || begun.elapsed() > Duration::from_millis(50));
    assert!(!unloading.is_finished() && freed.strong_count() == 1, "the manager holds it until the runner is free too");
    drop(runner);
    unloading.join().unwrap().unwrap();
    assert_eq!((freed.strong_count(), house.state("m", 1)), (0, Some(State::Unloaded)));
}

#[test]
fn a_request_past_the_drain_timeout_is_counted_and_still_not_the_one_to_free() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    ground.put("m", 2, &answers(2));
    let config = Config { drain_timeout: Duration::from_millis(30), ..ground.config() };
    let house = ground.start_with(config);
    house.wait_ready();
    let held = Arc::clone(house.snapshot().model("m").unwrap().pinned(version(1)).unwrap());
    let freed = Arc::downgrade(&held.loaded);
    house.unload("m", 1).unwrap();
    let status = house.status("m", 1).unwrap();
    assert!(status.notes.iter().any(|n| n.contains("past drain_timeout")), "{:?}", status.notes);
    assert!(house.telemetry.render().contains("sluicegate_stage_failures_total{stage=\"drain\"} 1"));
    drop(held);
    eventually("it is freed", || freed.strong_count() == 0);
    eventually("the note goes", || house.status("m", 1).unwrap().notes.is_empty());
}

#[test]
fn where_memory_does_not_suffice_the_oldest_versions_go_without() {
    let ground = Ground::new();
    let padded = |n: u64| format!("{}\n{}", answers(n), "#".repeat(600));
    for model in ["a", "b"] {
        for v in 1..=3 {
            ground.put(model, v, &padded(v));
        }
    }
    let config = Config { memory_budget: 2600, ..ground.config() };
    let house = ground.start_with(config);
    house.wait_ready();
    for model in ["a", "b"] {
        let states: Vec<_> = (1..=3).map(|v| house.state(model, v).unwrap()).collect();
        assert_eq!(states, [State::Failed, State::Ready, State::Serving], "{model}");
    }
}
