//! Tests of the whole gateway over real sockets, one file for each behaviour.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue should fail there")]
#![allow(clippy::too_many_lines, reason = "tables of inputs are long")]

mod support;

mod abuse;
mod access;
mod admin;
mod alerts;
mod api;
mod audit;
mod bad_input;
mod browser;
mod chaos;

mod cli;
mod clients;
mod console;
mod custom_ops;
mod dataset;
mod deploy;
mod drain;
mod execution;
mod explain;
mod fleet;
mod fleet_chaos;
mod fleet_cluster;
mod fleet_evidence;
mod fleet_names;
mod fleet_partition;
mod fleet_push;
mod fleet_rollout;
mod fleet_script;
mod fleet_secure;
mod fleet_state;
mod fleet_strange;
mod gates;
mod golden;
mod grpc;
mod invocations;
mod lifecycle;
mod lineage;
mod logged;
mod map;
mod memory;
mod mlflow;
mod monitoring;
mod oci;
mod optional;
mod outcomes;
mod overload;
mod pages;
mod predict;
mod push;
mod record;
mod restart;
mod rollout;
mod runs;
mod search;
mod shadow;
mod slots;
mod slower;
mod sources;
mod split;
mod story;
mod supervisor;
mod swap;
mod sweep;
mod tls;
mod top;
mod traces;
mod trial;
mod tritonclient;
mod unstable;
mod upload;
mod upload_directory;
