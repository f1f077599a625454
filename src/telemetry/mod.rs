//! telemetry: the names of everything counted, logged and traced.
//!
//! - `names.rs` has the name, help text and buckets of every metric; a test compares `docs/METRICS.md` with it.
//! - Requests use handles ([`ArmMetrics`], [`VersionMetrics`]); nothing is looked up or formatted per request.
//! - A [`Scope`] holds the series of one version and removes them with it. Label values come from bounded sets (models, versions, arms,
//!   status codes), never from a client's text.
//! - Log lines are escaped, and lines per request are limited, in one place for all call-sites (`escape.rs`, `limit.rs`).
//!
//! Uses: model.
//!
//! Invariant: nothing here depends on the code that counts.
//!
//! To add a metric: a line in `names.rs`, a row in `docs/METRICS.md` (`docs/how-to-add/metric.md`).

mod arm;
mod counts;
mod escape;
mod exemplars;
mod keys;
mod limit;
mod log;
mod logging;
pub(crate) mod names;
mod openmetrics;
mod pooled_keys;
mod quality;
mod scope;
mod shadow;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_deploy;
mod totals;
mod triton_names;
mod watched;

pub use arm::{ArmMetrics, InFlight, VersionMetrics};
pub use counts::{ArmEvidence, ArmTotals, Ended};
pub use logging::LogFormat;
pub use scope::{Scope, Telemetry};
pub use shadow::{Dropped, ShadowMetrics};
pub use totals::{Total, VersionTotals};

#[cfg(test)]
pub(crate) use counts::ArmCounts;
pub(crate) use counts::{LATENCY_BUCKETS, Unit, latency_bucket, latency_of_bucket};
pub(crate) use keys::{Fault, Faults, KEYLESS, KeyEvidence, KeyNote, KeyNotes, PERIOD_TICKS};
pub(crate) use log::LogMetrics;
pub(crate) use logging::{init as init_logging, set_filter as set_log_filter};
pub(crate) use openmetrics::MEDIA_TYPE as OPENMETRICS;
pub(crate) use pooled_keys::{PooledKeys, Side};
pub(crate) use quality::QualityFigures;
pub(crate) use watched::{ROW_CLASSES, Watch, WatchedEvidence, rows_of_class};
