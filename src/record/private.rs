//! What [`Choice`] hides: the same for records, for feedback, and for what the admin plane shows of answers.

use super::about::{About, Side};
use super::hash::HashKey;
use super::log::Log;
use super::prediction::write_hashes;
use super::stream::Choice;
use crate::model::{Feedback, Label, Update};
use crate::tensor::{Data, Tensor};
use bytes::Bytes;
use std::collections::BTreeSet;

/// The column of labels, and that of all business values. One value is `values.NAME`.
pub(super) const LABEL: &str = "label";
pub(super) const VALUES: &str = "values";

impl Choice {
    /// Whether the values of an output are not stored as they are.
    #[must_use]
    pub(crate) fn hides_output(&self, name: &str) -> bool {
        self.hides(&format!("{}.{name}", Side::Outputs.as_str()))
    }

    /// Whether any input is not stored as it is. A message of an engine may quote inputs.
    #[must_use]
    pub(crate) fn hides_any_input(&self) -> bool {
        let is_input = |column: &str| column.starts_with(Side::Inputs.as_str());
        let masked = self.mask.iter().map(|mask| &mask.column);
        self.drop.iter().chain(&self.hash).chain(masked).any(|column| is_input(column))
    }

    /// The tensors that are not stored as they are: `inputs.NAME`, `outputs.NAME`.
    #[must_use]
    pub(crate) fn hidden(&self, about: &About) -> BTreeSet<String> {
        let columns = Side::ALL.iter().flat_map(|side| about.specs(*side).iter().map(|spec| side.column(spec)));
        columns.filter(|column| self.hides(column)).collect()
    }

    /// Whether a column is not stored as it is.
    pub(super) fn hides(&self, column: &str) -> bool {
        self.drop.contains(column) || self.hash.contains(column) || self.mask.iter().any(|mask| mask.column == column)
    }

    /// Whether feedback is not stored as it is.
    pub(super) fn hides_feedback(&self) -> bool {
        let value = |column: &String| column == VALUES || column.strip_prefix("values.").is_some();
        self.hides(LABEL) || self.drop.iter().any(value)
    }

    /// An entry of feedback as it is stored. `None` where nothing of it is.
    pub(super) fn stored_feedback(&self, entry: &Feedback, key: &HashKey) -> Option<Feedback> {
        let label = entry.label.clone().filter(|_| !self.drop.contains(LABEL));
        let label = label.map(|label| match label {
            Update::Retract => Update::Retract,
            Update::Set(label) => Update::Set(self.stored_label(label, key)),
        });
        let is_dropped = |name: &str| self.drop.contains(VALUES) || self.drop.contains(&format!("values.{name}"));
        let values: Vec<_> = entry.values.iter().filter(|(name, _)| !is_dropped(name)).cloned().collect();
        let is_empty = label.is_none() && values.is_empty();
        (!is_empty).then(|| Feedback { label, values, ..entry.clone() })
    }

    fn stored_label(&self, label: Label, key: &HashKey) -> Label {
        if self.hash.contains(LABEL) {
            let text = match &label {
                Label::Number(number) => number.to_string(),
                Label::Text(text) => text.clone(),
            };
            let hash = key.hash(text.as_bytes());
            return Label::Text(String::from_utf8_lossy(&hash).into_owned());
        }
        match label {
            Label::Text(text) => {
                let mut text = text.into_bytes();
                self.mask.iter().filter(|mask| mask.column == LABEL).for_each(|mask| mask.apply(&mut text));
                // A match may end inside of a character only where the pattern switches Unicode off.
                Label::Text(String::from_utf8_lossy(&text).into_owned())
            }
            number @ Label::Number(_) => number,
        }
    }
}

impl Log {
    /// The keyed hash of a route key, as it is stored where `hash_route_key` is set.
    #[must_use]
    pub(crate) fn hashed_route_key(&self, key: &str) -> String {
        String::from_utf8_lossy(&self.0.key.hash(key.as_bytes())).into_owned()
    }

    /// An output as the log stores it: as it is, hashed or masked. `None` where it is dropped.
    #[must_use]
    pub(crate) fn stored_output(&self, choice: &Choice, name: &str, tensor: &Tensor) -> Option<Tensor> {
        let column = format!("{}.{name}", Side::Outputs.as_str());
        if choice.drop.contains(&column) {
            return None;
        }
        if choice.hash.contains(&column) {
            let mut hashes = Vec::new();
            write_hashes(&mut hashes, &self.0.key, tensor.data());
            // Each after its length (u32).
            let each = hashes.chunks_exact(4 + HashKey::HEX).map(|hash| Bytes::copy_from_slice(&hash[4..]));
            return Tensor::new(tensor.shape().clone(), Data::Bytes(each.collect())).ok();
        }
        let masks: Vec<_> = choice.mask.iter().filter(|mask| mask.column == column).collect();
        match tensor.data() {
            Data::Bytes(texts) if !masks.is_empty() => {
                let masked = texts.iter().map(|text| {
                    let mut text = text.to_vec();
                    for mask in &masks {
                        mask.apply(&mut text);
                    }
                    Bytes::from(text)
                });
                Tensor::new(tensor.shape().clone(), Data::Bytes(masked.collect())).ok()
            }
            _ => Some(tensor.clone()),
        }
    }
}
