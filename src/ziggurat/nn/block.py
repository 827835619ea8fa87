"""One residual block, and the configs from which a family puts its layers together.

A block's *parameters* follow from its :class:`BlockConfig` alone; what may differ from layer to
layer without changing them (window, rotary embedding, scale) stands in :class:`LayerConfig`, so
that layers of one block config are stacked and scanned although their windows alternate.
"""

import dataclasses
from typing import Any, Literal, Protocol, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.mesh import constrain
from ziggurat.nn.attention_context import AttentionContext, AttentionRule, counted_tokens
from ziggurat.nn.layer_inputs import LayerInputGate, LayerInputGateConfig
from ziggurat.nn.layer_state import KeyValueSpec, MixerCost, StateSpec
from ziggurat.nn.linear import constant, multiply
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.precision import Precision
from ziggurat.nn.rope import RopeConfig, Rotation


@runtime_checkable
class MixerConfig(Protocol):
    """Interface of a mixer's config: what a block, a cache and a plan need to know of it.

    ``ziggurat.nn.attention`` has the usual one, ``ziggurat.nn.gated_delta_net`` a recurrent one.
    """

    @property
    def name(self) -> str:
        """Name of the module in the block, and of its parameters: ``attention``."""
        ...

    @property
    def state(self) -> StateSpec:
        """State kept of earlier tokens; see :mod:`ziggurat.nn.layer_state`."""
        ...

    @property
    def cost(self) -> MixerCost:
        """FLOPs beside those of its weight matrices."""
        ...

    @property
    def rope_dim(self) -> int:
        """Channels of a head that rotate."""
        ...

    @property
    def divided(self) -> dict[str, int]:
        """Numbers of heads by logical axis: whole heads must divide over a mesh."""
        ...

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> Any:
        """The module: ``(x, positions, rotation, rule, context, state) -> (y, state)``."""
        ...


@runtime_checkable
class MlpConfig(Protocol):
    """Interface of a feed-forward config; see :mod:`ziggurat.nn.mlp`."""

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> Any:
        """The module: ``(x, counted) -> (y, routing)``, where ``routing`` is what a mixture of
        experts reports of its router over the tokens ``counted``, and ``None`` elsewhere."""
        ...


NormPlacement = Literal["pre", "post", "reordered", "sandwich"]
"""Where a block's norms stand, for a branch ``F`` of the stream ``x``.

``pre``: ``x + F(N(x))`` (GPT-2, Llama). ``post``: ``N(x + F(x))`` (the first transformer, BERT).
``reordered``: ``x + N(F(x))`` (OLMo 2). ``sandwich``: ``x + N'(F(N(x)))`` (Gemma 2).
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Config of a block, which decides its parameters."""

    mixer: MixerConfig
    """Mixer of positions: attention, or a recurrent layer."""
    mlp: MlpConfig | None
    """Feed-forward part; ``None``: the mixer is all of the block (Mamba)."""
    norm: NormConfig
    norms: NormPlacement = "pre"
    """Where the norms stand."""
    mixer_norm: bool = True
    """Whether the mixer has its norm; ModernBERT's first layer reads embeddings that are normalised
    already."""
    mlp_norm: bool = True
    """Whether the feed-forward part has a norm before it; a mixture of experts whose branches have
    norms of their own reads the stream (Gemma 4)."""
    parallel: bool = False
    """Mixer and feed-forward part both read the block's input, and their results are added to it
    together (GPT-NeoX, Falcon, Command); with norms before them only."""
    shared_norm: bool = False
    """Parallel branches read one norm (Command, Phi), rather than a norm each (GPT-NeoX)."""
    residual_scale: float = 1.0
    """Multiplies what a branch adds to the stream (Granite)."""
    layer_scale: float | None = None
    """If given, a learned vector multiplies what a branch adds, and starts at this value (DINOv2;
    Touvron et al. 2021, https://arxiv.org/abs/2103.17239)."""
    layer_input: LayerInputGateConfig | None = None
    """A third branch, which reads an input of the layer's own (Gemma 4 E2B)."""
    stream_scale: bool = False
    """A number multiplies the stream after the block; it is loaded, not trained (Gemma 4)."""

    def __post_init__(self):
        assert self.norms == "pre" or not self.parallel, self.norms
        assert self.parallel or not self.shared_norm
        assert self.mixer_norm or (self.norms == "pre" and not self.parallel)
        assert self.mlp_norm or (self.norms == "sandwich" and self.mlp is not None)
        assert self.mlp is not None or not self.parallel

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of what adds to the stream, in order: the mixer's, and ``mlp``."""
        return (self.mixer.name,) if self.mlp is None else (self.mixer.name, "mlp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """One layer: its block, and what differs between layers of equal parameters."""

    block: BlockConfig
    rule: AttentionRule
    """Scale, window and soft cap of its attention."""
    rope: RopeConfig | None
    """Rotary embedding of its queries and keys; ``None``: no positions here."""
    source: int | None = None
    """Number of the earlier layer to whose keys and values this one attends, where its mixer has
    none of its own; the other's rule says ``read_later``."""

    @property
    def state(self) -> StateSpec:
        """State that the layer keeps of earlier tokens."""
        spec = self.block.mixer.state
        if isinstance(spec, KeyValueSpec):
            return dataclasses.replace(spec, window=self.rule.window)
        return spec


class Block(nnx.Module):
    r"""Residual block of a mixer ``A`` and a feed-forward part ``F``: with norms before them
    :math:`y = x + A(N(x))`, then :math:`y + F(N'(y))`; or with both branches in parallel
    :math:`x + A(N(x)) + F(N'(x))`. See :data:`NormPlacement` for norms elsewhere.

    The mixer and its norms are attributes under the mixer's own name, such as ``attention``,
    ``attention_norm`` and ``attention_post_norm``.
    """

    def __init__(
        self, c: BlockConfig, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ):
        self.config, name = c, c.mixer.name
        setattr(self, name, c.mixer.build(width, std, precision, rngs))
        self.mlp = None if c.mlp is None else c.mlp.build(width, std, precision, rngs)
        for branch in c.branches:
            has_norm = c.mixer_norm if branch == name else c.mlp_norm and not c.shared_norm
            has_post = c.norms == "sandwich"
            for place, there in (("norm", has_norm), ("post_norm", has_post)):
                part = c.norm.build(width, precision) if there else None
                setattr(self, f"{branch}_{place}", part)
            scale = c.layer_scale
            vector = None if scale is None else constant(scale, (width,), ("embed",), precision)
            setattr(self, f"{branch}_scale", vector)
        made = {"std": std, "precision": precision, "rngs": rngs}
        own = c.layer_input
        self.layer_input = own and LayerInputGate(own, width, c.norm, **made)
        self.stream_scale = constant(1.0, (1,), (None,), precision) if c.stream_scale else None

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        rotation: Rotation | None,
        rule: AttentionRule,
        context: AttentionContext,
        state: Any,
        own: Float[Array, "b t p"] | None = None,
    ) -> tuple[Float[Array, "b t d"], Any, Any]:
        """The stream after this block, the layer's new state, and its router's report; ``own`` is
        the layer's own input, where it has one."""
        c, name = self.config, self.config.mixer.name
        with jax.named_scope(name):
            read = self._read(name, x)
            mixed, state = getattr(self, name)(read, positions, rotation, rule, context, state)
            after = self._add(name, x, mixed)
        if self.mlp is None:
            return self._ended(after, own), state, None
        with jax.named_scope("mlp"):
            if not c.shared_norm:
                read = self._read("mlp", x if c.parallel else after)
            y, routing = self.mlp(read, counted_tokens(context))
            return self._ended(self._add("mlp", after, y), own), state, routing

    def _ended(self, x: Array, own: Array | None) -> Float[Array, "b t d"]:
        """The stream with the branch of the layer's own input, times its number, which gets no
        gradient."""
        if self.layer_input is not None:
            assert own is not None
            with jax.named_scope("layer_input"):
                x = constrain(self.layer_input(x, own), ("batch", "sequence", "embed"))
        if self.stream_scale is None:
            return x
        scale = jax.lax.stop_gradient(self.stream_scale[...])
        return x * scale[None, None].astype(x.dtype)

    def _read(self, branch: str, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Input of a branch."""
        before, norm = self.config.norms in ("pre", "sandwich"), getattr(self, f"{branch}_norm")
        return norm(x) if before and norm is not None else x

    def _add(self, branch: str, x: jax.Array, y: jax.Array) -> Float[Array, "b t d"]:
        """The stream with a branch's result."""
        norms, norm = self.config.norms, getattr(self, f"{branch}_norm")
        scale = getattr(self, f"{branch}_scale")
        if norms == "sandwich":
            y = getattr(self, f"{branch}_post_norm")(y)
        elif norms == "reordered":
            y = norm(y)
        if scale is not None:
            y = multiply(y, scale[...][None, None])
        if self.config.residual_scale != 1.0:
            y = y * self.config.residual_scale
        x = constrain(x + y, ("batch", "sequence", "embed"))
        return norm(x) if norms == "post" else x
