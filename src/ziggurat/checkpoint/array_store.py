"""Array items on disk through Orbax: one OCDBT directory per item, readable with Orbax alone.

Data is copied to the host once, into :class:`HostArray` leaves, so that a write can be repeated
after a failure while the training step has long donated the device buffers. Nothing here waits for
other processes: who must agree does so through :mod:`ziggurat.checkpoint.agreement`.

Arrays are not compressed: float weights shrink by a few percent, and compressing them takes two to
four times as long as writing them to a local disk. Data files are 64 MB, so that finished ones can
be digested while others are being written.
"""

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree, Shaped

from ziggurat.checkpoint import leaves, orbax_private
from ziggurat.checkpoint.manifest import ARRAYS, DamagedError, LeafRecord
from ziggurat.core import atomic
from ziggurat.core.pytrees import Leaf

ORBAX_DESCRIPTION = "_METADATA"
"""File in which Orbax describes the tree of an item."""
DATA_FILE_BYTES = 1 << 26
"""Size at which the store starts another data file."""


class HostArray:
    """Part of a ``jax.Array`` that this process holds, in host memory."""

    def __init__(self, slices: Any):
        self.slices = slices
        self.shape: tuple[int, ...] = tuple(slices.global_shape)
        self.dtype = slices.dtype
        self.sharding = slices.sharding
        self.size = math.prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize


def to_host(flat: Mapping[str, Mapping[tuple[str, ...], Leaf]]) -> dict[str, dict[str, Leaf]]:
    """Item trees whose leaves are on the host: nothing done to the given arrays reaches them.

    Of ``jax.Array`` leaves only what this process will write is copied, and on a CPU backend not
    even that: the runtime copies a buffer on donation as long as it is referred to here. NumPy
    leaves are copied (by the first process, which writes them).
    """
    device = [
        value for tree in flat.values() for value in tree.values() if isinstance(value, jax.Array)
    ]
    slices = orbax_private.to_host(device)
    first = jax.process_index() == 0

    def one(value: Leaf) -> Leaf:
        if isinstance(value, jax.Array):
            return HostArray(next(slices))
        return np.array(value) if first else np.asarray(value)

    copied = {
        item: {path: one(value) for path, value in tree.items()} for item, tree in flat.items()
    }
    return {item: leaves.nest(tree) for item, tree in copied.items() if tree}


def write(directory: Path, trees: Mapping[str, Mapping[str, Leaf]]) -> None:
    """Write this process's part of every item below ``directory``, where item directories exist.

    Raises:
        Exception: whatever the store says, such as that the disk is full.
    """
    import orbax.checkpoint as ocp
    from etils import epath

    handler = _pytree_handler()

    async def start(item: str, tree: Mapping[str, PyTree]) -> Any:
        arguments = ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=DATA_FILE_BYTES)  # pyright: ignore[reportCallIssue]
        return await handler.async_save(epath.Path(directory / item), args=arguments)

    commits, errors = [], []
    with _quiet():
        for item, tree in trees.items():
            commits += asyncio.run(start(item, tree)) or []
        for commit in commits:  # all of them, so that nothing writes any more on return
            try:
                commit.result()
            except Exception as error:
                errors.append(error)
    if errors:
        raise errors[0]


def finish(directory: Path, items: Iterable[str]) -> None:
    """Join the parts of all processes; the first process calls it once when all have written."""
    from etils import epath

    for item in items:
        _pytree_handler().finalize(epath.Path(directory / item))


def write_description(store: Path, records: Sequence[LeafRecord]) -> None:
    """Write the tree of an item whose arrays follow by :func:`open_array`, as Orbax describes one
    of numpy arrays.

    Args:
        store: directory of the item.
        records: its leaves.
    """
    entries = {}
    for leaf in (leaf for leaf in records if leaf.stored):
        keys = [{"key": key, "key_type": 2} for key in leaf.path or ("",)]
        value = {"value_type": "np.ndarray", "skip_deserialize": False}
        entries[str(leaf.path or ("",))] = {"key_metadata": keys, "value_metadata": value}
    described = {
        "tree_metadata": entries,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    atomic.write_file(store / ORBAX_DESCRIPTION, json.dumps(described))


def open_array(store: Path, leaf: LeafRecord, block: tuple[int, ...]) -> Any:
    """One array of an item as a TensorStore to write into; what is written is on disk when the
    future of the write is done.

    Args:
        store: directory of the item.
        leaf: the array's record.
        block: shape in which the store divides it; a write of a whole block reads nothing.
    """
    import tensorstore

    spec = {
        "driver": "zarr",
        "kvstore": {
            "driver": "ocdbt",
            "base": {"driver": "file", "path": f"{store.absolute()}/"},
            "path": f"{leaf.name}/",
            "target_data_file_size": DATA_FILE_BYTES,
        },
        "metadata": {"compressor": None},
        "store_data_equal_to_fill_value": True,
        "recheck_cached_data": False,
    }
    return tensorstore.open(
        spec,
        create=True,
        open=True,
        dtype=tensorstore.dtype(jax.numpy.dtype(leaf.dtype)),
        shape=leaf.shape,
        chunk_layout=tensorstore.ChunkLayout(chunk_shape=block),
    ).result()


def read(
    directory: Path, item: str, targets: Mapping[LeafRecord, Leaf], *, whole: bool = True
) -> dict[LeafRecord, Leaf]:
    """Leaves of an item of a step directory, each as its target says (None: numpy as stored).

    Args:
        targets: ``jax.ShapeDtypeStruct`` or array by leaf.
        whole: whether these are all leaves of the item.

    Raises:
        DamagedError: the store cannot read its files.
    """
    import orbax.checkpoint as ocp
    from etils import epath

    orders = {leaf.path: _order(leaf, target) for leaf, target in targets.items() if leaf.stored}
    tree: PyTree = {}
    if orders:
        wanted = leaves.nest(orders)
        arguments = ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
            restore_args=wanted, **({} if whole else {"item": wanted, "partial_restore": True})
        )
        try:
            tree = ocp.PyTreeCheckpointHandler().restore(
                epath.Path(directory / ARRAYS / item), args=arguments
            )
        except Exception as error:
            line = str(error).strip().partition("\n")[0][:300] or type(error).__name__
            raise DamagedError(
                f"checkpoint {directory.name}: {ARRAYS}/{item}",
                found=f"data that cannot be read ({line})",
                expected="intact arrays",
                fix="restore an older step",
            ) from error
    return {
        leaf: _finish_leaf(leaf, leaves.look_up(tree, leaf.path) if leaf.stored else None, target)
        for leaf, target in targets.items()
    }


def _order(leaf: LeafRecord, target: Leaf) -> Leaf:
    """Restore arguments of Orbax for one leaf."""
    import orbax.checkpoint as ocp

    if leaf.prng or target is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    sharding = getattr(target, "sharding", None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=target.dtype)
    return ocp.ArrayRestoreArgs(
        restore_type=jax.Array,
        sharding=sharding,
        global_shape=tuple(target.shape),
        dtype=target.dtype,
    )


def _finish_leaf(leaf: LeafRecord, value: Leaf, target: Leaf) -> Shaped[Leaf, "..."]:
    """Turn what Orbax gave into what was asked: typed keys, and arrays without elements."""
    if not leaf.stored:
        dtype = jax.numpy.dtype(leaf.dtype) if target is None else target.dtype
        value = np.zeros(leaf.shape, dtype)
    if target is None:
        return value
    sharding = getattr(target, "sharding", None)
    if leaf.prng:
        value = jax.random.wrap_key_data(jax.numpy.asarray(value), impl=leaf.prng)
        return value if sharding is None else jax.device_put(value, sharding)
    if not leaf.stored and sharding is not None:
        return jax.device_put(value, sharding)
    return value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracebacks that Orbax' threads log of errors which they then raise as well."""

    def wanted(record: logging.LogRecord) -> bool:
        return not (record.filename == "future.py" and record.levelno >= logging.ERROR)

    logger = logging.getLogger("absl")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _pytree_handler() -> Any:
    import orbax.checkpoint as ocp

    arrays = orbax_private.host_array_handler()
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (HostArray, arrays),
        (jax.Array, arrays),  # where Orbax looks for the store of array metadata
    )
    return ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
