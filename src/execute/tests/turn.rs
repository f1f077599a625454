//! What runs together at the end of a turn, and that each request gets its own answer whatever happens to the others.
//!
//! The event loop of these tests has no clock: a request that waited for a timer would panic.

use super::batching::on;
use super::*;
use crate::backend::{EngineChoice, Engines, VersionFiles};
use crate::compare::{Tolerance, compare_answers};
use crate::model::Failure;
use proptest::prelude::*;
use std::future::poll_fn;
use std::sync::LazyLock;
use std::task::Poll;
use tokio::task::JoinHandle;

type Ran = Result<RunOutput, Failure>;

const MANY: usize = 1000;
/// The expected cost of a row, and of [`MANY`] rows. So long that a pause of a busy machine does not end a run.
const ROW: Duration = Duration::from_millis(50);
/// What is expected to be shorter runs at once.
const AT_ONCE_BELOW: Duration = Duration::from_millis(200);

const AT_ONCE: Placement = Placement { at_once: Some(true), spread: None };

/// A thread whose turns end, as the threads of connections have it.
struct Thread {
    runtime: tokio::runtime::Runtime,
    executor: Arc<Executor>,
}

impl Thread {
    fn new() -> Thread {
        Thread::on(tokio::runtime::Builder::new_current_thread().build().unwrap(), AT_ONCE_BELOW)
    }

    fn on(runtime: tokio::runtime::Runtime, inline_below: Duration) -> Thread {
        let executor = Arc::new(executor(inline_below, 100));
        let thread = Thread { runtime, executor };
        thread.runtime.block_on(async {
            tokio::spawn(thread.executor.end_turns());
            tokio::task::yield_now().await;
        });
        thread
    }

    /// Adds a task to the event loop of the thread, as a socket that becomes readable does.
    fn wake<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        let mut task = Some(task);
        self.runtime.block_on(poll_fn(|_| Poll::Ready(task.take().map(tokio::spawn)))).expect("polled once")
    }

    fn spawn(&self, runner: &Arc<Runner>, request: &Arc<Checked>, deadline: Instant) -> JoinHandle<Ran> {
        let (executor, runner, request) = (Arc::clone(&self.executor), Arc::clone(runner), Arc::clone(request));
        self.wake(async move { executor.execute(&runner, request, deadline, Requester::default()).await })
    }

    /// A request whose caller leaves after it has joined the turn.
    fn leave(&self, runner: &Arc<Runner>, request: &Arc<Checked>) -> JoinHandle<()> {
        let (executor, runner, request) = (Arc::clone(&self.executor), Arc::clone(runner), Arc::clone(request));
        self.wake(async move {
            let mut waiting = std::pin::pin!(executor.execute(&runner, request, soon(), Requester::default()));
            poll_fn(|context| {
                assert!(waiting.as_mut().poll(context).is_pending(), "it waits for the end of the turn");
                Poll::Ready(())
            })
            .await;
        })
    }

    /// Has all requests ready in one turn, and returns how each ended.
    fn turn(&self, requests: &[(&Arc<Runner>, Arc<Checked>)]) -> Vec<Ran> {
        let tasks: Vec<_> = requests.iter().map(|(runner, request)| self.spawn(runner, request, soon())).collect();
        self.runtime.block_on(async {
            let mut ended = Vec::new();
            for task in tasks {
                ended.push(task.await.unwrap());
            }
            ended
        })
    }
}

/// `x` [N] → the same, in as many outputs.
fn model(outputs: usize) -> Arc<ScriptedModel> {
    let spec =
        |name: String| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: Some(vec![Dim::Free(None)]) };
    let outputs = (0..outputs).map(|i| spec(format!("y{i}"))).collect();
    ScriptedModel::with_signature(Signature::new(vec![spec("x".to_owned())], outputs))
}

/// A row takes as long as a thousand.
fn cheap(model: &Arc<ScriptedModel>) -> Arc<Runner> {
    let runner = on(model, MANY).with_placement(AT_ONCE);
    runner.cost().learn(1, ROW);
    runner.cost().learn(MANY, ROW);
    Arc::new(runner)
}

/// A request for some outputs, whose rows have these values.
fn asking(model: &ScriptedModel, values: &[f32], outputs: Option<&[&str]>) -> Arc<Checked> {
    let tensor = Tensor::new(Shape::new(&[values.len()]), Data::Fp32(values.to_vec().into())).unwrap();
    let inputs = vec![NamedTensor { name: "x".into(), tensor }];
    let outputs = outputs.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
    Arc::new(model.signature.check(InferenceRequest { inputs, outputs, ..Default::default() }).unwrap())
}

fn row(model: &ScriptedModel, value: f32) -> Arc<Checked> {
    asking(model, &[value], None)
}

fn runs(model: &ScriptedModel) -> u64 {
    model.runs.load(Ordering::SeqCst)
}

/// The requests that ran together, for each request.
fn together(ended: &[Ran]) -> Vec<usize> {
    ended.iter().map(|ran| ran.as_ref().map_or(0, |output| output.requests)).collect()
}

#[test]
fn requests_of_one_turn_run_together_and_each_gets_its_own_rows() {
    let (thread, model) = (Thread::new(), model(1));
    let runner = cheap(&model);
    let requests: Vec<_> =
        (0..20u8).map(|i| asking(&model, &vec![f32::from(i); 1 + usize::from(i % 3)], None)).collect();
    let ended = thread.turn(&requests.iter().map(|request| (&runner, Arc::clone(request))).collect::<Vec<_>>());
    assert_eq!(runs(&model), 1);
    let rows = requests.iter().map(|request| request.rows().unwrap()).sum::<usize>();
    for (request, ran) in requests.iter().zip(&ended) {
        let output = ran.as_ref().unwrap();
        assert_eq!(output.answer.outputs[0].1, request.inputs()[0]);
        assert_eq!((output.batch_rows, output.requests, output.queue), (rows, 20, Duration::ZERO));
    }
    assert_eq!(ended.iter().filter(|ran| ran.as_ref().unwrap().counts).count(), 1, "the run is counted once");
    let counts = runner.counters().read();
    assert_eq!((counts.gathered_runs, counts.gathered_requests, counts.single), (1, 20, 0));
}

#[test]
fn a_lone_request_runs_alone_in_its_turn() {
    let (thread, model) = (Thread::new(), model(1));
    let runner = cheap(&model);
    for n in 1..=3 {
        let ended = thread.turn(&[(&runner, row(&model, 1.0))]);
        assert_eq!((together(&ended), runs(&model)), (vec![1], n));
    }
    assert_eq!(runner.counters().read().single, 3);
}

#[test]
fn requests_that_are_always_alone_stop_joining_until_others_are_ready() {
    let (thread, model) = (Thread::new(), model(1));
    let runner = on(&model, MANY).with_placement(AT_ONCE);
    runner.cost().learn(1, ROW);
    // Cheaper for each row than any real run of one.
    runner.cost().learn(MANY, Duration::from_nanos(100));
    let runner = Arc::new(runner);
    for _ in 0..8 {
        thread.turn(&[(&runner, row(&model, 1.0))]);
    }
    // Now 31 of 32 run in the poll that brings them.
    let at_once = (0..64).filter(|_| {
        let (executor, runner, request) = (Arc::clone(&thread.executor), Arc::clone(&runner), row(&model, 1.0));
        let (first_poll, done) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let task = thread.wake({
            let first_poll = Arc::clone(&first_poll);
            async move {
                let mut waiting = std::pin::pin!(executor.execute(&runner, request, soon(), Requester::default()));
                poll_fn(|context| {
                    let polled = waiting.as_mut().poll(context).map(|ran| assert!(ran.is_ok()));
                    done.store(polled.is_ready() && first_poll.load(Ordering::Relaxed), Ordering::Relaxed);
                    first_poll.store(false, Ordering::Relaxed);
                    polled
                })
                .await;
                done.load(Ordering::Relaxed)
            }
        });
        thread.runtime.block_on(task).unwrap()
    });
    assert_eq!(at_once.count(), 62);
    // Many at once: the first ones run alone, and then the others run together again.
    let ended = thread.turn(&vec![(&runner, row(&model, 1.0)); 80]);
    let gathered = together(&ended).into_iter().filter(|requests| *requests > 1).count();
    assert!(gathered >= 48, "{:?}", together(&ended));
    assert_eq!(together(&thread.turn(&vec![(&runner, row(&model, 1.0)); 3])), [3, 3, 3]);
}

#[test]
fn what_may_not_run_together_runs_alone_in_the_same_turn() {
    let (thread, model) = (Thread::new(), model(2));
    let off = Runner::new(Arc::clone(&model) as Arc<dyn Model>).with_placement(AT_ONCE);
    off.cost().learn(1, ROW);
    let off = Arc::new(off);
    assert_eq!(together(&thread.turn(&vec![(&off, row(&model, 1.0)); 3])), [1, 1, 1], "batching is off");

    // Two versions, and requests for other outputs of the first one.
    let (one, other) = (cheap(&model), cheap(&model));
    let first = |value| asking(&model, &[value], Some(&["y1"]));
    let ended = thread.turn(&[
        (&one, row(&model, 1.0)),
        (&other, row(&model, 2.0)),
        (&one, first(3.0)),
        (&one, row(&model, 4.0)),
        (&other, row(&model, 5.0)),
        (&one, first(6.0)),
        (&one, row(&model, 7.0)),
    ]);
    assert_eq!(together(&ended), [3, 2, 2, 3, 2, 2, 3]);
    let firsts: Vec<f32> = ended
        .iter()
        .map(|ran| match ran.as_ref().unwrap().answer.outputs[0].1.data() {
            Data::Fp32(values) => values[0],
            _ => f32::NAN,
        })
        .collect();
    assert_eq!(firsts, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
}

#[test]
fn a_thread_without_turns_runs_each_request_alone() {
    let model = model(1);
    let (runner, executor) = (cheap(&model), executor(AT_ONCE_BELOW, 4));
    let ran = runtime().block_on(executor.execute(&runner, row(&model, 1.0), soon(), Requester::default())).unwrap();
    assert_eq!((ran.requests, ran.queue), (1, Duration::ZERO));
}

#[test]
fn a_run_takes_no_longer_than_a_run_at_once_may() {
    let (thread, model) = (Thread::new(), model(1));
    let runner = on(&model, MANY).with_placement(AT_ONCE);
    // 100 ms for up to 63 rows and 150 ms for up to 127. More take too long.
    for (rows, ms) in [(1, 100), (63, 100), (64, 150), (127, 150), (128, 300), (500, 310)] {
        runner.cost().learn(rows, Duration::from_millis(ms));
    }
    let runner = Arc::new(runner);
    let requests: Vec<_> = (0..300u16).map(|i| (&runner, row(&model, f32::from(i)))).collect();
    let ended = thread.turn(&requests);
    assert!(ended.iter().all(|ran| ran.as_ref().unwrap().batch_rows <= 127), "{:?}", together(&ended));
    assert!(runs(&model) >= 3);
}

#[test]
fn answers_are_written_before_the_next_run_of_a_turn() {
    let (thread, first, second) = (Thread::new(), model(1), model(1));
    let (one, other) = (cheap(&first), cheap(&second));
    let executor = Arc::clone(&thread.executor);
    let request = row(&first, 1.0);
    let watched = Arc::clone(&second);
    let answered = thread.wake(async move {
        let ran = executor.execute(&one, request, soon(), Requester::default()).await;
        (ran.is_ok(), runs(&watched))
    });
    let later = thread.spawn(&other, &row(&second, 2.0), soon());
    thread.runtime.block_on(async {
        assert_eq!(answered.await.unwrap(), (true, 0), "the other version has not run yet");
        assert!(later.await.unwrap().is_ok());
    });
}

#[test]
fn versions_that_do_not_gain_from_it_run_alone() {
    let (thread, model) = (Thread::new(), model(1));
    let runner = on(&model, MANY).with_placement(AT_ONCE);
    // The cost of a row is the same in every size.
    for rows in [1, 2, 4, 8, 16] {
        (0..20).for_each(|_| runner.cost().learn(rows, Duration::from_millis(10 * rows as u64)));
    }
    let runner = Arc::new(runner);
    let ended = thread.turn(&vec![(&runner, row(&model, 1.0)); 16]);
    assert!(together(&ended).iter().all(|requests| *requests <= 2), "{:?}", together(&ended));
}

#[test]
fn a_failed_run_is_taken_apart_so_that_a_request_fails_only_for_itself() {
    for ending in [Ending::Fail, Ending::Panic, Ending::OneRow, Ending::NoOutput] {
        let (thread, model) = (Thread::new(), model(1));
        let runner = cheap(&model);
        // These fail: all ten, the first five, the first two of those, and the first one.
        model.endings(vec![Some(ending), Some(Ending::Panic), Some(Ending::Fail), Some(Ending::Fail)]);
        let requests: Vec<_> = (0..10u8).map(|i| (&runner, row(&model, f32::from(i)))).collect();
        let ended = thread.turn(&requests);
        assert!(ended[0].is_err());
        for ((_, request), ran) in requests.iter().zip(&ended).skip(1) {
            assert_eq!(ran.as_ref().unwrap().answer.outputs[0].1, request.inputs()[0]);
        }
        assert_eq!(together(&ended), [0, 1, 3, 3, 3, 5, 5, 5, 5, 5]);
        assert_eq!(runner.counters().read().batch_failed, 3);
    }
}

#[test]
fn a_panic_outside_the_engine_is_answered_and_the_next_turn_runs() {
    let (thread, model) = (Thread::new(), model(1));
    let runner = cheap(&model);
    model.next(Ending::PanicInWorker);
    let ended = thread.turn(&vec![(&runner, row(&model, 1.0)); 3]);
    assert!(ended.iter().all(|ran| ran.as_ref().unwrap_err().code == Code::Internal));
    assert_eq!(together(&thread.turn(&vec![(&runner, row(&model, 1.0)); 3])), [3, 3, 3]);
}

#[test]
fn callers_that_left_and_requests_that_are_late_do_not_run() {
    let (thread, model) = (Thread::new(), model(1));
    let runner = cheap(&model);
    let wait = |value, deadline| thread.spawn(&runner, &row(&model, value), deadline);
    let stays = wait(1.0, soon());
    let _left = thread.leave(&runner, &row(&model, 2.0));
    // It has time when it joins, and none at the end of the turn.
    let late = wait(3.0, Instant::now() + Duration::from_millis(50));
    thread.wake(async { std::thread::park_timeout(Duration::from_millis(60)) });
    let (stays, late) = thread.runtime.block_on(async { (stays.await.unwrap(), late.await.unwrap()) });
    assert_eq!(late.unwrap_err().code, Code::DeadlineExceeded);
    assert_eq!(stays.unwrap().requests, 1);
    let counts = runner.counters().read();
    assert_eq!((counts.cancelled, counts.expired, runs(&model)), (1, 1, 1));
}

#[test]
fn requests_whose_run_takes_too_long_go_to_a_worker() {
    let fake = crate::backend::fake::Fake::echo(model(1).signature.clone());
    let batching = Batching::On { why: String::new(), max_rows: MANY };
    let runner = Runner::new(fake.model()).with_batching(batching);
    runner.cost().learn(1, ROW);
    runner.cost().learn(MANY, ROW);
    let (runner, thread, like) = (Arc::new(runner), Thread::on(runtime(), AT_ONCE_BELOW), model(1));
    fake.takes(Duration::from_millis(120));
    let ended = thread.turn(&[(&runner, row(&like, 1.0)), (&runner, row(&like, 2.0))]);
    for (ran, value) in ended.iter().zip([1.0, 2.0]) {
        let output = ran.as_ref().unwrap();
        assert!(!output.queue.is_zero(), "a worker ran it");
        assert_eq!(output.answer.outputs[0].1, row(&like, value).inputs()[0]);
    }
    assert!(!runner.may_run_at_once(1, Duration::from_secs(1)), "the version is suspected");
}

#[test]
fn a_thread_that_ends_answers_what_it_gathered() {
    let model = model(1);
    let (runner, executor) = (cheap(&model), executor(AT_ONCE_BELOW, 4));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let turns = tokio::spawn(executor.end_turns());
        tokio::task::yield_now().await;
        let waiting = executor.execute(&runner, row(&model, 1.0), soon(), Requester::default());
        let (ended, aborted) = tokio::join!(waiting, async {
            turns.abort();
            turns.await
        });
        assert!(aborted.unwrap_err().is_cancelled());
        assert_eq!(ended.unwrap_err().code, Code::Internal);
        assert_eq!(
            executor.execute(&runner, row(&model, 1.0), soon(), Requester::default()).await.unwrap().requests,
            1,
            "now it runs alone"
        );
    });
}

/// What one request of a turn does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Caller {
    Stays,
    Leaves,
    /// Its deadline passes before the end of the turn.
    IsLate,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever fails, leaves or expires: an answer has the rows of its own request, and only what failed alone is a failure.
    #[test]
    fn no_answer_reaches_another_caller(
        callers in prop::collection::vec(
            (1usize..5, 0u8..2, prop_oneof![8 => Just(Caller::Stays), 1 => Just(Caller::Leaves), 1 => Just(Caller::IsLate)]),
            1..40
        ),
        failing in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => Just(1), 1 => Just(2), 1 => Just(3)], 0..12),
    ) {
        let (thread, model) = (Thread::new(), model(2));
        let versions = [cheap(&model), cheap(&model)];
        model.endings(failing.iter().map(|kind| match kind {
            1 => Some(Ending::Fail),
            2 => Some(Ending::Panic),
            3 => Some(Ending::OneRow),
            _ => None,
        }).collect());
        let late = Instant::now() + Duration::from_millis(20);
        let mut spawned = Vec::new();
        for (i, (rows, version, caller)) in callers.iter().enumerate() {
            let values: Vec<f32> = (0..*rows).map(|row| (i * 10 + row) as f32).collect();
            let request = asking(&model, &values, [None, Some(&["y1"][..])][i % 2]);
            let runner = &versions[usize::from(*version)];
            match caller {
                Caller::Leaves => drop(thread.leave(runner, &request)),
                Caller::IsLate => spawned.push((thread.spawn(runner, &request, late), request, *caller)),
                Caller::Stays => spawned.push((thread.spawn(runner, &request, soon()), request, *caller)),
            }
        }
        if callers.iter().any(|(_, _, caller)| *caller == Caller::IsLate) {
            thread.wake(async move { std::thread::park_timeout(late.saturating_duration_since(Instant::now())) });
        }
        for (task, request, caller) in spawned {
            match thread.runtime.block_on(task).unwrap() {
                Err(failure) if caller == Caller::IsLate => prop_assert_eq!(failure.code, Code::DeadlineExceeded),
                Err(failure) => prop_assert_eq!(failure.code, Code::EngineFailed),
                Ok(ran) => {
                    prop_assert!(caller != Caller::IsLate);
                    // A lone request whose engine answers one row of several gets what the engine said.
                    let answer = &ran.answer.outputs[0].1;
                    if ran.requests > 1 || answer.shape() == request.inputs()[0].shape() {
                        prop_assert_eq!(answer, &request.inputs()[0]);
                    }
                }
            }
        }
    }
}

/// Every model of the repository on every available engine, with a request of one row.
static REPOSITORY: LazyLock<Vec<(String, Arc<Runner>, Checked)>> = LazyLock::new(|| {
    let engines = Engines::discover(None);
    let available = engines.describe().iter().filter(|engine| engine.available).count();
    let choices = &[EngineChoice::Tract, EngineChoice::OnnxRuntime][..available];
    let mut found = Vec::new();
    for dir in [
        "breast-cancer/1",
        "breast-cancer/2",
        "digits/1",
        "iris/1",
        "iris/2",
        "mlp32/1",
        "recommender/1",
        "recommender/2",
    ] {
        let loaded = choices.iter().filter_map(|choice| {
            engines.load(*choice, &VersionFiles::of(std::path::Path::new("models").join(dir))).ok()
        });
        for model in loaded {
            let name = format!("{dir} on {}", model.engine());
            let batching = Batching::On { why: String::new(), max_rows: MANY };
            let runner = Runner::new(model).with_batching(batching).with_placement(AT_ONCE);
            let tensor = |spec: &TensorSpec| {
                let extent = |dim: &Dim| match dim {
                    Dim::Fixed(extent) => *extent,
                    Dim::Free(_) => 1,
                };
                let shape: Vec<usize> = spec.dims.as_deref().unwrap_or_default().iter().map(extent).collect();
                let tensor =
                    Tensor::new(Shape::new(&shape), Data::zeros(spec.datatype, shape.iter().product())).unwrap();
                NamedTensor { name: spec.name.to_string(), tensor }
            };
            let inputs = runner.signature().inputs().iter().map(tensor).collect();
            let one = runner.signature().check(InferenceRequest { inputs, ..Default::default() }).unwrap();
            found.push((name, Arc::new(runner), one));
        }
    }
    found
});

/// A request of this many rows with values from a seed.
fn varied(signature: &Signature, one: &Checked, rows: usize, seed: u64) -> Arc<Checked> {
    let mut random = fastrand::Rng::with_seed(seed);
    let row = |random: &mut fastrand::Rng| {
        let mut inputs = one.inputs().to_vec();
        for tensor in &mut inputs {
            let n = tensor.data().len();
            let data = match tensor.data() {
                Data::Fp32(_) => Data::Fp32((0..n).map(|_| random.f32() * 4.0 - 2.0).collect::<Vec<_>>().into()),
                Data::Fp64(_) => Data::Fp64((0..n).map(|_| random.f64() * 4.0 - 2.0).collect::<Vec<_>>().into()),
                Data::Int64(_) => Data::Int64((0..n).map(|_| random.i64(0..4)).collect::<Vec<_>>().into()),
                other => other.clone(),
            };
            *tensor = Tensor::new(tensor.shape().clone(), data).unwrap();
        }
        let named = inputs.into_iter().zip(signature.inputs());
        let inputs = named.map(|(tensor, spec)| NamedTensor { name: spec.name.to_string(), tensor }).collect();
        signature.check(InferenceRequest { inputs, ..Default::default() }).unwrap()
    };
    let rows: Vec<Checked> = (0..rows).map(|_| row(&mut random)).collect();
    Arc::new(Checked::stack(&rows.iter().collect::<Vec<_>>()).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_model_of_the_repository_answers_in_a_turn_as_alone(
        requests in prop::collection::vec((1usize..4, any::<u64>()), 2..24)
    ) {
        let thread = Thread::on(runtime(), AT_ONCE_BELOW);
        prop_assert!(REPOSITORY.len() >= 5, "the models that any engine can load");
        let mut gathered = 0;
        for (name, runner, one) in REPOSITORY.iter().filter(|(_, _, one)| one.rows() == Some(1)) {
            // Placed as if it had been measured: what is shown is the answers.
            let cost = runner.cost();
            if cost.measured().count() == 0 {
                cost.learn(one.elements(), ROW);
                cost.learn(one.elements() * MANY, ROW);
            }
            let requests: Vec<_> = requests.iter().map(|(rows, seed)| varied(runner.signature(), one, *rows, *seed)).collect();
            let ended = thread.turn(&requests.iter().map(|request| (runner, Arc::clone(request))).collect::<Vec<_>>());
            gathered = gathered.max(together(&ended).into_iter().max().unwrap_or_default());
            for (request, ran) in requests.iter().zip(ended) {
                let alone = runner.run(request).unwrap();
                let compared = compare_answers(&alone.answer, &ran.unwrap().answer, Tolerance::of_rounding(None));
                prop_assert!(compared.agrees(), "{name}: {compared:?}");
            }
        }
        prop_assert!(gathered > 1, "some model's requests ran together");
    }
}
