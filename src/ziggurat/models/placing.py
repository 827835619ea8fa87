"""Parameters from their files to where they live: each device's shard is read by itself, in pieces,
so that beside the finished parameters little more than one piece is ever in memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Int, Shaped

from ziggurat.core.pytrees import named_leaves
from ziggurat.models.weight_names import StoredWeight

PIECE_BYTES = 64 * 2**20
"""Largest piece, but for one entry of the leading axis that is larger."""


def placement(shardings: Any) -> Callable[[str, StoredWeight], jax.Array]:
    """What ``import_weights`` needs to put each parameter on its devices.

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
