//! quality: what feedback says of each version, joined live over a bounded recent window.
//!
//! - [`Quality::predicted`] and [`Quality::told`] take rows and feedback in whatever order they come; the latest `ts` about a row
//!   counts. Memory is bounded: rows older than the window go, and where too many come in that time, a share of the requests is kept.
//! - [`Quality::of`] is what is known of a model, by version and arm. The figures are sums since the start, over what was kept.
//! - [`Predicted`] holds a label against a row's outputs; live figures and offline ones ask here.
//!
//! Uses: model, tensor.
//!
//! Invariant: nothing here knows files, HTTP or time.
//!
//! To add a figure: a field of [`Figures`], counted in `figures.rs`, shown by the admin plane and in `telemetry`.

mod figures;
mod fit;
#[cfg(test)]
mod tests;
mod window;

pub use figures::{Figures, Moments};
pub use fit::{Fit, Predicted};
pub use window::{Config, ModelQuality, Quality, Seen};
