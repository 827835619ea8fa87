"""Relative positions: a learned bias on attention scores or a learned vector by distance."""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.nn.linear import parameter
from ziggurat.nn.norm import NormConfig
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


class Distances(NamedTuple):
    """Vectors of classes of distances, and the class of each pair of tokens."""

    vectors: Float[Array, "n d"]
    """A vector for each class."""
    classes: Int[Array, "t t"]
    """Class of the distance from each query (rows) to each key (columns)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeEmbeddingsConfig:
    """Config of :class:`RelativeEmbeddings`."""

    longest: int
    """Distance in tokens from which on all share a class."""
    buckets: int | None = None
    """If given, half of the classes: distances up to half of it have a class each, and farther ones
    share classes that widen as their logarithm. ``None``: a class each up to ``longest``."""
    norm: NormConfig | None = None
    """Norm of the vectors."""

    @property
    def span(self) -> int:
        """Classes to one side."""
        return self.buckets or self.longest

    @property
    def rows(self) -> int:
        """Rows of the table, for both sides."""
        return 2 * self.span

    def build(
        self, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ) -> "RelativeEmbeddings":
        return RelativeEmbeddings(self, width, std, precision, rngs)


class RelativeEmbeddings(nnx.Module):
    """Vectors of the distance from query to key, which all layers share.

    Paper: He et al. 2020 (DeBERTa), https://arxiv.org/abs/2006.03654, section 3.1; classes of far
    distances as in https://arxiv.org/abs/2111.09543.
    """

    def __init__(
        self,
        c: RelativeEmbeddingsConfig,
        width: int,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        self.config, self.compute = c, precision.compute
        self.table = parameter(rngs, (c.rows, width), (None, "embed"), std, precision)
        self.norm = c.norm and c.norm.build(width, precision)

    def __call__(self, positions: Int[Array, "t"]) -> Distances:
        """Vectors, and classes of tokens at these positions."""
        vectors, span = self.table[...].astype(self.compute), self.config.span
        vectors = vectors if self.norm is None else self.norm(vectors)
        offsets = _offsets(self.config)
        distance = positions[:, None] - positions[None, :]
        far = jnp.clip(jnp.abs(distance), 0, len(offsets) - 1)
        offset = jnp.sign(distance) * jnp.asarray(offsets, jnp.int32)[far]
        return Distances(vectors, jnp.clip(span + offset, 0, 2 * span - 1))


MOST = 1 << 16
"""Distance in tokens beyond which classes no longer widen, more than any table's classes reach."""


def _offsets(c: RelativeEmbeddingsConfig) -> Int[np.ndarray, "n"]:
    """How far from the middle of the table the class of each distance is, to the first distance of
    the last class."""
    if c.buckets is None:
        return np.arange(c.span + 1)
    middle = c.buckets // 2
    distance = np.arange(MOST)
    # in float32, so that a distance at the border of two classes falls as PyTorch has it
    ratio = np.maximum(distance, middle).astype(np.float32) / np.float32(middle)
    span = np.log(np.float32((c.longest - 1) / middle))
    far = np.ceil(np.log(ratio) / span * np.float32(middle - 1)).astype(np.int64) + middle
    found = np.minimum(np.where(distance <= middle, distance, far), c.span)
    return found[: int(np.argmax(found)) + 1]
