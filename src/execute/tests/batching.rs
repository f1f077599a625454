//! What runs together, and that nobody notices.

use super::*;
use crate::backend::{EngineChoice, Engines, VersionFiles};
use crate::compare::{Tolerance, compare_answers};
use crate::execute::batch::{Formed, Waiting, form};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::LazyLock;

/// `x` [N,2] → the same.
pub(super) fn pairs() -> Arc<Steered> {
    let dims = Some(vec![Dim::Free(None), Dim::Free(None)]);
    let spec = |name: &str| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: dims.clone() };
    let signature = Signature::new(vec![spec("x")], vec![spec("y")]);
    Arc::new(Steered { signature, gate: Mutex::default(), changed: Condvar::new(), runs: AtomicU64::new(0) })
}

pub(super) fn on(model: &Arc<Steered>, max_rows: usize) -> Runner {
    let batching = Batching::On { why: String::new(), max_rows };
    Runner::new(Arc::clone(model) as Arc<dyn Model>).with_batching(batching)
}

/// A runner that knows: a thousand rows together cost hardly more than one.
fn cheap_together(model: &Arc<Steered>) -> Runner {
    let runner = on(model, 1000);
    runner.cost().learn(2, Duration::from_millis(1));
    runner.cost().learn(2000, Duration::from_millis(2));
    runner
}

pub(super) fn of(model: &Steered, rows: usize, width: usize, from: u32) -> Arc<Checked> {
    let n = u32::try_from(rows * width).unwrap();
    let data = Data::Fp32((from..from + n).map(|i| i as f32).collect::<Vec<_>>().into());
    let tensor = Tensor::new(Shape::new(&[rows, width]), data).unwrap();
    let inputs = vec![NamedTensor { name: "x".into(), tensor }];
    Arc::new(model.signature.check(InferenceRequest { inputs, ..Default::default() }).unwrap())
}

struct Job {
    request: Arc<Checked>,
    deadline: Instant,
    left: bool,
}

impl Waiting for Job {
    fn request(&self) -> &Arc<Checked> {
        &self.request
    }
    fn deadline(&self) -> Instant {
        self.deadline
    }
    fn is_left(&self) -> bool {
        self.left
    }
}

/// Jobs of so many rows each that have so many milliseconds from `now`, and how many were formed, late, left, and stayed.
fn formed(runner: &Runner, model: &Steered, now: Instant, jobs: &[(usize, usize, u64)]) -> [usize; 4] {
    let job = |(rows, width, ms): &(usize, usize, u64)| Job {
        request: of(model, *rows, *width, 0),
        deadline: now + Duration::from_millis(*ms),
        left: false,
    };
    let mut jobs: VecDeque<Job> = jobs.iter().map(job).collect();
    let Formed { batch, expired, left } = form(runner, &mut jobs, now);
    [batch.len(), expired.len(), left.len(), jobs.len()]
}

#[test]
fn what_stacks_is_taken_in_order_and_the_rest_stays() {
    let model = pairs();
    let runner = cheap_together(&model);
    let now = Instant::now();
    assert_eq!(formed(&runner, &model, now, &[(1, 2, 100); 5]), [5, 0, 0, 0]);
    assert_eq!(formed(&runner, &model, now, &[(1, 2, 100), (3, 2, 100), (1, 3, 100), (1, 2, 100)]), [3, 0, 0, 1]);
    assert_eq!(formed(&runner, &model, now, &[(1, 2, 0), (1, 2, 100), (1, 2, 0), (1, 2, 100)]), [2, 1, 0, 1]);
    assert_eq!(formed(&runner, &model, now, &[(1, 2, 0)]), [0, 1, 0, 0]);
    let few = on(&model, 4);
    few.cost().learn(2, Duration::from_millis(1));
    few.cost().learn(2000, Duration::from_millis(2));
    assert_eq!(
        formed(&few, &model, now, &[(3, 2, 100), (1, 2, 100), (1, 2, 100)]),
        [2, 0, 0, 1],
        "rows, and not requests"
    );
    let off = Runner::new(Arc::clone(&model) as Arc<dyn Model>);
    assert_eq!(formed(&off, &model, now, &[(1, 2, 100); 3]), [1, 0, 0, 2]);
}

#[test]
fn a_run_takes_no_more_than_half_of_the_time_that_is_left() {
    let model = pairs();
    let runner = on(&model, 1000);
    // One millisecond, however many up to 63 elements; ten for more.
    runner.cost().learn(2, Duration::from_millis(1));
    runner.cost().learn(63, Duration::from_millis(1));
    runner.cost().learn(64, Duration::from_millis(10));
    runner.cost().learn(4000, Duration::from_millis(11));
    let now = Instant::now();
    assert_eq!(formed(&runner, &model, now, &[(1, 2, 1000); 100]), [100, 0, 0, 0]);
    assert_eq!(
        formed(&runner, &model, now, &[(1, 2, 15); 100]),
        [31, 0, 0, 69],
        "62 elements: a 32nd row would take too long"
    );
    let mut jobs = vec![(1, 2, 1000); 10];
    jobs.push((40, 2, 15));
    assert_eq!(
        formed(&runner, &model, now, &jobs),
        [10, 0, 0, 1],
        "one in a hurry is not made late by those before it"
    );
    assert_eq!(formed(&runner, &model, now, &[(40, 2, 15)]), [1, 0, 0, 0], "alone it may try");
}

#[test]
fn whose_caller_left_is_put_aside_when_it_is_its_turn() {
    let model = pairs();
    let runner = cheap_together(&model);
    let now = Instant::now();
    let job = |left| Job { request: of(&model, 1, 2, 0), deadline: now + Duration::from_secs(1), left };
    let mut jobs: VecDeque<Job> = [true, false, true, false].map(job).into();
    let Formed { batch, left, .. } = form(&runner, &mut jobs, now);
    assert_eq!((batch.len(), left.len(), jobs.len()), (2, 1, 1));
}

/// Holds the only worker at the gate, lets these wait, and opens.
fn answered(
    model: &Arc<Steered>,
    runner: &Arc<Runner>,
    requests: &[Arc<Checked>],
) -> Vec<Result<Ran, crate::model::Failure>> {
    let executor = Arc::new(executor(Duration::ZERO, 1000));
    model.close();
    runtime().block_on(async {
        let spawn = |request: &Arc<Checked>| {
            let (executor, runner, request) = (Arc::clone(&executor), Arc::clone(runner), Arc::clone(request));
            tokio::spawn(async move { executor.execute(&runner, request, soon()).await })
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
fn what_waits_runs_at_once_and_a_failed_batch_fails_nobody() {
    let model = pairs();
    let runner = Arc::new(cheap_together(&model));
    let requests: Vec<_> = (0..10).map(|i| of(&model, 1 + i as usize % 3, 2, 100 * i)).collect();
    let answers = answered(&model, &runner, &requests);
    assert_eq!(model.runs.load(Ordering::SeqCst), 2, "the first alone, and all others together");
    let rows = requests.iter().map(|r| r.rows().unwrap()).sum::<usize>();
    let answers: Vec<Ran> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().filter(|ran| ran.counts).count(), 1, "a run is counted once");
    for (request, ran) in requests.iter().zip(answers) {
        assert_eq!(ran.answer.outputs[0].1, request.inputs()[0]);
        assert_eq!(ran.batch_rows, rows);
    }
    assert_eq!(runner.tally().counts().together, [(32, 1)]);

    // The first run goes well, then fail: the batch of ten, its first half, two of that, and the first of those.
    let failing = pairs();
    let runner = Arc::new(cheap_together(&failing));
    failing.endings(vec![None, Some(Ending::Panic), Some(Ending::Fail), Some(Ending::Fail), Some(Ending::Fail)]);
    let answers = answered(&failing, &runner, &requests);
    let failed = answers.iter().filter(|answer| answer.is_err()).count();
    assert_eq!((failed, answers[0].is_err()), (1, true), "one of ten, which failed for itself");
    assert_eq!(runner.tally().counts().taken_apart, 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn nobody_gets_anothers_rows(shapes in prop::collection::vec((1usize..6, 1usize..4), 1..40)) {
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
fn who_would_wait_too_long_is_refused_and_who_would_be_late_makes_room() {
    let model = pairs();
    let runner = Arc::new(Runner::new(Arc::clone(&model) as Arc<dyn Model>));
    // A second each.
    runner.cost().learn(2, Duration::from_secs(1));
    let now = Instant::now();
    assert_eq!(formed(&runner, &model, now, &[(1, 2, 500), (1, 2, 2000), (1, 2, 500)]), [1, 1, 0, 1]);
    assert_eq!(
        formed(&runner, &model, now, &[(1, 2, 500)]),
        [1, 0, 0, 0],
        "the last is tried: the cost may be another by now"
    );
    let executor = Arc::new(executor(Duration::ZERO, 1000));
    model.close();
    runtime().block_on(async {
        let ask = |seconds| {
            let (executor, runner, request) = (Arc::clone(&executor), Arc::clone(&runner), of(&model, 1, 2, 0));
            let deadline = Instant::now() + Duration::from_secs(seconds);
            async move { executor.execute(&runner, request, deadline).await }
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
        assert!(refused.message.starts_with("the wait is 3000 ms, of the "), "{}", refused.message);
        let patient = tokio::spawn(ask(30));
        model.open();
        for task in waiting.into_iter().chain([running, patient]) {
            assert!(task.await.unwrap().is_ok());
        }
    });
}

#[test]
fn rows_that_are_only_said_to_be_there_harm_nobody() {
    let model = pairs();
    let runner = Arc::new(cheap_together(&model));
    let endless = |rows| {
        let tensor = Tensor::new(Shape::new(&[rows, 0]), Data::Fp32(vec![].into())).unwrap();
        let inputs = vec![NamedTensor { name: "x".into(), tensor }];
        Arc::new(model.signature.check(InferenceRequest { inputs, ..Default::default() }).unwrap())
    };
    let requests = [endless(usize::MAX), endless(1), endless(1), of(&model, 1, 2, 7)];
    for (request, answer) in requests.iter().zip(answered(&model, &runner, &requests)) {
        assert_eq!(answer.unwrap().answer.outputs[0].1, request.inputs()[0]);
    }
}

/// The repository's perceptron on every engine that is here.
pub(super) static REAL: LazyLock<Vec<Arc<Runner>>> = LazyLock::new(|| {
    let files = VersionFiles { dir: "models/mlp32/1".into() };
    let engines = Engines::discover(None);
    let available = engines.describe().iter().filter(|engine| engine.available).count();
    let choices = [EngineChoice::Tract, EngineChoice::OnnxRuntime];
    let loaded = choices.iter().take(available).map(|choice| engines.load(*choice, &files).unwrap());
    loaded.map(|model| Arc::new(Runner::new(model))).collect()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn together_a_request_gets_what_it_gets_alone(
        requests in prop::collection::vec(prop::collection::vec(prop::array::uniform32(-1f32..1.0), 1..5), 2..24)
    ) {
        for runner in &*REAL {
            let requests: Vec<Checked> = requests.iter().map(|rows| {
                let values: Vec<f32> = rows.iter().flatten().copied().collect();
                let tensor = Tensor::new(Shape::new(&[rows.len(), 32]), Data::Fp32(values.into())).unwrap();
                let input = NamedTensor { name: "x".to_owned(), tensor };
                runner.signature().check(InferenceRequest { inputs: vec![input], ..InferenceRequest::default() }).unwrap()
            }).collect();
            let together = runner.run_together(&requests.iter().collect::<Vec<_>>()).unwrap();
            for (request, ran) in requests.iter().zip(together) {
                let alone = runner.run(request).unwrap();
                let compared = compare_answers(&alone.answer, &ran.answer, Tolerance { rtol: 1e-5, atol: 1e-6 });
                prop_assert!(compared.agrees(), "{}: {compared:?}", runner.engine());
            }
        }
    }
}
