"""StarCoder2."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.mlp import Activation
from ziggurat.nn.norm import NormConfig


@config.node
class Starcoder2Config(DecoderFields):
    """A decoder of code with LayerNorm, rotary positions, biases, and an MLP without a gate.

    Paper: Lozhkov et al. 2024, https://arxiv.org/abs/2402.19173.
    """

    kind: Literal["starcoder2"] = "starcoder2"
    activation: Activation = "gelu_tanh"
    """Function between the two matmuls of the feed-forward block."""
    window: int | None = None
    """Sliding attention window in tokens; default none."""
    bias: bool = True
    """Biases on all projections."""
    norm_eps: float = 1e-5
    """Added to the variance in norms."""

    def __post_init__(self):
        super().__post_init__()
        window = self.window
        config.require(window is None or window >= 1, "window", window, "a number >= 1")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        block = BlockConfig(
            mixer=self.attention(bias=self.bias, out_bias=self.bias),
            mlp=self.plain_mlp(self.bias),
            norm=NormConfig(kind="layer", eps=self.norm_eps),
        )
        return self.decoder_of(self.alike(block, window=self.window))
