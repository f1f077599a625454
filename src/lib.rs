//! Sluicegate: a low-latency model-serving gateway. Each module is a room; `docs/ARCHITECTURE.md` is the map.

pub mod access;
mod admin;
pub mod app;
pub mod backend;
pub mod budget;
mod callers;
pub mod cli;
pub mod codec;
mod compare;
pub mod config;
mod dataset;
pub mod execute;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod heads;
pub(crate) mod http;
mod ledger;
mod lifecycle;
pub(crate) mod machine;
pub mod marks;
pub mod model;
mod model_settings;
mod outbound;
mod prepare;
pub mod quality;
pub mod record;
pub mod registry;
mod rollout;
pub mod route;
pub mod serve;
mod settings;
pub mod shadow;
mod source;
mod supervisor;
pub mod telemetry;
pub mod tensor;
pub mod tls;
