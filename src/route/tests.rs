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
fn complaints_name_places_as_they_were_written() {
    let arm = |weight: i32, arm: &str| json!({"version": "1", "weight": weight, "arm": arm});
    let bad = json!({
        "split": [arm(-1, "a"), arm(0, "b"), arm(0, "b")],
        "shadows": [{"version": "1", "sample": 2}, {"version": "2"}, {"version": "2"}]
    });
    let complaints = Proposal::parse(&bad).unwrap_err();
    let keys: Vec<&str> = complaints.iter().map(|c| c.split(": ").next().unwrap()).collect();
    assert_eq!(keys, ["split[0].weight", "split[2].arm", "shadows[0].sample", "shadows[2].version"], "{complaints:#?}");
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
    assert_eq!(route(&r, &[], &none, "id"), at(0));
    assert_eq!(route(&r, &[("x-cohort", "beta")], &none, "id"), Route::Rule(0));
    let header = |_: &str| Some("beta");
    let ask = |selector| Ask { selector, header: &header, parameters: &none, request_id: "id" };
    assert_eq!(r.route(&ask(Selector::Version("9".parse().unwrap()))), Route::Pinned("9".parse().unwrap()));
    assert_eq!(r.route(&ask(Selector::Label("canary"))), Route::Label("3".parse().unwrap()));
    assert_eq!(r.route(&ask(Selector::Label("nope"))), Route::UnknownLabel);
}

/// An arm, decided with all that the document asks for.
fn at(index: usize) -> Route {
    Route::Arm { index, keyless: false }
}

fn arm(router: &Router, key: &str) -> usize {
    match route(router, &[("x-user", key)], &Parameters::new(), "no key") {
        Route::Arm { index, keyless: false } => index,
        other => panic!("{key:?} got {other:?}"),
    }
}

fn split(weights: &[f64], salt: &str) -> Router {
    let arms: Vec<_> = (1..).zip(weights).map(|(v, w)| json!({"version": v.to_string(), "weight": w})).collect();
    router(&json!({"split": arms, "sticky_by": {"header": "x-user"}, "salt": salt}))
}

#[test]
fn of_several_rules_the_first_that_matches_wins_whatever_their_headers() {
    let rule = |header: &str, equals: &str| json!({"header": header, "equals": equals, "version": "2"});
    let r = router(&json!({
        "split": [{"version": "1", "weight": 1}],
        "rules": [rule("x-a", "1"), rule("x-a", "2"), rule("x-b", "2"), rule("x-a", "3"), rule("x-b", "3")]
    }));
    let none = Parameters::new();
    let routed = |headers: &[(&str, &str)]| route(&r, headers, &none, "id");
    assert_eq!(routed(&[("x-a", "2"), ("x-b", "2")]), Route::Rule(1));
    assert_eq!(routed(&[("x-a", "3"), ("x-b", "2")]), Route::Rule(2));
    assert_eq!(routed(&[("x-a", "3")]), Route::Rule(3));
    assert_eq!(routed(&[("x-b", "3")]), Route::Rule(4));
    assert_eq!(routed(&[("x-b", "1")]), at(0));
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
    assert_eq!(arms, [0, 0, 1, 0, 1, 0, 0, 0].map(at));
    assert_eq!(route(&again, &[], &vec![("user".into(), Parameter::String("3".into()))], "x"), arms[3]);
}

#[test]
fn a_missing_or_empty_key_is_said_and_the_request_id_stands_in() {
    let sticky = split(&[50.0, 50.0], "s");
    let by_id =
        router(&json!({"split": [{"version": "1", "weight": 50}, {"version": "2", "weight": 50}], "salt": "s"}));
    let none = Parameters::new();
    for i in 0..200 {
        let id = format!("request-{i}");
        let Route::Arm { index, keyless } = route(&by_id, &[], &none, &id) else { panic!("a split decides") };
        assert!(!keyless, "no key was asked for");
        assert_eq!(route(&sticky, &[], &none, &id), Route::Arm { index, keyless: true });
        assert_eq!(route(&sticky, &[("x-user", "")], &none, &id), Route::Arm { index, keyless: true });
    }
    let alone = split(&[1.0, 0.0], "s");
    assert_eq!(route(&alone, &[], &none, "id"), Route::Arm { index: 0, keyless: true }, "also where nothing is chosen");
    assert_eq!(arm(&alone, "u"), 0);
}

/// Bounds of five standard deviations of a binomial: one in two million sound splits would leave them.
#[track_caller]
fn within_binomial_bounds(n: usize, share: f64, found: usize) {
    let (mean, deviation) = (n as f64 * share, (n as f64 * share * (1.0 - share)).sqrt());
    assert!((found as f64 - mean).abs() <= 5.0 * deviation, "{found} of {n} at a share of {share}");
}

#[test]
fn shares_are_the_weights_over_a_million_keys() {
    const KEYS: usize = 1_000_000;
    for weights in
        [&[90.0, 10.0][..], &[1.0, 1.0, 1.0], &[999.0, 1.0], &[0.2, 0.0, 0.3, 0.5], &[1e-3, 2e-3, 3e-3, 4e-3]]
    {
        let r = split(weights, "shares");
        let mut counts = vec![0; weights.len()];
        for i in 0..KEYS {
            counts[arm(&r, &format!("user-{i}"))] += 1;
        }
        let sum: f64 = weights.iter().sum();
        for (weight, count) in weights.iter().zip(counts) {
            within_binomial_bounds(KEYS, weight / sum, count);
        }
    }
}

#[test]
fn a_ramp_only_ever_moves_keys_to_the_arm_it_raises() {
    const KEYS: usize = 50_000;
    let keys: Vec<String> = (0..KEYS).map(|i| format!("user-{i}")).collect();
    // The others share what is left as they did before.
    let step = |percent: f64| split(&[0.6 * (100.0 - percent), 0.4 * (100.0 - percent), percent], "ramp");
    let mut before: Vec<usize> = keys.iter().map(|key| arm(&step(0.0), key)).collect();
    let mut share_before = 0.0;
    for percent in [1.0, 5.0, 25.0, 50.0, 99.0, 100.0] {
        let router = step(percent);
        let mut moved = 0;
        for (key, was) in keys.iter().zip(&mut before) {
            let is = arm(&router, key);
            assert!(is == *was || is == 2, "{key} went from arm {was} to {is} when arm 2 was raised to {percent} %");
            moved += usize::from(is != *was);
            *was = is;
        }
        within_binomial_bounds(KEYS, (percent - share_before) / 100.0, moved);
        share_before = percent;
    }
    assert!(before.iter().all(|arm| *arm == 2), "at 100 % nobody is left");
}

#[test]
fn different_salts_are_independent() {
    const KEYS: usize = 200_000;
    let (a, b) = (split(&[1.0, 2.0, 1.0], "spring"), split(&[1.0, 2.0, 1.0], "summer"));
    let mut table = [[0usize; 3]; 3];
    for i in 0..KEYS {
        let key = format!("user-{i}");
        table[arm(&a, &key)][arm(&b, &key)] += 1;
    }
    let rows: Vec<usize> = table.iter().map(|row| row.iter().sum()).collect();
    let columns: Vec<usize> = (0..3).map(|c| table.iter().map(|row| row[c]).sum()).collect();
    let mut chi_squared = 0.0;
    for (r, row) in table.iter().enumerate() {
        for (c, found) in row.iter().enumerate() {
            let expected = rows[r] as f64 * columns[c] as f64 / KEYS as f64;
            chi_squared += (*found as f64 - expected).powi(2) / expected;
        }
    }
    // The 99.9 % point of chi-squared with (3-1)(3-1) = 4 degrees of freedom; keys and salts are fixed, so this cannot flicker.
    assert!(chi_squared < 18.47, "{chi_squared}: {table:?}");
}

#[test]
fn the_sample_ratio_says_what_a_table_of_chi_squared_says() {
    // (60-50)²/50 twice; scipy.stats.chisquare([60, 40]) gives statistic 4.0, p-value 0.0455002638963584.
    let found = SampleRatio::of(&[1.0, 1.0], &[60, 40]);
    assert_eq!((found.requests, found.chi_squared, found.degrees_of_freedom), (100, 4.0, 1));
    assert!((found.p_value - 0.045_500_263_896_358).abs() < 1e-12, "{found:?}");
    assert_eq!(found.verdict, Ratio::Fits);
    // scipy.stats.chisquare([880, 80, 40], [900, 50, 50]): 20.444…, 3.6344e-05.
    let found = SampleRatio::of(&[90.0, 5.0, 5.0], &[880, 80, 40]);
    assert!(
        (found.chi_squared - 20.444_444_444).abs() < 1e-8 && (found.p_value - 3.634_4e-5).abs() < 1e-8,
        "{found:?}"
    );
    assert_eq!((found.degrees_of_freedom, found.verdict), (2, Ratio::Mismatch));
}

#[test]
fn the_sample_ratio_knows_what_it_cannot_say() {
    assert_eq!(SampleRatio::of(&[99.0, 1.0], &[400, 0]).verdict, Ratio::TooFew, "four are expected on the second");
    assert_eq!(SampleRatio::of(&[1.0, 1.0], &[0, 0]).verdict, Ratio::TooFew);
    assert_eq!(SampleRatio::of(&[1.0, 0.0], &[1000, 0]).verdict, Ratio::Fits, "one arm is always right");
    assert_eq!(SampleRatio::of(&[1.0, 0.0], &[1000, 1]).verdict, Ratio::Mismatch, "nobody should have got there");
}

#[test]
fn sound_splits_are_seldom_called_broken_and_broken_ones_always() {
    let (weights, sound) = ([80.0, 20.0], |salt: &str| split(&[80.0, 20.0], salt));
    let counts = |router: &Router| {
        let mut counts = [0u64; 2];
        (0..5000).for_each(|i| counts[arm(router, &format!("user-{i}"))] += 1);
        counts
    };
    let called_broken = (0..400)
        .filter(|i| SampleRatio::of(&weights, &counts(&sound(&format!("s{i}")))).verdict == Ratio::Mismatch)
        .count();
    // One in a thousand: of 400, five or more once in 16,000 times; the salts are fixed, so this cannot flicker.
    assert!(called_broken <= 4, "{called_broken} of 400");
    let broken = counts(&split(&[75.0, 25.0], "broken"));
    assert_eq!(SampleRatio::of(&weights, &broken).verdict, Ratio::Mismatch, "{broken:?}");
}

proptest::proptest! {
    #[test]
    fn moving_one_weight_moves_only_the_keys_that_have_to(
        weights in proptest::collection::vec(0.0..100.0f64, 2..8),
        which in proptest::arbitrary::any::<proptest::sample::Index>(),
        to in 0.0..100.0f64,
        salt in "[a-z]{1,8}",
    ) {
        let which = which.index(weights.len());
        let mut after = weights.clone();
        after[which] = to;
        proptest::prop_assume!(weights.iter().sum::<f64>() > 0.0 && after.iter().sum::<f64>() > 0.0);
        let (old, new) = (split(&weights, &salt), split(&after, &salt));
        for i in 0..100 {
            let key = format!("user-{i}");
            let (was, is) = (arm(&old, &key), arm(&new, &key));
            if to > weights[which] {
                proptest::prop_assert!(is == was || is == which);
            } else {
                proptest::prop_assert!(is == was || was == which);
            }
        }
    }

    #[test]
    fn no_json_makes_a_document_panic(text in r#"\{("(split|shadows|rules|labels|sticky_by|salt)":[\[\]\{\}0-9a-z",:.-]{0,40},?){0,4}\}"#) {
        if let Ok(value) = serde_json::from_str(&text) {
            let _ = Proposal::parse(&value);
        }
    }
}
