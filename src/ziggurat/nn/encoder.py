"""The encoder that carries every family: tokens or image patches to states, a vector, logits.

A family's config says what comes in, which blocks there are and where their norms stand, which
tokens each layer sees, and what is made of the states. Blocks of equal parameters are stacked and
scanned as the decoder's are; padding is told by a mask, which no token sees beyond.

:func:`ziggurat.nn.layer_scan.scan_layers` drives the layers, as it drives the decoder's. A test
holds the two equal, in states and gradients: an encoder with ``causal`` and a decoder's layers and
weights.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.mesh import constrain
from ziggurat.nn.attention_context import AttentionContext, Bidirectional, Causal
from ziggurat.nn.block import Block, BlockConfig, LayerConfig
from ziggurat.nn.encoder_heads import LogitHeadConfig
from ziggurat.nn.encoder_inputs import (
    EncoderInputConfig,
    PatchInput,
    TokenInput,
    TokenInputConfig,
)
from ziggurat.nn.layer_scan import LayerStep, scan_layers
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.pooling import PoolerConfig
from ziggurat.nn.precision import Precision
from ziggurat.nn.relative_positions import (
    RelativeEmbeddingsConfig,
    RelativePositions,
    RelativePositionsConfig,
)
from ziggurat.nn.rope import Rotation, axial_rotation, depends_on_length, rotation
from ziggurat.nn.stacking import LayeredConfig, LayerStacks
from ziggurat.nn.token_convolution import TokenConvolutionConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(LayeredConfig):
    """Config of an encoder, as a family fixes it."""

    d_model: int
    """Width of the states."""
    input: EncoderInputConfig
    """Input: token ids or image patches."""
    layers: tuple[LayerConfig, ...]
    """Every layer, with the window and the rotary embedding of its attention."""
    final_norm: NormConfig | None = None
    """Norm behind the last block, where blocks have theirs before each part."""
    causal: bool = False
    """Tokens see earlier ones only (CLIP's texts), rather than both sides."""
    relative_positions: RelativePositionsConfig | None = None
    """A learned bias on the scores of every layer by distance (MPNet)."""
    relative_embeddings: RelativeEmbeddingsConfig | None = None
    """Learned vectors of distances, from which every layer makes its own bias (DeBERTa)."""
    convolution: TokenConvolutionConfig | None = None
    """A convolution over the input's tokens, added to the first layer's output (DeBERTa-v2)."""
    pooler: PoolerConfig | None = None
    """How states become one vector; ``None``: whoever uses the encoder says."""
    head: LogitHeadConfig | None = None
    """Head over the vector or the states, which gives logits."""
    init_std: float
    """Standard deviation of initial weights."""

    @property
    def pooled_width(self) -> int:
        """Length of the pooled vector; the states' where nothing is configured."""
        return self.d_model if self.pooler is None else self.pooler.outputs(self.d_model)


class Encoder(LayerStacks):
    """Tokens or images to hidden states, and those to vectors (:meth:`pool`) and logits."""

    def __init__(self, c: EncoderConfig, *, precision: Precision, rngs: nnx.Rngs):
        self.config, width, std = c, c.d_model, c.init_std
        self.input = c.input.build(width, std, precision, rngs)

        def make(block: BlockConfig, rngs: nnx.Rngs) -> Block:
            return Block(block, width, std, precision, rngs)

        self.add_stacks(c, make, rngs)
        self.final_norm = c.final_norm and c.final_norm.build(width, precision)
        relative = c.relative_positions
        self.relative_positions = relative and RelativePositions(relative, std, precision, rngs)
        vectors, convolution = c.relative_embeddings, c.convolution
        self.relative_embeddings = vectors and vectors.build(width, std, precision, rngs)
        self.convolution = convolution and convolution.build(width, std, precision, rngs)
        self.pooler: Any = c.pooler and c.pooler.build(width, std, precision, rngs)
        reads = c.pooled_width if c.head and c.head.reads == "pooled" else width
        vocab = c.input.vocab_size if isinstance(c.input, TokenInputConfig) else 0
        self.head = c.head and c.head.build(reads, vocab, std, precision, rngs)

    def __call__(
        self, inputs: Array, mask: Int[Array, "b t"] | None = None, **details: Array | None
    ) -> Float[Array, "b t d"]:
        """Hidden states, normalised where the config has a final norm.

        Args:
            inputs: token ids ``[b, t]``, padded on the right, or images ``[b, c, h, w]``.
            mask: 1 for a token, 0 for padding, whose states mean nothing; ``None``: no padding.
            details: what else the input takes: ``token_types`` of tokens, ``hidden_patches`` of
                images; see :mod:`ziggurat.nn.encoder_inputs`.

        Raises:
            ShapeError: an input that the config has no place for, such as more tokens than learned
                positions.
        """
        with jax.named_scope("embedding"):
            x = constrain(self.input(inputs, mask, **details), ("batch", "sequence", "embed"))
        positions = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
        behind = None
        if self.convolution is not None:
            behind = self.convolution.joined, self.convolution.convolved(x, mask)[None]
        patches = isinstance(self.input, PatchInput) and not self.input.config.learned_positions
        turned = self.input.places(inputs) if patches else positions
        x = self._run(x, positions, turned, self._context(mask, positions), behind)
        return x if self.final_norm is None else self.final_norm(x)

    def pool(
        self, hidden: Float[Array, "b t d"], mask: Int[Array, "b t"] | None, inputs: Array
    ) -> Float[Array, "b e"]:
        """A vector of each row, by the config's pooler, from states and the inputs they are of."""
        assert self.pooler is not None
        return self.pooler(hidden, mask, inputs)

    def logits(
        self, hidden: Float[Array, "b t d"], mask: Int[Array, "b t"] | None, inputs: Array
    ) -> Float[Array, "b ... n"]:
        """The head's logits in float32: ``[b, n]`` of rows, or ``[b, t, n]`` of states."""
        assert self.head is not None
        assert self.config.head is not None
        table = self.input.embedding.table[...] if isinstance(self.input, TokenInput) else None
        pooled = self.config.head.reads == "pooled"
        return self.head(self.pool(hidden, mask, inputs) if pooled else hidden, table)

    def _context(
        self, mask: Int[Array, "b t"] | None, positions: Int[Array, "b t"]
    ) -> AttentionContext:
        if self.config.causal:
            return Causal()  # padding on the right is after every token
        relative = self.relative_positions
        vectors = self.relative_embeddings
        return Bidirectional(
            mask,
            None if relative is None else relative(positions[0]),
            None if vectors is None else vectors(positions[0]),
        )

    def _run(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        turned: Int[Array, "b t"] | Float[Array, "b t 2"],
        context: AttentionContext,
        behind: tuple[Callable[..., Array], Float[Array, "k b t d"]] | None = None,
    ) -> Float[Array, "b t d"]:
        layers = self.config.layers
        graphs, stacks = self.stack_parts(self.config)
        angles: dict[Any, Rotation | None] = {}
        for layer in layers:
            rope, dim = layer.rope, layer.block.mixer.rope_dim
            if (rope, dim) not in angles:
                angles[rope, dim] = None
                if rope is not None and turned.ndim == 3:
                    angles[rope, dim] = axial_rotation(turned, rope, dim)
                elif rope is not None:
                    length = context.context_length(positions) if depends_on_length(rope) else 0
                    angles[rope, dim] = rotation(positions, rope, dim, length)

        def step(number: int) -> LayerStep:
            layer = layers[number]
            turn, graph = angles[layer.rope, layer.block.mixer.rope_dim], graphs[layer.block]

            def apply(params: Any, x: Array, state: Any) -> tuple[Array, Any, None]:
                block = nnx.merge(graph, params)
                x, state, _ = block(x, positions, turn, layer.rule, context, state)
                return x, state, None

            return apply

        return scan_layers(layers, stacks, step, x, behind=behind).x
