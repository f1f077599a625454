//! One suite, every engine. Cases are data; what an engine cannot do is listed with its reason.
//!
//! The ONNX Runtime half needs the library: without it these tests fail and say so, unless
//! `SLUICEGATE_TEST_WITHOUT_ORT=1` is set by somebody who means it.

mod answers;
mod generated;
mod memory;
mod refusals;

use super::ort::OnnxRuntime;
use super::tract::Tract;
use super::{Backend, Model, RunError, VersionFiles};
use crate::model::{Answer, Checked, InferenceRequest, NamedTensor};
use crate::tensor::{Data, Shape, Tensor};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Every engine the suite runs against.
fn engines() -> Vec<Arc<dyn Backend>> {
    let mut engines: Vec<Arc<dyn Backend>> = vec![Arc::new(Tract)];
    engines.extend(onnxruntime());
    engines
}

/// ONNX Runtime; `None` only where somebody said that it may be missing.
fn onnxruntime() -> Option<Arc<dyn Backend>> {
    match OnnxRuntime::find(None) {
        Ok(found) => Some(Arc::new(found)),
        Err(reason) => {
            let waived = std::env::var_os("SLUICEGATE_TEST_WITHOUT_ORT").is_some_and(|v| v == "1");
            assert!(
                waived,
                "ONNX Runtime's library is missing, and half of this suite with it ({reason}). Run `make ort`, or set \
                 ORT_DYLIB_PATH; SLUICEGATE_TEST_WITHOUT_ORT=1 says that testing without it is meant"
            );
            eprintln!("not tested with ONNX Runtime, as SLUICEGATE_TEST_WITHOUT_ORT=1 says: {reason}");
            None
        }
    }
}

fn fixture(kind: &str, name: &str) -> VersionFiles {
    let dir: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/fixtures", kind, name, "1"].iter().collect();
    assert!(dir.is_dir(), "there is no fixture {}", dir.display());
    VersionFiles { dir }
}

fn load(engine: &dyn Backend, dir: &Path) -> Arc<dyn Model> {
    engine
        .load(&VersionFiles { dir: dir.to_owned() })
        .unwrap_or_else(|e| panic!("{} on {}: {e}", engine.name(), dir.display()))
}

/// Checks inputs against a model, wanting all outputs or those named.
fn request(model: &dyn Model, inputs: &[(&str, Tensor)], outputs: Option<&[&str]>) -> Checked {
    let inputs =
        inputs.iter().map(|(name, tensor)| NamedTensor { name: (*name).to_owned(), tensor: tensor.clone() }).collect();
    let outputs = outputs.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
    let request = InferenceRequest { inputs, outputs, ..Default::default() };
    model.signature().check(request).unwrap_or_else(|e| panic!("{e}: {:?}", e.details))
}

/// One run in a session of its own.
fn run(model: &Arc<dyn Model>, inputs: &[(&str, Tensor)], outputs: Option<&[&str]>) -> Result<Answer, RunError> {
    let request = request(&**model, inputs, outputs);
    let tensors = Arc::clone(model).session()?.run(&request)?;
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
