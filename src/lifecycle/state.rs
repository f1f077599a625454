//! The one function that moves a version from state to state.

use crate::registry::State;

/// A move the table does not have. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a version cannot go from {from} to {to}")]
pub struct IllegalMove {
    pub from: State,
    pub to: State,
}

/// Moves `state` to `to`.
///
/// # Errors
/// When the table has no such move; `state` is then what it was.
pub fn advance(state: &mut State, to: State) -> Result<(), IllegalMove> {
    if next(*state).contains(&to) {
        *state = to;
        Ok(())
    } else {
        Err(IllegalMove { from: *state, to })
    }
}

/// Where a version may go from a state.
#[must_use]
pub const fn next(from: State) -> &'static [State] {
    use State::{Draining, Failed, Loading, Pending, Ready, Serving, Unloaded, Verifying, Warming};
    match from {
        // Unloaded: nobody wants it any more. Failed: there is nothing to load.
        Pending => &[Loading, Unloaded, Failed],
        // Pending: its bytes changed while they were read. Unloaded: nobody wants it any more.
        Loading => &[Verifying, Failed, Pending, Unloaded],
        Verifying => &[Warming, Failed, Pending, Unloaded],
        Warming => &[Ready, Failed, Pending, Unloaded],
        Ready => &[Serving, Draining],
        Serving => &[Ready, Draining],
        Draining => &[Unloaded],
        Unloaded => &[Pending],
        // Pending: its bytes changed, or it is tried again. Unloaded: nobody wants it any more.
        Failed => &[Pending, Unloaded],
    }
}

/// Whether a version in this state holds back a model that is seen for the first time, and a server that starts.
#[must_use]
pub const fn is_settled(state: State) -> bool {
    matches!(state, State::Ready | State::Serving | State::Failed | State::Unloaded)
}
