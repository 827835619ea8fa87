"""Disentangled attention: scores of contents, and of contents with the distance between them."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ShapeError
from ziggurat.mesh import constrain
from ziggurat.nn.attention_context import AttentionContext, AttentionRule, Bidirectional
from ziggurat.nn.layer_state import KeyValueSpec, MixerCost
from ziggurat.nn.linear import Linear, apply_each
from ziggurat.nn.precision import Precision
from ziggurat.nn.relative_positions import Distances
from ziggurat.nn.rope import Rotation

PositionTerm = Literal["c2p", "p2c"]
"""A term of the scores: a query's content with the key's distance, or a key's content with the
query's distance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DisentangledAttentionConfig:
    """Config of :class:`DisentangledAttention`."""

    heads: int
    head_dim: int
    """Channels of one head."""
    terms: tuple[PositionTerm, ...]
    """Terms of distances in the scores."""
    distances: int
    """Classes of distances."""
    shared: bool
    """Distances go through the projections of queries and keys, rather than through their own."""

    name = "attention"

    @property
    def state(self) -> KeyValueSpec:
        c = self.head_dim
        return KeyValueSpec(kv_heads=self.heads, key_dim=c, value_dim=c)

    @property
    def cost(self) -> MixerCost:
        channels = self.heads * self.head_dim
        by_class = 2 * len(self.terms) * self.distances * channels
        return MixerCost(per_pair=2 * 2 * channels, per_token=by_class)

    @property
    def rope_dim(self) -> int:
        return self.head_dim

    @property
    def divided(self) -> dict[str, int]:
        return {"heads": self.heads}

    def build(
        self, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ) -> "DisentangledAttention":
        return DisentangledAttention(self, width, std, precision, rngs)


class DisentangledAttention(nnx.Module):
    r"""Attention whose scores of a query ``i`` and a key ``j`` are

    .. math:: s\,(q_i \cdot k_j + q_i \cdot K_{\delta(i,j)} + k_j \cdot Q_{\delta(i,j)})

    where :math:`\delta(i, j)` is the class of the distance :math:`i - j`, and ``K`` and ``Q`` are
    projections of the vectors of distances that all layers share.

    Paper: He et al. 2020 (DeBERTa), https://arxiv.org/abs/2006.03654, equation 4.
    """

    def __init__(
        self,
        c: DisentangledAttentionConfig,
        width: int,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        inner = c.heads * c.head_dim

        def linear() -> Linear:
            axes = ("embed", "heads")
            return Linear(width, inner, axes, bias=True, std=std, precision=precision, rngs=rngs)

        self.config = c
        self.query, self.key, self.value = (linear() for _ in range(3))
        self.distance_key = linear() if "c2p" in c.terms and not c.shared else None
        self.distance_query = linear() if "p2c" in c.terms and not c.shared else None
        axes = ("heads", "embed")
        self.out = Linear(inner, width, axes, bias=True, std=std, precision=precision, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        rotation: Rotation | None,
        rule: AttentionRule,
        context: AttentionContext,
        state: Any,
    ) -> tuple[Float[Array, "b t d"], Any]:
        """Mixed states; the context must be ``Bidirectional``, with vectors of distances.

        Raises:
            ShapeError: another context.
        """
        parts = apply_each((self.query, self.key, self.value), x)
        query, key, value = (self._by_head(part) for part in parts)
        query, key = (constrain(y, ("batch", "sequence", "heads", None)) for y in (query, key))
        if self.config.terms:
            if not isinstance(context, Bidirectional) or context.distances is None:
                raise ShapeError(
                    "disentangled attention",
                    found=f"the context {type(context).__name__}",
                    expected="attention in both directions with vectors of distances",
                )
            bias = self._bias(query, key, context.distances)
            context = dataclasses.replace(context, bias=rule.scale * bias)
        mixed, state = context.attend(query, key, value, positions, rule, state)
        return self.out(mixed.reshape(*x.shape[:2], -1)), state

    def _bias(
        self, query: Float[Array, "b t h c"], key: Float[Array, "b t h c"], distances: Distances
    ) -> Float[Array, "b h t t"]:
        """Sum of the terms of distances, in float32, before scaling."""
        classes = distances.classes[None, None]
        bias = jnp.zeros((), jnp.float32)
        for term, x, own, shared in (
            ("c2p", query, self.distance_key, self.key),
            ("p2c", key, self.distance_query, self.query),
        ):
            if term not in self.config.terms:
                continue
            projected = (shared if own is None else own)(distances.vectors)
            by_class = jnp.einsum(
                "bthc,nhc->bhtn",
                x,
                projected.reshape(-1, self.config.heads, self.config.head_dim),
                preferred_element_type=jnp.float32,
            )
            # rows are keys in the second term, whose class is that of the same pair
            columns = classes if term == "c2p" else classes.swapaxes(2, 3)
            of_pairs = jnp.take_along_axis(by_class, columns, axis=3)
            bias = bias + (of_pairs if term == "c2p" else of_pairs.swapaxes(2, 3))
        return bias

    def _by_head(self, x: Float[Array, "b t _"]) -> Float[Array, "b t h c"]:
        return x.reshape(*x.shape[:2], self.config.heads, self.config.head_dim)
