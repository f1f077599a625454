//! Running a copy and holding it against its original.

use super::{Copied, Shared};
use crate::compare::compare_answers;
use crate::model::{Answer, Failure};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The lowest there is: the system lets such a thread run where no other wants to.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 19;

/// One of the threads that run copies.
pub(super) fn run(shared: &Shared) {
    lower_priority();
    while let Some(copied) = shared.lanes.next() {
        let outcome = infer(&copied);
        let Copied { original, shadow, bytes } = copied;
        let loaded = &shadow.loaded;
        let comparison = match (&original.outcome, &outcome) {
            (Ok(expected), Ok((got, _))) => Some(compare_answers(expected, got, original.tolerance)),
            _ => None,
        };
        let counts = loaded.metrics.shadow();
        counts.compared(comparison.as_ref().is_some_and(|comparison| !comparison.agrees()));
        let outcome = outcome.as_ref().map(|(answer, took)| (answer, *took));
        shared.figures.record(&original, loaded, outcome, comparison.as_ref());
        drop((original, shadow));
        shared.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

fn infer(Copied { original, shadow, .. }: &Copied) -> Result<(Answer, Duration), Failure> {
    let loaded = &shadow.loaded;
    let request = loaded.facts.signature.recheck(&original.facts.signature, &original.request)?;
    // On this thread a run takes what the others leave it.
    let ran = loaded.runner.run_aside(&request)?;
    Ok((ran.answer, ran.infer))
}

fn lower_priority() {
    // On Linux the call concerns the calling thread alone; elsewhere it would slow the whole process.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "the shadow thread keeps its priority");
    }
}
