"""Quantised weights: integers or small floats with scales, in the place of a float matrix.

A :class:`QuantizedWeight` stands in a parameter tree where a kernel or a table stood. It is a
pytree node, so stacking, scanning, sharding and checkpoints treat its parts as they treat arrays;
operations see its type and take the quantised path. Numbers of the types that Qwix
(https://github.com/google/qwix) knows are Qwix's: the same quantisation, the same matmuls. Other
programs' block formats (scales of scales, offsets, permuted inputs) are dequantised here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ziggurat.core.pytrees import Leaf
from ziggurat.core.registry import Registry
from ziggurat.kernels.linear.weight_types import (
    FOUR_BIT,
    TYPES,
    WeightType,
    decoded,
    pack,
    unpack,
)

ActivationType = Literal["int8", "fp8_e4m3"]
"""Types to which activations may be quantised as they come, one scale per token."""
ScaleType = Literal["float16", "float8_e4m3fn", "e8m0", "int8", "uint8"]
"""Types of scales other than the weight's own; ``e8m0`` is a power of two, a byte of its exponent
with bias 127."""


def qtype(weight: WeightType) -> Any:
    """Qwix's name of a type; ``None``: it does not know the type."""
    return TYPES[weight].qwix


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
    scale: ScaleType | None = None
    """Type of the scales; ``None``: that of the dequantised weight."""
    offset: bool = False
    """Whether an offset of the scales' type is added for each tile."""
    super_tile: int | None = None
    """Inputs that share a scale of scales, and one of offsets; 0: all inputs of an output channel;
    ``None``: scales are final."""
    ordered: bool = False
    """Whether inputs are stored in another order (GPTQ's activation order)."""

    def __post_init__(self):
        if self.weight not in TYPES:
            raise ValueError(f"weight type {self.weight!r}: expected one of {', '.join(TYPES)}")

    @property
    def stored_dtype(self) -> jnp.dtype:
        """Type of the stored array."""
        return jnp.dtype(TYPES[self.weight].dtype)

    @property
    def scale_dtype(self) -> jnp.dtype | None:
        """Type of the array of scales; ``None``: that of the dequantised weight."""
        if self.scale is None:
            return None
        return jnp.dtype("uint8" if self.scale == "e8m0" else self.scale)

    @property
    def super_dtype(self) -> jnp.dtype:
        """Type of the scales of scales: llama.cpp's are float16, NVFP4's float32."""
        return jnp.dtype("float16" if self.super_tile else "float32")

    @property
    def in_qwix(self) -> bool:
        """Whether Qwix knows the format."""
        own = self.scale is not None or self.offset or self.super_tile is not None
        return qtype(self.weight) is not None and not own

    def tiles(self, inputs: int) -> int:
        """Scales of one output channel."""
        return 1 if self.tile_size is None else inputs // self.tile_size

    def abstract(self, shape: tuple[int, ...], dtype: DTypeLike, axis: int) -> "QuantizedWeight":
        """Shapes and types of a weight ``shape`` in this format.

        Args:
            shape: of the float weight.
            dtype: of the dequantised weight.
            axis: over which matmuls sum, -1 or -2.
        """
        kind, inputs = TYPES[self.weight], shape[axis]

        def part(size: int, dtype: DTypeLike) -> jax.ShapeDtypeStruct:
            sizes = list(shape)
            sizes[axis] = size
            return jax.ShapeDtypeStruct(tuple(sizes), jnp.dtype(dtype))

        scale = part(self.tiles(inputs), self.scale_dtype or dtype)
        outer = None
        if self.super_tile is not None:
            outer = part(inputs // self.super_tile if self.super_tile else 1, self.super_dtype)
        order = jax.ShapeDtypeStruct((*shape[:-2], inputs), jnp.dtype("int32"))
        return QuantizedWeight(
            qvalue=part(inputs * kind.low // 8, kind.dtype),
            scale=scale,
            zero_point=None if self.symmetric else part(self.tiles(inputs), jnp.int8),
            format=self,
            axis=axis,
            high=part(inputs * kind.high // 8, jnp.uint8) if kind.high else None,
            super_scale=outer,
            offset=scale if self.offset else None,
            super_offset=outer if self.offset else None,
            order=order if self.ordered else None,
            float_type=None if self.scale is None else str(jnp.dtype(dtype)),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    r"""A weight as :math:`W \approx (q - z) \cdot s + o`, with one scale ``s``, zero point ``z``
    and offset ``o`` for each output channel and tile of inputs. Scales and offsets may be quantised
    themselves, with a float for each super-tile. Its parts may be arrays, shapes, shardings or axis
    names, as in any pytree.

    >>> x = pack(jnp.array([[1, -2], [3, 7]], jnp.int4), axis=0)
    >>> w = QuantizedWeight(x, jnp.full((1, 2), 0.5), None, WeightFormat("int4"), -2)
    >>> w.shape, w.nbytes, w.dequantized().tolist()
    ((2, 2), 10, [[0.5, -1.0], [1.5, 3.5]])
    """

    qvalue: Leaf
    """``[..., d, f]`` (tables: ``[v, d]``); types of fewer than eight bits have several values of
    the summed axis in each byte, see :mod:`ziggurat.kernels.linear.weight_types`."""
    scale: Leaf
    """As ``qvalue``, with as many entries along the summed axis as there are tiles."""
    zero_point: Leaf
    """int8, as ``scale``; ``None`` where the format is symmetric."""
    format: WeightFormat = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(metadata={"static": True})
    """The axis over which matmuls sum: -2 of a kernel, -1 of a table."""
    high: Leaf = None
    """The upper bits of values of 3, 5 or 6 bits; ``None`` for other types."""
    super_scale: Leaf = None
    """Floats that multiply the scales, one for each super-tile; or ``None``."""
    offset: Leaf = None
    """Added to each tile, as ``scale``; or ``None``."""
    super_offset: Leaf = None
    """Floats that multiply the offsets, as ``super_scale``."""
    order: Int[Array, "... d"] | Leaf = None
    """Index of the input channel that each stored row multiplies; ``None``: rows are in the order
    of the channels."""
    float_type: str | None = dataclasses.field(default=None, metadata={"static": True})
    """Type of the dequantised weight, where it is not that of the scales."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the float weight."""
        shape = list(self.qvalue.shape)
        shape[self.axis] = shape[self.axis] * 8 // TYPES[self.format.weight].low
        return tuple(shape)

    @property
    def ndim(self) -> int:
        return len(self.qvalue.shape)

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))

    @property
    def dtype(self) -> np.dtype:
        """Type of the dequantised weight."""
        return self.scale.dtype if self.float_type is None else jnp.dtype(self.float_type)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.size * part.dtype.itemsize for part in jax.tree.leaves(self))

    def astype(self, dtype: DTypeLike) -> "QuantizedWeight":
        """The weight with results of type ``dtype``; scales of a type of their own stay so."""
        if self.float_type is not None:
            return dataclasses.replace(self, float_type=str(jnp.dtype(dtype)))
        parts = {"scale": self.scale.astype(dtype)}
        if self.offset is not None:
            parts["offset"] = self.offset.astype(dtype)
        return dataclasses.replace(self, **parts)

    def __getitem__(self, index: Any) -> "QuantizedWeight":
        """All of it for ``[...]``, as NNX reads a parameter; a layer or an expert for an index."""
        if index is Ellipsis:
            return self
        return jax.tree.map(lambda part: part[index], self)

    def rows(self, ids: Int[Array, "*n"]) -> Float[Array, "*n d"]:
        """Rows of a table, the only ones that are dequantised."""
        table = dataclasses.replace(self, order=None)
        some = jax.tree.map(lambda part: jnp.take(part, ids, axis=0), table)
        return dataclasses.replace(some, order=self.order).dequantized()

    def qarray(self) -> Any:
        """Qwix's ``QArray`` of this weight, inputs in the order in which they are stored; for
        formats that it knows."""
        from qwix import QArray

        qvalue = self.qvalue
        if self.format.weight in FOUR_BIT:
            qvalue = unpack(qvalue, self.axis, signed=self.format.weight == "int4")
        return QArray(qvalue, self.scale, self.zero_point, qtype(self.format.weight))

    def plain(self) -> "QuantizedWeight":
        """The weight with scales and offsets in float32, one for each tile, as they are used."""
        scale = self._final(self.scale, self.super_scale)
        offset = None if self.offset is None else self._final(self.offset, self.super_offset)
        format = dataclasses.replace(self.format, scale=None, super_tile=None)
        return dataclasses.replace(
            self,
            scale=scale,
            offset=offset,
            super_scale=None,
            super_offset=None,
            format=format,
            float_type=None,
        )

    def dequantized(self) -> Float[Array, "..."]:
        """The float weight, of :attr:`dtype`."""
        if self.format.in_qwix:
            import qwix

            return self._in_order(qwix.dequantize(self.qarray()))
        values = decoded(jnp.asarray(self.qvalue), self.high, self.axis, TYPES[self.format.weight])
        inputs = values.shape[self.axis]

        def spread(part: Leaf) -> Leaf:
            return jnp.repeat(part, inputs // part.shape[self.axis], axis=self.axis)

        if self.zero_point is not None:
            values = values - spread(self.zero_point).astype(jnp.float32)
        values = values * spread(self._final(self.scale, self.super_scale))
        if self.offset is not None:
            values = values + spread(self._final(self.offset, self.super_offset))
        return self._in_order(values.astype(self.dtype))

    def _final(self, part: Leaf, outer: Leaf) -> Float[Array, "..."]:
        """Scales or offsets in float32."""
        if self.format.scale == "e8m0":
            # 0 stands for 2**-127, which XLA flushes to zero as all below the least normal number
            power = jax.lax.bitcast_convert_type(part.astype(jnp.uint32) << 23, jnp.float32)
            floats = jnp.where(part == 255, jnp.float32("nan"), power)
        else:
            floats = jnp.asarray(part).astype(jnp.float32)
        if outer is None:
            return floats
        each = floats.shape[self.axis] // outer.shape[self.axis]
        return floats * jnp.repeat(outer.astype(jnp.float32), each, axis=self.axis)

    def _in_order(self, values: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.order is None:
            return values
        back = jnp.argsort(self.order, axis=-1)
        lead = back.shape[:-1]
        shape = (*lead, -1, 1) if self.axis % self.ndim == self.ndim - 2 else (*lead, 1, -1)
        if not lead:  # rows of a table may have any number of leading axes
            return jnp.take(values, back, axis=self.axis)
        return jnp.take_along_axis(values, back.reshape(shape), axis=self.axis)

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


def is_quantized(node: object) -> bool:
    """For ``is_leaf``: whether a node of a parameter tree is a :class:`QuantizedWeight`."""
    return isinstance(node, QuantizedWeight)


def dense(weight: Weight) -> Float[Array, "..."]:
    """A weight as an array, for an operation without a quantised path."""
    return weight.dequantized() if isinstance(weight, QuantizedWeight) else weight


def in_stored_order(x: Float[Array, "... d"], weight: Any) -> tuple[Float[Array, "... d"], Any]:
    """Activations and a weight for the same matmul without a permutation: the activations are
    permuted instead, which are fewer."""
    if not isinstance(weight, QuantizedWeight) or weight.order is None:
        return x, weight
    format = dataclasses.replace(weight.format, ordered=False)
    return x[..., weight.order], dataclasses.replace(weight, order=None, format=format)


def _quantized_activations(x: Float[Array, "... d"], format: WeightFormat) -> Any:
    """Activations as Qwix's ``QArray`` of the format's type, each token with scales of its own."""
    import qwix

    axis, size = x.ndim - 1, format.activation_tile_size
    assert format.activation is not None
    return qwix.quantize(
        x,
        qtype(format.activation),
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
    x: Float[Array, "... d"], weight: QuantizedWeight, preferred: DTypeLike | None
) -> Float[Array, "... f"]:
    """The definition of :func:`product`."""
    x, weight = in_stored_order(x, weight)
    format, axis = weight.format, x.ndim - 1
    numbers = (((axis,), (weight.axis % weight.ndim,)), ((), ()))
    if not format.in_qwix:
        x, right = rounded_activations(x, weight), weight.dequantized().astype(x.dtype)
        return jax.lax.dot_general(x, right, numbers, preferred_element_type=preferred)
    import qwix

    left: Any = x if format.activation is None else _quantized_activations(x, format)
    with jax.numpy_dtype_promotion("standard"):  # Qwix (0.1.8) multiplies int32 sums by scales
        return qwix.dot_general(left, weight.qarray(), numbers, preferred_element_type=preferred)


IMPLEMENTATIONS: Registry[Callable[[Array, QuantizedWeight, Leaf], Array]] = Registry(
    "quantised product"
)
IMPLEMENTATIONS.add("qwix", qwix_product)


def product(
    x: Float[Array, "... d"],
    weight: QuantizedWeight,
    *,
    preferred: DTypeLike | None = None,
    implementation: str = "auto",
) -> Float[Array, "... f"]:
    """``x`` times a quantised matrix, over the last axis of ``x`` and the summed one of ``weight``.

    Without a type of activations the weight is dequantised into the matmul, which XLA fuses where
    it can; with one, each token of ``x`` is quantised and integers are multiplied (for tiles of at
    least 128, below which Qwix dequantises both). ``auto`` is ``qwix``, the definition.
    """
    name = "qwix" if implementation == "auto" else implementation
    return IMPLEMENTATIONS[name](x, weight, preferred)
