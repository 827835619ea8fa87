"""Where the snapshots of a run are kept: this process's keeper, and those of other processes.

Each process's part is also sent to the keeper of a neighbour: the next process, in their circle, on
another host; or simply the next one where all are on one host. Keepers are reached by TCP at the
address by which their host reaches the coordinator (loopback when all are on one host) and answer
only who knows their token. Addresses and tokens go through :meth:`ziggurat.mesh.Processes.gather`.
Content is not encrypted, as that between JAX processes is not: both need a network of their own.
"""

import contextlib
import dataclasses
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ziggurat.checkpoint.memory import frames, keeper, rendezvous
from ziggurat.core.errors import CheckpointError
from ziggurat.core.json_types import JsonObject

CONNECT_S = 20.0
"""How long a keeper may take to start or to answer."""


class KeptError(CheckpointError):
    """Error: a keeper cannot be reached, or refused a request."""


@dataclasses.dataclass(frozen=True)
class Address:
    """Network address of a process's keeper."""

    machine: str
    host: str | None
    """None where the other hosts have no way to it."""
    port: int | None = None
    token: str = ""

    @property
    def reachable(self) -> bool:
        return self.host is not None and self.port is not None


def neighbours(machines: Sequence[str]) -> list[int]:
    """For each process, the one whose keeper gets its part: the next in a circle on another
    machine.

    >>> neighbours(["a", "a", "b", "b"])
    [2, 2, 0, 0]
    >>> neighbours(["a", "a", "a"])
    [1, 2, 0]
    """
    count = len(machines)
    found = []
    for index, machine in enumerate(machines):
        circle = [(index + further) % count for further in range(1, count)]
        others = [other for other in circle if machines[other] != machine]
        found.append((others or circle or [index])[0])
    return found


def this_machine() -> str:
    """Identifier that tells hosts apart, and containers with a network of their own."""
    network = os.stat("/proc/self/ns/net").st_ino
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{platform.node()}/{boot}/{network}"


def own_host(machines: Sequence[str], coordinator: str | None) -> str | None:
    """Address of this machine for other hosts, or ``None`` if only loopback is known."""
    if len(set(machines)) == 1:
        return "127.0.0.1"
    name, _, port = (coordinator or "").rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            name.strip("[]"), int(port), type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing: only asks for the way
            host = probe.getsockname()[0]
    except (OSError, ValueError):
        return None
    return None if host.startswith("127.") or host == "::1" else host


class KeeperLink:
    """Connection to a keeper, for one request after another."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._slots: dict[int, memoryview] = {}
        self.closed = False
        connection.settimeout(keeper.PATIENCE_S)

    def ask(
        self, do: str, payload: memoryview | None = None, **message: Any
    ) -> tuple[JsonObject, memoryview | None]:
        """Send a request and return the answer, with the memory or bytes that came with it.

        Raises:
            KeptError: the keeper refused, or is gone.
        """
        try:
            frames.send(self._connection, {"do": do, **message}, payload)
            answer, size, opened = frames.receive(self._connection)
            if opened:
                content = self._map(answer.get("slot"), opened)
            elif size:
                content = memoryview(bytearray(size))
                frames.receive_into(self._connection, content)
            else:
                content = None
        except OSError as error:
            self.close()
            raise KeptError(
                f"keeper of snapshots: {do}", found=f"{error or type(error).__name__}"
            ) from error
        if "refused" in answer:
            raise KeptError(f"keeper of snapshots: {do}", found=answer["refused"])
        return answer, content

    def _map(self, slot: int | None, opened: list[int]) -> memoryview:
        """Slots that are written again and again stay mapped: faulting pages in costs time."""
        try:
            if slot is None:
                return frames.map_memory(opened[0])
            if slot not in self._slots:
                if len(self._slots) == 2:
                    del self._slots[min(self._slots)]
                self._slots[slot] = frames.map_memory(opened[0])
            return self._slots[slot]
        finally:
            frames.close_all(opened)

    def finish(self) -> None:
        """Make the keeper end, and wait until it has."""
        with contextlib.suppress(OSError):
            frames.send(self._connection, {"do": "finish"})
            while self._connection.recv(1024):
                pass
        self.close()

    def close(self) -> None:
        self.closed = True
        self._connection.close()


def find_keeper(directory: Path, process: int) -> KeeperLink | None:
    """Find the living keeper of a process of the run whose checkpoints are in ``directory``."""
    private, name = rendezvous.private_directory(), rendezvous.keeper_name(directory, process)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(CONNECT_S)
        with rendezvous.short_address(private, name) as address:
            connection.connect(address)
        return KeeperLink(connection)
    except (FileNotFoundError, ConnectionError):
        connection.close()
        return None


def start_keeper(directory: Path, process: int) -> KeeperLink:
    """Find this process's keeper, or start one.

    Raises:
        KeptError: it does not start.
    """
    private, name = rendezvous.private_directory(), rendezvous.keeper_name(directory, process)
    deadline = time.monotonic() + CONNECT_S
    while (link := find_keeper(directory, process)) is None:
        if time.monotonic() > deadline or not _start(private, name):
            log = private / f"{name}.log"
            said = log.read_text(errors="replace").strip() if log.exists() else ""
            raise KeptError(
                "keeper of snapshots", found=f"no answer ({said[-300:]})", expected="a new process"
            )
    return link


def _start(private: Path, name: str) -> bool:
    """Start a keeper; it leaves this process's care once it answers. False if it did not come."""
    root = Path(__file__).resolve().parents[3]
    known = os.environ.get("PYTHONPATH")
    with open(private / f"{name}.log", "wb") as log, contextlib.suppress(subprocess.TimeoutExpired):
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "ziggurat.checkpoint.memory.keeper", str(private), name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd="/",
            env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{known}" if known else str(root)},
            start_new_session=True,
            timeout=CONNECT_S,
            check=False,
        )
        return ended.returncode in (0, keeper.TAKEN)
    return False


def reach(address: Address) -> KeeperLink:
    """Connect to the keeper of another process.

    Raises:
        KeptError: it does not answer.
    """
    if address.host is None or address.port is None:
        raise KeptError("keeper of another process", found="no way to it", expected="an address")
    try:
        connection = socket.create_connection((address.host, address.port), CONNECT_S)
        frames.send(connection, {"token": address.token})
        return KeeperLink(connection)
    except OSError as error:
        raise KeptError(
            f"keeper at {address.host}:{address.port}",
            found=str(error),
            expected="an answer",
            fix="it is started anew by the next snapshot of its process",
        ) from error
