//! The pure parts: the state table, the policies, `model.toml`, the budget, and what a look at the directory makes of it.

use super::super::memory::Budget;
use super::super::policy::{Known, Leave, Standing, auto_promote, first, wanted};
use super::super::state::{IllegalMove, advance, next};
use super::house::{Ground, answers, name, version};
use crate::backend::EngineChoice;
use crate::execute::Place;
use crate::model::Version;
use crate::model_settings::Gates;
use crate::model_settings::Keep;
use crate::model_settings::ModelSettings;
use crate::prepare::backoff;
use crate::registry::State;
use crate::source::ScanState;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

fn versions(numbers: &[u64]) -> BTreeSet<Version> {
    numbers.iter().map(|n| version(*n)).collect()
}

#[test]
fn the_table_has_these_moves_and_no_others() {
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
        (Serving, Ready),
        (Serving, Draining),
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
    fn an_illegal_move_is_an_error_that_changes_nothing(wishes in proptest::collection::vec(0..State::ALL.len(), 0..200)) {
        let mut state = State::Pending;
        for to in wishes.into_iter().map(|i| State::ALL[i]) {
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
fn which_versions_ought_to_be_loaded() {
    type Verdicts = Vec<(Version, Result<(), Leave>)>;
    let none = BTreeSet::new();
    let two = versions(&[2]);
    let (three, listed) = (versions(&[3]), Keep::Listed(versions(&[1, 9])));
    let known = || Known { found: versions(&[1, 2, 3, 10]), ..Known::default() };
    let ok = |n: u64| (version(n), Ok(()));
    let no = |n: u64, why: Leave| (version(n), Err(why));
    let cases: Vec<(&str, Known, Verdicts)> = vec![
        ("all that are found", known(), vec![ok(1), ok(2), ok(3), ok(10)]),
        (
            "the latest, by number",
            Known { keep: Some(&Keep::Latest(2)), ..known() },
            vec![no(1, Leave::NotKept), no(2, Leave::NotKept), ok(3), ok(10)],
        ),
        (
            "a list, and what the document names",
            Known { keep: Some(&listed), named: versions(&[2]), ..known() },
            vec![ok(1), ok(2), no(3, Leave::NotKept), no(10, Leave::NotKept)],
        ),
        (
            "what the document names is kept though its files are gone",
            Known { found: versions(&[1]), named: versions(&[2]), ..Known::default() },
            vec![ok(1), ok(2)],
        ),
        (
            "an operator's wish goes before the policy",
            Known { keep: Some(&Keep::Latest(1)), asked: Some(&three), ..known() },
            vec![no(1, Leave::NotKept), no(2, Leave::NotKept), ok(3), ok(10)],
        ),
        (
            "unloaded stays unloaded, though asked for before",
            Known { operator_unloaded: Some(&three), asked: Some(&three), evicted: Some(&none), ..known() },
            vec![ok(1), ok(2), no(3, Leave::Operator), ok(10)],
        ),
        (
            "evicted stays out",
            Known { evicted: Some(&three), ..known() },
            vec![ok(1), ok(2), no(3, Leave::Evicted), ok(10)],
        ),
        (
            "kept warm, unless an operator or room for others says otherwise",
            Known {
                keep: Some(&Keep::Latest(1)),
                warm: versions(&[1, 2, 3, 7]),
                operator_unloaded: Some(&three),
                evicted: Some(&two),
                ..known()
            },
            vec![ok(1), no(2, Leave::Evicted), no(3, Leave::Operator), ok(10)],
        ),
        (
            "a model taken out has nothing loaded",
            Known { named: versions(&[1]), found: versions(&[1, 2]), taken_out: true, ..Known::default() },
            vec![no(1, Leave::TakenOut), no(2, Leave::TakenOut)],
        ),
    ];
    for (what, known, expected) in cases {
        assert_eq!(wanted(&known), expected.into_iter().collect::<BTreeMap<_, _>>(), "{what}");
    }
}

#[test]
fn the_first_version_is_the_highest_ready_once_all_are_in() {
    use Standing::{Coming, Out, Ready};
    let cases: [(&[Standing], bool, Option<u64>); 7] = [
        (&[], false, None),
        (&[Ready, Coming], false, None),
        (&[Ready, Ready, Out], false, Some(2)),
        (&[Out, Out], false, None),
        (&[Out, Coming], true, None),
        (&[Ready, Coming], true, Some(1)),
        (&[Ready], false, Some(1)),
    ];
    for (standings, waited, expected) in cases {
        let by_version = (1..).zip(standings).map(|(n, s)| (version(n), *s)).collect();
        assert_eq!(first(&by_version, waited), expected.map(version), "{standings:?} waited {waited}");
    }
}

#[test]
fn a_version_promotes_itself_once_and_only_above_any_that_served() {
    /// Ready versions, the highest that served, those promoted before; and which is promoted now.
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
fn model_toml_means_what_it_says_and_complains_of_everything_at_once() {
    let read = |text: &str| ModelSettings::parse("model.toml", text);
    let full = read(
        "engine = \"tract\"\nversions = { latest = 2 }\nauto_promote = true\ndescription = \"d\"\n\
         feature_names = [\"a\", \"b\"]\n[batching]\nenabled = false\n\
         [execution]\nat_once = true\nspread = false\n",
    )
    .unwrap();
    let place = Place { at_once: Some(true), spread: Some(false) };
    assert_eq!((full.execution.batching.enabled, full.execution.place), (Some(false), place));
    assert_eq!((full.engine, full.versions, full.auto_promote), (EngineChoice::Tract, Keep::Latest(2), true));
    let about = serde_json::json!({"description": "d", "feature_names": ["a", "b"], "batching_enabled": false});
    assert_eq!(serde_json::Value::Object(full.metadata), about);
    let strict = read(
        "keep_warm = \"1h\"\n[gates]\nshadow_agreement = 0.99\nshadow_pairs = 50\ngolden = true\nsignature = true\n",
    );
    let strict = strict.unwrap();
    let gates = Gates { shadow_agreement: Some(0.99), shadow_pairs: Some(50), golden: true, signature: true };
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
fn a_budget_says_the_numbers() {
    let mut budget = Budget::new(100);
    budget.take(60).unwrap();
    let words = budget.take(50).unwrap_err().to_string();
    assert!(words.contains("50 bytes") && words.contains("60 of the memory budget of 100"), "{words}");
    assert_eq!((budget.missing(50), budget.missing(40)), (10, 0));
    budget.give_back(60);
    budget.take(100).unwrap();
    assert!(budget.take(u64::MAX).is_err(), "sums that overflow do not fit");
}

#[test]
fn waiting_doubles_up_to_a_minute() {
    let seconds: Vec<u64> = (1..9).map(|n| backoff(n).as_secs()).collect();
    assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(backoff(u32::MAX).as_secs(), 60);
}

// === looks ===

const SETTLE: Duration = Duration::from_secs(1);

#[test]
fn files_come_to_rest_when_they_were_the_same_for_long_enough() {
    let ground = Ground::new();
    let mut memory = ScanState::new(ground.models(), SETTLE);
    let begun = Instant::now();
    let at = |ms: u64| begun + Duration::from_millis(ms);
    ground.write("m/1", "model.onnx", "first half");
    let look = memory.look_at_all(at(0));
    assert!(look.first && !look.changed[0].1.as_ref().unwrap().versions[&version(1)].still);
    assert_eq!(memory.due(at(999)), BTreeSet::new());
    assert_eq!(memory.due(at(1000)), BTreeSet::from([name("m")]));

    ground.write("m/1", "model.onnx", "first half, second half");
    assert_eq!(memory.look_at(memory.due(at(1000)), at(1000)).changed.len(), 1, "its fingerprint changed");
    assert_eq!(memory.next_due(), Some(at(2000)), "the wait begins anew with every change");
    assert!(memory.look_at(memory.due(at(1500)), at(1500)).changed.is_empty());

    let look = memory.look_at(memory.due(at(2000)), at(2000));
    assert!(look.changed[0].1.as_ref().unwrap().versions[&version(1)].still);
    assert_eq!(memory.next_due(), None);
    assert!(memory.look_at_all(at(3000)).changed.is_empty(), "what did not change is not told again");
}

#[test]
fn files_that_changed_long_ago_are_at_rest_at_once() {
    let ground = Ground::new();
    ground.write("m/1", "model.onnx", "x");
    // The status time cannot be set back, so nothing of this test's is old enough; a settling time of zero stands for it.
    let mut memory = ScanState::new(ground.models(), Duration::ZERO);
    memory.look_at_all(Instant::now());
    let look = memory.look_at(memory.due(Instant::now()), Instant::now());
    assert!(look.changed[0].1.as_ref().unwrap().versions[&version(1)].still);
}

#[test]
fn an_unreadable_or_empty_root_takes_nothing_away() {
    let ground = Ground::new();
    ground.put("m", 1, &answers(1));
    ground.put("n", 1, &answers(1));
    let mut memory = ScanState::new(ground.models(), SETTLE);
    assert_eq!(memory.look_at_all(Instant::now()).changed.len(), 2);
    let aside = ground.dir.path().join("aside");
    std::fs::rename(ground.models(), &aside).unwrap();
    assert!(memory.look_at_all(Instant::now()).changed.is_empty(), "it is not there");
    std::fs::create_dir(ground.models()).unwrap();
    assert!(memory.look_at_all(Instant::now()).changed.is_empty(), "it is empty");
    assert!(memory.look_at([name("m")].into(), Instant::now()).changed.is_empty());
    std::fs::remove_dir(ground.models()).unwrap();
    std::fs::rename(&aside, ground.models()).unwrap();
    std::fs::remove_dir_all(ground.models().join("m")).unwrap();
    let look = memory.look_at_all(Instant::now());
    assert_eq!(look.changed, [(name("m"), None)], "one of several is believed");
}

#[test]
fn what_is_no_model_and_no_version_is_overlooked() {
    let ground = Ground::new();
    for stranger in ["m/latest", "m/01", "m/0", "m/.2.tmp-1-1", "__pycache__", ".git", "m/1"] {
        ground.write(stranger, "model.onnx", "x");
    }
    std::fs::write(ground.models().join("README.md"), "no directory").unwrap();
    let elsewhere = ground.dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("model.onnx"), "x").unwrap();
    std::os::unix::fs::symlink(&elsewhere, ground.models().join("m/7")).unwrap();
    std::os::unix::fs::symlink("/nowhere", ground.models().join("m/8")).unwrap();
    let mut memory = ScanState::new(ground.models(), SETTLE);
    let look = memory.look_at_all(Instant::now());
    let models: Vec<&str> = look.changed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(models, ["m"]);
    let found = look.changed[0].1.as_ref().unwrap();
    let found: Vec<u64> = found.versions.keys().map(|v| v.number()).collect();
    assert_eq!(found, [1, 7], "a version may be a link, as volumes are mounted");
}
