//! route: decides which version answers a request; pure.
//!
//! - A [`Document`] is one valid traffic document. It is validated when it is parsed, with all complaints at once.
//! - A [`Router`] makes decisions from one document. The same document, model and key give the same arm in every process.
//! - Changing a weight moves only the keys that have to move (weighted rendezvous hashing).
//! - [`Moves`] tells how many keys a change of the document moves.
//! - A [`SampleRatio`] tells whether the arms got the shares of keys or requests that their weights ask for.
//!
//! Uses: model.
//!
//! Invariant: no time, no I/O, no knowledge of what is loaded, no panic on a request.
//!
//! To add a way of choosing a version: a member of [`Document`], its parsing in `document.rs`, its place in [`Router::route`].

mod document;
mod moves;
mod router;
mod sample_ratio;
mod split;
#[cfg(test)]
mod tests;

pub use document::{Arm, Document, Fallback, Key, Proposal, RESERVED_ARMS, Rule, Shadow};
pub use moves::Moves;
pub use router::{Route, RouteRequest, Router, Score, Selector};
pub use sample_ratio::{SampleRatio, Verdict};
pub use split::began;
