"""Decoding of large requests in child processes: JSON, compressed bodies, long lists of numbers.

Python decodes while it holds the interpreter's lock, so tens of megabytes of JSON in any thread of
the server would hold up every other client, and lists of numbers take many times the memory of the
array they become. A child decodes instead, within a limit of memory, and hands back arrays; one
that does not end is killed. Bodies and arrays go between the processes as files in memory, so the
server copies none of them. Requests of few bytes, and binary tensors, are decoded where they are.
"""

import asyncio
import contextlib
import math
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import msgspec
import numpy as np

from ziggurat.core.json_types import JsonObject
from ziggurat.serve import turns
from ziggurat.serve.errors import RequestError, TooLarge
from ziggurat.serve.memory import Reservation
from ziggurat.serve.predict import body as http_body
from ziggurat.serve.predict import wire
from ziggurat.serve.predict.infer import Decoded
from ziggurat.serve.predict.memory_file import MemoryFile
from ziggurat.serve.predict.signature import DATATYPES, Tensor

INLINE = 2**18
"""Largest JSON or list of numbers that is decoded on the event loop (bytes): a few milliseconds."""
SECONDS = 60.0
"""How long decoding one request may take in a child."""
_LENGTH = struct.Struct("<QQ")
"""Bytes of the JSON that follows, and of the file that comes with it."""
_ROOM, _NO_ROOM = b"+", b"-"
"""Whether a child is to hand over the arrays that it told of."""
_LEAST = 2**24
_TIMES = 6
"""Times the largest body that a child may take: the body, its text if it was compressed, and the
arrays: at most four times the text where every number has one digit and eight bytes."""
_NICE = 19
"""Below the server and the gRPC front. It means nothing between sessions where Linux groups the
processes of a session (``sched_autogroup_enabled``), so children are in the server's session."""


class Job(msgspec.Struct):
    """Description of a request for a child process; the body comes as a file."""

    kind: str
    """``http`` or ``grpc``."""
    inputs: list[tuple[str, str, list[int | str]]]
    encoding: str = ""
    json_size: int | None = None
    largest: int = 0


class Done(msgspec.Struct):
    """Answer of a child process; the arrays' bytes come as a file."""

    id: str = ""
    outputs: list[tuple[str, JsonObject]] = []
    parameters: JsonObject = {}
    arrays: list[tuple[str, str, list[int]]] = []
    error: str = ""
    status: int = 0
    param: str | None = None


class DecodeError(RequestError):
    """Error that a child process found in a request, with its status."""

    def __init__(self, text: str, status: int, param: str | None):
        super().__init__(text, param=param)
        self.status = status


class DecodingFailed(RequestError):
    """Error: a decoding child ended without an answer; the request was too much for it."""

    status = 413


def job(kind: str, wanted: Mapping[str, Tensor], **more: Any) -> Job:
    """Description of a request to a model with these inputs, for a child process."""
    return Job(kind, [(t.name, t.datatype, list(t.shape)) for t in wanted.values()], **more)


class DecoderPool:
    """Pool of child processes that decode large requests, started with the first one.

    Args:
        largest: bytes of the largest body.
        memory: bytes of all requests under way; half of it may go to children.
    """

    def __init__(self, largest: int, memory: int):
        self._limit = _TIMES * largest + _LEAST
        children = max(1, min(os.cpu_count() or 1, 4, memory // 2 // self._limit))
        self.bytes = children * self._limit
        """Most bytes that the child processes may take."""
        self._pool = ThreadPoolExecutor(children, "decode")
        self._idle: list[_Child] = []
        self._closed = False

    def close(self) -> None:
        """End the child processes."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for child in self._idle:
            child.end()

    async def run(self, asked: Job, body: MemoryFile, held: Reservation) -> Decoded:
        """Decode a request.

        Args:
            asked: how.
            body: its bytes.
            held: is charged for the arrays.

        Raises:
            RequestError: the request is wrong, or too much to decode.
        """
        loop = asyncio.get_running_loop()
        done, view = await loop.run_in_executor(self._pool, self._on_child, asked, body, held)
        inputs, at = {}, 0
        for name, kind, shape in done.arrays:
            size = DATATYPES[kind].itemsize * math.prod(shape)
            inputs[name] = np.frombuffer(view[at : at + size], DATATYPES[kind]).reshape(shape)
            at += size
        return Decoded(done.id, inputs, done.outputs, done.parameters)

    def _on_child(self, asked: Job, body: MemoryFile, held: Reservation) -> tuple[Done, memoryview]:
        child = self._idle.pop() if self._idle else self._start()
        timer = _Killer(child.process, SECONDS)
        try:
            with timer:
                done, view = child.exchange(asked, body, held)
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            late = f"over {SECONDS:.0f} s of work"
            raise DecodingFailed(
                "request body",
                found=late if timer.late else "more than can be decoded",
                expected="less",
                fix="send numbers as binary data",
            ) from error
        except RequestError:
            raise
        except BaseException:
            child.end()
            raise
        finally:
            if child.process.poll() is None and not self._closed:
                self._idle.append(child)
            else:
                child.end()
        if done.error:
            raise DecodeError(done.error, done.status, done.param)
        return done, view

    def _start(self) -> "_Child":
        here, there = socket.socketpair()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with there:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self._limit), str(there.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[there.fileno()],
                env=environment,
                process_group=0,  # Ctrl-C at the server is not for it; see _NICE
            )
        turns.raise_nice(process.pid, _NICE)
        return _Child(process, here)


class _Child:
    """A child process and the socket to it."""

    def __init__(self, process: subprocess.Popen[bytes], end: socket.socket):
        self.process, self._socket = process, end

    def exchange(self, asked: Job, body: MemoryFile, held: Reservation) -> tuple[Done, memoryview]:
        """Hand over a request; blocks until it is decoded."""
        _send(self._socket, msgspec.json.encode(asked), body)
        text, size, _ = _receive(self._socket)
        done = msgspec.json.decode(text, type=Done)
        if not size:
            return done, memoryview(b"")
        try:
            held.add(size, body=False)
        except RequestError:
            self._socket.sendall(_NO_ROOM)
            raise
        self._socket.sendall(_ROOM)
        _, _, arrays = _receive(self._socket)
        if arrays is None:
            raise EOFError
        return done, arrays.view()

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self._socket.close()
        self.process.wait()


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


def _send(end: socket.socket, text: bytes, file: MemoryFile | None, size: int = 0) -> None:
    """Send JSON, and a file or the size of what will be one."""
    data = _LENGTH.pack(len(text), size if file is None else file.size) + text
    sent = 0
    if file is not None:
        sent = socket.send_fds(end, [data], [file.descriptor])
    end.sendall(data[sent:])


def _receive(end: socket.socket) -> tuple[bytes, int, MemoryFile | None]:
    """JSON, the size that came with it, and the file if there is one.

    Raises:
        EOFError: the other end has gone.
    """
    data, descriptors, _, _ = socket.recv_fds(end, _LENGTH.size, 1)
    while 0 < len(data) < _LENGTH.size:
        data += end.recv(_LENGTH.size - len(data)) or _gone()
    if not data:
        _gone()
    length, size = _LENGTH.unpack(data)
    file = MemoryFile(descriptors[0], size) if descriptors else None
    text = bytearray()
    while len(text) < length:
        text += end.recv(length - len(text)) or _gone()
    return bytes(text), size, file


def _gone() -> NoReturn:
    raise EOFError


def decode(asked: Job, data: memoryview) -> Decoded:
    """Decode a request in this process, as a child does.

    Raises:
        RequestError: the request is wrong.
    """
    wanted = {
        name: Tensor(name=name, datatype=kind, shape=tuple(shape))
        for name, kind, shape in asked.inputs
    }
    if asked.kind == "http":
        if asked.encoding:
            data = memoryview(http_body.inflate(data, asked.encoding, asked.largest))
        return http_body.decode(data, asked.json_size, wanted)
    from ziggurat.serve.predict import grpc_body

    head, raw = wire.part(data)
    return grpc_body.decode(b"".join(head), raw, wanted)


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


def main(limit: int, end: socket.socket) -> None:
    """Run a decoding process: decode requests from a socket until it closes, within ``limit`` bytes
    of memory beside those in use at the start."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limits on this system
        import resource

        with open("/proc/self/statm") as sizes:
            limit += int(sizes.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while True:
        try:
            text, _, body = _receive(end)
        except EOFError:
            return
        assert body is not None
        asked = msgspec.json.decode(text, type=Job)
        done, arrays = _answer(asked, body.view())
        body.close()
        size = sum(len(array) for array in arrays)
        _send(end, msgspec.json.encode(done), None, size)
        if size and end.recv(1) == _ROOM:
            file = MemoryFile.of(arrays)
            arrays.clear()
            _send(end, b"", file)
            file.close()
        del arrays


if __name__ == "__main__":
    main(int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])))
