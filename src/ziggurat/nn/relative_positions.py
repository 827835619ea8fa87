"""Relative positions: a learned bias on attention scores for each distance, by head."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.nn.linear import parameter
from ziggurat.nn.precision import Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativePositionsConfig:
    """Config of :class:`RelativePositions`."""

    heads: int
    """Heads of every layer; all layers share the table."""
    rows: int
    """Rows of the table, at least ``buckets``."""
    buckets: int = 32
    """Classes of distances: half of them for keys after the query."""
    longest: int = 128
    """Distance in tokens from which on all share a class."""


class RelativePositions(nnx.Module):
    """Bias on scores by the class of the distance from query to key.

    Near distances have a class each, and farther ones share classes that widen as their logarithm.

    Paper: Raffel et al. 2019 (T5), https://arxiv.org/abs/1910.10683, section 2.1.
    """

    def __init__(
        self, c: RelativePositionsConfig, std: float, precision: Precision, rngs: nnx.Rngs
    ):
        self.config = c
        self.table = parameter(rngs, (c.rows, c.heads), (None, "heads"), std, precision)

    def __call__(self, positions: Int[Array, "t"]) -> Float[Array, "h t t"]:
        """Bias on the scores of queries and keys at these positions."""
        classes = self._classes(positions)
        return jnp.take(self.table[...], classes, axis=0).transpose(2, 0, 1)

    def _classes(self, positions: Int[Array, "t"]) -> Int[Array, "t t"]:
        c = self.config
        half, distance = c.buckets // 2, positions[None, :] - positions[:, None]
        return jnp.asarray(_class_of(c, half), jnp.int32)[
            jnp.clip(jnp.abs(distance), 0, c.longest)
        ] + jnp.where(distance > 0, half, 0)


def _class_of(c: RelativePositionsConfig, half: int) -> Int[np.ndarray, "n"]:
    """The class of every distance up to the longest, to one side."""
    exact = half // 2
    distance = np.arange(c.longest + 1)
    # in float32, so that a distance at the border of two classes falls as PyTorch has it
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    span = np.float32(math.log(c.longest / exact))
    far = exact + (np.log(ratio) / span * np.float32(half - exact)).astype(np.int32)
    return np.where(distance < exact, distance, np.minimum(far, half - 1))
