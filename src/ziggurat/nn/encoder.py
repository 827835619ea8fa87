"""The encoder of the BERT kind: learned positions, token types, norms after each half of a block.

Its blocks are of the decoder's parts, stacked and scanned as the decoder's are; padding is told by
a mask, which no token sees beyond.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ShapeError
from ziggurat.mesh import constrain
from ziggurat.nn.attention_context import AttentionRule, Bidirectional
from ziggurat.nn.block import Block, BlockConfig
from ziggurat.nn.linear import Embedding, Linear
from ziggurat.nn.precision import Precision
from ziggurat.nn.stacking import stacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Config of an encoder, as a family fixes it."""

    vocab_size: int
    d_model: int
    n_layers: int
    block: BlockConfig
    """Every layer's."""
    rule: AttentionRule
    positions: int
    """Rows of the table of learned positions: the longest sequence."""
    token_types: int
    """Rows of the table of token types, which tell a first text from a second."""
    pooler: bool
    """Whether there is a layer over the first token's state (:meth:`Encoder.pool`)."""
    init_std: float


class Encoder(nnx.Module):
    """Token ids to hidden states that know both directions.

    Paper: Devlin et al. 2019 (BERT), https://arxiv.org/abs/1810.04805.
    """

    def __init__(self, c: EncoderConfig, *, precision: Precision, rngs: nnx.Rngs):
        self.config = c

        def table(rows: int, axis: str | None) -> Embedding:
            made = Embedding(rows, c.d_model, std=c.init_std, precision=precision, rngs=rngs)
            made.table.set_metadata(axes=(axis, "embed"))
            return made

        def make(rngs: nnx.Rngs) -> Block:
            return Block(c.block, c.d_model, c.init_std, precision, rngs)

        self.embedding = table(c.vocab_size, "vocab")
        self.positions = table(c.positions, None)
        self.token_types = table(c.token_types, None)
        self.embedding_norm = c.block.norm.build(c.d_model, precision)
        self.blocks = stacked(make, c.n_layers, rngs)
        axes, width = ("embed", "mlp"), c.d_model
        self.pooler = (
            Linear(width, width, axes, bias=True, std=c.init_std, precision=precision, rngs=rngs)
            if c.pooler
            else None
        )

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        mask: Int[Array, "b t"],
        token_types: Int[Array, "b t"] | None = None,
    ) -> Float[Array, "b t d"]:
        """Hidden states of the last block.

        Args:
            tokens: token ids, padded on the right with anything.
            mask: 1 for a token, 0 for padding; states there mean nothing.
            token_types: which text each token is of; default the first.

        Raises:
            ShapeError: more tokens than learned positions.
        """
        rows = self.config.positions
        if isinstance(tokens.shape[1], int) and tokens.shape[1] > rows:
            raise ShapeError(
                "encoder", found=f"{tokens.shape[1]} tokens", expected=f"at most {rows}"
            )
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        token_types = jnp.zeros_like(tokens) if token_types is None else token_types
        x = self.embedding(tokens) + self.token_types(token_types) + self.positions(positions)
        x = constrain(self.embedding_norm(x), ("batch", "sequence", "embed"))
        graph, params = nnx.split(self.blocks)
        rule, context = self.config.rule, Bidirectional(mask)

        def step(x: Array, params: nnx.State) -> tuple[Array, None]:
            return nnx.merge(graph, params)(x, positions, None, rule, context, ())[0], None

        return jax.lax.scan(step, x, params)[0]

    def pool(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b d"]:
        r""":math:`\tanh(h_0 W + b)` of the first token's state."""
        assert self.pooler is not None
        return jnp.tanh(self.pooler(hidden[:, 0]))
