//! A fake engine that tests control: what a run returns, when it returns, and whether it fails.

use super::{Backend, Interrupt, LoadError, Model, RunError, Session, VersionFiles};
use crate::model::{Checked, Signature};
use crate::tensor::Tensor;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a test waits for a run before it fails.
const WAIT_LIMIT: Duration = Duration::from_secs(30);
/// How often a run that takes time looks at its interrupt.
const LOOK: Duration = Duration::from_millis(1);

/// The methods of [`Model`] that say something about a graph, for a model that has none.
macro_rules! says_nothing_about_itself {
    () => {
        fn graph(&self) -> &$crate::backend::GraphFacts {
            $crate::backend::GraphFacts::not_read()
        }

        fn limit_outputs(&self, _bytes: usize) {}

        fn empty_inputs(&self) -> &$crate::backend::EmptyInputs {
            &$crate::backend::EmptyInputs::Any
        }
    };
}
pub(crate) use says_nothing_about_itself;

type Compute = dyn Fn(&Checked) -> Vec<Tensor> + Send + Sync;
type Load = dyn Fn(&VersionFiles) -> Result<Fake, LoadError> + Send + Sync;

/// A loaded version that tests control. Clones control the same version.
#[derive(Clone)]
pub struct Fake(Arc<Inner>);

struct Inner {
    signature: Signature,
    compute: Box<Compute>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// `None`: runs are not blocked. `Some(n)`: n more runs may start, the others wait.
    allowed: Option<usize>,
    /// How long each run takes after it was allowed.
    takes: Duration,
    /// Runs do not look at their interrupt, like one long node of a real engine.
    ignores_interrupts: bool,
    /// How the next runs fail.
    faults: VecDeque<Fault>,
    waiting: usize,
    runs: usize,
    sessions: usize,
}

#[derive(Debug)]
enum Fault {
    Fail(RunError),
    Panic,
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fake").field("state", &self.0.state).finish_non_exhaustive()
    }
}

impl Fake {
    /// A version whose runs return what the closure returns: one tensor per requested output, in the requested order.
    pub fn new(signature: Signature, compute: impl Fn(&Checked) -> Vec<Tensor> + Send + Sync + 'static) -> Fake {
        let compute = Box::new(compute);
        Fake(Arc::new(Inner { signature, compute, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// A version that always returns the same tensors, one per output of the signature.
    #[must_use]
    pub fn constant(signature: Signature, outputs: Vec<Tensor>) -> Fake {
        Fake::new(signature, move |request| request.wanted().iter().map(|i| outputs[*i].clone()).collect())
    }

    /// A version whose n-th output is its n-th input.
    #[must_use]
    pub fn echo(signature: Signature) -> Fake {
        Fake::new(signature, |request| request.wanted().iter().map(|i| request.inputs()[*i].clone()).collect())
    }

    /// The version as a [`Model`].
    #[must_use]
    pub fn model(&self) -> Arc<dyn Model> {
        Arc::new(self.clone())
    }

    /// Blocks further runs until they are allowed.
    pub fn block(&self) {
        self.state().allowed = Some(0);
    }

    /// Allows `n` more runs, those that wait first.
    pub fn allow(&self, n: usize) {
        let mut state = self.state();
        state.allowed = Some(state.allowed.unwrap_or(0) + n);
        self.0.changed.notify_all();
    }

    /// Stops blocking runs.
    pub fn unblock(&self) {
        self.state().allowed = None;
        self.0.changed.notify_all();
    }

    /// Sets how long each further run takes.
    pub fn takes(&self, duration: Duration) {
        self.state().takes = duration;
    }

    /// From now on runs do not look at their interrupt.
    pub fn ignore_interrupts(&self) {
        self.state().ignores_interrupts = true;
    }

    /// The next run without another fault fails with this error.
    pub fn fail_next(&self, error: RunError) {
        self.state().faults.push_back(Fault::Fail(error));
    }

    /// The next run without another fault panics.
    pub fn panic_next(&self) {
        self.state().faults.push_back(Fault::Panic);
    }

    /// Runs that were allowed to start, including failed ones.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.state().runs
    }

    /// Runs that wait until they are allowed.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state().waiting
    }

    /// Sessions made so far.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.state().sessions
    }

    /// Waits until `n` runs are blocked.
    ///
    /// # Panics
    /// After 30 seconds.
    pub fn wait_for_waiting(&self, n: usize) {
        self.wait(|state| state.waiting >= n, "too few runs wait");
    }

    /// Waits until `n` runs have started in total.
    ///
    /// # Panics
    /// After 30 seconds.
    pub fn wait_for_runs(&self, n: usize) {
        self.wait(|state| state.runs >= n, "too few runs started");
    }

    fn wait(&self, until: impl Fn(&State) -> bool, message: &str) {
        let waited = self.0.changed.wait_timeout_while(self.state(), WAIT_LIMIT, |state| !until(state));
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "{message}: {state:?}");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, request: &Checked, interrupt: &Interrupt) -> Result<Vec<Tensor>, RunError> {
        let is_interrupted = |state: &State| !state.ignores_interrupts && interrupt.is_requested();
        let mut state = self.state();
        state.waiting += 1;
        self.0.changed.notify_all();
        while state.allowed == Some(0) && !is_interrupted(&state) {
            let waited = self.0.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting -= 1;
        if is_interrupted(&state) {
            return Err(RunError::Interrupted);
        }
        state.runs += 1;
        state.allowed = state.allowed.map(|n| n - 1);
        let fault = state.faults.pop_front();
        let takes = state.takes;
        self.0.changed.notify_all();
        let until = Instant::now() + takes;
        while Instant::now() < until {
            let waited = self.0.changed.wait_timeout(state, LOOK.min(until.saturating_duration_since(Instant::now())));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if is_interrupted(&state) {
                return Err(RunError::Interrupted);
            }
        }
        drop(state);
        match fault {
            None => Ok((self.0.compute)(request)),
            Some(Fault::Fail(error)) => Err(error),
            Some(Fault::Panic) => panic!("the fake engine panics, as the test requested"),
        }
    }
}

impl Model for Fake {
    fn engine(&self) -> &'static str {
        FakeEngine::NAME
    }

    fn signature(&self) -> &Signature {
        &self.0.signature
    }

    says_nothing_about_itself!();

    fn session(self: Arc<Self>) -> Result<Box<dyn Session>, RunError> {
        self.state().sessions += 1;
        Ok(Box::new(FakeSession((*self).clone())))
    }
}

struct FakeSession(Fake);

impl Session for FakeSession {
    fn run(&mut self, request: &Checked, interrupt: &Interrupt) -> Result<Vec<Tensor>, RunError> {
        self.0.run(request, interrupt)
    }
}

/// An engine whose loads return what a closure returns; use it with [`super::Engines::only`].
pub struct FakeEngine {
    load: Box<Load>,
}

impl std::fmt::Debug for FakeEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeEngine").finish_non_exhaustive()
    }
}

impl FakeEngine {
    pub const NAME: &'static str = "fake";

    /// The closure gets the version's directory and returns the loaded version. It may block or panic like a real load.
    pub fn new(load: impl Fn(&VersionFiles) -> Result<Fake, LoadError> + Send + Sync + 'static) -> FakeEngine {
        FakeEngine { load: Box::new(load) }
    }
}

impl Backend for FakeEngine {
    fn name(&self) -> &'static str {
        FakeEngine::NAME
    }

    fn load(&self, files: &VersionFiles) -> Result<Arc<dyn Model>, LoadError> {
        (self.load)(files).map(|fake| fake.model())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{EngineChoice, Engines};
    use crate::model::{Dim, InferenceRequest, NamedTensor, TensorSpec};
    use crate::tensor::{Data, DataType, Shape};

    fn signature() -> Signature {
        let port =
            |name: &str| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: Some(vec![Dim::Free(None)]) };
        Signature::new(vec![port("x")], vec![port("y")])
    }

    fn run(model: &Arc<dyn Model>) -> Result<Vec<Tensor>, RunError> {
        let tensor = Tensor::new(Shape::new(&[1]), Data::Fp32(vec![1.5].into())).unwrap();
        let inputs = vec![NamedTensor { name: "x".into(), tensor }];
        let request = model.signature().check(InferenceRequest { inputs, ..Default::default() }).unwrap();
        Arc::clone(model).session()?.run(&request, &Interrupt::new())
    }

    #[test]
    fn runs_wait_until_they_are_allowed() {
        let fake = Fake::echo(signature());
        fake.block();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| run(&fake.model()).unwrap());
            }
            fake.wait_for_waiting(3);
            assert_eq!(fake.runs(), 0);
            fake.allow(1);
            fake.wait_for_runs(1);
            assert_eq!((fake.runs(), fake.waiting()), (1, 2));
            fake.unblock();
        });
        assert_eq!((fake.runs(), fake.waiting(), fake.sessions()), (3, 0, 3));
    }

    #[test]
    fn faults_happen_in_the_order_they_were_requested() {
        let fake = Fake::echo(signature());
        fake.fail_next(RunError::Refused("no".into()));
        fake.panic_next();
        let model = fake.model();
        assert!(matches!(run(&model), Err(RunError::Refused(_))));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&model))).is_err());
        assert!(run(&model).is_ok());
    }

    #[test]
    fn runs_take_the_time_that_was_set() {
        let fake = Fake::echo(signature());
        fake.takes(Duration::from_millis(20));
        let started = std::time::Instant::now();
        run(&fake.model()).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn the_engine_loads_what_the_closure_returns() {
        let fake = Fake::echo(signature());
        let engine = FakeEngine::new({
            let fake = fake.clone();
            move |files| match files.dir.file_name().and_then(|name| name.to_str()) {
                Some("1") => Ok(fake.clone()),
                _ => Err(LoadError::Invalid("broken".into())),
            }
        });
        let engines = Engines::only(Arc::new(engine));
        let load = |dir: &str| engines.load(EngineChoice::Tract, &VersionFiles::of(dir));
        run(&load("a/1").unwrap()).unwrap();
        assert_eq!(fake.runs(), 1);
        assert_eq!(load("a/2").unwrap_err().to_string(), "broken");
    }
}
