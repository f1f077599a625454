//! Builds a graph that tract can run from a file, and keeps the free dimensions free.

use super::convert;
use crate::backend::LoadError;
use crate::backend::onnx::{DeclaredOutput, OnnxFile};
use crate::model::panic_message;
use crate::model::{Dim, Signature, TensorSpec};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tract_onnx::data_resolver::FopenDataResolver;
use tract_onnx::prelude::{
    Datum, DatumType, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, TVec, Tensor,
    TractResult, TypedModel, TypedRunnableModel,
};
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::{ShapeFactoid, SpecialOps, Symbol, TDim, bail};

/// The graph of a version, ready to run.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) signature: Signature,
    pub(super) plan: Arc<TypedRunnableModel>,
    /// The graph once more, for requests that give optional inputs.
    pub(super) open: Option<OpenPlan>,
}

/// A graph with the optional inputs open. In [`Built::plan`] their values are constants that tract has computed with.
#[derive(Debug)]
pub(super) struct OpenPlan {
    pub(super) plan: Arc<TypedRunnableModel>,
    /// Its inputs in its order.
    pub(super) inputs: Vec<OpenInput>,
}

#[derive(Debug)]
pub(super) struct OpenInput {
    /// Among [`Signature::all_inputs`].
    pub(super) index: usize,
    /// The value where a request gives none; `None` for an input that every request gives.
    pub(super) default: Option<Arc<Tensor>>,
}

pub(super) fn build(file: &OnnxFile) -> Result<Built, LoadError> {
    let inputs = file.inputs()?;
    let declared = file.outputs()?;
    refuse_unknown_operators(file)?;
    refuse_unknown_opset(file)?;
    // tract panics on some models; such a version is refused like any other that cannot be loaded.
    let built = catch_unwind(AssertUnwindSafe(|| parse_and_optimise(file, &inputs)));
    let (names, plan) = match built {
        Ok(Ok(built)) => built,
        Ok(Err(error)) => return Err(unsupported(file, &format!("{error:#}"))),
        Err(panic) => return Err(unsupported(file, &format!("panic: {}", panic_message(&*panic)))),
    };
    let outputs = declared
        .into_iter()
        .enumerate()
        .map(|(i, output)| output_spec(file, output, i, &plan, &names))
        .collect::<Result<Vec<_>, _>>()?;
    let signature = Signature::new(inputs, outputs);
    let optional = file.optional_inputs();
    if optional.is_empty() {
        return Ok(Built { signature, plan, open: None });
    }
    // Not every graph can be built without these values: the shape of a Reshape is one. They stay constants then.
    let with_optional = signature.with_optional_inputs(optional);
    let open = catch_unwind(AssertUnwindSafe(|| open_plan(file, &with_optional)));
    Ok(match open {
        Ok(Ok(open)) => Built { signature: with_optional, plan, open: Some(open) },
        _ => Built { signature, plan, open: None },
    })
}

/// Shortens an error chain, which may contain the debug form of a graph, to one line of at most 600 characters.
pub(super) fn shortened(message: &str) -> String {
    const MOST: usize = 600;
    let one_line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match one_line.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &one_line[..at]),
        None => one_line,
    }
}

fn refuse_unknown_operators(file: &OnnxFile) -> Result<(), LoadError> {
    let known = tract_onnx::onnx().op_register;
    let operators = file.operators();
    let mut unknown: Vec<String> =
        operators.iter().filter(|o| !known.0.contains_key(&o.name)).map(ToString::to_string).collect();
    unknown.extend(file.functions().map(|name| format!("{name} (a function that the model defines)")));
    if unknown.is_empty() {
        return Ok(());
    }
    let s = if unknown.len() == 1 { "" } else { "s" };
    Err(LoadError::Unsupported(format!("tract {} has no operator{s} {}", super::VERSION, unknown.join(", "))))
}

/// tract accepts any operator set, and would compute wrong answers where an operator has changed since.
fn refuse_unknown_opset(file: &OnnxFile) -> Result<(), LoadError> {
    /// The newest operator set when this version of tract was released.
    const NEWEST: i64 = 26;
    match file.opset() {
        Some(opset) if opset > NEWEST => Err(LoadError::Unsupported(format!(
            "the model needs opset {opset} of ai.onnx, which is newer than tract {}: export with an older opset",
            super::VERSION
        ))),
        _ => Ok(()),
    }
}

fn unsupported(file: &OnnxFile, reason: &str) -> LoadError {
    let reason = shortened(&reason.replace(&format!("{}/", file.dir().display()), ""));
    // tract is tested with these operator sets (tract-onnx, `model.rs`). Others often work; if one did not, it may be the
    // reason.
    let opset = file.opset().filter(|opset| !(9..19).contains(opset));
    let opset = opset.map(|n| format!(" (the model uses opset {n}, tract is tested with 9 to 18)")).unwrap_or_default();
    LoadError::Unsupported(format!("tract {} cannot run the model{opset}: {reason}", super::VERSION))
}

/// The symbols of dimensions that the model names, and the plan.
type Plan = (Vec<Symbol>, Arc<TypedRunnableModel>);

fn framework() -> tract_onnx::Onnx {
    // Files are read, not mapped: a file truncated meanwhile must be an error, not a signal.
    tract_onnx::Onnx { provider: Arc::new(FopenDataResolver), ..tract_onnx::onnx() }
}

/// Builds the graph once more, with the optional inputs of the signature as inputs.
fn open_plan(file: &OnnxFile, signature: &Signature) -> TractResult<OpenPlan> {
    let onnx = framework();
    let mut proto = onnx.proto_model_for_read(&mut file.bytes())?;
    let closed = onnx.parse(&proto, file.dir().to_str())?;
    let is_optional = |name: &str| signature.optional_inputs().iter().any(|spec| *spec.name == *name);
    if let Some(graph) = &mut proto.graph {
        graph.initializer.retain(|initializer| !is_optional(&initializer.name));
    }
    let model = onnx.parse(&proto, file.dir().to_str())?.model;
    let mut inputs = Vec::new();
    for outlet in &model.inputs {
        let name = &model.node(outlet.node).name;
        let Some(index) = signature.all_inputs().iter().position(|spec| *spec.name == **name) else {
            bail!("the signature has no input {name:?}");
        };
        let default = match closed.outlets_by_name.get(name).filter(|_| index >= signature.inputs().len()) {
            Some(outlet) => closed.model.node(outlet.node).op_as::<Const>().map(|constant| Arc::clone(constant.val())),
            None => None,
        };
        inputs.push(OpenInput { index, default });
    }
    let has_default = |input: &OpenInput| input.default.is_some() || input.index < signature.inputs().len();
    if inputs.len() != signature.all_inputs().len() || !inputs.iter().all(has_default) {
        bail!("the optional inputs cannot be opened");
    }
    let specs: Vec<TensorSpec> = inputs.iter().map(|input| signature.all_inputs()[input.index].clone()).collect();
    let batched = free_dims(model.clone(), &specs, true).and_then(optimise);
    let plan = batched.or_else(|first| free_dims(model, &specs, false).and_then(optimise).map_err(|_| first))?;
    Ok(OpenPlan { plan, inputs })
}

fn parse_and_optimise(file: &OnnxFile, inputs: &[TensorSpec]) -> TractResult<Plan> {
    let onnx = framework();
    let proto = onnx.proto_model_for_read(&mut file.bytes())?;
    let parsed = onnx.parse(&proto, file.dir().to_str())?;
    if !parsed.unresolved_inputs.is_empty() {
        bail!("nothing in the model computes {:?}", parsed.unresolved_inputs);
    }
    let model = parsed.model;
    if model.inputs.len() != inputs.len() {
        bail!("it has {} inputs, and the file declares {}", model.inputs.len(), inputs.len());
    }
    let names = model.symbols.all_symbols();
    // In most models the unnamed first dimensions are all the batch, and tract can only join such inputs when it knows that.
    // If the model cannot be built that way, each gets a symbol of its own.
    let batched = free_dims(model.clone(), inputs, true).and_then(optimise);
    let plan = batched.or_else(|first| free_dims(model, inputs, false).and_then(optimise).map_err(|_| first))?;
    Ok((names, plan))
}

/// Gives every unnamed free dimension a symbol, which tract needs to compute shapes.
fn free_dims(mut model: InferenceModel, inputs: &[TensorSpec], one_batch: bool) -> TractResult<InferenceModel> {
    let batch = model.symbols.new_with_prefix("batch");
    for (i, spec) in inputs.iter().enumerate() {
        let Some(dims) = &spec.dims else {
            bail!("input {:?} does not declare how many dimensions it has, which tract needs to know", &*spec.name);
        };
        let fact = model.input_fact(i)?.clone();
        let known: TVec<Option<TDim>> = fact.shape.dims().map(Factoid::concretize).collect();
        let dims = dims.iter().enumerate().map(|(axis, dim)| match (known.get(axis).cloned().flatten(), dim) {
            (_, Dim::Fixed(extent)) => TDim::from(*extent),
            (Some(known), _) => known,
            (None, Dim::Free(_)) if axis == 0 && one_batch => batch.clone().into(),
            (None, Dim::Free(_)) => model.symbols.new_with_prefix("dim").into(),
        });
        let shape = ShapeFactoid::closed(dims.map(Into::into).collect());
        let fact = InferenceFact::dt_shape(convert::datum_type(spec.datatype), shape);
        model.set_input_fact(i, fact)?;
    }
    Ok(model)
}

fn optimise(model: InferenceModel) -> TractResult<Arc<TypedRunnableModel>> {
    let mut typed = model.into_typed()?;
    shapes_as_integers(&mut typed)?;
    let decluttered = typed.into_decluttered()?;
    // Some models run but cannot be optimised.
    let optimised = catch_unwind(AssertUnwindSafe(|| runnable(decluttered.clone().into_optimized()?)));
    match optimised {
        Ok(Ok(plan)) => Ok(plan),
        _ => runnable(decluttered),
    }
}

/// Casts outputs that are computed from a shape to INT64. They have tract's own type for dimensions, which only a run can
/// turn into numbers, so that the cast has to be inside the graph.
fn shapes_as_integers(model: &mut TypedModel) -> TractResult<()> {
    let mut outputs = model.output_outlets()?.to_vec();
    for (i, outlet) in outputs.iter_mut().enumerate() {
        if model.outlet_fact(*outlet)?.datum_type == TDim::datum_type() {
            *outlet = model.wire_node(format!("output_{i}_as_int64"), cast(DatumType::I64), &[*outlet])?[0];
        }
    }
    model.select_output_outlets(&outputs)
}

fn runnable(model: TypedModel) -> TractResult<Arc<TypedRunnableModel>> {
    model.into_runnable()
}

fn output_spec(
    file: &OnnxFile,
    declared: DeclaredOutput,
    i: usize,
    plan: &TypedRunnableModel,
    names: &[Symbol],
) -> Result<TensorSpec, LoadError> {
    let fact = plan.model().output_fact(i).map_err(|e| unsupported(file, &format!("{e:#}")))?;
    let name = declared.name;
    let datatype = match (convert::datatype(fact.datum_type), declared.datatype) {
        (Some(found), None) => found,
        (Some(found), Some(declared)) if found == declared => declared,
        (_, declared) => {
            let expected = declared.map_or_else(|| "a supported type".to_owned(), |d| d.to_string());
            return Err(unsupported(
                file,
                &format!("output {name:?} has the type {:?} instead of {expected}", fact.datum_type),
            ));
        }
    };
    let inferred = || {
        let dims = fact.shape.iter().map(|dim| match (usize::try_from(dim), dim) {
            (Ok(extent), _) => Dim::Fixed(extent),
            (Err(_), TDim::Sym(symbol)) if names.contains(symbol) => Dim::Free(Some(symbol.to_string().into())),
            (Err(_), _) => Dim::Free(None),
        });
        dims.collect()
    };
    Ok(TensorSpec { name, datatype, dims: Some(declared.dims.unwrap_or_else(inferred)) })
}
