//! Who drives a rollout: the rules of its compare-and-set, and what is sent and kept.

use super::board::Board;
use super::change::{Changes, Outcome};
use super::rollouts::Rollouts;
use super::state::SharedState;
use super::tests::{changes_with, config, name, propose, shared, stored};
use super::wire::{Lease, SCHEMA, SharedRollout};
use crate::ledger::{Action, Change, Effect, NewDocument, SharedModel};
use crate::lifecycle::{Peers as _, Proposed};
use crate::model::{Code, Failure};
use crate::rollout::{Fellows as _, Mark, Orders, Stored};
use std::sync::Arc;
use std::time::Instant;

fn rollout(driver: &str) -> SharedState {
    let state = serde_json::json!({"percent": 20, "ended": null});
    let rollout = SharedRollout { state, driver: driver.to_owned(), step: "s1".to_owned(), overridden: None };
    shared("1").unwrap().with_rollout(Some(rollout))
}

fn text(text: &str) -> Arc<str> {
    text.into()
}

/// A change that a rollout on this gateway makes.
fn steer(changes: &mut Changes, document: Option<&str>, action: Action) -> Result<(), Failure> {
    let document = document.map(|document| NewDocument { document: document.to_owned(), highest_served: None });
    let effect = Effect::SetRollout { state: r#"{"percent":50,"ended":null}"#.to_owned(), document };
    let (model, actor) = (name("m"), "rollout".to_owned());
    let change = Change { model, actor, action, reason: None, before: None, after: None, effect };
    changes.agree(&Proposed { local: &SharedModel::default(), change: &change, quorum: None })
}

#[test]
fn a_driver_changes_nothing_that_was_computed_before_another_one_took_over() {
    const STEP: Option<&str> = Some(r#"{"split":[{"version":"1","weight":1}]}"#);
    let board = Board::new(&config());
    let rollouts = Rollouts::new(board.clone(), "a".to_owned());
    let (mut changes, fleet) = changes_with(&rollouts, vec![Outcome::Stored(6), Outcome::Stored(8)]);
    board.following();
    board.shared(name("m"), stored(4), Ok(rollout("a")));
    board.in_force(&name("m"), 4);
    let told = rollouts.told().unwrap();
    assert_eq!((told.len(), told[0].revision, told[0].in_force), (1, 4, true));
    assert_eq!(rollouts.told().unwrap(), [], "nothing new");
    // The decision was computed from revision 4, and b took over meanwhile.
    board.changed(&name("m"), 5, rollout("b"), true);
    for document in [STEP, None] {
        rollouts.based_on(&name("m"), 4);
        let refused = steer(&mut changes, document, Action::RolloutStep).unwrap_err();
        assert_eq!(refused.code, Code::Conflict);
        assert!(refused.message.contains("the fleet's rollout was changed meanwhile (revision 5)"), "{refused}");
        let again = steer(&mut changes, document, Action::RolloutStep).unwrap_err();
        assert_eq!(again.code, Code::Conflict, "a base counts once");
    }
    assert_eq!(rollouts.told().unwrap()[0].rollout.as_ref().unwrap().driver, "b");
    // An operator's pause on this gateway does not make it the driver, and the step stays.
    rollouts.based_on(&name("m"), 5);
    assert_eq!(steer(&mut changes, None, Action::RolloutPause), Ok(()));
    let told = rollouts.told().unwrap()[0].rollout.clone().unwrap();
    assert_eq!((told.driver.as_str(), told.step.as_str()), ("b", "s1"));
    // Each document that the driver puts in force is another step.
    board.changed(&name("m"), 7, rollout("a"), true);
    rollouts.based_on(&name("m"), 7);
    assert_eq!(steer(&mut changes, STEP, Action::RolloutStep), Ok(()));
    let told = rollouts.told().unwrap()[0].rollout.clone().unwrap();
    assert!(told.driver == "a" && told.step != "s1" && told.overridden.is_none(), "{told:?}");
    assert_eq!(fleet.join().unwrap(), [5, 7]);
    // A change by somebody else is named, so that the driver stops.
    let (mut changes, _fleet) = changes_with(&rollouts, vec![Outcome::Stored(9)]);
    assert_eq!(propose(&mut changes, "1", Action::Promote), Ok(()));
    let told = rollouts.told().unwrap()[0].rollout.clone().unwrap();
    assert_eq!(told.overridden.as_deref(), Some("anna on a (promote)"));
}

#[test]
fn counts_are_put_again_on_another_connection() {
    let rollouts = Rollouts::new(Board::new(&config()), "a".to_owned());
    rollouts.connected();
    assert_eq!(rollouts.stored(&name("m")), Stored::Unknown);
    assert_eq!(rollouts.to_read(), [name("m")]);
    rollouts.tell(&name("m"), "1".to_owned());
    let to_put = || rollouts.to_put(Instant::now());
    assert_eq!(to_put(), [], "it is not known yet what the bucket has");
    rollouts.own_stored(&name("m"), 3, Some("0".into()), None);
    assert_eq!(rollouts.stored(&name("m")), Stored::Report("0".into()));
    assert_eq!(to_put(), [(name("m"), 3, text("1"))]);
    rollouts.tell(&name("m"), "2".to_owned());
    rollouts.own_stored(&name("m"), 4, Some("1".into()), None);
    assert_eq!(to_put(), [(name("m"), 4, text("2"))], "a newer one came meanwhile");
    rollouts.own_stored(&name("m"), 5, Some("2".into()), None);
    assert_eq!(to_put(), []);
    rollouts.connected();
    assert_eq!(rollouts.to_read(), [name("m")]);
    rollouts.own_stored(&name("m"), 1, None, None);
    assert_eq!(to_put(), [(name("m"), 1, text("2"))]);
}

#[test]
fn a_lease_counts_for_its_driver_and_reports_come_once() {
    let board = Board::new(&config());
    let rollouts = Rollouts::new(board.clone(), "a".to_owned());
    board.shared(name("m"), stored(4), Ok(rollout("a")));
    rollouts.connected();
    let orders = Orders { step: "s".to_owned(), held_ms: 5, watch: None, why: String::new(), counted: Vec::new() };
    rollouts.saw_lease(name("m"), Lease { schema: SCHEMA, driver: "b".to_owned(), orders: orders.clone() });
    assert!(rollouts.renewed(&name("m"), "b").is_some() && rollouts.renewed(&name("m"), "a").is_none());
    assert_eq!(rollouts.orders(&name("m")).unwrap().0, orders);
    assert_eq!(rollouts.to_renew().len(), 0);
    rollouts.drives(&name("m"), orders);
    assert_eq!(rollouts.to_renew().len(), 1);
    board.shared(name("m"), stored(5), Ok(rollout("b")));
    assert_eq!(rollouts.to_renew().len(), 0, "b took over");
    let mark = |revision| Mark { connection: 1, revision };
    rollouts.saw_report(name("m"), "b".to_owned(), 7, "r".into());
    assert_eq!(rollouts.reports(&name("m"), mark(6)).len(), 1);
    assert_eq!(rollouts.reports(&name("m"), mark(7)).len(), 0);
    assert_eq!(rollouts.stored(&name("m")), Stored::Unknown);
    assert_eq!(rollouts.ended(&name("m"), true), ["a", "b"]);
    assert!(rollouts.ended(&name("m"), true).is_empty());
}
