//! Writes small ONNX files: perceptrons with random weights, `x [n, first] -> MatMul, Add, Relu, … -> y [n, last]`.
//!
//! An ONNX file is a protobuf message. The few necessary fields are written by their numbers in `onnx.proto`, so that load tests need
//! neither Python nor large files in the repository.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const FLOAT: u64 = 1;

/// The file of a perceptron with these layer widths. The same seed gives the same bytes.
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
    graph.text(2, "perceptron");
    graph.message(11, &value("x", widths[0]));
    graph.message(12, &value("y", widths[layers]));

    let mut opset = Message::default();
    opset.number(2, 17);
    let mut model = Message::default();
    model.number(1, 8); // ir_version
    model.text(2, "sluicegate-loadtest");
    model.message(7, &graph);
    model.message(8, &opset);
    model.0
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

/// An input or output of shape `[n, columns]`, where `n` is free.
fn value(name: &str, columns: usize) -> Message {
    let (mut free, mut fixed) = (Message::default(), Message::default());
    free.text(2, "n");
    fixed.number(1, columns as u64);
    let (mut shape, mut tensor, mut kind, mut value) =
        (Message::default(), Message::default(), Message::default(), Message::default());
    shape.message(1, &free);
    shape.message(1, &fixed);
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
    }
}
