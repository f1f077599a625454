//! The keys of `[prediction_log]` about uploads: `upload`, and those that begin with `upload_`.

use super::reload::{Change, at_start};
use crate::bucket::Address;
use crate::settings::Table;
use crate::upload::Config;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_hours(24);

/// The fields of [`Config`] document the keys and their defaults.
pub(super) fn read(t: &mut Table) -> Config {
    let d = Config::default();
    let node = "1 to 64 letters, digits, '-' and '_', or \"\"";
    Config {
        to: t.custom("upload", Address::EXPECTED, |value| Address::parse(value.as_str()?)),
        node: t
            .custom("upload_node", node, |value| {
                let is_name = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
                value.as_str().filter(|text| text.len() <= 64 && text.chars().all(is_name)).map(str::to_owned)
            })
            .unwrap_or(d.node),
        bytes_per_second: t.bytes("upload_bytes_per_second", 0..=u64::MAX).unwrap_or(d.bytes_per_second),
        keep_local: t
            .duration("upload_keep_local", Duration::ZERO..=100 * 365 * DAY)
            .map_or(d.keep_local, |keep| Some(keep).filter(|keep| !keep.is_zero())),
        timeout: t.duration("upload_timeout", SECOND / 10..=600 * SECOND).unwrap_or(d.timeout),
        instance_metadata: t.bool("upload_instance_metadata").unwrap_or(d.instance_metadata),
    }
}

pub(super) fn changes(before: &Config, new: &Config) -> [Option<Change>; 6] {
    let Config { to, node, bytes_per_second, keep_local, timeout, instance_metadata } = before;
    [
        at_start("prediction_log.upload", to, &new.to),
        at_start("prediction_log.upload_node", node, &new.node),
        at_start("prediction_log.upload_bytes_per_second", bytes_per_second, &new.bytes_per_second),
        at_start("prediction_log.upload_keep_local", keep_local, &new.keep_local),
        at_start("prediction_log.upload_timeout", timeout, &new.timeout),
        at_start("prediction_log.upload_instance_metadata", instance_metadata, &new.instance_metadata),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_keys_are_refused_with_what_would_be_right() {
        for (line, words) in [
            (
                "upload = \"https://host/x\"",
                "prediction_log.upload: expected an address such as \"s3://bucket/prefix\"",
            ),
            ("upload = \"\"", "prediction_log.upload: expected an address"),
            ("upload_node = \"a.b\"", "prediction_log.upload_node: expected 1 to 64 letters"),
            ("upload_timeout = \"1h\"", "prediction_log.upload_timeout: expected a duration"),
            ("upload_bytes_per_second = -1", "prediction_log.upload_bytes_per_second: expected"),
        ] {
            let mut table = Table::parse("c.toml", &format!("[prediction_log]\n{line}\n"));
            read(table.section("prediction_log"));
            let found = table.finish().unwrap_err().to_string();
            assert!(found.contains(words), "{line}: {found}");
        }
        let mut table = Table::parse("c.toml", "upload = \"gs://b/p/\"\nupload_keep_local = \"0s\"\n");
        let config = read(&mut table);
        table.finish().unwrap();
        assert_eq!(config.to.unwrap().to_string(), "gs://b/p");
        assert_eq!((config.keep_local, config.bytes_per_second), (None, 16 << 20));
    }
}
