//! quality: what feedback says of each version, joined live over a bounded recent window.
//!
//! Uses: model, tensor.
//!
//! Invariant: nothing here knows files or HTTP.
//!
//! To add a figure: a field in `figures.rs`, shown by the admin plane.

mod fit;

pub use fit::{Fit, Predicted};
