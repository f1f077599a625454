"""Sends what pandas writes to /invocations, as users of MLflow and SageMaker do.

Usage: invocations_client.py HOST:PORT MODEL. MODEL is the default model of the gateway: iris or breast-cancer. Prints "ok" when every check holds.
"""

import json
import sys
import tomllib
import types
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd

URL, MODEL = sys.argv[1:]
SETTINGS = tomllib.loads((Path(__file__).parents[2] / "models" / MODEL / "model.toml").read_text())
NAMES = SETTINGS["feature_names"]
RANDOM = np.random.default_rng(7)
FRAME = pd.DataFrame(RANDOM.uniform(0.1, 9, (5, len(NAMES))).astype(np.float32), columns=NAMES)


def post(path, body, media="application/json"):
    request = urllib.request.Request(f"http://{URL}{path}", body.encode(), {"content-type": media})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.headers["x-request-id"] and answer.headers["x-sluicegate-version"]
        return json.load(answer)


def main():
    # The answer of the Open Inference Protocol is the measure.
    metadata = json.load(urllib.request.urlopen(f"http://{URL}/v2/models/{MODEL}"))
    features = metadata["inputs"][0]["name"]
    tensor = {"name": features, "shape": list(FRAME.shape), "datatype": "FP32", "data": FRAME.to_numpy().tolist()}
    answer = post(f"/v2/models/{MODEL}/infer", json.dumps({"inputs": [tensor]}))
    outputs = {o["name"]: np.array(o["data"]).reshape(o["shape"]).tolist() for o in answer["outputs"]}
    records = [{name: values[row] for name, values in outputs.items()} for row in range(len(FRAME))]
    other = FRAME[RANDOM.permutation(NAMES)]
    unnamed = pd.DataFrame(FRAME.to_numpy())
    tables = {
        "split": json.dumps({"dataframe_split": FRAME.to_dict(orient="split")}),
        "split, by pandas": '{"dataframe_split": %s}' % other.to_json(orient="split", double_precision=15),
        "split, without names": json.dumps({"dataframe_split": unnamed.to_dict(orient="split")}),
        "records": json.dumps({"dataframe_records": other.to_dict(orient="records")}),
        "records, by pandas": '{"dataframe_records": %s}' % FRAME.to_json(orient="records", double_precision=15),
    }
    for form, body in tables.items():
        assert post("/invocations", body) == {"predictions": records}, form
    lines = other.to_json(orient="records", lines=True, double_precision=15)
    assert post("/invocations", lines, "application/jsonlines") == {"predictions": records}
    for form, body in {
        "with an index": other.to_csv(),
        "without an index": other.to_csv(index=False),
        "values only": FRAME.to_csv(index=False, header=False),
        "without names": unnamed.to_csv(index=False),
    }.items():
        assert post("/invocations", body, "text/csv") == {"predictions": records}, form
    for body in (
        {"instances": FRAME.to_numpy().tolist()},
        {"inputs": FRAME.to_numpy().tolist()},
        {"inputs": {features: FRAME.to_numpy().tolist()}},
        {"inputs": other.to_dict(orient="list")},
        {"instances": other.to_dict(orient="records")},
    ):
        assert post("/invocations", json.dumps(body)) == {"predictions": outputs}, list(body)
    mlflow_client(records, outputs)
    print("ok")


def mlflow_client(records, outputs):
    """MLflow's own client of a scoring server."""
    # The client asks whether there is scipy.sparse, and fails where there is no scipy. It is 90 MB.
    scipy = sys.modules.setdefault("scipy", types.ModuleType("scipy"))
    scipy.__path__ = []
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    client = ScoringServerClient(*URL.split(":"))
    client.wait_server_ready()
    assert client.get_version().count(".") == 2, client.get_version()
    answer = client.invoke(FRAME)
    assert answer == {"predictions": records}, answer
    assert list(answer.get_predictions().columns) == list(outputs), "as a DataFrame"
    assert client.invoke(FRAME.to_numpy(np.float64)) == {"predictions": outputs}
    try:
        client.invoke(FRAME[NAMES[1:]])
        raise SystemExit("a missing column is an error")
    except Exception as error:
        assert "error code 400" in str(error) and NAMES[0] in str(error), error


main()
