//! Requests that are ready in the same turn of an I/O thread's event loop run together.
//!
//! When a thread of connections wakes up, several requests are usually readable. Each that may run on this thread
//! ([`Runner::runs_at_once`]) joins the turn ([`join`]) and lets go of the thread. The task of [`end_turns`] is woken by the first one. So it
//! is polled after the tasks that were ready before it, which have joined by then, and runs what has gathered: requests of one version whose rows
//! stack in one run. Their tasks are woken, and write their answers in the same turn. No request waits for one that has not arrived, and
//! nothing is locked or handed to another thread.
//!
//! - A turn that gathered one request runs it as if it had not waited. After [`LONE_TURNS`] such turns in a row, requests do not even join:
//!   only one in [`RETRY`] does, to see whether others are ready again.
//! - A run is expected to take at most [`super::Config::inline_below`]. After each run, the tasks it answered go first. So neither
//!   answers nor other connections wait for all that has gathered.
//! - A failed run is taken apart: its halves run, so that a request fails only for itself. A run that takes too long is ended, and its
//!   requests go to a worker.
//! - Threads without this task, and versions whose rows may interact, run each request alone.

use super::batch::{BatchItem, Selected, select};
use super::executor::expired;
use super::runner::{RunOutput, Runner, TogetherAtOnce};
use crate::model::{Checked, Code, Failure, panic_message};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The most requests that one thread gathers. One more runs alone, at once.
const MOST_REQUESTS: usize = 1024;

/// After this many turns in a row that gathered one request, requests run alone without joining …
const LONE_TURNS: u32 = 8;
/// … but for one in this many.
const RETRY: u32 = 32;

/// How a request of a turn ended. `None`: it took too long on this thread, and a worker should run it.
pub(super) type Ended = Option<Result<RunOutput, Failure>>;

/// A request that waits for the end of the turn.
#[derive(Debug)]
struct Waiting {
    request: Arc<Checked>,
    deadline: Instant,
    /// Closed when the caller went away. Dropped without an answer only by a panic, or when the thread ends.
    reply: oneshot::Sender<Ended>,
}

impl BatchItem for Waiting {
    fn request(&self) -> &Arc<Checked> {
        &self.request
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn is_cancelled(&self) -> bool {
        self.reply.is_closed()
    }
}

/// The waiting requests of one version, in the order they came. Never empty in a turn.
#[derive(Debug)]
struct Group {
    runner: Arc<Runner>,
    waiting: VecDeque<Waiting>,
}

/// What a thread has gathered.
#[derive(Debug, Default)]
struct Turn {
    /// Wakes the task that ends turns; `None` where this thread has none.
    end: Option<Waker>,
    /// While this is not empty, the task is woken or is running.
    groups: VecDeque<Group>,
    /// All waiting requests, at most [`MOST_REQUESTS`].
    requests: usize,
    /// The turns in a row that gathered one request, and the requests since then that did not join.
    lone_turns: u32,
    passed: u32,
    /// The memory of an earlier group.
    spare: VecDeque<Waiting>,
}

thread_local! {
    static TURN: RefCell<Turn> = RefCell::default();
}

/// A request that may run on this thread joins the turn, and its answer will be in the channel. `None` where it should run alone now.
pub(super) fn join(
    runner: &Arc<Runner>,
    request: &Arc<Checked>,
    deadline: Instant,
) -> Option<oneshot::Receiver<Ended>> {
    if !runner.gathers(request) {
        return None;
    }
    TURN.with_borrow_mut(|turn| turn.join(runner, request, deadline))
}

impl Turn {
    fn join(
        &mut self,
        runner: &Arc<Runner>,
        request: &Arc<Checked>,
        deadline: Instant,
    ) -> Option<oneshot::Receiver<Ended>> {
        let end = self.end.as_ref().filter(|_| self.requests < MOST_REQUESTS)?;
        if self.groups.is_empty() {
            if self.lone_turns >= LONE_TURNS {
                self.passed = (self.passed + 1) % RETRY;
                if self.passed != 0 {
                    return None;
                }
            }
            end.wake_by_ref();
        }
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting { request: Arc::clone(request), deadline, reply };
        self.requests += 1;
        if let Some(group) = self.groups.iter_mut().find(|group| Arc::ptr_eq(&group.runner, runner)) {
            group.waiting.push_back(waiting);
        } else {
            let mut of_version = std::mem::take(&mut self.spare);
            of_version.push_back(waiting);
            self.groups.push_back(Group { runner: Arc::clone(runner), waiting: of_version });
        }
        Some(answer)
    }

    /// Takes the requests of the next run.
    fn take(&mut self, now: Instant, most: Duration) -> Option<(Arc<Runner>, Selected<Waiting>)> {
        let mut group = self.groups.pop_front()?;
        self.lone_turns = if self.requests == 1 { self.lone_turns.saturating_add(1) } else { 0 };
        let runner = Arc::clone(&group.runner);
        let before = group.waiting.len();
        let selected = select(&runner, &mut group.waiting, now, Some(most));
        self.requests -= before - group.waiting.len();
        if group.waiting.is_empty() {
            self.spare = group.waiting;
        } else {
            // Other versions come first, so that a busy one does not keep them waiting.
            self.groups.push_back(group);
        }
        Some((runner, selected))
    }
}

/// Ends the turns of this thread: runs the requests that have gathered. To be polled on the thread of the connections, as a task of its
/// own, as long as they are served. `most`: the expected time of one run.
pub(super) async fn end_turns(most: Duration) -> Infallible {
    /// The thread gathers requests until this is dropped. Those that wait then are answered `INTERNAL`.
    struct Gathering;
    impl Drop for Gathering {
        fn drop(&mut self) {
            // The thread is ending where this fails.
            let _ = TURN.try_with(RefCell::take);
        }
    }
    let _gathering = Gathering;
    poll_fn(|context| {
        end_turn(context, most);
        Poll::Pending
    })
    .await
}

/// Does the next run of this turn. The task is polled again, after the tasks that the run has woken, where more has gathered.
fn end_turn(context: &mut Context, most: Duration) {
    let now = Instant::now();
    let taken = TURN.with_borrow_mut(|turn| {
        if !turn.end.as_ref().is_some_and(|end| end.will_wake(context.waker())) {
            turn.end = Some(context.waker().clone());
        }
        let taken = turn.take(now, most);
        if !turn.groups.is_empty() {
            context.waker().wake_by_ref();
        }
        taken
    });
    let Some((runner, selected)) = taken else { return };
    // Unwind safety: what a panic passed through is dropped with it, and its callers are answered `INTERNAL`. Engines' panics do not
    // get here.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run_selected(&runner, selected, now))) {
        tracing::error!(
            panic = panic_message(&*panic),
            "a run at the end of a turn panicked; its requests are answered INTERNAL"
        );
    }
}

fn run_selected(runner: &Runner, Selected { batch, expired: late, cancelled }: Selected<Waiting>, now: Instant) {
    runner.counters().dropped(late.len(), cancelled.len());
    drop(cancelled);
    for waiting in late {
        waiting.answer(Some(Err(expired())));
    }
    run_batch(runner, batch, now);
}

/// Runs requests together and answers each. Where that fails, each half of them, down to single requests.
fn run_batch(runner: &Runner, batch: Vec<Waiting>, mut now: Instant) {
    // The halves still to be run, the next one last.
    let mut parts = vec![batch];
    while let Some(mut part) = parts.pop() {
        if part.len() <= 1 {
            if let Some(waiting) = part.pop() {
                let ended = runner.run_at_once(&waiting.request, now, waiting.deadline);
                waiting.answer(ended);
            }
        } else {
            let requests: Vec<&Checked> = part.iter().map(|waiting| &*waiting.request).collect();
            let latest = part.iter().map(|waiting| waiting.deadline).max().unwrap_or(now);
            match runner.run_together_at_once(&requests, now, latest) {
                TogetherAtOnce::Ran(outputs) => {
                    // The run is counted once: by the first request whose caller is still there.
                    let mut counts = true;
                    for (waiting, output) in part.into_iter().zip(outputs) {
                        counts &= !waiting.answer(Some(Ok(RunOutput { counts, ..output })));
                    }
                }
                TogetherAtOnce::TookTooLong => part.into_iter().for_each(|waiting| _ = waiting.answer(None)),
                TogetherAtOnce::Failed => {
                    let second = part.split_off(part.len() / 2);
                    parts.extend([second, part]);
                }
            }
        }
        if !parts.is_empty() {
            now = Instant::now();
        }
    }
}

impl Waiting {
    /// Returns false where the caller went away.
    fn answer(self, ended: Ended) -> bool {
        // The memory of the request is freed before its caller goes on.
        drop(self.request);
        self.reply.send(ended).is_ok()
    }
}

/// The failure of a request whose answer never came.
#[cold]
pub(super) fn lost() -> Failure {
    Failure::new(Code::Internal, "the gateway failed while it ran this request")
        .with_internal("the run at the end of the turn panicked, or its thread ended")
}
