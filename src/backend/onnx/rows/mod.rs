//! Whether the rows of a request can influence each other, as far as the graph tells: the batch axis is followed from the inputs
//! through every node.
//!
//! Trial runs cannot settle this. A model whose answer is a label, or that normalises by the largest value of a batch, gives the same
//! answers for most rows and other ones for a few. An operator that computes across the batch axis is visible in the graph.
//!
//! The analysis is one-sided. [`RowAnalysis::Mixed`] is certain enough to switch batching off. Where the axis cannot be followed, the
//! result is [`RowAnalysis::Unknown`], and trial runs decide.

mod operators;
#[cfg(test)]
mod tests;

use super::graph::{Constant, Function, Graph, Model, Node};
use super::proto::Port;
use operators::{
    along_axis, attribute_axis, classic, concat, contrib, einsum, elementwise, from_axis, gather, integers, keep,
    keep_leading, matmul, recurrent, reduce, reshape, slice, squeeze, transpose,
};
use std::collections::{HashMap, HashSet};

/// What the graph tells about the rows of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowAnalysis {
    /// Every output has the batch axis first, and no operator computes across it.
    Independent,
    /// This operator computes across the batch axis, or its result depends on how many rows there are.
    Mixed { operator: String, why: &'static str },
    /// The axis cannot be followed through this operator.
    Unknown { operator: String },
}

/// How a value depends on the batch.
#[derive(Debug, Clone, PartialEq)]
enum Flow {
    /// It does not: weights, and what is computed from them alone. With its elements where they are few integers.
    Constant { rank: Option<usize>, integers: Option<Vec<i64>> },
    /// The extents of a value whose batch axis is this one.
    Extents { batch: usize },
    /// A number computed from the number of rows.
    Count,
    /// Rows lie along this axis, each independent of the others.
    Batch { axis: usize, rank: Option<usize> },
    /// Anything, as the axis was lost at this operator.
    Lost { operator: String },
}

/// Why the analysis ends early: the operator mixes rows.
#[derive(Debug)]
struct Mixes {
    operator: String,
    why: &'static str,
}

type Step = Result<Vec<Flow>, Mixes>;

const ACROSS: &str = "it computes across rows";
const COUNTS: &str = "its result depends on the number of rows";
const SELECTS: &str = "it selects or reorders rows";
const VALUES: &str = "the values of all rows together decide what it does";
const RANDOM: &str = "it draws random numbers";
const CUSTOM: &str = "nothing is known about this operator";

/// Node visits of one analysis, calls of functions included: functions that call each other twice grow exponentially.
const MAX_VISITS: usize = 100_000;
/// Functions that call themselves are not allowed, and would have no end.
const MAX_DEPTH: usize = 32;

/// Follows the batch axis through a model. `inputs` are the names of the inputs a caller gives.
pub fn analyse(model: &Model, inputs: &HashSet<&str>) -> RowAnalysis {
    let unknown = |operator: &str| RowAnalysis::Unknown { operator: operator.to_owned() };
    let Some(graph) = &model.graph else { return unknown("the file") };
    let mut values: HashMap<&str, Flow> = HashMap::new();
    for constant in &graph.initializer {
        let flow = Flow::Constant { rank: Some(constant.dims.len()), integers: constant.integers() };
        values.insert(&constant.name, flow);
    }
    for port in graph.input.iter().filter(|p| inputs.contains(p.name.as_str())) {
        values.insert(&port.name, Flow::Batch { axis: 0, rank: rank_of(port) });
    }
    let functions = model.functions.iter().map(|f| ((f.domain.as_str(), f.name.as_str()), f)).collect();
    let mut walk = Walk { functions, opset: model.opset(), visits: 0, depth: 0 };
    match walk.nodes(&graph.node, &mut values) {
        Err(Mixes { operator, why }) => return RowAnalysis::Mixed { operator, why },
        Ok(false) => return unknown("the model's functions, which call each other too often"),
        Ok(true) => {}
    }
    for output in &graph.output {
        match values.get(output.name.as_str()) {
            Some(Flow::Batch { axis: 0, .. }) => {}
            Some(Flow::Lost { operator }) => return unknown(operator),
            _ => return unknown(&format!("output {:?}", output.name)),
        }
    }
    RowAnalysis::Independent
}

fn rank_of(port: &Port) -> Option<usize> {
    port.r#type.as_ref()?.tensor.as_ref()?.shape.as_ref().map(|shape| shape.dim.len())
}

struct Walk<'m> {
    /// The functions the model defines itself, by domain and name.
    functions: HashMap<(&'m str, &'m str), &'m Function>,
    opset: i64,
    visits: usize,
    /// Calls of functions that are being followed, each inside the one before.
    depth: usize,
}

impl<'m> Walk<'m> {
    /// Visits nodes in their order, which ONNX requires to be topological. `false` when there were too many.
    fn nodes<'n>(&mut self, nodes: &'n [Node], values: &mut HashMap<&'n str, Flow>) -> Result<bool, Mixes>
    where
        'm: 'n,
    {
        for node in nodes {
            self.visits += 1;
            if self.visits > MAX_VISITS {
                return Ok(false);
            }
            let inputs: Vec<Option<Flow>> = node.input.iter().map(|name| values.get(name.as_str()).cloned()).collect();
            let outputs = self.node(node, &inputs)?;
            let last = outputs.last().cloned();
            let rest = std::iter::repeat_with(|| last.clone().unwrap_or_else(|| lost(node)));
            for (name, flow) in node.output.iter().zip(outputs.into_iter().chain(rest)) {
                values.insert(name, flow);
            }
        }
        Ok(true)
    }

    /// The flows of a node's outputs; where there are fewer than outputs, the last stands for the rest.
    fn node(&mut self, node: &Node, inputs: &[Option<Flow>]) -> Step {
        if let Some(function) = self.functions.get(&(node.domain.as_str(), node.op_type.as_str())).copied() {
            if self.depth == MAX_DEPTH {
                return Ok(vec![lost(node)]);
            }
            let mut values: HashMap<&str, Flow> = HashMap::new();
            for (name, flow) in function.input.iter().zip(inputs) {
                values.extend(flow.clone().map(|flow| (name.as_str(), flow)));
            }
            self.depth += 1;
            let followed = self.nodes(&function.node, &mut values);
            self.depth -= 1;
            if !followed? {
                return Ok(vec![lost(node)]);
            }
            let flow = |name: &String| values.get(name.as_str()).cloned().unwrap_or_else(|| lost(node));
            return Ok(function.output.iter().map(flow).collect());
        }
        let given: Vec<&Flow> = inputs.iter().flatten().collect();
        if given.len() < node.input.iter().filter(|name| !name.is_empty()).count() {
            // A name from an outer graph, or nothing that was seen.
            return Ok(vec![lost(node)]);
        }
        if RANDOM_OPERATORS.contains(&node.op_type.as_str()) {
            return Err(mixes(node, RANDOM));
        }
        let depends = given.iter().any(|f| !matches!(f, Flow::Constant { .. })) || captures(node);
        if !depends {
            return Ok(vec![constant(node, &given)]);
        }
        if let Some(Flow::Lost { operator }) = given.iter().find(|f| matches!(f, Flow::Lost { .. })) {
            // Mixing is looked for even where the axis is lost: these mix along any axis.
            if ALWAYS_MIXES.contains(&node.op_type.as_str()) {
                return Err(mixes(node, ACROSS));
            }
            return Ok(vec![Flow::Lost { operator: operator.clone() }]);
        }
        match node.domain.as_str() {
            "" | "ai.onnx" => self.onnx(node, inputs, &given),
            "ai.onnx.ml" => classic(node, &given),
            "com.microsoft" => contrib(node, inputs, &given),
            _ => Err(mixes(node, CUSTOM)),
        }
    }

    #[expect(clippy::too_many_lines, reason = "a table of operators, read from top to bottom")]
    fn onnx(&self, node: &Node, inputs: &[Option<Flow>], given: &[&Flow]) -> Step {
        let first = inputs.first().and_then(Option::as_ref);
        let op = node.op_type.as_str();
        if ELEMENTWISE.contains(&op) {
            return elementwise(node, given);
        }
        if ALWAYS_MIXES.contains(&op) {
            return Err(mixes(node, ACROSS));
        }
        if VALUES_DECIDE.contains(&op) {
            return Err(mixes(node, VALUES));
        }
        match op {
            "Shape" => {
                let Some(Flow::Batch { axis, .. }) = first else { return Ok(vec![Flow::Count]) };
                let start = usize::try_from(node.int("start").unwrap_or(0)).ok();
                let whole = start == Some(0) && node.attribute("end").is_none();
                Ok(vec![if whole { Flow::Extents { batch: *axis } } else { Flow::Count }])
            }
            "Size" | "EyeLike" => Ok(vec![Flow::Count]),
            "Range" => Err(mixes(node, COUNTS)),
            "ConstantOfShape" => Ok(vec![Flow::Constant { rank: None, integers: None }]),
            "Gather" => gather(node, inputs),
            "GatherElements" | "Scatter" | "ScatterElements" | "Split" => {
                along_axis(node, first, attribute_axis(node, 0))
            }
            "Transpose" => transpose(node, first),
            "Flatten" => match first {
                Some(Flow::Batch { axis: 0, .. }) if node.int("axis").unwrap_or(1) == 1 => Ok(vec![batch(0, Some(2))]),
                _ => Ok(vec![lost(node)]),
            },
            "Reshape" => reshape(node, inputs),
            "Unsqueeze" | "Squeeze" => squeeze(node, inputs),
            "Expand" | "Tile" => match (first, inputs.get(1).and_then(Option::as_ref)) {
                (Some(Flow::Batch { axis, rank }), _) => Ok(vec![batch(*axis, *rank)]),
                (Some(Flow::Constant { .. }), _) => Ok(vec![Flow::Constant { rank: None, integers: None }]),
                _ => Ok(vec![Flow::Count]),
            },
            "Concat" => concat(node, given),
            "Slice" => slice(node, inputs),
            "Pad" | "Resize" | "Upsample" => keep(node, first),
            "MatMul" | "MatMulInteger" => matmul(node, first, inputs.get(1).and_then(Option::as_ref)),
            "QLinearMatMul" => matmul(node, first, inputs.get(3).and_then(Option::as_ref)),
            "Gemm" => match (first, inputs.get(1).and_then(Option::as_ref)) {
                (Some(Flow::Batch { axis: 0, .. }), Some(Flow::Constant { .. }))
                    if node.int("transA").unwrap_or(0) == 0 =>
                {
                    Ok(vec![batch(0, Some(2))])
                }
                _ => Err(mixes(node, ACROSS)),
            },
            "Einsum" => einsum(node, given),
            "Conv"
            | "ConvInteger"
            | "ConvTranspose"
            | "QLinearConv"
            | "MaxPool"
            | "AveragePool"
            | "GlobalAveragePool"
            | "GlobalMaxPool"
            | "LpPool"
            | "GlobalLpPool"
            | "InstanceNormalization"
            | "GroupNormalization"
            | "LRN"
            | "DepthToSpace"
            | "SpaceToDepth"
            | "RoiAlign"
            | "MaxRoiPool" => match first {
                Some(Flow::Batch { axis: 0, rank }) => Ok(vec![batch(0, *rank)]),
                _ => Err(mixes(node, ACROSS)),
            },
            "BatchNormalization" => {
                // Before opset 14 a node that trains has more than one output.
                let trains = node.int("training_mode").unwrap_or(0) != 0
                    || self.opset < 14 && node.output.iter().filter(|o| !o.is_empty()).count() > 1;
                if trains { Err(mixes(node, ACROSS)) } else { keep(node, first) }
            }
            "MeanVarianceNormalization" => {
                let axes = node.attribute("axes").map_or_else(|| vec![0, 2, 3], |a| a.ints.clone());
                reduce(node, first, Some(axes), true)
            }
            "LayerNormalization" | "RMSNormalization" => from_axis(node, first, node.int("axis").unwrap_or(-1)),
            "Softmax" | "LogSoftmax" | "Hardmax" if self.opset < 13 => {
                from_axis(node, first, node.int("axis").unwrap_or(1))
            }
            "Softmax" | "LogSoftmax" | "Hardmax" | "LpNormalization" => {
                along_axis(node, first, attribute_axis(node, -1))
            }
            // The row decides what is kept of it, where the batch axis is one of the last two.
            "Trilu" => from_axis(node, first, -2),
            "TopK" => along_axis(node, first, attribute_axis(node, -1)),
            "ArgMax" | "ArgMin" => {
                let keep = node.int("keepdims").unwrap_or(1) != 0;
                reduce(node, first, Some(vec![attribute_axis(node, 0)]), keep)
            }
            "CumSum" | "CumProd" => match integers(inputs.get(1)) {
                Some(axis) if axis.len() == 1 => along_axis(node, first, axis[0]),
                _ => Ok(vec![lost(node)]),
            },
            "OneHot" => keep_leading(node, first),
            "LSTM" | "GRU" | "RNN" => recurrent(node, first),
            _ if op.starts_with("Reduce") => {
                let keepdims = node.int("keepdims").unwrap_or(1) != 0;
                let axes = match (node.attribute("axes"), inputs.get(1).and_then(Option::as_ref)) {
                    (Some(axes), _) => Some(axes.ints.clone()),
                    (None, Some(_)) => match integers(inputs.get(1)) {
                        Some(axes) => Some(axes),
                        None => return Ok(vec![lost(node)]),
                    },
                    (None, None) => None,
                };
                let unnamed = axes.as_ref().is_none_or(Vec::is_empty);
                if unnamed && node.int("noop_with_empty_axes").unwrap_or(0) != 0 {
                    return keep(node, first);
                }
                reduce(node, first, axes.filter(|axes| !axes.is_empty()), keepdims)
            }
            "If" => match first {
                Some(Flow::Batch { .. }) => Err(mixes(node, VALUES)),
                Some(Flow::Count | Flow::Extents { .. }) => Err(mixes(node, COUNTS)),
                _ => Walk::inside(node),
            },
            "Loop" | "Scan" => Walk::inside(node),
            _ => Ok(vec![lost(node)]),
        }
    }

    /// The bodies of control flow are not followed; operators that mix rows along any axis are looked for.
    fn inside(node: &Node) -> Step {
        let mut graphs: Vec<&Graph> = node.subgraphs().collect();
        while let Some(graph) = graphs.pop() {
            for inner in &graph.node {
                if ALWAYS_MIXES.contains(&inner.op_type.as_str()) {
                    return Err(mixes(inner, ACROSS));
                }
                graphs.extend(inner.subgraphs());
            }
        }
        Ok(vec![lost(node)])
    }
}

fn mixes(node: &Node, why: &'static str) -> Mixes {
    let operator = match node.domain.as_str() {
        "" | "ai.onnx" => node.op_type.clone(),
        domain => format!("{domain}:{}", node.op_type),
    };
    Mixes { operator, why }
}

fn lost(node: &Node) -> Flow {
    Flow::Lost { operator: node.op_type.clone() }
}

fn batch(axis: usize, rank: Option<usize>) -> Flow {
    Flow::Batch { axis, rank }
}

fn captures(node: &Node) -> bool {
    // A body may use names of the graph around it.
    node.subgraphs().next().is_some()
}

fn constant(node: &Node, given: &[&Flow]) -> Flow {
    let value = node.attribute("value").and_then(|a| a.t.as_ref());
    match node.op_type.as_str() {
        "Constant" => {
            let ints = node.attribute("value_ints").map(|a| a.ints.clone());
            let int = node.attribute("value_int").map(|a| vec![a.i]);
            let rank = value.map(|t| t.dims.len()).or(ints.as_ref().map(|_| 1)).or(int.as_ref().map(|_| 0));
            Flow::Constant { rank, integers: value.and_then(Constant::integers).or(ints).or(int) }
        }
        "Identity" | "Cast" => given.first().map_or_else(|| lost(node), |f| (*f).clone()),
        "Unsqueeze" | "Squeeze" => match given.first() {
            // The elements stay as they are; only the rank distinguishes a scalar from a list of one.
            Some(Flow::Constant { integers, .. }) => Flow::Constant { rank: None, integers: integers.clone() },
            _ => Flow::Constant { rank: None, integers: None },
        },
        "Concat" => {
            let all: Option<Vec<i64>> = given
                .iter()
                .map(|f| match f {
                    Flow::Constant { integers, .. } => integers.clone(),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>()
                .map(|lists| lists.concat());
            Flow::Constant { rank: None, integers: all }
        }
        _ => Flow::Constant { rank: None, integers: None },
    }
}

/// They compute one scale for the whole tensor, or sort it as a whole.
const ALWAYS_MIXES: &[&str] = &["DynamicQuantizeLinear", "Det", "DynamicQuantizeMatMul"];

/// How many elements they give depends on the values.
const VALUES_DECIDE: &[&str] =
    &["NonZero", "Unique", "Compress", "NonMaxSuppression", "StringNormalizer", "StringSplit"];

pub(super) const RANDOM_OPERATORS: &[&str] =
    &["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"];

/// Unary operators, and those that broadcast.
const ELEMENTWISE: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "DequantizeLinear",
    "Div",
    "Dropout",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "QuantizeLinear",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Where",
    "Xor",
    "StringConcat",
    "RegexFullMatch",
    "Affine",
    "ParametricSoftplus",
    "ScaledTanh",
    "ImageScaler",
    "Crop",
    "Scale",
];
