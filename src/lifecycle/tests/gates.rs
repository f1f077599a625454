//! The gates of promotions.

use super::fixture::*;
use crate::ledger::{self, AuditQuery, Event, LedgerReader};
use crate::lifecycle::Promote;
use crate::model::{Code, Dim, Failure, Signature, TensorSpec};
use crate::model_settings::Verdict;
use crate::model_settings::{Evidence, Gates, Judged};
use crate::registry::State;
use crate::route::Selector;
use crate::shadow::Agreement;
use crate::tensor::DataType;
use serde_json::{Value, json};

fn gates(json: &Value) -> Gates {
    Gates::parse(json).unwrap()
}

fn with_gates(json: &Value) -> Promote {
    Promote { gates: Some(gates(json)), ..promote(2) }
}

/// Version 1 serves and 2 is ready.
fn two_versions(model_toml: &str) -> (Fixture, LedgerReader) {
    let workspace = Workspace::new();
    workspace.write("m", "model.toml", model_toml);
    workspace.put("m", 1, &answers(1));
    let (writer, ledger) = ledger::open(&workspace.dir.path().join("data")).unwrap();
    let config = workspace.config();
    let fixture = workspace.start_on(config, Box::new(writer));
    fixture.wait_state("m", 1, State::Serving);
    fixture.workspace.put("m", 2, &answers(2));
    fixture.wait_state("m", 2, State::Ready);
    (fixture, ledger)
}

fn golden_version(fixture: &Fixture, v: u64) {
    let tensor = |name: &str, n: u64| json!({"name": name, "shape": [1], "datatype": "FP32", "data": [n]});
    let golden = json!({"cases": [{"request": {"inputs": [tensor("x", 7)]}, "outputs": [tensor("y", v)]}]}).to_string();
    fixture.workspace.put_with("m", v, &[("model.onnx", &answers(v)), ("golden.json", &golden)]);
}

fn names(failure: &Failure) -> Vec<&str> {
    failure.details.iter().map(|words| words.split(':').next().unwrap()).collect()
}

fn last_event(ledger: &LedgerReader) -> Event {
    let mut events = ledger.audit(&AuditQuery { model: None, since: None, limit: 1 }).unwrap();
    events.remove(0)
}

// === the verdicts ===

fn signature(names: &[&str]) -> Signature {
    let spec = |name: &&str| TensorSpec {
        name: (*name).into(),
        datatype: DataType::Fp32,
        dims: Some(vec![Dim::Free(Some("N".into())), Dim::Fixed(4)]),
    };
    Signature::new(names.iter().map(spec).collect(), vec![spec(&"y")])
}

#[test]
fn each_gate_reports_what_it_required_and_found() {
    let (same, wide) = (signature(&["x"]), signature(&["x", "z"]));
    let evidence = |pairs, agreed, golden_cases| Evidence {
        primaries: vec![version(1), version(5)],
        agreement: Agreement { pairs, agreed },
        top1: (agreed, 4 * pairs),
        golden_cases,
        signature: Some(&same),
        serving: vec![(version(1), Some(&same)), (version(5), Some(&wide)), (version(6), None)],
    };
    let all = gates(&json!({"shadow_agreement": 0.07, "shadow_pairs": 100, "golden": true, "signature": true}));
    let verdicts = all.judge(&evidence(100, 7, 2));
    let passed: Vec<(&str, bool)> = verdicts.iter().map(|v| (v.gate, v.passed)).collect();
    assert_eq!(
        passed,
        [("shadow_pairs", true), ("shadow_agreement", true), ("golden", true), ("signature", false)],
        "7 of 100 is a share of 0.07: {verdicts:?}"
    );
    let [pairs, agreement, golden, signature] = &verdicts[..] else { panic!("{verdicts:?}") };
    assert_eq!(pairs.asked, "at least 100 pairs of answers compared with those of versions 1, 5");
    assert_eq!(
        (&*agreement.found, &*golden.found),
        ("0.07 (7 of 100)", "2 golden answers, all verified when it was loaded")
    );
    assert_eq!(
        signature.found,
        "compared with version 5: without input z FP32 [N,4]; the signature of version 6 is unknown, because it is not loaded"
    );
    let few = all.judge(&evidence(99, 6, 0));
    assert!(few.iter().all(|v| !v.passed), "{few:?}");
    let none = gates(&json!({"shadow_agreement": 0})).judge(&evidence(0, 0, 0));
    assert_eq!(
        none.iter().map(|v| v.passed).collect::<Vec<_>>(),
        [false, false],
        "without pairs no gate passes: {none:?}"
    );
    assert!(none[0].asked.starts_with("at least 1000 pairs") && none[1].found == "no pair was compared", "{none:?}");
    let alone = Evidence { primaries: Vec::new(), serving: Vec::new(), ..evidence(0, 0, 0) };
    let alone = all.judge(&alone);
    assert!(!alone[0].passed && alone[0].found.contains("no other version has traffic in the split"), "{alone:?}");
    assert!(alone[3].passed && alone[3].found == "no other version serves", "{alone:?}");
    assert_eq!(Gates::default().judge(&evidence(0, 0, 0)), [], "no gate is set by default");
}

#[test]
fn the_highest_score_may_be_a_gate() {
    let (same, asked) = (signature(&["x"]), gates(&json!({"shadow_top1_flipped": 0.02, "shadow_pairs": 10})));
    let evidence = |top1| Evidence {
        primaries: vec![version(1)],
        agreement: Agreement { pairs: 50, agreed: 0 },
        top1,
        golden_cases: 0,
        signature: Some(&same),
        serving: Vec::new(),
    };
    let verdict = |top1| asked.judge(&evidence(top1)).remove(1);
    let passed = verdict((1, 50));
    assert!(passed.passed && passed.gate == "shadow_top1_flipped" && passed.found == "0.02 (1 of 50)", "{passed:?}");
    assert!(!verdict((2, 50)).passed);
    let none = verdict((0, 0));
    assert!(!none.passed && none.found == "no row of scores was compared", "{none:?}");
    assert!(asked.use_shadows() && Gates::parse(&json!({"shadow_top1_flipped": 2})).is_err());
}

#[test]
fn the_gates_of_a_promote_replace_the_models_own() {
    let nothing = Evidence {
        primaries: Vec::new(),
        agreement: Agreement::default(),
        top1: (0, 0),
        golden_cases: 0,
        signature: None,
        serving: Vec::new(),
    };
    let (golden, none) = (gates(&json!({"golden": true})), Gates::default());
    let verdicts = |judged: &Option<Judged>| judged.as_ref().map(|j| j.verdicts.len());
    assert_eq!(Judged::new(None, &none, &nothing), None);
    assert_eq!(Judged::new(Some(&none), &none, &nothing), None);
    let own = Judged::new(None, &golden, &nothing);
    assert_eq!((verdicts(&own), own.unwrap().instead_of), (Some(1), None));
    let off = Judged::new(Some(&none), &golden, &nothing);
    assert_eq!(verdicts(&off), Some(0));
    let kept = serde_json::to_value(off.unwrap()).unwrap();
    assert_eq!(kept, json!({"from": "request", "verdicts": [], "instead_of": {"golden": true}}));
    let other = Judged::new(Some(&gates(&json!({"signature": true}))), &golden, &nothing).unwrap();
    assert_eq!((other.verdicts[0].gate, other.instead_of), ("signature", Some(golden)));
}

// === the promote ===

#[test]
fn a_promote_passes_its_gates_or_changes_nothing() {
    let (fixture, ledger) = two_versions("");
    let asked = json!({"shadow_agreement": 0.99, "shadow_pairs": 200, "golden": true, "signature": true});
    let refused = fixture.promote_as("m", with_gates(&asked)).unwrap_err();
    assert_eq!((refused.code, names(&refused)), (Code::Conflict, vec!["shadow_pairs", "shadow_agreement", "golden"]));
    assert!(refused.message.contains("fails 3 of 4 gates of the request"), "{refused:?}");
    fixture.compared("m", 1, 2, 200, 190);
    // Pairs with a version outside the split, or with itself, do not count.
    fixture.compared("m", 3, 2, 5000, 5000);
    fixture.compared("m", 2, 2, 5000, 5000);
    let refused = fixture.promote_as("m", with_gates(&asked)).unwrap_err();
    assert_eq!(names(&refused), ["shadow_agreement", "golden"]);
    assert!(refused.details[0].contains("found: 0.95 (190 of 200)"), "{refused:?}");
    assert_eq!((fixture.predict("m").unwrap(), fixture.entry("m").unwrap().revision()), (1, 1));
    fixture.compared("m", 1, 2, 2000, 1999);
    golden_version(&fixture, 4);
    fixture.wait_state("m", 4, State::Ready);
    let lacks_golden = fixture.promote_as("m", with_gates(&asked)).unwrap_err();
    assert_eq!(
        (names(&lacks_golden), lacks_golden.details.len()),
        (vec!["golden"], 1),
        "a single complaint is a detail too"
    );
    fixture.compared("m", 1, 4, 200, 200);
    let done = fixture.promote_as("m", Promote { version: version(4), ..with_gates(&asked) }).unwrap();
    assert!(done.changed && done.gates.len() == 4 && done.gates.iter().all(|v| v.passed), "{done:?}");
    let event: Value = serde_json::from_str(&last_event(&ledger).after.unwrap()).unwrap();
    assert_eq!((&event["gates"]["from"], &event["split"][0]["version"]), (&json!("request"), &json!("4")));
    assert_eq!(event["gates"]["verdicts"][1]["found"], "1 (200 of 200)");
    let again = fixture.promote_as("m", Promote { version: version(4), ..with_gates(&asked) }).unwrap();
    assert_eq!((again.changed, again.gates), (false, Vec::new()), "nothing has to change");
}

#[test]
fn a_dry_run_reports_which_gates_would_fail() {
    let (fixture, _) = two_versions("[gates]\ngolden = true\nsignature = true\n");
    let result = fixture.promote_as("m", Promote { dry_run: true, ..promote(2) }).unwrap();
    let verdicts: Vec<(&str, bool)> = result.gates.iter().map(|v: &Verdict| (v.gate, v.passed)).collect();
    assert_eq!(verdicts, [("golden", false), ("signature", true)]);
    assert!(result.after.serves_alone(version(2)) && !result.changed);
    assert_eq!(fixture.predict("m").unwrap(), 1);
}

#[test]
fn the_gates_of_model_toml_apply_to_promotions_without_gates() {
    let (fixture, ledger) = two_versions("[gates]\ngolden = true\n");
    let refused = fixture.promote("m", 2).unwrap_err();
    assert!(refused.message.contains("fails 1 of 1 gates of model.toml: golden"), "{refused:?}");
    let done = fixture.promote_as("m", with_gates(&json!({}))).unwrap();
    assert_eq!((done.changed, done.gates.len()), (true, 0));
    let event: Value = serde_json::from_str(&last_event(&ledger).after.unwrap()).unwrap();
    assert_eq!(
        event["gates"]["instead_of"],
        json!({"golden": true}),
        "the audit trail says that they were switched off"
    );
    fixture.rollback("m").unwrap();
    let event: Value = serde_json::from_str(&last_event(&ledger).after.unwrap()).unwrap();
    assert!(event["gates"].is_null() && event["split"][0]["version"] == "1", "{event}");
    assert_eq!(fixture.rollback("m").unwrap().to, version(2), "gates do not apply to rollbacks");
}

#[test]
fn a_signature_gate_applies_although_signature_changes_are_allowed() {
    let (fixture, _) = two_versions("");
    fixture.workspace.put("m", 3, "wide\nend");
    fixture.wait_state("m", 3, State::Ready);
    let wide = |json: Value| {
        let request = Promote { version: version(3), allow_signature_change: true, ..with_gates(&json) };
        fixture.promote_as("m", request)
    };
    let refused = wide(json!({"signature": true})).unwrap_err();
    assert!(refused.details[0].contains("signature: requires exactly the signature of version 1"), "{refused:?}");
    assert!(refused.details[0].contains("compared with version 1: with input extra"), "{refused:?}");
    assert!(wide(json!({})).unwrap().changed);
}

#[test]
fn pairs_of_earlier_bytes_of_the_version_do_not_count() {
    let (fixture, _) = two_versions("");
    fixture.compared("m", 1, 2, 50, 50);
    fixture.compared("m", 2, 1, 50, 50);
    let found = || {
        let request = with_gates(&json!({"shadow_pairs": 50, "shadow_agreement": 1}));
        fixture.promote_as("m", Promote { dry_run: true, ..request }).unwrap().gates[0].found.clone()
    };
    assert_eq!(found(), "50");
    fixture.unload("m", 2).unwrap();
    fixture.load("m", 2).unwrap();
    assert_eq!(found(), "50", "the same bytes are the same version");
    fixture.unload("m", 2).unwrap();
    fixture.workspace.put("m", 2, &answers(9));
    fixture.load("m", 2).unwrap();
    assert_eq!(fixture.predict_as("m", Selector::Version(version(2))).unwrap(), 9);
    assert_eq!(found(), "0");
    assert_eq!(fixture.figures.of(&name("m")).len(), 0, "neither as a shadow nor as a primary");
}

// === automatic promotions ===

#[test]
fn auto_promote_waits_until_its_gates_have_enough_pairs() {
    let (fixture, ledger) = two_versions("auto_promote = true\n[gates]\nshadow_agreement = 0.9\nshadow_pairs = 50\n");
    let notes = |v| fixture.status("m", v).unwrap().notes.join(" ");
    eventually("it is reported", || notes(2).contains("not promoted automatically"));
    assert!(
        notes(2).contains("shadow_pairs: requires at least 50 pairs") && notes(2).contains("found: 0"),
        "{}",
        notes(2)
    );
    assert_eq!(fixture.predict("m").unwrap(), 1);
    fixture.compared("m", 1, 2, 50, 44);
    eventually("the note is updated", || notes(2).contains("0.88 (44 of 50)"));
    assert_eq!(fixture.predict("m").unwrap(), 1);
    fixture.compared("m", 1, 2, 60, 57);
    fixture.wait_state("m", 2, State::Serving);
    eventually("the note is removed", || notes(2).is_empty());
    let event = last_event(&ledger);
    let after: Value = serde_json::from_str(&event.after.unwrap()).unwrap();
    assert_eq!((&*event.action, &after["gates"]["from"]), ("auto_promote", &json!("model.toml")));
    assert_eq!(after["gates"]["verdicts"][1]["found"], "0.95 (57 of 60)");
}

#[test]
fn auto_promote_tries_again_when_model_toml_changes() {
    let (fixture, _) = two_versions("auto_promote = true\n[gates]\ngolden = true\n");
    let notes = |v| fixture.status("m", v).unwrap().notes.join(" ");
    eventually("it is reported", || notes(2).contains("golden"));
    fixture.workspace.write("m", "model.toml", "auto_promote = true\n");
    fixture.wait_state("m", 2, State::Serving);
    eventually("the note is removed", || notes(2).is_empty());
    fixture.workspace.put("m", 3, "wide\nend");
    fixture.wait_state("m", 3, State::Ready);
    eventually("its signature breaks callers", || notes(3).contains("extra"));
    fixture.workspace.write("m", "model.toml", "auto_promote = true\ndescription = \"d\"\n");
    fixture.workspace.put("m", 4, &answers(4));
    fixture.wait_state("m", 4, State::Serving);
    assert!(notes(3).contains("extra"), "it was checked again and still breaks callers");
}
