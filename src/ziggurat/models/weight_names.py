"""Names of the same weights here and in a published checkpoint, in both directions.

Per-layer weights are stacked here and separate there: ``{layer}`` in their name counts layers.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from ziggurat.core.errors import CheckpointError, did_you_mean
from ziggurat.core.pytrees import named_leaves, nested


@runtime_checkable
class TensorSource(Protocol):
    """Tensors by name, read one at a time; the files of ``ziggurat.checkpoint`` are such."""

    def __iter__(self) -> Iterator[str]: ...

    def read(self, name: str) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class WeightName:
    """One parameter's name here and there, and how its layout differs."""

    ours: str
    """Dotted name here."""
    theirs: str
    """Name there; with ``{layer}`` for stacked parameters."""
    transpose: bool = False
    """Stored there as ``[out, in]``."""
    reorder: Callable[[np.ndarray], np.ndarray] | None = None
    """From their order of rows to transformers' order, before transposing; import only."""

    def all_theirs(self, layers: int) -> list[str]:
        """Every name there that belongs to this parameter."""
        if "{layer}" not in self.theirs:
            return [self.theirs]
        return [self.theirs.format(layer=layer) for layer in range(layers)]


def import_weights(
    names: Iterable[WeightName],
    tensors: TensorSource,
    abstract: dict[str, Any],
    *,
    layers: int,
    ignored: Callable[[str], bool] = lambda name: False,
    place: Callable[[str, np.ndarray], Any] = lambda name, array: array,
) -> dict[str, Any]:
    """Parameters read from a source of their tensors, one at a time.

    Args:
        names: the family's table.
        tensors: their tensors.
        abstract: shapes and types of our parameters.
        layers: number of stacked layers.
        ignored: names there that carry nothing (buffers, copies of tied weights).
        place: puts a finished parameter where it belongs, e.g. on a mesh.

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
    flat = {n.ours: place(n.ours, _stack(n, tensors, shapes[n.ours], layers)) for n in names}
    assert flat.keys() == shapes.keys(), set(flat) ^ set(shapes)
    return nested(flat)


def export_weights(
    names: Iterable[WeightName], params: dict[str, Any], *, layers: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors one by one, in their order of rows and columns."""
    leaves = named_leaves(params)
    for name in names:
        array = np.asarray(jax.device_get(leaves[name.ours]))
        stacked = "{layer}" in name.theirs
        for index, theirs in enumerate(name.all_theirs(layers)):
            part = array[index] if stacked else array
            yield theirs, np.ascontiguousarray(part.T if name.transpose else part)


def _stack(name: WeightName, tensors: TensorSource, abstract: Any, layers: int) -> np.ndarray:
    stacked = "{layer}" in name.theirs
    out = np.empty(abstract.shape, abstract.dtype)
    for index, theirs in enumerate(name.all_theirs(layers)):
        tensor = tensors.read(theirs)
        target = out[index] if stacked else out
        expected = target.shape[::-1] if name.transpose else target.shape
        if tensor.shape != expected:
            raise CheckpointError(
                f"tensor {theirs}",
                found=f"shape {list(tensor.shape)}",
                expected=f"shape {list(expected)}",
                fix="check config.json against the weights",
            )
        tensor = name.reorder(tensor) if name.reorder else tensor
        target[...] = tensor.T if name.transpose else tensor
    return out
