use super::*;
use crate::model::{Parameter, Parameters};
use serde_json::json;

fn document(value: &serde_json::Value) -> Document {
    Proposal::parse(value).unwrap().document
}

fn router(value: &serde_json::Value) -> Router {
    Router::new(&"m".parse().unwrap(), document(value))
}

fn route(router: &Router, headers: &[(&str, &str)], parameters: &Parameters, id: &str) -> Route {
    let header = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
    router.route(&Ask { selector: Selector::Traffic, header: &header, parameters, request_id: id })
}

#[test]
fn every_complaint_names_its_key_at_once() {
    let bad = json!({
        "split": [{"version": "1", "weight": -1}, {"version": 2, "weight": 1}, {"version": "3", "weight": 1, "arm": "rule"}],
        "shadows": [{"version": "4", "sample": 1.5}],
        "labels": {"a b": "1", "stable": "x"},
        "sticky_by": {"cookie": "c"},
        "salts": "typo"
    });
    let complaints = Proposal::parse(&bad).unwrap_err();
    for key in [
        "split[0].weight",
        "split[1].version",
        "split[2].arm",
        "shadows[0].sample",
        "labels.a b",
        "labels.stable",
        "sticky_by",
        "salts: unknown member",
    ] {
        assert!(complaints.iter().any(|c| c.starts_with(key)), "{key} in {complaints:#?}");
    }
}

#[test]
fn splits_that_cannot_be_drawn_from_are_refused() {
    for bad in [
        json!({}),
        json!({"split": []}),
        json!({"split": [{"version": "1", "weight": 0}]}),
        json!([]),
        json!({"split": [{"version": "1", "weight": 1}, {"version": "1", "weight": 2}]}),
    ] {
        assert!(Proposal::parse(&bad).is_err(), "{bad}");
    }
    // One version under two arms is an A/A test.
    assert!(
        Proposal::parse(
            &json!({"split": [{"version": "1", "weight": 1, "arm": "a"}, {"version": "1", "weight": 1, "arm": "b"}]})
        )
        .is_ok()
    );
}

#[test]
fn a_document_survives_its_json() {
    let full = json!({
        "split": [{"version": "1", "weight": 90.0, "arm": "control"}, {"version": "2", "weight": 10.0, "arm": "challenger"}],
        "sticky_by": {"header": "x-user-id"},
        "rules": [{"header": "x-cohort", "equals": "beta", "version": "2"}],
        "shadows": [{"version": "3", "sample": 0.25}],
        "labels": {"canary": "2", "stable": "1"},
        "salt": "s", "reason": "why"
    });
    let parsed = document(&full);
    assert_eq!(serde_json::to_value(&parsed).unwrap(), full);
    assert_eq!(Document::from_json(&parsed.to_json()).unwrap(), parsed);
    assert_eq!(parsed.heaviest(), Some("1".parse().unwrap()));
    assert_eq!(parsed.named().len(), 3);
    assert_eq!(parsed.serving().len(), 2);
    let promoted = parsed.promoted("3".parse().unwrap());
    assert!(
        promoted.shadows.is_empty() && promoted.serves_alone("3".parse().unwrap()),
        "a promoted version leaves the shadows"
    );
    assert_eq!(promoted.labels, parsed.labels, "the rest stays");
}

#[test]
fn url_then_rules_then_split() {
    let r = router(&json!({
        "split": [{"version": "1", "weight": 1}],
        "rules": [{"header": "X-Cohort", "equals": "beta", "version": "2"}],
        "labels": {"canary": "3"}
    }));
    let none = Parameters::new();
    assert_eq!(route(&r, &[], &none, "id"), Route::Arm(0));
    assert_eq!(route(&r, &[("x-cohort", "beta")], &none, "id"), Route::Rule(0));
    let header = |_: &str| Some("beta");
    let ask = |selector| Ask { selector, header: &header, parameters: &none, request_id: "id" };
    assert_eq!(r.route(&ask(Selector::Version("9".parse().unwrap()))), Route::Pinned("9".parse().unwrap()));
    assert_eq!(r.route(&ask(Selector::Label("canary"))), Route::Label("3".parse().unwrap()));
    assert_eq!(r.route(&ask(Selector::Label("nope"))), Route::UnknownLabel);
}

#[test]
fn the_same_key_gets_the_same_arm_in_every_process() {
    let r = router(&json!({
        "split": [{"version": "1", "weight": 50}, {"version": "2", "weight": 50}], "sticky_by": {"parameter": "user"}
    }));
    // Written down once: a change of hash would move every customer of every running experiment.
    let arms: Vec<Route> =
        (0..8).map(|i| route(&r, &[], &vec![("user".into(), Parameter::Integer(i))], "ignored")).collect();
    let again = router(&json!({
        "split": [{"version": "1", "weight": 50}, {"version": "2", "weight": 50}], "sticky_by": {"parameter": "user"}
    }));
    assert_eq!(arms, [0, 0, 1, 0, 1, 0, 0, 0].map(Route::Arm));
    assert_eq!(route(&again, &[], &vec![("user".into(), Parameter::String("3".into()))], "x"), arms[3]);
}

#[test]
fn shares_are_the_weights_and_a_raised_weight_only_attracts() {
    let at = |w: f64| router(&json!({"split": [{"version": "1", "weight": 100.0 - w}, {"version": "2", "weight": w}]}));
    let (five, ten) = (at(5.0), at(10.0));
    let none = Parameters::new();
    let (mut second, mut moved_back) = (0u32, 0u32);
    let n = 100_000;
    for i in 0..n {
        let id = format!("user-{i}");
        let before = route(&five, &[], &none, &id);
        let after = route(&ten, &[], &none, &id);
        second += u32::from(before == Route::Arm(1));
        moved_back += u32::from(before == Route::Arm(1) && after == Route::Arm(0));
    }
    // Five standard deviations of a binomial around 5 %.
    let (mean, deviation) = (0.05 * f64::from(n), (f64::from(n) * 0.05 * 0.95).sqrt());
    assert!((f64::from(second) - mean).abs() < 5.0 * deviation, "{second} of {n}");
    assert_eq!(moved_back, 0, "raising an arm's weight takes nobody from it");
}
