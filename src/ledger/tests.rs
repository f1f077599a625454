//! The ledger against a real database: changes, history, restarts, kills, full disks, replaced files.

use super::*;
use proptest::prelude::*;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

pub(super) fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

pub(super) fn version(n: u64) -> Version {
    n.to_string().parse().unwrap()
}

pub(super) fn document(n: u64) -> String {
    format!(r#"{{"split":[{{"version":"{n}","weight":1}}]}}"#)
}

pub(super) fn change(model: &str, action: Action, effect: Effect) -> Change {
    let (before, after) = (Some(r#"{"was":1}"#.to_owned()), Some(r#"{"is":2}"#.to_owned()));
    Change { model: name(model), actor: "ann".into(), action, reason: Some("because".into()), before, after, effect }
}

pub(super) fn put(model: &str, document: String) -> Change {
    change(model, Action::PutTraffic, Effect::SetDocument { document, highest_served: None, auto_promoted: None })
}

pub(super) fn all_events() -> AuditQuery {
    AuditQuery { model: None, since: None, limit: usize::MAX }
}

pub(super) fn open_new() -> (TempDir, LedgerWriter, LedgerReader) {
    let dir = tempfile::tempdir().unwrap();
    let (writer, reader) = open(dir.path()).unwrap();
    (dir, writer, reader)
}

#[test]
fn the_newest_events_are_read_without_looking_at_a_million_older_ones() {
    let (dir, _writer, _reader) = open_new();
    let connection = rusqlite::Connection::open(dir.path().join("ledger.sqlite3")).unwrap();
    for (of_model, expected) in [(true, "SEARCH events USING INDEX events_by_model (model=?)"), (false, "SCAN events")]
    {
        let sql = format!("EXPLAIN QUERY PLAN {}", reader::newest(of_model));
        let mut statement = connection.prepare(&sql).unwrap();
        let parameters = rusqlite::params_from_iter(std::iter::repeat_n("x", statement.parameter_count()));
        let plan: Vec<String> =
            statement.query_map(parameters, |row| row.get(3)).unwrap().map(Result::unwrap).collect();
        assert_eq!(plan, [expected], "nothing is sorted, so what is not taken is not read");
    }
}

#[test]
fn stored_values_are_there_after_a_reopen() {
    let (dir, mut writer, reader) = open_new();
    let (v9, v10) = (version(9), version(u64::MAX));
    let serve = |version, auto_promoted| Effect::SetDocument {
        document: document(1),
        highest_served: Some(version),
        auto_promoted,
    };
    let first = writer.commit(change("fraud", Action::FirstDocument, serve(v10, None))).unwrap();
    assert_eq!((first.revision, first.event_id), (1, Some(1)));
    assert_eq!(writer.commit(change("fraud", Action::AutoPromote, serve(v9, Some(v9)))).unwrap().revision, 2);
    let unload = |unloaded| Effect::SetOperatorUnloaded { version: v9, unloaded };
    assert_eq!(writer.commit(change("fraud", Action::Unload, unload(true))).unwrap().revision, 2, "no new document");
    let artifact = |sha256: &str| Effect::RecordArtifact { version: v9, sha256: sha256.to_owned(), bytes: 7 };
    let recorded = writer.commit(change("fraud", Action::Load, artifact("ab"))).unwrap();
    assert_eq!(recorded.event_id, None, "the first artifact writes no event");
    writer.commit(change("other", Action::UnloadModel, Effect::SetModelUnloaded(true))).unwrap();
    let pushed = writer.commit(change("third", Action::Push, Effect::None)).unwrap();
    assert_eq!((pushed.revision, pushed.event_id), (0, Some(5)));
    drop((writer, reader));
    let log = std::fs::metadata(dir.path().join("ledger.sqlite3-wal")).map_or(0, |m| m.len());
    assert_eq!(log, 0, "after a clean stop one file holds everything");

    let (writer, reader) = open(dir.path()).unwrap();
    let states = writer.load().unwrap();
    let fraud = ModelState {
        revision: 2,
        document: Some(document(1)),
        highest_served: Some(v10),
        operator_unloaded: BTreeSet::from([v9]),
        auto_promoted: BTreeSet::from([v9]),
        artifacts: BTreeMap::from([(v9, Artifact { sha256: "ab".into(), bytes: 7, first_ready_at: recorded.ts })]),
        ..ModelState::new(name("fraud"))
    };
    let other = ModelState { unloaded: true, ..ModelState::new(name("other")) };
    assert_eq!(states, [fraud, other], "a model that only has an event is not stored");
    let actions: Vec<String> = reader.audit(&all_events()).unwrap().into_iter().map(|e| e.action).collect();
    assert_eq!(actions, ["push", "unload_model", "unload", "auto_promote", "first_document"], "newest first");
}

#[test]
fn two_rollbacks_restore_the_document() {
    let (_dir, mut writer, reader) = open_new();
    let model = name("m");
    assert_eq!(writer.previous_document(&model).unwrap(), None);
    writer.commit(put("m", document(1))).unwrap();
    assert_eq!(reader.previous_document(&model).unwrap(), None, "there was nothing before the first");
    writer.commit(put("m", document(2))).unwrap();
    let rollback = |writer: &mut LedgerWriter| {
        let previous = writer.previous_document(&model).unwrap().unwrap();
        writer.commit(Change { action: Action::Rollback, ..put("m", previous.document) }).unwrap();
        writer.load().unwrap()[0].document.clone().unwrap()
    };
    assert_eq!(rollback(&mut writer), document(1));
    assert_eq!(reader.previous_document(&model).unwrap(), Some(Revision { revision: 2, document: document(2) }));
    assert_eq!(rollback(&mut writer), document(2));
    let history = reader.history(&model).unwrap();
    let entries: Vec<(u64, &str, &str)> =
        history.iter().map(|e| (e.revision, e.action.as_str(), e.document.as_str())).collect();
    let (one, two) = (document(1), document(2));
    assert_eq!(
        entries,
        [(4, "rollback", &*two), (3, "rollback", &*one), (2, "put_traffic", &*two), (1, "put_traffic", &*one)]
    );
    assert_eq!((history[0].actor.as_str(), history[0].reason.as_deref()), ("ann", Some("because")));
    assert_eq!(reader.history(&name("unknown")).unwrap(), []);
}

#[test]
fn the_audit_trail_is_selected_by_model_time_and_count() {
    let (_dir, mut writer, reader) = open_new();
    let times: Vec<Timestamp> = (0..6)
        .map(|n| writer.commit(put(if n % 2 == 0 { "even" } else { "odd" }, document(n + 1))).unwrap().ts)
        .collect();
    let ids = |query: &AuditQuery| reader.audit(query).unwrap().iter().map(|e| e.id).collect::<Vec<_>>();
    assert_eq!(ids(&all_events()), [6, 5, 4, 3, 2, 1]);
    assert_eq!(ids(&AuditQuery { limit: 2, ..all_events() }), [6, 5]);
    assert_eq!(ids(&AuditQuery { model: Some(name("odd")), ..all_events() }), [6, 4, 2]);
    assert_eq!(ids(&AuditQuery { since: Some(times[4]), ..all_events() }), [6, 5]);
    assert_eq!(ids(&AuditQuery { model: Some(name("even")), since: Some(times[2]), limit: 1 }), [5]);
    let event = reader.audit(&AuditQuery { limit: 1, ..all_events() }).unwrap().remove(0);
    assert_eq!((event.ts, event.model, event.reason.as_deref()), (times[5], Some(name("odd")), Some("because")));
    assert_eq!((event.before.as_deref(), event.after.as_deref()), (Some(r#"{"was":1}"#), Some(r#"{"is":2}"#)));
}

#[test]
fn other_bytes_of_a_version_write_an_event_and_the_same_bytes_write_none() {
    let (_dir, mut writer, reader) = open_new();
    let record = |writer: &mut LedgerWriter, sha256: &str, bytes| {
        let effect = Effect::RecordArtifact { version: version(1), sha256: sha256.to_owned(), bytes };
        let bare = Change { before: None, after: None, ..change("m", Action::ReplaceArtifact, effect) };
        writer.commit(bare).unwrap()
    };
    let first = record(&mut writer, "aa", 1);
    assert_eq!(record(&mut writer, "aa", 1).event_id, None);
    assert_eq!(writer.load().unwrap()[0].artifacts[&version(1)].first_ready_at, first.ts, "the first time is kept");
    assert_eq!(record(&mut writer, "bb", 2).event_id, Some(1));
    let event = reader.audit(&all_events()).unwrap().remove(0);
    assert_eq!(event.before.as_deref(), Some(r#"{"version":"1","sha256":"aa","bytes":1}"#));
    assert_eq!(event.after.as_deref(), Some(r#"{"version":"1","sha256":"bb","bytes":2}"#));
    assert_eq!(writer.load().unwrap()[0].artifacts[&version(1)].sha256, "bb");
}

#[test]
fn text_that_is_not_json_is_refused_and_changes_nothing() {
    let (_dir, mut writer, reader) = open_new();
    let refused = writer.commit(put("m", "{\"split\":".into())).unwrap_err().to_string();
    assert!(refused.starts_with("the traffic document is not JSON: "), "{refused}");
    let after = Change { after: Some("nothing".into()), ..put("m", document(1)) };
    assert!(writer.commit(after).unwrap_err().to_string().starts_with("`after` of the change is not JSON"));
    assert_eq!((writer.load().unwrap(), reader.audit(&all_events()).unwrap()), (vec![], vec![]));
}

#[test]
fn a_rollout_is_stored_with_its_document_or_not_at_all() {
    let (dir, mut writer, reader) = open_new();
    let step = |state: &str, document: Option<String>| {
        let document = document.map(|document| NewDocument { document, highest_served: Some(version(2)) });
        change("m", Action::RolloutStep, Effect::SetRollout { state: state.to_owned(), document })
    };
    assert_eq!(writer.commit(step(r#"{"step":0}"#, Some(document(2)))).unwrap().revision, 1);
    assert_eq!(writer.commit(step(r#"{"step":0,"paused":true}"#, None)).unwrap().revision, 1, "no new document");
    assert!(writer.commit(step(r#"{"step":1}"#, Some("no json".to_owned()))).is_err());
    assert!(writer.commit(step("no json", Some(document(3)))).is_err());
    drop((writer, reader));
    let (writer, reader) = open(dir.path()).unwrap();
    assert_eq!(reader.rollouts().unwrap(), [(name("m"), r#"{"step":0,"paused":true}"#.to_owned())]);
    let stored = &writer.load().unwrap()[0];
    assert_eq!((stored.revision, stored.document.as_deref()), (1, Some(document(2).as_str())));
    assert_eq!(stored.highest_served, Some(version(2)));
    let actions: Vec<String> = reader.audit(&all_events()).unwrap().into_iter().map(|e| e.action).collect();
    assert_eq!(actions, ["rollout_step", "rollout_step"]);
}

#[test]
fn a_rollback_skips_the_steps_of_a_rollout() {
    let (_dir, mut writer, reader) = open_new();
    let step = |action, n| {
        let document = Some(NewDocument { document: document(n), highest_served: None });
        change("m", action, Effect::SetRollout { state: "{}".to_owned(), document })
    };
    let previous = || reader.previous_document(&name("m")).unwrap().map(|revision| revision.document);
    writer.commit(put("m", document(1))).unwrap();
    writer.commit(put("m", document(2))).unwrap();
    for (action, n) in [(Action::RolloutStart, 10), (Action::RolloutStep, 11)] {
        writer.commit(step(action, n)).unwrap();
        assert_eq!(previous(), Some(document(2)), "every step goes back to the document before the rollout");
    }
    writer.commit(step(Action::RolloutTakeBack, 2)).unwrap();
    assert_eq!(previous(), Some(document(1)), "an aborted rollout is not a change to go back over");
    let action = writer.last_change(&name("m")).unwrap();
    assert_eq!(action.as_deref(), Some(Action::RolloutTakeBack.as_str()), "it is undone already");
    let at = |revision| writer.document_at(&name("m"), revision).unwrap().map(|revision| revision.document);
    assert_eq!((at(4), at(5), at(6), at(0)), (Some(document(11)), Some(document(2)), None, None));
    assert_eq!((at(u64::MAX), writer.last_change(&name("unknown")).unwrap()), (None, None));
    writer.commit(change("m", Action::Rollback, put("m", document(1)).effect)).unwrap();
    assert_eq!(previous(), Some(document(2)), "two rollbacks cancel each other");
    writer.commit(step(Action::RolloutStart, 20)).unwrap();
    writer.commit(step(Action::RolloutFinish, 21)).unwrap();
    assert_eq!(previous(), Some(document(1)), "a finished rollout goes back to the document before it");
}

#[test]
fn an_older_database_is_migrated() {
    let dir = tempfile::tempdir().unwrap();
    let old = rusqlite::Connection::open(dir.path().join("ledger.sqlite3")).unwrap();
    old.execute_batch(super::open::MIGRATIONS[0]).unwrap();
    old.execute_batch("INSERT INTO models (model, revision) VALUES ('m', 0); PRAGMA user_version = 1;").unwrap();
    drop(old);
    let (mut writer, reader) = open(dir.path()).unwrap();
    assert_eq!(writer.load().unwrap()[0].model, name("m"));
    assert_eq!(reader.rollouts().unwrap(), []);
    writer
        .commit(change("m", Action::RolloutStop, Effect::SetRollout { state: "{}".to_owned(), document: None }))
        .unwrap();
    assert_eq!(reader.rollouts().unwrap().len(), 1);
}

#[test]
fn a_second_server_is_refused_until_the_first_one_ends() {
    let (dir, writer, reader) = open_new();
    let refused = open(dir.path()).unwrap_err().to_string();
    let expected = format!("is in use by another server (process {})", std::process::id());
    assert!(refused.contains(&expected), "{refused}");
    drop(writer);
    assert!(open(dir.path()).is_ok(), "readers do not hold the lock");
    assert_eq!(reader.audit(&all_events()).unwrap(), []);
}

#[test]
fn a_newer_schema_is_refused_and_not_changed() {
    let (dir, writer, reader) = open_new();
    writer.connection().pragma_update(None, "user_version", 99).unwrap();
    drop((writer, reader));
    let refused = open(dir.path()).unwrap_err().to_string();
    assert!(
        refused.contains("written by a newer sluicegate: its schema version is 99, this program supports up to 8"),
        "{refused}"
    );
    let connection = rusqlite::Connection::open(dir.path().join("ledger.sqlite3")).unwrap();
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, 99);
}

#[test]
fn a_full_disk_refuses_the_change_and_a_later_one_that_fits_is_stored() {
    let (_dir, mut writer, reader) = open_new();
    writer.commit(put("m", document(1))).unwrap();
    let pages: i64 = writer.connection().pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    let limit = |writer: &LedgerWriter, pages: i64| {
        writer.connection().pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
    };
    limit(&writer, pages);
    let large = format!("\"{}\"", "x".repeat(1 << 20));
    let refused = writer.commit(put("m", large.clone())).unwrap_err();
    assert!(matches!(refused, LedgerError::Full { .. }), "{refused:?}");
    assert!(refused.to_string().contains("nothing was changed: free some space"), "{refused}");
    assert_eq!(writer.load().unwrap()[0].revision, 1);
    assert_eq!(reader.audit(&all_events()).unwrap().len(), 1, "the event was rolled back with the change");
    limit(&writer, 1_000_000);
    assert_eq!(writer.commit(put("m", large)).unwrap().revision, 2, "no revision was skipped");
}

#[test]
fn unusable_files_are_reported_in_words() {
    let (_dir, mut writer, _reader) = open_new();
    writer.connection().pragma_update(None, "query_only", true).unwrap();
    let refused = writer.commit(put("m", document(1))).unwrap_err();
    assert!(matches!(refused, LedgerError::ReadOnly { .. }), "{refused:?}");

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let refused = open(&dir.path().join("file/data")).unwrap_err().to_string();
    assert!(refused.starts_with("cannot use the data directory "), "{refused}");

    std::fs::write(
        dir.path().join("ledger.sqlite3"),
        "not a database at all, but as long as a header has to be".repeat(9),
    )
    .unwrap();
    let refused = open(dir.path()).unwrap_err();
    assert!(matches!(refused, LedgerError::Damaged { .. }), "{refused:?}");

    let (dir, mut writer, reader) = open_new();
    writer.commit(put("m", document(1))).unwrap();
    writer.connection().execute("UPDATE events SET ts = 'yesterday'", []).unwrap();
    let damaged = reader.audit(&all_events()).unwrap_err();
    assert!(matches!(damaged, LedgerError::Damaged { .. }), "{damaged:?} in {}", dir.path().display());
}

#[test]
fn a_change_is_refused_when_the_data_directory_was_removed_or_replaced() {
    type Break = fn(&Path);
    let cases: [(&str, Break); 6] = [
        ("removed", |dir| std::fs::remove_dir_all(dir).unwrap()),
        ("removed and made again", |dir| {
            std::fs::remove_dir_all(dir).unwrap();
            std::fs::create_dir(dir).unwrap();
        }),
        ("moved away", |dir| std::fs::rename(dir, dir.with_extension("old")).unwrap()),
        ("replaced by a copy", |dir| {
            let old = dir.with_extension("old");
            std::fs::rename(dir, &old).unwrap();
            std::fs::create_dir(dir).unwrap();
            for entry in std::fs::read_dir(&old).unwrap() {
                let path = entry.unwrap().path();
                std::fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
            }
        }),
        ("without its write-ahead log", |dir| std::fs::remove_file(dir.join("ledger.sqlite3-wal")).unwrap()),
        ("without its lock file", |dir| std::fs::remove_file(dir.join("lock")).unwrap()),
    ];
    for (what, break_it) in cases {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        let (mut writer, _reader) = open(&dir).unwrap();
        writer.commit(put("m", document(1))).unwrap();
        break_it(&dir);
        let refused = writer.commit(put("m", document(2))).unwrap_err();
        assert!(matches!(refused, LedgerError::Replaced { .. }), "{what}: {refused:?}");
        assert!(refused.to_string().contains("nothing was changed"), "{what}: {refused}");
    }
}

#[test]
fn a_data_directory_that_is_put_back_takes_changes_again() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, aside) = (parent.path().join("data"), parent.path().join("aside"));
    let (mut writer, _reader) = open(&dir).unwrap();
    std::fs::rename(&dir, &aside).unwrap();
    writer.commit(put("m", document(1))).unwrap_err();
    std::fs::rename(&aside, &dir).unwrap();
    assert_eq!(writer.commit(put("m", document(2))).unwrap().revision, 1, "the refused change left no revision");
}

#[test]
fn one_unreadable_value_does_not_hide_the_rest() {
    let (_dir, mut writer, reader) = open_new();
    for model in ["bad", "good", "nameless"] {
        writer.commit(put(model, document(1))).unwrap();
        let effect = Effect::SetRollout { state: "{}".to_owned(), document: None };
        writer.commit(change(model, Action::RolloutStart, effect)).unwrap();
        let unload = Effect::SetOperatorUnloaded { version: version(7), unloaded: true };
        writer.commit(change(model, Action::Unload, unload)).unwrap();
    }
    let sql = "PRAGMA foreign_keys = OFF;
        UPDATE models SET highest_served = 'newest' WHERE model = 'bad';
        INSERT INTO operator_unloaded VALUES ('bad', 'oldest');
        INSERT INTO artifacts VALUES ('bad', '7', 'ab', 1, 'yesterday');
        UPDATE documents SET document = CAST(x'ff' AS TEXT) WHERE model = 'bad';
        UPDATE models SET model = '///' WHERE model = 'nameless';
        UPDATE rollouts SET model = '///' WHERE model = 'nameless';";
    writer.connection().execute_batch(sql).unwrap();
    let states = writer.load().unwrap();
    let names: Vec<&str> = states.iter().map(|state| state.model.as_str()).collect();
    assert_eq!(names, ["bad", "good"]);
    let (bad, good) = (&states[0], &states[1]);
    let complaint = bad.unreadable.as_deref().unwrap();
    for part in ["highest_served", "operator_unloaded", "artifacts", "document"] {
        assert!(complaint.contains(part), "{part} in {complaint}");
    }
    assert_eq!((bad.revision, &bad.document, &bad.operator_unloaded), (1, &None, &BTreeSet::from([version(7)])));
    assert_eq!((good.unreadable.as_ref(), good.document.as_ref()), (None, Some(&document(1))));
    assert_eq!(reader.rollouts().unwrap().len(), 2, "the rollouts of other models are still there");

    let effect = Effect::SetDocument { document: document(2), highest_served: Some(version(2)), auto_promoted: None };
    writer.commit(change("bad", Action::PutTraffic, effect)).unwrap();
    let repaired = writer.load().unwrap().remove(0);
    assert_eq!((repaired.document, repaired.highest_served), (Some(document(2)), Some(version(2))));
}

#[test]
fn readers_see_only_whole_changes() {
    let (_dir, mut writer, reader) = open_new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (reader, done) = (reader.clone(), &done);
            scope.spawn(move || {
                let mut seen = 0;
                while !done.load(Ordering::Acquire) {
                    let history = reader.history(&name("m")).unwrap();
                    let revisions: Vec<u64> = history.iter().map(|e| e.revision).collect();
                    let newest = history.len() as u64;
                    assert_eq!(revisions, (1..=newest).rev().collect::<Vec<_>>(), "no gap");
                    assert!(
                        history.iter().all(|e| e.document == document(e.revision)),
                        "each revision has its own document"
                    );
                    assert!(newest >= seen, "no entry disappears");
                    seen = newest;
                }
                assert_eq!(reader.history(&name("m")).unwrap().len(), 200);
            });
        }
        for n in 1..=200 {
            writer.commit(put("m", document(n))).unwrap();
        }
        done.store(true, Ordering::Release);
    });
}

/// The directory in which the child process of the test below writes. Without it, the child does nothing.
const CRASH_DIR: &str = "SLUICEGATE_TEST_CRASH_DIR";

#[test]
#[ignore = "the child process of a_kill_at_any_moment_loses_nothing_acknowledged"]
fn crash_child() {
    let Some(dir) = std::env::var_os(CRASH_DIR) else { return };
    let (mut writer, _reader) = open(Path::new(&dir)).unwrap();
    let mut out = std::io::stdout();
    loop {
        let next = writer.load().unwrap().first().map_or(1, |m| m.revision + 1);
        let done = writer.commit(put("m", document(next))).unwrap();
        writeln!(out, "ack {} {}", done.revision, done.event_id.unwrap()).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn a_kill_at_any_moment_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut least = 0;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ledger::tests::crash_child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(CRASH_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = 0;
        let mut seen = 0;
        for line in lines {
            // Lines that were written before the kill count too.
            let line = line.unwrap();
            if let Some(rest) = line.strip_prefix("ack ") {
                acknowledged = rest.split(' ').next().unwrap().parse().unwrap();
                seen += 1;
                if seen == 5 + 7 * round {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(acknowledged > least, "the child continued where the one before it was killed");
        let (writer, reader) = open(dir.path()).unwrap();
        let stored = writer.load().unwrap()[0].revision;
        let at_most_one_more = stored == acknowledged || stored == acknowledged + 1;
        assert!(at_most_one_more, "{acknowledged} were acknowledged and {stored} are stored");
        let history = reader.history(&name("m")).unwrap();
        assert_eq!(history.len() as u64, stored);
        assert!(history.iter().all(|e| e.document == document(e.revision)));
        assert_eq!(reader.audit(&all_events()).unwrap().len() as u64, stored, "each change has its event");
        let verified = reader.verify(Heads::default()).unwrap();
        let only_documents = verified.problems.iter().all(|p| p.kind == ProblemKind::Document);
        assert!(only_documents, "the chain is whole after a kill: {verified:?}");
        least = stored;
    }
}

#[derive(Debug, Clone)]
enum Op {
    Put { n: u64, promote: bool },
    Rollback,
    UnloadModel(bool),
    Unload(u64, bool),
    Artifact(u64, bool),
    Audit,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let n = 1..12_u64;
    prop_oneof![
        4 => (n.clone(), any::<bool>()).prop_map(|(n, promote)| Op::Put { n, promote }),
        3 => Just(Op::Rollback),
        1 => any::<bool>().prop_map(Op::UnloadModel),
        1 => (n.clone(), any::<bool>()).prop_map(|(n, b)| Op::Unload(n, b)),
        1 => (n, any::<bool>()).prop_map(|(n, b)| Op::Artifact(n, b)),
        1 => Just(Op::Audit),
        1 => Just(Op::Reopen),
    ]
}

/// What the ledger should store about one model.
#[derive(Debug, Default)]
struct Expected {
    documents: Vec<String>,
    unloaded: bool,
    highest_served: Option<Version>,
    operator_unloaded: BTreeSet<Version>,
    auto_promoted: BTreeSet<Version>,
    sha256: BTreeMap<Version, String>,
    events: usize,
}

impl Expected {
    /// Applies an operation here, and returns the change to commit. `None`: nothing to commit.
    fn apply(&mut self, op: &Op) -> Option<Change> {
        let mut audited = true;
        let change = match op {
            Op::Reopen => return None,
            Op::Audit => change("m", Action::Push, Effect::None),
            Op::Put { n, promote } => {
                let v = version(*n);
                self.documents.push(document(*n));
                self.highest_served = self.highest_served.max(Some(v));
                self.auto_promoted.extend(promote.then_some(v));
                let auto_promoted = promote.then_some(v);
                let effect = Effect::SetDocument { document: document(*n), highest_served: Some(v), auto_promoted };
                change("m", Action::PutTraffic, effect)
            }
            Op::Rollback => {
                let previous = self.documents.iter().rev().nth(1)?.clone();
                self.documents.push(previous.clone());
                Change { action: Action::Rollback, ..put("m", previous) }
            }
            Op::UnloadModel(unloaded) => {
                self.unloaded = *unloaded;
                change("m", Action::UnloadModel, Effect::SetModelUnloaded(*unloaded))
            }
            Op::Unload(n, unloaded) => {
                let version = version(*n);
                if *unloaded {
                    self.operator_unloaded.insert(version);
                } else {
                    self.operator_unloaded.remove(&version);
                }
                change("m", Action::Unload, Effect::SetOperatorUnloaded { version, unloaded: *unloaded })
            }
            Op::Artifact(n, other) => {
                let (version, sha256) = (version(*n), other.to_string());
                let before = self.sha256.insert(version, sha256.clone());
                audited = before.is_some_and(|b| b != sha256);
                change("m", Action::ReplaceArtifact, Effect::RecordArtifact { version, sha256, bytes: *n })
            }
        };
        self.events += usize::from(audited);
        Some(change)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_sequence_of_changes_matches_a_model_in_memory(ops in proptest::collection::vec(op(), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = open(dir.path()).unwrap();
        let mut expected = Expected::default();
        let mut models = 0;
        for op in ops.iter().chain([&Op::Reopen]) {
            if matches!(op, Op::Rollback) {
                let previous = ledger.0.previous_document(&name("m")).unwrap().map(|r| r.document);
                prop_assert_eq!(previous.as_ref(), expected.documents.iter().rev().nth(1));
            }
            if let Some(change) = expected.apply(op) {
                models = models.max(usize::from(change.effect != Effect::None));
                let done = ledger.0.commit(change).unwrap();
                prop_assert_eq!(done.revision, expected.documents.len() as u64);
            } else if matches!(op, Op::Reopen) {
                drop(ledger);
                ledger = open(dir.path()).unwrap();
            }
        }
        let states = ledger.0.load().unwrap();
        prop_assert_eq!(states.len(), models);
        if let Some(state) = states.into_iter().next() {
            prop_assert_eq!(state.revision, expected.documents.len() as u64);
            prop_assert_eq!(state.document.as_ref(), expected.documents.last());
            prop_assert_eq!(state.unloaded, expected.unloaded);
            prop_assert_eq!(state.highest_served, expected.highest_served);
            prop_assert_eq!(state.operator_unloaded, expected.operator_unloaded);
            prop_assert_eq!(state.auto_promoted, expected.auto_promoted);
            let sha256: BTreeMap<Version, String> = state.artifacts.into_iter().map(|(v, a)| (v, a.sha256)).collect();
            prop_assert_eq!(sha256, expected.sha256);
        }
        let history = ledger.1.history(&name("m")).unwrap();
        let documents: Vec<String> = history.into_iter().rev().map(|e| e.document).collect();
        prop_assert_eq!(documents, expected.documents);
        prop_assert_eq!(ledger.1.audit(&all_events()).unwrap().len(), expected.events);
    }
}

fn stored_token(name: &str, byte: u8) -> StoredToken {
    StoredToken {
        name: name.to_owned(),
        hash: [byte; 32],
        role: "operator".to_owned(),
        models: "fraud-*,iris".to_owned(),
        created_at: "2026-11-28T09:00:00.123456Z".parse().unwrap(),
        created_by: "root".to_owned(),
        expires_at: Some("2027-11-28T09:00:00Z".parse().unwrap()),
        last_used: None,
        shared: false,
    }
}

fn token_change(effect: TokenEffect) -> TokenChange {
    TokenChange { actor: "root".to_owned(), reason: None, effect }
}

#[test]
fn tokens_are_stored_with_their_events_and_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open(dir.path()).unwrap();
    let (anna, bob) = (stored_token("anna", 1), stored_token("bob", 2));
    let create = |token: &StoredToken| token_change(TokenEffect::Create(Box::new(token.clone())));
    assert!(writer.commit_token(&create(&bob)).unwrap() && writer.commit_token(&create(&anna)).unwrap());
    assert!(!writer.commit_token(&create(&stored_token("anna", 3))).unwrap(), "the name is taken");
    let used: Timestamp = "2026-11-28T10:00:00Z".parse().unwrap();
    writer.store_token_uses(&[("anna".to_owned(), used), ("nobody".to_owned(), used)]).unwrap();
    writer.store_token_uses(&[("anna".to_owned(), "2026-11-28T09:30:00Z".parse().unwrap())]).unwrap();
    let anna = StoredToken { last_used: Some(used), ..anna };
    assert_eq!(reader.tokens().unwrap(), [anna.clone(), bob], "an earlier use changes nothing");
    drop((writer, reader));

    let (mut writer, reader) = open(dir.path()).unwrap();
    let revoke = |name: &str| token_change(TokenEffect::Revoke { name: name.to_owned() });
    assert!(writer.commit_token(&revoke("bob")).unwrap() && !writer.commit_token(&revoke("bob")).unwrap());
    assert_eq!(reader.tokens().unwrap(), [anna]);
    let events = reader.audit(&all_events()).unwrap();
    let actions: Vec<(&str, Option<&ModelName>)> =
        events.iter().map(|e| (e.action.as_str(), e.model.as_ref())).collect();
    assert_eq!(actions, [("token_revoke", None), ("token_create", None), ("token_create", None)]);
    let shown = format!("{events:?}");
    assert!(
        shown.contains("fraud-*") && !shown.contains("010101"),
        "events have the role and models, and no hash: {shown}"
    );
    let damaged = "UPDATE tokens SET created_at = 'yesterday'";
    writer.connection().execute_batch(damaged).unwrap();
    assert_eq!(reader.tokens().unwrap(), [], "a token that cannot be read is left out");
    assert!(writer.commit_token(&revoke("anna")).unwrap(), "and can be removed");
}

#[test]
fn a_state_of_another_gateway_is_stored_as_a_whole_with_who_did_what_there() {
    let (dir, mut writer, reader) = open_new();
    writer.commit(Change { before: None, after: Some(document(1)), ..put("m", document(1)) }).unwrap();
    let stored = |writer: &LedgerWriter| SharedModel::of(&writer.load().unwrap()[0]);
    let (v1, v2): (Version, Version) = ("1".parse().unwrap(), "2".parse().unwrap());
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let (approved_at, retired_at) = (at("2026-11-01T00:00:00.000001Z"), at("2026-11-02T00:00:00Z"));
    let follow = |made_by: &str| Replaced {
        model: name("m"),
        actor: "anna".to_owned(),
        action: Action::Follow,
        reason: Some("promote on b".to_owned()),
        made_by: Some(made_by.to_owned()),
    };
    let review = Review {
        artifact: "ab".to_owned(),
        approved: true,
        actor: "ben".to_owned(),
        ts: approved_at,
        reason: "looked".to_owned(),
    };
    let next = SharedModel {
        document: Some(document(2)),
        highest_served: Some(v2),
        operator_unloaded: [v1].into(),
        auto_promoted: [v2].into(),
        reviews: [(v2, review.clone())].into(),
        proposers: [(v2, ["carol".to_owned()].into())].into(),
        ..SharedModel::default()
    };
    let committed = writer.commit(stored(&writer).replaced_by(next.clone(), follow("promote"))).unwrap();
    assert_eq!((committed.revision, stored(&writer)), (2, next.clone()));
    let newest = &reader.history(&name("m")).unwrap()[0];
    assert_eq!((newest.action.as_str(), newest.actor.as_str()), ("promote", "anna"), "as on the gateway that made it");
    assert_eq!(writer.last_change(&name("m")).unwrap().as_deref(), Some("promote"));
    // The steps of a rollout of another gateway are one change, as here.
    let step = SharedModel { document: Some(document(3)), ..next.clone() };
    writer.commit(stored(&writer).replaced_by(step, follow("rollout_step"))).unwrap();
    assert_eq!(writer.previous_document(&name("m")).unwrap(), Some(Revision { revision: 2, document: document(2) }));

    // Nothing but the marks: no new revision. A retirement has the document once more.
    let unloaded = SharedModel { unloaded: true, operator_unloaded: BTreeSet::new(), ..stored(&writer) };
    assert_eq!(
        writer.commit(stored(&writer).replaced_by(unloaded.clone(), follow("unload_model"))).unwrap().revision,
        3
    );
    assert_eq!(stored(&writer), unloaded);
    let retired = Retirement { ts: retired_at, actor: "ben".to_owned(), reason: "old".to_owned() };
    let retired = SharedModel { unloaded: false, retired: Some(retired), reviews: BTreeMap::new(), ..unloaded };
    assert_eq!(writer.commit(stored(&writer).replaced_by(retired.clone(), follow("retire"))).unwrap().revision, 4);
    assert_eq!(stored(&writer), retired, "with the time, the actor and the reason of the other gateway");
    let back = SharedModel { retired: None, reviews: [(v2, review)].into(), ..retired };
    writer.commit(stored(&writer).replaced_by(back.clone(), follow("promote"))).unwrap();
    // Who pushed a version is never forgotten.
    let fewer = SharedModel { proposers: BTreeMap::new(), highest_served: None, ..back.clone() };
    writer.commit(stored(&writer).replaced_by(fewer, follow("load"))).unwrap();
    assert_eq!(stored(&writer), back);
    drop((writer, reader));
    let verified = open_for_reading(dir.path()).unwrap().verify(Heads::default()).unwrap();
    assert!(verified.ok, "{:?}", verified.problems);

    // A review that the event does not have is found.
    let tampered = rusqlite::Connection::open(dir.path().join("ledger.sqlite3")).unwrap();
    tampered.execute_batch("UPDATE reviews SET artifact = 'cd';").unwrap();
    assert!(!open_for_reading(dir.path()).unwrap().verify(Heads::default()).unwrap().ok);
}

#[test]
fn a_token_of_another_gateway_replaces_one_of_its_name() {
    let (dir, mut writer, reader) = open_new();
    let change = |effect| TokenChange { actor: "ann".to_owned(), reason: Some("made on b".to_owned()), effect };
    let own = stored_token("ci", 1);
    assert!(writer.commit_token(&change(TokenEffect::Create(Box::new(own.clone())))).unwrap());
    assert_eq!((writer.token_is_shared("ci").unwrap(), writer.token_is_shared("no").unwrap()), (Some(false), None));
    let theirs = StoredToken { shared: true, ..stored_token("ci", 2) };
    let follow = change(TokenEffect::Follow(Box::new(theirs.clone())));
    assert!(writer.commit_token(&follow).unwrap());
    assert!(!writer.commit_token(&follow).unwrap(), "twice is once");
    assert_eq!((reader.tokens().unwrap(), writer.token_is_shared("ci").unwrap()), (vec![theirs.clone()], Some(true)));
    // As it is written into a bucket and read again.
    let json = serde_json::to_string(&theirs).unwrap();
    let read = StoredToken { shared: true, ..serde_json::from_str(&json).unwrap() };
    assert!(!writer.commit_token(&change(TokenEffect::Follow(Box::new(read)))).unwrap(), "{json}");
    assert!(reader.verify(Heads::default()).unwrap().ok);
    drop((dir, writer));
}

#[test]
fn a_document_is_the_one_of_its_event_whatever_else_the_event_says() {
    let (dir, mut writer, reader) = open_new();
    for (n, beside) in (1..).zip([r#""gates":[]"#, r#""break_glass":["2"]"#, r#""quorum":0.5"#, r#""state":{}"#]) {
        let after = format!(r#"{{"split":[{{"version":"{n}","weight":1}}],{beside}}}"#);
        writer.commit(Change { after: Some(after), before: None, ..put("m", document(n)) }).unwrap();
    }
    drop((writer, reader));
    let verify = || open_for_reading(dir.path()).unwrap().verify(Heads::default()).unwrap();
    assert!(verify().ok, "{:?}", verify().problems);
    let tampered = rusqlite::Connection::open(dir.path().join("ledger.sqlite3")).unwrap();
    tampered.execute("UPDATE documents SET document = ?1 WHERE revision = 2", [document(9)]).unwrap();
    assert_eq!(verify().problem_count, 1);
}
