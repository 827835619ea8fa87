"""The decoder that carries every causal family: embed, a scanned stack of equal blocks, norm.

Blocks are stacked on a leading layers axis and scanned, so the time to compile does not grow with
depth. The same forward pass serves training, prefill and decoding; only the attention context
differs.
"""

import dataclasses
from typing import Any, Literal, TypeVar

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.mesh import constrain
from ziggurat.nn.attention import Attention, Rotation
from ziggurat.nn.attention_context import AttentionContext, AttentionRule
from ziggurat.nn.linear import Embedding, parameter
from ziggurat.nn.mlp import Activation, GatedMLP
from ziggurat.nn.norm import RMSNorm
from ziggurat.nn.precision import Precision
from ziggurat.nn.rope import RopeConfig, rotation

C = TypeVar("C", bound=AttentionContext)
Remat = Literal["none", "full", "dots"]

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What a block keeps for its backward pass: ``none`` (all of it), ``full`` (only its input),
``dots`` (the results of weight products, recomputing attention and element-wise work)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What a family fixes about its decoder."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    activation: Activation
    norm_eps: float
    rope: RopeConfig
    attention_bias: bool
    attention_out_bias: bool
    mlp_bias: bool
    tie_embeddings: bool
    window: int | None
    init_std: float


class Block(nnx.Module):
    """Pre-norm residual block: attention, then the gated MLP."""

    def __init__(self, c: DecoderConfig, precision: Precision, kernel: str, rngs: nnx.Rngs):
        rule = AttentionRule(c.head_dim**-0.5, window=c.window, implementation=kernel)
        self.attention_norm = RMSNorm(c.d_model, eps=c.norm_eps, precision=precision)
        self.attention = Attention(
            c.d_model,
            c.n_heads,
            c.n_kv_heads,
            c.head_dim,
            rule=rule,
            bias=c.attention_bias,
            out_bias=c.attention_out_bias,
            std=c.init_std,
            precision=precision,
            rngs=rngs,
        )
        self.mlp_norm = RMSNorm(c.d_model, eps=c.norm_eps, precision=precision)
        self.mlp = GatedMLP(
            c.d_model,
            c.d_ff,
            activation=c.activation,
            bias=c.mlp_bias,
            std=c.init_std,
            precision=precision,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        rotation: Rotation,
        context: AttentionContext,
        state: Any,
    ) -> tuple[Float[Array, "b t d"], Any]:
        mixed, state = self.attention(self.attention_norm(x), positions, rotation, context, state)
        x = constrain(x + mixed, ("batch", "sequence", "embed"))
        x = constrain(x + self.mlp(self.mlp_norm(x)), ("batch", "sequence", "embed"))
        return x, state


class Decoder(nnx.Module):
    """Token ids to final hidden states; :attr:`head` turns those into logits.

    Args:
        c: the family's dimensions and switches.
        precision: parameter and compute types.
        remat: what blocks keep for the backward pass, see :data:`REMAT_POLICIES`.
        attention_kernel: ``"auto"`` or a name of ``ziggurat.kernels.attention``.
    """

    def __init__(
        self,
        c: DecoderConfig,
        *,
        precision: Precision,
        remat: Remat = "none",
        attention_kernel: str = "auto",
        rngs: nnx.Rngs,
    ):
        def block(rngs: nnx.Rngs) -> Block:
            return Block(c, precision, attention_kernel, rngs)

        self.config, self.remat = c, remat
        self.embedding = Embedding(
            c.vocab_size, c.d_model, std=c.init_std, precision=precision, rngs=rngs
        )
        self.blocks = nnx.vmap(block)(rngs.fork(split=c.n_layers))
        for _, node in nnx.iter_graph(self.blocks):
            if isinstance(node, nnx.Param):
                node.set_metadata(axes=("layers", *node.get_metadata("axes")))
        self.final_norm = RMSNorm(c.d_model, eps=c.norm_eps, precision=precision)
        shape = (c.vocab_size, c.d_model)
        self.unembedding = (
            None
            if c.tie_embeddings
            else parameter(rngs, shape, ("vocab", "embed"), c.init_std, precision)
        )

    @property
    def head(self) -> Float[Array, "v d"]:
        """The output matrix: logits are ``hidden @ head.T``."""
        return (self.embedding.table if self.unembedding is None else self.unembedding)[...]

    def begin(
        self, tokens: Int[Array, "b t"], positions: Int[Array, "b t"]
    ) -> tuple[Float[Array, "b t d"], Rotation]:
        """What enters the first block: embeddings and rotary angles."""
        x = constrain(self.embedding(tokens), ("batch", "sequence", "embed"))
        return x, rotation(positions, self.config.rope, self.config.head_dim)

    def finish(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """What leaves the last block, normalised: final hidden states."""
        return self.final_norm(x)

    def __call__(
        self, tokens: Int[Array, "b t"], positions: Int[Array, "b t"], context: C
    ) -> tuple[Float[Array, "b t d"], C]:
        x, angles = self.begin(tokens, positions)

        def step(block: Block, x: Array, state: Any) -> tuple[Array, Any]:
            return block(x, positions, angles, context, state)

        if self.remat != "none":
            # inside a scan nothing can be shared with the forward pass, so let XLA merge freely
            step = nnx.remat(step, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        scan = nnx.scan(step, in_axes=(0, nnx.Carry, 0), out_axes=(nnx.Carry, 0))
        x, state = scan(self.blocks, x, context.state)
        return self.finish(x), context.advance(state, tokens.shape[1])
