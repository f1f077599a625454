//! rollout: moves a model's traffic to a new version step by step, and moves it back when the new version is worse.
//!
//! - One actor ([`Rollouts`] is its handle) owns every rollout. It has a thread of its own, takes one command at a time and checks
//!   each active rollout ten times a second. A command that was sent is carried out even if its caller disconnects.
//! - Decisions are pure functions of request counts (`decide.rs`). The statistics may be checked at any time without raising more
//!   false alarms (`sequence.rs`).
//! - A rollout's state is stored in one transaction with the traffic document of its step: a restart finds both or neither.
//! - If anybody else changes the traffic document, the rollout stops and leaves that change in place.
//! - In a fleet one gateway drives each rollout and judges the sums of all ([`Fellows`], docs/FLEET.md).
//!
//! Uses: lifecycle (handle), registry (reader), ledger, outcomes (business metrics), quality (rows with outcomes), route, shadow (figures), settings (durations), model, telemetry.
//!
//! Invariant: nothing here publishes a snapshot or routes a request.
//!
//! To add a guardrail: a key in `plan.rs`, a kind in `guardrail.rs`, its counts in `evidence.rs`, its row in `docs/TRAFFIC.md`.

mod active;
mod actor;
mod business;
mod comparison;
mod decide;
mod evidence;
mod guardrail;
mod handle;
mod in_fleet;
mod plan;
mod pool;
mod report;
mod sequence;
mod services;
mod shared;
mod state;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_keys;
#[cfg(test)]
mod tests_limits;

pub(crate) use business::Found as MetricEvidence;
pub(crate) use comparison::Verdict;
pub(crate) use evidence::{Evidence, p99_us};
pub(crate) use guardrail::{Guardrail, NearGuardrail};
pub(crate) use handle::{Rollouts, View};
#[cfg(test)]
pub(crate) use plan::MOST_STEPS;
pub(crate) use plan::{Plan, Require};
pub(crate) use sequence::Counts;
pub(crate) use shared::{Counted, Driving, Fellows, Heard, Mark, Orders, Stored, Told, ToldRollout};
pub(crate) use state::Step;
