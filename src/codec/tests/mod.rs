//! Tests of the room as a whole.

mod golden;
mod inflate;
mod metadata;
mod properties;
