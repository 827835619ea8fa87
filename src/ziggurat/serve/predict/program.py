"""The program of a bundle on one device: compiled per bucket, given whole arrays.

A program with symbolic dimensions is compiled anew by XLA for every concrete shape, so shapes are
padded to a table of buckets that is compiled before the model is ready.
"""

import collections
import contextlib
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from ziggurat.core.errors import ServeError
from ziggurat.serve.predict.manifest import BundleManifest
from ziggurat.serve.predict.signature import BATCH

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]
Sizes = dict[str, int]
MAX_OPEN_SHAPES = 32
"""Compiled programs kept for sizes that no table bounds; the one unused longest goes."""


class BundleProgram:
    """A deserialised program with its weights on one device.

    Args:
        exported: from ``jax.export.deserialize``.
        manifest: the bundle's.
        weights: by name, in host memory.
        device: where it runs.
        batch_sizes: numbers of rows to compile, ascending; empty: any number, compiled when it
            comes.
    """

    def __init__(
        self,
        exported: Any,
        manifest: BundleManifest,
        weights: Arrays,
        device: Any,
        batch_sizes: Sequence[int] = (),
    ):
        self._exported, self._manifest, self.device = exported, manifest, device
        self._sharding = jax.sharding.SingleDeviceSharding(device)
        self._tables: dict[str, Sequence[int]] = dict(manifest.sizes)
        if manifest.signature.batched and batch_sizes:
            self._tables[BATCH] = batch_sizes
        self._exact = frozenset(manifest.served_exactly)
        self._bounded = not self._exact and set(manifest.signature.symbols) <= set(self._tables)
        self._compiled: collections.OrderedDict[tuple[int, ...], Any] = collections.OrderedDict()
        self._lock = threading.Lock()
        with self.types():
            self._weights = jax.device_put(dict(weights), self._sharding)

    @property
    def max_rows(self) -> int | None:
        """Most rows of one execution, if bounded."""
        return self._tables[BATCH][-1] if BATCH in self._tables else None

    @property
    def bytes(self) -> int:
        """Bytes of the weights on the device."""
        return sum(array.nbytes for array in jax.tree.leaves(self._weights))

    def types(self) -> contextlib.AbstractContextManager[Any]:
        """Enable, inside the block, the 64-bit types that the program was traced with."""
        return jax.enable_x64(True) if self._manifest.x64 else contextlib.nullcontext()

    def buckets(self) -> Iterator[Sizes]:
        """Every combination of the tables' sizes, largest first; empty if a symbol has none."""
        symbols = self._manifest.signature.symbols
        if self._bounded:
            for sizes in itertools.product(*(self._tables[name][::-1] for name in symbols)):
                yield dict(zip(symbols, sizes, strict=True))

    def bucket(self, sizes: Mapping[str, int]) -> Sizes:
        """The sizes to which inputs of these sizes are padded; their own where padding matters.

        Raises:
            ServeError: one is larger than its table's last.
        """
        chosen = {}
        for name, size in sizes.items():
            table = self._tables.get(name, (size,))
            if size > table[-1]:
                raise ServeError(f"dimension {name}", found=size, expected=f"at most {table[-1]}")
            exact = name in self._exact
            chosen[name] = size if exact else next(entry for entry in table if entry >= size)
        return chosen

    def has(self, sizes: Mapping[str, int]) -> bool:
        """Whether the executable for exactly these sizes exists."""
        with self._lock:
            return tuple(sizes.values()) in self._compiled

    def compile(self, sizes: Mapping[str, int]) -> Any:
        """The executable for exactly these sizes, compiled or kept from before."""
        key = tuple(sizes.values())
        with self._lock:
            found = self._compiled.get(key)
            if found is not None:
                if not self._bounded:
                    self._compiled.move_to_end(key)
                return found
        with self.types():
            made = self._compile(sizes)
        with self._lock:
            self._compiled[key] = made
            if not self._bounded and len(self._compiled) > MAX_OPEN_SHAPES:
                self._compiled.popitem(last=False)
        return made

    def execute(self, sizes: Mapping[str, int], inputs: Arrays) -> list[jax.Array]:
        """Run inputs of exactly these sizes; outputs in the signature's order, still on the
        device."""
        compiled = self.compile(sizes)
        with self.types():
            return compiled(self._weights, inputs)

    def padded(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs at these sizes."""
        return {
            tensor.name: tuple(sizes[s] if isinstance(s, str) else s for s in tensor.shape)
            for tensor in self._manifest.signature.inputs
        }

    def run(self, inputs: Arrays) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Run inputs of any sizes: pad, run in as many parts as needed, crop.

        Raises:
            ServeError: a shape does not fit the signature or a table.
        """
        signature = self._manifest.signature
        sizes = signature.sizes({name: array.shape for name, array in inputs.items()})
        rows, step = sizes.get(BATCH), self.max_rows
        if rows is None or step is None or rows <= step or BATCH in self._exact:
            return self._part(inputs, sizes)
        parts = [
            self._part(
                {name: array[at : at + step] for name, array in inputs.items()},
                {**sizes, BATCH: min(step, rows - at)},
            )
            for at in range(0, rows, step)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _part(self, inputs: Arrays, sizes: Sizes) -> dict[str, np.ndarray]:
        # Rows that are never joined are the function's own matter; a server bounds them per
        # request.
        fixed = {n: size for n, size in sizes.items() if n == BATCH and n in self._exact}
        target = self.bucket({n: size for n, size in sizes.items() if n not in fixed})
        target = {name: (target | fixed)[name] for name in sizes}
        shapes = self.padded(target)
        whole = {name: _grow(inputs[name], shapes[name]) for name in shapes}
        outputs = self.execute(target, whole)
        return {
            tensor.name: crop(np.asarray(value), tensor.shape, sizes)
            for tensor, value in zip(self._manifest.signature.outputs, outputs, strict=True)
        }

    def _compile(self, sizes: Mapping[str, int]) -> Any:
        shapes = self.padded(sizes)
        inputs = {
            tensor.name: jax.ShapeDtypeStruct(
                shapes[tensor.name], tensor.dtype, sharding=self._sharding
            )
            for tensor in self._manifest.signature.inputs
        }
        return jax.jit(self._exported.call).lower(self._weights, inputs).compile()


def crop(
    array: Shaped[np.ndarray, "..."], shape: Sequence[int | str], sizes: Mapping[str, int]
) -> Shaped[np.ndarray, "..."]:
    """Cut padding off an output.

    >>> crop(np.zeros((4, 8, 2)), ("b", "t", 2), {"b": 3, "t": 5}).shape
    (3, 5, 2)
    """
    kept = (slice(sizes.get(s)) if isinstance(s, str) else slice(None) for s in shape)
    return array[(..., *kept)]  # the dots keep a scalar an array


def _grow(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape == shape:
        return array
    whole = np.zeros(shape, array.dtype)
    whole[tuple(map(slice, array.shape))] = array
    return whole
