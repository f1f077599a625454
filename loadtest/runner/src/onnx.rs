//! Writes small ONNX files with random weights: perceptrons, a convolutional network, boosted trees. Each has one input `x` and one
//! output `y`, whose first dimension is free.
//!
//! An ONNX file is a protobuf message. The few necessary fields are written by their numbers in `onnx.proto`, so that load tests need
//! neither Python nor large files in the repository.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const FLOAT: u64 = 1;

// The kinds of attributes.
const INT: u64 = 2;
const STRING: u64 = 3;
const FLOATS: u64 = 6;
const INTS: u64 = 7;
const STRINGS: u64 = 8;

/// The file of a perceptron with these layer widths, `x [n, first] -> MatMul, Add, Relu, … -> y [n, last]`. The same seed gives the
/// same bytes.
pub fn perceptron(widths: &[usize], seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let layers = widths.len() - 1;
    let mut graph = Message::default();
    let mut last = "x".to_owned();
    for (i, pair) in widths.windows(2).enumerate() {
        let (a, b) = (pair[0], pair[1]);
        let scale = 1.0 / (a as f32).sqrt();
        let ends = i + 1 == layers;
        let sum = if ends { "y".to_owned() } else { format!("s{i}") };
        graph.message(1, &node("MatMul", &[&last, &format!("w{i}")], &format!("m{i}")));
        graph.message(1, &node("Add", &[&format!("m{i}"), &format!("b{i}")], &sum));
        if !ends {
            last = format!("r{i}");
            graph.message(1, &node("Relu", &[&sum], &last));
        }
        graph.message(5, &tensor(&format!("w{i}"), &[a, b], (0..a * b).map(|_| rng.random_range(-scale..scale))));
        graph.message(5, &tensor(&format!("b{i}"), &[b], (0..b).map(|_| rng.random_range(-scale..scale))));
    }
    file(graph, "perceptron", &[widths[0]], widths[layers])
}

/// The file of a convolutional network: a 3 × 3 convolution with stride 4, `Relu`, the mean of each channel over the image, one
/// layer. `image` has channels, height and width.
pub fn cnn(image: [usize; 3], channels: usize, outputs: usize, seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut weights = |dimensions: &[usize], inputs: usize| -> Vec<f32> {
        let scale = 1.0 / (inputs as f32).sqrt();
        (0..dimensions.iter().product()).map(|_| rng.random_range(-scale..scale)).collect()
    };
    let mut graph = Message::default();
    let mut convolution = node("Conv", &["x", "k", "b"], "c");
    convolution.message(5, &integers("kernel_shape", &[3, 3]));
    convolution.message(5, &integers("strides", &[4, 4]));
    graph.message(1, &convolution);
    graph.message(1, &node("Relu", &["c"], "r"));
    graph.message(1, &node("GlobalAveragePool", &["r"], "g"));
    graph.message(1, &node("Flatten", &["g"], "f"));
    graph.message(1, &node("MatMul", &["f", "w"], "m"));
    graph.message(1, &node("Add", &["m", "v"], "y"));
    let tensors: [(&str, &[usize], usize); 4] = [
        ("k", &[channels, image[0], 3, 3], image[0] * 9),
        ("b", &[channels], channels),
        ("w", &[channels, outputs], channels),
        ("v", &[outputs], outputs),
    ];
    for (name, dimensions, inputs) in tensors {
        graph.message(5, &tensor(name, dimensions, weights(dimensions, inputs).into_iter()));
    }
    file(graph, "cnn", &image, outputs)
}

/// The file of `count` gradient-boosted trees with `leaves` leaves each, as `ai.onnx.ml.TreeEnsembleRegressor`. Trees grow as in
/// `LightGBM`, by splitting one leaf after the other; here a random one.
pub fn trees(features: usize, count: usize, leaves: usize, seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut ensemble = node("TreeEnsembleRegressor", &["x"], "y");
    ensemble.text(7, "ai.onnx.ml");
    // Columns of the nodes and of the leaves, of all trees.
    let [mut tree, mut id, mut feature, mut below, mut above] = [const { Vec::<u64>::new() }; 5];
    let [mut leaf_tree, mut leaf_id] = [const { Vec::<u64>::new() }; 2];
    let (mut modes, mut thresholds, mut weights) = (Vec::<&str>::new(), Vec::<f32>::new(), Vec::<f32>::new());
    for t in 0..count as u64 {
        // The children of each node; leaves have none.
        let mut children: Vec<Option<(u64, u64)>> = vec![None];
        let mut open = vec![0_usize];
        while open.len() < leaves {
            let split = open.swap_remove(rng.random_range(0..open.len()));
            let next = children.len();
            children[split] = Some((next as u64, next as u64 + 1));
            children.extend([None, None]);
            open.extend([next, next + 1]);
        }
        for (n, of) in children.iter().enumerate() {
            tree.push(t);
            id.push(n as u64);
            let (yes, no) = of.unwrap_or_default();
            below.push(yes);
            above.push(no);
            feature.push(if of.is_some() { rng.random_range(0..features as u64) } else { 0 });
            thresholds.push(if of.is_some() { rng.random_range(-1.5..1.5) } else { 0.0 });
            modes.push(if of.is_some() { "BRANCH_LEQ" } else { "LEAF" });
            if of.is_none() {
                leaf_tree.push(t);
                leaf_id.push(n as u64);
                weights.push(rng.random_range(-0.1..0.1));
            }
        }
    }
    let leaf_target = vec![0; leaf_id.len()];
    ensemble.message(5, &integer("n_targets", 1));
    let columns = [
        ("nodes_treeids", &tree),
        ("nodes_nodeids", &id),
        ("nodes_featureids", &feature),
        ("nodes_truenodeids", &below),
        ("nodes_falsenodeids", &above),
        ("target_treeids", &leaf_tree),
        ("target_nodeids", &leaf_id),
        ("target_ids", &leaf_target),
    ];
    for (name, values) in columns {
        ensemble.message(5, &integers(name, values));
    }
    ensemble.message(5, &floats("nodes_values", &thresholds));
    ensemble.message(5, &floats("target_weights", &weights));
    let mut mode = attribute("nodes_modes", STRINGS);
    for name in modes {
        mode.text(9, name);
    }
    ensemble.message(5, &mode);
    let mut transform = attribute("post_transform", STRING);
    transform.text(4, "NONE");
    ensemble.message(5, &transform);
    let mut graph = Message::default();
    graph.message(1, &ensemble);
    file(graph, "trees", &[features], 1)
}

/// A model file: the graph with its input `x` of `[n, row]` and its output `y` of `[n, outputs]`.
fn file(mut graph: Message, name: &str, row: &[usize], outputs: usize) -> Vec<u8> {
    graph.text(2, name);
    graph.message(11, &value("x", row));
    graph.message(12, &value("y", &[outputs]));
    let mut model = Message::default();
    model.number(1, 8); // ir_version
    model.text(2, "sluicegate-loadtest");
    model.message(7, &graph);
    for (domain, version) in [("", 17), ("ai.onnx.ml", 1)] {
        let mut opset = Message::default();
        opset.text(1, domain);
        opset.number(2, version);
        model.message(8, &opset);
    }
    model.0
}

fn attribute(name: &str, kind: u64) -> Message {
    let mut attribute = Message::default();
    attribute.text(1, name);
    attribute.number(20, kind);
    attribute
}

fn integer(name: &str, value: u64) -> Message {
    let mut attribute = attribute(name, INT);
    attribute.number(3, value);
    attribute
}

fn integers(name: &str, values: &[u64]) -> Message {
    let mut attribute = attribute(name, INTS);
    for &value in values {
        attribute.number(8, value);
    }
    attribute
}

fn floats(name: &str, values: &[f32]) -> Message {
    let mut attribute = attribute(name, FLOATS);
    for &value in values {
        attribute.float(7, value);
    }
    attribute
}

fn node(operator: &str, inputs: &[&str], output: &str) -> Message {
    let mut node = Message::default();
    for input in inputs {
        node.text(1, input);
    }
    node.text(2, output);
    node.text(3, output); // node names must be unique, and output names are
    node.text(4, operator);
    node
}

fn tensor(name: &str, dimensions: &[usize], values: impl Iterator<Item = f32>) -> Message {
    let mut tensor = Message::default();
    for &d in dimensions {
        tensor.number(1, d as u64);
    }
    tensor.number(2, FLOAT);
    tensor.text(8, name);
    tensor.bytes(9, &values.flat_map(f32::to_le_bytes).collect::<Vec<_>>());
    tensor
}

/// An input or output whose first dimension `n` is free, and the others are `row`.
fn value(name: &str, row: &[usize]) -> Message {
    let mut free = Message::default();
    free.text(2, "n");
    let (mut shape, mut tensor, mut kind, mut value) =
        (Message::default(), Message::default(), Message::default(), Message::default());
    shape.message(1, &free);
    for &extent in row {
        let mut fixed = Message::default();
        fixed.number(1, extent as u64);
        shape.message(1, &fixed);
    }
    tensor.number(1, FLOAT);
    tensor.message(2, &shape);
    kind.message(1, &tensor);
    value.text(1, name);
    value.message(2, &kind);
    value
}

/// A protobuf message that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn text(&mut self, field: u64, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    fn message(&mut self, field: u64, value: &Message) {
        self.bytes(field, &value.0);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_protobuf_varints() {
        let mut message = Message::default();
        message.number(1, 300);
        message.text(2, "n");
        assert_eq!(message.0, [0x08, 0xac, 0x02, 0x12, 0x01, b'n']);
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let file = perceptron(&[32, 64, 1], 7);
        assert_eq!(file, perceptron(&[32, 64, 1], 7));
        assert_ne!(file, perceptron(&[32, 64, 1], 8));
        assert!(file.len() > 4 * (32 * 64 + 64 + 64 + 1), "all weights are in it");
        assert_eq!(trees(8, 3, 5, 7), trees(8, 3, 5, 7));
        assert_eq!(cnn([3, 8, 8], 4, 2, 7), cnn([3, 8, 8], 4, 2, 7));
    }

    #[test]
    fn a_tree_has_the_leaves_it_was_asked_for() {
        let file = trees(8, 3, 5, 7);
        let count = |word: &[u8]| file.windows(word.len()).filter(|&w| w == word).count();
        // A tree with n leaves has n - 1 branches.
        assert_eq!((count(b"LEAF"), count(b"BRANCH_LEQ")), (15, 12));
    }
}
