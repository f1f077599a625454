"""Recomputes the live figures of a model from its Parquet files, with numpy alone.

    outcomes.py DATA_DIR MODEL ANSWER.json

ANSWER.json is the answer of GET /api/v1/models/MODEL/quality?window=. The outputs are two probabilities named y.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

data, model, answer = Path(sys.argv[1]), sys.argv[2], json.loads(Path(sys.argv[3]).read_text())


def records(kind):
    files = sorted((data / kind / f"model={model}").glob("*/*.parquet"))
    for file in files:
        # Without the partitions of the path as columns.
        yield from pq.ParquetFile(file).read().to_pylist()


labels, values = {}, {}
for at, entry in enumerate(records("feedback")):
    key, time = (entry["request_id"], entry["row"]), (entry["ts"], entry["received_at"], at)
    label = entry["label_num"] if entry["label_str"] is None else entry["label_str"]
    if label is not None and (key not in labels or labels[key][0] <= time):
        labels[key] = (time, label)
    for name, value in entry["values"]:
        if (key, name) not in values or values[key, name][0] <= time:
            values[key, name] = (time, value)

rows = defaultdict(list)
for row in records("predictions"):
    if row["role"] != "shadow" and row["status"] == "ok":
        rows[row["version"], row["arm"]].append(row)


def clustered(unit, influence):
    """The standard error of an estimate whose error is the sum of these influences, which are related within a unit."""
    _, at = np.unique(unit, return_inverse=True)
    sums = np.bincount(at, weights=influence)
    return len(sums), float(np.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)))


def mean(unit, x):
    return {"value": x.mean(), "n": len(x), "se": clustered(unit, (x - x.mean()) / len(x))}


def auc(unit, score, one):
    ones, zeros = score[one], score[~one]
    # Every pair, one row of the matrix for each score of a 1.
    order = (ones[:, None] > zeros[None, :]) + 0.5 * (ones[:, None] == zeros[None, :])
    area = order.mean()
    influence = np.empty(len(score))
    influence[one] = (order.mean(axis=1) - area) / len(ones)
    influence[~one] = (order.mean(axis=0) - area) / len(zeros)
    return {"value": area, "n": len(score), "se": clustered(unit, influence)}


def figures(rows):
    told = [(r, labels[r["request_id"], r["row"]][1]) for r in rows if (r["request_id"], r["row"]) in labels]
    told = [(r, label) for r, label in told if not (isinstance(label, float) and np.isnan(label))]
    unit = np.array([r["route_key"] or r["request_id"] for r, _ in told])
    p = np.array([r["outputs"]["y"] for r, _ in told], dtype=np.float32).astype(float)
    label = np.array([float(label) for _, label in told])
    number = np.array([isinstance(label, float) for _, label in told])
    one = label == 1
    likely = np.clip(np.where(one, p[:, 1], 1 - p[:, 1]), 1e-15, 1 - 1e-15)
    found = {
        # A text is not compared with scores.
        "accuracy": mean(unit[number], (p.argmax(axis=1) == label)[number].astype(float)),
        "log_loss": mean(unit, -np.log(likely)),
        "brier": mean(unit, (p[:, 1] - label) ** 2),
        "auc": auc(unit, p[:, 1], one),
    }
    for name in {name for _, name in values}:
        of = [(r, values[(r["request_id"], r["row"]), name][1]) for r in rows if ((r["request_id"], r["row"]), name) in values]
        of = [(r, value) for r, value in of if not np.isnan(value)]
        found[f"values.{name}"] = mean(np.array([r["route_key"] or r["request_id"] for r, _ in of]), np.array([v for _, v in of]))
    return found, len(told)


compared = 0
groups = {(group["version"], group["arm"]): group for group in answer["groups"]}
assert groups.keys() == rows.keys(), f"{groups.keys()} and {rows.keys()}"
for key, group in groups.items():
    assert group["rows"] == len(rows[key]), f"{key}: {group['rows']} rows instead of {len(rows[key])}"
    expected, labelled = figures(rows[key])
    assert group["labels"]["labelled"] == labelled, f"{key}: {group['labels']} instead of {labelled}"
    assert expected.keys() == group["metrics"].keys(), f"{expected.keys()} and {group['metrics'].keys()}"
    for name, of in expected.items():
        live, (units, error) = group["metrics"][name], of["se"]
        assert (live["n"], live["units"]) == (of["n"], units), f"{key} {name}: {live} instead of {of}"
        assert np.isclose(live["value"], of["value"], rtol=1e-9), f"{key} {name}: {live} instead of {of}"
        assert np.isclose(live["standard_error"], error, rtol=1e-6), f"{key} {name}: {live} instead of {of}"
        assert live["low"] <= live["value"] <= live["high"], f"{key} {name}: {live}"
        compared += 1
print(f"ok: {compared} figures of {sum(map(len, rows.values()))} rows")
