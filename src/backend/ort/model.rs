//! One version, loaded into ONNX Runtime.

use super::library::Library;
use super::providers::Providers;
use super::scratch::Scratch;
use super::values::{Output, Value, check};
use super::weights::Weights;
use super::{OnnxRuntime, errors, trap};
use crate::backend::onnx::{DeclaredOutput, OnnxFile};
use crate::backend::{EmptyInputs, GraphFacts, Interrupt, LoadError, Model, RunError, Session};
use crate::model::{Checked, Dim, Signature, TensorSpec};
use crate::tensor::{DataType, Tensor};
use ort::session::Session as EngineSession;
use ort::sys::OrtValue;
use ort::value::{Outlet, TensorElementType, ValueType};
use ort::{AsPointer, Error, api};
use smallvec::{SmallVec, smallvec};
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How the engine is set up.
#[derive(Debug)]
pub(super) struct Setup {
    /// The files of libraries with custom operators.
    pub custom_ops: Vec<PathBuf>,
    pub providers: Providers,
}

/// A loaded version.
#[derive(Debug)]
pub(super) struct OrtModel {
    /// Only used by shared reference: many threads call `Run` on its pointer at once.
    engine: EngineSession,
    signature: Signature,
    graph: GraphFacts,
    /// Of all inputs, the optional ones last.
    inputs: Names,
    outputs: Names,
    /// The most bytes of all outputs of a run.
    most: AtomicUsize,
}

impl OrtModel {
    pub(super) fn load(library: &Library, file: OnnxFile, setup: &Setup) -> Result<OrtModel, LoadError> {
        let (inputs, mut optional) = (file.inputs()?, file.optional_inputs());
        let declared = file.outputs()?;
        let path = file.dir().join(crate::backend::VersionFiles::MODEL);
        let weights = Weights::read(&file)?;
        let scratch = Scratch::of(file.bytes().len() + weights.bytes(), &inputs);
        let (graph, dir) = (file.facts(), file.dir().to_owned());
        // The engine reads the file by itself. Both copies at once would add the size of the file to the peak.
        drop(file);
        // `ort` panics on type descriptions it does not know.
        let loaded = catch_unwind(AssertUnwindSafe(|| trap::guarded(|| open(library, &path, weights, scratch, setup))));
        let engine = match loaded {
            Ok(Ok(Ok(engine))) => engine,
            Ok(Ok(Err(error))) => return Err(errors::load_error(&error, &dir)),
            Ok(Err(trapped)) => return Err(errors::trapped_load(trapped)),
            Err(_) => {
                return Err(LoadError::Unsupported(
                    "the model has inputs or outputs of an unsupported type".to_owned(),
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
        if !optional.is_empty() {
            // As for the load, `ort` may panic on types. Then none is offered.
            let found = catch_unwind(AssertUnwindSafe(|| engine.overridable_initializers())).unwrap_or_default();
            optional.retain(|spec| found.iter().any(|found| found.name() == &*spec.name));
        }
        Ok(OrtModel {
            inputs: Names::new(inputs.iter().chain(&optional).map(|spec| &*spec.name))?,
            outputs: Names::new(outputs.iter().map(|spec| &*spec.name))?,
            signature: Signature::new(inputs, outputs).with_optional_inputs(optional),
            graph,
            engine,
            most: AtomicUsize::new(usize::MAX),
        })
    }

    /// The names of the tensors of a request, in their order.
    fn names_of(&self, request: &Checked) -> SmallVec<[*const c_char; 8]> {
        let required = self.signature.inputs().len();
        let optional = request.optional().iter().map(|(i, _)| required + i);
        (0..required).chain(optional).map(|i| self.inputs.pointer(i)).collect()
    }

    #[expect(
        unsafe_code,
        reason = "`ort`'s own `run` needs exclusive access, which would mean one copy of the weights per thread"
    )]
    fn run(&self, request: &Checked, interrupt: &Interrupt) -> Result<Vec<Tensor>, RunError> {
        let options = interrupt.ort_options().map_err(|e| errors::run_error(&e))?;
        if interrupt.is_requested() {
            return Err(RunError::Interrupted);
        }
        let lent: SmallVec<[Value<'_>; 8]> =
            request.tensors().map(Value::lend).collect::<Result<_, Error>>().map_err(|e| errors::run_error(&e))?;
        let inputs: SmallVec<[*const OrtValue; 8]> = lent.iter().map(|value| value.as_ptr().cast_const()).collect();
        let input_names: SmallVec<[*const c_char; 8]> = self.names_of(request);
        let names: SmallVec<[*const c_char; 8]> = request.wanted().iter().map(|i| self.outputs.pointer(*i)).collect();
        let mut outputs: SmallVec<[*mut OrtValue; 8]> = smallvec![null_mut(); names.len()];
        let ran = trap::guarded(|| {
            // SAFETY: the session is alive. Every array has the length passed with it and holds live values and
            // NUL-terminated names. The options outlive the call: their thread's `Interrupt` owns them and never replaces them.
            // Another thread may set their flag meanwhile, which the engine allows.
            //
            // Many threads make this call on one session at once. ONNX Runtime allows it ("Multiple threads are allowed to
            // run this function; hence its thread-safe.", `InferenceSession::Run` in
            // onnxruntime/core/session/inference_session.h) with the CPU provider, the only one registered here.
            // `ort` takes `&mut self` because other providers break that promise. No `&mut` to the session exists: the
            // field is private, and `OrtModel` is only shared.
            let status = unsafe {
                (api().Run)(
                    self.engine.ptr().cast_mut(),
                    options.ptr(),
                    input_names.as_ptr(),
                    inputs.as_ptr(),
                    inputs.len(),
                    names.as_ptr(),
                    names.len(),
                    outputs.as_mut_ptr(),
                )
            };
            check(status)
        });
        // SAFETY: null, or made by the run and owned by the caller. Wrapped first, so that they are released on every path.
        let outputs: SmallVec<[Option<Value<'static>>; 8]> =
            outputs.into_iter().map(|o| unsafe { Value::take(o) }).collect();
        // The engine has no error code for a run that was ended, so the flag tells. A run that failed for another reason while the flag
        // was set counts as interrupted too. The engine frees what the run had computed, and the session stays usable.
        ran.map_err(errors::trapped_run)?.map_err(|error| {
            if interrupt.is_requested() { RunError::Interrupted } else { errors::run_error(&error) }
        })?;
        drop(lent);
        let mut found = SmallVec::<[Output; 8]>::new();
        for value in outputs {
            let value = value.ok_or_else(|| Error::new("an output has no value"));
            found.push(value.and_then(Output::of).map_err(|e| errors::run_error(&e))?);
        }
        let bytes = found.iter().fold(0usize, |sum, output| sum.saturating_add(output.bytes()));
        let most = self.most.load(Ordering::Relaxed);
        if bytes > most {
            return Err(RunError::OutputsTooLarge { bytes, most });
        }
        // Each is freed by the engine before the next is copied.
        found.into_iter().map(|output| output.copy().map_err(|e| errors::run_error(&e))).collect()
    }
}

impl Model for OrtModel {
    fn engine(&self) -> &'static str {
        OnnxRuntime::NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn graph(&self) -> &GraphFacts {
        &self.graph
    }

    fn limit_outputs(&self, bytes: usize) {
        self.most.store(bytes, Ordering::Relaxed);
    }

    fn empty_inputs(&self) -> &EmptyInputs {
        &EmptyInputs::Any
    }

    fn session(self: Arc<Self>) -> Result<Box<dyn Session>, RunError> {
        Ok(Box::new(OrtSession(self)))
    }
}

/// A handle to the shared session. Nothing is kept between runs.
struct OrtSession(Arc<OrtModel>);

impl Session for OrtSession {
    fn run(&mut self, request: &Checked, interrupt: &Interrupt) -> Result<Vec<Tensor>, RunError> {
        self.0.run(request, interrupt)
    }
}

/// The names of all inputs or of all outputs as C strings, made once.
#[derive(Debug)]
struct Names {
    pointers: Vec<*const c_char>,
    /// The strings that `pointers` point at. Never changed.
    _strings: Vec<CString>,
}

#[expect(unsafe_code, reason = "raw pointers are not Send or Sync by themselves")]
// SAFETY: the pointers are to strings that this value owns and never writes.
unsafe impl Send for Names {}
#[expect(unsafe_code, reason = "raw pointers are not Send or Sync by themselves")]
// SAFETY: as above.
unsafe impl Sync for Names {}

impl Names {
    fn new<'n>(names: impl Iterator<Item = &'n str>) -> Result<Names, LoadError> {
        let strings: Vec<CString> = names
            .map(CString::new)
            .collect::<Result<_, _>>()
            .map_err(|_| LoadError::Unsupported("the name of an input or an output contains a NUL".to_owned()))?;
        Ok(Names { pointers: strings.iter().map(|s| s.as_ptr()).collect(), _strings: strings })
    }

    fn pointer(&self, i: usize) -> *const c_char {
        self.pointers[i]
    }
}

/// Makes the engine's session. It uses one thread, the calling one, so that no other thread has to be woken. Memory patterns
/// are off: they made no run faster, and keep a plan for every input shape they have seen.
fn open(
    library: &Library,
    path: &Path,
    weights: Weights,
    scratch: Scratch,
    setup: &Setup,
) -> Result<EngineSession, Error> {
    let mut builder = EngineSession::builder(&library.environment)?
        .with_intra_threads(1)?
        .with_inter_threads(1)?
        .with_parallel_execution(false)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_memory_pattern(false)?;
    for file in &setup.custom_ops {
        builder = builder.with_operator_library(file).map_err(|error| errors::library_error(&error, file))?;
    }
    let mut builder = setup.providers.add_to(builder, scratch)?;
    weights.add_to(&builder)?;
    let session = builder.commit_from_file(path);
    drop(weights);
    session
}

/// The output as the file declares it, completed by what the engine infers.
fn output_spec(declared: DeclaredOutput, found: Option<&Outlet>) -> Result<TensorSpec, LoadError> {
    let name = declared.name;
    let Some(ValueType::Tensor { ty, shape, dimension_symbols }) = found.map(Outlet::dtype) else {
        return Err(LoadError::Unsupported(format!(
            "output {name:?} is not a tensor; only tensors can be served: export the model without it"
        )));
    };
    let Some(datatype) = declared.datatype.or_else(|| datatype(*ty)) else {
        return Err(LoadError::Unsupported(format!(
            "output {name:?} has element type {ty}, which answers cannot contain: cast it inside the model to a type of the Open \
             Inference Protocol"
        )));
    };
    // The engine reports rank 0 for a scalar and for an unknown rank; such an output is taken as of unknown rank.
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
