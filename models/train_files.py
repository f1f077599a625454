"""The files of a model, for train.py: how a version is written, and how what was written is checked."""

import dataclasses
import hashlib
import json
import pathlib
import sys
import tempfile
import tomllib

import numpy as np
import onnx
from onnx import TensorProto, helper

HERE = pathlib.Path(__file__).resolve().parent
TRAINED_AT = "2026-11-21T00:00:00Z"  # when the recipes below were settled; fixed, or no two runs would be alike

# Old enough for any ONNX Runtime from 1.14 on, and for tract.
OPSET, ML_OPSET, IR_VERSION = 17, 3, 8
NUMPY_TYPES = {"FP32": np.float32, "INT64": np.int64}
ONNX_TYPES = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64}
FREE = "N"  # the one symbol for the batch dimension, in every model


@dataclasses.dataclass
class Version:
    """One trained version, before it is written."""

    onnx: onnx.ModelProto
    framework: str
    metrics: dict  # on rows the training never saw
    metadata: dict  # free strings for version.toml
    predict: object  # {input: array} -> {output: array}, by the training framework
    cases: list  # of {input: array}: what the golden answers are asked
    rtol: float = 1e-4  # engines add in another order than numpy, and in 32 bits
    atol: float = 1e-5


@dataclasses.dataclass
class Model:
    description: str
    dataset: str
    inputs: dict  # name -> (datatype, dims after the batch)
    outputs: dict
    versions: list  # of Version; the first is version 1
    feature_names: list = dataclasses.field(default_factory=list)
    why_features: str = ""


# === export ===


def finished(exported, model):
    """The export with its signature said in full, and nothing in it that varies between runs.

    The converters leave the batch dimension unnamed, the label's shape empty (skl2onnx) or [1], which is wrong for more
    than one row (onnxmltools), and name one domain twice; the versions of a model must say the same of their tensors.
    """
    graph = exported.graph
    for declared, tensors in ((graph.input, model.inputs), (graph.output, model.outputs)):
        found = {value.name for value in declared}
        assert not found or found == set(tensors), f"the export has {found}, not {set(tensors)}"
        del declared[:]
        for name, (datatype, dims) in tensors.items():
            declared.append(helper.make_tensor_value_info(name, ONNX_TYPES[datatype], [FREE, *dims]))
    opsets = {}
    for opset in exported.opset_import:
        opsets[opset.domain] = max(opset.version, opsets.get(opset.domain, 1))
    del exported.opset_import[:]
    exported.opset_import.extend(helper.make_opsetid(domain, number) for domain, number in sorted(opsets.items()))
    exported.ir_version = IR_VERSION
    if not exported.producer_name:
        exported.producer_name, exported.producer_version = "sluicegate models/train.py", "1"
    onnx.checker.check_model(exported, full_check=True)
    return exported.SerializeToString(deterministic=True)


# === the files of a version ===


def tensor(name, array, datatype, nested=False):
    """An Open Inference Protocol tensor. Floats are written as the shortest decimals that give the same 32 bits back."""
    array = np.asarray(array).astype(NUMPY_TYPES[datatype])
    short = np.array([float(str(v)) for v in array.ravel()]) if datatype == "FP32" else array.ravel()
    assert np.array_equal(short.astype(array.dtype), array.ravel())
    data = short.reshape(array.shape) if nested else short
    whole = array.size and np.array_equal(array, np.round(array)) and abs(array).max() < 2**24
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": datatype,
        "data": (data.astype(np.int64) if whole else data).tolist(),
    }


def golden_json(model, version):
    cases = []
    for number, inputs in enumerate(version.cases):
        answers = version.predict(inputs)
        # The last case is nested, as clients written by hand send it; the others are flat.
        nested = number == len(version.cases) - 1
        request = {"inputs": [tensor(n, inputs[n], kind, nested) for n, (kind, _) in model.inputs.items()]}
        outputs = [tensor(n, answers[n], kind) for n, (kind, _) in model.outputs.items()]
        cases.append(json.dumps({"request": request, "outputs": outputs}))
    lines = ",\n    ".join(cases)
    return f'{{\n  "rtol": {version.rtol},\n  "atol": {version.atol},\n  "cases": [\n    {lines}\n  ]\n}}\n'


def toml_value(value):
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # a JSON string is a TOML string
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def version_toml(model, version, sum_):
    top = {"sha256": sum_, "trained_at": TRAINED_AT, "framework": version.framework, "dataset": model.dataset}
    text = "".join(f"{key} = {toml_value(value)}\n" for key, value in top.items())
    for table, values in (("metrics", version.metrics), ("metadata", version.metadata)):
        text += f"\n[{table}]\n" + "".join(f"{key} = {toml_value(value)}\n" for key, value in values.items())
    return text


def model_toml(model):
    text = f"description = {toml_value(model.description)}\n\n"
    text += '# "auto": ONNX Runtime where its library is found, tract where it is not. Both can run every version\n'
    text += '# here (models/train.py --check shows it), so that neither is named.\nengine = "auto"\n\n'
    text += model.why_features + "\n"
    if model.feature_names:
        text += "feature_names = [\n" + "".join(f"    {toml_value(name)},\n" for name in model.feature_names) + "]\n"
    return text


def write(root, name, model, overwrite):
    """Writes the folder of one model; refuses to change the bytes of a version that is there."""
    for number, version in enumerate(model.versions, 1):
        folder = root / name / str(number)
        weights = finished(version.onnx, model)
        there = folder / "model.onnx"
        if there.exists() and there.read_bytes() != weights and not overwrite:
            sys.exit(
                f"{folder} holds other bytes than this recipe gives, and a version is immutable: give the changed "
                "recipe the next version number, or pass --overwrite if nobody has served this one."
            )
        folder.mkdir(parents=True, exist_ok=True)
        there.write_bytes(weights)
        (folder / "golden.json").write_text(golden_json(model, version))
        (folder / "version.toml").write_text(version_toml(model, version, hashlib.sha256(weights).hexdigest()))
        shown = {key: round(value, 4) for key, value in version.metrics.items()}
        print(f"{name} {number}: {len(weights)} bytes, {shown}", flush=True)
    (root / name / "model.toml").write_text(model_toml(model))


def write_table(root):
    """The table in README.md, from the version.toml files, so that it cannot say other numbers than they do."""
    lines = [
        "| model | version | what it is | trained on | held out | bytes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, number, folder in versions(root):
        said = tomllib.loads((folder / "version.toml").read_text())
        metrics = dict(said["metrics"])
        rows = metrics.pop("held_out_rows")
        shown = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())
        size = (folder / "model.onnx").stat().st_size
        lines.append(
            f"| `{name}` | {number} | {said['metadata']['algorithm']} ({said['framework']}) "
            f"| {said['dataset']} | {shown} ({rows:,} rows) | {size:,} |"
        )
    readme = HERE / "README.md"
    before, after = (readme.read_text()).split("<!-- table -->")[0::2]
    (root / "README.md").write_text(f"{before}<!-- table -->\n" + "\n".join(lines) + f"\n<!-- table -->{after}")


def versions(root):
    """(model, number, folder) of all that is there."""
    found = [(path.parent.parent.name, int(path.parent.name), path.parent) for path in root.glob("*/*/model.onnx")]
    return sorted(found)


# === checks ===


def run_onnxruntime(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def run_tract(path):
    import tract

    # tract keeps the order of the outputs but not their names, and gives what went through a Cast to INT64 in its own
    # type for dimensions, which its Python door cannot hand out. So: by position, and by way of FP64, for this check alone.
    model = onnx.load(path)
    outputs = [(o.name, o.type.tensor_type.elem_type) for o in model.graph.output]
    for output, (name, kind) in zip(model.graph.output, outputs, strict=True):
        if kind == TensorProto.INT64:
            output.name, output.type.tensor_type.elem_type = f"{name}_fp64", TensorProto.DOUBLE
            model.graph.node.append(helper.make_node("Cast", [name], [output.name], to=TensorProto.DOUBLE))
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        pathlib.Path(file.name).write_bytes(model.SerializeToString())
        loaded = tract.onnx().load(file.name)
    inputs_in_order = [loaded.input_name(i) for i in range(loaded.input_count())]
    runnable = loaded.into_model().into_runnable()

    def run(inputs):
        answers = [value.to_numpy() for value in runnable.run([inputs[name] for name in inputs_in_order])]
        return {
            name: answer.astype(np.int64) if kind == TensorProto.INT64 else answer
            for (name, kind), answer in zip(outputs, answers, strict=True)
        }

    return run


def check(root):
    """Every version: sum, signature, golden answers in each engine; prints how much of the tolerance was used."""
    engines = {"ONNX Runtime": run_onnxruntime, "tract": run_tract}
    complaints, signatures, seen = [], {}, 0
    for name, number, folder in versions(root):
        seen += 1
        path = folder / "model.onnx"
        said = tomllib.loads((folder / "version.toml").read_text())
        if hashlib.sha256(path.read_bytes()).hexdigest() != said["sha256"]:
            complaints.append(f"{path}: the sha256 is not the one in version.toml")
        graph = onnx.load(path).graph
        signature = [
            (v.name, v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
            for v in [*graph.input, *graph.output]
        ]
        if any(not dims or dims[0] != FREE for _, _, dims in signature):
            complaints.append(f"{path}: a tensor whose first dimension is not free: {signature}")
        if signatures.setdefault(name, signature) != signature:
            complaints.append(f"{path}: another signature than version 1: {signature}")

        golden = json.loads((folder / "golden.json").read_text())
        for engine, load in engines.items():
            try:
                run, used = load(str(path)), 0.0
                for case in golden["cases"]:
                    inputs = {t["name"]: array_of(t) for t in case["request"]["inputs"]}
                    answers = run(inputs)
                    for expected in case["outputs"]:
                        want, got = array_of(expected), answers[expected["name"]]
                        if got.shape != want.shape or got.dtype != want.dtype:
                            complaints.append(
                                f"{path}: {engine} answers {got.dtype}{got.shape}, expected {want.dtype}{want.shape}"
                            )
                            continue
                        away = abs(got.astype(float) - want) / (golden["atol"] + golden["rtol"] * abs(want))
                        used = max(used, np.nan_to_num(away, nan=np.inf).max())
                if used > 1:
                    complaints.append(f"{path}: {engine} is {used:.1f} times the tolerance away from golden.json")
                print(
                    f"{name} {number}: {engine}, {len(golden['cases'])} golden cases, {used:.3f} of the tolerance used"
                )
            except Exception as error:  # an engine that refuses a model says so in its own type
                complaints.append(f"{path}: {engine}: {str(error).splitlines()[0]}")
    if not seen:
        complaints.append(f"no version under {root}")
    return complaints


def array_of(t):
    return np.array(t["data"], dtype=NUMPY_TYPES[t["datatype"]]).reshape(t["shape"])
