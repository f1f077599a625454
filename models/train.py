#!/usr/bin/env python3
"""Trains the models that Sluicegate serves out of the box, and writes them beside this file.

    pip install -r models/requirements.txt      (Python 3.11; every package pinned)
    python models/train.py                      train all, write models/<model>/<version>/ and the table in README.md
    python models/train.py --check              verify what is there: sums, signatures, golden answers in both engines
    python models/train.py --reproduce          train into a temporary folder and name every byte that differs

Each version gets `model.onnx`, `golden.json` and `version.toml`. The golden answers come from the framework that
trained the model (scikit-learn, LightGBM, or the numpy forward pass of train_network.py), never from an engine that
serves it: they are there to catch an export or an engine that is wrong.

A version is immutable. Change a recipe here and the script refuses to write over the version it made before; give the
new recipe the next number (or pass --overwrite while nobody serves it yet).

Reproducible: seeds and the recorded time are fixed, BLAS and LightGBM run on one thread, and OpenBLAS and numpy are held
to their AVX2 code, so that two runs give the same bytes (shown on one x86-64 machine). On another architecture, or with
another C library (its `exp` is not rounded the same everywhere), the last bits of weights may differ, and the sums with
them; the golden answers hold all the same, as they are made anew.
"""

import os
import platform
import sys

sys.dont_write_bytecode = True  # this folder is served: no __pycache__ in it
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
if platform.machine() == "x86_64":
    # Before numpy is imported: sums and exponentials differ in the last bit between the kernels chosen by CPU.
    os.environ.update(OPENBLAS_CORETYPE="Haswell", NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR")

import argparse
import filecmp
import pathlib
import tempfile
import warnings
from importlib.metadata import version as package

import numpy as np
from onnx import helper

from train_files import HERE, ML_OPSET, OPSET, Model, Version, check, write, write_table
from train_network import Network, sigmoid

HELD_OUT_SEED = 7


# === the recipes: real data ===


def classifier(data_set, input_name, input_width, classes):
    """What the three scikit-learn data sets share: names, split, signature, golden rows."""
    from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
    from sklearn.model_selection import train_test_split

    # As 32-bit floats from the start: these are the numbers the served model will be given.
    x = data_set.data.astype(np.float32)
    parts = train_test_split(x, data_set.target, test_size=0.25, random_state=HELD_OUT_SEED, stratify=data_set.target)
    x_train, x_test, y_train, y_test = parts

    def measure(estimator):
        probabilities = estimator.predict_proba(x_test)
        metrics = {
            "held_out_rows": len(y_test),
            "accuracy": accuracy_score(y_test, estimator.predict(x_test)),
            "log_loss": log_loss(y_test, probabilities),
        }
        if classes == 2:
            metrics["roc_auc"] = roc_auc_score(y_test, probabilities[:, 1])
        return metrics

    def version(model, estimator, framework, exporter, **metadata):
        def predict(inputs):
            rows = inputs[input_name]
            return {"label": estimator.predict(rows), "probabilities": estimator.predict_proba(rows)}

        # Held-out rows whose label does not hang on the last bit of a probability.
        top = np.sort(estimator.predict_proba(x_test), axis=1)
        sure = x_test[top[:, -1] - top[:, -2] > 0.01]
        return Version(
            onnx=model,
            framework=framework,
            metrics=measure(estimator),
            metadata={"classes": ", ".join(map(str, data_set.target_names)), "exporter": exporter, **metadata},
            predict=predict,
            cases=[{input_name: sure[:1]}, {input_name: sure[1:2]}, {input_name: sure[2:7]}, {input_name: sure[7:24]}],
        )

    signature = (
        {input_name: ("FP32", [input_width])},
        {"label": ("INT64", []), "probabilities": ("FP32", [classes])},
    )
    return x_train, y_train, signature, version


def breast_cancer():
    from lightgbm import LGBMClassifier
    from onnxmltools.convert import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = load_breast_cancer()
    x, y, (inputs, outputs), version = classifier(data, "features", 30, 2)

    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, max_iter=1000)).fit(x, y)
    trees = LGBMClassifier(
        n_estimators=120, num_leaves=7, learning_rate=0.08, min_child_samples=10, colsample_bytree=0.5,
        random_state=1, n_jobs=1, deterministic=True, force_col_wise=True, verbose=-1,
    ).fit(x, y)  # fmt: skip
    exported_trees = convert_lightgbm(
        trees, name="breast-cancer-2", initial_types=[("features", FloatTensorType([None, 30]))], zipmap=False
    )
    return Model(
        description="Is a breast mass benign (1) or malignant (0), from 30 measurements of cell nuclei.",
        dataset="Breast Cancer Wisconsin (Diagnostic), UCI; as bundled with scikit-learn (load_breast_cancer), 569 rows",
        inputs=inputs,
        outputs=outputs,
        feature_names=list(map(str, data.feature_names)),
        why_features="# In the order of the columns of `features`: what the measurements are, for people and for column names.",
        versions=[
            version(
                export_sklearn(without_scaler(linear), "breast-cancer-1", "features", 30), linear,
                f"scikit-learn {package('scikit-learn')}", f"skl2onnx {package('skl2onnx')}, zipmap=False",
                algorithm="StandardScaler + LogisticRegression", scaler="folded into the coefficients",
            ),
            version(
                label_from_probabilities(exported_trees), trees,
                f"lightgbm {package('lightgbm')}", f"onnxmltools {package('onnxmltools')}, zipmap=False",
                algorithm="LGBMClassifier, 120 trees of 7 leaves",
                label="ArgMax of the probabilities, not the tree operator's own",
            ),
        ],
    )  # fmt: skip


def iris():
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = load_iris()
    x, y, (inputs, outputs), version = classifier(data, "features", 4, 3)
    linear = LogisticRegression(max_iter=1000).fit(x, y)
    network = make_pipeline(
        StandardScaler(), MLPClassifier((16,), solver="lbfgs", alpha=0.1, max_iter=1000, random_state=3)
    ).fit(x, y)
    made_by = f"scikit-learn {package('scikit-learn')}", f"skl2onnx {package('skl2onnx')}, zipmap=False"
    return Model(
        description="Which of three iris species, from the lengths and widths of sepal and petal in cm.",
        dataset="Iris, Fisher 1936, UCI; as bundled with scikit-learn (load_iris), 150 rows",
        inputs=inputs,
        outputs=outputs,
        feature_names=[name.removesuffix(" (cm)").replace(" ", "_") + "_cm" for name in data.feature_names],
        why_features="# In the order of the columns of `features`.",
        versions=[
            version(export_sklearn(linear, "iris-1", "features", 4), linear, *made_by, algorithm="LogisticRegression"),
            version(
                export_sklearn(without_scaler(network), "iris-2", "features", 4), network, *made_by,
                algorithm="StandardScaler + MLPClassifier 4-16-3", scaler="folded into the first layer",
            ),
        ],
    )  # fmt: skip


def digits():
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    data = load_digits()
    x, y, (inputs, outputs), version = classifier(data, "pixels", 64, 10)
    # No scaler: inks run from 0 to 16 in every column, and some columns are always blank.
    network = MLPClassifier((64, 32), alpha=0.1, learning_rate_init=3e-3, max_iter=400, random_state=5).fit(x, y)
    return Model(
        description="Which digit was written by hand, from an 8 by 8 picture with inks from 0 to 16.",
        dataset="Optical Recognition of Handwritten Digits (test part), UCI; as bundled with scikit-learn (load_digits), 1797 rows",
        inputs=inputs,
        outputs=outputs,
        feature_names=list(data.feature_names),
        why_features="# In the order of the columns of `pixels`: row by row from the upper left.",
        versions=[
            version(
                export_sklearn(network, "digits-1", "pixels", 64), network,
                f"scikit-learn {package('scikit-learn')}", f"skl2onnx {package('skl2onnx')}, zipmap=False",
                algorithm="MLPClassifier 64-64-32-10",
            )
        ],
    )  # fmt: skip


# === the recipes: made-up data, for load tests ===

DENSE = {  # name -> (mean, spread) of the made-up distribution
    "user_activity": (12.0, 6.0), "days_since_last_visit": (9.0, 5.0), "session_seconds": (240.0, 120.0),
    "items_in_cart": (1.5, 1.2), "item_price": (40.0, 20.0), "item_discount": (0.1, 0.08),
    "item_age_days": (200.0, 90.0), "item_popularity": (0.5, 0.25),
}  # fmt: skip
CATEGORICAL = {"user": 500, "item": 300, "category": 40, "device": 5, "hour": 24}  # name -> how many ids there are


def recommender():
    from sklearn.metrics import log_loss, roc_auc_score

    rng = np.random.default_rng(11)
    rows, kept = 240_000, 200_000

    # The made-up world: tastes of users meet traits of items; categories, hours and devices lean one way or the other.
    ids = {name: rng.integers(0, size, rows) for name, size in CATEGORICAL.items()}
    ids["category"] = rng.integers(0, CATEGORICAL["category"], CATEGORICAL["item"])[ids["item"]]
    standard = rng.standard_normal((rows, len(DENSE)))
    means, spreads = np.array(list(DENSE.values())).T
    dense = (means + spreads * standard).astype(np.float32)
    taste, trait = rng.standard_normal((CATEGORICAL["user"], 2)), rng.standard_normal((CATEGORICAL["item"], 2))
    lean = {name: rng.standard_normal(CATEGORICAL[name]) for name in ("category", "device")}
    true_logit = (
        0.8 * (taste[ids["user"]] * trait[ids["item"]]).sum(1)
        + 0.4 * lean["category"][ids["category"]]
        + 0.3 * lean["device"][ids["device"]]
        + 0.4 * np.sin(2 * np.pi * (ids["hour"] - 14) / 24)
        + standard @ rng.normal(0, 0.4, len(DENSE))
        - 1.5
    )
    clicked = rng.random(rows) < sigmoid(true_logit)

    inputs = {"dense": dense, **ids}
    train = {name: values[:kept] for name, values in inputs.items()}
    test = {name: values[kept:] for name, values in inputs.items()}
    ceiling = roc_auc_score(clicked[kept:], true_logit[kept:])

    def version(number, embed, hidden, epochs):
        tables = {name: min(embed, 2 * int(np.ceil(np.sqrt(size) / 2))) for name, size in CATEGORICAL.items()}
        net = Network(np.random.default_rng(100 + number), "dense", len(DENSE), CATEGORICAL, tables, hidden)
        net.fit(train, clicked[:kept], epochs=epochs, loss="logistic")
        scores = sigmoid(net.forward(test))[:, 0]
        output = "click_probability"
        widths = ", ".join(f"{name} {size}" for name, size in tables.items())
        layers = "-".join(map(str, [net.width, *hidden, 1]))
        return Version(
            onnx=net.export(f"recommender-{number}", output, "Sigmoid"),
            framework=f"numpy {package('numpy')}",
            metrics={
                "held_out_rows": rows - kept,
                "roc_auc": roc_auc_score(clicked[kept:], scores),
                "log_loss": log_loss(clicked[kept:], scores),
                # No model can do better: the score of the very probabilities that the clicks were drawn from.
                "roc_auc_ceiling": ceiling,
            },
            metadata={
                "synthetic": "yes: users, items and clicks come from a made-up model (seed 11); it recommends nothing",
                "algorithm": f"embeddings ({widths}), {len(DENSE)} dense columns, perceptron {layers}",
                "dense_columns": ", ".join(DENSE),
                "ids": ", ".join(f"{name} below {size}" for name, size in CATEGORICAL.items())
                + " (a plain Gather: an id past the end is the engine's error, a negative one counts from the end)",
                "exporter": f"onnx {package('onnx')}, onnx.helper",
            },
            predict=lambda inputs: {output: sigmoid(net.forward(inputs))},
            cases=[
                {name: values[some] for name, values in test.items()} for some in np.split(np.arange(26), [1, 2, 8])
            ],
        )

    return Model(
        description="Will a user click an item: recommender-shaped, on made-up data, for load tests.",
        dataset="synthetic (made by models/train.py), 240,000 rows",
        inputs={"dense": ("FP32", [len(DENSE)]), **{name: ("INT64", []) for name in CATEGORICAL}},
        outputs={"click_probability": ("FP32", [1])},
        why_features="# No feature_names: every input but `dense` names itself; the columns of `dense` are in each version.toml.",
        versions=[version(1, embed=8, hidden=[32], epochs=2), version(2, embed=16, hidden=[64, 32], epochs=12)],
    )


def mlp32():
    rng = np.random.default_rng(32)
    rows, kept, width = 40_000, 32_000, 32
    x = rng.standard_normal((rows, width)).astype(np.float32)
    # Some curve and some interaction, so that there is something to learn.
    pairs = x[:, 0::2] * x[:, 1::2]
    y = np.tanh(x @ rng.normal(0, 0.3, width)) + pairs @ rng.normal(0, 0.15, width // 2) + rng.normal(0, 0.1, rows)
    net = Network(np.random.default_rng(33), "x", width, {}, {}, [64, 64])
    net.fit({"x": x[:kept]}, y[:kept], epochs=10, loss="squared")
    error = net.forward({"x": x[kept:]})[:, 0] - y[kept:]
    asked = np.round(x[kept : kept + 40], 3)
    return Model(
        description="A 32-64-64-1 perceptron in 32 bits: what the load tests ask. It means nothing.",
        dataset="synthetic (made by models/train.py), 40,000 rows",
        inputs={"x": ("FP32", [width])},
        outputs={"y": ("FP32", [1])},
        why_features="# No feature_names: the columns of `x` are noise and mean nothing.",
        versions=[
            Version(
                onnx=net.export("mlp32-1", "y", None),
                framework=f"numpy {package('numpy')}",
                metrics={"held_out_rows": rows - kept, "r2": float(1 - (error**2).mean() / y[kept:].var())},
                metadata={
                    "synthetic": "yes: noise in, a made-up curve out (seed 32); for load tests",
                    "algorithm": "perceptron 32-64-64-1, ReLU",
                    "exporter": f"onnx {package('onnx')}, onnx.helper",
                },
                predict=lambda inputs: {"y": net.forward(inputs)},
                cases=[{"x": rows} for rows in np.split(asked, [1, 2, 8])],
            )
        ],
    )


# === export ===


def without_scaler(pipeline):
    """The last step of `pipeline`, with its StandardScaler folded in: w'x + b' = w(x - mean)/scale + b.

    Exported as it is, the scaler becomes the operator `Scaler`, which tract cannot run; folded, it costs nothing either.
    """
    import copy

    scaler, estimator = pipeline[0], copy.deepcopy(pipeline[-1])
    mean, scale = scaler.mean_, scaler.scale_
    if hasattr(estimator, "coefs_"):
        estimator.coefs_[0] = estimator.coefs_[0] / scale[:, None]
        estimator.intercepts_[0] = estimator.intercepts_[0] - mean @ estimator.coefs_[0]
    else:
        estimator.coef_ = estimator.coef_ / scale
        estimator.intercept_ = estimator.intercept_ - estimator.coef_ @ mean
    return estimator


def label_from_probabilities(exported):
    """`exported` with `label` as the ArgMax of `probabilities`, for classes that are numbered from 0.

    tract 0.23.9 gives the right probabilities of a two-class tree ensemble and the wrong label: with one score per row it
    compares that score with an empty column before it makes two of it, and names class 0 where class 1 wins.
    The golden answers found it. ONNX Runtime has it right either way.
    """
    graph = exported.graph
    inputs_of = {name: node for node in graph.node for name in node.output}
    at = "label"
    while at in inputs_of and inputs_of[at].op_type in ("Identity", "Cast"):
        graph.node.remove(node := inputs_of[at])
        at = node.input[0]
    graph.node.append(helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0))
    return exported


def export_sklearn(estimator, name, input_name, width):
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    return convert_sklearn(
        estimator,
        name=name,
        initial_types=[(input_name, FloatTensorType([None, width]))],
        options={id(estimator): {"zipmap": False}},
        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
    )


# === all of it ===

RECIPES = {"breast-cancer": breast_cancer, "iris": iris, "digits": digits, "recommender": recommender, "mlp32": mlp32}


def train(root, overwrite):
    for name, recipe in RECIPES.items():
        write(root, name, recipe(), overwrite)
    write_table(root)


def reproduce():
    """Trains again beside, and compares bytes."""
    with tempfile.TemporaryDirectory() as folder:
        again = pathlib.Path(folder)
        train(again, overwrite=True)
        made = [path.relative_to(again) for path in sorted(again.rglob("*")) if path.is_file()]
        return [
            f"{p}: differs"
            for p in made
            if not (HERE / p).is_file() or not filecmp.cmp(HERE / p, again / p, shallow=False)
        ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="verify what is there, train nothing")
    parser.add_argument("--reproduce", action="store_true", help="train into a temporary folder and compare bytes")
    parser.add_argument("--overwrite", action="store_true", help="replace versions whose bytes changed")
    options = parser.parse_args()
    warnings.filterwarnings(
        "ignore", message="X does not have valid feature names"
    )  # LightGBM names the columns of a plain array
    if options.reproduce:
        complaints = reproduce()
    else:
        if not options.check:
            train(HERE, options.overwrite)
        complaints = check(HERE)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    print("all is well" if not complaints else f"{len(complaints)} complaints")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
