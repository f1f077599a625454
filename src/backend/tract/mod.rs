//! tract: the built-in engine.
//!
//! It is written in Rust: a failure is an error or a panic, never a signal. It runs fewer models than ONNX Runtime, and
//! most of them slower.

mod build;
mod convert;
mod errors;

use self::build::{Built, OpenInput};
use super::onnx::OnnxFile;
use super::{
    Backend, EmptyInputs, EngineOptions, GraphFacts, Interrupt, LoadError, Model, Provider, RunError, Session,
    VersionFiles,
};
use crate::model::{Checked, Signature, panic_message};
use crate::tensor::Tensor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tract_onnx::prelude::{IntoTValue, TValue, TVec, TractError, TypedSimpleState};
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
        refuse(&files.options)?;
        let file = OnnxFile::read(files)?;
        let built = build::build(&file)?;
        Ok(Arc::new(TractModel { built, graph: file.facts() }))
    }
}

/// What this engine does not have.
///
/// # Errors
/// `Unsupported`, in words.
fn refuse(options: &EngineOptions) -> Result<(), LoadError> {
    if !options.custom_ops.is_empty() {
        let message = "tract cannot load libraries with custom operators: they are made for ONNX Runtime";
        return Err(LoadError::Unsupported(message.to_owned()));
    }
    if !options.providers.is_empty() && !options.providers.contains(&Provider::Cpu) {
        let message = format!("tract runs on the CPU only, and [engine] providers has {}", options.provider_names());
        return Err(LoadError::Unsupported(message));
    }
    Ok(())
}

/// A loaded version: the optimised graph, whose weights all sessions share.
#[derive(Debug)]
struct TractModel {
    built: Built,
    graph: GraphFacts,
}

impl Model for TractModel {
    fn engine(&self) -> &'static str {
        Tract::NAME
    }

    fn signature(&self) -> &Signature {
        &self.built.signature
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
        let Built { signature, plan, open } = &self.model.built;
        // A request with optional inputs is rare, so its state is not kept.
        let open = open.as_ref().filter(|_| !request.optional().is_empty());
        let (plan, inputs) = match open {
            None => (plan, request.inputs().iter().map(convert::into_tract).collect::<Result<TVec<_>, _>>()?),
            Some(open) => (&open.plan, open_inputs(&open.inputs, request)?),
        };
        let mut state = match self.state.take().filter(|_| open.is_none()) {
            Some(state) => state,
            None => plan.spawn().map_err(|e| errors::failed("the engine could not start a run", &e))?,
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
        self.state = Some(state).filter(|_| open.is_none());
        // tract computes all outputs; those that were not requested are dropped here.
        request
            .wanted()
            .iter()
            .map(|i| {
                let spec = &signature.outputs()[*i];
                convert::from_tract(&outputs[*i], spec)
                    .map_err(|e| errors::failed("the model computed an output of another type", &e))
            })
            .collect()
    }
}

/// The inputs of the plan with open inputs: those of the request, and the model's own values.
fn open_inputs(inputs: &[OpenInput], request: &Checked) -> Result<TVec<TValue>, RunError> {
    let input = |input: &OpenInput| match (request.input(input.index), &input.default) {
        (Some(tensor), _) => convert::into_tract(tensor),
        (None, Some(default)) => Ok(Arc::clone(default).into_tvalue()),
        (None, None) => Err(RunError::Failed {
            message: "an input could not be passed to the engine".to_owned(),
            internal: format!("input {} is missing", input.index),
        }),
    };
    inputs.iter().map(input).collect()
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
