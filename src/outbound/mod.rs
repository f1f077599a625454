//! outbound: HTTP requests that the server sends itself, to addresses of its configuration.
//!
//! - [`Client`] sends requests to one address. Every request has a deadline for all of it, and an answer has a limit in bytes.
//! - [`Site`] does the same for the paths below one address, and gives the bytes of an answer to its caller piece by piece where that is asked for.
//! - No redirection is followed: it could lead to an address that nobody configured. Proxies of the environment are not used.
//! - With `https://` the certificate must be signed by the authorities of a file, or by those that the system trusts. The file is read at the
//!   start, and again after a failure, so that a renewed authority needs no restart.
//! - An error never shows the address: it may hold a secret.
//!
//! Uses: nothing.
//!
//! Invariant: no address comes from a request; each belongs to the configuration.
//!
//! To send another kind of request: a method of [`Client`] that takes a deadline.

mod authorities;
mod client;
mod site;
#[cfg(test)]
pub(crate) mod test_server;
#[cfg(test)]
mod tests;

pub use authorities::{Untrusted, certificates, system_authorities};
pub use client::{Client, OutboundError};
pub use site::{Site, StreamError};
