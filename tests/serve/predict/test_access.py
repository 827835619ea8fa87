"""Who may do what, over which transport: administrator's keys, TLS, and errors of KServe's form."""

import datetime
import http.client
import json
import ssl
import time

import grpc
import pytest
from tests.serve.predict.conftest import serving

from ziggurat.core.errors import ServeError
from ziggurat.serve.predict.messages import MESSAGES, SERVICE
from ziggurat.serve.tls import Tls

INFER = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}]}
PATHS = (
    ("POST", "/v2/models/digits/infer", INFER),
    ("POST", "/v2/repository/models/digits/load", {}),
    ("POST", "/v2/repository/models/digits/unload", {}),
    ("GET", "/v2/health/live", None),
)


def ask(address, method, path, body=None, key=None, context=None):
    kind = http.client.HTTPSConnection if context else http.client.HTTPConnection
    connection = kind(address, timeout=60, **({"context": context} if context else {}))
    headers = {"authorization": f"Bearer {key}"} if key else {}
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, headers)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.status, json.loads(answer) if answer else None


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of 127.0.0.1 signed by itself."""
    import ipaddress

    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name)
        .public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tls")
    encoding = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(encoding))
    private = key.private_bytes(
        encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    return Tls(folder / "cert.pem", folder / "key.pem")


def rpc(channel, name, request, key=None):
    metadata = [("authorization", f"Bearer {key}")] if key else []
    call = channel.unary_unary(f"/{SERVICE}/{name}")
    future = call.future(request.SerializeToString(), timeout=60, metadata=metadata)
    return future.code().name


@pytest.mark.slow
@pytest.mark.parametrize("keys", [(), ("user",)])
def test_an_administrators_key_alone_loads_and_unloads(made, keys):
    with serving(made, keys, ("admin",), model_control="explicit", load=("digits",)) as server:
        allowed = {None: not keys, "user": True, "admin": True, "other": not keys}
        for key, may in allowed.items():
            for method, path, body in PATHS:
                control = "/repository/models/" in path
                if control and key == "admin":
                    continue
                status, answer = ask(server.http, method, path, body, key)
                refused = key != "admin" if control else not may and "health" not in path
                assert status == (401 if refused else 200), (key, path)
                if refused:
                    assert isinstance(answer["error"], str)
        with grpc.insecure_channel(server.grpc) as channel:
            load = MESSAGES["RepositoryModelLoadRequest"](model_name="digits")
            for key in (None, "user"):
                assert rpc(channel, "RepositoryModelLoad", load, key) == "UNAUTHENTICATED"
            assert rpc(channel, "RepositoryModelLoad", load, "admin") == "OK"
            assert rpc(channel, "ServerLive", MESSAGES["ServerLiveRequest"]()) == "OK"
        assert ask(server.http, *PATHS[1][:2], {}, "admin")[0] == 200
        assert ask(server.http, *PATHS[2][:2], {}, "admin")[0] == 200


def test_a_stream_without_a_key_ends_when_it_opens(made):
    """No message is read, and however many are opened, others are served."""
    with serving(made, ("user",), load=("digits",)) as server:
        with grpc.insecure_channel(server.grpc) as channel:
            stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")

            def nothing():
                time.sleep(20)
                yield b""

            calls = [stream(nothing()) for _ in range(50)]
            for call in calls:
                assert call.code() == grpc.StatusCode.UNAUTHENTICATED
        with grpc.insecure_channel(server.grpc) as channel:
            live = MESSAGES["ServerLiveRequest"]()
            assert rpc(channel, "ServerLive", live) == "OK"
            ready = MESSAGES["ModelReadyRequest"](name="digits")
            assert rpc(channel, "ModelReady", ready, "user") == "OK"


def test_tls_for_both_ports(made, certificate):
    context = ssl.create_default_context(cafile=str(certificate.certificate))
    with serving(made, tls=certificate, load=("digits",)) as server:
        assert ask(server.http, *PATHS[0], context=context)[0] == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(server.http, *PATHS[0])
        root = grpc.ssl_channel_credentials(certificate.certificate.read_bytes())
        with grpc.secure_channel(server.grpc, root) as channel:
            ready = MESSAGES["ModelReadyRequest"](name="digits")
            assert rpc(channel, "ModelReady", ready) == "OK"


def test_files_that_are_no_certificate_are_refused(certificate, tmp_path):
    (tmp_path / "text").write_text("no certificate")
    for pair in (
        Tls(tmp_path / "text", certificate.key),
        Tls(certificate.certificate, tmp_path / "text"),
        Tls(tmp_path / "nothing", certificate.key),
    ):
        with pytest.raises(ServeError, match=r"TLS certificate .* expected a certificate and its"):
            pair.read()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2/nothing", 404), ("PUT", "/v2/models/digits/infer", 404), ("GET", "/v2/x/y", 404)],
)
def test_errors_below_v2_are_of_its_form(server, method, path, status):
    found, answer = ask(server.http, method, path)
    assert found == status
    assert set(answer) == {"error"}
    assert isinstance(answer["error"], str)
