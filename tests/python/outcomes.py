"""Recomputes the live figures of a model from its Parquet files, with numpy alone.

    outcomes.py DATA_DIR MODEL ANSWER.json EXPERIMENT.json

ANSWER.json is the answer of GET /api/v1/models/MODEL/quality?window=, EXPERIMENT.json that of GET /api/v1/models/MODEL/experiment, for a split of two
arms that has had all rows. The outputs are two probabilities named y.
"""

import json
import math
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

data, model, answer, experiment = Path(sys.argv[1]), sys.argv[2], *(json.loads(Path(path).read_text()) for path in sys.argv[3:])


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

    def below(some, others):
        """The share of the others that each is above; half of those that are equal."""
        others = np.sort(others)
        return (np.searchsorted(others, some, "left") + np.searchsorted(others, some, "right")) / 2 / len(others)

    of_ones, of_zeros = below(ones, zeros), 1 - below(zeros, ones)
    area = of_ones.mean()
    influence = np.empty(len(score))
    influence[one] = (of_ones - area) / len(ones)
    influence[~one] = (of_zeros - area) / len(zeros)
    return {"value": area, "n": len(score), "se": clustered(unit, influence)}


def told_of(rows):
    """The rows with a label."""
    told = [(r, labels[r["request_id"], r["row"]][1]) for r in rows if (r["request_id"], r["row"]) in labels]
    return [(r, label) for r, label in told if not (isinstance(label, float) and np.isnan(label))]


def valued(rows, name):
    """The rows with a business value."""
    of = [(r, values[(r["request_id"], r["row"]), name][1]) for r in rows if ((r["request_id"], r["row"]), name) in values]
    return [(r, value) for r, value in of if not np.isnan(value)]


def units_of(told):
    return np.array([r["route_key"] or r["request_id"] for r, _ in told])


def figures(rows):
    told = told_of(rows)
    unit = units_of(told)
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
        of = valued(rows, name)
        found[f"values.{name}"] = mean(units_of(of), np.array([v for _, v in of]))
    return found, len(told)


def sides(name, rows):
    """What an experiment compares: the value of each unit, which is the mean of its rows."""
    if name.startswith("values."):
        of = valued(rows, name.removeprefix("values."))
        unit, x = units_of(of), np.array([value for _, value in of])
    else:
        told = told_of(rows)
        if name == "accuracy":
            told = [(r, label) for r, label in told if isinstance(label, float)]
        p = np.array([r["outputs"]["y"] for r, _ in told], dtype=np.float32).astype(float)
        label, unit = np.array([float(label) for _, label in told]), units_of(told)
        likely = np.clip(np.where(label == 1, p[:, 1], 1 - p[:, 1]), 1e-15, 1 - 1e-15)
        x = {"accuracy": (p.argmax(axis=1) == label).astype(float), "log_loss": -np.log(likely), "brier": (p[:, 1] - label) ** 2}[name]
    _, at = np.unique(unit, return_inverse=True)
    of_units = np.bincount(at, weights=x) / np.bincount(at)
    k, m = len(of_units), of_units.mean()
    if name == "accuracy":
        # Two more units at 0 and two at 1.
        variance = (((of_units - m) ** 2).sum() + 2 * m**2 + 2 * (1 - m) ** 2) / (k + 4)
        return {"units": k, "rows": len(x), "mean": m, "se": math.sqrt(variance / k)}
    return {"units": k, "rows": len(x), "mean": m, "se": of_units.std(ddof=1) / math.sqrt(k)}


def width(alpha, n):
    """The half width of the confidence sequence of Waudby-Smith and others (2024), theorem 2.2, in standard errors; narrowest at 500."""
    x = -2 * math.log(alpha)
    n_rho2 = n * (x + math.log(x + 1)) / 500
    return math.sqrt((1 + 1 / n_rho2) * math.log((n_rho2 + 1) / alpha**2))


compared, auc_of = 0, {}
groups = {(group["version"], group["arm"]): group for group in answer["groups"]}
assert groups.keys() == rows.keys(), f"{groups.keys()} and {rows.keys()}"
for key, group in groups.items():
    assert group["rows"] == len(rows[key]), f"{key}: {group['rows']} rows instead of {len(rows[key])}"
    expected, labelled = figures(rows[key])
    auc_of[key[1]] = expected["auc"]
    assert group["labels"]["labelled"] == labelled, f"{key}: {group['labels']} instead of {labelled}"
    assert expected.keys() == group["metrics"].keys(), f"{expected.keys()} and {group['metrics'].keys()}"
    for name, of in expected.items():
        live, (units, error) = group["metrics"][name], of["se"]
        assert (live["n"], live["units"]) == (of["n"], units), f"{key} {name}: {live} instead of {of}"
        assert np.isclose(live["value"], of["value"], rtol=1e-9), f"{key} {name}: {live} instead of {of}"
        assert np.isclose(live["standard_error"], error, rtol=1e-6), f"{key} {name}: {live} instead of {of}"
        assert live["low"] <= live["value"] <= live["high"], f"{key} {name}: {live}"
        compared += 1

by_arm = {arm: of for (_, arm), of in rows.items()}
keys = [len({r["route_key"] or r["request_id"] for r in by_arm[arm["arm"]]}) for arm in experiment["arms"]]
assert keys == [arm["units"] for arm in experiment["arms"]], f"{keys} and {experiment['arms']}"
expected = [sum(keys) * arm["weight"] / sum(arm["weight"] for arm in experiment["arms"]) for arm in experiment["arms"]]
chi_squared = sum((k - e) ** 2 / e for k, e in zip(keys, expected))
ratio = experiment["sample_ratio"]
assert np.isclose(ratio["chi_squared"], chi_squared, rtol=1e-9, atol=1e-12), f"{ratio} instead of {chi_squared}"
# Of one degree of freedom, as there are two arms.
assert np.isclose(ratio["p_value"], math.erfc(math.sqrt(chi_squared / 2)), rtol=1e-9), f"{ratio}"
of_metrics = {metric["metric"]: metric for metric in experiment["metrics"]}
assert {"accuracy", "auc", "brier", "log_loss", "values.clicked", "values.revenue"} == of_metrics.keys(), f"{of_metrics.keys()}"
intervals = 0
for name, metric in of_metrics.items():
    if name == "auc":
        found = {arm: {"units": of["se"][0], "rows": of["n"], "mean": of["value"], "se": of["se"][1]} for arm, of in auc_of.items()}
    else:
        found = {arm: sides(name, of) for arm, of in by_arm.items()}
    for arm in metric["arms"]:
        of = found[arm["arm"]]
        assert (arm["units"], arm["rows"]) == (of["units"], of["rows"]), f"{name}: {arm} instead of {of}"
        assert np.isclose(arm["mean"], of["mean"], rtol=1e-9), f"{name}: {arm} instead of {of}"
        assert np.isclose(arm["standard_error"], of["se"], rtol=1e-6), f"{name}: {arm} instead of {of}"
        compared += 2
    (comparison,) = metric["comparisons"]
    a, b = found[comparison["arm"]], found[experiment["control"]]
    difference, error = a["mean"] - b["mean"], math.hypot(a["se"], b["se"])
    assert np.isclose(comparison["difference"], difference, rtol=1e-6, atol=1e-9), f"{name}: {comparison} instead of {difference}"
    enough = min(a["units"], b["units"]) >= (50 if name == "accuracy" else 200)
    assert enough == (comparison["low"] is not None), f"{name}: {comparison}"
    compared += 1
    if enough:
        n = a["units"] * b["units"] / (a["units"] + b["units"])
        half = width(experiment["alpha"] / experiment["comparisons"], n) * error
        found = [comparison["low"], comparison["high"]]
        assert np.allclose(found, [difference - half, difference + half], rtol=1e-6, atol=1e-9), f"{name}: {found}"
        intervals += 1
print(f"the experiment has {intervals} intervals")
print(f"ok: {compared} figures of {sum(map(len, rows.values()))} rows")
