"""Writes arrays as numpy and pyarrow do, for tests/it/golden.rs: inputs and expected outputs of its models."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

to = Path(sys.argv[1])
shape = (5, 2)

# Every datatype, in the form in which pandas and scikit-learn leave them: float64 and int64 for narrower tensors, column-major, big-endian.
counting = np.arange(10).reshape(shape)
inputs = {
    "bool": counting % 2 == 0,
    "uint8": counting.astype(np.int64),
    "uint16": counting.astype(">u2"),
    "uint32": counting.astype(np.uint32),
    "uint64": counting.astype(np.uint64),
    "int8": -counting.astype(np.float64),
    "int16": -counting.astype(np.int16),
    "int32": np.asfortranarray(-counting),
    "int64": counting * -(2**40),
    "fp16": (counting / 8).astype(np.float16),
    "fp32": np.asfortranarray(counting / 10.0),
    "fp64": counting / 3.0,
    "string": np.array([f"é{i}" for i in range(10)]).reshape(shape),
}
np.savez_compressed(to / "every_input.npz", **inputs)
np.savez(to / "every_output.npz", **{f"{name}_out": array for name, array in inputs.items()})

x = np.random.default_rng(1).normal(size=(30, 2))
np.save(to / "x.npy", x)
np.save(to / "y.npy", 2 * x)
# One column of lists, and one column for each element.
pq.write_table(pa.table({"x": pa.array(list(x))}), to / "x.parquet", compression="zstd")
pq.write_table(pa.table({"y[0]": 2 * x[:, 0], "y[1]": 2 * x[:, 1]}), to / "y.parquet", compression="none")
pq.write_table(pa.table({"x": pa.array(list(x))}), to / "snappy.parquet")
