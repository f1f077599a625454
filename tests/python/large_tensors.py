"""Reads sealed files with tensors that are stored as they are, using pyarrow and DuckDB.

Usage: large_tensors.py DATA_DIR

The test `pyarrow_and_duckdb_read_tensors_that_are_stored_as_they_are` (tests/it/record.rs) writes the records. Each has a tensor of 5,000
elements for each type, whose bytes follow from the number of the record. Prints "ok" when every value is what was written.
"""

import pathlib
import sys

import duckdb
import numpy as np
import pyarrow.parquet as pq

ELEMENTS = 5000
TYPES = ["uint8", "int8", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64", "repeats"]


def check(holds, *words):
    if not holds:
        sys.exit(" ".join(str(word) for word in words))


def written(record, name):
    """The elements of a tensor; None where the record has none."""
    if record % 7 == 6 and name == "int64":
        return None
    dtype = np.dtype("float32" if name == "repeats" else name)
    k = np.arange(ELEMENTS * dtype.itemsize, dtype=np.uint64)
    if name == "repeats":
        return (k % 3).astype(np.uint8).view(dtype)
    # SplitMix64
    z = k + np.uint64(record * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z >> np.uint64(56)).astype(np.uint8).view(dtype)


def main(data):
    paths = sorted(pathlib.Path(data, "predictions").rglob("*.parquet"))
    check(paths, "there are no files")
    rows = 0
    for path in paths:
        table = pq.read_table(path, partitioning=None).combine_chunks()
        inputs = table["inputs"].combine_chunks()
        for at, record in enumerate(map(int, table["request_id"].to_pylist())):
            for name in TYPES:
                wanted, got = written(record, name), inputs.field(name)[at]
                check(got.is_valid == (wanted is not None), "record", record, name, "is valid:", got.is_valid)
                if wanted is not None:
                    same = got.values.to_numpy(zero_copy_only=False).tobytes() == wanted.tobytes()
                    check(same, "pyarrow reads other elements of", name, "in record", record)
        rows += table.num_rows
        columns = pq.ParquetFile(path).metadata.row_group(0)
        columns = {columns.column(i).path_in_schema: columns.column(i) for i in range(columns.num_columns)}
        for name in TYPES:
            codec = columns[f"inputs.{name}.list.item"].compression
            check(codec == ("ZSTD" if name == "repeats" else "UNCOMPRESSED"), name, "has the codec", codec)
    check(rows == 50, "there are", rows, "records")
    with duckdb.connect() as db:
        # DuckDB reads halves as floats.
        fields = ", ".join(f"inputs.{name} AS {name}" for name in TYPES)
        query = f"SELECT request_id, {fields} FROM read_parquet('{data}/predictions/*/*/*.parquet')"
        for record, *lists in db.sql(query).fetchall():
            for name, got in zip(TYPES, lists):
                wanted = written(int(record), name)
                check((got is None) == (wanted is None), "DuckDB: record", record, name)
                if wanted is not None:
                    got = np.array(got, dtype=wanted.dtype)
                    check(np.array_equal(got, wanted, equal_nan=wanted.dtype.kind == "f"), "DuckDB reads other", name, record)


main(sys.argv[1])
print("ok")
