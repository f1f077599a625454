//! A request as its primary answered it.

use crate::compare::Tolerance;
use crate::model::{Answer, Checked, Failure, ModelName, RequestId, Version};
use crate::registry::Facts;
use crate::tensor::Tensor;
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
    pub arm: String,
    pub request_id: RequestId,
    pub request: Arc<Checked>,
    pub outcome: Result<Answer, Failure>,
    /// Inside the primary's engine; zero where it failed.
    pub infer: Duration,
    pub tolerance: Tolerance,
}

impl Original {
    /// What it holds in memory.
    pub(super) fn bytes(&self) -> usize {
        let inputs = self.request.inputs().iter();
        let outputs = self.outcome.iter().flat_map(|answer| answer.outputs.iter().map(|(_, tensor)| tensor));
        inputs.chain(outputs).map(Tensor::size).sum()
    }
}
