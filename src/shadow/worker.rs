//! Runs copies and compares their answers with the primary's.

use super::{FinishedCopy, ShadowCopy, Shared};
use crate::compare::{Alternation, Comparison, compare_answers};
use crate::execute::{is_replaced, limit_runs, replace_when_lost};
use crate::machine;
use crate::marks::Kind;
use crate::model::{Answer, Checked, Code, Failure, panic_message};
use crate::registry::{Loaded, Served};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A copy's run is ended after this long. It is many times the time of a run, because the thread runs only on idle cores.
const LONGEST: Duration = if cfg!(test) { Duration::from_secs(4) } else { Duration::from_mins(1) };

/// The primary runs again, beside the shadow, for one copy in so many. Their times can then be compared.
const ALTERNATED: u64 = 8;
/// Only primaries whose run for the caller was this short run again. The run then ends long before [`LONGEST`], also on a thread that
/// gets little of a core: a primary must not be suspected of runs that do not end because of this thread.
const SHORT: Duration = Duration::from_millis(100);

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
    machine::run_on_idle_cores("shadow");
    while !is_replaced()
        && let Some(copy) = shared.lanes.next()
    {
        // Unwind safety: a panic leaves nothing behind but the copy, which is only read.
        let ran = catch_unwind(AssertUnwindSafe(|| run_and_compare(shared, &copy)));
        let Ran { request, outcome, comparison, alternated } = ran.unwrap_or_else(|panic| {
            let failure = Failure::new(Code::Internal, "the shadow's run panicked");
            let text = panic_message(&*panic);
            tracing::error!(model = %copy.original.context.identity.model, panic = text, "a shadow thread panicked");
            Ran { request: None, outcome: Err(failure.with_internal(text)), comparison: None, alternated: None }
        });
        let ran = outcome.as_ref().map(|(answer, took)| (answer, *took));
        let loaded = &copy.shadow.loaded;
        // The figures come first, so that a reader who sees the count also sees the figures.
        shared.figures.record(&copy.original, loaded, ran, comparison.as_ref(), alternated);
        loaded.metrics.shadow().compared(comparison.as_ref().is_some_and(|comparison| !comparison.agrees()));
        let agrees = comparison.is_some_and(|comparison| comparison.agrees());
        // The sorting thread frees the copy. Freeing memory of the threads that answer callers takes a lock of their heap, and this
        // thread may lose its core at any time, so it must not hold such a lock.
        shared.lanes.finish(FinishedCopy { copy, request, outcome, agrees });
    }
}

/// A copy that ran.
struct Ran {
    request: Option<Arc<Checked>>,
    outcome: Result<(Answer, Duration), Failure>,
    comparison: Option<Comparison>,
    alternated: Option<Alternation>,
}

/// The primary, where it is still loaded. Held for its run only, as it must not stay loaded because of a shadow's run.
fn primary_of(shared: &Shared, copy: &ShadowCopy) -> Option<Arc<Served>> {
    let identity = &copy.original.context.identity;
    let snapshot = shared.reader.snapshot();
    let served = snapshot.model(identity.model.as_str())?.pinned(identity.version)?;
    // Another file of the same number is another model.
    (served.loaded.facts.sha256 == identity.facts.sha256).then(|| Arc::clone(served))
}

fn run_and_compare(shared: &Shared, copy: &ShadowCopy) -> Ran {
    let ShadowCopy { original, shadow, .. } = copy;
    let loaded = &shadow.loaded;
    let signature = &original.context.identity.facts.signature;
    match loaded.facts.signature.recheck(signature, &original.request) {
        Err(failure) => Ran { request: None, outcome: Err(failure), comparison: None, alternated: None },
        Ok(request) => {
            let compared = loaded.metrics.shadow().compared_so_far();
            let runs_both =
                compared.is_multiple_of(ALTERNATED) && original.outcome.is_ok() && original.timing.infer <= SHORT;
            // Which side runs first alternates, as the second one finds the inputs in the caches.
            let primary_first = (compared / ALTERNATED).is_multiple_of(2);
            let run_primary = || {
                let primary = primary_of(shared, copy)?;
                run_once(&primary.loaded, &original.request).ok().map(|(_, took)| took)
            };
            let before = if runs_both && primary_first { run_primary() } else { None };
            let outcome = run_once(loaded, &request);
            let after = if runs_both && !primary_first { run_primary() } else { None };
            let alternated = before.or(after).zip(outcome.as_ref().ok()).map(|(primary, (_, shadow))| {
                let rows = request.rows().unwrap_or(1);
                Alternation { primary, shadow: *shadow, rows }
            });
            let comparison = match (&original.outcome, &outcome) {
                (Ok(expected), Ok((got, _))) => Some(compare_answers(expected, got, original.context.tolerance)),
                _ => None,
            };
            Ran { request: Some(request), outcome, comparison, alternated }
        }
    }
}

/// Runs a request on this thread. Returns the answer and the time inside the engine.
fn run_once(loaded: &Loaded, request: &Checked) -> Result<(Answer, Duration), Failure> {
    let _limit = limit_runs(Instant::now() + LONGEST);
    let _inside = loaded.runner.mark().enter(Kind::Shadow);
    loaded.runner.run_unmeasured(request).map(|ran| (ran.answer, ran.infer))
}
