//! History and audit trail from a real ledger.

use super::fixture::{Fixture, bare, name};
use crate::ledger::{Action, Change, Effect};
use crate::registry::State;
use serde_json::json;

fn commit(fixture: &mut Fixture, model: &str, n: u64, action: Action) {
    let document = json!({"split": [{"version": n.to_string(), "weight": 1.0, "arm": n.to_string()}]}).to_string();
    let change = Change {
        model: name(model),
        actor: "ann".to_owned(),
        action,
        reason: Some(format!("reason {n}")),
        before: (n > 1).then(|| r#"{"was":1}"#.to_owned()),
        after: Some(document.clone()),
        effect: Effect::SetDocument { document, highest_served: None, auto_promoted: None },
    };
    fixture.ledger.commit(change).unwrap();
}

fn with_history() -> Fixture {
    let mut fixture = Fixture::new();
    commit(&mut fixture, "fraud", 1, Action::FirstDocument);
    commit(&mut fixture, "fraud", 2, Action::Promote);
    commit(&mut fixture, "churn", 3, Action::PutTraffic);
    fixture
}

#[test]
fn history_lists_all_documents_newest_first() {
    let mut fixture = with_history();
    let json = fixture.get("/api/v1/models/fraud/history").json();
    assert_eq!(json["model"], "fraud");
    let history = json["history"].as_array().unwrap();
    let changes: Vec<_> =
        history.iter().map(|h| (h["revision"].as_u64().unwrap(), h["action"].as_str().unwrap())).collect();
    assert_eq!(changes, [(2, "promote"), (1, "first_document")], "a model without a directory keeps its history");
    assert_eq!((&history[0]["actor"], &history[0]["reason"]), (&json!("ann"), &json!("reason 2")));
    assert_eq!(history[0]["document"]["split"][0]["version"], "2", "a document is a JSON object, not a string");
    history[0]["ts"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    fixture.get("/api/v1/models/nobody/history").refused(404, "MODEL_NOT_FOUND", "nobody");
    fixture.publish_as("new", vec![bare(1, State::Pending)], None, false);
    assert_eq!(fixture.get("/api/v1/models/new/history").json(), json!({"model": "new", "history": []}));
}

#[test]
fn audit_lists_changes_newest_first() {
    let fixture = with_history();
    let json = fixture.get("/api/v1/audit").json();
    let events = json["events"].as_array().unwrap();
    let ids: Vec<u64> = events.iter().map(|e| e["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [3, 2, 1]);
    let names: Vec<&String> = events[1].as_object().unwrap().keys().collect();
    assert_eq!(names, ["id", "ts", "actor", "action", "model", "reason", "before", "after", "hash"]);
    assert_eq!((&events[1]["before"], &events[2]["before"]), (&json!({"was": 1}), &json!(null)));
    assert_eq!(events[1]["after"]["split"][0]["version"], "2");
}

#[test]
fn audit_is_filtered_by_model_time_and_count() {
    let fixture = with_history();
    let ids = |query: &str| -> Vec<u64> {
        let json = fixture.get(&format!("/api/v1/audit?{query}")).json();
        json["events"].as_array().unwrap().iter().map(|e| e["id"].as_u64().unwrap()).collect()
    };
    let second = fixture.get("/api/v1/audit").json()["events"][1]["ts"].as_str().unwrap().to_owned();
    assert_eq!(ids("model=fraud"), [2, 1]);
    assert_eq!(ids("model=nobody"), [0; 0]);
    assert_eq!(ids("limit=1"), [3]);
    assert_eq!(ids("model=fraud&limit=1"), [2]);
    assert_eq!(ids("limit=10000"), [3, 2, 1]);
    assert_eq!(ids(&format!("since={second}")), [3, 2]);
    assert_eq!(ids("since=2000-01-01"), [3, 2, 1]);
    assert_eq!(ids("since=2999-01-01T00:00:00%2B01:00"), [0; 0]);
    assert_eq!(ids("since=2999-01-01T00:00:00+01:00"), [0; 0], "a plus sign that was not escaped");
    assert_eq!(ids("model=&since=&limit="), [3, 2, 1], "an empty value counts as absent");
}

#[test]
fn audit_names_the_wrong_parameter() {
    let fixture = with_history();
    let table = [
        ("limit=0", "limit: expected a number from 1 to 10000, got \"0\""),
        ("limit=-1", "limit: expected"),
        ("limit=10001", "limit: expected"),
        ("limit=ten", "limit: expected"),
        ("limit=1&limit=2", "limit: given more than once"),
        ("since=yesterday", "since: expected a time such as"),
        ("since=2026-11-21T08:00:00", "since: expected"),
        ("since=2026-02-30", "since: expected"),
        ("model=..", "model: expected the name of a model, got \"..\""),
        ("modell=fraud", "modell: unknown parameter; known parameters: model, since, limit"),
    ];
    for (query, words) in table {
        let (status, code, error) = fixture.get(&format!("/api/v1/audit?{query}")).problem();
        assert_eq!((status, code.as_str()), (400, "INVALID_REQUEST"), "{query}");
        assert!(error.contains(words), "{query}: {error:?} should contain {words:?}");
    }
    let several = fixture.get("/api/v1/audit?limit=0&since=x").json();
    assert_eq!(several["details"].as_array().unwrap().len(), 2, "all complaints at once: {several}");
}

#[test]
fn the_trail_is_exported_in_pages_that_verify() {
    let fixture = with_history();
    let page = |query: &str| {
        let answer = fixture.get(&format!("/api/v1/audit/export?{query}"));
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/jsonl"));
        String::from_utf8(answer.bytes).unwrap()
    };
    let whole = page("");
    let events = whole.lines().count() as u64;
    assert!(events >= 3, "{whole}");
    let pages: String = (0..events).map(|after| page(&format!("after={after}&limit=1"))).collect();
    assert_eq!(pages, whole);
    assert_eq!(page(&format!("after={events}")), "", "the end");
    let verified = crate::ledger::Verifier::of_export(crate::ledger::Heads::default()).read(whole.as_bytes()).unwrap();
    assert!(verified.ok && verified.events == events, "{verified:?}");

    let head = fixture.get("/api/v1/audit/head").json();
    assert_eq!(
        (head["id"].as_u64(), head["hash"].as_str()),
        (Some(events), verified.hash.map(|h| h.to_string()).as_deref())
    );
    let newest = fixture.get("/api/v1/audit?limit=1").json()["events"][0].clone();
    assert_eq!(newest["hash"], head["hash"]);
    fixture.get("/api/v1/audit/export?after=-1").refused(
        400,
        "INVALID_REQUEST",
        "after: expected the number of an event",
    );
    fixture.get("/api/v1/audit/export?limit=0").refused(
        400,
        "INVALID_REQUEST",
        "limit: expected a number from 1 to 10000",
    );
}

#[test]
fn no_path_ignores_a_parameter_that_it_does_not_know() {
    use crate::admin::routes::endpoints;
    let mut fixture = with_history();
    fixture.publish(vec![bare(1, State::Serving)], None);
    let paths: Vec<&str> = endpoints()
        .iter()
        .filter(|endpoint| endpoint.method == http::Method::GET && endpoint.path.starts_with("/api/v1/"))
        .map(|endpoint| endpoint.path)
        .collect();
    assert!(paths.len() > 30, "{paths:?}");
    for path in paths {
        let path = path.replace("{model}", "fraud").replace("{version}", "1").replace("{request}", "r1");
        fixture.get(&format!("{path}?nonsense=1")).refused(400, "INVALID_REQUEST", "nonsense: unknown parameter; ");
    }
}
