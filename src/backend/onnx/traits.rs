//! What the operators of a graph say about its runs: whether their time lies in the values of the inputs, and whether they draw random
//! numbers.

use super::graph::{Function, Graph, Model, Node};
use super::rows::RANDOM_OPERATORS;
use std::collections::{HashMap, HashSet};

/// Operators whose running time depends on values, not only on extents, whatever they are computed from.
const BY_VALUES: &[&str] = &[
    "BeamSearch",
    "Compress",
    "GreedySearch",
    "ImageDecoder",
    "Loop",
    "NonMaxSuppression",
    "NonZero",
    "Sampling",
    "Scan",
    "SequenceMap",
    "Unique",
    "WhisperBeamSearch",
];

/// Operators whose running time, or the size or shape of whose output, depends on the values of these inputs.
const BY_INPUTS: &[(&str, &[usize])] = &[
    ("AffineGrid", &[1]),
    ("Attention", &[6]),
    ("BlackmanWindow", &[0]),
    ("CenterCropPad", &[1]),
    ("Col2Im", &[1, 2]),
    ("ConstantOfShape", &[0]),
    ("CropAndResize", &[3]),
    ("DFT", &[1]),
    ("Expand", &[1]),
    // The steps of each sequence.
    ("GRU", &[4]),
    ("GroupQueryAttention", &[5, 6]),
    ("HammingWindow", &[0]),
    ("HannWindow", &[0]),
    // Which branch runs.
    ("If", &[0]),
    ("LSTM", &[4]),
    ("MaxUnpool", &[2]),
    ("MelWeightMatrix", &[0, 1]),
    ("OneHot", &[1]),
    ("Pad", &[1]),
    ("RNN", &[4]),
    ("Range", &[0, 1, 2]),
    // The same elements in another shape: a product of them may cost a thousand times as much.
    ("Reshape", &[1]),
    // Before version 11 the scales are the second input, afterwards the third; the second is then the region, whose values count too.
    ("Resize", &[1, 2, 3]),
    ("STFT", &[1, 3]),
    ("Slice", &[1, 2, 3, 4]),
    ("Split", &[1]),
    ("SplitToSequence", &[1]),
    ("Tile", &[1, 2]),
    ("TopK", &[1]),
    ("Upsample", &[1]),
];

/// The domains whose operators are known here.
const KNOWN_DOMAINS: &[&str] = &["", "ai.onnx", "ai.onnx.ml", "com.microsoft"];

/// Node visits of one analysis. A file of functions that call many others could have more.
const MAX_VISITS: usize = 100_000;
/// Functions that call themselves are not allowed, and would have no end.
const MAX_DEPTH: usize = 32;

/// The first operator whose running time or output size depends on the values of an input; `None` when extents alone decide. `inputs` are
/// the names of the inputs a caller gives.
pub fn time_by_values(model: &Model, inputs: &HashSet<&str>) -> Option<String> {
    let graph = model.graph.as_ref()?;
    let functions = model.functions.iter().map(|f| ((f.domain.as_str(), f.name.as_str()), f)).collect();
    let mut walk = Walk { functions, calls: HashMap::new(), visits: 0, depth: 0 };
    walk.nodes(&graph.node, &mut inputs.clone()).err()
}

/// Follows the values of the inputs. Extents are not values: what is computed from them alone is the same for all requests of a shape.
struct Walk<'m> {
    /// The functions the model defines itself, by domain and name.
    functions: HashMap<(&'m str, &'m str), &'m Function>,
    /// For a function, and which of its inputs are values: which of its outputs are.
    calls: HashMap<(*const Function, Vec<bool>), Vec<bool>>,
    visits: usize,
    depth: usize,
}

impl<'m> Walk<'m> {
    /// Visits nodes in their order, which ONNX requires to be topological, and adds what depends on values. The error is the operator.
    fn nodes<'n>(&mut self, nodes: &'n [Node], values: &mut HashSet<&'n str>) -> Result<(), String> {
        for node in nodes {
            self.visits += 1;
            if self.visits > MAX_VISITS {
                return Err("the model's functions, which are too many".to_owned());
            }
            let is_value: Vec<bool> = node.input.iter().map(|name| values.contains(name.as_str())).collect();
            if let Some(function) = self.functions.get(&(node.domain.as_str(), node.op_type.as_str())).copied() {
                let outputs = self.call(function, is_value)?;
                let depends = node.output.iter().zip(outputs).filter(|(_, depends)| *depends);
                values.extend(depends.map(|(name, _)| name.as_str()));
                continue;
            }
            if !KNOWN_DOMAINS.contains(&node.domain.as_str()) {
                return Err(format!("{}:{}", node.domain, node.op_type));
            }
            let op = node.op_type.as_str();
            let by_inputs = BY_INPUTS.iter().find(|(of, _)| *of == op).map_or(&[][..], |(_, inputs)| inputs);
            if BY_VALUES.contains(&op) || by_inputs.iter().any(|i| is_value.get(*i) == Some(&true)) {
                return Err(op.to_owned());
            }
            let mut depends = is_value.contains(&true);
            for Graph { node: body, input, .. } in node.subgraphs() {
                // A body sees the values around it. What it is given itself may be a value too.
                let mut inner = values.clone();
                inner.extend(input.iter().map(|port| port.name.as_str()));
                self.nodes(body, &mut inner)?;
                depends = true;
            }
            if depends && !matches!(op, "Shape" | "Size") {
                values.extend(node.output.iter().filter(|name| !name.is_empty()).map(String::as_str));
            }
        }
        Ok(())
    }

    /// Which outputs of a function depend on values, where these inputs do.
    fn call(&mut self, function: &'m Function, is_value: Vec<bool>) -> Result<Vec<bool>, String> {
        let key = (std::ptr::from_ref(function), is_value);
        if let Some(known) = self.calls.get(&key) {
            return Ok(known.clone());
        }
        if self.depth == MAX_DEPTH {
            return Err(format!("function {}, whose calls are nested too deeply", function.name));
        }
        let given = function.input.iter().zip(&key.1).filter(|(_, is_value)| **is_value);
        let mut values: HashSet<&str> = given.map(|(name, _)| name.as_str()).collect();
        self.depth += 1;
        self.nodes(&function.node, &mut values)?;
        self.depth -= 1;
        let outputs: Vec<bool> = function.output.iter().map(|name| values.contains(name.as_str())).collect();
        self.calls.insert(key, outputs.clone());
        Ok(outputs)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn node(op: &str, input: &[&str], output: &str) -> Node {
        let (domain, op) = op.split_once("::").unwrap_or(("", op));
        Node {
            op_type: op.to_owned(),
            domain: domain.to_owned(),
            input: input.iter().map(|s| (*s).to_owned()).collect(),
            output: vec![output.to_owned()],
            ..Default::default()
        }
    }

    fn with_body(mut node: Node, body: Vec<Node>) -> Node {
        let g = Some(Graph { node: body, ..Default::default() });
        node.attribute.push(super::super::graph::Attribute { name: "body".to_owned(), g, ..Default::default() });
        node
    }

    /// Of a model with the inputs `x` and `n`.
    fn found(nodes: Vec<Node>, functions: Vec<Function>) -> Option<String> {
        let graph = Some(Graph { node: nodes, ..Default::default() });
        time_by_values(&Model { graph, functions, ..Default::default() }, &HashSet::from(["x", "n"]))
    }

    #[test]
    fn operators_whose_work_lies_in_values_are_found() {
        for op in BY_VALUES {
            assert_eq!(found(vec![node(op, &["constant"], "y")], vec![]).as_deref(), Some(*op));
        }
        for (op, inputs) in BY_INPUTS {
            for i in *inputs {
                let mut names = vec!["x"; i + 1];
                names[*i] = "computed";
                let sized = |from: &str| vec![node("Cast", &[from], "computed"), node(op, &names, "y")];
                assert_eq!(found(sized("n"), vec![]).as_deref(), Some(*op), "input {i} is computed from values");
                let others: Vec<&str> = (0..=*i).map(|at| if inputs.contains(&at) { "extents" } else { "x" }).collect();
                let by_shape = vec![node("Shape", &["x"], "extents"), node(op, &others, "y")];
                assert_eq!(found(by_shape, vec![]), None, "{op}: extents of a request are no values");
            }
        }
        assert_eq!(found(vec![node("own::Anything", &["x"], "y")], vec![]).as_deref(), Some("own:Anything"));
        let ordinary = vec![node("MatMul", &["x", "w"], "h"), node("ai.onnx.ml::Scaler", &["h"], "y")];
        assert_eq!(found(ordinary, vec![]), None);
    }

    #[test]
    fn bodies_and_functions_are_followed() {
        let tile = |by: &str| vec![node("Tile", &["x", by], "y")];
        let by_shape = || vec![node("Shape", &["x"], "extents"), node("Size", &["x"], "is_large")];
        let branch = |by: &str| {
            let mut nodes = by_shape();
            nodes.push(with_body(node("If", &["is_large"], "z"), tile(by)));
            nodes
        };
        assert_eq!(found(branch("n"), vec![]).as_deref(), Some("Tile"), "a body sees the values around it");
        assert_eq!(found(branch("extents"), vec![]), None);
        let call = |input: &str| {
            let mut nodes = by_shape();
            nodes.push(node("own::F", &["x", input], "y"));
            nodes
        };
        let function = || Function {
            name: "F".to_owned(),
            domain: "own".to_owned(),
            input: vec!["x".to_owned(), "by".to_owned()],
            output: vec!["y".to_owned()],
            node: tile("by"),
        };
        assert_eq!(found(call("n"), vec![function()]).as_deref(), Some("Tile"));
        assert_eq!(found(call("extents"), vec![function()]), None, "by what it is called with");
    }

    #[test]
    fn functions_that_call_functions_twice_are_visited_once() {
        let functions: Vec<Function> = (0..30)
            .map(|i| Function {
                name: format!("f{i}"),
                domain: "own".to_owned(),
                input: vec!["x".to_owned()],
                output: vec!["y".to_owned()],
                node: match i {
                    29 => vec![node("Relu", &["x"], "y")],
                    i => {
                        let next = format!("own::f{}", i + 1);
                        vec![node(&next, &["x"], "h"), node(&next, &["h"], "y")]
                    }
                },
            })
            .collect();
        assert_eq!(found(vec![node("own::f0", &["x"], "y")], functions), None);
        let endless = Function {
            name: "f".to_owned(),
            domain: "own".to_owned(),
            input: vec!["x".to_owned()],
            output: vec!["y".to_owned()],
            node: vec![node("own::f", &["x"], "y")],
        };
        assert!(found(vec![node("own::f", &["x"], "y")], vec![endless]).unwrap().contains("nested too deeply"));
    }
}
