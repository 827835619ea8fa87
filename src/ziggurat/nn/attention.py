"""Multi-head attention with grouped keys and rotary positions."""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.mesh import constrain
from ziggurat.nn.attention_context import AttentionContext, AttentionRule
from ziggurat.nn.layer_state import NO_STATE, KeyValueSpec, MixerCost, StateSpec
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
    own_keys: bool = True
    """Whether the layer has keys and values of its own; otherwise it attends to those of an earlier
    layer, see :attr:`ziggurat.nn.block.LayerConfig.source` (Gemma 4 E2B)."""
    rotary_dim: int | None = None
    """First channels of a head that rotate; default all (GPT-NeoX, Phi, Qwen3-Next)."""
    output_gate: bool = False
    """Heads' outputs are multiplied by the sigmoid of a projection of the input (Qwen3-Next)."""
    sinks: bool = False
    """A learned score per head that joins the softmax and mixes nothing in (GPT-OSS)."""

    name = "attention"

    @property
    def state(self) -> StateSpec:
        c = self.head_dim
        if not self.own_keys:
            return NO_STATE
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

    def with_kv_heads(self, count: int) -> "GroupedAttentionConfig":
        """The config with so many key/value heads."""
        return dataclasses.replace(self, kv_heads=count)

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> "Attention":
        return Attention(self, width, std=std, precision=precision, rngs=rngs)


class Attention(nnx.Module):
    """Grouped-query attention. Kernels are ``[d, h*c]``, ``[d, k*c]`` and ``[h*c, d]``; the gate's,
    where there is one, is ``[d, h*c]`` too. A layer without keys of its own has no ``[d, k*c]``."""

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
        inner, axes = c.kv_heads * c.head_dim, ("embed", "kv_heads")
        self.key = linear(width, inner, axes, c.bias and c.key_bias) if c.own_keys else None
        separate = c.own_keys and not c.value_is_key
        self.value = linear(width, inner, axes, c.bias) if separate else None
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

        self.query_norm = norm(c.heads, "heads")
        self.key_norm = norm(c.kv_heads, "kv_heads") if c.own_keys else None
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
        present = {
            name: layer
            for name in ("query", "key", "value", "gate")
            if (layer := getattr(self, name)) is not None
        }
        found = dict(zip(present, apply_each([*present.values()], x)))
        query = self._turned(found["query"], self.heads, self.query_norm, rotation)
        if rule.query_scaling is not None:
            factors = rule.query_scaling.factors(positions)
            query = query * factors[:, :, None, None].astype(query.dtype)
        query = constrain(query, ("batch", "sequence", "heads", None))
        key = value = None
        if "key" in found:
            key = self._turned(found["key"], self.kv_heads, self.key_norm, rotation)
            key = constrain(key, ("batch", "sequence", "kv_heads", None))
            value = found.get("value", found["key"])
            value = value.reshape(*value.shape[:2], self.kv_heads, self.head_dim)
            if self.value_norm_eps is not None:
                value = root_mean_square_normed(value, self.value_norm_eps)
        sinks = None if self.sinks is None else self.sinks[...]
        mixed, state = context.attend(query, key, value, positions, rule, state, sinks)
        mixed = mixed.reshape(*mixed.shape[:2], -1)
        if "gate" in found:
            mixed = mixed * jax.nn.sigmoid(found["gate"])
        return self.out(mixed), state

    def _turned(
        self, y: Float[Array, "b t f"], heads: int, norm: Any, rotation: Rotation | None
    ) -> Float[Array, "b t n c"]:
        """Queries or keys by head, normalised and rotated."""
        if norm is not None and self.norm_whole:
            y = norm(y)
        y = y.reshape(*y.shape[:2], heads, self.head_dim)
        if norm is not None and not self.norm_whole and not self.norm_rotated:
            y = norm(y)
        if rotation is not None:
            y = rotate(y, *rotation)
        return norm(y) if norm is not None and self.norm_rotated else y
