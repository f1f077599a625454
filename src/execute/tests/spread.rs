//! What is run by several workers, and that nobody notices.

use super::batching::{REAL, of, on, pairs};
use super::*;
use crate::compare::{Tolerance, compare_answers};
use crate::execute::spread::Spread;
use crate::model::Failure;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

/// `spread` as a `model.toml` may say it.
fn runner(model: &Arc<Steered>, spread: Option<bool>) -> Arc<Runner> {
    Arc::new(on(model, 1000).with_place(Place { at_once: Some(false), spread }))
}

/// Three workers; all of them idle when this answers.
fn three(inline_below: Duration) -> Arc<Executor> {
    let workers = NonZeroUsize::new(3).unwrap();
    let executor = Executor::start(&Config { inline_below, queue: 100, workers, cores: NonZeroUsize::MIN }).unwrap();
    while executor.idle() < 3 {
        std::thread::yield_now();
    }
    Arc::new(executor)
}

fn ask(
    executor: &Arc<Executor>,
    runner: &Arc<Runner>,
    request: &Arc<Checked>,
) -> tokio::task::JoinHandle<Result<Ran, Failure>> {
    let (executor, runner, request) = (Arc::clone(executor), Arc::clone(runner), Arc::clone(request));
    tokio::spawn(async move { executor.execute(&runner, request, soon()).await })
}

#[test]
fn a_large_request_is_run_by_all_that_idle_and_its_rows_stay_in_order() {
    let (model, executor) = (pairs(), three(Duration::ZERO));
    let (runner, request) = (runner(&model, Some(true)), of(&model, 11, 2, 0));
    model.close();
    runtime().block_on(async {
        let asked = ask(&executor, &runner, &request);
        tokio::task::yield_now().await;
        model.until_waiting(3);
        model.open();
        let ran = asked.await.unwrap().unwrap();
        assert_eq!(ran.answer.outputs[0].1, request.inputs()[0]);
        assert_eq!((ran.batch_rows, ran.counts), (4, true), "four rows ran together, and the others elsewhere");
    });
    assert_eq!(model.runs.load(Ordering::SeqCst), 3);
    let counts = runner.tally().counts();
    assert_eq!((counts.spread, counts.alone, counts.taken_apart), (1, 0, 0));
    assert_eq!(Arc::strong_count(&runner), 1, "nobody who helped holds on to the version");
}

#[test]
fn with_nobody_idle_or_rows_that_may_interact_it_is_one_run() {
    let (model, executor) = (pairs(), three(Duration::ZERO));
    let request = of(&model, 11, 2, 0);
    let unshown = Runner::new(Arc::clone(&model) as Arc<dyn Model>);
    let unshown = Arc::new(unshown.with_place(Place { at_once: None, spread: Some(true) }));
    let spread = runner(&model, Some(true));
    runtime().block_on(async {
        assert!(ask(&executor, &unshown, &request).await.unwrap().is_ok());
        assert!(ask(&executor, &runner(&model, Some(false)), &request).await.unwrap().is_ok());
        assert!(ask(&executor, &spread, &of(&model, 1, 2, 0)).await.unwrap().is_ok(), "one row is nothing to cut");
        assert_eq!(model.runs.load(Ordering::SeqCst), 3);
        // Two runs of another version keep two of the workers busy; the third has nobody to ask.
        model.close();
        let busy: Vec<_> = (0..2).map(|_| ask(&executor, &unshown, &request)).collect();
        tokio::task::yield_now().await;
        model.until_waiting(2);
        let last = ask(&executor, &spread, &request);
        tokio::task::yield_now().await;
        model.until_waiting(3);
        model.open();
        for asked in busy.into_iter().chain([last]) {
            assert!(asked.await.unwrap().is_ok());
        }
    });
    assert_eq!((model.runs.load(Ordering::SeqCst), spread.tally().counts().spread), (6, 0));
}

#[test]
fn nobody_who_does_not_come_is_waited_for() {
    let model = pairs();
    let (runner, request) = (runner(&model, None), of(&model, 10, 2, 0));
    let spread = Spread::new(&runner, &request, 4).unwrap();
    while spread.run_one() {}
    assert_eq!(spread.answer().unwrap().outputs[0].1, request.inputs()[0]);
    assert_eq!(model.runs.load(Ordering::SeqCst), 4);
    assert!(!spread.run_one(), "who comes late finds nothing to do");
    assert!(Spread::new(&runner, &request, 11).is_none());
}

#[test]
fn a_part_that_fails_makes_it_one_run_that_says_why_itself() {
    let request = |model: &Steered| of(model, 9, 2, 0);
    for ending in [Ending::Fail, Ending::Panic] {
        let (model, executor) = (pairs(), three(Duration::ZERO));
        let runner = runner(&model, Some(true));
        model.next(ending);
        let ran = runtime().block_on(async { ask(&executor, &runner, &request(&model)).await.unwrap() }).unwrap();
        assert_eq!(ran.answer.outputs[0].1, request(&model).inputs()[0]);
        let counts = runner.tally().counts();
        assert_eq!((counts.spread, counts.alone, counts.cut_in_vain), (0, 1, 1));
    }
    let (model, executor) = (pairs(), three(Duration::ZERO));
    let runner = runner(&model, Some(true));
    // Three parts at most, and the whole.
    model.endings((0..4).map(|_| Some(Ending::Fail)).collect());
    let failed = runtime().block_on(async { ask(&executor, &runner, &request(&model)).await.unwrap() }).unwrap_err();
    assert_eq!((failed.code, failed.message.as_str()), (Code::EngineFailed, "the engine failed"));
}

#[test]
fn parts_that_answer_other_rows_make_it_one_run() {
    let (model, executor) = (pairs(), three(Duration::ZERO));
    let (runner, request) = (runner(&model, Some(true)), of(&model, 9, 2, 0));
    model.endings((0..3).map(|_| Some(Ending::OneRow)).collect());
    let ran = runtime().block_on(async { ask(&executor, &runner, &request).await.unwrap() }).unwrap();
    assert_eq!(ran.answer.outputs[0].1, request.inputs()[0]);
    assert_eq!((runner.tally().counts().spread, runner.tally().counts().alone), (0, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn however_it_is_cut_and_put_together_nobody_gets_anothers_rows(
        sizes in prop::collection::vec((1usize..9, 1usize..4), 1..40)
    ) {
        let (model, executor) = (pairs(), three(Duration::ZERO));
        let runner = runner(&model, Some(true));
        let request = |(i, (rows, width)): (u32, &(usize, usize))| of(&model, *rows, *width, 1000 * i);
        let requests: Vec<_> = (0..).zip(&sizes).map(request).collect();
        let answers = runtime().block_on(async {
            let first = ask(&executor, &runner, &of(&model, 6, 2, 0)).await.unwrap();
            assert_eq!(first.unwrap().batch_rows, 2);
            let asked: Vec<_> = requests.iter().map(|request| ask(&executor, &runner, request)).collect();
            let mut answers = Vec::new();
            for asked in asked {
                answers.push(asked.await.unwrap());
            }
            answers
        });
        for (request, answer) in requests.iter().zip(answers) {
            prop_assert_eq!(&answer.unwrap().answer.outputs[0].1, &request.inputs()[0]);
        }
    }
}

#[test]
fn what_is_worth_cutting_is_measured() {
    let curve = CostCurve::new();
    assert_eq!(curve.parts(8192, 4, Duration::ZERO), 1, "nothing is known");
    curve.learn(1024, MS);
    assert_eq!(curve.parts(8192, 4, MS), 4, "nothing is known of either size: it is tried");
    assert_eq!(curve.parts(8192, 4, 3 * MS), 2, "four parts would take two milliseconds each");
    assert_eq!(curve.parts(8192, 4, 5 * MS), 1);
    curve.learn(4096, 4 * MS);
    assert_eq!(curve.parts(8192, 2, MS), 1, "and then the whole is");
    // Four parts cost twice the whole together, two of them no more than it.
    (0..100).for_each(|_| curve.learn(2048, 4 * MS));
    (0..100).for_each(|_| curve.learn(4096, 4 * MS));
    (0..100).for_each(|_| curve.learn(8192, 8 * MS));
    let chosen = |most| {
        let chosen: Vec<usize> = (0..10_000).map(|_| curve.parts(8192, most, MS)).collect();
        [1, 2, 3, 4].map(|parts| chosen.iter().filter(|chosen| **chosen == parts).count())
    };
    let [whole, two, three, four] = chosen(4);
    assert!(two > 9800 && whole > 30 && three > 30 && four > 30, "all stay measured: {whole}, {two}, {three}, {four}");
    // Memory is read once, however many rows there are: a part costs what the whole does.
    (0..100).for_each(|_| curve.learn(4096, 8 * MS));
    let [whole, two, ..] = chosen(2);
    assert!(whole > 9800 && two > 90, "and are tried again: {whole}, {two}");
}

#[test]
fn one_slow_run_gives_nothing_up() {
    let curve = CostCurve::new();
    (0..16).for_each(|_| curve.learn(8192, 8 * MS));
    for _ in 0..16 {
        assert_eq!(curve.parts(8192, 2, MS), 2, "it may have paid for memory that later ones find there");
        curve.learn(4096, 20 * MS);
    }
    assert_eq!(curve.parts(8192, 2, MS), 1, "sixteen of them say what it costs");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn on_several_workers_a_request_gets_what_it_gets_on_one(
        rows in prop::collection::vec(prop::array::uniform32(-1f32..1.0), 2..40),
        parts in 2usize..8,
    ) {
        for runner in &*REAL {
            let values: Vec<f32> = rows.iter().flatten().copied().collect();
            let tensor = Tensor::new(Shape::new(&[rows.len(), 32]), Data::Fp32(values.into())).unwrap();
            let inputs = vec![NamedTensor { name: "x".to_owned(), tensor }];
            let request = runner.signature().check(InferenceRequest { inputs, ..Default::default() }).unwrap();
            let request = Arc::new(request);
            let alone = runner.run(&request).unwrap();
            let spread = Spread::new(runner, &request, parts.min(rows.len())).unwrap();
            std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(|| while spread.run_one() {}))));
            let compared = compare_answers(&alone.answer, &spread.answer().unwrap(), Tolerance { rtol: 1e-5, atol: 1e-6 });
            prop_assert!(compared.agrees(), "{}: {compared:?}", runner.engine());
        }
    }
}
