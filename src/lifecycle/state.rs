//! The state table: the only function that moves a version from one state to another.

use crate::registry::State;

/// A move that the table does not allow. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a version cannot go from {from} to {to}")]
pub(super) struct IllegalMove {
    pub from: State,
    pub to: State,
}

/// Moves `state` to `to`.
///
/// # Errors
/// When the table does not allow the move. `state` is unchanged then.
pub(super) fn advance(state: &mut State, to: State) -> Result<(), IllegalMove> {
    if next(*state).contains(&to) {
        *state = to;
        Ok(())
    } else {
        Err(IllegalMove { from: *state, to })
    }
}

/// The states that can follow a state.
#[must_use]
pub(super) const fn next(from: State) -> &'static [State] {
    use State::{Draining, Failed, Loading, Pending, Ready, Serving, Unloaded, Verifying, Warming};
    match from {
        // Unloaded: it is no longer wanted. Failed: it has no files.
        Pending => &[Loading, Unloaded, Failed],
        // Pending: its files changed while they were read. Unloaded: it is no longer wanted.
        Loading => &[Verifying, Failed, Pending, Unloaded],
        Verifying => &[Warming, Failed, Pending, Unloaded],
        Warming => &[Ready, Failed, Pending, Unloaded],
        // Failed: it was set aside.
        Ready => &[Serving, Draining, Failed],
        Serving => &[Ready, Draining, Failed],
        Draining => &[Unloaded],
        Unloaded => &[Pending],
        // Pending: its files changed, or it is tried again. Unloaded: it is no longer wanted.
        Failed => &[Pending, Unloaded],
    }
}

/// Whether a version in this state no longer delays the first document of its model and the readiness of the server.
#[must_use]
pub(super) const fn is_settled(state: State) -> bool {
    matches!(state, State::Ready | State::Serving | State::Failed | State::Unloaded)
}
