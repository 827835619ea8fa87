"""Mixers that a run file can name, in place of a family's own attention."""

from typing import Annotated, Literal, Protocol, runtime_checkable

from ziggurat.core import config
from ziggurat.core.kinds import Kinds
from ziggurat.core.registry import Registry
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.block import MixerConfig
from ziggurat.nn.gated_delta_net import GatedDeltaNetConfig


@runtime_checkable
class MixerNode(Protocol):
    """Settings of a mixer in a run file."""

    @property
    def kind(self) -> str: ...

    def mixer(self, attention: GroupedAttentionConfig) -> MixerConfig:
        """The mixer's config.

        Args:
            attention: the attention in whose place it stands, for its heads and channels.
        """
        ...


MIXERS: Registry[type[MixerNode]] = Registry("model.mixer")
"""Nodes of ``[model.mixer]`` by kind."""
MixerChoice = Annotated[MixerNode, Kinds(MIXERS)]
"""Type of a field that holds a :class:`MixerNode`."""


@MIXERS.register("delta_net")
@config.node
class DeltaNet:
    """A gated delta net: linear attention with a state of fixed size.

    Value heads, key heads and their channels are the attention's heads, key/value heads and
    ``head_dim``. Paper: Yang et al. 2024, https://arxiv.org/abs/2412.06464.
    """

    kind: Literal["delta_net"] = "delta_net"
    taps: int = 4
    """Tokens that the convolutions before queries, keys and values see."""
    norm_eps: float = 1e-6
    """Added to the mean square in the norm of each head's output."""

    def __post_init__(self):
        config.require(self.taps >= 2, "taps", self.taps, "a number >= 2")
        config.require(self.norm_eps > 0, "norm_eps", self.norm_eps, "more than 0")

    def mixer(self, attention: GroupedAttentionConfig) -> MixerConfig:
        config.require(not attention.bias, "attention_bias", True, "false with mixer delta_net")
        return GatedDeltaNetConfig(
            key_heads=attention.kv_heads,
            value_heads=attention.heads,
            key_dim=attention.head_dim,
            value_dim=attention.head_dim,
            taps=self.taps,
            norm_eps=self.norm_eps,
        )
