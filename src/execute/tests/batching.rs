//! Which requests run together, and that each gets its own rows.

use super::*;
use crate::backend::{EngineChoice, Engines, VersionFiles};
use crate::compare::{Tolerance, compare_answers};
use crate::execute::batch::{BatchItem, Selected, select};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::LazyLock;

/// A model of `x` [N,M] → the same.
pub(super) fn pairs() -> Arc<ScriptedModel> {
    let dims = Some(vec![Dim::Free(None), Dim::Free(None)]);
    let spec = |name: &str| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: dims.clone() };
    let signature = Signature::new(vec![spec("x")], vec![spec("y")]);
    ScriptedModel::with_signature(signature)
}

pub(super) fn on(model: &Arc<ScriptedModel>, max_rows: usize) -> Runner {
    let batching = Batching::On { why: String::new(), max_rows };
    Runner::new(Arc::clone(model) as Arc<dyn Model>).with_batching(batching)
}

/// A runner whose measured cost of a thousand rows is only twice that of one.
fn cheap_together(model: &Arc<ScriptedModel>) -> Runner {
    let runner = on(model, 1000);
    runner.cost().learn(2, Duration::from_millis(1));
    runner.cost().learn(2000, Duration::from_millis(2));
    runner
}

pub(super) fn of(model: &ScriptedModel, rows: usize, width: usize, from: u32) -> Arc<Checked> {
    let n = u32::try_from(rows * width).unwrap();
    let data = Data::Fp32((from..from + n).map(|i| i as f32).collect::<Vec<_>>().into());
    let tensor = Tensor::new(Shape::new(&[rows, width]), data).unwrap();
    let inputs = vec![NamedTensor { name: "x".into(), tensor }];
    Arc::new(model.signature.check(InferenceRequest { inputs, ..Default::default() }).unwrap())
}

struct Job {
    request: Arc<Checked>,
    deadline: Instant,
    cancelled: bool,
}

impl BatchItem for Job {
    fn request(&self) -> &Arc<Checked> {
        &self.request
    }
    fn deadline(&self) -> Instant {
        self.deadline
    }
    fn is_cancelled(&self) -> bool {
        self.cancelled
    }
}

/// Selects from jobs of (rows, width, milliseconds until the deadline). Returns how many were batched, expired, cancelled and left.
fn selected(runner: &Runner, model: &ScriptedModel, now: Instant, jobs: &[(usize, usize, u64)]) -> [usize; 4] {
    let job = |(rows, width, ms): &(usize, usize, u64)| Job {
        request: of(model, *rows, *width, 0),
        deadline: now + Duration::from_millis(*ms),
        cancelled: false,
    };
    let mut jobs: VecDeque<Job> = jobs.iter().map(job).collect();
    let Selected { batch, expired, cancelled } = select(runner, &mut jobs, now, None);
    [batch.len(), expired.len(), cancelled.len(), jobs.len()]
}

#[test]
fn requests_that_stack_are_batched_in_order_and_the_rest_waits() {
    let model = pairs();
    let runner = cheap_together(&model);
    let now = Instant::now();
    assert_eq!(selected(&runner, &model, now, &[(1, 2, 100); 5]), [5, 0, 0, 0]);
    assert_eq!(selected(&runner, &model, now, &[(1, 2, 100), (3, 2, 100), (1, 3, 100), (1, 2, 100)]), [3, 0, 0, 1]);
    assert_eq!(selected(&runner, &model, now, &[(1, 2, 0), (1, 2, 100), (1, 2, 0), (1, 2, 100)]), [2, 1, 0, 1]);
    assert_eq!(selected(&runner, &model, now, &[(1, 2, 0)]), [0, 1, 0, 0]);
    let few = on(&model, 4);
    few.cost().learn(2, Duration::from_millis(1));
    few.cost().learn(2000, Duration::from_millis(2));
    assert_eq!(
        selected(&few, &model, now, &[(3, 2, 100), (1, 2, 100), (1, 2, 100)]),
        [2, 0, 0, 1],
        "the limit counts rows and not requests"
    );
    let off = Runner::new(Arc::clone(&model) as Arc<dyn Model>);
    assert_eq!(selected(&off, &model, now, &[(1, 2, 100); 3]), [1, 0, 0, 2]);
}

#[test]
fn a_batch_takes_at_most_half_of_the_time_left() {
    let model = pairs();
    let runner = on(&model, 1000);
    // One millisecond for up to 63 elements, ten for more.
    runner.cost().learn(2, Duration::from_millis(1));
    runner.cost().learn(63, Duration::from_millis(1));
    runner.cost().learn(64, Duration::from_millis(10));
    runner.cost().learn(4000, Duration::from_millis(11));
    let now = Instant::now();
    assert_eq!(selected(&runner, &model, now, &[(1, 2, 1000); 100]), [100, 0, 0, 0]);
    assert_eq!(
        selected(&runner, &model, now, &[(1, 2, 15); 100]),
        [31, 0, 0, 69],
        "62 elements: with a 32nd row the batch would take too long"
    );
    let mut jobs = vec![(1, 2, 1000); 10];
    jobs.push((40, 2, 15));
    assert_eq!(
        selected(&runner, &model, now, &jobs),
        [10, 0, 0, 1],
        "a request with little time is not made late by those before it"
    );
    assert_eq!(selected(&runner, &model, now, &[(40, 2, 15)]), [1, 0, 0, 0], "alone it runs");
}

#[test]
fn a_cancelled_request_is_removed_at_its_turn() {
    let model = pairs();
    let runner = cheap_together(&model);
    let now = Instant::now();
    let job = |cancelled| Job { request: of(&model, 1, 2, 0), deadline: now + Duration::from_secs(1), cancelled };
    let mut jobs: VecDeque<Job> = [true, false, true, false].map(job).into();
    let Selected { batch, cancelled, .. } = select(&runner, &mut jobs, now, None);
    assert_eq!((batch.len(), cancelled.len(), jobs.len()), (2, 1, 1));
}

/// Blocks the only worker, queues these requests, and then lets all run.
fn answered(
    model: &Arc<ScriptedModel>,
    runner: &Arc<Runner>,
    requests: &[Arc<Checked>],
) -> Vec<Result<RunOutput, crate::model::Failure>> {
    let executor = Arc::new(executor(Duration::ZERO, 1000));
    model.close();
    runtime().block_on(async {
        let spawn = |request: &Arc<Checked>| {
            let (executor, runner, request) = (Arc::clone(&executor), Arc::clone(runner), Arc::clone(request));
            tokio::spawn(async move { executor.execute(&runner, request, soon(), Requester::default()).await })
        };
        let first = spawn(&of(model, 1, 2, 0));
        tokio::task::yield_now().await;
        model.until_waiting(1);
        let waiting: Vec<_> = requests.iter().map(spawn).collect();
        while executor.queue_depth() < requests.len() {
            tokio::task::yield_now().await;
        }
        model.open();
        assert!(first.await.unwrap().is_ok());
        let mut answers = Vec::new();
        for task in waiting {
            answers.push(task.await.unwrap());
        }
        answers
    })
}

#[test]
fn waiting_requests_run_as_one_batch_and_a_failed_batch_runs_in_halves() {
    let model = pairs();
    let runner = Arc::new(cheap_together(&model));
    let requests: Vec<_> = (0..10).map(|i| of(&model, 1 + i as usize % 3, 2, 100 * i)).collect();
    let answers = answered(&model, &runner, &requests);
    assert_eq!(model.runs.load(Ordering::SeqCst), 2, "the first request alone, and all others as one batch");
    let rows = requests.iter().map(|r| r.rows().unwrap()).sum::<usize>();
    let answers: Vec<RunOutput> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().filter(|ran| ran.counts).count(), 1, "a batch is counted once");
    for (request, ran) in requests.iter().zip(answers) {
        assert_eq!(ran.answer.outputs[0].1, request.inputs()[0]);
        assert_eq!(ran.batch_rows, rows);
    }
    assert_eq!(runner.counters().read().batched, [(32, 1)]);

    // The first run succeeds. Then these fail: the batch of ten, its first half, the first two of that, and the first request. Halves run
    // after the groups that were split before them.
    let failing = pairs();
    let runner = Arc::new(cheap_together(&failing));
    let fails = || Some(Ending::Fail);
    failing.endings(vec![None, Some(Ending::Panic), fails(), None, fails(), None, fails()]);
    let answers = answered(&failing, &runner, &requests);
    let failed = answers.iter().filter(|answer| answer.is_err()).count();
    assert_eq!((failed, answers[0].is_err()), (1, true), "only the first of ten failed");
    assert_eq!(runner.counters().read().batch_failed, 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn each_request_of_a_batch_gets_its_own_rows(shapes in prop::collection::vec((1usize..6, 1usize..4), 1..40)) {
        let model = pairs();
        let runner = Arc::new(cheap_together(&model));
        let request = |(i, (rows, width)): (u32, &(usize, usize))| of(&model, *rows, *width, 1000 * i);
        let requests: Vec<_> = (0..).zip(&shapes).map(request).collect();
        for (request, answer) in requests.iter().zip(answered(&model, &runner, &requests)) {
            prop_assert_eq!(&answer.unwrap().answer.outputs[0].1, &request.inputs()[0]);
        }
        prop_assert!(model.runs.load(Ordering::SeqCst) <= 1 + requests.len() as u64);
    }
}

#[test]
fn a_request_that_would_wait_too_long_is_refused() {
    let model = pairs();
    let runner = Arc::new(Runner::new(Arc::clone(&model) as Arc<dyn Model>));
    // Each run takes a second.
    runner.cost().learn(2, Duration::from_secs(1));
    let now = Instant::now();
    assert_eq!(selected(&runner, &model, now, &[(1, 2, 500), (1, 2, 2000), (1, 2, 500)]), [1, 1, 0, 1]);
    assert_eq!(
        selected(&runner, &model, now, &[(1, 2, 500)]),
        [1, 0, 0, 0],
        "with no other waiting it runs: the cost may have changed"
    );
    let executor = Arc::new(executor(Duration::ZERO, 1000));
    model.close();
    runtime().block_on(async {
        let ask = |seconds| {
            let (executor, runner, request) = (Arc::clone(&executor), Arc::clone(&runner), of(&model, 1, 2, 0));
            let deadline = Instant::now() + Duration::from_secs(seconds);
            async move { executor.execute(&runner, request, deadline, Requester::default()).await }
        };
        let running = tokio::spawn(ask(30));
        tokio::task::yield_now().await;
        model.until_waiting(1);
        let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(ask(30))).collect();
        while executor.queue_depth() < 3 {
            tokio::task::yield_now().await;
        }
        let refused = ask(5).await.unwrap_err();
        assert_eq!(refused.code, Code::Overloaded, "{refused:?}");
        assert!(refused.message.starts_with("the expected wait is 3000 ms, and "), "{}", refused.message);
        let patient = tokio::spawn(ask(30));
        model.open();
        for task in waiting.into_iter().chain([running, patient]) {
            assert!(task.await.unwrap().is_ok());
        }
    });
}

#[test]
fn empty_tensors_that_claim_many_rows_do_no_harm() {
    let model = pairs();
    let runner = Arc::new(cheap_together(&model));
    let empty = |rows| {
        let tensor = Tensor::new(Shape::new(&[rows, 0]), Data::Fp32(vec![].into())).unwrap();
        let inputs = vec![NamedTensor { name: "x".into(), tensor }];
        Arc::new(model.signature.check(InferenceRequest { inputs, ..Default::default() }).unwrap())
    };
    let requests = [empty(usize::MAX), empty(1), empty(1), of(&model, 1, 2, 7)];
    for (request, answer) in requests.iter().zip(answered(&model, &runner, &requests)) {
        assert_eq!(answer.unwrap().answer.outputs[0].1, request.inputs()[0]);
    }
}

/// The repository's perceptron on every available engine.
pub(super) static REAL: LazyLock<Vec<Arc<Runner>>> = LazyLock::new(|| {
    let files = VersionFiles::of("models/mlp32/1");
    let engines = Engines::discover(None);
    let available = engines.describe().iter().filter(|engine| engine.available).count();
    let choices = [EngineChoice::Tract, EngineChoice::OnnxRuntime];
    let loaded = choices.iter().take(available).map(|choice| engines.load(*choice, &files).unwrap());
    loaded.map(|model| Arc::new(Runner::new(model))).collect()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_request_gets_the_same_answer_in_a_batch_as_alone(
        requests in prop::collection::vec(prop::collection::vec(prop::array::uniform32(-1f32..1.0), 1..5), 2..24)
    ) {
        for runner in &*REAL {
            let requests: Vec<Checked> = requests.iter().map(|rows| {
                let values: Vec<f32> = rows.iter().flatten().copied().collect();
                let tensor = Tensor::new(Shape::new(&[rows.len(), 32]), Data::Fp32(values.into())).unwrap();
                let input = NamedTensor { name: "x".to_owned(), tensor };
                runner.signature().check(InferenceRequest { inputs: vec![input], ..InferenceRequest::default() }).unwrap()
            }).collect();
            let together = runner.run_together(&requests.iter().collect::<Vec<_>>(), crate::execute::watchdog::Limit::default()).unwrap();
            for (request, ran) in requests.iter().zip(together) {
                let alone = runner.run(request).unwrap();
                let compared = compare_answers(&alone.answer, &ran.answer, Tolerance { rtol: 1e-5, atol: 1e-6 });
                prop_assert!(compared.agrees(), "{}: {compared:?}", runner.engine());
            }
        }
    }
}
