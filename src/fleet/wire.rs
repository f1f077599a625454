//! What the buckets hold, as JSON. A newer form has a higher `schema`: an older gateway says so and keeps what it has.

use super::placement::Labels;
use crate::model::{ModelName, VersionId};
use crate::rollout::Orders;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The form of the values, but for those of `state.rs`.
pub(super) const SCHEMA: u32 = 1;

/// A rollout of the fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SharedRollout {
    /// As the room `rollout` writes it.
    pub state: Value,
    /// The gateway that drives it.
    pub driver: String,
    /// Another one for each document that it puts in force.
    pub step: String,
    /// Who changed the document since, and how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overridden: Option<String>,
}

/// What the driver of a rollout says about twice a second: its lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Lease {
    pub schema: u32,
    pub driver: String,
    pub orders: Orders,
}

/// What a gateway says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Node {
    pub schema: u32,
    /// Of the data directory: another one under the same name is another gateway.
    pub id: String,
    /// Of the program.
    pub program: String,
    /// Every version that was found at its start is ready or failed.
    pub ready: bool,
    pub since: String,
    pub models: BTreeMap<String, NodeModel>,
    /// From NATS's time of the last change that was made elsewhere until it was in force there, in milliseconds: by two clocks, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// Tells its rules of placement apart from those of others.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rules: String,
    /// All that it counted of drift before this hour (since 1970) has been told. `None` of an older program, and before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift_told: Option<i64>,
}

/// The list of the parts of a gateway's rows of a model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub schema: u32,
    pub node: String,
    pub program: String,
    /// When it was written, by the gateway's clock, and from when on all of its rows are too old: microseconds since 1970.
    pub as_of: i64,
    pub until: i64,
    /// Entries of feedback that the gateway received since it started, and those that it did not keep.
    pub feedback: u64,
    pub left_out: u64,
    /// A hash of the split that it has in force, and since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<(u64, i64)>,
    /// Tells the key that it hashes route keys with apart from those of others.
    pub hash_key: String,
    /// How often its requests were halved for the fleet, beside what it does for itself.
    pub halvings: u32,
    /// By name, with a hash of the bytes.
    pub parts: BTreeMap<String, String>,
}

impl Manifest {
    /// Whether it says the same at another time.
    pub fn is_like(&self, other: &Manifest) -> bool {
        let timeless = |list: &Manifest| Manifest { as_of: 0, until: 0, ..list.clone() };
        timeless(self) == timeless(other)
    }
}

/// What a gateway has of a model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NodeModel {
    /// The fleet's revision that is in force. 0: none.
    pub revision: u64,
    /// The versions that get un-pinned traffic.
    pub serving: Vec<String>,
    /// The versions that can get traffic, with those that serve.
    pub ready: Vec<String>,
    /// Versions that failed, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<String, String>,
    /// Versions of the fleet's store that it is to have and has not fetched yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fetching: BTreeMap<String, Fetching>,
    /// The state of every other version.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub others: BTreeMap<String, String>,
    /// Why a newer revision is not in force yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
}

impl NodeModel {
    /// Whether the gateway answers requests for the model by a document of the fleet.
    pub(super) fn answers(&self) -> bool {
        self.revision > 0 && !self.serving.is_empty()
    }
}

/// How far a version is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fetching {
    /// The bytes that are there.
    pub bytes: u64,
    /// All bytes.
    pub of: u64,
}

/// A version in the fleet's store: the value of the key `model.version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SharedVersion {
    pub schema: u32,
    /// In the order of their paths.
    pub files: Vec<SharedFile>,
    /// Who pushed it, on which gateway, and when.
    pub actor: String,
    pub node: String,
    pub ts: String,
}

/// A file of a version. Its bytes are the object with the name of its digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct SharedFile {
    /// In the directory of the version, with `/`.
    pub path: String,
    /// In lower-case hex.
    pub sha256: String,
    pub bytes: u64,
}

/// The largest manifest, in bytes: NATS takes 1 MiB by default, headers included. Some thousand files.
pub(super) const LARGEST_MANIFEST: i32 = (1 << 20) - (4 << 10);

impl SharedVersion {
    /// # Errors
    /// In words, when a digest is none. Paths and numbers are checked like those of every source.
    pub fn checked(self) -> Result<SharedVersion, String> {
        let is_digest =
            |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match self.files.iter().find(|file| !is_digest(&file.sha256)) {
            None => Ok(self),
            Some(file) => {
                let found: String = file.sha256.chars().take(80).collect();
                Err(format!("expected the SHA-256 of a file in lower-case hex, found {found:?}"))
            }
        }
    }
}

impl SharedRollout {
    /// Whether it has not ended.
    pub fn is_active(&self) -> bool {
        self.state["ended"].is_null()
    }
}

/// Only the form of a value.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Form {
    schema: u32,
}

/// Reads a value of a bucket.
///
/// # Errors
/// In words.
pub(super) fn read<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, String> {
    read_up_to(bytes, SCHEMA)
}

/// Reads a value of a bucket that may have forms up to this one.
///
/// # Errors
/// In words.
pub(super) fn read_up_to<T: for<'a> Deserialize<'a>>(bytes: &[u8], newest: u32) -> Result<T, String> {
    let form: Form = serde_json::from_slice(bytes).map_err(|error| format!("it cannot be read: {error}"))?;
    if form.schema > newest {
        return Err(format!(
            "it has the form {}, and this version of Sluicegate reads up to {newest}: upgrade this gateway",
            form.schema
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| format!("it cannot be read: {error}"))
}

/// The key of a model. Points separate the parts of a key, and may not stand at its ends.
pub(super) fn key(model: &ModelName) -> String {
    model.as_str().replace('.', "=2E")
}

/// The model of a key. `None` for a key that no gateway wrote.
pub(super) fn model(key: &str) -> Option<ModelName> {
    key.replace("=2E", ".").parse().ok().filter(|model| self::key(model) == key)
}

/// The key of a version.
pub(super) fn version_key(id: &VersionId) -> String {
    format!("{}.{}", key(&id.model), id.version)
}

/// The version of a key. `None` for a key that no gateway wrote.
pub(super) fn version_of(text: &str) -> Option<VersionId> {
    let (name, version) = text.rsplit_once('.')?;
    Some(VersionId { model: model(name)?, version: version.parse().ok()? })
}
