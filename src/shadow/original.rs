//! A request as its primary answered it.

use crate::compare::Tolerance;
use crate::model::{Answer, Checked, Failure, ModelName, RequestId, Role, Version};
use crate::record::Stream;
use crate::registry::Facts;
use crate::tensor::Tensor;
use bytestring::ByteString;
use std::sync::Arc;
use std::time::Duration;

/// What shadows are given, and held against.
#[derive(Debug)]
pub struct Original {
    pub model: ModelName,
    pub primary: Version,
    /// The primary's: its signature, which the request was checked against, and its bytes' sum.
    pub facts: Arc<Facts>,
    /// The primary's arm.
    pub arm: ByteString,
    pub request_id: RequestId,
    pub request: Arc<Checked>,
    pub outcome: Result<Answer, Failure>,
    /// Inside the primary's engine; zero where it failed.
    pub infer: Duration,
    pub tolerance: Tolerance,
    /// Of the traffic document that sent it to its primary and to its shadows.
    pub revision: u64,
    /// What the records of its shadows need; `None` where the model is not recorded.
    pub recording: Option<Recording>,
}

/// What is known of a request beside what it asked and was answered.
#[derive(Debug)]
pub struct Recording {
    /// The primary's.
    pub stream: Arc<Stream>,
    pub role: Role,
    /// When its body had been read; microseconds since 1970, UTC.
    pub ts: i64,
    pub latency: Duration,
    /// Rows that ran together.
    pub batch_rows: usize,
    pub route_key: Option<String>,
    pub traceparent: Option<String>,
    /// It is in the sample, and so are the records of its shadows.
    pub sampled: bool,
    /// The primary's record was offered.
    pub kept: bool,
}

impl Original {
    /// What it holds in memory.
    pub(super) fn bytes(&self) -> usize {
        let inputs = self.request.inputs().iter();
        let outputs = self.outcome.iter().flat_map(|answer| answer.outputs.iter().map(|(_, tensor)| tensor));
        inputs.chain(outputs).map(Tensor::size).sum()
    }
}
