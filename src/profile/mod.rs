//! profile: what the values of a version's columns looked like in a sample of rows (`profile.json`, docs/MONITORING.md).
//!
//! - [`Profile::parse`] reads the file and checks it; [`Profile::to_json`] writes it.
//! - [`Builder`] makes the profile of one column from its values, in bounded memory.
//! - [`Profile::bind`] finds the columns of a signature that a profile describes, and says which of its names mean none.
//! - [`Sample::request`] makes a request of the whole rows that a profile has.
//!
//! Uses: columns, model, tensor.
//!
//! Invariant: no file and no clock. A profile that was parsed is consistent: its counts add up, its edges increase, its texts are bounded.
//!
//! To add a figure of a column: a field of [`ColumnProfile`], written by [`Builder::finish`], with its line in docs/MONITORING.md.

mod builder;
mod format;
mod sample;
#[cfg(test)]
mod tests;

pub use builder::Builder;
pub use format::{Bins, Bound, ColumnProfile, Profile};
pub use sample::{Sample, SampleValue};
