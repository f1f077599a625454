//! A request with the answer of its primary.

use crate::model::{Answer, Checked, Failure};
use crate::registry::{RequestContext, Timing};
use crate::tensor::Tensor;
use std::sync::Arc;

/// A request that is copied to shadows, and the outcome that their answers are compared with.
#[derive(Debug)]
pub struct Original {
    /// Of the primary.
    pub context: RequestContext,
    pub request: Arc<Checked>,
    pub outcome: Result<Answer, Failure>,
    pub timing: Timing,
    /// The primary's record was offered to the log.
    pub recorded: bool,
}

impl Original {
    /// The size of its tensors in memory.
    pub(super) fn bytes(&self) -> usize {
        let inputs = self.request.tensors();
        let outputs = self.outcome.iter().flat_map(|answer| answer.outputs.iter().map(|(_, tensor)| tensor));
        inputs.chain(outputs).map(Tensor::size).sum()
    }
}
