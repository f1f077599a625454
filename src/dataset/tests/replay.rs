use super::fixture::{DAY, Fakes, FeedbackRow, Fixture, Request, about, floats, pairs, request, version};
use crate::backend::fake::Fake;
use crate::compare::Tolerance;
use crate::dataset::logged::SkipReason;
use crate::dataset::{Budget, Error, Filter, Gate, Outcome, Replay, Replayed, replay, reproduce};
use crate::dataset::{ReproduceSample, reproduce_sample};
use crate::model::{Checked, Role};
use crate::prepare::ModelDirs;
use crate::record::About;
use crate::tensor::{Data, Tensor};
use std::time::{Duration, Instant};

/// y = x[0] + x[1] + error(x[0])
fn summing(error: impl Fn(f32) -> f32 + Send + Sync + 'static) -> Fake {
    Fake::new(pairs(), move |request: &Checked| {
        let Data::Fp32(x) = request.inputs()[0].data() else { unreachable!() };
        let sums: Vec<f32> = x.chunks(2).map(|x| x[0] + x[1] + error(x[0])).collect();
        vec![floats(&[sums.len()], &sums)]
    })
}

fn replayed(fixture: &Fixture, engines: &Fakes, change: impl FnOnce(&mut Replay)) -> Result<Replayed, Error> {
    let (models, data) = (ModelDirs::new(&fixture.models(), []), fixture.data());
    let mut options = Replay {
        model: &fixture.model,
        version: version(2),
        models: &models,
        data: data.as_path().into(),
        filter: Filter { roles: vec![Role::Primary], ..Filter::default() },
        limit: None,
        rtol: None,
        atol: None,
        default_tolerance: Tolerance::default(),
        worst: 3,
        gates: Vec::new(),
        budget: Budget { rows: 3, bytes: 10 },
    };
    change(&mut options);
    replay(engines, &options, &|_, _, _| {})
}

fn number(id: &'static str, row: i32, label: f64) -> FeedbackRow {
    FeedbackRow { id, row, number: Some(label), ..FeedbackRow::default() }
}

#[test]
fn a_candidate_is_compared_with_answers_and_labels() {
    let fixture = Fixture::new();
    fixture.version(2, "candidate");
    let requests: Vec<Request> = (0..10u16)
        .map(|i| {
            let x = f32::from(i);
            request(&format!("r{i}"), i64::from(i), &[x, 1.0, x, 2.0], &[x + 1.0, x + 2.0])
        })
        .collect();
    fixture.seal(1, &about(1, "aa", pairs()), &requests);
    fixture.add_feedback(1, &[number("r0", 0, 1.0), number("r0", 1, 2.5), number("r3", 1, 5.0), number("r9", 7, 5.0)]);
    let engines = Fakes([(2, summing(|x| if x == 3.0 { 0.5 } else { 0.0 }))].into());
    let gates = ["within_tolerance>=0.9", "agreement>0.95", "failed<=0", "mean_absolute_error<0.34", "accuracy>0"];
    let gates: Vec<Gate> = gates.iter().map(|gate| Gate::parse(gate).unwrap()).collect();
    let report = replayed(&fixture, &engines, |options| options.gates.clone_from(&gates)).unwrap();
    assert_eq!((report.requests, report.records, report.left_out.len()), (10, 20, 0));
    let [pair] = &report.pairs[..] else { panic!("{:?}", report.pairs) };
    assert_eq!((pair.primary, pair.shadow, pair.pairs, pair.agreed), (version(1), version(2), 10, 9));
    assert_eq!((pair.since.as_microsecond(), pair.until.as_microsecond()), (DAY, DAY + 9));
    let y = &pair.outputs[0];
    assert_eq!((y.elements, y.outside, y.largest), (20, 2, Some(0.5)));
    assert_eq!(pair.worst[0].request_id.as_str(), "r3");
    assert_eq!(pair.primary_latency.quantile_us(0.5), Some(100), "the logged time");
    let [labels] = &report.labels[..] else { panic!("{:?}", report.labels) };
    assert_eq!((labels.labelled, labels.numbers, labels.unfit), (3, 3, 0));
    let (logged, candidate) = labels.mean_absolute_error().unwrap();
    assert!((logged - 0.5 / 3.0).abs() < 1e-12 && (candidate - 1.0 / 3.0).abs() < 1e-12, "{logged} {candidate}");
    let verdicts: Vec<(bool, Option<f64>)> = report.verdicts.iter().map(|v| (v.passed, v.found)).collect();
    assert_eq!(verdicts[0], (true, Some(0.9)));
    assert_eq!(verdicts[1], (false, Some(0.9)));
    assert_eq!(verdicts[2], (true, Some(0.0)));
    assert!(verdicts[3].0);
    assert_eq!(verdicts[4], (false, None), "there are no class labels");
    let report = replayed(&fixture, &engines, |options| options.limit = Some(4)).unwrap();
    assert_eq!((report.requests, report.pairs[0].agreed), (4, 3));
    let report = replayed(&fixture, &engines, |options| options.atol = Some(1.0)).unwrap();
    assert_eq!((report.tolerance.atol, report.pairs[0].agreed), (1.0, 10));
}

#[test]
fn times_are_compared_where_both_versions_run_alternately() {
    let fixture = Fixture::new();
    let answered = fixture.version(1, "answered");
    fixture.version(2, "candidate");
    let requests: Vec<Request> =
        (0..40).map(|i| request(&format!("r{i}"), i, &[1.0, 1.0, 2.0, 2.0], &[2.0, 4.0])).collect();
    fixture.seal(1, &about(1, &answered, pairs()), &requests);
    // The version that answered is under another number now.
    std::fs::rename(fixture.models().join("m/1"), fixture.models().join("m/7")).unwrap();
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = std::sync::Arc::clone(&runs);
    let answering = summing(move |_| {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        0.0
    });
    let engines = Fakes([(2, summing(|_| 0.0)), (7, answering)].into());
    let gate = Gate::parse("time_ratio<1e6").unwrap();
    let report = replayed(&fixture, &engines, |options| options.gates = vec![gate]).unwrap();
    let alternated = &report.pairs[0].alternated;
    assert_eq!(alternated.runs(), 10, "one request in four");
    assert_eq!(
        runs.load(std::sync::atomic::Ordering::Relaxed),
        22,
        "two rows a run, and a first run that does not count"
    );
    assert!(alternated.us_per_row().is_some() && report.verdicts[0].passed, "{:?}", report.verdicts);

    // Without the version that answered there is nothing to compare with.
    std::fs::remove_dir_all(fixture.models().join("m/7")).unwrap();
    let report = replayed(&fixture, &engines, |options| options.gates = vec![gate]).unwrap();
    assert_eq!((report.pairs[0].alternated.runs(), report.verdicts[0].passed), (0, false));
}

#[test]
fn failures_of_the_candidate_fail_its_gates() {
    let fixture = Fixture::new();
    fixture.version(2, "candidate");
    fixture.seal(
        1,
        &about(1, "aa", pairs()),
        &[request("a", 1, &[1.0, 1.0], &[2.0]), request("b", 2, &[1.0, 2.0], &[3.0])],
    );
    let gates = ["within_tolerance>=0.5", "within_tolerance>0.5", "failed<0.5"].map(|gate| Gate::parse(gate).unwrap());
    let fake = summing(|_| 0.0);
    let engines = Fakes([(2, fake.clone())].into());
    // The first run is a warm-up. The second run is that of the first request.
    fake.fail_next(crate::backend::RunError::Refused("once".to_owned()));
    fake.fail_next(crate::backend::RunError::Refused("not these".to_owned()));
    let report = replayed(&fixture, &engines, |options| options.gates = gates.to_vec()).unwrap();
    assert_eq!((report.pairs[0].shadow_failed, report.pairs[0].agreed), (1, 1));
    assert_eq!(report.verdicts.iter().map(|v| v.passed).collect::<Vec<_>>(), [true, false, false]);
    assert!(report.pairs[0].worst[0].words().contains("not these"));
}

#[test]
fn skipped_requests_are_counted_by_reason() {
    let fixture = Fixture::new();
    fixture.version(2, "candidate");
    let cut = Request { truncated: true, inputs: vec![None], ..request("b", 2, &[1.0, 2.0], &[3.0]) };
    let failed = Request { status: "ENGINE_FAILED", outputs: None, ..request("c", 3, &[1.0, 2.0], &[3.0]) };
    let part = Request { outputs: Some(vec![None]), ..request("d", 4, &[1.0, 2.0], &[3.0]) };
    fixture.seal(1, &about(1, "aa", pairs()), &[request("a", 1, &[1.0, 2.0], &[3.0]), cut, failed, part]);
    let dropped = About { dropped: ["inputs.x".to_owned()].into(), ..about(1, "aa", pairs()) };
    fixture.seal(2, &dropped, &[Request { inputs: Vec::new(), ..request("e", 5, &[0.0, 0.0], &[3.0]) }]);
    let engines = Fakes([(2, summing(|_| 0.0))].into());
    let report = replayed(&fixture, &engines, |_| {}).unwrap();
    let left_out: Vec<_> = report.left_out.into_iter().collect();
    assert_eq!(left_out, [(SkipReason::NoAnswer, 2), (SkipReason::Truncated, 1), (SkipReason::Dropped, 1)]);
    assert_eq!(report.requests, 1);
    let Err(Error::Failed(message)) = replayed(&fixture, &engines, |options| options.version = version(9)) else {
        panic!()
    };
    assert!(message.starts_with("there is no version 9 of m"), "{message}");
    let Err(Error::Failed(message)) = replayed(&fixture, &Fakes::default(), |_| {}) else { panic!() };
    assert!(message.contains("cannot load the candidate") && message.contains("unknown version"), "{message}");
}

#[test]
fn a_prediction_is_reproduced_bit_by_bit_with_its_model_file() {
    let fixture = Fixture::new();
    let sum = fixture.version(1, "one");
    let nan = f32::from_bits(0x7fc0_0123);
    fixture.seal(
        1,
        &about(1, &sum, pairs()),
        &[
            request("a", 1, &[1.0, 2.0, 3.0, 4.0], &[3.0, 7.0]),
            request("b", 2, &[9.0, 1.0], &[nan]),
            request("c", 3, &[1.0, 1.0], &[2.5]),
            Request { batch_rows: Some(8), ..request("together", 5, &[1.0, 1.0], &[2.000_01]) },
            Request { batch_rows: Some(8), ..request("far", 6, &[1.0, 1.0], &[2.01]) },
            request("alone", 7, &[1.0, 1.0], &[2.000_01]),
            Request { status: "ENGINE_FAILED", outputs: None, ..request("d", 4, &[1.0, 2.0], &[3.0]) },
        ],
    );
    let fake = summing(move |x| if x == 9.0 { nan } else { 0.0 });
    let engines = Fakes([(1, fake.clone()), (2, fake)].into());
    let (models, data) = (ModelDirs::new(&fixture.models(), []), fixture.data());
    let reproduce_id = |id: &str| reproduce(&engines, &data, &models, None, id);
    let one = |id: &str| {
        let mut all = reproduce_id(id).unwrap();
        assert_eq!(all.len(), 1);
        all.remove(0)
    };
    let a = one("a");
    assert!(a.is_reproduced() && matches!(a.outcome, Outcome::Equal { outputs: 1 }), "{a:?}");
    assert_eq!((a.records, a.ran.map(|(version, _)| version)), (2, Some(version(1))));
    let Outcome::Different(comparison) = one("c").outcome else { panic!() };
    assert!(comparison.to_string().contains("expected 2.5, got 2"), "{comparison}");
    let together = one("together");
    assert!(together.is_reproduced() && matches!(together.outcome, Outcome::Close(_)), "{together:?}");
    assert!(matches!(one("far").outcome, Outcome::Different(_)), "more than rounding");
    assert!(matches!(one("alone").outcome, Outcome::Different(_)), "alone there is no other rounding");
    let Outcome::NotRun(message) = one("d").outcome else { panic!() };
    assert_eq!(message, "it was answered with ENGINE_FAILED");
    let Err(Error::Failed(message)) = reproduce_id("missing") else { panic!() };
    assert!(message.ends_with("has no prediction with the id \"missing\""), "{message}");

    let sample = |requests: usize, from: i64| {
        let (model, deadline) = ("m".parse().unwrap(), Instant::now() + Duration::from_mins(1));
        let version = version(1);
        let what = ReproduceSample { data: &data, models: &models, model: &model, version, from, requests, deadline };
        reproduce_sample(&engines, &what).unwrap()
    };
    let all = sample(100, 0);
    assert_eq!((all.answered, all.ran.len()), (6, 6), "the failed request is no answer");
    let of = |is: fn(&Outcome) -> bool| all.ran.iter().filter(|(_, ran)| is(&ran.outcome)).count();
    let equal = of(|outcome| matches!(outcome, Outcome::Equal { .. }));
    assert_eq!((equal, of(|outcome| matches!(outcome, Outcome::Close(_)))), (2, 1));
    let different = all.ran.iter().filter(|(_, ran)| matches!(ran.outcome, Outcome::Different(_)));
    let mut different: Vec<&str> = different.map(|(id, _)| id.as_str()).collect();
    different.sort_unstable();
    assert_eq!(different, ["alone", "c", "far"]);
    let two = sample(2, 0);
    assert_eq!((two.answered, two.ran.len()), (6, 2));
    assert_eq!(sample(100, i64::MAX).answered, 0, "nothing is that new");

    // Version 1 gets another model file, and its old file moves to version 2.
    fixture.version(1, "other");
    let Outcome::NotRun(message) = one("a").outcome else { panic!() };
    assert!(message.contains(&sum) && message.contains("has another model file now"), "{message}");
    assert_eq!(fixture.version(2, "one"), sum);
    let a = one("a");
    assert!(a.is_reproduced() && a.ran.is_some_and(|(number, _)| number == version(2)), "{a:?}");
    // What the server keeps of other sources is looked through after the models directory.
    let kept = data.join("sources/models");
    std::fs::create_dir_all(&kept).unwrap();
    std::fs::rename(fixture.models().join("m"), kept.join("m")).unwrap();
    let Outcome::NotRun(message) = one("a").outcome else { panic!() };
    assert!(message.contains("does not exist any more"), "{message}");
    let both = ModelDirs::new(&fixture.models(), [kept]);
    let a = reproduce(&engines, &data, &both, None, "a").unwrap().remove(0);
    assert!(a.is_reproduced() && a.ran.is_some_and(|(number, _)| number == version(2)), "{a:?}");
}

#[test]
fn bitwise_equality_distinguishes_equal_numbers() {
    let (zero, minus) = (floats(&[1], &[0.0]), floats(&[1], &[-0.0]));
    assert_eq!(zero, minus);
    assert!(!super::super::bits::equal(&zero, &minus));
    let nan: Tensor = floats(&[1], &[f32::NAN]);
    assert!(super::super::bits::equal(&nan, &nan.clone()));
    assert!(!super::super::bits::equal(&floats(&[1, 1], &[0.0]), &zero));
}
