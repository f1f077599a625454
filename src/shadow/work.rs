//! Running a copy and holding it against its original.

use super::{Copied, Done, Shared};
use crate::compare::compare_answers;
use crate::model::{Answer, Checked, Failure};
use std::sync::Arc;
use std::time::Duration;

/// One of the threads that run copies.
pub(super) fn run(shared: &Shared) {
    lower_priority();
    while let Some(copied) = shared.lanes.next() {
        let (request, outcome) = infer(&copied);
        let Copied { original, shadow, .. } = &copied;
        let loaded = &shadow.loaded;
        let comparison = match (&original.outcome, &outcome) {
            (Ok(expected), Ok((got, _))) => Some(compare_answers(expected, got, original.tolerance)),
            _ => None,
        };
        let ran = outcome.as_ref().map(|(answer, took)| (answer, *took));
        // The figures first: who sees that it was counted finds them.
        shared.figures.record(original, loaded, ran, comparison.as_ref());
        loaded.metrics.shadow().compared(comparison.as_ref().is_some_and(|comparison| !comparison.agrees()));
        let agrees = comparison.is_some_and(|comparison| comparison.agrees());
        // Freed by the sorting thread: memory of the threads that answer callers is given back under a lock of theirs, which
        // a thread that the system does not let run must not hold.
        shared.lanes.done(Done { copied, request, outcome, agrees });
    }
}

type Ran = (Option<Arc<Checked>>, Result<(Answer, Duration), Failure>);

fn infer(Copied { original, shadow, .. }: &Copied) -> Ran {
    let loaded = &shadow.loaded;
    match loaded.facts.signature.recheck(&original.facts.signature, &original.request) {
        Err(failure) => (None, Err(failure)),
        Ok(request) => {
            // On this thread a run takes what the others leave it.
            let outcome = loaded.runner.run_aside(&request).map(|ran| (ran.answer, ran.infer));
            (Some(request), outcome)
        }
    }
}

fn lower_priority() {
    // A thread that the system runs only where nothing else wants to: a caller's thread that wakes up goes before it at once, also
    // when choosing a core, which a merely nice thread would make look taken.
    #[cfg(target_os = "linux")]
    {
        use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
        let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        let thread = thread_priority::thread_native_id();
        if let Err(error) = thread_priority::set_thread_priority_and_policy(thread, ThreadPriority::Min, policy) {
            tracing::warn!(?error, "the shadow thread keeps its priority");
        }
    }
}
