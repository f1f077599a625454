"""Talks to a running gateway as Triton's users do: `tritonclient` over HTTP, JSON and binary tensors.

Usage: triton_client.py HOST:PORT. Exits 0 and prints "ok" when every check holds. Expects the models in models/.
"""

import sys

import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

IRIS = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], dtype=np.float32)


def tensor(name, array, datatype, binary):
    given = http.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def check_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("iris")
    assert client.is_model_ready("iris", "1")
    assert client.get_server_metadata()["name"] == "sluicegate"
    metadata = client.get_model_metadata("iris")
    assert metadata["name"] == "iris", metadata
    assert "1" in metadata["versions"], metadata
    (given,) = metadata["inputs"]
    assert given["datatype"] == "FP32" and given["shape"] == [-1, 4], metadata
    return given["name"], [o["name"] for o in metadata["outputs"]]


def check_predictions(client, given, outputs):
    """Every mix of JSON and binary, in and out, gives the same numbers."""
    answers = []
    for binary_in in (False, True):
        for binary_out in (False, True):
            wanted = [http.InferRequestedOutput(name, binary_data=binary_out) for name in outputs]
            result = client.infer(
                "iris", [tensor(given, IRIS, "FP32", binary_in)], outputs=wanted, request_id="r-1"
            )
            head = result.get_response()
            assert head["id"] == "r-1", head
            assert head["model_name"] == "iris", head
            assert [o["name"] for o in head["outputs"]] == outputs, head
            answers.append([result.as_numpy(name) for name in outputs])
    for answer in answers[1:]:
        for a, b in zip(answers[0], answer):
            assert a.dtype == b.dtype and a.shape == b.shape, (a, b)
            np.testing.assert_allclose(a, b, rtol=1e-6)
    labels = answers[0][outputs.index("label")]
    assert labels.tolist() == [0, 2], labels
    # No outputs named: all of them, in binary, tritonclient's default.
    everything = client.infer("iris", [tensor(given, IRIS, "FP32", True)])
    for name in outputs:
        assert everything.as_numpy(name) is not None, name
    one = client.infer("iris", [tensor(given, IRIS, "FP32", True)], model_version="1", outputs=[http.InferRequestedOutput("label")])
    assert one.get_response()["model_version"] == "1"


def check_compression(client, given):
    for request in ("gzip", "deflate", None):
        for response in ("gzip", "deflate", None):
            result = client.infer(
                "iris",
                [tensor(given, np.repeat(IRIS, 200, axis=0), "FP32", True)],
                request_compression_algorithm=request,
                response_compression_algorithm=response,
            )
            assert result.as_numpy("label").shape == (400,), (request, response)


def check_errors(client, given):
    def message(model, *inputs, **options):
        try:
            client.infer(model, list(inputs), **options)
        except InferenceServerException as error:
            return str(error)
        raise AssertionError("expected an error")

    wide = np.zeros((1, 5), dtype=np.float32)
    said = message("iris", tensor(given, wide, "FP32", True))
    assert "dimension 1" in said and "4" in said and "5" in said, said
    assert "FP32" in message("iris", tensor(given, np.zeros((1, 4), dtype=np.int64), "INT64", True))
    assert "no-such-model" in message("no-such-model", tensor(given, IRIS, "FP32", True))
    assert "9" in message("iris", tensor(given, IRIS, "FP32", True), model_version="9")
    nothing = http.InferRequestedOutput("nothing")
    assert "nothing" in message("iris", tensor(given, IRIS, "FP32", True), outputs=[nothing])


def check_async(address, given):
    with http.InferenceServerClient(address, concurrency=4) as client:
        waiting = [client.async_infer("iris", [tensor(given, IRIS, "FP32", True)]) for _ in range(40)]
        for pending in waiting:
            assert pending.get_result().as_numpy("label").tolist() == [0, 2]


def check_read_side(client):
    """What Triton's load tools read."""
    config = client.get_model_config("iris")
    assert config["max_batch_size"] > 0 and config["input"][0]["dims"] == [4], config
    assert config["input"][0]["data_type"] == "TYPE_FP32" and "dynamic_batching" in config, config
    assert client.get_model_config("iris", "1")["version_policy"] == {"specific": {"versions": [1]}}
    (stats,) = client.get_inference_statistics("iris", "1")["model_stats"]
    assert stats["inference_count"] > 0 and stats["inference_stats"]["success"]["ns"] > 0, stats
    ready = {(entry["name"], entry["state"]) for entry in client.get_model_repository_index()}
    assert {("iris", "READY"), ("digits", "READY")} <= ready, ready
    everything = client.get_inference_statistics()["model_stats"]
    assert {"iris", "digits"} <= {model["name"] for model in everything}, everything


def main(address):
    with http.InferenceServerClient(address) as client:
        given, outputs = check_health_and_metadata(client)
        check_predictions(client, given, outputs)
        check_compression(client, given)
        check_errors(client, given)
        check_read_side(client)
    check_async(address, given)
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
