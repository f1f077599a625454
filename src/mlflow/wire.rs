//! The answers of MLflow's REST API, as far as they are read here. Other members are ignored.

use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// The answer to `registered-models/get`.
#[derive(Debug, Deserialize)]
pub(super) struct RegisteredModelAnswer {
    pub registered_model: RegisteredModel,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RegisteredModel {
    #[serde(default)]
    pub aliases: Vec<Alias>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Alias {
    pub alias: String,
    #[serde(deserialize_with = "text")]
    pub version: String,
}

/// The answer to `model-versions/search`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct VersionsAnswer {
    #[serde(default)]
    pub model_versions: Vec<ModelVersion>,
}

/// The answer to `model-versions/get`.
#[derive(Debug, Deserialize)]
pub(super) struct VersionAnswer {
    pub model_version: ModelVersion,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct ModelVersion {
    #[serde(deserialize_with = "text")]
    pub version: String,
    #[serde(default)]
    pub source: String,
    #[serde(default)]
    pub run_id: String,
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub tags: Vec<Pair>,
}

/// A tag or a parameter.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Pair {
    pub key: String,
    #[serde(default)]
    pub value: String,
}

/// The answer to `model-versions/get-download-uri`.
#[derive(Debug, Deserialize)]
pub(super) struct DownloadAnswer {
    pub artifact_uri: String,
}

/// The answer to a listing of artifacts.
#[derive(Debug, Default, Deserialize)]
pub(super) struct FilesAnswer {
    #[serde(default)]
    pub files: Vec<FileInfo>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct FileInfo {
    pub path: String,
    #[serde(default)]
    pub is_dir: bool,
    #[serde(default, deserialize_with = "number")]
    pub file_size: Option<u64>,
}

/// The answer to `runs/get`.
#[derive(Debug, Deserialize)]
pub(super) struct RunAnswer {
    pub run: Run,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Run {
    #[serde(default)]
    pub info: RunInfo,
    #[serde(default)]
    pub data: RunData,
    #[serde(default)]
    pub inputs: RunInputs,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct RunInfo {
    #[serde(default)]
    pub run_name: String,
    #[serde(default)]
    pub experiment_id: String,
    #[serde(default)]
    pub user_id: String,
    /// Milliseconds since 1970.
    #[serde(default, deserialize_with = "number")]
    pub start_time: Option<u64>,
    #[serde(default, deserialize_with = "number")]
    pub end_time: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct RunData {
    #[serde(default)]
    pub metrics: Vec<Metric>,
    #[serde(default)]
    pub params: Vec<Pair>,
    #[serde(default)]
    pub tags: Vec<Pair>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Metric {
    pub key: String,
    /// `null`, or a text, where the number is not finite.
    #[serde(default)]
    pub value: serde_json::Value,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct RunInputs {
    #[serde(default)]
    pub dataset_inputs: Vec<DatasetInput>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct DatasetInput {
    #[serde(default)]
    pub tags: Vec<Pair>,
    #[serde(default)]
    pub dataset: Dataset,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Dataset {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub digest: String,
    #[serde(default)]
    pub source_type: String,
    /// JSON as text, of a form that depends on the type.
    #[serde(default)]
    pub source: String,
    /// JSON as text.
    #[serde(default)]
    pub profile: String,
}

/// An answer that is no success.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ErrorAnswer {
    #[serde(default)]
    pub error_code: String,
    #[serde(default)]
    pub message: String,
}

impl ModelVersion {
    pub(super) fn tag(&self, key: &str) -> Option<&str> {
        value_of(&self.tags, key)
    }
}

impl Run {
    pub(super) fn tag(&self, key: &str) -> Option<&str> {
        value_of(&self.data.tags, key).filter(|value| !value.is_empty())
    }
}

impl DatasetInput {
    /// What the data was used for, such as `training`.
    pub(super) fn context(&self) -> Option<&str> {
        value_of(&self.tags, "mlflow.data.context")
    }
}

/// Pairs as a map. Of equal keys the last one counts.
pub(super) fn map_of(pairs: &[Pair]) -> BTreeMap<&str, &str> {
    pairs.iter().map(|pair| (pair.key.as_str(), pair.value.as_str())).collect()
}

fn value_of<'p>(pairs: &'p [Pair], key: &str) -> Option<&'p str> {
    pairs.iter().find(|pair| pair.key == key).map(|pair| pair.value.as_str())
}

/// MLflow writes the number of a version as a text, and servers that imitate it write a number.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => Ok(text),
        serde_json::Value::Number(number) => Ok(number.to_string()),
        other => Err(serde::de::Error::custom(format!("expected a text or a number, got {other}"))),
    }
}

/// The 64-bit numbers of protobuf's JSON are texts, and those of MLflow are numbers.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::Number(number) => number.as_u64(),
        serde_json::Value::String(text) => text.parse().ok(),
        _ => None,
    })
}
