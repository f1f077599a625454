//! Feedback: the true outcome of a prediction, sent later.

/// The outcome of one row of one prediction, as far as it is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Feedback {
    /// The id of the prediction. The server may not know it, or not know it yet.
    pub request_id: String,
    pub row: u32,
    /// The time of the outcome, in microseconds since 1970 (UTC). Of several entries for one row, the latest wins.
    pub ts: i64,
    pub label: Option<Label>,
    /// Business measures by name, for example revenue. Each name occurs once.
    pub values: Vec<(String, f64)>,
}

/// The correct prediction. A boolean is stored as the number 0 or 1.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    Number(f64),
    Text(String),
}
