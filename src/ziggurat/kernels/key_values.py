"""Keys and values of a cache: as numbers, or rounded to int8 with scales."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8


class KeyValues(NamedTuple):
    """Keys and values in memory: in the type of computing, or as int8 with a scale per head and
    token. The leading dimensions are the holder's."""

    keys: Float[Array, "*n c"] | Int8[Array, "*n c"]
    values: Float[Array, "*n z"] | Int8[Array, "*n z"]
    key_scales: Float[Array, "*n"] | None = None
    """The stored integer times this is the number; ``None`` where numbers are stored."""
    value_scales: Float[Array, "*n"] | None = None

    @property
    def rounded(self) -> bool:
        """Whether integers with scales are stored."""
        return self.key_scales is not None

    def put(self, key: Array, value: Array, place: Callable[[Array, Array], Array]) -> "KeyValues":
        """Write new keys and values into the held ones, rounded if those are int8.

        Args:
            key: new keys.
            value: new values.
            place: from an array that is held and new entries to the array with these in it; the
                entries of scales have no last dimension.
        """
        if self.key_scales is None or self.value_scales is None:
            return KeyValues(place(self.keys, key), place(self.values, value))
        (keys, key_scales), (values, value_scales) = quantized(key), quantized(value)
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


def quantized(x: Float[Array, "*n c"]) -> tuple[Int8[Array, "*n c"], Float[Array, "*n"]]:
    """Rounds vectors to int8 by their largest channel: :math:`x \\approx s q`, :math:`s = \\max
    |x| / 127`, so that no channel is off by more than :math:`s / 2`."""
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1) / 127
    levels = jnp.round(wide / jnp.where(scale == 0, 1, scale)[..., None])
    return levels.astype(jnp.int8), scale


def dequantized(
    stored: Int8[Array, "*n c"], scale: Float[Array, "*n"], dtype: DTypeLike
) -> Float[Array, "*n c"]:
    """Numbers from :func:`quantized`."""
    return (stored.astype(jnp.float32) * scale[..., None]).astype(dtype)
