//! The place of objects: a bucket and a prefix.

use std::fmt;

/// The kind of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    S3,
    Gcs,
    Azure,
    /// A directory of this machine, such as a network file system.
    File,
}

/// A prefix of a bucket, as in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub scheme: Scheme,
    /// The bucket or container; of a directory its absolute path.
    pub name: String,
    /// Without `/` at its ends; may be empty.
    pub prefix: String,
}

/// A longer address is refused.
const MAX_ADDRESS: usize = 512;

impl Scheme {
    /// In an address, before `://`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Scheme::S3 => "s3",
            Scheme::Gcs => "gs",
            Scheme::Azure => "az",
            Scheme::File => "file",
        }
    }
}

impl Address {
    /// What a right address is, for a complaint.
    pub const EXPECTED: &'static str = "an address such as \"s3://bucket/prefix\", \"gs://…\", \"az://…\" or \"file:///an/absolute/path\", without credentials, '?' and '#'";

    /// `None` where it is not an address of a bucket.
    #[must_use]
    pub fn parse(uri: &str) -> Option<Address> {
        let (word, rest) = uri.split_once("://")?;
        let all = [Scheme::S3, Scheme::Gcs, Scheme::Azure, Scheme::File];
        let scheme = all.into_iter().find(|scheme| scheme.as_str() == word)?;
        let is_plain = |c: char| c.is_ascii_graphic() && !"?#\\\"<>^`{|}%*".contains(c);
        let are_parts = |path: &str| !path.split('/').any(|part| ["", ".", ".."].contains(&part));
        let (name, path) = match scheme {
            Scheme::File => (rest.trim_end_matches('/'), ""),
            _ => rest.split_once('/').unwrap_or((rest, "")),
        };
        let prefix = path.trim_matches('/');
        let is_name = match scheme {
            // What stands before the first slash would be the name of another machine.
            Scheme::File => name.strip_prefix('/').is_some_and(are_parts),
            _ => !name.is_empty() && !name.contains(['@', ':']),
        };
        let is_right = uri.len() <= MAX_ADDRESS
            && rest.chars().all(is_plain)
            && is_name
            && (prefix.is_empty() || are_parts(prefix));
        is_right.then(|| Address { scheme, name: name.to_owned(), prefix: prefix.to_owned() })
    }
}

/// As in the configuration.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        write!(f, "{}://{}{slash}{}", self.scheme.as_str(), self.name, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_wrong_ones_are_refused() {
        for right in ["s3://bucket", "gs://bucket/a/b", "az://container/p", "file:///mnt/records", "file:///a"] {
            assert_eq!(Address::parse(right).unwrap().to_string(), right);
        }
        assert_eq!(Address::parse("s3://bucket/a/").unwrap().to_string(), "s3://bucket/a");
        assert_eq!(Address::parse("file:///a/b//").unwrap().to_string(), "file:///a/b");
        for wrong in [
            "",
            "s3://",
            "bucket/a",
            "https://host/a",
            "file:///",
            "file://a",
            "file://a/b",
            "file://./a",
            "file:///a/../b",
            "file:///a//b",
            "file:/a",
            "file:///a b",
            "s3://key@bucket",
            "s3://bucket:9000/x",
            "s3://b/a?x=1",
            "s3://b/a//c",
            "s3://b/../c",
            "s3://b/a b",
            "s3://b/a%2Fb",
            &format!("s3://{}", "b".repeat(600)),
        ] {
            assert_eq!(Address::parse(wrong), None, "{wrong}");
        }
    }
}
