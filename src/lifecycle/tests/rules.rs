//! Pure functions: the state table, the policies, `model.toml`, the budget.

use super::super::memory::Budget;
use super::super::policy::{PolicyInput, Progress, UnloadReason, auto_promote, first, wanted};
use super::super::state::{IllegalMove, advance, next};
use super::fixture::version;
use crate::backend::EngineChoice;
use crate::execute::Placement;
use crate::model::Version;
use crate::model_settings::Gates;
use crate::model_settings::Keep;
use crate::model_settings::ModelSettings;
use crate::prepare::backoff;
use crate::registry::State;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn versions(numbers: &[u64]) -> BTreeSet<Version> {
    numbers.iter().map(|n| version(*n)).collect()
}

#[test]
fn the_state_table_allows_exactly_these_moves() {
    use State::{Draining, Failed, Loading, Pending, Ready, Serving, Unloaded, Verifying, Warming};
    let legal: BTreeSet<(State, State)> = [
        (Pending, Loading),
        (Pending, Unloaded),
        (Pending, Failed),
        (Loading, Verifying),
        (Loading, Failed),
        (Loading, Pending),
        (Loading, Unloaded),
        (Verifying, Warming),
        (Verifying, Failed),
        (Verifying, Pending),
        (Verifying, Unloaded),
        (Warming, Ready),
        (Warming, Failed),
        (Warming, Pending),
        (Warming, Unloaded),
        (Ready, Serving),
        (Ready, Draining),
        (Ready, Failed),
        (Serving, Ready),
        (Serving, Draining),
        (Serving, Failed),
        (Draining, Unloaded),
        (Unloaded, Pending),
        (Failed, Pending),
        (Failed, Unloaded),
    ]
    .into();
    for from in State::ALL {
        for to in State::ALL {
            assert_eq!(next(from).contains(&to), legal.contains(&(from, to)), "{from} to {to}");
        }
    }
}

proptest! {
    #[test]
    fn an_illegal_move_is_an_error_that_changes_nothing(moves in proptest::collection::vec(0..State::ALL.len(), 0..200)) {
        let mut state = State::Pending;
        for to in moves.into_iter().map(|i| State::ALL[i]) {
            let from = state;
            match advance(&mut state, to) {
                Ok(()) => prop_assert!(next(from).contains(&to) && state == to),
                Err(e) => {
                    prop_assert_eq!(e, IllegalMove { from, to });
                    prop_assert!(state == from && !next(from).contains(&to));
                }
            }
        }
    }
}

#[test]
fn which_versions_should_be_loaded() {
    type Decisions = Vec<(Version, Result<(), UnloadReason>)>;
    let none = BTreeSet::new();
    let two = versions(&[2]);
    let (three, listed) = (versions(&[3]), Keep::Listed(versions(&[1, 9])));
    let input = || PolicyInput { found: versions(&[1, 2, 3, 10]), ..PolicyInput::default() };
    let ok = |n: u64| (version(n), Ok(()));
    let no = |n: u64, why: UnloadReason| (version(n), Err(why));
    let cases: Vec<(&str, PolicyInput, Decisions)> = vec![
        ("all that are found", input(), vec![ok(1), ok(2), ok(3), ok(10)]),
        (
            "the latest, by number",
            PolicyInput { keep: Some(&Keep::Latest(2)), ..input() },
            vec![no(1, UnloadReason::ExcludedBySettings), no(2, UnloadReason::ExcludedBySettings), ok(3), ok(10)],
        ),
        (
            "a list, and what the document names",
            PolicyInput { keep: Some(&listed), required: versions(&[2]), ..input() },
            vec![ok(1), ok(2), no(3, UnloadReason::ExcludedBySettings), no(10, UnloadReason::ExcludedBySettings)],
        ),
        (
            "a version that the document names is kept although its files are gone",
            PolicyInput { found: versions(&[1]), required: versions(&[2]), ..PolicyInput::default() },
            vec![ok(1), ok(2)],
        ),
        (
            "an operator's request overrides the policy",
            PolicyInput { keep: Some(&Keep::Latest(1)), requested: Some(&three), ..input() },
            vec![no(1, UnloadReason::ExcludedBySettings), no(2, UnloadReason::ExcludedBySettings), ok(3), ok(10)],
        ),
        (
            "an unloaded version stays unloaded, although it was requested before",
            PolicyInput { operator_unloaded: Some(&three), requested: Some(&three), evicted: Some(&none), ..input() },
            vec![ok(1), ok(2), no(3, UnloadReason::ByOperator), ok(10)],
        ),
        (
            "an evicted version stays unloaded",
            PolicyInput { evicted: Some(&three), ..input() },
            vec![ok(1), ok(2), no(3, UnloadReason::Evicted), ok(10)],
        ),
        (
            "kept warm, unless an operator unloaded it or it was evicted",
            PolicyInput {
                keep: Some(&Keep::Latest(1)),
                kept_warm: versions(&[1, 2, 3, 7]),
                operator_unloaded: Some(&three),
                evicted: Some(&two),
                ..input()
            },
            vec![ok(1), no(2, UnloadReason::Evicted), no(3, UnloadReason::ByOperator), ok(10)],
        ),
        (
            "an unloaded model has no loaded versions",
            PolicyInput {
                required: versions(&[1]),
                found: versions(&[1, 2]),
                out: Some(UnloadReason::ModelUnloaded),
                returning: versions(&[3]),
                ..PolicyInput::default()
            },
            vec![no(1, UnloadReason::ModelUnloaded), no(2, UnloadReason::ModelUnloaded)],
        ),
    ];
    for (what, input, expected) in cases {
        assert_eq!(wanted(&input), expected.into_iter().collect::<BTreeMap<_, _>>(), "{what}");
    }
}

#[test]
fn the_first_version_is_the_highest_ready_one_once_all_are_settled() {
    use Progress::{Loading, Ready, Stopped};
    let cases: [(&[Progress], bool, Option<u64>); 7] = [
        (&[], false, None),
        (&[Ready, Loading], false, None),
        (&[Ready, Ready, Stopped], false, Some(2)),
        (&[Stopped, Stopped], false, None),
        (&[Stopped, Loading], true, None),
        (&[Ready, Loading], true, Some(1)),
        (&[Ready], false, Some(1)),
    ];
    for (progress, waited, expected) in cases {
        let by_version = (1..).zip(progress).map(|(n, s)| (version(n), *s)).collect();
        assert_eq!(first(&by_version, waited), expected.map(version), "{progress:?} waited {waited}");
    }
}

#[test]
fn a_version_is_promoted_automatically_once_and_only_above_those_that_served() {
    /// Ready versions, the highest that served, those promoted before, and the one promoted now.
    type Case = (&'static [u64], Option<u64>, &'static [u64], Option<u64>);
    let cases: [Case; 6] = [
        (&[1, 2], Some(1), &[], Some(2)),
        (&[1, 2], Some(2), &[], None),
        (&[1, 2, 3], Some(1), &[3], None),
        (&[1, 2], None, &[], Some(2)),
        (&[10, 9], Some(9), &[], Some(10)),
        (&[], Some(1), &[], None),
    ];
    for (ready, highest, before, expected) in cases {
        let ready = ready.iter().map(|n| version(*n));
        let got = auto_promote(ready, highest.map(version), &versions(before));
        assert_eq!(got, expected.map(version), "highest {highest:?}, promoted {before:?}");
    }
}

#[test]
fn model_toml_is_read_and_all_complaints_are_reported_at_once() {
    let read = |text: &str| ModelSettings::parse("model.toml", text);
    let full = read(
        "engine = \"tract\"\nversions = { latest = 2 }\nauto_promote = true\ndescription = \"d\"\n\
         feature_names = [\"a\", \"b\"]\n[batching]\nenabled = false\n\
         [execution]\nat_once = true\nspread = false\n",
    )
    .unwrap();
    let place = Placement { at_once: Some(true), spread: Some(false) };
    assert_eq!((full.execution.batching.enabled, full.execution.place), (Some(false), place));
    assert_eq!((full.engine, full.versions, full.auto_promote), (EngineChoice::Tract, Keep::Latest(2), true));
    let about = serde_json::json!({"description": "d", "feature_names": ["a", "b"], "batching_enabled": false});
    assert_eq!(serde_json::Value::Object(full.metadata), about);
    let strict = read(
        "keep_warm = \"1h\"\n[gates]\nshadow_agreement = 0.99\nshadow_pairs = 50\ngolden = true\nsignature = true\n",
    );
    let strict = strict.unwrap();
    let gates = Gates {
        shadow_agreement: Some(0.99),
        shadow_pairs: Some(50),
        golden: true,
        signature: true,
        ..Gates::default()
    };
    assert_eq!((strict.gates, strict.keep_warm), (gates, Some(Duration::from_hours(1))));
    let words =
        read("keep_warm = 5\n[gates]\nshadow_agreement = 1.5\nshadow_pairs = 0\ngolden = 1\nsignatures = true\n")
            .unwrap_err();
    for part in [
        "keep_warm: expected a duration",
        "gates.shadow_agreement: expected a number from 0 to 1",
        "gates.shadow_pairs: expected a whole number from 1",
        "gates.golden: expected true or false",
        "did you mean `gates.signature`",
    ] {
        assert!(words.contains(part), "{part} in {words}");
    }
    assert_eq!(read("").unwrap(), ModelSettings::default());
    assert_eq!(read("versions = \"all\"").unwrap().versions, Keep::All);
    assert_eq!(read("[versions]\nlatest = 1").unwrap().versions, Keep::Latest(1));
    assert_eq!(read("versions = [\"3\", \"7\"]").unwrap().versions, Keep::Listed(versions(&[3, 7])));
    let words = read("engine = \"onnx\"\nversions = { latest = 0 }\nauto_promot = true\nversion = [3]").unwrap_err();
    for part in
        ["engine: expected", "versions: expected \"all\"", "did you mean `auto_promote`", "unknown key `version`"]
    {
        assert!(words.contains(part), "{part} in {words}");
    }
    assert!(read("versions = [3]").is_err() && read("versions = [\"03\"]").is_err() && read("= 3").is_err());
}

#[test]
fn a_full_budget_reports_the_numbers() {
    let mut budget = Budget::new(100);
    budget.reserve(60).unwrap();
    let words = budget.reserve(50).unwrap_err().to_string();
    assert!(words.contains("50 bytes") && words.contains("use 60 of the memory budget of 100"), "{words}");
    assert_eq!((budget.missing(50), budget.missing(40)), (10, 0));
    budget.release(60);
    budget.reserve(100).unwrap();
    assert!(budget.reserve(u64::MAX).is_err(), "sums that overflow do not fit");
}

#[test]
fn retries_wait_twice_as_long_each_time_up_to_a_minute() {
    let seconds: Vec<u64> = (1..9).map(|n| backoff(n).as_secs()).collect();
    assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(backoff(u32::MAX).as_secs(), 60);
}
