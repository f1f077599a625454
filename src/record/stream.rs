//! One version's records: what they have in common, which are kept, and what of them is written.

use super::about::{About, Column, Side};
use super::hash::HashKey;
use std::collections::BTreeSet;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Which predictions of a model are kept, and what of them. A model's `model.toml` changes it key by key.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a configuration")]
pub struct Choice {
    pub enabled: bool,
    /// The share of requests, by a hash of their ids; from 0 to 1.
    pub sample_rate: f64,
    /// Keep failures whatever the sample says.
    pub errors: bool,
    /// Keep what a shadow answered otherwise whatever the sample says, with the primary's side.
    pub disagreements: bool,
    /// Columns that are not written: `inputs.NAME`, `outputs.NAME`, `route_key`, `traceparent`.
    pub drop: BTreeSet<String>,
    /// Tensors of which each element is replaced by its keyed hash: `inputs.NAME`, `outputs.NAME`.
    pub hash: BTreeSet<String>,
    pub hash_route_key: bool,
    /// Tensors of a record beyond this are left out, the largest first.
    pub max_record_bytes: usize,
}

impl Default for Choice {
    fn default() -> Choice {
        Choice {
            enabled: true,
            sample_rate: 1.0,
            errors: true,
            disagreements: true,
            drop: BTreeSet::new(),
            hash: BTreeSet::new(),
            hash_route_key: true,
            max_record_bytes: 1 << 20,
        }
    }
}

impl Choice {
    /// Columns that are named and that a version does not have: misspelt secrets, perhaps.
    #[must_use]
    pub fn unknown_columns(&self, about: &About) -> Vec<String> {
        let tensors = [Side::Inputs, Side::Outputs]
            .into_iter()
            .flat_map(|side| about.specs(side).iter().map(move |spec| format!("{}.{}", side.as_str(), spec.name)));
        let known: BTreeSet<String> = tensors.chain(OTHER_COLUMNS.map(str::to_owned)).collect();
        self.drop.union(&self.hash).filter(|column| !known.contains(*column)).cloned().collect()
    }

    /// Whether a text can be a column's name in `drop` or, `tensors_only`, in `hash`.
    #[must_use]
    pub fn is_column(text: &str, tensors_only: bool) -> bool {
        let tensor = |side: Side| {
            text.strip_prefix(side.as_str())
                .and_then(|rest| rest.strip_prefix('.'))
                .is_some_and(|name| !name.is_empty())
        };
        tensor(Side::Inputs) || tensor(Side::Outputs) || !tensors_only && OTHER_COLUMNS.contains(&text)
    }
}

const OTHER_COLUMNS: [&str; 2] = ["route_key", "traceparent"];

/// Where one version's records go; [`super::Log::stream`] gives it. Cheap to ask.
#[derive(Debug)]
pub struct Stream {
    /// What stands for [`About`] in this process's segments.
    pub(super) id: u32,
    pub(super) about: Arc<About>,
    pub(super) choice: Choice,
    pub(super) inputs: Vec<Column>,
    pub(super) outputs: Vec<Column>,
    pub(super) key: Arc<HashKey>,
}

impl Stream {
    pub(super) fn new(id: u32, about: Arc<About>, choice: Choice, key: Arc<HashKey>) -> Stream {
        let (inputs, outputs) = (about.columns(Side::Inputs), about.columns(Side::Outputs));
        Stream { id, about, choice, inputs, outputs, key }
    }

    #[must_use]
    pub fn about(&self) -> &Arc<About> {
        &self.about
    }

    #[must_use]
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Whether a request is in the sample; the same for every record of it, whoever asks.
    #[must_use]
    pub fn samples(&self, request_id: &str) -> bool {
        is_sampled(request_id, self.choice.sample_rate)
    }
}

/// Whether an id falls into a sample. Samples are nested: what is in the smaller is in the larger.
#[must_use]
pub fn is_sampled(id: &str, rate: f64) -> bool {
    // 53 bits, from 0 up to and without 1.
    rate >= 1.0 || ((xxh3_64(id.as_bytes()) >> 11) as f64) < rate * (1u64 << 53) as f64
}
