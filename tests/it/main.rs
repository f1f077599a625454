//! Behaviours of the whole gateway, over real sockets; a file each.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]
#![allow(clippy::too_many_lines, reason = "a table of bad inputs is as long as it is")]

mod support;

mod admin;
mod bad_input;
mod cli;
mod dataset;
mod drain;
mod execution;
mod gates;
mod map;
mod predict;
mod record;
mod restart;
mod rollout;
mod shadow;
mod split;
mod swap;
mod tritonclient;
