//! From a file to a graph tract can run, with the free dimensions left free.

use super::convert;
use crate::backend::LoadError;
use crate::backend::onnx::{DeclaredOutput, OnnxFile};
use crate::model::panic_message;
use crate::model::{Dim, Signature, TensorSpec};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tract_onnx::data_resolver::FopenDataResolver;
use tract_onnx::prelude::{
    Datum, DatumType, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, TVec, TractResult,
    TypedModel, TypedRunnableModel,
};
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::{ShapeFactoid, SpecialOps, Symbol, TDim, bail};

pub fn build(file: &OnnxFile) -> Result<(Signature, Arc<TypedRunnableModel>), LoadError> {
    let inputs = file.inputs()?;
    let declared = file.outputs()?;
    refuse_unknown_operators(file)?;
    refuse_unknown_opset(file)?;
    // tract panics here and there on models it does not expect; each such version is refused like any other.
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
    Ok((Signature::new(inputs, outputs), plan))
}

/// Long error chains, with the debug form of a graph in them, cut to what a person reads.
pub fn shortened(words: &str) -> String {
    const MOST: usize = 600;
    let one_line = words.split_whitespace().collect::<Vec<_>>().join(" ");
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
    unknown.extend(file.functions().map(|name| format!("{name} (a function of the model's own)")));
    if unknown.is_empty() {
        return Ok(());
    }
    let s = if unknown.len() == 1 { "" } else { "s" };
    Err(LoadError::Unsupported(format!("tract {} has no operator{s} {}", super::VERSION, unknown.join(", "))))
}

/// tract takes any operator set for one it knows, and would answer something else where an operator has changed
/// since.
fn refuse_unknown_opset(file: &OnnxFile) -> Result<(), LoadError> {
    /// The newest when this version of tract was released.
    const NEWEST: i64 = 26;
    match file.opset() {
        Some(opset) if opset > NEWEST => Err(LoadError::Unsupported(format!(
            "the model needs opset {opset} of ai.onnx, which is newer than tract {}: export with an older opset",
            super::VERSION
        ))),
        _ => Ok(()),
    }
}

fn unsupported(file: &OnnxFile, words: &str) -> LoadError {
    let words = shortened(&words.replace(&format!("{}/", file.dir().display()), ""));
    // tract is tested against these (tract-onnx, `model.rs`); others often work, and are worth naming where one did
    // not.
    let opset = file.opset().filter(|opset| !(9..19).contains(opset));
    let opset = opset.map(|n| format!(" (the model is of opset {n}, tract is made for 9 to 18)")).unwrap_or_default();
    LoadError::Unsupported(format!("tract {} cannot run the model{opset}: {words}", super::VERSION))
}

/// The model's own names of dimensions, and the plan.
type Built = (Vec<Symbol>, Arc<TypedRunnableModel>);

fn parse_and_optimise(file: &OnnxFile, inputs: &[TensorSpec]) -> TractResult<Built> {
    // Files are read, not mapped: one cut short while it is read must be an error, not a signal.
    let onnx = tract_onnx::Onnx { provider: Arc::new(FopenDataResolver), ..tract_onnx::onnx() };
    let proto = onnx.proto_model_for_read(&mut file.bytes())?;
    let parsed = onnx.parse(&proto, file.dir().to_str())?;
    if !parsed.unresolved_inputs.is_empty() {
        bail!("nothing in the model gives {:?}", parsed.unresolved_inputs);
    }
    let model = parsed.model;
    if model.inputs.len() != inputs.len() {
        bail!("it takes {} inputs where the file declares {}", model.inputs.len(), inputs.len());
    }
    let names = model.symbols.all_symbols();
    // Unnamed first dimensions are one batch in most models, and joining such inputs only works when tract knows it.
    // Where it does not work, they are told apart.
    let batched = free_dims(model.clone(), inputs, true).and_then(optimise);
    let plan = batched.or_else(|first| free_dims(model, inputs, false).and_then(optimise).map_err(|_| first))?;
    Ok((names, plan))
}

/// Gives every free dimension without a name a symbol, as tract computes with nothing less.
fn free_dims(mut model: InferenceModel, inputs: &[TensorSpec], one_batch: bool) -> TractResult<InferenceModel> {
    let batch = model.symbols.new_with_prefix("batch");
    for (i, spec) in inputs.iter().enumerate() {
        let Some(dims) = &spec.dims else {
            bail!("input {:?} does not say how many dimensions it has, which tract needs to know", &*spec.name);
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
    // A model that can be run need not be one that can be optimised.
    let optimised = catch_unwind(AssertUnwindSafe(|| runnable(decluttered.clone().into_optimized()?)));
    match optimised {
        Ok(Ok(plan)) => Ok(plan),
        _ => runnable(decluttered),
    }
}

/// An output computed from a shape is of tract's own type for dimensions, and symbolic until a run knows them: cast
/// inside the graph, which is where they are known.
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
            let expected = declared.map_or_else(|| "a type that can be served".to_owned(), |d| d.to_string());
            return Err(unsupported(
                file,
                &format!("output {name:?} comes out as {:?} instead of {expected}", fact.datum_type),
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
