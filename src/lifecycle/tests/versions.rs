//! Versions that appear, fail, change on disk and disappear.

use super::super::{Config, Policy};
use super::fixture::*;
use crate::registry::{Stage, State};
use crate::route::Selector;
use std::sync::Arc;
use std::time::Duration;

#[test]
fn a_slow_copy_is_not_read_before_it_is_complete() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    let config = Config { settle: Duration::from_millis(300), ..workspace.config() };
    let fixture = workspace.start_with(config);
    fixture.wait_state("m", 1, State::Serving);
    let file = fixture.workspace.version_dir("m", 2).join("model.onnx");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let whole = format!("{}\n{}", "#".repeat(60), answers(2));
    let never = crossbeam_channel::never::<()>();
    for i in 1..=8 {
        std::fs::write(&file, &whole[..whole.len() * i / 8]).unwrap();
        let _ = never.recv_timeout(Duration::from_millis(60));
    }
    fixture.wait_state("m", 2, State::Ready);
    assert_eq!(fixture.loads("m", 2), 1, "it was read once, when it was complete");
}

#[test]
fn a_half_copied_version_fails_and_is_loaded_when_the_rest_arrives() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    let fixture = workspace.start();
    fixture.wait_state("m", 1, State::Serving);
    fixture.workspace.write("m/2", "model.onnx", "answer 2");
    let failed = fixture.wait_state("m", 2, State::Failed);
    assert!(failed.reason.unwrap().contains("in the middle"));
    let loads = fixture.loads("m", 2);
    // Two readings of the directory later it was not tried again: the same bytes fail again.
    let begun = std::time::Instant::now();
    eventually("some looks passed", || begun.elapsed() > Duration::from_millis(500));
    assert_eq!(fixture.loads("m", 2), loads);
    fixture.workspace.write("m/2", "model.onnx", &answers(2));
    fixture.wait_state("m", 2, State::Ready);
    assert_eq!(fixture.predict("m").unwrap(), 1);
}

#[test]
fn files_that_change_while_they_are_read_are_read_again() {
    let workspace = Workspace::new();
    workspace.put("m", 1, "unsupported");
    workspace.gate.close(&workspace.version_dir("m", 1));
    let fixture = workspace.start();
    fixture.wait_state("m", 1, State::Loading);
    fixture.workspace.write("m/1", "model.onnx", &answers(1));
    fixture.workspace.gate.open();
    fixture.wait_state("m", 1, State::Serving);
    assert!(fixture.loads("m", 1) <= 2);
}

#[test]
fn changed_bytes_under_a_loaded_version_are_reported_and_not_loaded() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    let fixture = workspace.start();
    fixture.wait_state("m", 1, State::Serving);
    let notes = || fixture.status("m", 1).unwrap().notes;
    // Writing the same bytes again is no change.
    fixture.workspace.write("m/1", "model.onnx", &answers(1));
    fixture.workspace.write("m/1", "model.onnx", &answers(9));
    eventually("it is reported", || notes().iter().any(|n| n.contains("model.onnx changed on disk")));
    assert_eq!(fixture.predict("m").unwrap(), 1);
    assert_eq!((fixture.loads("m", 1), fixture.state("m", 1)), (1, Some(State::Serving)));
    // The note goes when the loaded bytes are back.
    fixture.workspace.write("m/1", "model.onnx", &answers(1));
    eventually("the note is removed", || notes().is_empty());
    // External weights are part of the artifact, version.toml is not.
    fixture.workspace.write("m/1", "version.toml", "owner = \"x\"");
    fixture.workspace.write("m/1", "weights.bin", "w");
    eventually("it is reported", || notes().iter().any(|n| n.contains("weights.bin changed on disk")));
}

#[test]
fn a_version_without_a_directory_is_unloaded_unless_the_document_names_it() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.put("m", 2, &answers(2));
    workspace.put("other", 1, &answers(1));
    let fixture = workspace.start();
    fixture.wait_ready();
    std::fs::remove_dir_all(fixture.workspace.models().join("m")).unwrap();
    let gone = fixture.wait_state("m", 1, State::Unloaded);
    assert!(gone.reason.unwrap().contains("gone"));
    eventually("the note is there", || fixture.status("m", 2).unwrap().notes.iter().any(|n| n.contains("gone")));
    assert_eq!(fixture.predict("m").unwrap(), 2);
    fixture.workspace.put("m", 3, &answers(3));
    fixture.wait_state("m", 3, State::Ready);
    fixture.promote("m", 3).unwrap();
    fixture.wait_state("m", 2, State::Unloaded);
}

#[test]
fn an_empty_models_directory_unloads_nothing() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.put("m", 2, &answers(2));
    let fixture = workspace.start();
    fixture.wait_ready();
    let aside = fixture.workspace.dir.path().join("aside");
    std::fs::rename(fixture.workspace.models(), &aside).unwrap();
    std::fs::create_dir(fixture.workspace.models()).unwrap();
    let begun = std::time::Instant::now();
    eventually("some looks passed", || begun.elapsed() > Duration::from_millis(500));
    assert_eq!((fixture.state("m", 1), fixture.state("m", 2)), (Some(State::Ready), Some(State::Serving)));
    std::fs::remove_dir(fixture.workspace.models()).unwrap();
    std::fs::rename(&aside, fixture.workspace.models()).unwrap();
    fixture.workspace.put("m", 3, &answers(3));
    fixture.wait_state("m", 3, State::Ready);
    assert_eq!(fixture.loads("m", 1), 1);
}

#[test]
fn a_whole_model_that_never_served_is_forgotten_with_its_directory() {
    let workspace = Workspace::new();
    workspace.put("keeps", 1, &answers(1));
    workspace.put("goes", 1, "unsupported");
    let fixture = workspace.start();
    fixture.wait_ready();
    std::fs::remove_dir_all(fixture.workspace.models().join("goes")).unwrap();
    eventually("it is gone", || fixture.entry("goes").is_none());
    let shown = fixture.telemetry.render();
    assert!(shown.contains("sluicegate_versions{state=\"unloaded\"} 0"), "{shown}");
}

#[test]
fn a_panic_while_loading_fails_only_that_version() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.put("m", 2, "panic");
    let fixture = workspace.start();
    fixture.wait_ready();
    let failed = fixture.wait_state("m", 2, State::Failed);
    assert_eq!(failed.stage, Some(Stage::Load));
    assert!(failed.reason.unwrap().contains("the loader panics"));
    assert_eq!(fixture.predict("m").unwrap(), 1);
    fixture.workspace.put("m", 3, &answers(3));
    fixture.wait_state("m", 3, State::Ready);
}

#[test]
fn a_disk_error_is_retried() {
    let workspace = Workspace::new();
    workspace.put("m", 1, "io");
    let fixture = workspace.start();
    let failed = fixture.wait_state("m", 1, State::Failed);
    assert!(failed.reason.unwrap().contains("the share is away"));
    eventually("it is tried again", || fixture.loads("m", 1) >= 2);
}

#[test]
fn the_sha256_of_version_toml_is_compared_with_the_bytes() {
    use sha2::{Digest as _, Sha256};
    let workspace = Workspace::new();
    let hex = format!("{:X}", Sha256::digest(answers(1)));
    let right = format!("sha256 = \"{hex}\"\ntrained_at = 2026-01-02T03:04:05Z\n[metrics]\nauc = 0.9\n");
    workspace.put_with("m", 1, &[("model.onnx", &answers(1)), ("version.toml", &right)]);
    let wrong = format!("sha256 = \"{}\"", "0".repeat(64));
    workspace.put_with("m", 2, &[("model.onnx", &answers(2)), ("version.toml", &wrong)]);
    workspace.put_with("m", 3, &[("model.onnx", "answer 3"), ("version.toml", &wrong)]);
    workspace.put_with("m", 4, &[("model.onnx", &answers(4)), ("version.toml", "sha256 = 4")]);
    let fixture = workspace.start();
    fixture.wait_ready();
    let facts = fixture.wait_state("m", 1, State::Serving).facts.unwrap();
    assert_eq!(facts.metadata["metrics"]["auc"], 0.9);
    assert_eq!(facts.sha256, hex.to_lowercase());
    let failed = |v| {
        let status = fixture.status("m", v).unwrap();
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
fn a_generated_warm_up_may_be_refused() {
    let workspace = Workspace::new();
    workspace.put("m", 1, "strict\nanswer 1\nend");
    let fixture = workspace.start();
    let serving = fixture.wait_state("m", 1, State::Serving);
    assert!(serving.notes[0].contains("neither zeros nor ones"), "{:?}", serving.notes);
}

#[test]
fn a_version_that_does_not_fit_reports_the_numbers_and_is_loaded_when_memory_is_freed() {
    let workspace = Workspace::new();
    let padded = |n: u64, bytes: usize| format!("{}\n{}", answers(n), "#".repeat(bytes));
    workspace.put("m", 1, &padded(1, 600));
    workspace.put("m", 2, &padded(2, 600));
    workspace.put("m", 3, &padded(3, 5000));
    let config = Config { memory_budget: 2000, ..workspace.config() };
    let fixture = workspace.start_with(config);
    fixture.wait_ready();
    let failed = fixture.wait_state("m", 3, State::Failed);
    let reason = failed.reason.unwrap();
    assert!(failed.stage == Some(Stage::Load) && reason.contains("budget of 2000 bytes"), "{reason}");
    assert_eq!(fixture.loads("m", 3), 0);
    fixture.workspace.put("m", 4, &padded(4, 1200));
    fixture.wait_state("m", 4, State::Failed);
    assert_eq!(fixture.predict("m").unwrap(), 2);
    fixture.unload("m", 1).unwrap();
    fixture.wait_state("m", 4, State::Ready);
}

#[test]
fn the_make_room_policy_unloads_other_versions() {
    let workspace = Workspace::new();
    let padded = |n: u64| format!("{}\n{}", answers(n), "#".repeat(600));
    workspace.put("m", 1, &padded(1));
    workspace.put("m", 2, &padded(2));
    let config = Config { memory_budget: 1500, policy: Policy::MakeRoom, ..workspace.config() };
    let fixture = workspace.start_with(config);
    fixture.wait_ready();
    fixture.wait_state("m", 2, State::Serving);
    fixture.workspace.put("m", 3, &padded(3));
    fixture.wait_state("m", 3, State::Ready);
    let evicted = fixture.wait_state("m", 1, State::Unloaded);
    assert!(evicted.reason.unwrap().contains("to make room"));
    assert_eq!(fixture.predict("m").unwrap(), 2, "a serving version is never unloaded for it");
    // An operator loads a lower version, and the higher one is unloaded.
    fixture.load("m", 1).unwrap();
    fixture.wait_state("m", 3, State::Unloaded);
}

#[test]
fn versions_in_model_toml_limits_what_is_loaded() {
    let workspace = Workspace::new();
    workspace.write("m", "model.toml", "versions = { latest = 2 }");
    for v in 1..=3 {
        workspace.put("m", v, &answers(v));
    }
    let fixture = workspace.start();
    fixture.wait_ready();
    let left_out = fixture.wait_state("m", 1, State::Unloaded);
    assert!(left_out.reason.unwrap().contains("model.toml"));
    assert_eq!(fixture.loads("m", 1), 0);
    fixture.workspace.put("m", 4, &answers(4));
    fixture.wait_state("m", 4, State::Ready);
    fixture.wait_state("m", 2, State::Unloaded);
    assert_eq!(fixture.predict("m").unwrap(), 3);
    fixture.workspace.write("m", "model.toml", "versions = \"all\"");
    fixture.wait_state("m", 1, State::Ready);
}

#[test]
fn an_invalid_model_toml_keeps_the_last_valid_settings() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.write("new", "model.toml", "engin = \"tract\"");
    workspace.put("new", 1, &answers(1));
    let fixture = workspace.start();
    fixture.wait_ready();
    let failed = fixture.wait_state("new", 1, State::Failed);
    assert!(failed.reason.unwrap().contains("did you mean `engine`"));
    fixture.workspace.write("new", "model.toml", "engine = \"tract\"");
    fixture.wait_state("new", 1, State::Serving);
    fixture.workspace.write("m", "model.toml", "versions = 3");
    eventually("it is reported", || {
        fixture.status("m", 1).unwrap().notes.iter().any(|n| n.contains("versions: expected"))
    });
    assert_eq!(fixture.predict("m").unwrap(), 1);
    std::fs::remove_file(fixture.workspace.models().join("m/model.toml")).unwrap();
    eventually("the note is removed", || fixture.status("m", 1).unwrap().notes.is_empty());
}

#[test]
fn no_request_frees_memory() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.put("m", 2, &answers(2));
    let fixture = workspace.start();
    fixture.wait_ready();
    let snapshot = fixture.snapshot();
    let held = Arc::clone(snapshot.model("m").unwrap().pinned(version(1)).unwrap());
    drop(snapshot);
    let runner = Arc::clone(&held.loaded.runner);
    let freed = Arc::downgrade(&held.loaded);
    let in_flight = held.loaded.metrics.enter();
    let unloading = {
        let handle = fixture.handle.clone();
        std::thread::spawn(move || wait(handle.unload(name("m"), version(1), true, None, ann())))
    };
    fixture.wait_state("m", 1, State::Draining);
    assert!(fixture.predict_as("m", Selector::Version(version(1))).is_err(), "no new request reaches it");
    // The request ended, but a worker still runs the version.
    drop(in_flight);
    drop(held);
    let begun = std::time::Instant::now();
    eventually("some looks passed", || begun.elapsed() > Duration::from_millis(50));
    assert!(
        !unloading.is_finished() && freed.strong_count() == 1,
        "the manager holds it until the runner is unused too"
    );
    drop(runner);
    unloading.join().unwrap().unwrap();
    assert_eq!((freed.strong_count(), fixture.state("m", 1)), (0, Some(State::Unloaded)));
}

#[test]
fn a_request_after_the_drain_timeout_is_counted_and_does_not_free_memory() {
    let workspace = Workspace::new();
    workspace.put("m", 1, &answers(1));
    workspace.put("m", 2, &answers(2));
    let config = Config { drain_timeout: Duration::from_millis(30), ..workspace.config() };
    let fixture = workspace.start_with(config);
    fixture.wait_ready();
    let held = Arc::clone(fixture.snapshot().model("m").unwrap().pinned(version(1)).unwrap());
    let freed = Arc::downgrade(&held.loaded);
    fixture.unload("m", 1).unwrap();
    let status = fixture.status("m", 1).unwrap();
    assert!(status.notes.iter().any(|n| n.contains("after drain_timeout")), "{:?}", status.notes);
    assert!(fixture.telemetry.render().contains("sluicegate_stage_failures_total{stage=\"drain\"} 1"));
    drop(held);
    eventually("it is freed", || freed.strong_count() == 0);
    eventually("the note is removed", || fixture.status("m", 1).unwrap().notes.is_empty());
}

#[test]
fn where_memory_is_short_the_oldest_versions_are_not_loaded() {
    let workspace = Workspace::new();
    let padded = |n: u64| format!("{}\n{}", answers(n), "#".repeat(600));
    for model in ["a", "b"] {
        for v in 1..=3 {
            workspace.put(model, v, &padded(v));
        }
    }
    let config = Config { memory_budget: 2600, ..workspace.config() };
    let fixture = workspace.start_with(config);
    fixture.wait_ready();
    for model in ["a", "b"] {
        let states: Vec<_> = (1..=3).map(|v| fixture.state(model, v).unwrap()).collect();
        assert_eq!(states, [State::Failed, State::Ready, State::Serving], "{model}");
    }
}
