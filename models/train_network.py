"""The network of train.py's made-up models: trained in plain numpy, exported by hand."""

import numpy as np
from onnx import helper, numpy_helper

from train_files import OPSET


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


class Network:
    """Embedding tables and dense columns, side by side, into a ReLU perceptron with one output; trained by Adam in plain numpy.

    `forward` takes raw dense columns: after `fit`, their scaling is folded into the first layer and all weights are
    rounded to the 32-bit floats that `export` writes, so that golden answers speak of the very weights served.

    dense    the name of the input with the dense columns, of which there are n_dense
    ids      name of a categorical input -> how many ids it has
    tables   name of a categorical input -> width of its embedding
    hidden   widths of the hidden layers
    """

    def __init__(self, rng, dense, n_dense, ids, tables, hidden):
        self.rng, self.dense, self.n_dense, self.tables = rng, dense, n_dense, list(tables)
        self.width = n_dense + sum(tables.values())
        sizes = [self.width, *hidden, 1]
        self.n_layers = len(sizes) - 1
        self.weights = {f"table_{name}": rng.normal(0, 0.1, (ids[name], size)) for name, size in tables.items()}
        for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            self.weights[f"w{i}"] = rng.normal(0, np.sqrt(2 / fan_in), (fan_in, fan_out))
            self.weights[f"b{i}"] = np.zeros(fan_out)

    def forward(self, inputs, activations=None):
        """The output before any sigmoid, [rows, 1], in 64 bits."""
        looked_up = [self.weights[f"table_{name}"][inputs[name]] for name in self.tables]
        a = np.concatenate([inputs[self.dense].astype(np.float64), *looked_up], axis=1)
        for i in range(self.n_layers):
            if activations is not None:
                activations.append(a)
            a = a @ self.weights[f"w{i}"] + self.weights[f"b{i}"]
            if i < self.n_layers - 1:
                a = np.maximum(a, 0)
        return a

    def gradients(self, inputs, target, loss):
        activations = []
        z = self.forward(inputs, activations)[:, 0]
        # With a sigmoid under log loss, or nothing under half the squared error, the gradient is the same difference.
        d = (((sigmoid(z) if loss == "logistic" else z) - target) / len(target))[:, None]
        gradients = {}
        for i in reversed(range(self.n_layers)):
            gradients[f"w{i}"], gradients[f"b{i}"] = activations[i].T @ d, d.sum(0)
            d = d @ self.weights[f"w{i}"].T
            if i:
                d *= activations[i] > 0
        at = self.n_dense
        for name in self.tables:
            table = gradients[f"table_{name}"] = np.zeros_like(self.weights[f"table_{name}"])
            np.add.at(table, inputs[name], d[:, at : at + table.shape[1]])
            at += table.shape[1]
        return gradients

    def fit(self, inputs, target, epochs, loss, batch=500, rate=3e-3):
        mean, spread = inputs[self.dense].mean(0, dtype=np.float64), inputs[self.dense].std(0, dtype=np.float64)
        inputs = inputs | {self.dense: (inputs[self.dense] - mean) / spread}
        moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in self.weights.items()}
        step, steps = 0, epochs * (len(target) // batch)
        for _ in range(epochs):
            for rows in np.array_split(self.rng.permutation(len(target)), len(target) // batch):
                step += 1
                some = {name: values[rows] for name, values in inputs.items()}
                for name, g in self.gradients(some, target[rows], loss).items():
                    first, second = moments[name]
                    first += 0.1 * (g - first)
                    second += 0.001 * (g * g - second)
                    up = (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
                    self.weights[name] -= rate * (1 - step / (steps + 1)) * up
        w0 = self.weights["w0"]
        w0[: self.n_dense] /= spread[:, None]
        self.weights["b0"] -= mean @ w0[: self.n_dense]
        self.weights = {name: w.astype(np.float32).astype(np.float64) for name, w in self.weights.items()}

    def export(self, name, output, last):
        """The same arithmetic as `forward` in ONNX; `last` is an operator after the last layer, or None."""
        nodes = [helper.make_node("Gather", [f"table_{n}", n], [f"embedded_{n}"], axis=0) for n in self.tables]
        at = self.dense
        if self.tables:
            nodes.append(helper.make_node("Concat", [at, *(f"embedded_{n}" for n in self.tables)], ["joined"], axis=1))
            at = "joined"
        for i in range(self.n_layers):
            nodes.append(helper.make_node("Gemm", [at, f"w{i}", f"b{i}"], [at := f"layer{i}"]))
            if operator := "Relu" if i < self.n_layers - 1 else last:
                nodes.append(helper.make_node(operator, [at], [at := f"active{i}"]))
        nodes[-1].output[0] = output
        weights = [numpy_helper.from_array(w.astype(np.float32), n) for n, w in self.weights.items()]
        return helper.make_model(
            helper.make_graph(nodes, name, [], [], weights), opset_imports=[helper.make_opsetid("", OPSET)]
        )
