//! http: the public door: sockets, endpoints, status codes.
//!
//! - One acceptor gives each connection to the I/O thread that has the fewest; each I/O thread runs a runtime of its own, and
//!   a request stays on the thread that read it unless its inference is long.
//! - HTTP/1.1 (keep-alive, pipelining) and cleartext HTTP/2 by prior knowledge on one port, by hyper.
//! - [`Endpoint`] is a closed enum: a path is one of the promised ones or 404, a method fits or is 405.
//! - Connections, bodies, headers, slow senders and requests in flight are capped; over a cap the caller reads which.
//! - [`problem`] is the one place that maps codes to HTTP, for both planes.
//!
//! Uses: codec, serve, registry (reader), route, model, telemetry.
//!
//! Invariant: no engines, and no version is ever loaded or moved from here.
//!
//! To add an endpoint: a variant of [`Endpoint`], its path in `Endpoint::parse`, its arm in `handle.rs` or `info.rs`
//! (`docs/how-to-add/wire-format.md`).

mod answer;
mod body;
mod config;
mod connection;
mod door;
mod endpoint;
mod feedback;
mod handle;
mod info;
mod predict;
pub mod problem;
mod server;
#[cfg(test)]
mod tests;

pub use config::Config;
pub use door::{DataPlane, Limits};
pub use endpoint::Endpoint;
pub use server::Server;
