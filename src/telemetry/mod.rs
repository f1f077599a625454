//! telemetry: the names of everything counted, logged and traced.
//!
//! - Every metric's name, help text and buckets stand in `names.rs`, once; `docs/METRICS.md` is held to it by a test.
//! - Hot paths hold handles ([`ArmMetrics`], [`VersionMetrics`]); nothing is looked up or formatted per request.
//! - A [`Scope`] holds the series of one version and takes them away when it goes. Labels are bounded sets: models, versions,
//!   arms, status codes; never text a client chose.
//!
//! Uses: model.
//!
//! Invariant: nothing here knows who is counting.
//!
//! To add a metric: a line in `names.rs`, a row in `docs/METRICS.md` (`docs/how-to-add/metric.md`).

mod arm;
mod counts;
mod escape;
mod limit;
mod log;
mod logging;
pub mod names;
mod quality;
mod scope;
mod shadow;
#[cfg(test)]
mod tests;

pub use arm::{ArmMetrics, InFlight, VersionMetrics};
pub use counts::{ArmEvidence, LATENCY_BUCKETS, latency_bucket, latency_of_bucket};
pub use log::LogMetrics;
pub use logging::{LogFormat, init as init_logging, set_filter as set_log_filter};
pub use quality::QualityFigures;
pub use scope::{Scope, Telemetry};
pub use shadow::{Dropped, ShadowMetrics};
