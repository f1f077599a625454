//! The hash chain: what a verification finds, in a database, in an export, and with heads from outside.

use super::chain::{EventHash, StoredEvent};
use super::tests::{all_events, change, document, name, open_new, put, version};
use super::*;
use proptest::prelude::*;
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// A change as the manager makes it: `after` is the document.
fn promote(model: &str, n: u64) -> Change {
    let document = document(n);
    Change { after: Some(document.clone()), ..put(model, document) }
}

fn note(reason: &str) -> Note {
    let (actor, action) = ("ann".to_owned(), Action::Retention);
    Note { model: None, actor, action, reason: Some(reason.to_owned()), before: None, after: None }
}

fn write_notes(writer: &mut LedgerWriter, count: usize) {
    for _ in 0..count {
        writer.note(note("x")).unwrap();
    }
}

/// Changes the database as an attacker with the `sqlite3` tool would.
fn tamper(dir: &Path, sql: &str) {
    let connection = Connection::open(dir.join("ledger.sqlite3")).unwrap();
    connection.execute_batch(&format!("PRAGMA foreign_keys = OFF; {sql}")).unwrap();
}

fn verify(dir: &Path) -> Verified {
    open_for_reading(dir).unwrap().verify(Heads::default()).unwrap()
}

fn verify_with(dir: &Path, heads: &[Head]) -> Verified {
    let lines: Vec<String> = heads.iter().map(|head| serde_json::to_string(head).unwrap()).collect();
    let heads = Heads::read(lines.join("\n").as_bytes()).unwrap();
    open_for_reading(dir).unwrap().verify(heads).unwrap()
}

#[track_caller]
fn found(verified: &Verified, kind: ProblemKind, event: u64) {
    assert!(!verified.ok);
    let named = verified.problems.iter().any(|p| p.kind == kind && p.event == Some(event));
    assert!(named, "{kind:?} of event {event} is not in {:#?}", verified.problems);
}

/// Writes the hashes of all events again, from this one on.
fn rechain(dir: &Path, from: u64) {
    let connection = Connection::open(dir.join("ledger.sqlite3")).unwrap();
    let chain: String = connection.query_row("SELECT chain FROM chain", [], |row| row.get(0)).unwrap();
    let mut events: Vec<StoredEvent> = Vec::new();
    rows::each_event(&connection, 0, usize::MAX, |event| {
        events.push(event);
        true
    })
    .unwrap();
    let mut previous = EventHash::first(&chain);
    for event in &mut events {
        if event.id >= from {
            event.previous = Some(previous);
            event.hash = event.computed();
            let (previous, hash) = (event.previous.unwrap().to_string(), event.hash.unwrap().to_string());
            connection
                .execute(
                    "UPDATE events SET previous = ?2, hash = ?3 WHERE id = ?1",
                    rusqlite::params![event.id.cast_signed(), previous, hash],
                )
                .unwrap();
        }
        previous = event.hash.unwrap();
    }
}

#[test]
fn the_hash_of_an_event_is_the_documented_one() {
    // Computed with the program in docs/AUDIT.md.
    let first = EventHash::first("0199a2f4-7a11-7cc0-9d5e-0b8f6a5e2c11");
    assert_eq!(first.to_string(), "784cfb8d84ea74805235f7bf29a39a5afbd47af228952cfe1b4938c84dd2d8c3");
    let texts = ["2026-11-28T09:00:00.000000Z", "zoë", "promote", "iris"].map(|text| Some(text.as_bytes()));
    let [ts, actor, action, model] = texts;
    let texts = [ts, actor, action, model, None, Some(&b"{\"a\":1}"[..]), Some(&b""[..])];
    let hash = EventHash::of(first, 1, texts).to_string();
    assert_eq!(hash, "47f83a661f77d93d244597357b700bdf437ab44cb2508e07df9c02e9ebd85d0a");
    assert_eq!(hash.parse::<EventHash>().unwrap().to_string(), hash);
    for wrong in ["", "ab", &"G".repeat(64), &hash.to_uppercase(), &format!("{hash}0")] {
        assert_eq!(wrong.parse::<EventHash>(), Err(super::chain::NoHash), "{wrong:?}");
    }
}

#[test]
fn an_untouched_trail_is_ok_while_a_server_writes_and_after_it_stopped() {
    let (dir, mut writer, reader) = open_new();
    let empty = verify(dir.path());
    assert!(empty.ok && empty.events == 0 && empty.hash.is_none(), "{empty:?}");
    for n in 1..=3 {
        writer.commit(promote("m", n)).unwrap();
        writer.note(note("ü")).unwrap();
    }
    let head = reader.head().unwrap();
    let events = reader.audit(&all_events()).unwrap();
    assert_eq!((head.id, Some(head.hash)), (6, events[0].hash));
    assert_eq!((events[0].model.as_ref(), events[1].model.as_ref()), (None, Some(&name("m"))));
    let running = verify_with(dir.path(), &[head.clone(), Head { chain: "another".to_owned(), ..head.clone() }]);
    assert!(running.ok, "{running:?}");
    assert_eq!((running.events, running.last, running.hash, running.heads_compared), (6, 6, Some(head.hash), 1));
    assert_eq!(running.heads_of_other_chains, 1);
    drop((writer, reader));
    assert!(verify(dir.path()).ok);
    let (mut writer, _reader) = open(dir.path()).unwrap();
    writer.commit(promote("m", 4)).unwrap();
    assert!(verify_with(dir.path(), &[head]).ok, "an older head still fits");
}

#[test]
fn a_cut_tail_is_found_by_the_counter_or_by_a_head() {
    let (dir, mut writer, reader) = open_new();
    write_notes(&mut writer, 5);
    let head = reader.head().unwrap();
    drop((writer, reader));
    tamper(dir.path(), "DELETE FROM events WHERE id > 3;");
    let verified = verify(dir.path());
    found(&verified, ProblemKind::Removed, 4);
    assert!(verified.problems[0].found.starts_with("the events 4 to 5 are missing"), "{verified:?}");
    tamper(dir.path(), "UPDATE sqlite_sequence SET seq = 3;");
    assert!(verify(dir.path()).ok, "without a head nothing shows it, as docs/AUDIT.md says");
    found(&verify_with(dir.path(), std::slice::from_ref(&head)), ProblemKind::Removed, 4);
    // The server goes on. The head still shows it.
    let (mut writer, _reader) = open(dir.path()).unwrap();
    write_notes(&mut writer, 5);
    found(&verify_with(dir.path(), &[head]), ProblemKind::Rewritten, 5);
}

#[test]
fn a_trail_that_was_written_again_is_found_with_a_head() {
    let (dir, mut writer, reader) = open_new();
    write_notes(&mut writer, 5);
    let head = reader.head().unwrap();
    drop((writer, reader));
    tamper(dir.path(), "UPDATE events SET actor = 'bob' WHERE id = 2;");
    found(&verify(dir.path()), ProblemKind::Altered, 2);
    // With only its own hash renewed, the next event does not follow.
    let connection = Connection::open(dir.path().join("ledger.sqlite3")).unwrap();
    let mut second = None;
    rows::each_event(&connection, 1, 1, |event| {
        second = event.computed();
        true
    })
    .unwrap();
    connection.execute("UPDATE events SET hash = ?1 WHERE id = 2", [second.unwrap().to_string()]).unwrap();
    drop(connection);
    let verified = verify(dir.path());
    found(&verified, ProblemKind::Rewritten, 2);
    assert_eq!(verified.problem_count, 1, "one problem is reported once: {verified:?}");
    rechain(dir.path(), 2);
    assert!(verify(dir.path()).ok, "without a head nothing shows it, as docs/AUDIT.md says");
    found(&verify_with(dir.path(), std::slice::from_ref(&head)), ProblemKind::Rewritten, 5);
    // Another data directory does not pass for this one.
    let (other, mut writer, _reader) = open_new();
    writer.note(note("x")).unwrap();
    let verified = verify_with(other.path(), &[head]);
    assert!(verified.problems[0].found.contains("no head belongs to this chain"), "{verified:?}");
}

#[test]
fn an_altered_document_or_revision_is_found() {
    let (dir, mut writer, _reader) = open_new();
    writer.commit(promote("m", 1)).unwrap();
    writer.commit(promote("m", 2)).unwrap();
    let retire = Effect::Retire { document: Some(NewDocument { document: document(2), highest_served: None }) };
    let retired = Change { before: Some(document(2)), ..change("m", Action::Retire, retire) };
    writer.commit(retired).unwrap();
    assert!(verify(dir.path()).ok, "{:?}", verify(dir.path()));
    tamper(dir.path(), "UPDATE documents SET document = replace(document, '\"2\"', '\"1\"') WHERE revision = 2;");
    found(&verify(dir.path()), ProblemKind::Document, 2);
    tamper(dir.path(), "UPDATE documents SET document = replace(document, '\"1\"', '\"2\"') WHERE revision = 2;");
    tamper(dir.path(), "UPDATE models SET revision = 1;");
    let verified = verify(dir.path());
    assert_eq!(verified.problem_count, 1, "{verified:?}");
    assert!(verified.problems[0].found.contains("\"m\" is at revision 1, but has 3 traffic documents"), "{verified:?}");
}

#[test]
fn an_approval_that_nobody_gave_is_found() {
    let (dir, mut writer, _reader) = open_new();
    let review = |n: u64, approved| {
        let after = format!(r#"{{"version":"{n}","artifact":"ab"}}"#);
        let effect = Effect::Review { version: version(n), artifact: "ab".to_owned(), approved };
        let action = if approved { Action::Approve } else { Action::Reject };
        Change { after: Some(after), ..change("m", action, effect) }
    };
    writer.commit(review(1, true)).unwrap();
    writer.commit(review(2, false)).unwrap();
    assert!(verify(dir.path()).ok, "{:?}", verify(dir.path()));
    tamper(dir.path(), "UPDATE reviews SET approved = 1 WHERE version = '2';");
    found(&verify(dir.path()), ProblemKind::Review, 2);
    tamper(
        dir.path(),
        "UPDATE reviews SET approved = 0 WHERE version = '2'; UPDATE reviews SET artifact = 'cd' WHERE version = '1';",
    );
    let verified = verify(dir.path());
    found(&verified, ProblemKind::Review, 1);
    assert_eq!(verified.problem_count, 1, "{verified:?}");
}

#[test]
fn a_token_that_no_event_made_is_found() {
    let (dir, mut writer, _reader) = open_new();
    let now = Timestamp::from_second(1_795_000_000).unwrap();
    let token = |name: &str, hash: u8| StoredToken {
        name: name.to_owned(),
        hash: [hash; 32],
        role: "viewer".to_owned(),
        models: "a,b-*".to_owned(),
        created_at: now,
        created_by: "ann".to_owned(),
        expires_at: Some(now),
        last_used: None,
        shared: false,
    };
    for effect in [
        TokenEffect::Create(Box::new(token("ci", 1))),
        TokenEffect::Create(Box::new(token("old", 2))),
        TokenEffect::Revoke { name: "old".to_owned() },
    ] {
        assert!(writer.commit_token(&TokenChange { actor: "ann".to_owned(), reason: None, effect }).unwrap());
    }
    assert!(verify(dir.path()).ok, "{:?}", verify(dir.path()));
    tamper(dir.path(), "UPDATE tokens SET role = 'admin';");
    found(&verify(dir.path()), ProblemKind::Token, 1);
    tamper(
        dir.path(),
        "UPDATE tokens SET role = 'viewer'; INSERT INTO tokens SELECT 'old', x'00', role, models, created_at, created_by, expires_at, NULL, 0 FROM tokens;",
    );
    let verified = verify(dir.path());
    assert_eq!(verified.problem_count, 1, "{verified:?}");
    assert!(verified.problems[0].found.contains("\"old\" is in no event"), "{verified:?}");
}

#[test]
fn an_older_database_is_chained_and_says_where_its_chain_begins() {
    let dir = tempfile::tempdir().unwrap();
    let old = Connection::open(dir.path().join("ledger.sqlite3")).unwrap();
    for step in &super::open::MIGRATIONS[..6] {
        old.execute_batch(step).unwrap();
    }
    old.execute_batch(
        "INSERT INTO events (ts, actor, action, model, reason) VALUES ('2026-01-01T00:00:00.000000Z', 'ann', 'push', 'm', NULL);
         INSERT INTO events (ts, actor, action, model, reason) VALUES ('2026-01-02T00:00:00.000000Z', CAST(x'ff' AS TEXT), 'push', 'm', 'r');
         PRAGMA user_version = 6;",
    )
    .unwrap();
    let refused = open_for_reading(dir.path()).unwrap_err().to_string();
    assert!(refused.contains("start the server once"), "{refused}");
    drop(old);
    let (mut writer, reader) = open(dir.path()).unwrap();
    let begin = reader.audit(&AuditQuery { limit: 1, ..all_events() }).unwrap().remove(0);
    assert_eq!((begin.id, begin.action.as_str(), begin.actor.as_str()), (3, "chain_begin", "migration"));
    assert_eq!(begin.after.as_deref(), Some(r#"{"chained_later":2,"events":2}"#));
    writer.note(note("x")).unwrap();
    let verified = verify(dir.path());
    assert!(verified.ok && verified.chained_later == Some(2) && verified.last == 4, "{verified:?}");
    drop((writer, reader));
    tamper(dir.path(), "UPDATE events SET reason = 'because' WHERE id = 1;");
    found(&verify(dir.path()), ProblemKind::Altered, 1);
}

#[test]
fn an_event_of_another_program_does_not_stop_the_server_and_is_named() {
    let (dir, mut writer, _reader) = open_new();
    writer.note(note("x")).unwrap();
    tamper(dir.path(), "INSERT INTO events (ts, actor, action, model) VALUES ('now', 'eve', 'promote', 'm');");
    writer.note(note("y")).unwrap();
    let verified = verify(dir.path());
    found(&verified, ProblemKind::Inserted, 2);
    assert_eq!((verified.problem_count, verified.last), (1, 3), "{verified:?}");
}

#[test]
fn writers_on_two_connections_make_one_chain() {
    let (dir, writer, _reader) = open_new();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut connection = Connection::open(dir.path().join("ledger.sqlite3")).unwrap();
                connection.busy_timeout(std::time::Duration::from_secs(20)).unwrap();
                for _ in 0..40 {
                    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
                    let event = super::writer::NewEvent {
                        actor: "ann",
                        action: Action::Push,
                        model: "m",
                        reason: None,
                        before: None,
                        after: None,
                    };
                    rows::append(&transaction, Timestamp::now(), &event).unwrap();
                    transaction.commit().unwrap();
                }
            });
        }
    });
    let verified = verify(dir.path());
    assert!(verified.ok && verified.events == 80, "{verified:?}");
    drop(writer);
}

#[test]
fn an_export_is_verified_line_by_line() {
    let (_dir, mut writer, reader) = open_new();
    for n in 1..=5 {
        writer.commit(promote("m", n)).unwrap();
    }
    let mut pages = Vec::new();
    let mut after = 0;
    loop {
        let page = reader.export(after, 2, usize::MAX).unwrap();
        if page.is_empty() {
            break;
        }
        after += page.lines().count() as u64;
        pages.push(page);
    }
    assert_eq!(pages.len(), 3, "two, two and one event");
    assert_eq!(reader.export(0, 100, 1).unwrap().lines().count(), 1, "a page has one event at least");
    let whole = pages.concat();
    let check = |text: &str| Verifier::of_export(Heads::default()).read(text.as_bytes()).unwrap();
    let ok = check(&whole);
    assert!(ok.ok && ok.events == 5 && ok.chain.is_some(), "{ok:?}");
    let lines: Vec<&str> = whole.lines().collect();
    let with = |order: &[usize]| check(&order.iter().map(|n| lines[*n]).collect::<Vec<_>>().join("\n"));
    found(&with(&[0, 2, 1, 3, 4]), ProblemKind::Reordered, 2);
    found(&with(&[0, 1, 1, 2, 3, 4]), ProblemKind::Reordered, 2);
    found(&with(&[0, 1, 3, 4]), ProblemKind::Removed, 3);
    found(&with(&[1, 2, 3, 4]), ProblemKind::Removed, 1);
    found(&check(&whole.replacen("because", "so that", 1)), ProblemKind::Altered, 1);
    let (_other, mut writer, other) = open_new();
    writer.note(note("x")).unwrap();
    found(&check(&format!("{whole}{}", other.export(0, 1, 1).unwrap())), ProblemKind::Inserted, 1);
    for unreadable in ["{", "null", "[1]", "{\"id\":1}", &lines[0].replacen("\"id\"", "\"extra\":1,\"id\"", 1)] {
        let verified = check(unreadable);
        assert_eq!(verified.problems[0].kind, ProblemKind::Unreadable, "{unreadable}");
    }
}

#[test]
fn a_file_of_heads_has_one_at_least_and_other_lines_are_ignored() {
    let refused = Heads::read(&b"hello\n{\"id\":1}\n"[..]).unwrap_err().to_string();
    assert!(refused.contains("it has no head"), "{refused}");
    let (dir, mut writer, reader) = open_new();
    writer.note(note("x")).unwrap();
    let head = serde_json::to_string(&reader.head().unwrap()).unwrap();
    // A log in JSON has more members, and other lines.
    let line = head.replacen('{', "{\"timestamp\":\"now\",\"message\":\"audit head\",", 1);
    let heads = Heads::read(format!("started\n{line}\n\n{line}\n").as_bytes()).unwrap();
    let verified = open_for_reading(dir.path()).unwrap().verify(heads).unwrap();
    assert!(verified.ok && verified.heads_compared == 1, "{verified:?}");
}

/// One change of the database.
#[derive(Debug, Clone)]
enum Tampering {
    Change {
        event: u64,
        column: usize,
        to: Option<String>,
    },
    Delete(u64),
    Swap(u64, u64),
    /// Inserts a copy of an event, with its hash or without, and moves those after it.
    Insert {
        event: u64,
        with_hash: bool,
    },
}

const COLUMNS: [(&str, bool); 9] = [
    ("ts", false),
    ("actor", false),
    ("action", false),
    ("model", false),
    ("reason", true),
    ("before", true),
    ("after", true),
    ("previous", true),
    ("hash", true),
];

fn tampering() -> impl Strategy<Value = Tampering> {
    let event = 1..=6_u64;
    let text = prop_oneof![Just(None), "[a-z0-9\"{}é]{0,9}".prop_map(Some)];
    prop_oneof![
        5 => (event.clone(), 0..COLUMNS.len(), text)
            .prop_map(|(event, column, to)| Tampering::Change { event, column, to }),
        1 => event.clone().prop_map(Tampering::Delete),
        2 => (event.clone(), event.clone()).prop_map(|(a, b)| Tampering::Swap(a, b)),
        2 => (event, any::<bool>()).prop_map(|(event, with_hash)| Tampering::Insert { event, with_hash }),
    ]
}

impl Tampering {
    /// The statements, and the events of which one must be named. `None` where it changes nothing.
    fn sql(&self, stored: impl Fn(u64, &str) -> Option<String>) -> Option<(String, Vec<u64>)> {
        let quoted = |text: &Option<String>| {
            text.as_ref().map_or("NULL".to_owned(), |text| format!("'{}'", text.replace('\'', "''")))
        };
        match self {
            Tampering::Change { event, column, to } => {
                let (name, nullable) = COLUMNS[*column];
                let to = to.clone().or_else(|| (!nullable).then(String::new));
                let changes = stored(*event, name) != to;
                let sql = format!("UPDATE events SET {name} = {} WHERE id = {event};", quoted(&to));
                changes.then_some((sql, vec![*event]))
            }
            Tampering::Delete(event) => Some((format!("DELETE FROM events WHERE id = {event};"), vec![*event])),
            Tampering::Swap(a, b) => {
                let sql = format!(
                    "UPDATE events SET id = 99 WHERE id = {a}; UPDATE events SET id = {a} WHERE id = {b};
                     UPDATE events SET id = {b} WHERE id = 99; UPDATE sqlite_sequence SET seq = 6;"
                );
                (a != b).then_some((sql, vec![*a, *b]))
            }
            Tampering::Insert { event, with_hash } => {
                let hash = if *with_hash { "previous, hash" } else { "NULL, NULL" };
                let sql = format!(
                    "UPDATE events SET id = -id - 1 WHERE id > {event}; UPDATE events SET id = -id WHERE id < 0;
                     INSERT INTO events SELECT {event} + 1, ts, actor, action, model, reason, before, after, {hash}
                     FROM events WHERE id = {event};"
                );
                Some((sql, vec![*event + 1]))
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_single_change_is_found_and_named(tampering in tampering()) {
        let (dir, mut writer, reader) = open_new();
        for n in 1..=3 {
            writer.commit(promote("m", n)).unwrap();
            writer.note(note("x")).unwrap();
        }
        drop((writer, reader));
        let connection = Connection::open(dir.path().join("ledger.sqlite3")).unwrap();
        let stored = |event: u64, column: &str| -> Option<String> {
            let sql = format!("SELECT {column} FROM events WHERE id = {event}");
            connection.query_row(&sql, [], |row| row.get(0)).unwrap()
        };
        if let Some((sql, events)) = tampering.sql(stored) {
            tamper(dir.path(), &sql);
            let verified = verify(dir.path());
            prop_assert!(!verified.ok, "{tampering:?} is found");
            let first = &verified.problems[0];
            prop_assert!(first.event.is_some_and(|event| events.contains(&event)), "{first:?} names one of {events:?}");
        }
    }
}
