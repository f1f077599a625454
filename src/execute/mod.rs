//! execute: decides where and when a run happens: at once on this thread, or on a worker; the bounded queue.
//!
//! - A [`Runner`] is one loaded version made runnable: its sessions, one per thread that needs one, and its measured cost.
//! - [`Executor::execute`] runs at once where the measured cost is small (no hand-off costs more than the work), else hands
//!   the request to a worker, which takes whatever waits when it becomes free: a lone request is never delayed, and batches form
//!   under load, of versions of which verification has shown that rows do not interact ([`Batching`]).
//! - A request of many such rows is cut, and run by as many workers as have nothing else to do.
//! - Each version waits in a lane of its own; turns go by time used, so one version cannot starve another.
//! - A lane is bounded; when it is full, or the wait too long, the request is refused with `OVERLOADED` and nothing else is lost:
//!   by [`Executor::admit`] before it is checked, and by [`Executor::execute`] where the lane filled up meanwhile.
//! - Expired work is dropped before it runs (`DEADLINE_EXCEEDED`); work whose caller went away is skipped.
//! - A panic or an error inside an engine fails that run alone; the session it happened in is thrown away.
//!
//! Uses: backend, machine (processor time), model.
//!
//! Invariant: nothing here knows routing or HTTP.
//!
//! To change how runs are placed: [`Executor::execute`] decides where, `batch.rs` decides what runs together, `spread.rs` what is run
//! by several, `idle.rs` by whom, `lanes.rs` whose turn it is.

mod batch;
mod cost;
mod executor;
mod idle;
mod lanes;
mod runner;
mod spread;
mod tally;
#[cfg(test)]
mod tests;

pub use batch::Batching;
pub use cost::{CostCurve, Measured};
pub use executor::{Config, Executor};
pub use runner::{Place, Ran, Runner};
pub use tally::{Counts, Tally};
