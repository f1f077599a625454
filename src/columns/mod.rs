//! columns: names the scalar columns of a model's rows, and the values in them.
//!
//! - [`resolve`](fn@resolve) finds the column that a name means, or says in words why it cannot. [`all`] lists the columns of a signature.
//! - A column is one element of one tensor: `inputs.NAME` where a row has one element, else `inputs.NAME[i]`. `NAME`, `NAME[i]` and the names
//!   of elements ([`ElementNames`], from `model.toml`) are short forms, where only one column fits.
//! - [`Cell`] is the value of a column in one row.
//!
//! Uses: model, tensor.
//!
//! Invariant: pure; nothing here reads a file or knows where a row is stored.
//!
//! To add a form of a name: a candidate in `resolve.rs`, and its line in docs/MONITORING.md.

mod cell;
mod column;
mod resolve;
#[cfg(test)]
mod tests;

pub use cell::{Cell, number};
pub use column::{Column, ElementNames, Kind, Side, all};
pub use resolve::{NameError, resolve};
