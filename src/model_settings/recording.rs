//! `[prediction_log]` of `model.toml`.

use super::model_toml::ModelSettings;
use crate::drift::Watch;
use crate::record::{About, Choice, Log, Mask, Stream};
use crate::registry::Loaded;
use crate::settings::Table;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Where predictions are recorded, and the defaults for models.
#[derive(Debug, Clone)]
pub struct Recording {
    pub log: Log,
    /// From the server's configuration.
    pub choice: Choice,
}

/// `[prediction_log]` of a `model.toml`. For an absent key the server's configuration applies.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LogSettings {
    /// `enabled`.
    enabled: Option<bool>,
    /// `sample_rate`, from 0 to 1.
    sample_rate: Option<f64>,
    /// `always`: `"errors"` and `"disagreements"`, which are then recorded regardless of the sample rate.
    always: Option<BTreeSet<String>>,
    /// `drop`: columns that are not recorded.
    drop: BTreeSet<String>,
    /// `hash`: tensors whose elements are replaced by keyed hashes.
    hash: BTreeSet<String>,
    /// `mask`: patterns that are overwritten in texts.
    mask: Vec<Mask>,
    hash_route_key: Option<bool>,
    max_record_bytes: Option<usize>,
}

const ERRORS: &str = "errors";
const DISAGREEMENTS: &str = "disagreements";

impl LogSettings {
    pub(super) fn read(table: &mut Table) -> LogSettings {
        let columns = |table: &mut Table, key, tensors_only| {
            let expected = if tensors_only {
                "a list of \"inputs.NAME\", \"outputs.NAME\" and \"label\" (values are numbers, which have no hash: drop them)"
            } else {
                "a list of \"inputs.NAME\", \"outputs.NAME\", \"route_key\", \"traceparent\", \"label\", \"values\" and \"values.NAME\""
            };
            table.custom(key, expected, |value| {
                let column = |item: &crate::settings::Value| {
                    item.as_str().filter(|text| Choice::is_column(text, tensors_only)).map(str::to_owned)
                };
                value.as_list()?.iter().map(column).collect::<Option<BTreeSet<String>>>()
            })
        };
        let always = table.custom("always", "a list of \"errors\" and \"disagreements\"", |value| {
            let one = |item: &crate::settings::Value| {
                item.as_str().filter(|text| [ERRORS, DISAGREEMENTS].contains(text)).map(str::to_owned)
            };
            value.as_list()?.iter().map(one).collect::<Option<BTreeSet<String>>>()
        });
        let expected = "at most 32 of { column = \"inputs.NAME\", \"outputs.NAME\" or \"label\", regex = a regular expression of at most 1000 bytes }";
        let mask = table.custom("mask", expected, |value| {
            let masks = value.as_list()?.iter().map(mask).collect::<Option<Vec<Mask>>>();
            masks.filter(|masks| masks.len() <= Mask::MAX)
        });
        LogSettings {
            enabled: table.bool("enabled"),
            sample_rate: table.float("sample_rate", 0.0..=1.0),
            always,
            drop: columns(table, "drop", false).unwrap_or_default(),
            hash: columns(table, "hash", true).unwrap_or_default(),
            mask: mask.unwrap_or_default(),
            hash_route_key: table.bool("hash_route_key"),
            // The same limit as in the server's configuration.
            max_record_bytes: table.bytes("max_record_bytes", 0..=256 << 20).and_then(|n| usize::try_from(n).ok()),
        }
    }

    /// Combines these settings with those of the server's configuration.
    #[must_use]
    pub fn choice(&self, base: &Choice) -> Choice {
        let always = |kind: &str, base: bool| self.always.as_ref().map_or(base, |always| always.contains(kind));
        Choice {
            enabled: self.enabled.unwrap_or(base.enabled),
            sample_rate: self.sample_rate.unwrap_or(base.sample_rate),
            errors: always(ERRORS, base.errors),
            disagreements: always(DISAGREEMENTS, base.disagreements),
            drop: self.drop.clone(),
            hash: self.hash.clone(),
            mask: self.mask.clone(),
            hash_route_key: self.hash_route_key.unwrap_or(base.hash_route_key),
            max_record_bytes: self.max_record_bytes.unwrap_or(base.max_record_bytes),
        }
    }
}

impl Recording {
    /// The stream that records a loaded version, whose drift is watched from then on. `None` if nothing is recorded.
    #[must_use]
    pub fn stream(&self, settings: &ModelSettings, loaded: &Loaded) -> Option<Arc<Stream>> {
        let choice = settings.log.choice(&self.choice);
        let about = about(loaded);
        let stream = self.log.stream(&about, &choice)?;
        self.log.drift().watch(&Watch {
            model: &about.model,
            version: about.version,
            signature: &about.signature,
            names: &settings.features,
            hidden: choice.hidden(&about),
            profile: loaded.facts.profile.as_ref(),
            settings: &settings.drift,
        });
        Some(stream)
    }

    /// A complaint about columns in `model.toml` that a version does not have.
    #[must_use]
    pub fn complaint(&self, settings: &LogSettings, loaded: &Loaded) -> Option<String> {
        let unknown = settings.choice(&self.choice).unknown_columns(&about(loaded));
        let columns = unknown.join(", ");
        (!unknown.is_empty()).then(|| {
            format!(
                "[prediction_log] in model.toml drops, hashes or masks {columns}, which this version does not have (masks need strings)"
            )
        })
    }
}

fn about(loaded: &Loaded) -> About {
    About {
        model: loaded.model.clone(),
        version: loaded.version,
        sha256: loaded.facts.sha256.clone(),
        signature: loaded.facts.signature.clone(),
        hashed: BTreeSet::new(),
        dropped: BTreeSet::new(),
    }
}

/// One item of `mask`.
fn mask(item: &crate::settings::Value) -> Option<Mask> {
    let crate::settings::Value::Table(members) = item else { return None };
    let text = |name: &str| members.get(name).and_then(crate::settings::Value::as_str);
    let (column, pattern) = (text("column")?, text("regex")?);
    if members.len() != 2 || !Choice::is_column(column, true) {
        return None;
    }
    Mask::new(column, pattern)
}
