//! drift: counts the values of live rows in the bins of a reference, and says when they are different and when it matters
//! (docs/MONITORING.md).
//!
//! - [`Drift::watch`] says what is counted of a version: its profile, or its own first day where it has none.
//! - [`Drift::observe`] counts a record, in time that is bounded: beyond a budget only a share of the requests is counted, and the share is said.
//! - [`Drift::work`] judges the windows that have ended: hours, days, weeks and four weeks. It is called by a thread of low priority.
//! - [`Drift::report`] gives the answers of a model, [`Drift::troubles`] what is wrong, of all models.
//! - In a fleet, hours are added up over its gateways and judged when they are closed for all ([`together`]).
//! - [`Drift::save`] and [`Drift::load`] keep the counts over a restart.
//!
//! Uses: columns, model, profile.
//!
//! Invariant: no files, no threads and no clock: the current time is an argument. The number of false alarms that is promised holds however
//! columns and windows depend on each other.
//!
//! To add a test of a column: a term of the average in `evidence.rs`; to add a window: a variant of [`Window`].

mod analysis;
mod evidence;
mod hot;
mod plan;
mod report;
mod settings;
mod state;
mod stored;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod tests_simulation;
#[cfg(test)]
mod tests_together;
pub mod together;
mod window;

pub use hot::Seen;
pub use plan::{MAX_COLUMNS, Reference};
pub use report::{ArmReport, Bin, Bins, ColumnReport, Look, Report, Trouble, VersionReport, What};
pub use settings::Settings;
pub use state::{Config, Drift, Watch};
pub use window::Window;
