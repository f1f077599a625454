"""Makes tests/fixtures/explain: a tree model and a linear one with the Shapley values that the shap package gives for them.

    pip install shap scikit-learn skl2onnx; python tests/python/shap_values.py tests/fixtures/explain

TreeExplainer with feature_perturbation="interventional" computes the values exactly, over all subsets of columns and all background rows; LinearExplainer too.
"""

import json
import sys
from pathlib import Path

import numpy as np
import shap
from skl2onnx import to_onnx
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import LinearRegression

to = Path(sys.argv[1])
to.mkdir(parents=True, exist_ok=True)
random = np.random.default_rng(3)
x = random.normal(size=(600, 6)).astype(np.float32)
y = 2 * x[:, 0] + x[:, 1] * x[:, 2] + np.where(x[:, 3] > 0.3, 3.0, 0.0) * (x[:, 4] > 0) + 0.1 * random.normal(size=600)
background, rows = x[:40], x[100:104]

tree = GradientBoostingRegressor(n_estimators=30, max_depth=3, random_state=0).fit(x, y)
linear = LinearRegression().fit(x, y)
explained = {
    "tree": (tree, shap.TreeExplainer(tree, background, feature_perturbation="interventional")),
    "linear": (linear, shap.LinearExplainer(linear, shap.maskers.Independent(background, max_samples=len(background)))),
}
values = {"background": background.tolist(), "rows": rows.tolist()}
for name, (model, explainer) in explained.items():
    (to / f"{name}.onnx").write_bytes(to_onnx(model, x[:1], target_opset=17).SerializeToString())
    values[name] = {
        "base": float(np.ravel(explainer.expected_value)[0]),
        "values": np.asarray(explainer.shap_values(rows)).tolist(),
        "answers": model.predict(rows).tolist(),
    }
(to / "values.json").write_text(json.dumps(values) + "\n")
