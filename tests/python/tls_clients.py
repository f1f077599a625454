"""Talks TLS to a running gateway as Python's clients do: tritonclient, httpx over HTTP/2, and the ssl module for what clients rarely do.

Usage: tls_clients.py PORT DIRECTORY. The directory has server.crt, and anna.crt and anna.key, which the server asks for. Exits 0 and prints
"ok" when every check holds. Expects the models in models/.
"""

import socket
import ssl
import sys

import httpx
import numpy as np
import tritonclient.http as triton

PORT, DIRECTORY = int(sys.argv[1]), sys.argv[2]
CA, CERTIFICATE, KEY = (f"{DIRECTORY}/{name}" for name in ("server.crt", "anna.crt", "anna.key"))
LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"


def context(identity=True, protocols=("http/1.1",), strict=False):
    made = ssl.create_default_context(cafile=CA)
    if strict:  # the default from Python 3.13 on
        made.verify_flags |= ssl.VERIFY_X509_STRICT
    if identity:
        made.load_cert_chain(CERTIFICATE, KEY)
    if protocols:
        made.set_alpn_protocols(list(protocols))
    return made


def connect(made, name="localhost"):
    raw = socket.create_connection(("127.0.0.1", PORT), timeout=20)
    return made.wrap_socket(raw, server_hostname=name)


def is_refused(made, name="localhost"):
    """With TLS 1.3 a client learns only from its first read that its certificate is missing."""
    try:
        with connect(made, name) as tls:
            tls.sendall(LIVE)
            return tls.recv(100) == b""
    except (ssl.SSLError, ConnectionResetError):
        return True


def check_tritonclient():
    client = triton.InferenceServerClient(
        f"localhost:{PORT}",
        ssl=True,
        ssl_options={"ca_certs": CA, "certfile": CERTIFICATE, "keyfile": KEY},
        ssl_context_factory=lambda **_: context(),
    )
    given = triton.InferInput(client.get_model_metadata("iris")["inputs"][0]["name"], [2, 4], "FP32")
    given.set_data_from_numpy(np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], dtype=np.float32))
    labels = client.infer("iris", [given]).as_numpy("label")
    assert labels.tolist() == [0, 2], labels
    client.close()


def check_httpx():
    for http2, version in ((True, "HTTP/2"), (False, "HTTP/1.1")):
        with httpx.Client(http2=http2, verify=context(protocols=())) as client:
            for _ in range(3):
                answer = client.get(f"https://localhost:{PORT}/v2/models/iris")
                assert answer.http_version == version and answer.json()["name"] == "iris", answer


def check_protocols():
    with connect(context(protocols=(), strict=True)) as tls:
        tls.sendall(LIVE)
        assert tls.recv(100).startswith(b"HTTP/1.1 200"), "without ALPN the connection speaks HTTP/1.1"
    older = context()
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    with connect(older) as tls:
        assert tls.version() == "TLSv1.2"
        tls.sendall(LIVE)
        assert tls.recv(100).startswith(b"HTTP/1.1 200")
    # Every byte in a record of its own.
    with connect(context()) as tls:
        for byte in LIVE:
            tls.sendall(bytes([byte]))
        assert tls.recv(100).startswith(b"HTTP/1.1 200")


def check_refusals():
    assert is_refused(context(identity=False)), "a client without a certificate"
    assert is_refused(context(protocols=("spdy/3",))), "no protocol in common"
    outdated = context()
    outdated.minimum_version, outdated.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    outdated.set_ciphers("ALL:@SECLEVEL=0")
    assert is_refused(outdated), "TLS 1.1"
    stranger = context(identity=False)
    stranger.load_cert_chain(f"{DIRECTORY}/server.crt", f"{DIRECTORY}/server.key")
    assert is_refused(stranger), "a certificate of another authority"
    assert is_refused(context(), name="elsewhere.example"), "the client does not accept another name"


for check in (check_tritonclient, check_httpx, check_protocols, check_refusals):
    check()
print("ok")
