//! Names and ids. Each has a type of its own, so that the compiler finds swapped arguments.

use bytes::Bytes;
use bytestring::ByteString;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::Arc;

/// Why a name is not valid, as a message for the person who typed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("model name {0:?} is not valid: a letter or digit, then up to 127 letters, digits, '.', '_' or '-'")]
    Model(String),
    #[error("version {0:?} is not valid: a positive integer such as 3, without leading zeros")]
    Version(String),
    #[error("arm name {0:?} is not valid: 1 to 64 letters, digits, '.', '_' or '-'")]
    Arm(String),
    #[error("request id of {0} bytes is too long: at most {max}", max = RequestId::MAX_BYTES)]
    RequestId(usize),
}

fn is_name(s: &str, max: usize) -> bool {
    let bytes = s.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= max
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// A model's name: `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ModelName(Arc<str>);

impl ModelName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        if is_name(s, 128) { Ok(ModelName(s.into())) } else { Err(NameError::Model(s.chars().take(160).collect())) }
    }
}

impl TryFrom<String> for ModelName {
    type Error = NameError;

    fn try_from(s: String) -> Result<Self, NameError> {
        s.parse()
    }
}

/// A map keyed by `ModelName` can be searched with a `&str` from a URL, without an allocation.
impl std::borrow::Borrow<str> for ModelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A version of a model: a positive integer. Documents and answers write it as a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(NonZeroU64);

impl Version {
    #[must_use]
    pub fn number(self) -> u64 {
        self.0.get()
    }

    /// The first number of a model.
    pub const FIRST: Version = Version(NonZeroU64::MIN);

    /// The next number. `None` after the largest one.
    #[must_use]
    pub fn next(self) -> Option<Version> {
        self.0.checked_add(1).map(Version)
    }
}

impl FromStr for Version {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        let canonical = s.bytes().all(|b| b.is_ascii_digit()) && !s.starts_with('0');
        s.parse::<NonZeroU64>()
            .ok()
            .filter(|_| canonical)
            .map(Version)
            .ok_or_else(|| NameError::Version(s.chars().take(40).collect()))
    }
}

impl TryFrom<String> for Version {
    type Error = NameError;

    fn try_from(s: String) -> Result<Self, NameError> {
        s.parse()
    }
}

impl From<Version> for String {
    fn from(v: Version) -> String {
        v.to_string()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One arm of a traffic split. The default is the version's number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ArmName(Arc<str>);

impl ArmName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ArmName {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        if is_name(s, 64) { Ok(ArmName(s.into())) } else { Err(NameError::Arm(s.chars().take(80).collect())) }
    }
}

impl TryFrom<String> for ArmName {
    type Error = NameError;

    fn try_from(s: String) -> Result<Self, NameError> {
        s.parse()
    }
}

impl From<Version> for ArmName {
    fn from(v: Version) -> ArmName {
        ArmName(v.to_string().into())
    }
}

impl fmt::Display for ArmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The id of a prediction in the log and in feedback: any text from the caller, or a `UUIDv7` generated here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct RequestId(ByteString);

impl RequestId {
    /// Longer ids are rejected, because each id is stored in a record and sent back in a header.
    pub const MAX_BYTES: usize = 1024;

    /// Accepts an id from the caller.
    ///
    /// # Errors
    /// When it is longer than [`RequestId::MAX_BYTES`].
    pub fn from_caller(id: String) -> Result<RequestId, NameError> {
        if id.len() > RequestId::MAX_BYTES { Err(NameError::RequestId(id.len())) } else { Ok(RequestId(id.into())) }
    }

    /// Generates a `UUIDv7` (RFC 9562), which sorts by time.
    #[must_use]
    pub fn generate() -> RequestId {
        let mut text = [0u8; uuid::fmt::Hyphenated::LENGTH];
        RequestId(ByteString::from(&*uuid::Uuid::now_v7().hyphenated().encode_lower(&mut text)))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The bytes of the id, without a copy.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.0.as_bytes().clone()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One version of one model, displayed as `model/version`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VersionId {
    pub model: ModelName,
    pub version: Version,
}

impl std::fmt::Display for VersionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.model, self.version)
    }
}
