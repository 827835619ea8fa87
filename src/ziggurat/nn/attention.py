"""Multi-head attention with grouped keys and rotary positions."""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.mesh import constrain
from ziggurat.nn.attention_context import AttentionContext, AttentionRule
from ziggurat.nn.layer_state import KeyValueSpec, MixerCost
from ziggurat.nn.linear import Linear, apply_each, constant
from ziggurat.nn.norm import NormConfig, root_mean_square_normed
from ziggurat.nn.precision import Precision
from ziggurat.nn.rope import Rotation, rotate


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupedAttentionConfig:
    """Grouped-query attention (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245)."""

    heads: int
    """Query heads, a multiple of ``kv_heads``."""
    kv_heads: int
    """Key/value heads; each serves ``heads / kv_heads`` query heads."""
    head_dim: int
    """Channels of one head."""
    bias: bool = False
    """Biases on query, key and value."""
    key_bias: bool = True
    """Whether keys have a bias where queries and values have one; Whisper's have none."""
    out_bias: bool = False
    """Bias on the output projection."""
    head_norm: NormConfig | None = None
    """Norm over each head of queries and keys before they rotate (Qwen 3, Gemma 3)."""
    norm_each_head: bool = False
    """Each head has a scale of its own in ``head_norm`` (Command, StableLM)."""
    norm_rotated: bool = False
    """``head_norm`` stands behind the rotation (Hunyuan)."""
    width_norm: NormConfig | None = None
    """Norm over all heads of queries together, and of keys, before they rotate (OLMo 2)."""
    value_norm_eps: float | None = None
    """If given, each head of values is divided by its root mean square, with this added to the mean
    square (Gemma 4)."""
    value_is_key: bool = False
    """Values are the keys before their norm and rotation; there is no projection of their own
    (Gemma 4)."""
    rotary_dim: int | None = None
    """First channels of a head that rotate; default all (GPT-NeoX, Phi, Qwen3-Next)."""
    output_gate: bool = False
    """Heads' outputs are multiplied by the sigmoid of a projection of the input (Qwen3-Next)."""
    sinks: bool = False
    """A learned score per head that joins the softmax and mixes nothing in (GPT-OSS)."""

    name = "attention"

    @property
    def state(self) -> KeyValueSpec:
        c = self.head_dim
        return KeyValueSpec(kv_heads=self.kv_heads, key_dim=c, value_dim=c)

    @property
    def cost(self) -> MixerCost:
        return MixerCost(per_pair=2 * 2 * self.heads * self.head_dim)

    @property
    def rope_dim(self) -> int:
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def divided(self) -> dict[str, int]:
        return {"heads": self.heads, "kv_heads": self.kv_heads}

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> "Attention":
        return Attention(self, width, std=std, precision=precision, rngs=rngs)


class Attention(nnx.Module):
    """Grouped-query attention. Kernels are ``[d, h*c]``, ``[d, k*c]`` and ``[h*c, d]``; the gate's,
    where there is one, is ``[d, h*c]`` too."""

    def __init__(
        self,
        c: GroupedAttentionConfig,
        width: int,
        *,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        def linear(d_in: int, d_out: int, axes: tuple[str, str], bias: bool) -> Linear:
            return Linear(d_in, d_out, axes, bias=bias, std=std, precision=precision, rngs=rngs)

        self.query = linear(width, c.heads * c.head_dim, ("embed", "heads"), c.bias)
        key_bias = c.bias and c.key_bias
        self.key = linear(width, c.kv_heads * c.head_dim, ("embed", "kv_heads"), key_bias)
        self.value = (
            None
            if c.value_is_key
            else linear(width, c.kv_heads * c.head_dim, ("embed", "kv_heads"), c.bias)
        )
        self.out = linear(c.heads * c.head_dim, width, ("heads", "embed"), c.out_bias)
        gated = c.output_gate
        self.gate = (
            linear(width, c.heads * c.head_dim, ("embed", "heads"), c.bias) if gated else None
        )

        def norm(heads: int, axis: str) -> nnx.Module | None:
            if c.width_norm is not None:
                return c.width_norm.build(heads * c.head_dim, precision, axis)
            if c.head_norm is not None and c.norm_each_head:
                return c.head_norm.build((heads, c.head_dim), precision, (axis, "head_dim"))
            return c.head_norm and c.head_norm.build(c.head_dim, precision, "head_dim")

        self.query_norm, self.key_norm = norm(c.heads, "heads"), norm(c.kv_heads, "kv_heads")
        self.value_norm_eps = c.value_norm_eps
        self.norm_whole, self.norm_rotated = c.width_norm is not None, c.norm_rotated
        self.sinks = constant(0.0, (c.heads,), ("heads",), precision) if c.sinks else None
        self.heads, self.kv_heads, self.head_dim = c.heads, c.kv_heads, c.head_dim

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        rotation: Rotation | None,
        rule: AttentionRule,
        context: AttentionContext,
        state: Any,
    ) -> tuple[Float[Array, "b t d"], Any]:
        b, t, _ = x.shape
        optional = [layer for layer in (self.value, self.gate) if layer is not None]
        query, key, *rest = apply_each((self.query, self.key, *optional), x)
        value = key if self.value is None else rest.pop(0)
        if self.norm_whole:
            query, key = self._normed(query, key)
        query = query.reshape(b, t, self.heads, self.head_dim)
        key, value = (y.reshape(b, t, self.kv_heads, self.head_dim) for y in (key, value))
        if self.value_norm_eps is not None:
            value = root_mean_square_normed(value, self.value_norm_eps)
        if not self.norm_whole and not self.norm_rotated:
            query, key = self._normed(query, key)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        if self.norm_rotated:
            query, key = self._normed(query, key)
        if rule.query_scaling is not None:
            factors = rule.query_scaling.factors(positions)
            query = query * factors[:, :, None, None].astype(query.dtype)
        query = constrain(query, ("batch", "sequence", "heads", None))
        key = constrain(key, ("batch", "sequence", "kv_heads", None))
        sinks = None if self.sinks is None else self.sinks[...]
        mixed, state = context.attend(query, key, value, positions, rule, state, sinks)
        mixed = mixed.reshape(b, t, -1)
        if rest:
            mixed = mixed * jax.nn.sigmoid(rest[0])
        return self.out(mixed), state

    def _normed(self, query: Float[Array, "b t ..."], key: Float[Array, "b t ..."]):
        if self.query_norm is None or self.key_norm is None:
            return query, key
        return self.query_norm(query), self.key_norm(key)
