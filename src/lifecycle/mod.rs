//! lifecycle: the life of one version: source → load → verify → warm → ready → serving → draining → unloaded.
//!
//! - One manager, on a thread of its own, takes a closed enum of events and is the only writer of the registry and the ledger.
//! - A change is *prepare* (may fail, touches nothing) then *apply* (cannot fail): ledger first (durable), then publish, then
//!   announce.
//! - One enum of states and one function that moves it; policies are pure functions.
//! - Loads, verification and warming happen on background threads at low priority; memory is freed there too.
//! - A half-copied or broken version never disturbs what serves.
//!
//! Uses: registry (writer), execute, backend, codec, compare, route, ledger, settings, model, tensor, telemetry.
//!
//! Invariant: nothing here knows a live request.
//!
//! To add an operator's command: a method of [`Handle`], a variant of its command, its arm in the manager.

mod handle;

pub use handle::{Actor, Handle, LoadOutcome, Promotion, Published};

mod manager {
    //! Takes events, one at a time.

    /// What the manager takes.
    #[derive(Debug)]
    pub enum Event {
        /// An operator's wish.
        Command(super::handle::Command),
    }
}
