"""An encoder and a decoder that attends to its states (cross attention).

Each block of the decoder has three branches, with a norm before each: attention to earlier tokens,
attention to the encoder's states, and a feed-forward part. Keys and values of the encoder's states
depend on no token: :meth:`EncoderDecoder.memory` computes them once for all tokens.
"""

import dataclasses
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ShapeError
from ziggurat.kernels.attention import AttentionMask
from ziggurat.kernels.linear import project_rows
from ziggurat.mesh import constrain
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionContext, AttentionRule, attend_by_rule
from ziggurat.nn.encoder import Encoder, EncoderConfig
from ziggurat.nn.layer_scan import LayerStep, scan_layers
from ziggurat.nn.linear import Embedding, Linear
from ziggurat.nn.mlp import PlainMlpConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.precision import Precision
from ziggurat.nn.stacking import stacked

C = TypeVar("C", bound=AttentionContext)


class Memory(NamedTuple):
    """Keys and values of the encoder's states, of every decoder block or of one."""

    keys: Float[Array, "*l b s h c"]
    values: Float[Array, "*l b s h c"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig:
    """Config of an :class:`EncoderDecoder`, as a family fixes it."""

    encoder: EncoderConfig
    """The encoder; the decoder has its width."""
    vocab_size: int
    """Rows of the table of embeddings, which is the output matrix too."""
    positions: int
    """Rows of the table of learned positions: the longest sequence in tokens."""
    n_layers: int
    """Decoder blocks."""
    attention: GroupedAttentionConfig
    """Attention of the decoder, to its tokens and to the encoder's states."""
    mlp: PlainMlpConfig
    norm: NormConfig
    init_std: float
    """Standard deviation of initial weights."""

    @property
    def rule(self) -> AttentionRule:
        """Scale of the scores."""
        return AttentionRule(self.attention.head_dim**-0.5)


class CrossAttention(nnx.Module):
    """Attention of tokens to an encoder's states."""

    def __init__(
        self,
        c: GroupedAttentionConfig,
        width: int,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        def linear(axes: tuple[str, str], bias: bool) -> Linear:
            inner = c.heads * c.head_dim
            sizes = (width, inner) if axes[0] == "embed" else (inner, width)
            return Linear(*sizes, axes, bias=bias, std=std, precision=precision, rngs=rngs)

        self.query = linear(("embed", "heads"), c.bias)
        self.key = linear(("embed", "heads"), c.bias and c.key_bias)
        self.value = linear(("embed", "heads"), c.bias)
        self.out = linear(("heads", "embed"), c.out_bias)
        self.heads, self.head_dim = c.heads, c.head_dim

    def memory(self, states: Float[Array, "b s d"]) -> Memory:
        """Keys and values of the encoder's states."""
        return Memory(self._split(self.key(states)), self._split(self.value(states)))

    def __call__(
        self, x: Float[Array, "b t d"], memory: Memory, rule: AttentionRule
    ) -> Float[Array, "b t d"]:
        query = self._split(self.query(x))
        asked, seen = (
            jnp.broadcast_to(jnp.arange(y.shape[1])[None], y.shape[:2]) for y in (x, memory.keys)
        )
        mask = AttentionMask(asked, seen, causal=False)
        mixed = attend_by_rule(query, memory.keys, memory.values, mask, rule, None)
        return self.out(mixed.reshape(*x.shape[:2], -1))

    def _split(self, y: Float[Array, "b t e"]) -> Float[Array, "b t h c"]:
        split = y.reshape(*y.shape[:2], self.heads, self.head_dim)
        return constrain(split, ("batch", "sequence", "heads", None))


class CrossBlock(nnx.Module):
    r"""Decoder block with cross attention: :math:`y = x + A(N_1(x))`,
    :math:`z = y + C(N_2(y), m)`, :math:`z + F(N_3(z))` over the encoder's memory :math:`m`.

    Paper: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.1, with norms before
    the branches.
    """

    def __init__(self, c: EncoderDecoderConfig, precision: Precision, rngs: nnx.Rngs):
        width, std = c.encoder.d_model, c.init_std
        self.attention = c.attention.build(width, std, precision, rngs)
        self.cross_attention = CrossAttention(c.attention, width, std, precision, rngs)
        self.mlp = c.mlp.build(width, std, precision, rngs)
        self.attention_norm = c.norm.build(width, precision)
        self.cross_attention_norm = c.norm.build(width, precision)
        self.mlp_norm = c.norm.build(width, precision)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        rule: AttentionRule,
        context: AttentionContext,
        state: Any,
        memory: Memory,
    ) -> tuple[Float[Array, "b t d"], Any]:
        """The stream after this block, and the new state of its attention to tokens."""
        with jax.named_scope("attention"):
            read = self.attention_norm(x)
            mixed, state = self.attention(read, positions, None, rule, context, state)
            x = constrain(x + mixed, ("batch", "sequence", "embed"))
        with jax.named_scope("cross_attention"):
            x = x + self.cross_attention(self.cross_attention_norm(x), memory, rule)
        with jax.named_scope("mlp"):
            y, _ = self.mlp(self.mlp_norm(x))
            return constrain(x + y, ("batch", "sequence", "embed")), state


class EncoderDecoder(nnx.Module):
    """Inputs of an encoder and earlier tokens to the states of tokens; :meth:`logits` turns those
    into logits, by the table of embeddings."""

    def __init__(self, c: EncoderDecoderConfig, *, precision: Precision, rngs: nnx.Rngs):
        self.config, width = c, c.encoder.d_model

        def table(rows: int) -> Embedding:
            return Embedding(rows, width, std=c.init_std, precision=precision, rngs=rngs)

        self.encoder = Encoder(c.encoder, precision=precision, rngs=rngs)
        self.embedding, self.positions = table(c.vocab_size), table(c.positions)
        self.positions.table.set_metadata(axes=(None, "embed"))
        self.blocks = stacked(lambda rngs: CrossBlock(c, precision, rngs), c.n_layers, rngs)
        self.final_norm = c.norm.build(width, precision)

    def encode(self, inputs: Array) -> Float[Array, "b s d"]:
        """The encoder's states."""
        return self.encoder(inputs)

    def memory(self, states: Float[Array, "b s d"]) -> Memory:
        """Keys and values ``[l, b, s, h, c]`` of the encoder's states, for every block."""
        graph, params = nnx.split(self.blocks)

        def step(_: None, layer: Any) -> tuple[None, Memory]:
            return None, nnx.merge(graph, layer).cross_attention.memory(states)

        return jax.lax.scan(step, None, params)[1]

    def decode(
        self,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"],
        context: C,
        memory: Memory,
    ) -> tuple[Float[Array, "b t d"], C]:
        """Final states of tokens, and the context after them.

        Args:
            tokens: token ids.
            positions: their places in the sequence.
            context: earlier tokens: ``Causal`` or ``Cached``.
            memory: what :meth:`memory` gives.

        Raises:
            ShapeError: more tokens than learned positions.
        """
        if tokens.shape[1] > self.config.positions:
            raise ShapeError(
                "decoder",
                found=f"{tokens.shape[1]} tokens",
                expected=f"at most {self.config.positions}, one for each learned position",
            )
        with jax.named_scope("embedding"):
            x = self.embedding(tokens) + self.positions(positions)
        x = constrain(x, ("batch", "sequence", "embed"))
        graph, params = nnx.split(self.blocks)
        rule, state = self.config.rule, (context.state or ((),))[0]

        def step(number: int) -> LayerStep:
            def apply(params: Any, x: Array, both: Any) -> tuple[Array, Any, None]:
                state, memory = both
                block = nnx.merge(graph, params)
                x, state = block(x, positions, rule, context, state, memory)
                return x, state, None

            return apply

        equal = (None,) * self.config.n_layers
        found = scan_layers(equal, [params], step, x, [(state, memory)])
        after = context.advance(tuple(found.by_stack(0)), tokens.shape[1])
        return self.final_norm(found.x), after

    def logits(self, states: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Logits of the next token, float32."""
        return project_rows(states, self.embedding.table[...])
