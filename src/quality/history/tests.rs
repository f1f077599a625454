use super::*;
use crate::model::{Label, Update, Version};

const NOW: i64 = 1_700_000_000_000_000;

fn model() -> ModelName {
    "m".parse().unwrap()
}

fn seen<'a>(model: &'a ModelName, id: &'a str, ts: i64) -> Seen<'a> {
    let version: Version = "1".parse().unwrap();
    Seen { model, version, arm: "control", request_id: id, route_key: Some("u"), row: 0, ts }
}

fn record(history: &History, model: &ModelName, id: &str, ts: i64) {
    let contents = || (Predicted::default(), Contents::default());
    history.record_prediction(&seen(model, id, ts), &Arc::default(), NOW, contents);
}

fn says(id: &str, ts: i64, label: Option<Update<Label>>, values: &[(&str, Update<f64>)]) -> Feedback {
    let values = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    Feedback { request_id: id.to_owned(), row: 0, ts, label, values }
}

fn store() -> History {
    History::new(Duration::from_hours(24 * 30), 64 << 20)
}

#[test]
fn feedback_that_is_early_late_doubled_partial_or_corrected_changes_its_row_only() {
    let (history, m) = (store(), model());
    let set = |n: f64| Some(Update::Set(Label::Number(n)));
    // The second before its row is known.
    history.record_feedback(&m, &[says("a", 20, set(1.0), &[]), says("b", 20, set(7.0), &[])], NOW);
    record(&history, &m, "a", NOW);
    record(&history, &m, "a", NOW);
    record(&history, &m, "c", NOW);
    record(&history, &m, "b", NOW);
    let entries = [
        says("a", 10, set(9.0), &[("revenue", Update::Set(3.0))]),
        says("a", 30, None, &[("revenue", Update::Set(5.0))]),
        says("a", 30, None, &[("revenue", Update::Set(6.0))]),
        says("b", 30, Some(Update::Retract), &[("clicked", Update::Set(1.0))]),
        says("b", 40, None, &[("clicked", Update::Retract)]),
    ];
    history.record_feedback(&m, &entries, NOW + 1);
    let snapshot = history.snapshot(&m, 0);
    let rows: Vec<&Row> = snapshot.rows().collect();
    assert_eq!(rows.len(), 3, "the same row twice is one row");
    let a = rows[0].outcome.as_ref().unwrap();
    assert_eq!(a.label(), Some(&Label::Number(1.0)), "the label with the latest ts");
    assert_eq!(a.value(snapshot.value_number("revenue").unwrap()), Some(6.0), "of equal ts, the last received");
    assert!(rows[1].outcome.is_none());
    let b = rows[2].outcome.as_ref().unwrap();
    assert_eq!((b.label(), b.value(snapshot.value_number("clicked").unwrap())), (None, None));
    assert_eq!(snapshot.value_number("nothing"), None);
}

#[test]
fn the_order_of_entries_does_not_matter() {
    let set = |n: f64| Some(Update::Set(Label::Number(n)));
    let entries =
        [(says("a", 10, set(1.0), &[]), 5), (says("a", 10, set(2.0), &[]), 9), (says("a", 9, set(3.0), &[]), 99)];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let (history, m) = (store(), model());
        record(&history, &m, "a", NOW);
        for at in order {
            let (entry, received) = &entries[at];
            history.record_feedback(&m, std::slice::from_ref(entry), *received);
        }
        let snapshot = history.snapshot(&m, 0);
        let label = snapshot.rows().next().unwrap().outcome.as_ref().unwrap().label().cloned();
        assert_eq!(label, Some(Label::Number(2.0)), "{order:?}");
    }
}

#[test]
fn an_id_that_is_used_again_gets_feedback_for_its_newest_row() {
    let (history, m) = (store(), model());
    record(&history, &m, "a", NOW);
    record(&history, &m, "a", NOW - 5);
    record(&history, &m, "a", NOW + 5);
    history.record_feedback(&m, &[says("a", 1, Some(Update::Set(Label::Number(1.0))), &[])], NOW);
    let snapshot = history.snapshot(&m, 0);
    let with: Vec<i64> = snapshot.rows().filter(|row| row.outcome.is_some()).map(|row| row.ts).collect();
    assert_eq!((snapshot.rows().count(), with), (3, vec![NOW + 5]));
}

#[test]
fn a_snapshot_does_not_change_afterwards() {
    let (history, m) = (store(), model());
    record(&history, &m, "a", NOW);
    let before = history.snapshot(&m, 0);
    history.record_feedback(&m, &[says("a", 1, Some(Update::Set(Label::Number(1.0))), &[])], NOW);
    record(&history, &m, "b", NOW);
    assert!(before.rows().all(|row| row.outcome.is_none()) && before.rows().count() == 1);
    assert_eq!(history.snapshot(&m, 0).rows().count(), 2);
}

#[test]
fn memory_is_bounded_over_many_models_and_the_largest_gives_way() {
    let history = History::new(Duration::from_hours(24 * 30), 1 << 20);
    let small: ModelName = "small".parse().unwrap();
    for i in 0..100 {
        record(&history, &small, &format!("r{i}"), NOW);
    }
    for i in 0..200_000 {
        record(&history, &model(), &format!("r{i}"), NOW + i);
        assert!(history.bytes() <= 1 << 20);
    }
    let snapshot = history.snapshot(&model(), 0);
    let share = snapshot.arms()[0].share();
    let expected = 200_000.0 * share;
    let rows = snapshot.rows().count() as f64;
    assert!(share < 0.1 && (rows / expected - 1.0).abs() < 0.2, "{rows} rows at a share of {share}");
    assert_eq!(history.snapshot(&small, 0).rows().count(), 100, "a model with little traffic keeps everything");
    // Feedback about nothing, from a stranger.
    for i in 0..50_000 {
        let entry = says(&format!("unknown {i}"), 1, None, &[("x", Update::Set(1.0))]);
        history.record_feedback(&small, &[entry], NOW);
    }
    assert!(history.bytes() <= 1 << 20);
}

#[test]
fn many_names_texts_and_versions_do_not_take_memory_without_bound() {
    let (history, m) = (store(), model());
    record(&history, &m, "a", NOW);
    for i in 0..1000 {
        let name = format!("value {i}");
        history.record_feedback(&m, &[says("a", i, None, &[(name.as_str(), Update::Set(1.0))])], NOW);
    }
    assert_eq!(history.snapshot(&m, 0).value_names().len(), 64);
    for i in 0..20_000 {
        let cells = vec![Value::Text(format!("{i}{}", "x".repeat(1000)))];
        let contents = || (Predicted::default(), Contents { cells, ..Contents::default() });
        history.record_prediction(&seen(&m, &format!("t{i}"), NOW), &Arc::default(), NOW, contents);
    }
    let snapshot = history.snapshot(&m, 0);
    let other = snapshot.rows().filter(|row| row.cell(0) == Some(Cell::Other)).count();
    assert_eq!(other, 10_000);
}

#[test]
fn rows_expire_and_leave_nothing() {
    let history = History::new(Duration::from_hours(48), 64 << 20);
    let (m, day) = (model(), 86_400_000_000);
    record(&history, &m, "too old", NOW - 3 * day);
    record(&history, &m, "old", NOW - day);
    record(&history, &m, "new", NOW);
    history.expire(NOW + 2 * day);
    assert_eq!(history.snapshot(&m, 0).rows().map(|row| row.ts).collect::<Vec<_>>(), [NOW]);
    assert_eq!(history.snapshot(&m, NOW + 1).rows().count(), 0);
    history.expire(NOW + 30 * day);
    assert_eq!((history.known().len(), history.bytes()), (0, 0));
}

#[test]
fn rows_of_short_ids_have_keys_of_their_own() {
    let (history, m) = (store(), model());
    for i in 0..8000 {
        let id = format!("r{}", i / 8);
        let contents = || (Predicted::default(), Contents::default());
        let seen = Seen { row: i % 8, ..seen(&m, &id, NOW) };
        history.record_prediction(&seen, &Arc::default(), NOW, contents);
    }
    assert_eq!(history.snapshot(&m, 0).rows().count(), 8000);
}
