"""Writes a BERT tokenizer of `onnxruntime-extensions` as models/tokens/1/model.onnx below DIR, and its library into DIR/ops, for tests/it/custom_ops.rs.

    tokenizer_model.py DIR

Prints the path of libpython: the wheel has its library as a Python module, which a program can load only where libpython is loaded already. Prints
`none` where it is not installed.
"""

import glob
import importlib.util
import os
import shutil
import sys
import sysconfig

from onnx import TensorProto, helper, save


def libpython():
    name = f"libpython3.{sys.version_info[1]}.so*"
    places = [sysconfig.get_config_var("LIBDIR"), "/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64"]
    found = [file for place in places if place for file in sorted(glob.glob(os.path.join(place, name)))]
    return found[0] if found else "none"


def main():
    directory = sys.argv[1]
    package = os.path.dirname(importlib.util.find_spec("onnxruntime_extensions").origin)
    (library,) = glob.glob(os.path.join(package, "_extensions_pydll*.so"))
    os.makedirs(os.path.join(directory, "ops"), exist_ok=True)
    shutil.copy(library, os.path.join(directory, "ops", "libortextensions.so"))
    vocabulary = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "world", "##s", "[MASK]"]) + "\n"
    node = helper.make_node(
        "BertTokenizer", ["text"], ["ids", "types", "mask"], domain="ai.onnx.contrib", vocab_file=vocabulary, do_lower_case=1
    )
    outputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["tokens"]) for name in ("ids", "types", "mask")]
    graph = helper.make_graph(
        [node], "tokens", [helper.make_tensor_value_info("text", TensorProto.STRING, [1])], outputs
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.contrib", 1)]
    place = os.path.join(directory, "models", "tokens", "1")
    os.makedirs(place)
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), os.path.join(place, "model.onnx"))
    with open(os.path.join(directory, "models", "tokens", "model.toml"), "w") as file:
        file.write('[engine]\nname = "onnxruntime"\ncustom_ops = ["libortextensions.so"]\n')
    print(libpython())


main()
