use super::*;
use proptest::prelude::*;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

fn version(n: u64) -> Version {
    n.to_string().parse().unwrap()
}

fn document(n: u64) -> String {
    format!(r#"{{"split":[{{"version":"{n}","weight":1}}]}}"#)
}

fn change(model: &str, action: Action, effect: Effect) -> Change {
    let (before, after) = (Some(r#"{"was":1}"#.to_owned()), Some(r#"{"is":2}"#.to_owned()));
    Change { model: name(model), actor: "ann".into(), action, reason: Some("because".into()), before, after, effect }
}

fn put(model: &str, document: String) -> Change {
    change(model, Action::PutTraffic, Effect::SetDocument { document, highest_served: None, auto_promoted: None })
}

fn everything() -> AuditQuery {
    AuditQuery { model: None, since: None, limit: usize::MAX }
}

fn new() -> (TempDir, LedgerWriter, LedgerReader) {
    let dir = tempfile::tempdir().unwrap();
    let (writer, reader) = open(dir.path()).unwrap();
    (dir, writer, reader)
}

#[test]
fn what_was_kept_is_there_after_a_reopen() {
    let (dir, mut writer, reader) = new();
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
    assert_eq!(recorded.event_id, None, "the first artifact is no news");
    writer.commit(change("other", Action::UnloadModel, Effect::SetTakenOut(true))).unwrap();
    let pushed = writer.commit(change("third", Action::Push, Effect::None)).unwrap();
    assert_eq!((pushed.revision, pushed.event_id), (0, Some(5)));
    drop((writer, reader));
    let log = std::fs::metadata(dir.path().join("ledger.sqlite3-wal")).map_or(0, |m| m.len());
    assert_eq!(log, 0, "after a clean stop one file holds everything");

    let (writer, reader) = open(dir.path()).unwrap();
    let states = writer.load().unwrap();
    let fraud = ModelState {
        model: name("fraud"),
        revision: 2,
        document: Some(document(1)),
        taken_out: false,
        highest_served: Some(v10),
        operator_unloaded: BTreeSet::from([v9]),
        auto_promoted: BTreeSet::from([v9]),
        artifacts: BTreeMap::from([(v9, Artifact { sha256: "ab".into(), bytes: 7, first_ready_at: recorded.ts })]),
    };
    let other = ModelState {
        model: name("other"),
        revision: 0,
        document: None,
        taken_out: true,
        highest_served: None,
        operator_unloaded: BTreeSet::new(),
        auto_promoted: BTreeSet::new(),
        artifacts: BTreeMap::new(),
    };
    assert_eq!(states, [fraud, other], "what an event alone names is no model");
    let actions: Vec<String> = reader.audit(&everything()).unwrap().into_iter().map(|e| e.action).collect();
    assert_eq!(actions, ["push", "unload_model", "unload", "auto_promote", "first_document"], "newest first");
}

#[test]
fn a_rollback_twice_is_back_where_it_began() {
    let (_dir, mut writer, reader) = new();
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
    let told: Vec<(u64, &str, &str)> =
        history.iter().map(|e| (e.revision, e.action.as_str(), e.document.as_str())).collect();
    let (one, two) = (document(1), document(2));
    assert_eq!(
        told,
        [(4, "rollback", &*two), (3, "rollback", &*one), (2, "put_traffic", &*two), (1, "put_traffic", &*one)]
    );
    assert_eq!((history[0].actor.as_str(), history[0].reason.as_deref()), ("ann", Some("because")));
    assert_eq!(reader.history(&name("unknown")).unwrap(), []);
}

#[test]
fn the_audit_trail_is_asked_by_model_time_and_count() {
    let (_dir, mut writer, reader) = new();
    let times: Vec<Timestamp> = (0..6)
        .map(|n| writer.commit(put(if n % 2 == 0 { "even" } else { "odd" }, document(n + 1))).unwrap().ts)
        .collect();
    let ids = |query: &AuditQuery| reader.audit(query).unwrap().iter().map(|e| e.id).collect::<Vec<_>>();
    assert_eq!(ids(&everything()), [6, 5, 4, 3, 2, 1]);
    assert_eq!(ids(&AuditQuery { limit: 2, ..everything() }), [6, 5]);
    assert_eq!(ids(&AuditQuery { model: Some(name("odd")), ..everything() }), [6, 4, 2]);
    assert_eq!(ids(&AuditQuery { since: Some(times[4]), ..everything() }), [6, 5]);
    assert_eq!(ids(&AuditQuery { model: Some(name("even")), since: Some(times[2]), limit: 1 }), [5]);
    let event = reader.audit(&AuditQuery { limit: 1, ..everything() }).unwrap().remove(0);
    assert_eq!((event.ts, event.model, event.reason.as_deref()), (times[5], name("odd"), Some("because")));
    assert_eq!((event.before.as_deref(), event.after.as_deref()), (Some(r#"{"was":1}"#), Some(r#"{"is":2}"#)));
}

#[test]
fn other_bytes_of_a_version_leave_an_event_and_the_same_bytes_leave_nothing() {
    let (_dir, mut writer, reader) = new();
    let record = |writer: &mut LedgerWriter, sha256: &str, bytes| {
        let effect = Effect::RecordArtifact { version: version(1), sha256: sha256.to_owned(), bytes };
        let bare = Change { before: None, after: None, ..change("m", Action::ReplaceArtifact, effect) };
        writer.commit(bare).unwrap()
    };
    let first = record(&mut writer, "aa", 1);
    assert_eq!(record(&mut writer, "aa", 1).event_id, None);
    assert_eq!(writer.load().unwrap()[0].artifacts[&version(1)].first_ready_at, first.ts, "the first time stays");
    assert_eq!(record(&mut writer, "bb", 2).event_id, Some(1));
    let event = reader.audit(&everything()).unwrap().remove(0);
    assert_eq!(event.before.as_deref(), Some(r#"{"version":"1","sha256":"aa","bytes":1}"#));
    assert_eq!(event.after.as_deref(), Some(r#"{"version":"1","sha256":"bb","bytes":2}"#));
    assert_eq!(writer.load().unwrap()[0].artifacts[&version(1)].sha256, "bb");
}

#[test]
fn what_is_not_json_is_refused_and_changes_nothing() {
    let (_dir, mut writer, reader) = new();
    let refused = writer.commit(put("m", "{\"split\":".into())).unwrap_err().to_string();
    assert!(refused.starts_with("the traffic document is not JSON: "), "{refused}");
    let after = Change { after: Some("nothing".into()), ..put("m", document(1)) };
    assert!(writer.commit(after).unwrap_err().to_string().starts_with("`after` of the change is not JSON"));
    assert_eq!((writer.load().unwrap(), reader.audit(&everything()).unwrap()), (vec![], vec![]));
}

#[test]
fn a_rollout_is_kept_with_its_document_or_not_at_all() {
    let (dir, mut writer, reader) = new();
    let steer = |state: &str, document: Option<String>| {
        let document = document.map(|document| NewDocument { document, highest_served: Some(version(2)) });
        change("m", Action::RolloutStep, Effect::SetRollout { state: state.to_owned(), document })
    };
    assert_eq!(writer.commit(steer(r#"{"step":0}"#, Some(document(2)))).unwrap().revision, 1);
    assert_eq!(writer.commit(steer(r#"{"step":0,"paused":true}"#, None)).unwrap().revision, 1, "no new document");
    assert!(writer.commit(steer(r#"{"step":1}"#, Some("no json".to_owned()))).is_err());
    assert!(writer.commit(steer("no json", Some(document(3)))).is_err());
    drop((writer, reader));
    let (writer, reader) = open(dir.path()).unwrap();
    assert_eq!(reader.rollouts().unwrap(), [(name("m"), r#"{"step":0,"paused":true}"#.to_owned())]);
    let kept = &writer.load().unwrap()[0];
    assert_eq!((kept.revision, kept.document.as_deref()), (1, Some(document(2).as_str())));
    assert_eq!(kept.highest_served, Some(version(2)));
    let actions: Vec<String> = reader.audit(&everything()).unwrap().into_iter().map(|e| e.action).collect();
    assert_eq!(actions, ["rollout_step", "rollout_step"]);
}

#[test]
fn a_rollback_passes_over_the_steps_of_a_rollout() {
    let (_dir, mut writer, reader) = new();
    let steer = |action, n| {
        let document = Some(NewDocument { document: document(n), highest_served: None });
        change("m", action, Effect::SetRollout { state: "{}".to_owned(), document })
    };
    let previous = || reader.previous_document(&name("m")).unwrap().map(|revision| revision.document);
    writer.commit(put("m", document(1))).unwrap();
    writer.commit(put("m", document(2))).unwrap();
    for (action, n) in [(Action::RolloutStart, 10), (Action::RolloutStep, 11)] {
        writer.commit(steer(action, n)).unwrap();
        assert_eq!(previous(), Some(document(2)), "from any step to the document before the rollout");
    }
    writer.commit(steer(Action::RolloutTakeBack, 2)).unwrap();
    assert_eq!(previous(), Some(document(1)), "a rollout taken back is no change to go back over");
    writer.commit(change("m", Action::Rollback, put("m", document(1)).effect)).unwrap();
    assert_eq!(previous(), Some(document(2)), "and two rollbacks are none");
    writer.commit(steer(Action::RolloutStart, 20)).unwrap();
    writer.commit(steer(Action::RolloutFinish, 21)).unwrap();
    assert_eq!(previous(), Some(document(1)), "a finished rollout goes back to where it began");
}

#[test]
fn an_older_data_directory_is_brought_up_to_date() {
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
fn a_second_server_is_refused_until_the_first_is_gone() {
    let (dir, writer, reader) = new();
    let refused = open(dir.path()).unwrap_err().to_string();
    let expected = format!("is in use by another server (process {})", std::process::id());
    assert!(refused.contains(&expected), "{refused}");
    drop(writer);
    assert!(open(dir.path()).is_ok(), "readers keep nobody out");
    assert_eq!(reader.audit(&everything()).unwrap(), []);
}

#[test]
fn a_newer_schema_is_refused_and_left_as_it_is() {
    let (dir, writer, reader) = new();
    writer.connection().pragma_update(None, "user_version", 99).unwrap();
    drop((writer, reader));
    let refused = open(dir.path()).unwrap_err().to_string();
    assert!(refused.contains("written by a newer sluicegate: its schema is 99, this one knows up to 2"), "{refused}");
    let connection = rusqlite::Connection::open(dir.path().join("ledger.sqlite3")).unwrap();
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, 99);
}

#[test]
fn a_full_disk_refuses_the_change_in_words_and_the_next_one_that_fits_is_kept() {
    let (_dir, mut writer, reader) = new();
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
    assert_eq!(reader.audit(&everything()).unwrap().len(), 1, "the event went with the change");
    limit(&writer, 1_000_000);
    assert_eq!(writer.commit(put("m", large)).unwrap().revision, 2, "no revision was used up");
}

#[test]
fn what_cannot_be_used_is_said_in_words() {
    let (_dir, mut writer, _reader) = new();
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

    let (dir, mut writer, reader) = new();
    writer.commit(put("m", document(1))).unwrap();
    writer.connection().execute("UPDATE events SET ts = 'yesterday'", []).unwrap();
    let damaged = reader.audit(&everything()).unwrap_err();
    assert!(matches!(damaged, LedgerError::Damaged { .. }), "{damaged:?} in {}", dir.path().display());
}

#[test]
fn readers_see_whole_changes_while_they_are_made() {
    let (_dir, mut writer, reader) = new();
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
                    assert!(history.iter().all(|e| e.document == document(e.revision)), "each with its own document");
                    assert!(newest >= seen, "and nothing that was there goes");
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

/// Where the child process of the test below writes. Without it that child is no test.
const CRASH_DIR: &str = "SLUICEGATE_TEST_CRASH_DIR";

#[test]
#[ignore = "the child process of killed_at_any_moment_it_loses_nothing_acknowledged"]
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
fn killed_at_any_moment_it_loses_nothing_acknowledged() {
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
            // The rest of the pipe was written before the kill, and was promised too.
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
        assert!(acknowledged > least, "the child went on where the one before it was killed");
        let (writer, reader) = open(dir.path()).unwrap();
        let kept = writer.load().unwrap()[0].revision;
        let at_most_one_more = kept == acknowledged || kept == acknowledged + 1;
        assert!(at_most_one_more, "{acknowledged} were acknowledged and {kept} are kept");
        let history = reader.history(&name("m")).unwrap();
        assert_eq!(history.len() as u64, kept);
        assert!(history.iter().all(|e| e.document == document(e.revision)));
        assert_eq!(reader.audit(&everything()).unwrap().len() as u64, kept, "each change with its event");
        least = kept;
    }
}

#[derive(Debug, Clone)]
enum Op {
    Put { n: u64, promote: bool },
    Rollback,
    TakeOut(bool),
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
        1 => any::<bool>().prop_map(Op::TakeOut),
        1 => (n.clone(), any::<bool>()).prop_map(|(n, b)| Op::Unload(n, b)),
        1 => (n, any::<bool>()).prop_map(|(n, b)| Op::Artifact(n, b)),
        1 => Just(Op::Audit),
        1 => Just(Op::Reopen),
    ]
}

/// What the ledger should hold of one model.
#[derive(Debug, Default)]
struct Expected {
    documents: Vec<String>,
    taken_out: bool,
    highest_served: Option<Version>,
    operator_unloaded: BTreeSet<Version>,
    auto_promoted: BTreeSet<Version>,
    sha256: BTreeMap<Version, String>,
    events: usize,
}

impl Expected {
    /// What to commit for an operation, with its trace here. `None`: nothing to commit.
    fn take(&mut self, op: &Op) -> Option<Change> {
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
            Op::TakeOut(taken_out) => {
                self.taken_out = *taken_out;
                change("m", Action::UnloadModel, Effect::SetTakenOut(*taken_out))
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
    fn any_sequence_ends_as_the_model_in_memory_does(ops in proptest::collection::vec(op(), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = open(dir.path()).unwrap();
        let mut expected = Expected::default();
        let mut models = 0;
        for op in ops.iter().chain([&Op::Reopen]) {
            if matches!(op, Op::Rollback) {
                let previous = ledger.0.previous_document(&name("m")).unwrap().map(|r| r.document);
                prop_assert_eq!(previous.as_ref(), expected.documents.iter().rev().nth(1));
            }
            if let Some(change) = expected.take(op) {
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
            prop_assert_eq!(state.taken_out, expected.taken_out);
            prop_assert_eq!(state.highest_served, expected.highest_served);
            prop_assert_eq!(state.operator_unloaded, expected.operator_unloaded);
            prop_assert_eq!(state.auto_promoted, expected.auto_promoted);
            let sha256: BTreeMap<Version, String> = state.artifacts.into_iter().map(|(v, a)| (v, a.sha256)).collect();
            prop_assert_eq!(sha256, expected.sha256);
        }
        let history = ledger.1.history(&name("m")).unwrap();
        let documents: Vec<String> = history.into_iter().rev().map(|e| e.document).collect();
        prop_assert_eq!(documents, expected.documents);
        prop_assert_eq!(ledger.1.audit(&everything()).unwrap().len(), expected.events);
    }
}
