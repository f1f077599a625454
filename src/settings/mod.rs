//! settings: reads a table of settings key by key and gathers every complaint.
//!
//! - A room's `Config::read(&mut Table)` asks for each key by name, type and range; a key that is absent or wrong is `None`, so
//!   the default stands beside the key: `table.duration("settle", range).unwrap_or(default.settle)`.
//! - [`Table::finish`] gives every complaint at once: what does not parse, what is wrong, and each key that nobody asked for,
//!   with the likely one beside it. Each names its key, where it stands, what would be right and what was found.
//! - A file, then the environment, then the command line: whatever sets a key last is the only one that is read.
//! - Serves every file people write: the server's configuration, `model.toml`, `version.toml`.
//!
//! Uses: nothing.
//!
//! Invariant: no key's name and no default stands here, and no text makes it panic.
//!
//! To add a kind of setting: a method in `read.rs`, written with [`Table::custom`] as the others are.

mod complaint;
mod read;
mod table;
#[cfg(test)]
mod tests;
mod units;
mod value;

pub use complaint::{Complaint, Complaints, Origin};
pub use table::{ENVIRONMENT_PREFIX, Table};
pub use units::{parse_duration, show_bytes, show_duration};
pub use value::Value;
