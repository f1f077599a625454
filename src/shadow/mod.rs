//! shadow: copies of live requests, for versions that answer nobody, and what comes of comparing.
//!
//! - [`Figures`] is what is known of every pair of a primary and a shadow: running figures and the worst pairs.
//!
//! Uses: model.
//!
//! Invariant: nothing a caller waits for waits for anything here.
//!
//! To add a figure: a field in `figures.rs`, recorded where a pair is, shown by the admin plane.

mod figures;

pub use figures::{Agreement, Figures};
