//! route: decides which version answers a request, and which shadow it; pure.
//!
//! - A [`Document`] is one valid traffic document: it is checked where it is parsed, with every complaint at once.
//! - A [`Router`] is a document made ready to decide; the same document, model and key give the same arm in every process.
//! - Moving a weight moves only the keys that have to move (weighted rendezvous hashing).
//! - A [`SampleRatio`] says whether what the arms got is what their weights say.
//!
//! Uses: model.
//!
//! Invariant: no time, no I/O, no idea what is loaded.
//!
//! To add a way of choosing: a member of [`Document`], its parsing in `document.rs`, its turn in [`Router::route`].

mod document;
mod router;
mod sample_ratio;
#[cfg(test)]
mod tests;

pub use document::{Arm, Document, Key, Proposal, Rule, Shadow};
pub use router::{Ask, Route, Router, Selector};
pub use sample_ratio::{Ratio, SampleRatio};
