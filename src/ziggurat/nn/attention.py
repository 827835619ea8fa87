"""Multi-head attention with grouped keys and rotary positions."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.mesh import constrain
from ziggurat.nn.attention_context import AttentionContext, AttentionRule
from ziggurat.nn.linear import Linear
from ziggurat.nn.precision import Precision
from ziggurat.nn.rope import rotate

Rotation = tuple[Float[Array, "b t r"], Float[Array, "b t r"]]


class Attention(nnx.Module):
    """Grouped-query attention. Kernels are ``[d, h*c]``, ``[d, k*c]`` and ``[h*c, d]``.

    Args:
        width: model width ``d``.
        heads: query heads ``h``, a multiple of ``kv_heads``.
        kv_heads: key/value heads ``k``.
        head_dim: channels of one head ``c``.
        rule: scale, window, soft cap and kernel.
        bias: biases on query, key and value.
        out_bias: bias on the output projection.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        rule: AttentionRule,
        bias: bool,
        out_bias: bool,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        def linear(d_in: int, d_out: int, axes: tuple[str, str], has_bias: bool) -> Linear:
            return Linear(d_in, d_out, axes, bias=has_bias, std=std, precision=precision, rngs=rngs)

        self.query = linear(width, heads * head_dim, ("embed", "heads"), bias)
        self.key = linear(width, kv_heads * head_dim, ("embed", "kv_heads"), bias)
        self.value = linear(width, kv_heads * head_dim, ("embed", "kv_heads"), bias)
        self.out = linear(heads * head_dim, width, ("heads", "embed"), out_bias)
        self.heads, self.kv_heads, self.head_dim, self.rule = heads, kv_heads, head_dim, rule

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        rotation: Rotation,
        context: AttentionContext,
        state: Any,
    ) -> tuple[Float[Array, "b t d"], Any]:
        b, t, _ = x.shape
        query = self.query(x).reshape(b, t, self.heads, self.head_dim)
        key = self.key(x).reshape(b, t, self.kv_heads, self.head_dim)
        value = self.value(x).reshape(b, t, self.kv_heads, self.head_dim)
        query = constrain(rotate(query, *rotation), ("batch", "sequence", "heads", None))
        key = constrain(rotate(key, *rotation), ("batch", "sequence", "kv_heads", None))
        mixed, state = context.attend(query, key, value, positions, self.rule, state)
        return self.out(mixed.reshape(b, t, -1)), state
