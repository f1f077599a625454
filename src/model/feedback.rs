//! Feedback: the true outcome of a prediction, sent later.

use serde::{Deserialize, Serialize};

/// What one entry says about the outcome of one row of one prediction. Entries about a row are merged field by field: the label is a field,
/// and so is each value. The latest `ts` of a field counts. A field that an entry does not name keeps what earlier entries said.
#[derive(Debug, Clone, PartialEq)]
pub struct Feedback {
    /// The id of the prediction. The server may not know it, or not know it yet.
    pub request_id: String,
    pub row: u32,
    /// The time of the outcome, in microseconds since 1970 (UTC). Of several entries that name a field, the latest counts, and of
    /// entries with equal times the one received last.
    pub ts: i64,
    /// `None`: the entry does not name the label.
    pub label: Option<Update<Label>>,
    /// Business measures by name, for example revenue. Each name occurs once.
    pub values: Vec<(String, Update<f64>)>,
}

/// What an entry says about a field that it names.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Update<T> {
    Set(T),
    /// `null` in the request: what was said before no longer holds.
    Retract,
}

impl<T> Update<T> {
    /// The value. `None` where it is retracted.
    #[must_use]
    pub fn value(&self) -> Option<&T> {
        match self {
            Update::Set(value) => Some(value),
            Update::Retract => None,
        }
    }
}

/// The correct prediction. A boolean is stored as the number 0 or 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Label {
    Number(f64),
    Text(String),
}
