//! http: the data plane: sockets, endpoints, status codes.
//!
//! - One acceptor gives each connection to the I/O thread that has the fewest. Each I/O thread has a single-threaded runtime. A
//!   request stays on the thread that read it, unless its inference is long.
//! - HTTP/1.1 (keep-alive, pipelining) and cleartext HTTP/2 with prior knowledge on one port, by hyper. With TLS the two are told
//!   apart by ALPN. Handshakes are limited in number, in time, and in what they cost other connections of their thread.
//! - [`Endpoint`](endpoint::Endpoint) is a closed enum: any other path is 404, a wrong method is 405.
//! - gRPC calls are endpoints of their own on HTTP/2 (`grpc/`). Predictions among them take the way of all predictions.
//! - Connections, bodies, headers, slow senders, slow readers and requests in flight are limited. The error says which limit was
//!   reached. A request takes its place among those in flight when its body is complete.
//! - The door (`door.rs`) refuses under load before a body is read: by places, by caller, by the lateness of the thread, by the queue.
//!   A thread that refuses much rests for moments (`rest.rs`), so that refusals cost little.
//! - A stop is announced first: each answer says that its connection closes. Connections without a request close later, and an answer
//!   is written to its end.
//! - A panic in a request is counted, logged and answered with 500.
//! - [`problem`] is the only place that maps codes to HTTP, for both planes. It also bounds the size of error answers.
//! - Where credentials are required, each endpoint states the permission that it needs ([`Endpoint::permission`](endpoint::Endpoint::permission)).
//!
//! Uses: access, budget, callers, codec, columns (names of elements), explain, serve, registry (reader), route, model, telemetry, tensor, tls, traces, machine (sockets).
//!
//! Invariant: no engines here, and no version is loaded or moved from here.
//!
//! To add an endpoint: a variant of [`Endpoint`](endpoint::Endpoint), its path in `Endpoint::parse`, its arm in `handle.rs` or
//! `info.rs` (`docs/how-to-add/wire-format.md`).

mod accept;
mod activity;
mod admission;
mod answer;
mod answer_body;
mod body;
mod config;
mod connection;
mod connections;
mod data_plane;
mod door;
mod endpoint;
mod explain;
mod feedback;
mod formats;
mod frames;
mod grpc;
mod handle;
mod handshake;
mod info;
mod invocations;
mod io_health;
mod io_thread;
mod joined;
mod negotiation;
mod opening;
mod peers;
mod predict;
pub mod problem;
mod rest;
mod server;
mod socket;
#[cfg(test)]
mod tests;
mod traced;
mod triton;
mod wire;
mod workers;
mod written;

pub(crate) use accept::Acceptor;
pub(crate) use body::discard;
pub use config::Config;
pub(crate) use connection::{Limits as ConnectionLimits, serve as serve_connection};
pub(crate) use connections::Connections;
pub use data_plane::DataPlane;
pub use door::Doors;
pub(crate) use explain::as_json as explanation_json;
pub(crate) use handshake::Secure;
pub use server::Server;
