//! Decides which of the waiting requests run together.

use super::runner::Runner;
use crate::model::Checked;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Whether requests of a version may run together, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batching {
    /// Verification has shown that rows do not interact, or `model.toml` says so. A batch has at most `max_rows` rows.
    On {
        why: String,
        max_rows: usize,
    },
    Off {
        why: String,
    },
}

impl Batching {
    /// The largest `max_rows`. Batches stop being worth growing far below this.
    pub const MAX_ROWS: usize = 4096;

    #[must_use]
    pub fn is_on(&self) -> bool {
        matches!(self, Batching::On { .. })
    }

    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Batching::On { why, .. } | Batching::Off { why } => why,
        }
    }
}

impl std::fmt::Display for Batching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", if self.is_on() { "on" } else { "off" }, self.why())
    }
}

/// A waiting request that can be part of a batch.
pub(super) trait BatchItem {
    fn request(&self) -> &Arc<Checked>;
    fn deadline(&self) -> Instant;
    /// Whether its caller went away.
    fn is_cancelled(&self) -> bool;
}

/// The requests taken from a lane in one turn.
#[derive(Debug)]
pub(super) struct Selected<J> {
    /// The requests to run together, in the order they came. Their rows stack. Empty where all requests were late or cancelled.
    pub(super) batch: Vec<J>,
    /// Requests whose deadline has passed, or would pass before they are done.
    pub(super) expired: Vec<J>,
    /// Requests whose caller went away.
    pub(super) cancelled: Vec<J>,
}

impl<J> Default for Selected<J> {
    fn default() -> Selected<J> {
        Selected { batch: Vec::new(), expired: Vec::new(), cancelled: Vec::new() }
    }
}

/// How many requests behind the first one are looked at.
const WINDOW: usize = 256;

/// Takes the requests that run together out of a lane: the first one that is still wanted, and those behind it that stack with it, in
/// the order they came. The batch grows while it is worth it ([`super::CostCurve::batch_elements`]) and its expected time is at most
/// half of the shortest time left. The first request of a lane is always taken, so none is passed over for ever. A request that
/// could not be done in time counts as expired if others wait, because running it would only delay them. With `most`, requests are added
/// only while the whole run is expected to take no longer.
pub(super) fn select<J: BatchItem>(
    runner: &Runner,
    jobs: &mut VecDeque<J>,
    now: Instant,
    most: Option<Duration>,
) -> Selected<J> {
    let mut selected = Selected::default();
    let cost = |job: &J| runner.cost().estimate(job.request().elements()).unwrap_or_default();
    let first = loop {
        let others_wait = jobs.len() > 1;
        let Some(job) = jobs.pop_front() else { return selected };
        if now >= job.deadline() || others_wait && now + cost(&job) > job.deadline() {
            selected.expired.push(job);
        } else if job.is_cancelled() {
            selected.cancelled.push(job);
        } else {
            break job;
        }
    };
    let leader = Arc::clone(first.request());
    let (mut rows, mut elements, mut deadline) = (leader.rows().unwrap_or(1), leader.elements(), first.deadline());
    selected.batch.push(first);
    if jobs.is_empty() {
        return selected;
    }
    let Batching::On { max_rows, .. } = *runner.batching() else { return selected };
    let worthwhile = runner.cost().batch_elements(elements / rows.max(1));
    let mut at = 0;
    while at < WINDOW && rows < max_rows {
        let Some(job) = jobs.get(at) else { break };
        let (added, larger) = (job.request().rows().unwrap_or(1), elements.saturating_add(job.request().elements()));
        let earliest = deadline.min(job.deadline());
        let left = earliest.saturating_duration_since(now);
        if larger > worthwhile && leader.stacks_with(job.request()) {
            break;
        }
        // The first comparison keeps the sum from overflowing: an empty tensor may claim any number of rows.
        let fits = added <= max_rows
            && rows + added <= max_rows
            && !job.is_cancelled()
            && runner
                .cost()
                .estimate(larger)
                .is_none_or(|cost| cost <= most.map_or(left / 2, |most| most.min(left / 2)))
            && leader.stacks_with(job.request());
        if fits {
            (rows, elements, deadline) = (rows + added, larger, earliest);
            selected.batch.extend(jobs.remove(at));
        } else {
            at += 1;
        }
    }
    selected
}
