//! What each operator does to the batch axis.
#![expect(clippy::unnecessary_wraps, reason = "a step of the walk may find mixing, and these find none")]

use super::{ACROSS, COUNTS, CUSTOM, Flow, SELECTS, Step, batch, lost, mixes};
use crate::backend::onnx::graph::Node;

pub(super) fn integers(flow: Option<&Option<Flow>>) -> Option<Vec<i64>> {
    match flow.and_then(Option::as_ref) {
        Some(Flow::Constant { integers, .. }) => integers.clone(),
        _ => None,
    }
}

pub(super) fn attribute_axis(node: &Node, default: i64) -> i64 {
    node.int("axis").unwrap_or(default)
}

/// An axis counted from the front; `None` where it counts from the end of an unknown rank.
pub(super) fn place(axis: i64, rank: Option<usize>) -> Option<usize> {
    usize::try_from(axis).ok().or_else(|| usize::try_from(axis.checked_add(i64::try_from(rank?).ok()?)?).ok())
}

/// Operators that keep the shape of their first input.
pub(super) fn keep(node: &Node, first: Option<&Flow>) -> Step {
    match first {
        Some(flow @ Flow::Batch { .. }) => Ok(vec![flow.clone()]),
        Some(Flow::Count | Flow::Extents { .. }) => Ok(vec![Flow::Count]),
        _ => Ok(vec![lost(node)]),
    }
}

/// Keeps the axes before the last one that is added or changed.
pub(super) fn keep_leading(node: &Node, first: Option<&Flow>) -> Step {
    match first {
        Some(Flow::Batch { axis: 0, rank }) if attribute_axis(node, -1) != 0 => Ok(vec![batch(0, rank.map(|r| r + 1))]),
        _ => Ok(vec![lost(node)]),
    }
}

/// Operators that compute along one axis and keep the shape.
pub(super) fn along_axis(node: &Node, first: Option<&Flow>, along: i64) -> Step {
    let Some(Flow::Batch { axis, rank }) = first else { return keep(node, first) };
    match place(along, *rank) {
        Some(along) if along == *axis => Err(mixes(node, ACROSS)),
        Some(_) => Ok(vec![batch(*axis, *rank)]),
        // Counted from the end of a rank that is not known: with a rank of 1 it would be the batch axis.
        None => Ok(vec![lost(node)]),
    }
}

/// Operators that compute over an axis and all behind it.
pub(super) fn from_axis(node: &Node, first: Option<&Flow>, from: i64) -> Step {
    let Some(Flow::Batch { axis, rank }) = first else { return keep(node, first) };
    match place(from, *rank) {
        Some(from) if from <= *axis => Err(mixes(node, ACROSS)),
        Some(_) => Ok(vec![batch(*axis, *rank)]),
        None => Ok(vec![lost(node)]),
    }
}

/// Reductions over `axes`; over all where `None`.
pub(super) fn reduce(node: &Node, first: Option<&Flow>, axes: Option<Vec<i64>>, keepdims: bool) -> Step {
    let Some(Flow::Batch { axis, rank }) = first else { return keep(node, first) };
    let Some(axes) = axes else { return Err(mixes(node, ACROSS)) };
    let mut before = 0;
    for along in &axes {
        match place(*along, *rank) {
            Some(along) if along == *axis => return Err(mixes(node, ACROSS)),
            Some(along) => before += usize::from(along < *axis),
            None => return Ok(vec![lost(node)]),
        }
    }
    if keepdims {
        return Ok(vec![batch(*axis, *rank)]);
    }
    Ok(vec![batch(axis - before, rank.and_then(|r| r.checked_sub(axes.len())))])
}

/// Operators with broadcasting: batch axes must lie in the same place, counted from the last.
pub(super) fn elementwise(node: &Node, given: &[&Flow]) -> Step {
    let mut result: Option<(usize, Option<usize>)> = None;
    let mut counts = false;
    for flow in given {
        match flow {
            Flow::Constant { .. } => {}
            Flow::Count | Flow::Extents { .. } => counts = true,
            Flow::Lost { operator } => return Ok(vec![Flow::Lost { operator: operator.clone() }]),
            Flow::Batch { axis, rank } => match result {
                None => result = Some((*axis, *rank)),
                Some((a, r)) => {
                    let (Some(known), Some(other)) = (r, *rank) else {
                        if a == *axis && r == *rank {
                            continue;
                        }
                        return Ok(vec![lost(node)]);
                    };
                    // Broadcasting aligns the last axes.
                    if known - a != other - axis {
                        return Err(mixes(node, ACROSS));
                    }
                    if other > known {
                        result = Some((*axis, Some(other)));
                    }
                }
            },
        }
    }
    match result {
        Some(_) if counts => Err(mixes(node, COUNTS)),
        Some((axis, rank)) => {
            // A constant of higher rank adds axes in front.
            let largest =
                given.iter().filter_map(|f| if let Flow::Constant { rank, .. } = f { *rank } else { None }).max();
            match (largest, rank) {
                (Some(largest), Some(rank)) if largest > rank => Ok(vec![batch(axis + largest - rank, Some(largest))]),
                _ => Ok(vec![batch(axis, rank)]),
            }
        }
        None => Ok(vec![Flow::Count]),
    }
}

pub(super) fn gather(node: &Node, inputs: &[Option<Flow>]) -> Step {
    let axis = attribute_axis(node, 0);
    match (inputs.first().and_then(Option::as_ref), inputs.get(1).and_then(Option::as_ref)) {
        (Some(Flow::Extents { batch }), Some(Flow::Constant { integers, .. })) => {
            let others = integers
                .as_ref()
                .is_some_and(|list| list.iter().all(|i| usize::try_from(*i).is_ok_and(|i| i != *batch)));
            Ok(vec![if others { Flow::Constant { rank: None, integers: None } } else { Flow::Count }])
        }
        // A table looked up: the extents of the indices stand where the axis was.
        (Some(Flow::Constant { rank: table, .. }), Some(Flow::Batch { axis: at, rank })) => {
            let Some(axis) = place(axis, *table) else { return Ok(vec![lost(node)]) };
            let all = table.zip(*rank).map(|(t, r)| t + r - 1);
            Ok(vec![batch(axis + at, all)])
        }
        (Some(Flow::Batch { axis: at, rank }), Some(Flow::Constant { rank: indices, .. })) => {
            match place(axis, *rank) {
                Some(axis) if axis == *at => Err(mixes(node, SELECTS)),
                Some(axis) => {
                    let Some(indices) = indices else {
                        return Ok(vec![if axis > *at { batch(*at, None) } else { lost(node) }]);
                    };
                    let at = if axis < *at { (at + indices).saturating_sub(1) } else { *at };
                    Ok(vec![batch(at, rank.map(|r| (r + indices).saturating_sub(1)))])
                }
                None => Ok(vec![lost(node)]),
            }
        }
        (Some(Flow::Batch { axis: at, rank }), Some(_)) if place(axis, *rank) == Some(*at) => Err(mixes(node, SELECTS)),
        (Some(Flow::Count | Flow::Extents { .. }), _) => Ok(vec![Flow::Count]),
        _ => Ok(vec![lost(node)]),
    }
}

pub(super) fn transpose(node: &Node, first: Option<&Flow>) -> Step {
    let Some(Flow::Batch { axis, rank }) = first else { return keep(node, first) };
    let Some(perm) = node.attribute("perm") else {
        return Ok(vec![rank.map_or_else(|| lost(node), |r| batch(r - 1 - axis, Some(r)))]);
    };
    let at = perm.ints.iter().position(|from| usize::try_from(*from) == Ok(*axis));
    Ok(vec![at.map_or_else(|| lost(node), |at| batch(at, Some(perm.ints.len())))])
}

/// Rows stay in one piece where the batch axis is the first before and after: the first new extent is then the rows, or the rows times
/// what they hold.
pub(super) fn reshape(node: &Node, inputs: &[Option<Flow>]) -> Step {
    let Some(Some(Flow::Batch { axis, .. })) = inputs.first() else {
        return keep(node, inputs.first().and_then(Option::as_ref));
    };
    if *axis != 0 {
        return Ok(vec![lost(node)]);
    }
    match inputs.get(1).and_then(Option::as_ref) {
        Some(Flow::Constant { integers: Some(shape), .. }) => match shape.first() {
            Some(-1 | 0) => Ok(vec![batch(0, Some(shape.len()))]),
            _ => Ok(vec![lost(node)]),
        },
        // Computed from the extents of the input, as exporters write `x.reshape(x.shape[0], -1)`.
        Some(Flow::Count) => Ok(vec![batch(0, None)]),
        _ => Ok(vec![lost(node)]),
    }
}

pub(super) fn squeeze(node: &Node, inputs: &[Option<Flow>]) -> Step {
    let first = inputs.first().and_then(Option::as_ref);
    let Some(Flow::Batch { axis, rank }) = first else { return keep(node, first) };
    let axes = node.attribute("axes").map(|a| a.ints.clone()).or_else(|| integers(inputs.get(1)));
    let Some(axes) = axes else { return Ok(vec![lost(node)]) };
    let adds = node.op_type == "Unsqueeze";
    let new_rank = rank.map(|r| if adds { r + axes.len() } else { r.saturating_sub(axes.len()) });
    let basis = if adds { new_rank } else { *rank };
    let Some(mut places) = axes.iter().map(|a| place(*a, basis)).collect::<Option<Vec<usize>>>() else {
        // Counted from the end: the axes before stay where they are.
        return Ok(vec![if *axis == 0 { batch(0, new_rank) } else { lost(node) }]);
    };
    places.sort_unstable();
    if adds {
        let mut at = *axis;
        for p in &places {
            at += usize::from(*p <= at);
        }
        return Ok(vec![batch(at, new_rank)]);
    }
    if places.contains(axis) {
        return Err(mixes(node, COUNTS));
    }
    let before = places.iter().filter(|p| *p < axis).count();
    Ok(vec![batch(axis - before, new_rank)])
}

pub(super) fn concat(node: &Node, given: &[&Flow]) -> Step {
    let flows: Vec<&&Flow> = given.iter().filter(|f| matches!(f, Flow::Batch { .. })).collect();
    let Some(Flow::Batch { axis, rank }) = flows.first().map(|f| **f) else { return Ok(vec![Flow::Count]) };
    let same = |f: &&&Flow| matches!(**f, Flow::Batch { axis: a, .. } if a == axis);
    if given.iter().any(|f| matches!(f, Flow::Count | Flow::Extents { .. })) {
        return Err(mixes(node, COUNTS));
    }
    if !flows.iter().all(same) {
        return Err(mixes(node, ACROSS));
    }
    match place(attribute_axis(node, 0), *rank) {
        Some(along) if along == *axis => Err(mixes(node, SELECTS)),
        Some(_) => Ok(vec![batch(*axis, *rank)]),
        None => Ok(vec![lost(node)]),
    }
}

pub(super) fn slice(node: &Node, inputs: &[Option<Flow>]) -> Step {
    let first = inputs.first().and_then(Option::as_ref);
    let Some(Flow::Batch { axis, rank }) = first else { return keep(node, first) };
    let attribute = |name: &str| node.attribute(name).map(|a| a.ints.clone());
    let starts = attribute("starts").or_else(|| integers(inputs.get(1)));
    let axes = match (attribute("axes"), inputs.get(3).and_then(Option::as_ref)) {
        (Some(axes), _) => Some(axes),
        (None, Some(_)) => integers(inputs.get(3)),
        (None, None) => starts.as_ref().map(|s| (0..i64::try_from(s.len()).unwrap_or_default()).collect()),
    };
    let Some(axes) = axes else { return Ok(vec![lost(node)]) };
    let ends = attribute("ends").or_else(|| integers(inputs.get(2)));
    for (i, along) in axes.iter().enumerate() {
        match place(*along, *rank) {
            Some(along) if along == *axis => {
                // The whole axis, as some exporters write it.
                let from = starts.as_ref().and_then(|s| s.get(i)).copied();
                let to = ends.as_ref().and_then(|e| e.get(i)).copied();
                let step = integers(inputs.get(4)).and_then(|s| s.get(i).copied()).unwrap_or(1);
                if !(from == Some(0) && to.is_some_and(|to| to >= i64::from(i32::MAX)) && step == 1) {
                    return Err(mixes(node, SELECTS));
                }
            }
            Some(_) => {}
            None => return Ok(vec![lost(node)]),
        }
    }
    Ok(vec![batch(*axis, *rank)])
}

pub(super) fn matmul(node: &Node, left: Option<&Flow>, right: Option<&Flow>) -> Step {
    match (left, right) {
        (Some(Flow::Batch { axis, rank }), Some(Flow::Constant { rank: weights, .. })) => match rank {
            Some(rank) if axis + 1 == *rank => Err(mixes(node, ACROSS)),
            Some(rank) => {
                let added = weights.unwrap_or(2).saturating_sub(*rank);
                let rank = if *weights == Some(1) { rank - 1 } else { rank + added };
                Ok(vec![batch(axis + added, Some(rank))])
            }
            None => Ok(vec![if *axis == 0 { batch(0, None) } else { lost(node) }]),
        },
        (Some(Flow::Constant { .. }), Some(Flow::Batch { axis, rank: Some(rank) })) => {
            // The axis before the last is summed over; the last becomes the last of the answer.
            if axis + 2 == *rank || *rank == 1 { Err(mixes(node, ACROSS)) } else { Ok(vec![batch(*axis, Some(*rank))]) }
        }
        (Some(Flow::Batch { axis: a, rank: Some(ra) }), Some(Flow::Batch { axis: b, rank: Some(rb) })) => {
            // Both batch axes must lie among the leading ones, in the same place.
            if ra - a != rb - b || ra - a <= 2 {
                return Err(mixes(node, ACROSS));
            }
            Ok(vec![batch(*a.max(b), Some(*ra.max(rb)))])
        }
        (Some(Flow::Count | Flow::Extents { .. }), _) | (_, Some(Flow::Count | Flow::Extents { .. })) => {
            Err(mixes(node, COUNTS))
        }
        _ => Ok(vec![lost(node)]),
    }
}

pub(super) fn einsum(node: &Node, given: &[&Flow]) -> Step {
    let equation =
        node.attribute("equation").map(|a| String::from_utf8_lossy(&a.s).replace(' ', "")).unwrap_or_default();
    let Some((left, right)) = equation.split_once("->") else { return Ok(vec![lost(node)]) };
    if equation.contains('.') {
        return Ok(vec![lost(node)]);
    }
    let mut label = None;
    for (term, flow) in left.split(',').zip(given) {
        let Flow::Batch { axis, .. } = flow else {
            if matches!(flow, Flow::Constant { .. }) {
                continue;
            }
            return Ok(vec![lost(node)]);
        };
        let Some(found) = term.chars().nth(*axis) else { return Ok(vec![lost(node)]) };
        if label.is_some_and(|l| l != found) {
            return Err(mixes(node, ACROSS));
        }
        label = Some(found);
    }
    let Some(label) = label else { return Ok(vec![Flow::Count]) };
    match right.chars().position(|c| c == label) {
        Some(at) => Ok(vec![batch(at, Some(right.chars().count()))]),
        None => Err(mixes(node, ACROSS)),
    }
}

/// Recurrent operators: the sequence runs along the first axis, or, with `layout` 1, along the second.
pub(super) fn recurrent(node: &Node, first: Option<&Flow>) -> Step {
    let batch_first = node.int("layout").unwrap_or(0) == 1;
    match first {
        Some(Flow::Batch { axis: 0, .. }) if batch_first => {
            Ok(vec![batch(0, Some(4)), batch(0, Some(3)), batch(0, Some(3))])
        }
        Some(Flow::Batch { axis: 1, .. }) if !batch_first => {
            Ok(vec![batch(2, Some(4)), batch(1, Some(3)), batch(1, Some(3))])
        }
        Some(Flow::Batch { .. }) => Err(mixes(node, ACROSS)),
        _ => Ok(vec![lost(node)]),
    }
}

/// `ai.onnx.ml`: every operator works on the rows of a table.
pub(super) fn classic(node: &Node, given: &[&Flow]) -> Step {
    const ROW_WISE: [&str; 16] = [
        "ArrayFeatureExtractor",
        "Binarizer",
        "CategoryMapper",
        "FeatureVectorizer",
        "Imputer",
        "LabelEncoder",
        "LinearClassifier",
        "LinearRegressor",
        "Normalizer",
        "OneHotEncoder",
        "SVMClassifier",
        "SVMRegressor",
        "Scaler",
        "TreeEnsemble",
        "TreeEnsembleClassifier",
        "TreeEnsembleRegressor",
    ];
    if !ROW_WISE.contains(&node.op_type.as_str()) {
        return Ok(vec![lost(node)]);
    }
    let flows = given.iter().filter(|f| matches!(f, Flow::Batch { .. }));
    match flows.clone().next() {
        Some(Flow::Batch { axis: 0, .. }) if flows.clone().all(|f| matches!(f, Flow::Batch { axis: 0, .. })) => {
            Ok(vec![batch(0, None)])
        }
        _ => Ok(vec![lost(node)]),
    }
}

/// Operators of ONNX Runtime's own domain that exporters and optimisers write.
pub(super) fn contrib(node: &Node, inputs: &[Option<Flow>], given: &[&Flow]) -> Step {
    let first = inputs.first().and_then(Option::as_ref);
    match node.op_type.as_str() {
        "DynamicQuantizeMatMul" | "DynamicQuantizeLSTM" => Err(mixes(node, ACROSS)),
        "Gelu"
        | "FastGelu"
        | "BiasGelu"
        | "QuickGelu"
        | "QLinearAdd"
        | "QLinearMul"
        | "QLinearSigmoid"
        | "QuantizeLinear"
        | "DequantizeLinear"
        | "Attention"
        | "MultiHeadAttention"
        | "EmbedLayerNormalization"
        | "SkipLayerNormalization"
        | "SkipSimplifiedLayerNormalization"
        | "SimplifiedLayerNormalization" => match first {
            Some(Flow::Batch { axis: 0, rank }) => Ok(vec![batch(0, *rank)]),
            _ => Ok(vec![lost(node)]),
        },
        "FusedMatMul" | "MatMulNBits" | "MatMulIntegerToFloat" | "FusedGemm" => match (first, given.get(1)) {
            (Some(Flow::Batch { axis: 0, rank }), Some(Flow::Constant { .. }))
                if node.int("transA").unwrap_or(0) == 0 =>
            {
                Ok(vec![batch(0, *rank)])
            }
            _ => Ok(vec![lost(node)]),
        },
        "FusedConv" | "NhwcMaxPool" | "QLinearConv" | "QLinearGlobalAveragePool" | "QLinearAveragePool" => {
            match first {
                Some(Flow::Batch { axis: 0, rank }) => Ok(vec![batch(0, *rank)]),
                _ => Err(mixes(node, ACROSS)),
            }
        }
        _ => Err(mixes(node, CUSTOM)),
    }
}
