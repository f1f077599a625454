//! settings: reads a table of settings key by key and reports all errors at once.
//!
//! - A room's `Config::read(&mut Table)` reads each key by name, type and range. An absent or wrong key is `None`, so the default
//!   is written beside the key: `table.duration("settle", range).unwrap_or(default.settle)`.
//! - [`Table::finish`] returns every complaint at once: syntax errors, wrong values, and keys that no code read, with the most
//!   similar known key. A complaint gives the key, its location, the expected value and the value found.
//! - The environment overrides the file, and the command line overrides both.
//! - A complaint never shows what an address has before its `@` ([`without_credentials`], also for other messages).
//! - Used for every file that people write: the server's configuration, `model.toml`, `version.toml`.
//!
//! Uses: nothing.
//!
//! Invariant: this room holds no key names and no defaults, and no input makes it panic.
//!
//! To add a kind of setting: a method in `read.rs` that calls [`Table::custom`], as the others do.

mod complaint;
mod read;
mod table;
#[cfg(test)]
mod tests;
mod units;
mod value;

pub use complaint::{Complaint, Complaints};
pub use table::{ENVIRONMENT_PREFIX, Table};
pub use units::{parse_duration, show_duration};
pub use value::Value;
pub(crate) use value::without_credentials;
