//! Crashes of earlier processes: how they are stored, and which versions they set aside.

use super::super::crashes::{CrashLimit, CrashedVersion, store_crashes};
use super::super::set_aside::SetAside;
use crate::ledger::{self, AuditQuery, Change, Effect};
use crate::model::VersionId;
use crate::prepare::{artifact_digests, artifact_sha256};
use crate::registry::Stage;
use jiff::{Timestamp, ToSpan as _};
use std::time::Duration;
use tempfile::TempDir;

const LIMIT: CrashLimit = CrashLimit { crashes: 3, within: Duration::from_mins(10) };

/// A models directory with version 3 of iris, and a data directory.
struct Fixture {
    dir: TempDir,
    writer: ledger::LedgerWriter,
    reader: ledger::LedgerReader,
    artifact: String,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = TempDir::new().unwrap();
        let version = dir.path().join("models/iris/3");
        std::fs::create_dir_all(&version).unwrap();
        std::fs::write(version.join("model.onnx"), "the model").unwrap();
        let artifact = artifact_sha256(&artifact_digests(&version).unwrap());
        let (writer, reader) = ledger::open(&dir.path().join("data")).unwrap();
        Fixture { dir, writer, reader, artifact }
    }

    /// Stores crashes this many minutes ago.
    fn crash(&mut self, minutes: &[i64]) -> Vec<SetAside> {
        let crash = |ago: &i64| CrashedVersion {
            id: id(),
            at: Timestamp::now() - ago.minutes(),
            artifact: self.artifact.clone(),
            signal: "SIGSEGV".to_owned(),
            call: "run".to_owned(),
            inputs: None,
        };
        let crashes: Vec<_> = minutes.iter().map(crash).collect();
        store_crashes(&mut self.writer, &[self.dir.path().join("models")], &crashes, LIMIT).unwrap()
    }

    fn actions(&self) -> Vec<String> {
        let events = self.reader.audit(&AuditQuery { model: None, since: None, limit: 100 }).unwrap();
        events.into_iter().rev().map(|event| event.action).collect()
    }
}

fn id() -> VersionId {
    VersionId { model: "iris".parse().unwrap(), version: "3".parse().unwrap() }
}

#[test]
fn a_version_is_set_aside_after_enough_crashes_within_the_window() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.crash(&[60, 50, 40]), [], "three crashes, but long ago");
    assert_eq!(fixture.crash(&[2]), []);
    assert_eq!(fixture.crash(&[1]), [], "two within the window");
    let [aside] = &fixture.crash(&[0])[..] else { panic!("the third sets it aside") };
    assert_eq!((&aside.id, aside.stage, aside.recorded), (&id(), Stage::Crashed, true));
    assert!(aside.reason.contains("3 times within 10 min"), "{}", aside.reason);
    let actions = fixture.actions();
    assert_eq!(actions.iter().filter(|action| *action == "crash").count(), 6);
    assert_eq!(actions.last().map(String::as_str), Some("set_aside"));
    assert_eq!(fixture.crash(&[]).len(), 1, "the next start sets it aside again");
    assert_eq!(fixture.actions().len(), actions.len(), "and tells it once");
}

#[test]
fn other_files_are_another_case() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.crash(&[3, 2, 1]).len(), 1);
    std::fs::write(fixture.dir.path().join("models/iris/3/model.onnx"), "a better model").unwrap();
    assert_eq!(fixture.crash(&[]), [], "the files changed");
    std::fs::write(fixture.dir.path().join("models/iris/3/model.onnx"), "the model").unwrap();
    assert_eq!(fixture.crash(&[]).len(), 1, "the files that crashed are back");
    std::fs::remove_dir_all(fixture.dir.path().join("models")).unwrap();
    assert_eq!(fixture.crash(&[]).len(), 1, "files that cannot be read may be the same");
}

#[test]
fn forgiven_crashes_do_not_count() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.crash(&[3, 2, 1]).len(), 1);
    let before = fixture.actions().len();
    let forgive = Change {
        model: id().model,
        actor: "system".to_owned(),
        action: ledger::Action::Load,
        reason: None,
        before: None,
        after: None,
        effect: Effect::ForgiveCrashes { version: id().version },
    };
    fixture.writer.commit(forgive).unwrap();
    assert_eq!(fixture.actions().len(), before, "it is no event of its own");
    assert_eq!(fixture.crash(&[0]), [], "one crash since");
}

#[test]
fn a_crash_of_a_pushed_file_sets_nothing_aside() {
    let mut fixture = Fixture::new();
    fixture.artifact.clear();
    assert_eq!(fixture.crash(&[3, 2, 1]), []);
    assert_eq!(fixture.actions(), ["crash", "crash", "crash"]);
}

#[test]
fn only_the_newest_crashes_are_kept() {
    let mut fixture = Fixture::new();
    let many: Vec<i64> = (0..130).rev().map(|n| n + 20).collect();
    assert_eq!(fixture.crash(&many), []);
    let states = fixture.writer.load().unwrap();
    let kept = &states[0].crashes[&id().version];
    assert_eq!(kept.len(), ledger::MAX_CRASHES as usize);
    assert!(kept.is_sorted_by_key(|crash| crash.at), "oldest first");
    assert!(kept.last().unwrap().at > Timestamp::now() - 21.minutes(), "the newest are kept");
}
