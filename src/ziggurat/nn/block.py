"""One residual block, and the configs from which a family puts its layers together.

A block's *parameters* follow from its :class:`BlockConfig` alone; what may differ from layer to
layer without changing them (window, rotary embedding, scale) stands in :class:`LayerConfig`, so
that layers of one block config are stacked and scanned although their windows alternate.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.mesh import constrain
from ziggurat.nn.attention_context import AttentionContext, AttentionRule, counted_tokens
from ziggurat.nn.layer_state import KeyValueSpec, MixerCost, StateSpec
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Config of a block, which decides its parameters."""

    mixer: MixerConfig
    """Mixer of positions: attention, or a recurrent layer."""
    mlp: MlpConfig
    norm: NormConfig
    post_norms: bool = False
    """Norms after the mixer and after the feed-forward part too, before they are added (Gemma)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """One layer: its block, and what differs between layers of equal parameters."""

    block: BlockConfig
    rule: AttentionRule
    """Scale, window and soft cap of its attention."""
    rope: RopeConfig | None
    """Rotary embedding of its queries and keys; ``None``: no positions here."""

    @property
    def state(self) -> StateSpec:
        """State that the layer keeps of earlier tokens."""
        spec = self.block.mixer.state
        if isinstance(spec, KeyValueSpec):
            return dataclasses.replace(spec, window=self.rule.window)
        return spec


class Block(nnx.Module):
    r"""Pre-norm residual block: :math:`x + A(N(x))`, then :math:`x + F(N(x))`; with ``post_norms``
    :math:`x + N'(A(N(x)))` and likewise.

    The mixer ``A`` and its norms are attributes under the mixer's own name, such as ``attention``,
    ``attention_norm`` and ``attention_post_norm``.
    """

    def __init__(
        self, c: BlockConfig, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ):
        def norm() -> nnx.Module:
            return c.norm.build(width, precision)

        self.mixer_name = c.mixer.name
        setattr(self, f"{self.mixer_name}_norm", norm())
        self.mlp_norm = norm()
        setattr(self, self.mixer_name, c.mixer.build(width, std, precision, rngs))
        self.mlp = c.mlp.build(width, std, precision, rngs)
        setattr(self, f"{self.mixer_name}_post_norm", norm() if c.post_norms else None)
        self.mlp_post_norm = norm() if c.post_norms else None

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        rotation: Rotation | None,
        rule: AttentionRule,
        context: AttentionContext,
        state: Any,
    ) -> tuple[Float[Array, "b t d"], Any, Any]:
        """The stream after this block, the layer's new state, and its router's report."""
        name = self.mixer_name
        mixer, norm, post_norm = (getattr(self, name + k) for k in ("", "_norm", "_post_norm"))
        with jax.named_scope(name):
            mixed, state = mixer(norm(x), positions, rotation, rule, context, state)
            x = self._add(x, mixed, post_norm)
        with jax.named_scope("mlp"):
            y, routing = self.mlp(self.mlp_norm(x), counted_tokens(context))
            return self._add(x, y, self.mlp_post_norm), state, routing

    def _add(self, x: jax.Array, y: jax.Array, post_norm: Any) -> jax.Array:
        y = y if post_norm is None else post_norm(y)
        return constrain(x + y, ("batch", "sequence", "embed"))
