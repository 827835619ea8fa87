"""Hosts as processes of this machine, for tests, laptops and one big machine."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

from ziggurat.cluster.engine import Orders
from ziggurat.core.errors import ClusterError


class LocalEngine:
    """Starts hosts with :mod:`subprocess`. Each has a session of its own, so that Ctrl-C reaches
    the controller alone, which then asks them to leave.

    Args:
        address: ``None``; this engine joins no other cluster.

    Raises:
        ClusterError: there is an address.
    """

    def __init__(self, address: str | None = None):
        if address is not None:
            raise ClusterError("address of a cluster", found=address, expected="engine ray with it")

    def start(self, orders: Orders) -> "LocalHandle":
        host, port = orders.address
        environment = {**os.environ, **orders.env, "PYTHONUNBUFFERED": "1"}
        # The same code must be importable there as here.
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        arguments = [host, str(port), orders.name, orders.life, *orders.preload]
        process = subprocess.Popen(
            [sys.executable, "-m", "ziggurat.cluster", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        assert process.stdin is not None
        with contextlib.suppress(OSError), process.stdin:
            process.stdin.write(orders.secret.hex().encode() + b"\n")
        handle = LocalHandle(process, orders)
        threading.Thread(target=handle.read, name=f"output of {orders.name}", daemon=True).start()
        threading.Thread(target=handle.watch, name=f"life of {orders.name}", daemon=True).start()
        return handle

    def close(self) -> None:
        """Does nothing: this engine holds no resources of its own."""


class LocalHandle:
    """A host process on this machine."""

    def __init__(self, process: subprocess.Popen[bytes], orders: Orders):
        self._process, self._orders = process, orders

    def kill(self) -> None:
        """Send SIGKILL, which also ends a stopped process."""
        self._process.kill()

    def read(self) -> None:
        """Forward the process's output until it and its children have ended."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._orders.printed(line.decode(errors="replace").rstrip("\n"))

    def watch(self) -> None:
        """Wait for the process to end and report it."""
        code = self._process.wait()
        if code < 0:
            self._orders.ended(f"killed by {signal.Signals(-code).name}")
        else:
            self._orders.ended(f"exit code {code}")
