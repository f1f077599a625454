//! quality: joins predictions with feedback live, keeps figures of each version over a bounded recent window, and a sample of rows with their outcomes over weeks.
//!
//! - [`Quality::record_prediction`] and [`Quality::record_feedback`] may be called in any order. Entries about a row are merged: of each field, the latest
//!   `ts` counts.
//! - Memory is bounded, in bytes. Rows and feedback older than the window are dropped, and if too many come in that time, only a share of the
//!   requests is kept. Figures of an arm without predictions for a day are dropped too.
//! - [`Quality::of`] returns the figures of a model, by version and arm. They are sums since the start over the kept rows.
//! - [`History`] keeps a sample of the rows with their outcomes for weeks, within a limit of bytes. Figures over windows, experiments and rollouts on
//!   business metrics are computed from it (room `metrics`).
//! - [`of_rows()`](of_rows()) gives the same figures of rows, and [`History::whole`] the rows of all gateways of a fleet ([`exchange`]).
//! - Business values are also summed by unit: the sticky key of a row, or its request ([`ByUnit`]).
//! - [`Predicted`] compares a label with the outputs of a row, for the live figures and for offline ones.
//!
//! Uses: columns (numbers from their bytes), model, tensor.
//!
//! Invariant: no files, no HTTP and no clock: the current time is an argument.
//!
//! To add a figure: a field of [`Figures`], counted in `figures.rs`, shown by the admin plane and in `telemetry`.

mod figures;
pub mod history;
mod label;
mod of_rows;
#[cfg(test)]
mod tests;
mod units;
mod window;

pub use figures::{Figures, Moments};
pub use history::exchange;
pub use history::{Contents, History, Layout, Row, Snapshot, Value, Whole};
pub(crate) use label::element;
pub use label::{LabelResult, Predicted};
pub use of_rows::of_rows;
pub use units::ByUnit;
pub use window::{Config, ModelQuality, Quality, Seen};
