use super::*;
use crate::model::{Parameter, Parameters};
use proptest::prelude::*;
use serde_json::json;

fn document(value: &serde_json::Value) -> Document {
    Proposal::parse(value).unwrap().document
}

fn router(value: &serde_json::Value) -> Router {
    Router::new(&"m".parse().unwrap(), document(value))
}

fn route(router: &Router, headers: &[(&str, &str)], parameters: &Parameters, id: &str) -> Route {
    let header = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
    router.route(&RouteRequest { selector: Selector::Traffic, header: &header, parameters, request_id: id })
}

#[test]
fn all_complaints_are_reported_at_once_with_their_keys() {
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
fn complaints_use_the_index_in_the_sent_list() {
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
fn splits_without_a_weighted_arm_are_refused() {
    for bad in [
        json!({}),
        json!({"split": null}),
        json!({"split": []}),
        json!({"split": [null]}),
        json!({"split": [{"version": null, "weight": 1}]}),
        json!({"split": [{"version": "1", "weight": null}]}),
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
fn a_document_is_the_same_after_serializing_and_parsing() {
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
        "promoting removes the version from the shadows"
    );
    assert_eq!(promoted.labels, parsed.labels, "the rest is unchanged");
}

#[test]
fn the_url_comes_before_rules_and_rules_before_the_split() {
    let r = router(&json!({
        "split": [{"version": "1", "weight": 1}],
        "rules": [{"header": "X-Cohort", "equals": "beta", "version": "2"}],
        "labels": {"canary": "3"}
    }));
    let none = Parameters::new();
    assert_eq!(route(&r, &[], &none, "id"), at(0));
    assert_eq!(route(&r, &[("x-cohort", "beta")], &none, "id"), Route::Rule(0));
    let header = |_: &str| Some("beta");
    let ask = |selector| RouteRequest { selector, header: &header, parameters: &none, request_id: "id" };
    assert_eq!(r.route(&ask(Selector::Version("9".parse().unwrap()))), Route::Pinned("9".parse().unwrap()));
    assert_eq!(r.route(&ask(Selector::Label("canary"))), Route::Label("3".parse().unwrap()));
    assert_eq!(r.route(&ask(Selector::Label("nope"))), Route::UnknownLabel);
}

/// The arm at this index, chosen without falling back to the request id.
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
fn the_first_matching_rule_wins_also_with_different_headers() {
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
    // Fixed values: a changed hash would move the users of every running experiment.
    let arms: Vec<Route> =
        (0..8).map(|i| route(&r, &[], &vec![("user".into(), Parameter::Integer(i))], "ignored")).collect();
    let again = router(&json!({
        "split": [{"version": "1", "weight": 50}, {"version": "2", "weight": 50}], "sticky_by": {"parameter": "user"}
    }));
    assert_eq!(arms, [0, 0, 1, 0, 1, 0, 0, 0].map(at));
    assert_eq!(route(&again, &[], &vec![("user".into(), Parameter::String("3".into()))], "x"), arms[3]);
}

#[test]
fn without_a_sticky_key_the_request_id_is_used_and_reported_as_keyless() {
    let sticky = split(&[50.0, 50.0], "s");
    let by_id =
        router(&json!({"split": [{"version": "1", "weight": 50}, {"version": "2", "weight": 50}], "salt": "s"}));
    let none = Parameters::new();
    for i in 0..200 {
        let id = format!("request-{i}");
        let Route::Arm { index, keyless } = route(&by_id, &[], &none, &id) else { panic!("the split decides") };
        assert!(!keyless, "the document has no sticky key");
        assert_eq!(route(&sticky, &[], &none, &id), Route::Arm { index, keyless: true });
        assert_eq!(route(&sticky, &[("x-user", "")], &none, &id), Route::Arm { index, keyless: true });
    }
    let alone = split(&[1.0, 0.0], "s");
    assert_eq!(route(&alone, &[], &none, "id"), Route::Arm { index: 0, keyless: true }, "also with a single arm");
    assert_eq!(arm(&alone, "u"), 0);
}

/// Asserts a count within five standard deviations of a binomial. One in two million correct splits is outside.
#[track_caller]
fn within_binomial_bounds(n: usize, share: f64, found: usize) {
    let (mean, deviation) = (n as f64 * share, (n as f64 * share * (1.0 - share)).sqrt());
    assert!((found as f64 - mean).abs() <= 5.0 * deviation, "{found} of {n} at a share of {share}");
}

#[test]
fn a_million_keys_are_split_in_proportion_to_the_weights() {
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
fn raising_an_arm_only_moves_keys_to_it() {
    const KEYS: usize = 50_000;
    let keys: Vec<String> = (0..KEYS).map(|i| format!("user-{i}")).collect();
    // The other two arms keep their proportion to each other.
    let step = |percent: f64| split(&[0.6 * (100.0 - percent), 0.4 * (100.0 - percent), percent], "ramp");
    let mut before: Vec<usize> = keys.iter().map(|key| arm(&step(0.0), key)).collect();
    let mut share_before = 0.0;
    for percent in [1.0, 5.0, 25.0, 50.0, 99.0, 100.0] {
        let router = step(percent);
        let mut moved = 0;
        for (key, was) in keys.iter().zip(&mut before) {
            let is = arm(&router, key);
            assert!(is == *was || is == 2, "{key} moved from arm {was} to {is} when arm 2 was raised to {percent} %");
            moved += usize::from(is != *was);
            *was = is;
        }
        within_binomial_bounds(KEYS, (percent - share_before) / 100.0, moved);
        share_before = percent;
    }
    assert!(before.iter().all(|arm| *arm == 2), "at 100 % every key is on arm 2");
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
    // The 99.9 % point of chi-squared with (3-1)(3-1) = 4 degrees of freedom; keys and salts are fixed, so the result never changes.
    assert!(chi_squared < 18.47, "{chi_squared}: {table:?}");
}

#[test]
fn the_sample_ratio_matches_scipy() {
    // (60-50)²/50 twice; scipy.stats.chisquare([60, 40]) gives statistic 4.0, p-value 0.0455002638963584.
    let found = SampleRatio::of(&[1.0, 1.0], &[60, 40]);
    assert_eq!((found.units, found.chi_squared, found.degrees_of_freedom), (100, 4.0, 1));
    assert!((found.p_value - 0.045_500_263_896_358).abs() < 1e-12, "{found:?}");
    assert_eq!(found.verdict, Verdict::Fits);
    // scipy.stats.chisquare([880, 80, 40], [900, 50, 50]): 20.444…, 3.6344e-05.
    let found = SampleRatio::of(&[90.0, 5.0, 5.0], &[880, 80, 40]);
    assert!(
        (found.chi_squared - 20.444_444_444).abs() < 1e-8 && (found.p_value - 3.634_4e-5).abs() < 1e-8,
        "{found:?}"
    );
    assert_eq!((found.degrees_of_freedom, found.verdict), (2, Verdict::Mismatch));
}

#[test]
fn the_sample_ratio_needs_five_expected_requests_per_arm() {
    assert_eq!(
        SampleRatio::of(&[99.0, 1.0], &[400, 0]).verdict,
        Verdict::TooFew,
        "four requests are expected on the second arm"
    );
    assert_eq!(SampleRatio::of(&[1.0, 1.0], &[0, 0]).verdict, Verdict::TooFew);
    assert_eq!(SampleRatio::of(&[1.0, 0.0], &[1000, 0]).verdict, Verdict::Fits, "a single weighted arm always fits");
    assert_eq!(SampleRatio::of(&[1.0, 0.0], &[1000, 1]).verdict, Verdict::Mismatch, "the second arm has no weight");
}

#[test]
fn correct_splits_are_rarely_called_a_mismatch_and_wrong_ones_are() {
    let (weights, correct) = ([80.0, 20.0], |salt: &str| split(&[80.0, 20.0], salt));
    let counts = |router: &Router| {
        let mut counts = [0u64; 2];
        (0..5000).for_each(|i| counts[arm(router, &format!("user-{i}"))] += 1);
        counts
    };
    let false_alarms = (0..400)
        .filter(|i| SampleRatio::of(&weights, &counts(&correct(&format!("s{i}")))).verdict == Verdict::Mismatch)
        .count();
    // At a level of one in a thousand, five or more of 400 happen once in 16,000 times; the salts are fixed, so the result never changes.
    assert!(false_alarms <= 4, "{false_alarms} of 400");
    let wrong = counts(&split(&[75.0, 25.0], "wrong"));
    assert_eq!(SampleRatio::of(&weights, &wrong).verdict, Verdict::Mismatch, "{wrong:?}");
}

proptest::proptest! {
    #[test]
    fn changing_one_weight_moves_only_the_keys_that_have_to_move(
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
    fn every_accepted_document_routes_and_is_the_same_after_serializing_and_parsing(
        value in documents(),
        id in ".{0,8}",
        user in proptest::option::of("[a-c]{0,2}"),
    ) {
        let Ok(Proposal { document, .. }) = Proposal::parse(&value) else { return Ok(()) };
        let text = document.to_json();
        proptest::prop_assert_eq!(Document::from_json(&text), Ok(document.clone()), "{}", text);
        let router = Router::new(&"m".parse().unwrap(), document.clone());
        let header = |_: &str| user.as_deref();
        let parameters: Parameters = user.iter().map(|user| ("u".to_owned(), Parameter::String(user.clone()))).collect();
        for selector in [Selector::Traffic, Selector::Label("a"), Selector::Version("1".parse().unwrap())] {
            let request = RouteRequest { selector, header: &header, parameters: &parameters, request_id: &id };
            let routed = router.route(&request);
            proptest::prop_assert_eq!(routed, Router::new(&"m".parse().unwrap(), document.clone()).route(&request));
            match routed {
                Route::Arm { index, .. } => proptest::prop_assert!(document.split[index].weight > 0.0),
                Route::Rule(i) => proptest::prop_assert!(i < document.rules.len()),
                Route::Label(version) => proptest::prop_assert!(document.named().contains(&version)),
                Route::Pinned(_) | Route::UnknownLabel => proptest::prop_assert!(selector != Selector::Traffic),
                Route::NoArm => proptest::prop_assert!(false, "no arm: {}", text),
            }
        }
        let weights: Vec<f64> = document.split.iter().map(|arm| arm.weight).collect();
        for count in [0, 1, u64::from(u32::MAX)] {
            let p_value = SampleRatio::of(&weights, &vec![count; weights.len()]).p_value;
            proptest::prop_assert!((0.0..=1.0).contains(&p_value), "{} of {:?}", p_value, weights);
        }
    }
}

/// Documents that are often valid, with values at the edges: nulls, empty texts and lists, zero, tiny and huge weights, duplicates.
fn documents() -> impl proptest::strategy::Strategy<Value = serde_json::Value> {
    use proptest::prelude::*;
    let version = || prop_oneof![6 => prop::sample::select(vec![json!("1"), json!("2"), json!("18446744073709551615")]), 1 => odd()];
    let weight = prop_oneof![
        3 => any::<f64>().prop_map(|weight| json!(weight.abs())),
        1 => (0u8..3).prop_map(|weight| json!(weight)),
        1 => prop::sample::select(vec![
            json!(0), json!(-0.0), json!(5e-324), json!(1e-300), json!(1e300), json!(8e307), json!(f64::MAX), json!(u64::MAX),
        ]),
        1 => odd(),
    ];
    let name = || prop_oneof![4 => "[a-z]{1,3}".prop_map(|name| json!(name)), 1 => Just(json!("")), 1 => odd()];
    let arm = (version(), weight, prop::option::of(name())).prop_map(|(version, weight, name)| match name {
        Some(name) => json!({"version": version, "weight": weight, "arm": name}),
        None => json!({"version": version, "weight": weight}),
    });
    let split = prop_oneof![6 => prop::collection::vec(arm, 0..5).prop_map(|arms| json!(arms)), 1 => odd()];
    let rule = (name(), name(), version())
        .prop_map(|(header, equals, version)| json!({"header": header, "equals": equals, "version": version}));
    let sample = prop_oneof![Just(json!(1)), Just(json!(5e-324)), Just(json!(0.1)), odd()];
    let shadow = (version(), sample).prop_map(|(version, sample)| json!({"version": version, "sample": sample}));
    let sticky = prop_oneof![
        Just(json!({"header": "X-User"})),
        Just(json!({"parameter": "u", "header": null})),
        Just(json!({"header": null, "parameter": null})),
        odd(),
    ];
    let labels = prop::collection::btree_map("[a-c]{0,1}", version(), 0..3).prop_map(|labels| json!(labels));
    let rules = prop_oneof![3 => prop::collection::vec(rule, 0..3).prop_map(|rules| json!(rules)), 1 => odd()];
    let shadows = prop_oneof![3 => prop::collection::vec(shadow, 0..2).prop_map(|shadows| json!(shadows)), 1 => odd()];
    let optional = (rules, shadows, sticky, labels, name(), name());
    (split, prop::collection::vec(any::<bool>(), 6), optional).prop_map(|(split, kept, members)| {
        let (rules, shadows, sticky, labels, salt, reason) = members;
        let members = [
            ("rules", rules),
            ("shadows", shadows),
            ("sticky_by", sticky),
            ("labels", labels),
            ("salt", salt),
            ("reason", reason),
        ];
        let mut document = serde_json::Map::from_iter([("split".to_owned(), split)]);
        let kept = members.into_iter().zip(kept).filter_map(|(member, kept)| kept.then_some(member));
        document.extend(kept.map(|(name, value)| (name.to_owned(), value)));
        serde_json::Value::Object(document)
    })
}

/// Values that are mostly wrong where they stand.
fn odd() -> impl proptest::strategy::Strategy<Value = serde_json::Value> {
    proptest::sample::select(vec![json!(null), json!(null), json!([]), json!({}), json!(true), json!("NaN"), json!(-1)])
}

#[test]
fn a_null_member_is_an_absent_member() {
    let with_nulls = json!({
        "split": [{"version": "1", "weight": 1, "arm": null}],
        "sticky_by": {"header": null, "parameter": "user"},
        "rules": null,
        "shadows": [{"version": "2", "sample": null}],
        "labels": {"a": null, "b": "1"},
        "salt": null, "reason": null, "allow_signature_change": null,
    });
    let without = json!({
        "split": [{"version": "1", "weight": 1}],
        "sticky_by": {"parameter": "user"},
        "shadows": [{"version": "2"}],
        "labels": {"b": "1"},
    });
    assert_eq!(Proposal::parse(&with_nulls), Proposal::parse(&without));
    assert!(Proposal::parse(&with_nulls).is_ok());
    for name in ["sticky_by", "shadows", "labels"] {
        let mut document = without.clone();
        document[name] = json!(null);
        let mut absent = without.clone();
        absent.as_object_mut().unwrap().remove(name);
        assert_eq!(Proposal::parse(&document), Proposal::parse(&absent), "{name}");
    }
}

#[test]
fn huge_and_tiny_weights_split_like_ordinary_ones() {
    for factor in [1e-300, 1e290] {
        let (ordinary, scaled) = (split(&[3.0, 1.0, 0.0], "s"), split(&[3.0 * factor, factor, 0.0], "s"));
        let counts = (0..2000).filter(|i| arm(&scaled, &format!("user-{i}")) == 0).count();
        within_binomial_bounds(2000, 0.75, counts);
        assert_eq!(arm(&ordinary, "user"), arm(&scaled, "user"));
    }
    // Both scores would be infinite for about a third of all keys, and the first arm would win all of them.
    let largest = split(&[8e307, 8e307], "s");
    within_binomial_bounds(2000, 0.5, (0..2000).filter(|i| arm(&largest, &format!("user-{i}")) == 0).count());
}

#[test]
fn a_split_without_a_weighted_arm_routes_to_no_arm() {
    // Parsing refuses such a document, so it is built here.
    let mut document = Document::single("1".parse().unwrap());
    document.split[0].weight = 0.0;
    let none = Router::new(&"m".parse().unwrap(), document.clone());
    assert_eq!(route(&none, &[], &Parameters::new(), "id"), Route::NoArm);
    document.split.clear();
    let empty = Router::new(&"m".parse().unwrap(), document);
    assert_eq!(route(&empty, &[], &Parameters::new(), "id"), Route::NoArm);
}

#[test]
fn a_fallback_is_named_kept_by_a_promotion_and_read_back() {
    let parse = |fallback: serde_json::Value| {
        Proposal::parse(&json!({"split": [{"version": "2", "weight": 1}], "fallback": fallback}))
    };
    let document = parse(json!({"version": "1"})).unwrap().document;
    let versions =
        |numbers: &[&str]| numbers.iter().map(|n| n.parse().unwrap()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(document.named(), versions(&["1", "2"]), "it may not be unloaded");
    assert_eq!(document.serving(), versions(&["2"]), "it gets no traffic of its own");
    assert_eq!(Document::from_json(&document.to_json()).unwrap(), document);
    assert_eq!(document.promoted("3".parse().unwrap()).fallback, document.fallback);
    assert_eq!(parse(json!(null)).unwrap().document.fallback, None);
    for (wrong, key) in [
        (json!("1"), "fallback: expected {\"version\":\"1\"}"),
        (json!({}), "fallback.version: expected a version"),
        (json!({"version": 1}), "fallback.version: expected a version"),
        (json!({"version": "1", "weight": 1}), "fallback.weight: unknown member"),
    ] {
        let complaints = parse(wrong).unwrap_err();
        assert!(complaints.len() == 1 && complaints[0].starts_with(key), "{key}: {complaints:?}");
    }
}

#[test]
fn the_differences_of_two_documents_are_named_member_by_member() {
    let document = |json: serde_json::Value| Document::from_json(&json.to_string()).unwrap();
    let before = document(json!({
        "split": [{"version": "1", "weight": 70, "arm": "control"}, {"version": "2", "weight": 30}],
        "sticky_by": {"header": "x-user-id"},
        "shadows": [{"version": "3", "sample": 0.25}],
        "reason": "a",
    }));
    assert_eq!(before.differences(&before), [""; 0]);
    let reason = Document { reason: None, ..before.clone() };
    assert_eq!(before.differences(&reason), [""; 0], "the reason is no difference");
    let after = document(json!({
        "split": [{"version": "2", "weight": 1}],
        "sticky_by": {"header": "x-user-id"},
        "labels": {"stable": "1"},
    }));
    assert_eq!(
        before.differences(&after),
        [
            "split: control:1=70, 2=30 → 2=1",
            "shadows: [{\"version\":\"3\",\"sample\":0.25}] → none",
            "labels: none → {\"stable\":\"1\"}",
        ]
    );
}

fn moves(before: &serde_json::Value, after: &serde_json::Value) -> Moves {
    let document = |value: &serde_json::Value| Proposal::parse(value).unwrap().document;
    Moves::between(&"m".parse().unwrap(), &document(before), &document(after))
}

#[test]
fn a_change_says_how_many_keys_it_moves() {
    let split = |arms: &[(&str, &str, f64)]| {
        let arm =
            |(arm, version, weight): &(&str, &str, f64)| json!({"arm": arm, "version": version, "weight": weight});
        json!({"split": arms.iter().map(arm).collect::<Vec<_>>()})
    };
    let even = split(&[("a", "1", 1.0), ("b", "2", 1.0)]);
    assert_eq!(moves(&even, &even), Moves { share: 0.0, notes: Vec::new() });
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 0.02, "{found} instead of {expected}");

    // A weight: only the keys that have to move.
    let more = moves(&even, &split(&[("a", "1", 4.0), ("b", "2", 6.0)]));
    near(more.share, 0.1);
    assert_eq!(more.notes, [""; 0]);
    // A third arm takes its share, and no key moves between the others.
    let added = moves(&even, &split(&[("a", "1", 1.0), ("b", "2", 1.0), ("c", "3", 2.0)]));
    near(added.share, 0.5);
    let share = format!("{:.1} %", 100.0 * added.share);
    assert_eq!(added.notes, [format!("arm c is new: about {share} of the keys move to version 3")]);
    // Another name: half of the keys get another arm by chance, half of those another version.
    let renamed = moves(&even, &split(&[("a", "1", 1.0), ("treatment", "2", 1.0)]));
    near(renamed.share, 1.0 / 3.0);
    assert!(renamed.notes[0].starts_with("arm b of version 2 is named treatment now"), "{:?}", renamed.notes);
    // Another salt assigns every key anew.
    let mut salted = even.clone();
    salted["salt"] = json!("another");
    let salted = moves(&even, &salted);
    near(salted.share, 0.5);
    assert_eq!(salted.notes, ["the salt is another one: every key is assigned anew"]);
    // One arm alone: neither its name nor the salt moves anybody.
    let alone = moves(&split(&[("a", "1", 1.0)]), &split(&[("x", "1", 1.0)]));
    assert_eq!(alone.share, 0.0);
    // The two arms of an A/A test are told apart.
    let aa = split(&[("a", "1", 1.0), ("b", "1", 1.0)]);
    near(moves(&aa, &split(&[("a", "1", 1.0), ("b", "1", 3.0)])).share, 0.25);
}

proptest! {
    #[test]
    fn an_explanation_names_the_arm_that_is_chosen(
        weights in proptest::collection::vec(0.0..10.0f64, 1..6), key in "[a-z0-9]{1,12}", salt in "[a-z]{0,4}",
    ) {
        prop_assume!(weights.iter().any(|weight| *weight > 0.0));
        let arm = |(i, weight): (usize, &f64)| json!({"version": (i + 1).to_string(), "weight": weight});
        let split: Vec<_> = weights.iter().enumerate().map(arm).collect();
        let router = router(&json!({"split": split, "salt": salt}));
        let (chosen, scores) = router.explain(&key);
        let best = scores.iter().max_by(|a, b| a.score.total_cmp(&b.score)).map(|score| score.index);
        prop_assert_eq!(chosen, best);
        prop_assert_eq!(scores.len(), weights.iter().filter(|weight| **weight > 0.0).count());
        prop_assert!(scores.iter().all(|score| score.draw > 0.0 && score.draw < 1.0));
    }
}
