use super::exchange::{Gateway, Given, Others, Part, check};
use super::*;
use crate::model::{Label, Update, Version};
use crate::quality::of_rows;

const NOW: i64 = 1_700_000_000_000_000;

fn model() -> ModelName {
    "m".parse().unwrap()
}

/// Requests of a few users with a prediction, outputs, inputs and some texts.
fn record(history: &History, id: &str, user: &str, ts: i64, arm: &str) {
    let version: Version = "1".parse().unwrap();
    let m = model();
    let seen = Seen { model: &m, version, arm, request_id: id, route_key: Some(user), row: 0, ts };
    let cells = vec!["inputs.x".into(), "inputs.city".into()];
    let layout = Arc::new(Layout { outputs: vec![("y".into(), 0..2)], cells });
    let contents = || {
        let mut predicted = Predicted::default();
        predicted.add(crate::tensor::DataType::Int64, &i64::from(id.len() % 2 == 1).to_le_bytes());
        let cells = vec![Value::Number(ts as f64), Value::Text(format!("city of {user}"))];
        (predicted, Contents { numbers: Box::new([0.25, f64::NAN]), cells })
    };
    history.record_prediction(&seen, &layout, NOW, contents);
}

fn says(id: &str, ts: i64, label: f64, values: &[(&str, f64)]) -> Feedback {
    let values = values.iter().map(|(name, value)| ((*name).to_owned(), Update::Set(*value))).collect();
    Feedback { request_id: id.to_owned(), row: 0, ts, label: Some(Update::Set(Label::Number(label))), values }
}

fn store(bytes: usize) -> History {
    History::new(Duration::from_hours(24 * 30), bytes)
}

/// The parts of other gateways.
#[derive(Debug, Default)]
struct Fixed(Mutex<Vec<Gateway>>);

impl Others for Fixed {
    fn of(&self, _: &ModelName) -> Given {
        Given { gateways: self.0.lock().unwrap().clone(), ..Given::default() }
    }
}

fn given(name: &str, history: &History, halvings: u32) -> Gateway {
    let parts = history.parts(&model()).into_keys().filter_map(|part| history.part(&model(), part, halvings));
    let parts = parts.map(Arc::from).collect();
    Gateway { name: name.to_owned(), as_of: NOW, feedback: 0, left_out: 0, split: None, key: String::new(), parts }
}

/// What a row is, whatever gateway has it.
fn plain(snapshot: &Snapshot) -> Vec<String> {
    let of = |row: &Row| {
        let cells = (0..2).map(|at| match row.cell(at) {
            Some(Cell::Text(number)) => snapshot.text(number).to_owned(),
            other => format!("{other:?}"),
        });
        let outcome = row.outcome.as_deref().map(|outcome| {
            let values =
                outcome.values().map(|(name, value)| format!("{}={value}", snapshot.value_names()[usize::from(name)]));
            let mut values: Vec<String> = values.collect();
            values.sort();
            format!("{:?} {values:?} {}", outcome.label(), outcome.first_ts)
        });
        let arm = snapshot.arm(row);
        let cells: Vec<String> = cells.collect();
        format!("{} {} {} {:?} {:?} {cells:?} {outcome:?}", arm.name, row.ts, row.unit, row.predicted, row.numbers)
    };
    let mut all: Vec<String> = snapshot.rows().map(of).collect();
    all.sort();
    all
}

#[test]
fn one_gateway_and_a_fleet_of_three_have_the_same_rows_and_figures_wherever_feedback_arrives() {
    let rng = &mut fastrand::Rng::with_seed(3);
    let one = store(64 << 20);
    let three = [store(64 << 20), store(64 << 20), store(64 << 20)];
    for (at, history) in three.iter().enumerate() {
        let others = Fixed::default();
        *others.0.lock().unwrap() = Vec::new();
        history.share_with(Arc::new(others));
        assert_eq!(history.whole(&model(), 0).snapshot.rows().count(), 0, "{at}");
    }
    for n in 0..3000_i64 {
        let (id, user) = (format!("r{n}"), format!("u{}", rng.u32(0..200)));
        let arm = if rng.bool() { "a" } else { "b" };
        let entries: Vec<Feedback> = (0..rng.u8(0..4))
            .map(|_| {
                says(&id, rng.i64(0..4), f64::from(rng.u8(0..2)), &[(["x", "y", "z"][rng.usize(0..3)], rng.f64())])
            })
            .collect();
        // Some of it comes before the prediction.
        let early = rng.usize(0..=entries.len());
        let received = NOW + n * 10;
        for (at, entry) in entries.iter().enumerate().take(early) {
            let received = received + i64::try_from(at).unwrap();
            one.record_feedback(&model(), std::slice::from_ref(entry), received);
            three[rng.usize(0..3)].record_feedback(&model(), std::slice::from_ref(entry), received);
        }
        record(&one, &id, &user, NOW + n, arm);
        record(&three[rng.usize(0..3)], &id, &user, NOW + n, arm);
        for (at, entry) in entries.iter().enumerate().skip(early) {
            let received = received + i64::try_from(at).unwrap();
            one.record_feedback(&model(), std::slice::from_ref(entry), received);
            three[rng.usize(0..3)].record_feedback(&model(), std::slice::from_ref(entry), received);
        }
    }
    let [a, b, c] = &three;
    let others = Arc::new(Fixed::default());
    // Parts that come twice count once, as those of a gateway that is read again.
    *others.0.lock().unwrap() = vec![given("b", b, 0), given("c", c, 0), given("c", c, 0)];
    a.share_with(others);
    let whole = a.whole(&model(), i64::MIN);
    let expected = one.snapshot(&model(), i64::MIN);
    assert_eq!(plain(&whole.snapshot), plain(&expected));
    assert_eq!(whole.unmatched, 0, "all feedback found its row");
    let figures = |snapshot: &Snapshot| {
        let of = |((version, arm), f): ((Version, String), crate::quality::Figures)| {
            let error = |name: &str| f.by_unit.get(name).and_then(|by| by.standard_error).map(|e| (e * 1e9).round());
            (version, arm, f.predictions, f.labelled, f.correct, f.with_feedback, error("x"))
        };
        of_rows(snapshot).into_iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(figures(&whole.snapshot), figures(&expected));
}

#[test]
fn a_part_changes_its_number_only_when_it_changes() {
    let history = store(64 << 20);
    for n in 0..600 {
        record(&history, &format!("r{n}"), "u", NOW + n, "a");
    }
    let before = history.parts(&model());
    assert_eq!(before.len(), 3);
    history.record_feedback(&model(), &[says("r300", 1, 1.0, &[])], NOW);
    let after = history.parts(&model());
    let changed: Vec<Part> =
        after.iter().filter(|(part, n)| before.get(part) != Some(n)).map(|(part, _)| *part).collect();
    let day = NOW.div_euclid(86_400_000_000);
    assert_eq!(changed, [Part::Rows(day, 1)]);
    assert_eq!(changed[0].to_string().parse(), Ok(changed[0]));
    // Feedback about nothing is given too, until its row is known.
    history.record_feedback(&model(), &[says("later", 1, 1.0, &[])], NOW);
    assert!(history.parts(&model()).contains_key(&Part::Early(0)));
    record(&history, "later", "u", NOW + 601, "a");
    assert_eq!(history.part(&model(), Part::Early(0), 0), None);
}

#[test]
fn a_part_is_small_and_made_and_read_fast() {
    let history = store(64 << 20);
    for n in 0..256 {
        record(&history, &format!("order-{n}"), &format!("u{}", n % 90), NOW + 13_577 * n, "a");
        let entry = says(&format!("order-{n}"), NOW / 1000, (n % 2) as f64, &[("revenue", n as f64 * 0.37)]);
        history.record_feedback(&model(), &[entry], NOW + n);
    }
    let (part, _) = history.parts(&model()).pop_first().unwrap();
    let begun = std::time::Instant::now();
    let bytes = history.part(&model(), part, 0).unwrap();
    let made = begun.elapsed();
    let begun = std::time::Instant::now();
    check(&bytes).unwrap();
    println!("a part of 256 rows: {} bytes, made in {made:?}, read in {:?}", bytes.len(), begun.elapsed());
    assert!(bytes.len() < 24 << 10, "{} bytes", bytes.len());
}

#[test]
fn a_sample_stays_a_sample_and_memory_is_bounded() {
    let (a, b) = (store(1 << 20), store(64 << 20));
    for n in 0..20_000 {
        let history = if n % 2 == 0 { &a } else { &b };
        record(history, &format!("r{n}"), &format!("u{}", n % 500), NOW + n, "a");
    }
    let share_of_a = a.snapshot(&model(), 0).arms()[0].share();
    assert!(share_of_a < 1.0);
    let others = Arc::new(Fixed::default());
    *others.0.lock().unwrap() = vec![given("b", &b, 0)];
    a.share_with(others);
    let whole = a.whole(&model(), i64::MIN).snapshot;
    let share = whole.arms().iter().map(ArmOf::share).fold(1.0, f64::min);
    assert!(share <= share_of_a, "the sample of both is that of the smaller one, or less: {share}");
    let rows = whole.rows().count() as f64;
    assert!((rows / (20_000.0 * share) - 1.0).abs() < 0.2, "{rows} rows at a share of {share}");
    // One that gives a half says so.
    let other = Arc::new(Fixed::default());
    *other.0.lock().unwrap() = vec![given("a", &a, 1)];
    b.share_with(other);
    let whole = b.whole(&model(), i64::MIN).snapshot;
    assert!((whole.arms()[0].share() - share_of_a / 2.0).abs() < 1e-9, "{:?}", whole.arms());
}

#[test]
fn bytes_that_are_no_part_are_refused_and_nothing_panics() {
    let history = store(64 << 20);
    for n in 0..100 {
        record(&history, &format!("r{n}"), "u", NOW + n, "a");
        history.record_feedback(&model(), &[says(&format!("r{n}"), 1, 1.0, &[("x", 1.0)])], NOW);
    }
    let (part, _) = history.parts(&model()).pop_first().unwrap();
    let good = history.part(&model(), part, 0).unwrap();
    check(&good).unwrap();
    assert!(check(b"").is_err() && check(b"{}").is_err());
    // A bomb.
    let bomb = zstd::bulk::compress(&vec![0; 200 << 20], 1).unwrap();
    assert!(check(&bomb).is_err());
    let plain = zstd::bulk::decompress(&good, 4 << 20).unwrap();
    let rng = &mut fastrand::Rng::with_seed(1);
    let others = Arc::new(Fixed::default());
    let other = store(64 << 20);
    record(&other, "own", "u", NOW, "a");
    other.share_with(others.clone());
    for _ in 0..2000 {
        let mut bytes = plain.clone();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(0..bytes.len());
            bytes[at] = rng.u8(..);
        }
        let packed = zstd::bulk::compress(&bytes, 1).unwrap();
        let mut gateway = given("b", &history, 0);
        gateway.parts = vec![packed.into()];
        *others.0.lock().unwrap() = vec![gateway];
        let whole = other.whole(&model(), i64::MIN);
        assert!(whole.snapshot.rows().count() >= 1);
        for row in whole.snapshot.rows() {
            let arm = whole.snapshot.arm(row);
            for at in 0..arm.layout.cells.len() {
                let _ = row.cell(at);
            }
        }
        let _ = of_rows(&whole.snapshot);
    }
    assert!("r1-".parse::<Part>().is_err() && "x".parse::<Part>().is_err() && "".parse::<Part>().is_err());
    assert!("é".parse::<Part>().is_err() && "e01".parse::<Part>().is_err());
}
