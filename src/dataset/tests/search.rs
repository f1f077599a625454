use super::fixture::{DAY, FeedbackRow, Fixture, Request, about, pairs, request, version};
use crate::compare::Tolerance;
use crate::dataset::shown::Recorded;
use crate::dataset::sources::prediction_file;
use crate::dataset::{Cursor, Ended, Filter, Found, Look, Looked, Search, Status, look, search};
use crate::model::{Label, Role};
use serde_json::json;

const TOLERANCE: Tolerance = Tolerance { rtol: 1e-3, atol: 1e-5 };

fn find(fixture: &Fixture, change: impl FnOnce(&mut Search)) -> Found {
    let data = fixture.data();
    let mut what = Search {
        model: &fixture.model,
        data: &data,
        filter: Filter::default(),
        non_finite: false,
        disagreed: None,
        limit: 100,
        after: None,
        until: None,
    };
    change(&mut what);
    search(&what, |_| {}).unwrap()
}

fn ids(found: &Found) -> Vec<&str> {
    found.requests.iter().map(|hit| hit.request_id.as_str()).collect()
}

fn look_at(fixture: &Fixture, id: &str, elements: usize) -> Looked {
    let data = fixture.data();
    look(&Look { model: &fixture.model, data: &data, request_id: id, elements, tolerance: TOLERANCE }).unwrap()
}

/// Two segments: five requests, one of them of three rows and one that failed, and a shadow's answers that came later.
fn filled() -> Fixture {
    let fixture = Fixture::new();
    let slow = Request { latency_us: 300_000, route_key: Some("u1"), ..request("b", 20, &[0.0; 6], &[3.0, 7.0, 11.0]) };
    let failed = Request { status: "ENGINE_FAILED", outputs: None, arm: "2", ..request("c", 30, &[1.0, 2.0], &[0.0]) };
    fixture.seal(1, &about(1, "aa", pairs()), &[request("a", 10, &[1.0, 2.0], &[3.0]), slow, failed]);
    let odd = request("d", 86_400_000_010, &[1.0, 2.0], &[f32::NAN]);
    let pinned = Request { role: Role::Pinned, ..request("e", 86_400_000_020, &[1.0, 2.0], &[1.0]) };
    fixture.seal(2, &about(1, "aa", pairs()), &[odd, pinned]);
    let shadow =
        |id: &str, at, y: &[f32]| Request { role: Role::Shadow, ..request(id, at, &vec![0.0; 2 * y.len()], y) };
    fixture.seal(2, &about(2, "bb", pairs()), &[shadow("a", 10, &[3.000_001]), shadow("b", 20, &[3.0, 7.5, 11.0])]);
    fixture
}

#[test]
fn requests_are_listed_newest_first_with_all_their_rows() {
    let fixture = filled();
    let found = find(&fixture, |_| {});
    assert_eq!(ids(&found), ["e", "d", "c", "b", "a"], "shadows only where they are asked for");
    assert_eq!((found.next, found.ended), (None, Ended::Beginning));
    let b = &found.requests[3];
    assert_eq!((b.rows, b.ts, b.latency_us, b.route_key.as_deref()), (3, DAY + 20, 300_000, Some("u1")));
    assert_eq!((b.version, b.sha256.as_str(), b.status.as_str()), (version(1), "aa", "ok"));
    let nobody = Fixture { model: "nobody".parse().unwrap(), ..filled() };
    assert!(find(&nobody, |_| {}).requests.is_empty());
}

#[test]
fn requests_are_told_as_they_are_found_in_the_order_of_the_list() {
    let fixture = filled();
    for limit in [1, 3, 100] {
        let data = fixture.data();
        let what = Search {
            model: &fixture.model,
            data: &data,
            filter: Filter::default(),
            non_finite: false,
            disagreed: None,
            limit,
            after: None,
            until: None,
        };
        let mut told: Vec<Vec<String>> = Vec::new();
        let found = search(&what, |hits| told.push(hits.iter().map(|hit| hit.request_id.clone()).collect())).unwrap();
        assert_eq!(told.concat(), ids(&found), "limit {limit}");
        if limit == 100 {
            assert_eq!(told, [["e", "d"].as_slice(), &["c", "b", "a"]], "a segment at a time");
        }
    }
}

#[test]
fn pages_have_every_request_once_also_those_of_one_moment() {
    let fixture = Fixture::new();
    let same = |from: usize, n: usize| -> Vec<Request> {
        (from..from + n).map(|i| request(&format!("r{i}"), 5, &[0.0, 0.0], &[0.0])).collect()
    };
    fixture.seal(1, &about(1, "aa", pairs()), &same(0, 7));
    fixture.seal(1, &about(2, "bb", pairs()), &same(7, 4));
    fixture.seal(3, &about(1, "aa", pairs()), &[request("new", 9, &[0.0, 0.0], &[0.0])]);
    for limit in [1, 2, 3, 5, 11, 12, 50] {
        let (mut all, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let found = find(&fixture, |what| (what.limit, what.after) = (limit, after));
            assert!(found.requests.len() <= limit);
            all.extend(found.requests.into_iter().map(|hit| hit.request_id));
            pages += 1;
            assert!(pages <= 13, "it comes to an end: {all:?}");
            after = found.next;
            if after.is_none() {
                break;
            }
            let text = after.unwrap().to_string();
            assert_eq!(text.parse::<Cursor>(), Ok(after.unwrap()), "a cursor survives as text");
        }
        assert_eq!((all.len(), all[0].as_str()), (12, "new"), "limit {limit}: {all:?}");
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 12, "limit {limit}");
    }
    for text in ["", "1", "1.2", "1.2.3.4", "a.b.c", "-1.2.3", "1.2.999999999999"] {
        assert!(text.parse::<Cursor>().is_err(), "{text:?}");
    }
}

#[test]
fn requests_are_selected_by_what_is_known_of_them() {
    let fixture = filled();
    let select = |change: &dyn Fn(&mut Filter)| {
        let found = find(&fixture, |what| change(&mut what.filter));
        ids(&found).join("")
    };
    assert_eq!(select(&|f| f.request_id = Some("b".to_owned())), "b");
    assert_eq!(select(&|f| f.route_keys = vec!["nobody".to_owned(), "u1".to_owned()]), "b");
    assert_eq!(select(&|f| f.route_keys = vec!["u2".to_owned()]), "");
    assert_eq!(select(&|f| f.status = Some(Status::Error)), "c");
    assert_eq!(select(&|f| f.status = Some(Status::Is("ok".to_owned()))), "edba");
    assert_eq!(select(&|f| f.slower_than = Some(900)), "b");
    assert_eq!(select(&|f| f.slower_than = Some(899)), "edcba");
    assert_eq!(select(&|f| f.arms = vec!["2".to_owned()]), "c");
    assert_eq!(select(&|f| f.roles = vec![Role::Shadow]), "ba");
    assert_eq!(select(&|f| f.roles = vec![Role::Pinned]), "e");
    assert_eq!(select(&|f| f.versions = vec![version(2)]), "");
    assert_eq!(select(&|f| (f.from, f.to) = (Some(DAY + 20), Some(DAY + 86_400_000_020))), "dcb");
    let odd = find(&fixture, |what| what.non_finite = true);
    assert_eq!(ids(&odd), ["d"]);
}

#[test]
fn shadows_that_disagree_are_found_although_they_answered_later() {
    let fixture = filled();
    let found = find(&fixture, |what| what.disagreed = Some(TOLERANCE));
    assert_eq!(ids(&found), ["b"], "a differs by less than the tolerance");
    let b = &found.requests[0];
    assert_eq!((b.version, b.role.as_str(), b.rows), (version(2), "shadow", 3));
    assert!(b.difference.as_deref().unwrap().contains("7.5"), "{:?}", b.difference);
    let strict = find(&fixture, |what| what.disagreed = Some(Tolerance { rtol: 0.0, atol: 0.0 }));
    assert_eq!(ids(&strict), ["b", "a"]);
    let of_one = find(&fixture, |what| {
        what.disagreed = Some(TOLERANCE);
        what.filter.versions = vec![version(1)];
    });
    assert!(of_one.requests.is_empty());
}

#[test]
fn a_search_without_time_says_where_to_go_on() {
    let fixture = filled();
    let begin = std::time::Instant::now();
    let found = find(&fixture, |what| what.until = Some(begin));
    assert_eq!((ids(&found), found.ended), (vec!["e", "d"], Ended::Time), "one part is searched all the same");
    let rest = find(&fixture, |what| (what.until, what.after) = (Some(begin), found.next));
    assert_eq!((ids(&rest), rest.next), (vec!["c", "b", "a"], None));
}

#[test]
fn bloom_filters_rule_out_files_and_never_one_that_has_the_id() {
    let fixture = Fixture::new();
    let id = |i: usize| format!("{:08x}", i.wrapping_mul(0x9e37_79b9) & 0xffff_ffff);
    let requests: Vec<Request> =
        (0..200).map(|i| Request { route_key: Some("u1"), ..request(&id(i), 5, &[0.0, 0.0], &[0.0]) }).collect();
    fixture.seal(1, &about(1, "aa", pairs()), &requests);
    let path = fixture.data().join("predictions/model=m/date=2026-11-03/00000000000000000001-0.parquet");
    let parts =
        |filter: &Filter| prediction_file(&*path, filter).unwrap().map_or(0, |source| source.stored.parts.len());
    let all = parts(&Filter::default());
    assert_eq!(all, 100, "two rows each");
    let of_id = |i: usize| parts(&Filter { request_id: Some(id(i)), ..Filter::default() });
    assert!((0..200).all(|i| of_id(i) >= 1), "an id that is there is found");
    let wrong: usize = (1000..1400).map(of_id).sum();
    assert!(wrong < 400 * all / 20, "others are ruled out: {wrong} of {}", 400 * all);
    let of_key = |key: &str| parts(&Filter { route_keys: vec![key.to_owned()], ..Filter::default() });
    assert_eq!((of_key("u1"), of_key("u0") < all / 2), (all, true));
    // Statistics rule out what has no failure and nothing slow.
    let of_status = |status: Status| parts(&Filter { status: Some(status), ..Filter::default() });
    assert_eq!((of_status(Status::Error), of_status(Status::Is("INTERNAL".to_owned()))), (0, 0));
    assert_eq!(of_status(Status::Is("ok".to_owned())), all);
    let slower = |us| parts(&Filter { slower_than: Some(us), ..Filter::default() });
    assert_eq!((slower(899), slower(900)), (all, 0));
}

#[test]
fn one_request_is_shown_with_all_answers_and_its_feedback() {
    let fixture = filled();
    let of = |id, row, ts, number| FeedbackRow {
        id,
        row,
        ts,
        received_at: ts,
        number: Some(number),
        ..FeedbackRow::default()
    };
    let value =
        FeedbackRow { id: "b", row: 1, ts: 60, received_at: 60, values: vec![("paid", 2.5)], ..FeedbackRow::default() };
    fixture.add_feedback(1, &[of("b", 1, 40, 1.0), of("a", 0, 40, 9.0)]);
    fixture.add_feedback(2, &[of("b", 1, 50, 2.0), value]);
    let looked = look_at(&fixture, "b", 4);
    let [primary, shadow] = &looked.predictions[..] else { panic!("{looked:?}") };
    assert_eq!((primary.head.role.as_str(), shadow.head.role.as_str()), ("primary", "shadow"));
    let x = &primary.inputs[0];
    assert_eq!(
        (x.name.as_str(), x.shape.as_deref(), x.elements, x.recorded),
        ("x", Some(&[3, 2][..]), 6, Recorded::AsIs)
    );
    assert_eq!(x.data, [0.0; 4].map(|n| json!(n)), "cut, and the number of elements is said");
    assert_eq!(primary.outputs[0].data, [3.0, 7.0, 11.0].map(|n| json!(n)));
    let (agrees, words) = shadow.compared.as_ref().unwrap();
    assert!(!agrees && words.contains("7.5"), "{words}");
    let [told] = &looked.feedback[..] else { panic!("{:?}", looked.feedback) };
    assert_eq!((told.row, &told.label, told.ts), (1, &Some(Label::Number(2.0)), Some(DAY + 50)));
    assert_eq!(told.values, [("paid".to_owned(), 2.5)]);

    let odd = look_at(&fixture, "d", 10);
    assert_eq!((&odd.predictions[0].outputs[0].data[..], odd.feedback.len()), (&[json!("NaN")][..], 0));
    let failed = look_at(&fixture, "c", 10);
    assert_eq!(
        (failed.predictions[0].outputs[0].recorded, failed.predictions[0].outputs[0].elements),
        (Recorded::Absent, 0)
    );
    assert!(look_at(&fixture, "nothing", 10).predictions.is_empty());
}

#[test]
fn what_the_log_hides_stays_hidden() {
    let fixture = Fixture::new();
    let mut hidden = about(1, "aa", pairs());
    hidden.dropped.insert("inputs.x".to_owned());
    let mut secret = request("s", 1, &[1.0, 2.0], &[3.0]);
    secret.inputs = Vec::new();
    fixture.seal(1, &hidden, &[Request { by_rows: false, ..secret }]);
    let looked = look_at(&fixture, "s", 10);
    let x = &looked.predictions[0].inputs[0];
    assert_eq!((x.recorded, x.elements, x.data.len()), (Recorded::Dropped, 0, 0));
    assert_eq!(looked.predictions[0].outputs[0].data, [json!(3.0)]);
}

#[test]
fn of_an_id_that_was_used_again_the_newest_are_shown() {
    let fixture = Fixture::new();
    let again: Vec<Request> = (0..90).map(|i| request("same", i, &[0.0, 0.0], &[i as f32])).collect();
    fixture.seal(1, &about(1, "aa", pairs()), &again);
    let looked = look_at(&fixture, "same", 10);
    assert!(looked.more);
    let times: Vec<i64> = looked.predictions.iter().map(|of| of.head.ts - DAY).collect();
    assert_eq!(times, (70..90).rev().collect::<Vec<i64>>());
    assert_eq!(looked.predictions[0].outputs[0].data, [json!(89.0)]);
}
