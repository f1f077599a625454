"""Writes an ONNX model with the signature of mlp32 that takes a hundred times as long, for use as a slow shadow.

    python loadtest/slow_model.py models/mlp32/1/model.onnx OUT.onnx [WIDTH]

Needs onnx and numpy (`make train` installs both into .venv-train).
"""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def main() -> None:
    like, out, width = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 3072
    graph = onnx.load(like).graph
    (x,), (y,) = ([v for v in graph.input if v.name not in {i.name for i in graph.initializer}], graph.output)
    columns = x.type.tensor_type.shape.dim[1].dim_value
    answers = y.type.tensor_type.shape.dim[1].dim_value
    rng = np.random.default_rng(7)
    sizes = [columns, width, width, answers]
    nodes, weights, last = [], [], x.name
    for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
        weights.append(numpy_helper.from_array((rng.standard_normal((a, b)) / a**0.5).astype(np.float32), f"w{i}"))
        final = i == len(sizes) - 2
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [y.name if final else f"m{i}"]))
        if not final:
            nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"]))
            last = f"r{i}"
    slow = helper.make_graph(nodes, "slow", [x], [y], weights)
    assert x.type.tensor_type.elem_type == TensorProto.FLOAT
    onnx.save(helper.make_model(slow, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), out)


main()
