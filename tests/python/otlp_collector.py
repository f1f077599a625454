"""An OpenTelemetry collector for tests (tests/it/traces.rs): prints its port, and then each span that it gets, as a line of JSON.

    otlp_collector.py grpc|http [--certificate FILE --key FILE]
    otlp_collector.py count                      counts the messages over gRPC and does not read them (loadtest/tracing.sh)
    otlp_collector.py call ADDRESS TRACEPARENT   sends predictions to the model `self` over gRPC: one call, and one message of a stream
    otlp_collector.py openmetrics FILE TRACE     checks a text by the reference parser, and that it has this exemplar
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def value(any_value):
    kind = any_value.WhichOneof("value")
    return getattr(any_value, kind) if kind else None


def attributes(pairs):
    return {pair.key: value(pair.value) for pair in pairs}


def show(request):
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                line = {
                    "resource": attributes(resource.resource.attributes),
                    "scope": scope.scope.name,
                    "name": span.name,
                    "kind": span.kind,
                    "trace": span.trace_id.hex(),
                    "span": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "state": span.trace_state,
                    "nanos": span.end_time_unix_nano - span.start_time_unix_nano,
                    "start": span.start_time_unix_nano,
                    "attributes": attributes(span.attributes),
                    "status": span.status.code,
                }
                print(json.dumps(line), flush=True)


def serve_grpc(files):
    from concurrent import futures

    import grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages

    def export(request, context):
        show(request)
        return messages.ExportTraceServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export, messages.ExportTraceServiceRequest.FromString, messages.ExportTraceServiceResponse.SerializeToString
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    if files:
        certificate, key = (open(file, "rb").read() for file in files)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


def count():
    """Takes spans as bytes: reading them in Python would take time from a server that is measured on the same cores."""
    from concurrent import futures

    import grpc

    got = [0, 0]

    def export(request, context):
        got[0] += 1
        got[1] += len(request)
        print(f"{got[0]} messages, {got[1]} bytes", flush=True)
        return b""

    handler = grpc.unary_unary_rpc_method_handler(export)
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


def serve_http(files):
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            right = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
            if right:
                show(messages.ExportTraceServiceRequest.FromString(body))
            answer = messages.ExportTraceServiceResponse().SerializeToString()
            self.send_response(200 if right else 400)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if files:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_port, flush=True)
    server.serve_forever()


def call(address, traceparent):
    import queue

    import numpy as np
    import tritonclient.grpc as client

    x = client.InferInput("x", [1, 4], "FP32")
    x.set_data_from_numpy(np.zeros((1, 4), np.float32))
    headers = {"traceparent": traceparent}
    with client.InferenceServerClient(address) as server:
        server.infer("self", [x], headers=headers)
        answers = queue.Queue()
        server.start_stream(lambda result, error: answers.put(error or result), headers=headers)
        server.async_stream_infer("self", [x])
        answer = answers.get(timeout=20)
        server.stop_stream()
        assert hasattr(answer, "as_numpy"), answer
    print("ok")


def openmetrics(file, trace):
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    families = list(text_string_to_metric_families(open(file).read()))
    found = [
        sample
        for family in families
        for sample in family.samples
        if sample.exemplar and sample.exemplar.labels == {"trace_id": trace}
    ]
    assert len(found) == 1, found
    sample = found[0]
    assert sample.name == "sluicegate_request_duration_seconds_bucket", sample
    assert sample.exemplar.value <= float(sample.labels["le"]) and sample.exemplar.timestamp, sample
    counters = [family for family in families if family.type == "counter"]
    assert len(counters) > 10, [family.name for family in families]
    print("ok", len(families))


def main():
    what, *rest = sys.argv[1:]
    if what == "call":
        return call(*rest)
    if what == "openmetrics":
        return openmetrics(*rest)
    if what == "count":
        return count()
    files = (rest[1], rest[3]) if rest else None
    (serve_grpc if what == "grpc" else serve_http)(files)


main()
