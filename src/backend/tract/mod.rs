//! tract: the built-in engine.
//!
//! It is written in Rust: a failure is an error or a panic, never a signal. It runs fewer models than ONNX Runtime, and
//! most of them slower.

mod build;
mod convert;
mod errors;

use super::onnx::OnnxFile;
use super::{Backend, EmptyInputs, GraphFacts, Interrupt, LoadError, Model, RunError, Session, VersionFiles};
use crate::model::{Checked, Signature, panic_message};
use crate::tensor::Tensor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tract_onnx::prelude::{TVec, TractError, TypedRunnableModel, TypedSimpleState};
use tract_onnx::tract_core::plan::eval;

/// The version of the crate, which has no constant for it. A test compares it with `Cargo.lock`.
pub(super) const VERSION: &str = "0.23.9";

/// The engine tract.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tract;

impl Tract {
    pub(super) const NAME: &'static str = "tract";
}

impl Backend for Tract {
    fn name(&self) -> &'static str {
        Tract::NAME
    }

    fn load(&self, files: &VersionFiles) -> Result<Arc<dyn Model>, LoadError> {
        let file = OnnxFile::read(files)?;
        let (signature, plan) = build::build(&file)?;
        Ok(Arc::new(TractModel { signature, graph: file.facts(), plan }))
    }
}

/// A loaded version: the optimised graph, whose weights all sessions share.
#[derive(Debug)]
struct TractModel {
    signature: Signature,
    graph: GraphFacts,
    plan: Arc<TypedRunnableModel>,
}

impl Model for TractModel {
    fn engine(&self) -> &'static str {
        Tract::NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn graph(&self) -> &GraphFacts {
        &self.graph
    }

    fn limit_outputs(&self, _bytes: usize) {}

    fn empty_inputs(&self) -> &EmptyInputs {
        &EmptyInputs::Any
    }

    fn session(self: Arc<Self>) -> Result<Box<dyn Session>, RunError> {
        Ok(Box::new(TractSession { model: self, state: None }))
    }
}

struct TractSession {
    model: Arc<TractModel>,
    /// Reused from run to run. Dropped after a failure, because it may contain half of a run.
    state: Option<TypedSimpleState>,
}

impl Session for TractSession {
    fn run(&mut self, request: &Checked, interrupt: &Interrupt) -> Result<Vec<Tensor>, RunError> {
        let inputs = request.inputs().iter().map(convert::into_tract).collect::<Result<TVec<_>, _>>()?;
        let mut state = match self.state.take() {
            Some(state) => state,
            None => self.model.plan.spawn().map_err(|e| errors::failed("the engine could not start a run", &e))?,
        };
        // Unwind safety: the state is dropped on a panic.
        // tract has no flag of its own. This looks at ours before each node; one node (a `Scan` is one) runs to its end.
        let ran = catch_unwind(AssertUnwindSafe(|| {
            state.run_plan_with_eval(inputs, |context, own, node, inputs| {
                if interrupt.is_requested() {
                    return Err(TractError::msg("interrupted"));
                }
                eval(context, own, node, inputs)
            })
        }));
        let outputs = match ran {
            Ok(Err(_)) if interrupt.is_requested() => return Err(RunError::Interrupted),
            Ok(outputs) => outputs.map_err(|e| errors::run_error(&e))?,
            Err(panic) => return Err(errors::panicked(&panic_message(&*panic))),
        };
        self.state = Some(state);
        // tract computes all outputs; those that were not requested are dropped here.
        request
            .wanted()
            .iter()
            .map(|i| {
                let spec = &self.model.signature.outputs()[*i];
                convert::from_tract(&outputs[*i], spec)
                    .map_err(|e| errors::failed("the model computed an output of another type", &e))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_lock_file() {
        let lock = include_str!("../../../Cargo.lock");
        assert!(
            lock.contains(&format!("name = \"tract-onnx\"\nversion = \"{VERSION}\"\n")),
            "update VERSION in tract/mod.rs"
        );
    }
}
