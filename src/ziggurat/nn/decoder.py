"""The decoder that carries every causal family: embed, scanned stacks of blocks, norm.

Blocks of equal parameters are stacked on a leading layers axis and scanned, so the time to compile
does not grow with depth; where windows alternate, or dense and sparse blocks do, the scan goes over
the repeating period (:mod:`ziggurat.nn.stacking`). The same forward pass serves training, prefill
and decoding; only the attention context differs.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ShapeError
from ziggurat.kernels.linear import PackedWeight, Weight, dense, is_product
from ziggurat.mesh import constrain
from ziggurat.nn.attention_context import AttentionContext
from ziggurat.nn.block import Block, BlockConfig, LayerConfig
from ziggurat.nn.layer_state import StateSpec
from ziggurat.nn.linear import Embedding, Linear, constant, parameter
from ziggurat.nn.multimodal import MultimodalInputs
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.precision import Precision
from ziggurat.nn.rope import Rotation, depends_on_length, rotation
from ziggurat.nn.stacking import Run, StackPlace, places, runs, stacked

C = TypeVar("C", bound=AttentionContext)
Remat = Literal["none", "full", "dots"]


def _keep_products(primitive: Any, *arguments: Any, **attributes: Any) -> bool:
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return is_product(primitive) or bool(dots(primitive, *arguments, **attributes))


REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": _keep_products,
}
"""Activations that a block keeps for its backward pass, by policy.

``none``: all. ``full``: its input only. ``dots``: the results of weight matmuls; attention and
element-wise work are recomputed.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
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
    logit_scale: float = 1.0
    """Multiplies the final hidden states, and by them the logits (Command, Granite)."""

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def stacks(self) -> tuple[BlockConfig, ...]:
        """Kinds of blocks by their parameters, in order of first appearance."""
        return tuple(dict.fromkeys(layer.block for layer in self.layers))

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
        """Of each stack, what its layers keep of earlier tokens, and how many layers there are."""
        counts = collections.Counter(layer.block for layer in self.layers)
        return tuple((block.mixer.state, counts[block]) for block in self.stacks)

    @property
    def places(self) -> tuple[StackPlace, ...]:
        """Where each layer's parameters lie: which stack, and which index in it."""
        return places(self.layers)

    @property
    def runs(self) -> tuple[Run, ...]:
        """Ranges of layers that are scanned together."""
        return runs(self.layers)


def stack_name(stack: int) -> str:
    """The attribute that holds a stack: ``blocks``, then ``blocks_1`` and so on.

    >>> stack_name(0), stack_name(1)
    ('blocks', 'blocks_1')
    """
    return "blocks" if stack == 0 else f"blocks_{stack}"


class Decoder(nnx.Module):
    """Decoder module: token ids to final hidden states; :attr:`head` turns those into logits.

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
        self.config, self.remat, self.kernel = c, remat, attention_kernel
        self.compute = precision.compute

        def table(rows: int, width: int) -> Embedding:
            return Embedding(rows, width, std=c.init_std, precision=precision, rngs=rngs)

        width = c.embedding_width or c.d_model
        self.embedding = table(c.vocab_size, width)
        for number, block in enumerate(c.stacks):
            count = sum(layer.block == block for layer in c.layers)
            setattr(self, stack_name(number), self._stack(block, count, precision, rngs))
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

    def _stack(self, c: BlockConfig, count: int, precision: Precision, rngs: nnx.Rngs) -> Block:
        def make(rngs: nnx.Rngs) -> Block:
            return Block(c, self.config.d_model, self.config.init_std, precision, rngs)

        return stacked(make, count, rngs)

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
    ) -> tuple[Float[Array, "b t d"], list[Rotation | None]]:
        """Compute the input of the first block: embeddings, and the rotary angles of every
        layer."""
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
        angles: dict[Any, Rotation | None] = {}
        for layer in self.config.layers:
            rope, dim = layer.rope, layer.block.mixer.rope_dim
            if (rope, dim) not in angles:
                angles[rope, dim] = None
                if rope is not None:
                    length = context.context_length(positions) if depends_on_length(rope) else 0
                    angles[rope, dim] = rotation(turned, rope, dim, length)
        found = [angles[la.rope, la.block.mixer.rope_dim] for la in self.config.layers]
        return constrain(x, ("batch", "sequence", "embed")), found

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
    ) -> Callable[..., tuple[Array, Any, Any]]:
        """One layer as a pure function ``(parameters, x, state) -> (x, state, routing)``."""
        stack = getattr(self, stack_name(self.config.stacks.index(layer.block)))
        graph, _ = nnx.split(stack)
        rule = dataclasses.replace(layer.rule, implementation=self.kernel)

        def step(params: Any, x: Array, state: Any) -> tuple[Array, Any, Any]:
            return nnx.merge(graph, params)(x, positions, rotation, rule, context, state)

        if self.remat == "none":
            return step
        # inside a scan nothing can be shared with the forward pass, so let XLA merge freely
        return jax.checkpoint(step, policy=REMAT_POLICIES[self.remat], prevent_cse=False)

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
        x, angles = self.begin(tokens, positions, context, inputs)
        count = len(self.config.stacks)
        stacks = [nnx.split(getattr(self, stack_name(number)))[1] for number in range(count)]
        states = list(context.state or [()] * count)
        after_states, reports = ([[] for _ in range(count)] for _ in range(2))
        for run in runs(self.config.layers, 0 if inputs is None else inputs.layers):
            steps = [
                self.layer_step(self.config.layers[i], positions, angles[i], context)
                for i in range(run.start, run.start + run.period)
            ]

            def body(x: Array, folded: Any, run: Run = run, steps: Any = steps):
                *folded, added = folded
                after = []
                parts = (run.unfold(part) for part in folded)
                for i, (step, params, state) in enumerate(zip(steps, *parts)):
                    x, state, routing = step(params, x, state)
                    if added is not None and inputs is not None:
                        x = inputs.add(x, added[i])
                    after.append((state, routing))
                return x, after

            added = None if inputs is None else _behind(inputs, run)
            x, after = jax.lax.scan(body, x, (run.fold(stacks), run.fold(states), added))
            for found, parts in zip((after_states, reports), zip(*after)):
                for stack, part in run.by_stack(parts).items():
                    found[stack].append(part)
        state = tuple(map(_concatenated, after_states))
        routing = {
            stack_name(stack): _concatenated(parts)
            for stack, parts in enumerate(reports)
            if parts[0] is not None
        }
        return self.finish(x), context.advance(state, tokens.shape[1]), routing


def _behind(inputs: MultimodalInputs, run: Run) -> Float[Array, "r p b n d"] | None:
    """Embeddings to be added behind each layer of a run, by repeat and layer of the period."""
    if inputs.by_layer is None or run.start >= inputs.layers:
        return None
    own = inputs.by_layer[run.start : run.start + run.repeats * run.period]
    return own.reshape(run.repeats, run.period, *own.shape[1:])


def _concatenated(parts: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
