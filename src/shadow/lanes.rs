//! The copies that wait, each shadow's in a lane of its own.

use super::{Copied, Done};
use crate::registry::Served;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// One lane per shadow that has copies waiting; the lanes take turns.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Never empty ones; the next one's turn is at the front.
    lanes: VecDeque<VecDeque<Copied>>,
    /// Copies that were run, still to be recorded and freed.
    done: Vec<Done>,
    closed: bool,
}

impl Lanes {
    /// Puts a copy at the end of its shadow's lane. How long that gets is decided where copies are admitted.
    pub fn push(&self, copied: Copied) {
        let mut state = self.lock();
        let same = |lane: &&mut VecDeque<Copied>| {
            lane.front().is_some_and(|c| Arc::ptr_eq(&c.shadow.loaded, &copied.shadow.loaded))
        };
        match state.lanes.iter_mut().find(same) {
            Some(lane) => lane.push_back(copied),
            None => state.lanes.push_back(VecDeque::from([copied])),
        }
        self.changed.notify_one();
    }

    /// The next copy, of the lane whose turn it is; waits for one. `None` once closed.
    pub fn next(&self) -> Option<Copied> {
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
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes out the copies of shadows that are none any more.
    pub fn retain(&self, is_shadow: impl Fn(&Served) -> bool) -> Vec<Copied> {
        let mut state = self.lock();
        let lanes = std::mem::take(&mut state.lanes);
        // All copies of a lane are of one shadow.
        let stays = |lane: &VecDeque<Copied>| lane.front().is_some_and(|copied| is_shadow(&copied.shadow));
        let (stay, go): (Vec<_>, Vec<_>) = lanes.into_iter().partition(stays);
        state.lanes = stay.into();
        go.into_iter().flatten().collect()
    }

    /// Gives back a copy that was run.
    pub fn done(&self, done: Done) {
        self.lock().done.push(done);
    }

    /// The copies that were run since the last call.
    pub fn take_done(&self) -> Vec<Done> {
        std::mem::take(&mut self.lock().done)
    }

    /// From now on there is no next copy.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
