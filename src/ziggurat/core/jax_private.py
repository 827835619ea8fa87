"""Private names of JAX that nothing public replaces; no other file uses any.

``pyproject.toml`` bounds JAX's version because of this file. ``tests/core/test_jax_private.py``
checks every name below: run it first after an upgrade of JAX.
"""

import functools
from typing import Any

from ziggurat.core.private_name import PrivateName

_name = functools.partial(PrivateName, distribution="jax", file="src/ziggurat/core/jax_private.py")

DISTRIBUTED_STATE = _name(
    "jax._src.distributed",
    "global_state",
    "entering and leaving worlds of processes (mesh/world.py), agreement between processes "
    "(mesh/processes.py) and finding the peers of the memory tier (checkpoint/memory/tier.py)",
    "jax.distributed.initialize and shutdown are public, but neither gives the client's key-value "
    "store; look where initialize keeps its client now",
    members=("client", "coordinator_address", "process_id", "num_processes"),
)
RUNTIME_CLIENT = _name(
    "jax._src.lib",
    "_jax.DistributedRuntimeClient",
    "messages between processes by keys and values (mesh/processes.py)",
    "no public name exists; look for the class that jax.distributed.initialize connects",
    members=(
        "connect",
        "shutdown",
        "key_value_set",
        "key_value_delete",
        "blocking_key_value_get",
    ),
)
CONNECT = _name(
    "jax._src.lib",
    "_jax.get_distributed_runtime_client",
    "entering a world whose peers may die and be replaced (mesh/world.py)",
    "jax.distributed.initialize is public, but a process may call it once and dies with its "
    "peers; look at how initialize makes its client now",
)
COORDINATE = _name(
    "jax._src.lib",
    "_jax.get_distributed_runtime_service",
    "coordinating a world that survives the loss of a process (mesh/world.py)",
    "jax.distributed.initialize is public, but ends the coordinator with process 0; look at how "
    "initialize makes its service now",
)
PLUGIN_LOADED = _name(
    "jax._src.lib",
    "xla_client.pjrt_plugin_loaded",
    "planning for TPUs that are not here (plan/topology.py) and refusing a trace that would "
    "crash after it (profile/trace.py)",
    "jax.extend.backend.backends() is public, but starts every backend; look at how "
    "jax.experimental.topologies loads libtpu now",
)
LOAD_PLUGIN = _name(
    "jax._src.lib",
    "xla_client.load_pjrt_plugin_dynamically",
    "loading libtpu without its profiler to plan for TPUs that are not here (plan/topology.py)",
    "jax.experimental.topologies.get_topology_desc loads libtpu too, but registers its profiler, "
    "which crashes a process without a TPU; try whether it still does",
)

NAMES = (
    DISTRIBUTED_STATE,
    RUNTIME_CLIENT,
    CONNECT,
    COORDINATE,
    PLUGIN_LOADED,
    LOAD_PLUGIN,
)
"""Every private name of JAX that Ziggurat uses."""


def distributed_state() -> Any:
    """Client, coordinator, index and count by which this process takes part in JAX's runtime."""
    return DISTRIBUTED_STATE.load()


def distributed_client(address: str, index: int, **options: Any) -> Any:
    """A client of the coordination service at ``address``, for process ``index``, not connected."""
    return CONNECT.load()(address, index, **options)


def distributed_service(address: str, count: int, **options: Any) -> Any:
    """A coordination service for ``count`` processes, listening at ``address``."""
    return COORDINATE.load()(address, count, **options)


def plugin_loaded(platform: str) -> bool:
    """Whether a PJRT plugin, such as libtpu for ``"tpu"``, is loaded in this process."""
    return PLUGIN_LOADED.load()(platform)


def load_plugin(platform: str, path: str) -> None:
    """Load a PJRT plugin from a library file, without registering a backend or a profiler."""
    LOAD_PLUGIN.load()(platform, path)
