"""Keys and values of a cache: as numbers, or rounded to int8 or an 8-bit float with scales."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

ROUNDED = {"int8": jnp.int8, "fp8_e4m3": jnp.float8_e4m3fn, "fp8_e5m2": jnp.float8_e5m2}
"""Types to which keys and values may be rounded, a byte for each channel."""


class KeyValues(NamedTuple):
    """Keys and values in memory: in the type of computing, or rounded to a type of
    :data:`ROUNDED` with a scale per head and token. The leading dimensions are the holder's."""

    keys: Float[Array, "*n c"] | Int8[Array, "*n c"]
    values: Float[Array, "*n z"] | Int8[Array, "*n z"]
    key_scales: Float[Array, "*n"] | None = None
    """The stored value times this is the number; ``None`` where numbers are stored."""
    value_scales: Float[Array, "*n"] | None = None

    @property
    def rounded(self) -> bool:
        """Whether values with scales are stored."""
        return self.key_scales is not None

    def put(self, key: Array, value: Array, place: Callable[[Array, Array], Array]) -> "KeyValues":
        """Write new keys and values into the held ones, rounded as those are.

        Args:
            key: new keys.
            value: new values.
            place: from an array that is held and new entries to the array with these in it; the
                entries of scales have no last dimension.
        """
        if self.key_scales is None or self.value_scales is None:
            return KeyValues(place(self.keys, key), place(self.values, value))
        keys, key_scales = quantized(key, self.keys.dtype)
        values, value_scales = quantized(value, self.values.dtype)
        return KeyValues(
            place(self.keys, keys),
            place(self.values, values),
            place(self.key_scales, key_scales),
            place(self.value_scales, value_scales),
        )

    def read(
        self, dtype: DTypeLike, pick: Callable[[Array], Array] = lambda held: held
    ) -> tuple[Array, Array]:
        """Read cached keys and values, dequantised to a float type; ``pick`` selects the
        entries."""
        if self.key_scales is None or self.value_scales is None:
            return pick(self.keys).astype(dtype), pick(self.values).astype(dtype)
        keys = dequantized(pick(self.keys), pick(self.key_scales), dtype)
        return keys, dequantized(pick(self.values), pick(self.value_scales), dtype)


def quantized(
    x: Float[Array, "*n c"], dtype: DTypeLike = jnp.int8
) -> tuple[Int8[Array, "*n c"] | Float[Array, "*n c"], Float[Array, "*n"]]:
    r"""Round vectors by their largest channel: :math:`x \approx s q`, :math:`s = \max |x| / m`.

    :math:`m` is the type's largest number: 127, 448 or 57344.
    An int8 channel is off by at most :math:`s / 2`, which is :math:`\max|x| / 254`. A float8 one is
    off by at most half a unit of its last bit, :math:`|x| / 16` in e4m3 and :math:`|x| / 8` in
    e5m2, or half the smallest number's step, :math:`2^{-10} s` and :math:`2^{-17} s`.
    """
    wide, kind = x.astype(jnp.float32), jnp.dtype(dtype)
    most = 127.0 if kind == jnp.int8 else float(jnp.finfo(kind).max)
    scale = jnp.max(jnp.abs(wide), axis=-1) / most
    levels = wide / jnp.where(scale == 0, 1, scale)[..., None]
    # a quotient may exceed the largest number by rounding, and e4m3 has no infinity but a NaN
    levels = jnp.round(levels) if kind == jnp.int8 else jnp.clip(levels, -most, most)
    return levels.astype(kind), scale


def dequantized(
    stored: Int8[Array, "*n c"] | Float[Array, "*n c"],
    scale: Float[Array, "*n"],
    dtype: DTypeLike,
) -> Float[Array, "*n c"]:
    """Numbers from :func:`quantized`."""
    return (stored.astype(jnp.float32) * scale[..., None]).astype(dtype)
