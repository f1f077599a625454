//! The copies that wait, in one lane per shadow.

use super::{FinishedCopy, ShadowCopy};
use crate::registry::Served;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// One lane per shadow that has copies waiting. The lanes take turns.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The lanes in the order of their turns. No lane is empty, and all copies of a lane are for one shadow.
    lanes: VecDeque<VecDeque<ShadowCopy>>,
    /// Copies that ran and still have to be recorded and freed.
    finished: Vec<FinishedCopy>,
    /// Threads that wait for a copy.
    idle: usize,
    closed: bool,
}

impl Lanes {
    /// Puts copies at the end of their shadows' lanes, in order, and wakes as many threads as can run one. [`super::Shadows::admit`] bounds
    /// the length of a lane.
    pub(super) fn push_all(&self, copies: &mut Vec<ShadowCopy>) {
        if copies.is_empty() {
            return;
        }
        let n = copies.len();
        let mut state = self.lock();
        for copy in copies.drain(..) {
            let is_same_shadow = |lane: &&mut VecDeque<ShadowCopy>| {
                lane.front().is_some_and(|first| Arc::ptr_eq(&first.shadow.loaded, &copy.shadow.loaded))
            };
            match state.lanes.iter_mut().find(is_same_shadow) {
                Some(lane) => lane.push_back(copy),
                None => state.lanes.push_back(VecDeque::from([copy])),
            }
        }
        let idle = state.idle;
        drop(state);
        // A thread that runs copies takes the next one without being woken.
        for _ in 0..n.min(idle) {
            self.changed.notify_one();
        }
    }

    /// Waits for the next copy and takes it from the lane whose turn it is. `None` once closed.
    pub(super) fn next(&self) -> Option<ShadowCopy> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(mut lane) = state.lanes.pop_front() {
                let next = lane.pop_front();
                if !lane.is_empty() {
                    state.lanes.push_back(lane);
                }
                return next;
            }
            state.idle += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Removes and returns the copies for versions that are not shadows any more.
    pub(super) fn retain(&self, is_shadow: impl Fn(&Served) -> bool) -> Vec<ShadowCopy> {
        let mut state = self.lock();
        let lanes = std::mem::take(&mut state.lanes);
        let is_kept = |lane: &VecDeque<ShadowCopy>| lane.front().is_some_and(|copy| is_shadow(&copy.shadow));
        let (kept, removed): (Vec<_>, Vec<_>) = lanes.into_iter().partition(is_kept);
        state.lanes = kept.into();
        removed.into_iter().flatten().collect()
    }

    /// Hands over a copy that ran.
    pub(super) fn finish(&self, finished: FinishedCopy) {
        self.lock().finished.push(finished);
    }

    /// Takes the copies that ran since the last call.
    pub(super) fn take_finished(&self) -> Vec<FinishedCopy> {
        std::mem::take(&mut self.lock().finished)
    }

    /// Ends [`Lanes::next`] for all threads.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
