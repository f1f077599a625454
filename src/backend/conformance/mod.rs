//! One test suite for all engines. Cases are data; a case that an engine does not support is listed with its reason.
//!
//! The tests with ONNX Runtime need its library. Without it they fail, unless `SLUICEGATE_TEST_WITHOUT_ORT=1` is set.

mod answers;
mod generated;
mod interrupts;
mod memory;
mod refusals;
mod values;

use super::ort::OnnxRuntime;
use super::tract::Tract;
use super::{Backend, Interrupt, Model, RunError, VersionFiles};
use crate::model::{Answer, Checked, InferenceRequest, NamedTensor};
use crate::tensor::{Data, Shape, Tensor};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The engines under test.
fn engines() -> Vec<Arc<dyn Backend>> {
    let mut engines: Vec<Arc<dyn Backend>> = vec![Arc::new(Tract)];
    engines.extend(onnxruntime());
    engines
}

/// ONNX Runtime. `None` only with `SLUICEGATE_TEST_WITHOUT_ORT=1`.
fn onnxruntime() -> Option<Arc<dyn Backend>> {
    match OnnxRuntime::find(None, None) {
        Ok(found) => Some(Arc::new(found)),
        Err(reason) => {
            let waived = std::env::var_os("SLUICEGATE_TEST_WITHOUT_ORT").is_some_and(|v| v == "1");
            assert!(
                waived,
                "ONNX Runtime's library is missing ({reason}). Run `make ort` or set ORT_DYLIB_PATH; \
                 SLUICEGATE_TEST_WITHOUT_ORT=1 skips its half of this suite"
            );
            eprintln!("skipping the tests with ONNX Runtime (SLUICEGATE_TEST_WITHOUT_ORT=1): {reason}");
            None
        }
    }
}

fn fixture(kind: &str, name: &str) -> VersionFiles {
    let dir: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/fixtures", kind, name, "1"].iter().collect();
    assert!(dir.is_dir(), "there is no fixture {}", dir.display());
    VersionFiles::of(dir)
}

fn load(engine: &dyn Backend, dir: &Path) -> Arc<dyn Model> {
    engine.load(&VersionFiles::of(dir)).unwrap_or_else(|e| panic!("{} on {}: {e}", engine.name(), dir.display()))
}

/// Checks inputs against a model's signature. `outputs`: those to compute, all if `None`.
fn request(model: &dyn Model, inputs: &[(&str, Tensor)], outputs: Option<&[&str]>) -> Checked {
    let inputs =
        inputs.iter().map(|(name, tensor)| NamedTensor { name: (*name).to_owned(), tensor: tensor.clone() }).collect();
    let outputs = outputs.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
    let request = InferenceRequest { inputs, outputs, ..Default::default() };
    model.signature().check(request).unwrap_or_else(|e| panic!("{e}: {:?}", e.details))
}

/// Runs once, in a new session.
fn run(model: &Arc<dyn Model>, inputs: &[(&str, Tensor)], outputs: Option<&[&str]>) -> Result<Answer, RunError> {
    let request = request(&**model, inputs, outputs);
    let tensors = Arc::clone(model).session()?.run(&request, &Interrupt::new())?;
    Ok(Answer::named(model.signature(), request.wanted(), tensors))
}

fn tensor(shape: &[usize], data: Data) -> Tensor {
    Tensor::new(Shape::new(shape), data).unwrap()
}

fn floats(shape: &[usize], data: &[f32]) -> Tensor {
    tensor(shape, Data::Fp32(data.to_vec().into()))
}

fn ints(data: &[i64]) -> Tensor {
    tensor(&[data.len()], Data::Int64(data.to_vec().into()))
}

fn strings(data: &[&[u8]]) -> Tensor {
    tensor(&[data.len()], Data::Bytes(data.iter().map(|s| bytes::Bytes::copy_from_slice(s)).collect()))
}
