"""Weights in the memory of a CPU, side by side in pages of 2 MB.

A decoded token reads every weight once. In pages of 4 KB, which is what XLA's buffers get, a core's
prefetching stops at the end of each page, and the same weights take about half as long again to
read (``benchmarks/decode_cpu.py``). numpy asks Linux for huge pages for what it allocates
(``NUMPY_MADVISE_HUGEPAGE``), and JAX uses numpy's aligned memory as it is, so one large array holds
them all; where there are no huge pages it is an array like any other.
"""

import itertools
from typing import TypeVar

import jax
import numpy as np

ALIGN = 64
"""Bytes: of a cache line, and what XLA asks of memory that is not its own."""
PAGE = 2 << 20
T = TypeVar("T")


def in_huge_pages(tree: T) -> T:
    """Copy a pytree of numpy arrays to CPU arrays in one stretch of memory on huge pages.

    Args:
        tree: host arrays; they are left as they are.

    >>> made = in_huge_pages([np.ones((3, 2)), np.int8([1, 2])])
    >>> made[0].shape, made[1].tolist()
    ((3, 2), [1, 2])
    """
    leaves, structure = jax.tree.flatten(tree)
    sizes = [-(-leaf.nbytes // ALIGN) * ALIGN for leaf in leaves]
    arena = np.empty(sum(sizes) + PAGE, np.uint8)
    first = -arena.ctypes.data % PAGE
    device = jax.local_devices(backend="cpu")[0]
    placed = []
    for leaf, start in zip(leaves, itertools.accumulate(sizes, initial=first)):
        view = arena[start : start + leaf.nbytes].view(leaf.dtype).reshape(leaf.shape)
        view[...] = leaf
        placed.append(jax.device_put(view, device, may_alias=True))
    return jax.tree.unflatten(structure, placed)
