"""Requests that are wrong in any way: refused with the reason, never a 5xx, a hang or growth."""

import concurrent.futures
import http.client
import json
import random
import struct

import grpc
import numpy as np
import psutil
import pytest

from ziggurat.serve.predict.messages import MESSAGES, SERVICE

GOOD = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}]}
REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


def post(address, path, body, headers=(), method="POST"):
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def infer(server, body, path="/v2/models/digits/infer", **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return post(server.http, path, data, {k.replace("_", "-"): v for k, v in headers.items()})


def changed(**fields):
    """A good request with fields of its input replaced; ``...`` removes one."""
    entry = GOOD["inputs"][0] | fields
    return {"inputs": [{key: value for key, value in entry.items() if value is not ...}]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "infer request: found Input data was truncated"),
        (b"{", "truncated"),
        (b"[]", "Expected `object`, got `array`"),
        ({}, "missing required field `inputs`"),
        (GOOD | {"parameters": {"sequence_id": 7}}, "parameter sequence_id: found 7"),
        ({"inputs": []}, "input x: found nothing; expected each input once"),
        ({"inputs": GOOD["inputs"] * 2}, "input x: found it twice"),
        (changed(name="X"), "input: found 'X'; expected one of x"),
        (changed(datatype="FP99"), "found datatype 'FP99'; expected FP32"),
        (changed(shape=[1, -16]), "found shape [1, -16]; expected [b, 16]"),
        (changed(shape=[2**62, 16]), "found shape [4611686018427387904, 16]"),
        (changed(shape=[10**30, 16]), "found shape [1000000000000000000000000000000, 16]"),
        (changed(shape=[16]), "found shape [16]"),
        (changed(shape=[2, 16]), "found 16 values; expected shape [2, 16]"),
        (changed(data=[[0.5] * 8] * 2), "found shape [2, 8]; expected shape [1, 16]"),
        (changed(data=[[0.5] * 8, [0.5] * 7]), "input x: data"),
        (changed(data=["a"] * 16), "Expected `float`, got `str`"),
        (changed(data=[True] * 16), "Expected `float`, got `bool`"),
        (changed(data=[1e39] * 16), "found a value beyond FP32"),
        (changed(data={"a": 1}), "Expected `array`, got `object`"),
        (changed(data=...), "found no data"),
        (changed(parameters={"shared_memory_region": "a"}), "parameter shared_memory_region"),
        (changed(parameters={"binary_data_size": 64}), "data and binary_data_size"),
        (changed(data=..., parameters={"binary_data_size": 64}), "at most the 0 bytes that follow"),
        (changed(data=..., parameters={"binary_data_size": -1}), "binary_data_size: found -1"),
        (GOOD | {"outputs": [{"name": "y"}]}, "output: found 'y'; expected one of probabilities"),
        (GOOD | {"outputs": [{"name": "label", "parameters": {"classification": 2}}]}, "classific"),
        (GOOD | {"parameters": {"binary_data_output": 1}}, "binary_data_output: found 1"),
        (GOOD | {"parameters": {"timeout": -1}}, "parameter timeout: found -1"),
    ],
)  # fmt: skip
def test_a_wrong_body_is_told_what_is_wrong(server, body, said):
    status, answer = infer(server, body)
    assert status == 400
    assert said in json.loads(answer)["error"]


def test_json_nan_is_refused_both_ways(server):
    text = json.dumps(GOOD).replace("0.5", "NaN").encode()
    assert infer(server, text)[0] == 400
    head = json.dumps(changed(data=..., parameters={"binary_data_size": 64})).encode()
    nan = np.full(16, np.nan, np.float32).tobytes()
    status, answer = infer(server, head + nan, Inference_Header_Content_Length=str(len(head)))
    assert status == 400
    assert "output probabilities: found NaN or infinity" in json.loads(answer)["error"]
    asked = json.loads(head) | {"parameters": {"binary_data_output": True}}
    head = json.dumps(asked).encode()
    status, answer = infer(server, head + nan, Inference_Header_Content_Length=str(len(head)))
    assert status == 200
    assert np.isnan(np.frombuffer(answer[-16:-4], np.float32)).all()


@pytest.mark.parametrize(
    ("headers", "body", "status", "said"),
    [
        ({"Inference_Header_Content_Length": "x"}, b"{}", 400, "found 'x'"),
        ({"Inference_Header_Content_Length": "-1"}, b"{}", 400, "found '-1'"),
        ({"Inference_Header_Content_Length": "9"}, b"{}", 400, "at most the body's 2 bytes"),
        ({"Inference_Header_Content_Length": "0"}, b"{}", 400, "found 2 bytes; expected 64 for"),
        ({"Content_Encoding": "br"}, b"{}", 415, "gzip or deflate"),
        ({"Content_Encoding": "gzip"}, b"{}", 400, "request body"),
        ({}, b" " * (2**20 + 1), 413, "at most 1048576"),
    ],
)
def test_headers_and_sizes(server, headers, body, status, said):
    found, answer = infer(server, body, **headers)
    assert found == status
    assert said in json.loads(answer)["error"]


def test_a_client_that_still_sends_gets_its_answer(server):
    """More than sockets buffer: a connection closed at once would be reset under the client."""
    status, answer = infer(server, b" " * (12 * 2**20))
    assert status == 413
    assert "at most 1048576" in json.loads(answer)["error"]


def test_a_bomb_of_zeros_is_not_unpacked(server):
    import zlib

    bomb = zlib.compress(b" " * 2**26, 9)
    assert len(bomb) < 2**20
    assert infer(server, bomb, Content_Encoding="deflate")[0] == 413


def test_chunked_bodies_are_held_to_the_limit(server):
    def parts():
        for _ in range(64):
            yield b" " * 2**15

    status, answer = post(server.http, "/v2/models/digits/infer", parts())
    assert status == 413
    assert "at most 1048576" in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/nothing", 404),
        ("GET", "/v2/models/digits/versions/0", 404),
        ("GET", "/v2/models/digits/versions/1e3/ready", 404),
        ("GET", "/v2/models/..%2F..%2Fetc/config", 404),
        ("POST", "/v2/repository/models/..%2F..%2Fetc/load", 404),
        ("POST", "/v2/repository/models/%2e%2e/load", 404),
        ("POST", "/v2/models/digits", 404),
        ("GET", "/v2/models/digits/infer", 404),
        ("DELETE", "/v2", 404),
        ("GET", "/v2/trace/setting", 404),
    ],
)
def test_paths(server, method, path, status):
    found, answer = post(server.http, path, b"", method=method)
    assert found == status
    assert json.loads(answer)["error"]


def values(draw):
    """Anything that JSON can say, small or odd."""
    kinds = (
        lambda: draw.choice([0, -1, 1, 2**31, 2**63, 2**64, 10**40, -(2**63)]),
        lambda: draw.choice([0.5, -0.0, 1e308, 1e-320]),
        lambda: draw.choice(["", "x", "FP32", "BYTES", "\0", "ä" * 50, "../x"]),
        lambda: draw.choice([None, True, False, [], {}, [[]], [[[1]]], {"a": []}]),
        lambda: [values(draw) for _ in range(draw.randrange(4))],
    )
    return draw.choice(kinds)()


def mutated(draw, tree):
    """A request with a few of its parts replaced, removed or doubled."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw.randint(1, 3)):
        here, parent, key = tree, None, None
        while isinstance(here, (dict, list)) and here and draw.random() < 0.8:
            parent = here
            key = draw.choice(list(here)) if isinstance(here, dict) else draw.randrange(len(here))
            here = here[key]
        if parent is None:
            continue
        act = draw.randrange(4)
        if act == 0:
            del parent[key]
        elif act == 1 and isinstance(parent, list):
            parent.append(here)
        elif act == 2 and isinstance(parent, dict):
            parent[draw.choice(["name", "shape", "data", "odd"])] = here
        else:
            parent[key] = values(draw)
    return tree


def http_request(draw):
    """Body and headers of one broken or odd request."""
    tree = mutated(draw, draw.choice([GOOD, GOOD | {"outputs": [{"name": "label"}], "id": "1"}]))
    body, headers = json.dumps(tree).encode(), {}
    if draw.random() < 0.4:
        size = draw.choice([len(body), len(body), draw.randrange(-3, 300)])
        headers["Inference-Header-Content-Length"] = str(size)
        body += draw.randbytes(draw.choice([0, 1, 63, 64, 65]))
    if draw.random() < 0.3:
        body = bytearray(body)
        for _ in range(draw.randint(1, 4)):
            body[draw.randrange(len(body))] = draw.randrange(256)
        body = bytes(body[: draw.randint(0, len(body))])
    return body, headers


def test_a_thousand_odd_bodies_over_http(server):
    draw = random.Random(1)
    requests = [http_request(draw) for _ in range(1000)]

    def send(part):
        connection = http.client.HTTPConnection(server.http, timeout=60)
        found = []
        for body, headers in part:
            connection.request("POST", "/v2/models/digits/infer", body, headers)
            response = connection.getresponse()
            found.append((response.status, response.read()))
        connection.close()
        return found

    before = psutil.Process().memory_info().rss
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = [a for part in pool.map(send, (requests[i::4] for i in range(4))) for a in part]
    assert {status for status, _ in answers} <= {200, 400, 413}
    assert sum(status == 400 for status, _ in answers) > 500
    for status, answer in answers:
        assert status == 200 or json.loads(answer)["error"]
    after_a_thousand(server, before)


def grpc_request(draw):
    """Bytes of one broken or odd request."""
    parameter = MESSAGES["InferParameter"]
    odd = draw.random
    count, extra = draw.choice([1] * 8 + [0, 2]), draw.choice([0] * 8 + [-1, 1])
    request = MESSAGES["ModelInferRequest"](
        model_name=draw.choice(["digits"] * 9 + ["", "../x"]),
        model_version=draw.choice([""] * 9 + ["1", "0", "x", "9" * 40]),
        inputs=[
            {
                "name": draw.choice(["x"] * 9 + ["y", ""]),
                "datatype": draw.choice(["FP32"] * 9 + ["INT32", "BYTES", ""]),
                "shape": draw.choice([[1, 16]] * 9 + [[-1, 16], [2**62, 16], [0, 16], [16], []]),
            }
            for _ in range(count)
        ],
        raw_input_contents=[
            draw.randbytes(draw.choice([64] * 9 + [0, 63, 128])) for _ in range(count + extra)
        ],
    )
    if odd() < 0.3 and request.inputs:
        field = draw.choice(["fp32_contents", "int_contents", "uint64_contents"])
        getattr(request.inputs[0].contents, field).extend([1] * draw.choice([16, 15, 0]))
        if odd() < 0.7:
            del request.raw_input_contents[:]
    if odd() < 0.2:
        request.parameters["odd"].CopyFrom(parameter(int64_param=draw.randrange(3)))
    if odd() < 0.2:
        request.outputs.add(name=draw.choice(["label", "nothing"]))
    data = bytearray(request.SerializeToString())
    if odd() < 0.4 and data:
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        data = data[: draw.randint(0, len(data))]
    return bytes(data)


@pytest.mark.slow
def test_a_thousand_odd_messages_over_grpc(server):
    draw = random.Random(2)
    before = psutil.Process().memory_info().rss
    counts = {}
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for _ in range(20):
            batch = [call.future(grpc_request(draw), timeout=60) for _ in range(50)]
            for future in batch:
                code = future.code()
                counts[code] = counts.get(code, 0) + 1
    assert set(counts) - {grpc.StatusCode.OK} <= REFUSED, counts
    assert counts[grpc.StatusCode.OK] > 20
    assert counts[grpc.StatusCode.INVALID_ARGUMENT] > 400
    after_a_thousand(server, before)


def test_a_grpc_message_over_the_limit_is_refused(server):
    request = MESSAGES["ModelInferRequest"](raw_input_contents=[bytes(2**20 + 2**17)])
    with grpc.insecure_channel(server.grpc) as channel:
        future = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(request.SerializeToString())
        assert future.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def after_a_thousand(server, before):
    """The server answers, holds no bodies, and the process has not grown much."""
    status, answer = infer(server, GOOD)
    assert status == 200
    assert len(json.loads(answer)["outputs"]) == 2
    assert server.predict.memory.held == 0
    assert all(version.queue.waiting == 0 for version in server.predict.repository.serving())
    assert psutil.Process().memory_info().rss - before < 200 * 2**20


def test_a_broken_connection_is_let_go(server):
    import socket

    host, port = server.http.split(":")
    for text in (b"POST /v2/models/digits/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
                 b"\x16\x03\x01" + struct.pack(">H", 512), b"GET / HTTP/9.9\r\n\r\n"):  # fmt: skip
        with socket.create_connection((host, int(port)), 10) as raw:
            raw.sendall(text)
    assert infer(server, GOOD)[0] == 200
    assert server.predict.memory.held == 0
