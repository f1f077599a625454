//! record: remembers predictions and feedback without slowing them; segments, Parquet, gaps.
//!
//! Uses: model, tensor.
//!
//! Invariant: nobody who answers callers waits for a lock, a disk or another thread here, unless the configuration asks for it.
//!
//! To add a column: INTERFACES and docs/RECORDS.md first, then `frame.rs` and `columns.rs`.

mod about;
mod columns;
mod feedback;
mod frame;
mod gaps;
mod hash;
mod read;
mod segment;
mod stream;

pub use about::{About, Column, Side};
pub use columns::{Builder, Layout, SHAPES, timestamp};
pub use frame::{Prediction, PredictionView, TensorView};
pub use feedback::schema as feedback_schema;
pub use gaps::{Gap, Why};
pub use hash::HashKey;
pub use read::{Unsealed, unsealed};
pub use stream::{Choice, Stream, is_sampled};
