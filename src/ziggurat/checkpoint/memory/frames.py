"""Frames between a trainer and the keepers of its snapshots, and the memory they share.

A frame is a fixed head (magic, bytes of the message, bytes of the payload), a JSON message and the
payload. Over a unix socket open files travel with the head. Nothing here imports JAX: the keeper
stays small.
"""

import json
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import xxhash

from ziggurat.core.json_types import JsonObject

_HEAD = struct.Struct(">4sIQ")
_MAGIC = b"zig1"
_CHUNK = 1 << 22
_MESSAGE_LIMIT = 1 << 28
BLOCK = 1 << 25
"""Bytes that share one digest."""


class ConnectionClosed(ConnectionError):
    """Error: the other end closed the connection between two frames."""


def send(
    connection: socket.socket,
    message: JsonObject,
    payload: memoryview | None = None,
    descriptors: Sequence[int] = (),
) -> None:
    """Send one frame; ``descriptors`` are open files, for unix sockets only."""
    text = json.dumps(message, separators=(",", ":")).encode()
    head = _HEAD.pack(_MAGIC, len(text), 0 if payload is None else payload.nbytes)
    if descriptors:
        sent = socket.send_fds(connection, [head], list(descriptors))
        head = head[sent:]
    connection.sendall(head + text)
    if payload is not None:
        for start in range(0, payload.nbytes, _CHUNK):  # the time limit holds for each chunk
            connection.sendall(payload[start : start + _CHUNK])


def receive(
    connection: socket.socket, limit: int = _MESSAGE_LIMIT
) -> tuple[JsonObject, int, list[int]]:
    """Receive the next message, the number of payload bytes that follow it, and the open files sent
    with it.

    Raises:
        Closed: the other end closed the connection instead.
        ConnectionError: it closed in the middle, or does not speak this protocol.
    """
    descriptors: list[int] = []
    try:
        head = b""
        while len(head) < _HEAD.size:
            if connection.family == socket.AF_UNIX:
                piece, came, _, _ = socket.recv_fds(connection, _HEAD.size - len(head), 4)
                descriptors += came
            else:
                piece = connection.recv(_HEAD.size - len(head))
            if not piece:
                raise ConnectionClosed("the other end closed the connection")
            head += piece
        magic, size, payload = _HEAD.unpack(head)
        if magic != _MAGIC or size > limit:
            raise ConnectionError("the other end does not speak this protocol")
        text = bytearray(size)
        receive_into(connection, memoryview(text))
        message = json.loads(text)
        if not isinstance(message, dict):
            raise ConnectionError("a frame without a message")
    except ValueError as error:
        close_all(descriptors)
        raise ConnectionError("a frame that cannot be read") from error
    except BaseException:
        close_all(descriptors)
        raise
    return message, payload, descriptors


def receive_into(connection: socket.socket, view: memoryview) -> None:
    """Fill ``view`` from the connection."""
    at = 0
    while at < view.nbytes:
        count = connection.recv_into(view[at : at + _CHUNK])
        if not count:
            raise ConnectionError("the other end closed the connection in the middle of a frame")
        at += count


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def new_memory(size: int) -> int:
    """Create a file of ``size`` bytes in memory, which is freed when nobody has it open.

    It has no name anywhere: when the last process that has it open ends, however it ends, the
    kernel frees it. The limit of ``/dev/shm`` does not hold for it.

    Raises:
        MemoryError: this machine, or this process's share of it, has not enough free memory.
    """
    free = free_memory()
    if size > free:
        raise MemoryError(f"{size:,} bytes wanted, {free:,} free")
    descriptor = os.memfd_create("ziggurat-snapshot", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, 0, max(size, 1))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def map_memory(descriptor: int) -> memoryview:
    """Map the content of :func:`new_memory`, shared with every process that has it open."""
    size = os.fstat(descriptor).st_size
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
    return memoryview(mmap.mmap(descriptor, size, flags=flags))


def free_memory() -> int:
    """Bytes that can still be used here, by the machine and by the control group."""
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        with open("/proc/self/cgroup", encoding="ascii") as file:
            group = next(line for line in file if line.startswith("0::"))[3:].strip()
        found = []
        for name in ("memory.max", "memory.current"):
            with open(f"/sys/fs/cgroup{group}/{name}", encoding="ascii") as file:
                found.append(int(file.read()))
        return min(free, max(0, found[0] - found[1]))
    except (OSError, ValueError, StopIteration):
        return free  # no control group, or none with a limit


def block_digests(content: bytes | bytearray | memoryview) -> list[str]:
    """XXH3-128 of each block of ``content``, in threads.

    >>> block_digests(b"")
    []
    >>> len(block_digests(bytes(BLOCK + 1)))
    2
    """
    view = memoryview(content).cast("B")
    blocks = [view[start : start + BLOCK] for start in range(0, view.nbytes, BLOCK)]
    if len(blocks) < 2:
        return [xxhash.xxh3_128_hexdigest(block) for block in blocks]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(xxhash.xxh3_128_hexdigest, blocks))
