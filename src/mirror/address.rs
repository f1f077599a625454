//! The address of a source, as it stands in the configuration.

use crate::model::{ModelName, Version};
use std::fmt;

/// Where a source is, and what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    kind: Kind,
    /// The host, bucket or container.
    place: String,
    /// Without `/` at its ends.
    path: String,
    /// The directory is the one of this model. Otherwise it has the directories of models.
    pub model: Option<ModelName>,
    /// The directory is the one of this version.
    pub version: Option<Version>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    S3,
    Gcs,
    Azure,
    Http,
    Https,
    Oci,
}

/// A longer address is refused.
const MAX_ADDRESS: usize = 1024;
const SCHEMES: [(&str, Kind); 6] = [
    ("s3", Kind::S3),
    ("gs", Kind::Gcs),
    ("az", Kind::Azure),
    ("http", Kind::Http),
    ("https", Kind::Https),
    ("oci", Kind::Oci),
];

impl Address {
    /// What a right address is, for a complaint.
    pub const EXPECTED: &'static str = "up to 32 different addresses such as \"s3://bucket/prefix\", \"gs://…\", \"az://…\", \"https://host/path\" or \
         { uri = \"oci://registry/repository:tag\", model = \"fraud\", version = 3 }, without credentials, '?' and '#'";
    /// The most sources of a server. Each has a thread.
    pub const MOST: usize = 32;

    /// `None` where it is not an address of a source.
    #[must_use]
    pub fn parse(uri: &str, model: Option<ModelName>, version: Option<Version>) -> Option<Address> {
        let (scheme, rest) = uri.split_once("://")?;
        let kind = SCHEMES.iter().find(|(name, _)| *name == scheme)?.1;
        let is_plain = |c: char| c.is_ascii_graphic() && !"?#\\\"<>^`{|}".contains(c);
        if uri.len() > MAX_ADDRESS || !rest.chars().all(is_plain) || (version.is_some() && model.is_none()) {
            return None;
        }
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_matches('/');
        let is_right =
            !place.is_empty() && !place.contains('@') && !path.split('/').any(|part| [".", ".."].contains(&part));
        let address = Address { kind, place: place.to_owned(), path: path.to_owned(), model, version };
        let is_right = is_right
            && match kind {
                Kind::Oci => !path.is_empty() && address.oci_version().is_some(),
                Kind::Http | Kind::Https => uri.parse::<http::Uri>().is_ok(),
                Kind::S3 | Kind::Gcs | Kind::Azure => !place.contains(':'),
            };
        is_right.then_some(address)
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// What stands before a path in this source to make it one in a models directory.
    pub(super) fn prefix(&self) -> String {
        let parts = self.model.iter().map(ToString::to_string).chain(self.version.iter().map(ToString::to_string));
        parts.map(|part| part + "/").collect()
    }

    /// The model and version of an image: what the configuration says, else the last part of the repository, and the tag (`3` or `v3`).
    pub(super) fn oci_version(&self) -> Option<(ModelName, Version)> {
        let last = self.path.rsplit('/').next()?;
        let (repository, tag) = last.split_once([':', '@']).unwrap_or((last, ""));
        let model = self.model.clone().or_else(|| repository.parse().ok())?;
        let version = self.version.or_else(|| tag.strip_prefix('v').unwrap_or(tag).parse().ok())?;
        Some((model, version))
    }
}

/// As in the configuration.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = SCHEMES.iter().find(|(_, kind)| *kind == self.kind).map_or("", |(name, _)| name);
        let slash = if self.path.is_empty() { "" } else { "/" };
        write!(f, "{scheme}://{}{slash}{}", self.place, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_wrong_ones_are_refused() {
        let parse = |uri: &str| Address::parse(uri, None, None);
        for right in [
            "s3://bucket",
            "gs://bucket/a/b",
            "az://container/p",
            "http://127.0.0.1:8000/models",
            "https://host",
            "oci://r:5000/a/fraud:v3",
        ] {
            assert_eq!(parse(right).unwrap().to_string(), right);
        }
        assert_eq!(parse("s3://bucket/a//").unwrap().to_string(), "s3://bucket/a");
        for wrong in [
            "",
            "s3://",
            "bucket/a",
            "ftp://host/a",
            "https://user:secret@host/",
            "s3://key@bucket",
            "s3://b/a?x=1",
            "https://h/#a",
            "s3://b/../c",
            "oci://registry/fraud:latest",
            "oci://registry",
            "https://h/a b",
            "s3://bucket:9000/x",
            &format!("s3://{}", "b".repeat(2000)),
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_image_has_the_model_and_version_of_the_configuration_or_of_its_name() {
        let (fraud, three): (ModelName, Version) = ("fraud".parse().unwrap(), "3".parse().unwrap());
        let of = |uri: &str, model, version| Address::parse(uri, model, version).unwrap().oci_version().unwrap();
        assert_eq!(of("oci://r/team/fraud:3", None, None), (fraud.clone(), three));
        assert_eq!(of("oci://r/x:latest", Some(fraud.clone()), Some(three)), (fraud.clone(), three));
        let prefix = |model, version| Address::parse("s3://b/p", model, version).unwrap().prefix();
        assert_eq!(prefix(Some(fraud.clone()), Some(three)), "fraud/3/");
        assert_eq!(prefix(None, None), "");
        assert_eq!(Address::parse("s3://b/p", None, Some(three)), None, "a version without its model");
    }
}
