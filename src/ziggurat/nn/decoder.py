"""The decoder that carries every causal family: embed, scanned stacks of blocks, norm.

Blocks of equal parameters are stacked on a leading layers axis and scanned, so the time to compile
does not grow with depth; where windows alternate, or dense and sparse blocks do, the scan goes over
the repeating period (:mod:`ziggurat.nn.stacking`). The same forward pass serves training, prefill
and decoding; only the attention context differs.
"""

import collections
import dataclasses
import functools
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ShapeError
from ziggurat.kernels.linear import PackedWeight, Weight, dense
from ziggurat.mesh import constrain
from ziggurat.nn.attention_context import AttentionContext
from ziggurat.nn.block import Block, BlockConfig, LayerConfig
from ziggurat.nn.layer_inputs import LayerInputs, LayerInputsConfig
from ziggurat.nn.layer_scan import LayerStep, Remat, rematerialised, scan_layers
from ziggurat.nn.layer_state import StateSpec
from ziggurat.nn.linear import Embedding, Linear, constant, parameter
from ziggurat.nn.multimodal import MultimodalInputs
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.precision import Precision
from ziggurat.nn.rope import Rotation, depends_on_length, rotation
from ziggurat.nn.stacking import LayeredConfig, LayerStacks, stack_name

C = TypeVar("C", bound=AttentionContext)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(LayeredConfig):
    """Config of a decoder, as a family fixes it."""

    vocab_size: int
    d_model: int
    layers: tuple[LayerConfig, ...]
    norm: NormConfig
    """The norm after the last block."""
    final_norm: bool = True
    """Whether there is that norm; blocks with norms behind their branches need none (OPT)."""
    tie_embeddings: bool
    init_std: float
    embedding_scale: float = 1.0
    """Multiplies the embeddings, rounded to the compute type first (Gemma)."""
    learned_positions: int | None = None
    """Rows of a table of learned positions, added to the embeddings (GPT-2)."""
    unused_positions: int = 0
    """Rows of that table before the first position's (OPT)."""
    embedding_width: int | None = None
    """Width of the embeddings and of the final hidden states, if it is another than the blocks':
    a matrix leads from one to the other at either end (OPT-350M)."""
    head_bias: bool = False
    """A bias on the logits (Phi)."""
    logit_softcap: float | None = None
    """If given, logits become ``softcap * tanh(logits / softcap)`` (Gemma 2)."""
    layer_inputs: LayerInputsConfig | None = None
    """Embeddings of the tokens that each layer reads for itself (Gemma 4 E2B)."""
    logit_scale: float = 1.0
    """Multiplies the final hidden states, and by them the logits (Command, Granite)."""

    @property
    def longest(self) -> int | None:
        """Longest sequence in tokens; ``None``: no table of positions limits it."""
        rows = self.learned_positions
        return None if rows is None else rows - self.unused_positions

    @property
    def hidden_width(self) -> int:
        """Width of the final hidden states, which the output matrix multiplies."""
        return (self.embedding_width or self.d_model) + self.head_bias

    @property
    def states(self) -> tuple[tuple[StateSpec, int], ...]:
        """Spec of the state of each stack's layers, and the number of those layers."""
        counts = collections.Counter(layer.block for layer in self.layers)
        return tuple((block.mixer.state, counts[block]) for block in self.stacks)


class Begun(NamedTuple):
    """Inputs of a decoder's layers."""

    x: Float[Array, "b t d"]
    """The first block's input."""
    rotations: list[Rotation | None]
    """Rotary angles of every layer."""
    by_layer: Float[Array, "l b t p"] | None
    """Input of each layer alone, where layers have one."""

    def of(self, layer: int) -> tuple[Float[Array, "b t p"], ...]:
        """Further arguments of a layer's step."""
        return () if self.by_layer is None else (self.by_layer[layer],)


class Decoder(LayerStacks):
    """Decoder module: token ids to final hidden states; :attr:`head` turns those into logits.

    Args:
        c: the family's dimensions and switches.
        precision: parameter and compute types.
        remat: what blocks keep for the backward pass, see
            :data:`ziggurat.nn.layer_scan.REMAT_POLICIES`.
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
        self.config, self.kernel = c, attention_kernel
        self.remat: Remat = remat
        self.compute = precision.compute

        def table(rows: int, width: int) -> Embedding:
            return Embedding(rows, width, std=c.init_std, precision=precision, rngs=rngs)

        width = c.embedding_width or c.d_model
        self.embedding = table(c.vocab_size, width)
        self.add_stacks(c, functools.partial(_block, c, precision), rngs)
        self.final_norm = c.norm.build(c.d_model, precision) if c.final_norm else None
        shape = (c.vocab_size, width)
        self.unembedding = (
            None
            if c.tie_embeddings
            else parameter(rngs, shape, ("vocab", "embed"), c.init_std, precision)
        )
        self.head_bias = (
            constant(0.0, (c.vocab_size,), ("vocab",), precision) if c.head_bias else None
        )
        self.positions = table(c.learned_positions, c.d_model) if c.learned_positions else None
        if self.positions is not None:
            self.positions.table.set_metadata(axes=(None, "embed"))
        self.project_in, self.project_out = self._projections(precision, rngs)
        made = {"std": c.init_std, "precision": precision, "rngs": rngs}
        own = c.layer_inputs
        self.layer_inputs = own and LayerInputs(own, c.n_layers, c.d_model, **made)

    def _projections(self, precision: Precision, rngs: nnx.Rngs) -> list[Linear | None]:
        """From the embeddings' width to the blocks', and back."""
        c, made = self.config, {"bias": False, "std": self.config.init_std}
        if c.embedding_width is None:
            return [None, None]
        widths = ((c.embedding_width, c.d_model, "mlp"), (c.d_model, c.embedding_width, None))
        return [
            Linear(here, there, ("embed", axis), precision=precision, rngs=rngs, **made)
            for here, there, axis in widths
        ]

    @property
    def head(self) -> Weight | PackedWeight:
        """The output matrix: logits are ``hidden @ head.T``. A bias on the logits is its last
        column, and hidden states are 1 there, so that every loss that fuses it sees the bias."""
        matrix = (self.embedding.table if self.unembedding is None else self.unembedding)[...]
        if self.head_bias is None:
            return matrix
        rows = dense(matrix)
        return jnp.concatenate([rows, self.head_bias[...][:, None].astype(rows.dtype)], axis=1)

    def begin(
        self,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"],
        context: AttentionContext,
        inputs: MultimodalInputs | None = None,
    ) -> Begun:
        """Compute the layers' inputs: embeddings, and the rotary angles of every layer."""
        with jax.named_scope("embedding"):
            x = self.embedding(tokens)
        if self.config.embedding_scale != 1.0:
            x = x * jnp.asarray(self.config.embedding_scale, self.compute)
        if self.project_in is not None:
            x = self.project_in(x)
        if self.positions is not None and (longest := self.config.longest) is not None:
            if tokens.shape[1] > longest:
                raise ShapeError(
                    "decoder", found=f"{tokens.shape[1]} tokens", expected=f"at most {longest}, "
                    "one for each learned position", fix="shorten the sequences",
                )  # fmt: skip
            unused = self.config.unused_positions
            x = x + self.positions(positions + unused if unused else positions)
        turned = positions
        if inputs is not None:
            self._check(inputs)
            x = inputs.place(x)
            turned = positions if inputs.rotary_positions is None else inputs.rotary_positions
        x = constrain(x, ("batch", "sequence", "embed"))
        own = None
        if self.layer_inputs is not None:
            padding = self.layer_inputs.config.padding
            known = tokens if inputs is None else inputs.hidden_from(tokens, padding)
            own = self.layer_inputs(known, x)
        return Begun(x, self._rotations(positions, turned, context), own)

    def _rotations(
        self, positions: Int[Array, "b t"], turned: Array, context: AttentionContext
    ) -> list[Rotation | None]:
        angles: dict[Any, Rotation | None] = {}
        for layer in self.config.layers:
            rope, dim = layer.rope, layer.block.mixer.rope_dim
            if (rope, dim) not in angles:
                angles[rope, dim] = None
                if rope is not None:
                    length = context.context_length(positions) if depends_on_length(rope) else 0
                    angles[rope, dim] = rotation(turned, rope, dim, length)
        return [angles[la.rope, la.block.mixer.rope_dim] for la in self.config.layers]

    def _check(self, inputs: MultimodalInputs) -> None:
        layers = self.config.n_layers
        if inputs.by_layer is not None and (inputs.places is None or inputs.layers > layers):
            where = "no places" if inputs.places is None else "places"
            raise ShapeError(
                "decoder",
                found=f"embeddings to be added behind {inputs.layers} layers, and {where}",
                expected=f"at most {layers} layers, and places of the embeddings",
            )

    def finish(self, x: Float[Array, "b t d"]) -> Float[Array, "b t e"]:
        """Compute final hidden states from the last block's output: norm, projection to the
        embeddings' width, scale, and a channel of ones for a bias on the logits."""
        x, scale = x if self.final_norm is None else self.final_norm(x), self.config.logit_scale
        x = x if self.project_out is None else self.project_out(x)
        x = x if scale == 1.0 else x * scale
        if self.head_bias is None:
            return x
        return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)

    def layer_step(
        self,
        layer: LayerConfig,
        positions: Int[Array, "b t"],
        rotation: Rotation | None,
        context: AttentionContext,
    ) -> LayerStep:
        """One layer as a pure function ``(parameters, x, state) -> (x, state, routing)``; what the
        layer reads for itself is a fourth argument."""
        graph, _ = nnx.split(getattr(self, stack_name(self.config.stacks.index(layer.block))))
        rule = dataclasses.replace(layer.rule, implementation=self.kernel)

        def step(params: Any, x: Array, state: Any, *own: Array) -> tuple[Array, Any, Any]:
            return nnx.merge(graph, params)(x, positions, rotation, rule, context, state, *own)

        return rematerialised(step, self.remat)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"],
        context: C,
        inputs: MultimodalInputs | None = None,
    ) -> tuple[Float[Array, "b t d"], C]:
        hidden, context, _ = self.run(tokens, positions, context, inputs)
        return hidden, context

    def run(
        self,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"],
        context: C,
        inputs: MultimodalInputs | None = None,
    ) -> tuple[Float[Array, "b t d"], C, dict[str, Any]]:
        """Final hidden states, the context after these tokens, and what the routers of mixtures of
        experts report, by stack, with the stack's layers along the first axis."""
        begun = self.begin(tokens, positions, context, inputs)
        layers = self.config.layers

        def step(number: int) -> LayerStep:
            return self.layer_step(layers[number], positions, begun.rotations[number], context)

        behind = None
        if inputs is not None and inputs.by_layer is not None:
            behind = inputs.add, inputs.by_layer
        _, stacks = self.stack_parts(self.config)
        held = context.state or ()
        found = scan_layers(layers, stacks, step, begun.x, held, behind, begun.by_layer)
        routing = {
            stack_name(stack): report
            for stack, report in enumerate(found.by_stack(1))
            if report is not None
        }
        context = context.advance(tuple(found.by_stack(0)), tokens.shape[1])
        return self.finish(found.x), context, routing


def _block(c: DecoderConfig, precision: Precision, block: BlockConfig, rngs: nnx.Rngs) -> Block:
    return Block(block, c.d_model, c.init_std, precision, rngs)
