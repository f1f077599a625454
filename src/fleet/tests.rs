use super::board::Board;
use super::change::{Changes, Outcome, Put};
use super::wire::{self, Node, NodeModel, SCHEMA, SharedDocument};
use super::*;
use crate::ledger::Action;
use crate::lifecycle::Proposed;
use crate::model::{Code, ModelName};
use std::collections::BTreeMap;
use std::time::Instant;

fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

fn config() -> Config {
    Config { node: "a".to_owned(), ..Config::default() }
}

fn shared(version: &str) -> SharedDocument {
    SharedDocument {
        schema: SCHEMA,
        document: serde_json::json!({"split": [{"version": version, "weight": 1.0}]}),
        actor: "anna".to_owned(),
        node: "b".to_owned(),
        action: "promote".to_owned(),
        reason: None,
        ts: "2026-11-28T00:00:00.000000Z".to_owned(),
    }
}

fn node(model: &str, ready: &[&str]) -> Node {
    let ready = ready.iter().map(|v| (*v).to_owned()).collect();
    let failed = BTreeMap::from([("9".to_owned(), "its file is broken".to_owned())]);
    let models = BTreeMap::from([(model.to_owned(), NodeModel { ready, failed, ..NodeModel::default() })]);
    Node { schema: SCHEMA, id: "1".to_owned(), program: "0".to_owned(), ready: true, since: String::new(), models }
}

/// The manager's side, with a fleet that answers every change with these outcomes.
fn changes(board: &Board, outcomes: Vec<Outcome>) -> (Changes, JoinHandle<Vec<u64>>) {
    let (sender, mut puts) = mpsc::channel::<Put>(1);
    let fleet = std::thread::spawn(move || {
        let mut expected = Vec::new();
        for outcome in outcomes {
            let put = puts.blocking_recv().unwrap();
            expected.push(put.expected);
            put.reply.send(outcome).unwrap();
        }
        expected
    });
    (Changes::new(board.clone(), sender, "a".to_owned()), fleet)
}

fn propose(changes: &mut Changes, version: &str, action: Action) -> Result<(), crate::model::Failure> {
    let document = format!(r#"{{"split":[{{"version":"{version}","weight":1}}]}}"#);
    changes.agree(&Proposed { model: &name("m"), document: &document, actor: "anna", action, reason: None })
}

#[test]
fn a_change_waits_for_what_others_changed_and_is_refused_where_it_comes_too_late() {
    let board = Board::new(&config());
    let (mut changes, fleet) =
        changes(&board, vec![Outcome::Stored(5), Outcome::Stale, Outcome::Failed("NATS does not answer".to_owned())]);
    let cut_off = propose(&mut changes, "1", Action::Promote).unwrap_err();
    assert_eq!(cut_off.code, Code::NotReady);
    assert!(cut_off.message.contains("cut off from its fleet"), "{cut_off}");
    assert!(!changes.is_current(&name("m")), "alone it begins nothing");

    board.reading();
    board.document(name("m"), 4, shared("1"));
    assert_eq!(
        propose(&mut changes, "2", Action::Promote).unwrap_err().code,
        Code::NotReady,
        "the bucket is being read"
    );
    assert!(board.following() && !board.following());
    let behind = propose(&mut changes, "2", Action::Promote).unwrap_err();
    assert_eq!(behind.code, Code::Conflict);
    assert!(behind.message.contains("revision 4 of the fleet's document is not in force here yet"), "{behind}");
    board.in_force(&name("m"), 4);
    assert!(changes.is_current(&name("m")));

    assert_eq!(propose(&mut changes, "2", Action::Promote), Ok(()));
    assert_eq!(board.own(&name("m")), (5, None));
    let stale = propose(&mut changes, "1", Action::Promote).unwrap_err();
    assert!(stale.code == Code::Conflict && stale.message.contains("at the same time"), "{stale}");
    let unknown = propose(&mut changes, "1", Action::Promote).unwrap_err();
    assert!(unknown.code == Code::NotReady && unknown.message.contains("it was made or not"), "{unknown}");
    assert_eq!(fleet.join().unwrap(), [4, 5, 5], "each names the revision that it was computed from");

    changes.not_stored(&name("m"));
    assert_eq!(board.to_follow(Instant::now()).len(), 1, "what could not be stored here is followed");
    let left = propose(&mut changes, "1", Action::Promote).unwrap_err();
    assert!(left.code == Code::Conflict, "{left}");
}

#[test]
fn every_gateway_that_is_there_must_have_the_versions_except_on_the_way_back() {
    let board = Board::new(&config());
    let (mut changes, fleet) = changes(&board, vec![Outcome::Stored(1), Outcome::Stored(2)]);
    board.following();
    board.node("a", node("m", &[]));
    board.node("b", node("m", &["1"]));
    board.node("c", node("other", &["1"]));
    let refused = propose(&mut changes, "2", Action::Promote).unwrap_err();
    assert_eq!(refused.code, Code::Conflict);
    assert_eq!(refused.details, ["version 2 is not ready on b", "c does not have the model"]);
    let failed = propose(&mut changes, "9", Action::PutTraffic).unwrap_err();
    assert!(failed.message.contains("version 9 failed on b: its file is broken"), "{failed}");
    board.left("c");
    assert_eq!(propose(&mut changes, "1", Action::Promote), Ok(()));
    assert_eq!(propose(&mut changes, "2", Action::Rollback), Ok(()), "a rollback is not held up");
    assert_eq!(fleet.join().unwrap(), [0, 1]);
}

#[test]
fn a_document_that_cannot_be_put_in_force_is_tried_again_after_longer_and_longer() {
    let board = Board::new(&config());
    board.following();
    board.document(name("m"), 7, shared("1"));
    let mut now = Instant::now();
    let mut pauses = Vec::new();
    for _ in 0..7 {
        assert_eq!(board.to_follow(now).len(), 1);
        board.waits(&name("m"), 7, "version 1 is not ready".to_owned(), now);
        let begun = now;
        while board.to_follow(now).is_empty() {
            now += Duration::from_millis(100);
        }
        pauses.push((now - begun).as_millis());
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3000, 3000]);
    assert!(board.trouble().unwrap().contains("m (revision 7: version 1 is not ready)"));
    // A newer document is looked at once, and an old report changes nothing.
    board.document(name("m"), 8, shared("2"));
    board.document(name("m"), 7, shared("1"));
    board.waits(&name("m"), 7, "late".to_owned(), now);
    assert_eq!(board.to_follow(now)[0].1.revision, 8);
    board.in_force(&name("m"), 8);
    assert_eq!((board.to_follow(now).len(), board.trouble()), (0, None));
}

#[test]
fn what_a_newer_program_wrote_is_refused_in_words_and_hostile_values_too() {
    let newer = r#"{"schema": 2, "everything": "else"}"#;
    assert!(wire::read::<Node>(newer.as_bytes()).unwrap_err().contains("upgrade this gateway"));
    for wrong in ["", "{", "[]", "1", r#"{"schema":"1"}"#, r#"{"schema":1}"#, "\u{0}"] {
        assert!(wire::read::<SharedDocument>(wrong.as_bytes()).unwrap_err().contains("cannot be read"), "{wrong:?}");
    }
    for model in ["m", "a.b.c", "1.", "x..y", "A-b_c"] {
        let key = wire::key(&name(model));
        assert!(!key.contains('.'), "{key}");
        assert_eq!(wire::model(&key), Some(name(model)));
    }
    assert_eq!(wire::model("a b"), None);
}

#[test]
fn a_gateway_shows_itself_when_it_is_alone_and_tells_why() {
    let board = Board::new(&config());
    let view = board.view();
    assert_eq!((view.nodes.len(), view.nodes[0].name.as_str(), view.nodes[0].state), (1, "a", "degraded"));
    assert!(board.trouble().unwrap().contains("degraded: this gateway is cut off from the fleet sluicegate"));
    board.following();
    board.node("a", node("m", &["1"]));
    board.node("b", node("m", &["1"]));
    assert_eq!(board.view().nodes.iter().map(|node| node.state).collect::<Vec<_>>(), ["ready", "ready"]);
    assert!(board.cut_off("the connection was lost".to_owned()));
    assert_eq!(board.view().nodes[0].state, "degraded");
    assert!(board.trouble().unwrap().contains("the connection was lost"));
}

#[test]
fn the_identity_of_a_gateway_stays() {
    let dir = tempfile::tempdir().unwrap();
    let id = identity::read_or_make(dir.path()).unwrap();
    assert_eq!(identity::read_or_make(dir.path()).unwrap(), id);
    std::fs::write(dir.path().join("fleet-node"), "x").unwrap();
    assert!(identity::read_or_make(dir.path()).unwrap_err().to_string().contains("no id of a gateway"));
}

#[test]
fn names_are_parts_of_keys() {
    for good in ["a", "A-1_b", &"x".repeat(64)] {
        assert!(Config::is_name(good), "{good}");
    }
    for wrong in ["", "a.b", "a b", "ä", ">", "*", &"x".repeat(65)] {
        assert!(!Config::is_name(wrong), "{wrong}");
    }
    assert!(Config::is_name(&Config::host()));
}
