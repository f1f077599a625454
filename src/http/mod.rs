//! http: the public door: sockets, endpoints, status codes.
//!
//! Uses: model.

pub mod problem;
