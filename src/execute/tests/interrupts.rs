//! Runs that take too long: they end, their threads come back or are replaced, and other versions do not wait for them.

use super::*;
use crate::execute::{limit_runs, stuck_threads};
use crate::model::Failure;

/// A model of `x` [N] → the same, which takes as many milliseconds as its largest number says. A negative number: without looking at the
/// interrupt.
#[derive(Debug)]
struct TimedModel {
    signature: Signature,
    runs: AtomicU64,
    /// The nice value of the thread at the end of each run.
    nice: Mutex<Vec<i32>>,
}

impl TimedModel {
    fn runner() -> (Arc<TimedModel>, Runner) {
        let spec =
            |name: &str| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: Some(vec![Dim::Free(None)]) };
        let signature = Signature::new(vec![spec("x")], vec![spec("y")]);
        let model = Arc::new(TimedModel { signature, runs: AtomicU64::new(0), nice: Mutex::default() });
        (Arc::clone(&model), Runner::new(model as Arc<dyn Model>))
    }
}

impl Model for TimedModel {
    fn engine(&self) -> &'static str {
        "timed"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fake::says_nothing_about_itself!();

    fn session(self: Arc<Self>) -> Result<Box<dyn Session>, RunError> {
        Ok(Box::new(TimedRun(self)))
    }
}

struct TimedRun(Arc<TimedModel>);

impl Session for TimedRun {
    fn run(&mut self, request: &Checked, interrupt: &Interrupt) -> Result<Vec<Tensor>, RunError> {
        self.0.runs.fetch_add(1, Ordering::SeqCst);
        let Data::Fp32(numbers) = request.inputs()[0].data() else { panic!("floats") };
        let millis = numbers.iter().copied().fold(0f32, |most, n| if n.abs() > most.abs() { n } else { most });
        let until = Instant::now() + Duration::from_secs_f32(millis.abs() / 1e3);
        while Instant::now() < until {
            if millis > 0.0 && interrupt.is_requested() {
                return Err(RunError::Interrupted);
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        #[cfg(target_os = "linux")]
        self.0.nice.lock().unwrap().push(rustix::process::getpriority_process(None).unwrap());
        Ok(request.inputs().to_vec())
    }
}

fn taking(runner: &Runner, millis: &[f32]) -> Arc<Checked> {
    let tensor = Tensor::new(Shape::new(&[millis.len()]), Data::Fp32(millis.to_vec().into())).unwrap();
    let inputs = vec![NamedTensor { name: "x".into(), tensor }];
    Arc::new(runner.signature().check(InferenceRequest { inputs, ..Default::default() }).unwrap())
}

fn workers(n: usize, inline_below: Duration) -> Arc<Executor> {
    let workers = NonZeroUsize::new(n).unwrap();
    Arc::new(
        Executor::start(&Config { inline_below, queue: 100, workers, cores: workers, ..Config::default() }).unwrap(),
    )
}

fn submit(
    executor: &Arc<Executor>,
    runner: &Arc<Runner>,
    millis: &[f32],
    within: Duration,
) -> tokio::task::JoinHandle<Result<RunOutput, Failure>> {
    let (executor, runner, request) = (Arc::clone(executor), Arc::clone(runner), taking(runner, millis));
    tokio::spawn(async move { executor.execute(&runner, request, Instant::now() + within, Requester::default()).await })
}

const LONG: Duration = Duration::from_secs(30);
/// Longer than any test waits.
const ENDLESS: f32 = 100_000.0;

async fn until(what: &str, condition: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < limit, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_run_past_its_deadline_is_interrupted_and_the_worker_takes_the_next_request() {
    let ((model, runner), executor) = (TimedModel::runner(), workers(1, Duration::ZERO));
    let runner = Arc::new(runner);
    runtime().block_on(async {
        let late = submit(&executor, &runner, &[ENDLESS], Duration::from_millis(50)).await.unwrap().unwrap_err();
        assert_eq!(late.code, Code::DeadlineExceeded);
        assert!(submit(&executor, &runner, &[0.0], LONG).await.unwrap().is_ok(), "the only worker came back");
    });
    assert_eq!(model.runs.load(Ordering::SeqCst), 2);
    assert_eq!((runner.ended_runs(), runner.stuck()), ((1, 0), None));
}

#[test]
fn a_run_whose_caller_left_is_interrupted() {
    let ((model, runner), executor) = (TimedModel::runner(), workers(1, Duration::ZERO));
    let runner = Arc::new(runner);
    runtime().block_on(async {
        let left = submit(&executor, &runner, &[ENDLESS], LONG);
        until("the run begins", || model.runs.load(Ordering::SeqCst) == 1).await;
        left.abort();
        assert!(submit(&executor, &runner, &[0.0], LONG).await.unwrap().is_ok(), "the only worker came back");
    });
    assert_eq!(runner.ended_runs(), (1, 0));
}

#[test]
fn a_long_run_on_the_reading_thread_is_ended_and_repeated_on_a_worker() {
    let ((model, runner), executor) = (TimedModel::runner(), workers(1, Duration::from_millis(10)));
    let runner = Arc::new(runner);
    runtime().block_on(async {
        for _ in 0..4 {
            assert!(submit(&executor, &runner, &[0.1], LONG).await.unwrap().is_ok());
        }
        let reader = std::thread::current().id();
        let began = Instant::now();
        let answered = submit(&executor, &runner, &[600.0], LONG);
        tokio::task::yield_now().await;
        assert!(began.elapsed() < Duration::from_millis(550), "thread {reader:?} was held for {:?}", began.elapsed());
        let ran = answered.await.unwrap().unwrap();
        assert!(!ran.queue.is_zero() && ran.infer >= Duration::from_millis(600), "the caller gets the answer: {ran:?}");
        assert_eq!(model.runs.load(Ordering::SeqCst), 6, "it was run twice");
        // It slept, so its processor time does not show that it was the version that was slow: only for a while on workers.
        assert!(!submit(&executor, &runner, &[0.1], LONG).await.unwrap().unwrap().queue.is_zero());
    });
    assert_eq!((runner.ended_runs(), runner.never_at_once()), ((1, 0), None));
}

#[test]
fn a_run_that_ignores_its_interrupt_costs_its_worker_which_is_replaced_and_the_version_is_refused_after_three() {
    let ((_, runner), executor) = (TimedModel::runner(), workers(1, Duration::ZERO));
    let (other, runner) = (Arc::new(TimedModel::runner().1), Arc::new(runner));
    runtime().block_on(async {
        for lost in 0..3 {
            let late = submit(&executor, &runner, &[-9_000.0], Duration::from_millis(50)).await.unwrap();
            assert_eq!(late.unwrap_err().code, Code::DeadlineExceeded);
            assert_eq!((runner.ended_runs().1, runner.stuck()), (lost, None));
            let next = submit(&executor, &other, &[0.0], LONG).await.unwrap();
            assert!(next.is_ok(), "another worker was started: {next:?}");
            until("the run is lost", || runner.ended_runs().1 == lost + 1).await;
        }
        let stuck: Vec<_> = stuck_threads().into_iter().filter(|stuck| stuck.run_id == runner.run_id()).collect();
        assert!(stuck.len() == 3 && stuck.iter().all(|thread| thread.replaced), "{stuck:?}");
        let refused = submit(&executor, &runner, &[0.0], LONG).await.unwrap().unwrap_err();
        assert_eq!(refused.code, Code::NotReady);
        assert!(refused.message.contains("3 runs did not end"), "{refused}");
        assert!(submit(&executor, &other, &[0.0], LONG).await.unwrap().is_ok());
        until("the threads come back and end", || !stuck_threads().iter().any(|stuck| stuck.run_id == runner.run_id()))
            .await;
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_run_that_takes_far_longer_than_expected_goes_on_with_a_lower_priority_on_a_thread_that_ends_after_it() {
    let executor = workers(1, Duration::ZERO);
    let own = rustix::process::getpriority_process(None).unwrap();
    let lowered = own.max(crate::execute::watchdog::LOST_NICE);
    // Twice, as its thread ends after it. Each with a new version: a slow run changes what is expected.
    for _ in 0..2 {
        let (model, runner) = TimedModel::runner();
        let (runner, other) = (Arc::new(runner), Arc::new(TimedModel::runner().1));
        runtime().block_on(async {
            for _ in 0..4 {
                assert!(submit(&executor, &runner, &[0.1], LONG).await.unwrap().is_ok());
            }
            let slow = submit(&executor, &runner, &[600.0], LONG);
            until("the slow run begins", || model.runs.load(Ordering::SeqCst) == 5).await;
            let began = Instant::now();
            assert!(submit(&executor, &other, &[0.0], LONG).await.unwrap().is_ok());
            assert!(began.elapsed() < Duration::from_millis(500), "another thread was started: {:?}", began.elapsed());
            assert!(slow.await.unwrap().is_ok(), "it is not ended");
            assert!(submit(&executor, &runner, &[0.1], LONG).await.unwrap().is_ok());
        });
        let nice = model.nice.lock().unwrap().split_off(4);
        assert_eq!(nice, [lowered, own], "the thread that was lowered runs nothing else");
        assert_eq!(runner.ended_runs(), (0, 0));
    }
}

#[test]
fn long_runs_of_one_version_leave_a_worker_for_the_others() {
    let ((model, slow), executor) = (TimedModel::runner(), workers(2, Duration::ZERO));
    let (slow, other) = (Arc::new(slow), Arc::new(TimedModel::runner().1));
    runtime().block_on(async {
        let held: Vec<_> = (0..6).map(|_| submit(&executor, &slow, &[ENDLESS], LONG)).collect();
        until("both workers are held", || model.runs.load(Ordering::SeqCst) == 2).await;
        let began = Instant::now();
        assert!(submit(&executor, &other, &[0.0], LONG).await.unwrap().is_ok());
        assert!(began.elapsed() < Duration::from_secs(5), "another worker was started: {:?}", began.elapsed());
        assert_eq!(model.runs.load(Ordering::SeqCst), 2, "one version has at most two workers");
        held.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

#[test]
fn a_batch_with_one_slow_request_is_taken_apart_and_the_others_are_answered() {
    let ((model, runner), executor) = (TimedModel::runner(), workers(1, Duration::ZERO));
    let runner = Arc::new(runner.with_batching(Batching::On { why: String::new(), max_rows: 100 }));
    runner.cost().learn(1, Duration::from_millis(1));
    runner.cost().learn(100, Duration::from_millis(1));
    runtime().block_on(async {
        let first = submit(&executor, &runner, &[400.0], LONG);
        until("the first run begins", || model.runs.load(Ordering::SeqCst) == 1).await;
        let within = Duration::from_secs(5);
        let slow = submit(&executor, &runner, &[ENDLESS], within);
        let others: Vec<_> = (0..7).map(|_| submit(&executor, &runner, &[0.0], within)).collect();
        assert!(first.await.unwrap().is_ok());
        for other in others {
            let answered = other.await.unwrap();
            assert!(answered.is_ok(), "{answered:?}");
        }
        assert_eq!(slow.await.unwrap().unwrap_err().code, Code::DeadlineExceeded);
    });
    assert!(runner.counters().read().batch_failed >= 1);
}

#[test]
fn runs_of_a_thread_end_with_the_limit_of_its_scope() {
    let (model, runner) = TimedModel::runner();
    let (endless, short) = (taking(&runner, &[ENDLESS]), taking(&runner, &[0.0]));
    {
        let _outer = limit_runs(Instant::now() + Duration::from_millis(60));
        let _inner = limit_runs(Instant::now() + LONG);
        let ended = runner.run(&endless).unwrap_err();
        assert_eq!(ended.code, Code::DeadlineExceeded);
        assert_eq!(runner.run(&short).unwrap_err().code, Code::DeadlineExceeded, "the time is over");
        assert_eq!(model.runs.load(Ordering::SeqCst), 1, "so it did not begin");
    }
    assert!(runner.run(&short).is_ok(), "the scope is over");
    assert_eq!(runner.ended_runs(), (1, 0));
}
