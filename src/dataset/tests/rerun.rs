use super::house::{DAY, Fakes, House, Request, Told, about, floats, pairs, request, version};
use crate::backend::fake::Fake;
use crate::compare::Tolerance;
use crate::dataset::{Budget, Error, Gate, Outcome, Pick, Replay, Replayed, Unfit, replay, reproduce};
use crate::model::{Checked, Role};
use crate::record::About;
use crate::tensor::{Data, Tensor};

/// y = the sum of x, and `off(first x)`.
fn summing(off: impl Fn(f32) -> f32 + Send + Sync + 'static) -> Fake {
    Fake::new(pairs(), move |request: &Checked| {
        let Data::Fp32(x) = request.inputs()[0].data() else { unreachable!() };
        let sums: Vec<f32> = x.chunks(2).map(|x| x[0] + x[1] + off(x[0])).collect();
        vec![floats(&[sums.len()], &sums)]
    })
}

fn replayed(house: &House, engines: &Fakes, change: impl FnOnce(&mut Replay)) -> Result<Replayed, Error> {
    let (models, data) = (house.models(), house.data());
    let mut what = Replay {
        model: &house.model,
        version: version(2),
        models: &models,
        data: &data,
        pick: Pick { roles: vec![Role::Primary], ..Pick::default() },
        limit: None,
        rtol: None,
        atol: None,
        otherwise: Tolerance::default(),
        worst: 3,
        gates: Vec::new(),
        budget: Budget { rows: 3, bytes: 10 },
    };
    change(&mut what);
    replay(engines, &what, &|_, _, _| {})
}

fn number(id: &'static str, row: i32, label: f64) -> Told {
    Told { id, row, number: Some(label), ..Told::default() }
}

#[test]
fn a_candidate_is_held_against_what_was_answered_and_what_happened() {
    let house = House::new();
    house.version(2, "candidate");
    let requests: Vec<Request> = (0..10u16)
        .map(|i| {
            let x = f32::from(i);
            request(&format!("r{i}"), i64::from(i), &[x, 1.0, x, 2.0], &[x + 1.0, x + 2.0])
        })
        .collect();
    house.seal(1, &about(1, "aa", pairs()), &requests);
    house.tell(1, &[number("r0", 0, 1.0), number("r0", 1, 2.5), number("r3", 1, 5.0), number("r9", 7, 5.0)]);
    let engines = Fakes([(2, summing(|x| if x == 3.0 { 0.5 } else { 0.0 }))].into());
    let gates = ["within_tolerance>=0.9", "agreement>0.95", "failed<=0", "mean_absolute_error<0.34", "accuracy>0"];
    let gates: Vec<Gate> = gates.iter().map(|gate| Gate::parse(gate).unwrap()).collect();
    let report = replayed(&house, &engines, |what| what.gates.clone_from(&gates)).unwrap();
    assert_eq!((report.requests, report.records, report.left_out.len()), (10, 20, 0));
    let [pair] = &report.pairs[..] else { panic!("{:?}", report.pairs) };
    assert_eq!((pair.primary, pair.shadow, pair.pairs, pair.agreed), (version(1), version(2), 10, 9));
    assert_eq!((pair.since.as_microsecond(), pair.until.as_microsecond()), (DAY, DAY + 9));
    let y = &pair.outputs[0];
    assert_eq!((y.elements, y.outside, y.largest), (20, 2, Some(0.5)));
    assert_eq!(pair.worst[0].request_id.as_str(), "r3");
    assert_eq!(pair.primary_latency.quantile_us(0.5), Some(100), "as it was logged");
    let [labels] = &report.labels[..] else { panic!("{:?}", report.labels) };
    assert_eq!((labels.labelled, labels.numbers, labels.unfit), (3, 3, 0));
    let (logged, candidate) = labels.mean_absolute_error().unwrap();
    assert!((logged - 0.5 / 3.0).abs() < 1e-12 && (candidate - 1.0 / 3.0).abs() < 1e-12, "{logged} {candidate}");
    let verdicts: Vec<(bool, Option<f64>)> = report.verdicts.iter().map(|v| (v.passed, v.found)).collect();
    assert_eq!(verdicts[0], (true, Some(0.9)));
    assert_eq!(verdicts[1], (false, Some(0.9)));
    assert_eq!(verdicts[2], (true, Some(0.0)));
    assert!(verdicts[3].0);
    assert_eq!(verdicts[4], (false, None), "without class labels nobody knows");
    let report = replayed(&house, &engines, |what| what.limit = Some(4)).unwrap();
    assert_eq!((report.requests, report.pairs[0].agreed), (4, 3));
    let report = replayed(&house, &engines, |what| what.atol = Some(1.0)).unwrap();
    assert_eq!((report.tolerance.atol, report.pairs[0].agreed), (1.0, 10));
}

#[test]
fn failures_of_the_candidate_count_against_it() {
    let house = House::new();
    house.version(2, "candidate");
    house.seal(
        1,
        &about(1, "aa", pairs()),
        &[request("a", 1, &[1.0, 1.0], &[2.0]), request("b", 2, &[1.0, 2.0], &[3.0])],
    );
    let gates = ["within_tolerance>=0.5", "within_tolerance>0.5", "failed<0.5"].map(|gate| Gate::parse(gate).unwrap());
    let fake = summing(|_| 0.0);
    let engines = Fakes([(2, fake.clone())].into());
    // The first run is a warm-up, the second is the first request's.
    fake.fail_next(crate::backend::RunError::Refused("once".to_owned()));
    fake.fail_next(crate::backend::RunError::Refused("not these".to_owned()));
    let report = replayed(&house, &engines, |what| what.gates = gates.to_vec()).unwrap();
    assert_eq!((report.pairs[0].shadow_failed, report.pairs[0].agreed), (1, 1));
    assert_eq!(report.verdicts.iter().map(|v| v.passed).collect::<Vec<_>>(), [true, false, false]);
    assert!(report.pairs[0].worst[0].words.contains("not these"));
}

#[test]
fn what_cannot_be_replayed_is_counted_by_reason() {
    let house = House::new();
    house.version(2, "candidate");
    let cut = Request { truncated: true, inputs: vec![None], ..request("b", 2, &[1.0, 2.0], &[3.0]) };
    let failed = Request { status: "ENGINE_FAILED", outputs: None, ..request("c", 3, &[1.0, 2.0], &[3.0]) };
    let part = Request { outputs: Some(vec![None]), ..request("d", 4, &[1.0, 2.0], &[3.0]) };
    house.seal(1, &about(1, "aa", pairs()), &[request("a", 1, &[1.0, 2.0], &[3.0]), cut, failed, part]);
    let dropped = About { dropped: ["inputs.x".to_owned()].into(), ..about(1, "aa", pairs()) };
    house.seal(2, &dropped, &[Request { inputs: Vec::new(), ..request("e", 5, &[0.0, 0.0], &[3.0]) }]);
    let engines = Fakes([(2, summing(|_| 0.0))].into());
    let report = replayed(&house, &engines, |_| {}).unwrap();
    let left_out: Vec<_> = report.left_out.into_iter().collect();
    assert_eq!(left_out, [(Unfit::NoAnswer, 2), (Unfit::Truncated, 1), (Unfit::Dropped, 1)]);
    assert_eq!(report.requests, 1);
    let Err(Error::Failed(words)) = replayed(&house, &engines, |what| what.version = version(9)) else { panic!() };
    assert!(words.starts_with("there is no version 9 of m"), "{words}");
    let Err(Error::Failed(words)) = replayed(&house, &Fakes::default(), |_| {}) else { panic!() };
    assert!(words.contains("cannot load the candidate") && words.contains("not this one"), "{words}");
}

#[test]
fn a_prediction_is_reproduced_to_the_bit_by_the_bytes_that_made_it() {
    let house = House::new();
    let sum = house.version(1, "one");
    let nan = f32::from_bits(0x7fc0_0123);
    house.seal(
        1,
        &about(1, &sum, pairs()),
        &[
            request("a", 1, &[1.0, 2.0, 3.0, 4.0], &[3.0, 7.0]),
            request("b", 2, &[9.0, 1.0], &[nan]),
            request("c", 3, &[1.0, 1.0], &[2.5]),
            Request { status: "ENGINE_FAILED", outputs: None, ..request("d", 4, &[1.0, 2.0], &[3.0]) },
        ],
    );
    let fake = summing(move |x| if x == 9.0 { nan } else { 0.0 });
    let engines = Fakes([(1, fake.clone()), (2, fake)].into());
    let (models, data) = (house.models(), house.data());
    let again = |id: &str| reproduce(&engines, &data, &models, None, id);
    let one = |id: &str| {
        let mut all = again(id).unwrap();
        assert_eq!(all.len(), 1);
        all.remove(0)
    };
    let a = one("a");
    assert!(a.is_equal(), "{a:?}");
    assert_eq!((a.records, a.ran.map(|(version, _)| version)), (2, Some(version(1))));
    let Outcome::Apart(comparison) = one("c").outcome else { panic!() };
    assert!(comparison.to_string().contains("expected 2.5, got 2"), "{comparison}");
    let Outcome::Not(words) = one("d").outcome else { panic!() };
    assert_eq!(words, "it was answered with ENGINE_FAILED");
    let Err(Error::Failed(words)) = again("nobody") else { panic!() };
    assert!(words.ends_with("has no prediction with the id \"nobody\""), "{words}");

    // The number goes to other bytes, and its own to another number.
    house.version(1, "other");
    let Outcome::Not(words) = one("a").outcome else { panic!() };
    assert!(words.contains(&sum) && words.contains("holds other bytes now"), "{words}");
    assert_eq!(house.version(2, "one"), sum);
    let a = one("a");
    assert!(a.is_equal() && a.ran.is_some_and(|(number, _)| number == version(2)), "{a:?}");
    std::fs::remove_dir_all(models.join("m")).unwrap();
    let Outcome::Not(words) = one("a").outcome else { panic!() };
    assert!(words.contains("is not there any more"), "{words}");
}

#[test]
fn bits_are_told_apart_where_numbers_are_equal() {
    let (zero, minus) = (floats(&[1], &[0.0]), floats(&[1], &[-0.0]));
    assert_eq!(zero, minus);
    assert!(!super::super::bits::equal(&zero, &minus));
    let nan: Tensor = floats(&[1], &[f32::NAN]);
    assert!(super::super::bits::equal(&nan, &nan.clone()));
    assert!(!super::super::bits::equal(&floats(&[1, 1], &[0.0]), &zero));
}
