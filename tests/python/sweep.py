"""Sends legal and strange inputs to models of single operators, and fails when the server ends.

The models are the ONNX project's own backend test cases, one operator each, with every dimension made free. The inputs are the case's own,
with one extent made 0, 1 or odd, or with special values: NaN, infinities, the largest and smallest integers, -1, 0.
Each request must get an answer: any status, but an answer. It is sent over HTTP (binary) and over gRPC: raw, and each fourth one with typed
contents too. All must get the same status and the same outputs; fractions within rounding, as kernels add in another order where memory is aligned otherwise. The server runs without a supervisor and under a limit on its address space, so
that a signal, an abort or an allocation that cannot be had shows as a broken connection.

    sweep.py --binary target/release/sluicegate [--operators LSTM,GRU] [--requests-per-case 12] [--seed 1]

Prints one line for each fault, then the counts. Exit code 1 if the server ended.
"""
import argparse, collections, http.client, importlib, json, os, pathlib, pkgutil, random, re, shutil, signal, subprocess, sys, tempfile, threading, time, warnings

import grpc
import numpy as np
import onnx
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2, service_pb2_grpc

warnings.filterwarnings("ignore")

# A short form for the test suite: operators whose kernels read the first element, divide, recurse, index or allocate by a value.
SHORT = """LSTM GRU RNN InstanceNormalization LayerNormalization BatchNormalization Conv ConvTranspose MaxPool AveragePool Gather GatherND
ScatterND ScatterElements Slice Pad Tile Expand Range OneHot TopK NonMaxSuppression Resize RoiAlign Mod Div Loop Scan Split Concat
ReduceMax Softmax CumSum Unique Compress StringSplit QuantizeLinear DequantizeLinear MatMulInteger Einsum""".split()

DATATYPES = {np.dtype(k): v for k, v in dict(bool="BOOL", uint8="UINT8", uint16="UINT16", uint32="UINT32", uint64="UINT64", int8="INT8",
             int16="INT16", int32="INT32", int64="INT64", float16="FP16", float32="FP32", float64="FP64").items()}
# The limit on the server's address space, in bytes.
ADDRESS_SPACE = 8 << 30
# The longest that a request may take before it counts as hanging, in seconds. The server's own time limit is shorter.
HANGING = 30


def cases(operators):
    """The test cases of operators: (name, model, inputs)."""
    package = importlib.import_module("onnx.backend.test.case.node")
    modules = {m.name: m.name for m in pkgutil.iter_modules(package.__path__)}
    if operators is None:
        for module in modules:
            importlib.import_module(f"onnx.backend.test.case.node.{module}")
    else:
        for operator in operators:
            if operator.lower() in modules:
                importlib.import_module(f"onnx.backend.test.case.node.{operator.lower()}")
    from onnx.backend.test.case.node import _NodeTestCases  # the modules above have filled it
    found = {}
    for case in _NodeTestCases:
        found.setdefault(case.name, case)
    for case in found.values():
        if not case.data_sets or case.model is None:
            continue
        inputs = case.data_sets[0][0]
        if all(isinstance(i, np.ndarray) and (i.dtype in DATATYPES or i.dtype == object or i.dtype.kind in "US") for i in inputs):
            yield case.name, case.model, inputs


def with_free_dimensions(model):
    """The same model with every dimension of its inputs free, and nothing declared of its outputs' extents."""
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    for value in freed.graph.input:
        if value.type.HasField("tensor_type"):
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                dim.Clear()
                dim.dim_param = f"{value.name}_{axis}"
    for value in freed.graph.output:
        if value.type.HasField("tensor_type"):
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                dim.Clear()
                dim.dim_param = f"{value.name}_{axis}"
    del freed.graph.value_info[:]
    return freed


def special_values(dtype):
    if dtype == bool:
        return [False, True]
    if dtype.kind == "f":
        return [np.nan, np.inf, -np.inf, np.finfo(dtype).max, -0.0, 0.5, 1e30 if dtype != np.float16 else 6e4]
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return [info.min, info.max, 0, 1, max(info.min, -1), min(info.max, 2**31 - 1), min(info.max, 2**40)]
    return [b"", b"\xff", b"a" * 1000, b"nan"]


def filled(dtype, shape, value, random_):
    if dtype.kind in "OUS":
        return np.full(shape, value, dtype=object)
    return np.full(shape, value, dtype=dtype)


def resized(array, axis, extent):
    shape = list(array.shape)
    shape[axis] = extent
    if array.size == 0 or 0 in shape:
        return np.zeros(shape, array.dtype) if array.dtype.kind not in "OUS" else np.full(shape, b"", dtype=object)
    return np.resize(array, shape)


def mutations(inputs, random_, at_most):
    """Lists of inputs: the case's own first, then a sample of the strange ones."""
    strange = []
    for i, array in enumerate(inputs):
        for axis in range(array.ndim):
            for extent in (0, 1, 7):
                strange.append((f"input {i} axis {axis} has extent {extent}", [resized(a, axis, extent) if j == i else a for j, a in enumerate(inputs)]))
        for value in special_values(array.dtype):
            strange.append((f"input {i} is {value!r}", [filled(a.dtype, a.shape, value, random_) if j == i else a for j, a in enumerate(inputs)]))
            if array.size > 1 and array.dtype.kind not in "OUS":
                one = array.copy()
                one.flat[random_.randrange(array.size)] = value
                strange.append((f"an element of input {i} is {value!r}", [one if j == i else a for j, a in enumerate(inputs)]))
    for axis in range(max((a.ndim for a in inputs), default=0)):
        for extent in (0, 1, 7):
            strange.append((f"axis {axis} of all inputs has extent {extent}", [resized(a, axis, extent) if a.ndim > axis else a for a in inputs]))
    strange.append(("all inputs are empty", [np.zeros([0] * a.ndim, a.dtype) if a.dtype.kind not in "OUS" else np.full([0] * a.ndim, b"", dtype=object) for a in inputs]))
    random_.shuffle(strange)
    return [("the case's own inputs", list(inputs))] + strange[: max(0, at_most - 1)]


def as_bytes(array):
    if array.dtype.kind in "OUS":
        elements = [x if isinstance(x, bytes) else str(x).encode() for x in array.ravel()]
        return b"".join(len(x).to_bytes(4, "little") + x for x in elements)
    return np.ascontiguousarray(array).tobytes()


def body(names, arrays):
    """An Open Inference Protocol request with binary inputs: (headers, bytes)."""
    raw = [as_bytes(a) for a in arrays]
    inputs = [{"name": n, "shape": list(a.shape), "datatype": DATATYPES.get(a.dtype, "BYTES"), "parameters": {"binary_data_size": len(r)}}
              for n, a, r in zip(names, arrays, raw)]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}, head + b"".join(raw)


# The field of typed contents for each datatype. FP16 has none.
CONTENTS = dict(BOOL="bool", UINT8="uint", UINT16="uint", UINT32="uint", UINT64="uint64", INT8="int", INT16="int", INT32="int", INT64="int64",
                FP32="fp32", FP64="fp64", BYTES="bytes")
# The answers of gRPC for the statuses of HTTP that say something about the request.
STATUSES = {400: grpc.StatusCode.INVALID_ARGUMENT, 413: grpc.StatusCode.RESOURCE_EXHAUSTED, 500: grpc.StatusCode.INTERNAL}
# Operators whose outputs differ from run to run.
RANDOM = ("bernoulli", "random", "multinomial", "dropout")


def message(model, names, arrays, typed):
    """The same request as a message of gRPC. None where an input has no typed form."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, array in zip(names, arrays):
        datatype = DATATYPES.get(array.dtype, "BYTES")
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if not typed:
            request.raw_input_contents.append(as_bytes(array))
        elif datatype not in CONTENTS:
            return None
        elif datatype == "BYTES":
            tensor.contents.bytes_contents.extend(x if isinstance(x, bytes) else str(x).encode() for x in array.ravel())
        else:
            getattr(tensor.contents, CONTENTS[datatype] + "_contents").extend(array.ravel().tolist())
    return request


def outputs_of_http(headers, body):
    """Name, shape, datatype and bytes of each output of a binary answer."""
    length = int(headers["Inference-Header-Content-Length"])
    at, outputs = length, []
    for output in json.loads(body[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        outputs.append((output["name"], output["shape"], output["datatype"], body[at : at + size]))
        at += size
    return outputs


def outputs_of_grpc(answer):
    """The same of an answer of gRPC: raw, or typed where the request was."""
    outputs = []
    for i, output in enumerate(answer.outputs):
        if answer.raw_output_contents:
            data = answer.raw_output_contents[i]
        else:
            values = getattr(output.contents, CONTENTS[output.datatype] + "_contents")
            dtype = next((t for t, name in DATATYPES.items() if name == output.datatype), np.dtype(object))
            data = as_bytes(np.array(list(values), dtype=dtype))
        outputs.append((output.name, list(output.shape), output.datatype, data))
    return outputs


class Server:
    def __init__(self, binary, work):
        self.binary, self.work, self.process = binary, work, None

    def start(self):
        config = self.work / "sweep.toml"
        # No deadline that is longer than a person would wait; nothing is recorded.
        config.write_text('[server]\nsupervise = false\nrequest_timeout = "5s"\nlisten = "127.0.0.1:0"\n[admin]\nlisten = "127.0.0.1:0"\n[log]\nformat = "json"\n'
                          "[prediction_log]\nenabled = false\n[models]\nsettle = \"0s\"\nload_threads = 2\n")
        self.process = subprocess.Popen(["prlimit", f"--as={ADDRESS_SPACE}", "--core=0", self.binary, "serve", "--config", str(config), "--models",
                                         str(self.work / "models"), "--data-dir", str(self.work / "data")], stderr=subprocess.PIPE, cwd=self.work)
        self.lines = collections.deque(maxlen=200)
        self.data = self.admin = None
        for line in self.process.stderr:
            line = line.decode(errors="replace")
            self.lines.append(line)
            try:
                fields = json.loads(line)
            except ValueError:
                continue
            if fields.get("data") and fields.get("admin"):
                self.data, self.admin = fields["data"], fields["admin"]
                break
        if self.data is None:
            raise SystemExit("the server did not start:\n" + "".join(self.lines))
        threading.Thread(target=lambda: self.lines.extend(l.decode(errors="replace") for l in self.process.stderr), daemon=True).start()

    def ask(self, path, admin=False):
        connection = http.client.HTTPConnection(self.admin if admin else self.data, timeout=HANGING)
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())

    def wait_loaded(self, seconds):
        """Waits until no version is on its way. The names of the models that are ready."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            states = {m["name"]: [v["state"] for v in m["versions"]] for m in self.ask("/api/v1/models", admin=True)["models"]}
            if states and all(s not in ("pending", "loading", "verifying", "warming") for v in states.values() for s in v):
                return sorted(name for name, s in states.items() if "serving" in s or "ready" in s)
            time.sleep(0.2)
        raise SystemExit(f"versions are still loading after {seconds} s")

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def send(connection, name, headers, payload):
    """The status and, for 200, the outputs."""
    connection.request("POST", f"/v2/models/{name}/infer", payload, headers)
    answer = connection.getresponse()
    body = answer.read()
    return answer.status, outputs_of_http(answer.headers, body) if answer.status == 200 else None


def difference(stub, name, request, status, expected):
    """What gRPC answers otherwise than HTTP did; None for the same."""
    try:
        outputs = outputs_of_grpc(stub.ModelInfer(request, timeout=HANGING))
    except grpc.RpcError as error:
        if error.code() == STATUSES.get(status):
            return None
        # Whether there is time left, and whether a breaker has opened since, is not a matter of the protocol.
        return None if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE) else f"{status} over HTTP, {error.code()}: {error.details()}"
    if status != 200:
        return f"{status} over HTTP, OK over gRPC"
    if any(word in name for word in RANDOM):
        outputs, expected = ([o[:3] for o in both] for both in (outputs, expected))
    return None if len(outputs) == len(expected) and all(map(is_same, outputs, expected)) else f"other outputs: {str(expected)[:200]} over HTTP, {str(outputs)[:200]} over gRPC"


def is_same(one, other):
    """Whether two outputs are the same."""
    if one[:3] != other[:3] or not one[2].startswith("FP") or len(one) < 4:
        return one == other
    dtype = next(t for t, name in DATATYPES.items() if name == one[2])
    with np.errstate(all="ignore"):
        values = [np.frombuffer(o[3], dtype=dtype).astype(np.float64) for o in (one, other)]
        return len(one[3]) == len(other[3]) and np.allclose(*values, rtol=1e-2 if one[2] == "FP16" else 1e-3, atol=1e-4, equal_nan=True)


def stub_of(server):
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    return service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(server.data, options=options))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--operators", help="a list with commas; `short` for the list of the test suite; all without it")
    parser.add_argument("--requests-per-case", type=int, default=60)
    parser.add_argument("--cases-per-operator", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load-seconds", type=int, default=600)
    arguments = parser.parse_args()
    operators = SHORT if arguments.operators == "short" else arguments.operators.split(",") if arguments.operators else None
    random_ = random.Random(arguments.seed)
    work = pathlib.Path(tempfile.mkdtemp(prefix="sweep-"))
    chosen, per_operator = {}, collections.Counter()
    everything = list(cases(operators))
    random_.shuffle(everything)
    for name, model, inputs in everything:
        operator = model.graph.node[0].op_type if model.graph.node else "?"
        per_operator[operator] += 1
        if per_operator[operator] > arguments.cases_per_operator:
            continue
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
        chosen[name] = ([v.name for v in model.graph.input], inputs)
        directory = work / "models" / name / "1"
        directory.mkdir(parents=True)
        onnx.save(with_free_dimensions(model), str(directory / "model.onnx"))
    server = Server(os.path.abspath(arguments.binary), work)
    statuses, faults, differences, sent, compared = collections.Counter(), [], [], 0, collections.Counter()
    try:
        server.start()
        ready = server.wait_loaded(arguments.load_seconds)
        print(f"{len(chosen)} models of {len(per_operator)} operators, {len(ready)} ready", flush=True)
        connection, stub = http.client.HTTPConnection(server.data, timeout=HANGING), stub_of(server)
        for name in ready:
            names, inputs = chosen[name]
            for what, arrays in mutations(inputs, random_, arguments.requests_per_case):
                headers, payload = body(names, arrays)
                sent += 1
                try:
                    status, outputs = send(connection, name, headers, payload)
                    statuses[status] += 1
                    for typed in (False, True) if sent % 4 == 0 else (False,):
                        request = message(name, names, arrays, typed) if status in (200, *STATUSES) else None
                        if request is None:
                            continue
                        different = difference(stub, name, request, status, outputs)
                        if server.process.poll() is not None:
                            raise OSError("the server ended")
                        compared["typed" if typed else "raw"] += 1
                        if different:
                            differences.append((name, what, "typed" if typed else "raw", different))
                            print("DIFFERENCE", *differences[-1], flush=True)
                except (OSError, http.client.HTTPException) as error:
                    connection.close()
                    time.sleep(0.5)
                    code = server.process.poll()
                    shapes = [list(a.shape) for a in arrays]
                    faults.append((name, what, shapes, type(error).__name__, code))
                    print("FAULT", *faults[-1], "" if code is None else "".join(list(server.lines)[-3:])[-600:], flush=True)
                    server.end()
                    shutil.rmtree(work / "models" / name)
                    server.start()
                    server.wait_loaded(arguments.load_seconds)
                    connection, stub = http.client.HTTPConnection(server.data, timeout=HANGING), stub_of(server)
                    break
    finally:
        server.end()
        shutil.rmtree(work, ignore_errors=True)
    print(f"{sent} requests, statuses {dict(sorted(statuses.items()))}, {len(faults)} faults")
    print(f"over gRPC too: {compared['raw']} raw, {compared['typed']} typed, {len(differences)} differences")
    if not ready or statuses[200] < sent / 4:
        print("too few requests were answered with 200: the sweep shows nothing")
        return 1
    if compared["raw"] < sent / 4 or not compared["typed"]:
        print("too few requests were sent over gRPC: the comparison shows nothing")
        return 1
    return 1 if faults or differences else 0


if __name__ == "__main__":
    sys.exit(main())
