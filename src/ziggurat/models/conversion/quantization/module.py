"""How one module's weight is stored by a method of quantisation, and how a method is asked.

A method has a reader, made of its settings. It looks at a checkpoint's tensors and gives for a
module a :class:`QuantizedModule`, or ``None`` for one that is stored as floats: the tensors decide,
so that whatever a config lists as not converted is read as it is.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from ziggurat.core.errors import CheckpointError, ModelError
from ziggurat.kernels.linear import QuantizedWeight, WeightFormat
from ziggurat.models.conversion.weight_names import TensorSource

PARTS = (
    "qvalue",
    "scale",
    "zero_point",
    "high",
    "super_scale",
    "offset",
    "super_offset",
    "order",
)
"""Parts of a quantised weight, by the names of :class:`QuantizedWeight`."""


@dataclasses.dataclass(frozen=True)
class QuantizedModule:
    """A module's weight as it lies in a checkpoint."""

    format: WeightFormat
    tensors: frozenset[str]
    """Every tensor of the module's that the weight is read from, or that says nothing of it."""
    read: Callable[[str], np.ndarray]
    """A part by its name. Rows are output channels, ``[..., f, d]``, packed along ``d``; where
    ``axis`` is -2, ``[..., d, f]``. ``order`` is ``[d]``."""
    shape: tuple[int, ...]
    """Shape of the float weight in that layout."""
    scale_type: np.dtype = dataclasses.field(default_factory=lambda: np.dtype(np.float32))
    """Type in which scales are stored, where the format leaves it open."""
    axis: int = -1
    """The axis over which matmuls sum, in that layout."""
    source: Any = None
    """Left for the reader that made it, to bring modules to one format."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that the format has."""
        whole = self.format.abstract((2,) * 2, np.float32, -1)
        return tuple(part for part in PARTS if getattr(whole, part) is not None)

    def dequantized(self) -> np.ndarray:
        """The float weight, in float32."""
        whole = self.format.abstract(self.shape, np.float32, self.axis)
        made = {part: jnp.asarray(self.read(part)) for part in self.parts}
        if self.format.scale is None:
            made |= {p: made[p].astype(jnp.float32) for p in ("scale", "offset") if p in made}
        return np.asarray(_expanded(dataclasses.replace(whole, **made)))


@jax.jit
def _expanded(weight: QuantizedWeight) -> jax.Array:
    return weight.dequantized()


@runtime_checkable
class MethodReader(Protocol):
    """Reader of the modules of one method of quantisation."""

    def module(self, weight: str, tensors: "Present") -> QuantizedModule | None:
        """The module whose float weight would be the tensor ``weight``; ``None``: it is floats.

        Raises:
            ModelError, CheckpointError: the config or the tensors ask for what is not read.
        """
        ...

    def alike(self, modules: Sequence[QuantizedModule]) -> list[QuantizedModule] | None:
        """Modules of several formats in one that holds all their values, or ``None``."""
        ...

    def named(self, tensor: str) -> str:
        """The float weight that a tensor is a part of, by the name it would have; else its own
        name."""
        ...


class Apart:
    """For readers: no format holds what several hold; and parts are found at ends of names."""

    PRINCIPAL: ClassVar[Mapping[str, str]] = {}
    """How the names of tensors end that are there for every weight, and how the weight's does."""

    def alike(self, modules: Sequence[QuantizedModule]) -> list[QuantizedModule] | None:
        return None

    def named(self, tensor: str) -> str:
        for theirs, ours in self.PRINCIPAL.items():
            if tensor.endswith(theirs):
                return tensor.removesuffix(theirs) + ours
        return tensor


class Present:
    """A checkpoint's tensors, with the questions that readers ask."""

    def __init__(self, tensors: TensorSource):
        self.source = tensors
        self._names = frozenset(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def names(self) -> frozenset[str]:
        return self._names

    def read(self, name: str) -> np.ndarray:
        """A tensor.

        Raises:
            CheckpointError: it is not there.
        """
        if name not in self._names:
            raise CheckpointError(
                f"tensor {name}",
                found="absent",
                expected="all parts of a quantised weight",
                fix="copy the checkpoint again",
            )
        return self.source.read(name)

    def dtype_of(self, name: str) -> np.dtype:
        return np.dtype(self.source.dtype_of(name)) if name in self._names else np.dtype(np.float32)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; files that are mapped know it without reading."""
        info = getattr(self.source, "info", None)
        return tuple(info(name).shape if info is not None else self.read(name).shape)

    def of_module(self, home: str, ends: Collection[str]) -> frozenset[str]:
        """A module's tensors whose names have one of these ends."""
        return frozenset(f"{home}.{end}" for end in ends if f"{home}.{end}" in self._names)


def expect(name: str, array: np.ndarray, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An array of this type and shape.

    Raises:
        CheckpointError: it is of another.
    """
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise CheckpointError(
            f"tensor {name}",
            found=f"{array.dtype} {list(array.shape)}",
            expected=f"{np.dtype(dtype)} {list(shape)}",
            fix="check config.json against the weights",
        )
    return array


def refuse(key: str, found: object, expected: str, fix: str = "") -> NoReturn:
    """Refuse a key of ``quantization_config``.

    Raises:
        ModelError: always.
    """
    raise ModelError(
        f"config.json: quantization_config.{key}",
        found=found if isinstance(found, str) else repr(found),
        expected=expected,
        fix=fix
        or "this part of the format is not implemented; load the float version of the model",
    )


def from_words(words: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned values of 32-bit words ``[n, w]``, low bits first: ``[n, w * 32 / bits]``."""
    bytes_ = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    if bits == 8:
        return bytes_
    pairs = np.stack([bytes_ & 0xF, bytes_ >> 4], axis=-1)
    return pairs.reshape(len(bytes_), -1)


def signed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned codes as the stored form of ``int4`` or ``int8`` that is less by half the range."""
    if bits == 8:
        return (codes ^ 0x80).view(np.int8)
    halves = codes ^ 8
    return halves[:, 0::2] | (halves[:, 1::2] << 4)


def group_of(inputs: int, size: int | None, where: str) -> int | None:
    """Inputs that share a scale; ``None``: all.

    Raises:
        ModelError: groups do not divide the inputs.
    """
    if size is None or size == -1 or size >= inputs:
        return None
    if size < 1 or inputs % size:
        raise ModelError(
            where,
            found=f"groups of {size} for {inputs} inputs",
            expected="a size that divides them",
            fix="this part of the format is not implemented",
        )
    return size


def spread_blocks(
    scales: np.ndarray, block: tuple[int, int], shape: tuple[int, int]
) -> tuple[np.ndarray, int | None]:
    """A scale for each block of rows and columns as scales ``[rows, tiles]``, and the tile.

    Blocks at the edges may be smaller; tiles are as large as divides both.
    """
    rows, columns = shape
    tile = math.gcd(block[1], columns) if columns > block[1] else columns
    starts = np.arange(0, columns, tile) // block[1]
    wide = np.repeat(scales[:, starts], block[0], axis=0)[:rows]
    return wide, None if tile == columns else tile
