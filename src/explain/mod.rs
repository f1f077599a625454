//! explain: says which columns of a row an answer came from, by Shapley values.
//!
//! - [`shapley`](fn@shapley) estimates them by sampling permutations (`sampling.rs`); [`Explanation`] is the result. The formula and its limits are in
//!   docs/EXPLAIN.md.
//! - The values add up to the answer for the row minus the mean answer for the background rows, to rounding.
//! - [`Explainer`] does that for callers: on one thread that runs on idle cores only, so that it is never in the way of a request. At most four
//!   others wait; beyond them callers are refused with `OVERLOADED` and nothing else is lost. One caller has at most two at a time.
//! - [`background_of_profile`] gives the rows that a row is compared with where the caller gives none.
//! - Every run has a limit, and a caller that leaves ends its explanation after the run in progress.
//!
//! Uses: columns (their names), execute (limits of runs), machine (priority), marks, model, profile (its rows), registry (the loaded version), tensor.
//!
//! Invariant: no sockets and no files; nothing here is recorded or counted as a request.
//!
//! To add another method: a file beside `sampling.rs` that fills an [`Explanation`].

mod background;
mod explainer;
mod rows;
mod sampling;
#[cfg(test)]
mod tests;

pub use background::background_of_profile;
pub use explainer::{Explainer, Job};
pub use rows::MAX_BACKGROUND;
pub use sampling::{ColumnValue, Explanation, MAX_ROWS_RUN, Options, shapley};
