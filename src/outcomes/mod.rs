//! outcomes: what a business metric is, and the figures of versions and arms from answered rows with their outcomes; pure.
//!
//! - [`Metrics`] are the `[metrics.NAME]` of a `model.toml`.
//! - [`windows`](windows::windows) gives the figures of each version and arm over windows of time, by segment, each with a 95 % interval.
//! - [`EstimatedAccuracy`](windows::EstimatedAccuracy) is the accuracy that calibrated scores let expect of rows without labels.
//! - [`experiment`](experiment::experiment) compares the arms of a split, with intervals that hold however often one looks ([`Sequence`]).
//! - [`decay`](decay::decay) lists the metrics in which a version is worse than in training, or than the version before.
//! - [`measure`](sides::measure) measures one metric on several sides: what a rollout decides by.
//!
//! Uses: model, quality (the rows), route (the sample ratio).
//!
//! Invariant: no files, no HTTP and no clock: the current time is an argument.
//!
//! To add a kind of metric: a variant of [`Kind`], what it measures in `measure.rs`, its row in docs/MODELS.md.

mod auc;
pub mod decay;
mod definition;
mod estimate;
mod expected;
pub mod experiment;
mod measure;
mod segment;
mod sequence;
pub mod sides;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_expected;
mod units;
pub mod windows;

pub use definition::{Better, Kind, Metric, Metrics, UnitOf};
pub use sequence::Sequence;
