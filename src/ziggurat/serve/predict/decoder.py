"""Decoding of large requests in child processes: JSON, compressed bodies, long lists of numbers.

Python decodes while it holds the interpreter's lock, so tens of megabytes of JSON in any thread of
the server would hold up every other client, and lists of numbers take many times the memory of the
array they become. A child decodes instead, within a limit of memory, and hands back arrays; one
that does not end is killed. Requests of few bytes, and binary tensors, are decoded where they are.
"""

import asyncio
import contextlib
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np

from ziggurat.serve.errors import RequestError, TooLarge
from ziggurat.serve.predict import body as http_body
from ziggurat.serve.predict.infer import Decoded
from ziggurat.serve.predict.memory import Held
from ziggurat.serve.predict.signature import DATATYPES, Tensor

INLINE = 2**18
"""Largest JSON or list of numbers that is decoded on the event loop (bytes): a few milliseconds."""
SECONDS = 60.0
"""How long decoding one request may take in a child."""
_LENGTH = struct.Struct("<QQ")
_LEAST = 2**24
_TIMES = 8
"""Times the largest body that a child may take: the body, copies of its text, and the arrays."""


class Job(msgspec.Struct):
    """What a child is told of a request; its bytes follow."""

    kind: str
    """``http`` or ``grpc``."""
    inputs: list[tuple[str, str, list[int | str]]]
    encoding: str = ""
    json_size: int | None = None
    largest: int = 0
    raw: list[int] = []
    """Sizes of the raw contents that follow a gRPC message's head."""


class Done(msgspec.Struct):
    """What a child answers; the arrays' bytes follow."""

    id: str = ""
    outputs: list[tuple[str, dict[str, Any]]] = []
    parameters: dict[str, Any] = {}
    arrays: list[tuple[str, str, list[int]]] = []
    error: str = ""
    status: int = 0
    param: str | None = None


class Refused(RequestError):
    """What a child found wrong, with the status that it gave."""

    def __init__(self, text: str, status: int, param: str | None):
        super().__init__(text, param=param)
        self.status = status


class DecodingFailed(RequestError):
    """A child ended without an answer; the request was too much for it."""

    status = 413


def job(kind: str, wanted: Mapping[str, Tensor], **more: Any) -> Job:
    """What to tell a child of a request to a model with these inputs."""
    return Job(kind, [(t.name, t.datatype, list(t.shape)) for t in wanted.values()], **more)


class Decoder:
    """Children that decode, started when the first large request comes.

    Args:
        largest: bytes of the largest body.
        memory: bytes of all requests under way; half of it may go to children.
    """

    def __init__(self, largest: int, memory: int):
        self._limit = _TIMES * largest + _LEAST
        children = max(1, min(os.cpu_count() or 1, 4, memory // 2 // self._limit))
        self.bytes = children * self._limit
        """What the children may take."""
        self._pool = ThreadPoolExecutor(children, "decode")
        self._idle: list[subprocess.Popen[bytes]] = []
        self._closed = False

    def close(self) -> None:
        """End the children."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for child in self._idle:
            child.kill()
            child.wait()

    async def run(self, asked: Job, data: Any, held: Held) -> Decoded:
        """Decode a request.

        Args:
            asked: what it is.
            data: its bytes, one array of them or several that follow one another.
            held: is charged for the arrays.

        Raises:
            RequestError: the request is wrong, or too much to decode.
        """
        loop = asyncio.get_running_loop()
        done, arrays = await loop.run_in_executor(self._pool, self._on_child, asked, data, held)
        inputs = {}
        for (name, kind, shape), content in zip(done.arrays, arrays, strict=True):
            inputs[name] = np.asarray(content).view(DATATYPES[kind]).reshape(shape)
        return Decoded(done.id, inputs, done.outputs, done.parameters)

    def _on_child(self, asked: Job, data: Any, held: Held) -> tuple[Done, list[memoryview]]:
        child = self._idle.pop() if self._idle else self._start()
        timer = _Killer(child, SECONDS)
        try:
            with timer:
                done, arrays = self._exchange(child, asked, data, held)
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            late = f"over {SECONDS:.0f} s of work"
            raise DecodingFailed(
                "request body",
                found=late if timer.late else "more than can be decoded",
                expected="less",
                fix="send numbers as binary data",
            ) from error
        except BaseException:
            _end(child)
            raise
        finally:
            if child.poll() is None and not self._closed:
                self._idle.append(child)
            else:
                _end(child)
        if done.error:
            raise Refused(done.error, done.status, done.param)
        return done, arrays

    def _exchange(
        self, child: subprocess.Popen[bytes], asked: Job, data: Any, held: Held
    ) -> tuple[Done, list[memoryview]]:
        assert child.stdin is not None
        assert child.stdout is not None
        head, parts = msgspec.json.encode(asked), data if isinstance(data, list) else [data]
        child.stdin.write(_LENGTH.pack(len(head), sum(map(len, parts))) + head)
        for part in parts:
            child.stdin.write(part)
        child.stdin.flush()
        size, total = _LENGTH.unpack(_read(child.stdout, _LENGTH.size))
        done = msgspec.json.decode(_read(child.stdout, size), type=Done)
        held.add(total, body=False)
        arrays = []
        for _, kind, shape in done.arrays:
            count = DATATYPES[kind].itemsize * int(np.prod(shape, dtype=np.int64))
            arrays.append(_read(child.stdout, count))
        return done, arrays

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(self._limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C at the server is not for it
        )


class _Killer:
    """Kills a child that is busy for too long; whoever reads from it then sees its end."""

    def __init__(self, child: subprocess.Popen[bytes], seconds: float):
        import threading

        self.late, self._child = False, child
        self._timer = threading.Timer(seconds, self._kill)
        self._timer.daemon = True

    def _kill(self) -> None:
        self.late = True
        self._child.kill()

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for pipe in (child.stdin, child.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    child.wait()


def _read(stream: Any, size: int) -> memoryview:
    """Exactly so many bytes, into memory of their own.

    Raises:
        EOFError: the other end has gone.
    """
    # Not filled with zeros, which would take the interpreter's lock.
    view, at = np.empty(size, np.uint8).data, 0
    while at < size:
        count = stream.readinto(view[at:])
        if not count:
            raise EOFError
        at += count
    return view


def decode(asked: Job, data: Any) -> Decoded:
    """Decode a request here and now, as a child does.

    Raises:
        RequestError: the request is wrong.
    """
    wanted = {
        name: Tensor(name=name, datatype=kind, shape=tuple(shape))
        for name, kind, shape in asked.inputs
    }
    if asked.kind == "http":
        if asked.encoding:
            data = http_body.inflate(data, asked.encoding, asked.largest)
        return http_body.decode(data, asked.json_size, wanted)
    from ziggurat.serve.predict import grpc_body

    view, raw = memoryview(data), []
    at = len(view) - sum(asked.raw)
    head = bytes(view[:at])
    for size in asked.raw:
        raw.append(view[at : at + size])
        at += size
    return grpc_body.decode(head, raw, wanted)


def _answer(asked: Job, data: memoryview) -> tuple[Done, list[memoryview]]:
    from ziggurat.serve.predict import tensors

    try:
        found = decode(asked, data)
    except RequestError as error:
        return Done(error=str(error), status=error.status, param=error.param), []
    except MemoryError:
        error = TooLarge("request body", found="more than can be decoded", expected="less",
                         fix="send numbers as binary data")  # fmt: skip
        return Done(error=str(error), status=error.status), []
    names = {name: kind for name, kind, _ in asked.inputs}
    arrays = [(n, names[n], list(a.shape)) for n, a in found.inputs.items()]
    done = Done(found.id, found.outputs, found.parameters, arrays)
    return done, [tensors.to_bytes(array) for array in found.inputs.values()]


def main(limit: int) -> None:
    """A child: decode what comes until nothing does, in so many bytes beside what it has now."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limits on this system
        import resource

        with open("/proc/self/statm") as sizes:
            limit += int(sizes.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        os.nice(5)
    given, answers = os.fdopen(0, "rb", 0), os.fdopen(1, "wb", 0)
    while True:
        try:
            head, size = _LENGTH.unpack(_read(given, _LENGTH.size))
        except EOFError:
            return
        asked = msgspec.json.decode(_read(given, head), type=Job)
        done, arrays = _answer(asked, _read(given, size))
        text, total = msgspec.json.encode(done), sum(len(array) for array in arrays)
        for part in (_LENGTH.pack(len(text), total), text, *arrays):
            view = memoryview(part)
            while len(view):
                view = view[answers.write(view) or 0 :]


if __name__ == "__main__":
    main(int(sys.argv[1]))
