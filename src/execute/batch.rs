//! Which of the requests that wait run together.

use super::runner::Runner;
use crate::model::Checked;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Takes what runs together from the front of a lane: the first that is still wanted, and behind it those that stack with it, as long
/// as a run of all of them is worth it ([`super::cost::CostCurve::room`]), and is expected to take no more than half of the time the
/// most hurried of them has. The first that does not fit ends the batch, so that nobody is passed for ever. One that would not be done
/// in time is put aside like one that is late already, as long as others wait: a run for nobody is a run taken from somebody.
pub fn form<J: Waiting>(runner: &Runner, jobs: &mut VecDeque<J>, now: Instant) -> Formed<J> {
    let mut formed = Formed { batch: Vec::new(), expired: Vec::new(), left: Vec::new() };
    let cost = |job: &J| runner.cost().expect(job.request().elements()).unwrap_or_default();
    let Some(first) = next(jobs, now, &mut formed, cost, |_| true) else { return formed };
    let (mut rows, mut elements) = (first.request().rows().unwrap_or(1), first.request().elements());
    let Batching::On { max_rows, .. } = runner.batching() else {
        formed.batch.push(first);
        return formed;
    };
    let room = runner.cost().room(elements / rows.max(1));
    let mut deadline = first.deadline();
    let leader = Arc::clone(first.request());
    formed.batch.push(first);
    loop {
        let fits = |job: &J| {
            let (more, larger) = (job.request().rows().unwrap_or(1), elements + job.request().elements());
            let left = deadline.min(job.deadline()).saturating_duration_since(now);
            rows + more <= *max_rows
                && larger <= room
                && runner.cost().expect(larger).is_none_or(|cost| cost <= left / 2)
                && leader.stacks_with(job.request())
        };
        let Some(job) = next(jobs, now, &mut formed, cost, fits) else { return formed };
        rows += job.request().rows().unwrap_or(1);
        elements += job.request().elements();
        deadline = deadline.min(job.deadline());
        formed.batch.push(job);
    }
}

/// The next that is still wanted, where it fits; those before it that are not are put aside.
fn next<J: Waiting>(
    jobs: &mut VecDeque<J>,
    now: Instant,
    formed: &mut Formed<J>,
    cost: impl Fn(&J) -> Duration,
    fits: impl Fn(&J) -> bool,
) -> Option<J> {
    while let Some(job) = jobs.front() {
        let aside = if job.is_left() {
            &mut formed.left
        } else if now >= job.deadline() || jobs.len() > 1 && now + cost(job) > job.deadline() {
            &mut formed.expired
        } else {
            return if fits(job) { jobs.pop_front() } else { None };
        };
        aside.extend(jobs.pop_front());
    }
    None
}
