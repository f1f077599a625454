//! rollout: moves a model's traffic to a version step by step, and takes it back when the evidence says so.
//!
//! - [`Rollouts`] is how operators begin, hold, end and see them; its thread looks at each ten times a second.
//! - What to do next is decided by pure functions of counts (`decide.rs`), judged by confidence sequences that may be looked at at
//!   any time (`sequence.rs`); how traffic is divided among arms is the document's business.
//! - Where a rollout stands is kept in one transaction with the document that goes with it, so that a restart finds both or neither.
//! - A change of the traffic by anybody else ends a rollout where it is.
//!
//! Uses: lifecycle (handle), registry (reader), ledger, route, shadow (figures), settings (durations), model, telemetry.
//!
//! Invariant: nothing here publishes anything, or knows how a request is routed.
//!
//! To add a guardrail: a key in `plan.rs`, its counts in `evidence.rs`, its line in `decide.rs`, its row in `docs/TRAFFIC.md`.

mod decide;
mod driver;
mod evidence;
mod plan;
mod sequence;
mod state;
#[cfg(test)]
mod tests;

pub use driver::{Evidence, Rollouts, View};
pub use evidence::{Compared, ShadowEvidence, StepEvidence, p99_us};
pub use plan::{Guardrails, Plan};
pub use sequence::Counts;
pub use state::{Ended, Move, State, Step};
