//! Which of the requests that wait run together.

use super::runner::Runner;
use crate::model::Checked;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Whether requests of a version may run together, and why (not).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batching {
    /// Verification has shown that rows do not interact, or the configuration says so; at most so many rows.
    On {
        why: String,
        max_rows: usize,
    },
    Off {
        why: String,
    },
}

impl Batching {
    /// A run never has more rows: what is worth it is far below.
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

/// What a batch is formed of.
pub trait Waiting {
    fn request(&self) -> &Arc<Checked>;
    fn deadline(&self) -> Instant;
    /// Whether its caller went away.
    fn is_left(&self) -> bool;
}

/// What was taken from a lane at once.
#[derive(Debug)]
pub struct Formed<J> {
    /// To run together, in the order they came; all of them stack. Empty where everything was late or left.
    pub batch: Vec<J>,
    /// Whose deadline has passed, or would before they were done.
    pub expired: Vec<J>,
    /// Whose caller went away.
    pub left: Vec<J>,
}

impl<J> Default for Formed<J> {
    fn default() -> Formed<J> {
        Formed { batch: Vec::new(), expired: Vec::new(), left: Vec::new() }
    }
}

/// How far behind the first others are looked for that stack with it.
const WINDOW: usize = 256;

/// Takes what runs together out of a lane: the first that is still wanted, and of those behind it what stacks with it, in the order they
/// came, as long as a run of all of them is worth it ([`super::CostCurve::room`]), and is expected to take no more than half of the
/// time the most hurried of them has. The first of a lane always goes, so nobody is passed for ever. One that would not be done in time is
/// put aside like one that is late already, as long as others wait: a run for nobody is a run taken from somebody.
pub fn form<J: Waiting>(runner: &Runner, jobs: &mut VecDeque<J>, now: Instant) -> Formed<J> {
    let mut formed = Formed::default();
    let cost = |job: &J| runner.cost().expect(job.request().elements()).unwrap_or_default();
    let first = loop {
        let late = |job: &J| now >= job.deadline() || jobs.len() > 1 && now + cost(job) > job.deadline();
        match jobs.front().map(|job| (late(job), job.is_left())) {
            None => return formed,
            Some((true, _)) => formed.expired.extend(jobs.pop_front()),
            Some((_, true)) => formed.left.extend(jobs.pop_front()),
            Some((false, false)) => break jobs.pop_front(),
        }
    };
    // The loop ends with one that is there.
    let Some(first) = first else { return formed };
    let leader = Arc::clone(first.request());
    let (mut rows, mut elements, mut deadline) = (leader.rows().unwrap_or(1), leader.elements(), first.deadline());
    formed.batch.push(first);
    let Batching::On { max_rows, .. } = *runner.batching() else { return formed };
    let room = runner.cost().room(elements / rows.max(1));
    let mut at = 0;
    while at < jobs.len().min(WINDOW) && rows < max_rows {
        let job = &jobs[at];
        let (more, larger) = (job.request().rows().unwrap_or(1), elements.saturating_add(job.request().elements()));
        let hurried = deadline.min(job.deadline());
        let has = hurried.saturating_duration_since(now);
        if larger > room && leader.stacks_with(job.request()) {
            break;
        }
        // Neither rows nor their sum are more than fits: an empty tensor may be said to have any number of them.
        let fits = more <= max_rows
            && rows + more <= max_rows
            && !job.is_left()
            && runner.cost().expect(larger).is_none_or(|cost| cost <= has / 2)
            && leader.stacks_with(job.request());
        if fits {
            (rows, elements, deadline) = (rows + more, larger, hurried);
            formed.batch.extend(jobs.remove(at));
        } else {
            at += 1;
        }
    }
    formed
}
