//! The thread that makes explanations for callers.

use super::sampling::{Explanation, Options, shapley};
use crate::columns::ElementNames;
use crate::execute::limit_runs;
use crate::machine;
use crate::marks::Kind;
use crate::model::{CallerId, Checked, Code, Failure, panic_message};
use crate::registry::Served;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How many explanations may wait for the one in progress. More are refused.
const WAITING: usize = 4;
/// How many of one caller may wait or be in progress: half of the places, so that no caller keeps all others out.
const OF_ONE_CALLER: usize = WAITING / 2;
/// A single run is ended after this long.
const LONGEST: Duration = Duration::from_secs(10);

/// What to explain. It keeps the version loaded until it ends.
#[derive(Debug)]
pub struct Job {
    pub served: Arc<Served>,
    /// One row, and the background rows, both checked against the version's signature.
    pub row: Checked,
    pub background: Checked,
    pub names: ElementNames,
    pub options: Options,
    pub deadline: Instant,
    /// Who asks.
    pub caller: CallerId,
}

/// Makes explanations, one at a time, on idle cores.
#[derive(Debug)]
pub struct Explainer {
    jobs: Sender<Waiting>,
    callers: Places,
}

/// An explanation that waits. It keeps its place also when its caller has gone, until the thread has seen that.
struct Waiting {
    job: Job,
    reply: oneshot::Sender<Result<Explanation, Failure>>,
    _place: Place,
}

/// The callers of the explanations that wait or are in progress, each as often as it has some.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Vec<CallerId>>>);

/// The place of one explanation of a caller, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    caller: CallerId,
}

impl Places {
    /// Takes a place for an explanation of this caller.
    ///
    /// # Errors
    /// `TOO_MANY_REQUESTS` when it has as many as one caller may have.
    pub(super) fn enter(&self, caller: CallerId) -> Result<Place, Failure> {
        let mut callers = self.lock();
        if callers.iter().filter(|other| **other == caller).count() >= OF_ONE_CALLER {
            let words =
                format!("{OF_ONE_CALLER} explanations of this caller wait or are in progress; wait for their answers");
            return Err(Failure::new(Code::TooManyRequests, words));
        }
        callers.push(caller);
        Ok(Place { places: self.clone(), caller })
    }

    /// A panic while the lock is held leaves a complete list.
    fn lock(&self) -> MutexGuard<'_, Vec<CallerId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut callers = self.places.lock();
        if let Some(at) = callers.iter().position(|caller| *caller == self.caller) {
            callers.swap_remove(at);
        }
    }
}

impl Explainer {
    /// Starts the thread. It ends with the explainer.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start() -> std::io::Result<Explainer> {
        let (jobs, waiting) = bounded(WAITING);
        std::thread::Builder::new().name("explain".to_owned()).spawn(move || work(&waiting))?;
        Ok(Explainer { jobs, callers: Places::default() })
    }

    /// Waits for an explanation.
    ///
    /// # Errors
    /// `TOO_MANY_REQUESTS` where too many of the same caller wait, `OVERLOADED` where too many of others do, `DEADLINE_EXCEEDED`, and those of
    /// [`shapley`].
    pub async fn explain(&self, job: Job) -> Result<Explanation, Failure> {
        let deadline = job.deadline;
        let place = self.callers.enter(job.caller)?;
        let (reply, answer) = oneshot::channel();
        self.jobs.try_send(Waiting { job, reply, _place: place }).map_err(|error| match error {
            TrySendError::Full(_) => {
                Failure::new(Code::Overloaded, format!("{WAITING} other explanations wait; try again later"))
            }
            TrySendError::Disconnected(_) => Failure::new(Code::Internal, "the thread of explanations has ended"),
        })?;
        // The thread ends an explanation at its deadline; a run in progress may take a little longer.
        let grace = Duration::from_millis(500);
        match tokio::time::timeout_at((deadline + grace).into(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Failure::new(Code::Internal, "the explanation failed")),
            Err(_) => Err(too_late()),
        }
    }
}

fn too_late() -> Failure {
    let message = "the explanation did not end in time: no core was idle, or others were before it";
    Failure::new(Code::DeadlineExceeded, message)
}

fn work(jobs: &Receiver<Waiting>) {
    machine::run_on_idle_cores("explain");
    while let Ok(Waiting { job, mut reply, _place }) = jobs.recv() {
        if Instant::now() >= job.deadline {
            // Fails only when the caller no longer waits.
            let _ = reply.send(Err(too_late()));
            continue;
        }
        if reply.is_closed() {
            continue;
        }
        let made = catch_unwind(AssertUnwindSafe(|| explain(&job, &mut reply)));
        let made = made.unwrap_or_else(|panic| {
            Err(Failure::new(Code::Internal, "the explanation failed").with_internal(panic_message(&*panic)))
        });
        // Fails only when the caller no longer waits.
        let _ = reply.send(made);
    }
}

fn explain(job: &Job, reply: &mut oneshot::Sender<Result<Explanation, Failure>>) -> Result<Explanation, Failure> {
    let Job { served, row, background, names, options, deadline, caller: _ } = job;
    let loaded = &served.loaded;
    let mut run = |request: &Checked| {
        if reply.is_closed() {
            return Err(Failure::new(Code::DeadlineExceeded, "the caller does not wait any more"));
        }
        let _limit = limit_runs((Instant::now() + LONGEST).min(*deadline + LONGEST / 20));
        let _inside = loaded.runner.mark().enter(Kind::Shadow);
        loaded.runner.run_unmeasured(request).map(|ran| ran.answer)
    };
    shapley(&loaded.facts.signature, row, background, names, options, *deadline, &mut run)
}
