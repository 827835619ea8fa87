"""SmolLM3."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import WindowedFields, reach_of_layers
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig


@config.node
class SmolLM3Config(WindowedFields):
    """A Llama-like decoder in which every fourth layer has no positions (NoPE).

    Papers: Bakouch et al. 2025, https://huggingface.co/blog/smollm3; NoPE: Yang et al. 2025,
    https://arxiv.org/abs/2501.18795.
    """

    kind: Literal["smollm3"] = "smollm3"
    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=2e6))
    """Rotary position embedding of the layers that have one."""
    rotary_layers: tuple[bool, ...] = (True, True, True, False)
    """Which layers rotate queries and keys, repeated from the first on; the others have no
    positions."""
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    mlp_bias: bool = False
    """Biases in the feed-forward block."""

    def __post_init__(self):
        super().__post_init__()
        rotary = self.rotary_layers
        config.require(len(rotary) >= 1, "rotary_layers", rotary, "at least one entry")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        bias = self.attention_bias
        block = BlockConfig(
            mixer=self.attention(bias=bias, out_bias=bias),
            mlp=self.mlp(self.mlp_bias),
            norm=NormConfig(eps=self.norm_eps),
        )
        rotary = reach_of_layers(self.rotary_layers, self.n_layers)
        layers = self.windowed(block, lambda number, reach: self.rope if rotary[number] else None)
        return self.decoder_of(layers)
