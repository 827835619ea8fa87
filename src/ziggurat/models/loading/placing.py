"""Parameters from their files to where they live: each device's shard is read by itself, in pieces,
so that beside the finished parameters little more than one piece is ever in memory."""

import collections
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Int, Shaped

from ziggurat.core.errors import CheckpointError
from ziggurat.core.pytrees import leaf_name, named_leaves
from ziggurat.models.conversion.weight_names import FLOATS, StoredWeight
from ziggurat.nn.precision import Precision

PIECE_BYTES = 64 * 2**20
"""Largest piece, but for one entry of the leading axis that is larger."""


def placement(shardings: Any) -> Callable[[str, StoredWeight], jax.Array]:
    """Function that places each parameter on its devices, for ``import_weights``.

    Args:
        shardings: by parameter, as ``LanguageModel.shardings`` gives them; ``{}``: the first
            device.
    """
    known = named_leaves(shardings)

    def place(name: str, weight: StoredWeight) -> jax.Array:
        sharding = known.get(name) or SingleDeviceSharding(jax.local_devices()[0])
        if not weight.mapped:  # reading a part would cost as much as all
            return jax.device_put(weight.read(), sharding)
        parts = sharding.addressable_devices_indices_map(weight.shape)
        shards = [_shard(weight, index or (), device) for device, index in parts.items()]
        return jax.make_array_from_single_device_arrays(weight.shape, sharding, shards)

    return place


def _shard(weight: StoredWeight, index: tuple[slice, ...], device: Any) -> jax.Array:
    """The part of a parameter that one device holds."""
    sizes = [range(size)[part] for size, part in zip(weight.shape, index)]
    shape = tuple(len(found) for found in sizes)
    row_bytes = jnp.dtype(weight.dtype).itemsize
    for size in shape[1:]:
        row_bytes *= size
    rows = max(1, PIECE_BYTES // max(1, row_bytes))
    if not shape or shape[0] <= rows:
        return jax.device_put(weight.read(index), device)
    target = jnp.zeros(shape, weight.dtype, device=device)
    first = sizes[0].start
    for start in range(0, shape[0], rows):
        stop = min(start + rows, shape[0])
        piece = weight.read((slice(first + start, first + stop), *index[1:]))
        target = _write(target, jax.device_put(piece, device), jnp.int32(start))
        target.block_until_ready()  # lest pieces pile up
    return target


@functools.partial(jax.jit, donate_argnums=0)
def _write(
    target: Shaped[Array, "n ..."], piece: Shaped[Array, "r ..."], start: Int[Array, ""]
) -> Shaped[Array, "n ..."]:
    return jax.lax.dynamic_update_slice_in_dim(target, piece, start, 0)


def float_type(params: Any) -> str:
    """The float type of most of the parameters' values, ``float32`` where there are none.

    >>> float_type({"a": jnp.ones(3, "bfloat16"), "b": jnp.ones(2)})
    'bfloat16'
    """
    sizes = collections.Counter({"float32": 0})
    for leaf in jax.tree.leaves(params):
        if leaf.dtype in FLOATS:
            sizes[str(leaf.dtype)] += leaf.size
    return max(sizes, key=lambda name: sizes[name])


def place_arrays(
    step: Path,
    arrays: Any,
    abstract: Any,
    shardings: Mapping[str, Any],
    precision: Precision | None = None,
) -> Any:
    """A step's arrays as parameters of the wanted types, on their devices.

    Args:
        step: where they are from, for people.
        arrays: nested by name, as ``read_arrays`` gives them.
        abstract: shapes and types of the parameters.
        shardings: by name; others go to the first device.
        precision: with ``as_stored``, float arrays keep their type.

    Raises:
        CheckpointError: one is missing or of another shape; it is named.
    """

    def place(path: tuple, leaf: Any) -> jax.Array:
        array = _checked(step, arrays, path, abstract)
        keep = precision is not None and precision.as_stored and {array.dtype, leaf.dtype} <= FLOATS
        array = array if keep else array.astype(leaf.dtype, copy=False)
        return jax.device_put(array, shardings.get(leaf_name(path)))

    return jax.tree_util.tree_map_with_path(place, abstract)


def _checked(step: Path, arrays: Any, path: tuple, abstract: Any) -> np.ndarray:
    expected = abstract
    try:
        for part in path:
            if isinstance(part, jax.tree_util.GetAttrKey):  # a part of a quantised weight
                arrays, expected = arrays[part.name], getattr(expected, part.name)
            else:
                arrays, expected = arrays[part.key], expected[part.key]
    except (KeyError, TypeError):
        raise CheckpointError(
            f"checkpoint {step}", found=f"no {leaf_name(path)}", expected="the model's parameters"
        ) from None
    if arrays.shape != expected.shape:
        raise CheckpointError(
            f"checkpoint {step}: {leaf_name(path)}",
            found=f"shape {list(arrays.shape)}",
            expected=f"shape {list(expected.shape)}",
        )
    return arrays
