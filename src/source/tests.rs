//! What a look at the models directory finds, and when the next look is due.

use super::scan::{FoundModel, look_at_model};
use super::watch::{Look, ScanState};
use crate::model::{ModelName, Version};
use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SETTLE: Duration = Duration::from_secs(1);

fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

fn version(n: u64) -> Version {
    n.to_string().parse().unwrap()
}

/// A directory that holds a models directory, so that a test can put files outside the latter.
struct Fixture {
    dir: TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("models")).unwrap();
        Fixture { dir }
    }

    fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    fn state(&self) -> ScanState {
        ScanState::new(self.models(), SETTLE)
    }

    /// Writes a file; the path is relative to the models directory.
    fn write(&self, path: &str, text: &str) {
        write(&self.models().join(path), text);
    }

    /// Writes a file outside the models directory.
    fn write_outside(&self, path: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        write(&path, text);
        path
    }

    fn look_at_m(&self) -> FoundModel {
        look_at_model(&self.models(), &name("m")).unwrap().unwrap()
    }

    /// Why version 1 of model `m` is refused.
    fn trouble(&self) -> Option<String> {
        self.look_at_m().versions[&version(1)].trouble.clone()
    }
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn is_still(look: &Look) -> bool {
    look.changed[0].1.as_ref().unwrap().versions[&version(1)].still
}

// === settling ===

#[test]
fn files_are_still_once_they_were_unchanged_for_the_settle_time() {
    let fixture = Fixture::new();
    let mut state = fixture.state();
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    fixture.write("m/1/model.onnx", "first half");
    let look = state.look_at_all(at(0));
    assert!(look.first && !is_still(&look));
    assert_eq!(state.due(at(999)), BTreeSet::new());
    assert_eq!(state.due(at(1000)), BTreeSet::from([name("m")]));

    fixture.write("m/1/model.onnx", "first half, second half");
    assert_eq!(state.look_at(state.due(at(1000)), at(1000)).changed.len(), 1, "its fingerprint changed");
    assert_eq!(state.next_due(), Some(at(2000)), "every change starts the settle time again");
    assert!(state.look_at(state.due(at(1500)), at(1500)).changed.is_empty());

    let look = state.look_at(state.due(at(2000)), at(2000));
    assert!(is_still(&look));
    assert_eq!(state.next_due(), None);
    assert!(state.look_at_all(at(3000)).changed.is_empty(), "an unchanged model is not reported again");
}

#[test]
fn a_settle_time_of_zero_needs_two_looks() {
    let fixture = Fixture::new();
    fixture.write("m/1/model.onnx", "x");
    let mut state = ScanState::new(fixture.models(), Duration::ZERO);
    state.look_at_all(Instant::now());
    let due = state.next_due().unwrap();
    assert!(is_still(&state.look_at(state.due(due), due)));
}

/// Makes a version settle, then breaks the directory, and looks when the look is due.
#[track_caller]
fn next_look_is_in_the_future_after(what: &str, settle: Duration, break_it: impl FnOnce(&Fixture)) {
    let fixture = Fixture::new();
    fixture.write("m/1/model.onnx", "x");
    fixture.write("other/1/model.onnx", "x");
    let mut state = ScanState::new(fixture.models(), settle);
    let start = Instant::now();
    state.look_at_all(start);
    break_it(&fixture);
    let mut now = start + settle;
    for _ in 0..3 {
        state.look_at(state.due(now), now);
        let next = state.next_due();
        assert!(next.is_none_or(|next| next > now), "{what}: the thread would look again at once, forever");
        now = next.unwrap_or(now).max(now + settle);
    }
}

#[test]
fn a_look_that_fails_leaves_no_due_time_in_the_past() {
    for settle in [SETTLE, Duration::ZERO] {
        next_look_is_in_the_future_after("the model's directory cannot be read", settle, |fixture| {
            let dir = fixture.models().join("m");
            std::fs::remove_dir_all(&dir).unwrap();
            symlink("m", &dir).unwrap();
        });
        next_look_is_in_the_future_after("the root is gone", settle, |fixture| {
            std::fs::remove_dir_all(fixture.models()).unwrap();
        });
        next_look_is_in_the_future_after("the model is gone and the root is empty", settle, |fixture| {
            std::fs::remove_dir_all(fixture.models().join("m")).unwrap();
            std::fs::remove_dir_all(fixture.models().join("other")).unwrap();
        });
        next_look_is_in_the_future_after("the version's files cannot be listed", settle, |fixture| {
            symlink("loop", fixture.models().join("m/1/loop")).unwrap();
        });
    }
}

// === what is reported ===

#[test]
fn an_unreadable_or_empty_root_removes_nothing() {
    let fixture = Fixture::new();
    fixture.write("m/1/model.onnx", "x");
    fixture.write("n/1/model.onnx", "x");
    let mut state = fixture.state();
    assert_eq!(state.look_at_all(Instant::now()).changed.len(), 2);
    let aside = fixture.dir.path().join("aside");
    std::fs::rename(fixture.models(), &aside).unwrap();
    assert!(state.look_at_all(Instant::now()).changed.is_empty(), "it does not exist");
    std::fs::create_dir(fixture.models()).unwrap();
    assert!(state.look_at_all(Instant::now()).changed.is_empty(), "it is empty");
    assert!(state.look_at([name("m")].into(), Instant::now()).changed.is_empty());
    std::fs::remove_dir(fixture.models()).unwrap();
    std::fs::rename(&aside, fixture.models()).unwrap();
    std::fs::remove_dir_all(fixture.models().join("m")).unwrap();
    let look = state.look_at_all(Instant::now());
    assert_eq!(look.changed, [(name("m"), None)], "one missing model of several is reported");
}

#[test]
fn names_that_are_no_model_and_no_version_are_ignored() {
    let fixture = Fixture::new();
    for dir in ["m/latest", "m/01", "m/0", "m/.2.tmp-1-1", "__pycache__", ".git", "m/1"] {
        fixture.write(&format!("{dir}/model.onnx"), "x");
    }
    fixture.write("README.md", "no directory");
    fixture.write("m/net.onnx", "in the wrong place");
    let look = fixture.state().look_at_all(Instant::now());
    let models: Vec<&str> = look.changed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(models, ["m"]);
    let found = look.changed[0].1.as_ref().unwrap();
    assert_eq!(found.versions.keys().copied().collect::<Vec<_>>(), [version(1)]);
    let ignored: Vec<String> = found.ignored.iter().map(|i| format!("{}: {}", i.path.display(), i.why)).collect();
    assert_eq!(ignored.len(), 4, "{ignored:?}");
    assert!(ignored.iter().any(|i| {
        i.ends_with("net.onnx: a model file has to be in the directory of a version: move it to 1/model.onnx")
    }));
}

// === links ===

#[test]
fn links_inside_the_models_directory_are_followed() {
    let fixture = Fixture::new();
    // As Kubernetes mounts a ConfigMap: each file is a link through `..data` to a directory with a time in its name.
    fixture.write("m/1/..2026_11_28/model.onnx", "x");
    symlink("..2026_11_28", fixture.models().join("m/1/..data")).unwrap();
    symlink("..data/model.onnx", fixture.models().join("m/1/model.onnx")).unwrap();
    let found = fixture.look_at_m();
    assert!(found.versions[&version(1)].has_model && found.versions[&version(1)].trouble.is_none(), "{found:?}");

    // A linked version directory, a linked model directory, and a linked model.toml.
    symlink("1", fixture.models().join("m/2")).unwrap();
    symlink("m", fixture.models().join("alias")).unwrap();
    fixture.write("shared.toml", "auto_promote = true");
    symlink("../shared.toml", fixture.models().join("m/model.toml")).unwrap();
    let found = look_at_model(&fixture.models(), &name("alias")).unwrap().unwrap();
    assert!(found.versions.values().all(|v| v.has_model && v.trouble.is_none()), "{found:?}");
    assert_eq!((found.versions.len(), found.settings), (2, Some(Ok("auto_promote = true".into()))));
}

#[test]
fn the_models_directory_itself_may_be_a_link() {
    let fixture = Fixture::new();
    fixture.write("m/1/real.onnx", "x");
    symlink("real.onnx", fixture.models().join("m/1/model.onnx")).unwrap();
    let link = fixture.dir.path().join("link");
    symlink(fixture.models(), &link).unwrap();
    let found = look_at_model(&link, &name("m")).unwrap().unwrap();
    assert!(found.versions[&version(1)].trouble.is_none(), "{found:?}");
}

#[test]
fn links_that_leave_the_models_directory_are_refused() {
    let outside = |fixture: &Fixture| fixture.write_outside("outside/1/model.onnx", "secret");
    let refused = |what: &str, trouble: Option<String>| {
        let trouble = trouble.unwrap_or_else(|| panic!("{what} was followed"));
        assert!(trouble.contains("leads out of the models directory"), "{what}: {trouble}");
        trouble
    };

    let fixture = Fixture::new();
    fixture.write("m/1/version.toml", "");
    symlink(outside(&fixture), fixture.models().join("m/1/model.onnx")).unwrap();
    refused("model.onnx", fixture.trouble());

    let fixture = Fixture::new();
    fixture.write("m/1/model.onnx", "x");
    symlink(outside(&fixture), fixture.models().join("m/1/weights.bin")).unwrap();
    assert!(refused("a weights file", fixture.trouble()).contains("weights.bin"));

    let fixture = Fixture::new();
    fixture.write("m/1/model.onnx", "x");
    symlink(outside(&fixture).parent().unwrap(), fixture.models().join("m/1/weights")).unwrap();
    refused("a directory of weights", fixture.trouble());

    let fixture = Fixture::new();
    fixture.write("m/2/model.onnx", "x");
    symlink(outside(&fixture).parent().unwrap(), fixture.models().join("m/1")).unwrap();
    refused("a version's directory", fixture.trouble());
    assert!(fixture.look_at_m().versions[&version(2)].trouble.is_none(), "other versions are not affected");

    let fixture = Fixture::new();
    symlink(outside(&fixture).ancestors().nth(2).unwrap(), fixture.models().join("m")).unwrap();
    refused("a model's directory", fixture.trouble());
    assert!(matches!(fixture.look_at_m().settings, Some(Err(_))));

    let fixture = Fixture::new();
    fixture.write("m/1/model.onnx", "x");
    symlink(outside(&fixture), fixture.models().join("m/model.toml")).unwrap();
    refused("model.toml", fixture.look_at_m().settings.and_then(Result::err));

    // Relative, through a second link, and a sibling whose name begins like the root's.
    let fixture = Fixture::new();
    fixture.write("m/1/version.toml", "");
    fixture.write_outside("models-old/model.onnx", "x");
    symlink("../../../models-old", fixture.models().join("m/1/.hop")).unwrap();
    symlink(".hop/model.onnx", fixture.models().join("m/1/model.onnx")).unwrap();
    refused("a chain of links", fixture.trouble());
}

#[test]
fn a_link_to_nothing_is_no_file() {
    let fixture = Fixture::new();
    fixture.write("m/1/version.toml", "");
    symlink("/nowhere", fixture.models().join("m/1/model.onnx")).unwrap();
    symlink("/nowhere", fixture.models().join("m/8")).unwrap();
    let found = fixture.look_at_m();
    assert_eq!(found.versions.len(), 1);
    assert!(!found.versions[&version(1)].has_model && found.versions[&version(1)].trouble.is_none(), "{found:?}");
}
