"""Hosts as actors of Ray, which places and watches them.

Only starting and ending goes through Ray: commands and output use the same channels as with
:mod:`ziggurat.cluster.local_engine`, so that a cluster behaves alike on both. A host that was lost
is started as a new actor, wherever Ray finds room for it.
"""

import contextlib
import logging
import os
import secrets
import sys
import threading
from typing import Any

from ziggurat.cluster.engine import Orders
from ziggurat.core.errors import ClusterError, EnvironmentError

_log = logging.getLogger(__name__)
_STORE_BYTES = 80 << 20
"""Object store of a Ray started here: almost nothing goes through it."""


class RayEngine:
    """Engine on Ray: hosts are actors of one CPU slot each; on a Ray that was started here, of
    none.

    Args:
        address: of a Ray cluster that runs already; by default one is started for this controller,
            on loopback, without dashboard and usage statistics, and ends with it.

    Raises:
        EnvironmentError: Ray is not installed.
        ClusterError: Ray does not start, or is not at the address.
    """

    def __init__(self, address: str | None = None):
        options: dict[str, Any] = {"address": address} if address else _local()
        try:
            import ray
        except ImportError as error:
            raise EnvironmentError(
                "engine ray",
                found="no package ray",
                expected="Ray",
                fix='pip install "ziggurat[cluster]", or use --engine subprocess',
            ) from error
        self._ray, self._own = ray, address is None
        try:
            ray.init(
                **options,
                log_to_driver=False,
                logging_level=logging.ERROR,
                namespace=f"ziggurat-{os.getpid()}-{secrets.token_hex(4)}",
            )
        except Exception as error:
            raise ClusterError(
                f"Ray at {address}" if address else "starting Ray on this machine",
                found=str(error).strip().partition("\n")[0][:200],
                expected="a Ray cluster that answers" if address else "a local Ray",
                fix="check the address and its ports" if address else "use --engine subprocess",
            ) from error
        slots = 1 if address else 0
        self._actor = ray.remote(num_cpus=slots, max_restarts=0, max_task_retries=0)(_Actor)

    def start(self, orders: Orders) -> "RayHandle":
        here = [path or os.getcwd() for path in sys.path] if self._own else []
        actor = self._actor.remote()
        running = actor.serve.remote(
            os.getcwd() if here else "",
            here,
            dict(orders.env),
            (orders.address, orders.secret, orders.name, orders.life, orders.preload),
        )
        handle = RayHandle(self._ray, actor, running, orders)
        threading.Thread(target=handle.watch, name=f"life of {orders.name}", daemon=True).start()
        return handle

    def close(self) -> None:
        """Disconnect from Ray; a Ray that was started here is shut down."""
        self._ray.shutdown()


class RayHandle:
    """A host process inside a Ray actor."""

    def __init__(self, ray: Any, actor: Any, running: Any, orders: Orders):
        self._ray, self._actor, self._running, self._orders = ray, actor, running, orders

    def kill(self) -> None:
        """Kill the actor and its process."""
        with contextlib.suppress(Exception):
            self._ray.kill(self._actor, no_restart=True)

    def watch(self) -> None:
        """Wait for the actor to end and report it."""
        try:
            self._ray.get(self._running)
            how = "ended"
        except Exception as error:
            how = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        self.kill()  # gives its slot back
        self._orders.ended(how)


class _Actor:
    """The process that Ray starts; one call serves for its whole life."""

    def serve(
        self, folder: str, paths: list[str], env: dict[str, str], orders: tuple[Any, ...]
    ) -> None:
        """Be a host; on the controller's own machine, with its folder and its code."""
        os.environ |= env
        if folder:
            os.chdir(folder)
        sys.path += [path for path in paths if path not in sys.path]
        from ziggurat.cluster.worker import serve

        serve(*orders, send_output=True)


def _local() -> dict[str, Any]:
    """Options of a Ray that serves this controller alone; before Ray is imported."""
    # Ray's name for it; elsewhere it means: use the loopback address
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ:  # a secret of this cluster's own, in no file
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {
        "num_cpus": 1,  # so many processes Ray keeps ready, unasked
        "object_store_memory": _STORE_BYTES,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
    }
