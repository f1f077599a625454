mod batching;
mod spread;

use super::*;
use crate::backend::{Model, RunError, Session};
use crate::model::{Checked, Code, Dim, InferenceRequest, NamedTensor, Signature, TensorSpec};
use crate::tensor::{Data, DataType, Shape, Tensor};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Answers its input; a test decides when runs may go on and how they end.
#[derive(Debug)]
pub(super) struct Steered {
    signature: Signature,
    gate: Mutex<Gate>,
    changed: Condvar,
    runs: AtomicU64,
}

#[derive(Debug, Default)]
struct Gate {
    closed: bool,
    waiting: usize,
    /// Of the next runs, in order; `None` is a run as any other.
    next: std::collections::VecDeque<Option<Ending>>,
}

#[derive(Debug)]
enum Ending {
    Fail,
    Panic,
    /// Answers the first row alone.
    OneRow,
}

impl Steered {
    fn new() -> Arc<Steered> {
        let spec =
            |name: &str| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: Some(vec![Dim::Free(None)]) };
        let signature = Signature::new(vec![spec("x")], vec![spec("y")]);
        Arc::new(Steered { signature, gate: Mutex::default(), changed: Condvar::new(), runs: AtomicU64::new(0) })
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
        assert!(!late.timed_out(), "{n} runs should be waiting at the gate");
    }
}

impl Model for Steered {
    fn engine(&self) -> &'static str {
        "steered"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn session(self: Arc<Self>) -> Result<Box<dyn Session>, RunError> {
        Ok(Box::new(Run(self)))
    }
}

struct Run(Arc<Steered>);

impl Session for Run {
    fn run(&mut self, request: &Checked) -> Result<Vec<Tensor>, RunError> {
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
            Some(Ending::OneRow) => {
                let rows = request.inputs()[0].shape()[0];
                Ok(request.inputs()[0].split_rows(&[1, rows - 1]).unwrap().drain(..1).collect())
            }
            None => Ok(request.inputs().to_vec()),
        }
    }
}

pub(super) fn steered() -> Arc<Steered> {
    Steered::new()
}

pub(super) fn request(model: &Steered) -> Arc<Checked> {
    let tensor = Tensor::new(Shape::new(&[2]), Data::Fp32(vec![1.0, 2.0].into())).unwrap();
    let inputs = vec![NamedTensor { name: "x".into(), tensor }];
    Arc::new(model.signature.check(InferenceRequest { inputs, ..Default::default() }).unwrap())
}

fn executor(inline_below: Duration, queue: usize) -> Executor {
    Executor::start(&Config { inline_below, queue, workers: NonZeroUsize::MIN, cores: NonZeroUsize::MIN }).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_known_short_run_happens_on_the_callers_thread_and_an_unknown_one_on_a_worker() {
    let (model, executor) = (Steered::new(), executor(Duration::from_secs(1), 4));
    let runner = Arc::new(Runner::new(Arc::clone(&model) as Arc<dyn Model>));
    let request = request(&model);
    runtime().block_on(async {
        let first = executor.execute(&runner, Arc::clone(&request), soon()).await.unwrap();
        assert!(!first.queue.is_zero(), "nothing is known of a version's cost before its first run");
        let second = executor.execute(&runner, Arc::clone(&request), soon()).await.unwrap();
        assert!(second.queue.is_zero(), "and then it runs at once");
        assert_eq!(second.answer.outputs[0].1, request.inputs()[0]);
    });
}

#[test]
fn a_full_queue_refuses_at_once_and_an_expired_job_never_runs() {
    let (model, executor) = (Steered::new(), Arc::new(executor(Duration::ZERO, 1)));
    let runner = Arc::new(Runner::new(Arc::clone(&model) as Arc<dyn Model>));
    let request = request(&model);
    model.close();
    runtime().block_on(async {
        let spawn = |deadline| {
            let (executor, runner, request) = (Arc::clone(&executor), Arc::clone(&runner), Arc::clone(&request));
            tokio::spawn(async move { executor.execute(&runner, request, deadline).await })
        };
        let running = spawn(soon());
        tokio::task::yield_now().await;
        model.until_waiting(1);
        let short = Instant::now() + Duration::from_millis(50);
        let queued = spawn(short);
        tokio::task::yield_now().await;
        assert_eq!(executor.queue_depth(), 1);
        let refused = executor.execute(&runner, Arc::clone(&request), soon()).await.unwrap_err();
        assert_eq!(refused.code, Code::Overloaded);
        let late = queued.await.unwrap().unwrap_err();
        assert_eq!(
            late.code,
            Code::DeadlineExceeded,
            "the caller is told when the deadline passes, not when a worker is free"
        );
        model.open();
        assert!(running.await.unwrap().is_ok());
        while executor.queue_depth() > 0 {
            tokio::task::yield_now().await;
        }
        // The worker took the expired job, dropped it, and is free for the next.
        assert!(executor.execute(&runner, Arc::clone(&request), soon()).await.is_ok());
        assert_eq!(model.runs.load(Ordering::SeqCst), 2, "expired work is dropped before it runs");
    });
}

#[test]
fn work_whose_caller_left_is_skipped() {
    let (model, executor) = (Steered::new(), Arc::new(executor(Duration::ZERO, 4)));
    let runner = Arc::new(Runner::new(Arc::clone(&model) as Arc<dyn Model>));
    let request = request(&model);
    model.close();
    runtime().block_on(async {
        let spawn = || {
            let (executor, runner, request) = (Arc::clone(&executor), Arc::clone(&runner), Arc::clone(&request));
            tokio::spawn(async move { executor.execute(&runner, request, soon()).await })
        };
        let running = spawn();
        tokio::task::yield_now().await;
        model.until_waiting(1);
        let left = spawn();
        tokio::task::yield_now().await;
        left.abort();
        assert!(left.await.unwrap_err().is_cancelled());
        model.open();
        assert!(running.await.unwrap().is_ok());
        assert!(executor.execute(&runner, Arc::clone(&request), soon()).await.is_ok());
        assert_eq!(model.runs.load(Ordering::SeqCst), 2, "nobody wanted the third");
    });
}

#[test]
fn an_error_or_a_panic_fails_that_run_alone() {
    let model = Steered::new();
    let runner = Runner::new(Arc::clone(&model) as Arc<dyn Model>);
    let request = request(&model);
    assert!(runner.run(&request).is_ok());
    model.next(Ending::Fail);
    let failed = runner.run(&request).unwrap_err();
    assert_eq!((failed.code, failed.message.as_str()), (Code::EngineFailed, "the engine failed"));
    assert_eq!(failed.internal.as_deref(), Some("in its own words"), "which only the log reads");
    model.next(Ending::Panic);
    let panicked = runner.run(&request).unwrap_err();
    assert_eq!(panicked.code, Code::EngineFailed);
    assert!(!panicked.message.contains("on purpose"), "the caller reads no panic");
    assert!(runner.run(&request).is_ok(), "and the next run is answered");
}

#[test]
fn an_expired_request_is_refused_before_anything() {
    let (model, executor) = (Steered::new(), executor(Duration::from_secs(1), 4));
    let runner = Arc::new(Runner::new(Arc::clone(&model) as Arc<dyn Model>));
    let request = request(&model);
    let error = runtime().block_on(executor.execute(&runner, request, Instant::now())).unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded);
    assert_eq!(model.runs.load(Ordering::SeqCst), 0);
}

#[test]
fn costs_are_learnt_per_size() {
    let curve = super::cost::CostCurve::new();
    assert_eq!(curve.expect(10), None);
    for _ in 0..20 {
        curve.learn(8, Duration::from_micros(10));
    }
    let micros = |n| curve.expect(n).unwrap().as_micros();
    assert_eq!(micros(8), 10);
    assert_eq!(micros(1), 10, "a smaller size costs no more than a larger one");
    assert_eq!(micros(64), 80, "a larger size not seen yet is taken to scale with its elements");
    curve.learn(8, Duration::from_millis(100));
    assert!(micros(8) > 10_000, "one slow run is felt");
    for _ in 0..64 {
        curve.learn(8, Duration::from_micros(10));
    }
    assert!(micros(8) < 12, "and forgotten: {}", micros(8));
}
