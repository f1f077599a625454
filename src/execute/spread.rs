//! One run of many rows on several workers, where those have nothing else to do.

use super::runner::Runner;
use crate::model::{Answer, Checked};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A request that is run in parts of its rows. Whoever helps takes the next part; the worker whose request it is takes parts until there
/// are none, and waits only for those that somebody has begun.
#[derive(Debug)]
pub struct Spread {
    request: Arc<Checked>,
    /// Rows of each part, in order.
    rows: Vec<usize>,
    state: Mutex<State>,
    /// Nobody is at a part any more.
    quiet: Condvar,
}

#[derive(Debug)]
struct State {
    /// Until the answer is there: who helped may still hold this when the version is done with.
    runner: Option<Arc<Runner>>,
    /// The part that is taken next.
    next: usize,
    running: usize,
    /// One for each part, as they come.
    answers: Vec<Option<Answer>>,
}

impl Spread {
    /// So many parts of as many rows as the others or one more; `None` where the request has not as many rows. Copies nothing yet.
    #[must_use]
    pub fn new(runner: &Arc<Runner>, request: &Arc<Checked>, parts: usize) -> Option<Spread> {
        let all = request.rows().filter(|all| *all >= parts)?;
        let (each, more) = (all.checked_div(parts)?, all % parts);
        let rows: Vec<usize> = (0..parts).map(|part| each + usize::from(part < more)).collect();
        let answers = rows.iter().map(|_| None).collect();
        let state = Mutex::new(State { runner: Some(Arc::clone(runner)), next: 0, running: 0, answers });
        Some(Spread { request: Arc::clone(request), rows, state, quiet: Condvar::new() })
    }

    /// Rows of its largest part.
    #[must_use]
    pub fn rows_of_a_part(&self) -> usize {
        self.rows.first().copied().unwrap_or(1)
    }

    /// Runs the next part that nobody took yet; false where there is none.
    pub fn run_one(&self) -> bool {
        let Some((runner, part)) = self.take() else { return false };
        // Unwind safety: what a panic passed through is dropped with it; the part has no answer. An engine's panic does not come here.
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let from = self.rows[..part].iter().sum();
            runner.run_part(&self.request.slice_rows(from, self.rows[part])?)
        }));
        drop(runner);
        let answer = answer.ok().flatten();
        let mut state = self.lock();
        if answer.is_none() {
            // The whole has failed: what is left would be for nothing.
            state.next = self.rows.len();
        }
        state.answers[part] = answer;
        state.running -= 1;
        if state.running == 0 {
            self.quiet.notify_all();
        }
        true
    }

    fn take(&self) -> Option<(Arc<Runner>, usize)> {
        let mut state = self.lock();
        let part = Some(state.next).filter(|part| *part < self.rows.len())?;
        let runner = state.runner.clone()?;
        (state.next, state.running) = (part + 1, state.running + 1);
        Some((runner, part))
    }

    /// The answer of all parts, in order, once nobody is at one any more; asked when [`Spread::run_one`] finds none, so that none is left to
    /// begin. `None` where a part failed, or has not the rows it was asked for.
    #[must_use]
    pub fn answer(&self) -> Option<Answer> {
        let state = self.lock();
        let mut state = self.quiet.wait_while(state, |state| state.running > 0).unwrap_or_else(PoisonError::into_inner);
        state.runner = None;
        let answers: Vec<Answer> = state.answers.iter_mut().map(Option::take).collect::<Option<_>>()?;
        Answer::stack(&answers, &self.rows)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
