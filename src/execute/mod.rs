//! execute: decides where and when a run happens: at once on this thread, or on a worker; the bounded queue.
//!
//! - A [`Runner`] is one loaded version that can run: its sessions, one for each thread that needs one, and its measured cost.
//! - [`Executor::execute`] runs a request at once where its measured cost is below the cost of a hand-off. Otherwise it hands the
//!   request to a worker. A free worker takes what waits, so a lone request is not delayed and batches form under load. Only versions
//!   whose rows were shown not to interact run in batches ([`Batching`]).
//! - Requests of such a version that may run at once and are ready in the same turn of their thread's event loop run together
//!   ([`Executor::end_turns`]).
//! - A request of zero such rows is answered without the engine.
//! - A request of many such rows is split across the workers that are idle.
//! - Each version waits in lanes of its own, one for each priority. Turns go by the time used, so one version cannot starve another; the
//!   time of batch priority counts more. Within a lane, callers take turns by the time that their requests take ([`Requester`]).
//! - A lane is bounded. When it is full or the wait is too long, the request is refused with `OVERLOADED` and nothing else is lost:
//!   by [`Executor::would_fit`] before its body is read, by [`Executor::admit`] before it is checked, and by [`Executor::execute`]
//!   where the lane filled up since.
//! - Work past its deadline is dropped before it runs (`DEADLINE_EXCEEDED`). Work whose caller went away is skipped.
//! - A run in progress is interrupted at its deadline, when its callers left, and where it takes far too long on the thread that read the
//!   request; then a worker repeats it. [`limit_runs`] sets a limit for runs without a caller. A run that ignores its interrupt costs its
//!   thread, which is replaced, and after a few of them the version is refused ([`Runner::stuck`]).
//! - A panic or an error inside an engine fails that run alone, and the session is dropped. A worker that panics elsewhere answers
//!   the requests of that run with `INTERNAL` and goes on.
//!
//! [`Requester`]: crate::model::Requester
//!
//! Uses: backend, machine (processor time, priority), marks, model, tensor.
//!
//! Invariant: no knowledge of routing or HTTP.
//!
//! To change how runs are placed: `executor.rs` and `at_once.rs` decide where a run happens, `turn.rs` is what an I/O thread runs together, `watchdog.rs` when it is ended, `batch.rs` what runs together, `split_run.rs` and
//! `cost.rs` what is split, `idle.rs` across which workers, `lanes.rs` which version's turn it is, `queue.rs` which caller's, and `pool.rs` is what a worker does.

mod at_once;
mod batch;
mod cost;
mod counters;
mod executor;
mod idle;
mod lanes;
mod pool;
mod queue;
mod runner;
mod split_run;
#[cfg(test)]
mod tests;
mod turn;
mod watchdog;

pub use batch::Batching;
pub use cost::{CostCurve, Measured};
pub use counters::{RunCounters, RunCounts};
pub use executor::{Config, Executor};
pub use runner::{Placement, RunOutput, Runner, answer_too_large};
pub use watchdog::{
    RunLimit, StuckThread, WatchCounts, can_replace_threads, end_all_runs, is_replaced, limit_runs, replace_when_lost,
    stuck_threads, watch_counts,
};
