//! Waits until a version has a state, for `GET …/versions/V?wait_for=ready`.

use super::Admin;
use crate::model::{Code, Failure};
use crate::registry::{Snapshot, State};
use serde::Serialize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use utoipa::ToSchema;

/// The longest wait of one request. Clients ask again.
pub(super) const MAX_WAIT: Duration = Duration::from_mins(1);
/// The most requests that wait at the same time. Each holds a connection of the admin plane.
const MAX_WAITING: usize = 100;

static WAITING: AtomicUsize = AtomicUsize::new(0);

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Waited {
    /// The version has the state, or has passed it on its way to `serving`.
    Reached,
    /// It has another one from which it does not get there by itself: it failed, or it is unloaded.
    Unreachable,
    /// It may still get there.
    TimedOut,
}

/// Waits until the version has the state, can have it no more, or the time is over. The version may appear meanwhile.
///
/// # Errors
/// `TOO_MANY_REQUESTS` where too many others wait.
pub(super) async fn until(
    admin: &Admin,
    wanted: State,
    timeout: Duration,
    find: impl Fn(&Snapshot) -> Option<State>,
) -> Result<Waited, Failure> {
    let _waiting = Waiting::begin()?;
    let look = |snapshot: &Snapshot| match find(snapshot).map(|state| reached(state, wanted)) {
        Some(Waited::TimedOut) | None => (admin.stopping)().then_some(Waited::TimedOut),
        ended => ended,
    };
    let found = tokio::time::timeout(timeout, admin.reader.wait_for(look)).await;
    Ok(found.unwrap_or(Waited::TimedOut))
}

/// One waiting request.
struct Waiting;

impl Waiting {
    fn begin() -> Result<Waiting, Failure> {
        let waiting = Waiting;
        if WAITING.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            return Err(Failure::new(Code::TooManyRequests, format!("{MAX_WAITING} other requests wait for a state")));
        }
        Ok(waiting)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a version that is in `current` has reached `wanted`.
fn reached(current: State, wanted: State) -> Waited {
    // On the way from a file to traffic.
    let step = |state: State| match state {
        State::Pending => Some(0),
        State::Loading => Some(1),
        State::Verifying => Some(2),
        State::Warming => Some(3),
        State::Ready => Some(4),
        State::Serving => Some(5),
        State::Draining | State::Unloaded | State::Failed => None,
    };
    if current == wanted || current == State::Unloaded && wanted == State::Draining {
        return Waited::Reached;
    }
    match (step(current), step(wanted)) {
        (Some(current), Some(wanted)) if current >= wanted => Waited::Reached,
        (None, Some(_)) if current != State::Draining => Waited::Unreachable,
        _ => Waited::TimedOut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_reached_when_the_version_has_it_or_has_passed_it() {
        use State::{Draining, Failed, Loading, Pending, Ready, Serving, Unloaded, Warming};
        let cases = [
            (Ready, Ready, Waited::Reached),
            (Serving, Ready, Waited::Reached),
            (Warming, Loading, Waited::Reached),
            (Ready, Serving, Waited::TimedOut),
            (Pending, Ready, Waited::TimedOut),
            (Failed, Ready, Waited::Unreachable),
            (Unloaded, Ready, Waited::Unreachable),
            (Draining, Ready, Waited::TimedOut),
            (Failed, Failed, Waited::Reached),
            (Ready, Failed, Waited::TimedOut),
            (Serving, Unloaded, Waited::TimedOut),
            (Unloaded, Unloaded, Waited::Reached),
            (Unloaded, Draining, Waited::Reached),
            (Failed, Unloaded, Waited::TimedOut),
        ];
        for (current, wanted, expected) in cases {
            assert_eq!(reached(current, wanted), expected, "{current:?} for {wanted:?}");
        }
    }
}
