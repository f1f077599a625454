//! One request that several workers run in parts.

use super::runner::Runner;
use super::watchdog::{Callers, Limit};
use crate::model::{Answer, Checked};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The owner waits this long past the deadline for parts that helpers have started. One that ignores its interrupt is left behind.
const LATE: Duration = Duration::from_millis(500);

/// A request that is run in parts of its rows. Each helper runs the next part. The worker that owns the request runs parts until none
/// is left, and then waits only for parts that a helper has started.
#[derive(Debug)]
pub(super) struct SplitRun {
    request: Arc<Checked>,
    /// The rows of each part, in order.
    rows: Vec<usize>,
    /// The deadline of the request, and its caller.
    until: Instant,
    callers: Arc<dyn Callers>,
    state: Mutex<State>,
    /// No part is running.
    finished: Condvar,
}

#[derive(Debug)]
struct State {
    /// `None` once the answer was taken: a helper may hold the split run longer than the version is needed.
    runner: Option<Arc<Runner>>,
    /// The index of the part that is run next.
    next: usize,
    running: usize,
    /// The answer of each part that has ended.
    answers: Vec<Option<Answer>>,
}

/// A part that a worker has taken.
struct Part {
    runner: Arc<Runner>,
    index: usize,
    from_row: usize,
    rows: usize,
}

impl SplitRun {
    /// Splits a request into parts of equal size, give or take one row. `None` where it has fewer rows than parts. Copies nothing yet.
    #[must_use]
    pub(super) fn new(
        runner: &Arc<Runner>,
        request: &Arc<Checked>,
        parts: usize,
        until: Instant,
        callers: &Arc<dyn Callers>,
    ) -> Option<SplitRun> {
        let all = request.rows().filter(|all| *all >= parts)?;
        let (each, larger) = (all.checked_div(parts)?, all % parts);
        let rows: Vec<usize> = (0..parts).map(|part| each + usize::from(part < larger)).collect();
        let answers = rows.iter().map(|_| None).collect();
        let state = Mutex::new(State { runner: Some(Arc::clone(runner)), next: 0, running: 0, answers });
        let (request, callers) = (Arc::clone(request), Arc::clone(callers));
        Some(SplitRun { request, rows, until, callers, state, finished: Condvar::new() })
    }

    #[must_use]
    pub(super) fn rows_of_largest_part(&self) -> usize {
        self.rows.first().copied().unwrap_or(1)
    }

    /// Runs the next part. Returns false where none is left.
    pub(super) fn run_one(&self) -> bool {
        let Some(Part { runner, index, from_row, rows }) = self.take() else { return false };
        // Unwind safety: what a panic passed through is dropped with it, and the part has no answer. An engine's panic is caught
        // before this one.
        let limit = Limit { until: Some(self.until), callers: Some(&self.callers), ..Limit::default() };
        let run = || runner.run_part(&self.request.slice_rows(from_row, rows)?, limit);
        let answer = catch_unwind(AssertUnwindSafe(run));
        drop(runner);
        let answer = answer.ok().flatten();
        let mut state = self.lock();
        if answer.is_none() {
            // The split run has failed, so the parts that are left are not run.
            state.next = self.rows.len();
        }
        if let Some(slot) = state.answers.get_mut(index) {
            *slot = answer;
        }
        state.running -= 1;
        if state.running == 0 {
            self.finished.notify_all();
        }
        true
    }

    fn take(&self) -> Option<Part> {
        let mut state = self.lock();
        let index = state.next;
        let rows = self.rows.get(index).copied()?;
        let from_row = self.rows.iter().take(index).sum();
        let runner = state.runner.clone()?;
        (state.next, state.running) = (index + 1, state.running + 1);
        Some(Part { runner, index, from_row, rows })
    }

    /// Waits until no part is running, and joins the parts' answers in order. Called when [`SplitRun::run_one`] found no part, so none
    /// is started later. `None` where a part failed, has the wrong number of rows, or does not end in time.
    #[must_use]
    pub(super) fn answer(&self) -> Option<Answer> {
        let state = self.lock();
        let left = self.until.saturating_duration_since(Instant::now()) + LATE;
        let waited = self.finished.wait_timeout_while(state, left, |state| state.running > 0);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.runner = None;
        let answers: Vec<Answer> = state.answers.iter_mut().map(Option::take).collect::<Option<_>>()?;
        Answer::stack(&answers, &self.rows)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
