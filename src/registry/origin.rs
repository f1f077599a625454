//! Where a version comes from: its files, who signed them, and what its author says in `version.toml`.

use crate::model::{ModelName, Version};
use serde::Serialize;
use std::collections::BTreeMap;

/// Where a version comes from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Origin {
    /// The artifact's files with their SHA-256 in lower-case hex, sorted by name.
    pub files: Vec<(String, String)>,
    /// One SHA-256 for all of them.
    pub digest: String,
    /// The name of the trusted key that signed the files; `None` where no keys are configured.
    pub signed_by: Option<String>,
    pub lineage: Lineage,
}

/// What `[lineage]` in `version.toml` says. Everything may be absent.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Lineage {
    pub data: TrainingData,
    pub code: SourceCode,
    /// A person or a pipeline.
    pub trainer: Option<String>,
    /// RFC 3339, or a date.
    pub trained_at: Option<String>,
    pub parent: Option<Parent>,
    /// Numbers, texts and booleans.
    pub parameters: BTreeMap<String, serde_json::Value>,
    pub metrics: BTreeMap<String, f64>,
}

/// The data that a version was trained on.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct TrainingData {
    /// SHA-256 in lower-case hex, or a digest of another kind after its name: `mlflow:0e60fe4c`.
    pub digest: Option<String>,
    /// The time range of the data: RFC 3339, or dates.
    pub from: Option<String>,
    pub to: Option<String>,
    /// Where it is kept.
    pub location: Option<String>,
    pub rows: Option<u64>,
}

/// The code that trained a version.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct SourceCode {
    pub repository: Option<String>,
    /// Hexadecimal.
    pub commit: Option<String>,
}

/// The version that a version was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Parent {
    /// `None`: the same model.
    pub model: Option<ModelName>,
    pub version: Version,
}
