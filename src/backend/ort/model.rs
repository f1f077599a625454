//! One version, loaded into ONNX Runtime.

use super::library::Library;
use super::scratch::Scratch;
use super::values::{Value, check, copy_out};
use super::weights::Weights;
use super::{OnnxRuntime, trap, words};
use crate::backend::onnx::{DeclaredOutput, OnnxFile};
use crate::backend::{LoadError, Model, RunError, Session};
use crate::model::{Checked, Dim, Signature, TensorSpec};
use crate::tensor::{DataType, Tensor};
use ort::ep::CPU;
use ort::session::Session as EngineSession;
use ort::sys::OrtValue;
use ort::value::{Outlet, TensorElementType, ValueType};
use ort::{AsPointer, Error, api};
use smallvec::{SmallVec, smallvec};
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::Arc;

/// A loaded version.
#[derive(Debug)]
pub struct OrtModel {
    /// Only ever used by reference: `Run` is called on its pointer from many threads at once, which no `&mut` may
    /// share.
    engine: EngineSession,
    signature: Signature,
    inputs: Names,
    outputs: Names,
}

impl OrtModel {
    pub fn load(library: &Library, file: &OnnxFile) -> Result<OrtModel, LoadError> {
        let inputs = file.inputs()?;
        let declared = file.outputs()?;
        let path = file.dir().join(crate::backend::VersionFiles::MODEL);
        let weights = Weights::read(file)?;
        let scratch = Scratch::of(file.bytes().len() + weights.bytes(), &inputs);
        // `ort` panics on type descriptions it does not know; the version is then refused like any other it cannot
        // take.
        let loaded = catch_unwind(AssertUnwindSafe(|| trap::guarded(|| open(library, &path, weights, scratch))));
        let engine = match loaded {
            Ok(Ok(Ok(engine))) => engine,
            Ok(Ok(Err(error))) => return Err(words::load_error(&error, file.dir())),
            Ok(Err(trapped)) => return Err(words::trapped_load(trapped)),
            Err(_) => {
                return Err(LoadError::Unsupported(
                    "the model has inputs or outputs of a type that cannot be served".to_owned(),
                ));
            }
        };
        let outputs = declared
            .into_iter()
            .map(|declared| {
                let found = engine.outputs().iter().find(|found| found.name() == &*declared.name);
                output_spec(declared, found)
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(OrtModel {
            inputs: Names::new(inputs.iter().map(|spec| &*spec.name))?,
            outputs: Names::new(outputs.iter().map(|spec| &*spec.name))?,
            signature: Signature::new(inputs, outputs),
            engine,
        })
    }

    #[expect(
        unsafe_code,
        reason = "ort's own `run` takes the session exclusively, which would mean one copy of the weights per thread"
    )]
    fn run(&self, request: &Checked) -> Result<Vec<Tensor>, RunError> {
        let lent: SmallVec<[Value<'_>; 8]> =
            request.inputs().iter().map(Value::lend).collect::<Result<_, Error>>().map_err(|e| words::run_error(&e))?;
        let inputs: SmallVec<[*const OrtValue; 8]> = lent.iter().map(|value| value.as_ptr().cast_const()).collect();
        let names: SmallVec<[*const c_char; 8]> = request.wanted().iter().map(|i| self.outputs.pointer(*i)).collect();
        let mut outputs: SmallVec<[*mut OrtValue; 8]> = smallvec![null_mut(); names.len()];
        let ran = trap::guarded(|| {
            // SAFETY: the session is alive, and every array is as long as said, of live values and NUL-terminated
            // names.
            //
            // Many threads make this call on one session. ONNX Runtime allows it ("Multiple threads are allowed to
            // run this function; hence its thread-safe.", `InferenceSession::Run` in
            // onnxruntime/core/session/inference_session.h), for the CPU provider, the only one registered here.
            // `ort` takes `&mut self` because other providers break that promise. No `&mut` to the session exists: it
            // is private, and `OrtModel` is only ever shared.
            let status = unsafe {
                (api().Run)(
                    self.engine.ptr().cast_mut(),
                    null(),
                    self.inputs.all(),
                    inputs.as_ptr(),
                    inputs.len(),
                    names.as_ptr(),
                    names.len(),
                    outputs.as_mut_ptr(),
                )
            };
            check(status)
        });
        // SAFETY: null, or made by the run for us. Taken before anything else, so that they are released whatever
        // happened.
        let outputs: SmallVec<[Option<Value<'static>>; 8]> =
            outputs.into_iter().map(|o| unsafe { Value::take(o) }).collect();
        ran.map_err(words::trapped_run)?.map_err(|e| words::run_error(&e))?;
        let mut tensors = Vec::with_capacity(outputs.len());
        for value in &outputs {
            let value = value.as_ref().ok_or_else(|| Error::new("an output has no value"));
            tensors.push(value.and_then(copy_out).map_err(|e| words::run_error(&e))?);
        }
        Ok(tensors)
    }
}

impl Model for OrtModel {
    fn engine(&self) -> &'static str {
        OnnxRuntime::NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn session(self: Arc<Self>) -> Result<Box<dyn Session>, RunError> {
        Ok(Box::new(OrtSession(self)))
    }
}

/// A handle to the shared session, which nothing has to be kept for between runs.
struct OrtSession(Arc<OrtModel>);

impl Session for OrtSession {
    fn run(&mut self, request: &Checked) -> Result<Vec<Tensor>, RunError> {
        self.0.run(request)
    }
}

/// The names of one side, as C wants them, made once.
#[derive(Debug)]
struct Names {
    pointers: Vec<*const c_char>,
    /// What `pointers` point at; never touched again.
    _strings: Vec<CString>,
}

#[expect(unsafe_code, reason = "raw pointers say nothing about threads")]
// SAFETY: the pointers are to strings this owns, which are never written.
unsafe impl Send for Names {}
#[expect(unsafe_code, reason = "raw pointers say nothing about threads")]
// SAFETY: as above.
unsafe impl Sync for Names {}

impl Names {
    fn new<'n>(names: impl Iterator<Item = &'n str>) -> Result<Names, LoadError> {
        let strings: Vec<CString> = names
            .map(CString::new)
            .collect::<Result<_, _>>()
            .map_err(|_| LoadError::Unsupported("an input's or output's name holds a NUL".to_owned()))?;
        Ok(Names { pointers: strings.iter().map(|s| s.as_ptr()).collect(), _strings: strings })
    }

    fn all(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }

    fn pointer(&self, i: usize) -> *const c_char {
        self.pointers[i]
    }
}

/// Makes the engine's session. It is given one thread, which is the one that asks: nothing to wake, nothing to spin. Memory patterns
/// are off: they changed no run time, and keep a plan for every input shape ever seen.
fn open(library: &Library, path: &Path, weights: Weights, scratch: Scratch) -> Result<EngineSession, Error> {
    let builder = EngineSession::builder(&library.environment)?
        .with_intra_threads(1)?
        .with_inter_threads(1)?
        .with_parallel_execution(false)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_memory_pattern(false)?
        .with_execution_providers([CPU::default().with_arena_allocator(scratch == Scratch::Arena).build()])?;
    weights.give_to(builder)?.commit_from_file(path)
}

/// What the file declares, with the engine's inference where it declares nothing.
fn output_spec(declared: DeclaredOutput, found: Option<&Outlet>) -> Result<TensorSpec, LoadError> {
    let name = declared.name;
    let Some(ValueType::Tensor { ty, shape, dimension_symbols }) = found.map(Outlet::dtype) else {
        return Err(LoadError::Unsupported(format!(
            "output {name:?} is not a tensor; only tensors can be served: export the model without it"
        )));
    };
    let Some(datatype) = declared.datatype.or_else(|| datatype(*ty)) else {
        return Err(LoadError::Unsupported(format!(
            "output {name:?} has element type {ty}, which no answer can carry: cast it to one of the Open Inference Protocol's \
             types inside the model"
        )));
    };
    // Without declared dimensions the engine's own inference helps; of rank 0 it cannot say whether that is a scalar
    // or unknown.
    let inferred = || {
        let dims = shape.iter().zip(dimension_symbols.iter()).map(|(extent, symbol)| match usize::try_from(*extent) {
            Ok(extent) => Dim::Fixed(extent),
            Err(_) => Dim::Free((!symbol.is_empty()).then(|| symbol.as_str().into())),
        });
        (!shape.is_empty()).then(|| dims.collect())
    };
    Ok(TensorSpec { name, datatype, dims: declared.dims.or_else(inferred) })
}

fn datatype(element_type: TensorElementType) -> Option<DataType> {
    Some(match element_type {
        TensorElementType::Bool => DataType::Bool,
        TensorElementType::Uint8 => DataType::Uint8,
        TensorElementType::Uint16 => DataType::Uint16,
        TensorElementType::Uint32 => DataType::Uint32,
        TensorElementType::Uint64 => DataType::Uint64,
        TensorElementType::Int8 => DataType::Int8,
        TensorElementType::Int16 => DataType::Int16,
        TensorElementType::Int32 => DataType::Int32,
        TensorElementType::Int64 => DataType::Int64,
        TensorElementType::Float16 => DataType::Fp16,
        TensorElementType::Float32 => DataType::Fp32,
        TensorElementType::Float64 => DataType::Fp64,
        TensorElementType::String => DataType::Bytes,
        _ => return None,
    })
}
