"""Multi-head latent attention (MLA): keys and values are made from one small vector per token."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.kernels.linear import dense, rounded_activations
from ziggurat.mesh import constrain
from ziggurat.nn.attention_context import AttentionContext, AttentionRule
from ziggurat.nn.layer_state import KeyValueSpec, MixerCost
from ziggurat.nn.linear import Linear
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.precision import Precision
from ziggurat.nn.rope import Rotation, rotate


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentAttentionConfig:
    """Multi-head latent attention (DeepSeek-AI 2024, https://arxiv.org/abs/2405.04434)."""

    heads: int
    """Query heads; each has its own keys and values."""
    query_latent: int | None
    """Width of the compressed query; ``None``: queries come from the stream directly."""
    latent: int
    """Width of the compressed key and value."""
    plain_dim: int
    """Channels of a head's query and key that do not rotate."""
    rotary_dim: int
    """Channels that do; their key is shared by all heads."""
    value_dim: int
    """Channels of a head's value."""
    norm: NormConfig
    """Norm of the compressed vectors."""
    bias: bool = False
    """Biases on the projections into the compressed vectors, and on the output."""

    name = "attention"

    @property
    def state(self) -> KeyValueSpec:
        key_dim = self.latent + self.rotary_dim
        return KeyValueSpec(kv_heads=1, key_dim=key_dim, value_dim=self.latent)

    @property
    def cost(self) -> MixerCost:
        return MixerCost(per_pair=2 * (self.score_channels + self.mix_channels))

    @property
    def rope_dim(self) -> int:
        return self.rotary_dim

    @property
    def divided(self) -> dict[str, int]:
        return {"heads": self.heads}

    @property
    def score_channels(self) -> int:
        """Channels of all heads' queries."""
        return self.heads * (self.plain_dim + self.rotary_dim)

    @property
    def mix_channels(self) -> int:
        """Channels of all heads' values."""
        return self.heads * self.value_dim

    def build(
        self, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ) -> "LatentAttention":
        return LatentAttention(self, width, std=std, precision=precision, rngs=rngs)


class LatentAttention(nnx.Module):
    r"""Attention whose keys and values are :math:`k = [W^{K} \ell, r]` and :math:`v = W^{V} \ell`
    for a compressed vector :math:`\ell` and a rotary key :math:`r` that all heads share.

    Without a cache, keys and values are expanded. With one, only :math:`[\ell, r]` is kept, and the
    expansion moves to the other side of the matmuls: the query's plain part becomes
    :math:`W^{K\top} q`, and :math:`W^{V}` is applied to the mixed :math:`\ell`. Scores and results
    are the same.
    """

    def __init__(
        self,
        c: LatentAttentionConfig,
        width: int,
        *,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        def linear(d_in: int, d_out: int, axes: tuple[str, str], bias: bool = False) -> Linear:
            return Linear(d_in, d_out, axes, bias=bias, std=std, precision=precision, rngs=rngs)

        compressed = c.query_latent
        if compressed is None:
            self.query_down, self.query_norm = None, None
        else:
            self.query_down = linear(width, compressed, ("embed", "latent"), c.bias)
            self.query_norm = c.norm.build(compressed, precision, "latent")
        query_axes = ("embed" if compressed is None else "latent", "heads")
        self.query = linear(compressed or width, c.score_channels, query_axes)
        self.latent = linear(width, c.latent + c.rotary_dim, ("embed", "latent"), c.bias)
        self.latent_norm = c.norm.build(c.latent, precision, "latent")
        expanded = c.heads * (c.plain_dim + c.value_dim)
        self.expand = linear(c.latent, expanded, ("latent", "heads"))
        self.out = linear(c.mix_channels, width, ("heads", "embed"), c.bias)
        self.config = c

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        rotation: Rotation | None,
        rule: AttentionRule,
        context: AttentionContext,
        state: Any,
    ) -> tuple[Float[Array, "b t d"], Any]:
        c, (b, t, _) = self.config, x.shape
        small = x
        if self.query_down is not None and self.query_norm is not None:
            small = self.query_norm(self.query_down(x))
        query = self.query(small).reshape(b, t, c.heads, -1)
        plain, turning = jnp.split(query, [c.plain_dim], axis=-1)
        latent, shared = jnp.split(self.latent(x), [c.latent], axis=-1)
        latent, shared = self.latent_norm(latent)[:, :, None], shared[:, :, None]
        if rotation is not None:
            turning, shared = rotate(turning, *rotation), rotate(shared, *rotation)
        attend = self._expanded if state == () else self._absorbed
        mixed, state = attend(plain, turning, latent, shared, positions, rule, context, state)
        return self.out(mixed.reshape(b, t, -1)), state

    def _expanded(self, plain, turning, latent, shared, positions, rule, context, state):
        c = self.config
        both = self.expand(latent[:, :, 0]).reshape(*plain.shape[:3], -1)
        key, value = jnp.split(both, [c.plain_dim], axis=-1)
        shared = jnp.broadcast_to(shared, (*key.shape[:3], c.rotary_dim))
        key = jnp.concatenate([key, shared], axis=-1)
        query = jnp.concatenate([plain, turning], axis=-1)
        query, key, value = (
            constrain(part, ("batch", "sequence", "heads", None)) for part in (query, key, value)
        )
        return context.attend(query, key, value, positions, rule, state)

    def _absorbed(self, plain, turning, latent, shared, positions, rule, context, state):
        c = self.config
        stored = self.expand.kernel[...]
        latent = rounded_activations(latent, stored)  # as expanding it would
        kernel = dense(stored).astype(plain.dtype).reshape(c.latent, c.heads, -1)
        to_key, to_value = jnp.split(kernel, [c.plain_dim], axis=-1)
        plain = jnp.einsum("bthc,yhc->bthy", plain, to_key)
        query = jnp.concatenate([plain, turning], axis=-1)
        query = constrain(query, ("batch", "sequence", "heads", None))
        key = jnp.concatenate([latent, shared], axis=-1)
        mixed, state = context.attend(query, key, latent, positions, rule, state)
        return jnp.einsum("bthy,yhz->bthz", mixed, to_value), state
