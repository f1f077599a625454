use super::board::{Board, Stored};
use super::change::{Changes, Outcome, Put};
use super::state::{By, SharedState};
use super::tokens::SharedToken;
use super::wire::{self, Node, NodeModel, SCHEMA};
use super::*;
use crate::ledger::{Action, Change, Effect, Retirement, SharedModel, StoredToken, TokenChange, TokenEffect};
use crate::lifecycle::Proposed;
use crate::model::{Code, ModelName};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Instant;

pub(super) fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

pub(super) fn config() -> Config {
    Config { node: "a".to_owned(), ..Config::default() }
}

fn by() -> By {
    By { actor: "anna".to_owned(), node: "b".to_owned(), action: "promote".to_owned(), reason: None }
}

pub(super) fn document(version: &str) -> String {
    format!(r#"{{"split":[{{"version":"{version}","weight":1.0}}]}}"#)
}

fn state(version: &str) -> SharedModel {
    SharedModel { document: Some(document(version)), ..SharedModel::default() }
}

#[expect(clippy::unnecessary_wraps, reason = "as the board takes it")]
pub(super) fn shared(version: &str) -> Result<SharedState, String> {
    Ok(SharedState::new(state(version), by()))
}

pub(super) fn node(model: &str, ready: &[&str]) -> Node {
    let ready = ready.iter().map(|v| (*v).to_owned()).collect();
    let failed = BTreeMap::from([("9".to_owned(), "its file is broken".to_owned())]);
    let models = BTreeMap::from([(model.to_owned(), NodeModel { ready, failed, ..NodeModel::default() })]);
    Node {
        schema: SCHEMA,
        id: "1".to_owned(),
        program: "0".to_owned(),
        ready: true,
        since: String::new(),
        models,
        lag_ms: None,
        labels: placement::Labels::new(),
        rules: String::new(),
        drift_told: None,
    }
}

pub(super) fn stored(revision: u64) -> Stored {
    Stored { revision, ..Stored::default() }
}

/// The manager's side, with a fleet that answers every change with these outcomes.
pub(super) fn changes(board: &Board, outcomes: Vec<Outcome>) -> (Changes, JoinHandle<Vec<u64>>) {
    changes_with(&Rollouts::new(board.clone(), "a".to_owned()), outcomes)
}

/// The same, with what is known of rollouts.
pub(super) fn changes_with(rollouts: &Rollouts, outcomes: Vec<Outcome>) -> (Changes, JoinHandle<Vec<u64>>) {
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
    let (token_puts, tokens) = (sender.clone(), TokenTable::default());
    let (board, rollouts) = (rollouts.board().clone(), rollouts.clone());
    (Changes { board, rollouts, tokens, puts: sender, token_puts, node: "a".to_owned() }, fleet)
}

pub(super) fn propose(changes: &mut Changes, version: &str, action: Action) -> Result<(), crate::model::Failure> {
    let effect = Effect::SetDocument { document: document(version), highest_served: None, auto_promoted: None };
    change(changes, &SharedModel::default(), action, effect)
}

pub(super) fn change(
    changes: &mut Changes,
    local: &SharedModel,
    action: Action,
    effect: Effect,
) -> Result<(), crate::model::Failure> {
    let (model, actor) = (name("m"), "anna".to_owned());
    let change = Change { model, actor, action, reason: None, before: None, after: None, effect };
    changes.agree(&Proposed { local, change: &change, quorum: None })
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
    board.shared(name("m"), stored(4), shared("1"));
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
    assert_eq!(refused.details, ["b does not have version 2", "c does not have the model"]);
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
    board.shared(name("m"), stored(7), shared("1"));
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
    board.shared(name("m"), stored(8), shared("2"));
    board.shared(name("m"), stored(7), shared("1"));
    board.waits(&name("m"), 7, "late".to_owned(), now);
    assert_eq!(board.to_follow(now)[0].1.revision, 8);
    board.in_force(&name("m"), 8);
    assert_eq!((board.to_follow(now).len(), board.trouble()), (0, None));
}

#[test]
fn what_a_newer_program_wrote_is_refused_in_words_and_hostile_values_too() {
    let newer = r#"{"schema": 3, "everything": "else"}"#;
    assert!(wire::read::<Node>(newer.as_bytes()).unwrap_err().contains("reads up to 1: upgrade this gateway"));
    assert!(SharedState::read(newer.as_bytes()).unwrap_err().contains("reads up to 2: upgrade this gateway"));
    for wrong in ["", "{", "[]", "1", r#"{"schema":"1"}"#, r#"{"schema":1}"#, "\u{0}"] {
        assert!(SharedState::read(wrong.as_bytes()).unwrap_err().contains("cannot be read"), "{wrong:?}");
    }
    for model in ["m", "a.b.c", "1.", "x..y", "A-b_c"] {
        let key = wire::key(&name(model));
        assert!(!key.contains('.'), "{key}");
        assert_eq!(wire::model(&key), Some(name(model)));
    }
    for strange in ["a b", "a.b", ".", ""] {
        assert_eq!(wire::model(strange), None, "{strange:?} is no key of ours");
    }
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
    board.shared(name("m"), stored(3), shared("1"));
    board.shared(name("other"), stored(4), shared("1"));
    assert_eq!(board.view().nodes[1].behind, 0, "its report is older than the change");
    board.node("b", node("m", &["1"]));
    assert_eq!(board.view().nodes[1].behind, 1, "it reports the model m in no revision");
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

#[test]
fn a_value_has_the_older_form_while_an_older_gateway_understands_all_of_it() {
    let older =
        r#"{"schema": 1, "document": {"split": []}, "actor": "anna", "node": "b", "action": "promote", "ts": "now"}"#;
    let read = SharedState::read(older.as_bytes()).unwrap();
    assert_eq!(read.model, SharedModel { document: Some(r#"{"split":[]}"#.to_owned()), ..SharedModel::default() });
    assert_eq!((read.by.actor.as_str(), read.by.reason), ("anna", None));
    assert_eq!(SharedState::new(state("1"), by()).schema, 1);
    let ts = jiff::Timestamp::now();
    let retired = Retirement { ts, actor: "anna".to_owned(), reason: "old".to_owned() };
    let version: crate::model::Version = "7".parse().unwrap();
    for newer in [
        SharedModel::default(),
        SharedModel { unloaded: true, ..state("1") },
        SharedModel { operator_unloaded: [version].into(), ..state("1") },
        SharedModel { retired: Some(retired), proposers: [(version, ["ben".to_owned()].into())].into(), ..state("1") },
    ] {
        let shared = SharedState::new(newer, by());
        assert_eq!(shared.schema, 2, "{shared:?}");
        assert_eq!(SharedState::read(&shared.write().unwrap()).unwrap(), shared);
    }
    let large = SharedModel { document: Some(format!("{{\"reason\":{:?}}}", "x".repeat(1 << 20))), ..state("1") };
    let refused = SharedState::new(large, by()).write().unwrap_err();
    assert!(refused.contains("the fleet takes up to"), "{refused}");
}

#[test]
fn an_approver_must_not_have_pushed_on_any_gateway_and_a_push_waits_for_no_document() {
    let version: crate::model::Version = "2".parse().unwrap();
    let review = |approved| Effect::Review { version, artifact: "ab".to_owned(), approved };
    let board = Board::new(&config());
    let (mut changes, fleet) = changes(&board, vec![Outcome::Stored(5), Outcome::Stored(6), Outcome::Stored(8)]);
    board.following();
    // What another gateway has just put there, and this one does not follow yet.
    let pushed = SharedModel { proposers: [(version, ["anna".to_owned()].into())].into(), ..state("1") };
    board.shared(name("m"), stored(4), Ok(SharedState::new(pushed, by())));
    let refused = change(&mut changes, &state("1"), Action::Approve, review(true)).unwrap_err();
    assert_eq!(refused.code, Code::Forbidden, "{refused}");
    assert!(refused.message.starts_with("anna pushed version 2 of model m or asked for its traffic"), "{refused}");
    assert_eq!(change(&mut changes, &state("1"), Action::Reject, review(false)), Ok(()));
    assert_eq!(board.own(&name("m")).0, 0, "the state before is still to be followed");
    assert_eq!(change(&mut changes, &state("1"), Action::Push, Effect::Propose { version }), Ok(()));
    let known = board.known(&name("m")).unwrap().unwrap();
    let now = known.shared.unwrap().model;
    assert!(!now.reviews[&version].approved && now.proposers[&version].contains("anna"), "{now:?}");
    // All other changes need what is in force.
    let effect = Effect::SetOperatorUnloaded { version, unloaded: true };
    let behind = change(&mut changes, &state("1"), Action::Unload, effect.clone()).unwrap_err();
    assert!(behind.message.contains("is not in force here yet"), "{behind}");
    board.in_force(&name("m"), 6);
    assert_eq!(change(&mut changes, &now, Action::Unload, effect), Ok(()));
    assert_eq!(board.own(&name("m")), (8, None));
    // What concerns one gateway only is not sent.
    let effect = Effect::RecordArtifact { version, sha256: "ab".to_owned(), bytes: 1 };
    assert_eq!(change(&mut changes, &now, Action::ReplaceArtifact, effect), Ok(()));
    assert_eq!(fleet.join().unwrap(), [4, 5, 6]);
}

#[test]
fn the_others_load_a_retired_model_when_it_is_promoted() {
    let board = Board::new(&config());
    let (mut changes, fleet) = changes(&board, vec![Outcome::Stored(5)]);
    board.following();
    board.node("b", node("m", &[]));
    let retired = Retirement { ts: jiff::Timestamp::now(), actor: "anna".to_owned(), reason: String::new() };
    let retired = SharedModel { retired: Some(retired), ..state("1") };
    board.shared(name("m"), stored(4), Ok(SharedState::new(retired.clone(), by())));
    board.in_force(&name("m"), 4);
    let effect = Effect::SetDocument { document: document("2"), highest_served: None, auto_promoted: None };
    assert_eq!(change(&mut changes, &retired, Action::Promote, effect), Ok(()));
    assert_eq!(board.known(&name("m")).unwrap().unwrap().shared.unwrap().model.retired, None);
    assert_eq!(propose(&mut changes, "1", Action::Promote).unwrap_err().code, Code::Conflict);
    assert_eq!(fleet.join().unwrap(), [4]);
}

fn token(byte: u8) -> StoredToken {
    StoredToken {
        name: "ci".to_owned(),
        hash: [byte; 32],
        role: "operator".to_owned(),
        models: "*".to_owned(),
        created_at: "2026-11-28T00:00:00.123456Z".parse().unwrap(),
        created_by: "anna".to_owned(),
        expires_at: None,
        last_used: None,
        shared: true,
    }
}

#[test]
fn a_token_is_made_and_revoked_by_one_compare_and_set_and_its_value_has_no_secret() {
    let board = Board::new(&config());
    let (mut changes, fleet) = changes(&board, vec![Outcome::Stored(3), Outcome::Stored(9), Outcome::Stale]);
    let table = changes.tokens.clone();
    let (actor, reason) = ("anna".to_owned(), None);
    let create = TokenChange { actor, reason, effect: TokenEffect::Create(Box::new(token(7))) };
    let revoke = TokenChange { effect: TokenEffect::Revoke { name: "ci".to_owned() }, ..create.clone() };
    let cut_off = changes.agree_token(&create).unwrap_err();
    assert_eq!(cut_off.code, Code::NotReady, "{cut_off}");
    table.read();
    assert_eq!(changes.agree_token(&create), Ok(()));
    let taken = changes.agree_token(&create).unwrap_err();
    assert!(taken.code == Code::Conflict && taken.message.contains("a token named \"ci\" already"), "{taken}");
    assert_eq!(changes.agree_token(&revoke), Ok(()));
    let stale = changes.agree_token(&create).unwrap_err();
    assert!(stale.message.contains("changed token \"ci\" at the same time"), "{stale}");
    assert_eq!(fleet.join().unwrap(), [0, 3, 9], "a name can be used again");

    assert_eq!(SharedToken::key("a.b@c+d"), "a=2Eb=40c=2Bd");
    let value = serde_json::to_value(SharedToken::new("ci", Some(token(0xab)), by())).unwrap();
    assert_eq!(value["token"]["hash"], "ab".repeat(32));
    let StoredToken { created_at, .. } = token(1);
    assert_eq!(value["token"]["created_at"], crate::ledger::rfc3339(created_at));
    for wrong in ["", "zz", &"g".repeat(64), &"ab".repeat(33)] {
        let mut hostile = value["token"].clone();
        hostile["hash"] = wrong.into();
        serde_json::from_value::<StoredToken>(hostile).unwrap_err();
    }
    let mut back: StoredToken = serde_json::from_value(value["token"].clone()).unwrap();
    back.shared = true;
    assert_eq!(back, token(0xab));
}

#[test]
fn a_report_of_another_gateway_under_the_own_name_is_found_by_its_id() {
    let other = Node { id: "2".to_owned(), since: "2026-11-28T00:00:00.000000Z".to_owned(), ..node("m", &[]) };
    assert_eq!(session::check_id("a", "2", &other), Ok(()), "its own");
    let refused = session::check_id("a", "1", &other).unwrap_err();
    assert!(refused.contains("another gateway with the name a") && refused.contains("since 2026-11-28"), "{refused}");
}

#[test]
fn the_gauges_are_brought_up_to_date_when_the_gateway_reports() {
    let (board, telemetry) = (Board::new(&config()), Telemetry::new());
    board.count_with(&telemetry);
    let shows = |line: &str| telemetry.render().lines().any(|shown| shown == line);
    assert!(shows("sluicegate_fleet_connected 0") && shows("sluicegate_fleet_documents_behind 0"));
    board.following();
    board.shared(name("m"), stored(4), shared("1"));
    board.shared(name("n"), stored(5), shared("1"));
    board.node("b", node("m", &[]));
    board.count();
    assert!(shows("sluicegate_fleet_connected 1") && shows("sluicegate_fleet_nodes 1"));
    assert!(shows("sluicegate_fleet_documents_behind 2"), "{}", telemetry.render());
    board.in_force(&name("m"), 4);
    board.cut_off("the connection was lost".to_owned());
    assert!(shows("sluicegate_fleet_connected 0") && shows("sluicegate_fleet_documents_behind 1"));
    assert!(shows("sluicegate_fleet_watch_lag 0") && shows("sluicegate_fleet_nodes_lost 0"));
}

#[test]
fn the_time_of_a_change_is_measured_by_this_clock_where_it_was_made_or_arrived() {
    let (board, telemetry) = (Board::new(&config()), Telemetry::new());
    board.count_with(&telemetry);
    let count = |made: &str| {
        let line = format!("sluicegate_fleet_change_duration_seconds_count{{made=\"{made}\"}} ");
        let text = telemetry.render();
        text.lines().find_map(|shown| shown.strip_prefix(&line)).map_or(0, |count| count.parse::<u64>().unwrap())
    };
    // What is read at the start was changed some time ago.
    board.shared(name("m"), stored(4), shared("1"));
    board.following();
    board.in_force(&name("m"), 4);
    assert_eq!((count("elsewhere"), board.lag_ms()), (0, None));
    let now = Timestamp::now().as_millisecond();
    board.shared(name("m"), Stored { revision: 5, at_ms: now - 40, pending: 7 }, shared("2"));
    board.count();
    assert!(telemetry.render().contains("sluicegate_fleet_watch_lag 7"));
    board.in_force(&name("m"), 5);
    board.in_force(&name("m"), 5);
    assert_eq!(count("elsewhere"), 1, "once for each change");
    assert!(board.lag_ms().is_some_and(|ms| ms >= 40), "{:?}", board.lag_ms());
    // A clock of NATS that is ahead is no negative time.
    board.shared(name("m"), Stored { revision: 6, at_ms: now + 600_000, pending: 0 }, shared("1"));
    board.in_force(&name("m"), 6);
    assert_eq!(board.lag_ms(), Some(0));
    // What this gateway changed arrives too, and is counted as its own only.
    let mut own = shared("2").unwrap();
    own.by.node = "a".to_owned();
    board.shared(name("m"), stored(7), Ok(own.clone()));
    board.changed(&name("m"), 7, own, true);
    board.took(Duration::from_millis(3));
    board.in_force(&name("m"), 7);
    assert_eq!((count("elsewhere"), count("here")), (2, 1));
}

#[test]
fn what_is_wrong_is_told_by_the_gateway_itself_and_what_is_lost_by_the_first_one() {
    let board = Board::new(&Config { node: "b".to_owned(), ..Config::default() });
    assert!(board.troubles().cut_off.is_some_and(|why| why.contains("not been reached yet")));
    board.reading();
    assert_eq!(board.troubles(), Troubles::default(), "nothing is known while it is read");
    board.following();
    board.shared(name("m"), stored(4), shared("1"));
    board.waits(&name("m"), 4, "version 1 is not ready".to_owned(), Instant::now());
    let told = board.troubles();
    assert_eq!(told.behind, [(name("m"), "version 1 is not ready".to_owned())]);
    assert_eq!(told.lost, None, "nobody was heard yet");
    board.since(Instant::now().checked_sub(Duration::from_secs(6)).unwrap());
    board.node("c", node("m", &[]));
    assert_eq!(board.troubles().lost, Some(Vec::new()));
    board.last_heard("c", Instant::now().checked_sub(Duration::from_secs(6)).unwrap());
    assert_eq!(board.troubles().lost, Some(vec![("c".to_owned(), String::new())]));
    assert_eq!(board.view().nodes.iter().find(|node| node.name == "c").unwrap().state, "lost");
    board.node("a", node("m", &[]));
    assert_eq!(board.troubles().lost, None, "the gateway a tells it");
    board.left("a");
    board.last_heard("c", Instant::now().checked_sub(Duration::from_secs(601)).unwrap());
    assert_eq!(board.troubles().lost, Some(Vec::new()), "after ten minutes it is gone");
}

#[test]
fn all_gateways_together_report_fifty_times_a_second_however_many_they_are() {
    use super::board::{heard_within, repeat_every, report_every};
    let seconds = |of: fn(usize) -> Duration| [0, 3, 50, 150, 1000, 10_000].map(|nodes| of(nodes).as_secs());
    assert_eq!(seconds(report_every), [1, 1, 1, 3, 20, 200]);
    assert_eq!(seconds(repeat_every), [3, 3, 3, 3, 20, 200]);
    assert_eq!(seconds(heard_within), [5, 5, 5, 5, 22, 202]);
}
