//! dataset: reads the prediction log without a server: export, replay, reproduce, profile, explain, search.
//!
//! - [`export`](fn@export) joins predictions with their latest feedback and writes one file: Parquet, CSV, `golden.json` or `warmup.json`.
//! - [`replay`](fn@replay) runs logged inputs through a candidate and reports what a shadow would report.
//! - [`reproduce`](fn@reproduce) runs one logged prediction again with the same model file.
//! - [`profile`](fn@profile) writes what the columns of a table, or of the log, look like.
//! - [`explain`](fn@explain) says which columns of a logged row its answer came from.
//! - [`recall`](fn@recall) reads what the history of outcomes keeps, after a start.
//! - [`search`](fn@search) lists requests of the log, the newest first, and [`look`](fn@look) shows one of them.
//! - It reads sealed files and the segments of a running server. A record that is in both is read once. `export`, `replay` and `profile` also read what
//!   gateways uploaded to a bucket ([`Records`]), by ranges.
//! - Memory is bounded: predictions are read in chunks, in order, each with its own feedback only (`scan.rs`).
//! - An output file appears complete or not at all.
//!
//! Uses: bucket (objects), columns, explain, machine (files), profile, record (the format of the log), quality (compares labels), compare, codec (golden files), model, tensor, prepare.
//!
//! Invariant: nothing here writes to the data directory or needs a server.
//!
//! To add a format: a variant of [`Format`], and a writer beside `parquet_writer.rs` and `csv_writer.rs`.

mod assemble;
mod atomic_file;
mod bits;
mod columns;
mod csv_writer;
mod disagreements;
mod error;
mod explain;
mod export;
mod feedback;
mod filter;
mod gate;
mod hits;
mod logged;
mod look;
mod merged_schema;
mod options;
mod paired;
mod parquet_writer;
mod profile;
mod profile_csv;
mod profile_rows;
mod profile_sample;
mod recall;
mod records;
mod replay;
mod reproduce;
mod request_files;
mod scan;
mod search;
mod shown;
mod sources;
mod table;
#[cfg(test)]
mod tests;
mod units;

pub use atomic_file::{AtomicFile, STDOUT};
pub use error::Error;
pub use explain::{Explain, Explained, explain};
pub use export::export;
pub use filter::{Filter, Status, parse_time};
pub use gate::{Gate, Paired, Verdict};
pub use hits::Hit;
pub use look::{Look, Looked, LookedPrediction, RowFeedback, look};
pub use options::{Export, Exported, Format};
pub use profile::{ProfileSource, Profiled, ProfiledVersion, profile};
pub use recall::recall;
pub use records::Records;
pub use replay::{LabelFigures, Replay, Replayed, replay};
pub use reproduce::{MAX_SAMPLE, Outcome, ReproduceSample, Reproduced, ReproducedSample, reproduce, reproduce_sample};
pub use scan::Budget;
pub use search::{Cursor, Ended, Found, Search, search};
pub use shown::ShownTensor;
pub use sources::NotRead;
