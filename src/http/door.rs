//! The door: whose request it is, and whether it is let in before its body is read. docs/OVERLOAD.md has the order of the limits.

use super::answer;
use super::body::UnreadBody;
use super::data_plane::{Claim, DataPlane, Permit, RequestKind};
use super::endpoint::Target;
use super::io_health::Heart;
use super::rest;
use crate::access::Access;
use crate::callers::{self, Callers, Place};
use crate::model::{Code, Failure, Priority, Requester, quoted};
use crate::telemetry::{Scope, names};
use http::HeaderMap;
use metrics::Counter;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An I/O thread that is later than this with its timers has no time for requests of batch priority.
const BUSY: Duration = Duration::from_millis(20);

/// Who may send requests, and how many.
#[derive(Debug, Clone)]
pub struct Doors {
    pub access: Access,
    /// Whether requests need credentials. Where they do not, those that are given still name the caller.
    pub require_token: bool,
    pub callers: Arc<Callers>,
}

/// Whose request it is.
#[derive(Debug)]
pub(super) struct Sender {
    pub caller: Arc<callers::Caller>,
    pub priority: Priority,
}

impl Sender {
    /// The sender of a request of this caller. The header may lower the priority, and not raise it.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a priority that does not exist.
    pub(super) fn new(caller: Arc<callers::Caller>, headers: &HeaderMap) -> Result<Sender, Failure> {
        let own = caller.priority();
        let Some(value) = headers.get(answer::X_PRIORITY) else { return Ok(Sender { caller, priority: own }) };
        let text = value.to_str().unwrap_or_default().trim();
        let asked = Priority::of(text).ok_or_else(|| {
            let message =
                format!("{}: expected \"interactive\" or \"batch\", got {}", answer::X_PRIORITY, quoted(text));
            Failure::new(Code::InvalidRequest, message)
        })?;
        Ok(Sender { caller, priority: own.max(asked) })
    }

    pub(super) fn requester(&self) -> Requester {
        Requester { caller: self.caller.id(), priority: self.priority }
    }
}

/// A request of which only the headers have been read.
#[derive(Debug)]
pub(super) struct Arrived<'a> {
    pub headers: &'a HeaderMap,
    pub body: UnreadBody<'a>,
    /// When its headers had been read.
    pub received: Instant,
    pub sender: &'a Sender,
}

/// Why a request is refused that would be answered at another time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// All places are taken.
    Places,
    CallerPlaces,
    CallerRate,
    /// The places of the model are taken.
    Model,
    /// The I/O thread is busy.
    Thread,
    /// Too many requests of the version wait.
    Queue,
}

impl Reason {
    const ALL: [Reason; 6] =
        [Reason::Places, Reason::CallerPlaces, Reason::CallerRate, Reason::Model, Reason::Thread, Reason::Queue];

    /// The server itself is busy, and not only one caller or model at a limit of its own.
    fn means_overload(self) -> bool {
        matches!(self, Reason::Places | Reason::Thread | Reason::Queue)
    }

    fn as_str(self) -> &'static str {
        match self {
            Reason::Places => "places",
            Reason::CallerPlaces => "caller_places",
            Reason::CallerRate => "caller_rate",
            Reason::Model => "model",
            Reason::Thread => "thread",
            Reason::Queue => "queue",
        }
    }
}

/// Counts refused requests by reason and priority.
#[derive(Debug)]
pub(super) struct Shed([[Counter; Priority::ALL.len()]; Reason::ALL.len()]);

impl Shed {
    pub(super) fn new(scope: &Scope) -> Shed {
        Shed(Reason::ALL.map(|reason| {
            Priority::ALL.map(|priority| {
                scope.counter(&names::SHED, &[("reason", reason.as_str()), ("priority", priority.as_str())])
            })
        }))
    }

    pub(super) fn count(&self, reason: Reason, priority: Priority) {
        self.0[reason as usize][priority as usize].increment(1);
    }
}

impl Sender {
    /// Counts a request of this sender as refused.
    pub(super) fn refused(&self, plane: &DataPlane, reason: Reason, received: Instant) {
        plane.shed.count(reason, self.priority);
        if reason.means_overload() {
            rest::refused(received);
        }
        self.caller.count_refused(received);
    }
}

/// Which places a request may use.
fn claim(plane: &DataPlane, sender: &Sender) -> Claim {
    match sender.priority {
        Priority::Batch => Claim::Batch,
        Priority::Interactive if sender.caller.in_flight() < plane.callers().share_of(plane.in_flight()) => {
            Claim::Modest
        }
        Priority::Interactive => Claim::Interactive,
    }
}

/// A place for a request whose body is complete, among all requests and among those of its caller. Dropping it frees both.
#[derive(Debug)]
pub(super) struct Admitted {
    _permit: Permit,
    _of_caller: Option<Place>,
}

/// Admits a request whose body is complete, or refuses it at once.
///
/// # Errors
/// `TOO_MANY_REQUESTS`, with the limit. It is counted.
pub(super) fn admit(
    plane: &Arc<DataPlane>,
    kind: RequestKind,
    sender: &Sender,
    received: Instant,
) -> Result<Admitted, Failure> {
    let refused = |reason| sender.refused(plane, reason, received);
    let permit = plane.admit(kind, claim(plane, sender)).inspect_err(|_| refused(Reason::Places))?;
    let of_caller = match kind {
        RequestKind::Predict => Some(sender.caller.enter().inspect_err(|_| refused(Reason::CallerPlaces))?),
        RequestKind::Feedback => None,
    };
    Ok(Admitted { _permit: permit, _of_caller: of_caller })
}

/// Lets a request in whose body has not been read, or refuses it. `heart`: of the thread that answers it. `target`: the model that is asked, for
/// a prediction, where the path names it.
///
/// # Errors
/// `TOO_MANY_REQUESTS` and `OVERLOADED`, with the limit in words. They are counted.
pub(super) fn enter(
    plane: &DataPlane,
    heart: &Heart,
    sender: &Sender,
    received: Instant,
    kind: RequestKind,
    target: Option<&Target<'_>>,
    deadline: Instant,
) -> Result<(), Failure> {
    rest::arrived();
    let Sender { caller, priority } = sender;
    let refused = |reason| sender.refused(plane, reason, received);
    plane.has_room(kind, claim(plane, sender)).inspect_err(|_| refused(Reason::Places))?;
    // Feedback has places of its own, and takes none from predictions.
    if kind == RequestKind::Predict {
        caller.has_room().inspect_err(|_| refused(Reason::CallerPlaces))?;
    }
    // The caller counts this one itself.
    caller.send(received).inspect_err(|_| plane.shed.count(Reason::CallerRate, *priority))?;
    let late = heart.late();
    let most = match priority {
        Priority::Interactive => deadline.saturating_duration_since(received) / 2,
        Priority::Batch => BUSY,
    };
    if late > most {
        let (late, most) = (late.as_millis(), most.as_millis());
        let message = format!(
            "the thread of this connection is busy: requests wait {late} ms for it, and this one may wait {most} ms; try again shortly"
        );
        refused(Reason::Thread);
        return Err(Failure::new(Code::Overloaded, message));
    }
    if let Some(target) = target
        && let Err(failure) = plane.gateway.would_fit(&target.model, target.version.selector(), deadline, *priority)
        // A caller with less than its share may find a place before the others.
        && caller.in_flight() >= plane.callers().share_of(plane.in_flight())
    {
        refused(Reason::Queue);
        return Err(failure);
    }
    Ok(())
}
