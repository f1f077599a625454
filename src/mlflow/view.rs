//! What operators read about the registry.

use super::alias::Outcome;
use crate::model::{ModelName, Version};

/// What was found in the registry, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The address of the registry. `None`: none is configured.
    pub uri: Option<String>,
    pub promote_alias: Option<String>,
    pub models: Vec<ModelView>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelView {
    pub model: ModelName,
    pub aliases: Vec<AliasView>,
    /// The versions that were looked at when the registry was read last.
    pub versions: Vec<VersionView>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AliasView {
    pub alias: String,
    /// `None`: the alias was removed.
    pub version: Option<Version>,
    pub promotes: bool,
    /// `waiting`, `applied`, `refused` or `superseded`.
    pub state: &'static str,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VersionView {
    pub version: Version,
    /// Why it cannot be served here. `None`: it can.
    pub unusable: Option<String>,
}

impl Outcome {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Outcome::Waiting => "waiting",
            Outcome::Applied => "applied",
            Outcome::Refused => "refused",
            Outcome::Superseded => "superseded",
        }
    }
}
