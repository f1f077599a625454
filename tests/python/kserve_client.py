"""Talks to a running gateway with the inference clients of the package kserve: REST with the protocols V1 and V2, and gRPC.

Usage: kserve_client.py HOST:PORT. Exits 0 and prints "ok" when every check holds. Expects the models in models/.

The package itself imports its model server and the Kubernetes API. The clients need neither, so they are imported without the package's own
imports (tests/python/requirements-kserve.txt).
"""

import asyncio
import importlib.util
import sys
import types

import numpy as np

package = types.ModuleType("kserve")
package.__path__ = list(importlib.util.find_spec("kserve").submodule_search_locations)
sys.modules["kserve"] = package

import grpc
import httpx
from kserve.constants.constants import PredictorProtocol
from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import InferInput, InferRequest

URL = sys.argv[1]
BASE = f"http://{URL}"
IRIS = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], dtype=np.float32)


def request(binary):
    features = InferInput("features", list(IRIS.shape), "FP32")
    features.set_data_from_numpy(IRIS, binary_data=binary)
    return InferRequest(model_name="iris", infer_inputs=[features], request_id="r-1")


def check_answer(response):
    assert response.id == "r-1" and response.model_name == "iris", response
    outputs = {output.name: output.as_numpy() for output in response.outputs}
    assert outputs["label"].tolist() == [0, 2], outputs
    assert outputs["probabilities"].shape == (2, 3), outputs


async def fails(error, call):
    try:
        await call
    except error:
        return
    raise AssertionError(f"expected {error}")


async def check_v1():
    async with InferenceRESTClient(RESTConfig(protocol=PredictorProtocol.REST_V1)) as client:
        assert await client.is_server_live(BASE)
        assert await client.is_model_ready(BASE, "iris") is True
        answer = await client.infer(BASE, {"instances": IRIS.tolist()}, model_name="iris")
        assert [row["label"] for row in answer["predictions"]] == [0, 2], answer
        named = await client.infer(BASE, {"instances": [{"features": row} for row in IRIS.tolist()]}, model_name="iris")
        assert named == answer, named
        await fails(httpx.HTTPStatusError, client.is_model_ready(BASE, "nobody"))
        await fails(httpx.HTTPStatusError, client.infer(BASE, {"instances": [[1]]}, model_name="iris"))
        models = httpx.get(f"{BASE}/v1/models").json()["models"]
        assert {"iris", "digits"} <= set(models), models


async def check_v2():
    async with InferenceRESTClient(RESTConfig(protocol=PredictorProtocol.REST_V2)) as client:
        assert await client.is_server_live(BASE) and await client.is_server_ready(BASE)
        assert await client.is_model_ready(BASE, "iris") and not await client.is_model_ready(BASE, "nobody")
        for binary in (False, True):
            check_answer(await client.infer(BASE, request(binary), model_name="iris"))
        await fails(httpx.HTTPStatusError, client.infer(BASE, request(False), model_name="nobody"))


async def check_grpc():
    async with InferenceGRPCClient(URL, retries=0) as client:
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("iris") and not await client.is_model_ready("nobody")
        for binary in (False, True):
            check_answer(await client.infer(request(binary)))
        wrong = request(True)
        wrong.model_name = "nobody"
        await fails(grpc.RpcError, client.infer(wrong))


async def main():
    await check_v1()
    await check_v2()
    await check_grpc()
    print("ok")


asyncio.run(main())
