"""Quantised weights: integers or small floats with scales, in the place of a float matrix.

A :class:`QuantizedWeight` stands in a parameter tree where a kernel or a table stood. It is a
pytree node, so stacking, scanning, sharding and checkpoints treat its parts as they treat arrays;
operations see its type and take the quantised path. Numbers are Qwix's (https://github.com/google/qwix):
the same quantisation, the same matmuls. Four-bit values are kept two in a byte, since XLA on CPUs
and the array store give an ``int4`` a whole byte.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8

from ziggurat.core.registry import Registry

WeightType = Literal["int8", "int4", "nf4", "fp8_e4m3", "fp8_e5m2"]
"""Types of weights: integers, the 4-bit normal float of QLoRA, 8-bit floats."""
ActivationType = Literal["int8", "fp8_e4m3"]
"""Types to which activations may be quantised as they come, one scale per token."""

QTYPES: dict[str, Any] = {
    "int8": "int8",
    "int4": "int4",
    "nf4": "nf4",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}
"""Qwix's names."""
FOUR_BIT = frozenset({"int4", "nf4"})


@dataclasses.dataclass(frozen=True)
class WeightFormat:
    """Storage format of a quantised weight, and the type of its activations."""

    weight: WeightType
    activation: ActivationType | None = None
    """Type to which activations are quantised before the matmul; ``None``: they stay floats."""
    tile_size: int | None = None
    """Inputs that share a scale; ``None``: all inputs of an output channel."""
    symmetric: bool = True
    """Whether zero is always the integer 0; else there is a zero point per scale."""
    activation_tile_size: int | None = None
    """Inputs of one token that share a scale; ``None``: all of them. Qwix's rules tile activations
    as weights; compressed-tensors has one scale a token."""

    @property
    def stored_dtype(self) -> jnp.dtype:
        """Type of the stored array."""
        return jnp.dtype("uint8" if self.weight in FOUR_BIT else QTYPES[self.weight])

    def abstract(self, shape: tuple[int, ...], dtype: Any, axis: int) -> "QuantizedWeight":
        """Shapes and types of a weight ``shape`` in this format.

        Args:
            shape: of the float weight.
            dtype: of its scales.
            axis: over which matmuls sum, -1 or -2.
        """
        stored, scales = list(shape), list(shape)
        stored[axis] //= 2 if self.weight in FOUR_BIT else 1
        scales[axis] = 1 if self.tile_size is None else shape[axis] // self.tile_size
        scale = jax.ShapeDtypeStruct(tuple(scales), dtype)
        zero_point = None if self.symmetric else jax.ShapeDtypeStruct(scale.shape, jnp.int8)
        qvalue = jax.ShapeDtypeStruct(tuple(stored), self.stored_dtype)
        return QuantizedWeight(qvalue, scale, zero_point, self, axis)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    r"""A weight as :math:`W \approx (q - z) \cdot s`, with one scale ``s`` for each output channel
    and tile of inputs. Its parts may be arrays, shapes, shardings or axis names, as in any pytree.

    >>> x = pack(jnp.array([[1, -2], [3, 7]], jnp.int4), axis=0)
    >>> w = QuantizedWeight(x, jnp.full((1, 2), 0.5), None, WeightFormat("int4"), -2)
    >>> w.shape, w.nbytes, w.dequantized().tolist()
    ((2, 2), 10, [[0.5, -1.0], [1.5, 3.5]])
    """

    qvalue: Any
    """``[..., d, f]`` (tables: ``[v, d]``); four-bit types have two values of the summed axis in
    each byte, the first in the low half."""
    scale: Any
    """As ``qvalue``, with as many entries along the summed axis as there are tiles."""
    zero_point: Any
    """int8, as ``scale``; ``None`` where the format is symmetric."""
    format: WeightFormat = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(metadata={"static": True})
    """The axis over which matmuls sum: -2 of a kernel, -1 of a table."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the float weight."""
        shape = list(self.qvalue.shape)
        shape[self.axis] *= 2 if self.format.weight in FOUR_BIT else 1
        return tuple(shape)

    @property
    def ndim(self) -> int:
        return len(self.qvalue.shape)

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))

    @property
    def dtype(self) -> Any:
        """Type of the dequantised weight."""
        return self.scale.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.size * part.dtype.itemsize for part in jax.tree.leaves(self))

    def astype(self, dtype: Any) -> "QuantizedWeight":
        """The weight with results of type ``dtype``."""
        return dataclasses.replace(self, scale=self.scale.astype(dtype))

    def __getitem__(self, index: Any) -> "QuantizedWeight":
        """All of it for ``[...]``, as NNX reads a parameter; a layer or an expert for an index."""
        if index is Ellipsis:
            return self
        return jax.tree.map(lambda part: part[index], self)

    def qarray(self) -> Any:
        """Qwix's ``QArray`` of this weight."""
        from qwix import QArray

        qvalue = self.qvalue
        if self.format.weight in FOUR_BIT:
            qvalue = unpack(qvalue, self.axis, signed=self.format.weight == "int4")
        return QArray(qvalue, self.scale, self.zero_point, QTYPES[self.format.weight])

    def dequantized(self) -> Float[Array, "..."]:
        """The float weight, of the scales' type."""
        import qwix

        return qwix.dequantize(self.qarray())

    @classmethod
    def of(cls, array: Any, format: WeightFormat, axis: int) -> "QuantizedWeight":
        """A ``QArray`` in the form in which it is stored."""
        qvalue, zero_point = array.qvalue, array.zero_point
        if format.weight in FOUR_BIT:
            qvalue = pack(qvalue, axis)
        if zero_point is not None:
            zero_point = zero_point.astype(jnp.int8)
        return cls(qvalue, array.scale, zero_point, format, axis)


Weight = Float[Array, "..."] | QuantizedWeight
"""Type of a parameter that is a factor of a matmul."""


def is_quantized(node: Any) -> bool:
    """For ``is_leaf``: whether a node of a parameter tree is a :class:`QuantizedWeight`."""
    return isinstance(node, QuantizedWeight)


def dense(weight: Weight) -> Float[Array, "..."]:
    """A weight as an array, for an operation without a quantised path."""
    return weight.dequantized() if isinstance(weight, QuantizedWeight) else weight


def pack(values: Any, axis: int) -> UInt8[Array, "..."]:
    """Four-bit integers, two in a byte along ``axis``, the first in the low half."""
    halves = jnp.moveaxis(values, axis, -1).astype(jnp.int8).astype(jnp.uint8) & 0xF
    packed = halves[..., 0::2] | (halves[..., 1::2] << 4)
    return jnp.moveaxis(packed, -1, axis)


def unpack(packed: UInt8[Array, "..."], axis: int, *, signed: bool) -> Integer[Array, "..."]:
    """The reverse of :func:`pack`; int8 if signed, else uint8.

    >>> unpack(pack(jnp.array([[-8, 7, 3, -1]], jnp.int4), -1), -1, signed=True).tolist()
    [[-8, 7, 3, -1]]
    """
    axis %= packed.ndim
    pairs = jnp.stack([packed & 0xF, packed >> 4], axis=axis + 1)
    shape = (*packed.shape[:axis], 2 * packed.shape[axis], *packed.shape[axis + 1 :])
    values = pairs.reshape(shape)
    return (values ^ 8).astype(jnp.int8) - 8 if signed else values


def _quantized_activations(x: Float[Array, "... d"], format: WeightFormat) -> Any:
    """Activations as Qwix's ``QArray`` of the format's type, each token with scales of its own."""
    import qwix

    axis, size = x.ndim - 1, format.activation_tile_size
    assert format.activation is not None
    return qwix.quantize(
        x,
        QTYPES[format.activation],
        channelwise_axes=range(axis),
        tiled_axes={} if size is None else {axis: size},
    )


def rounded_activations(x: Float[Array, "... d"], weight: Any) -> Float[Array, "... d"]:
    """``x`` as a matmul by ``weight`` sees it: rounded to the format's type of activations, if the
    weight is quantised and has one.

    For matmuls that take the weight dequantised (a mixture's experts, absorbed attention): the
    rounded values times the dequantised weight are what :func:`product` computes in integers.

    >>> format = WeightFormat("int8", "int8")
    >>> weight = QuantizedWeight(jnp.ones((2, 1), jnp.int8), jnp.ones((1, 1)), None, format, -2)
    >>> rounded_activations(jnp.array([[127.5, 0.6]]), weight).tolist()
    [[127.0, 1.0]]
    """
    if not isinstance(weight, QuantizedWeight) or weight.format.activation is None:
        return x
    import qwix

    return qwix.dequantize(_quantized_activations(x, weight.format)).astype(x.dtype)


def qwix_product(
    x: Float[Array, "... d"], weight: QuantizedWeight, preferred: Any
) -> Float[Array, "... f"]:
    """The definition of :func:`product`."""
    import qwix

    format, axis = weight.format, x.ndim - 1
    numbers = (((axis,), (weight.axis % weight.ndim,)), ((), ()))
    left: Any = x if format.activation is None else _quantized_activations(x, format)
    with jax.numpy_dtype_promotion("standard"):  # Qwix (0.1.8) multiplies int32 sums by scales
        return qwix.dot_general(left, weight.qarray(), numbers, preferred_element_type=preferred)


IMPLEMENTATIONS: Registry[Callable[[Array, QuantizedWeight, Any], Array]] = Registry(
    "quantised product"
)
IMPLEMENTATIONS.add("qwix", qwix_product)


def product(
    x: Float[Array, "... d"],
    weight: QuantizedWeight,
    *,
    preferred: Any = None,
    implementation: str = "auto",
) -> Float[Array, "... f"]:
    """``x`` times a quantised matrix, over the last axis of ``x`` and the summed one of ``weight``.

    Without a type of activations the weight is dequantised into the matmul, which XLA fuses where
    it can; with one, each token of ``x`` is quantised and integers are multiplied (for tiles of at
    least 128, below which Qwix dequantises both). ``auto`` is ``qwix``, the definition.
    """
    name = "qwix" if implementation == "auto" else implementation
    return IMPLEMENTATIONS[name](x, weight, preferred)
