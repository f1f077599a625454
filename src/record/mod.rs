//! record: remembers predictions and feedback without slowing them; segments, Parquet, gaps (`docs/RECORDS.md`).
//!
//! - [`Log::offer`] queues a prediction: it is encoded into a buffer of the calling thread. With `acknowledge = "disk"` it returns a
//!   [`Ticket`], and [`Log::durable`] waits for it until a deadline.
//! - [`Log::record_feedback`] stores feedback and returns when it is on the disk, or at the deadline.
//! - One thread writes and syncs segments. Another, at low priority, seals them into Parquet files and deletes old files. Records that
//!   cannot be kept are dropped, counted and listed in `gaps/`.
//! - [`Log::next_waiting`] and [`Log::uploaded`] are for the room that uploads sealed files. Files that are not uploaded are deleted last.
//! - [`unsealed`] reads the segments that are not sealed yet, without a server. [`OpenSegment`] looks through one of them.
//!
//! Uses: bucket (objects that hold a person), columns (names of values), drift, machine (durable files, priority), quality, model, tensor, telemetry.
//!
//! Invariant: a thread that answers callers never waits here for a disk or another thread, unless the configuration asks for it.
//!
//! To add a column: docs/RECORDS.md first, then `prediction.rs`, `view.rs` and `columns.rs`.

mod about;
mod cell;
mod columns;
mod config;
mod deleted;
mod disk;
mod feedback;
mod forget;
mod forget_bucket;
mod frame;
mod gaps;
pub(crate) mod hash;
mod kept;
mod learn;
mod leaving;
mod log;
mod mask;
mod pace;
mod parquet_file;
mod plain;
mod prediction;
mod private;
mod queue;
mod read;
mod recall;
mod sampling;
mod seal;
mod segment;
mod space;
mod stream;
#[cfg(test)]
mod tests;
mod uploaded;
mod view;
mod writer;

pub use about::About;
pub use config::{Acknowledge, Config, OnFailure, Uploads};
pub use deleted::Deleted;
pub use forget::{Forgotten, Removed, Subject, forget};
pub use gaps::DropReason;
pub use log::{DiskBytes, Log, Status, Stop};
pub use mask::Mask;
pub use prediction::Prediction;
pub use queue::Ticket;
pub use stream::{Choice, Stream};

pub(crate) use about::Side;
pub(crate) use columns::{Layout, SHAPES, timestamp};
pub(crate) use feedback::{schema as feedback_schema, stored_update};
pub(crate) use hash as hash_key;
pub(crate) use leaving::{SealedFile, Waiting};
pub(crate) use parquet_file::properties as parquet_properties;
pub(crate) use read::{OpenSegment, Unsealed, hashed_key, open_segments, unsealed};
pub(crate) use recall::{Recall, What, recall_segments};
pub(crate) use view::PredictionView;
#[cfg(test)]
pub(crate) use {columns::Builder, view::TensorView};

use crate::model::{Code, Failure};

/// Microseconds since 1970, UTC.
#[must_use]
pub fn now() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// The log cannot be written at the moment. `detail` is for this server's own log.
fn unavailable(detail: &str) -> Failure {
    let words = "the prediction log cannot be written now; try again shortly";
    Failure::new(Code::LogUnavailable, words).with_internal(detail)
}

/// The disk was too slow. The record may still be written, so nothing is said about whether it was.
fn not_in_time() -> Failure {
    let words = "the deadline passed before the record was on the disk; it may still be written";
    Failure::new(Code::LogUnavailable, words)
}
