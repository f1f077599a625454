//! What really happened after a prediction.

/// The truth about one row of one prediction, as far as it is known yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Feedback {
    /// The prediction's; it may be unknown still, or for ever.
    pub request_id: String,
    pub row: u32,
    /// When it was so; microseconds since 1970, UTC. Of several for one row the latest counts.
    pub ts: i64,
    pub label: Option<Label>,
    /// Business measures by name: revenue, clicked. A name stands once.
    pub values: Vec<(String, f64)>,
}

/// What the prediction should have been. A boolean is the number 0 or 1.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    Number(f64),
    Text(String),
}
