mod batching;
mod interrupts;
mod split;
mod turn;

use super::*;
use crate::backend::{Interrupt, Model, RunError, Session, fake};
use crate::model::{Checked, Code, Dim, InferenceRequest, NamedTensor, Requester, Signature, TensorSpec};
use crate::tensor::{Data, DataType, Shape, Tensor};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// A model that answers with its input, in each output. A test decides when runs continue and how they end.
#[derive(Debug)]
pub(super) struct ScriptedModel {
    signature: Signature,
    gate: Mutex<Gate>,
    changed: Condvar,
    runs: AtomicU64,
    engine_panics: AtomicBool,
}

#[derive(Debug, Default)]
struct Gate {
    closed: bool,
    waiting: usize,
    /// How the next runs end, in order; `None` is an ordinary run.
    next: std::collections::VecDeque<Option<Ending>>,
}

#[derive(Debug)]
enum Ending {
    Fail,
    Panic,
    /// Answers only the first row.
    OneRow,
    /// Returns no output at all.
    NoOutput,
    /// Panics, and so does naming the engine while that panic is handled: the worker itself panics.
    PanicInWorker,
}

impl ScriptedModel {
    fn new() -> Arc<ScriptedModel> {
        let spec =
            |name: &str| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: Some(vec![Dim::Free(None)]) };
        let signature = Signature::new(vec![spec("x")], vec![spec("y")]);
        ScriptedModel::with_signature(signature)
    }

    fn with_signature(signature: Signature) -> Arc<ScriptedModel> {
        Arc::new(ScriptedModel {
            signature,
            gate: Mutex::default(),
            changed: Condvar::new(),
            runs: AtomicU64::new(0),
            engine_panics: AtomicBool::new(false),
        })
    }

    fn close(&self) {
        self.gate.lock().unwrap().closed = true;
    }

    fn open(&self) {
        self.gate.lock().unwrap().closed = false;
        self.changed.notify_all();
    }

    fn next(&self, ending: Ending) {
        self.endings(vec![Some(ending)]);
    }

    fn endings(&self, endings: Vec<Option<Ending>>) {
        self.gate.lock().unwrap().next = endings.into();
    }

    fn until_waiting(&self, n: usize) {
        let gate = self.gate.lock().unwrap();
        let (_gate, late) = self.changed.wait_timeout_while(gate, Duration::from_secs(10), |g| g.waiting < n).unwrap();
        assert!(!late.timed_out(), "{n} runs should wait at the gate");
    }
}

impl Model for ScriptedModel {
    fn engine(&self) -> &'static str {
        assert!(!self.engine_panics.swap(false, Ordering::SeqCst), "on purpose, in the worker");
        "scripted"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fake::says_nothing_about_itself!();

    fn session(self: Arc<Self>) -> Result<Box<dyn Session>, RunError> {
        Ok(Box::new(Run(self)))
    }
}

struct Run(Arc<ScriptedModel>);

impl Session for Run {
    fn run(&mut self, request: &Checked, _interrupt: &Interrupt) -> Result<Vec<Tensor>, RunError> {
        let mut gate = self.0.gate.lock().unwrap();
        gate.waiting += 1;
        self.0.changed.notify_all();
        gate = self.0.changed.wait_while(gate, |g| g.closed).unwrap();
        gate.waiting -= 1;
        let ending = gate.next.pop_front().flatten();
        drop(gate);
        self.0.runs.fetch_add(1, Ordering::SeqCst);
        match ending {
            Some(Ending::Fail) => {
                Err(RunError::Failed { message: "the engine failed".into(), internal: "in its own words".into() })
            }
            Some(Ending::Panic) => panic!("on purpose"),
            Some(Ending::PanicInWorker) => {
                self.0.engine_panics.store(true, Ordering::SeqCst);
                panic!("on purpose");
            }
            Some(Ending::NoOutput) => Ok(Vec::new()),
            Some(Ending::OneRow) => {
                let rows = request.inputs()[0].shape()[0];
                Ok(request.inputs()[0].split_rows(&[1, rows - 1]).unwrap().drain(..1).collect())
            }
            None => Ok(vec![request.inputs()[0].clone(); request.wanted().len()]),
        }
    }
}

pub(super) fn scripted() -> Arc<ScriptedModel> {
    ScriptedModel::new()
}

pub(super) fn request(model: &ScriptedModel) -> Arc<Checked> {
    let tensor = Tensor::new(Shape::new(&[2]), Data::Fp32(vec![1.0, 2.0].into())).unwrap();
    let inputs = vec![NamedTensor { name: "x".into(), tensor }];
    Arc::new(model.signature.check(InferenceRequest { inputs, ..Default::default() }).unwrap())
}

fn executor(inline_below: Duration, queue: usize) -> Executor {
    Executor::start(&Config { inline_below, queue, ..Config::default() }).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_short_run_happens_at_once_and_the_first_run_on_a_worker() {
    let (model, executor) = (ScriptedModel::new(), executor(Duration::from_secs(1), 4));
    let runner = Arc::new(Runner::new(Arc::clone(&model) as Arc<dyn Model>));
    let request = request(&model);
    runtime().block_on(async {
        let first = executor.execute(&runner, Arc::clone(&request), soon(), Requester::default()).await.unwrap();
        assert!(!first.queue.is_zero(), "the cost is unknown before the first run");
        let second = executor.execute(&runner, Arc::clone(&request), soon(), Requester::default()).await.unwrap();
        assert!(second.queue.is_zero(), "the second run happens at once");
        assert_eq!(second.answer.outputs[0].1, request.inputs()[0]);
    });
}

#[test]
fn a_full_lane_refuses_at_once_and_an_expired_job_never_runs() {
    let (model, executor) = (ScriptedModel::new(), Arc::new(executor(Duration::ZERO, 1)));
    let runner = Arc::new(Runner::new(Arc::clone(&model) as Arc<dyn Model>));
    let request = request(&model);
    model.close();
    runtime().block_on(async {
        let spawn = |deadline| {
            let (executor, runner, request) = (Arc::clone(&executor), Arc::clone(&runner), Arc::clone(&request));
            tokio::spawn(async move { executor.execute(&runner, request, deadline, Requester::default()).await })
        };
        let running = spawn(soon());
        tokio::task::yield_now().await;
        model.until_waiting(1);
        let short = Instant::now() + Duration::from_millis(50);
        let queued = spawn(short);
        tokio::task::yield_now().await;
        assert_eq!(executor.queue_depth(), 1);
        let refused = executor.execute(&runner, Arc::clone(&request), soon(), Requester::default()).await.unwrap_err();
        assert_eq!(refused.code, Code::Overloaded);
        let late = queued.await.unwrap().unwrap_err();
        assert_eq!(
            late.code,
            Code::DeadlineExceeded,
            "the caller is answered at the deadline, not when a worker is free"
        );
        model.open();
        assert!(running.await.unwrap().is_ok());
        while executor.queue_depth() > 0 {
            tokio::task::yield_now().await;
        }
        // The worker took the expired job, dropped it, and is free for the next one.
        assert!(executor.execute(&runner, Arc::clone(&request), soon(), Requester::default()).await.is_ok());
        assert_eq!(model.runs.load(Ordering::SeqCst), 2, "expired work is dropped before it runs");
    });
}

#[test]
fn a_cancelled_request_is_skipped() {
    let (model, executor) = (ScriptedModel::new(), Arc::new(executor(Duration::ZERO, 4)));
    let runner = Arc::new(Runner::new(Arc::clone(&model) as Arc<dyn Model>));
    let request = request(&model);
    model.close();
    runtime().block_on(async {
        let spawn = || {
            let (executor, runner, request) = (Arc::clone(&executor), Arc::clone(&runner), Arc::clone(&request));
            tokio::spawn(async move { executor.execute(&runner, request, soon(), Requester::default()).await })
        };
        let running = spawn();
        tokio::task::yield_now().await;
        model.until_waiting(1);
        let cancelled = spawn();
        tokio::task::yield_now().await;
        cancelled.abort();
        assert!(cancelled.await.unwrap_err().is_cancelled());
        model.open();
        assert!(running.await.unwrap().is_ok());
        assert!(executor.execute(&runner, Arc::clone(&request), soon(), Requester::default()).await.is_ok());
        assert_eq!(model.runs.load(Ordering::SeqCst), 2, "the cancelled request did not run");
    });
}

#[test]
fn an_error_or_a_panic_fails_that_run_alone() {
    let model = ScriptedModel::new();
    let runner = Runner::new(Arc::clone(&model) as Arc<dyn Model>);
    let request = request(&model);
    assert!(runner.run(&request).is_ok());
    model.next(Ending::Fail);
    let failed = runner.run(&request).unwrap_err();
    assert_eq!((failed.code, failed.message.as_str()), (Code::EngineFailed, "the engine failed"));
    assert_eq!(failed.internal.as_deref(), Some("in its own words"), "for the log only");
    model.next(Ending::Panic);
    let panicked = runner.run(&request).unwrap_err();
    assert_eq!(panicked.code, Code::EngineFailed);
    assert!(!panicked.message.contains("on purpose"), "the caller does not see the panic's text");
    assert!(runner.run(&request).is_ok(), "the next run succeeds");
}

#[test]
fn an_expired_request_is_refused_before_it_runs() {
    let (model, executor) = (ScriptedModel::new(), executor(Duration::from_secs(1), 4));
    let runner = Arc::new(Runner::new(Arc::clone(&model) as Arc<dyn Model>));
    let request = request(&model);
    let error =
        runtime().block_on(executor.execute(&runner, request, Instant::now(), Requester::default())).unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded);
    assert_eq!(model.runs.load(Ordering::SeqCst), 0);
}

#[test]
fn costs_are_measured_per_size() {
    let curve = super::cost::CostCurve::new();
    assert_eq!(curve.estimate(10), None);
    for _ in 0..20 {
        curve.learn(8, Duration::from_micros(10));
    }
    let micros = |n| curve.estimate(n).unwrap().as_micros();
    assert_eq!(micros(8), 10);
    assert_eq!(micros(1), 10, "a smaller size costs no more than a larger one");
    assert_eq!(micros(64), 80, "an unmeasured larger size is scaled by its elements");
    curve.learn(8, Duration::from_millis(100));
    assert!(micros(8) > 10_000, "one slow run raises the estimate");
    for _ in 0..64 {
        curve.learn(8, Duration::from_micros(10));
    }
    assert!(micros(8) < 12, "and fast runs lower it again: {}", micros(8));
}

#[test]
fn a_run_without_the_wanted_outputs_is_an_engine_failure() {
    let model = ScriptedModel::new();
    let runner = Runner::new(Arc::clone(&model) as Arc<dyn Model>);
    model.next(Ending::NoOutput);
    let failed = runner.run(&request(&model)).unwrap_err();
    assert_eq!(failed.code, Code::EngineFailed);
    assert_eq!(failed.internal.as_deref(), Some("scripted returned 0 outputs, expected 1"));
}

#[test]
fn a_request_without_rows_is_answered_without_the_engine_where_rows_are_independent() {
    let spec =
        |name: &str, dims: Vec<Dim>| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: Some(dims) };
    let signature = |last: Dim| {
        let output = spec("y", vec![Dim::Free(None), last]);
        Signature::new(vec![spec("x", vec![Dim::Free(None), Dim::Fixed(2)])], vec![output])
    };
    let no_rows = |signature: &Signature| {
        let tensor = Tensor::new(Shape::new(&[0, 2]), Data::zeros(DataType::Fp32, 0)).unwrap();
        let inputs = vec![NamedTensor { name: "x".into(), tensor }];
        signature.check(InferenceRequest { inputs, ..Default::default() }).unwrap()
    };
    let on = || Batching::On { why: String::new(), max_rows: 8 };
    let off = || Batching::Off { why: String::new() };
    for (last, batching, runs) in [(Dim::Fixed(3), on(), 0), (Dim::Fixed(3), off(), 1), (Dim::Free(None), on(), 1)] {
        let model = ScriptedModel::with_signature(signature(last));
        let runner = Runner::new(Arc::clone(&model) as Arc<dyn Model>).with_batching(batching);
        let output = runner.run(&no_rows(&model.signature)).unwrap();
        assert_eq!(model.runs.load(Ordering::SeqCst), runs);
        if runs == 0 {
            assert_eq!(&output.answer.outputs[0].1.shape()[..], [0, 3]);
            assert_eq!(runner.cost().measured().count(), 0, "nothing was measured");
        }
    }
}

/// A model whose sessions panic while they are made.
#[derive(Debug)]
struct NoSession(Signature);

impl Model for NoSession {
    fn engine(&self) -> &'static str {
        "no session"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fake::says_nothing_about_itself!();

    fn session(self: Arc<Self>) -> Result<Box<dyn Session>, RunError> {
        panic!("on purpose")
    }
}

#[test]
fn a_panic_while_a_session_is_made_is_an_engine_failure() {
    let model = ScriptedModel::new();
    let runner = Runner::new(Arc::new(NoSession(model.signature.clone())));
    assert_eq!(runner.run(&request(&model)).unwrap_err().code, Code::EngineFailed);
}

#[test]
fn requests_of_a_worker_that_panics_get_an_internal_error_and_the_worker_goes_on() {
    let (model, executor) = (batching::pairs(), Arc::new(executor(Duration::ZERO, 100)));
    let runner = Arc::new(batching::on(&model, 100));
    runner.cost().learn(2, Duration::from_millis(1));
    runner.cost().learn(200, Duration::from_millis(1));
    let request = batching::of(&model, 1, 2, 0);
    model.close();
    runtime().block_on(async {
        let spawn = || {
            let (executor, runner, request) = (Arc::clone(&executor), Arc::clone(&runner), Arc::clone(&request));
            tokio::spawn(async move { executor.execute(&runner, request, soon(), Requester::default()).await })
        };
        let first = spawn();
        tokio::task::yield_now().await;
        model.until_waiting(1);
        let batch = [spawn(), spawn(), spawn()];
        while executor.queue_depth() < 3 {
            tokio::task::yield_now().await;
        }
        model.endings(vec![None, Some(Ending::PanicInWorker)]);
        model.open();
        assert!(first.await.unwrap().is_ok());
        for task in batch {
            let failure = task.await.unwrap().unwrap_err();
            assert_eq!(failure.code, Code::Internal, "500, and not the 504 of a late request: {failure:?}");
        }
        assert!(
            executor.execute(&runner, Arc::clone(&request), soon(), Requester::default()).await.is_ok(),
            "the only worker goes on"
        );
    });
}
