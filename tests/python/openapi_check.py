"""Calls every operation of both OpenAPI documents on a running gateway and validates each answer.

usage: openapi_check.py DATA_ADDRESS ADMIN_ADDRESS

Every answer must have a documented status, and a body that fits the documented schema. On the data plane, methods that
the document lacks must answer 405 with `allow`, and unknown models 404 with the documented error.
"""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

from jsonschema import Draft202012Validator

DOCS = Path(__file__).resolve().parents[2] / "docs"
METHODS = ["get", "put", "post", "delete", "patch"]


def call(address, method, path, body=None):
    """Returns status, headers and body, whatever the status is."""
    data = None if body is None else json.dumps(body).encode()
    headers = {} if body is None else {"content-type": "application/json"}
    request = urllib.request.Request(f"http://{address}{path}", data=data, headers=headers, method=method.upper())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


class Document:
    """One OpenAPI document."""

    def __init__(self, name):
        self.name = name
        self.tree = json.loads((DOCS / name).read_text())
        self.checked = 0
        self.failures = []

    def resolve(self, node):
        while isinstance(node, dict) and "$ref" in node:
            found = self.tree
            for part in node["$ref"].lstrip("#/").split("/"):
                found = found[part]
            node = found
        return node

    def check(self, path, method, status, body):
        """The status is documented for this operation, and the body fits its schema; else a failure is noted."""
        where = f"{self.name}: {method.upper()} {path} -> {status}"
        responses = self.tree["paths"][path][method]["responses"]
        if str(status) not in responses:
            self.failures.append(f"{where}: only {sorted(responses)} are documented; body: {body[:300]!r}")
            return
        content = self.resolve(responses[str(status)]).get("content", {})
        if "application/json" not in content:
            return
        schema = {**content["application/json"]["schema"], "components": self.tree["components"]}
        errors = sorted(Draft202012Validator(schema).iter_errors(json.loads(body)), key=str)
        if errors:
            self.failures.append(f"{where}: {errors[0].json_path}: {errors[0].message}; body: {body[:300]!r}")
        self.checked += 1


def fill(path, **values):
    for name, value in values.items():
        path = path.replace("{" + name + "}", value)
    return path


def example(document, operation):
    content = document.resolve(operation.get("requestBody", {})).get("content", {})
    return content.get("application/json", {}).get("example")


def data_plane(address):
    document = Document("openapi-data.json")
    for path, item in document.tree["paths"].items():
        real = fill(path, model="iris", version="2", label="stable")
        for method in METHODS:
            if method not in item:
                status, headers, body = call(address, method, real)
                assert status == 405 and headers["allow"], f"{method} {real}: {status} {body[:200]!r}"
                continue
            body = example(document, item[method])
            status, headers, answer = call(address, method, real, body)
            assert status < 300, f"{method} {real}: {status} {answer[:300]!r}"
            document.check(path, method, status, answer)
            if body is not None:
                assert headers["x-request-id"] or path.endswith(":feedback"), f"{method} {real} has no x-request-id"
                status, _, answer = call(address, method, real, {"nonsense": 1})
                assert status == 400, f"{method} {real}: {status} {answer[:300]!r}"
                document.check(path, method, status, answer)
            if "{model}" in path:
                unknown = fill(path, model="nobody", version="2", label="stable")
                status, _, answer = call(address, method, unknown, body)
                assert status == 404, f"{method} {unknown}: {status} {answer[:300]!r}"
                document.check(path, method, status, answer)
    return document


# What changes the gateway is called with a body that is refused, or that changes nothing.
ADMIN_BODIES = {
    "promote": {"version": "2", "reason": "dry", "dry_run": True},
    "rollback": {"reason": 7},
    "rollout": {"to": "nonsense"},
    "traffic": {"split": None},
}


def admin_plane(address):
    document = Document("openapi.json")
    for path, item in document.tree["paths"].items():
        for method in METHODS:
            if method not in item:
                continue
            for model in ("iris", "nobody"):
                if "{model}" not in path and model == "nobody":
                    continue
                real = fill(path, model=model, version="2")
                if method == "put" and path.endswith("/versions/{version}"):
                    continue
                body = None
                if method != "get":
                    last = path.replace(":", "/").rsplit("/", 1)[-1]
                    body = ADMIN_BODIES.get(last, {})
                    if last in ("load", "unload") and model == "iris" and path.startswith("/v2"):
                        continue
                status, _, answer = call(address, method, real, body)
                assert status < 500, f"{method} {real}: {status} {answer[:300]!r}"
                if path not in ("/metrics", "/openapi.json"):
                    document.check(path, method, status, answer)
    return document


def main():
    data, admin = sys.argv[1], sys.argv[2]
    traffic = {"split": [{"version": "2", "weight": 1}], "labels": {"stable": "2"}}
    status, _, answer = call(admin, "put", "/api/v1/models/iris/traffic", traffic)
    assert status == 200, f"the label is set: {status} {answer!r}"
    documents = [data_plane(data), admin_plane(admin)]
    failures = [failure for document in documents for failure in document.failures]
    if failures:
        sys.exit("\n".join(failures))
    print("ok: " + ", ".join(f"{d.checked} answers by {d.name}" for d in documents))


main()
