//! A logged request, and the reasons why it cannot be used.

use crate::model::{Label, ModelName, Version};
use crate::record::{About, Side};
use crate::tensor::Tensor;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// A logged request with all its rows.
#[derive(Debug)]
pub(super) struct LoggedRequest {
    pub(super) about: Arc<About>,
    pub(super) request_id: String,
    /// The row of its first record. If it is not 0, records are missing.
    pub(super) first_row: i32,
    /// The number of its records.
    pub(super) records: usize,
    pub(super) ts: i64,
    pub(super) arm: String,
    pub(super) role: String,
    pub(super) status: String,
    pub(super) truncated: bool,
    pub(super) infer: Duration,
    /// The rows of the batch in which it ran, including its own.
    pub(super) batch_rows: usize,
    /// One per tensor of the signature, in its order. `None` if it was not recorded, not requested, not given, or cannot be read.
    pub(super) inputs: Vec<Option<Tensor>>,
    pub(super) outputs: Vec<Option<Tensor>>,
    /// The label of each record, if feedback was joined.
    pub(super) labels: Vec<Option<Label>>,
    /// Why a recorded tensor cannot be read.
    pub(super) read_error: Option<String>,
}

/// Why a request is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SkipReason {
    NoAnswer,
    Truncated,
    Hashed,
    Dropped,
    Masked,
    Incomplete,
    Unreadable,
}

impl SkipReason {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            SkipReason::NoAnswer => "no_answer",
            SkipReason::Truncated => "truncated",
            SkipReason::Hashed => "hashed",
            SkipReason::Dropped => "dropped",
            SkipReason::Masked => "masked",
            SkipReason::Incomplete => "incomplete",
            SkipReason::Unreadable => "unreadable",
        }
    }

    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            SkipReason::NoAnswer => "no answer was recorded, or none of its outputs",
            SkipReason::Truncated => "its inputs were left out, because they are larger than max_record_bytes",
            SkipReason::Hashed => "inputs are recorded as hashes",
            SkipReason::Dropped => "inputs are not recorded",
            SkipReason::Masked => "parts of inputs are masked",
            SkipReason::Incomplete => "some of its rows are missing",
            SkipReason::Unreadable => "its tensors cannot be read",
        }
    }
}

impl LoggedRequest {
    /// The status of a successful answer.
    pub(super) const OK: &'static str = "ok";

    #[must_use]
    pub(super) fn version(&self) -> Version {
        self.about.version
    }

    #[must_use]
    pub(super) fn model(&self) -> &ModelName {
        &self.about.model
    }

    /// All inputs with their names, as they were sent. An optional input without a value was not sent.
    ///
    /// # Errors
    /// When one is missing, or may be.
    pub(super) fn inputs(&self) -> Result<Vec<(Arc<str>, Tensor)>, SkipReason> {
        if self.first_row != 0 {
            return Err(SkipReason::Incomplete);
        }
        let any_input_in = |names: &BTreeSet<String>| {
            let mut columns = self.about.signature.all_inputs().iter();
            columns.any(|spec| names.contains(&format!("{}.{}", Side::Inputs.as_str(), spec.name)))
        };
        if any_input_in(&self.about.dropped) {
            return Err(SkipReason::Dropped);
        }
        if any_input_in(&self.about.hashed) {
            return Err(SkipReason::Hashed);
        }
        if any_input_in(&self.about.masked().map(str::to_owned).collect()) {
            return Err(SkipReason::Masked);
        }
        let missing =
            if self.truncated && self.read_error.is_none() { SkipReason::Truncated } else { SkipReason::Unreadable };
        let is_complete = !self.truncated && self.read_error.is_none();
        let (specs, required) = (self.about.signature.all_inputs(), self.about.signature.inputs().len());
        let sent = specs.iter().zip(&self.inputs).enumerate().filter_map(|(i, (spec, tensor))| match tensor {
            Some(tensor) => Some(Ok((Arc::clone(&spec.name), tensor.clone()))),
            None if i >= required && is_complete => None,
            None => Some(Err(missing)),
        });
        sent.collect()
    }

    /// The recorded outputs with their names.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn outputs(&self) -> Result<Vec<(Arc<str>, Tensor)>, SkipReason> {
        let specs = self.about.signature.outputs().iter().zip(&self.outputs);
        let recorded: Vec<_> = specs.filter_map(|(spec, t)| Some((Arc::clone(&spec.name), t.clone()?))).collect();
        if self.status != LoggedRequest::OK || recorded.is_empty() {
            let unreadable = self.status == LoggedRequest::OK && self.read_error.is_some();
            return Err(if unreadable { SkipReason::Unreadable } else { SkipReason::NoAnswer });
        }
        Ok(recorded)
    }
}
