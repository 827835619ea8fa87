"""Private names of Orbax that nothing public replaces; no other file uses any.

``pyproject.toml`` bounds Orbax' version because of this file.
``tests/checkpoint/test_orbax_private.py`` checks every name below: run it first after an upgrade.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from ziggurat.core.private_name import PrivateName

_name = functools.partial(
    PrivateName,
    distribution="orbax-checkpoint",
    file="src/ziggurat/checkpoint/orbax_private.py",
)

TO_HOST = _name(
    "orbax.checkpoint._src.serialization.replica_slices",
    "transfer_arrays_to_host",
    "copying to the host only what this process will write",
    "the public ArrayHandler.serialize copies and writes at once; look for what it calls to copy",
    arguments=("arrays", "replica_id", "use_replica_parallel"),
)
WRITE_SHARDINGS = _name(
    "orbax.checkpoint._src.serialization.jax_array_handlers",
    "_async_serialize_shardings",
    "writing the shardings of arrays beside them",
    "the public ArrayHandler.serialize does it for device arrays only; look for what it calls",
    arguments=("shardings", "infos", "primary_host"),
)
WRITE_SLICES = _name(
    "orbax.checkpoint._src.serialization.jax_array_handlers",
    "_async_serialize_replica_slices",
    "writing arrays that are on the host already, again after a failure",
    "the public ArrayHandler.serialize takes device arrays only; look for what it calls to write",
    arguments=(
        "values",
        "infos",
        "args",
        "primary_host",
        "metadata_key",
        "array_metadata_store",
        "enable_replica_parallel_separate_folder",
        "use_replica_parallel",
        "ext_metadata",
    ),
)
METADATA_STORE = _name(
    "orbax.checkpoint._src.metadata.array_metadata_store",
    "Store",
    "recording how arrays are divided, which reading them with Orbax alone needs",
    "look for the default array_metadata_store of orbax.checkpoint.type_handlers.ArrayHandler",
)
HANDLER = _name(
    "orbax.checkpoint.type_handlers",
    "ArrayHandler",
    "the type handler below",
    "it is public; look for what type handlers are called now",
    arguments=("array_metadata_store",),
)
HANDLER_ATTRIBUTES = ("_array_metadata_store", "_use_replica_parallel")
"""Private attributes that are read of an ``ArrayHandler`` object; its class does not show them."""

NAMES = (TO_HOST, WRITE_SHARDINGS, WRITE_SLICES, METADATA_STORE, HANDLER)
"""Every private name of Orbax that Ziggurat uses."""


def to_host(arrays: Sequence[Any]) -> Iterator[Any]:
    """The slices of each ``jax.Array`` that this process will write, copied to host memory.

    On a CPU backend nothing is copied: the slices keep the buffers alive.
    """
    if not arrays:
        return iter(())
    return iter(TO_HOST.load()(arrays, 0, host_array_handler()._use_replica_parallel))


def host_array_handler() -> Any:
    """Orbax' handler of ``jax.Array``, for arrays that are on the host already."""
    from orbax.checkpoint import future, type_handlers

    class HostArrayHandler(type_handlers.ArrayHandler):
        async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
            shardings = WRITE_SHARDINGS.load()(
                [value.sharding for value in values], infos, primary_host=0
            )
            data = WRITE_SLICES.load()(
                [value.slices for value in values],
                infos,
                args,
                primary_host=0,
                metadata_key=None,
                array_metadata_store=self._array_metadata_store,
                enable_replica_parallel_separate_folder=False,
                use_replica_parallel=self._use_replica_parallel,
                ext_metadata={},
            )
            named = {"shardings": shardings, "arrays": data}
            return [
                future.CommitFutureAwaitingContractedSignals(work, name=name)
                for name, work in named.items()
            ]

    return HostArrayHandler(array_metadata_store=METADATA_STORE.load()())
