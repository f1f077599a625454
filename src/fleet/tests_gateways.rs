//! Whose reports a gateway follows, and what it knows of the others.

use super::board::Board;
use super::gateways::Wanted;
use super::tests::{config, node};
use super::*;
use std::collections::BTreeSet;
use std::time::Instant;

/// A gateway of this name that knows the names of so many others, `g000` and on.
fn board(own: &str, gateways: usize) -> Board {
    let board = Board::new(&Config { node: own.to_owned(), ..config() });
    board.reading();
    board.following();
    board.named(names(gateways));
    board
}

fn names(gateways: usize) -> BTreeSet<String> {
    (0..gateways).map(|n| format!("g{n:03}")).collect()
}

fn of(names: &[&str]) -> Wanted {
    Wanted::Of(names.iter().map(|name| (*name).to_owned()).collect())
}

/// Reports of these gateways were read, so long after they came.
fn read(board: &Board, wanted: &Wanted, reports: &[(&str, u64)]) {
    board.follows(wanted);
    let reports = reports.iter().map(|(name, ago)| {
        let report = node("m", &["1"]);
        ((*name).to_owned(), (report, Duration::from_secs(*ago)))
    });
    board.read(wanted, reports.collect());
}

fn there(board: &Board) -> Vec<String> {
    board.others(&"m".parse().unwrap()).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn in_a_large_fleet_the_first_gateways_follow_all_and_the_others_follow_them() {
    assert_eq!(board("g030", 40).wanted(), Wanted::All, "a small fleet");
    assert_eq!(board("g030", 41).wanted(), of(&["g000", "g001", "g002"]));
    for first in ["a", "g000", "g002"] {
        assert_eq!(board(first, 1000).wanted(), Wanted::All, "{first} is one of the first three");
    }
    assert_eq!(board("g003", 1000).wanted(), of(&["g000", "g001", "g002"]));
    assert_eq!(board("z", 1000).wanted(), of(&["g000", "g001", "g002"]), "it has not reported itself yet");
    let rule = Rule { models: vec!["*".parse().unwrap()], labels: Labels::new(), replicas: Some(2) };
    let places = Board::new(&Config { node: "z".to_owned(), placement: vec![rule], ..config() });
    places.named(names(1000));
    assert_eq!(places.wanted(), Wanted::All, "where models are depends on all");
}

#[test]
fn gateways_that_were_there_and_are_not_heard_any_more_are_no_first_ones() {
    let board = board("z", 100);
    let first = board.wanted();
    assert_eq!(first, of(&["g000", "g001", "g002"]));
    board.follows(&first);
    assert_eq!(board.wanted(), first, "they are on their way");
    // The third one left: its name is there for a while. The second one was killed.
    read(&board, &first, &[("g000", 0), ("g001", 60)]);
    let next = board.wanted();
    assert_eq!(next, of(&["g000", "g001", "g002", "g003", "g004"]), "one that comes back is heard");
    read(&board, &next, &[("g000", 0), ("g001", 60), ("g003", 1), ("g004", 1)]);
    assert_eq!(board.wanted(), next);
    board.node("g001", node("m", &[]));
    assert_eq!(board.wanted(), of(&["g000", "g001", "g002", "g003"]), "it is back");
    assert_eq!(board.tells(), Some(false), "the first ones tell");
}

#[test]
fn a_gateway_that_needs_all_reports_reads_them_and_knows_how_old_they_are() {
    let board = board("g070", 100);
    let few = board.wanted();
    read(&board, &few, &[("g000", 0), ("g001", 0), ("g002", 0), ("g070", 0)]);
    assert_eq!((board.size(), board.tells()), (100, Some(false)));
    assert!(!board.is_gone("g099") && board.is_gone("h"), "their names are known");
    assert!(!board.needs_all());
    assert_eq!(board.wanted(), Wanted::All);
    board.follows(&Wanted::All);
    assert!(!board.wait_for_all(Duration::from_millis(1)), "they are being read");
    assert_eq!(board.tells(), None, "it is not known");
    // One report is from before its gateway was killed.
    let all: Vec<(String, u64)> = names(100).into_iter().map(|name| (name, 0)).collect();
    let mut all: Vec<(&str, u64)> = all.iter().map(|(name, ago)| (name.as_str(), *ago)).collect();
    all[50].1 = 60;
    read(&board, &Wanted::All, &all);
    assert!(board.needs_all() && board.wait_for_all(Duration::ZERO));
    assert_eq!(there(&board).len(), 98, "without itself and the one that was killed");
    assert_eq!(board.tells(), Some(false), "g000 does");
    // Nobody needs them any more.
    board.needed_at(Instant::now().checked_sub(Duration::from_secs(61)).unwrap());
    let again = board.wanted();
    assert_eq!(again, few);
    board.follows(&again);
    assert_eq!((board.size(), there(&board)), (100, vec!["g000".to_owned(), "g001".to_owned(), "g002".to_owned()]));
}

#[test]
fn a_change_is_refused_while_it_is_not_known_what_other_gateways_have() {
    let board = board("g070", 100);
    let (mut changes, fleet) = super::tests::changes(&board, Vec::new());
    let began = Instant::now();
    let refused = super::tests::propose(&mut changes, "1", crate::ledger::Action::Promote).unwrap_err();
    assert_eq!(refused.code, crate::model::Code::NotReady, "{refused}");
    assert!(refused.message.contains("what the other gateways of the fleet have is being read"), "{refused}");
    assert!(began.elapsed() < Duration::from_secs(30), "it does not wait for ever");
    drop(changes);
    assert_eq!(fleet.join().unwrap(), Vec::<u64>::new(), "nothing was sent");
}
