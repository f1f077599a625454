//! What the operators of a graph say about its runs: whether their time lies in the values of the inputs, and whether they draw random
//! numbers.

use super::graph::{Graph, Model, Node};
use super::rows::RANDOM_OPERATORS;
use std::collections::{HashMap, HashSet};

/// Operators whose running time depends on values, not only on extents.
const BY_VALUES: &[&str] = &["Loop", "Scan", "NonMaxSuppression", "NonZero", "Unique", "Compress"];

/// Operators whose output is as large as one of these inputs says.
const SIZED_BY_INPUT: &[(&str, &[usize])] = &[
    ("ConstantOfShape", &[0]),
    ("Expand", &[1]),
    ("OneHot", &[1]),
    ("Pad", &[1]),
    ("Range", &[0, 1, 2]),
    ("Resize", &[2, 3]),
    ("Tile", &[1]),
    ("Upsample", &[1]),
];

/// The first operator whose running time or output size depends on the values of an input; `None` when extents alone decide.
pub fn time_by_values(model: &Model, inputs: &HashSet<&str>) -> Option<String> {
    let functions: HashMap<&str, &[Node]> =
        model.functions.iter().map(|f| (f.name.as_str(), f.node.as_slice())).collect();
    let graph = model.graph.as_ref()?;
    // Wherever they stand, and whatever they depend on: the bodies of functions and of control flow are not followed.
    let everywhere = functions.values().copied().chain([graph.node.as_slice()]);
    for nodes in everywhere {
        if let Some(found) = find(nodes, &|node| BY_VALUES.contains(&node.op_type.as_str())) {
            return Some(found);
        }
    }
    let mut values: HashSet<&str> = inputs.clone();
    for node in &graph.node {
        let depends = |i: &usize| node.input.get(*i).is_some_and(|name| values.contains(name.as_str()));
        let sized = SIZED_BY_INPUT.iter().find(|(op, _)| *op == node.op_type);
        if sized.is_some_and(|(_, by)| by.iter().any(depends)) {
            return Some(node.op_type.clone());
        }
        let extents_only = matches!(node.op_type.as_str(), "Shape" | "Size");
        let any = node.input.iter().any(|name| values.contains(name.as_str())) || node.subgraphs().next().is_some();
        if any && !extents_only {
            values.extend(node.output.iter().map(String::as_str));
        }
    }
    // In bodies every input may be a value.
    let sized =
        |node: &Node| SIZED_BY_INPUT.iter().any(|(op, _)| *op == node.op_type && *op != "Pad" && *op != "Expand");
    let bodies = graph.node.iter().flat_map(Node::subgraphs).map(|graph| graph.node.as_slice());
    bodies.chain(functions.values().copied()).find_map(|nodes| find(nodes, &sized))
}

/// The first operator that draws random numbers.
pub fn random_operator(model: &Model) -> Option<String> {
    let random = |node: &Node| RANDOM_OPERATORS.contains(&node.op_type.as_str());
    let graph = model.graph.as_ref()?;
    let functions = model.functions.iter().map(|f| f.node.as_slice());
    functions.chain([graph.node.as_slice()]).find_map(|nodes| find(nodes, &random))
}

/// The first node for which `is` holds, bodies of control flow included. Depth is bounded: the parser refuses deep nesting.
fn find(nodes: &[Node], is: &dyn Fn(&Node) -> bool) -> Option<String> {
    nodes.iter().find_map(|node| {
        if is(node) {
            return Some(node.op_type.clone());
        }
        node.subgraphs().find_map(|graph: &Graph| find(&graph.node, is))
    })
}
