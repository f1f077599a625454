//! `version.toml`: what the author of a version says about it.

use super::failure::StageFailure;
use super::files;
use super::lineage;
use crate::registry::{Lineage, Stage};
use crate::settings::Table;
use std::path::Path;

/// The content of `version.toml`.
#[derive(Debug, Default)]
pub(super) struct VersionToml {
    /// The expected SHA-256 of `model.onnx` in lower-case hex, where the file gives one.
    pub sha256: Option<String>,
    /// The whole file as JSON. `null` where there is no file.
    pub metadata: serde_json::Value,
    /// The section `[lineage]`. Keys that are wrong are left out, with a remark.
    pub lineage: Lineage,
    /// Why the file could not be used. It only describes a version, so invalid TOML is a remark and no failure.
    pub remark: Option<String>,
}

impl VersionToml {
    /// Reads the file. All keys but `sha256` and `[lineage]` are free.
    ///
    /// # Errors
    /// When the file cannot be read, or `sha256` is invalid: then a check that was asked for cannot be made.
    pub fn read(dir: &Path) -> Result<VersionToml, StageFailure> {
        let Some(bytes) = files::read_beside(dir, "version.toml", files::MAX_SETTINGS_BYTES, Stage::Verify)? else {
            return Ok(VersionToml::default());
        };
        let unusable =
            |why: String| Ok(VersionToml { remark: Some(format!("version.toml: {why}")), ..VersionToml::default() });
        let Ok(text) = String::from_utf8(bytes) else { return unusable("not UTF-8".to_owned()) };
        if let Err(error) = text.parse::<toml::Table>() {
            return unusable(error.to_string());
        }
        let mut table = Table::parse("version.toml", &text);
        let sha256 = table.custom("sha256", "64 hexadecimal digits", |value| {
            let text = value.as_str()?;
            (text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| text.to_ascii_lowercase())
        });
        table.rest();
        table.finish().map_err(|complaints| StageFailure::permanent(Stage::Verify, complaints.to_string()))?;
        match serde_json::to_value(Table::parse("version.toml", &text).rest()) {
            Ok(metadata) => {
                let mut table = Table::parse("version.toml", &text);
                let lineage = lineage::read(table.section("lineage"));
                table.rest();
                // It only describes the version.
                let remark = table.finish().err().map(|complaints| complaints.to_string());
                Ok(VersionToml { sha256, metadata, lineage, remark })
            }
            Err(error) => unusable(error.to_string()),
        }
    }
}
