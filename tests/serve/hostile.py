"""Clients of a server that mean harm or do not care: functions of where it listens.

Each returns what it got: HTTP statuses, names of gRPC codes, or ``cut`` where the server closed.
They are bounded in time and memory, and talk to the loopback interface only. Those of bundles are
here, those of a language model in :mod:`tests.serve.hostile_llm`; ``tests/serve/hostile_load.py``
runs them all at once and measures.
"""

import contextlib
import dataclasses
import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from tests.serve import hostile_llm

from ziggurat.serve.predict.messages import MESSAGES, SERVICE

CUT = "cut"
HEAD = b"POST /v2/models/row/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
MODEL, WIDTH = "row", 16
"""A model ``x:FP32[b,16] -> y`` that answers twice its input."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A server: where it listens and how much clients shall send."""

    http: str
    grpc: str
    size: int = 60 * 2**20
    """Bytes of a large request; the server's limit is a little above."""
    count: int = 100
    """Connections or streams of clients that hold many."""
    seconds: float = 25.0
    """How long slow clients hold on."""
    hostile_model: str = ""
    """A model of the repository whose load must fail."""


def post(target: Target, path: str, body: bytes, timeout: float = 120, **headers: str) -> int | str:
    """Status of a request."""
    connection = http.client.HTTPConnection(target.http, timeout=timeout)
    with contextlib.closing(connection):
        try:
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request("POST", path, body, named)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            return CUT


def infer(target: Target, body: bytes, **headers: str) -> int | str:
    """Status of an inference."""
    return post(target, f"/v2/models/{MODEL}/infer", body, **headers)


def request(data: str = "", rows: int = 1) -> bytes:
    """The JSON of an inference; ``data`` instead of its numbers."""
    numbers = data or json.dumps([0.5] * WIDTH * rows)
    entry = f'{{"name":"x","datatype":"FP32","shape":[{rows},{WIDTH}],"data":{numbers}}}'
    return f'{{"inputs":[{entry}]}}'.encode()


def large_json(target: Target) -> list[int | str]:
    """Many numbers, empty lists, empty objects, deep nesting: JSON of the largest size."""
    size = target.size
    return [
        infer(target, request("[" + "0," * (size // 2) + "0]")),
        infer(target, request("[" + "[]," * (size // 3) + "[]]")),
        infer(target, b'{"inputs":[],"parameters":{"a":[' + b"{}," * (size // 3) + b"{}]}}"),
        infer(target, request("[" * (size // 8) + "]" * (size // 8))),
        infer(target, b" " * (2 * size)),
    ]


def bombs(target: Target) -> list[int | str]:
    """Compressed bodies: of the largest size, of much more, cut off, and no such thing."""
    plain = gzip.compress(b" " * target.size)
    huge = gzip.compress(bytes(target.size)) * 40
    bodies = [plain, huge, plain[:-9], b"nothing", gzip.compress(request())]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(infer, target, body, content_encoding="gzip") for body in bodies]
        return [done.result() for done in jobs]


def slow_headers(target: Target) -> list[int | str]:
    """Connections that send a header and never its end."""
    return _held(target, b"POST /v2/models/row/infer HTTP/1.1\r\nhost: x\r\nx-a: ")


def slow_bodies(target: Target) -> list[int | str]:
    """Connections that promise a large body and send a part of it."""
    head = HEAD % target.size
    return _held(target, head + b"x" * 2**16)


def silent(target: Target) -> list[int | str]:
    """Connections that send nothing."""
    return _held(target, b"")


def _held(target: Target, start: bytes) -> list[int | str]:
    """What the server does with connections that begin so and go no further."""
    host, port = target.http.split(":")
    held = []
    for _ in range(target.count):
        with contextlib.suppress(OSError):
            connection = socket.create_connection((host, int(port)), 10)
            connection.sendall(start)
            held.append(connection)
    end, found = time.monotonic() + target.seconds, []
    for connection in held:
        connection.settimeout(max(0.01, end - time.monotonic()))
        try:
            answer = connection.recv(64)
            found.append(int(answer.split()[1]) if answer else CUT)
        except TimeoutError:
            found.append("held")
        except OSError:
            found.append(CUT)
        connection.close()
    return found


def leavers(target: Target) -> list[int | str]:
    """Clients that ask and leave at once."""
    host, port = target.http.split(":")
    body = request()
    head = HEAD % len(body)
    for _ in range(target.count):
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 10) as raw:
            raw.sendall(head + body)
    return []


def large_messages(target: Target) -> list[int | str]:
    """Six large gRPC messages at once: three of raw bytes, three of lists of numbers."""
    kind, numbers = MESSAGES["ModelInferRequest"], np.zeros(target.size // 4, np.float32)
    entry = {"name": "x", "datatype": "FP32", "shape": [1, WIDTH]}
    raw = kind(model_name=MODEL, inputs=[entry], raw_input_contents=[numbers.tobytes()])
    listed = kind(model_name=MODEL, inputs=[entry])
    listed.inputs[0].contents.fp32_contents.extend(numbers)
    messages = [raw.SerializeToString()] * 3 + [listed.SerializeToString()] * 3
    del raw, listed, numbers
    with _channel(target) as channel, ThreadPoolExecutor(6) as pool:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        return list(pool.map(lambda data: call.future(data, timeout=120).code().name, messages))


def idle_streams(target: Target) -> list[int | str]:
    """Streams that are opened and never used, on several connections."""
    stop, found = threading.Event(), []

    def nothing():
        stop.wait(target.seconds)
        yield from ()

    with contextlib.ExitStack() as closing:
        calls = []
        for _ in range(4):
            channel = closing.enter_context(_channel(target))
            stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
            calls += [stream(nothing()) for _ in range(target.count // 4)]
        stop.wait(min(5.0, target.seconds))
        found = ["open" if call.is_active() else call.code().name for call in calls]
        stop.set()
        for call in calls:
            call.cancel()
    return found


def hostile_load(target: Target) -> list[int | str]:
    """Loading of a bundle whose program calls what it may not."""
    if not target.hostile_model:
        return []
    return [post(target, f"/v2/repository/models/{target.hostile_model}/load", b"{}")]


def _channel(target: Target) -> grpc.Channel:
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(target.grpc, options=options)


def of_llm(client: Callable[[str], list[int]]) -> Callable[[Target], list[int | str]]:
    """A client of the language model, of which a connection closed without an answer is a cut."""
    return lambda target: [status or CUT for status in client(target.http)]


Clients = dict[str, tuple[Callable[[Target], list[int | str]], frozenset[int | str]]]
BUNDLE_CLIENTS: Clients = {
    "large JSON": (large_json, frozenset({400, 413, 429, CUT})),
    "compressed bodies": (bombs, frozenset({200, 400, 413, 429, CUT})),
    "slow headers": (slow_headers, frozenset({408, CUT})),
    "slow bodies": (slow_bodies, frozenset({408, 429, CUT})),
    "silent connections": (silent, frozenset({CUT})),
    "clients that leave": (leavers, frozenset()),
    "large gRPC messages": (
        large_messages,
        frozenset({"INVALID_ARGUMENT", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}),
    ),
    "idle gRPC streams": (
        idle_streams,
        frozenset({"open", "OK", "UNAVAILABLE", "UNAUTHENTICATED"}),
    ),
    "hostile bundle": (hostile_load, frozenset({400})),
}
"""Clients of bundles, with what the server may answer them."""
CLIENTS: Clients = BUNDLE_CLIENTS | {
    f"LLM {name}": (of_llm(client), frozenset({200, 400, 404, 408, 413, 429, CUT}))
    for name, client in hostile_llm.CLIENTS.items()
}
"""Every client with what the server may answer it."""
