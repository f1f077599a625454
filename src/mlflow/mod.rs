//! mlflow: reads MLflow's model registry as a source of versions, and carries its aliases over.
//!
//! - [`Registry`](offers::Registry) is a source of versions: each registered version with an ONNX flavour, under its number. Its run becomes the lineage in `version.toml`.
//! - An alias that moves is carried over once: it becomes a label, or, for the alias `promote_alias`, a promotion that passes the model's gates. What was
//!   done is kept in `mlflow.json` in the data directory, so that a person's later change is never undone by an alias that has not moved.
//! - What became of it is a tag on MLflow's version, and [`Mlflow::view`] shows it.
//! - The registry is a stranger: every answer is bounded in bytes, every wait has a deadline, and every name is checked before it is used.
//!
//! Uses: lifecycle (handle), machine (priority, files), mirror (what it lists and reads), model, outbound, registry (reader), route, telemetry.
//!
//! Invariant: no traffic changes except through the handle of the manager, with the checks that an operator's request gets.
//!
//! To carry over something else: a field of [`api`]'s types, and a step in `follow.rs`.

mod alias;
mod api;
mod config;
mod flavor;
mod follow;
mod memory;
mod offers;
mod provenance;
mod start;
mod tell;
#[cfg(test)]
mod tests;
mod view;
mod wire;

pub use config::{Config, Credentials};
pub(crate) use start::{Follower, Mlflow, Stop, open};
pub(crate) use view::{AliasView, ModelView, VersionView, View};

/// Who makes the changes, in the audit trail.
const ACTOR: &str = "mlflow";
