//! tract: the engine that needs nothing installed.
//!
//! It is built in and is plain Rust: what goes wrong in it is an error or a panic, never a signal. It runs fewer
//! models than ONNX Runtime, and most of them slower.

mod build;
mod convert;

use super::onnx::OnnxFile;
use super::{Backend, LoadError, Model, RunError, Session, VersionFiles};
use crate::model::{Checked, Signature, panic_message};
use crate::tensor::Tensor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tract_onnx::prelude::{TVec, TypedRunnableModel, TypedSimpleState};

/// The version of the crate, which it does not say itself; a test holds it to `Cargo.lock`.
pub const VERSION: &str = "0.23.9";

/// tract, as this binary has it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tract;

impl Tract {
    pub const NAME: &'static str = "tract";
}

impl Backend for Tract {
    fn name(&self) -> &'static str {
        Tract::NAME
    }

    fn load(&self, files: &VersionFiles) -> Result<Arc<dyn Model>, LoadError> {
        let file = OnnxFile::read(files)?;
        let (signature, plan) = build::build(&file)?;
        Ok(Arc::new(TractModel { signature, plan }))
    }
}

/// A loaded version: the optimised graph, whose weights every session reads.
#[derive(Debug)]
struct TractModel {
    signature: Signature,
    plan: Arc<TypedRunnableModel>,
}

impl Model for TractModel {
    fn engine(&self) -> &'static str {
        Tract::NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn session(self: Arc<Self>) -> Result<Box<dyn Session>, RunError> {
        Ok(Box::new(TractSession { model: self, state: None }))
    }
}

struct TractSession {
    model: Arc<TractModel>,
    /// What lives from run to run. Gone after a failure: half of a run would still be in it.
    state: Option<TypedSimpleState>,
}

impl Session for TractSession {
    fn run(&mut self, request: &Checked) -> Result<Vec<Tensor>, RunError> {
        let inputs = request.inputs().iter().map(convert::into_tract).collect::<Result<TVec<_>, _>>()?;
        let mut state = match self.state.take() {
            Some(state) => state,
            None => self.model.plan.spawn().map_err(|e| failed("the engine could not start a run", &e))?,
        };
        // Unwind safety: the state is dropped when a panic passes through it.
        let outputs = match catch_unwind(AssertUnwindSafe(|| state.run(inputs))) {
            Ok(outputs) => outputs.map_err(|e| failed("the model failed on this request", &e))?,
            Err(panic) => return Err(panicked(&panic_message(&*panic))),
        };
        self.state = Some(state);
        // The graph is run whole; outputs nobody asked for are dropped here.
        request
            .wanted()
            .iter()
            .map(|i| {
                let spec = &self.model.signature.outputs()[*i];
                convert::from_tract(&outputs[*i], spec)
                    .map_err(|e| failed("the model gave an output of another type", &e))
            })
            .collect()
    }
}

fn failed(message: &str, error: &tract_onnx::prelude::TractError) -> RunError {
    RunError::Failed { message: message.to_owned(), internal: build::shortened(&format!("{error:#}")) }
}

/// Rust panics where integers divide by zero or overflow on division, which is the request's doing.
fn panicked(words: &str) -> RunError {
    if words.contains("attempt to divide") || words.contains("attempt to calculate the remainder") {
        return RunError::Refused(
            "the model cannot take these values: an integer division in it divides by zero, or the smallest integer by -1"
                .to_owned(),
        );
    }
    RunError::Failed {
        message: "the engine panicked on this request".to_owned(),
        internal: format!("panic in tract: {words}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_built_in() {
        let lock = include_str!("../../../Cargo.lock");
        assert!(
            lock.contains(&format!("name = \"tract-onnx\"\nversion = \"{VERSION}\"\n")),
            "say the new version in tract/mod.rs"
        );
    }
}
