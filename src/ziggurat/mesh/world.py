"""A world of processes whose coordination service is hosted by somebody who is not part of it.

``jax.distributed.initialize`` lets process 0 host the service through which all find each other: if
process 0 dies, all die. Here a controller hosts it (:class:`Service`), so that any process may die,
and the others leave and enter the next world without being started anew.

>>> with Service("127.0.0.1", count=1) as service:
...     service.address.startswith("127.0.0.1:")
True
"""

import contextlib
import gc
import logging
import os
import socket
import stat
from typing import Any

import jax

from ziggurat.core import jax_private
from ziggurat.core.errors import EnvironmentError
from ziggurat.mesh import processes

_log = logging.getLogger(__name__)
HEARTBEAT_S = 600
"""Silence after which the service calls a process dead, and ends it if it is not. The controller
judges by its own, shorter limits: a process that compiles, or that a busy machine lets wait for
some seconds, must not be ended by a thread of jaxlib's."""
_SHUTDOWN_S = 5
_links: set[int] = set()
"""Sockets that collectives of this world use."""
_TRIES = 20


class Service:
    """Coordination service of one world, running as long as this object is open.

    Args:
        host: address to listen on; the service itself asks for no secret, so this is loopback or an
            interface of the network between the hosts.
        count: processes of the world.

    Raises:
        EnvironmentError: no port there can be listened on.
    """

    def __init__(self, host: str, count: int):
        self.address, self._service = _start(host, count)

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the service; processes that have not left its world end with it."""
        service, self._service = self._service, None
        if service is not None:
            service.shutdown()


def enter(address: str, count: int, index: int, within_s: float = 60.0) -> None:
    """Join a new world as process ``index``; :func:`leave` the earlier one first.

    On return all ``count`` processes are there, their devices are known to each other, and a first
    collective has gone through, so that from now on the death of one is an error of the next
    collective at once.

    Args:
        address: of the :class:`Service`.
        count: processes of the world; with 1 no service is needed.
        index: this one, from 0.
        within_s: time for all to come (seconds).

    Raises:
        EnvironmentError: they did not.
    """
    state = jax_private.distributed_state()
    assert state.client is None, "leave the world before"
    processes.begin()
    try:
        if count > 1:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            state.client = _connect(address, index, within_s)
            state.coordinator_address = address
        state.process_id, state.num_processes = index, count
        before = set(_sockets())
        _meet(count)
        _links.update(set(_sockets()) - before)
    except Exception as error:
        line = str(error).strip().partition("\n")[0][:200]
        raise EnvironmentError(
            f"entering a world of {count} processes at {address}",
            found=line or type(error).__name__,
            expected=f"all of them within {within_s:.0f} s",
        ) from error


def leave() -> None:
    """Forget the world, its devices and all arrays on them; does nothing outside of one."""
    state = jax_private.distributed_state()
    sever()
    with contextlib.suppress(Exception):  # what was under way may have failed with a peer
        jax.effects_barrier()
    client, state.client = state.client, None
    state.process_id, state.num_processes, state.coordinator_address = 0, 1, None
    if client is not None:
        try:
            client.shutdown()
        except Exception as error:
            _log.debug("leaving a world: %s", error)
    jax.clear_caches()
    with contextlib.suppress(Exception):
        from jax.extend.backend import clear_backends

        clear_backends()
    gc.collect()


def sever() -> None:
    """Close this process's connections to the others, so that collectives that wait for them fail
    at once, here and there. Call it once the world is known to be broken, from any thread.

    A collective over three or more is a ring: the neighbours of a process that died hear of it, but
    the others wait for those neighbours, which have nothing to say.
    """
    links, found = set(_links), _sockets()
    _links.clear()
    for number in links & found.keys():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(found[number])) as link:
            link.getpeername()  # raises for one that listens, whose owner would not bear it
            link.shutdown(socket.SHUT_RDWR)


def _sockets() -> dict[int, int]:
    """Sockets of this process, as the system numbers them, and their descriptors."""
    found = {}
    with contextlib.suppress(FileNotFoundError):  # not Linux: nothing is severed then
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                entry = os.stat(int(name))
                if stat.S_ISSOCK(entry.st_mode):
                    found[entry.st_ino] = int(name)
    return found


def _connect(address: str, index: int, within_s: float) -> Any:
    client = jax_private.distributed_client(
        address,
        index,
        init_timeout=max(int(within_s), 1),
        use_compression=True,
        heartbeat_timeout=HEARTBEAT_S,
    )
    client.connect()
    return client


def _meet(count: int) -> None:
    """Find all devices, and connect to every process by one collective."""
    assert jax.process_count() == count
    if count > 1:
        everywhere = jax.sharding.Mesh(jax.devices(), ("all",))
        spread = jax.sharding.NamedSharding(everywhere, jax.sharding.PartitionSpec("all"))
        shape = (jax.device_count(),)
        ones = jax.make_array_from_callback(shape, spread, lambda _: jax.numpy.ones(1))
        whole = jax.sharding.NamedSharding(everywhere, jax.sharding.PartitionSpec())
        total = jax.jit(jax.numpy.sum, out_shardings=whole)(ones)
        assert int(total.addressable_data(0)) == jax.device_count()


def _start(host: str, count: int) -> tuple[str, Any]:
    problem: object = ""
    for _ in range(_TRIES):
        try:
            with socket.create_server((host, 0)) as probe:
                port = probe.getsockname()[1]
            address = f"{host}:{port}"
            return address, jax_private.distributed_service(
                address,
                count,
                heartbeat_timeout=HEARTBEAT_S,
                shutdown_timeout=_SHUTDOWN_S,
                recoverable=True,
            )
        except (OSError, RuntimeError, ValueError) as error:  # taken between the two calls
            problem = error
    raise EnvironmentError(
        f"coordination service on {host}",
        found=str(problem).partition("\n")[0][:200],
        expected="an address of this machine with a free port",
        fix="give --bind an address of this machine",
    )
