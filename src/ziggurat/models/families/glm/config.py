"""GLM-4, of 2024 and of 2025 (dense)."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import PartialRotaryFields
from ziggurat.nn.block import BlockConfig, NormPlacement
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig


@config.node
class GlmFields(PartialRotaryFields):
    """Config fields that both kinds of GLM-4 share."""

    partial_rotary_factor: float = 0.5
    """Share of a head's channels that rotate, the first ones."""
    attention_bias: bool = True
    """Biases on query, key and value."""
    norm_eps: float = 1.5625e-7
    """Added to the mean square in norms."""

    def _decoder(self, norms: NormPlacement) -> DecoderConfig:
        attention = self.attention(bias=self.attention_bias, rotary_dim=self.rotary_dim)
        norm = NormConfig(eps=self.norm_eps)
        block = BlockConfig(mixer=attention, mlp=self.mlp(), norm=norm, norms=norms)
        return self.decoder_of(self.alike(block))


@config.node
class GlmConfig(GlmFields):
    """GLM-4 of 2024: a Llama-like decoder, half of whose channels rotate.

    Paper: Team GLM 2024, https://arxiv.org/abs/2406.12793.
    """

    kind: Literal["glm"] = "glm"

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        return self._decoder("pre")


@config.node
class Glm4Config(GlmFields):
    """GLM-4 of 2025 (GLM-4-0414, GLM-Z1): norms before and after each half of a block."""

    kind: Literal["glm4"] = "glm4"

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        return self._decoder("sandwich")
