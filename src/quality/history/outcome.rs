//! What feedback said about one row: of each field, the latest.

use crate::model::{Feedback, Label, Update};
use serde::{Deserialize, Serialize};

/// The `ts` of an entry and when it was received. Of two entries about a field, the later counts.
type Time = (i64, i64);

/// What all entries about a row say, merged.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Outcome {
    label: Option<(Time, Update<Label>)>,
    /// By the number of the value's name, each once. NaN: retracted.
    values: Vec<(u16, Time, f64)>,
    /// The smallest `ts` of any entry.
    pub first_ts: i64,
}

/// The most values that are kept of a row.
const MAX_VALUES: usize = 100;

impl Outcome {
    /// Adds an entry. `number` gives the number of a value's name; a value without one is left out.
    pub(super) fn merge(&mut self, entry: &Feedback, received_at: i64, mut number: impl FnMut(&str) -> Option<u16>) {
        let time = (entry.ts, received_at);
        let is_first = self.label.is_none() && self.values.is_empty();
        self.first_ts = if is_first { entry.ts } else { self.first_ts.min(entry.ts) };
        if let Some(label) = &entry.label
            && self.label.as_ref().is_none_or(|(known, _)| *known <= time)
        {
            // The strings were allocated for the request. Exact copies do not keep what was reserved for it.
            let label = match label {
                Update::Set(Label::Text(text)) => Update::Set(Label::Text(text.as_str().to_owned())),
                other => other.clone(),
            };
            self.label = Some((time, label));
        }
        for (name, value) in &entry.values {
            let Some(name) = number(name) else { continue };
            let value = value.value().copied().unwrap_or(f64::NAN);
            match self.values.iter().position(|(known, ..)| *known == name) {
                Some(at) if self.values[at].1 <= time => self.values[at] = (name, time, value),
                None if self.values.len() < MAX_VALUES => self.values.push((name, time, value)),
                _ => {}
            }
        }
    }

    /// Adds what other entries about the row said. The numbers of names are those of this outcome.
    pub(super) fn add(&mut self, other: &Outcome) {
        if *self == Outcome::default() {
            self.clone_from(other);
            return;
        }
        self.first_ts = self.first_ts.min(other.first_ts);
        if let Some((time, label)) = &other.label
            && self.label.as_ref().is_none_or(|(known, _)| known <= time)
        {
            self.label = Some((*time, label.clone()));
        }
        for value in &other.values {
            match self.values.iter().position(|(known, ..)| *known == value.0) {
                Some(at) if self.values[at].1 <= value.1 => self.values[at] = *value,
                None if self.values.len() < MAX_VALUES => self.values.push(*value),
                _ => {}
            }
        }
    }

    /// The same with other numbers of names. A value whose name has none is left out.
    pub(super) fn renamed(&self, mut number: impl FnMut(u16) -> Option<u16>) -> Outcome {
        let values = self.values.iter().filter_map(|(name, time, value)| Some((number(*name)?, *time, *value)));
        Outcome { label: self.label.clone(), values: values.take(MAX_VALUES).collect(), first_ts: self.first_ts }
    }

    /// The numbers of the names of its values.
    pub(super) fn names(&self) -> impl Iterator<Item = u16> {
        self.values.iter().map(|(name, ..)| *name)
    }

    /// The values that hold, by the numbers of their names.
    pub(crate) fn values(&self) -> impl Iterator<Item = (u16, f64)> {
        self.values.iter().map(|(name, _, value)| (*name, *value)).filter(|(_, value)| !value.is_nan())
    }

    /// The label. `None` where none came, or where the latest entry retracts it.
    #[must_use]
    pub fn label(&self) -> Option<&Label> {
        self.label.as_ref().and_then(|(_, label)| label.value())
    }

    /// The value with this number of its name. `None` where none came, or where the latest entry retracts it.
    #[must_use]
    pub fn value(&self, name: u16) -> Option<f64> {
        self.values.iter().find(|(known, ..)| *known == name).map(|(.., value)| *value).filter(|value| !value.is_nan())
    }

    pub(super) fn bytes(&self) -> usize {
        let text = if let Some((_, Update::Set(Label::Text(text)))) = &self.label { text.len() } else { 0 };
        size_of::<Outcome>() + 16 + text + self.values.capacity() * size_of::<(u16, Time, f64)>()
    }
}
