"""Talks gRPC to a running gateway as its users do: tritonclient, plain grpcio with Triton's messages, TensorFlow Serving's messages, health
and reflection.

Usage: grpc_clients.py HOST:PORT [CA_CERTIFICATE]. With a certificate the connection uses TLS. Exits 0 and prints "ok" when every check holds.
Expects the models in models/.
"""

import queue
import sys
import threading

import grpc
import numpy as np
import tritonclient.grpc as triton
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

URL = sys.argv[1]
CA = sys.argv[2] if len(sys.argv) > 2 else None
IRIS = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], dtype=np.float32)
TIMEOUT = 30


def channel():
    if CA:
        with open(CA, "rb") as file:
            return grpc.secure_channel(URL, grpc.ssl_channel_credentials(file.read()))
    return grpc.insecure_channel(URL)


def fails(code, call, *parts):
    """Runs a call that must fail, and returns its error."""
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, (error.code(), error.details())
        for part in parts:
            assert part in error.details(), error.details()
        return error
    raise AssertionError(f"expected {code}")


def iris(array=IRIS):
    given = triton.InferInput("features", list(array.shape), "FP32")
    given.set_data_from_numpy(array)
    return [given]


def typed(shape=(2, 4), values=None, **more):
    request = service_pb2.ModelInferRequest(model_name="iris", **more)
    tensor = request.inputs.add(name="features", datatype="FP32", shape=shape)
    tensor.contents.fp32_contents.extend(IRIS.ravel().tolist() if values is None else values)
    return request


def check_tritonclient():
    client = triton.InferenceServerClient(URL, ssl=CA is not None, root_certificates=CA)
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("iris") and client.is_model_ready("iris", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata().name == "sluicegate"
    metadata = client.get_model_metadata("iris", as_json=True)
    assert metadata["versions"] == ["1", "2"], metadata
    assert metadata["inputs"] == [{"name": "features", "datatype": "FP32", "shape": ["-1", "4"]}], metadata
    result = client.infer("iris", iris(), request_id="r-1", headers={"x-user-id": "u1"})
    assert result.get_response().id == "r-1"
    assert result.as_numpy("label").tolist() == [0, 2]
    assert result.as_numpy("probabilities").shape == (2, 3)
    one = client.infer("iris", iris(), model_version="1", outputs=[triton.InferRequestedOutput("label")])
    assert one.get_response().model_version == "1"
    assert [output.name for output in one.get_response().outputs] == ["label"]
    zipped = client.infer("iris", iris(np.repeat(IRIS, 500, axis=0)), compression_algorithm="gzip")
    assert zipped.as_numpy("label").tolist() == [0] * 500 + [2] * 500
    for model, version in (("nobody", ""), ("iris", "77"), ("iris", "latest")):
        try:
            client.infer(model, iris(), model_version=version)
            raise AssertionError((model, version))
        except InferenceServerException as error:
            assert error.status() == "StatusCode.NOT_FOUND", error.status()
    try:
        client.infer("iris", iris(IRIS[:, :3].copy()))
        raise AssertionError("a wrong shape")
    except InferenceServerException as error:
        assert error.status() == "StatusCode.INVALID_ARGUMENT" and "features" in error.message(), error
    check_stream(client)
    client.close()


def check_stream(client):
    """Each message of a stream has its answer, in order; one that fails does not end the stream."""
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for i in range(20):
        client.async_stream_infer("nobody" if i == 7 else "iris", iris(), request_id=f"s-{i}")
    for i in range(20):
        result, error = answers.get(timeout=TIMEOUT)
        if i == 7:
            assert "nobody" in error.message(), error
        else:
            assert error is None and result.get_response().id == f"s-{i}", (i, error)
            assert result.as_numpy("label").tolist() == [0, 2]
    client.stop_stream()


def check_typed(stub):
    """Typed contents are answered with typed contents; the trailers say who answered."""
    request = typed(id="t-1")
    request.parameters["tenant"].string_param = "a"
    response, call = stub.ModelInfer.with_call(request, timeout=TIMEOUT)
    label, probabilities = response.outputs
    assert list(label.contents.int64_contents) == [0, 2] and len(probabilities.contents.fp32_contents) == 6
    assert not response.raw_output_contents
    trailers = dict(call.trailing_metadata())
    assert trailers["x-request-id"] == "t-1" and trailers["x-sluicegate-version"] == response.model_version, trailers
    assert "infer;dur=" in trailers["server-timing"] and "x-sluicegate-arm" in trailers, trailers
    zipped, call = stub.ModelInfer.with_call(
        typed((400, 4), IRIS.ravel().tolist() * 200), timeout=TIMEOUT, compression=grpc.Compression.Gzip
    )
    assert len(zipped.outputs[0].contents.int64_contents) == 400


def check_errors(stub):
    bad = grpc.StatusCode.INVALID_ARGUMENT
    error = fails(bad, lambda: stub.ModelInfer(typed((3, 4)), timeout=TIMEOUT), "features", "12", "8")
    trailers = dict(error.trailing_metadata())
    assert trailers["x-sluicegate-code"] == "INVALID_TENSOR" and trailers["x-request-id"], trailers
    (detail,) = rpc_status.from_call(error).details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info) and info.reason == "INVALID_TENSOR" and info.domain == "sluicegate", detail
    both = typed()
    both.raw_input_contents.append(IRIS.tobytes())
    fails(bad, lambda: stub.ModelInfer(both, timeout=TIMEOUT), "features", "contents", "raw_input_contents")
    fails(bad, lambda: stub.ModelInfer(typed((-1, 4)), timeout=TIMEOUT), "features", "-1")
    unknown = typed()
    unknown.inputs[0].datatype = "FLOAT"
    fails(bad, lambda: stub.ModelInfer(unknown, timeout=TIMEOUT), "features", "FLOAT")
    several = service_pb2.ModelInferRequest(model_name="iris")
    for name in ("a", "b"):
        several.inputs.add(name=name, datatype="FP32", shape=[1]).contents.int_contents.append(1)
    error = fails(bad, lambda: stub.ModelInfer(several, timeout=TIMEOUT))
    violations = error_details_pb2.BadRequest()
    assert any(d.Unpack(violations) for d in rpc_status.from_call(error).details)
    assert len(violations.field_violations) == 2, violations
    none = service_pb2.ModelInferRequest()
    fails(bad, lambda: stub.ModelInfer(none, timeout=TIMEOUT), "names no model")
    fails(grpc.StatusCode.NOT_FOUND, lambda: stub.ModelInfer(typed(model_version="9"), timeout=TIMEOUT), "version 9")
    unimplemented = service_pb2.SystemSharedMemoryStatusRequest()
    fails(grpc.StatusCode.UNIMPLEMENTED, lambda: stub.SystemSharedMemoryStatus(unimplemented, timeout=TIMEOUT))


def check_read_side(stub):
    """What Triton's load tools read."""
    config = stub.ModelConfig(service_pb2.ModelConfigRequest(name="iris"), timeout=TIMEOUT).config
    assert config.max_batch_size > 0 and list(config.input[0].dims) == [4], config
    before = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="iris"), timeout=TIMEOUT).model_stats
    for _ in range(3):
        stub.ModelInfer(typed(model_version="1"), timeout=TIMEOUT)
    after = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="iris"), timeout=TIMEOUT).model_stats
    assert [stats.version for stats in after] == ["1", "2"], after
    assert after[0].inference_count == before[0].inference_count + 3, (before, after)
    success = after[0].inference_stats.success
    assert success.count == after[0].inference_count and success.ns > 0, after
    assert after[0].inference_stats.compute_infer.ns > 0
    everything = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=TIMEOUT).model_stats
    assert {"iris", "digits"} <= {stats.name for stats in everything}
    index = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True), timeout=TIMEOUT).models
    assert ("iris", "2", "READY") in [(m.name, m.version, m.state) for m in index], index


def check_health(open_channel):
    stub = health_pb2_grpc.HealthStub(open_channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", "inference.GRPCInferenceService", "tensorflow.serving.PredictionService", "iris"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT).status == serving, service
    nobody = health_pb2.HealthCheckRequest(service="nobody")
    fails(grpc.StatusCode.NOT_FOUND, lambda: stub.Check(nobody, timeout=TIMEOUT))
    for request, expected in ((health_pb2.HealthCheckRequest(service="iris"), serving), (nobody, 3)):
        watch = stub.Watch(request, timeout=TIMEOUT)
        assert next(watch).status == expected
        watch.cancel()


def check_reflection(open_channel):
    """Finds the services, and calls one with types that the server described."""
    database = ProtoReflectionDescriptorDatabase(open_channel)
    services = set(database.get_services())
    wanted = {
        "inference.GRPCInferenceService",
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "grpc.health.v1.Health",
    }
    assert wanted <= services, services
    pool = descriptor_pool.DescriptorPool(database)
    service = pool.FindServiceByName("tensorflow.serving.ModelService")
    method = service.FindMethodByName("GetModelStatus")
    asked = message_factory.GetMessageClass(method.input_type)()
    answered = message_factory.GetMessageClass(method.output_type)
    asked.model_spec.name = "iris"
    call = open_channel.unary_unary(
        "/tensorflow.serving.ModelService/GetModelStatus",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=answered.FromString,
    )
    status = call(asked, timeout=TIMEOUT).model_version_status
    assert [(v.version, v.state) for v in status] == [(1, 30), (2, 30)], status
    asked.model_spec.version.value = 9
    fails(grpc.StatusCode.NOT_FOUND, lambda: call(asked, timeout=TIMEOUT))


def check_tensorflow(open_channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(open_channel)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "iris"
    tensor = request.inputs["features"]
    tensor.dtype = types_pb2.DT_FLOAT
    for size in IRIS.shape:
        tensor.tensor_shape.dim.add(size=size)
    answers = []
    for fill in (
        lambda t: setattr(t, "tensor_content", IRIS.tobytes()),
        lambda t: t.float_val.extend(IRIS.ravel().tolist()),
    ):
        given = predict_pb2.PredictRequest()
        given.CopyFrom(request)
        fill(given.inputs["features"])
        answers.append(stub.Predict(given, timeout=TIMEOUT))
    for answer in answers:
        assert list(answer.outputs["label"].int64_val) == [0, 2], answer
        assert answer.outputs["probabilities"].dtype == types_pb2.DT_FLOAT
        assert [d.size for d in answer.outputs["probabilities"].tensor_shape.dim] == [2, 3]
        assert answer.model_spec.name == "iris" and answer.model_spec.version.value in (1, 2), answer
    one = predict_pb2.PredictRequest()
    one.CopyFrom(request)
    one.inputs["features"].float_val.append(1.0)
    one.output_filter.append("label")
    one.model_spec.version.value = 1
    answer = stub.Predict(one, timeout=TIMEOUT)
    assert list(answer.outputs) == ["label"] and answer.model_spec.version.value == 1, answer
    one.model_spec.version_label = "nobody"
    fails(grpc.StatusCode.NOT_FOUND, lambda: stub.Predict(one, timeout=TIMEOUT), "label")
    wrong = predict_pb2.PredictRequest()
    wrong.CopyFrom(request)
    wrong.inputs["features"].float_val.extend([1.0, 2.0])
    fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: stub.Predict(wrong, timeout=TIMEOUT), "features", "8", "2")
    wrong.model_spec.signature_name = "other"
    fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: stub.Predict(wrong, timeout=TIMEOUT), "serving_default")
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "iris"
    metadata = stub.GetModelMetadata(asked, timeout=TIMEOUT)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert metadata.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    assert [d.size for d in signature.inputs["features"].tensor_shape.dim] == [-1, 4], signature
    assert set(signature.outputs) == {"label", "probabilities"}


def check_many_at_once(stub):
    """Calls of several threads on one connection get their own answers."""
    wrong = []

    def work(i):
        row = IRIS[i % 2 : i % 2 + 1]
        for n in range(20):
            answer = stub.ModelInfer(typed((1, 4), row.ravel().tolist(), id=f"{i}-{n}"), timeout=TIMEOUT)
            if answer.id != f"{i}-{n}" or list(answer.outputs[0].contents.int64_contents) != [[0, 2][i % 2]]:
                wrong.append(answer)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]


def main():
    check_tritonclient()
    with channel() as open_channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(open_channel)
        check_typed(stub)
        check_errors(stub)
        check_read_side(stub)
        check_health(open_channel)
        check_reflection(open_channel)
        check_tensorflow(open_channel)
        check_many_at_once(stub)
    print("ok")


main()
