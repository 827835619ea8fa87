"""The keeper: a small process that holds the snapshots of a trainer, and outlives it.

The trainer starts it as ``python -m ziggurat.checkpoint.memory.keeper``, in a session of its own.
It holds memory files (see :func:`ziggurat.checkpoint.memory.frames.new_memory`) and does little
else: two slots for each process whose part it keeps. The trainer fills a slot through a shared
mapping and commits it with one message. A slot begun and not committed does not count, so a
trainer killed in the middle of a copy leaves the snapshot before it. The keeper ends, and its
memory is freed, when told so or ``linger_s`` after the last trainer has gone; the kernel tells it
of a trainer's death.

It is found by the name of a unix socket in a private directory of the user. The memory has no name:
when the keeper itself is killed nothing is left but a socket, which the next keeper sweeps.
"""

import argparse
import contextlib
import hmac
import os
import secrets
import select
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from ziggurat.checkpoint.memory import frames, rendezvous
from ziggurat.core.json_types import JsonObject

STARTUP_S = 60.0
"""How long a keeper waits for its first trainer."""
TAKEN = 75
"""Exit code when another keeper has the name."""
PATIENCE_S = 60.0
"""Longest silence in the middle of a transfer."""


class Slot:
    """A memory file, and the snapshot in it once that is committed."""

    def __init__(self, number: int, size: int):
        self.number = number
        self.capacity = size
        self.descriptor = frames.new_memory(size)
        self.header: JsonObject | None = None
        self.lent = False
        """Whether a trainer's arrays may lie in this memory: then nobody writes to it again."""

    @property
    def step(self) -> int:
        return -1 if self.header is None else self.header["step"]

    def close(self) -> None:
        os.close(self.descriptor)


class KeeperRefusal(Exception):
    """Error: the keeper cannot meet a request; its text is sent back."""


class Keeper:
    """Process that holds snapshots in shared memory and serves requests for them, one thread for
    each connection."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(32)
        self.ending = threading.Event()
        self.deadline: float | None = time.monotonic() + STARTUP_S
        self._guard = threading.RLock()
        self._slots: dict[int, list[Slot]] = {}
        self._numbers = 0
        self._identity: tuple[str, int] | None = None
        self._linger_s = STARTUP_S
        self._trainer: socket.socket | None = None
        self._port: tuple[str, int] | None = None

    def serve(self, connection: socket.socket, trusted: bool) -> None:
        """Answer one connection until it ends; over TCP the token comes first."""
        with connection, contextlib.suppress(OSError):
            connection.settimeout(PATIENCE_S)
            watched = _watch(connection) if trusted else None
            try:
                if not trusted:
                    said, payload, _ = frames.receive(connection, limit=1024)
                    if payload or not hmac.compare_digest(str(said.get("token")), self.token):
                        return
                while _next_frame(connection, watched):
                    message, payload, opened = frames.receive(connection)
                    frames.close_all(opened)
                    self._answer(connection, message, payload, trusted)
            finally:
                self._left(connection)
                if watched is not None:
                    os.close(watched)

    def _answer(
        self, connection: socket.socket, message: JsonObject, payload: int, trusted: bool
    ) -> None:
        kinds = {"list", "read", "put"} | (
            {"hello", "begin", "commit", "discard"} if trusted else set()
        )
        what = message.pop("do", "")
        if what == "finish" and trusted:
            self.ending.set()
            return
        try:
            if what not in kinds:
                raise KeeperRefusal(f"no such request: {what}")
            if what == "put":
                reply, opened, view = self._put(connection, payload, **message), [], None
            elif what == "hello":
                reply, opened, view = self._hello(connection, **message), [], None
            else:
                reply, opened, view = getattr(self, f"_{what}")(trusted, **message)
        except (ConnectionError, TimeoutError):
            raise
        except (KeeperRefusal, MemoryError, OSError, ValueError, KeyError, TypeError) as error:
            kind = "" if isinstance(error, KeeperRefusal) else f"{type(error).__name__}: "
            reply, opened, view = {"refused": f"{kind}{error}"}, [], None
        frames.send(connection, reply, view, opened)

    def _hello(
        self,
        connection: socket.socket,
        identity: str,
        count: int,
        linger_s: float,
        host: str | None = None,
    ) -> JsonObject:
        """A trainer starts here; snapshots of another run, or of more or fewer processes, go."""
        with self._guard:
            if self._trainer not in (None, connection):
                return {"busy": True}
            self._trainer, self.deadline, self._linger_s = connection, None, linger_s
            if self._identity != (identity, count):
                self._drop_all()
                self._identity = identity, count
            if host is not None and (self._port is None or self._port[0] != host):
                self._port = host, self._listen(host)
            port = None if self._port is None else self._port[1]
            answer = {"port": port, "token": self.token, "pid": os.getpid()}
            return {"parts": self._parts(), **answer}

    def _begin(
        self, trusted: bool, owner: int, size: int, step: int, keep: int | None = None
    ) -> tuple[JsonObject, list[int], None]:
        """A slot to write part ``owner`` of ``step`` into; the snapshot of step ``keep`` stays."""
        with self._guard:
            slot = self._free_slot(owner, size, step, keep)
            return {"slot": slot.number}, [slot.descriptor], None

    def _free_slot(self, owner: int, size: int, step: int, keep: int | None) -> Slot:
        slots = self._slots.setdefault(owner, [])
        for slot in slots:
            if slot.step >= step:  # of a course that the run has left
                slot.header = None
        usable = [slot for slot in slots if slot.step != keep or slot.header is None]
        if len(slots) == 2 or any(slot.header is None for slot in usable):
            chosen = min(usable, key=lambda slot: slot.step)
            chosen.header = None
            if size <= chosen.capacity <= 2 * size + frames.BLOCK and not chosen.lent:
                return chosen
            slots.remove(chosen)
            chosen.close()
        self._numbers += 1
        slots.append(Slot(self._numbers, size))
        return slots[-1]

    def _commit(
        self, trusted: bool, owner: int, slot: int, header: JsonObject
    ) -> tuple[JsonObject, list[int], None]:
        with self._guard:
            self._check(owner, header)
            found = [one for one in self._slots.get(owner, []) if one.number == slot]
            if not found:
                raise KeeperRefusal("this slot is gone")
            found[0].header = header
        return {}, [], None

    def _put(
        self,
        connection: socket.socket,
        payload: int,
        owner: int,
        header: JsonObject,
        keep: int | None = None,
    ) -> JsonObject:
        """Part ``owner``, sent by its trainer; committed if its digests are right."""
        try:
            with self._guard:
                self._check(owner, header)
                slot = self._free_slot(owner, payload, header["step"], keep)
            view = frames.map_memory(slot.descriptor)[:payload]
        except (KeeperRefusal, MemoryError, OSError) as error:
            _skip(connection, payload)
            raise KeeperRefusal(str(error)) from None
        frames.receive_into(connection, view)
        if payload != header["bytes"] or frames.block_digests(view) != header["blocks"]:
            raise KeeperRefusal("the part that came differs from its digests")
        return self._commit(False, owner, slot.number, header)[0]

    def _check(self, owner: int, header: JsonObject) -> None:
        of = header["identity"], header["count"]
        if of != self._identity or header["process"] != owner:
            raise KeeperRefusal("a snapshot of another run")

    def _list(self, trusted: bool) -> tuple[JsonObject, list[int], None]:
        with self._guard:
            return {"parts": self._parts()}, [], None

    def _read(
        self, trusted: bool, owner: int, step: int
    ) -> tuple[JsonObject, list[int], memoryview | None]:
        """A part: over the unix socket its memory, over TCP its bytes."""
        with self._guard:
            found = [
                slot for slot in self._slots.get(owner, []) if slot.header and slot.step == step
            ]
            if not found:
                raise KeeperRefusal(f"no part {owner} of step {step} here")
            header, descriptor = found[0].header or {}, found[0].descriptor
            if trusted:
                found[0].lent = True
                return {"header": header}, [descriptor], None
            return {"header": header}, [], frames.map_memory(descriptor)[: header["bytes"]]

    def _discard(self, trusted: bool, after: int) -> tuple[JsonObject, list[int], None]:
        with self._guard:
            for slot in (slot for slots in self._slots.values() for slot in slots):
                if slot.step > after:
                    slot.header = None
            return {"parts": self._parts()}, [], None

    def _parts(self) -> list[tuple[int, int]]:
        """(process, step) of all that is whole."""
        return sorted(
            (owner, slot.step)
            for owner, slots in self._slots.items()
            for slot in slots
            if slot.header
        )

    def _drop_all(self) -> None:
        for slots in self._slots.values():
            for slot in slots:
                slot.close()
        self._slots.clear()

    def _listen(self, host: str) -> int:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family)
        _start(accept, listener, self, False)
        return listener.getsockname()[1]

    def _left(self, connection: socket.socket) -> None:
        with self._guard:
            if self._trainer is connection:
                self._trainer = None
                self.deadline = time.monotonic() + self._linger_s


def accept(listener: socket.socket, keeper: Keeper, trusted: bool) -> None:
    """Accept connections until the process ends."""
    while True:
        connection, _ = listener.accept()
        if trusted and _credentials(connection)[1] != os.getuid():
            connection.close()
            continue
        _start(keeper.serve, connection, trusted)


def _start(function: Any, *arguments: Any) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


def _credentials(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of a unix socket."""
    size = struct.calcsize("3i")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return struct.unpack("3i", found)[:2]


def _watch(connection: socket.socket) -> int | None:
    """Something to wait on for the death of the process at the other end.

    Its socket may stay open longer than it lives: children that it forked have it too.
    """
    try:
        return os.pidfd_open(_credentials(connection)[0])
    except OSError:
        return None  # of another container; then the socket has to do


def _next_frame(connection: socket.socket, watched: int | None) -> bool:
    """Wait for something to read; false when the process at the other end died."""
    ready, _, _ = select.select([connection] + ([] if watched is None else [watched]), [], [])
    return connection in ready


def _skip(connection: socket.socket, payload: int) -> None:
    waste = memoryview(bytearray(1 << 20))
    while payload:
        size = min(payload, waste.nbytes)
        frames.receive_into(connection, waste[:size])
        payload -= size


def main() -> NoReturn:
    """Run a keeper process until it is to end."""
    parser = argparse.ArgumentParser(prog="ziggurat.checkpoint.memory.keeper", description=__doc__)
    parser.add_argument("directory", type=Path, help="where its socket goes")
    parser.add_argument("name", help="of the socket")
    given = parser.parse_args()
    lock = rendezvous.take_lock(given.directory / f"{given.name}.lock")
    if lock is None:
        sys.exit(TAKEN)
    rendezvous.sweep(given.directory)
    (given.directory / f"{given.name}.sock").unlink(missing_ok=True)
    keeper = Keeper()
    listener = socket.socket(socket.AF_UNIX)
    with rendezvous.short_address(given.directory, given.name) as address:
        listener.bind(address)
    listener.listen()
    if os.fork():
        os._exit(0)  # tells who started it that it answers, and leaves it to nobody's care
    _start(accept, listener, keeper, True)
    while not keeper.ending.wait(0.2):
        if keeper.deadline is not None and time.monotonic() > keeper.deadline:
            break
    rendezvous.remove(given.directory, given.name)
    os._exit(0)


if __name__ == "__main__":
    main()
