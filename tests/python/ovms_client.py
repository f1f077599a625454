"""Talks to a running gateway with ovmsclient, the client of OpenVINO Model Server for the API of TensorFlow Serving.

Usage: ovms_client.py HOST:PORT. Exits 0 and prints "ok" when every check holds. Expects the models in models/.
"""

import sys

import numpy as np
import ovmsclient

URL = sys.argv[1]
IRIS = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], dtype=np.float32)


def fails(error, call):
    try:
        call()
    except error:
        return
    raise AssertionError(f"expected {error}")


def check(client):
    # Without a version the client asks for version 0, which means the default one.
    for more in ({}, {"model_version": 1}):
        outputs = client.predict(inputs={"features": IRIS}, model_name="iris", **more)
        assert np.asarray(outputs["label"]).tolist() == [0, 2], outputs
        assert np.asarray(outputs["probabilities"]).shape == (2, 3), outputs
    status = client.get_model_status("iris")
    assert [(version, status[version]["state"], status[version]["error_code"]) for version in sorted(status)] == [
        (1, "AVAILABLE", 0),
        (2, "AVAILABLE", 0),
    ], status
    assert list(client.get_model_status("iris", 2)) == [2]
    fails(ovmsclient.ModelNotFoundError, lambda: client.get_model_status("nobody"))
    fails(ovmsclient.ModelNotFoundError, lambda: client.predict({"features": IRIS}, "iris", model_version=9))
    fails(ovmsclient.InvalidInputError, lambda: client.predict({"features": IRIS[:, :3]}, "iris"))


def main():
    grpc = ovmsclient.make_grpc_client(URL)
    check(grpc)
    metadata = grpc.get_model_metadata("iris")
    assert metadata["model_version"] in (1, 2), metadata
    assert metadata["inputs"] == {"features": {"shape": [-1, 4], "dtype": "DT_FLOAT"}}, metadata
    assert set(metadata["outputs"]) == {"label", "probabilities"}, metadata
    http = ovmsclient.make_http_client(URL)
    check(http)
    # The HTTP client hands on the metadata as it is where it has the names of TensorFlow Serving.
    signature = http.get_model_metadata("iris")["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert [dim["size"] for dim in signature["inputs"]["features"]["tensor_shape"]["dim"]] == ["-1", "4"], signature
    print("ok")


main()
