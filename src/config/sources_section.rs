//! `[models.sources]`: where versions come from beside the models directory.

use crate::mirror::{Address, Config};
use crate::settings::{Table, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);

/// The fields of [`Config`] document the keys and their defaults.
pub(super) fn read(t: &mut Table) -> Config {
    let d = Config::default();
    Config {
        uris: t.custom("uris", Address::EXPECTED, addresses).unwrap_or(d.uris),
        interval: t.duration("interval", SECOND / 10..=24 * HOUR).unwrap_or(d.interval),
        cache: t.bytes("cache", 1 << 20..=u64::MAX).unwrap_or(d.cache),
        versions: t.integer("versions", 1..=10_000).unwrap_or(d.versions),
        timeout: t.duration("timeout", SECOND / 10..=HOUR / 6).unwrap_or(d.timeout),
        instance_metadata: t.bool("instance_metadata").unwrap_or(d.instance_metadata),
    }
}

fn addresses(value: &Value) -> Option<Vec<Address>> {
    let addresses: Vec<Address> = value.as_list()?.iter().map(address).collect::<Option<_>>()?;
    // Two sources with one name could not be told apart.
    let names: BTreeSet<String> = addresses.iter().map(ToString::to_string).collect();
    (addresses.len() <= Address::MOST && names.len() == addresses.len()).then_some(addresses)
}

/// An address alone, or a table with `uri`, `model` and `version`.
fn address(item: &Value) -> Option<Address> {
    if let Some(uri) = item.as_str() {
        return Address::parse(uri, None, None);
    }
    let Value::Table(members) = item else { return None };
    if members.keys().any(|key| !["uri", "model", "version"].contains(&key.as_str())) {
        return None;
    }
    let uri = members.get("uri")?.as_str()?;
    let model = match members.get("model") {
        Some(model) => Some(model.as_str()?.parse().ok()?),
        None => None,
    };
    Address::parse(uri, model, version(members)?)
}

/// `None` where there is a wrong one.
#[expect(clippy::option_option, reason = "a member may be absent, right or wrong")]
fn version(members: &BTreeMap<String, Value>) -> Option<Option<crate::model::Version>> {
    let text = match members.get("version") {
        None => return Some(None),
        Some(version) => version.as_str().map(str::to_owned).or_else(|| version.as_integer().map(|n| n.to_string()))?,
    };
    text.parse().ok().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uris(text: &str) -> Option<Vec<Address>> {
        let mut table = Table::parse("c.toml", &format!("uris = {text}"));
        let config = read(&mut table);
        table.finish().is_ok().then_some(config.uris)
    }

    #[test]
    fn sources_are_addresses_or_tables() {
        for wrong in [
            "\"s3://a\"",
            "[1]",
            "[\"ftp://a/b\"]",
            "[\"s3://a/b\", \"s3://a/b/\"]",
            "[{ model = \"m\" }]",
            "[{ uri = \"s3://a\", version = 1 }]",
            "[{ uri = \"s3://a\", model = \"m\", version = 0 }]",
            "[{ uri = \"s3://a\", model = \"-\" }]",
            "[{ uri = \"s3://a\", models = \"m\" }]",
            "[{ uri = \"oci://r/m:latest\" }]",
        ] {
            assert_eq!(uris(wrong), None, "{wrong}");
        }
        let right = uris("[\"s3://a/b\", { uri = \"oci://r/m:latest\", version = \"3\", model = \"m\" }]").unwrap();
        assert_eq!(right.len(), 2);
        assert_eq!(right[1].version, Some("3".parse().unwrap()));
    }
}
