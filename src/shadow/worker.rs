//! Runs copies and compares their answers with the primary's.

use super::{FinishedCopy, ShadowCopy, Shared};
use crate::compare::{Comparison, compare_answers};
use crate::execute::{is_replaced, limit_runs, replace_when_lost};
use crate::marks::Kind;
use crate::model::{Answer, Checked, Code, Failure, panic_message};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A copy's run is ended after this long. It is many times the time of a run, because the thread runs only on idle cores.
const LONGEST: Duration = if cfg!(test) { Duration::from_secs(4) } else { Duration::from_mins(1) };

/// Starts a thread that runs copies.
///
/// # Errors
/// When the thread cannot be started.
pub(super) fn start(shared: &Arc<Shared>, number: usize) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name(format!("shadow-{number}"));
    thread.spawn(move || run(&shared, number)).map(drop)
}

/// The loop of a thread that runs copies. Another thread takes its place where a run does not end.
fn run(shared: &Arc<Shared>, number: usize) {
    let replacement = Arc::downgrade(shared);
    replace_when_lost(move || replacement.upgrade().is_some_and(|shared| start(&shared, number).is_ok()));
    lower_priority();
    while !is_replaced()
        && let Some(copy) = shared.lanes.next()
    {
        // Unwind safety: a panic leaves nothing behind but the copy, which is only read.
        let ran = catch_unwind(AssertUnwindSafe(|| run_and_compare(&copy)));
        let (request, outcome, comparison) = ran.unwrap_or_else(|panic| {
            let failure = Failure::new(Code::Internal, "the shadow's run panicked");
            let text = panic_message(&*panic);
            tracing::error!(model = %copy.original.context.identity.model, panic = text, "a shadow thread panicked");
            (None, Err(failure.with_internal(text)), None)
        });
        let ran = outcome.as_ref().map(|(answer, took)| (answer, *took));
        let loaded = &copy.shadow.loaded;
        // The figures come first, so that a reader who sees the count also sees the figures.
        shared.figures.record(&copy.original, loaded, ran, comparison.as_ref());
        loaded.metrics.shadow().compared(comparison.as_ref().is_some_and(|comparison| !comparison.agrees()));
        let agrees = comparison.is_some_and(|comparison| comparison.agrees());
        // The sorting thread frees the copy. Freeing memory of the threads that answer callers takes a lock of their heap, and this
        // thread may lose its core at any time, so it must not hold such a lock.
        shared.lanes.finish(FinishedCopy { copy, request, outcome, agrees });
    }
}

type Run = (Option<Arc<Checked>>, Result<(Answer, Duration), Failure>, Option<Comparison>);

fn run_and_compare(ShadowCopy { original, shadow, .. }: &ShadowCopy) -> Run {
    let loaded = &shadow.loaded;
    let primary = &original.context.identity.facts.signature;
    match loaded.facts.signature.recheck(primary, &original.request) {
        Err(failure) => (None, Err(failure), None),
        Ok(request) => {
            let _limit = limit_runs(Instant::now() + LONGEST);
            let inside = loaded.runner.mark().enter(Kind::Shadow);
            let outcome = loaded.runner.run_unmeasured(&request).map(|ran| (ran.answer, ran.infer));
            drop(inside);
            let comparison = match (&original.outcome, &outcome) {
                (Ok(expected), Ok((got, _))) => Some(compare_answers(expected, got, original.context.tolerance)),
                _ => None,
            };
            (Some(request), outcome, comparison)
        }
    }
}

/// Asks the system to run this thread only on idle cores. A merely nice thread would delay a caller's thread that wakes up, and make
/// its core look taken.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
        let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        let thread = thread_priority::thread_native_id();
        if let Err(error) = thread_priority::set_thread_priority_and_policy(thread, ThreadPriority::Min, policy) {
            tracing::warn!(?error, "the shadow thread runs at normal priority: its priority could not be lowered");
        }
    }
}
