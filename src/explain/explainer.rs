//! The thread that makes explanations for callers.

use super::sampling::{Explanation, Options, shapley};
use crate::columns::ElementNames;
use crate::execute::limit_runs;
use crate::machine;
use crate::marks::Kind;
use crate::model::{Checked, Code, Failure, panic_message};
use crate::registry::Served;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How many explanations may wait for the one in progress. More are refused.
pub const WAITING: usize = 4;
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
}

/// Makes explanations, one at a time, on idle cores.
#[derive(Debug)]
pub struct Explainer {
    jobs: Sender<(Job, oneshot::Sender<Result<Explanation, Failure>>)>,
}

impl Explainer {
    /// Starts the thread. It ends with the explainer.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start() -> std::io::Result<Explainer> {
        let (jobs, waiting) = bounded(WAITING);
        std::thread::Builder::new().name("explain".to_owned()).spawn(move || work(&waiting))?;
        Ok(Explainer { jobs })
    }

    /// Waits for an explanation.
    ///
    /// # Errors
    /// `OVERLOADED` where too many others wait, `DEADLINE_EXCEEDED`, and those of [`shapley`].
    pub async fn explain(&self, job: Job) -> Result<Explanation, Failure> {
        let deadline = job.deadline;
        let (reply, answer) = oneshot::channel();
        self.jobs.try_send((job, reply)).map_err(|error| match error {
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

fn work(jobs: &Receiver<(Job, oneshot::Sender<Result<Explanation, Failure>>)>) {
    machine::run_on_idle_cores("explain");
    while let Ok((job, mut reply)) = jobs.recv() {
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
    let Job { served, row, background, names, options, deadline } = job;
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
