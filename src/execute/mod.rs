//! execute: decides where and when a run happens: at once on this thread, or on a worker; the bounded queue.
//!
//! - A [`Runner`] is one loaded version made runnable: its sessions, one per thread that needs one, and its measured cost.
//! - [`Executor::execute`] runs at once where the measured cost is small (no hand-off costs more than the work), else hands
//!   the request to a worker. A lone request is never delayed.
//! - The queue is bounded; when it is full the request is refused with `OVERLOADED` and nothing else is lost.
//! - Expired work is dropped before it runs (`DEADLINE_EXCEEDED`); work whose caller went away is skipped.
//! - A panic or an error inside an engine fails that run alone; the session it happened in is thrown away.
//!
//! Uses: backend, model.
//!
//! Invariant: nothing here knows routing or HTTP.
//!
//! To change how runs are placed: [`Executor::execute`] is the one place that decides.

mod cost;
mod executor;
mod runner;
#[cfg(test)]
mod tests;

pub use executor::{Config, Executor};
pub use runner::{Ran, Runner};
