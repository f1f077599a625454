//! Which requests are split across workers, and that their answers are the same.

use super::batching::{REAL, of, on, pairs};
use super::*;
use crate::compare::{Tolerance, compare_answers};
use crate::execute::split_run::SplitRun;
use crate::execute::watchdog::Callers;
use crate::model::Failure;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

/// A runner on workers only. `spread`: the setting of `model.toml`.
fn runner(model: &Arc<ScriptedModel>, spread: Option<bool>) -> Arc<Runner> {
    Arc::new(on(model, 1000).with_placement(Placement { at_once: Some(false), spread }))
}

/// A caller that stays.
#[derive(Debug)]
struct Stays;

impl Callers for Stays {
    fn all_left(&self) -> bool {
        false
    }
}

fn parted(runner: &Arc<Runner>, request: &Arc<Checked>, parts: usize) -> Option<SplitRun> {
    let stays: Arc<dyn Callers> = Arc::new(Stays);
    SplitRun::new(runner, request, parts, soon(), &stays)
}

/// An executor with three idle workers.
fn three(inline_below: Duration) -> Arc<Executor> {
    let workers = NonZeroUsize::new(3).unwrap();
    let executor = Executor::start(&Config { inline_below, queue: 100, workers, ..Config::default() }).unwrap();
    while executor.idle() < 3 {
        std::thread::yield_now();
    }
    Arc::new(executor)
}

fn submit(
    executor: &Arc<Executor>,
    runner: &Arc<Runner>,
    request: &Arc<Checked>,
) -> tokio::task::JoinHandle<Result<RunOutput, Failure>> {
    let (executor, runner, request) = (Arc::clone(executor), Arc::clone(runner), Arc::clone(request));
    tokio::spawn(async move { executor.execute(&runner, request, soon(), Requester::default()).await })
}

#[test]
fn a_large_request_is_split_across_all_idle_workers_and_keeps_its_row_order() {
    let (model, executor) = (pairs(), three(Duration::ZERO));
    let (runner, request) = (runner(&model, Some(true)), of(&model, 11, 2, 0));
    model.close();
    runtime().block_on(async {
        let answer = submit(&executor, &runner, &request);
        tokio::task::yield_now().await;
        model.until_waiting(3);
        model.open();
        let ran = answer.await.unwrap().unwrap();
        assert_eq!(ran.answer.outputs[0].1, request.inputs()[0]);
        assert_eq!((ran.batch_rows, ran.counts), (4, true), "the largest part has four rows");
    });
    assert_eq!(model.runs.load(Ordering::SeqCst), 3);
    let counts = runner.counters().read();
    assert_eq!((counts.split, counts.single, counts.batch_failed), (1, 0, 0));
    assert_eq!(Arc::strong_count(&runner), 1, "no helper keeps the version loaded");
}

#[test]
fn without_idle_workers_or_independent_rows_a_request_is_one_run() {
    let (model, executor) = (pairs(), three(Duration::ZERO));
    let request = of(&model, 11, 2, 0);
    let dependent = Runner::new(Arc::clone(&model) as Arc<dyn Model>);
    let dependent = Arc::new(dependent.with_placement(Placement { at_once: None, spread: Some(true) }));
    let split = runner(&model, Some(true));
    runtime().block_on(async {
        assert!(submit(&executor, &dependent, &request).await.unwrap().is_ok());
        assert!(submit(&executor, &runner(&model, Some(false)), &request).await.unwrap().is_ok());
        assert!(submit(&executor, &split, &of(&model, 1, 2, 0)).await.unwrap().is_ok(), "one row cannot be split");
        assert_eq!(model.runs.load(Ordering::SeqCst), 3);
        // Two runs of another version keep two workers busy, so the third has no helper.
        model.close();
        let busy: Vec<_> = (0..2).map(|_| submit(&executor, &dependent, &request)).collect();
        tokio::task::yield_now().await;
        model.until_waiting(2);
        let last = submit(&executor, &split, &request);
        tokio::task::yield_now().await;
        model.until_waiting(3);
        model.open();
        for answer in busy.into_iter().chain([last]) {
            assert!(answer.await.unwrap().is_ok());
        }
    });
    assert_eq!((model.runs.load(Ordering::SeqCst), split.counters().read().split), (6, 0));
}

#[test]
fn a_split_run_does_not_wait_for_helpers_that_have_not_started() {
    let model = pairs();
    let (runner, request) = (runner(&model, None), of(&model, 10, 2, 0));
    let run = parted(&runner, &request, 4).unwrap();
    while run.run_one() {}
    assert_eq!(run.answer().unwrap().outputs[0].1, request.inputs()[0]);
    assert_eq!(model.runs.load(Ordering::SeqCst), 4);
    assert!(!run.run_one(), "a late helper finds no part");
    assert!(parted(&runner, &request, 11).is_none());
}

#[test]
fn a_request_with_a_failed_part_runs_as_one() {
    let request = |model: &ScriptedModel| of(model, 9, 2, 0);
    for ending in [Ending::Fail, Ending::Panic] {
        let (model, executor) = (pairs(), three(Duration::ZERO));
        let runner = runner(&model, Some(true));
        model.next(ending);
        let ran = runtime().block_on(async { submit(&executor, &runner, &request(&model)).await.unwrap() }).unwrap();
        assert_eq!(ran.answer.outputs[0].1, request(&model).inputs()[0]);
        let counts = runner.counters().read();
        assert_eq!((counts.split, counts.single, counts.split_failed), (0, 1, 1));
    }
    let (model, executor) = (pairs(), three(Duration::ZERO));
    let runner = runner(&model, Some(true));
    // At most three parts, and the whole request.
    model.endings((0..4).map(|_| Some(Ending::Fail)).collect());
    let failed = runtime().block_on(async { submit(&executor, &runner, &request(&model)).await.unwrap() }).unwrap_err();
    assert_eq!((failed.code, failed.message.as_str()), (Code::EngineFailed, "the engine failed"));
}

#[test]
fn a_request_whose_parts_have_the_wrong_rows_runs_as_one() {
    let (model, executor) = (pairs(), three(Duration::ZERO));
    let (runner, request) = (runner(&model, Some(true)), of(&model, 9, 2, 0));
    model.endings((0..3).map(|_| Some(Ending::OneRow)).collect());
    let ran = runtime().block_on(async { submit(&executor, &runner, &request).await.unwrap() }).unwrap();
    assert_eq!(ran.answer.outputs[0].1, request.inputs()[0]);
    assert_eq!((runner.counters().read().split, runner.counters().read().single), (0, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn each_request_gets_its_own_rows_when_split_and_batched(
        sizes in prop::collection::vec((1usize..9, 1usize..4), 1..40)
    ) {
        let (model, executor) = (pairs(), three(Duration::ZERO));
        let runner = runner(&model, Some(true));
        let request = |(i, (rows, width)): (u32, &(usize, usize))| of(&model, *rows, *width, 1000 * i);
        let requests: Vec<_> = (0..).zip(&sizes).map(request).collect();
        let answers = runtime().block_on(async {
            let first = submit(&executor, &runner, &of(&model, 6, 2, 0)).await.unwrap();
            assert_eq!(first.unwrap().batch_rows, 2);
            let pending: Vec<_> = requests.iter().map(|request| submit(&executor, &runner, request)).collect();
            let mut answers = Vec::new();
            for answer in pending {
                answers.push(answer.await.unwrap());
            }
            answers
        });
        for (request, answer) in requests.iter().zip(answers) {
            prop_assert_eq!(&answer.unwrap().answer.outputs[0].1, &request.inputs()[0]);
        }
    }
}

#[test]
fn the_number_of_parts_follows_the_measured_cost() {
    let curve = CostCurve::new();
    assert_eq!(curve.parts(8192, 4, Duration::ZERO), 1, "nothing is measured");
    curve.learn(1024, MS);
    assert_eq!(curve.parts(8192, 4, MS), 4, "neither size is measured, so splitting is tried");
    assert_eq!(curve.parts(8192, 4, 3 * MS), 2, "four parts would take two milliseconds each");
    assert_eq!(curve.parts(8192, 4, 5 * MS), 1);
    curve.learn(4096, 4 * MS);
    assert_eq!(curve.parts(8192, 2, MS), 1, "and then the whole request is tried");
    // Four parts together cost twice the whole, and two parts the same as the whole.
    (0..100).for_each(|_| curve.learn(2048, 4 * MS));
    (0..100).for_each(|_| curve.learn(4096, 4 * MS));
    (0..100).for_each(|_| curve.learn(8192, 8 * MS));
    let chosen = |most| {
        let chosen: Vec<usize> = (0..10_000).map(|_| curve.parts(8192, most, MS)).collect();
        [1, 2, 3, 4].map(|parts| chosen.iter().filter(|chosen| **chosen == parts).count())
    };
    let [whole, two, three, four] = chosen(4);
    assert!(
        two > 9800 && whole > 30 && three > 30 && four > 30,
        "all numbers of parts stay measured: {whole}, {two}, {three}, {four}"
    );
    // A part now costs as much as the whole, as in a model limited by reading its weights.
    (0..100).for_each(|_| curve.learn(4096, 8 * MS));
    let [whole, two, ..] = chosen(2);
    assert!(whole > 9800 && two > 90, "two parts are still measured: {whole}, {two}");
}

#[test]
fn a_slow_first_run_does_not_stop_splitting() {
    let curve = CostCurve::new();
    (0..16).for_each(|_| curve.learn(8192, 8 * MS));
    for _ in 0..16 {
        assert_eq!(curve.parts(8192, 2, MS), 2, "the first runs may have allocated memory");
        curve.learn(4096, 20 * MS);
    }
    assert_eq!(curve.parts(8192, 2, MS), 1, "sixteen runs are enough");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_split_request_gets_the_same_answer_as_on_one_worker(
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
            let run = parted(runner, &request, parts.min(rows.len())).unwrap();
            std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(|| while run.run_one() {}))));
            let compared = compare_answers(&alone.answer, &run.answer().unwrap(), Tolerance { rtol: 1e-5, atol: 1e-6 });
            prop_assert!(compared.agrees(), "{}: {compared:?}", runner.engine());
        }
    }
}
