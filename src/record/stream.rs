//! The records of one version: which are kept, and which of their columns.

use super::about::{About, Column, Side};
use super::hash::HashKey;
use super::kept::Kept;
use super::mask::Mask;
use super::private::{LABEL, VALUES};
use crate::tensor::DataType;
use std::collections::BTreeSet;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Which predictions of a model are kept, and which columns. A key in `model.toml` overrides the same key here.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a configuration")]
pub struct Choice {
    /// Whether predictions are recorded. Default true.
    pub enabled: bool,
    /// The share of requests to keep, from 0 to 1; chosen by a hash of the request id. Default 1.
    pub sample_rate: f64,
    /// Keep all failures.
    pub errors: bool,
    /// Keep all pairs in which a shadow disagrees with the primary.
    pub disagreements: bool,
    /// Columns to leave out: `inputs.NAME`, `outputs.NAME`, `route_key`, `traceparent`, and of feedback `label`, `values`, `values.NAME`.
    pub drop: BTreeSet<String>,
    /// Tensors whose elements are replaced by their keyed hashes: `inputs.NAME`, `outputs.NAME`. And `label`.
    pub hash: BTreeSet<String>,
    /// Patterns that are overwritten in texts, at most [`Mask::MAX`].
    pub mask: Vec<Mask>,
    /// Whether the key that a split uses is replaced by its keyed hash. Default true: the key often identifies a person.
    pub hash_route_key: bool,
    /// Bytes of a record's tensors as they are stored. Beyond this, tensors are left out, the largest first. Default 1 MiB: enough for
    /// the features of an image, too small for the image.
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
            mask: Vec::new(),
            hash_route_key: true,
            max_record_bytes: 1 << 20,
        }
    }
}

impl Choice {
    /// Columns in `drop`, `hash` and `mask` that a version does not have, or whose texts cannot be masked because they are no texts; a private
    /// column may be misspelt.
    #[must_use]
    pub(crate) fn unknown_columns(&self, about: &About) -> Vec<String> {
        let tensors = [Side::Inputs, Side::Outputs]
            .into_iter()
            .flat_map(|side| about.specs(side).iter().map(move |spec| side.column(spec)));
        let known: BTreeSet<String> = tensors.chain(OTHER_COLUMNS.map(str::to_owned)).collect();
        let texts: BTreeSet<String> = [Side::Inputs, Side::Outputs]
            .into_iter()
            .flat_map(|side| about.specs(side).iter().map(move |spec| (side, spec)))
            .filter(|(_, spec)| spec.datatype == DataType::Bytes)
            .map(|(side, spec)| side.column(spec))
            .chain([LABEL.to_owned()])
            .collect();
        let is_value = |column: &str| column.starts_with("values.");
        let named = self.drop.union(&self.hash).filter(|column| !known.contains(*column) && !is_value(column));
        let masked = self.mask.iter().map(|mask| &mask.column).filter(|column| !texts.contains(*column));
        named.chain(masked).cloned().collect::<BTreeSet<String>>().into_iter().collect()
    }

    /// Whether a text can name a column in `drop`, or with `tensors_only` in `hash` and `mask`. Values are numbers, which have no hash that is
    /// a number.
    #[must_use]
    pub(crate) fn is_column(text: &str, tensors_only: bool) -> bool {
        let tensor = |side: Side| {
            text.strip_prefix(side.as_str())
                .and_then(|rest| rest.strip_prefix('.'))
                .is_some_and(|name| !name.is_empty())
        };
        let is_value = text.strip_prefix("values.").is_some_and(|name| !name.is_empty());
        let other = OTHER_COLUMNS.contains(&text) || is_value;
        tensor(Side::Inputs) || tensor(Side::Outputs) || text == LABEL || !tensors_only && other
    }
}

const OTHER_COLUMNS: [&str; 4] = ["route_key", "traceparent", LABEL, VALUES];

/// The destination of one version's records, made by [`super::Log::stream`].
#[derive(Debug)]
pub struct Stream {
    /// The number that stands for [`About`] in the segments of this process.
    pub(super) id: u32,
    pub(super) about: Arc<About>,
    pub(super) choice: Choice,
    pub(super) inputs: Vec<Column>,
    pub(super) outputs: Vec<Column>,
    pub(super) key: Arc<HashKey>,
    /// Some outputs are not stored as they are. They are joined with feedback before they are hidden, when a record is queued.
    pub(super) hides_outputs: bool,
    /// What the history keeps of each row.
    pub(super) kept: Kept,
}

impl Stream {
    pub(super) fn new(id: u32, about: Arc<About>, choice: Choice, key: Arc<HashKey>) -> Stream {
        let columns = |side: Side| {
            let mut columns = about.columns(side);
            for column in columns.iter_mut().filter(|column| column.spec.datatype == DataType::Bytes) {
                let name = side.column(&column.spec);
                column.masks = choice.mask.iter().filter(|mask| mask.column == name).cloned().collect();
            }
            columns
        };
        let (inputs, outputs) = (columns(Side::Inputs), columns(Side::Outputs));
        let hides_outputs = about.specs(Side::Outputs).iter().any(|spec| choice.hides(&Side::Outputs.column(spec)));
        let kept = Kept::new(&inputs, &outputs);
        Stream { id, about, choice, inputs, outputs, key, hides_outputs, kept }
    }

    #[must_use]
    pub(super) fn about(&self) -> &Arc<About> {
        &self.about
    }

    #[must_use]
    pub(crate) fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Whether a request is in the sample. All records of a request get the same result.
    #[must_use]
    pub(crate) fn samples(&self, request_id: &str) -> bool {
        is_sampled(request_id, self.choice.sample_rate)
    }
}

/// Whether an id is in a sample. A larger sample contains every smaller one.
#[must_use]
pub(super) fn is_sampled(id: &str, rate: f64) -> bool {
    // 53 bits of the hash as a number from 0 (included) to 1 (excluded).
    rate >= 1.0 || ((xxh3_64(id.as_bytes()) >> 11) as f64) < rate * (1u64 << 53) as f64
}
