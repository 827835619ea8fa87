"""Names of the same weights here and in a published checkpoint, in both directions.

Per-layer weights are stacked here and separate there: ``{layer}`` in their name counts layers, and
``{expert}`` the experts of a mixture. Where they keep several weights in one tensor (GPT-2's query,
key and value), each of ours names its :class:`AxisSlice` of it.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from ziggurat.core.errors import CheckpointError, did_you_mean
from ziggurat.core.pytrees import named_leaves

FLOATS = frozenset(jnp.dtype(name) for name in ("float32", "bfloat16", "float16"))
"""Types that a parameter may have."""


@runtime_checkable
class TensorSource(Protocol):
    """Tensors by name, read one at a time; the files of ``ziggurat.checkpoint`` are such."""

    def __iter__(self) -> Iterator[str]: ...

    def read(self, name: str) -> np.ndarray: ...

    def dtype_of(self, name: str) -> np.dtype:
        """Type of what :meth:`read` gives, known without reading."""
        ...


@dataclasses.dataclass(frozen=True)
class AxisSlice:
    """Entries of one of a tensor's axes, in their layout."""

    axis: int
    entries: slice | tuple[int, ...]
    """A range, or the entries one by one."""
    groups: int = 1
    """Equal consecutive groups of the axis; a range is of each (heads that hold query and gate)."""

    @property
    def needed(self) -> int:
        """Entries that the axis must have, where they are given one by one."""
        return 0 if isinstance(self.entries, slice) else 1 + max(self.entries)

    def index(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        """For a tensor of this shape."""
        axis = self.axis % len(shape)
        return tuple(self.of(n) if i == axis else slice(None) for i, n in enumerate(shape))

    def of(self, size: int) -> Any:
        """Index into an axis of ``size`` entries; what no group has is left out.

        >>> AxisSlice(0, slice(0, 1), groups=3).of(6)
        array([0, 2, 4])
        """
        if not isinstance(self.entries, slice):
            return np.array(self.entries)
        if self.groups == 1:
            return self.entries
        whole = np.arange(size - size % self.groups).reshape(self.groups, -1)
        return whole[:, self.entries].reshape(-1)


@dataclasses.dataclass(frozen=True)
class WeightName:
    """One parameter's name here and there, and how its layout differs."""

    ours: str
    """Dotted name here."""
    theirs: str
    """Name there; with ``{layer}`` for stacked parameters, ``{expert}`` for a mixture's."""
    transpose: bool = False
    """Stored there with its last two axes swapped, ``[out, in]``."""
    reorder: Callable[[np.ndarray], np.ndarray] | None = None
    """Function from the published order of rows to transformers' order, applied before
    ``transpose``; ``None``: the orders are equal."""
    restore: Callable[[np.ndarray], np.ndarray] | None = None
    """The reverse of ``reorder``; without it such a weight is for import only."""
    layers: tuple[int, ...] | None = None
    """Numbers of the layers stacked here; default all."""
    experts: int = 1
    """Experts, where their name counts them."""
    part: AxisSlice | None = None
    """Slice of the tensor that the parameter is; default all of it."""
    stored_shape: tuple[int, ...] | None = None
    """Shape there, where it has other axes of the same entries in the same order (convolutions over
    patches, vectors with leading axes of one)."""

    def all_theirs(self, layers: int) -> list[str]:
        """Every name there that belongs to this parameter, by layer, then expert."""
        numbers = self.layers if self.layers is not None else range(layers)
        return [
            self.theirs.format(layer=layer, expert=expert)
            for layer in (numbers if "{layer}" in self.theirs else (0,))
            for expert in range(self.experts)
        ]

    @property
    def stacked_axes(self) -> int:
        """Leading axes of ours that count their tensors."""
        return ("{layer}" in self.theirs) + ("{expert}" in self.theirs)


@dataclasses.dataclass(frozen=True)
class StoredWeight:
    """One parameter as it lies in their tensors, read whole or in part."""

    name: WeightName
    tensors: TensorSource
    shape: tuple[int, ...]
    dtype: Any
    layers: int

    @property
    def mapped(self) -> bool:
        """Whether reading a part costs no more than that part."""
        return getattr(self.tensors, "mapped", False)

    def file_of(self, theirs: str) -> str:
        """Name of the file that one of their tensors is in; empty where the source does not say."""
        file_of = getattr(self.tensors, "file_of", None)
        return "" if file_of is None else file_of(theirs)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of all values in bytes."""
        return self.size * np.dtype(self.dtype).itemsize

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """The parameter, or the part of it that ``index`` selects, in our layout.

        Raises:
            CheckpointError: one of their tensors has another shape.
        """
        full = (*index, *(slice(None) for _ in self.shape[len(index) :]))
        ranges = [range(size)[part] for size, part in zip(self.shape, full, strict=True)]
        out = np.empty([len(found) for found in ranges], self.dtype)
        leading = self.name.stacked_axes
        counts = self.shape[:leading]
        theirs = np.array(self.name.all_theirs(self.layers)).reshape(counts)
        inner = full[leading:]
        for at in np.ndindex(*out.shape[:leading]):
            there = tuple(found[i] for found, i in zip(ranges, at))
            out[at] = self._tensor(str(theirs[there]))[inner]
        release = getattr(self.tensors, "release", None)
        if release is not None:
            release()
        return out

    def _tensor(self, theirs: str) -> np.ndarray:
        """One of their tensors in our layout; a view where the source gives one."""
        name, expected = self.name, self.shape[self.name.stacked_axes :]
        tensor = self.tensors.read(theirs)
        if name.part is not None:
            needed, there = name.part.needed, tensor.shape[name.part.axis % tensor.ndim]
            if there < needed:
                raise CheckpointError(
                    f"tensor {theirs}, its part {name.ours}",
                    found=f"{there} entries",
                    expected=f"at least {needed}",
                    fix="check config.json against the weights",
                )
            tensor = tensor[name.part.index(tensor.shape)]
        if name.transpose:
            expected = (*expected[:-2], expected[-1], expected[-2])
        stored = expected if name.stored_shape is None else name.stored_shape
        if tensor.shape != stored:
            raise CheckpointError(
                f"tensor {theirs}" + ("" if name.part is None else f", its part {name.ours}"),
                found=f"shape {list(tensor.shape)}",
                expected=f"shape {list(stored)}",
                fix="check config.json against the weights",
            )
        tensor = tensor.reshape(expected)
        tensor = name.reorder(tensor) if name.reorder else tensor
        return tensor.swapaxes(-1, -2) if name.transpose else tensor


def import_weights(
    names: Iterable[WeightName],
    tensors: TensorSource,
    abstract: dict[str, Any],
    *,
    layers: int,
    ignored: Callable[[str], bool] = lambda name: False,
    place: Callable[[str, StoredWeight], Any] = lambda name, weight: weight.read(),
    as_stored: bool = False,
) -> dict[str, Any]:
    """Parameters read from a source of their tensors, one at a time.

    Args:
        names: the family's table.
        tensors: their tensors.
        abstract: shapes and types of our parameters.
        layers: number of stacked layers.
        ignored: names there that carry nothing (buffers, copies of tied weights).
        place: reads a parameter to where it belongs, e.g. on a mesh, shard by shard.
        as_stored: keep the float types of their tensors, rather than take those of ``abstract``.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape; it is named.
    """
    names = list(names)
    expected = {theirs for name in names for theirs in name.all_theirs(layers)}
    present = set(tensors)
    missing = sorted(expected - present)
    extra = sorted(name for name in present - expected if not ignored(name))
    if missing:
        raise CheckpointError(
            f"tensor {missing[0]}",
            found="absent" + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""),
            expected=f"{len(expected)} tensors",
            fix=did_you_mean(missing[0], extra) or "is this the right architecture?",
        )
    if extra:
        raise CheckpointError(
            f"tensor {extra[0]}",
            found="a name that this architecture has no place for"
            + (f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""),
            expected=f"only the {len(expected)} tensors of the config",
            fix="check config.json against the weights",
        )
    shapes = named_leaves(abstract)
    flat = {}
    for name in names:
        leaf = shapes[name.ours]
        dtype = stored_type(name, tensors, layers, leaf.dtype) if as_stored else leaf.dtype
        flat[name.ours] = place(name.ours, StoredWeight(name, tensors, leaf.shape, dtype, layers))
    assert flat.keys() == shapes.keys(), set(flat) ^ set(shapes)
    return jax.tree.unflatten(jax.tree.structure(abstract), [flat[name] for name in shapes])


def stored_type(name: WeightName, tensors: TensorSource, layers: int, otherwise: Any) -> Any:
    """The float type in which a parameter's tensors are stored, the widest where they differ;
    ``otherwise`` for types that no parameter has (of quantised values, float64)."""
    if jnp.dtype(otherwise) not in FLOATS:
        return otherwise
    found = {np.dtype(tensors.dtype_of(theirs)) for theirs in name.all_theirs(layers)}
    if not found <= FLOATS:
        return otherwise
    return found.pop() if len(found) == 1 else jnp.dtype("float32")


def named_as_found(
    names: Iterable[WeightName], present: Iterable[str], base: str
) -> list[WeightName]:
    """The table with ``base``, the name of the model under its head, where ``present`` has it:
    files of that model alone leave it off, and files of it under another head put it on.

    >>> [found] = named_as_found([WeightName("norm", "model.norm")], ["norm"], "model.")
    >>> found.theirs
    'norm'
    """
    present = set(present)

    def renamed(name: WeightName) -> WeightName:
        bare = name.theirs.removeprefix(base)
        for theirs in (name.theirs, bare, base + bare):
            found = dataclasses.replace(name, theirs=theirs)
            if found.all_theirs(1)[0] in present:
                return found
        return name

    return [renamed(name) for name in names]


def export_weights(
    names: Iterable[WeightName], params: dict[str, Any], *, layers: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors one by one, in their own order of rows and columns."""
    leaves = named_leaves(params)
    sharers: dict[Any, list[WeightName]] = collections.defaultdict(list)
    for name in names:
        sharers[name.theirs, name.layers].append(name)  # stacks have layers of their own
    for members in sharers.values():
        tensors = [_unstack(name, leaves[name.ours]) for name in members]
        for index, theirs in enumerate(members[0].all_theirs(layers)):
            # as arrays: an entry of a vector (a tensor of no dimensions) would be a bare number
            entries = (np.asarray(array[index]) for array in tensors)
            parts = [_there(name, entry) for name, entry in zip(members, entries)]
            yield theirs, _joined(members, parts)


def _unstack(name: WeightName, leaf: Any) -> np.ndarray:
    """One parameter with one leading axis that counts their tensors."""
    array = np.asarray(jax.device_get(leaf))
    count = math.prod(array.shape[: name.stacked_axes])
    return array.reshape(count, *array.shape[name.stacked_axes :])


def _there(name: WeightName, array: np.ndarray) -> np.ndarray:
    array = array.swapaxes(-1, -2) if name.transpose else array
    array = name.restore(array) if name.restore else array
    return array if name.stored_shape is None else array.reshape(name.stored_shape)


def _joined(members: list[WeightName], parts: list[np.ndarray]) -> np.ndarray:
    part = members[0].part
    if part is None:
        # NumPy gives a contiguous array one dimension at least
        return np.ascontiguousarray(parts[0]).reshape(parts[0].shape)
    axis = part.axis % parts[0].ndim
    shape = list(parts[0].shape)
    shape[axis] = sum(array.shape[axis] for array in parts)
    whole = np.empty(shape, parts[0].dtype)
    for name, array in zip(members, parts):
        assert name.part is not None
        whole[name.part.index(whole.shape)] = array
    return whole
