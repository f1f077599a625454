//! Tests of placement, quorums and the forms of versions.

use super::board::Board;
use super::change::{Changes, Outcome};
use super::placement::{self, Labels, Rule};
use super::tests::{changes, config, document, name, node, propose, shared, stored};
use super::wire::{self, Fetching, Node, SCHEMA};
use super::*;
use crate::ledger::{Action, Change, Effect, SharedModel};
use crate::lifecycle::Proposed;
use crate::model::VersionId;
use std::time::Instant;

fn propose_with(changes: &mut Changes, version: &str, quorum: Option<f64>) -> Result<(), crate::model::Failure> {
    let effect = Effect::SetDocument { document: document(version), highest_served: None, auto_promoted: None };
    let (model, actor, action) = (name("m"), "anna".to_owned(), Action::Promote);
    let change = Change { model, actor, action, reason: None, before: None, after: None, effect };
    changes.agree(&Proposed { local: &SharedModel::default(), change: &change, quorum })
}

#[test]
fn a_share_of_the_gateways_may_do_and_a_refusal_says_what_each_lacks() {
    let board = Board::new(&config());
    let (mut changes, fleet) = changes(&board, vec![Outcome::Stored(1)]);
    board.following();
    let mut fetching = node("m", &["1"]);
    let model = fetching.models.get_mut("m").unwrap();
    model.fetching.insert("2".to_owned(), Fetching { bytes: 40_900_000, of: 200_000_000 });
    board.node("b", fetching);
    let mut loading = node("m", &["1"]);
    loading.models.get_mut("m").unwrap().others.insert("2".to_owned(), "warming".to_owned());
    board.node("c", loading);
    board.node("d", node("m", &["1", "2"]));
    let refused = propose_with(&mut changes, "2", None).unwrap_err();
    let expected = ["version 2 is being fetched on b (40 of 200 MB)", "version 2 is not ready on c: it is warming"];
    assert_eq!(refused.details, expected);
    let refused = propose_with(&mut changes, "2", Some(0.51)).unwrap_err();
    assert!(
        refused.message.starts_with("2 of 4 gateways of the fleet can serve it, and the quorum is 0.51: "),
        "{refused}"
    );
    assert_eq!(propose_with(&mut changes, "2", Some(0.5)), Ok(()), "this gateway counts too");
    assert_eq!(fleet.join().unwrap(), [0]);
}

fn labelled(node: &mut Node, region: &str) -> Node {
    node.labels = Labels::from([("region".to_owned(), region.to_owned())]);
    node.rules = placement::fingerprint(&placed().placement);
    node.clone()
}

/// The gateway a in us; models with eu in their names are on two gateways in eu.
fn placed() -> Config {
    let labels = |region: &str| Labels::from([("region".to_owned(), region.to_owned())]);
    let rule = Rule { models: vec!["eu-*".parse().unwrap()], labels: labels("eu"), replicas: None };
    Config { labels: labels("us"), placement: vec![rule], ..config() }
}

#[test]
fn a_model_that_others_have_is_not_followed_not_asked_for_and_found_there() {
    let board = Board::new(&placed());
    let (mut changes, fleet) = changes(&board, vec![Outcome::Stored(1)]);
    board.following();
    assert!(board.is_here(&name("m")) && !board.is_here(&name("eu-m")));
    assert_eq!(board.elsewhere("m", || true), None);
    assert_eq!(board.elsewhere("eu-m", || false), None, "nobody knows it");
    let words = |board: &Board| board.elsewhere("eu-m", || true).unwrap();
    assert!(words(&board).ends_with("no gateway with region=eu is there"), "{}", words(&board));
    board.node("b", labelled(&mut node("eu-m", &[]), "eu"));
    board.node("u", labelled(&mut node("m", &["1"]), "us"));
    assert!(words(&board).ends_with("it is to be on b, which cannot serve it now"), "{}", words(&board));
    board.node("b", labelled(&mut node("eu-m", &["1"]), "eu"));
    assert!(words(&board).ends_with("it is on b"), "{}", words(&board));
    board.shared(name("eu-m"), stored(3), shared("1"));
    assert_eq!((board.to_follow(Instant::now()).len(), board.trouble()), (0, None));
    assert!(!changes.is_placed_here(&name("eu-m")));
    // b does not have m, and it is to have it.
    let refused = propose(&mut changes, "1", Action::Promote).unwrap_err();
    assert!(refused.message.ends_with(": b does not have the model"), "{refused}");
    board.left("b");
    assert_eq!(propose(&mut changes, "1", Action::Promote), Ok(()), "who is gone is not asked");
    assert_eq!(board.others(&name("eu-m")), [], "u is not to have it");
    fleet.join().unwrap();
    board.node("b", labelled(&mut node("eu-m", &["1"]), "eu"));
    let mut other = labelled(&mut node("m", &["1"]), "us");
    other.rules = String::new();
    board.node("c", other);
    assert!(board.trouble().unwrap().contains("the gateway c has other rules"));
}

#[test]
fn a_gateway_that_restarts_keeps_its_models() {
    let rule = Rule { models: vec!["*".parse().unwrap()], labels: Labels::new(), replicas: Some(1) };
    let board = Board::new(&Config { placement: vec![rule], ..config() });
    board.following();
    board.node("b", node("x", &[]));
    let models: Vec<ModelName> = (0..50).map(|n| name(&format!("m{n}"))).collect();
    let here = |board: &Board| models.iter().filter(|model| board.is_here(model)).count();
    let before = here(&board);
    assert!((10..=40).contains(&before), "{before} of 50");
    board.left("b");
    assert_eq!(here(&board), before);
    board.node("b", node("x", &[]));
    assert_eq!(here(&board), before);
}

#[test]
fn versions_have_keys_of_their_own() {
    for (model, version, key) in [("m", "3", "m.3"), ("a.b", "10", "a=2Eb.10")] {
        let id = VersionId { model: name(model), version: version.parse().unwrap() };
        assert_eq!(wire::version_key(&id), key);
        assert_eq!(wire::version_of(key), Some(id));
    }
    for wrong in ["", "m", "m.", ".3", "m.x", "m.0", "m.3.x", "m 3.3"] {
        assert_eq!(wire::version_of(wrong), None, "{wrong}");
    }
    let file = |sha256: String| wire::SharedFile { path: "model.onnx".to_owned(), sha256, bytes: 1 };
    let version = |sha256| {
        let (actor, node, ts) = (String::new(), String::new(), String::new());
        wire::SharedVersion { schema: SCHEMA, files: vec![file(sha256)], actor, node, ts }.checked()
    };
    assert!(version("ab".repeat(32)).is_ok());
    for wrong in ["AB".repeat(32), "ab".to_owned(), "../x".to_owned(), String::new()] {
        assert!(version(wrong.clone()).unwrap_err().contains("expected the SHA-256 of a file"), "{wrong}");
    }
}
