//! dataset: reads what the prediction log wrote, without a server: export, replay, reproduce.
//!
//! - [`export`] joins predictions with their latest feedback and writes one file: Parquet, CSV, `golden.json` or `warmup.json`.
//!   [`replay`] runs logged inputs through a candidate and reports what a shadow would; [`reproduce`] runs one prediction again.
//! - Sealed files and the segments of a running server are read alike; a record that is in both is read once.
//! - Memory is bounded, whatever there is to read: a stretch of predictions at a time, in the order they were made, and of the
//!   feedback only what belongs to the stretch (`walk.rs`).
//! - A file that is asked for is there whole or not at all.
//!
//! Uses: record (what it wrote), quality (whether a label fits), compare, codec (golden files), model, tensor, prepare.
//!
//! Invariant: nothing here writes to the data directory, or needs a server.
//!
//! To add a format: a variant of [`Format`], and a writer beside `table.rs` and `csv.rs`.

mod bits;
mod cases;
mod columns;
mod csv;
mod error;
mod export;
mod gate;
mod labels;
mod pick;
mod replay;
mod reproduce;
mod requests;
mod source;
mod table;
#[cfg(test)]
mod tests;
mod unfinished;
mod union;
mod walk;

pub use error::Error;
pub use export::{Export, Exported, Format, export};
pub use gate::{Gate, Verdict};
pub use pick::{Pick, parse_time};
pub use replay::{LabelFigures, Replay, Replayed, replay};
pub use reproduce::{Outcome, Reproduced, reproduce};
pub use requests::Unfit;
pub use walk::{Budget, Progress};
