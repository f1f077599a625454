"""MLflow's tracking server and client in one process, for tests/it/mlflow.rs.

    python mlflow_registry.py DIR [USER PASSWORD | token TOKEN CERTIFICATE KEY]

Reads a command as a line of JSON from standard input and answers with a line of JSON: {"ok": ...} or {"error": ...}. The first line that it writes is the
port of the server. Everything is MLflow's own: the server that `mlflow server --serve-artifacts` runs, and the client. With USER and PASSWORD, or with TOKEN,
the server refuses requests that do not have them. With CERTIFICATE and KEY it speaks TLS.
"""

import base64
import json
import os
import sys
import threading
import types

where = sys.argv[1]
bearer = sys.argv[2:3] == ["token"]
credentials = sys.argv[2:4]
tls = tuple(sys.argv[4:6]) or None
os.environ.update(
    MLFLOW_DISABLE_TELEMETRY="true",
    GIT_PYTHON_REFRESH="quiet",
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
    # What `mlflow server` sets for its workers.
    _MLFLOW_SERVER_FILE_STORE=f"sqlite:///{where}/mlflow.db",
    _MLFLOW_SERVER_ARTIFACT_ROOT="mlflow-artifacts:/",
    _MLFLOW_SERVER_ARTIFACT_DESTINATION=f"{where}/artifacts",
    _MLFLOW_SERVER_SERVE_ARTIFACTS="true",
)
if bearer:
    os.environ.update(MLFLOW_TRACKING_TOKEN=credentials[1], MLFLOW_TRACKING_SERVER_CERT_PATH=tls[0])
elif credentials:
    os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = credentials

# mlflow.onnx imports the engine to check options of sessions, of which there are none here. It is 60 MB.
sys.modules["onnxruntime"] = types.ModuleType("onnxruntime")

import logging

import mlflow
import mlflow.data
import numpy as np
import onnx
import onnx.numpy_helper
from mlflow import MlflowClient
from mlflow.data.numpy_dataset import from_numpy
from mlflow.server import app
from mlflow.server.handlers import initialize_backend_stores
from werkzeug.serving import WSGIRequestHandler, make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)
logging.getLogger("mlflow").setLevel(logging.ERROR)


class Quiet(WSGIRequestHandler):
    def log_request(self, *_):
        pass


def guarded(environment, start_response):
    """The server, which asks for credentials where there are any."""
    expected = "Basic " + base64.b64encode(":".join(credentials).encode()).decode() if credentials else None
    expected = f"Bearer {credentials[1]}" if bearer else expected
    if expected and environment.get("HTTP_AUTHORIZATION") != expected:
        start_response("401 Unauthorized", [("content-length", "0")])
        return [b""]
    return app(environment, start_response)


class Server:
    def __init__(self):
        self.port = 0
        self.server = None

    def start(self):
        self.server = make_server("127.0.0.1", self.port, guarded, threaded=True, request_handler=Quiet, ssl_context=tls)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


initialize_backend_stores(os.environ["_MLFLOW_SERVER_FILE_STORE"], None, "mlflow-artifacts:/")
server = Server()
server.start()
mlflow.set_tracking_uri(f"https://localhost:{server.port}" if tls else f"http://127.0.0.1:{server.port}")
client = MlflowClient()


def register(name, file, params=None, metrics=None, tags=None, extra_files=None, flavor="onnx"):
    """Logs a model in a run, and registers it. Returns the number of the version, and the run."""
    with mlflow.start_run() as run:
        mlflow.log_params(params or {})
        mlflow.log_metrics(metrics or {})
        mlflow.set_tags(tags or {})
        mlflow.log_input(from_numpy(np.zeros((4, 4)), source="s3://training/2026-10"), "training")
        if flavor == "onnx":
            model = onnx.load(file)
            for tensor in model.graph.initializer:
                # As exporters write them. MLflow then puts those above 1 KiB into a file beside the model.
                tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
            info = mlflow.onnx.log_model(
                model,
                name="model",
                registered_model_name=name,
                pip_requirements=["onnx"],
                extra_files=extra_files,
            )
        else:
            # A model without an ONNX flavour.
            info = mlflow.pyfunc.log_model(
                name="model",
                loader_module="json",
                data_path=file,
                registered_model_name=name,
                pip_requirements=["numpy"],
            )
    return {"version": str(info.registered_model_version), "run": run.info.run_id}


def tags(name, version):
    return client.get_model_version(name, version).tags


COMMANDS = {
    "register": register,
    "tags": tags,
    "alias": lambda name, alias, version: client.set_registered_model_alias(name, alias, version),
    "unalias": lambda name, alias: client.delete_registered_model_alias(name, alias),
    "delete_version": lambda name, version: client.delete_model_version(name, version),
    "log_metric": lambda run, key, value: client.log_metric(run, key, value),
    "stop": server.stop,
    "start": server.start,
}

mlflow.set_experiment("tests")
print(server.port, flush=True)
answers = os.fdopen(os.dup(1), "w")
# What libraries print is no answer.
sys.stdout = sys.stderr
for line in sys.stdin:
    command = json.loads(line)
    try:
        answer = {"ok": COMMANDS[command.pop("do")](**command)}
    except Exception as error:  # The test reads it.
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)
