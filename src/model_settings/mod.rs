//! model_settings: the settings of a model in its `model.toml`.
//!
//! - [`ModelSettings::parse`] reads the text of the file and reports every complaint at once.
//! - [`Gates`] are the conditions that a version must meet before a promote. Judging them is pure.
//! - `[metrics.NAME]` become [`crate::outcomes::Metrics`].
//! - [`Recording`] combines the `[prediction_log]` section with the server's configuration.
//!
//! Uses: backend (engine choice and options), columns (names of elements), drift, execute (batching and placement), model, outcomes (metrics), record (what is recorded), registry (limits), settings, shadow (agreement).
//!
//! Invariant: nothing here reads a file or changes what is loaded.
//!
//! To add a setting: a field of [`ModelSettings`], its line in `parse`, its row in `docs/MODELS.md`.

mod engine;
mod features;
mod gates;
mod metrics;
mod model_toml;
mod monitoring;
mod recording;

pub use gates::{Evidence, Gates, Judged, Verdict};
pub use model_toml::{BatchingSettings, ExecutionSettings, Keep, ModelSettings};
pub use recording::Recording;
